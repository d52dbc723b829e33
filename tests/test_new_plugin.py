"""`paddock new-plugin`: what it writes is a whole plugin, sound by common rules, and deploys as it stands."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddock
import pytest
from onnx import TensorProto, helper, numpy_helper
from paddock.cache import Store
from paddock.deployment import deploy
from paddock.errors import UsageError
from paddock.new_plugin import write_plugin
from paddock.registry import Registry
from paddock.testing.runner import Runner

ROOT = Path(paddock.__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("new") / "vendor"
    write_plugin("zeta-two", "npu", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def registry(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    installed = [point for point in importlib.metadata.entry_points(group="paddock") if point.name != "paddle"]
    point = importlib.metadata.EntryPoint("zeta-two", "paddock_zeta_two.plugin", "paddock")
    return Registry.discover(Store(tmp_path_factory.mktemp("store")), [*installed, point])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(5)
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype("f") * np.float32(0.2),
        "m": rng.standard_normal((8, 5)).astype("f"),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]), helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["s"]), helper.make_node("Softmax", ["s"], ["y"]),
    ]  # fmt: skip
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("x", ["n", 3, 8, 8]), ("y", ["n", 5]))
    ]
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", *ends, held), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(proto, folder / "m.onnx")
    (folder / "c").mkdir()
    for number in range(16):
        np.savez(folder / "c" / f"{number}.npz", x=rng.standard_normal((2, 3, 8, 8)).astype("f"))
    return folder / "m.onnx"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_deploys_as_it_stands(model: Path, registry: Registry, precision: str) -> None:
    config: dict[str, Any] = {"hardware": "npu", "backend": "zeta-two", "precision": precision, "shapes": {"n": 2}}
    if precision == "int8":
        config["calibration"] = {"samples": str(model.parent / "c")}
    with deploy(model, config, registry=registry) as deployment:
        assert deployment.report.outcome.value == "passed" and deployment.report.error
        assert {node.adapter for node in deployment.plan.placement.nodes} == {"npu/zeta-two"}
        answer = deployment.run({"x": np.ones((2, 3, 8, 8), np.float32)})["y"]
        np.testing.assert_allclose(answer.sum(1), 1, rtol=2e-3)


@pytest.mark.long
def test_it_conforms(folder: Path) -> None:
    adapter = importlib.import_module("paddock_zeta_two.adapter").ZetaTwo
    with Runner() as runner:
        results = runner.run_all(adapter)
    assert not [f"{result.check}: {result.reason}" for result in results if result.outcome.bad]
    assert sum(result.outcome.value == "passed" for result in results) > 50


def test_it_is_sound_and_short(folder: Path) -> None:
    lines = 0
    for path in folder.rglob("*.py"):
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{path.name} has no docstring"
        assert "$" not in text and max(map(len, text.splitlines())) <= 130
        lines += len(text.splitlines())
    assert lines < 150
    package = folder / "paddock_zeta_two"
    checks = (
        ["ruff", "check", "--isolated", "--line-length", "130", "--select", "E,F,B"],
        ["mypy", "--config-file", str(ROOT / "pyproject.toml")],
    )
    for check in checks:
        command = [sys.executable, "-m", *check, str(package)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["Acme", "2fast", "a_b", "a--b", "", "a/b", "a."])
def test_names_that_no_plugin_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_plugin(name, "npu", tmp_path / "new")
    assert repr(name) in caught.value.problem and not (tmp_path / "new").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        write_plugin("acme", "npu", tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        write_plugin("acme", "npu", tmp_path / "mine")
    with pytest.raises(UsageError, match="hardware"):
        write_plugin("acme", "NPU!", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
