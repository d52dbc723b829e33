"""ONNX Runtime's session on its CUDA provider: how it is made, that nothing else computes in it, and how it is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from paddock.errors import Exhausted, NotAvailable, PaddockError
from paddock.spi import Arrays, Observed
from pydantic import BaseModel, ByteSize, ConfigDict

from paddock_onnxruntime import nvidia
from paddock_onnxruntime.installed import GPU
from paddock_onnxruntime.kernels import CPU, CUDA
from paddock_onnxruntime.named import DATA_FOLDER, Source, full_name
from paddock_onnxruntime.session import ASSIGNMENT, LEVELS, SPINNING, OnnxRuntimeOptions, OnnxRuntimeSession, short

if TYPE_CHECKING:
    import numpy as np

_FATAL = 4
_SEARCHES = {"heuristic": "HEURISTIC", "exhaustive": "EXHAUSTIVE", "default": "DEFAULT"}
_GROWTH = {"double": "kNextPowerOfTwo", "exact": "kSameAsRequested"}
_UNLIMITED = 2**64 - 1
NO_MEMORY = re.compile(
    r"out of memory|Available memory of \d+ is smaller|Failed to allocate memory|ALLOC_FAILED", re.IGNORECASE
)
"""What onnxruntime says where the device's memory, or the limit of its arena, does not suffice: it, CUDA or cuBLAS."""


class CudaOptions(BaseModel):
    """The options of `gpu/cuda`: settings of onnxruntime's session or its CUDA provider, each read back from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    graph_optimization: Literal["off", "basic", "extended", "all"] = "all"
    """How far onnxruntime rewrites the graph before it runs it."""
    tf32: bool = False
    """Multiply float32 in TF32, whose significand has 11 bits: faster, and off by some 1e-3. On in onnxruntime unless
    it is switched off; here float32 is float32 unless this asks for less."""
    conv_search: Literal["heuristic", "exhaustive", "default"] = "heuristic"
    """How cuDNN's algorithm for a convolution is chosen. "exhaustive", which is onnxruntime's own default, times all of
    them for each new shape: the first run takes long, and two sessions may take different ones and differ in digits."""
    conv_max_workspace: bool = True
    """Whether convolutions may take as much scratch memory as their fastest algorithm wants; else 32 MiB."""
    channels_last: bool = False
    """Lay convolutions out with the channels last, which tensor cores prefer."""
    memory_growth: Literal["double", "exact"] = "double"
    """How the arena of device memory grows: twice as much each time, or by what is asked for."""
    arena_limit: ByteSize | None = None
    """The most that the arena of one session takes of the device's memory; a run that needs more fails. Weights,
    intermediates and scratch of convolutions are in it; what CUDA and its libraries take for themselves is not."""

    def provider(self, device: int) -> dict[str, str]:
        """The options of onnxruntime's CUDA provider that these come to."""
        return {
            "device_id": str(device),
            "use_tf32": _flag(self.tf32),
            "cudnn_conv_algo_search": _SEARCHES[self.conv_search],
            "cudnn_conv_use_max_workspace": _flag(self.conv_max_workspace),
            "prefer_nhwc": _flag(self.channels_last),
            "arena_extend_strategy": _GROWTH[self.memory_growth],
            "gpu_mem_limit": str(_UNLIMITED if self.arena_limit is None else int(self.arena_limit)),
        }


@dataclass(frozen=True)
class Placed:
    """Where a session's nodes are: how many on the device, and the operators of those on the host by their names."""

    device: int
    host: Mapping[str, str]


def session(model: Source, options: CudaOptions, device: int, fixed: Mapping[str, int], threads: int = 1) -> Any:
    """onnxruntime's session with the CUDA provider before the CPU's.

    Args:
        model: A model whose nodes are named by `paddock_onnxruntime.named`.
        options: The adapter's.
        device: The device's index.
        fixed: Extents of named dimensions.
        threads: For what is computed on the host.

    Raises `NotAvailable` where onnxruntime leaves the provider out, which it does without an error; and whatever else
    onnxruntime raises.
    """
    import onnxruntime

    nvidia.load()
    # What it logs beside, a line for each session among it, is in what is raised here where it matters.
    onnxruntime.set_default_logger_severity(_FATAL)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL
    settings.intra_op_num_threads = threads
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[options.graph_optimization])
    settings.add_session_config_entry(SPINNING, "0")
    settings.add_session_config_entry(ASSIGNMENT, "1")
    settings.add_session_config_entry(DATA_FOLDER, str(model.folder))
    for name, extent in fixed.items():
        settings.add_free_dimension_override_by_name(name, extent)
    # Without this, onnxruntime prints what went wrong and takes the CPU provider alone.
    made = onnxruntime.InferenceSession(
        model.content, settings, providers=[(CUDA, options.provider(device)), CPU], enable_fallback=0
    )
    made.disable_fallback()  # the same where a run fails
    if CUDA not in made.get_providers():
        lacking = nvidia.lacks()
        told = "; ".join(lack.what for lack in lacking) or "it did not load"
        raise NotAvailable(
            f"onnxruntime left its CUDA provider out and would compute on the CPU: {told}",
            remedy=nvidia.remedy(lacking) or f"pip install --force-reinstall {GPU}",
        )
    return made


def placed(made: Any) -> Placed:
    """Where a session's nodes are, as onnxruntime tells."""
    device, host = 0, dict[str, str]()
    for part in made.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        if part.ep_name == CUDA:
            device += len(nodes)
        else:
            host.update((node.name, node.op_type) for node in nodes)
    return Placed(device, host)


def astray(found: Placed, allowed: Set[str]) -> dict[str, str]:
    """What of a session would compute on the host although it is not one of the names `allowed`, by its operator."""
    return {given: op for given, op in found.host.items() if not {given, full_name(given)} & allowed}


class CudaSession(OnnxRuntimeSession):
    """A session of onnxruntime on the CUDA provider; any number of threads may run it at once, if nothing is bound.

    Feeds are copied to the device, and outputs from it into new arrays or the caller's. On the device they lie in the
    session's own arena: a value made there without a session would stay when the session is closed.

    Args:
        inner: onnxruntime's InferenceSession.
        outputs: The names of all outputs, in the model's order.
        nodes: How many nodes the provider runs.
    """

    copies: ClassVar[bool] = True

    def __init__(self, inner: Any, outputs: tuple[str, ...], nodes: int) -> None:
        super().__init__(inner, outputs, OnnxRuntimeOptions())
        self._nodes = nodes

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Computes the outputs; raises `Exhausted` where the device's memory does not hold what this request takes."""
        with _exhausting():
            return super().run(feeds, outputs)

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        """Computes the outputs in the arrays; raises `Exhausted` as `run` does."""
        with _exhausting():
            super().run_into(feeds, into)

    def observed(self) -> Observed:
        """The session's settings as onnxruntime and its CUDA provider give them back."""
        inner = self._inner
        if inner is None:
            return Observed()
        actual = inner.get_session_options()
        said = inner.get_provider_options()[CUDA]
        levels = {level: name for name, level in LEVELS.items()}
        limit = int(said["gpu_mem_limit"])
        return Observed(
            {
                "threads": actual.intra_op_num_threads,
                "options.graph_optimization": levels.get(actual.graph_optimization_level.name),
                "options.tf32": said["use_tf32"] == "1",
                "options.conv_search": _named(_SEARCHES, said["cudnn_conv_algo_search"]),
                "options.conv_max_workspace": said["cudnn_conv_use_max_workspace"] == "1",
                "options.channels_last": said["prefer_nhwc"] == "1",
                "options.memory_growth": _named(_GROWTH, said["arena_extend_strategy"]),
                "options.arena_limit": None if limit == _UNLIMITED else limit,
            },
            nodes=self._nodes,
        )


@contextmanager
def _exhausting() -> Iterator[None]:
    """Tells a run for which the memory does not suffice by an error of its own."""
    try:
        yield
    except PaddockError:
        raise
    except Exception as error:  # onnxruntime raises one class for all that fails in a run
        if NO_MEMORY.search(str(error)) is None:
            raise
        raise Exhausted(
            f"the device's memory does not hold this request: {short(error)}",
            remedy="smaller requests (batch_size, shapes), fewer instances, or a larger options.arena_limit",
        ) from error


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _named(names: Mapping[str, str], value: str) -> str:
    """The option's own word for a value of onnxruntime's."""
    return next((name for name, known in names.items() if known == value), value)
