"""What a deployment is judged on, and what it is calibrated on: never the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paddock.config import HardwareConfig
from paddock.errors import ConfigError, UsageError
from paddock.graph import Graph
from paddock.model import Model
from paddock.plan import Precision
from paddock.planning.memory import BIGGEST_BATCH
from paddock.planning.shapes import apply_shapes
from paddock.references import Reference, read_golden
from paddock.samples import Sample, checked, digest_samples, generate, load_samples
from paddock.spi import Format

WANTED = 16
"""The fewest examples to quantise by. Guides of quantisers take 100 to 300; of a few, the ranges are luck."""


@dataclass(frozen=True)
class Samples:
    """What a deployment is checked on, where it came from, and golden answers where there are any."""

    inputs: tuple[Sample, ...]
    source: str
    reference: Reference | None = None
    extra: Sample | None = None
    """One more input for the reference alone, to see whether outputs vary; not judged."""

    @property
    def judged(self) -> tuple[Sample, ...]:
        """What is judged, wherever it stands."""
        return self.inputs if self.reference is None else self.reference.samples[: self.reference.judged]

    def rounded(self) -> Samples:
        """The same with every float32 as float16 holds it, for a deployment that takes that."""
        extra = None if self.extra is None else _rounded(self.extra)
        return replace(self, inputs=tuple(_rounded(sample) for sample in self.inputs), extra=extra)


def admitting_model(model: Model, config: HardwareConfig) -> Model:
    """The model with the bounds that samples are checked by: the config's, but that "max" admits every batch size.

    A deployment is planned with a small batch while the size is still being found; samples may have any that can come
    of it, and are checked again once it is known.
    """
    if config.batch_size == "max":
        config = config.model_copy(update={"batch_size": BIGGEST_BATCH})
    return model.with_graph(apply_shapes(model.graph, config))


def judging_samples(origin: Model, config: HardwareConfig, given: tuple[Sample, ...] | None, format: Format) -> Samples:
    """What a deployment of `origin` is to be checked on; raises `ConfigError` where it does not fit the model."""
    accuracy, graph = config.accuracy, origin.graph
    if accuracy.golden is not None:
        return Samples((), "golden outputs", read_golden(accuracy.golden, origin))
    if given is not None:
        return Samples(given, "given in the call", extra=_shuffled(given))
    if accuracy.samples is not None:
        found = load_samples(accuracy.samples, graph)
        return Samples(tuple(found), "accuracy.samples", extra=_shuffled(found))
    try:
        return Samples(tuple(generate(graph, format.gathers, format.transparent)), "generated")
    except ConfigError:
        if accuracy.verify == "off":
            return Samples((), "none")
        raise


def given_samples(
    samples: Sequence[Mapping[str, Any]] | None, model: Model, config: HardwareConfig
) -> tuple[Sample, ...] | None:
    """Samples handed over in memory, checked; raises `UsageError` where they would have no effect."""
    if samples is None:
        return None
    accuracy = config.accuracy
    if accuracy.samples is not None or accuracy.verify in ("golden", "off"):
        raise UsageError(
            "have no effect beside the config's accuracy.samples, or with verify golden or off", where="samples",
            remedy="leave one of the two out",
        )  # fmt: skip
    if not samples:
        raise UsageError("are empty", where="samples", remedy="give at least one, or leave them out")
    return tuple(checked(sample, model.graph, f"samples[{n}]") for n, sample in enumerate(samples))


def calibration_samples(model: Model, config: HardwareConfig, quantised: bool) -> tuple[Sample, ...]:
    """The config's `calibration.samples`, none where there are none and none are needed.

    Args:
        model: The model as the user gave it, with the config's bounds.
        config: As read.
        quantised: Whether the model itself is quantised already.

    Raises `ConfigError` where they are missing, too few, or would have no effect; `UsageError` where one does not fit.
    """
    where = "$.calibration"
    if config.calibration is None:
        if config.precision is Precision.INT8 and not quantised:
            raise ConfigError(
                f"is needed with precision int8: at least {WANTED} examples to quantise by", where=where,
                remedy='{"samples": FOLDER} with .npz files, an array for each input, not those of accuracy.samples',
            )  # fmt: skip
        return ()
    if config.precision is Precision.FP32 or quantised:
        why = "on a model that is quantised already" if quantised else f"with precision {config.precision}"
        raise ConfigError(f"has no effect {why}", where=where, remedy="leave it out")
    place = f"{where}.samples: {config.calibration.samples}"
    found = load_samples(config.calibration.samples, model.graph, f"{where}.samples")
    for number, sample in enumerate(found):
        strange = [n for n, a in sample.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
        if strange:
            raise ConfigError(
                f"sample {number} has NaN or infinity in {', '.join(strange)}: no range can be measured on it",
                where=place, remedy="take it out, or mend what writes the samples",
            )  # fmt: skip
    if (
        config.precision is Precision.INT8
        and (count := sum(_examples(sample, model.graph) for sample in found)) < WANTED
    ):
        raise ConfigError(
            f"holds {count} example{'s' if count != 1 else ''}, and at least {WANTED} are wanted", where=place,
            remedy="add .npz files, or more rows on axis 0; 100 to 300 that look like what will be served are better",
        )  # fmt: skip
    return tuple(found)


def check_apart(calibration: Sequence[Sample], judged: Sequence[Sample], graph: Graph) -> None:
    """Raises `ConfigError` where an example that calibrates also judges, alone or as a row of a batch."""
    known = {digest for sample in judged for digest in _digests(sample, graph)}
    both = sum(bool(known.intersection(_digests(sample, graph))) for sample in calibration)
    if both:
        raise ConfigError(
            f"shares examples with those that judge in {both} of its {len(calibration)} samples: what calibrates must "
            "not judge",
            where="$.calibration.samples", remedy="split them: one part for each",
        )  # fmt: skip


def _digests(sample: Sample, graph: Graph) -> Iterator[str]:
    """Of the sample and, where its inputs are rows of a batch, of each row."""
    yield digest_samples([sample])
    rows = _examples(sample, graph)
    for row in range(rows if rows > 1 else 0):
        yield digest_samples([{name: np.ascontiguousarray(array[row : row + 1]) for name, array in sample.items()}])


def _rounded(sample: Sample) -> Sample:
    with np.errstate(over="ignore"):
        return {n: a.astype(np.float16).astype(a.dtype) if a.dtype == np.float32 else a for n, a in sample.items()}


def _examples(sample: Sample, graph: Graph) -> int:
    """How many examples one file holds: the extent that its inputs share on an axis 0 that the model leaves open."""
    fixed = set(graph.fixed.values())
    for value in graph.input_values:
        first = value.shape[0] if value.shape else None
        if not (isinstance(first, str) or first in fixed):
            return 1
    extents = {array.shape[0] for array in sample.values() if array.ndim}
    return max(1, extents.pop()) if len(extents) == 1 and all(array.ndim > 1 for array in sample.values()) else 1


def _shuffled(samples: Sequence[Sample]) -> Sample | None:
    """The elements of a sample in another order: other values, each in its range. None where order changes nothing."""
    rng = np.random.default_rng(0)
    for sample in samples:
        if not all(isinstance(array, np.ndarray) for array in sample.values()):
            continue
        mixed = {name: rng.permutation(array.ravel()).reshape(array.shape) for name, array in sample.items()}
        if any(array.tobytes() != mixed[name].tobytes() for name, array in sample.items()):
            return mixed
    return None
