"""Good adapters of many kinds, each of which the conformance kit once accused; importable by child processes.

`held_to` are the checks that did.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from paddock.errors import NotAvailable
from paddock.model import Model
from paddock.plan import Precision, Verdict
from paddock.samples import Sample
from paddock.spi import Arrays, Artifact, Context, Quantizer, SegmentPlan, Selection, Session, Shapes
from paddock_broken import GoodAdapter, GoodSession, Outputs
from pydantic import BaseModel

KINDS: list[type[Kind]] = []
_KEPT: list[threading.Thread] = []


class Kind(GoodAdapter):
    """One kind; those below."""

    held_to: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        KINDS.append(cls)


def _quantizing() -> list[Any]:
    """What onnx's evaluator has for other versions of the standard only."""
    import numpy as np
    from onnx.reference.op_run import OpRun

    def along(values: Any, x: Any, axis: int | None) -> Any:
        at = (1 if axis is None else axis) % x.ndim if x.ndim else 0
        return values.reshape([-1 if n == at else 1 for n in range(x.ndim)]) if np.ndim(values) else values

    def quantize(self: Any, x: Any, scale: Any, zero: Any, axis: int | None = None, **_: Any) -> tuple[Any]:
        limits, rounded = np.iinfo(zero.dtype), np.rint(x / along(scale, x, axis)) + along(zero, x, axis)
        return (np.clip(rounded, limits.min, limits.max).astype(zero.dtype),)

    def dequantize(self: Any, x: Any, scale: Any, zero: Any, axis: int | None = None, **_: Any) -> tuple[Any]:
        return ((x.astype(np.float32) - along(zero, x, axis).astype(np.float32)) * along(scale, x, axis),)

    made = {"QuantizeLinear": quantize, "DequantizeLinear": dequantize}
    return [type(name, (OpRun,), {"_run": run}) for name, run in made.items()]


class Int8Only(Kind):
    """As many accelerators of the edge."""

    held_to: ClassVar[tuple[str, ...]] = (
        "operators.MatMul", "operators.Conv", "operators.unknown", "models.mlp", "models.residual",
        "bad_input.odd_sizes", "concurrency.two_models", "soak.runs",
    )  # fmt: skip
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.INT8})
    shapes: ClassVar[Shapes] = Shapes.STATIC
    operators: ClassVar[frozenset[str]] = GoodAdapter.operators | {"QuantizeLinear", "DequantizeLinear"}
    quantizes_with: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            from onnx.reference import ReferenceEvaluator

            self.artifact, self.options = artifact, options
            self.evaluator = ReferenceEvaluator(str(artifact.files["model"]), new_ops=_quantizing())

    def quantizer(self, model: Model, samples: Sequence[Sample], work: Path) -> Quantizer:
        from paddock_onnxruntime.quantizer import OnnxRuntimeQuantizer

        return OnnxRuntimeQuantizer(model.files["model"], samples, work)


class BatchOfOne(Kind):
    """Takes no batch, and says so."""

    held_to: ClassVar[tuple[str, ...]] = (
        "models.any", "models.mlp", "operators.Relu", "bad_input.odd_sizes", "precision.computed.fp32",
    )  # fmt: skip
    shapes: ClassVar[Shapes] = Shapes.STATIC

    def select_operators(self, model: Model, context: Context) -> Selection:
        if all(value.shape and value.shape[0] == 1 for value in model.graph.input_values):
            return super().select_operators(model, context)
        no = Verdict.no("the device takes one row at a time", "the compiler")
        return Selection(tuple(no for _ in model.graph.nodes))


class FillsAPool(Kind):
    """A compiler that makes a thread for each request until it has eight."""

    held_to: ClassVar[tuple[str, ...]] = ("process.nothing_kept",)

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        if len(_KEPT) < 8:
            _KEPT.append(threading.Thread(target=threading.Event().wait, daemon=True))
            _KEPT[-1].start()
        return super().compile(model, plan, context)


class EndsLater(Kind):
    """A session's worker is told to end, and does when it next wakes."""

    held_to: ClassVar[tuple[str, ...]] = ("process.nothing_kept",)

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            self.end = threading.Event()
            threading.Thread(target=self.work, daemon=True).start()

        def work(self) -> None:
            """Until a second after the end."""
            self.end.wait()
            time.sleep(1)

        def close(self) -> None:
            super().close()
            self.end.set()


class RemembersRuns(Kind):
    """The last five hundred, for a profiler."""

    held_to: ClassVar[tuple[str, ...]] = ("soak.kept",)

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            self.history: deque[bytearray] = deque(maxlen=500)

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            self.history.append(bytearray(3000))
            return super().compute(feeds, names)


class FourContexts(Kind):
    """The device has four; a fifth session is refused."""

    held_to: ClassVar[tuple[str, ...]] = (
        "contract.bind", "concurrency.sessions_at_once", "concurrency.sessions", "concurrency.two_models",
        "concurrency.close_twice", "contract.deploys",
    )  # fmt: skip
    free: ClassVar[list[int]] = [0, 1, 2, 3]

    class Kind(GoodSession):
        context: int | None = None

        def close(self) -> None:
            super().close()
            if self.context is not None:
                FourContexts.free.append(self.context)
                self.context = None

    def load(self, artifact: Artifact, context: Context) -> Session:
        if not self.free:
            raise NotAvailable("the device has four contexts, and all are in use")
        session = self.Kind(artifact, self.config.options)
        session.context = self.free.pop()
        return session


class ImportsInLoad(Kind):
    """A module of its SDK that is imported late sets a variable where nobody has."""

    held_to: ClassVar[tuple[str, ...]] = ("process.undisturbed",)

    def load(self, artifact: Artifact, context: Context) -> Session:
        import paddock_good_sdk

        assert os.environ["ACME_HOME"] == paddock_good_sdk.HOME
        return super().load(artifact, context)


class DrawsNumbers(Kind):
    """Python's global generator is there to be drawn from."""

    held_to: ClassVar[tuple[str, ...]] = ("process.undisturbed",)

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            import random

            for _ in range(100):
                random.random()
            return super().compute(feeds, names)
