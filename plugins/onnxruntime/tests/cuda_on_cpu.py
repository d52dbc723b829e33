"""A fake GPU that computes: `gpu/cuda` with onnxruntime's CPU provider in the place of CUDA's.

The numbers are the CPU's. What is tested by it is how the adapter handles models, shapes, buffers and threads, and that
it tells of its options; what the real provider does is `test_cuda_fake.py`'s.
"""

from __future__ import annotations

from typing import Any

from paddock.plan import Precision, Verdict
from paddock.spi import Artifact, Device, Devices, Probe
from paddock_onnxruntime.cuda import GpuCuda, named
from paddock_onnxruntime.cuda_session import CudaOptions
from paddock_onnxruntime.kernels import CPU, CUDA
from paddock_onnxruntime.session import ASSIGNMENT, LEVELS, SPINNING


class FakeInner:
    """onnxruntime's session on the CPU, which says of its provider's options what the CUDA provider was told."""

    def __init__(self, inner: Any, options: CudaOptions) -> None:
        self._inner = inner
        self._options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """As onnxruntime gives them, by provider."""
        return {CUDA: self._options.provider(0)}


class CudaOnCpu(GpuCuda):
    """The adapter on the fake GPU, in float32."""

    @classmethod
    def probe(cls) -> Probe:
        """Always there."""
        return Probe(Verdict.yes("a fake", "this test"), {"fake": "1"})

    @classmethod
    def probe_device(cls) -> Devices:
        """One device, which is the CPU."""
        no = Verdict.no("the fake computes in float32", "this test")
        precisions = {Precision.FP32: Verdict.yes("", "this test"), Precision.FP16: no, Precision.BF16: no}
        return Devices(Verdict.yes("a fake", "this test"), (Device(0, "the CPU in the place of a GPU", precisions),))

    def _session(self, artifact: Artifact) -> tuple[Any, int]:
        import onnxruntime

        options = self._options
        source = named(artifact.files["model"], artifact.facts["cast_depths"])
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = self.config.threads
        level = LEVELS[options.graph_optimization]
        settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        settings.add_session_config_entry(SPINNING, "0")
        settings.add_session_config_entry(ASSIGNMENT, "1")
        for name, extent in artifact.facts["fixed_dims"].items():
            settings.add_free_dimension_override_by_name(name, extent)
        made = onnxruntime.InferenceSession(source.content, settings, providers=[CPU])
        nodes = sum(len(part.get_nodes()) for part in made.get_provider_graph_assignment_info())
        return FakeInner(made, options), nodes
