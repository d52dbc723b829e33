"""A deployment that is built, and not loaded: all that a process needs to serve it, whoever planned it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from paddock.arena import Arena
from paddock.config import HardwareConfig
from paddock.contract import is_isolated
from paddock.errors import NotAvailable, PaddockError
from paddock.flow import Flow
from paddock.graph import Graph
from paddock.guard import Guard
from paddock.host import InProcessHost, ServingHost, building
from paddock.pipeline import Pipeline
from paddock.registry import Resolved
from paddock.spi import Artifact, Context, Process, Session, Threading
from paddock.ward import TIMEOUT, Spares, Ward


@dataclass(frozen=True)
class BuiltSegment:
    """One segment: how messages name it, its adapter, what to load, and the folders for that. Pickles."""

    name: str
    resolved: Resolved
    artifact: Artifact
    work: Path
    cache: Path

    @property
    def isolated(self) -> bool:
        """Whether its sessions live in processes of their own."""
        return is_isolated(self.resolved.registered.adapter, self.resolved.config.config)

    def load(self, tell: Callable[[str], None]) -> Session:
        """A session; called on the thread that it belongs to.

        Raises `NotAvailable` where the artifact does not fit this host, `BuildFailed` where it cannot be loaded.
        """
        kind, artifact = self.resolved, self.artifact
        adapter = kind.instance()
        verdict = building(f"{kind.name}: checking the artifact", lambda: adapter.compatible(artifact))
        if not verdict.usable:
            raise NotAvailable(f"{kind.name}: its artifact does not fit this host: {verdict.reason}")
        context = Context(self.work, self.cache, tell)
        session: Session = building(f"{self.name}: loading", lambda: adapter.load(artifact, context))
        return session


@dataclass(frozen=True)
class Built:
    """All segments in order, and the way of the data where there are several. Pickles."""

    name: str
    segments: tuple[BuiltSegment, ...]
    flow: Flow | None
    instances: int

    def load(
        self,
        *,
        inside: int | None = None,
        arena: Arena | None = None,
        tell: Callable[[str], None] = lambda message: None,
        isolate: bool = True,
    ) -> ServingHost:
        """The sessions in this process, or each in one of its own; raises as `BuiltSegment.load` and `Ward` do.

        Args:
            inside: How many calls may be inside one reentrant session at once; see `InProcessHost`.
            arena: The memory for what crosses borders, where it is made already.
            tell: Told in a few words what is being done.
            isolate: Whether those that are to be isolated are; not in a process that may be lost itself.
        """
        guard = Guard() if isolate and any(segment.isolated for segment in self.segments) else None
        hosts: list[InProcessHost] = []
        try:
            for segment in self.segments:
                kind = segment.resolved.registered.adapter.concurrency.threading
                load = _loading(segment, tell)
                if guard is not None and segment.isolated:
                    load, kind = _warded(segment, guard), Threading.SERIAL
                hosts.append(InProcessHost(load, kind, self.instances, segment.name, inside=inside))
            whole = hosts[0] if self.flow is None else Pipeline(self.flow, hosts, self.instances, self.name, arena)
            whole.guard = guard
            return whole
        except BaseException:
            for loaded in hosts:
                with contextlib.suppress(PaddockError):
                    loaded.close()
            raise


def _loading(segment: BuiltSegment, tell: Callable[[str], None]) -> Callable[[], Session]:
    return lambda: segment.load(tell)


def _warded(segment: BuiltSegment, guard: Guard) -> Callable[[], Session]:
    spares = Spares(partial(_prepare, segment.resolved))
    timeout = segment.resolved.config.config.timeout
    seconds = TIMEOUT if timeout is None else timeout
    load = partial(_load_there, segment)
    return lambda: building(f"{segment.name}: loading", lambda: Ward(segment.name, load, guard, spares, seconds))


def _load_there(segment: BuiltSegment) -> Session:
    return segment.load(lambda message: None)


def _prepare(resolved: Resolved) -> None:
    """In a process that stands ready: imports the runtime, where that takes nothing but the host's memory."""
    adapter = resolved.registered.adapter
    if resolved.device.memory_kind == "host" and adapter.process is Process.SHARED:
        adapter.probe_device()


def interface(graph: Graph, config: HardwareConfig) -> Graph:
    """A model's graph as its user sees it: float32 inputs and outputs in the config's `io_dtype`."""
    if config.io_dtype is None:
        return graph
    border = {v for v in (*graph.inputs, *graph.outputs) if graph.values[v].dtype == "float32"}
    values = tuple(replace(v, dtype="float16") if i in border else v for i, v in enumerate(graph.values))
    return replace(graph, values=values)
