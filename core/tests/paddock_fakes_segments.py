"""A plugin whose adapters compute ONNX segments themselves, and misbehave at nodes that its options name.

Importable by child processes under this name. What happens in this process can be watched through `WATCH`.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import paddock_calls as calls
from onnx import TensorProto, helper, numpy_helper
from paddock.cache import Store
from paddock.errors import RunFailed, Unsupported
from paddock.model import Model
from paddock.plan import Means, Precision, Remedy, Verdict
from paddock.registry import Registry
from paddock.spi import (
    Adapter,
    Arrays,
    Artifact,
    Concurrency,
    Context,
    Event,
    Observed,
    Quantizer,
    SegmentPlan,
    Selection,
    Session,
    Threading,
    hookimpl,
)
from pydantic import BaseModel, ConfigDict

Array = np.ndarray[Any, Any]

OPERATORS: Mapping[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "MatMul": np.matmul,
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0),
    "Identity": np.copy,
}
KERNELS: Mapping[str, Callable[..., Array]] = {
    **OPERATORS,
    "QuantizeLinear": lambda x, step, zero: np.clip(np.rint(x / step), -128, 127).astype(zero.dtype),
    "DequantizeLinear": lambda x, step, zero: x.astype(step.dtype) * step,
}
"""What sessions compute; selection says yes to the former, and to what an adapter names beside them."""


@dataclass
class Watch:
    """What sessions in this process do, and where they meet."""

    barrier: threading.Barrier | None = None
    """Where nodes of the option `meet` wait for each other."""
    events: list[Event] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """The facts of all events of one kind."""
        return [event.facts for event in self.events if event.kind == kind]


WATCH = Watch()


class OddOptions(BaseModel):
    """Nodes by name, operators by type, values by name, and what goes wrong there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    refuses: tuple[str, ...] = ()
    """Operator types that selection says no to."""
    claims: tuple[str, ...] = ()
    """Operator types that selection says yes to beside the table, though no session computes them."""
    refuses_border: tuple[str, ...] = ()
    """Values that a session cannot be fed: the nodes that read them are then refused."""
    unsupported: tuple[str, ...] = ()
    """Nodes that only compilation refuses."""
    unsupported_index: int | None = None
    wrong_types: tuple[str, ...] = ()
    wrong_nodes: tuple[str, ...] = ()
    wrong_narrow: tuple[str, ...] = ()
    """Nodes that are wrong in any precision but fp32."""
    wrong_beside: Mapping[str, str] = {}
    """Nodes that are wrong where a certain other node is in the same session."""
    crash_load: tuple[str, ...] = ()
    crash_run: tuple[str, ...] = ()
    raise_run: tuple[str, ...] = ()
    fail_run: tuple[str, ...] = ()
    """Nodes at which the session raises a RunFailed of its own."""
    fail_close: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    """Outputs that the session forgets."""
    garbage: tuple[str, ...] = ()
    """Nodes whose session answers with a list."""
    defect_nodes: tuple[str, ...] = ()
    defect_index: int | None = None
    defect_refuses: bool = False
    meet: tuple[str, ...] = ()
    log: str = ""
    """A file that gets a line for each compilation."""
    level: int = 0
    levels: tuple[int, ...] = ()


class Odd(Adapter):
    """Computes with NumPy, node by node."""

    hardware: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "odd"
    aliases: ClassVar[tuple[str, ...]] = ("strange",)
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.FP16})
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.REENTRANT)
    Options: ClassVar[type[BaseModel]] = OddOptions
    more: ClassVar[tuple[str, ...]] = ()
    """Operators that it takes beside the table."""

    @property
    def manners(self) -> OddOptions:
        """What goes wrong."""
        assert isinstance(self.config.options, OddOptions)
        return self.config.options

    def means(self, precision: Precision) -> Means:
        """A setting of its own, which it only notes."""
        return Means.BACKEND

    def select_operators(self, model: Model, context: Context) -> Selection:
        """Yes for the operators of the table, unless the options say otherwise."""
        graph, manners = model.graph, self.manners
        banned = {i for i in graph.inputs if graph.values[i].name in manners.refuses_border}
        found = []
        for node in graph.nodes:
            if node.type not in (*OPERATORS, *self.more, *manners.claims) or node.type in manners.refuses:
                found.append(Verdict.no(f"no kernel for {node.type}", "the odd table"))
            elif banned & set(node.inputs):
                found.append(Verdict.no("cannot be fed that value", "the odd border"))
            else:
                found.append(Verdict.yes("in the table", "the odd table"))
        return Selection(tuple(found))

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """The one that the options describe."""
        manners = self.manners
        nodes = tuple(n.index for n in model.graph.nodes if n.name in manners.defect_nodes)
        nodes += (manners.defect_index,) if manners.defect_index is not None else ()
        if not nodes and not manners.defect_refuses:
            return ()
        return [Remedy("odd-1", "computes it oddly", "kept off", True, "a test", nodes, manners.defect_refuses)]

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """Refers to the model's files."""
        manners = self.manners
        if manners.log:
            with open(manners.log, "a") as log:
                log.write(f"{[node.name for node in model.graph.nodes]}\n")
        refused = [n.index for n in model.graph.nodes if n.name in manners.unsupported]
        if refused or manners.unsupported_index is not None:
            raise Unsupported(refused or [manners.unsupported_index or 0], "the odd compiler has no such kernel")
        inputs, outputs = (tuple(v.name for v in vs) for vs in (model.graph.input_values, model.graph.output_values))
        return Artifact(self.name(), "onnx", model.files, inputs, outputs)

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A session, or the end of the process."""
        proto = onnx.load(artifact.files["model"])
        if any(node.name in self.manners.crash_load for node in proto.graph.node):
            calls.segfault()
        return OddSession(proto, self.manners, self.config.precision.value)


class OddSession(Session):
    """Walks the nodes."""

    def __init__(self, proto: onnx.ModelProto, manners: OddOptions, precision: str) -> None:
        self._nodes = list(proto.graph.node)
        self._names = {node.name for node in self._nodes}
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        self._outputs = [value.name for value in proto.graph.output]
        self._manners = manners
        self._precision = precision

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs, with what the options spoil."""
        known: dict[str, Array] = {**self._constants, **feeds}
        for node in self._nodes:
            self._happen(node.name)
            read = [known[name] for name in node.input]
            answer = _cast(node, read[0]) if node.op_type == "Cast" else KERNELS[node.op_type](*read)
            known[node.output[0]] = answer + np.float32(0.5) if self._wrong(node) else answer
        if self._names & set(self._manners.garbage):
            return [known[name] for name in self._outputs]  # type: ignore[return-value]
        left = [name for name in self._outputs if name not in self._manners.leave_out]
        return {name: np.array(known[name]) for name in left if outputs is None or name in outputs}

    def close(self) -> None:
        """Notes it, and fails where it is told to."""
        WATCH.closed.append(",".join(sorted(self._names)))
        if self._names & set(self._manners.fail_close):
            raise OSError("device lost")

    def observed(self) -> Observed:
        """The precision asked for; the level only up to 3."""
        manners = self._manners
        settings: dict[str, Any] = {"precision": self._precision, "options.level": min(manners.level, 3)}
        if manners.levels:
            settings["options.levels"] = list(manners.levels)  # an answer that cannot be hashed
        return Observed(settings, nodes=len(self._nodes), peak_bytes=100)

    def _happen(self, name: str) -> None:
        manners = self._manners
        if name in manners.crash_run:
            calls.segfault()
        if name in manners.raise_run:
            raise ArithmeticError("odd arithmetic")
        if name in manners.fail_run:
            raise RunFailed("the odd session gives up")
        if name in manners.meet and WATCH.barrier is not None:
            WATCH.barrier.wait(timeout=20)

    def _wrong(self, node: onnx.NodeProto) -> bool:
        manners = self._manners
        if self._precision != "fp32" and node.name in manners.wrong_narrow:
            return True
        beside = manners.wrong_beside.get(node.name)
        return node.op_type in manners.wrong_types or node.name in manners.wrong_nodes or beside in self._names


def _cast(node: onnx.NodeProto, array: Array) -> Array:
    return array.astype(np.float16 if node.attribute[0].i == onnx.TensorProto.FLOAT16 else np.float32)


class NegOptions(OddOptions):
    """A fallback is given no options, so these are its manners: wrong at every Neg, and meeting at a node "meet"."""

    wrong_types: tuple[str, ...] = ("Neg",)
    meet: tuple[str, ...] = ("meet",)
    claims: tuple[str, ...] = ("ConcatFromSequence",)


class WrongAtNeg(Odd):
    """A fallback that is wrong itself."""

    backend: ClassVar[str] = "wrong-at-neg"
    aliases: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32})
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.SERIAL)
    Options: ClassVar[type[BaseModel]] = NegOptions


class Broken(Odd):
    """A fallback whose selection crashes."""

    backend: ClassVar[str] = "broken"
    aliases: ClassVar[tuple[str, ...]] = ()
    Options: ClassVar[type[BaseModel]] = OddOptions

    def select_operators(self, model: Model, context: Context) -> Selection:
        """Ends the process."""
        calls.abort()


class EightOptions(OddOptions):
    """How its quantiser misbehaves."""

    manner: str = ""


class Eight(Odd):
    """Brings a quantiser that, in all manners but "rounds", does not do what it should."""

    backend: ClassVar[str] = "eight"
    aliases: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.INT8})
    Options: ClassVar[type[BaseModel]] = EightOptions
    more: ClassVar[tuple[str, ...]] = ("QuantizeLinear", "DequantizeLinear")

    def means(self, precision: Precision) -> Means:
        """By its quantiser."""
        return Means.QUANTIZE

    def quantizer(self, model: Model, samples: Sequence[Arrays], work: Path) -> Quantizer:
        """One of that manner."""
        assert isinstance(self.config.options, EightOptions)
        return BadQuantizer(model, self.config.options.manner)


class BadQuantizer(Quantizer):
    """Writes the model as it is, or worse."""

    def __init__(self, model: Model, manner: str) -> None:
        self.path, self.manner = model.files["model"], manner

    def write(self, target: Path, keep: Collection[int] = ()) -> Any:
        """What the manner says."""
        if self.manner == "raises":
            raise RuntimeError("the vendor's library has no licence")
        if self.manner == "writes nothing":
            return ()
        proto = onnx.load(self.path)
        if self.manner == "another border":
            proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        if self.manner == "rounds":
            _round_inputs(proto)
        onnx.save(proto, target)
        if self.manner == "rounds":
            return ((), (), (0,), (1,))
        if self.manner == "writes rubbish":
            target.write_bytes(b"rubbish")
        traced: dict[str, Any] = {
            "traces rubbish": (("a",), ("b",)), "traces too few": ((0,),), "traces too far": ((0,), (9,)),
            "traces nothing": ((), ()),
        }  # fmt: skip
        return traced.get(self.manner, ((np.int64(0),), (1,)))


def _round_inputs(proto: onnx.ModelProto) -> None:
    """To int8 in sixteenths, in front of the first node."""
    first, graph = proto.graph.node[0], proto.graph
    graph.initializer.append(numpy_helper.from_array(np.array(1 / 16, np.float32), "step"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
    pair = [
        onnx.helper.make_node("QuantizeLinear", [first.input[0], "step", "zero"], ["rounded"], "q"),
        onnx.helper.make_node("DequantizeLinear", ["rounded", "step", "zero"], ["dequantised"], "d"),
    ]
    first.input[0] = "dequantised"
    nodes = [*pair, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


class NarrowOnly(Odd):
    """Computes in fp16 and in nothing else, like many an accelerator; Paddock casts for it."""

    hardware: ClassVar[str] = "npu"
    backend: ClassVar[str] = "narrow"
    aliases: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP16})
    more: ClassVar[tuple[str, ...]] = ("Cast",)

    def means(self, precision: Precision) -> Means:
        """By Paddock."""
        return Means.CAST


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """The odd ones."""
    return [Odd, WrongAtNeg, Broken, NarrowOnly, Eight]


@hookimpl
def paddock_observe(event: Event) -> None:
    """Keeps every event."""
    WATCH.events.append(event)


def save(
    path: Path,
    nodes: Sequence[tuple[str, str, str]],
    outputs: Sequence[str],
    shape: Sequence[int | str] = (2, 3),
    **constants: Array,
) -> Path:
    """A float32 model whose nodes are "NAME TYPE", "input names", "output name"; all values have one shape."""
    read = {name for _, inputs, _ in nodes for name in inputs.split()}
    made = {output for _, _, output in nodes}
    free = [name for name in sorted(read | set(outputs)) if name not in made and name not in constants]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in names]
        for names in (free, outputs)
    ]
    protos = [
        helper.make_node(label.split()[1], inputs.split(), [output], name=label.split()[0])
        for label, inputs, output in nodes
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(protos, "g", ends[0], ends[1], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def discover(folder: Path, others: Sequence[str] = ("reference", "onnxruntime", "openvino")) -> Registry:
    """These adapters and those of other plugins, with a store in `folder`."""
    installed = importlib.metadata.entry_points(group="paddock")
    points = [point for point in installed if point.name in others]
    points.append(importlib.metadata.EntryPoint("odd", __name__, "paddock"))
    found = Registry.discover(Store(folder), points)
    assert {"cpu/odd", *(f"cpu/{name}" for name in others)} <= set(found.names())
    return found
