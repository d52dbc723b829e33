"""A deployment against its reference: passed, failed or inconclusive, with the numbers.

The reference is the same model in fp32 on the plainest trusted path. It runs in a child process and its outputs are
kept by model, samples and versions. Outputs that do not vary with the input prove nothing: that is *inconclusive*.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from paddock.child import Child
from paddock.config import Agreement, HardwareConfig
from paddock.errors import AccuracyRefused, ChildFailed, ConfigError, NotAvailable, PaddockError
from paddock.host import ChildHost, Outputs
from paddock.model import Model
from paddock.plan import MemoryPlan, Precision, PrecisionPlan, Segment
from paddock.registry import Registered, Registry
from paddock.samples import Sample, checked, digest_samples, read_npz, write_npz
from paddock.spi import Context, SegmentPlan


class Outcome(StrEnum):
    """What a verification found."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    OFF = "off"


@dataclass(frozen=True)
class OutputCheck:
    """One output over all samples.

    `error`: largest absolute difference over the reference's largest magnitude, the worst sample counts (for integers,
    booleans and strings the share of elements that differ); infinite where a NaN, an infinity, a dtype or a shape
    differs. `agreement` is there where the config asks for it. `varies`: whether the reference's values depend on
    the input's.
    """

    name: str
    error: float
    agreement: float | None
    varies: bool
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What was checked, against what, and how it came out."""

    outcome: Outcome
    budget: str
    reference: str = ""
    error: float | None = None
    outputs: tuple[OutputCheck, ...] = ()
    shapes: tuple[str, ...] = ()
    source: str = ""
    """Where the samples came from: the config's files, golden outputs, or generated."""
    reason: str = ""
    kept: bool = False
    """Whether this is an earlier run's report (`verify: cached`)."""

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON data; an infinite error becomes the string "inf"."""
        return {
            "outcome": self.outcome.value,
            "budget": self.budget,
            "reference": self.reference,
            "error": _json_number(self.error),
            "outputs": [
                {
                    "name": o.name,
                    "error": _json_number(o.error),
                    "agreement": _json_number(o.agreement),
                    "varies": o.varies,
                    "note": o.note,
                }
                for o in self.outputs
            ],
            "shapes": list(self.shapes),
            "source": self.source,
            "reason": self.reason,
            "kept": self.kept,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of `to_json`."""
        outputs = tuple(
            OutputCheck(o["name"], float(o["error"]), _number(o["agreement"]), o["varies"], o["note"])
            for o in data["outputs"]
        )
        return cls(
            Outcome(data["outcome"]), data["budget"], data["reference"], _number(data["error"]), outputs,
            tuple(data["shapes"]), data["source"], data["reason"], data["kept"],
        )  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """The reference's answers: one dict of outputs for each sample."""

    adapter: str
    samples: tuple[Sample, ...]
    outputs: tuple[Outputs, ...] = field(repr=False)
    judged: int | None = None
    """How many, from the first, the deployment has to answer; the others only show that outputs vary."""


def describe_budget(config: HardwareConfig) -> str:
    """`max_error 0.0001` or `top1 0.99 of 'logits'`: the budget in force."""
    agreement = config.accuracy.min_agreement
    if agreement is None:
        return f"max_error {config.max_error:g}"
    of = f" of {agreement.output!r}" if agreement.output else ""
    of += f" along axis {agreement.axis}" if agreement.axis != -1 else ""
    of += f" where {agreement.mask!r}" if agreement.mask else ""
    return (f"cosine {agreement.cosine:g}" if agreement.cosine is not None else f"top1 {agreement.top1:g}") + of


def reference_outputs(
    registry: Registry, model: Model, samples: Sequence[Sample], child: Callable[[str], Child]
) -> Reference:
    """The answers of the best reference that is here, each rank within its time; kept in the registry's store.

    Args:
        model: The model as the user gave it (never a conversion), with the config's shapes applied.
        child: Gives the child process in which a distribution's sessions run.

    Raises `NotAvailable` where there is no reference, else the last one's own error.
    """
    failures: list[tuple[str, PaddockError]] = []
    for registered in registry.references(model.format):
        name = registered.adapter.name()
        try:
            return Reference(name, tuple(samples), _answers(registry, registered, model, samples, child))
        except ChildFailed as error:
            failures.append((name, error))  # too slow, or it crashed: the next rank may do
        except PaddockError as error:
            failures.append((name, error))
    if not failures:
        raise NotAvailable(
            f"no adapter that can be the reference of {model.format} models is installed",
            where="$.accuracy.verify",
            remedy='`paddock doctor` says what brings one; or set verify to "golden" or "off"',
        )
    raise NotAvailable(
        "no reference could run the model on these samples",
        where="$.accuracy",
        candidates=[f"{name}: {error.problem}" for name, error in failures],
        remedy="give accuracy.samples (and shapes) that suit the model",
    )


def compare(reference: Reference, answers: Sequence[Outputs], config: HardwareConfig, source: str) -> Report:
    """The report on a deployment's `answers` to the reference's samples."""
    agreement = config.accuracy.min_agreement
    names = list(reference.outputs[0])
    if agreement is not None:
        _check_agreement(agreement, reference.outputs[0], reference.samples[0])
    checks = tuple(_check_output(name, reference, answers, agreement) for name in names)
    shapes = tuple(
        ", ".join(f"{name} {list(array.shape)}" for name, array in sample.items())
        for sample in reference.samples[: len(answers)]
    )
    report = Report(
        Outcome.PASSED, describe_budget(config), reference.adapter, max((c.error for c in checks), default=0.0),
        checks, shapes, source,
    )  # fmt: skip
    failed = _out_of_budget(checks, config)
    if failed:
        return replace(report, outcome=Outcome.FAILED, reason=failed)
    if agreement is not None and all(check.agreement is None for check in checks):
        reason = "no position is left to compare, which proves nothing"
        return replace(report, outcome=Outcome.INCONCLUSIVE, reason=reason)
    if not any(check.varies for check in checks):
        reason = "the reference's outputs do not vary with the input, which proves nothing"
        return replace(report, outcome=Outcome.INCONCLUSIVE, reason=reason)
    return report


def judge(report: Report, config: HardwareConfig, what: str) -> None:
    """Raises `AccuracyRefused` where the report does not let the deployment be handed over."""
    if report.outcome is Outcome.FAILED:
        problem = f"{what} is refused: {report.reason}"
        remedy = "`paddock verify --all` shows which backends agree; a wider budget is accuracy.max_error"
    elif report.outcome is Outcome.INCONCLUSIVE and config.strict:
        problem = f"{what} is refused, the check is inconclusive: {report.reason}"
        remedy = 'give accuracy.samples on which the outputs vary, or set "strict": false'
    else:
        return
    refused = AccuracyRefused(problem, where="$.accuracy", remedy=remedy)
    refused.report = report
    raise refused


def write_golden(path: Path, reference: Reference) -> None:
    """Stores samples and reference outputs for `verify: golden`."""
    judged = reference.judged or len(reference.samples)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "reference": np.array(reference.adapter),
        "judged": np.array(judged),
    }
    for number, (sample, outputs) in enumerate(zip(reference.samples, reference.outputs, strict=True)):
        for kind, group in (("in", sample), ("out", outputs)):
            for name, array in group.items():
                arrays[f"{number}/{kind}/{name}"] = array
    write_npz(path, arrays, "--write-golden")


def read_golden(path: Path, model: Model) -> Reference:
    """What `write_golden` stored, checked against the model's inputs and outputs."""
    where = "$.accuracy.golden"
    samples: dict[int, dict[str, Any]] = {}
    outputs: dict[int, dict[str, Any]] = {}
    arrays = read_npz(path, where)
    adapter, judged = str(arrays.pop("reference", "?")), arrays.pop("judged", None)
    for key, array in arrays.items():
        number, _, rest = key.partition("/")
        kind, _, name = rest.partition("/")
        if not number.isdecimal() or kind not in ("in", "out"):
            raise ConfigError(
                "is no golden file", where=f"{where}: {path}", remedy="`paddock verify --write-golden FILE`"
            )
        target = samples if kind == "in" else outputs
        target.setdefault(int(number), {})[name] = array if array.dtype.kind != "U" else array.astype(object)
    expected = {value.name for value in model.graph.output_values}
    if not samples or samples.keys() != outputs.keys() or any(set(o) != expected for o in outputs.values()):
        raise ConfigError(
            "does not hold this model's outputs", where=f"{where}: {path}", candidates=sorted(expected),
            remedy="`paddock verify --write-golden FILE` writes it anew",
        )  # fmt: skip
    numbers = sorted(samples)
    inputs = tuple(checked(samples[n], model.graph, f"{where}: {path}") for n in numbers)
    count = len(inputs) if judged is None else int(judged) if judged.ndim == 0 and judged.dtype.kind in "iu" else 0
    if not 1 <= count <= len(inputs):
        raise ConfigError(
            f"says that {judged} of its {len(inputs)} samples are judged", where=f"{where}: {path}",
            remedy="`paddock verify --write-golden FILE` writes it anew",
        )  # fmt: skip
    return Reference(f"golden ({adapter})", inputs, tuple(outputs[n] for n in numbers), count)


def relative_error(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> tuple[float, str]:
    """(error, note) of one output; see `OutputCheck`. Both arrays of one dtype and shape, else infinite."""
    if expected.shape != found.shape:
        return np.inf, f"shape {list(found.shape)}, the reference has {list(expected.shape)}"
    if expected.dtype != found.dtype:
        return np.inf, f"dtype {found.dtype}, the reference has {expected.dtype}"
    if expected.size == 0:
        return 0.0, "empty"
    if expected.dtype.kind not in "fcV":
        return float(np.mean(expected != found)), ""
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    wanted, got = expected.astype(kind), found.astype(kind)
    finite = np.isfinite(wanted)
    # NaN where the reference has NaN, the same infinity where it has one: anything else is wrong beyond measure.
    same = np.array_equal(wanted[~finite], got[~finite], equal_nan=True)
    if not same or not np.isfinite(got[finite]).all():
        return np.inf, "NaN or infinity where the reference has none, or the other way round"
    if not finite.any():
        return 0.0, "the reference is nowhere finite"
    difference = float(np.abs(wanted[finite] - got[finite]).max())
    magnitude = float(np.abs(wanted[finite]).max())
    if magnitude == 0:
        return (0.0, "the reference is all zero") if difference == 0 else (np.inf, "the reference is all zero")
    return difference / magnitude, ""


def _answers(
    registry: Registry,
    registered: Registered,
    model: Model,
    samples: Sequence[Sample],
    child: Callable[[str], Child],
) -> tuple[Outputs, ...]:
    adapter = registered.adapter
    role = adapter.references[model.format]
    versions = {registered.distribution: registered.version, **registry.probe(registered).versions}
    key = [adapter.name(), versions, dict(role.options), model.fingerprint, digest_samples(samples)]
    slow = registry.store.get("too-slow", key)
    if slow is not None:
        raise ChildFailed(f"took longer than {role.seconds:g} s for a sample when it was tried", where=adapter.name())

    def build(folder: Path) -> None:
        computed = _compute(registry, registered, model, samples, child)
        for number, outputs in enumerate(computed):
            write_npz(folder / f"{number}.npz", outputs, "the cache")

    if any(array.dtype == object for sample in samples for array in sample.values()) or _holds_objects(model):
        return _compute(registry, registered, model, samples, child)  # strings and sequences are not stored
    try:
        folder = registry.store.folder("references", key, build)
    except ChildFailed as error:
        if "did not answer" in error.problem:
            registry.store.put("too-slow", key, True)
        raise
    order = [value.name for value in model.graph.output_values]
    kept = (read_npz(folder / f"{number}.npz", "the cache") for number in range(len(samples)))
    return tuple({name: arrays[name] for name in order} for arrays in kept)


def _compute(
    registry: Registry,
    registered: Registered,
    model: Model,
    samples: Sequence[Sample],
    child: Callable[[str], Child],
) -> tuple[Outputs, ...]:
    role = registered.adapter.references[model.format]
    hardware, _, backend = registered.adapter.name().partition("/")
    config = HardwareConfig.load({"hardware": hardware, "backend": backend, "options": dict(role.options)})
    resolved = registry.consider(registered.adapter.name(), config)
    graph = model.graph
    whole = Segment(0, resolved.name, tuple(n.index for n in graph.nodes), graph.inputs, graph.outputs)
    plan = SegmentPlan(whole, PrecisionPlan(Precision.FP32), MemoryPlan(0, 0, 0))
    with tempfile.TemporaryDirectory(prefix="paddock-reference-") as work:
        context = Context(Path(work), Path(work))
        adapter = registered.adapter(resolved.config, resolved.device)
        artifact = adapter.compile(model, plan, context)
        worker = child(registered.distribution)
        host = ChildHost(
            worker, registered.adapter, resolved.config, resolved.device, artifact, context, role.seconds + 60
        )
        host.limit(role.seconds)
        answers = tuple(host.run(sample) for sample in samples)
        host.close()
    return answers


def _holds_objects(model: Model) -> bool:
    return any(value.kind != "tensor" or value.dtype == "string" for value in model.graph.output_values)


def _check_agreement(agreement: Agreement, outputs: Outputs, sample: Sample) -> None:
    floats = [name for name, output in outputs.items() if isinstance(output, np.ndarray) and output.dtype.kind == "f"]
    if agreement.output is not None and agreement.output not in floats:
        kind = "no float output" if agreement.output in outputs else "no output"
        raise ConfigError(f"is {kind} of the model", where="$.accuracy.min_agreement.output", candidates=floats)
    if not floats:
        raise ConfigError(
            "compares float outputs, and the model has none", where="$.accuracy.min_agreement", remedy="use max_error"
        )
    if agreement.mask is not None and agreement.mask not in sample:
        raise ConfigError("is no input of the model", where="$.accuracy.min_agreement.mask", candidates=list(sample))


def _check_output(
    name: str, reference: Reference, answers: Sequence[Outputs], agreement: Agreement | None
) -> OutputCheck:
    wanted = [outputs[name] for outputs in reference.outputs]
    pairs = [(expected, outputs[name]) for expected, outputs in zip(wanted, answers, strict=False)]
    if any(not isinstance(w, np.ndarray) for w in wanted):
        equal = all(_same_objects(w, f) for w, f in pairs)
        return OutputCheck(name, 0.0 if equal else np.inf, None, len({repr(w) for w in wanted}) > 1, "not a tensor")
    errors = [relative_error(w, f) for w, f in pairs]
    error, note = max(errors, key=lambda e: e[0])
    level = None
    if agreement is not None and agreement.output in (None, name) and wanted[0].dtype.kind == "f":
        levels = (
            _agreement(w, f, agreement, sample.get(agreement.mask) if agreement.mask else None)
            for (w, f), sample in zip(pairs, reference.samples, strict=False)
        )
        level = min((found for found in levels if found is not None), default=None)
    return OutputCheck(name, error, level, _varies(wanted), note)


def _same_objects(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, np.ndarray) and isinstance(found, np.ndarray):
        return relative_error(wanted, found)[0] <= 1e-3
    if isinstance(wanted, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(wanted) == len(found) and all(map(_same_objects, wanted, found))
    return bool(wanted is None and found is None) or wanted == found


def _varies(outputs: Sequence[np.ndarray[Any, Any]]) -> bool:
    """Whether two samples of one shape have different outputs."""
    first = outputs[0]
    return any(
        other.shape == first.shape and not np.array_equal(first, other, equal_nan=first.dtype.kind in "fc")
        for other in outputs[1:]
    )


def _agreement(
    wanted: np.ndarray[Any, Any], found: np.ndarray[Any, Any], rule: Agreement, mask: np.ndarray[Any, Any] | None
) -> float | None:
    """None where there is no position to compare; -1 where the two cannot agree at all."""
    if not -wanted.ndim <= rule.axis < wanted.ndim:
        raise ConfigError(
            f"axis {rule.axis} is outside an output of rank {wanted.ndim}", where="$.accuracy.min_agreement.axis",
            remedy="name the output that it is meant for in min_agreement.output",
        )  # fmt: skip
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return -1.0
    if wanted.size == 0:
        return None
    if not (np.isfinite(wanted).all() and np.isfinite(found).all()):
        return -1.0
    if rule.top1 is not None:
        each = (wanted.argmax(rule.axis) == found.argmax(rule.axis)).astype(np.float64)
    else:
        # Scaled to at most 1, so that no square overflows; the angle stays.
        w, f = (_scaled(array.astype(np.float64), rule.axis) for array in (wanted, found))
        norms = np.linalg.norm(w, axis=rule.axis) * np.linalg.norm(f, axis=rule.axis)
        dots = (w * f).sum(rule.axis)
        both_zero = (np.abs(w).max(rule.axis) == 0) & (np.abs(f).max(rule.axis) == 0)
        each = np.where(both_zero, 1.0, dots / np.where(norms == 0, np.inf, norms))
    if mask is not None:
        try:
            each = each[np.broadcast_to(mask != 0, each.shape)]
        except ValueError:
            raise ConfigError(
                f"shape {list(mask.shape)} does not fit the output's positions {list(each.shape)}",
                where="$.accuracy.min_agreement.mask",
            ) from None
    if each.size == 0:
        return None
    return float(each.mean() if rule.top1 is not None else each.min())


def _scaled(vectors: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    largest = np.abs(vectors).max(axis, keepdims=True)
    scaled: np.ndarray[Any, Any] = vectors / np.where(largest == 0, 1.0, largest)
    return scaled


def _out_of_budget(checks: Sequence[OutputCheck], config: HardwareConfig) -> str:
    rule = config.accuracy.min_agreement
    if rule is None:
        bound = config.max_error
        assert bound is not None
        # Written so that a NaN, which compares false with everything, is out of budget.
        worst = [check for check in checks if not check.error <= bound]
        if not worst:
            return ""
        check = max(worst, key=lambda c: c.error)
        note = f" ({check.note})" if check.note else ""
        return f"output {check.name!r} has relative error {check.error:.3g}{note}, the budget is {bound:g}"
    asked = rule.top1 if rule.top1 is not None else rule.cosine
    measured = [(check.agreement, check) for check in checks if check.agreement is not None]
    if not measured or asked is None:
        return ""
    level, low = min(measured, key=lambda m: m[0])
    note = f" ({low.note})" if low.note else ""
    return f"output {low.name!r} has agreement {level:.4g}{note}, the budget is {asked:g}" if level < asked else ""


def _json_number(value: float | None) -> float | str | None:
    return value if value is None or np.isfinite(value) else str(value)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
