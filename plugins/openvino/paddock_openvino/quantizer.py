"""Post-training quantisation of an ONNX model with NNCF, for OpenVINO.

NNCF quantises the ONNX file itself rather than OpenVINO's model: as fast and as accurate there, and the file is one
that everything else reads. NNCF's ONNX backend runs the model on onnxruntime, so that is needed too; it also folds
constants and merges batch normalisation into convolutions beforehand, since NNCF takes only initializers for weights.
NNCF runs once and leaves the weights in float behind pairs of QuantizeLinear and DequantizeLinear; each variant is then
written by taking the pairs away from before the nodes that stay in float and rounding the weights of the others.

Every method needs nncf, onnx and onnxruntime, and is meant for a child process.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddock.errors import BuildFailed
from paddock.spi import Quantizer
from paddock_onnxruntime.quantizable import (
    has_vnni,
    origins,
    prepared,
    prune,
    reads,
    restore_ports,
    short,
    sorted_nodes,
    upgraded,
)

from paddock_openvino.sdk import openvino

if TYPE_CHECKING:
    import numpy as np

_MOVERS = frozenset(
    {"Expand", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""What hands its first input on: NNCF quantises before these, on behalf of what reads them."""
_TELEMETRY = "openvino_telemetry"


class NncfQuantizer(Quantizer):
    """Post-training quantisation of one ONNX model: calibrates once, then writes as many variants as asked.

    Weights become int8 with one range an output channel, activations int8 or uint8 with one range a tensor (NNCF's
    MIXED preset). Where a node stays in float, a bias that NNCF corrected for rounded weights is the model's own again.

    Args:
        model: The ONNX file, with its external data beside it.
        samples: Feeds by input name, of any extents that the model admits; at least one.
        work: An existing folder for what is in between; a few times the model's size.
        narrow: Weights in 7 bits instead of 8. Without VNNI, OpenVINO's products of full weights saturate in 16 bits,
            which only narrow weights prevent; with VNNI, narrow ones only cost accuracy. None: narrow where the CPU has
            no VNNI.

    Raises:
        BuildFailed: NNCF or onnxruntime cannot read, convert, run or calibrate the model.
    """

    def __init__(
        self,
        model: Path,
        samples: Sequence[Mapping[str, np.ndarray[Any, Any]]],
        work: Path,
        *,
        narrow: bool | None = None,
    ) -> None:
        if not samples:
            raise BuildFailed("it cannot be quantised without samples", where=str(model))
        try:
            import onnx

            original = upgraded(onnx.load(model))
            self._plain = prepared(original, work)
            self._origins = origins(original, self._plain)
            self._ports = (list(original.graph.input), list(original.graph.output))
            self._full = _nncf(self._plain, samples, not has_vnni() if narrow is None else narrow)
        except Exception as error:  # onnx, protobuf, onnxruntime and nncf raise classes of many kinds
            raise BuildFailed(f"NNCF cannot quantise the model: {short(error)}", where=str(model)) from error

    def write(self, target: Path, keep: Collection[int] = ()) -> tuple[tuple[int, ...], ...]:
        """Writes the int8 model to `target`, one file, with QuantizeLinear and DequantizeLinear of plain ONNX.

        Args:
            target: The file to write.
            keep: Indices of nodes of the model that stay in float. What onnxruntime merged with one of them does too.

        Returns:
            For each node of the file, in order, the indices of the nodes of the model that it came from. A node that is
            new, such as QuantizeLinear, came from none.

        Raises:
            BuildFailed: It cannot be written.
        """
        kept = {name for name, nodes in self._origins.items() if not set(keep).isdisjoint(nodes)}
        try:
            import onnx

            proto = onnx.ModelProto()
            proto.CopyFrom(self._full)
            _free(proto, self._plain, kept)
            _round_weights(proto)
            restore_ports(proto, *self._ports)
            prune(proto)
            sorted_nodes(proto)
            onnx.save(proto, target)
        except Exception as error:  # as above
            raise BuildFailed(f"NNCF cannot quantise the model: {short(error)}", where=str(target)) from error
        return tuple(self._origins.get(node.name, ()) for node in proto.graph.node)


def _nncf(plain: Any, samples: Sequence[Mapping[str, np.ndarray[Any, Any]]], narrow: bool) -> Any:
    """The model with a pair of QuantizeLinear and DequantizeLinear wherever NNCF rounds, weights still in float."""
    with _quietly():
        import nncf
        from nncf.onnx.quantization.backend_parameters import BackendParameters

        nncf.set_log_level(logging.CRITICAL)
        return nncf.quantize(
            plain,
            nncf.Dataset([dict(sample) for sample in samples]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
            fast_bias_correction=True,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE if narrow else nncf.OverflowFix.DISABLE,
                backend_params={BackendParameters.COMPRESS_WEIGHTS: False},
            ),
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """NNCF imported without its usage reporting, and what it prints sent to stderr.

    NNCF makes a stub where `openvino_telemetry` is not installed, as OpenVINO does (see sdk.py).
    """
    openvino()
    known = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # documented: None makes an import fail
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if known is None:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = known


def _free(proto: Any, plain: Any, kept: set[str]) -> None:
    """Lets the kept nodes read what was there before it was rounded, and gives them back their biases."""
    nodes = list(proto.graph.node)
    makers = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for name in reads(node):
            readers.setdefault(name, []).append(node.name)
    outputs = {port.name for port in proto.graph.output}
    floats = set(kept)
    for node in reversed(nodes):  # what only moves values for kept nodes is one of them
        used = [reader for name in node.output for reader in readers.get(name, ())]
        if node.op_type in _MOVERS and used and floats.issuperset(used) and outputs.isdisjoint(node.output):
            floats.add(node.name)
    own = {tensor.name: tensor for tensor in plain.graph.initializer}
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in nodes:
        if node.name not in floats:
            continue
        biased = [node, *(r for r in nodes if r.op_type == "Add" and node.output[0] in r.input)]
        for name in {name for found in biased for name in found.input} & own.keys() & held.keys():
            held[name].CopyFrom(own[name])
        for place, name in enumerate(node.input):
            pair = makers.get(name)
            if pair is not None and pair.op_type == "DequantizeLinear" and pair.input[0] in makers:
                node.input[place] = makers[pair.input[0]].input[0]
    _drop_unread(proto)


def _drop_unread(proto: Any) -> None:
    """Takes away the pairs that no node reads any more."""
    while True:
        read = {name for node in proto.graph.node for name in reads(node)} | {o.name for o in proto.graph.output}
        pairs = [n for n in proto.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
        unread = [node for node in pairs if read.isdisjoint(node.output)]
        if not unread:
            return
        for node in unread:
            proto.graph.node.remove(node)


def _round_weights(proto: Any) -> None:
    """Puts the int8 weights in the place of each QuantizeLinear that reads an initializer."""
    import numpy as np
    from onnx import numpy_helper

    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in [n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in held]:
        weight, scale, zero = (numpy_helper.to_array(held[name]) for name in node.input)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if scale.size > 1:
            shape = [-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim)]
            scale, zero_wide = scale.reshape(shape), zero.reshape(shape).astype(np.int32)
        else:
            scale, zero_wide = scale.reshape(()), zero.reshape(()).astype(np.int32)
        limits = np.iinfo(zero.dtype)
        rounded = np.clip(np.rint(weight / scale) + zero_wide, limits.min, limits.max).astype(zero.dtype)
        proto.graph.initializer.append(numpy_helper.from_array(rounded, node.output[0]))
        proto.graph.node.remove(node)
