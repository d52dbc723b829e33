"""Verification: the measures, the verdicts, golden files, and deployments judged from end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from paddock import deploy as deploy_model
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.errors import AccuracyRefused, ConfigError, MemoryRefused, NotAvailable, UsageError
from paddock.graph import Graph, Value
from paddock.metrics import relative_error
from paddock.model import Model
from paddock.npz import read_npz, write_npz
from paddock.references import Reference, read_golden, write_golden
from paddock.registry import Registry
from paddock.verify import (
    Outcome,
    OutputCheck,
    Report,
    compare,
    describe_budget,
    judge,
)


def arr(data: Any, dtype: str) -> np.ndarray[Any, Any]:
    return np.array(data, dtype)


Array = np.ndarray[Any, Any]


def config(**fields: Any) -> HardwareConfig:
    return HardwareConfig.load({"hardware": "cpu", "backend": "onnxruntime", **fields})


def error(expected: Any, found: Any) -> float:
    return relative_error(np.asarray(expected), np.asarray(found))[0]


# Relative error

FINITE = st.floats(-1e6, 1e6, width=32)
ROWS = st.lists(FINITE, min_size=1, max_size=6)


@given(ROWS, st.sampled_from(["float32", "float64", "float16"]), st.data())
@settings(max_examples=150, deadline=None)
def test_zero_exactly_where_equal(row: list[float], dtype: str, choose: st.DataObject) -> None:
    with np.errstate(over="ignore"):
        wanted = np.nan_to_num(np.array(row, dtype), posinf=1, neginf=-1)
    assert relative_error(wanted, wanted.copy())[0] == 0
    found = wanted.copy()
    at = choose.draw(st.integers(0, len(row) - 1))
    found[at] = np.nextafter(found[at], np.array(np.inf, dtype))
    # A step between two subnormals next to a large element is too small for a ratio of doubles.
    assume(float(found[at]) - float(wanted[at]) > 1e-290)
    assert relative_error(wanted, found)[0] > 0


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=6), st.integers(-20, 20))
@settings(max_examples=150, deadline=None)
def test_the_scale_does_not_matter(pairs: list[tuple[float, float]], power: int) -> None:
    wanted, found = np.array(pairs).T
    scale = 2.0**power
    assert error(wanted * scale, found * scale) == error(wanted, found) == error(-wanted, -found)


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_it_is_the_largest_difference_over_the_largest_magnitude(pairs: list[tuple[float, float]]) -> None:
    wanted, found = np.array(pairs).T
    largest = max(abs(a) for a, _ in pairs)
    difference = max(abs(a - b) for a, b in pairs)
    if largest == 0:
        assert error(wanted, found) == (0 if difference == 0 else math.inf)
    else:
        assert error(wanted, found) == difference / largest


@pytest.mark.parametrize(
    ("wanted", "found", "result"),
    [
        ([1.0, np.nan], [1.0, np.nan], 0),
        ([1.0, np.inf], [1.0, np.inf], 0),
        ([np.nan], [np.nan], 0),
        ([1.0, 2.0], [1.0, np.nan], np.inf),
        ([1.0, 2.0], [1.0, np.inf], np.inf),
        ([1.0, np.nan], [1.0, 2.0], np.inf),
        ([1.0, np.inf], [1.0, -np.inf], np.inf),
        ([1.0, np.inf], [1.0, np.nan], np.inf),
        ([np.nan, 4.0], [np.nan, 5.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([0.0, 0.0], [0.0, 1e-30], np.inf),
        ([[1.0]], [1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True, False], [True, True], 0.5),
        (["a", "b"], ["a", "b"], 0),
        (["a", "b"], ["a", "c"], 0.5),
        (np.array(["a", None], object), np.array(["a", "c"], object), 0.5),
        (arr([1], "float32"), arr([1], "float64"), np.inf),
        (arr([1], "int32"), arr([1], "int64"), np.inf),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0),
        (np.zeros((0, 3)), np.zeros((3, 0)), np.inf),
        (3.0, 3.0, 0),
        ([2j], [1j], 0.5),
        ([1 + 1j, complex(np.nan, 1)], [1 + 1j, complex(np.nan, 1)], 0),
        ([2**62, 2**62 + 1], [2**62, 2**62 + 2], 0.5),
        (arr([60000], "float16"), arr([-60000], "float16"), 2),
    ],
)
def test_patterns(wanted: Any, found: Any, result: float) -> None:
    assert error(wanted, found) == result


# compare and judge


def reference(*outputs: Array, name: str = "y", inputs: Sequence[Array] | None = None) -> Reference:
    samples = inputs or [arr([number], "float32") for number in range(len(outputs))]
    return Reference("cpu/reference", tuple({"x": s} for s in samples), tuple({name: o} for o in outputs))


def report(wanted: Sequence[Array], found: Sequence[Array], mask: Sequence[Array] | None = None, **acc: Any) -> Report:
    return compare(reference(*wanted, inputs=mask), [{"y": f} for f in found], config(accuracy=acc), "test")


A, B = arr([[1, 2, 4], [8, 1, 0]], "float32"), arr([[5, 2, 4], [0, 1, 0]], "float32")


def test_passed_failed_inconclusive() -> None:
    passed = report([A, B], [A, B])
    assert passed.outcome is Outcome.PASSED and passed.error == 0 and passed.outputs[0].varies
    assert passed.reference == "cpu/reference" and passed.source == "test" and passed.shapes == ("x [1]", "x [1]")
    off = B.copy()
    off[0, 0] = 5.1
    failed = report([A, B], [A, off])
    assert failed.outcome is Outcome.FAILED and failed.error == pytest.approx(0.02, rel=1e-4)
    assert "'y'" in failed.reason and "0.02" in failed.reason and "0.0001" in failed.reason
    assert report([A, B], [A, off], max_error=0.03).outcome is Outcome.PASSED
    assert report([A, A], [A, A]).outcome is Outcome.INCONCLUSIVE
    assert report([A, A], [A, off]).outcome is Outcome.FAILED, "wrong comes before unproven"
    assert report([A, A[:1]], [A, A[:1]]).outcome is Outcome.INCONCLUSIVE, "another shape shows nothing"


def test_the_worst_sample_and_output_count() -> None:
    two = Reference("r", ({"x": A}, {"x": B}), ({"y": A, "z": A}, {"y": B, "z": B}))
    found = compare(two, [{"y": A, "z": A}, {"y": B, "z": B + np.float32(1)}], config(), "test")
    assert found.outcome is Outcome.FAILED and [c.name for c in found.outputs if c.error > 0] == ["z"]
    assert found.error == 0.2 and "'z'" in found.reason


def test_only_the_judged_samples_need_answers() -> None:
    found = compare(reference(A, B), [{"y": A}], config(), "test")
    assert found.outcome is Outcome.PASSED and found.outputs[0].varies and len(found.shapes) == 1


def test_a_nan_never_passes() -> None:
    bad = np.full_like(B, np.nan)
    assert report([A, B], [A, bad], max_error=1e30).outcome is Outcome.FAILED
    for rule in ({"cosine": 0.01}, {"top1": 0.01}):
        assert report([A, B], [A, bad], min_agreement=rule).outcome is Outcome.FAILED
        assert report([bad, B], [A, B], min_agreement=rule).outcome is Outcome.FAILED
        assert report([B, bad], [B, A], min_agreement=rule).outcome is Outcome.FAILED


def test_top1_and_cosine_along_the_last_axis() -> None:
    one_wrong = A.copy()
    one_wrong[1] = [1, 8, 0]
    found = report([A, B], [one_wrong, B], min_agreement={"top1": 0.5})
    assert found.outcome is Outcome.PASSED and found.outputs[0].agreement == 0.5
    assert report([A, B], [one_wrong, B], min_agreement={"top1": 0.51}).outcome is Outcome.FAILED
    found = report([A, B], [A * 3, B], min_agreement={"cosine": 0.9999})
    assert found.outcome is Outcome.PASSED and found.outputs[0].agreement == pytest.approx(1)
    assert report([A, B], [-A, B], min_agreement={"cosine": 0.01}).outcome is Outcome.FAILED
    expected = (A[1] @ one_wrong[1]) / (np.linalg.norm(A[1]) * np.linalg.norm(one_wrong[1]))
    lowest = report([A, B], [one_wrong, B], min_agreement={"cosine": 0.1}).outputs[0].agreement
    assert lowest == pytest.approx(float(expected)), "the smallest vector counts"


def test_another_axis() -> None:
    turned = A.T.copy()
    wrong = turned.copy()
    wrong[:, 1] = [1, 8, 0]
    rule = {"top1": 0.6, "axis": 0}
    assert report([turned, B.T], [wrong, B.T], min_agreement=rule).outputs[0].agreement == 0.5
    for axis in (2, -3):
        with pytest.raises(ConfigError) as caught:
            report([A, B], [A, B], min_agreement={"top1": 0.6, "axis": axis})
        assert caught.value.where == "$.accuracy.min_agreement.axis"


def test_the_mask_says_which_positions_count() -> None:
    wrong = A.copy()
    wrong[1] = [1, 8, 0]
    rule = {"top1": 1.0, "mask": "x"}
    first, second = arr([1, 0], "int64"), arr([0, 1], "int64")
    assert report([A, B], [wrong, B], [first, first], min_agreement=rule).outcome is Outcome.PASSED
    assert report([A, B], [wrong, B], [second, second], min_agreement=rule).outcome is Outcome.FAILED
    none = arr([0, 0], "int64")
    assert report([A, B], [wrong, B], [none, none], min_agreement=rule).outcome is Outcome.INCONCLUSIVE
    assert report([A, B], [wrong, B], [none, second], min_agreement=rule).outcome is Outcome.PASSED
    with pytest.raises(ConfigError, match="does not fit"):
        report([A, B], [A, B], [arr([1, 0, 1], "int64")] * 2, min_agreement=rule)
    with pytest.raises(ConfigError) as caught:
        report([A, B], [A, B], min_agreement={"top1": 1.0, "mask": "no"})
    assert caught.value.where == "$.accuracy.min_agreement.mask" and caught.value.candidates == ("x",)


@given(st.lists(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_tensor_agrees_with_itself_whatever_its_magnitude(rows: list[list[float]]) -> None:
    rows = [[0.0 if abs(x) < 1e-300 else x for x in row] for row in rows]
    array = np.array(rows)
    for rule in ({"cosine": 0.999}, {"top1": 1.0}):
        level = report([array, array + 1], [array, array + 1], min_agreement=rule).outputs[0].agreement
        assert level == pytest.approx(1)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
@pytest.mark.parametrize("rule", [{"cosine": 0.9}, {"top1": 0.9}])
def test_agreement_on_empty_outputs_proves_nothing(shape: tuple[int, int], rule: Any) -> None:
    empty = np.zeros(shape, np.float32)
    assert report([empty, empty], [empty, empty], min_agreement=rule).outcome is Outcome.INCONCLUSIVE


def test_a_zero_vector_agrees_with_zero_alone() -> None:
    zero = np.zeros_like(A)
    assert report([zero, B], [zero, B], min_agreement={"cosine": 1.0 - 1e-9}).outcome is Outcome.PASSED
    assert report([zero, B], [A, B], min_agreement={"cosine": 0.1}).outcome is Outcome.FAILED


def test_agreement_sees_shape_and_dtype() -> None:
    for wrong in (A[:, :2], A.astype(np.float64)):
        found = report([A, B], [wrong, B], min_agreement={"top1": 0.1})
        assert found.outcome is Outcome.FAILED and ("shape" in found.reason or "dtype" in found.reason)


def test_agreement_of_one_output() -> None:
    labels = arr([1], "int64")
    two = Reference("r", ({"x": A}, {"x": B}), ({"y": A, "k": labels}, {"y": B, "k": labels}))
    answers = [{"y": A, "k": labels}, {"y": B, "k": labels}]
    for rule in ({"top1": 1.0}, {"top1": 1.0, "output": "y"}):
        found = compare(two, answers, config(accuracy={"min_agreement": rule}), "test")
        assert found.outcome is Outcome.PASSED and [c.agreement for c in found.outputs] == [1.0, None]
    for name in ("no", "k"):
        with pytest.raises(ConfigError) as caught:
            compare(two, answers, config(accuracy={"min_agreement": {"top1": 1.0, "output": name}}), "test")
        assert caught.value.candidates == ("y",)
    only = Reference("r", ({"x": A}, {"x": B}), ({"k": labels}, {"k": labels + 1}))
    with pytest.raises(ConfigError, match="none"):
        compare(only, [{"k": labels}] * 2, config(accuracy={"min_agreement": {"top1": 1.0}}), "test")


def test_sequences_are_compared_too() -> None:
    first: Any = [A, B]
    second: Any = [B, A]
    two = Reference("r", ({"x": A}, {"x": B}), ({"y": first}, {"y": second}))
    assert compare(two, [{"y": first}, {"y": second}], config(), "t").outcome is Outcome.PASSED
    assert compare(two, [{"y": second}, {"y": second}], config(), "t").outcome is Outcome.FAILED


def test_judge() -> None:
    passed, failed = report([A, B], [A, B]), report([A, B], [B, A])
    unproven = report([A, A], [A, A])
    judge(passed, config(), "cpu/x")
    judge(unproven, config(strict=False), "cpu/x")
    for refused, settings_ in ((failed, {}), (failed, {"strict": False}), (unproven, {})):
        with pytest.raises(AccuracyRefused) as caught:
            judge(refused, config(**settings_), "cpu/x")
        assert caught.value.report is refused and "cpu/x" in caught.value.problem and caught.value.remedy


def test_the_budget_in_words_tells_every_rule_apart() -> None:
    rules: list[Any] = [
        {}, {"max_error": 0.5}, {"min_agreement": {"top1": 0.9}}, {"min_agreement": {"cosine": 0.9}},
        {"min_agreement": {"top1": 0.9, "output": "y"}}, {"min_agreement": {"top1": 0.9, "axis": 1}},
        {"min_agreement": {"top1": 0.9, "mask": "m"}},
    ]  # fmt: skip
    assert len({describe_budget(config(accuracy=rule)) for rule in rules}) == len(rules)
    assert describe_budget(config()) == "max_error 0.0001"


@pytest.mark.parametrize("number", [0.25, math.inf, None])
def test_a_stored_report_is_the_same_report(number: float | None) -> None:
    check = OutputCheck("y", math.inf if number is None else number, number, True, "note")
    found = Report(Outcome.FAILED, "b", "r", number, (check,), ("x [1]",), "s", "why", True)
    assert Report.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


# Golden files


def pair(dtype: str = "float32") -> Model:
    values = (Value("x", dtype, ("N",)), Value("y", dtype, ("N",)))
    return Model("onnx", {}, "f", Graph((), values, (0,), (1,)))


def golden(place: Path, **changes: Any) -> Path:
    """A good golden file, with members replaced, or left out where the change is None."""
    stored = Reference("cpu/reference", ({"x": A[0]}, {"x": B[0]}), ({"y": A[1]}, {"y": B[1]}), 1)
    write_golden(place, stored)
    if changes:
        kept = {**read_npz(place, "test"), **{key.replace("__", "/"): value for key, value in changes.items()}}
        write_npz(place, {key: value for key, value in kept.items() if value is not None}, "test")
    return place


def test_golden_is_read_as_written(tmp_path: Path) -> None:
    found = read_golden(golden(tmp_path / "g"), pair())
    assert found.adapter == "golden (cpu/reference)" and found.judged == 1
    assert [s["x"].tolist() for s in found.samples] == [A[0].tolist(), B[0].tolist()]
    assert [o["y"].tolist() for o in found.outputs] == [A[1].tolist(), B[1].tolist()]
    assert found.outputs[0]["y"].dtype == np.float32
    assert read_golden(golden(tmp_path / "g", judged=None), pair()).judged == 2


def test_golden_keeps_more_than_ten_samples_in_order(tmp_path: Path) -> None:
    many = [arr([number], "float32") for number in range(12)]
    write_golden(tmp_path / "g", Reference("r", tuple({"x": m} for m in many), tuple({"y": m} for m in many)))
    found = read_golden(tmp_path / "g", pair())
    assert [o["y"][0] for o in found.outputs] == list(range(12)) and found.judged == 12


def test_golden_strings(tmp_path: Path) -> None:
    words = np.array(["a", "bcd"], object)
    write_golden(tmp_path / "g", Reference("r", ({"x": words},), ({"y": words},)))
    found = read_golden(tmp_path / "g", pair("string"))
    assert found.outputs[0]["y"].dtype == object and found.outputs[0]["y"].tolist() == ["a", "bcd"]


@pytest.mark.parametrize(
    "changes",
    [
        {"0__out__y": None}, {"0__in__x": None}, {"1__in__x": None}, {"0__out__z": A}, {"foreign": A},
        {"-1__in__x": A[0]}, {"\u00b2__in__x": A[0]}, {"0__neither__x": A}, {"2__in__x": A[0]},
        {"judged": np.array(0)}, {"judged": np.array(-1)}, {"judged": np.array(3)}, {"judged": np.array("one")},
        {"judged": np.array(1.5)}, {"judged": np.array([1])},
        {"0__in__x": A}, {"0__in__x": A[0].astype(np.float64)}, {"0__in__z": A[0]},
    ],
)  # fmt: skip
def test_a_golden_file_that_was_edited_or_is_anothers(tmp_path: Path, changes: Any) -> None:
    place = golden(tmp_path / "g.npz", **changes)
    with pytest.raises((ConfigError, UsageError)) as caught:
        read_golden(place, pair())
    assert str(place) in (caught.value.where or "") and "$.accuracy.golden" in (caught.value.where or "")


def test_a_golden_file_that_is_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz")
    for place in (tmp_path / "no.npz", tmp_path, tmp_path / "empty.npz"):
        with pytest.raises((ConfigError, UsageError)) as caught:
            read_golden(place, pair())
        assert str(place) in (caught.value.where or "")


def test_golden_that_cannot_be_written(tmp_path: Path) -> None:
    sequence: Any = [A]
    for place, output in ((tmp_path, A), (tmp_path / "no" / "g", A), (tmp_path / "g", sequence)):
        with pytest.raises(UsageError) as caught:
            write_golden(place, Reference("r", ({"x": A},), ({"y": output},)))
        assert str(place) in (caught.value.where or "")


# From end to end, on cpu/onnxruntime

Deploy = Callable[..., Any]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover(only=["paddock-reference", "paddock-onnxruntime"])


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture
def deploy(registry: Registry, children: Children) -> Deploy:
    def call(model: Path, **fields: Any) -> Any:
        return deploy_model(model, config(**fields), registry=registry, children=children)

    return call


def save(place: Path, nodes: Any, inits: Any = (), output: int = TensorProto.FLOAT, out: str = "y") -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    y = helper.make_tensor_value_info(out, output, ["N", 3])
    made = helper.make_graph(nodes, "g", [x], [y], initializer=list(inits))
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(place))
    return place


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    return save(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])])


@pytest.fixture
def constant(tmp_path: Path) -> Path:
    zero = numpy_helper.from_array(np.float32(0), "zero")
    return save(tmp_path / "constant.onnx", [helper.make_node("Mul", ["x", "zero"], ["y"])], [zero])


def no_reference(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("the reference was asked")


def test_a_good_model_passes_at_two_shapes(deploy: Deploy, relu: Path) -> None:
    with deploy(relu) as deployment:
        found = deployment.report
        assert found.outcome is Outcome.PASSED and found.error == 0 and found.source == "generated"
        assert found.reference == "cpu/reference" and len(set(found.shapes)) == 2 and not found.kept
        answer = deployment.run({"x": arr([[-1, 0, 2]], "float32")})
        assert answer["y"].tolist() == [[0, 0, 2]]


def test_an_output_called_file(deploy: Deploy, tmp_path: Path) -> None:
    named = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["file"])], out="file")
    with deploy(named) as deployment:
        assert deployment.report.outcome is Outcome.PASSED


def test_constant_outputs_are_inconclusive(deploy: Deploy, constant: Path) -> None:
    with pytest.raises(AccuracyRefused, match="inconclusive") as caught:
        deploy(constant)
    report_: Any = caught.value.report
    assert report_.outcome is Outcome.INCONCLUSIVE
    with deploy(constant, strict=False) as deployment:
        assert deployment.report.outcome is Outcome.INCONCLUSIVE


def test_samples_of_ones_own(deploy: Deploy, relu: Path, tmp_path: Path) -> None:
    place = tmp_path / "s.npz"
    np.savez(place, x=arr([[1, 2, 3]], "float32"))
    with deploy(relu, accuracy={"samples": str(place)}) as deployment:
        assert deployment.report.source == "accuracy.samples" and deployment.report.shapes == ("x [1, 3]",)
    np.savez(place, x=arr([[-1, -2, -3]], "float32"))
    with pytest.raises(AccuracyRefused, match="inconclusive"):
        deploy(relu, accuracy={"samples": str(place)})
    np.savez(place, x=arr([[1, 2]], "float32"))
    with pytest.raises(UsageError, match="extent 2"):
        deploy(relu, accuracy={"samples": str(place)})


def test_cached_asks_the_reference_once(deploy: Deploy, relu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(**rule: Any) -> Report:
        with deploy(relu, accuracy={"verify": "cached", **rule}) as deployment:
            found: Report = deployment.report
            return found

    first = cached(min_agreement={"cosine": 0.9})
    monkeypatch.setattr("paddock.prepare.reference_outputs", no_reference)
    assert cached(min_agreement={"cosine": 0.9}) == replace(first, kept=True)
    with pytest.raises(AssertionError, match="the reference was asked"):
        cached(min_agreement={"cosine": 0.9, "axis": 0})  # another rule is another check
    with pytest.raises(AssertionError, match="the reference was asked"):
        deploy(relu, accuracy={"min_agreement": {"cosine": 0.9}, "verify": "always"})


def test_an_inconclusive_check_is_not_kept(deploy: Deploy, constant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with deploy(constant, strict=False, accuracy={"verify": "cached"}):
        pass
    with pytest.raises(AccuracyRefused):
        deploy(constant, accuracy={"verify": "cached"})


def test_golden_needs_no_reference(deploy: Deploy, relu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [arr([[1, -1, 2]], "float32"), arr([[3, -1, 2]], "float32")]
    place = tmp_path / "g.npz"
    outputs = [np.maximum(row, 0) for row in rows]
    write_golden(place, Reference("cpu/reference", tuple({"x": r} for r in rows), tuple({"y": o} for o in outputs), 1))
    monkeypatch.setattr(Registry, "references", lambda self, format: [])
    with pytest.raises(NotAvailable, match="reference"):
        deploy(relu)
    by_golden = {"accuracy": {"verify": "golden", "golden": str(place)}}
    with deploy(relu, **by_golden) as deployment:
        found = deployment.report
        assert found.outcome is Outcome.PASSED and found.reference == "golden (cpu/reference)"
        assert found.shapes == ("x [1, 3]",), "only the judged sample"
    stored = read_npz(place, "test")
    write_npz(place, {**stored, "0/out/y": stored["0/out/y"] + np.float32(0.01)}, "test")
    with pytest.raises(AccuracyRefused, match="relative error"):
        deploy(relu, **by_golden)
    write_npz(place, {**stored, "0/out/y": stored["0/out/y"][:, :2]}, "test")
    with pytest.raises(AccuracyRefused, match="shape"):
        deploy(relu, **by_golden)


def test_off_is_said(deploy: Deploy, constant: Path) -> None:
    with deploy(constant, accuracy={"verify": "off"}) as deployment:
        assert deployment.report.outcome is Outcome.OFF
        assert any("NOT VERIFIED" in note for note in deployment.plan.notes)


def test_memory_is_refused_before_anything_is_built(
    deploy: Deploy, relu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paddock.deployment.build", no_reference)
    with pytest.raises(MemoryRefused, match=r"memory\.limit"):
        deploy(relu, memory={"limit": 100}, batch_size=64)


def test_a_wrong_backend_is_refused(deploy: Deploy, relu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paddock.host import InProcessHost

    real = InProcessHost.run

    def slightly_wrong(self: InProcessHost, *args: Any) -> Any:
        return {name: array * np.float32(1.001) for name, array in real(self, *args).items()}

    monkeypatch.setattr(InProcessHost, "run", slightly_wrong)
    with pytest.raises(AccuracyRefused, match="the budget is 0.0001") as caught:
        deploy(relu, accuracy={"verify": "always"})
    report_: Any = caught.value.report
    assert report_.outcome is Outcome.FAILED and report_.error == pytest.approx(0.001, rel=0.01)
    with deploy(relu, accuracy={"max_error": 0.01, "verify": "always"}) as deployment:
        assert deployment.report.outcome is Outcome.PASSED
