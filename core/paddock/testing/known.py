"""What the reference itself gets wrong: names of node tests with reasons. Strict: an entry that is right is stale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from paddock.testing.nodes import Outcome, Result


@dataclass(frozen=True)
class Known:
    """Why a case cannot come out right; on every adapter, or on those named. Not strict: it may, by luck."""

    reason: str
    adapters: frozenset[str] = frozenset()
    strict: bool = True

    def concerns(self, adapter: str) -> bool:
        """Whether this is expected on `adapter`."""
        return not self.adapters or adapter in self.adapters


_RANDOM = "draws random numbers, which the standard does not fix"
_GENERATOR = f"{_RANDOM}: the data are those of NumPy's generator, which some use too"

_WRAPS = (
    "the case's own data are wrong: int8 results beyond the range wrap around, as in the reference, where the standard "
    "says that QLinearMatMul saturates, as others do"
)
_ROUNDS_LATER = (
    "the case's own data are wrong: align_corners by the length before rounding, as in the reference, where the "
    "standard says length_resized, as others do"
)

KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "test_adam_multiple": Known("the reference mixes the tensors of one Adam up, and nobody else has the operator"),
        "test_bernoulli": Known(_RANDOM),
        "test_bernoulli_double": Known(_RANDOM),
        "test_bernoulli_double_expanded": Known(_RANDOM),
        "test_bernoulli_expanded": Known(_RANDOM),
        "test_bernoulli_seed": Known(_RANDOM),
        "test_bernoulli_seed_expanded": Known(_RANDOM),
        "test_if_opt": Known(
            "the reference wraps an optional sequence once too often, and nobody else returns optionals"
        ),
        "test_qlinearmatmul_2D_int8_float16": Known(_WRAPS),
        "test_qlinearmatmul_2D_int8_float32": Known(_WRAPS),
        "test_qlinearmatmul_3D_int8_float16": Known(_WRAPS),
        "test_qlinearmatmul_3D_int8_float32": Known(_WRAPS),
        "test_resize_downsample_scales_cubic_align_corners": Known(_ROUNDS_LATER),
        "test_resize_downsample_scales_linear_align_corners": Known(_ROUNDS_LATER),
        "test_training_dropout": Known(_GENERATOR, strict=False),
        "test_training_dropout_default": Known(_GENERATOR, strict=False),
        "test_training_dropout_default_mask": Known(_GENERATOR, strict=False),
        "test_training_dropout_mask": Known(_GENERATOR, strict=False),
    }
)


def unexpected(results: Iterable[Result], known: Mapping[str, Known] = KNOWN) -> tuple[Result, ...]:
    """The results that are wrong and not on the list."""
    return tuple(r for r in results if r.outcome is Outcome.WRONG and not _listed(r, known))


def stale(results: Iterable[Result], known: Mapping[str, Known] = KNOWN) -> tuple[Result, ...]:
    """The results that are right although the list says that they cannot be: the entry is to be taken off."""
    return tuple(r for r in results if r.right and _listed(r, known) and known[r.case].strict)


def _listed(result: Result, known: Mapping[str, Known]) -> bool:
    entry = known.get(result.case)
    return entry is not None and entry.concerns(result.adapter)
