"""One model on many configs: what `paddock verify`, its `--all` and the demo do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import carry_out, deploy
from paddock.errors import AccuracyRefused, PaddockError, UsageError
from paddock.plan import Plan, Precision
from paddock.planning.precision import is_quantised
from paddock.prepare import ConfigSource, prepare
from paddock.reading import open_model
from paddock.references import write_golden
from paddock.registry import Registry
from paddock.verify import Report


@dataclass(frozen=True)
class Row:
    """How one adapter in one precision came out: a report, or the error that refused it."""

    adapter: str
    precision: str
    report: Report | None = None
    error: PaddockError | None = None
    passed_over: str = ""
    """Why it was not tried at all: it takes no such models."""

    @property
    def verdict(self) -> str:
        """`verified`, `inconclusive`, `not verified`, `refused`, `unavailable` or `not tried`."""
        if self.passed_over:
            return "not tried"
        if self.error is not None:
            return "refused" if isinstance(self.error, AccuracyRefused) else "unavailable"
        assert self.report is not None
        return {"passed": "verified", "off": "not verified"}.get(self.report.outcome.value, self.report.outcome.value)

    @property
    def figure(self) -> str:
        """The relative error, or "-"."""
        report = self.report if self.report is not None else getattr(self.error, "report", None)
        return "-" if report is None or report.error is None else f"{report.error:.2g}"

    @property
    def detail(self) -> str:
        """The reference and budget, or the reason."""
        if self.passed_over:
            return self.passed_over
        if self.error is not None:
            return self.error.problem
        assert self.report is not None
        return f"against {self.report.reference}, {self.report.budget}"


def verify_one(
    model: Path, config: ConfigSource, golden: Path | None, progress: Callable[[str], None]
) -> tuple[Plan, Report]:
    """Deploys under one config and returns plan and report; writes golden outputs where asked, once it passed."""
    loaded = anew(HardwareConfig.load(config))
    if golden is not None and loaded.accuracy.verify in ("golden", "off"):
        raise UsageError(
            f'--write-golden needs a reference run, the config says verify "{loaded.accuracy.verify}"',
            remedy="set accuracy.verify to always",
        )
    registry = Registry.discover()
    with Children() as children:
        prepared = prepare(model, loaded, registry=registry, children=children, progress=progress)
        with carry_out(prepared) as deployment:
            if golden is not None:
                write_golden(golden, prepared.reference(prepared.samples()))
            return deployment.plan, deployment.report


def anew(config: HardwareConfig) -> HardwareConfig:
    """The config with nothing taken from an earlier verification: whoever asks to verify is not told of one."""
    if config.accuracy.verify != "cached":
        return config
    return config.model_copy(update={"accuracy": config.accuracy.model_copy(update={"verify": "always"})})


def every_adapter(model: Path, config: str | None, progress: Callable[[str], None]) -> list[Row]:
    """A row for every adapter that is here and every precision that it computes in.

    `config` gives shapes, samples and the like; its adapters, precision and options are replaced.
    """
    base: dict[str, Any] = {}
    if config is not None:
        loaded = HardwareConfig.load(config)
        base = loaded.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for key in ("options", "candidates", "fallback", "devices", "warm_start", "rescue"):
            base.pop(key, None)
    registry = Registry.discover()
    rows = []
    with Children() as children:
        origin = open_model(model, registry, children)
        for registered, probe, devices in registry.survey().values():
            adapter = registered.adapter
            if not probe.verdict.usable or not devices.verdict.usable:
                continue
            formats = (origin.format, *registry.formats[origin.format].converts_to)
            if not set(formats) & set(adapter.formats):
                why = f"takes {' and '.join(adapter.formats)} models, this is {origin.format}"
                rows.append(Row(adapter.name(), "-", passed_over=why))
                continue
            usable = sorted({p for d in devices.devices for p, v in d.precisions.items() if v.usable})
            for precision in usable:
                progress(f"{adapter.name()} {precision}")
                if precision is Precision.INT8 and "calibration" not in base and not is_quantised(origin):
                    rows.append(Row(adapter.name(), precision, passed_over="needs calibration.samples in --config"))
                    continue
                wanted = {**base, "hardware": adapter.hardware, "backend": adapter.backend, "precision": precision}
                try:
                    asked = anew(HardwareConfig.load(wanted))
                    with deploy(model, asked, registry=registry, children=children) as deployment:
                        rows.append(Row(adapter.name(), precision, deployment.report))
                except PaddockError as error:
                    rows.append(Row(adapter.name(), precision, error=error))
    return rows
