"""More adapters for the conformance kit to find out: sessions side by side, buffers, counts, and who judges whom.

Importable by child processes under this name, and made as those of `paddock_broken` are.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from paddock.child import Children
from paddock.model import Model
from paddock.plan import PrecisionPlan, Verdict
from paddock.registry import Registered
from paddock.spi import (
    Arrays,
    Artifact,
    Concurrency,
    Context,
    Devices,
    Footprint,
    Observed,
    ReferenceRole,
    SegmentPlan,
    Selection,
    Session,
    Threading,
    other_shape,
)
from paddock.testing.bench import Bench
from paddock.testing.outcomes import Result
from paddock.testing.runner import Runner, checks_for
from paddock_broken import OPERATORS, GoodAdapter, GoodSession, Options, Outputs
from pydantic import BaseModel


def _through(scratch: dict[Any, Any], feeds: Arrays) -> dict[str, Any]:
    """The feeds as they are found in a scratch buffer a moment after they were written there."""
    for name, array in feeds.items():
        scratch[name, array.shape] = array.copy()
    time.sleep(0.0005)
    return {name: scratch[name, array.shape] for name, array in feeds.items()}


class SharesScratch(GoodAdapter):
    """One scratch buffer for all sessions of the process."""

    caught_by: ClassVar[tuple[str, ...]] = ("concurrency.sessions_at_once",)

    class Kind(GoodSession):
        scratch: ClassVar[dict[Any, Any]] = {}

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            return super().compute(_through(self.scratch, feeds), names)


class SharesScratchBound(SharesScratch):
    """The same where each session is bound to a thread of its own."""

    concurrency: ClassVar[Concurrency] = Concurrency(Threading.BOUND)


class ForksShareScratch(GoodAdapter):
    """A scratch buffer for each artifact that is loaded, also for the session's forks."""

    caught_by: ClassVar[tuple[str, ...]] = ("concurrency.sessions_at_once",)

    class Kind(GoodSession):
        scratch: dict[Any, Any]

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            return super().compute(_through(self.__dict__.setdefault("scratch", {}), feeds), names)

        def fork(self) -> Session | None:
            forked = type(self)(self.artifact, self.options)
            forked.scratch = self.__dict__.setdefault("scratch", {})
            return forked


class ModelsShareScratch(GoodAdapter):
    """What is computed last lies in one place, until another model's session fills it: two models are one too many."""

    caught_by: ClassVar[tuple[str, ...]] = ("concurrency.sessions_at_once",)

    class Kind(GoodSession):
        running: ClassVar[str] = ""

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            own = type(self).running = str(self.artifact.files["model"])
            found = super().compute(feeds, names)
            time.sleep(0.0005)
            right = type(self).running == own
            return {n: a if right else np.zeros_like(a) for n, a in found.items()}


class RunIntoRaises(GoodAdapter):
    """Has a way into arrays, and it does not work."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.run_into", "contract.deploys")

    class Kind(GoodSession):
        def run_into(self, feeds: Arrays, into: Arrays) -> None:
            raise RuntimeError("not implemented on this device")


class RunIntoForgetsARow(GoodAdapter):
    """Leaves the last row as it was."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.run_into",)

    class Kind(GoodSession):
        def run_into(self, feeds: Arrays, into: Arrays) -> None:
            for name, array in self.run(feeds, tuple(into)).items():
                if array.shape != into[name].shape:
                    raise other_shape(name, into[name].shape, array.shape)
                into[name][: max(1, len(array) - 1)] = array[: max(1, len(array) - 1)]


class RunIntoWrongWhereLarge(GoodAdapter):
    """Copies what is small, and writes what is large itself, in halves."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.run_into",)

    class Kind(GoodSession):
        def run_into(self, feeds: Arrays, into: Arrays) -> None:
            super().run_into(feeds, into)
            for array in into.values():
                if array.nbytes > 128 << 10:
                    array[...] *= array.dtype.type(0.5)


class RunIntoWritesBeyond(GoodAdapter):
    """Writes whole vectors of eight."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.run_into",)

    class Kind(GoodSession):
        def run_into(self, feeds: Arrays, into: Arrays) -> None:
            super().run_into(feeds, into)
            for array in into.values():
                whole = np.lib.stride_tricks.as_strided(array, (array.size + 1,), (array.itemsize,), writeable=True)
                whole[-1] = 7


class RunIntoTakesAnyShape(GoodAdapter):
    """Writes into the front of an array that is too large, and says nothing."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.run_into",)

    class Kind(GoodSession):
        def run_into(self, feeds: Arrays, into: Arrays) -> None:
            for name, array in self.run(feeds, tuple(into)).items():
                into[name].reshape(-1)[: array.size] = array.reshape(-1)


class BindsOnce(GoodAdapter):
    """Reads what is bound when it is bound, and never again."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.bind",)

    class Kind(GoodSession):
        once: Mapping[str, Any] = {}

        def bind(self, buffers: Arrays) -> frozenset[str]:
            self.once = {n: np.array(a) for n, a in buffers.items() if n in self.artifact.inputs}
            return frozenset(self.once)

        def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
            return super().run({**self.once, **feeds}, outputs)


class BindsAndGives(GoodAdapter):
    """Says that it writes the outputs where they were bound, and returns them as before."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.bind",)

    class Kind(GoodSession):
        def bind(self, buffers: Arrays) -> frozenset[str]:
            return frozenset(n for n in buffers if n in self.artifact.outputs)


class CachesByAddress(GoodAdapter):
    """Takes an array to the device once for each place where one lies."""

    caught_by: ClassVar[tuple[str, ...]] = ("bad_input.read_anew",)

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            there = self.__dict__.setdefault("there", {})
            keys = {name: (array.ctypes.data, array.shape) for name, array in feeds.items()}
            for name, array in feeds.items():  # the array itself is kept, so that its place is not taken by another
                there.setdefault(keys[name], (array, array.copy()))
            return super().compute({name: there[key][1] for name, key in keys.items()}, names)


class DisturbedByLoads(GoodAdapter):
    """Loading takes the weights through a buffer that running sessions read."""

    caught_by: ClassVar[tuple[str, ...]] = ("concurrency.loads_at_once",)

    class Kind(GoodSession):
        loading: ClassVar[int] = 0

        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            type(self).loading += 1
            time.sleep(0.01)
            super().__init__(artifact, options)
            type(self).loading -= 1

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            return {n: np.zeros_like(a) for n, a in found.items()} if self.loading else found


class LoadsMixed(GoodAdapter):
    """One builder for all that is loaded: of two at a time, both get the later one's program."""

    caught_by: ClassVar[tuple[str, ...]] = ("concurrency.loads_at_once",)
    building: ClassVar[list[Artifact]] = []

    def load(self, artifact: Artifact, context: Context) -> Session:
        self.building[:] = [artifact]
        time.sleep(0.005)
        return super().load(self.building[0], context)


class NoReason(GoodAdapter):
    """What it does not take it does not take."""

    caught_by: ClassVar[tuple[str, ...]] = ("operators.unknown", "honesty.claims")
    operators: ClassVar[frozenset[str]] = OPERATORS - {"Sigmoid"}

    def select_operators(self, model: Model, context: Context) -> Selection:
        verdicts = super().select_operators(model, context).verdicts
        return Selection(tuple(v if v.usable else Verdict.no("", "") for v in verdicts))


class _Turbo(Options):
    turbo: int = 1

    def __reduce__(self) -> Any:
        return type(self), ()


class DropsOptions(GoodAdapter):
    """What was set is back at its default in another process."""

    caught_by: ClassVar[tuple[str, ...]] = ("honesty.options",)
    Options: ClassVar[type[BaseModel]] = _Turbo


class KeepsThePath(GoodAdapter):
    """Refers to the user's file, and does not name it."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.loads_elsewhere",)

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        artifact = super().compile(model, plan, context)
        return replace(artifact, facts={**artifact.facts, "weights": str(model.files["model"])})

    def load(self, artifact: Artifact, context: Context) -> Session:
        Path(artifact.facts["weights"]).read_bytes()
        return super().load(artifact, context)


class TellsMoreThanPlanned(GoodAdapter):
    """The device's memory is planned at a third of what sessions tell that they take."""

    caught_by: ClassVar[tuple[str, ...]] = ("memory.planned",)

    @classmethod
    def probe_device(cls) -> Devices:
        (plain,) = super().probe_device().devices
        return Devices(Verdict.yes(), (replace(plain, memory=1 << 30, memory_kind="npu"),))

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint | None:
        return Footprint(process=0, session=16 << 20)

    class Kind(GoodSession):
        peak: ClassVar[int] = 48 << 20

        def observed(self) -> Observed:
            return Observed(super().observed().settings, peak_bytes=self.peak)


class TellsWhatIsPlanned(TellsMoreThanPlanned):
    """The same, and keeps to it."""

    class Kind(TellsMoreThanPlanned.Kind):
        peak: ClassVar[int] = 8 << 20


class _Counts(GoodSession):
    nodes: ClassVar[int] = 0

    def observed(self) -> Observed:
        return Observed(super().observed().settings, nodes=self.nodes)


class CountsNothing(GoodAdapter):
    """The device runs nothing, the host everything, and observed() says so."""

    caught_by: ClassVar[tuple[str, ...]] = ("operators.Sigmoid", "models.mlp")
    Kind: ClassVar[type[GoodSession]] = _Counts


class CountsTooMany(GoodAdapter):
    """More nodes than anything has."""

    caught_by: ClassVar[tuple[str, ...]] = ("operators.Sigmoid", "models.mlp")

    class Kind(_Counts):
        nodes: ClassVar[int] = 1_000_000


class CountsOne(GoodAdapter):
    """One node of many runs there; or all of them are merged into one: nobody can tell."""

    class Kind(_Counts):
        nodes: ClassVar[int] = 1


class Halved(GoodAdapter):
    """Every float is half of what it should be; and it would be the first to judge that, if it were asked."""

    caught_by: ClassVar[tuple[str, ...]] = ("operators.Sigmoid", "models.mlp")
    backend: ClassVar[str] = "halved"
    references: ClassVar[Mapping[str, ReferenceRole]] = {"onnx": ReferenceRole(-1)}

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            return {n: np.asarray(a * 0.5, a.dtype) if a.dtype.kind == "f" else a for n, a in found.items()}


class Friend(Halved):
    """What the vendor of `Halved` has it judged by."""

    backend: ClassVar[str] = "friend"
    references: ClassVar[Mapping[str, ReferenceRole]] = {"onnx": ReferenceRole(-2)}


SESSIONS: tuple[type[GoodAdapter], ...] = (
    SharesScratch, SharesScratchBound, ForksShareScratch, ModelsShareScratch, RunIntoRaises, RunIntoForgetsARow,
    RunIntoWrongWhereLarge, RunIntoWritesBeyond, RunIntoTakesAnyShape, BindsOnce, BindsAndGives, CountsNothing,
    CountsTooMany, Halved, CachesByAddress, DisturbedByLoads,
    LoadsMixed, NoReason, DropsOptions, KeepsThePath, TellsMoreThanPlanned,
)  # fmt: skip


def beside_a_friend(adapter: type[GoodAdapter], folder: Path, check: str) -> None:
    """One check where a reference of the vendor's own is installed as well; in a child."""
    with Children() as children:
        bench = Bench(adapter, folder / "bench", children)
        bench.registry.adapters[Friend.name()] = [Registered(Friend, "friends", "1", "0")]
        checks_for(adapter, bench.registry)[check].action(bench)


def with_few_files(adapter: type[GoodAdapter], names: Sequence[str], limit: int) -> list[Result]:
    """These checks where a process may have few files open; in a child."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with Runner(quick=True) as runner:
        return [runner.run(adapter, runner.table(adapter)[name]) for name in names]
