"""What a review found once: each is a wrong answer, a hang or a silence that must not come back."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import deploy
from paddock.errors import AccuracyRefused, ConfigError, RunFailed, UsageError
from paddock.host import InProcessHost
from paddock.metrics import varies
from paddock.references import Reference
from paddock.registry import Registry
from paddock.spi import Arrays, Session, Threading
from paddock.verify import Outcome, compare

ORT: Mapping[str, Any] = {"hardware": "cpu", "backend": "onnxruntime"}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def scale(path: Path, by: float) -> Path:
    """x [n, 4] float32 -> y = x * by."""
    factor = numpy_helper.from_array(np.full((4,), by, np.float32), "by")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "by"], ["y"])], "scale", values[:1], values[1:], [factor])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


class Shifted(Session):
    """Gives its feed back plus a number."""

    def __init__(self, by: float) -> None:
        self.by = by

    def run(self, feeds: Arrays, outputs: Any = None) -> dict[str, np.ndarray[Any, Any]]:
        return {"y": feeds["x"] + np.float32(self.by)}

    def close(self) -> None:
        pass


def test_each_instance_can_be_asked() -> None:
    made = iter([0.0, 0.0, 100.0])
    host = InProcessHost(lambda: Shifted(next(made)), Threading.SERIAL, 3, "cpu/shifted")
    feeds = {"x": np.zeros((1,), np.float32)}
    assert [float(host.run_on(k, feeds)["y"][0]) for k in range(3)] == [0, 0, 100]
    host.close()


def test_a_changed_file_is_read_again_for_a_model_object(tmp_path: Path, registry: Registry) -> None:
    x = np.ones((1, 4), np.float32)
    path = scale(tmp_path / "scale.onnx", 2)
    with Children() as children:
        with deploy(path, {**ORT, "batch_size": 4}, registry=registry, children=children) as first:
            model = first.model
        scale(path, 5)
        cached = {**ORT, "accuracy": {"verify": "cached"}}
        with deploy(model, cached, registry=registry, children=children) as second:
            assert second.run({"x": x})["y"][0, 0] == 5
            assert not second.report.kept
            assert second.run({"x": np.ones((9, 4), np.float32)})["y"].shape == (9, 4)


def test_a_forked_process_is_told_to_deploy_anew(tmp_path: Path, registry: Registry) -> None:
    with deploy(scale(tmp_path / "scale.onnx", 2), dict(ORT), registry=registry) as deployment:
        x = np.ones((1, 4), np.float32)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            for call in (deployment.run, deployment.submit):
                try:
                    call({"x": x})
                    os.write(write, b"answered;")
                except RunFailed as error:
                    os.write(write, b"refused;" if "after the fork" in str(error) else b"other;")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 100) == b"refused;refused;"


def test_a_dropped_deployment_leaves_no_folder(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    deployment = deploy(scale(tmp_path / "scale.onnx", 2), dict(ORT), registry=registry)
    assert list((tmp_path / "temp").glob("paddock-*"))
    del deployment
    gc.collect()
    assert not list((tmp_path / "temp").glob("paddock-*"))


def test_outputs_may_be_any_iterable_of_names_but_not_one_name(tmp_path: Path, registry: Registry) -> None:
    with deploy(scale(tmp_path / "scale.onnx", 2), dict(ORT), registry=registry) as deployment:
        x = np.ones((1, 4), np.float32)
        assert list(deployment.run({"x": x}, outputs=iter(["y"]))) == ["y"]  # type: ignore[arg-type]
        for wrong in ("y", [["y"]], ["z"]):
            with pytest.raises(UsageError):
                deployment.run({"x": x}, outputs=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["candidates", "fallback"])
def test_misspelt_adapters_are_refused_even_where_the_first_is_there(registry: Registry, key: str) -> None:
    config = HardwareConfig.load({**ORT, key: ["cpu/onnxruntme"]})
    with pytest.raises(ConfigError, match="no such adapter") as caught:
        registry.resolve(config)
    assert caught.value.where == f"$.{key}[0]" and "onnxruntime" in str(caught.value.remedy)
    registry.resolve(HardwareConfig.load({**ORT, key: ["gpu/tensorrt"]}))


def test_errors_after_parsing_name_the_configs_file(tmp_path: Path, registry: Registry) -> None:
    config = tmp_path / "here.json"
    config.write_text('{"hardware": "cpu", "backend": "onnxruntime", "operators": {"exclude": ["Foo"]}}')
    with pytest.raises(ConfigError) as caught:
        deploy(scale(tmp_path / "scale.onnx", 2), config, registry=registry)
    assert caught.value.where == f"{config}: $.operators.exclude[0]"


def test_an_agreement_rule_does_not_excuse_the_other_outputs() -> None:
    x = {"x": np.arange(4, dtype=np.float32)}
    wanted: dict[str, np.ndarray[Any, Any]] = {
        "y": np.array([1, 2, 3, 4], np.float32),
        "i": np.array([1, 2, 3, 4], np.uint8),
    }
    other: dict[str, np.ndarray[Any, Any]] = {
        "y": np.array([4, 3, 2, 1], np.float32),
        "i": np.array([4, 3, 2, 1], np.uint8),
    }
    found: dict[str, np.ndarray[Any, Any]] = {
        "y": np.array([1.001, 2, 3, 4], np.float32),
        "i": np.array([1, 2, 3, 5], np.uint8),
    }
    reference = Reference("cpu/reference", (x, x), (wanted, other), judged=1)
    rule = {"cosine": 0.99}
    config = HardwareConfig.load({**ORT, "accuracy": {"min_agreement": rule}})
    assert compare(reference, [found], config, "test").outcome is Outcome.FAILED
    picked = HardwareConfig.load({**ORT, "accuracy": {"min_agreement": {**rule, "output": "y"}}})
    assert compare(reference, [found], picked, "test").outcome is Outcome.PASSED
    misshapen = {**found, "i": np.array([1, 2, 3], np.uint8)}
    assert compare(reference, [misshapen], picked, "test").outcome is Outcome.FAILED


def test_any_two_outputs_of_one_shape_show_that_they_vary() -> None:
    a, b, c = np.zeros(2), np.zeros(3), np.ones(3)
    assert varies([a, b, c]) and not varies([a, b, b])


def test_constant_samples_beside_others_are_no_obstacle(tmp_path: Path, registry: Registry) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    np.savez(folder / "a.npz", x=np.ones((2, 4), np.float32))
    np.savez(folder / "b.npz", x=np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32))
    config = {**ORT, "accuracy": {"samples": str(folder)}}
    with deploy(scale(tmp_path / "scale.onnx", 2), config, registry=registry) as deployment:
        assert deployment.report.outcome is Outcome.PASSED


def test_small_integers_are_drawn_from_their_whole_range(tmp_path: Path, registry: Registry) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, [256]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", values[:1], values[1:])
    path = tmp_path / "same.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    with deploy(path, dict(ORT), registry=registry) as deployment:
        assert deployment.report.outcome is Outcome.PASSED
        from paddock.contest import typical_sample

        assert typical_sample(deployment)["x"].max() > 200


def test_an_edited_plugin_is_asked_anew(registry: Registry, tmp_path: Path) -> None:
    from paddock.cache import source_digest

    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "a.py").write_text("x = 1")
    before = source_digest(tmp_path / "plugin")
    shutil.copytree(tmp_path / "plugin", tmp_path / "edited")
    (tmp_path / "edited" / "a.py").write_text("x = 2")
    assert source_digest(tmp_path / "edited") != before
    entry = registry.get("cpu/onnxruntime")
    assert registry.resolve(HardwareConfig.load(dict(ORT))).versions[entry.distribution].endswith(entry.sources)


def test_refused_for_accuracy_carries_its_report() -> None:
    assert AccuracyRefused("no").report is None
