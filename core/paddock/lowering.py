"""From a model to the same model in the precision asked for: cast on its graph, or quantised from samples.

What stays in fp32 is known by the nodes of the user's own model, whatever an adapter's format makes of them. Casting
and quantising run in children; what was written once is kept by its content.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from paddock.cache import Store
from paddock.child import Children
from paddock.errors import BuildFailed, NotAvailable, PaddockError
from paddock.host import building
from paddock.model import Files, Model, check_unchanged, origins
from paddock.plan import Means, NodePrecision, Precision, PrecisionPlan
from paddock.planning.casts import WIDE, CastRequest
from paddock.planning.classes import OperatorClasses, Role
from paddock.planning.precision import NARROW, Keep, is_quantised, portable
from paddock.quantizing import quantised
from paddock.reading import carried_bounds, owner_of, read_files
from paddock.references import reference_outputs
from paddock.registry import Registry, Resolved
from paddock.samples import Sample, digest_samples
from paddock.spi import CastModel, Format
from paddock.workshop import Workshop

_CAST = "cast.json"
_REVISION = 1
"""Part of the key of cast models: a change of what casting writes makes all of them new."""


@dataclass(frozen=True)
class Lowered:
    """A model as an adapter gets it, with what became of each node of the user's.

    `narrow` are nodes of `model` that compute in the narrow type; `nodes` and the plan's `keep_fp32` are by the user's.
    """

    model: Model
    plan: PrecisionPlan
    nodes: Mapping[int, NodePrecision] = field(default_factory=dict)
    narrow: frozenset[int] = frozenset()


@dataclass
class Lowering:
    """How the models of one deployment come into its precision.

    Args:
        origin: The model as the user gave it.
        precision: What the config asks for; a fallback may compute in fp32.
        storage: The dtype in which weights are stored where nothing else is narrow, or "".
        narrow_border: Whether inputs and outputs are of the narrow type too.
        keep: What stays in fp32 of it.
        judged: Whether the result is checked against the budget; if not, what is prone to overflow stays in fp32.
        registry: Whose formats cast.
        children: Where they do.
        measured: Samples to measure the ranges of values on; none where there are none.
        calibration: Samples to quantise by.
        store: Where what is written is kept.
    """

    origin: Model
    precision: Precision
    storage: str
    narrow_border: bool
    keep: Keep
    judged: bool
    registry: Registry
    children: Children
    measured: Callable[[], Sequence[Sample]]
    calibration: Callable[[], Sequence[Sample]]
    store: Store
    notes: dict[str, None] = field(default_factory=dict)
    """What a reader must know of what could not be measured."""
    _evidence: dict[int, str] = field(default_factory=dict)
    """Nodes of the origin with a value that the narrow type does not hold, found where the model was seen whole."""

    def __call__(self, workshop: Workshop, target: Model, whole: bool, pinned: Mapping[int, str]) -> Lowered:
        """`target`, a model made from the origin in the adapter's format, as the adapter is to get it.

        `pinned` are nodes of it that the adapter does not take in the narrow type, each with why.
        """
        precision = workshop.resolved.config.precision
        if precision is Precision.FP32 and not self.storage:
            if self.precision is Precision.FP32:
                return Lowered(target, PrecisionPlan(precision))
            kept = self._by_target(target, self.keep.nodes)
            nodes = _floats(target, WIDE, kept, f"{workshop.name} computes it in fp32")
            return Lowered(target, PrecisionPlan(precision), self._traced(target, nodes))
        if precision is Precision.INT8 and is_quantised(self.origin):
            return Lowered(target, PrecisionPlan(precision))
        means = Means.CAST if precision is Precision.FP32 else checked_means(workshop.resolved, precision)
        keep = {**self._by_target(target, {**self._found(), **self.keep.nodes}), **pinned}
        if means is Means.BACKEND:
            nodes = _floats(target, NARROW[precision], {}, "the backend's setting, as far as it has kernels")
            return Lowered(target, PrecisionPlan(precision, Means.BACKEND), self._traced(target, nodes))
        if means is Means.QUANTIZE:
            return self._quantised(workshop, target, whole, keep)
        return self._cast(workshop, target, precision, whole, keep)

    def _found(self) -> Mapping[int, str]:
        return {} if self.keep.exact else self._evidence

    def _by_target(self, target: Model, nodes: Mapping[int, str]) -> dict[int, str]:
        found: dict[int, str] = {}
        for node in target.graph.nodes if nodes else ():
            hit = origins(target, node.index, self.origin) & nodes.keys()
            if hit:
                found[node.index] = nodes[min(hit)]
        return found

    def _cast(
        self, workshop: Workshop, target: Model, precision: Precision, whole: bool, keep: Mapping[int, str]
    ) -> Lowered:
        adapter = workshop.adapter()
        name = workshop.name
        classes = checked_classes(name, building(f"{name}: operator classes", adapter.operator_classes))
        storage_only = precision is Precision.FP32
        if not self.judged and not self.keep.exact:
            keep = {**_prone(target, classes), **keep}
        request = CastRequest(
            narrow=self.storage if storage_only else NARROW[precision],
            classes=classes,
            keep=keep,
            reach=self._reach(target) if whole and not storage_only else {},
            narrow_border=self.narrow_border,
            storage_only=storage_only,
        )
        written, model = self._written(target, request)
        found = {n: origins(target, n, self.origin) for n in written.kept}
        missing = {o: written.nodes[n].reason for n, nodes in found.items() if n not in keep for o in nodes}
        if self.keep.exact and missing:
            raise self._left_out(missing, request.narrow)
        kept = {o for nodes in found.values() for o in nodes}
        if whole:
            self._evidence.update(missing)
        narrow = {node.node for node in written.nodes if node.dtype == request.narrow}
        plan = PrecisionPlan(
            precision, Means.CAST, tuple(sorted(kept)), casts=written.casts, weights_saved=written.saved,
            storage=request.narrow if storage_only else "",
        )  # fmt: skip
        inside = frozenset(i for i, came in enumerate(written.provenance) if narrow & set(came))
        return Lowered(model, plan, self._traced(target, written.nodes), inside)

    def _left_out(self, missing: Mapping[int, str], narrow: str) -> NotAvailable:
        names = portable(self.origin, missing)
        return NotAvailable(
            f"{len(names)} nodes read or give what {narrow} does not hold, and operators.keep_fp32 leaves them out",
            where="$.operators.keep_fp32",
            candidates=[f"{name} needs fp32: {missing[n]}" for n, name in zip(sorted(missing), names, strict=True)],
            remedy="add these, or leave the list out: what is needed is then found",
        )  # fmt: skip

    def _quantised(self, workshop: Workshop, target: Model, whole: bool, keep: Mapping[int, str]) -> Lowered:
        if not whole:
            raise NotAvailable(
                f"int8 on {workshop.name} needs the whole model there: there are no samples of a segment's inputs",
                where="$.precision", remedy="exclude no operators, or choose an adapter that takes them all",
            )  # fmt: skip
        partly = next((v for v in target.graph.values if v.dtype in ("float16", "bfloat16")), None)
        if partly is not None:
            raise NotAvailable(
                f"the model computes partly in {partly.dtype} ({partly.name!r}): only fp32 models are quantised",
                where="$.precision", remedy="export it in float32",
            )  # fmt: skip
        names = list(zip(self.origin.graph.input_values, target.graph.input_values, strict=True))
        samples = [{there.name: sample[here.name] for here, there in names} for sample in self.calibration()]
        found = quantised(workshop, target, frozenset(keep), samples, self.registry, self.children, self.store)
        nodes = tuple(
            replace(node, reason=keep[node.node]) if node.node in keep and node.dtype else node for node in found.nodes
        )
        kept = {o for node in keep for o in origins(target, node, self.origin)}
        plan = PrecisionPlan(Precision.INT8, Means.QUANTIZE, tuple(sorted(kept)), weights_saved=found.saved)
        return Lowered(found.model, plan, self._traced(target, nodes))

    def _traced(self, target: Model, nodes: Iterable[NodePrecision]) -> dict[int, NodePrecision]:
        """What became of the origin's nodes, from what became of those made of them."""
        found: dict[int, list[NodePrecision]] = {}
        for node in nodes:
            for index in origins(target, node.node, self.origin) if node.dtype else ():
                found.setdefault(index, []).append(node)
        traced = {}
        for index, made in found.items():
            wide = [node for node in made if node.dtype == WIDE]
            narrow = [node for node in made if node.dtype != WIDE]
            first = (wide or narrow)[0]
            dtype = first.dtype
            if wide and narrow:  # what is narrow may itself stand for several nodes, of both kinds
                dtype = f"{narrow[0].dtype.partition(' and ')[0]} and {WIDE}"
            traced[index] = NodePrecision(index, self.origin.graph.nodes[index].type, dtype, first.reason)
        return traced

    def _written(self, target: Model, request: CastRequest) -> tuple[CastModel, Model]:
        """The cast model, from the store or made in a child."""
        format = self.registry.formats[target.format]
        owner = owner_of(format, self.registry)

        def build(folder: Path) -> None:
            made = self.children.get(owner[0]).call(_cast_here, format, target, request, folder)
            check_unchanged(target)
            names = {role: path.relative_to(folder).as_posix() for role, path in made.files.items()}
            (folder / _CAST).write_text(json.dumps({**asdict(replace(made, files={})), "files": names}))

        folder = self.store.folder("casts", [target.fingerprint, _key(request), _REVISION, *owner], build)
        kept = json.loads((folder / _CAST).read_text())
        files = {role: folder / name for role, name in kept.pop("files").items()}
        written = _casts().validate_python({**kept, "files": files})
        read = read_files(format, files, self.registry, self.children)
        bounds = carried_bounds(target.graph.input_values, target.graph, read.graph)
        graph = read.graph.with_bounds(bounds)
        if len(graph.nodes) != len(written.provenance):
            raise NotAvailable(
                f"casting traces {len(written.provenance)} nodes, the {target.format} reader sees {len(graph.nodes)}",
                where=str(folder), remedy="report this to the format plugin's author",
            )  # fmt: skip
        return written, replace(read, graph=graph, source=target, provenance=written.provenance)

    def _reach(self, target: Model) -> Mapping[int, float]:
        """The largest magnitude of each value of `target` on the samples, from a reference; none where it cannot be."""
        try:
            samples = self.measured()
            return _measured(target, self.origin, samples, self.registry, self.children) if samples else {}
        except PaddockError as error:
            self.notes[f"the ranges of values were not measured: {error.problem}"] = None
            return {}


def checked_means(resolved: Resolved, precision: Precision) -> Means:
    """The adapter's `means`; raises `BuildFailed` where that is none which can lead to `precision`."""
    adapter = resolved.instance()
    found: object = building(f"{resolved.name}: means", lambda: adapter.means(precision))
    able = (Means.BACKEND, Means.QUANTIZE if precision is Precision.INT8 else Means.CAST)
    if not isinstance(found, Means) or found not in able:
        raise BuildFailed(
            f"{resolved.name}: means() gave {found!r} for {precision}, not one of {', '.join(able)}",
            remedy="report this to the plugin's author",
        )
    return found


def checked_classes(adapter: str, found: object) -> OperatorClasses:
    """What `operator_classes` gave; raises `BuildFailed` where that is something else."""
    named = isinstance(found, OperatorClasses) and all(isinstance(kind, str) for kind in (*found.allow, *found.deny))
    if not isinstance(found, OperatorClasses) or not named:
        raise BuildFailed(
            f"{adapter}: operator_classes() gave a {type(found).__name__}, not OperatorClasses of operator types",
            remedy="report this to the plugin's author",
        )
    return found


def _floats(target: Model, dtype: str, reasons: Mapping[int, str], default: str = "") -> Iterator[NodePrecision]:
    """The nodes of `target` that touch float32 values, all in `dtype`."""
    graph = target.graph
    for node in graph.nodes:
        if any(v is not None and graph.values[v].dtype == WIDE for v in (*node.inputs, *node.outputs)):
            yield NodePrecision(node.index, node.type, dtype, reasons.get(node.index, default))


def _prone(target: Model, classes: OperatorClasses) -> dict[int, str]:
    reason = "prone to overflow or cancellation, and nothing is verified"
    return {n.index: reason for n in target.graph.nodes if classes.role(n.type) is Role.DENY}


def _measured(
    target: Model, origin: Model, samples: Sequence[Sample], registry: Registry, children: Children
) -> Mapping[int, float]:
    format = registry.formats[target.format]
    owner = owner_of(format, registry)
    names = list(zip(origin.graph.input_values, target.graph.input_values, strict=True))
    fed = [{there.name: sample[here.name] for here, there in names} for sample in samples]

    def ask() -> Any:
        with tempfile.TemporaryDirectory(prefix="paddock-ranges-") as folder:
            files, outputs = children.get(owner[0]).call(_ranges_here, format, target, Path(folder))
            model = read_files(format, files, registry, children)
            bounds = carried_bounds(target.graph.input_values, target.graph, model.graph)
            answers = reference_outputs(registry, model.with_graph(model.graph.with_bounds(bounds)), fed, children)
            reach = {
                str(value): max(float(found[name]) for found in answers.outputs) for name, value in outputs.items()
            }
            return {value: largest for value, largest in reach.items() if math.isfinite(largest)}

    found = registry.store.remembered("ranges", [target.fingerprint, digest_samples(fed), *owner], ask)
    return {int(value): float(reach) for value, reach in found.items()}


def _key(request: CastRequest) -> Any:
    classes = request.classes
    return [
        request.narrow, sorted(classes.allow), sorted(classes.deny), sorted(request.keep.items()),
        sorted(request.reach.items()), request.narrow_border, request.storage_only,
    ]  # fmt: skip


@cache
def _casts() -> TypeAdapter[CastModel]:
    return TypeAdapter(CastModel)


def _cast_here(format: Format, model: Model, request: CastRequest, folder: Path) -> CastModel:
    return format.cast(model, request, folder)


def _ranges_here(format: Format, model: Model, folder: Path) -> tuple[Files, Mapping[str, int]]:
    return format.ranges(model, folder)
