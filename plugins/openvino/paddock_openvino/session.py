"""A loaded model: one infer request on a compiled model, which all forks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paddock.errors import RunFailed, UsageError
from paddock.spi import Arrays, Observed, Session

from paddock_openvino.sdk import openvino

if TYPE_CHECKING:
    import numpy as np

_INT32 = (-(2**31), 2**31 - 1)
_FLOAT32_MAX = 3.4028234663852886e38


class OpenVinoSession(Session):
    """One infer request. OpenVINO refuses a second run while one is under way, so a request is for one at a time.

    Args:
        compiled: OpenVINO's compiled model.
        inputs: The names of all inputs.
        outputs: The names of all outputs, in the model's order.
        settings: What took effect, in the config's terms.
    """

    def __init__(
        self, compiled: Any, inputs: tuple[str, ...], outputs: tuple[str, ...], settings: Mapping[str, Any]
    ) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._tensor = openvino().Tensor
        self._names = (inputs, outputs)
        self._settings = settings
        ports = {name: i for i, port in enumerate(compiled.inputs) for name in port.get_names()}
        self._inputs = {name: ports[name] for name in inputs if name in ports}
        ports = {name: i for i, port in enumerate(compiled.outputs) for name in port.get_names()}
        self._outputs = {name: ports[name] for name in outputs}
        on_cpu = list(compiled.get_property("EXECUTION_DEVICES")) == ["CPU"]
        types = {name: compiled.inputs[i].get_element_type().get_type_name() for name, i in self._inputs.items()}
        self._narrowed = frozenset(n for n, kind in types.items() if on_cpu and kind in ("i64", "u64", "u32", "f64"))

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Computes the outputs. Feeds are read where they lie; outputs are copied out of the request's memory.

        Raises `UsageError` for a number that the CPU plugin would silently cut to 32 bits.
        """
        request = self._request
        if request is None:
            raise RunFailed("the session is closed")
        for name, index in self._inputs.items():
            feed = feeds[name]
            if name in self._narrowed:
                _refuse_wide(name, feed)
            # OpenVINO takes no read-only memory, although it does not write to it.
            request.set_input_tensor(index, self._tensor(feed if feed.flags.writeable else feed.copy(), True))
        found = list(request.infer(share_outputs=False).values())
        return {name: found[self._outputs[name]] for name in (self._outputs if outputs is None else outputs)}

    def close(self) -> None:
        """Drops the request, and the compiled model with the last of its requests."""
        self._request = self._compiled = None

    def fork(self) -> Session | None:
        """Another request on the same compiled model, with intermediates of its own."""
        if self._compiled is None:
            raise RunFailed("the session is closed")
        return OpenVinoSession(self._compiled, *self._names, self._settings)

    def observed(self) -> Observed:
        """The compiled model's properties as OpenVINO gives them back, and the operations of its runtime graph."""
        if self._compiled is None:
            return Observed(self._settings)
        kinds = [op.get_rt_info()["layerType"].astype(str) for op in self._compiled.get_runtime_model().get_ops()]
        return Observed(self._settings, nodes=sum(kind not in ("Input", "Output", "Const") for kind in kinds))


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
