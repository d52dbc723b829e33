"""`cpu/onnxruntime`: ONNX models on ONNX Runtime's CPU execution provider.

What onnxruntime would do to the graph at each start is done once: the artifact is the optimised model, with its weights
in a file that is mapped (ResNet-50 loads in 15 ms instead of 230). Where that cannot be written or loaded the artifact
refers to the model's own files. There is no option for denormals, since onnxruntime takes
`session.set_denormal_as_zero` from the first session of a process only, and for the thread that made it.

Nor is it given a limit for its memory: it has one for an arena that all sessions of the process share (OrtArenaCfg's
max_mem, which a run exceeds with an error), and none for a session.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from paddock.errors import BuildFailed, NotAvailable, StrictnessError, Unsupported
from paddock.graph import Value
from paddock.model import Model
from paddock.plan import Answer, Precision, PrecisionPlan, Remedy, Verdict
from paddock.spi import (
    Adapter,
    Arrays,
    Artifact,
    Concurrency,
    Context,
    Device,
    Devices,
    Footprint,
    Probe,
    Quantizer,
    ReferenceRole,
    SegmentPlan,
    Selection,
    Session,
    Shapes,
    Threading,
)
from pydantic import BaseModel

from paddock_onnxruntime import footprint
from paddock_onnxruntime.installed import PLAIN, installed, version_of
from paddock_onnxruntime.kernels import CPU
from paddock_onnxruntime.named import DATA_FOLDER
from paddock_onnxruntime.operators import Selector
from paddock_onnxruntime.precisions import computes_int8, precisions
from paddock_onnxruntime.quantizer import OnnxRuntimeQuantizer
from paddock_onnxruntime.session import ASSIGNMENT, LEVELS, SPINNING, OnnxRuntimeOptions, OnnxRuntimeSession, short

INSTALL = "pip install paddock-onnxruntime[sdk]"

_EXACT = "session.x64quantprecision"
"""Without VNNI, products of uint8 and int8 saturate on the way unless this is set: wrong numbers, only faster."""
_WEIGHTS = "session.optimized_model_external_initializers_file_name"
_LARGE = "session.optimized_model_external_initializers_min_size_in_bytes"
_MAPPED = 1024
"""Bytes from which a weight of the optimised model lies in the file that is mapped."""
_FATAL = 4
"""onnxruntime's severity of messages that end the process; the others come back as exceptions as well."""


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
    # "all" lays convolutions out in blocks, which costs more than it saves where little of a model is convolutions. Not
    # spinning: alone, as tuning measures, it is a little faster, and whatever else computes in the process pays for it.
    tunables: ClassVar[Mapping[str, Sequence[Any]]] = {"options.graph_optimization": ("extended",)}
    savers: ClassVar[Mapping[str, Sequence[Any]]] = {"options.memory_arena": (False,)}
    references: ClassVar[Mapping[str, ReferenceRole]] = {
        "onnx": ReferenceRole(rank=1, options={"graph_optimization": "off"})
    }
    quantizes_with: ClassVar[tuple[str, ...]] = ("ml_dtypes",)
    Options: ClassVar[type[BaseModel]] = OnnxRuntimeOptions

    @classmethod
    def probe(cls) -> Probe:
        """Whether onnxruntime (its build for GPUs has the CPU's provider too) and onnx are installed, from metadata."""
        here, onnx = installed(), version_of("onnx")
        versions = {} if here is None else {here.distribution: here.version}
        if here is None or onnx is None:
            missing = "onnxruntime" if here is None else "onnx"
            return Probe(Verdict.no(f"{missing} is not installed", "package metadata"), versions, INSTALL)
        return Probe(Verdict.yes("installed", "package metadata"), {**versions, "onnx": onnx})

    @classmethod
    def probe_device(cls) -> Devices:
        """The CPU, if this build of onnxruntime has its provider; imports onnxruntime."""
        import onnxruntime

        source = "onnxruntime.get_available_providers()"
        providers = list(onnxruntime.get_available_providers())
        if CPU not in providers:
            return Devices(Verdict.no(f"this onnxruntime has only {', '.join(providers) or 'no provider'}", source))
        facts = {"providers": providers, "build": onnxruntime.get_build_info()}
        return Devices(Verdict.yes("", source), (Device(0, "CPU", precisions()),), facts)

    def select_operators(self, model: Model, context: Context) -> Selection:
        """A verdict for each node from onnxruntime's own kernel registry; nothing is built."""
        return Selection(Selector(model.graph, model.files["model"]).verdicts())

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """The forms of operators that onnxruntime computes wrongly, from defects.json."""
        from paddock.defects import load, remedies  # not needed to serve what is kept

        here = installed()
        known = [defect for defect in load("paddock_onnxruntime") if defect.sdk == PLAIN]
        versions = {} if here is None else {PLAIN: here.version}  # whichever build: the CPU's provider is in all
        return remedies(known, model.graph, versions, self.config.precision)

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
            facts={
                "fixed_dims": dict(graph.fixed),
                "fixed_inputs": all(_has_fixed_shape(value) for value in graph.input_values),
                "drop_names": _named_twice(model),
            },
        )
        open_nodes = [i for i, verdict in enumerate(plan.verdicts) if verdict.answer is Answer.PROVISIONAL]
        if open_nodes:
            context.progress("onnxruntime: trying a session for the nodes its registry cannot answer for")
            try:
                self._session(artifact, optimization="off")
            except Exception as error:  # onnxruntime raises classes of its own that share only this base
                raise Unsupported(_blamed(model, open_nodes, str(error)), short(error)) from error
        artifact = self._optimised(artifact, context)
        if plan.precision.precision is Precision.INT8:
            artifact = replace(artifact, facts={**artifact.facts, "int8": computes_int8(_kinds(artifact))})
        return artifact

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A session with the threads, spinning and options of the config; raises `BuildFailed`."""
        try:
            inner = self._session(artifact)
        except Exception as error:
            raise BuildFailed(
                f"onnxruntime cannot load the model: {short(error)}", where=str(artifact.files["model"])
            ) from error
        facts = artifact.facts
        return OnnxRuntimeSession(inner, artifact.outputs, self._options, facts.get("int8"), facts.get("optimised"))

    def quantizer(self, model: Model, samples: Sequence[Arrays], work: Path) -> Quantizer:
        """onnxruntime's own: uint8 activations, int8 weights for each channel, as Q/DQ of plain ONNX."""
        if importlib.util.find_spec("ml_dtypes") is None:
            remedy = "pip install paddock-onnxruntime[quantization]"
            raise NotAvailable("onnxruntime's quantiser needs ml_dtypes", remedy=remedy)
        return OnnxRuntimeQuantizer(model.files["model"], samples, work)

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint:
        """What was measured of onnxruntime, as a bound."""
        return footprint.footprint(model)

    @property
    def _options(self) -> OnnxRuntimeOptions:
        options = self.config.options
        return options if isinstance(options, OnnxRuntimeOptions) else OnnxRuntimeOptions()

    def _optimised(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with the model as onnxruntime rewrites it; as it is where that cannot be kept in a file."""
        level = self._options.graph_optimization
        if level == "off":
            return artifact
        path = context.work / "optimised.onnx"
        weights = path.with_suffix(".bin")
        for left in (path, weights):
            left.unlink(missing_ok=True)
        try:
            self._session(artifact, written=path)
            files = {"model": path, **({"weights": weights} if weights.exists() else {})}
            made = replace(artifact, files=files, facts={**artifact.facts, "optimised": level, "drop_names": False})
            self._session(made)
        except Exception as error:  # onnxruntime raises classes of its own that share only this base
            context.progress(f"onnxruntime optimises at each start: the result cannot be kept: {short(error)}")
            return artifact
        return made

    def _session(self, artifact: Artifact, optimization: str | None = None, written: Path | None = None) -> Any:
        import onnxruntime

        options = self._options
        spinning = self.config.spinning if options.spinning is None else options.spinning
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _FATAL
        settings.intra_op_num_threads = self.config.threads
        # One pool is the whole thread budget: nodes run one after another, each on all of its threads.
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        level = LEVELS[optimization or ("off" if artifact.facts.get("optimised") else options.graph_optimization)]
        settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        settings.enable_cpu_mem_arena = options.memory_arena
        # onnxruntime keeps a layout of the intermediates for each set of input shapes that it meets, and takes a block
        # for the largest beside what its first run took piece by piece: 10 to 20 MB more for models of 30 MB, and no
        # faster where shapes vary.
        settings.enable_mem_pattern = artifact.facts.get("fixed_inputs", False)
        settings.add_session_config_entry(SPINNING, "1" if spinning else "0")
        settings.add_session_config_entry(ASSIGNMENT, "1")
        settings.add_session_config_entry(_EXACT, "1")
        for name, extent in artifact.facts.get("fixed_dims", {}).items():
            settings.add_free_dimension_override_by_name(name, extent)
        if written is not None:
            settings.optimized_model_filepath = str(written)
            settings.add_session_config_entry(_WEIGHTS, written.with_suffix(".bin").name)
            settings.add_session_config_entry(_LARGE, str(_MAPPED))
        path = artifact.files["model"]
        content: str | bytes = str(path)
        if artifact.facts.get("drop_names"):
            content = _without_names(path)
            settings.add_session_config_entry(DATA_FOLDER, str(path.parent))
        session = onnxruntime.InferenceSession(content, settings, providers=[CPU])
        session.disable_fallback()
        return session


def _kinds(artifact: Artifact) -> list[str]:
    """The operators of an artifact's model."""
    import onnx

    proto = onnx.load(artifact.files["model"], load_external_data=False)
    return [node.op_type for node in proto.graph.node]


def _has_fixed_shape(value: Value) -> bool:
    return value.shape is not None and all(isinstance(dim, int) for dim in value.shape)


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
