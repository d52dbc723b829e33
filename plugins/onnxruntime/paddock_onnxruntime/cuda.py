"""`gpu/cuda`: ONNX models on ONNX Runtime's CUDA execution provider.

Strict: a node that would compute on the CPU refuses the deployment by name, save those that see nothing but shapes and
constants (`host_nodes`), which every CUDA program computes on the host; and where the provider does not load, which
onnxruntime answers by taking the CPU without a word, so is the session.

Precision is Paddock's cast of the graph; TF32, which onnxruntime computes float32 in unless it is told not to, is an
option. The artifact refers to the model's own files: onnxruntime optimises for the device when a session is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from paddock.defects import load, remedies
from paddock.errors import BuildFailed, MemoryRefused, NotAvailable, PaddockError, Unsupported
from paddock.graph import Graph, Node
from paddock.model import Model
from paddock.plan import Precision, PrecisionPlan, Remedy, Verdict
from paddock.spi import (
    Adapter,
    Artifact,
    Concurrency,
    Context,
    Device,
    Devices,
    Footprint,
    Probe,
    SegmentPlan,
    Selection,
    Session,
    Shapes,
    Threading,
)
from pydantic import BaseModel, ByteSize

from paddock_onnxruntime import cuda_footprint, nvidia
from paddock_onnxruntime.cuda_session import NO_MEMORY, CudaOptions, CudaSession, astray, placed, session
from paddock_onnxruntime.host_nodes import host_names
from paddock_onnxruntime.installed import GPU, PLAIN, Installed, installed
from paddock_onnxruntime.kernels import CPU, CUDA, registry
from paddock_onnxruntime.named import Source, index, name, name_nodes
from paddock_onnxruntime.operators import DEPTH, Selector
from paddock_onnxruntime.session import short

INSTALL = "pip install paddock-onnxruntime[cuda] in an environment without onnxruntime, as `make .venv-gpu/.ready` does"
_METADATA = "package metadata and the files of libraries"


class GpuCuda(Adapter):
    """ONNX models on ONNX Runtime's CUDA execution provider, in fp32, fp16 and bf16."""

    hardware: ClassVar[str] = "gpu"
    backend: ClassVar[str] = "cuda"
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.FP16, Precision.BF16})
    shapes: ClassVar[Shapes] = Shapes.DYNAMIC
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.REENTRANT)
    environment: ClassVar[tuple[str, ...]] = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_TF32_OVERRIDE")
    tunables: ClassVar[Mapping[str, Sequence[Any]]] = {
        "options.channels_last": (True,),
        "options.conv_search": ("exhaustive",),
    }
    savers: ClassVar[Mapping[str, Sequence[Any]]] = {
        "options.memory_growth": ("exact",),
        "options.conv_max_workspace": (False,),
    }
    Options: ClassVar[type[BaseModel]] = CudaOptions

    @classmethod
    def probe(cls) -> Probe:
        """Which of driver, CUDA, cuDNN and onnxruntime's GPU build is missing or does not fit; loads nothing."""
        here = installed()
        package, others = _package_lack(here), nvidia.lacks()
        versions = {} if here is None else {here.distribution: here.version}
        if not package and not others:
            return Probe(Verdict.yes("installed", _METADATA), {**versions, **nvidia.versions()})
        reason = f"missing: {'; '.join([*([package] if package else []), *(lack.what for lack in others)])}"
        # With the package come the wheels.
        left = [lack for lack in others if not package or not lack.wheels]
        remedies = [INSTALL if package else "", nvidia.remedy(left)]
        return Probe(Verdict.no(reason, _METADATA), versions, "; ".join(filter(None, remedies)))

    @classmethod
    def probe_device(cls) -> Devices:
        """The devices that the driver shows, and what the provider computes in there: a product that is run."""
        from paddock_onnxruntime.cuda_precisions import precisions

        found = nvidia.devices()
        if not found:
            raise NotAvailable(
                "the driver shows no device", remedy="CUDA_VISIBLE_DEVICES may hide it: nvidia-smi lists all"
            )
        made = tuple(Device(gpu.index, gpu.name, precisions(gpu), gpu.memory, "gpu") for gpu in found)
        driver = nvidia.driver()
        facts = {
            "devices": [dict(nvidia.as_facts(gpu)) for gpu in found],
            "driver": None if driver is None else driver.version,
        }
        return Devices(Verdict.yes("", nvidia.DRIVER), made, facts)

    def select_operators(self, model: Model, context: Context) -> Selection:
        """A verdict for each node from the provider's kernels, and from the CPU's for what only sees shapes.

        Where the provider then places one otherwise, `compile` says so.
        """
        graph, path = model.graph, model.files["model"]
        return Selection(verdicts(graph, path, on_device=self.device is not None))

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """The forms of operators that the CUDA provider is known to compute wrongly, from defects.json."""
        known = [defect for defect in load("paddock_onnxruntime") if defect.sdk == GPU]
        return remedies(known, model.graph, self.probe().versions, self.config.precision)

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """Refers to the model's files, once a session on the device has confirmed where each node is.

        Raises:
            Unsupported: Nodes would compute on the CPU, or have no kernel at all.
            MemoryRefused: The device's memory, or `options.arena_limit`, does not hold the weights.
            BuildFailed: onnxruntime cannot load it for another reason.
        """
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
                "host": sorted(host_names(graph)),
                "cast_depths": [node.index for node in graph.nodes if _has_narrow_depth(node, graph)],
            },
        )
        context.progress("onnxruntime: loading the model on the device, to see where each node is")
        self._session(artifact)
        return artifact

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A session on the device; raises what `compile` does."""
        inner, nodes = self._session(artifact)
        return CudaSession(inner, artifact.outputs, nodes)

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint | None:
        """What was counted of the provider's arena, and assumed of CUDA; see `cuda_footprint`."""
        options = self._options
        return cuda_footprint.footprint(model, options.memory_growth, bounded=not options.conv_max_workspace)

    @property
    def _options(self) -> CudaOptions:
        """The options, with what `memory.limit` leaves to one session's arena where they state no limit."""
        options = self.config.options if isinstance(self.config.options, CudaOptions) else CudaOptions()
        limit, instances = self.config.config.memory.limit, self.config.config.instances
        if limit is None or options.arena_limit is not None:
            return options
        left = (int(limit) - cuda_footprint.PROCESS) // instances - cuda_footprint.SESSION
        return options.model_copy(update={"arena_limit": ByteSize(max(1, left))})

    def _session(self, artifact: Artifact) -> tuple[Any, int]:
        """onnxruntime's session, and how many nodes of it are on the device."""
        path = artifact.files["model"]
        source = named(path, artifact.facts["cast_depths"])
        device = self.device.index if self.device is not None else 0
        try:
            made = session(source, self._options, device, artifact.facts["fixed_dims"], self.config.threads)
        except PaddockError:
            raise
        except Exception as error:  # onnxruntime raises classes of its own that share only this base
            raise _refused(error, path) from error
        found = placed(made)
        casts = [_cast_name(number) for number in artifact.facts["cast_depths"]]
        wrong = astray(found, frozenset((*artifact.facts["host"], *casts)))
        if wrong:
            nodes = sorted({number for given in wrong if (number := index(given)) is not None})
            shown = ", ".join(dict.fromkeys(wrong.values()))
            raise Unsupported(nodes, f"onnxruntime's CUDA provider leaves it to the CPU ({shown[:200]})")
        if found.host and not found.device:
            raise Unsupported((), "nothing of it is left for the device: all of it sees shapes and constants alone")
        return made, found.device


def verdicts(graph: Graph, path: Path, on_device: bool) -> tuple[Verdict, ...]:
    """One verdict for each node.

    Args:
        graph: The model's graph.
        path: Its file.
        on_device: Whether there is a device, so that a session will confirm them; else each yes is provisional.
    """
    cuda, cpu = Selector(graph, path, registry(CUDA)), Selector(graph, path, registry(CPU))
    host = host_names(graph)
    found = []
    for node, verdict, other in zip(graph.nodes, cuda.verdicts(), cpu.verdicts(), strict=True):
        if not verdict.usable and other.usable and name(node.index) in host:
            reason = "sees shapes and constants alone: computed on the host, as the provider does by design"
            verdict = Verdict(other.answer, reason, other.source)
        if not on_device and verdict.usable and verdict.source != "onnxruntime's graph loader":
            verdict = Verdict.provisional(verdict.reason, verdict.source)
        found.append(verdict)
    return tuple(found)


def _has_narrow_depth(node: Node, graph: Graph) -> bool:
    """Whether a node is a OneHot whose depth is int32, for which the provider has no kernel."""
    depth = node.inputs[1] if node.type == "OneHot" and len(node.inputs) > 1 else None
    return depth is not None and graph.values[depth].dtype == "int32"


def _cast_name(number: int) -> str:
    return f"{name(number)}_{DEPTH}"


def _package_lack(here: Installed | None) -> str:
    """What of onnxruntime's build for GPUs is not here; "" where it is."""
    if here is None:
        return GPU
    if not here.gpu:
        return f"{GPU} ({here.distribution} {here.version} is the CPU's build)"
    if here.cuda.partition(".")[0] != nvidia.CUDA:
        return f"{GPU} for CUDA {nvidia.CUDA} ({here.version} is built for CUDA {here.cuda})"
    if PLAIN in here.beside:
        return f"{GPU} by itself ({PLAIN} beside it takes the same import name: files of both are mixed)"
    return ""


def named(path: Path, cast_depths: Sequence[int] = ()) -> Source:
    """The model with each node named by its index, and the depths of these OneHot cast to int64.

    Its external data stay where they are.
    """
    import onnx

    proto = onnx.load(path, load_external_data=False)
    name_nodes(proto)
    for position, number in enumerate(cast_depths):  # each one before moves what is behind it
        node = proto.graph.node[number + position]
        made = f"paddock.depth.{number}"
        cast = onnx.helper.make_node(
            "Cast", [node.input[1]], [made], name=_cast_name(number), to=onnx.TensorProto.INT64
        )
        node.input[1] = made
        proto.graph.node.insert(number + position, cast)
    return Source(proto.SerializeToString(), path.parent)


def _refused(error: Exception, path: Path) -> Exception:
    """Paddock's error for what onnxruntime raises where it makes a session."""
    said = short(error)
    if NO_MEMORY.search(said):
        remedy = "free the device's memory, raise memory.limit or options.arena_limit, or lower batch_size"
        return MemoryRefused(f"the device's memory does not hold it: {said}", remedy=remedy)
    found = re.search(r"node with name '(.*?)'", said)
    number = index(found[1]) if found is not None else None
    if number is not None and "implementation" in said:
        return Unsupported((number,), said)
    return BuildFailed(f"onnxruntime cannot load the model on the device: {said}", where=str(path))
