"""Deployments taken up again: for exactly the same, and as they were."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddock_fakes_segments as odd
import pytest
from paddock import artifacts, cache, devices, kept, machine, registry
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import Deployment, deploy
from paddock.errors import AccuracyRefused, BuildFailed, MemoryRefused, PaddockError, StrictnessError
from paddock.model import fingerprint
from paddock.registry import Registry
from paddock.spi import Artifact, Device, Probe
from paddock.verify import Outcome

NODES = [("a Abs", "x", "p"), ("b Tanh", "p", "q"), ("c Mul", "q k", "y")]
BASE = {"hardware": "cpu", "backend": "odd"}
SPLIT = {**BASE, "fallback": ["cpu/reference"], "operators": {"exclude": ["b"]}}


def floats(*rows: Any) -> np.ndarray[Any, Any]:
    return np.array(rows, np.float32)


CHILDREN = Children()
"""For all of these tests: starting some for each would be most of their time."""


@pytest.fixture(scope="module", autouse=True)
def _children() -> Iterator[None]:
    yield
    CHILDREN.close()


@pytest.fixture
def plugins(tmp_path: Path) -> Registry:
    return odd.discover(tmp_path / "store", ("reference",))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return odd.save(tmp_path / "m.onnx", NODES, ["y"], ("n", 3), k=floats(2, 3, 4))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Registry]:
    """A model whose deployment under `BASE` is kept, with the plugins that served it."""
    folder = tmp_path_factory.mktemp("known")
    model = odd.save(folder / "m.onnx", NODES, ["y"], ("n", 3), k=floats(2, 3, 4))
    plugins = odd.discover(folder / "store", ("reference",))
    served(model, BASE, plugins)
    return model, plugins


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"


def served(model: Path, config: Mapping[str, Any], plugins: Registry, **more: Any) -> Deployment:
    """Deployed, checked by one request, and closed."""
    with deploy(model, config, registry=plugins, children=CHILDREN, **more) as deployment:
        x = floats([1, -2, 0.5])
        np.testing.assert_allclose(deployment.run({"x": x})["y"], np.tanh(np.abs(x)) * [2, 3, 4], rtol=1e-6)
        return deployment


def with_log(config: Mapping[str, Any], log: Path) -> dict[str, Any]:
    return {**config, "options": {"log": str(log)}}


def compiled(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize("config", [BASE, SPLIT, {**BASE, "instances": 2}, {**BASE, "accuracy": {"verify": "off"}}])
def test_the_second_start_compiles_and_verifies_nothing(
    model: Path, plugins: Registry, log: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_log(config, log)
    first = served(model, config, plugins)
    made = compiled(log)
    assert made and not first.report.kept
    monkeypatch.setattr("paddock.deployment.prepare", lambda *a, **k: pytest.fail("it was planned anew"))
    before = len(odd.WATCH.events)
    second = served(model, config, plugins)
    assert compiled(log) == made
    assert second.report == replace(first.report, kept=True)
    assert second.plan == first.plan and second.inputs == first.inputs and second.outputs == first.outputs
    assert [event.kind for event in odd.WATCH.events[before:] if event.kind != "fallback"] == [
        "plan", "artifact", "closed",
    ]  # fmt: skip


@pytest.mark.long
def test_another_process_takes_it_up_too(model: Path, plugins: Registry, log: Path, tmp_path: Path) -> None:
    config = with_log(SPLIT, log)
    served(model, config, plugins)
    made = compiled(log)
    assert served(model, config, odd.discover(tmp_path / "store", ("reference",))).report.kept
    assert compiled(log) == made


CHANGED: Mapping[str, dict[str, Any]] = {
    "threads": {"threads": 1},
    "instances": {"instances": 2},
    "strict": {"strict": False},
    "budget": {"accuracy": {"max_error": 0.5}},
    "shapes": {"shapes": {"n": 4}},
    "batch": {"batch_size": 4},
    "precision": {"precision": "fp16"},
    "placement": SPLIT,
    "limit": {"memory": {"limit": "8GiB"}},
    "options": {"options": {"level": 1}},
    "adapter": {"backend": "reference"},
}


@pytest.mark.parametrize("factor", CHANGED)
def test_each_key_of_the_config_matters(known: tuple[Path, Registry], factor: str) -> None:
    model, plugins = known
    assert is_kept(model, BASE, plugins)
    assert not is_kept(model, {**BASE, **CHANGED[factor]}, plugins)


def is_kept(model: Path, config: Mapping[str, Any], plugins: Registry) -> bool:
    """Whether a deployment would be taken up."""
    place = kept.place(model, HardwareConfig.load(config), plugins)
    return place is not None and plugins.store.find("deployments", place.key) is not None


def _other_version(monkeypatch: pytest.MonkeyPatch, plugins: Registry) -> None:
    for name in ("cpu/odd", "cpu/reference"):
        plugins.adapters[name] = [replace(entry, version="9.9") for entry in plugins.adapters[name]]


def _other_sources(monkeypatch: pytest.MonkeyPatch, plugins: Registry) -> None:
    plugins.adapters["cpu/odd"] = [replace(entry, sources="00000000") for entry in plugins.adapters["cpu/odd"]]


def _other_sdk(monkeypatch: pytest.MonkeyPatch, plugins: Registry) -> None:
    found = odd.Odd.probe()
    monkeypatch.setattr(odd.Odd, "probe", classmethod(lambda cls: Probe(found.verdict, {"sdk": "2"})))
    plugins._probes.clear()


def _other_device(monkeypatch: pytest.MonkeyPatch, plugins: Registry) -> None:
    real = devices.pick_device

    def other(*args: Any) -> Device:
        return replace(real(*args), name="another CPU")

    monkeypatch.setattr(registry, "pick_device", other)


def _other_host(fact: str, value: Any) -> Any:
    def change(monkeypatch: pytest.MonkeyPatch, plugins: Registry) -> None:
        facts = {**machine.host_facts(), fact: value}
        for module in ("kept", "artifacts", "compile", "checks", "registry", "footprint", "workshop"):
            monkeypatch.setattr(f"paddock.{module}.host_facts", lambda: facts)

    return change


def _other_core(monkeypatch: pytest.MonkeyPatch, plugins: Registry) -> None:
    monkeypatch.setattr(cache, "source_digest", lambda folder: "of other code")


def _other_environment(monkeypatch: pytest.MonkeyPatch, plugins: Registry) -> None:
    monkeypatch.setattr(odd.Odd, "environment", ("ODD_*",))
    monkeypatch.setenv("ODD_SPEED", "9")
    plugins._probes.clear()


FACTORS = {
    "version": _other_version,
    "sources": _other_sources,
    "sdk": _other_sdk,
    "device": _other_device,
    "kernel": _other_host("kernel", "0.1"),
    "flags": _other_host("flags", []),
    "driver": _other_host("nvidia", "999.9"),
    "core": _other_core,
    "environment": _other_environment,
}


@pytest.mark.parametrize("factor", FACTORS)
def test_each_factor_beside_the_config_matters(
    known: tuple[Path, Registry], factor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plugins = known[0], odd.discover(known[1].store.root, ("reference",))
    assert is_kept(model, BASE, plugins)
    FACTORS[factor](monkeypatch, plugins)
    assert not is_kept(model, BASE, plugins)


@pytest.mark.long
def test_the_models_bytes_matter(model: Path, plugins: Registry, tmp_path: Path) -> None:
    served(model, BASE, plugins)
    odd.save(model, NODES, ["y"], ("n", 3), k=floats(2, 3, 5))
    assert not is_kept(model, BASE, plugins)
    with deploy(model, BASE, registry=plugins) as deployment:
        assert deployment.run({"x": floats([9, 9, 9])})["y"][0, 2] == pytest.approx(5, rel=1e-5)


def test_the_content_of_samples_matters(model: Path, plugins: Registry, tmp_path: Path) -> None:
    def config(*rows: float) -> dict[str, Any]:
        np.savez(tmp_path / "s.npz", x=floats(rows))
        return {**BASE, "accuracy": {"samples": str(tmp_path / "s.npz")}}

    served(model, config(1, 2, 3), plugins)
    assert is_kept(model, config(1, 2, 3), plugins)
    assert not is_kept(model, config(1, 2, 4), plugins)


def test_a_model_elsewhere_is_the_same(model: Path, plugins: Registry, tmp_path: Path) -> None:
    served(model, BASE, plugins)
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.copy(model, tmp_path / "moved"))
    model.unlink()
    with deploy(moved, BASE, registry=plugins) as deployment:
        assert deployment.report.kept and deployment.artifacts[0].files["model"] == moved


@pytest.mark.long
@pytest.mark.parametrize("verify", ["always", "golden"])
def test_who_asks_to_verify_is_not_told_of_an_earlier_time(
    model: Path, plugins: Registry, tmp_path: Path, verify: str
) -> None:
    from paddock.prepare import prepare
    from paddock.references import write_golden

    accuracy: dict[str, Any] = {"verify": verify}
    if verify == "golden":
        accuracy["golden"] = str(tmp_path / "g.npz")
        with Children() as children:
            prepared = prepare(model, BASE, registry=plugins, children=children)
            write_golden(tmp_path / "g.npz", prepared.reference(prepared.samples()))
    for _ in range(2):
        assert not served(model, {**BASE, "accuracy": accuracy}, plugins).report.kept


@pytest.mark.long
def test_samples_in_the_call_are_judged_on(model: Path, plugins: Registry) -> None:
    for _ in range(2):
        assert served(model, BASE, plugins, samples=[{"x": floats([1, 2, 3])}]).report.source == "given in the call"


@pytest.mark.long
def test_what_was_refused_is_refused_again(model: Path, plugins: Registry) -> None:
    wrong = {**BASE, "options": {"wrong_nodes": ["b"]}}
    for _ in range(2):
        with pytest.raises(AccuracyRefused):
            deploy(model, wrong, registry=plugins)
    ignored = {**BASE, "options": {"level": 9}}
    for _ in range(2):
        with pytest.raises(StrictnessError):
            deploy(model, ignored, registry=plugins)


def entry(plugins: Registry, kind: str) -> Path:
    (found,) = [path for path in (plugins.store.root / kind).iterdir() if path.is_dir()]
    return found


@pytest.mark.parametrize(
    ("kind", "damage"),
    [*(("deployments", how) for how in ("flip", "cut", "gone", "foreign", "more")), ("artifacts", "flip")],
)
def test_what_is_damaged_is_made_anew(
    model: Path, plugins: Registry, log: Path, caplog: pytest.LogCaptureFixture, damage: str, kind: str
) -> None:
    served(model, with_log(BASE, log), plugins)
    plugins = odd.discover(plugins.store.root, ("reference",))  # one that has not looked at it yet
    folder = entry(plugins, kind)
    victim = folder / ("ready.pickle" if kind == "deployments" else "artifact.json")
    content = victim.read_bytes()
    if damage == "flip":
        victim.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    elif damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        victim.unlink()
    elif damage == "foreign":
        victim.write_text("{}")
    else:
        (folder / "more").touch()
    if kind == "artifacts":
        shutil.rmtree(plugins.store.root / "deployments")
    caplog.clear()
    served(model, with_log(BASE, log), plugins)
    assert any("is made anew" in record.getMessage() for record in caplog.records)
    assert compiled(log) == 2 if kind == "artifacts" else compiled(log) == 1
    assert is_kept(model, with_log(BASE, log), plugins)


@pytest.mark.parametrize("told", [{}, (1, 2), (None, None), "rubbish", ({}, {}, {})])
def test_foreign_data_in_a_whole_entry_is_made_anew(
    model: Path, plugins: Registry, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    foreign = SimpleNamespace(dumps=lambda data, protocol: pickle.dumps(told))
    monkeypatch.setattr(kept, "pickle", foreign)
    served(model, BASE, plugins)
    monkeypatch.undo()
    assert served(model, BASE, plugins).report.outcome is Outcome.PASSED


def test_what_does_not_load_any_more_is_planned_anew(
    model: Path, plugins: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served(model, BASE, plugins)
    real = odd.Odd.load
    failed: list[int] = []

    def once(self: Any, artifact: Any, context: Any) -> Any:
        if not failed:
            failed.append(1)
            raise OSError("not today")
        return real(self, artifact, context)

    monkeypatch.setattr(odd.Odd, "load", once)
    assert served(model, BASE, plugins).report.outcome is Outcome.PASSED
    assert failed and any("not today" in record.getMessage() for record in caplog.records)


def test_memory_is_looked_at_again(model: Path, plugins: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    served(model, BASE, plugins)
    monkeypatch.setattr("paddock.machine.memory_available", lambda: 10)
    with pytest.raises(MemoryRefused):
        deploy(model, BASE, registry=plugins)


@pytest.mark.long
def test_a_model_that_changes_while_it_is_taken_up(
    model: Path, plugins: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(model, BASE, plugins)
    real = kept._read

    def meanwhile(*args: Any) -> Any:
        odd.save(model, NODES, ["y"], ("n", 3), k=floats(7, 7, 7))
        return real(*args)

    monkeypatch.setattr(kept, "_read", meanwhile)
    with deploy(model, BASE, registry=plugins) as deployment:
        assert deployment.run({"x": floats([9, 9, 9])})["y"][0, 0] == pytest.approx(7, rel=1e-5)
        assert deployment.model.fingerprint == fingerprint("onnx", deployment.model.files)


def test_what_needs_a_plan_is_planned_anew(model: Path, plugins: Registry) -> None:
    served(model, BASE, plugins)
    with deploy(model, BASE, registry=plugins) as deployment:
        assert deployment.report.kept
        assert deployment.lowered[0]["model"] == model
        assert deployment.measure_memory().peak >= 0


def test_artifacts_are_kept_by_themselves(model: Path, plugins: Registry, log: Path) -> None:
    served(model, with_log(SPLIT, log), plugins)
    found = [path for path in (plugins.store.root / "artifacts").iterdir() if path.is_dir()]
    told = sorted(json.loads((path / "artifact.json").read_text())["adapter"] for path in found)
    assert told == ["cpu/odd", "cpu/odd", "cpu/reference"] and compiled(log) == 2
    shutil.rmtree(plugins.store.root / "deployments")
    served(model, with_log(SPLIT, log), plugins)
    assert compiled(log) == 2


def test_no_two_entries_share_a_file(model: Path, plugins: Registry) -> None:
    served(model, SPLIT, plugins)
    files = [path for path in plugins.store.root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert all(path.stat().st_nlink == 1 for path in files) and model.stat().st_nlink == 1


@pytest.mark.parametrize("gone", [True, False])
def test_an_artifact_that_is_gone_or_does_not_load_any_more(
    model: Path,
    plugins: Registry,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    gone: bool,
) -> None:
    config = with_log(BASE, log)
    served(model, config, plugins)
    made = entry(plugins, "artifacts")
    if gone:
        plugins = odd.discover(plugins.store.root, ("reference",))
        shutil.rmtree(made)
    else:
        real = odd.Odd.load

        def stale(self: Any, artifact: Any, context: Any) -> Any:
            if compiled(log) == 1:
                raise OSError("what was compiled then is of no use")
            return real(self, artifact, context)

        monkeypatch.setattr(odd.Odd, "load", stale)
    served(model, config, plugins)
    assert compiled(log) == 2
    if not gone:
        assert any("compiled anew" in record.getMessage() for record in caplog.records)
    served(model, config, plugins)
    assert compiled(log) == 2


def test_what_an_artifact_does_not_name_is_gone_at_the_first_load(
    model: Path, plugins: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, loading = odd.Odd.compile, odd.Odd.load
    found: list[bool] = []

    def beside(self: Any, given: Any, plan: Any, context: Any) -> Any:
        (context.work / "beside").write_text("needed")
        return replace(real(self, given, plan, context), facts={"beside": str(context.work / "beside")})

    def load(self: Any, artifact: Any, context: Any) -> Any:
        found.append(Path(artifact.facts["beside"]).exists() or (context.work / "beside").exists())
        return loading(self, artifact, context)

    monkeypatch.setattr(odd.Odd, "compile", beside)
    monkeypatch.setattr(odd.Odd, "load", load)
    monkeypatch.setattr("paddock.deployment.is_tried", lambda plan, part: True)  # in this process, which has the patch
    served(model, BASE, plugins)
    assert found == [False]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": None}, "no plain data"), ({"files": ["x"]}, "no plain data"),
        ({"facts": {"x": {1}}}, "no plain data"), ({"inputs": None}, "no plain data"),
        ({"adapter": "cpu/other"}, "an artifact of cpu/other"),
        ({"files": {"model": "nowhere"}}, "'model' is no file"), ({"bounds": {"n": 3}}, "no plain data"),
    ],
)  # fmt: skip
def test_what_compile_returns_is_checked(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    found = Artifact("cpu/odd", "onnx", {}, ("x",), ("y",))
    with pytest.raises(BuildFailed, match=said):
        artifacts.normal(replace(found, **changes), "cpu/odd")


def test_files_are_written_once_wherever_they_are_named(tmp_path: Path) -> None:
    work, model = tmp_path / "work", tmp_path / "m.onnx"
    (work / "deep").mkdir(parents=True)
    (work / "a.bin").write_text("a")
    (work / "deep" / "b.bin").write_text("b")
    model.write_text("m")
    (tmp_path / "other").write_text("o")
    files: dict[str, Any] = {
        "one": work / "a.bin", "two": str(work / "deep" / ".." / "a.bin"), "deep": work / "deep" / "b.bin",
        "model": tmp_path / "work" / ".." / "m.onnx", "other": tmp_path / "other",
    }  # fmt: skip
    given = artifacts.normal(Artifact("a/b", "onnx", files, (), ()), "a/b")
    artifacts.write(given, tmp_path / "kept", {"own": model}, work)
    moved = tmp_path / "elsewhere.onnx"
    model.rename(moved)
    found = artifacts.read(tmp_path / "kept", {"own": moved})
    assert {role: path.read_text() for role, path in found.files.items()} == {
        "one": "a", "two": "a", "deep": "b", "model": "m", "other": "o",
    }  # fmt: skip
    assert found.files["model"] == moved and not (work / "a.bin").exists() and (tmp_path / "other").exists()


def test_a_cache_that_cannot_be_written_spoils_nothing(
    model: Path, plugins: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = plugins.store.folder

    def full(kind: str, key: Any, build: Any) -> Path:
        if kind == "deployments":
            raise PaddockError("no space left on device")
        return real(kind, key, build)

    monkeypatch.setattr(plugins.store, "folder", full)
    assert served(model, BASE, plugins).report.outcome is Outcome.PASSED
    assert any("is not kept" in record.getMessage() for record in caplog.records)
