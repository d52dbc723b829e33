"""Sessions and a plugin that go wrong at certain inputs. Importable by child processes under this name."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import paddock_calls as calls
from paddock.errors import Exhausted, NotAvailable, RunFailed
from paddock.model import Model
from paddock.plan import Precision, Verdict
from paddock.spi import (
    Adapter,
    Arrays,
    Artifact,
    Concurrency,
    Context,
    Event,
    Observed,
    Process,
    SegmentPlan,
    Selection,
    Session,
    Threading,
    hookimpl,
    other_shape,
)
from pydantic import BaseModel, ConfigDict

Array = np.ndarray[Any, Any]

SEGFAULT, ABORT, EXIT, HANG, NO_MEMORY, BAD_ALLOC, RAISES, REFUSES, LIST, NOISE, KILLED, SLOW, DEAF = range(1001, 1014)
CUT_OFF, UNREACHABLE, EXHAUSTED = range(1014, 1017)
"""First elements of the first input, and what then happens."""


class Misfit(Exception):
    """Of a class that nobody else has."""


def mischief(mark: float) -> Any:
    """What a mark asks for; whatever is returned is the session's answer, None where it goes on."""
    match mark:
        case 1001:
            calls.segfault()
        case 1002:
            calls.abort()
        case 1003:
            calls.end(3)
        case 1004:
            time.sleep(600)
        case 1005:
            raise MemoryError("Unable to allocate 8.00 TiB")
        case 1006:
            raise RuntimeError("the SDK failed:\nstd::bad_alloc")
        case 1007:
            raise Misfit("no such number\nand more")
        case 1008:
            raise RunFailed("not this one", remedy="another one")
        case 1009:
            return [np.zeros(1)]
        case 1010:
            sys.stdout.write("noise of Python\n")
            os.write(1, b"noise of C\n")
        case 1011:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        case 1012:
            time.sleep(0.3)
        case 1013:
            deaf()
        case 1014:
            raise EOFError("weights truncated")
        case 1015:
            raise ConnectionRefusedError("licence server refused")
        case 1016:
            raise Exhausted("the device has not enough memory")
    return None


def deaf() -> NoReturn:
    """Hangs in C with the interpreter's lock: no Python thread of this process runs any more."""
    ctypes.PyDLL(None).sleep(600)
    raise AssertionError


class Doubling(Session):
    """Every output is twice the first input."""

    def __init__(self, outputs: Sequence[str] = ("y",)) -> None:
        self._outputs = tuple(outputs)
        self._thread = threading.get_ident()
        self.closed = False

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Doubled, unless the first element says otherwise."""
        assert not self.closed and threading.get_ident() == self._thread
        x = next(iter(feeds.values()))
        answer = mischief(float(x.flat[0]) if x.size and x.dtype.kind in "fiu" else 0.0)
        if answer is not None:
            found: dict[str, Array] = answer
            return found
        return {name: 2 * x for name in self._outputs if outputs is None or name in outputs}

    def close(self) -> None:
        """Notes it."""
        self.closed = True

    def observed(self) -> Observed:
        """Its process."""
        return Observed({"process": os.getpid()}, nodes=1)


class Echo(Session):
    """Gives what it was fed, in other places, and what it was asked for; says whether feeds could be written."""

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """The feeds."""
        return {name: value for name, value in feeds.items() if outputs is None or name in outputs}

    def close(self) -> None:
        """Nothing."""


class Direct(Session):
    """Writes into given arrays; the output has as many rows as the first input's first element says."""

    def __init__(self, forgets: bool = False) -> None:
        self.forgets = forgets
        self.written = 0

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """New arrays."""
        x = feeds["x"]
        return {"y": np.repeat(x[:1], int(x.flat[0]), axis=0), "written": np.array(self.written)}

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        """Into these."""
        for name, found in self.run(feeds).items():
            if into[name].shape != found.shape:
                raise other_shape(name, into[name].shape, found.shape)
        self.written += 1
        for name, found in self.run(feeds).items():
            if not self.forgets:
                into[name][...] = found

    def close(self) -> None:
        """Nothing."""


class Accompanied(Doubling):
    """Has a helper that holds all that its process has open, and outlives it."""

    def __init__(self) -> None:
        super().__init__()
        self._helper = subprocess.Popen(["sleep", "600"], close_fds=False)
        self._fork = os.fork()
        if not self._fork:
            time.sleep(600)
            os._exit(0)

    def observed(self) -> Observed:
        """Its process, and its helpers'."""
        return Observed({"process": os.getpid(), "helpers": [self._helper.pid, self._fork]}, nodes=1)


class Dying(Doubling):
    """Takes its time to crash, by a handler of its own as SDKs install them; has a fork that crashes."""

    def __init__(self) -> None:
        super().__init__()
        library = ctypes.CDLL(None)
        library.signal(signal.SIGSEGV, ctypes.cast(library.sleep, ctypes.c_void_p))  # that many seconds: 11

    def observed(self) -> Observed:
        """How a fork of it ended."""
        fork = os.fork()
        if not fork:
            os.abort()
        return Observed({"process": os.getpid(), "fork": os.waitpid(fork, 0)[1]}, nodes=1)


class Stubborn(Doubling):
    """Fails while it is closed."""

    def close(self) -> None:
        """No."""
        raise OSError("device lost")


class Lingering(Doubling):
    """Is never done with closing."""

    def close(self) -> None:
        """Not within a minute."""
        time.sleep(60)


class Writer(Doubling):
    """Changes what it is fed."""

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Doubles in place."""
        x = feeds["x"]
        x *= 2
        return {"y": x}


def nothing() -> None:
    """Prepares nothing."""


def refuse() -> Session:
    """A session that cannot be loaded."""
    raise NotAvailable("no such device", remedy="buy one")


def raise_foreign() -> Session:
    """Another one."""
    raise Misfit("broken artifact")


def no_session() -> Any:
    """None at all."""
    return 7


def die() -> Session:
    """Ends its process."""
    calls.segfault()


def hang() -> Session:
    """Never returns."""
    time.sleep(600)
    raise AssertionError


def twice_at_most(mark: str) -> Session:
    """A session for the first two processes; every later one dies of it."""
    with open(mark, "a") as file:
        file.write(".")
    if len(Path(mark).read_text()) > 2:
        calls.segfault()
    return Doubling()


def short_lived() -> Session:
    """A session whose process ends by itself a moment later."""
    threading.Timer(0.1, os._exit, [5]).start()
    return Doubling()


class FrailOptions(BaseModel):
    """How loading goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mark: str = ""
    """A file: whoever loads while it is there dies."""


class Frail(Adapter):
    """Doubles, and goes wrong at marks."""

    hardware: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "frail"
    aliases: ClassVar[tuple[str, ...]] = ("weak",)
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32})
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.BOUND)
    Options: ClassVar[type[BaseModel]] = FrailOptions

    def select_operators(self, model: Model, context: Context) -> Selection:
        """All."""
        takes = [node.op == "Mul" for node in model.graph.nodes]
        return Selection(tuple(Verdict.yes() if taken else Verdict.no("it only doubles") for taken in takes))

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """A file of its own."""
        (context.work / "compiled.bin").write_bytes(bytes(1000))
        inputs, outputs = (tuple(v.name for v in vs) for vs in (model.graph.input_values, model.graph.output_values))
        return Artifact(self.name(), "onnx", {"compiled": context.work / "compiled.bin"}, inputs, outputs)

    def load(self, artifact: Artifact, context: Context) -> Session:
        """Unless the mark is there."""
        assert artifact.files["compiled"].stat().st_size == 1000
        options = self.config.options
        assert isinstance(options, FrailOptions)
        if options.mark and Path(options.mark).exists():
            calls.segfault()
        return Doubling(artifact.outputs)


class Sole(Frail):
    """Needs a process of its own."""

    backend: ClassVar[str] = "sole"
    aliases: ClassVar[tuple[str, ...]] = ()
    process: ClassVar[Process] = Process.EXCLUSIVE


class Calm(Frail):
    """Doubles in this process whatever the mark; counts."""

    backend: ClassVar[str] = "calm"
    aliases: ClassVar[tuple[str, ...]] = ()
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.REENTRANT)
    Options: ClassVar[type[BaseModel]] = FrailOptions

    def select_operators(self, model: Model, context: Context) -> Selection:
        """All, whatever they are."""
        return Selection(tuple(Verdict.yes() for _ in model.graph.nodes))

    def load(self, artifact: Artifact, context: Context) -> Session:
        """Unharmed."""
        return Steady(artifact.outputs)


class Steady(Session):
    """Doubles."""

    def __init__(self, outputs: Sequence[str]) -> None:
        self._outputs = tuple(outputs)

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Doubled."""
        x = next(iter(feeds.values()))
        RESCUED.append(float(x.flat[0]))
        return {name: 2 * x for name in self._outputs if outputs is None or name in outputs}

    def close(self) -> None:
        """Notes it."""
        RESCUED.append(-1.0)


RESCUED: list[float] = []
"""The marks of the requests that `Calm` answered in this process."""
EVENTS: list[Event] = []


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """All of them."""
    return [Frail, Sole, Calm]


@hookimpl
def paddock_observe(event: Event) -> None:
    """Keeps it."""
    EVENTS.append(event)
