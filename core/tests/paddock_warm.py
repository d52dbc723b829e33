"""A plugin with one adapter that serves first and one that takes its place, which misbehaves as its options say.

Importable by child processes under this name. `STAGE` directs and watches the sessions of this process alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from paddock.errors import ConfigError
from paddock.model import Model
from paddock.plan import Verdict
from paddock.spi import (
    Adapter,
    Arrays,
    Artifact,
    Concurrency,
    Context,
    Device,
    Event,
    Probe,
    ResolvedConfig,
    SegmentPlan,
    Selection,
    Session,
    Threading,
    hookimpl,
)
from paddock_fakes import FakeAdapter, FakeOptions, behave

Array = np.ndarray[Any, Any]

HELD_BY = -77.0
"""A request that begins with this stays inside its session until `STAGE.run` is set."""


def _opened() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Stage:
    """What sessions in this process wait for, and what they did, by backend."""

    load: threading.Event = field(default_factory=_opened)
    run: threading.Event = field(default_factory=_opened)
    held: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released by each request that is held."""
    loading: threading.Event = field(default_factory=threading.Event)
    """Set once the second adapter is being loaded."""
    runs: Counter[str] = field(default_factory=Counter)
    loaded: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)


STAGE = Stage()


class WarmOptions(FakeOptions):
    """What goes wrong with inputs whose first element is above 100, which no generated sample has."""

    wrong: tuple[str, ...] = ()
    """These outputs."""
    raises: bool = False
    fails_close: bool = False


class First(FakeAdapter):
    """Doubles its input, any number of requests at once."""

    backend: ClassVar[str] = "first"
    aliases: ClassVar[tuple[str, ...]] = ("one",)
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.REENTRANT)
    Options: ClassVar[type[FakeOptions]] = WarmOptions

    def load(self, artifact: Artifact, context: Context) -> Session:
        """Once the stage lets the second adapter."""
        behave(self.manners.load)
        if self.backend == "second":
            STAGE.loading.set()
            STAGE.load.wait(30)
        assert isinstance(self.manners, WarmOptions)
        STAGE.loaded[self.backend] += 1
        return WarmSession(self.backend, self.manners, artifact)


class Second(First):
    """What takes its place."""

    backend: ClassVar[str] = "second"
    aliases: ClassVar[tuple[str, ...]] = ()


class Absent(First):
    """Is never there."""

    backend: ClassVar[str] = "absent"
    aliases: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def probe(cls) -> Probe:
        """No."""
        return Probe(Verdict.no("its SDK is not installed"), remedy="install it")


class OnOwnThread(First):
    """One request at a time, on the thread that loaded it."""

    backend: ClassVar[str] = "bound"
    aliases: ClassVar[tuple[str, ...]] = ()
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.BOUND)


class Refusing(First):
    """Takes no node."""

    backend: ClassVar[str] = "refusing"
    aliases: ClassVar[tuple[str, ...]] = ()

    def select_operators(self, model: Model, context: Context) -> Selection:
        """No."""
        return Selection(tuple(Verdict.no("no kernel") for _ in model.graph.nodes))

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """Never asked."""
        raise AssertionError


class Threadless(First):
    """Has no threads of its own."""

    backend: ClassVar[str] = "threadless"
    aliases: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ResolvedConfig, device: Device | None) -> None:
        super().__init__(config, device)
        if config.config.threads is not None:
            raise ConfigError("has no effect", where="$.threads", remedy="leave it out")


class WarmSession(Session):
    """Every output is twice the input."""

    def __init__(self, backend: str, manners: WarmOptions, artifact: Artifact) -> None:
        self._backend, self._manners, self._artifact = backend, manners, artifact
        self._open = True

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Doubled, unless the manners say otherwise."""
        assert self._open, "it is closed"
        STAGE.runs[self._backend] += 1
        behave(self._manners.run)
        x = feeds[self._artifact.inputs[0]]
        mark = x.flat[0] if x.size else 0.0
        if mark == HELD_BY:
            STAGE.held.release()
            STAGE.run.wait(30)
        if mark > 100 and self._manners.raises:
            raise ArithmeticError("no such number")
        answer = {name: 2 * x for name in self._artifact.outputs if outputs is None or name in outputs}
        for name in answer:
            if self._manners.numbers == "wrong" or (mark > 100 and name in self._manners.wrong):
                answer[name] = answer[name] + np.float32(50.0)
        return answer

    def close(self) -> None:
        """Notes it."""
        self._open = False
        STAGE.closed[self._backend] += 1
        if self._manners.fails_close:
            raise OSError("device lost")


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """All of them."""
    return [First, Second, Absent, OnOwnThread, Refusing, Threadless]


@hookimpl
def paddock_observe(event: Event) -> None:
    """Keeps it."""
    STAGE.events.append(event)


def wait_until(condition: Any, what: str) -> None:
    """Fails where that does not become true in half a minute."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"waited in vain until {what}")
