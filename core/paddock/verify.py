"""A deployment against its reference: passed, failed or inconclusive, with the numbers.

The reference is the same model in fp32 on the plainest trusted path. It runs in a child process and its outputs are
kept by model, samples and versions. Outputs that do not vary with the input prove nothing: that is *inconclusive*.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from paddock.config import Agreement, HardwareConfig
from paddock.errors import AccuracyRefused, ConfigError
from paddock.host import Outputs
from paddock.metrics import agreement_with, relative_error, same_objects, varies
from paddock.references import Reference
from paddock.samples import Sample, describe_sample


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
    by_agreement: bool = False
    """Whether `accuracy.min_agreement` judges it; its error is then told, and not judged."""


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
                    "by_agreement": o.by_agreement,
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
            OutputCheck(
                o["name"], float(o["error"]), _number(o["agreement"]), o["varies"], o["note"], o["by_agreement"]
            )
            for o in data["outputs"]
        )
        return cls(
            Outcome(data["outcome"]), data["budget"], data["reference"], _number(data["error"]), outputs,
            tuple(data["shapes"]), data["source"], data["reason"], data["kept"],
        )  # fmt: skip


def describe_budget(config: HardwareConfig) -> str:
    """`max_error 0.0001` or `top1 0.99 of 'logits'`: the budget in force."""
    agreement = config.accuracy.min_agreement
    if agreement is None:
        return f"max_error {config.max_error:g}"
    of = f" of {agreement.output!r}" if agreement.output else ""
    of += f" along axis {agreement.axis}" if agreement.axis != -1 else ""
    of += f" where {agreement.mask!r}" if agreement.mask else ""
    return (f"cosine {agreement.cosine:g}" if agreement.cosine is not None else f"top1 {agreement.top1:g}") + of


def compare(reference: Reference, answers: Sequence[Outputs], config: HardwareConfig, source: str) -> Report:
    """The report on a deployment's `answers` to the reference's samples."""
    agreement = config.accuracy.min_agreement
    names = list(reference.outputs[0])
    if agreement is not None:
        _check_agreement(agreement, reference.outputs[0], reference.samples[0])
    checks = tuple(_check_output(name, reference, answers, agreement) for name in names)
    shapes = tuple(describe_sample(sample) for sample in reference.samples[: len(answers)])
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
        equal = all(same_objects(w, f) for w, f in pairs)
        return OutputCheck(name, 0.0 if equal else np.inf, None, len({repr(w) for w in wanted}) > 1, "not a tensor")
    errors = [relative_error(w, f) for w, f in pairs]
    error, note = max(errors, key=lambda e: e[0])
    level = None
    ruled = agreement is not None and agreement.output in (None, name) and wanted[0].dtype.kind == "f"
    if agreement is not None and ruled:
        levels = (
            agreement_with(w, f, agreement, sample.get(agreement.mask) if agreement.mask else None)
            for (w, f), sample in zip(pairs, reference.samples, strict=False)
        )
        level = min((found for found in levels if found is not None), default=None)
    return OutputCheck(name, error, level, varies(wanted), note, ruled)


_FINITE = sys.float_info.max


def _out_of_budget(checks: Sequence[OutputCheck], config: HardwareConfig) -> str:
    rule = config.accuracy.min_agreement
    bound = config.max_error if config.max_error is not None else config.default_max_error
    exempt = rule is not None and rule.output is not None
    # Written so that a NaN, which compares false with everything, is out of budget. Where min_agreement picks one
    # output, the others need only be of the right form; where it picks none, it speaks for the float outputs alone.
    worst = [c for c in checks if not c.by_agreement and not c.error <= (_FINITE if exempt else bound)]
    if worst:
        check = max(worst, key=lambda c: c.error)
        note = f" ({check.note})" if check.note else ""
        return f"output {check.name!r} has relative error {check.error:.3g}{note}, the budget is {bound:g}"
    if rule is None:
        return ""
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
