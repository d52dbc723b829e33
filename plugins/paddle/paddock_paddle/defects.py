"""What Paddle is known to get wrong with oneDNN, as data.

Each mend deletes one of Paddle's own passes. Seen on paddlepaddle 3.3.1; on another version they are applied all the
same, because a needless mend costs some speed and a missing one costs the answer.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paddock.plan import Precision, Remedy

SEEN_ON = "3.3"
"""The minor version of paddlepaddle on which everything here was seen."""


@dataclass(frozen=True)
class Defect:
    """A wrong answer or a crash of Paddle with oneDNN, and the passes whose removal mends it."""

    name: str
    summary: str
    passes: tuple[str, ...]
    evidence: str
    precisions: frozenset[Precision] = field(default_factory=lambda: frozenset({Precision.FP32, Precision.BF16}))


DEFECTS: Sequence[Defect] = (
    Defect(
        "onednn-inplace-layout",
        "a value that several in-place operations read is overwritten behind a oneDNN layout transfer: "
        "wrong numbers without a message",
        ("inplace_pass",),
        "a rotary embedding: relative error 1.13 with the pass, 4e-7 without it (paddlepaddle 3.3.1)",
    ),
    Defect(
        "onednn-bf16-special-ops",
        "loading ends with 'Ctx should have corresponding OpInfo pd_op.quantize' on models beyond plain convolution",
        ("cpu_special_ops_bf16_pass",),
        "a DeepSeek-style decoder in bf16: fails with the pass, runs without it (paddlepaddle 3.3.1)",
        frozenset({Precision.BF16}),
    ),
)

REFUSED: Mapping[str, str] = {
    f"pd_op.{op}": "Paddle places it on oneDNN and fails when it runs: its attribute 'scale' is an array of doubles, "
    "which Paddle's oneDNN instructions do not convert (ConvertPirAttribute2RuntimeAttribute)"
    for op in ("bilinear_interp", "nearest_interp")
}
"""Operations that fail with oneDNN although there is a kernel, and why (paddlepaddle 3.3.1)."""


def installed() -> str:
    """The version of paddlepaddle from its metadata, or "" where it is not installed."""
    try:
        return importlib.metadata.version("paddlepaddle")
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_seen(version: str) -> bool:
    """Whether a version of paddlepaddle is one that the tables were made on."""
    return version == SEEN_ON or version.startswith(f"{SEEN_ON}.")


def remedies(precision: Precision, workarounds: bool) -> tuple[Remedy, ...]:
    """The defects that concern a precision, and whether they are mended."""
    version = installed()
    unseen = f"; not checked on {version or 'an unknown version'}, applied as a precaution"
    where = "" if is_seen(version) else unseen
    return tuple(
        Remedy(
            defect.name,
            defect.summary,
            f"delete_pass({', '.join(map(repr, defect.passes))})" + (where if workarounds else ""),
            workarounds,
            defect.evidence,
        )
        for defect in DEFECTS
        if precision in defect.precisions
    )


def passes_to_delete(applied: Sequence[Remedy]) -> tuple[str, ...]:
    """The passes that a plan's remedies delete."""
    names = {remedy.name for remedy in applied if remedy.applied}
    return tuple(name for defect in DEFECTS if defect.name in names for name in defect.passes)
