"""int8 through one interface on both runtimes that quantise: sizes, errors, what stays in float, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from paddock.child import Children
from paddock.deployment import deploy
from paddock.errors import AccuracyRefused, ConfigError, NotAvailable, PaddockError, UsageError
from paddock.lowered import write_lowered
from paddock.plan import Means
from paddock.registry import Registry

WIDTH = 192
BACKENDS = ("onnxruntime", "openvino")
F = np.float32
make = helper.make_node


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three products, whose middle one sees an outlier that int8 cannot hold beside the rest; samples."""
    folder = tmp_path_factory.mktemp("int8")
    rng = np.random.default_rng(0)
    weights = {f"w{n}": (rng.standard_normal((WIDTH, WIDTH)) / 14).astype(F) for n in range(3)}
    spike = np.ones(WIDTH, F)
    spike[7] = 4e3
    constants = {**weights, "spike": spike, "calm": (1 / spike).astype(F)}
    nodes = [
        make("MatMul", ["x", "w0"], ["a"], name="first"),
        make("Relu", ["a"], ["b"]),
        make("Mul", ["b", "spike"], ["c"], name="outlier"),
        make("MatMul", ["c", "w1"], ["d"], name="second"),
        make("Tanh", ["d"], ["e"]),
        make("MatMul", ["e", "w2"], ["y"], name="third"),
    ]
    constants["w1"][7] /= 4e3  # what the outlier adds is of the same size as the rest
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in "xy"]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items() if name != "calm"]
    graph = helper.make_graph(nodes, "m", border[:1], border[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    for kind, count in (("judge", 4), ("calibrate", 8), ("few", 1)):
        (folder / kind).mkdir()
        for number in range(count):
            np.savez(folder / kind / f"{number}.npz", x=rng.standard_normal((4, WIDTH)).astype(F))
    (folder / "strange").mkdir()
    np.savez(folder / "strange" / "0.npz", x=np.full((64, WIDTH), np.inf, F))
    (folder / "wrong").mkdir()
    np.savez(folder / "wrong" / "0.npz", x=np.zeros((64, 3), F))
    return folder


def config(place: Path, backend: str, max_error: float | None = None, **more: Any) -> dict[str, Any]:
    accuracy: dict[str, Any] = {"samples": str(place / "judge")}
    if max_error is not None:
        accuracy["max_error"] = max_error
    calibration = {"samples": str(place / "calibrate")}
    fields = {
        "hardware": "cpu",
        "backend": backend,
        "precision": "int8",
        "accuracy": accuracy,
        "calibration": calibration,
    }
    return {**fields, **more}


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_leaves_the_budget_stays_in_float(
    backend: str, place: Path, registry: Registry, children: Children
) -> None:
    with deploy(place / "m.onnx", config(place, backend, 10.0), registry=registry, children=children) as wide:
        everything = wide.report.error
        assert wide.plan.precision.means is Means.QUANTIZE
        assert not wide.plan.precision.keep_fp32
        assert {node.dtype for node in wide.plan.precision.nodes if node.op == "MatMul"} == {"int8"}
        before, after = (sum(path.stat().st_size for path in files.values()) for files in wide.lowered)
        assert after < 0.27 * before
        effects = {setting.name: setting.effective for setting in wide.plan.settings}
        assert effects["precision"] == "int8"
    assert everything is not None
    assert everything > 0.05, "the outlier does no harm: the test proves nothing"
    with deploy(place / "m.onnx", config(place, backend, 0.04), registry=registry, children=children) as narrow:
        plan = narrow.plan.precision
        assert narrow.report.error is not None
        assert narrow.report.error <= 0.04
        assert 3 in plan.keep_fp32, "the product that reads the outlier"
        assert any(node.dtype == "int8" for node in plan.nodes), "and not all of them"
        assert plan.searched
        assert plan.searched[0].error == pytest.approx(everything)
        assert plan.nodes[3].reason == "the accuracy budget needs it"


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_quantised_model_as_a_file(backend: str, place: Path, tmp_path: Path, registry: Registry) -> None:
    out = tmp_path / "out"
    fields = config(place, backend, 0.1, operators={"keep_fp32": ["second"]})
    written = write_lowered(place / "m.onnx", fields, out, quantize=True, registry=registry)
    assert written.keep_fp32 == ("#3 MatMul",)
    assert 0.4 < written.after / written.before < 0.6, "one of three products has its weights in float32"
    report = json.loads((out / "report.json").read_text())
    assert report["bytes"]["after"] == sum((out / n).stat().st_size for n in report["files"] if n.startswith("model"))
    assert report["verification"]["error"] == written.report.error
    # It is plain ONNX: the runtimes take it without Paddock, and Paddock takes it as a model that is quantised already.
    onnx.checker.check_model(str(out / "model.onnx"), full_check=True)
    x = np.random.default_rng(5).standard_normal((3, WIDTH)).astype(F)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    (outside,) = session.run(None, {"x": x})
    already: dict[str, Any] = {"hardware": "cpu", "backend": backend, "precision": "int8"}
    with deploy(out / "model.onnx", already, registry=registry) as deployment:
        assert deployment.plan.precision.means is Means.NONE
        np.testing.assert_allclose(deployment.run({"x": x})["y"], outside, atol=0.1 * float(np.abs(outside).max()))
    with deploy(place / "m.onnx", out / "config.json", registry=registry) as again:
        assert again.report.error == written.report.error
    with pytest.raises(ConfigError, match="quantising is to int8"):
        write_lowered(
            place / "m.onnx", {**already, "precision": "fp16"}, tmp_path / "b", quantize=True, registry=registry
        )


def test_the_same_interface_refuses_where_there_is_no_quantiser(place: Path, registry: Registry) -> None:
    with pytest.raises(NotAvailable, match="does not compute in int8"):
        deploy(place / "m.onnx", config(place, "reference"), registry=registry)


@pytest.mark.parametrize(
    ("calibration", "problem", "where"),
    [
        (None, "at least 16 examples", "$.calibration"),
        ("few", "holds 4 examples, and at least 16 are wanted", "$.calibration.samples"),
        ("judge", "in 4 of its 4 samples", "$.calibration.samples"),
        ("wrong", "extent 3", "$.calibration.samples"),
        ("strange", "NaN or infinity in x", "$.calibration.samples"),
        ("nowhere", "", "$.calibration.samples"),
    ],
)
def test_samples_that_will_not_do(
    calibration: str | None, problem: str, where: str, place: Path, registry: Registry, children: Children
) -> None:
    fields = config(place, "onnxruntime")
    fields.pop("calibration")
    if calibration is not None:
        fields["calibration"] = {"samples": str(place / calibration)}
    with pytest.raises((ConfigError, UsageError)) as caught:
        deploy(place / "m.onnx", fields, registry=registry, children=children)
    assert where in str(caught.value.where)
    assert problem in str(caught.value)


def test_no_row_both_calibrates_and_judges(place: Path, registry: Registry, children: Children) -> None:
    fields = config(place, "onnxruntime")
    fields.pop("accuracy")
    with np.load(place / "calibrate" / "3.npz") as held:
        row = {"x": held["x"][2:3]}
    with pytest.raises(ConfigError, match="in 1 of its 8 samples"):
        deploy(place / "m.onnx", fields, registry=registry, children=children, samples=[row])


def test_other_calibration_is_another_plan(place: Path, tmp_path: Path, registry: Registry, children: Children) -> None:
    """A verdict kept for one calibration is none for another."""
    fields = config(place, "onnxruntime", 0.2, operators={"keep_fp32": ["second"]})
    fields["accuracy"]["verify"] = "cached"
    with deploy(place / "m.onnx", fields, registry=registry, children=children) as first:
        key = first.plan.key
    for number in range(8):
        with np.load(place / "calibrate" / f"{number}.npz") as held:
            np.savez(tmp_path / f"{number}.npz", x=held["x"] / 100)
    with pytest.raises(AccuracyRefused):
        deploy(
            place / "m.onnx", {**fields, "calibration": {"samples": str(tmp_path)}}, registry=registry,
            children=children,
        )  # fmt: skip
    with deploy(place / "m.onnx", fields, registry=registry, children=children) as again:
        assert again.plan.key == key
        assert again.report.kept


def test_int8_of_a_part_is_refused(place: Path, registry: Registry, children: Children) -> None:
    more = {"operators": {"exclude": ["first"]}, "fallback": ["cpu/reference"]}
    with pytest.raises(NotAvailable, match="needs the whole model"):
        deploy(place / "m.onnx", config(place, "onnxruntime", 1.0, **more), registry=registry, children=children)


def test_a_budget_that_nothing_meets(place: Path, registry: Registry, children: Children) -> None:
    with pytest.raises(AccuracyRefused) as caught:
        deploy(place / "m.onnx", config(place, "onnxruntime", 1e-6), registry=registry, children=children)
    assert "no node could be left in int8" in " ".join(caught.value.candidates)


def test_int8_that_has_no_effect(place: Path, registry: Registry, children: Children) -> None:
    options = {"graph_optimization": "basic"}
    with pytest.raises(PaddockError, match="int8 has no effect"):
        deploy(
            place / "m.onnx", config(place, "onnxruntime", 1.0, options=options), registry=registry, children=children
        )
