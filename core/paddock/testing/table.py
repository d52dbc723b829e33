"""The table of checks: each a plain function with a name, an area and a promise that a vendor can be held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from paddock.errors import PaddockError
from paddock.testing.outcomes import Area

SECONDS = 120.0
"""How long one check may take before its process is ended: a hundred times what most take, for hosts that are busy."""


class Broken(PaddockError):
    """Raised by a check: the adapter does not keep this promise. `matrix`: see `Evidence`."""

    matrix: Mapping[str, Mapping[str, int]] = MappingProxyType({})


class Skipped(PaddockError):
    """Raised by a check: it does not apply, or cannot be made here."""


class Refused(Skipped):
    """Raised by a check: the adapter said no, with a reason, before it served anything."""


@dataclass(frozen=True)
class Evidence:
    """What a check saw where it passed.

    `unproven` are claims that it could neither confirm nor refute; `matrix` counts cases by operator and way.
    """

    text: str = ""
    unproven: tuple[str, ...] = ()
    matrix: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


Action = Callable[[Any], Evidence | None]
"""What a check does with a `paddock.testing.bench.Bench`."""


@dataclass(frozen=True)
class Check:
    """One check.

    `long`: it takes more than a few seconds, and is left out of a quick run. `apart`: it is run in a process that has
    none of the other checks behind it, and hands down nothing that they changed.
    """

    name: str
    area: Area
    promise: str
    action: Action
    long: bool = False
    seconds: float = SECONDS
    apart: bool = False


class Table:
    """The checks of one module, in the order in which they are written."""

    def __init__(self, area: Area) -> None:
        self.area = area
        self.checks: list[Check] = []

    def check(
        self, name: str, promise: str, *, long: bool = False, seconds: float = SECONDS, apart: bool = False
    ) -> Callable[[Action], Action]:
        """Registers a function as the check `area.name`."""

        def register(action: Action) -> Action:
            self.checks.append(Check(f"{self.area}.{name}", self.area, promise, action, long, seconds, apart))
            return action

        return register
