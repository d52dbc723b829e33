"""From a plan to something loaded: selection, compilation and a first try, each in a child process.

Whatever has never been loaded here before is compiled, loaded and run once in a child; only then does this process load
it. A crash or a hang of an SDK is thereby an error with a reason, not the end of the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from paddock.child import Child, Children
from paddock.errors import BuildFailed, NotAvailable, Unsupported
from paddock.host import ChildHost, building
from paddock.machine import host_facts
from paddock.model import Model
from paddock.plan import Plan, Verdict
from paddock.registry import Registry, Resolved
from paddock.samples import Sample
from paddock.spi import Adapter, Artifact, Context, SegmentPlan, Selection


@cache
def _verdicts() -> TypeAdapter[tuple[Verdict, ...]]:
    return TypeAdapter(tuple[Verdict, ...])


_SECONDS = 600.0


@dataclass(frozen=True)
class Workshop:
    """Where a deployment is made: the registry, the children, the folders."""

    registry: Registry
    children: Children
    resolved: Resolved
    context: Context

    @property
    def child(self) -> Child:
        """The child in which this adapter's unproven work happens."""
        return self.children.get(f"trying {self.resolved.name}")

    def adapter(self) -> Adapter:
        """The adapter's instance for this deployment."""
        return self.resolved.registered.adapter(self.resolved.config, self.resolved.device)


def select(workshop: Workshop, model: Model) -> Selection:
    """The adapter's verdicts for every node, asked in a child and kept by model, shapes, versions and options."""
    resolved = workshop.resolved
    key = [
        model.fingerprint, {s: str(r) for s, r in model.graph.bounds.items()},
        [value.shape for value in model.graph.input_values], resolved.name, dict(resolved.versions),
        resolved.config.precision, resolved.config.options.model_dump(mode="json"), host_facts(),
    ]  # fmt: skip

    def ask() -> object:
        found = workshop.child.call(
            _select_here, resolved, model, workshop.context.work, workshop.context.cache, seconds=_SECONDS
        )
        return _verdicts().dump_python(tuple(found.verdicts), mode="json")

    return Selection(_verdicts().validate_python(workshop.registry.store.remembered("selections", key, ask)))


def build(workshop: Workshop, model: Model, plan: Plan, segment: SegmentPlan, samples: Sequence[Sample]) -> Artifact:
    """The artifact of a segment, tried out on the first of `samples` in a child unless this very plan was before.

    Raises `NotAvailable` where the SDK refuses nodes, `BuildFailed` where it fails or crashes.
    """
    store = workshop.registry.store
    key = [plan.key, host_facts()]
    try:
        if store.get("tried", key) is not None:
            return _checked(building(
                f"{plan.adapter}: compiling", lambda: workshop.adapter().compile(model, segment, workshop.context)
            ))  # fmt: skip
        resolved = workshop.resolved
        artifact = compile_in(workshop.child, resolved, model, segment, workshop.context)
        _try_out(workshop, artifact, samples[:1])
    except Unsupported as error:
        named = [model.graph.nodes[index].label for index in error.nodes if index < len(model.graph.nodes)]
        raise NotAvailable(
            f"{plan.adapter} refused {len(named)} nodes while compiling: {error.problem}", candidates=named[:5]
        ) from error
    except BuildFailed as error:
        raise BuildFailed(
            f"{plan.adapter} could not build the model: {error.problem}",
            candidates=error.candidates,
            remedy=error.remedy or "`paddock verify --all` tries the other backends",
        ) from error
    store.put("tried", key, plan.semantics())
    return artifact


def _try_out(workshop: Workshop, artifact: Artifact, samples: Sequence[Sample]) -> None:
    resolved = workshop.resolved
    adapter, config = resolved.registered.adapter, resolved.config
    host = ChildHost(workshop.child, adapter, config, resolved.device, artifact, workshop.context, _SECONDS)
    for sample in samples:
        check_answer(host.run(sample), artifact.outputs)
    host.close()


def check_answer(answer: object, outputs: Sequence[str]) -> None:
    """Raises `BuildFailed` where a session's answer is no dict of the outputs."""
    if not isinstance(answer, dict):
        raise BuildFailed(f"run() returned a {type(answer).__name__}, not a dict of arrays")
    missing = [name for name in outputs if name not in answer]
    if missing:
        raise BuildFailed(f"run() left out the outputs {', '.join(missing)}")


def compile_in(child: Child, resolved: Resolved, model: Model, segment: SegmentPlan, context: Context) -> Artifact:
    """The adapter's `compile`, run in a child process."""
    return _checked(child.call(_compile_here, resolved, model, segment, context.work, context.cache, seconds=_SECONDS))


def _checked(artifact: object) -> Artifact:
    if not isinstance(artifact, Artifact):
        raise BuildFailed(f"compile() returned a {type(artifact).__name__}, not an Artifact")
    return artifact


def _select_here(resolved: Resolved, model: Model, work: Path, cache: Path) -> Selection:
    adapter = resolved.registered.adapter(resolved.config, resolved.device)
    found: object = adapter.select_operators(model, Context(work, cache))
    if not isinstance(found, Selection):
        raise BuildFailed(f"{resolved.name}: select_operators() returned a {type(found).__name__}, not a Selection")
    if not all(isinstance(verdict, Verdict) for verdict in found.verdicts):
        raise BuildFailed(f"{resolved.name}: select_operators() returned a Selection that holds no verdicts")
    return found


def _compile_here(resolved: Resolved, model: Model, segment: SegmentPlan, work: Path, cache: Path) -> Artifact:
    adapter = resolved.registered.adapter(resolved.config, resolved.device)
    return adapter.compile(model, segment, Context(work, cache))
