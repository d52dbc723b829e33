"""`npu/qualcomm`: ONNX models on the tensor processors (HTP) of Qualcomm's chips, through onnxruntime's QNN provider.

On x86 the same package brings Qualcomm's backend as a simulation that computes on the host's CPU: what it takes, and in
which precision, is the backend's own answer; how fast it is says nothing about an NPU.

The artifact is a context: QNN's compiled graph in an ONNX file with one node. Everything that is asked of the provider
is asked in processes of their own, and sessions live in one of their own, since the provider's options stick to a
process (see `paddock_qualcomm.sdk`). Its device's answers are static shapes and, on x86, fp32 as well.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from paddock.errors import BuildFailed, ConfigError, NotAvailable, StrictnessError, Unsupported
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
    Process,
    Quantizer,
    ResolvedConfig,
    SegmentPlan,
    Selection,
    Session,
    Shapes,
    Threading,
)
from pydantic import BaseModel, ConfigDict, PositiveInt

from paddock_qualcomm import footprint
from paddock_qualcomm.sdk import PROVIDER, SIMULATED, devices, is_simulated, session, short
from paddock_qualcomm.session import QualcommSession

if TYPE_CHECKING:
    from paddock_qualcomm.asking import Compiled

INSTALL = "pip install paddock-qualcomm[sdk]"
SDK = "onnxruntime-qnn"
_CONTEXT = "context"
"""The role of the one file of an artifact."""


class QualcommOptions(BaseModel):
    """The options of `npu/qualcomm`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    soc_model: PositiveInt | None = None
    """Qualcomm's number of the chip to compile for, as in 57 for the Snapdragon 8 Gen 3; the host's own chip, or the
    simulation's general one, where it is left out. For a given chip float32 is computed in float16."""


class NpuQualcomm(Adapter):
    """ONNX models on Qualcomm's HTP backend, of fixed shapes."""

    hardware: ClassVar[str] = "npu"
    backend: ClassVar[str] = "qualcomm"
    aliases: ClassVar[tuple[str, ...]] = ("qnn",)
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.FP16, Precision.INT8})
    shapes: ClassVar[Shapes] = Shapes.STATIC
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.SERIAL)
    process: ClassVar[Process] = Process.EXCLUSIVE
    quantizes_with: ClassVar[tuple[str, ...]] = ("ml_dtypes", "paddock-onnxruntime")
    Options: ClassVar[type[BaseModel]] = QualcommOptions

    def __init__(self, config: ResolvedConfig, device: Device | None) -> None:
        super().__init__(config, device)
        if self._soc_model is not None and config.precision is Precision.FP32:
            raise ConfigError(
                "for a given chip the backend computes float32 in float16",
                where="$.options.soc_model", remedy='ask for "precision": "fp16", or leave soc_model out',
            )  # fmt: skip

    @classmethod
    def probe(cls) -> Probe:
        """Whether onnxruntime, its QNN provider and onnx are installed, from their metadata."""
        versions = {}
        for package in (SDK, "onnxruntime", "onnx"):
            try:
                if importlib.util.find_spec(package.replace("-", "_")) is None:
                    raise importlib.metadata.PackageNotFoundError(package)
                versions[package] = importlib.metadata.version(package)
            except (importlib.metadata.PackageNotFoundError, ValueError):
                return Probe(Verdict.no(f"{package} is not installed", "package metadata"), versions, INSTALL)
        return Probe(Verdict.yes("installed", "package metadata"), versions)

    @classmethod
    def probe_device(cls) -> Devices:
        """The backend's device, and what it computes in; imports onnxruntime and its QNN provider."""
        from onnxruntime_qnn.build_and_package_info import qnn_version

        from paddock_qualcomm.precisions import precisions  # like all of building, not needed to serve what is kept

        origin = "onnxruntime.get_ep_devices()"
        found = devices()
        if not found:
            return Devices(Verdict.no(f"the {PROVIDER} finds no device that its HTP backend serves", origin))
        first = found[0]
        name = SIMULATED if is_simulated() else f"{first.ep_vendor} {first.device.type.name}"
        facts = {
            "provider": PROVIDER,
            "QNN": qnn_version,
            "backend": "HTP",
            "simulated": is_simulated(),
            "chip": "none: the backend's general one" if is_simulated() else "the host's",
        }
        note = "no NPU: Qualcomm's HTP backend computes on the host's CPU" if is_simulated() else ""
        return Devices(Verdict.yes(note, origin), (Device(0, name, precisions()),), facts)

    def select_operators(self, model: Model, context: Context) -> Selection:
        """A verdict for each node by compiling the model in a child; from a list where the device is not here."""
        from paddock_qualcomm.operators import listed, verdicts

        if self.device is None:
            return Selection(listed(model.graph))
        context.progress("QNN: compiling the model to see what it takes")
        return Selection(verdicts(model.graph, model.files["model"], self._soc_model))

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """The forms of operators that the backend computes wrongly; see `paddock_qualcomm.wrong`."""
        from paddock_qualcomm.wrong import wrong

        return wrong(model.graph, self.probe().versions, self.config.precision)

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """Compiles the model into a context, in a child.

        Raises:
            Unsupported: The provider refuses nodes, or fails to compile what it took.
            StrictnessError: Something stays in float32 that the backend would compute in float16.
        """
        from paddock.child import call_in_child

        from paddock_qualcomm.asking import SECONDS, build
        from paddock_qualcomm.named import named, source

        refused = [i for i, verdict in enumerate(plan.verdicts) if verdict.answer is Answer.NO]
        if refused:
            raise Unsupported(refused, plan.verdicts[refused[0]].reason)
        graph, path = model.graph, model.files["model"]
        context.progress(f"QNN: compiling {path.name}")
        written = context.work / "context.onnx"
        written.unlink(missing_ok=True)
        given = source(named(path, graph), path)
        found = call_in_child("compiling for QNN", build, given, self._soc_model, written, seconds=SECONDS)
        if isinstance(found, str):
            raise Unsupported((), found)
        self._check(found)
        return Artifact(
            adapter=self.name(),
            format=model.format,
            files={_CONTEXT: written},
            inputs=tuple(value.name for value in graph.input_values),
            outputs=tuple(value.name for value in graph.output_values),
            bounds=dict(graph.bounds),
            facts={
                "settings": self._settings(found),
                "nodes": found.nodes,
                "products": dict(found.products),
                "sdk": self.probe().versions.get(SDK),
            },
        )

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A session on the context; raises `BuildFailed`."""
        path = artifact.files[_CONTEXT]
        try:
            inner = session(path, self._soc_model)
        except Exception as error:  # onnxruntime raises classes of its own that share only this base
            raise BuildFailed(
                f"QNN cannot load what it compiled: {short(error)}", where=str(path),
                remedy="`paddock cache clear` lets it be compiled again",
            ) from error  # fmt: skip
        facts = artifact.facts
        return QualcommSession(inner, artifact.outputs, facts["settings"], facts["nodes"])

    def quantizer(self, model: Model, samples: Sequence[Arrays], work: Path) -> Quantizer:
        """onnxruntime's, by the rules that it has for this provider."""
        if importlib.util.find_spec("ml_dtypes") is None:
            remedy = "pip install paddock-qualcomm[quantization]"
            raise NotAvailable("onnxruntime's quantiser needs ml_dtypes", remedy=remedy)
        from paddock_qualcomm.quantizer import QualcommQuantizer

        return QualcommQuantizer(model.files["model"], samples, work)

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint:
        """What was measured of the simulation, as a bound."""
        return footprint.footprint()

    def compatible(self, artifact: Artifact) -> Verdict:
        """A context is for the version that wrote it."""
        written, here = artifact.facts.get("sdk"), self.probe().versions.get(SDK)
        if written != here:
            return Verdict.no(f"compiled by {SDK} {written}, and {here or 'none'} is here", "the artifact's facts")
        return Verdict.yes(f"compiled by {SDK} {written}", "the artifact's facts")

    @property
    def _soc_model(self) -> int | None:
        options = self.config.options
        return options.soc_model if isinstance(options, QualcommOptions) else None

    def _check(self, found: Compiled) -> None:
        if self._soc_model is not None and self.config.precision is Precision.FP16 and found.wide:
            raise StrictnessError(
                f"{found.wide} operators stay in float32, which for a given chip the backend computes in float16",
                where="$.options.soc_model", remedy="leave soc_model out, or keep nothing in fp32",
            )  # fmt: skip

    def _settings(self, found: Compiled) -> Mapping[str, Any]:
        """What took effect, in the config's terms."""
        from paddock_qualcomm.precisions import computed

        told = computed(found, self._soc_model)
        settings: dict[str, Any] = {} if told is None else {"precision": told.value}
        if told is Precision.INT8 and self.config.precision is not Precision.INT8:
            del settings["precision"]  # the model was quantised before it came here
        if found.soc_model is not None:
            settings["options.soc_model"] = found.soc_model
        return settings
