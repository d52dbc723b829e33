"""Quantisation for `npu/qualcomm`: whole operators in uint8, traced, and computed in it by the backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from paddock.errors import BuildFailed

pytest.importorskip("onnxruntime")
pytest.importorskip("ml_dtypes")

from paddock_qualcomm.quantizer import QualcommQuantizer
from qualcomm_models import conv_net, encoder, model_of, reference


def samples(content: Any, count: int = 8) -> list[dict[str, Any]]:
    extents = [dim.dim_value for dim in content.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": np.random.default_rng(i).standard_normal(extents).astype("f")} for i in range(count)]


def quantizer_of(content: Any, folder: Path) -> QualcommQuantizer:
    path = folder / "float.onnx"
    onnx.save(content, path)
    work = folder / "work"
    work.mkdir()
    return QualcommQuantizer(path, samples(content), work)


@pytest.mark.parametrize("make", [conv_net, encoder])
def test_every_operator_stands_between_integers_and_the_answers_are_near(tmp_path: Path, make: Any) -> None:
    content, target = make(), tmp_path / "int8.onnx"
    trace = quantizer_of(content, tmp_path).write(target)
    made = onnx.load(target)
    assert len(trace) == len(made.graph.node)
    fresh = {value for node in made.graph.node if node.op_type == "DequantizeLinear" for value in node.output}
    work = [node for node in made.graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    floats = [value for node in work for value in node.input[:1] if value not in fresh]
    assert not floats
    assert [(p.name, p.type) for p in made.graph.input] == [(p.name, p.type) for p in content.graph.input]
    for feed in samples(content, 3):
        expected = reference(content, **feed)
        assert np.abs(reference(made, **feed) - expected).max() < 0.1 * np.abs(expected).max()


def test_kernels_have_a_range_for_each_channel_and_what_is_kept_stays_float(tmp_path: Path) -> None:
    quantizer, target = quantizer_of(conv_net(), tmp_path), tmp_path / "int8.onnx"
    quantizer.write(target)
    held = {t.name: t for t in onnx.load(target).graph.initializer}
    kernels = [t for n, t in held.items() if n.startswith("w1") and len(t.dims) == 4]
    assert [t.data_type for t in kernels] == [onnx.TensorProto.INT8]
    assert [list(t.dims) for n, t in held.items() if n.startswith("w1") and "scale" in n] == [[8]]
    trace = quantizer.write(target, keep=(3,))
    made = onnx.load(target)
    kept = [node for node, came in zip(made.graph.node, trace, strict=True) if 3 in came]
    assert [node.op_type for node in kept] == ["Conv"]
    assert {t.data_type for t in made.graph.initializer if t.name == kept[0].input[1]} == {onnx.TensorProto.FLOAT}


def test_the_same_calls_write_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        quantizer_of(encoder(), folder).write(folder / "int8.onnx")
        written.append((folder / "int8.onnx").read_bytes())
    assert written[0] == written[1]


def test_without_samples_it_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="without samples"):
        QualcommQuantizer(model_of(conv_net(), tmp_path).files["model"], [], tmp_path)


def test_the_backend_computes_it_in_integers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
    from qualcomm_at_work import compiled

    content = encoder()
    quantizer_of(content, tmp_path).write(tmp_path / "int8.onnx")
    artifact = compiled(model_of(onnx.load(tmp_path / "int8.onnx"), tmp_path), tmp_path, "int8")
    assert artifact.facts["settings"] == {"precision": "int8"}
    assert set(artifact.facts["products"]) == {"fixed uint8"}
