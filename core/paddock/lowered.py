"""`paddock cast` and `paddock quantize`: a model in another precision as files of its own, verified before written.

Beside the model stand the config that deploys the original alike, with the exact list of what stays in fp32, and the
report: sizes, errors, what each node computes in.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import Deployment, deploy
from paddock.errors import ConfigError, NotAvailable, UsageError
from paddock.jsontext import write_json
from paddock.model import Files
from paddock.plan import Means, Plan, Precision
from paddock.planning.precision import portable
from paddock.prepare import ConfigSource, ModelSource, Progress
from paddock.registry import Registry
from paddock.verify import Report

FLOATS = (Precision.FP16, Precision.BF16)


@dataclass(frozen=True)
class Written:
    """What was written; sizes in bytes, of the model in the adapter's format before and after."""

    folder: Path
    files: tuple[str, ...]
    before: int
    after: int
    keep_fp32: tuple[str, ...]
    plan: Plan
    report: Report
    config: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON data, what `report.json` holds."""
        plan = self.plan.precision
        return {
            "adapter": self.plan.adapter,
            "precision": plan.precision.value,
            "summary": plan.reason,
            "files": list(self.files),
            "bytes": {"before": self.before, "after": self.after, "ratio": self.after / max(1, self.before)},
            "keep_fp32": list(self.keep_fp32),
            "casts": [list(cast) for cast in plan.casts],
            "nodes": [asdict(node) for node in plan.nodes],
            "searched": [asdict(step) for step in plan.searched],
            "verification": self.report.to_json(),
            "versions": dict(self.plan.versions),
        }


def write_lowered(
    model: ModelSource,
    config: ConfigSource,
    output: Path,
    *,
    quantize: bool,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> Written:
    """Deploys as the config says, and writes the model that the adapter was given into the folder `output`.

    Args:
        model: As for `paddock.deploy`.
        config: With precision int8 to quantise, fp16 or bf16 (or a `storage`) to cast.
        output: A folder that does not exist yet, or is empty.
        quantize: Which of the two is asked for.
        registry: The plugins.
        progress: Told what is being done.

    Raises what `paddock.deploy` raises, `ConfigError` where the config asks for something else, and `NotAvailable`
    where there is no such file: the backend lowers the model itself, or several adapters share it.
    """
    loaded = HardwareConfig.load(config)
    with loaded.named():
        _check(loaded, quantize)
        _check_folder(output)
        with (
            Children() as children,
            deploy(model, loaded, registry=registry, children=children, progress=progress) as deployment,
        ):
            return _write(deployment, loaded, output)


def _check(config: HardwareConfig, quantize: bool) -> None:
    precision = config.precision
    if quantize and precision is not Precision.INT8:
        raise ConfigError(
            f"is {precision}: quantising is to int8", where="$.precision", remedy='set it to "int8", or `paddock cast`'
        )
    if not quantize and precision not in FLOATS and config.storage is None:
        raise ConfigError(
            f"is {precision}: casting is to fp16 or bf16, or with precision fp32 to a storage", where="$.precision",
            remedy='set it to one of these, or `paddock quantize` for "int8"',
        )  # fmt: skip


def _check_folder(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError("is there already", where=f"--output: {output}", remedy="name a new folder, or empty this one")
    if not output.absolute().parent.is_dir():
        raise UsageError("is in a folder that does not exist", where=f"--output: {output}")


def _write(deployment: Deployment, config: HardwareConfig, output: Path) -> Written:
    plan = deployment.plan
    means = plan.precision.means
    if means not in (Means.CAST, Means.QUANTIZE):
        why = plan.precision.reason
        raise NotAvailable(f"there is no file to write for {plan.adapter}: {why}", where="$.hardware/$.backend")
    if len(plan.placement.segments) > 1:
        raise NotAvailable(
            f"{len(plan.placement.segments)} segments share the model: there is no one file to write",
            where="$.fallback", remedy="choose an adapter that runs the whole model",
        )  # fmt: skip
    before, after = deployment.lowered
    output.mkdir(exist_ok=True)
    names = []
    for role, path in after.items():
        name = "model" + path.suffix if role == "model" else role.removeprefix("data/")
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, output / name)
        names.append(name)
    keep = portable(deployment.model, plan.precision.keep_fp32)
    data = _config(config, keep)
    files = (*names, "config.json", "report.json")
    written = Written(
        output,
        files,
        _size(before),
        _size(after),
        tuple(keep),
        plan,
        deployment.report,
        data,
    )
    write_json(output / "config.json", data, "--output")
    write_json(output / "report.json", written.to_json(), "--output")
    return written


def _config(config: HardwareConfig, keep: list[str]) -> dict[str, Any]:
    """The config as JSON data, with what stays in fp32 stated exactly."""
    data = config.as_data()
    if config.storage is None:
        data.setdefault("operators", {})["keep_fp32"] = keep
    return data


def _size(files: Files) -> int:
    return sum(path.stat().st_size for path in files.values())
