"""`docs/writing-a-plugin.md`: its Python runs from top to bottom, and its adapters do what it says of them."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddock
import pytest
from onnx import TensorProto, helper
from paddock.cache import Store
from paddock.cli import app
from paddock.deployment import deploy
from paddock.errors import NotAvailable, StrictnessError
from paddock.new_plugin import write_plugin
from paddock.registry import Registry
from typer.main import get_command

TEXT = (Path(paddock.__file__).parents[2] / "docs" / "writing-a-plugin.md").read_text()
WRITTEN = "paddock_written"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.ModuleType]:
    """The text's Python as a module, beside the plugin that its first command writes; for children too."""
    folder = tmp_path_factory.mktemp("vendor")
    write_plugin("acme", "npu", folder / "plugin")
    (folder / "plugin" / "paddock_acme" / "defects.json").write_text(blocks("json")[0])
    hook = "\n@hookimpl\ndef paddock_adapters():\n    return [Doubtful, ByItself, Turbo, Probed, Careful]\n"
    source = "\n\n".join(blocks("python")) + "\n\nfrom paddock.spi import hookimpl\n" + hook
    (folder / f"{WRITTEN}.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.syspath_prepend(str(folder / "plugin"))
        yield __import__(WRITTEN)
    sys.modules.pop(WRITTEN, None)


@pytest.fixture(scope="module")
def registry(said: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    installed = [point for point in importlib.metadata.entry_points(group="paddock") if point.name != "paddle"]
    point = importlib.metadata.EntryPoint("written", WRITTEN, "paddock")
    return Registry.discover(Store(tmp_path_factory.mktemp("store")), [*installed, point])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Softmax", ["a"], ["s"], axis=0),
        helper.make_node("Sqrt", ["s"], ["y"]),
    ]  # fmt: skip
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 5])] for name in "xy"]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    onnx.save(proto, path)
    return path


def config(backend: str, **more: Any) -> Mapping[str, Any]:
    return {"hardware": "npu", "backend": backend, "precision": "fp16", "fallback": ["cpu/reference"], **more}


def placed(model: Path, registry: Registry, backend: str) -> list[str]:
    with deploy(model, config(backend), registry=registry) as deployment:
        x = np.linspace(-3, 3, 15, dtype=np.float32).reshape(3, 5)
        raised = np.exp(np.abs(x))
        np.testing.assert_allclose(deployment.run({"x": x})["y"], np.sqrt(raised / raised.sum(0)), rtol=5e-3)
        return [node.adapter for node in deployment.plan.placement.nodes]


@pytest.mark.long
@pytest.mark.parametrize("backend", ["doubtful", "careful"])
def test_what_the_compiler_or_the_defects_refuse_runs_elsewhere(model: Path, registry: Registry, backend: str) -> None:
    assert placed(model, registry, backend) == [f"npu/{backend}", "cpu/reference", f"npu/{backend}"]


def test_a_backend_that_lowers_by_itself(model: Path, registry: Registry) -> None:
    with deploy(model, {**config("by-itself"), "fallback": []}, registry=registry) as deployment:
        assert deployment.plan.precision.means == "backend"


def test_an_option_that_took_no_effect_is_refused(model: Path, registry: Registry) -> None:
    with deploy(model, {**config("turbo", options={"turbo": 3}), "fallback": []}, registry=registry) as deployment:
        taken = {setting.name: setting.effective for setting in deployment.plan.settings}
        assert taken["options.turbo"] == 3
    with pytest.raises(StrictnessError, match=r"turbo"):
        deploy(model, {**config("turbo", options={"turbo": 9}), "fallback": []}, registry=registry)


def test_an_sdk_that_is_missing_is_told(model: Path, registry: Registry) -> None:
    with pytest.raises(NotAvailable, match="acme-sdk is not installed"):
        deploy(model, {**config("probed"), "fallback": []}, registry=registry)


def test_the_commands_are_commands() -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        # A pattern that matches no file is an error, as in zsh: paddock-acme[quantization] has to be quoted.
        command = ["bash", "-O", "failglob", "-c", f"printf '%s\\n' {line}"]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        if words[0] == "paddock":
            options = {name for parameter in known[words[1]].params for name in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options
