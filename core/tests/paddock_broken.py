"""Adapters for the conformance kit to be tested with: good ones, and one for each way of not keeping a promise.

Importable by child processes under this name. Each broken adapter differs from a good one in one thing, and names the
checks that have to find it out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import paddock_calls as calls
from paddock.child import Children
from paddock.errors import RunFailed
from paddock.model import Model
from paddock.plan import Means, Precision, PrecisionPlan, Verdict
from paddock.spi import (
    Adapter,
    Arrays,
    Artifact,
    Concurrency,
    Context,
    Footprint,
    Observed,
    Probe,
    SegmentPlan,
    Selection,
    Session,
    Shapes,
    Threading,
)
from paddock.testing import checks_models
from paddock.testing.bench import Bench
from paddock.testing.cases import node_cases
from paddock.testing.table import Evidence
from pydantic import BaseModel, ConfigDict

Outputs = dict[str, "np.ndarray[Any, Any]"]

_NAMES = """
    Abs Add ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Conv ConvTranspose DepthToSpace Div Erf Exp
    Flatten Floor Gather Gemm GlobalAveragePool GRU HardSwish Identity LayerNormalization LeakyRelu Less Log LSTM
    MatMul Max MaxPool Min Mul Neg Pad ReduceMax ReduceMean ReduceSum Relu Reshape Resize Sigmoid Slice Softmax Split
    Sqrt Squeeze Sub Tanh Tile Transpose Unsqueeze
"""
OPERATORS = frozenset(_NAMES.split())
NPU_OPERATORS = OPERATORS - {
    "ArgMax", "ConvTranspose", "Erf", "Exp", "GRU", "HardSwish", "Less", "Log", "LSTM", "Pad", "Resize", "Tile",
}  # fmt: skip


class Options(BaseModel):
    """One option, with an effect that can be seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Literal["plain", "careful"] = "plain"


class GoodSession(Session):
    """onnx's reference evaluator, its answers as the caller's own arrays."""

    def __init__(self, artifact: Artifact, options: BaseModel) -> None:
        from onnx.reference import ReferenceEvaluator

        self.artifact = artifact
        self.options = options
        self.evaluator: Any = ReferenceEvaluator(str(artifact.files["model"]))

    @property
    def operators(self) -> set[str]:
        """Those of the model."""
        return {node.op_type for node in self.evaluator.proto_.graph.node}

    def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
        """What the model answers."""
        if self.evaluator is None:
            raise RunFailed("the session is closed")
        with np.errstate(all="ignore"):
            found = self.evaluator.run(list(names), dict(feeds))
        kinds = self.artifact.facts["dtypes"]
        return {name: np.array(array, kinds[name], order="C") for name, array in zip(names, found, strict=True)}

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
        return self.compute(feeds, self.artifact.outputs if outputs is None else outputs)

    def close(self) -> None:
        self.evaluator = None

    def observed(self) -> Observed:
        return Observed({f"options.{k}": v for k, v in self.options.model_dump().items()})


class GoodAdapter(Adapter):
    """ONNX in fp32 at any shape, on the operators above."""

    hardware: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "good"
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32})
    shapes: ClassVar[Shapes] = Shapes.DYNAMIC
    plans_memory: ClassVar[bool] = False
    Options: ClassVar[type[BaseModel]] = Options
    operators: ClassVar[frozenset[str]] = OPERATORS
    Kind: ClassVar[type[GoodSession]] = GoodSession
    caught_by: ClassVar[tuple[str, ...]] = ()
    """Of a broken one: the checks that have to find it out, any one of them."""

    def select_operators(self, model: Model, context: Context) -> Selection:
        yes, no = Verdict.yes("in the table", "its table"), Verdict.no("not in the table", "its table")
        return Selection(tuple(yes if node.type in self.operators else no for node in model.graph.nodes))

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        from onnx import load

        graph = model.graph
        path = context.work / "model.bin"
        path.write_bytes(load(model.files["model"]).SerializeToString())  # with the weights that lie beside it
        inputs, outputs = (tuple(v.name for v in values) for values in (graph.input_values, graph.output_values))
        dtypes = {value.name: value.dtype for value in graph.output_values}
        return Artifact(self.name(), "onnx", {"model": path}, inputs, outputs, facts={"dtypes": dtypes})

    def load(self, artifact: Artifact, context: Context) -> Session:
        return self.Kind(artifact, self.config.options)


class NpuAdapter(GoodAdapter):
    """Static shapes, fp16 and nothing else, forty operators: as little as a small accelerator has."""

    hardware: ClassVar[str] = "npu"
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP16})
    shapes: ClassVar[Shapes] = Shapes.STATIC
    operators: ClassVar[frozenset[str]] = NPU_OPERATORS


GOOD: tuple[type[GoodAdapter], ...] = (GoodAdapter, NpuAdapter)
BROKEN: list[type[GoodAdapter]] = []


def lie(*caught_by: str) -> Any:
    """Registers a broken adapter, with the checks of which one has to find it out."""

    def register(adapter: type[GoodAdapter]) -> type[GoodAdapter]:
        adapter.caught_by = caught_by
        BROKEN.append(adapter)
        return adapter

    return register


# Operators and numbers.


@lie("operators.HardSwish")
class ClaimsWhatItLacks(GoodAdapter):
    """Says yes to an operator, and then cannot."""

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            if "HardSwish" in self.operators:
                raise NotImplementedError("no kernel for HardSwish")


@lie("operators.unknown")
class ClaimsEverything(GoodAdapter):
    """Says yes to whatever there is."""

    def select_operators(self, model: Model, context: Context) -> Selection:
        return Selection(tuple(Verdict.yes("of course") for _ in model.graph.nodes))


@lie("operators.Sigmoid")
class WrongOperator(GoodAdapter):
    """A fast sigmoid, as far off as such are."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            if "Sigmoid" not in self.operators:
                return found
            return {n: np.asarray(np.clip(a, 0.02, 0.98), a.dtype) for n, a in found.items()}


class _Ulp(GoodSession):
    def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
        found = super().compute(feeds, names)
        for array in found.values():
            if array.dtype.kind == "f":
                array[array > 1] = np.nextafter(array[array > 1], np.inf, dtype=array.dtype)
        return found


@lie("precision.exact.fp16")
class OneUlpFp16(NpuAdapter):
    """The last bit of fp16 is wrong where nothing is rounded."""

    Kind: ClassVar[type[GoodSession]] = _Ulp


@lie("operators.Relu", "precision.exact.fp32")
class OneUlpFp32(GoodAdapter):
    """The same in fp32."""

    Kind: ClassVar[type[GoodSession]] = _Ulp


@lie("bad_input.outputs")
class DropsAnOutput(GoodAdapter):
    """Only the first output is ever there."""

    class Kind(GoodSession):
        def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
            return super().run(feeds, list(outputs or self.artifact.outputs)[:1])


@lie("bad_input.outputs")
class GivesEveryOutput(GoodAdapter):
    """Whatever is asked for, everything is given."""

    class Kind(GoodSession):
        def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
            return super().run(feeds)


@lie("bad_input.outputs")
class SwapsOutputs(GoodAdapter):
    """Asked in another order, it gives the numbers of the first order."""

    class Kind(GoodSession):
        def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
            names = list(outputs or self.artifact.outputs)
            found = super().run(feeds, [n for n in self.artifact.outputs if n in names])
            return dict(zip(names, found.values(), strict=True))


@lie("models.mlp")
class IgnoresBatch(GoodAdapter):
    """Computes the first row, and gives it to every one."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            return {n: np.ascontiguousarray(np.broadcast_to(a[:1], a.shape)) for n, a in found.items()}


@lie("models.mlp")
class KeepsTheFirstBatch(GoodAdapter):
    """Answers every later batch at the size of the first one, as what was compiled for one size does."""

    class Kind(GoodSession):
        rows = 0

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            self.rows = self.rows or len(next(iter(found.values())))
            return {n: np.array(a[: self.rows]) for n, a in found.items()}


@lie("bad_input.odd_sizes")
class WrongAtOddSizes(GoodAdapter):
    """A vector loop that forgets the tail."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            for array in found.values():
                if array.size % 8 and array.size > 40:
                    array.reshape(-1)[array.size - array.size % 8 :] = 0
            return found


@lie("bad_input.extremes")
class CleansNan(GoodAdapter):
    """Makes zeros of what is no number."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            return {n: np.nan_to_num(a, posinf=np.inf, neginf=-np.inf) for n, a in found.items()}


@lie("operators.ArgMax", "bad_input.outputs")
class WideAnswers(GoodAdapter):
    """Answers in float64 and int32, whatever the graph states."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            return {n: a.astype(np.float64 if a.dtype.kind == "f" else np.int32) for n, a in found.items()}


# Arrays.


@lie("bad_input.feeds_only_read")
class WritesIntoFeeds(GoodAdapter):
    """Computes in place, in the caller's array."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            for array in feeds.values():
                if array.dtype.kind == "f":
                    np.abs(array, out=array)
            return found


@lie("bad_input.answers_are_the_callers")
class ReusesItsBuffer(GoodAdapter):
    """Returns a view of a buffer that the next run fills."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            kept = self.__dict__.setdefault("kept", {})
            for name, array in super().compute(feeds, names).items():
                place = kept.setdefault((name, array.shape), np.empty_like(array))
                place[...] = array
            return {n: a for (n, s), a in kept.items() if n in names}


@lie("bad_input.passed_through")
class GivesBackTheFeed(GoodAdapter):
    """What an operator only passes on is the caller's own memory."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            same = {
                n: next((f for f in feeds.values() if f.shape == a.shape and (f == a).all()), a)
                for n, a in found.items()
            }
            return dict(same)


@lie("models.repeats")
class DrawsRandomNumbers(GoodAdapter):
    """Rounds at random: never twice the same bits."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            rng = np.random.default_rng()
            return {n: np.asarray(a * (1 + 1e-7 * rng.standard_normal(a.shape)), a.dtype) for n, a in found.items()}


# Processes and threads.


@lie("models.mlp")
class HangsInRun(GoodAdapter):
    """Never comes back."""

    class Kind(GoodSession):
        def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
            time.sleep(600)
            return {}


@lie("models.mlp")
class SegfaultsInRun(GoodAdapter):
    """Ends the process."""

    class Kind(GoodSession):
        def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
            calls.segfault()
            return {}


@lie("concurrency.reload")
class SegfaultsOnReload(GoodAdapter):
    """The second load after a close ends the process."""

    class Kind(GoodSession):
        closed: ClassVar[int] = 0

        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            if type(self).closed > 1:
                calls.segfault()
            super().__init__(artifact, options)

        def close(self) -> None:
            type(self).closed += self.evaluator is not None
            super().close()


@lie("concurrency.close_twice")
class ClosesOnce(GoodAdapter):
    """Frees twice what it holds once."""

    class Kind(GoodSession):
        def close(self) -> None:
            if self.evaluator is None:
                raise RuntimeError("double free")
            super().close()


@lie("concurrency.another_thread")
class DeadlocksOnAnotherThread(GoodAdapter):
    """Waits for a lock that the first thread keeps."""

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            self.lock = threading.RLock()
            self.lock.acquire()

        def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
            with self.lock:
                return super().run(feeds, outputs)


@lie("concurrency.threads")
class NotReentrant(GoodAdapter):
    """Declares that any number of threads may run, and has one place for what is fed."""

    concurrency: ClassVar[Concurrency] = Concurrency(Threading.REENTRANT)

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            self.place = feeds
            time.sleep(0.0005)
            return super().compute(self.place, names)


@lie("concurrency.two_models")
class OneModelOnly(GoodAdapter):
    """What is loaded last answers for all."""

    class Kind(GoodSession):
        last: ClassVar[Any] = None

        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            GoodSession.last = self.evaluator  # type: ignore[attr-defined]

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            self.evaluator = GoodSession.last  # type: ignore[attr-defined]
            return super().compute(feeds, names)


@lie("concurrency.sessions")
class ClosesTheOthers(GoodAdapter):
    """Sessions share what the first to close frees."""

    class Kind(GoodSession):
        shared: ClassVar[dict[str, Any]] = {}

        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            self.key = str(artifact.files["model"])
            self.shared[self.key] = self.evaluator

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            self.evaluator = self.shared.get(self.key)
            return super().compute(feeds, names)

        def close(self) -> None:
            self.shared.pop(self.key, None)
            super().close()


@lie("concurrency.fork")
class ForksLooseThreads(GoodAdapter):
    """A fork that closes its original."""

    class Kind(GoodSession):
        def fork(self) -> Session | None:
            outer = self

            class Fork(GoodSession):
                def __init__(self) -> None:
                    self.__dict__.update(outer.__dict__)

                def close(self) -> None:
                    super().close()
                    outer.close()

            return Fork()


# Memory.

_HELD: list[Any] = []


@lie("soak.runs")
class LeaksRuns(GoodAdapter):
    """Keeps every answer."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            _HELD.extend(array.copy() for array in found.values())
            return found


@lie("soak.loads")
class LeaksLoads(GoodAdapter):
    """Keeps something of each session."""

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            _HELD.append(np.ones(6 << 20, np.uint8))


@lie("soak.loads")
class LeaksThreads(GoodAdapter):
    """Each session leaves a thread."""

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


@lie("soak.answers")
class DriftsAway(GoodAdapter):
    """Right until it has run a hundred times."""

    class Kind(GoodSession):
        runs = 0

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            self.runs += 1
            found = super().compute(feeds, names)
            return {n: a + 1 if self.runs > 100 else a for n, a in found.items()}


@lie("memory.planned")
class TakesMoreThanItSays(GoodAdapter):
    """States a footprint, and takes a hundred times that."""

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint | None:
        return Footprint(process=1 << 20, session=1 << 16)

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            self.ballast = np.ones(100 << 20, np.uint8)


# Declarations and the contract.


@lie("precision.keeps_bits.fp32", "precision.computed.fp32")
class ComputesInBf16(GoodAdapter):
    """Declares fp32, and cuts the operands of products."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            cut = {n: _cut(a) if a.dtype == np.float32 else a for n, a in feeds.items()}
            return super().compute(cut, names)


def _cut(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(np.ascontiguousarray(array).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@lie("precision.computed.bf16")
class SilentlyInFp32(GoodAdapter):
    """Declares bf16, and leaves everything as it is."""

    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.BF16})

    def means(self, precision: Precision) -> Means:
        return Means.BACKEND


class _Ignored(Options):
    speed: int = 1


@lie("honesty.options")
class IgnoresAnOption(GoodAdapter):
    """Declares an option that nothing reads."""

    Options: ClassVar[type[BaseModel]] = _Ignored

    class Kind(GoodSession):
        def observed(self) -> Observed:
            return Observed({"options.order": self.options.model_dump()["order"]})


class _Any(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


@lie("honesty.unknown_option")
class TakesAnyOption(GoodAdapter):
    """Misspelt options are fine."""

    Options: ClassVar[type[BaseModel]] = _Any


@lie("contract.probe")
class ProbeRaises(GoodAdapter):
    """Looks for an SDK as if it were there."""

    @classmethod
    def probe(cls) -> Probe:
        import os

        return Probe(Verdict.yes("found"), {"home": os.environ["HOME"]})


@lie("contract.probe")
class ProbeImportsTheSdk(GoodAdapter):
    """Imports what it only has to find."""

    @classmethod
    def probe(cls) -> Probe:
        import onnx

        return Probe(Verdict.yes("found"), {"onnx": onnx.__version__})


@lie("contract.selects_purely")
class ChangesItsMind(GoodAdapter):
    """Answers otherwise each time."""

    asked: ClassVar[int] = 0

    def select_operators(self, model: Model, context: Context) -> Selection:
        type(self).asked += 1
        found = super().select_operators(model, context).verdicts
        return Selection(tuple(replace(v, reason=f"asked {self.asked} times") for v in found))


@lie("contract.compiles_to_data")
class WritesIntoTheModel(GoodAdapter):
    """Marks the files that it has seen."""

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        artifact = super().compile(model, plan, context)
        if context.work.name == "compiled":  # not where the core itself would refuse it
            with model.files["model"].open("ab") as file:
                file.write(b"\x0a\x00")
        return artifact


@lie("contract.compiles_to_data")
class FactsThatAreNoJson(GoodAdapter):
    """Facts that come back as something else."""

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        artifact = super().compile(model, plan, context)
        return replace(artifact, facts={**artifact.facts, "shape": (1, 2)})


_COMPILED: dict[str, Mapping[str, Any]] = {}


@lie("contract.loads_elsewhere")
class LoadsOnlyHere(GoodAdapter):
    """Keeps in the process what it should have written."""

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        artifact = super().compile(model, plan, context)
        _COMPILED["dtypes"] = artifact.facts["dtypes"]
        return artifact

    def load(self, artifact: Artifact, context: Context) -> Session:
        if not _COMPILED:
            raise KeyError("dtypes")
        return super().load(artifact, context)


def few_cases(adapter: type[GoodAdapter], folder: Path, only: str) -> Evidence | None:
    """The check of ONNX's own node cases, on a few of them; in a child, since a bench takes its process over."""
    vars(checks_models)["node_cases"] = partial(node_cases, only)
    check = next(c for c in checks_models.OPERATORS.checks if c.name == "operators.onnx_cases")
    with Children() as children:
        return check.action(Bench(adapter, folder / "bench", children))
