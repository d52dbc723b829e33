"""`paddock new-plugin`: what it writes is a whole plugin, sound by common rules, and deploys as it stands."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import paddock
import pytest
from onnx import TensorProto, helper, numpy_helper
from paddock.cache import Store
from paddock.contract import check_adapter
from paddock.deployment import deploy
from paddock.errors import RunFailed, UsageError
from paddock.new_plugin import write_plugin
from paddock.registry import Registry
from paddock.spi import Session
from paddock.testing.runner import Runner
from paddock.wellknown import well_known

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
    adapter = importlib.import_module("paddock_zeta_two.adapter").ZetaTwoAdapter
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


def names_in_the_template() -> list[str]:
    """Plugins whose class could be called like something that the template's adapter imports or calls."""
    template = ROOT / "core" / "paddock" / "data" / "template" / "package" / "adapter.py.txt"
    tree = ast.parse(re.sub(r"\$\{?(\w+)\}?", r"its_\1", template.read_text()))
    called = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    called |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return sorted({re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower() for name in called if "_" not in name})


@pytest.mark.parametrize("name", ["true", "false", "none", "test", "acme-npu2", "a" * 64, *names_in_the_template()])
def test_any_other_name_gives_a_plugin_that_works(name: str, tmp_path: Path) -> None:
    for path in write_plugin(name, "npu", tmp_path / "new"):
        if path.suffix == ".py":
            compile(path.read_text(), path, "exec")
    package = f"paddock_{name.replace('-', '_')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "new"))
        (adapter,) = importlib.import_module(f"{package}.plugin").paddock_adapters()
        check_adapter(adapter)
        nodes = [SimpleNamespace(type=type) for type in ("Relu", "NonZero")]
        model: Any = SimpleNamespace(graph=SimpleNamespace(nodes=nodes))
        verdicts = adapter.select_operators(SimpleNamespace(), model, None).verdicts
        assert [verdict.answer.value for verdict in verdicts] == ["yes", "no"]
        session = next(kind for kind in vars(sys.modules[f"{package}.adapter"]).values() if is_session(kind, package))
        with pytest.raises(RunFailed):
            session(None, ()).run({})


def is_session(kind: Any, package: str) -> bool:
    return isinstance(kind, type) and kind.__module__ == f"{package}.adapter" and issubclass(kind, Session)


@pytest.mark.parametrize("name", ["Acme", "2fast", "a_b", "a--b", "", "a/b", "a.", "auto", "a" * 65])
def test_names_that_no_plugin_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_plugin(name, "npu", tmp_path / "new")
    assert repr(name) in caught.value.problem and not (tmp_path / "new").exists()


@pytest.mark.parametrize("hardware", ["auto", "NPU!", "", "n" * 65, "npu/x", "npu\n"])
def test_hardware_that_no_config_names(hardware: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be a hardware"):
        write_plugin("acme", hardware, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def taken() -> Iterator[tuple[str, str, str]]:
    """Hardware and name that are Paddock's own, and what of them is taken."""
    for known, facts in well_known().items():
        hardware, _, backend = known.partition("/")
        yield "fpga", facts["distribution"].removeprefix("paddock-"), facts["distribution"]
        for name in (backend, *facts["aliases"]):
            yield hardware, name, f"{hardware}/{name}"


@pytest.mark.parametrize(("hardware", "name", "what"), sorted(set(taken())))
def test_no_plugin_takes_the_place_of_another(hardware: str, name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_plugin(name, hardware, tmp_path / "new")
    assert what in caught.value.problem or f"paddock-{name}" in caught.value.problem
    assert not (tmp_path / "new").exists()


def test_nor_that_of_one_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "paddock_eta-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paddock-eta\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"paddock-eta 1\.2 is installed") as caught:
        write_plugin("eta", "npu", tmp_path / "new")
    assert "pip uninstall paddock-eta" in str(caught.value)


def test_its_wheel_has_its_data_and_takes_no_index(tmp_path: Path) -> None:
    """`defects.json` lies in the package, as `docs/writing-a-plugin.md` has it."""
    write_plugin("acme", "npu", tmp_path / "new")
    (tmp_path / "new" / "paddock_acme" / "defects.json").write_text("[]")
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [*pip, "--wheel-dir", str(tmp_path / "out"), str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").iterdir()
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("paddock_acme/")}
    assert held == {
        f"paddock_acme/{name}" for name in ("__init__.py", "adapter.py", "defects.json", "device.py", "plugin.py")
    }


def test_what_it_prints_can_be_pasted(tmp_path: Path) -> None:
    """Also where the folder has a space in it, and in a shell that takes [...] for a pattern without a match."""
    folder = tmp_path / "my vendor"
    call = ["new-plugin", "acme", "--hardware", "npu", "--output", str(folder), "--json"]
    done = subprocess.run([sys.executable, "-m", "paddock.cli", *call], capture_output=True, text=True, check=True)
    install, conformance = json.loads(done.stdout)["next"]
    assert words(install) == ["pip", "install", "-e", f"{folder}[quantization]"]
    assert words(conformance) == ["paddock", "conformance", "npu/acme"]
    readme = (folder / "README.md").read_text()
    for line in re.findall(r"^    ((?:pip|paddock) .*)$", readme, re.MULTILINE):
        assert words(line)[0] in ("pip", "paddock")


def words(line: str) -> list[str]:
    """What a shell makes of a command; a pattern that matches no file is an error, as in zsh."""
    command = ["bash", "-O", "failglob", "-c", f"printf '%s\\n' {line}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        write_plugin("acme", "npu", tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        write_plugin("acme", "npu", tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
