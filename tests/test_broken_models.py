"""Broken, truncated, swapped and missing model files: an error that names the file, never an abort."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from paddock.child import Children
from paddock.deployment import deploy
from paddock.errors import ModelError
from paddock.registry import Registry


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _cut_one_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _fill_with_noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 16)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: Mapping[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "one byte short": _cut_one_byte,
    "noise": _fill_with_noise,
    "empty": _empty,
    "missing": Path.unlink,
}
BACKENDS = ("mkldnn", "openvino")


@pytest.fixture
def rotary(models: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy to be broken."""
    for path in models["rotary"].parent.glob("rotary.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "rotary.json"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", [".json", ".pdiparams"])
def test_a_damaged_paddle_model(
    rotary: Path, suffix: str, damage: str, backend: str, registry: Registry, children: Children
) -> None:
    DAMAGE[damage](rotary.with_suffix(suffix))
    with pytest.raises(ModelError) as caught:
        deploy(rotary, {"hardware": "cpu", "backend": backend}, registry=registry, children=children)
    assert "rotary" in str(caught.value)


def test_another_models_weights(
    rotary: Path, models: Mapping[str, Path], registry: Registry, children: Children
) -> None:
    shutil.copy(models["deepseek"].with_suffix(".pdiparams"), rotary.with_suffix(".pdiparams"))
    with pytest.raises(ModelError, match="rotary.pdiparams"):
        deploy(rotary, {"hardware": "cpu", "backend": "mkldnn"}, registry=registry, children=children)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_onnx_model(tmp_path: Path, damage: str, registry: Registry, children: Children) -> None:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "linear", values[:1], values[1:], [weights])
    path = tmp_path / "linear.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    DAMAGE[damage](path)
    with pytest.raises(ModelError, match="linear.onnx"):
        deploy(path, {"hardware": "cpu", "backend": "onnxruntime"}, registry=registry, children=children)


@pytest.mark.parametrize("name", ["", "nowhere", "/", "a\0b", "x" * 5000, "model.pdmodel"])
def test_paths_that_lead_nowhere(name: str, tmp_path: Path, registry: Registry, children: Children) -> None:
    path = tmp_path / name if name != "/" else Path("/")
    with pytest.raises(ModelError):
        deploy(str(path), {"hardware": "cpu", "backend": "reference"}, registry=registry, children=children)
