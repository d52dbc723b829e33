"""A loaded model: one infer request on a compiled model, which all forks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from paddock.errors import BuildFailed, RunFailed, UsageError
from paddock.spi import Arrays, Observed, Session, other_shape

from paddock_openvino.sdk import openvino

if TYPE_CHECKING:
    import numpy as np

_INT32 = (-(2**31), 2**31 - 1)
_LONG_LONG = {"q": "int64", "Q": "uint64"}
"""C's long long, which equals NumPy's int64 and is another type to OpenVINO, which knows none such."""
_FLOAT32_MAX = 3.4028234663852886e38
_BINDABLE = frozenset({"f16", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "boolean"})
"""OpenVINO's element types that NumPy has as well."""
WORTH_PLACING = 2**18
"""Bytes of an output from which copying it takes longer than to choose its place for one run (some 12 us)."""


class OpenVinoSession(Session):
    """One infer request. OpenVINO refuses a second run while one is under way, so a request is for one at a time.

    Args:
        compiled: OpenVINO's compiled model.
        inputs: The names of all inputs.
        outputs: The names of all outputs, in the model's order.
        settings: What took effect, in the config's terms.
        mapped: What has to live as long as the compiled model, where it reads from it.

    Raises `BuildFailed` where OpenVINO has lost the name of an input or output.
    """

    def __init__(
        self,
        compiled: Any,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        settings: Mapping[str, Any],
        mapped: Any = None,
    ) -> None:
        self._compiled = compiled
        self._mapped = mapped
        self._request = compiled.create_infer_request()
        self._tensor = openvino().Tensor
        self._names = (inputs, outputs)
        self._settings = settings
        ports = {name: i for i, port in enumerate(compiled.inputs) for name in port.get_names()}
        self._inputs = {name: ports[name] for name in inputs if name in ports}
        _check_fed(compiled, self._inputs)
        self._outputs = _ports_of(compiled, outputs)
        self._bound: Mapping[str, np.ndarray[Any, Any]] = {}
        self._on_cpu = on_cpu = list(compiled.get_property("EXECUTION_DEVICES")) == ["CPU"]
        types = {name: compiled.inputs[i].get_element_type().get_type_name() for name, i in self._inputs.items()}
        self._narrowed = frozenset(n for n, kind in types.items() if on_cpu and kind in ("i64", "u64", "u32", "f64"))

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Computes the outputs. Feeds are read where they lie; outputs are copied out of the request's memory.

        Raises `UsageError` for a number that the CPU plugin would silently cut to 32 bits.
        """
        bound = self._bound
        names = self._outputs if outputs is None else outputs
        results = self._infer(feeds, shared=bool(bound))
        found = {name: results[self._outputs[name]] for name in names if name not in bound}
        return {name: array.copy() for name, array in found.items()} if bound else found

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        """Computes large outputs of fixed shape in the arrays, on the CPU; copies the others once.

        An output of variable shape OpenVINO's CPU plugin would compute in memory of its own and copy, whatever it is
        given, and it would write one that turns out to be smaller into the front of the array.
        """
        request = self._request
        if request is None:
            raise RunFailed("the session is closed")
        fixed = self._fixed_outputs
        placed = {self._outputs[n]: a for n, a in into.items() if n in fixed and a.nbytes >= WORTH_PLACING}
        placed = {i: a for i, a in placed.items() if _fits(a, self._compiled.outputs[i])}
        own = {index: request.get_output_tensor(index) for index in placed}  # all, before any is set
        try:
            for index, array in placed.items():
                request.set_output_tensor(index, self._tensor(array, True))
            if not all(_lies(request, index, array) for index, array in placed.items()):
                for index, tensor in own.items():
                    request.set_output_tensor(index, tensor)
                placed = {}
            results = self._infer(feeds, shared=True)
        finally:  # or the next run would write there
            for index, tensor in own.items():
                request.set_output_tensor(index, tensor)
        for name, array in into.items():
            if self._outputs[name] not in placed:
                result = results[self._outputs[name]]
                if result.shape != array.shape:
                    raise other_shape(name, array.shape, result.shape)
                array[...] = result

    def _infer(self, feeds: Arrays, shared: bool) -> list[np.ndarray[Any, Any]]:
        """One run; every output in the order of OpenVINO's ports, `shared` with the request's memory or copied."""
        request = self._request
        if request is None:
            raise RunFailed("the session is closed")
        bound = self._bound
        kept = []  # OpenVINO's tensor does not hold the memory that it was given
        for name, index in self._inputs.items():
            feed = bound[name] if name in bound else feeds[name]
            if name in self._narrowed:
                _refuse_wide(name, feed)
            if name not in bound:
                if not feed.flags.writeable:  # such memory OpenVINO does not take, although it would not write to it
                    feed = feed.copy()
                    kept.append(feed)
                if feed.dtype.char in _LONG_LONG:
                    feed = feed.view(_LONG_LONG[feed.dtype.char])
                request.set_input_tensor(index, self._tensor(feed, True))
        return list(request.infer(share_outputs=shared).values())

    def close(self) -> None:
        """Drops the request, and the compiled model with the last of its requests."""
        self._request = self._compiled = None
        self._mapped = None  # last: what was compiled reads from it
        self._bound = {}

    def fork(self) -> Session | None:
        """Another request on the same compiled model, with intermediates of its own and nothing bound."""
        if self._compiled is None:
            raise RunFailed("the session is closed")
        return OpenVinoSession(self._compiled, *self._names, self._settings, self._mapped)

    def bind(self, buffers: Arrays) -> frozenset[str]:
        """Binds, on the CPU, what has a fixed shape; no output whose memory OpenVINO shares with another.

        An output that is a constant, or a copy of an input, is written into its buffer in each run like any other.
        """
        if self._request is None:
            raise RunFailed("the session is closed")
        places = {n: a for n, a in buffers.items() if self._on_cpu and self._bindable(n, a, buffers)}
        while places:
            # A new one each time: what a request was once given cannot be taken from it again.
            request = self._compiled.create_infer_request()
            for name, array in places.items():
                if name in self._inputs:
                    request.set_input_tensor(self._inputs[name], self._tensor(array, True))
                else:
                    request.set_output_tensor(self._outputs[name], self._tensor(array, True))
            taken = {n: a for n, a in places.items() if n in self._inputs or _lies(request, self._outputs[n], a)}
            if len(taken) == len(places):
                self._request, self._bound = request, places
                break
            places = taken
        return frozenset(places)

    def _bindable(self, name: str, array: np.ndarray[Any, Any], buffers: Arrays) -> bool:
        if (name in self._inputs) is (name in self._outputs):
            return False
        ports = self._compiled.inputs if name in self._inputs else self._compiled.outputs
        port = ports[self._inputs[name] if name in self._inputs else self._outputs[name]]
        if not _fits(array, port):
            return False
        return name in self._inputs or (name in self._fixed_outputs and _apart(name, buffers))

    @cached_property
    def _fixed_outputs(self) -> frozenset[str]:
        """The outputs on the CPU whose place can be chosen: of fixed shape, and with a tensor of their own.

        Outputs of one tensor carry all of its names; OpenVINO gives them one place together.
        """
        ports = [*self._compiled.inputs, *self._compiled.outputs]
        names = {name: self._compiled.outputs[i].get_names() for name, i in self._outputs.items()}
        return frozenset(
            name
            for name, index in self._outputs.items()
            if self._on_cpu
            and name not in self._inputs
            and self._compiled.outputs[index].get_partial_shape().is_static
            and sum(bool(port.get_names() & names[name]) for port in ports) == 1
        )

    def observed(self) -> Observed:
        """The compiled model's properties as OpenVINO gives them back, and the operations of its runtime graph."""
        if self._compiled is None:
            return Observed(self._settings)
        kinds = [op.get_rt_info()["layerType"].astype(str) for op in self._compiled.get_runtime_model().get_ops()]
        return Observed(self._settings, nodes=sum(kind not in ("Input", "Output", "Const") for kind in kinds))


def _check_fed(compiled: Any, inputs: Mapping[str, int]) -> None:
    # Seen on OpenVINO 2026.4.1: a Dropout of x that is the output y renames the input to y. Nothing would ever be put
    # there, and the answer would be whatever the memory holds.
    for index, port in enumerate(compiled.inputs):
        if index not in inputs.values():
            raise BuildFailed(
                f"OpenVINO has an input {port.get_any_name()!r} that is none of the model's",
                candidates=sorted(inputs),
                remedy="deploy it on cpu/onnxruntime",
            )


def _ports_of(compiled: Any, outputs: tuple[str, ...]) -> dict[str, int]:
    # Compiling keeps the outputs' order but not always their names: of an output and another that is a copy of it, both
    # ports may carry one name (OpenVINO 2026.4.1).
    carried = [port.get_names() for port in compiled.outputs]
    known = set().union(*carried)
    if len(carried) == len(outputs) and all(n in c or n not in known for n, c in zip(outputs, carried, strict=True)):
        return {name: i for i, name in enumerate(outputs)}
    ports = {name: i for i, names in enumerate(carried) for name in names}
    lost = [name for name in outputs if name not in ports]
    if lost:
        raise BuildFailed(
            f"OpenVINO has lost the name of the outputs {', '.join(lost)}", remedy="deploy it on cpu/onnxruntime"
        )
    return {name: ports[name] for name in outputs}


def _fits(array: np.ndarray[Any, Any], port: Any) -> bool:
    """Whether the array can be the port's own memory: dense, writeable, not empty, of its dtype and fixed shape."""
    if not (array.size and array.flags.c_contiguous and array.flags.writeable and port.get_partial_shape().is_static):
        return False
    kind = port.get_element_type()
    return kind.get_type_name() in _BINDABLE and kind.to_dtype() == array.dtype and tuple(port.shape) == array.shape


def _lies(request: Any, index: int, array: np.ndarray[Any, Any]) -> bool:
    """Whether the request's output is still at the array's place after all others were set."""
    return bool(request.get_output_tensor(index).data.ctypes.data == array.ctypes.data)


def _apart(name: str, buffers: Arrays) -> bool:
    """Whether the output's buffer shares no byte with another, which may still be read when the output is written."""
    import numpy as np

    return not any(np.may_share_memory(buffers[name], other) for key, other in buffers.items() if key != name)


def _refuse_wide(name: str, feed: np.ndarray[Any, Any]) -> None:
    if not feed.size:
        return
    low, high = feed.min(), feed.max()
    if feed.dtype.kind == "f":
        wide = (high > _FLOAT32_MAX and high != float("inf")) or (low < -_FLOAT32_MAX and low != float("-inf"))
        kind = "float32"
    else:
        wide, kind = low < _INT32[0] or high > _INT32[1], "int32"
    if wide:
        raise UsageError(
            f"holds {low} to {high}, and OpenVINO's CPU plugin computes {feed.dtype} in {kind}",
            where=f"input {name!r}",
            remedy="cpu/onnxruntime computes it in full",
        )
