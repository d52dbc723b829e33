"""From parts to artifacts: compilation and a first run of the whole deployment, in child processes.

Whatever has never been loaded here before is compiled, loaded and run once in children, one for each adapter; only then
does this process load it. A crash or a hang of an SDK is thereby an error with a reason, not the end of the host.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

from paddock import artifacts
from paddock.child import Child, tell
from paddock.errors import BuildFailed, PaddockError, Unsupported
from paddock.host import ChildHost, ExecutionHost, building
from paddock.machine import host_facts
from paddock.model import Model, check_unchanged
from paddock.plan import Plan, Segment
from paddock.registry import Resolved
from paddock.spi import Artifact, Context, SegmentMemory, SegmentPlan
from paddock.workshop import SECONDS, Part

ARTIFACTS = "artifacts"
"""The kind of entry that an artifact is kept as."""


class Refused(BuildFailed):
    """An adapter refused nodes of a part while it was compiled: the plan has to be made anew without them."""

    part: Part
    nodes: tuple[int, ...]
    """Of the part's target; none where the adapter does not tell which."""


def local_plan(part: Part, plan: Plan) -> SegmentPlan:
    """What `compile` gets for a part: the same segment by the indices of the model that it is given."""
    graph = part.target.graph
    nodes = tuple(node.index for node in graph.nodes)
    segment = Segment(part.segment.index, part.workshop.name, nodes, graph.inputs, graph.outputs)
    # What is kept, cast and counted is told by the nodes of the user's model; the adapter is given what is done.
    precision = replace(part.precision, keep_fp32=(), nodes=(), casts=(), searched=())
    own = next((found for found in plan.memory.segments if found.segment == segment.index), SegmentMemory())
    return SegmentPlan(segment, precision, own, part.remedies, part.verdicts)


def build(plan: Plan, parts: Sequence[Part]) -> list[Artifact]:
    """The artifacts of parts that were tried out before (`tried`): kept ones, or else made in this process.

    Those whose sessions are isolated are made in their adapters' children.
    """
    return [_kept(p, local_plan(p, plan), _compile_in_child if p.workshop.isolated else _compile) for p in parts]


def compiled(plan: Plan, parts: Sequence[Part]) -> list[Artifact]:
    """The artifacts of parts: kept ones, or else compiled in their adapters' children; raises as `tried` does."""
    return [_kept(part, local_plan(part, plan), _compile_in_child) for part in parts]


def _kept(part: Part, segment: SegmentPlan, compile: Callable[[Part, SegmentPlan, Context], Artifact]) -> Artifact:
    """The part's artifact from the store, made by `compile` where there is none yet."""

    def make(folder: Path) -> None:
        # In a folder of its own: what an artifact does not name is gone before it is loaded for the first time.
        with tempfile.TemporaryDirectory(dir=part.context.work, prefix="compiling-") as place:
            work = Path(place)
            artifact = compile(part, segment, replace(part.context, work=work))
            artifacts.write(artifact, folder, part.target.origin.files, work)
        check_unchanged(part.target)

    with blamed(part):
        folder = part.workshop.registry.store.folder(ARTIFACTS, artifacts.key(part, segment), make)
        return artifacts.read(folder, part.target.origin.files)


def are_kept(plan: Plan, parts: Sequence[Part]) -> bool:
    """Whether an artifact of these parts was compiled before."""
    return any(part.workshop.registry.store.find(ARTIFACTS, key) is not None for part, key in keys(plan, parts))


def forget(plan: Plan, parts: Sequence[Part]) -> None:
    """Removes the artifacts of these parts from the store: they are compiled anew."""
    for part, key in keys(plan, parts):
        part.workshop.registry.store.forget(ARTIFACTS, key)


def keys(plan: Plan, parts: Sequence[Part]) -> list[tuple[Part, Any]]:
    """Each part with the key that its artifact is kept under."""
    return [(part, artifacts.key(part, local_plan(part, plan))) for part in parts]


def built_notes(plan: Plan, parts: Sequence[Part]) -> tuple[str, ...]:
    """What was told of these parts when they were compiled, where they are kept."""
    folders = [(part, part.workshop.registry.store.find(ARTIFACTS, key)) for part, key in keys(plan, parts)]
    with suppress(BuildFailed):  # damaged: it is compiled anew
        return notes_of(artifacts.read(f, part.target.origin.files) for part, f in folders if f is not None)
    return ()


def notes_of(made: Iterable[Artifact]) -> tuple[str, ...]:
    """The notes among the facts of artifacts."""
    listed = [artifact.facts.get("notes") for artifact in made]
    return tuple(dict.fromkeys(str(note) for notes in listed if isinstance(notes, list) for note in notes))


def _compile(part: Part, segment: SegmentPlan, context: Context) -> Artifact:
    def compile() -> object:
        return part.workshop.adapter().compile(part.target, segment, context)

    return artifacts.normal(building(f"{part.workshop.name}: compiling", compile), part.workshop.name)


def _compile_in_child(part: Part, segment: SegmentPlan, context: Context) -> Artifact:
    workshop = part.workshop
    return compile_in(workshop.child, workshop.resolved, part.target, segment, context)


@contextmanager
def tried(plan: Plan, parts: Sequence[Part], keep: bool = True) -> Iterator[tuple[list[Artifact], list[ExecutionHost]]]:
    """The artifacts of parts, each compiled and loaded in its adapter's child, and the sessions there while it lasts.

    Without `keep` they are neither taken from the store nor kept there. Raises `Refused` where an SDK refuses nodes,
    `BuildFailed` where it fails or crashes.
    """
    found: list[Artifact] = []
    hosts: list[ExecutionHost] = []
    with ExitStack() as stack:
        for part in parts:
            resolved, child, context = part.workshop.resolved, part.workshop.child, part.context
            if keep:
                artifact = _kept(part, local_plan(part, plan), _compile_in_child)
            else:
                # What another trial has mapped is not written over.
                work = stack.enter_context(tempfile.TemporaryDirectory(dir=context.work, prefix="trying-"))
                with blamed(part):
                    artifact = _compile_in_child(part, local_plan(part, plan), replace(context, work=Path(work)))
            with blamed(part):
                adapter = resolved.registered.adapter
                host = ChildHost(child, adapter, resolved.config, resolved.device, artifact, context, SECONDS)
                stack.callback(_closed, host)
            hosts.append(host)
            found.append(artifact)
        yield found, hosts


def _closed(host: ExecutionHost) -> None:
    # A session that fails while it is closed, or has ended with its process, spoils no answer: it was a try.
    with suppress(PaddockError):
        host.close()


_LOST: ContextVar[bool] = ContextVar("this process may be lost", default=False)


@contextmanager
def expendable() -> Iterator[None]:
    """Within, what was never loaded here is loaded at once: this process is a child itself, and may be lost."""
    token = _LOST.set(True)
    try:
        yield
    finally:
        _LOST.reset(token)


def is_expendable() -> bool:
    """Whether `expendable` holds."""
    return _LOST.get()


def is_tried(plan: Plan, part: Part) -> bool:
    """Whether this very plan came through its first run on this host before."""
    return part.workshop.registry.store.get("tried", [plan.key, host_facts()]) is not None


def remember_tried(plan: Plan, part: Part) -> None:
    """What `is_tried` then answers."""
    part.workshop.registry.store.put("tried", [plan.key, host_facts()], plan.semantics())


@contextmanager
def blamed(part: Part) -> Iterator[None]:
    """Says of an error which adapter, and which segment, it concerns."""
    where = "the model" if part.whole else part.label
    try:
        yield
    except Unsupported as error:
        nodes = part.target.graph.nodes
        known = tuple(i for i in error.nodes if 0 <= i < len(nodes))  # an adapter may name what it was not given
        what = f"{len(known)} nodes" if known else where
        refused = Refused(
            f"{part.workshop.name} refused {what} while compiling: {error.problem}",
            candidates=[nodes[i].label for i in known[:5]],
        )
        refused.part, refused.nodes = part, known
        raise refused from error
    except BuildFailed as error:
        raise BuildFailed(
            f"{part.workshop.name} could not build {where}: {error.problem}",
            candidates=error.candidates,
            remedy=error.remedy or "`paddock verify --all` tries the other backends",
        ) from error


def check_answer(answer: object, outputs: Sequence[str]) -> None:
    """Raises `BuildFailed` where a session's answer is no dict of the outputs."""
    if not isinstance(answer, dict):
        raise BuildFailed(f"run() returned a {type(answer).__name__}, not a dict of arrays")
    missing = [name for name in outputs if name not in answer]
    if missing:
        raise BuildFailed(f"run() left out the outputs {', '.join(missing)}")


def compile_in(child: Child, resolved: Resolved, model: Model, segment: SegmentPlan, context: Context) -> Artifact:
    """The adapter's `compile`, run in a child process; nothing is kept."""
    args = (resolved, model, segment, context.work, context.cache)
    return child.call(_compile_here, *args, seconds=SECONDS, hear=context.progress)


def _compile_here(resolved: Resolved, model: Model, segment: SegmentPlan, work: Path, cache: Path) -> Artifact:
    return artifacts.normal(resolved.instance().compile(model, segment, Context(work, cache, tell)), resolved.name)
