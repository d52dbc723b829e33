"""`cpu/paddle` and `cpu/mkldnn`: Paddle Inference on the CPU, plain and with oneDNN.

Paddle builds its program when a predictor is made, so compiling refers to the model's own files and states what a
predictor is to be made with. `PaddleAdapter` is the base for every device that Paddle serves.

On the CPU Paddle has no limit to hand a memory plan's figure to: FLAGS_fraction_of_cpu_memory_to_use and
FLAGS_initial_cpu_memory_in_mb stop no allocation, under either allocator strategy (paddlepaddle 3.3.1).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from paddock.errors import BuildFailed, NotAvailable, PaddockError, StrictnessError
from paddock.model import Model
from paddock.plan import Means, Precision, PrecisionPlan, Remedy, Verdict
from paddock.spi import (
    Adapter,
    Artifact,
    Concurrency,
    Context,
    Device,
    Devices,
    Footprint,
    Probe,
    ReferenceRole,
    SegmentPlan,
    Selection,
    Session,
    Shapes,
    Threading,
)
from pydantic import BaseModel, ConfigDict, Field

from paddock_paddle import defects, footprint, sdk
from paddock_paddle.format import open_program
from paddock_paddle.predictor import PaddleSession, create

if TYPE_CHECKING:
    from paddock_paddle.kernels import Selector

_METADATA = "package metadata"


class PaddleAdapter(Adapter):
    """Paddle Inference: what all its devices share.

    A device adds `configure` (what it sets on a paddle.inference.Config) and, where its kernels are not the CPU's own,
    `selector` and `probe_device`.

    Each session has a thread of its own. That costs a hand-over (10 to 20 microseconds) for each run, and memory for
    each thread, but Paddle keeps state by thread that one predictor changes under another.
    """

    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("paddle",)
    shapes: ClassVar[Shapes] = Shapes.DYNAMIC
    # Paddle keeps the layout in which oneDNN reads tensors by thread (phi::OneDNNContext::tls()). A predictor of
    # cpu/paddle whose passes chose NHWC leaves it there, and a oneDNN predictor run later on that thread takes its own
    # inputs for NHWC: a softmax over [3, 8, 4] gives [3, 4, 8] without a message (paddlepaddle 3.3.1). Nothing resets
    # it for certain: destroying a paddle.base.core.Executor does (3 microseconds), but skips that once for each run of
    # a model with control flow before. So no two predictors may share a thread, nor the user's own with one of ours.
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.BOUND)
    environment: ClassVar[tuple[str, ...]] = ("FLAGS_*", "*_MAX_CPU_ISA", "*_CPU_ISA_HINTS", "*_DEFAULT_FPMATH_MODE")
    """Paddle's flags, and what oneDNN reads by either of its prefixes."""
    prints_on_first_run: ClassVar[bool] = False
    """Whether Paddle prints on stdout while it runs for the first time."""
    session: ClassVar[type[PaddleSession]] = PaddleSession

    @classmethod
    def probe(cls) -> Probe:
        """Whether paddlepaddle is installed, from its metadata."""
        try:
            version = importlib.metadata.version("paddlepaddle")
            if importlib.util.find_spec("paddle") is None:
                raise importlib.metadata.PackageNotFoundError("paddle")
        except (importlib.metadata.PackageNotFoundError, ValueError):
            return Probe(Verdict.no("paddlepaddle is not installed", _METADATA), {}, sdk.INSTALL)
        if int(version.partition(".")[0] or 0) < 3:
            return Probe(
                Verdict.no(f"paddlepaddle {version} reads no PIR programs; 3.3 is needed", _METADATA),
                {"paddlepaddle": version},
                sdk.INSTALL,
            )
        return Probe(Verdict.yes("installed", _METADATA), {"paddlepaddle": version})

    def configure(self, config: Any, facts: Mapping[str, Any]) -> None:
        """Sets what this device needs on a paddle.inference.Config; `facts` are the artifact's."""
        raise NotImplementedError

    def selector(self, model: Model) -> Selector:
        """Who judges the nodes."""
        from paddock_paddle.kernels import Selector  # not needed to serve what is kept

        return Selector(model.graph)

    def means(self, precision: Precision) -> Means:
        """A setting of Paddle's own, for all that a session is given: what is to stay in fp32 gets one of its own."""
        return Means.BACKEND

    def device_facts(self) -> Mapping[str, Any]:
        """What `configure` needs beside threads and precision; JSON data, kept in the artifact."""
        return {}

    def read_back(self, config: Any) -> Mapping[str, Any]:
        """Settings that a paddle.inference.Config gives back, in Paddock's terms."""
        return {"threads": config.cpu_math_library_num_threads()}

    def select_operators(self, model: Model, context: Context) -> Selection:
        """A verdict for each node from Paddle's kernel registry; imports Paddle, builds nothing."""
        return Selection(self.selector(model).verdicts())

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """Refers to the model's files, checked once more, and states what the predictor is to be made with.

        Raises:
            StrictnessError: The plan asks for a precision that this adapter does not compute in.
            ModelError: The files are not a matching pair.
        """
        precision = plan.precision.precision
        if precision not in self.precisions:
            raise StrictnessError(
                f"{self.name()} cannot compute in {precision}",
                candidates=sorted(self.precisions),
                remedy='"precision": "fp32"',
            )
        open_program(model.files)
        return Artifact(
            adapter=self.name(),
            format=model.format,
            files=dict(model.files),
            inputs=tuple(value.name for value in model.graph.input_values),
            outputs=tuple(value.name for value in model.graph.output_values),
            bounds=dict(model.graph.bounds),
            facts={
                "precision": precision.value,
                "threads": self.config.threads,
                "deleted_passes": list(defects.passes_to_delete(plan.remedies)),
                "paddlepaddle": defects.installed(),
                **self.device_facts(),
            },
        )

    def compatible(self, artifact: Artifact) -> Verdict:
        """Whether the artifact was made for the Paddle that is installed."""
        made, here = artifact.facts.get("paddlepaddle"), defects.installed()
        if made != here:
            return Verdict.no(f"it was made for paddlepaddle {made}, and {here or 'none'} is installed", _METADATA)
        return Verdict.yes()

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A predictor in this process; raises `ModelError` for broken files and `BuildFailed` for what Paddle refuses.

        Paddle does not notice missing or shortened weights, so the files are checked here as well.
        """
        program = artifact.files["program"]
        open_program(artifact.files)
        inference = sdk.import_quietly("paddle.inference")
        try:
            config = inference.Config(str(program), str(artifact.files.get("params", "")))
            config.disable_glog_info()
            config.enable_new_executor()
            config.enable_new_ir(True)
            config.enable_memory_optim()
            config.set_cpu_math_library_num_threads(artifact.facts["threads"])
            self.configure(config, artifact.facts)
            for name in artifact.facts["deleted_passes"]:
                config.delete_pass(name)
            predictor, realised = create(config)
            return self.session(predictor, artifact.outputs, self.read_back(config), realised, self.prints_on_first_run)
        except PaddockError:
            raise
        except Exception as error:
            raise BuildFailed(f"Paddle cannot load the model: {sdk.short(error)}", where=str(program)) from error


class PlainOptions(BaseModel):
    """The options of `cpu/paddle`."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    optimize: bool = True
    """Whether Paddle's passes may fuse and fold operations. Off is the plainest path, which the reference takes; the
    kernels are the same otherwise. Paddle gives no way to read it back."""


class CpuPaddle(PaddleAdapter):
    """Paddle Inference on its own CPU kernels, in fp32: the reference for Paddle models."""

    hardware: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "paddle"
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32})
    references: ClassVar[Mapping[str, ReferenceRole]] = {"paddle": ReferenceRole(rank=0, options={"optimize": False})}
    Options: ClassVar[type[BaseModel]] = PlainOptions

    @classmethod
    def probe_device(cls) -> Devices:
        """The CPU; imports Paddle."""
        paddle = sdk.import_quietly("paddle")
        fp32 = Verdict.yes("Paddle's CPU kernels compute in it", "paddle's phi kernel registry")
        facts = {"paddlepaddle": str(paddle.version.full_version), "commit": str(paddle.version.commit)}
        return Devices(Verdict.yes("", "import paddle"), (Device(0, "CPU", {Precision.FP32: fp32}),), facts)

    def configure(self, config: Any, facts: Mapping[str, Any]) -> None:
        """Paddle's own kernels only: oneDNN is on unless it is disabled."""
        config.disable_gpu()
        config.disable_mkldnn()
        if not facts["optimize"]:
            config.set_optimization_level(0)

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint:
        """What was measured of Paddle's own kernels, as a bound."""
        return footprint.plain(model.graph)

    def device_facts(self) -> Mapping[str, Any]:
        """Whether Paddle's passes run."""
        options = self.config.options
        return {"optimize": options.optimize if isinstance(options, PlainOptions) else True}


class MkldnnOptions(BaseModel):
    """The options of `cpu/mkldnn`."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    workarounds: bool = True
    """Mend what Paddle is known to get wrong with oneDNN (the plan lists it); it cost one decoder 8 % of its speed and
    ResNet-50 nothing measurable. Without it some models give wrong numbers, and verification refuses them."""
    kept_shapes: Annotated[int, Field(ge=1)] = 10
    """For how many shapes of the inputs oneDNN keeps its primitives, each with weights of their own: memory for speed
    where shapes vary. ResNet-50 served at 16 batch sizes takes 1,467 MiB with 10, Paddle's default, and 534 with 1."""


class CpuMkldnn(PaddleAdapter):
    """Paddle Inference with oneDNN, in fp32 or bf16; operations without a oneDNN kernel run on Paddle's own."""

    hardware: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "mkldnn"
    aliases: ClassVar[tuple[str, ...]] = ("onednn",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.BF16, Precision.INT8})
    prints_on_first_run: ClassVar[bool] = True
    savers: ClassVar[Mapping[str, Sequence[Any]]] = {"options.kept_shapes": (1,)}
    Options: ClassVar[type[BaseModel]] = MkldnnOptions

    @classmethod
    def probe_device(cls) -> Devices:
        """The CPU, if this Paddle was built with oneDNN, and whether it computes in bf16; imports Paddle."""
        paddle = sdk.import_quietly("paddle")
        if not paddle.base.core.is_compiled_with_onednn():
            return Devices(Verdict.no("this paddlepaddle was built without oneDNN", "is_compiled_with_onednn()"))
        precisions = {
            Precision.FP32: Verdict.yes("oneDNN's float32 kernels compute in it", "paddle's phi kernel registry"),
            Precision.BF16: _bf16(paddle.base.core),
            Precision.INT8: _NO_INT8,
        }
        facts = {"paddlepaddle": str(paddle.version.full_version), "commit": str(paddle.version.commit)}
        return Devices(Verdict.yes("", "is_compiled_with_onednn()"), (Device(0, "CPU", precisions),), facts)

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """What Paddle gets wrong with oneDNN on this model, and whether `workarounds` mends it."""
        options = self.config.options
        workarounds = options.workarounds if isinstance(options, MkldnnOptions) else True
        return defects.remedies(model.graph, self.config.precision, workarounds)

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint:
        """What was measured of Paddle with oneDNN, as a bound."""
        return footprint.onednn(model.graph, self.kept_shapes)

    @property
    def kept_shapes(self) -> int:
        """For how many shapes oneDNN keeps its primitives."""
        options = self.config.options
        return (options if isinstance(options, MkldnnOptions) else MkldnnOptions()).kept_shapes

    def device_facts(self) -> Mapping[str, Any]:
        """Beside threads and precision: for how many shapes primitives are kept."""
        return {"kept_shapes": self.kept_shapes}

    def selector(self, model: Model) -> Selector:
        """oneDNN's kernels first, then Paddle's own."""
        from paddock_paddle.kernels import Selector

        return Selector(
            model.graph,
            backend="ONEDNN",
            computes_in="bfloat16" if self.config.precision is Precision.BF16 else "float32",
        )

    def configure(self, config: Any, facts: Mapping[str, Any]) -> None:
        """oneDNN, in bf16 where the plan says so; raises `NotAvailable` where Paddle would silently ignore that."""
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_mkldnn_cache_capacity(facts["kept_shapes"])
        if facts["precision"] == Precision.BF16:
            verdict = _bf16(sdk.import_quietly("paddle").base.core)
            if not verdict.usable:
                raise NotAvailable(f"{self.name()}: {verdict.reason}", where="$.precision", candidates=["fp32"])
            config.enable_mkldnn_bfloat16()


_NO_INT8 = Verdict.no(
    "enable_mkldnn_int8 is a silent no-op on PIR programs, quantised ones too; the old format, which is computed in "
    "int8, is written from Python layers, not from a saved program; cpu/openvino and cpu/onnxruntime quantise it",
    "measured with paddlepaddle 3.3.1",
)


def _bf16(core: Any) -> Verdict:
    source = "paddle.base.core.supports_bfloat16()"
    if core.supports_bfloat16():
        native = core.supports_bfloat16_fast_performance()
        return Verdict.yes("native" if native else "emulated by AVX-512 (no avx512_bf16): correct, not faster", source)
    missing = ", ".join(flag for flag in _BF16_FLAGS if flag not in _cpu_flags()) or "AVX-512"
    return Verdict.no(f"this CPU lacks {missing}, without which Paddle silently stays in fp32", source)


_BF16_FLAGS = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
"""What oneDNN calls avx512_core: the least on which Paddle takes bf16."""


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())
