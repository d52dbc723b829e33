"""Adapters with kernels that are right on the inputs that everybody tries first, and wrong beyond them.

Importable by child processes under this name. As in `paddock_broken`, each names the checks that find it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from paddock.plan import Means, Precision
from paddock.spi import Arrays, Artifact, Context, Session
from paddock_broken import GoodAdapter, GoodSession, Outputs
from pydantic import BaseModel

NUMBERS: list[type[GoodAdapter]] = []
Array = np.ndarray[Any, Any]
Kernel = Callable[..., "tuple[Array, ...]"]


def wrong(*caught_by: str) -> Any:
    """Registers a broken adapter, with the checks of which one has to find it out."""

    def register(adapter: type[GoodAdapter]) -> type[GoodAdapter]:
        adapter.caught_by = caught_by
        NUMBERS.append(adapter)
        return adapter

    return register


class WithKernels(GoodSession):
    """The evaluator with kernels of its own for some operators."""

    kernels: ClassVar[dict[str, Kernel]] = {}

    def __init__(self, artifact: Artifact, options: BaseModel) -> None:
        from onnx.reference import ReferenceEvaluator
        from onnx.reference.op_run import OpRun

        super().__init__(artifact, options)
        made = [type(name, (OpRun,), {"_run": run, "op_domain": ""}) for name, run in self.kernels.items()]
        self.evaluator = ReferenceEvaluator(str(artifact.files["model"]), new_ops=made)


def _gemm(a: Array, b: Array, c: Array | None, alpha: float, across: int | None = None) -> Array:
    y = np.float32(alpha) * (a[:, :across] @ b[:across])
    return np.asarray(y if c is None else y + c, a.dtype)


@wrong("operators.Gemm, wide", "bad_input.odd_sizes")
class EightRowsOnly(GoodAdapter):
    """A tile of eight rows: what lies beyond is left zero."""

    class Kind(WithKernels):
        def gemm(self, a: Array, b: Array, c: Any = None, alpha: float = 1.0, **rest: Any) -> tuple[Array, ...]:
            y = _gemm(a, b, c, alpha)
            y[8:] = 0
            return (y,)

        kernels: ClassVar[dict[str, Kernel]] = {"Gemm": gemm}


@wrong("operators.MatMul, wide", "models.wide")
class SumsSixtyFour(GoodAdapter):
    """Sums at most 64 products."""

    class Kind(WithKernels):
        def matmul(self, a: Array, b: Array) -> tuple[Array, ...]:
            return (np.matmul(a[..., :64], b[..., :64, :]),)

        kernels: ClassVar[dict[str, Kernel]] = {"MatMul": matmul}


@wrong("operators.Conv, dilated")
class NoDilations(GoodAdapter):
    """Dilations are ignored; the shape is kept."""

    class Kind(WithKernels):
        def conv(self, x: Array, w: Array, b: Any = None, **attributes: Any) -> tuple[Array, ...]:
            from onnx.reference.ops.op_conv import _conv_implementation

            names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
            given = {name: attributes.get(name) for name in names}
            if any(d > 1 for d in given["dilations"] or ()):
                given |= {"dilations": None, "pads": [1, 1, 1, 1]}
            return (_conv_implementation(x, w, b, *given.values()).astype(x.dtype),)

        kernels: ClassVar[dict[str, Kernel]] = {"Conv": conv}


@wrong("operators.Concat, negative axis")
class JoinsTheFirstAxis(GoodAdapter):
    """A negative axis is taken for the second one."""

    class Kind(WithKernels):
        def concat(self, *args: Array, axis: int = 0) -> tuple[Array, ...]:
            found = np.concatenate(args, axis)
            return (found[..., ::-1].copy() if axis < 0 else found,)

        kernels: ClassVar[dict[str, Kernel]] = {"Concat": concat}


@wrong("operators.Gather, negative indices")
class NoNegativeIndices(GoodAdapter):
    """Indices below zero are zero."""

    class Kind(WithKernels):
        def gather(self, x: Array, indices: Array, axis: int = 0) -> tuple[Array, ...]:
            return (np.take(x, np.maximum(indices, 0), axis or 0),)

        kernels: ClassVar[dict[str, Kernel]] = {"Gather": gather}


@wrong("operators.Add, left broadcast")
class BroadcastsTheRight(GoodAdapter):
    """Only the second operand may be the smaller one."""

    class Kind(WithKernels):
        def add(self, a: Array, b: Array) -> tuple[Array, ...]:
            whole = np.broadcast_shapes(a.shape, b.shape)
            return (np.asarray(a + b if a.shape == whole else np.zeros(whole), a.dtype),)

        kernels: ClassVar[dict[str, Kernel]] = {"Add": add}


@wrong("operators.Softmax, far apart")
class OverflowsInSoftmax(GoodAdapter):
    """The largest is not taken away first."""

    class Kind(WithKernels):
        def softmax(self, x: Array, axis: int = -1) -> tuple[Array, ...]:
            with np.errstate(all="ignore"):
                e = np.exp(x)
                return (np.asarray(e / e.sum(axis=-1 if axis is None else axis, keepdims=True), x.dtype),)

        kernels: ClassVar[dict[str, Kernel]] = {"Softmax": softmax}


@wrong("operators.LayerNormalization, far from zero")
class CancelsVariance(GoodAdapter):
    """The variance as the mean of squares less the square of the mean."""

    class Kind(WithKernels):
        def normed(self, x: Array, s: Array, b: Any = None, **attributes: Any) -> tuple[Array, ...]:
            mean = x.mean(-1, keepdims=True, dtype=np.float32)
            spread = (x * x).mean(-1, keepdims=True, dtype=np.float32) - mean * mean
            y = (x - mean) / np.sqrt(np.maximum(spread, 0) + np.float32(1e-5)) * s
            return (np.asarray(y if b is None else y + b, x.dtype),)

        kernels: ClassVar[dict[str, Kernel]] = {"LayerNormalization": normed}


@wrong("operators.Transpose, large integers")
class CutsIntegers(GoodAdapter):
    """Integers have 32 bits inside."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            cut = {n: a.astype(np.int32).astype(np.int64) if a.dtype == np.int64 else a for n, a in feeds.items()}
            return super().compute(cut, names)


@wrong("operators.Gemm, many rows", "operators.MatMul, whole tiles")
class ForgetsTheLastTile(GoodAdapter):
    """Beyond 128 rows, what fills no tile is left zero."""

    class Kind(WithKernels):
        def gemm(self, a: Array, b: Array, c: Any = None, alpha: float = 1.0, **rest: Any) -> tuple[Array, ...]:
            y = _gemm(a, b.T if rest.get("transB") else b, c, alpha)
            y[len(y) // 128 * 128 or None :] = 0
            return (y,)

        def matmul(self, a: Array, b: Array) -> tuple[Array, ...]:
            y = np.matmul(a, b)
            rows = y.reshape(-1, y.shape[-1])
            rows[len(rows) // 128 * 128 or None :] = 0
            return (y,)

        kernels: ClassVar[dict[str, Kernel]] = {"Gemm": gemm, "MatMul": matmul}


@wrong("operators.MatMul, whole tiles", "precision.keeps_bits.fp32")
class NarrowWholeTiles(GoodAdapter):
    """Products of whole tiles are computed on units for fp16."""

    class Kind(WithKernels):
        def matmul(self, a: Array, b: Array) -> tuple[Array, ...]:
            if any(extent % 64 for extent in b.shape[-2:]):
                return (np.matmul(a, b),)
            return (np.matmul(a.astype(np.float16).astype(a.dtype), b),)

        kernels: ClassVar[dict[str, Kernel]] = {"MatMul": matmul}


@wrong("operators.Gemm, square weights transposed")
class ForgetsToTranspose(GoodAdapter):
    """Weights are turned where their shape says that they have to be."""

    class Kind(WithKernels):
        def gemm(self, a: Array, b: Array, c: Any = None, alpha: float = 1.0, **rest: Any) -> tuple[Array, ...]:
            turned = (a.T if rest.get("transA") else a), (b if a.shape[-1] == b.shape[0] else b.T)
            return (_gemm(*turned, None if c is None else rest.get("beta", 1.0) * c, alpha),)

        kernels: ClassVar[dict[str, Kernel]] = {"Gemm": gemm}


@wrong("operators.Add, channels")
class SpreadsChannels(GoodAdapter):
    """A number for each channel is shifted by one beside four dimensions, as where channels stand last."""

    class Kind(WithKernels):
        def add(self, a: Array, b: Array) -> tuple[Array, ...]:
            return (a + (np.roll(b, 1, 0) if a.ndim == 4 and b.ndim == 3 else b),)

        kernels: ClassVar[dict[str, Kernel]] = {"Add": add}


@wrong("operators.MaxPool, padded")
class PadsWithZeros(GoodAdapter):
    """The padding of a maximum is zero."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            return {n: np.maximum(a, 0) for n, a in found.items()} if self.operators == {"MaxPool"} else found


@wrong("operators.AveragePool, padded")
class CountsThePadding(GoodAdapter):
    """Averages count the padding, whether they should or not."""

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            from onnx import helper
            from onnx.reference import ReferenceEvaluator

            super().__init__(artifact, options)
            model = self.evaluator.proto_
            for node in model.graph.node:
                if node.op_type == "AveragePool" and not any(a.name == "count_include_pad" for a in node.attribute):
                    node.attribute.append(helper.make_attribute("count_include_pad", 1))
            self.evaluator = ReferenceEvaluator(model)


@wrong("operators.Softmax, first axis")
class SoftmaxOfTheLastAxis(GoodAdapter):
    """The first axis is taken for the last one."""

    class Kind(WithKernels):
        def softmax(self, x: Array, axis: int = -1) -> tuple[Array, ...]:
            e = np.exp(x - x.max(axis or -1, keepdims=True))
            return (np.asarray(e / e.sum(axis or -1, keepdims=True), x.dtype),)

        kernels: ClassVar[dict[str, Kernel]] = {"Softmax": softmax}


@wrong("operators.Less")
class AllBitsAreTrue(GoodAdapter):
    """A comparison gives a byte of ones, handed out as a boolean."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            return {n: (a.view(np.uint8) * 255).view(bool) if a.dtype == bool else a for n, a in found.items()}


@wrong("operators.Add, large integers", "operators.Less, large integers", "operators.ReduceSum, large integers")
class CutsWhatItAdds(GoodAdapter):
    """Integers are moved with 64 bits, and computed with 32."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            if self.operators == {"Transpose"}:
                return super().compute(feeds, names)
            cut = {n: a.astype(np.int32).astype(np.int64) if a.dtype == np.int64 else a for n, a in feeds.items()}
            return super().compute(cut, names)


@wrong("models.two_by_two", "bad_input.outputs")
class OutputsByTheAlphabet(GoodAdapter):
    """Takes the outputs in the order in which the SDK lists them."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, self.artifact.outputs)
            listed = dict(zip(self.artifact.outputs, (found[n] for n in sorted(found)), strict=True))
            return {name: listed[name] for name in names}


@wrong("bad_input.not_a_number")
class CleansFeeds(GoodAdapter):
    """What is no number is added as zero."""

    class Kind(WithKernels):
        def add(self, a: Array, b: Array) -> tuple[Array, ...]:
            return (np.nan_to_num(a) + np.nan_to_num(b),)

        kernels: ClassVar[dict[str, Kernel]] = {"Add": add}


@wrong("bad_input.not_a_number")
class CleansProducts(GoodAdapter):
    """What is computed of no number in a product or a normalisation is zero."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            cleaned = self.operators & {"Gemm", "Conv", "Softmax", "LayerNormalization"}
            return {n: np.nan_to_num(a, posinf=np.inf, neginf=-np.inf) if cleaned else a for n, a in found.items()}


class Saturates(GoodAdapter):
    """What overflows is the largest number there is: to be told, and no defect."""

    class Kind(WithKernels):
        def add(self, a: Array, b: Array) -> tuple[Array, ...]:
            return (np.nan_to_num(a + b, nan=np.nan) if a.dtype == np.float32 else a + b,)

        kernels: ClassVar[dict[str, Kernel]] = {"Add": add}


# Precisions.


@wrong("precision.computed.fp16")
class WrongInFp16(GoodAdapter):
    """Right in fp32; in fp16 convolutions answer zeros."""

    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.FP16})
    spoiled: ClassVar[frozenset[str]] = frozenset({"Conv"})

    class Kind(GoodSession):
        spoiled: frozenset[str] = frozenset()

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            return {n: np.zeros_like(a) for n, a in found.items()} if self.operators & self.spoiled else found

    def load(self, artifact: Artifact, context: Context) -> Session:
        session = self.Kind(artifact, self.config.options)
        if self.config.precision is Precision.FP16:
            session.spoiled = self.spoiled
        return session


@wrong("precision.operators.fp16")
class TanhInFp16(WrongInFp16):
    """The same of an operator that stands in no whole model."""

    spoiled: ClassVar[frozenset[str]] = frozenset({"Tanh"})


@wrong("precision.steps.int8")
class StoresInt8(GoodAdapter):
    """Says int8, and multiplies what is in float32."""

    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.INT8})

    def means(self, precision: Precision) -> Means:
        return Means.BACKEND
