"""One adapter of a deployment at work: its child process, its folders, its verdicts; and one segment given to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from paddock.child import Child, Children
from paddock.contract import is_isolated
from paddock.errors import BuildFailed, PaddockError
from paddock.host import building
from paddock.machine import host_facts
from paddock.model import Model
from paddock.plan import NodePrecision, PrecisionPlan, Remedy, Segment, Verdict, digest
from paddock.registry import Registry, Resolved
from paddock.spi import Adapter, Context, Process, Selection

SECONDS = 600.0
"""How long one step of an adapter in a child may take."""


@dataclass(frozen=True)
class Workshop:
    """Where one adapter's part of a deployment is made: the registry, the children, the folders."""

    registry: Registry
    children: Children
    resolved: Resolved
    context: Context

    @property
    def name(self) -> str:
        """`hardware/backend`."""
        return self.resolved.name

    @property
    def child(self) -> Child:
        """The child in which this adapter's unproven work happens."""
        label = f"trying {self.resolved.name}"
        if self.resolved.registered.adapter.process is Process.EXCLUSIVE:
            # What the first session of a process was told sticks: whoever is told other things has another process.
            told = self.resolved.config
            label += f" ({digest([told.options.model_dump(mode='json'), told.precision, told.threads])[:8]})"
        return self.children.get(label)

    @property
    def isolated(self) -> bool:
        """Whether its sessions live in processes of their own."""
        return is_isolated(self.resolved.registered.adapter, self.resolved.config.config)

    def adapter(self) -> Adapter:
        """The adapter's instance for this deployment."""
        return self.resolved.instance()


def adapter_cache(registry: Registry, resolved: Resolved) -> Path:
    """The folder for what an adapter's backend itself keeps, by the versions of both."""
    return registry.store.private("adapters", [resolved.name, dict(resolved.versions)])


def adapter_folders(registry: Registry, work: Path, resolved: Resolved) -> tuple[Path, Path]:
    """An adapter's own folder in `work`, made where it is missing, and `adapter_cache`."""
    own = work / resolved.name.replace("/", "-")
    own.mkdir(exist_ok=True)
    return own, adapter_cache(registry, resolved)


@dataclass(frozen=True)
class Part:
    """One segment of a deployment with the adapter that runs it.

    `target` holds exactly the segment's nodes, in the adapter's format and precision, traced back to the model's;
    `verdicts` are the adapter's, about `target`; `precision` and `dtypes` tell what became of the model's own nodes;
    `whole` says that the segment is the whole model.
    """

    segment: Segment
    workshop: Workshop
    target: Model
    verdicts: tuple[Verdict, ...]
    remedies: tuple[Remedy, ...]
    precision: PrecisionPlan
    dtypes: Mapping[int, NodePrecision]
    whole: bool

    @property
    def name(self) -> str:
        """How messages name it: the adapter and, where it is not the whole model, the segment and its nodes."""
        return self.workshop.name if self.whole else f"{self.workshop.name} in {self.label}"

    @property
    def label(self) -> str:
        """`segment 2 (3 nodes, #4 Conv to #9 Relu)`."""
        nodes = self.segment.nodes
        origin = self.target.origin.graph.nodes
        ends = " to ".join(dict.fromkeys((origin[nodes[0]].label, origin[nodes[-1]].label))) if nodes else "none"
        return f"segment {self.segment.index} ({len(nodes)} node{'s' if len(nodes) != 1 else ''}, {ends})"

    @property
    def context(self) -> Context:
        """The workshop's, with a work folder of this segment's own."""
        work = self.workshop.context.work / str(self.segment.index)
        work.mkdir(exist_ok=True)
        return replace(self.workshop.context, work=work)


UNSAID = "it does not say why"
"""The reason of a "no" that an adapter gave none for."""


@cache
def _verdicts() -> TypeAdapter[tuple[Verdict, ...]]:
    return TypeAdapter(tuple[Verdict, ...])


def select(workshop: Workshop, model: Model, child: Child | None = None) -> Selection:
    """The adapter's verdicts for every node, asked in a child and kept by model, shapes, versions and options.

    Where its device is only assumed, whatever it fails with leaves them all open.
    """
    resolved = workshop.resolved
    key = [
        model.fingerprint, {s: str(r) for s, r in model.graph.bounds.items()},
        [value.shape for value in model.graph.input_values], resolved.name, dict(resolved.versions),
        resolved.config.precision, resolved.config.options.model_dump(mode="json"), host_facts(),
    ]  # fmt: skip

    def ask() -> object:
        found = (child or workshop.child).call(
            _select_here, resolved, model, workshop.context.work, workshop.context.cache, seconds=SECONDS
        )
        return _verdicts().dump_python(tuple(found.verdicts), mode="json")

    try:
        return Selection(_verdicts().validate_python(workshop.registry.store.remembered("selections", key, ask)))
    except PaddockError as error:
        if not resolved.assumed:
            raise
        reason = f"cannot be asked without its device: {error.problem}"
        return Selection((Verdict.provisional(reason, workshop.name),) * len(model.graph.nodes))


def defects(workshop: Workshop, model: Model) -> tuple[Remedy, ...]:
    """What the adapter knows to be wrong with its SDK and this model."""
    adapter: Adapter = building(f"{workshop.name}: constructing", workshop.adapter)
    found: tuple[object, ...] = building(
        f"{workshop.name}: listing known defects", lambda: tuple(adapter.known_defects(model))
    )
    remedies = tuple(remedy for remedy in found if isinstance(remedy, Remedy))
    if len(remedies) != len(found):
        raise BuildFailed(f"{workshop.name}: known_defects() returned something that is no Remedy")
    return remedies


def notes(workshop: Workshop, model: Model) -> tuple[str, ...]:
    """What the adapter has to say about a plan for this model."""
    adapter: Adapter = building(f"{workshop.name}: constructing", workshop.adapter)
    found: tuple[str, ...] = building(f"{workshop.name}: noting", lambda: tuple(map(str, adapter.notes(model))))
    return found


def _select_here(resolved: Resolved, model: Model, work: Path, cache: Path) -> Selection:
    found: object = resolved.instance().select_operators(model, Context(work, cache))
    if not isinstance(found, Selection):
        raise BuildFailed(f"{resolved.name}: select_operators() returned a {type(found).__name__}, not a Selection")
    if not all(isinstance(verdict, Verdict) for verdict in found.verdicts):
        raise BuildFailed(f"{resolved.name}: select_operators() returned a Selection that holds no verdicts")
    return Selection(tuple(v if v.usable or v.reason.strip() else replace(v, reason=UNSAID) for v in found.verdicts))
