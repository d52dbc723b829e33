"""The reference's answers: computed in a child process and kept, or stored as golden outputs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddock.child import Child, Children
from paddock.compile import compile_in
from paddock.config import HardwareConfig
from paddock.errors import ChildFailed, ConfigError, NotAvailable, PaddockError
from paddock.host import ChildHost, Outputs
from paddock.model import Model
from paddock.npz import read_npz, write_npz
from paddock.plan import Precision, PrecisionPlan, Segment, Verdict
from paddock.registry import Registered, Registry
from paddock.samples import Sample, checked, digest_samples
from paddock.spi import Context, SegmentMemory, SegmentPlan
from paddock.workshop import Workshop, defects, select


@dataclass(frozen=True)
class Reference:
    """The reference's answers: one dict of outputs for each sample."""

    adapter: str
    samples: tuple[Sample, ...]
    outputs: tuple[Outputs, ...] = field(repr=False)
    judged: int | None = None
    """How many, from the first, the deployment has to answer; the others only show that outputs vary."""


_FORGIVEN_AFTER = 24 * 3600
"""Seconds for which a reference that was too slow is not tried again: the host may just have been busy."""


def reference_outputs(
    registry: Registry, model: Model, samples: Sequence[Sample], children: Children, after: str = ""
) -> Reference:
    """The answers of the best reference that is here, each rank within its time; kept in the registry's store.

    Args:
        model: The model as the user gave it (never a conversion), with the config's shapes applied.
        children: Where its sessions run, beside those of the deployment.
        after: The adapter after which to begin, for a second opinion; with the best by default.

    Raises `NotAvailable` where there is no reference, else the last one's own error.
    """
    failures: list[tuple[str, PaddockError]] = []
    ranked = registry.references(model.format)
    names = [registered.adapter.name() for registered in ranked]
    for registered in ranked[names.index(after) + 1 if after in names else 0 :]:
        name = registered.adapter.name()
        try:
            return Reference(name, tuple(samples), _answers(registry, registered, model, samples, children))
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


def _answers(
    registry: Registry,
    registered: Registered,
    model: Model,
    samples: Sequence[Sample],
    children: Children,
) -> tuple[Outputs, ...]:
    adapter = registered.adapter
    role = adapter.references[model.format]
    plugin = {registered.distribution: f"{registered.version}+{registered.sources}"}
    versions = {**plugin, **registry.probe(registered).versions}
    key = [adapter.name(), versions, dict(role.options), model.fingerprint, digest_samples(samples)]
    slow = registry.store.get("too-slow", key)
    if slow is not None and time.time() - slow < _FORGIVEN_AFTER:
        raise ChildFailed(f"took longer than {role.seconds:g} s for a sample when it was tried", where=adapter.name())

    def build(folder: Path) -> None:
        computed = _compute(registry, registered, model, samples, children)
        for number, outputs in enumerate(computed):
            write_npz(folder / f"{number}.npz", outputs, "the cache")

    if any(_is_object(value) for sample in samples for value in sample.values()) or _holds_objects(model):
        return _compute(registry, registered, model, samples, children)  # strings and sequences are not stored
    try:
        folder = registry.store.folder("references", key, build)
    except ChildFailed as error:
        if "did not answer" in error.problem:
            registry.store.put("too-slow", key, time.time())
        raise
    order = [value.name for value in model.graph.output_values]
    kept = (read_npz(folder / f"{number}.npz", "the cache") for number in range(len(samples)))
    return tuple({name: arrays[name] for name in order} for arrays in kept)


def _compute(
    registry: Registry,
    registered: Registered,
    model: Model,
    samples: Sequence[Sample],
    children: Children,
) -> tuple[Outputs, ...]:
    role = registered.adapter.references[model.format]
    hardware, _, backend = registered.adapter.name().partition("/")
    config = HardwareConfig.load({"hardware": hardware, "backend": backend, "options": dict(role.options)})
    resolved = registry.consider(registered.adapter.name(), config)
    graph = model.graph
    whole = Segment(0, resolved.name, tuple(n.index for n in graph.nodes), graph.inputs, graph.outputs)
    plan = SegmentPlan(whole, PrecisionPlan(Precision.FP32), SegmentMemory())
    with tempfile.TemporaryDirectory(prefix="paddock-reference-") as work:
        context = Context(Path(work), Path(work))
        worker = children.get(f"{registered.distribution} (reference)")
        _check_takes(Workshop(registry, children, resolved, context), model, worker)
        artifact = compile_in(worker, resolved, model, plan, context)
        host = ChildHost(
            worker, registered.adapter, resolved.config, resolved.device, artifact, context, role.seconds + 60
        )
        host.limit(role.seconds)
        answers = tuple(host.run(sample) for sample in samples)
        host.close()
    return answers


def _check_takes(workshop: Workshop, model: Model, worker: Child) -> None:
    """Raises `NotAvailable` where the adapter itself says that it does not take the model: no reference then."""
    verdicts = dict(enumerate(select(workshop, model, worker).verdicts))
    for remedy in defects(workshop, model):
        if remedy.applied:
            reason = Verdict.no(remedy.summary, f"known defect {remedy.name}")
            verdicts.update(dict.fromkeys(verdicts if remedy.refuses else remedy.nodes, reason))
    for index, verdict in verdicts.items():
        if not verdict.usable:
            label = model.graph.nodes[index].label
            raise NotAvailable(f"it does not take {label}: {verdict.reason} [{verdict.source}]")


def _is_object(value: Any) -> bool:
    return not isinstance(value, np.ndarray) or value.dtype == object


def _holds_objects(model: Model) -> bool:
    return any(value.kind != "tensor" or value.dtype == "string" for value in model.graph.output_values)
