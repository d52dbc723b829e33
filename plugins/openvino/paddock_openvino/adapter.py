"""`cpu/openvino`, and `gpu/openvino` and `npu/openvino` for Intel's devices: ONNX models on OpenVINO.

The artifact is the compiled model as OpenVINO exports it. Where a device cannot do that, it refers to the model's own
files and holds the shapes that the config admits, and OpenVINO compiles when the session is loaded. All sessions of a
deployment are infer requests on one compiled model.

OpenVINO plans its own memory on the CPU and has no limit to hand a plan's figure to; what it keeps for each shape that
it meets is bounded (paddock_openvino.kept).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from paddock.errors import BuildFailed, ConfigError, NotAvailable, StrictnessError, Unsupported
from paddock.graph import Graph
from paddock.model import Model
from paddock.plan import Answer, Means, Precision, PrecisionPlan, Remedy, Verdict
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
from pydantic import BaseModel, ConfigDict, PositiveInt

from paddock_openvino import blob, footprint
from paddock_openvino.capabilities import computes_int8, int8
from paddock_openvino.integers import WIDE, Integers
from paddock_openvino.kept import bound_primitives, kernels_kept
from paddock_openvino.operators import essence, keep_names, readable, verdicts
from paddock_openvino.sdk import core, openvino, read_bounded
from paddock_openvino.session import OpenVinoSession

INSTALL = "pip install paddock-openvino[sdk]"
QUANTIZATION = "pip install paddock-openvino[quantization]"

TYPES: Mapping[Precision, str] = {
    Precision.FP32: "f32", Precision.FP16: "f16", Precision.BF16: "bf16", Precision.INT8: "f32"
}  # fmt: skip
"""INFERENCE_PRECISION_HINT for each precision. Of a quantised model it is what the rest is computed in."""

_CAPABILITIES = {Precision.FP32: "FP32", Precision.FP16: "FP16", Precision.BF16: "BF16"}

_BLOB = "compiled"
"""The role of the file that an artifact has where the model was exported."""

_DYNAMIC_QUANTIZATION = "DYNAMIC_QUANTIZATION_GROUP_SIZE"


class CpuOptions(BaseModel):
    """The options of `cpu/openvino`. Each is a property of the compiled model and is read back from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    streams: PositiveInt | None = None
    """How many requests are computed at once, each on its share of the threads: at most, and by default, the
    config's `instances`."""
    denormals_as_zero: bool = False
    """Treat float32 numbers under 1.2e-38 as zero."""


class OpenVinoAdapter(Adapter):
    """What every OpenVINO device has in common; a device is a subclass that names it."""

    backend: ClassVar[str] = "openvino"
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    shapes: ClassVar[Shapes] = Shapes.BOUNDED
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.SERIAL, shares_weights=True)
    environment: ClassVar[tuple[str, ...]] = ("*_MAX_CPU_ISA", "*_CPU_ISA_HINTS", "*_DEFAULT_FPMATH_MODE")  # oneDNN's
    quantizes_with: ClassVar[tuple[str, ...]] = ("nncf", "onnxruntime", "paddock-onnxruntime")
    openvino_device: ClassVar[str]  # OpenVINO's own name of the kind of device

    @classmethod
    def probe(cls) -> Probe:
        """Whether openvino is installed, from its metadata."""
        try:
            if importlib.util.find_spec("openvino") is None:
                raise importlib.metadata.PackageNotFoundError("openvino")
            versions = {"openvino": importlib.metadata.version("openvino")}
        except (importlib.metadata.PackageNotFoundError, ValueError):
            return Probe(Verdict.no("openvino is not installed", "package metadata"), remedy=INSTALL)
        return Probe(Verdict.yes("installed", "package metadata"), versions)

    @classmethod
    def probe_device(cls) -> Devices:
        """The devices of this kind and what they compute in, as OpenVINO says; imports openvino."""
        source = "openvino.Core.available_devices"
        available = list(core().available_devices)
        names = [n for n in available if n == cls.openvino_device or n.startswith(f"{cls.openvino_device}.")]
        if not names:
            seen = ", ".join(available) or "no device"
            return Devices(Verdict.no(f"OpenVINO finds no {cls.openvino_device} here; it finds {seen}", source))
        facts = {"build": openvino().get_version(), "devices": available}
        return Devices(Verdict.yes("", source), tuple(cls._device(i, n) for i, n in enumerate(names)), facts)

    @classmethod
    def _device(cls, index: int, name: str) -> Device:
        source = f"OPTIMIZATION_CAPABILITIES of {name}"
        capabilities = list(core().get_property(name, "OPTIMIZATION_CAPABILITIES"))
        full_name = str(core().get_property(name, "FULL_DEVICE_NAME"))
        found: dict[Precision, Verdict] = {}
        for precision in sorted(cls.precisions):
            if precision is Precision.INT8:
                found[precision] = int8(name)
            elif _CAPABILITIES[precision] in capabilities:
                found[precision] = Verdict.yes(f"{full_name} computes in it", source)
            else:
                shown = ", ".join(capabilities)
                storage = f'; "precision": "fp32" with "storage": "{precision}" halves the weights'
                found[precision] = Verdict.no(f"{full_name} does not compute in it; it has {shown}{storage}", source)
        return Device(index, full_name, found)

    def properties(self) -> dict[str, Any]:
        """What the model is compiled with."""
        found: dict[str, Any] = {"INFERENCE_PRECISION_HINT": TYPES[self.config.precision]}
        # On by default in groups of 32: it computes matrix products of compressed weights in int8, whatever the
        # precision says.
        if _DYNAMIC_QUANTIZATION in core().get_property(self.target, "SUPPORTED_PROPERTIES"):
            found[_DYNAMIC_QUANTIZATION] = 0
        return found

    def bounding(self) -> dict[str, Any]:
        """What a model is compiled with, besides, where it is to serve many shapes: to keep only so much for each."""
        return {}

    def observe(self, compiled: Any) -> dict[str, Any]:
        """What the compiled model says took effect, in the config's terms."""
        if self.config.precision is Precision.INT8:
            return {"precision": (Precision.INT8 if computes_int8(compiled) else Precision.FP32).value}
        types = {kind: precision.value for precision, kind in TYPES.items() if precision is not Precision.INT8}
        actual = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return {"precision": types.get(actual, actual)}

    @property
    def target(self) -> str:
        """OpenVINO's name of the one device to use, such as "GPU.1"."""
        index = self.device.index if self.device is not None else 0
        return f"{self.openvino_device}.{index}" if index else self.openvino_device

    def means(self, precision: Precision) -> Means:
        """OpenVINO lowers floats by its hint, which its devices are known to follow; NNCF writes int8 models."""
        return Means.QUANTIZE if precision is Precision.INT8 else Means.BACKEND

    def quantizer(self, model: Model, samples: Sequence[Arrays], work: Path) -> Quantizer:
        """NNCF's post-training quantisation, as Q/DQ of plain ONNX."""
        absent = [n for n in self.quantizes_with if importlib.util.find_spec(n.replace("-", "_")) is None]
        if absent:
            raise NotAvailable(f"quantising for OpenVINO needs {', '.join(absent)}", remedy=QUANTIZATION)
        from paddock_openvino.quantizer import NncfQuantizer  # what it shares with another plugin is an extra

        return NncfQuantizer(model.files["model"], samples, work)

    def select_operators(self, model: Model, context: Context) -> Selection:
        """A verdict for each node from `read_model` and `query_model`, on the shapes that the config admits."""
        path, shapes = str(model.files["model"]), _shapes(model.graph)
        return Selection(
            verdicts(model.graph, lambda: read_bounded(path, shapes), core(), self.target, self.properties())
        )

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """The forms of operators that OpenVINO computes wrongly, from defects.json, which was made on its CPU plugin.

        Most lie in its ONNX frontend, which all devices share.
        """
        from paddock.defects import load, remedies  # not needed to serve what is kept

        versions = self.probe().versions
        return remedies(load("paddock_openvino"), model.graph, versions, self.config.precision)

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """Compiles and exports the model, if OpenVINO has confirmed every node it was asked about.

        Raises:
            BuildFailed: OpenVINO cannot compile it.
            Unsupported: OpenVINO refuses nodes.
            StrictnessError: The plan asks for a precision that this adapter does not give.
        """
        precision = plan.precision
        if precision.precision not in self.precisions or precision.precision is not self.config.precision:
            raise StrictnessError(
                f"{self.name()} cannot compute in {precision.precision}", candidates=sorted(self.precisions)
            )
        found = plan.verdicts
        refused = [i for i, verdict in enumerate(found) if verdict.answer is not Answer.YES]
        if refused:
            worst = next((found[i] for i in refused if found[i].answer is Answer.NO), found[refused[0]])
            raise Unsupported(refused, worst.reason)
        graph = model.graph
        artifact = Artifact(
            adapter=self.name(),
            format=model.format,
            files=dict(model.files),
            inputs=tuple(value.name for value in graph.input_values),
            outputs=tuple(value.name for value in graph.output_values),
            bounds=dict(graph.bounds),
            facts={"shapes": _shapes(graph)},
        )
        if wrong := blob.wrong_once_imported(graph):
            context.progress(f"OpenVINO compiles at each start: it exports {', '.join(wrong)} wrongly")
        return artifact if wrong else self._exported(artifact, context)

    def _exported(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with the compiled model in a file; as it is where the device cannot export it, or import it."""
        compiled, dynamic = self._compile(artifact, context)
        path = context.work / "compiled.blob"
        made = replace(artifact, files={_BLOB: path}, facts={**artifact.facts, "dynamic": dynamic})
        try:
            blob.write(compiled, path)
            del compiled
            self._import(made)
        except Exception as error:  # OpenVINO raises RuntimeError, and classes of its own for some failures
            context.progress(f"OpenVINO compiles at each start: the model cannot be exported: {essence(str(error))}")
            return artifact
        return made

    def _compile(self, artifact: Artifact, context: Context) -> tuple[Any, bool]:
        """(OpenVINO's compiled model, whether its shapes vary); raises `BuildFailed`."""
        path = str(artifact.files["model"])
        context.progress(f"OpenVINO: compiling {artifact.files['model'].name} for {self.target}")
        try:
            model = read_bounded(path, dict(artifact.facts["shapes"]))
            keep_names(model, artifact.inputs, openvino().opset16)
            dynamic = bool(model.is_dynamic())
            return core().compile_model(model, self.target, self._all_properties(dynamic)), dynamic
        except Exception as error:  # OpenVINO raises RuntimeError, and classes of its own for some failures
            raise BuildFailed(f"OpenVINO cannot compile the model: {essence(str(error))}", where=path) from error

    def _import(self, artifact: Artifact) -> blob.Imported:
        return blob.read(artifact.files[_BLOB], self.target, self._all_properties(artifact.facts["dynamic"]))

    def _all_properties(self, dynamic: bool) -> dict[str, Any]:
        return {**self.properties(), **(self.bounding() if dynamic else {})}

    def load(self, artifact: Artifact, context: Context) -> Session:
        """An infer request on the compiled model; `fork()` makes further ones. Raises `BuildFailed`."""
        if _BLOB not in artifact.files:
            compiled, _ = self._compile(artifact, context)
            return OpenVinoSession(compiled, artifact.inputs, artifact.outputs, self.observe(compiled))
        try:
            found = self._import(artifact)
        except Exception as error:  # OpenVINO raises RuntimeError, and classes of its own for some failures
            where = str(artifact.files[_BLOB])
            problem = f"OpenVINO cannot import what it compiled: {essence(str(error))}"
            raise BuildFailed(problem, where=where, remedy="`paddock cache clear` lets it be compiled again") from error
        settings = self.observe(found.compiled)
        return OpenVinoSession(found.compiled, artifact.inputs, artifact.outputs, settings, found.mapped)


class CpuOpenVino(OpenVinoAdapter):
    """ONNX models on OpenVINO's CPU plugin: in fp32, in what narrow types the CPU has, and in int8."""

    hardware: ClassVar[str] = "cpu"
    precisions: ClassVar[frozenset[Precision]] = frozenset(Precision)
    Options: ClassVar[type[BaseModel]] = CpuOptions
    openvino_device: ClassVar[str] = "CPU"

    def __init__(self, config: ResolvedConfig, device: Device | None) -> None:
        super().__init__(config, device)
        streams = self._options.streams
        if streams is not None and streams > config.config.instances:
            raise ConfigError(
                f"{streams} streams have no effect with {config.config.instances} instances",
                where="$.options.streams",
                remedy=f'set "instances" to {streams}, or leave "streams" out',
            )

    @property
    def _options(self) -> CpuOptions:
        options = self.config.options
        return options if isinstance(options, CpuOptions) else CpuOptions()

    @property
    def target(self) -> str:
        """There is one CPU."""
        return self.openvino_device

    def properties(self) -> dict[str, Any]:
        """Precision, and the threads of all instances together, divided over the streams."""
        instances = self.config.config.instances
        return {
            **super().properties(),
            "INFERENCE_NUM_THREADS": self.config.threads * instances,
            "NUM_STREAMS": self._options.streams or instances,
            "CPU_DENORMALS_OPTIMIZATION": self._options.denormals_as_zero,
        }

    def bounding(self) -> dict[str, Any]:
        """Keeps fewer kernels for shapes to come (paddock_openvino.kept)."""
        return kernels_kept()

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """See `OpenVinoAdapter.compile`; what oneDNN keeps in this process is bounded first."""
        bound_primitives()
        return super().compile(model, plan, context)

    def load(self, artifact: Artifact, context: Context) -> Session:
        """See `OpenVinoAdapter.load`; what oneDNN keeps in this process is bounded first."""
        bound_primitives()
        return super().load(artifact, context)

    def observe(self, compiled: Any) -> dict[str, Any]:
        """Precision, threads for each instance, and the options that were given."""
        found = {
            **super().observe(compiled),
            "threads": compiled.get_property("INFERENCE_NUM_THREADS") // self.config.config.instances,
            "options.denormals_as_zero": bool(compiled.get_property("CPU_DENORMALS_OPTIMIZATION")),
        }
        if self._options.streams is not None:
            found["options.streams"] = compiled.get_property("NUM_STREAMS")
        return found

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """defects.json, and that 64-bit numbers are computed in 32 bits: the inputs and what is computed from them."""
        return (*super().known_defects(model), *self._wide(model))

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint:
        """What was measured of OpenVINO's CPU plugin, as a bound."""
        return footprint.footprint()

    def _wide(self, model: Model) -> Sequence[Remedy]:
        named = [f"{value.name} ({value.dtype})" for value in model.graph.input_values if value.dtype in WIDE]
        inner = [name for name in Integers(model.graph).computed_wide() if name not in named]
        if not named and not inner:
            return ()
        shown = "; ".join(
            f"{what} {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            for what, names in (("inputs", named), ("inside", inner))
            if names
        )
        return (
            Remedy(
                "openvino-32-bit",
                f"OpenVINO's CPU plugin computes 64-bit numbers in 32 bits: {shown}",
                "wide feeds and fed integer arithmetic that can outgrow int32 are refused; float64 inside is not",
                True,
                "OpenVINO 2026.4.1: Identity of int64 2**40 gives 0, and float64 1e300 + 1 gives 3.4e38",
            ),
        )


class _Accelerator(OpenVinoAdapter):
    """An Intel device beside the CPU, where the host's threads compute nothing."""

    def __init__(self, config: ResolvedConfig, device: Device | None) -> None:
        super().__init__(config, device)
        if config.config.threads is not None:
            raise ConfigError(f"threads have no effect on {self.name()}", where="$.threads", remedy="leave it out")

    def select_operators(self, model: Model, context: Context) -> Selection:
        """See `OpenVinoAdapter`; without a device, what OpenVINO cannot even read."""
        if self.device is not None:
            return super().select_operators(model, context)
        path, shapes = str(model.files["model"]), _shapes(model.graph)
        return Selection(readable(model.graph, lambda: read_bounded(path, shapes), self.target))


class GpuOpenVino(_Accelerator):
    """ONNX models on an Intel GPU. Written from OpenVINO's documentation: no such device was at hand."""

    hardware: ClassVar[str] = "gpu"
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.FP16})
    openvino_device: ClassVar[str] = "GPU"


class NpuOpenVino(_Accelerator):
    """ONNX models on an Intel NPU. Written from OpenVINO's documentation: no such device was at hand."""

    hardware: ClassVar[str] = "npu"
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP16})
    shapes: ClassVar[Shapes] = Shapes.STATIC
    openvino_device: ClassVar[str] = "NPU"


def _shapes(graph: Graph) -> dict[str, list[int | list[int] | None]]:
    """The extents of each input whose rank is known, by axis: a number, a range, or None where nothing bounds it."""
    found: dict[str, list[int | list[int] | None]] = {}
    for value in graph.input_values:
        if value.shape is not None:
            ranges = [graph.range_of(dim) for dim in value.shape]
            found[value.name] = [None if r is None else r.min if r.fixed else [r.min, r.max] for r in ranges]
    return found
