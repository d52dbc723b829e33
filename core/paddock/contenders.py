"""What can stand for each `"auto"` of a config on this host: whole configs to try, and why others are not tried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paddock.config import AUTO, HardwareConfig
from paddock.errors import PaddockError
from paddock.host import building
from paddock.machine import cores
from paddock.plan import Precision
from paddock.registry import Registered, Registry
from paddock.spi import Adapter, Devices, Probe

Objective = Literal["latency", "throughput", "memory"]
OBJECTIVES: Mapping[str, Objective] = {"latency": "latency", "throughput": "throughput", "memory": "memory"}

LAST_RESORT = "it is there to be checked against: tried where nothing else runs, or where the config names it"
NO_BUDGET = "no accuracy budget is stated (accuracy.max_error or min_agreement), so nothing may be lost"
NO_CALIBRATION = "int8 needs calibration.samples"
_NARROWNESS = (Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8)


@dataclass(frozen=True)
class Candidate:
    """A whole config to try; `knobs` are what it sets beyond the adapter's defaults. The lower `place`, the simpler.

    `aside` says why it is not tried, "" where it is.
    """

    label: str
    config: Mapping[str, Any]
    adapter: str
    precision: str
    knobs: tuple[tuple[str, Any], ...] = ()
    place: tuple[int, ...] = ()
    aside: str = ""


def candidates(base: Mapping[str, Any], registry: Registry, format: str) -> list[Candidate]:
    """The adapters and precisions that can stand for what `base` leaves open, with default options, the simplest first.

    Args:
        base: The config as data. A hardware, backend or precision that it names is kept.
        registry: The adapters to choose from.
        format: The model's.
    """
    found = []
    asked = base.get("precision", AUTO)
    for position, (registered, probe, devices) in enumerate(registry.survey().values()):
        adapter = registered.adapter
        if not _is_meant(adapter, base, registry):
            continue
        for rank, precision in enumerate(_NARROWNESS):
            if precision not in adapter.precisions or asked not in (AUTO, precision.value):
                continue
            config = {**base, "hardware": adapter.hardware, "backend": adapter.backend, "precision": precision.value}
            if precision is not Precision.INT8 and asked == AUTO:
                config.pop("calibration", None)
            aside = (
                _absent(probe, devices, precision)
                or _unreachable(adapter, format, registry)
                or ("" if adapter.contends or _names_it(base) else LAST_RESORT)
                or _not_allowed(precision, base)
                or misfit(registered, config, registry)
            )
            label = f"{adapter.name()} {precision.value}"
            found.append(Candidate(label, config, adapter.name(), precision.value, (), (0, rank, position), aside))
    return sorted(found, key=lambda candidate: candidate.place)


def turned(candidate: Candidate, objective: Objective, registry: Registry) -> Iterator[Candidate]:
    """The candidate with each single knob turned that it leaves open: those that its adapter declares for the
    objective, and threads and instances."""
    registered = registry.get(candidate.adapter)
    for position, (knob, value) in enumerate(_knobs(registered.adapter, candidate.config, objective)):
        part, _, name = knob.partition(".")
        options = candidate.config.get("options", {})
        if (name in options) if name else (part in candidate.config):
            continue
        config = {**candidate.config, **({"options": {**options, name: value}} if name else {part: value})}
        knobs = tuple(sorted((*candidate.knobs, (knob, value))))
        label = f"{candidate.adapter} {candidate.precision}" + "".join(f", {k} {json.dumps(v)}" for k, v in knobs)
        place = (candidate.place[0] + 1, *candidate.place[1:], position)
        aside = misfit(registered, config, registry)
        yield Candidate(label, config, candidate.adapter, candidate.precision, knobs, place, aside)


def misfit(registered: Registered, config: Mapping[str, Any], registry: Registry) -> str:
    """Why an adapter takes a config in no case, as far as that is told without its SDK; "" where it may."""
    try:
        resolved = registry.consider(registered.adapter.name(), HardwareConfig.load(config))
        building("constructing it", lambda: registered.adapter(resolved.config, resolved.device))
    except PaddockError as error:
        return error.problem
    return ""


def _is_meant(adapter: type[Adapter], base: Mapping[str, Any], registry: Registry) -> bool:
    hardware, backend = base.get("hardware", AUTO), base.get("backend", AUTO)
    named = adapter.name() if backend == AUTO else registry.canonical(f"{adapter.hardware}/{backend}")
    return hardware in (AUTO, adapter.hardware) and named == adapter.name()


def _names_it(base: Mapping[str, Any]) -> bool:
    return AUTO not in (base.get("hardware", AUTO), base.get("backend", AUTO))


def _absent(probe: Probe, devices: Devices, precision: Precision) -> str:
    """Why the adapter is not to be had here, or not in this precision."""
    if not probe.verdict.usable:
        return probe.verdict.reason
    if not devices.verdict.usable:
        return devices.verdict.reason
    verdicts = [device.precisions[precision] for device in devices.devices if precision in device.precisions]
    if not any(verdict.usable for verdict in verdicts):
        return verdicts[0].reason if verdicts else "no device lists this precision"
    return ""


def _unreachable(adapter: type[Adapter], format: str, registry: Registry) -> str:
    if format in adapter.formats or set(registry.formats[format].converts_to) & set(adapter.formats):
        return ""
    return f"it takes {' and '.join(adapter.formats)} models; there is no way there from {format}"


def _not_allowed(precision: Precision, base: Mapping[str, Any]) -> str:
    """Why a precision that nobody asked for by name is not tried."""
    if base.get("precision", AUTO) != AUTO or precision is Precision.FP32:
        return ""
    accuracy = base.get("accuracy", {})
    if accuracy.get("max_error") is None and accuracy.get("min_agreement") is None:
        return NO_BUDGET
    return NO_CALIBRATION if precision is Precision.INT8 and "calibration" not in base else ""


def _knobs(adapter: type[Adapter], config: Mapping[str, Any], objective: Objective) -> Iterator[tuple[str, Any]]:
    """Each knob with each value to try beside the default: `options.NAME`, `threads` and `instances`."""
    for name, values in (adapter.savers if objective == "memory" else adapter.tunables).items():
        for value in values:
            yield name, value
    if objective == "throughput":  # one request at a time is as fast on one of several instances, or slower
        yield from (("instances", count) for count in _halves(cores()) if count > 1)
    yield from (("threads", count) for count in _halves(cores() // config.get("instances", 1))[1:])


def _halves(count: int) -> list[int]:
    """`count`, its half, and so on down to 1."""
    return [count >> shift for shift in range(count.bit_length())]
