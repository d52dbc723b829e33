"""Which operators are worth a narrow type, as automatic mixed precision sorts them: allow, deny, infer.

The classes of the standard's operators stand in `data/operator_classes.json`, each list with where it comes from; an
adapter refines them (`Adapter.operator_classes`). What stands in no list follows its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources


class Role(StrEnum):
    """What is known of an operator before anything is measured."""

    ALLOW = "allow"
    """Products and convolutions: what narrow arithmetic is made for."""
    DENY = "deny"
    """Long sums, exponentials, normalisations: the first to be suspected where the budget is not met."""
    INFER = "infer"
    """Takes the type of what stands around it, so that casts are fewest."""


@dataclass(frozen=True)
class OperatorClasses:
    """The classes by operator type (`MatMul`, `com.microsoft.Gelu`); all others are INFER."""

    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()

    def role(self, kind: str) -> Role:
        """The class of an operator type."""
        return Role.ALLOW if kind in self.allow else Role.DENY if kind in self.deny else Role.INFER

    def refined(
        self, allow: Iterable[str] = (), deny: Iterable[str] = (), infer: Iterable[str] = ()
    ) -> OperatorClasses:
        """These classes with some operators moved."""
        allow, deny, infer = frozenset(allow), frozenset(deny), frozenset(infer)
        return OperatorClasses((self.allow - deny - infer) | allow, (self.deny - allow - infer) | deny)


@cache
def standard_classes() -> OperatorClasses:
    """The classes of the ONNX standard's operators."""
    data = json.loads(resources.files("paddock").joinpath("data/operator_classes.json").read_text())
    return OperatorClasses(frozenset(data["allow"]["operators"]), frozenset(data["deny"]["operators"]))
