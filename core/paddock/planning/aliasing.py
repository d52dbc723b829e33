"""Which operators of a format need no memory of their own for what they give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Aliasing:
    """The operators whose first output can share its inputs' memory.

    Attributes:
        views: It is the first input under another shape.
        in_place: It may be written over an input of the same dtype and shape that is read for the last time there.
        joins: It is the inputs one behind another along the axis that the named attribute gives: where all axes before
            that one have extent 1, they may be written into it from the start.
    """

    views: frozenset[str] = frozenset()
    in_place: frozenset[str] = frozenset()
    joins: Mapping[str, str] = field(default_factory=dict)


@cache
def standard_aliasing() -> Aliasing:
    """That of the ONNX operators."""
    found = json.loads((files("paddock") / "data" / "aliasing.json").read_text(encoding="utf-8"))
    return Aliasing(
        frozenset(found["views"]["operators"]),
        frozenset(found["in_place"]["operators"]),
        dict(found["joins"]["operators"]),
    )
