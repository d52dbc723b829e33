"""Post-training quantisation by the rules of the QNN provider: whole operators in uint8, as an NPU wants them.

onnxruntime brings the rules (`onnxruntime.quantization.execution_providers.qnn`): activations and the factors of
matrix products in uint8 with one range a tensor, the kernels of convolutions in int8 with one range a channel, and
every operator between QuantizeLinear and DequantizeLinear. LayerNormalization with int8 weights is refused by the
provider, with uint8 ones it runs.

Every method needs onnxruntime, onnx and ml_dtypes, and is meant for a child process: libraries log as they like.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddock.errors import BuildFailed
from paddock.spi import Quantizer
from paddock_onnxruntime.quantizable import origins, prepared, prune, restore_ports, short, sorted_nodes, upgraded

if TYPE_CHECKING:
    import numpy as np

_CONVOLUTIONS = {"Conv": 0, "ConvTranspose": 1}
"""The axis of output channels in the kernels of convolutions."""


class QualcommQuantizer(Quantizer):
    """Post-training quantisation of one ONNX model: calibrates once, then writes as many variants as asked.

    Args:
        model: The ONNX file, with its external data beside it.
        samples: Feeds by input name; at least one.
        work: An existing folder for what is in between; a few times the model's size.

    Raises:
        BuildFailed: onnxruntime cannot read, convert, run or calibrate the model.
    """

    def __init__(self, model: Path, samples: Sequence[Mapping[str, np.ndarray[Any, Any]]], work: Path) -> None:
        if not samples:
            raise BuildFailed("it cannot be quantised without samples", where=str(model))
        try:
            import onnx

            original = upgraded(onnx.load(model))
            self._prepared = _fused(prepared(original, work), work)
            self._origins = origins(original, self._prepared)
            self._ports = (list(original.graph.input), list(original.graph.output))
            self._work = work
            self._plain = work / "plain.onnx"
            onnx.save(self._prepared, self._plain)
            self._ranges = self._calibrate(samples)
        except Exception as error:  # onnx, protobuf and onnxruntime raise classes of many kinds
            raise BuildFailed(f"onnxruntime cannot quantise the model: {short(error)}", where=str(model)) from error

    def write(self, target: Path, keep: Collection[int] = ()) -> tuple[tuple[int, ...], ...]:
        """Writes the int8 model to `target`, one file, with QuantizeLinear and DequantizeLinear of plain ONNX.

        Args:
            target: The file to write.
            keep: Indices of nodes of the model that compute in float; what was merged with one of them does too.

        Returns:
            For each node of the file, in order, the indices of the nodes of the model that it came from; none for one
            that is new, such as QuantizeLinear.

        Raises:
            BuildFailed: onnxruntime cannot quantise it.
        """
        kept = sorted(name for name, nodes in self._origins.items() if not set(keep).isdisjoint(nodes))
        try:
            import onnx

            proto = self._quantised(kept)
            restore_ports(proto, *self._ports)
            prune(proto)
            onnx.save(proto, target)
        except Exception as error:  # as above
            raise BuildFailed(f"onnxruntime cannot quantise the model: {short(error)}", where=str(target)) from error
        return self._traced(proto)

    def _calibrate(self, samples: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> Any:
        """The least and greatest value of each float tensor."""
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # its base is Any: onnxruntime is not followed
            def __init__(self) -> None:
                self._left = iter(samples)

            def get_next(self) -> Any:
                found = next(self._left, None)
                return None if found is None else dict(found)

        augmented = str(self._work / "augmented.onnx")
        types = sorted({node.op_type for node in self._prepared.graph.node})
        calibrator = create_calibrator(self._plain, types, augmented, calibrate_method=CalibrationMethod.MinMax)
        calibrator.collect_data(Reader())
        return calibrator.compute_data()

    def _quantised(self, kept: list[str]) -> Any:
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        config = get_qnn_qdq_config(
            onnx.load(self._plain),
            None,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,
            init_overrides=_by_channel(self._prepared, set(kept), QuantType.QInt8),
            nodes_to_exclude=kept,
        )
        if not config.op_types_to_quantize:  # then everything is kept
            proto = onnx.ModelProto()
            proto.CopyFrom(self._prepared)
            return proto
        quantizer = QDQQuantizer(
            onnx.load(self._plain),
            per_channel=False,
            reduce_range=False,
            weight_qType=QuantType.QUInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=kept,
            op_types_to_quantize=config.op_types_to_quantize,
            extra_options=config.extra_options,
        )
        quantizer.quantize_model()
        return sorted_nodes(quantizer.model.model)

    def _traced(self, proto: Any) -> tuple[tuple[int, ...], ...]:
        """Where the written nodes came from. A Relu that a QuantizeLinear made needless belongs to what it read."""
        left = {node.name for node in proto.graph.node}
        found = {name: set(nodes) for name, nodes in self._origins.items()}
        makers = {value: node.name for node in self._prepared.graph.node for value in node.output}
        for node in reversed(self._prepared.graph.node):
            maker = makers.get(node.input[0]) if node.input else None
            if node.name not in left and maker is not None:
                found[maker] |= found[node.name]
        return tuple(tuple(sorted(found.get(node.name, ()))) for node in proto.graph.node)


def _fused(proto: Any, work: Path) -> Any:
    """The model with layer normalisation and Gelu as one operator each, for which the provider has one of its own.

    Every value has its type: of what is merged into an operator of onnxruntime's own, onnx would not know it.
    """
    import onnx
    from onnxruntime.quantization.execution_providers.qnn import qnn_preprocess_model

    source, target = work / "unfused.onnx", work / "fused.onnx"
    typed = onnx.shape_inference.infer_shapes(proto)
    onnx.save(proto, source)
    fused = onnx.load(target) if qnn_preprocess_model(str(source), str(target)) else proto
    restore_ports(fused, list(proto.graph.input), list(proto.graph.output))
    for index, node in enumerate(fused.graph.node):
        node.name = f"{node.op_type}_{index}"
    prune(fused)
    made = {value for node in fused.graph.node for value in node.output}
    fused.graph.value_info.extend(value for value in typed.graph.value_info if value.name in made)
    return fused


def _by_channel(proto: Any, kept: set[str], kind: Any) -> dict[str, list[dict[str, Any]]]:
    """The kernels of convolutions, each with a range for each output channel."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        axis = _CONVOLUTIONS.get(node.op_type)
        if axis is not None and node.name not in kept and node.input[1] in constants:
            found[node.input[1]] = [{"axis": axis, "quant_type": kind, "symmetric": True}]
    return found
