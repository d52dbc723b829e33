"""How the checks of the conformance kit come out: frozen data, as the certificate holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Area(StrEnum):
    """What a check is about."""

    CONTRACT = "contract"
    PROCESS = "process"
    HONESTY = "honesty"
    OPERATORS = "operators"
    MODELS = "models"
    PRECISION = "precision"
    MEMORY = "memory"
    CONCURRENCY = "concurrency"
    BAD_INPUT = "bad_input"
    SOAK = "soak"


class Outcome(StrEnum):
    """How one check came out."""

    PASSED = "passed"
    FAILED = "failed"
    CRASHED = "crashed"
    """The process that it ran in ended."""
    HUNG = "hung"
    """It took longer than it may; its process was ended."""
    SKIPPED = "skipped"
    """It does not apply to what the adapter declares, or the adapter refused with a reason."""

    @property
    def bad(self) -> bool:
        """Whether the adapter broke its word."""
        return self in (Outcome.FAILED, Outcome.CRASHED, Outcome.HUNG)


@dataclass(frozen=True)
class Result:
    """One check on one adapter.

    `reason` says why it did not pass, or on what evidence it did; `refused`: it was skipped because the adapter itself
    said no; `unproven` are claims that it could neither confirm nor refute; `matrix` counts the cases that it consists
    of, by operator and way.
    """

    check: str
    area: Area
    promise: str
    outcome: Outcome
    reason: str = ""
    refused: bool = False
    unproven: tuple[str, ...] = ()
    matrix: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Judged:
    """The results of a run against what was expected of it, both ways strict.

    `unexpected` are bad and not expected; `stale` passed although a failure was expected; `unknown` are expectations
    that name no check.
    """

    unexpected: tuple[Result, ...]
    stale: tuple[Result, ...]
    unknown: tuple[str, ...]

    @property
    def conforms(self) -> bool:
        """Whether the adapter does what it promises, but for what was expected."""
        return not (self.unexpected or self.stale or self.unknown)


def judged(results: Iterable[Result], expected: Mapping[str, str], known: Iterable[str]) -> Judged:
    """Results against expected failures, by check name -> reason; `known` are the names of all checks."""
    found = tuple(results)
    return Judged(
        tuple(r for r in found if r.outcome.bad and r.check not in expected),
        tuple(r for r in found if r.outcome is Outcome.PASSED and r.check in expected),
        tuple(sorted(set(expected) - set(known))),
    )


def counted(results: Iterable[Result]) -> dict[str, int]:
    """How many came out in each way; every way is there."""
    counts = Counter(result.outcome for result in results)
    return {outcome.value: counts[outcome] for outcome in Outcome}
