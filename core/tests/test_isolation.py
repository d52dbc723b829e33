"""Adapters that crash, hang, lie or answer garbage: this process survives, and the error says who did what."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper
from paddock import compile as compile_module
from paddock import trials
from paddock import workshop as workshop_module
from paddock.cache import Store
from paddock.child import Children
from paddock.deployment import Deployment, carry_out, deploy
from paddock.errors import (
    AccuracyRefused,
    BuildFailed,
    ChildFailed,
    ConfigError,
    MemoryRefused,
    NotAvailable,
    PaddockError,
    RunFailed,
    StrictnessError,
)
from paddock.prepare import prepare
from paddock.registry import Registry
from paddock.verify import Outcome, Report

WHO = "cpu/fake"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """The reference's plugin and the one that misbehaves."""
    installed = importlib.metadata.entry_points(group="paddock")
    points = [point for point in installed if point.name == "reference"]
    points.append(importlib.metadata.EntryPoint("fake", "paddock_fakes", "paddock"))
    found = Registry.discover(Store(tmp_path_factory.mktemp("store")), points)
    assert {"cpu/fake", "cpu/reference"} == set(found.names())
    return found


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a folder for temporary files of its own, which must be empty again at its end."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    assert list(place.iterdir()) == []


def save(path: Path, nodes: list[onnx.NodeProto]) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    two, zero = (helper.make_tensor(name, TensorProto.FLOAT, [], [n]) for name, n in (("two", 2.0), ("zero", 0.0)))
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [two, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = 2 x."""
    return save(tmp_path_factory.mktemp("double") / "m.onnx", [helper.make_node("Mul", ["x", "two"], ["y"], name="by")])


def config(**more: Any) -> dict[str, Any]:
    options = more.pop("options", {})
    shapes = {"n": {"min": 1, "max": 4}}
    return {"hardware": "cpu", "backend": "fake", "shapes": shapes, "options": options, **more}


X = np.arange(8, dtype=np.float32).reshape(2, 4)


def works(deployment: Deployment) -> None:
    np.testing.assert_array_equal(deployment.run({"x": X})["y"], 2 * X)


def test_the_fake_serves_when_it_behaves(registry: Registry, children: Children, double: Path, tmp_path: Path) -> None:
    with deploy(double, config(), registry=registry, children=children) as deployment:
        assert deployment.report.outcome is Outcome.PASSED
        works(deployment)
        assert len(list((tmp_path / "temporary").iterdir())) == 1
    with pytest.raises(RunFailed):
        deployment.run({"x": X})
    deployment.close()


@pytest.mark.parametrize("step", ["select", "compile", "load", "run"])
@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("segfault", "SIGSEGV"),
        ("abort", "SIGABRT"),
        ("exit", "status 3"),
        ("raise", "ArithmeticError: the vendor's SDK says no"),
        ("garbage", ""),
    ],
)
def test_misbehaviour_is_an_error_that_names_the_adapter(
    registry: Registry, children: Children, double: Path, step: str, manner: str, said: str
) -> None:
    with pytest.raises(BuildFailed) as caught:
        deploy(double, config(options={step: manner}), registry=registry, children=children)
    assert WHO in str(caught.value)
    assert said in caught.value.problem
    assert "\n" not in caught.value.problem
    if manner == "garbage":
        assert "returned a" in caught.value.problem


@pytest.mark.parametrize("step", ["select", "compile", "load", "run"])
def test_a_hang_is_an_error_that_names_the_adapter(
    registry: Registry, children: Children, double: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if step == "select":
        children.get(f"trying {WHO}").call(psutil.cpu_count)  # so that the limit is not spent on the start
        monkeypatch.setattr(workshop_module, "SECONDS", 2.0)
        with pytest.raises(ChildFailed, match="did not answer within 2 s") as failed:
            prepare(double, config(options={step: "hang"}), registry=registry, children=children)
        assert WHO in str(failed.value)
        return
    prepared = prepare(double, config(options={step: "hang"}), registry=registry, children=children)
    monkeypatch.setattr(compile_module, "SECONDS", 1.0)
    with pytest.raises(BuildFailed, match="did not answer within 1 s") as caught:
        carry_out(prepared)
    assert WHO in caught.value.problem


def test_after_all_that_the_same_children_serve(registry: Registry, children: Children, double: Path) -> None:
    with pytest.raises(BuildFailed):
        deploy(double, config(options={"run": "segfault"}), registry=registry, children=children)
    with deploy(double, config(options={"level": 1}), registry=registry, children=children) as deployment:
        works(deployment)


def test_what_failed_once_is_tried_in_a_child_again(registry: Registry, children: Children, double: Path) -> None:
    for _ in range(2):  # in this process it would be the end of the tests
        with pytest.raises(BuildFailed, match="SIGABRT"):
            deploy(double, config(options={"load": "abort"}), registry=registry, children=children)


def test_a_process_that_may_be_lost_tries_nothing_in_another(
    registry: Registry, children: Children, double: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paddock.deployment.try_out", lambda *args: pytest.fail("it was tried in a child"))
    ours = config(options={"level": 2})
    for options, error, problem in (
        ({"compile": "raise"}, BuildFailed, "ArithmeticError"), ({"load": "raise"}, BuildFailed, "ArithmeticError"),
        ({"run": "raise"}, RunFailed, "ArithmeticError"), ({"numbers": "wrong"}, AccuracyRefused, "relative error"),
        ({"compile": "unsupported"}, NotAvailable, "no kernel for this one"),
    ):  # fmt: skip
        with compile_module.expendable(), pytest.raises(error, match=problem):
            deploy(double, config(options=options), registry=registry, children=children)
    with compile_module.expendable(), deploy(double, ours, registry=registry, children=children) as deployment:
        works(deployment)
    with deploy(double, ours, registry=registry, children=children) as deployment:
        works(deployment)  # what was loaded and verified there has been tried
    monkeypatch.setattr("paddock.deployment.try_out", trials.try_out)
    with pytest.raises(BuildFailed, match="SIGABRT"):  # and outside of it everything is as it was
        deploy(double, config(options={"load": "abort"}), registry=registry, children=children)


def test_unsupported_nodes_are_named(registry: Registry, children: Children, double: Path) -> None:
    with pytest.raises(NotAvailable) as caught:
        deploy(double, config(options={"compile": "unsupported"}), registry=registry, children=children)
    assert WHO in caught.value.problem and "no kernel for this one" in caught.value.problem
    assert any("by" in name for name in caught.value.candidates)


@pytest.mark.parametrize("numbers", ["wrong", "nan"])
@pytest.mark.parametrize("strict", [True, False])
def test_wrong_numbers_are_refused_with_a_report(
    registry: Registry, children: Children, double: Path, numbers: str, strict: bool
) -> None:
    with pytest.raises(AccuracyRefused) as caught:
        deploy(double, config(options={"numbers": numbers}, strict=strict), registry=registry, children=children)
    assert WHO in caught.value.problem
    report = caught.value.report
    assert isinstance(report, Report)
    assert report.outcome is Outcome.FAILED
    assert report.reference == "cpu/reference"
    assert report.error is not None and not report.error <= 1e-4
    assert (report.error == np.inf) is (numbers == "nan")


def test_a_missing_output_is_an_error(registry: Registry, children: Children, double: Path) -> None:
    with pytest.raises(BuildFailed, match="left out the outputs y") as caught:
        deploy(double, config(options={"numbers": "missing"}), registry=registry, children=children)
    assert WHO in caught.value.problem


def test_outputs_that_do_not_vary_are_inconclusive(registry: Registry, children: Children, tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "zero"], ["y"])]
    model = save(tmp_path / "zero.onnx", nodes)
    lenient = config(accuracy={"max_error": 1e30}, strict=False)
    # The fake doubles where zeros are right: that fails, it is not inconclusive.
    with pytest.raises(AccuracyRefused):
        deploy(model, lenient, registry=registry, children=children)
    reference = {**config(), "backend": "reference"}
    with pytest.raises(AccuracyRefused, match="inconclusive") as caught:
        deploy(model, reference, registry=registry, children=children)
    assert isinstance(caught.value.report, Report)
    assert caught.value.report.outcome is Outcome.INCONCLUSIVE
    with deploy(model, {**reference, "strict": False}, registry=registry, children=children) as deployment:
        assert deployment.report.outcome is Outcome.INCONCLUSIVE
        np.testing.assert_array_equal(deployment.run({"x": X})["y"], 0 * X)


def test_a_setting_that_did_not_take_effect_is_refused_when_strict(
    registry: Registry, children: Children, double: Path
) -> None:
    with pytest.raises(StrictnessError) as caught:
        deploy(double, config(options={"level": 5}), registry=registry, children=children)
    assert WHO in caught.value.problem and "level 5 took effect as 3" in caught.value.problem
    assert caught.value.where == "config: $.options.level"
    loose = config(options={"level": 5}, strict=False)
    with deploy(double, loose, registry=registry, children=children) as deployment:
        (level,) = [s for s in deployment.plan.settings if s.name == "options.level"]
        assert (level.requested, level.effective) == (5, 3)
        works(deployment)
    with deploy(double, config(options={"level": 2}), registry=registry, children=children) as deployment:
        works(deployment)


def test_what_cannot_be_observed_is_an_error(registry: Registry, children: Children, double: Path) -> None:
    with pytest.raises(BuildFailed, match="observing failed: ArithmeticError"):
        deploy(double, config(options={"observe": "raise"}), registry=registry, children=children)


def test_memory_is_refused_before_anything_is_compiled(
    registry: Registry, children: Children, double: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "compiled"
    with pytest.raises(MemoryRefused) as caught:
        small = config(options={"mark": str(mark)}, memory={"limit": "16B"})
        deploy(double, small, registry=registry, children=children)
    assert caught.value.where == "config: $.memory.limit"
    assert not mark.exists()
    enough = config(options={"mark": str(mark)}, memory={"limit": "1MiB"})
    deploy(double, enough, registry=registry, children=children).close()
    assert mark.exists()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"options": {"leve": 1}}, ConfigError),
        ({"options": {"level": "high"}}, ConfigError),
        ({"operators": {"exclude": ["Mul"]}}, NotAvailable),
        ({"operators": {"exclude": ["Mull"]}}, ConfigError),
        ({"precision": "fp16"}, NotAvailable),
        ({"backend": "fakee"}, NotAvailable),
    ],
)
def test_refusals_leave_nothing(
    registry: Registry, children: Children, double: Path, change: dict[str, Any], kind: type[PaddockError]
) -> None:
    with pytest.raises(kind):
        deploy(double, config(**change), registry=registry, children=children)


def test_a_plan_that_is_discarded_leaves_nothing(registry: Registry, children: Children, double: Path) -> None:
    prepare(double, config(), registry=registry, children=children).discard()


def test_deploy_ends_its_own_children(registry: Registry, double: Path) -> None:
    before = psutil.Process().children()
    with pytest.raises(BuildFailed):
        deploy(double, config(options={"compile": "raise", "level": 1}), registry=registry)
    assert psutil.Process().children() == before


def test_a_broken_model_is_a_model_error(registry: Registry, children: Children, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x08garbage" * 10)
    with pytest.raises(PaddockError) as caught:
        deploy(broken, config(), registry=registry, children=children)
    assert str(broken) in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0byte.onnx", "/nonexistent/m.onnx", "", "/proc/self/mem/m.onnx"])
def test_paths_that_lead_nowhere(registry: Registry, children: Children, name: str) -> None:
    with pytest.raises(PaddockError):
        deploy(name, config(), registry=registry, children=children)


def test_run_errors_come_with_the_adapter_and_the_next_request_is_served(
    registry: Registry, children: Children, double: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import paddock_fakes

    with deploy(double, config(), registry=registry, children=children) as deployment:
        monkeypatch.setattr(paddock_fakes, "behave", _raise)
        with pytest.raises(RunFailed, match="cpu/fake failed while running: LookupError: lost"):
            deployment.run({"x": X})
        monkeypatch.undo()
        works(deployment)


def _raise(manner: str) -> None:
    raise LookupError("lost")
