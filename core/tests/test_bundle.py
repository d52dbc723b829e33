"""Bundles: served on a host alike without model, reference or converter; refused anywhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddock_fakes_segments as odd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paddock import bundle, requirements
from paddock.admission import Plugin
from paddock.bundle import export, load_bundle
from paddock.deployment import deploy
from paddock.errors import AccuracyRefused, MemoryRefused, ModelError, NotAvailable, PaddockError, UsageError
from paddock.plan import Verdict, digest
from paddock.registry import Registry

NODES = [("a Abs", "x", "p"), ("b Tanh", "p", "q"), ("c Mul", "q k", "y")]
BASE: Mapping[str, Any] = {"hardware": "cpu", "backend": "odd"}
SPLIT: Mapping[str, Any] = {**BASE, "fallback": ["cpu/broken"], "operators": {"exclude": ["b"]}}
X = np.array([[1, -2, 0.5]], np.float32)
Y = np.tanh(np.abs(X)) * np.array([2, 3, 4], np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle "whole", the model it was made from gone; and with "two", in segments."""
    folder = tmp_path_factory.mktemp("made")
    model = odd.save(folder / "m.onnx", NODES, ["y"], ("n", 3), k=np.array([2, 3, 4], np.float32))
    plugins = odd.discover(folder / "store", ("reference", "onnxruntime"))
    export(model, BASE, folder / "whole", registry=plugins).close()
    split = {**SPLIT, "fallback": ["cpu/onnxruntime"], "instances": 2}
    export(model, split, folder / "two", registry=plugins).close()
    model.unlink()
    return folder


@pytest.fixture
def plugins(tmp_path: Path) -> Registry:
    """On the other host: no reference, another cache."""
    return odd.discover(tmp_path / "there", ("onnxruntime",))


@pytest.fixture
def whole(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "whole", tmp_path / "copied"))


@pytest.mark.parametrize("name", ["whole", "two"])
def test_it_is_served_without_model_or_reference(made: Path, plugins: Registry, name: str) -> None:
    with load_bundle(made / name, registry=plugins) as deployment:
        assert deployment.report.outcome.value == "passed" and "golden" in deployment.report.reference
        assert len(deployment.plan.placement.segments) == (1 if name == "whole" else 3)
        for rows in (1, 3):
            found = deployment.run({"x": np.repeat(X, rows, 0)})
            np.testing.assert_allclose(found["y"], np.repeat(Y, rows, 0), rtol=1e-5)
        place = np.empty_like(Y)
        deployment.run({"x": X}, into={"y": place})
        np.testing.assert_allclose(place, Y, rtol=1e-5)
        for question in (deployment.measure_memory, lambda: deployment.lowered):
            with pytest.raises(NotAvailable, match="does not hold the model"):
                question()


def test_what_it_holds(made: Path) -> None:
    folder = made / "whole"
    config = json.loads((folder / "config.json").read_text())
    assert config == {**BASE, "accuracy": {"verify": "golden", "golden": "golden.npz"}}
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("paddock==") for line in lines) and all("==" in line for line in lines)
    assert {"numpy", "pydantic", "pluggy"} <= {line.partition("==")[0] for line in lines}
    # The user's model is in it where the artifact refers to it, and is a file of its own.
    (model,) = (folder / "0").rglob("*.onnx")
    assert model.stat().st_nlink == 1 and onnx.load(model).graph.node[0].op_type == "Abs"
    assert str(made) not in (folder / "bundle.json").read_text().replace(str(folder), "")


@pytest.mark.parametrize("name", ["0/artifact.json", "golden.npz", "config.json", "requirements.txt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_what_was_altered_is_refused(whole: Path, plugins: Registry, name: str, damage: str) -> None:
    victim = whole / name
    content = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:] if damage == "flip" else content[:-3])
    with pytest.raises(ModelError, match="altered|cannot be read") as caught:
        load_bundle(whole, registry=plugins)
    assert name in str(caught.value.where)


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_manifest_is_told_of(whole: Path, plugins: Registry, data: st.DataObject) -> None:
    content = bytearray((whole / "bundle.json").read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] ^= 1 << data.draw(st.integers(0, 7))
    other = whole.with_name("other")
    shutil.copytree(whole, other, dirs_exist_ok=True)
    (other / "bundle.json").write_bytes(content if data.draw(st.booleans()) else content[:where])
    with pytest.raises(PaddockError):
        load_bundle(other, registry=plugins)


def altered(folder: Path, **changes: Any) -> None:
    """The manifest with these changes, as if it had been written so."""
    told = {**json.loads((folder / "bundle.json").read_text()), **changes}
    told.pop("digest")
    (folder / "bundle.json").write_text(json.dumps({**told, "digest": digest(told)}))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"layout": 1}', b'{"layout": 1, "layout": 1}'])
def test_what_is_no_manifest(tmp_path: Path, plugins: Registry, content: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(PaddockError):
        load_bundle(tmp_path, registry=plugins)


def test_no_bundle(tmp_path: Path, plugins: Registry) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ModelError, match="no bundle") as caught:
            load_bundle(folder, registry=plugins)
        assert "paddock export" in str(caught.value.remedy)


def test_a_later_layout(whole: Path, plugins: Registry) -> None:
    altered(whole, layout=2)
    with pytest.raises(ModelError, match="has layout 2, this Paddock reads 1"):
        load_bundle(whole, registry=plugins)


def test_files_outside_are_not_looked_at(whole: Path, plugins: Registry) -> None:
    altered(whole, files={"../x": "0"})
    with pytest.raises(ModelError, match="outside"):
        load_bundle(whole, registry=plugins)


def test_others_must_not_write_to_it(whole: Path, plugins: Registry) -> None:
    whole.chmod(0o770)
    with pytest.raises(ModelError, match="not safe: others may write to it"):
        load_bundle(whole, registry=plugins)


@pytest.mark.parametrize("name", ["0", "0/artifact.json", "golden.npz"])
def test_others_must_not_write_to_anything_in_it(whole: Path, plugins: Registry, name: str) -> None:
    (whole / name).chmod(0o777)
    with pytest.raises(ModelError, match="not safe: others may write to it") as caught:
        load_bundle(whole, registry=plugins)
    assert "chmod -R go-w" in str(caught.value.remedy)


def test_a_link_in_it_is_refused(whole: Path, plugins: Registry) -> None:
    (whole / "golden.npz").rename(whole / "moved.npz")
    (whole / "golden.npz").symlink_to("moved.npz")
    with pytest.raises(ModelError, match="no plain file"):
        load_bundle(whole, registry=plugins)


FORGED: list[dict[str, Any]] = [
    {"host": []}, {"files": []}, {"versions": None}, {"layout": "1"}, {"files": {"a\0b": "x"}}, {"model": {}},
    {"ready": {}},
]  # fmt: skip


@pytest.mark.parametrize("changes", FORGED, ids=str)
def test_a_manifest_of_other_content_is_an_error(whole: Path, plugins: Registry, changes: dict[str, Any]) -> None:
    altered(whole, **changes)
    with pytest.raises((ModelError, NotAvailable)):
        load_bundle(whole, registry=plugins)


@pytest.mark.parametrize("key", ["segments", "graph", "plan", "flow", "inputs", "outputs", "arena", "name"])
@pytest.mark.parametrize("value", [None, [], "x", 0])
def test_foreign_data_inside_is_an_error_or_does_no_harm(whole: Path, plugins: Registry, key: str, value: Any) -> None:
    told = json.loads((whole / "bundle.json").read_text())
    altered(whole, ready={**told["ready"], key: value})
    try:
        load_bundle(whole, registry=plugins).close()
    except PaddockError as error:
        assert error.problem


def test_the_model_of_a_bundle_cannot_be_deployed(made: Path, plugins: Registry) -> None:
    with load_bundle(made / "whole", registry=plugins) as deployment, pytest.raises(ModelError, match="has no files"):
        deploy(deployment.model, dict(BASE), registry=plugins)


def test_where_a_bundle_cannot_be_written_is_told_first(tmp_path: Path, plugins: Registry) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(UsageError, match="is a link"):
        export(tmp_path / "none.onnx", BASE, tmp_path / "link", registry=plugins)


def _without(plugins: Registry) -> None:
    del plugins.adapters["cpu/odd"]


def _other(plugins: Registry) -> None:
    (own,) = plugins.adapters["cpu/odd"]
    for name, entries in plugins.adapters.items():
        if entries[0].distribution == own.distribution:
            plugins.adapters[name] = [replace(entry, sources="0" * 8) for entry in entries]


@pytest.mark.parametrize(("change", "said"), [(_without, "not installed here"), (_other, "+00000000 here")])
def test_other_versions_are_refused(
    whole: Path, plugins: Registry, change: Callable[[Registry], None], said: str
) -> None:
    if change is _without:
        told = json.loads((whole / "bundle.json").read_text())
        altered(whole, versions={**told["versions"], "paddock-absent": "1"})
    change(plugins)
    with pytest.raises(NotAvailable, match="other versions") as caught:
        load_bundle(whole, registry=plugins)
    assert said in " ".join(caught.value.candidates)
    assert "requirements.txt" in str(caught.value.remedy)


def test_a_plugin_that_is_here_and_not_loaded_is_told_as_such(whole: Path, plugins: Registry) -> None:
    _without(plugins)
    told = json.loads((whole / "bundle.json").read_text())
    altered(whole, versions={**told["versions"], "paddock-Barred": "1"})
    barred = Plugin("Paddock.barred", "1.0", "p", Verdict.no("not among PADDOCK_ALLOW", "PADDOCK_ALLOW"))
    plugins.plugins.append(barred)
    with pytest.raises(NotAvailable, match="installed and not loaded") as caught:
        load_bundle(whole, registry=plugins)
    assert caught.value.candidates == ("Paddock.barred 1.0: not among PADDOCK_ALLOW",)
    assert caught.value.remedy == barred.remedy and "pip" not in barred.remedy


def test_another_core_is_refused(whole: Path, plugins: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "current_sources", lambda: "f" * 64)
    with pytest.raises(NotAvailable, match="other versions") as caught:
        load_bundle(whole, registry=plugins)
    assert caught.value.candidates[0].startswith("paddock: ")


def test_another_kind_of_host_is_refused(whole: Path, plugins: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "cpu", lambda: ("x", ("sse2",)))
    with pytest.raises(NotAvailable, match="another kind of host") as caught:
        load_bundle(whole, registry=plugins)
    assert any(line.startswith("cpu flags: ") and line.endswith("sse2 here") for line in caught.value.candidates)


def test_an_answer_that_is_wrong_there_is_refused(
    whole: Path, plugins: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(odd.OddSession, "_wrong", lambda self, node: True)
    with pytest.raises(AccuracyRefused):
        load_bundle(whole, registry=plugins)


def test_too_little_memory_is_refused(whole: Path, plugins: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddock.machine.memory_available", lambda: 1)
    with pytest.raises(MemoryRefused):
        load_bundle(whole, registry=plugins)


def test_export_refuses_before_any_work(tmp_path: Path, plugins: Registry) -> None:
    model = tmp_path / "none.onnx"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for output, said in ((tmp_path / "full", "is there already"), (tmp_path / "a" / "b", "does not exist")):
        with pytest.raises(UsageError, match=said):
            export(model, BASE, output, registry=plugins)
    with pytest.raises(UsageError, match="golden outputs"):
        export(model, {**BASE, "accuracy": {"verify": "off"}}, tmp_path / "new", registry=plugins)


def test_requirements_are_those_installed() -> None:
    found = dict(line.split("==") for line in requirements.locked(["paddock", "not-installed-anywhere"]))
    assert found["numpy"] == np.__version__ and "paddock" in found and "not-installed-anywhere" not in found
    assert list(found) == sorted(found)
    more = dict(line.split("==") for line in requirements.locked(["paddock-onnxruntime[sdk]"]))
    assert "onnxruntime" in more and more.keys() >= found.keys() - {"not-installed-anywhere"}
