"""`gpu/tensorrt`: ONNX models on NVIDIA's GPUs, through TensorRT 10.16 and later or 11.

Networks are strongly typed: TensorRT computes in what the graph states, which Paddock has cast or quantised before. The
artifact is the serialised engine, for one kind of GPU and one version of TensorRT; all sessions of a deployment are
contexts on one engine.

Nothing of this has run on a GPU yet: see the README.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from paddock.errors import BuildFailed, ConfigError, MemoryRefused, NotAvailable, Unsupported
from paddock.graph import Graph
from paddock.model import Model
from paddock.plan import Answer, Precision, PrecisionPlan, Verdict
from paddock.planning.memory import readable
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
    ResolvedConfig,
    SegmentPlan,
    Selection,
    Session,
    Shapes,
    Threading,
)
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from paddock_tensorrt import build, cuda, engine, footprint, layers, present
from paddock_tensorrt.engine import Loaded
from paddock_tensorrt.operators import ask, listed, stated, verdicts, without_profile
from paddock_tensorrt.profiles import Profile, profiles
from paddock_tensorrt.sdk import said, trt
from paddock_tensorrt.session import TensorRtSession

ONNXRUNTIME = "onnxruntime"
QUANTIZATION = "pip install paddock-tensorrt[quantization]"
EITHER = "pip install paddock-onnxruntime[sdk], or [cuda] where gpu/cuda is wanted: both take the same import name"
MIB = 1 << 20
_ENGINE = "engine"
"""The role of the one file of an artifact."""
_SHARE = 4
"""A workspace that the config leaves open is this part of its memory limit."""

_LEAST: Mapping[Precision, tuple[int, int]] = {
    Precision.FP32: (7, 5), Precision.FP16: (7, 5), Precision.BF16: (8, 0), Precision.INT8: (7, 5)
}  # fmt: skip
"""The compute capability from which TensorRT computes in a precision: its support matrix of 10.15. 7.5 is the oldest
that it has kernels for."""


class TensorRtOptions(BaseModel):
    """The options of `gpu/tensorrt`. What took effect is read back from TensorRT."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    tf32: bool = False
    """Compute products of float32 with 10 bits of mantissa: several times as fast, and no longer fp32's accuracy."""
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    """How long TensorRT looks for the fastest kernels: 0 builds soonest, 5 tries most; 3 where it is left out."""
    workspace_mib: PositiveInt | None = None
    """The most scratch that one layer of one context may take, in MiB. Left out: a quarter of memory.limit or, without
    one, all of the device's memory."""
    cuda_graph: bool | None = None
    """Run as one CUDA graph, which needs fixed shapes. Left out: where that can be."""
    host_code: bool = False
    """Let code that an engine carries run on the host. Engines that Paddock builds carry none; leave it off."""


class GpuTensorRt(Adapter):
    """ONNX models on an NVIDIA GPU. Written against TensorRT's API and checked against both majors; never run."""

    hardware: ClassVar[str] = "gpu"
    backend: ClassVar[str] = "tensorrt"
    aliases: ClassVar[tuple[str, ...]] = ("trt",)
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset(Precision)
    shapes: ClassVar[Shapes] = Shapes.BOUNDED
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.SERIAL, shares_weights=True)
    environment: ClassVar[tuple[str, ...]] = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_TF32_OVERRIDE")
    tunables: ClassVar[Mapping[str, Sequence[Any]]] = {"options.optimization_level": (5,)}
    quantizes_with: ClassVar[tuple[str, ...]] = ("ml_dtypes", ONNXRUNTIME, "paddock-onnxruntime")
    Options: ClassVar[type[BaseModel]] = TensorRtOptions

    def __init__(self, config: ResolvedConfig, device: Device | None) -> None:
        super().__init__(config, device)
        if config.config.threads is not None:
            raise ConfigError(f"threads have no effect on {self.name()}", where="$.threads", remedy="leave it out")

    @classmethod
    def probe(cls) -> Probe:
        """What of driver, CUDA and TensorRT is here and fits together; see `paddock_tensorrt.present`."""
        found = present.look()
        verdict, remedy = present.judge(found)
        return Probe(verdict, found.versions(), remedy)

    @classmethod
    def probe_device(cls) -> Devices:
        """The GPUs that CUDA lists and TensorRT can build for, and what they compute in; imports both."""
        source = "cudaGetDeviceProperties"
        gpus = cuda.gpus()
        if not gpus:
            return Devices(Verdict.no("CUDA lists no device here", "cudaGetDeviceCount"))
        runtime, driver = cuda.versions()
        facts = {
            "TensorRT": trt.__version__,
            "CUDA runtime": runtime,
            "CUDA of the driver": driver,
            "compute capabilities": [f"{gpu.capability[0]}.{gpu.capability[1]}" for gpu in gpus],
        }
        cuda.use(gpus[0].index)
        build.Network(said())  # what is missing for it is told now, not by the first model
        return Devices(Verdict.yes("", source), tuple(map(_device, gpus)), facts)

    def select_operators(self, model: Model, context: Context) -> Selection:
        """A verdict for each node from TensorRT's ONNX parser; from its list of operators where there is no device."""
        graph = model.graph
        refused = without_profile(graph)
        if refused is not None:
            return Selection(refused)
        if self._options.cuda_graph:
            self._check_graph(profiles(graph))
        if self.device is None:
            return Selection(listed(graph))
        cuda.use(self.device.index)
        heard = said()
        path = model.files["model"]
        parser = build.Network(heard).parser
        answer = ask(parser, build.content_of(stated(path, graph)), path, heard)
        return Selection(verdicts(graph, answer))

    def notes(self, model: Model) -> Sequence[str]:
        """The optimisation profiles that the shapes come to, or why there can be none."""
        try:
            return build.told(profiles(model.graph))
        except BuildFailed as error:
            return (error.problem,)

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """Builds the engine, and looks into it: what it takes, and what its layers compute in.

        Raises:
            Unsupported: The parser refuses nodes.
            BuildFailed: An input is without bounds, or TensorRT finds no way to run the network.
            ConfigError: Runs are to be one CUDA graph, and shapes are open.
            MemoryRefused: Building takes more memory than there is, or the engine takes more than memory.limit.
        """
        refused = [i for i, verdict in enumerate(plan.verdicts) if verdict.answer is Answer.NO]
        if refused:
            raise Unsupported(refused, plan.verdicts[refused[0]].reason)
        graph, path, heard = model.graph, model.files["model"], said()
        request = build.Request(
            content=build.content_of(stated(path, graph)),
            path=path,
            profiles=self._check_graph(profiles(graph)),
            tf32=self._options.tf32,
            optimization_level=self._options.optimization_level,
            workspace=self._workspace,
            timing=context.cache / f"timing-{hashlib.sha256(self._gpu.encode()).hexdigest()[:16]}.cache",
            readers=_readers(graph),
        )
        cuda.use(self._index)
        context.progress(f"TensorRT: building for {self._gpu}")
        content, settled = build.build(request, heard, context.progress)
        written = context.work / "model.engine"
        written.write_bytes(content)
        loaded = engine.load(content, request.profiles, self._index, heard)
        self._check_memory(loaded, plan)
        counts = layers.counted(layers.inspected(loaded.engine))
        return Artifact(
            adapter=self.name(),
            format=model.format,
            files={_ENGINE: written},
            inputs=tuple(value.name for value in graph.input_values),
            outputs=tuple(value.name for value in graph.output_values),
            bounds=dict(graph.bounds),
            facts={
                "tensorrt": trt.__version__,
                "gpu": self._gpu,
                "profiles": [_plain(profile.inputs) for profile in request.profiles],
                "layers": counts,
                "weights": loaded.weights,
                "contexts": list(loaded.contexts),
                "settings": self._settings(settled, counts),
                "notes": _notes(loaded, counts, settled),
            },
        )

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A context on the engine; `fork()` makes further ones. Raises `BuildFailed`, `MemoryRefused`."""
        facts, path = artifact.facts, artifact.files[_ENGINE]
        cuda.use(self._index)
        stated = tuple(
            Profile(tuple((name, tuple(a), tuple(b), tuple(c)) for name, a, b, c in inputs))
            for inputs in facts["profiles"]
        )
        try:
            loaded = engine.load(path.read_bytes(), stated, self._index, said(), self._options.host_code)
        except BuildFailed as error:
            error.where = str(path)
            raise
        count = sum(sum(dtypes.values()) for dtypes in facts["layers"].values())
        settings = {**facts["settings"], "options.host_code": loaded.host_code}
        return TensorRtSession(loaded, artifact.outputs, settings, count, self._options.cuda_graph)

    def quantizer(self, model: Model, samples: Sequence[Arrays], work: Path) -> Quantizer:
        """onnxruntime's, symmetric on both sides as TensorRT's parser wants it."""
        absent = [n for n in self.quantizes_with if importlib.util.find_spec(n.replace("-", "_")) is None]
        if absent:
            remedy = "; ".join(([QUANTIZATION] if absent != [ONNXRUNTIME] else []) + [EITHER] * (ONNXRUNTIME in absent))
            raise NotAvailable(f"quantising for TensorRT needs {', '.join(absent)}", remedy=remedy)
        from paddock_tensorrt.quantizer import TensorRtQuantizer  # what it shares with another plugin is an extra

        return TensorRtQuantizer(model.files["model"], samples, work)

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint | None:
        """A bound where the workspace has one; none otherwise, since TensorRT may then take all of the device."""
        workspace = self._workspace
        return None if workspace is None else footprint.footprint(workspace)

    def compatible(self, artifact: Artifact) -> Verdict:
        """An engine is for the TensorRT that built it, and for its kind of GPU."""
        source = "the artifact's facts"
        written, here = artifact.facts.get("tensorrt"), self.probe().versions.get("tensorrt")
        if written != here:
            return Verdict.no(f"built by TensorRT {written}, and {here or 'none'} is here", source)
        built_for = artifact.facts.get("gpu")
        if built_for != self._gpu:
            return Verdict.no(f"built for {built_for}, and this is {self._gpu}", source)
        return Verdict.yes(f"built by TensorRT {written} for {built_for}", source)

    @property
    def _options(self) -> TensorRtOptions:
        options = self.config.options
        return options if isinstance(options, TensorRtOptions) else TensorRtOptions()

    @property
    def _index(self) -> int:
        return 0 if self.device is None else self.device.index

    @property
    def _gpu(self) -> str:
        return "no device" if self.device is None else self.device.name

    @property
    def _workspace(self) -> int | None:
        """Bytes that a layer's scratch may take: the option or, where the config has a limit, a part of that."""
        if self._options.workspace_mib is not None:
            return self._options.workspace_mib * MIB
        limit = self.config.config.memory.limit
        return None if limit is None else max(MIB, limit // _SHARE)

    def _check_graph(self, stated: tuple[Profile, ...]) -> tuple[Profile, ...]:
        """The profiles; raises `ConfigError` where there are any, and runs are to be one CUDA graph."""
        if stated and self._options.cuda_graph:
            raise ConfigError(
                f"a CUDA graph needs shapes that are all fixed, and these are open: {stated[0]}",
                where="$.options.cuda_graph", remedy="fix them in shapes and batch_size, or leave cuda_graph out",
            )  # fmt: skip
        return stated

    def _check_memory(self, loaded: Loaded, plan: SegmentPlan) -> None:
        """Raises `MemoryRefused` where the engine takes more than the limit, which is known exactly now."""
        limit, instances = self.config.config.memory.limit, self.config.config.instances
        border = plan.memory.io
        taken = loaded.weights + instances * (max(loaded.contexts) + border)
        if limit is not None and taken > limit:
            raise MemoryRefused(
                f"the engine takes {readable(taken)}, over the limit of {readable(limit)}",
                where="$.memory.limit",
                candidates=[
                    f"{readable(loaded.weights)} weights",
                    f"{readable(max(loaded.contexts))} activations and workspace of each of {instances} contexts",
                    f"{readable(border)} inputs and outputs of each",
                ],
                remedy="raise memory.limit, or lower options.workspace_mib, batch_size, shapes or instances",
            )

    def _settings(self, settled: build.Settled, counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
        """What took effect, in the config's terms; what the inspector does not tell is left out."""
        found: dict[str, Any] = {
            "options.tf32": settled.tf32,
            "options.optimization_level": settled.optimization_level,
            "options.workspace_mib": settled.workspace // MIB,
        }
        told = layers.computed(counts, self.config.precision)
        if told is not None:
            found["precision"] = told.value
        return found


def _device(gpu: cuda.Gpu) -> Device:
    """The device, its kind and capability in the name: an engine is for just those."""
    capability = ".".join(map(str, gpu.capability))
    name = f"{gpu.name} (compute capability {capability})"
    found = {}
    for precision in sorted(_LEAST):
        least = _LEAST[precision]
        if gpu.capability >= least:
            found[precision] = Verdict.yes(f"compute capability {capability}", "TensorRT's support matrix")
        else:
            needed = ".".join(map(str, least))
            reason = f"compute capability is {capability}, and {precision} needs {needed}"
            found[precision] = Verdict.no(reason, "TensorRT's support matrix")
    return Device(gpu.index, name, found, gpu.memory, "gpu")


def _readers(graph: Graph) -> dict[str, list[int]]:
    """The nodes that read each input, by its name."""
    found: dict[str, list[int]] = {value.name: [] for value in graph.input_values}
    for node in graph.nodes:
        for index in dict.fromkeys((*node.inputs, *node.captures)):
            if index is not None and index in graph.inputs:
                found[graph.values[index].name].append(node.index)
    return found


def _plain(value: Any) -> Any:
    """Tuples as lists, however deep, as JSON gives them back."""
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _notes(loaded: Loaded, counts: Mapping[str, Mapping[str, int]], settled: build.Settled) -> list[str]:
    """What the plan tells of an engine once it was built."""
    contexts = ", ".join(map(readable, dict.fromkeys(loaded.contexts)))
    found = [
        f"TensorRT's engine has {layers.summary(counts)}; it was made from {settled.layers} layers of the network",
        f"the engine takes {readable(loaded.weights)} for weights, and each context {contexts} of scratch",
    ]
    return found + ([settled.timings] if settled.timings else [])
