"""Post-training quantisation of an ONNX model with `onnxruntime.quantization`.

The model is first rewritten by onnxruntime's own basic optimiser: constants folded, batch normalisation merged into
convolutions, so that every weight is an initializer. Ranges are measured once; each variant is then written from them.
What is quantised is what int8 makes faster: convolutions and what lies between them, matrix products, and tables that
are looked up. Normalisation, softmax and elementwise arithmetic between matrix products stay in float: with them
quantised as well, a decoder's root mean square error was four times as large.

Every method needs onnxruntime, onnx and ml_dtypes, and is meant for a child process: libraries log as they like.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from paddock.errors import BuildFailed
from paddock.spi import Quantizer

from paddock_onnxruntime.quantizable import (
    has_vnni,
    origins,
    prepared,
    prune,
    restore_ports,
    short,
    sorted_nodes,
    upgraded,
)

if TYPE_CHECKING:
    import numpy as np

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_TRUNK = frozenset(
    {"Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Relu", "Resize"}
)
"""What stays in int8 where all that it reads comes from convolutions."""
_FLOAT_OUTPUTS = ("MatMul", "Gemm")
"""Their kernels hand their sums on as float32, which is as fast as rounding them and more accurate."""


class OnnxRuntimeQuantizer(Quantizer):
    """Post-training quantisation of one ONNX model: calibrates once, then writes as many variants as asked.

    Activations become uint8 with one range a tensor, weights int8 with one range an output channel.

    Args:
        model: The ONNX file, with its external data beside it.
        samples: Feeds by input name, of any extents that the model admits; at least one.
        work: An existing folder for what is in between; a few times the model's size.
        narrow: Weights in 7 bits instead of 8. Without VNNI, onnxruntime multiplies those faster (ResNet-50 on AVX2
            1.7 times), at a loss of accuracy; where it does not make products of full weights exact
            (`session.x64quantprecision`), only narrow ones are. None: narrow where the CPU has no VNNI.

    Raises:
        BuildFailed: onnxruntime cannot read, convert, run or calibrate the model.
    """

    activations: ClassVar[str] = "QUInt8"
    """onnxruntime's name of the type of activations; another backend's quantiser may have another."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """Further options of onnxruntime's quantiser, alike."""

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
        self._narrow = not has_vnni() if narrow is None else narrow
        try:
            import onnx

            original = upgraded(onnx.load(model))
            self._prepared = prepared(original, work)
            self._origins = origins(original, self._prepared)
            self._ports = (list(original.graph.input), list(original.graph.output))
            self._chosen = [node.name for node in _chosen(self._prepared)]
            self._inferred = work / "inferred.onnx"
            self._ranges = self._calibrate(samples, work) if self._chosen else None
        except Exception as error:  # onnx, protobuf and onnxruntime raise classes of many kinds
            raise BuildFailed(f"onnxruntime cannot quantise the model: {short(error)}", where=str(model)) from error

    def write(self, target: Path, keep: Collection[int] = ()) -> tuple[tuple[int, ...], ...]:
        """Writes the int8 model to `target`, one file, with QuantizeLinear and DequantizeLinear of plain ONNX.

        Args:
            target: The file to write.
            keep: Indices of nodes of the model that compute in float, with float weights. What onnxruntime merged with
                one of them does too. One still reads what a convolution before it wrote in int8.

        Returns:
            For each node of the file, in order, the indices of the nodes of the model that it came from. A node that is
            new, such as QuantizeLinear, came from none.

        Raises:
            BuildFailed: onnxruntime cannot quantise it.
        """
        kept = {name for name, nodes in self._origins.items() if not set(keep).isdisjoint(nodes)}
        try:
            import onnx

            proto = self._quantised([name for name in self._chosen if name not in kept])
            restore_ports(proto, *self._ports)
            prune(proto)
            onnx.save(proto, target)
        except Exception as error:  # as above
            raise BuildFailed(f"onnxruntime cannot quantise the model: {short(error)}", where=str(target)) from error
        return self._traced(proto)

    def _calibrate(self, samples: Sequence[Mapping[str, np.ndarray[Any, Any]]], work: Path) -> Any:
        """The least and greatest value of each float tensor that the chosen nodes read or write."""
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # its base is Any: onnxruntime is not followed
            def __init__(self) -> None:
                self._left = iter(samples)

            def get_next(self) -> Any:
                found = next(self._left, None)
                return None if found is None else dict(found)

        plain = work / "prepared.onnx"
        onnx.save(self._prepared, plain)
        onnx.shape_inference.infer_shapes_path(str(plain), str(self._inferred))
        types = sorted({node.op_type for node in self._prepared.graph.node if node.name in set(self._chosen)})
        calibrator = create_calibrator(
            plain, types, str(work / "augmented.onnx"), calibrate_method=CalibrationMethod.MinMax
        )
        calibrator.collect_data(Reader())
        return calibrator.compute_data()

    def _quantised(self, nodes: list[str]) -> Any:
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        if not nodes:  # then perhaps nothing was calibrated
            proto = onnx.ModelProto()
            proto.CopyFrom(self._prepared)
            return proto
        chosen = set(nodes)
        types = sorted({node.op_type for node in self._prepared.graph.node if node.name in chosen})
        quantizer = QDQQuantizer(
            onnx.load(self._inferred),
            per_channel=True,
            reduce_range=self._narrow,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType[self.activations],
            tensors_range=self._ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=types,
            extra_options={
                **self.settings,
                "OpTypesToExcludeOutputQuantization": list(_FLOAT_OUTPUTS),
                "TensorQuantOverrides": {
                    name: [{"quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": self._narrow}]
                    for name in _undivided(self._prepared)
                },
            },
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


def _chosen(proto: Any) -> list[Any]:
    """The nodes to quantise: products, look-ups in constant tables, and what lies between convolutions."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    trunk: set[str] = set()
    found = []
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx") or _scales_its_bias(node):
            continue
        flows = [name for name in node.input[: None if node.op_type in ("Add", "Concat") else 1] if name]
        if node.op_type in _TRUNK and flows and all(name in trunk for name in flows):
            trunk.update(node.output)
            found.append(node)
        elif node.op_type in _PRODUCTS or (node.op_type == "Gather" and node.input[0] in constants):
            if node.op_type in ("Conv", "ConvTranspose"):
                trunk.update(node.output)
            found.append(node)
    return found


def _scales_its_bias(node: Any) -> bool:
    """A Gemm with a beta that is not 1: onnxruntime 1.32's int8 answers with beta 0.5 are off by 1.8 of the largest."""
    return node.op_type == "Gemm" and any(a.name == "beta" and a.f != 1 for a in node.attribute)


def _undivided(proto: Any) -> list[str]:
    """The constant factors of matrix products that take one range as a whole.

    The kernels take a range for each column of a matrix on the right only: of a stack of matrices (the experts of a
    mixture) or a factor on the left, onnxruntime's quantiser writes a file that fails when it is run.
    """
    ranks = {tensor.name: len(tensor.dims) for tensor in proto.graph.initializer}
    products = [node for node in proto.graph.node if node.op_type == "MatMul"]
    left = {node.input[0] for node in products} & ranks.keys()
    return sorted(left | {node.input[1] for node in products if ranks.get(node.input[1], 2) != 2})
