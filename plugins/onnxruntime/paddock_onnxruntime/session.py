"""onnxruntime's session behind Paddock's: what it is asked for, run, bound, and what took effect."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from paddock.errors import RunFailed
from paddock.plan import Precision
from paddock.spi import Arrays, Observed, Session, other_shape
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np

LEVELS = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
SPINNING = "session.intra_op.allow_spinning"
ASSIGNMENT = "session.record_ep_graph_assignment_info"
WORTH_PLACING = 2**16
"""Bytes of outputs from which copying them (with their memory) takes longer than to bind them for one run, 10 us."""
_BINDABLE = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("float16", "int8", "int16", "int32", "int64", "bool")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
}
"""onnxruntime's types that NumPy has as well; strings, bfloat16, sequences and maps are not bound."""
_OTHER_SHAPE = re.compile(
    r"output OrtValue provided for output '(?P<output>.*?)' of node .* but the computed output shape for this run is "
    r"\{(?P<shape>[\d,]*)\}|OrtValue shape verification failed|Tensor size mismatch: source tensor size is \d+",
    re.DOTALL,
)
"""What onnxruntime says where an output has another shape than its place; in a branch it is not the model's output, and
of one that is copied from a device it tells neither the name nor the shape."""


class OnnxRuntimeOptions(BaseModel):
    """The options of `cpu/onnxruntime`. Each is a setting of onnxruntime's session and is read back from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    graph_optimization: Literal["off", "basic", "extended", "all"] = "all"
    """How far onnxruntime rewrites the graph before it runs it."""
    spinning: bool | None = None
    """Whether idle threads spin: some 5 % faster alone, and 2 to 3 times slower for every other runtime in the
    process. Where it is left out, the host decides."""
    memory_arena: bool = True
    """Keep freed intermediates for the next run; without it memory falls back after each run, at some cost."""


class OnnxRuntimeSession(Session):
    """A session of onnxruntime; any number of threads may run it at once, as long as nothing is bound.

    `copies` says whether onnxruntime copies an input when it is bound, as it does to a device of its own: then it is
    bound anew for each run. It then copies outputs from there, by the number of their elements alone.

    Args:
        inner: onnxruntime's InferenceSession.
        outputs: The names of all outputs, in the model's order.
        options: The adapter's options, to know which were asked for.
        int8: Where int8 was asked for, whether anything is left after optimisation that computes in it.
        optimised: How far the model was optimised before it was loaded, where it was.
    """

    copies: ClassVar[bool] = False

    def __init__(
        self,
        inner: Any,
        outputs: tuple[str, ...],
        options: OnnxRuntimeOptions,
        int8: bool | None = None,
        optimised: str | None = None,
    ) -> None:
        self._int8 = int8
        self._optimised = optimised
        self._inner = inner
        self._outputs = list(outputs)
        self._options = options
        self._binding: _Binding | None = _Binding(inner, {}, self.copies)

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Computes the outputs; onnxruntime allocates them anew in each run."""
        inner, binding = self._inner, self._binding
        if inner is None or binding is None:
            raise RunFailed("the session is closed")
        names = self._outputs if outputs is None else list(outputs)
        if binding.names:
            return binding.run(feeds, names)
        if not names:  # onnxruntime would take an empty list for all of them
            return {}
        return dict(zip(names, inner.run(names, feeds), strict=True))

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        """Computes the outputs in the arrays: onnxruntime takes each for its own output of this run.

        Copied instead are small outputs, empty ones, and those that are inputs themselves; and all of a model with an
        input or output of a type that NumPy has not.
        """
        binding = self._binding
        if binding is None:
            raise RunFailed("the session is closed")
        placed = False
        if sum(array.nbytes for array in into.values()) >= WORTH_PLACING:
            try:
                placed = binding.run_into(feeds, into)
            except Exception as error:
                # onnxruntime raises one class for all that fails in a run, here before it writes that output.
                said = _OTHER_SHAPE.search(str(error))
                if said is None:
                    raise
                if said["output"] in into:
                    found = [int(extent) for extent in said["shape"].split(",") if extent]
                    raise other_shape(said["output"], into[said["output"]].shape, found) from None
                # The run below tells which output it was, and its shape.
        if not placed:
            super().run_into(feeds, into)

    def close(self) -> None:
        """Drops onnxruntime's session; runs under way keep it until they end."""
        self._inner = self._binding = None

    def bind(self, buffers: Arrays) -> frozenset[str]:
        """Binds every input, and every output that is no input itself; a bound output is written in each run."""
        if self._inner is None:
            raise RunFailed("the session is closed")
        self._binding = _Binding(self._inner, buffers, self.copies)
        return self._binding.names

    def observed(self) -> Observed:
        """The session's settings as onnxruntime gives them back, and the nodes left after its optimisation."""
        inner = self._inner
        if inner is None:
            return Observed()
        actual = inner.get_session_options()
        levels = {level: name for name, level in LEVELS.items()}
        settings: dict[str, Any] = {
            "threads": actual.intra_op_num_threads,
            "options.graph_optimization": self._optimised or levels.get(actual.graph_optimization_level.name),
            "options.memory_arena": actual.enable_cpu_mem_arena,
        }
        if self._options.spinning is not None:
            settings["options.spinning"] = actual.get_session_config_entry(SPINNING) == "1"
        if self._int8 is not None:
            settings["precision"] = (Precision.INT8 if self._int8 else Precision.FP32).value
        nodes = sum(len(part.get_nodes()) for part in inner.get_provider_graph_assignment_info())
        return Observed(settings, nodes=nodes)


def short(error: Exception) -> str:
    """onnxruntime's message on one line, without its error code."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ", r"\1: ", text)[:600]


@dataclass(frozen=True, slots=True)
class _Port:
    """An input or output of onnxruntime's session: its dtype, None where NumPy has none such, and known extents."""

    dtype: np.dtype[Any] | None
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, port: Any) -> _Port:
        """What onnxruntime's NodeArg says."""
        import numpy as np

        extents = tuple(extent if isinstance(extent, int) else None for extent in port.shape or ())
        return cls(np.dtype(_BINDABLE[port.type]) if port.type in _BINDABLE else None, extents)

    @property
    def told_by_count(self) -> bool:
        """Whether the number of its elements tells its shape."""
        return self.shape.count(None) <= 1

    def fits(self, array: np.ndarray[Any, Any]) -> bool:
        """Whether the array is dense, holds anything, and has the port's dtype, rank and known extents."""
        return (
            array.size > 0
            and array.flags.c_contiguous
            and array.dtype == self.dtype
            and len(self.shape) == array.ndim
            and all(extent is None or extent == real for extent, real in zip(self.shape, array.shape, strict=True))
        )


class _Binding:
    """What of a session is bound, and how it runs then; for one thread at a time where anything is.

    onnxruntime also writes an output that is a constant, or a node's copy of an input, into the place bound for it. One
    that is itself an input comes back as that input's memory instead, so it is not bound. Before it writes an output it
    compares the shape with that of the place, also behind an If or a Loop, and raises where they differ. Where it
    copies the output from a device it compares the number of elements, so that only a shape that this tells is bound.
    """

    def __init__(self, inner: Any, buffers: Arrays, copies: bool = False) -> None:
        self._inner = inner
        inputs = {port.name: _Port.of(port) for port in inner.get_inputs()}
        outputs = {port.name: _Port.of(port) for port in inner.get_outputs()}
        self._both = inputs.keys() & outputs.keys()
        # One port of another type rules IOBinding out for the whole session.
        self._bindable = all(port.dtype is not None for port in (*inputs.values(), *outputs.values()))
        self._takers = {n: port for n, port in outputs.items() if port.told_by_count or not copies}
        arrays = {name: array for name, array in buffers.items() if self._bindable and name not in self._both}
        self._inputs = {n: _value(a) for n, a in arrays.items() if n in inputs and inputs[n].fits(a)}
        self._outputs = {
            n: _value(a)
            for n, a in arrays.items()
            if n in self._takers and self._takers[n].fits(a) and a.flags.writeable and _apart(n, buffers)
        }
        self.names = frozenset(self._inputs) | frozenset(self._outputs)
        self._whole = self._bound() if self.names and not copies else None

    def run(self, feeds: Arrays, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Writes all bound outputs, and gives those of the named ones that are not bound."""
        wanted = [name for name in dict.fromkeys(names) if name not in self._outputs]
        if not wanted and not self._outputs:
            return {}
        if not wanted and not feeds:
            self._inner.run_with_iobinding(self._whole or self._bound())
            return {}
        found = self._run(feeds, dict.fromkeys(wanted))
        return {name: array.copy() if name in self._both else array for name, array in found.items()}

    def run_into(self, feeds: Arrays, into: Arrays) -> bool:
        """Writes the bound outputs and those of `into`, unless there is one that has to be copied: then False."""
        takers = {n: port for n, port in self._takers.items() if self._bindable and n not in self._both}
        if not all(n in takers and takers[n].fits(array) for n, array in into.items()):
            return False
        if into or self._outputs:
            self._run(feeds, {name: _value(array) for name, array in into.items()})
        return True

    def _run(self, feeds: Arrays, places: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """All bound outputs, and those named, each in its place or, where that is None, in new memory."""
        # A new one: onnxruntime would write an unbound output over the one that it gave out in the run before.
        binding = self._bound()
        for name, feed in feeds.items():
            if name not in self._inputs:
                binding.bind_cpu_input(name, feed)
        for name, place in places.items():
            if place is None:
                binding.bind_output(name)
            else:
                binding.bind_ortvalue_output(name, place)
        self._inner.run_with_iobinding(binding)
        values = binding.get_outputs_as_ortvaluevector()  # to iterate over it costs 50 microseconds
        first = len(self._outputs)
        # Each array keeps its value alive.
        return {n: values[first + i].numpy() for i, (n, place) in enumerate(places.items()) if place is None}

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


def _apart(name: str, buffers: Arrays) -> bool:
    """Whether the output's buffer shares no byte with another, which may still be read when the output is written."""
    import numpy as np

    return not any(np.may_share_memory(buffers[name], other) for key, other in buffers.items() if key != name)
