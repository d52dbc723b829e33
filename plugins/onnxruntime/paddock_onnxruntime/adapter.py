"""`cpu/onnxruntime`: ONNX models on ONNX Runtime's CPU execution provider.

onnxruntime plans and optimises when a session is made, so there is little to compile: the artifact refers to the
model's own files and holds the dimensions that the config fixed. There is no option for denormals, since onnxruntime
takes `session.set_denormal_as_zero` from the first session of a process only, and for the thread that made it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from paddock.defects import load as load_defects
from paddock.defects import remedies
from paddock.errors import BuildFailed, RunFailed, StrictnessError, Unsupported
from paddock.model import Model
from paddock.plan import Answer, Precision, Remedy, Verdict
from paddock.spi import (
    Adapter,
    Arrays,
    Artifact,
    Concurrency,
    Context,
    Device,
    Devices,
    Observed,
    Probe,
    ReferenceRole,
    SegmentPlan,
    Selection,
    Session,
    Shapes,
    Threading,
)
from paddock.spi import Quantizer as SpiQuantizer
from pydantic import BaseModel, ConfigDict

from paddock_onnxruntime.operators import PROVIDER, Selector
from paddock_onnxruntime.precisions import computes_int8, precisions
from paddock_onnxruntime.quantizer import Quantizer

if TYPE_CHECKING:
    import numpy as np

INSTALL = "pip install paddock-onnxruntime[sdk]"

_LEVELS = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_SPINNING = "session.intra_op.allow_spinning"
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_EXACT = "session.x64quantprecision"
"""Without VNNI, products of uint8 and int8 saturate on the way unless this is set: wrong numbers, only faster."""
_FATAL = 4
"""onnxruntime's severity of messages that end the process; the others come back as exceptions as well."""
_BINDABLE = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("float16", "int8", "int16", "int32", "int64", "bool")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
}
"""onnxruntime's types that NumPy has as well; strings, bfloat16, sequences and maps are not bound."""


class OnnxRuntimeOptions(BaseModel):
    """The options of `cpu/onnxruntime`. Each is a setting of onnxruntime's session and is read back from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    graph_optimization: Literal["off", "basic", "extended", "all"] = "all"
    """How far onnxruntime rewrites the graph before it runs it."""
    spinning: bool | None = None
    """Whether idle threads spin: some 5 % faster alone, and 2 to 3 times slower for every other runtime in the
    process. Where it is left out, the host decides."""
    memory_arena: bool = True
    """Keep freed intermediates for the next run; without it memory falls back after each run, at some cost."""


class CpuOnnxRuntime(Adapter):
    """ONNX models on ONNX Runtime's CPU execution provider, in fp32."""

    hardware: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "onnxruntime"
    aliases: ClassVar[tuple[str, ...]] = ("ort",)
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset(Precision)
    shapes: ClassVar[Shapes] = Shapes.DYNAMIC
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.REENTRANT)
    references: ClassVar[Mapping[str, ReferenceRole]] = {
        "onnx": ReferenceRole(rank=1, options={"graph_optimization": "off"})
    }
    Options: ClassVar[type[BaseModel]] = OnnxRuntimeOptions

    @classmethod
    def probe(cls) -> Probe:
        """Whether onnxruntime and onnx are installed, from their metadata."""
        versions = {}
        for package in ("onnxruntime", "onnx"):
            try:
                if importlib.util.find_spec(package) is None:
                    raise importlib.metadata.PackageNotFoundError(package)
                versions[package] = importlib.metadata.version(package)
            except (importlib.metadata.PackageNotFoundError, ValueError):
                return Probe(Verdict.no(f"{package} is not installed", "package metadata"), versions, INSTALL)
        return Probe(Verdict.yes("installed", "package metadata"), versions)

    @classmethod
    def probe_device(cls) -> Devices:
        """The CPU, if this build of onnxruntime has its provider; imports onnxruntime."""
        import onnxruntime

        source = "onnxruntime.get_available_providers()"
        providers = list(onnxruntime.get_available_providers())
        if PROVIDER not in providers:
            return Devices(Verdict.no(f"this onnxruntime has only {', '.join(providers) or 'no provider'}", source))
        facts = {"providers": providers, "build": onnxruntime.get_build_info()}
        return Devices(Verdict.yes("", source), (Device(0, "CPU", precisions()),), facts)

    def select_operators(self, model: Model, context: Context) -> Selection:
        """A verdict for each node from onnxruntime's own kernel registry; nothing is built."""
        return Selection(Selector(model.graph, model.files["model"]).verdicts())

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """The forms of operators that onnxruntime computes wrongly, from defects.json."""
        versions = self.probe().versions
        return remedies(load_defects("paddock_onnxruntime"), model.graph, versions, self.config.precision)

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """Refers to the model's files. Where a verdict is provisional, a session is tried.

        Raises:
            Unsupported: onnxruntime refuses nodes that the registry could not answer for.
            StrictnessError: The plan asks for a precision that the options leave without effect.
        """
        if plan.precision.precision is Precision.INT8 and self._options.graph_optimization in ("off", "basic"):
            raise StrictnessError(
                "int8 has no effect with this graph_optimization: onnxruntime then dequantises and computes in float32",
                where="$.options.graph_optimization", candidates=["extended", "all"], remedy="leave it out",
            )  # fmt: skip
        graph = model.graph
        artifact = Artifact(
            adapter=self.name(),
            format=model.format,
            files=dict(model.files),
            inputs=tuple(value.name for value in graph.input_values),
            outputs=tuple(value.name for value in graph.output_values),
            bounds=dict(graph.bounds),
            facts={"fixed_dims": dict(graph.fixed), "drop_names": _named_twice(model)},
        )
        open_nodes = [i for i, verdict in enumerate(plan.verdicts) if verdict.answer is Answer.PROVISIONAL]
        if open_nodes:
            context.progress("onnxruntime: trying a session for the nodes its registry cannot answer for")
            try:
                self._session(artifact, optimization="off")
            except Exception as error:  # onnxruntime raises classes of its own that share only this base
                raise Unsupported(_blamed(model, open_nodes, str(error)), _short(error)) from error
        return artifact

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A session with the threads, spinning and options of the config; raises `BuildFailed`."""
        try:
            inner = self._session(artifact)
        except Exception as error:
            raise BuildFailed(
                f"onnxruntime cannot load the model: {_short(error)}", where=str(artifact.files["model"])
            ) from error
        return OnnxRuntimeSession(inner, artifact.outputs, self._options, self.config.precision)

    def quantizer(self, model: Model, samples: Sequence[Arrays], work: Path) -> SpiQuantizer:
        """onnxruntime's own: uint8 activations, int8 weights for each channel, as Q/DQ of plain ONNX."""
        return Quantizer(model.files["model"], samples, work)

    @property
    def _options(self) -> OnnxRuntimeOptions:
        options = self.config.options
        return options if isinstance(options, OnnxRuntimeOptions) else OnnxRuntimeOptions()

    def _session(self, artifact: Artifact, optimization: str | None = None) -> Any:
        import onnxruntime

        options = self._options
        spinning = self.config.spinning if options.spinning is None else options.spinning
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _FATAL
        settings.intra_op_num_threads = self.config.threads
        # One pool is the whole thread budget: nodes run one after another, each on all of its threads.
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        level = _LEVELS[optimization or options.graph_optimization]
        settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        settings.enable_cpu_mem_arena = options.memory_arena
        settings.add_session_config_entry(_SPINNING, "1" if spinning else "0")
        settings.add_session_config_entry(_ASSIGNMENT, "1")
        settings.add_session_config_entry(_EXACT, "1")
        for name, extent in artifact.facts.get("fixed_dims", {}).items():
            settings.add_free_dimension_override_by_name(name, extent)
        path = artifact.files["model"]
        content: str | bytes = str(path)
        if artifact.facts.get("drop_names"):
            content = _without_names(path)
            settings.add_session_config_entry(_DATA_FOLDER, str(path.parent))
        session = onnxruntime.InferenceSession(content, settings, providers=[PROVIDER])
        session.disable_fallback()
        return session


class OnnxRuntimeSession(Session):
    """A session of onnxruntime; any number of threads may run it at once, as long as nothing is bound.

    Args:
        inner: onnxruntime's InferenceSession.
        outputs: The names of all outputs, in the model's order.
        options: The adapter's options, to know which were asked for.
        precision: What was asked for: whether int8 took effect is told by the nodes that are left.
    """

    def __init__(self, inner: Any, outputs: tuple[str, ...], options: OnnxRuntimeOptions, precision: Precision) -> None:
        self._precision = precision
        self._inner = inner
        self._outputs = list(outputs)
        self._options = options
        self._binding: _Binding | None = None

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Computes the outputs; onnxruntime allocates them anew in each run."""
        inner = self._inner
        if inner is None:
            raise RunFailed("the session is closed")
        names = self._outputs if outputs is None else list(outputs)
        if self._binding is not None:
            return self._binding.run(feeds, names)
        if not names:  # onnxruntime would take an empty list for all of them
            return {}
        return dict(zip(names, inner.run(names, feeds), strict=True))

    def close(self) -> None:
        """Drops onnxruntime's session; runs under way keep it until they end."""
        self._inner = self._binding = None

    def bind(self, buffers: Arrays) -> frozenset[str]:
        """Binds every input, and every output that is no input itself; a bound output is written in each run."""
        if self._inner is None:
            raise RunFailed("the session is closed")
        binding = _Binding(self._inner, buffers)
        self._binding = binding if binding.names else None
        return binding.names

    def observed(self) -> Observed:
        """The session's settings as onnxruntime gives them back, and the nodes left after its optimisation."""
        inner = self._inner
        if inner is None:
            return Observed()
        actual = inner.get_session_options()
        levels = {level: name for name, level in _LEVELS.items()}
        settings: dict[str, Any] = {
            "threads": actual.intra_op_num_threads,
            "options.graph_optimization": levels.get(actual.graph_optimization_level.name),
            "options.memory_arena": actual.enable_cpu_mem_arena,
        }
        if self._options.spinning is not None:
            settings["options.spinning"] = actual.get_session_config_entry(_SPINNING) == "1"
        nodes = [node for part in inner.get_provider_graph_assignment_info() for node in part.get_nodes()]
        if self._precision is Precision.INT8:
            found = Precision.INT8 if computes_int8(node.op_type for node in nodes) else Precision.FP32
            settings["precision"] = found.value
        return Observed(settings, nodes=len(nodes))


class _Binding:
    """What of a session is bound, and how it runs then; for one thread at a time.

    onnxruntime also writes an output that is a constant, or a node's copy of an input, into the place bound for it. One
    that is itself an input comes back as that input's memory instead, so it is not bound.
    """

    def __init__(self, inner: Any, buffers: Arrays) -> None:
        self._inner = inner
        inputs = {port.name: port for port in inner.get_inputs()}
        outputs = {port.name: port for port in inner.get_outputs()}
        self._both = inputs.keys() & outputs.keys()
        # One port of another type rules IOBinding out for the whole session.
        bindable = all(port.type in _BINDABLE for port in (*inputs.values(), *outputs.values()))
        arrays = {name: array for name, array in buffers.items() if bindable and name not in self._both}
        self._inputs = {n: _value(a) for n, a in arrays.items() if n in inputs and _fits(a, inputs[n])}
        self._outputs = {
            n: _value(a)
            for n, a in arrays.items()
            if n in outputs and _fits(a, outputs[n]) and a.flags.writeable and _apart(n, buffers)
        }
        self.names = frozenset(self._inputs) | frozenset(self._outputs)
        self._whole = self._bound()

    def run(self, feeds: Arrays, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Writes all bound outputs, and gives those of the named ones that are not bound."""
        wanted = [name for name in dict.fromkeys(names) if name not in self._outputs]
        if not wanted and not self._outputs:
            return {}
        if not wanted and not feeds:
            self._inner.run_with_iobinding(self._whole)
            return {}
        # A new one: onnxruntime would write an unbound output over the one that it gave out in the run before.
        binding = self._bound()
        for name, feed in feeds.items():
            if name not in self._inputs:
                binding.bind_cpu_input(name, feed)
        for name in wanted:
            binding.bind_output(name)
        self._inner.run_with_iobinding(binding)
        values = list(binding.get_outputs_as_ortvaluevector())[len(self._outputs) :]
        found = {name: value.numpy() for name, value in zip(wanted, values, strict=True)}  # each keeps its value alive
        return {name: array.copy() if name in self._both else array for name, array in found.items()}

    def _bound(self) -> Any:
        binding = self._inner.io_binding()
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding


def _value(array: np.ndarray[Any, Any]) -> Any:
    """onnxruntime's value on the array's own memory."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _fits(array: np.ndarray[Any, Any], port: Any) -> bool:
    """Whether the array is dense, holds anything, and has the port's dtype, rank and known extents."""
    return (
        array.size > 0
        and array.flags.c_contiguous
        and array.dtype == _BINDABLE[port.type]
        and len(port.shape) == array.ndim
        and all(isinstance(e, str | None) or e == real for e, real in zip(port.shape, array.shape, strict=True))
    )


def _apart(name: str, buffers: Arrays) -> bool:
    """Whether the output's buffer shares no byte with another, which may still be read when the output is written."""
    import numpy as np

    return not any(np.may_share_memory(buffers[name], other) for key, other in buffers.items() if key != name)


def _named_twice(model: Model) -> bool:
    """Whether two nodes have one name, which onnxruntime refuses to load although a name says nothing."""
    names = [node.name for node in model.graph.walk() if node.name]
    return len(set(names)) < len(names)


def _without_names(path: Path) -> bytes:
    """The model with no node named; external data stays where it is."""
    import onnx

    proto = onnx.load(path, load_external_data=False)
    graphs = [proto.graph]
    while graphs:
        for node in graphs.pop().node:
            node.ClearField("name")
            for attribute in node.attribute:
                graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    content: bytes = proto.SerializeToString()
    return content


def _blamed(model: Model, open_nodes: Sequence[int], message: str) -> Sequence[int]:
    """The nodes that onnxruntime's message names, else every node it was asked to confirm."""
    found = re.search(r"implementation for (?:[\w.]+[.:])?(\w+)\(\d+\) node with name '(.*?)'", message)
    if found is not None:
        op, name = found.groups()
        alike = [i for i in open_nodes if model.graph.nodes[i].op == op]
        return [i for i in alike if model.graph.nodes[i].name == name] or alike or open_nodes
    return open_nodes


def _short(error: Exception) -> str:
    """onnxruntime's message on one line, without its error code."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ", r"\1: ", text)[:600]
