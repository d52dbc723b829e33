"""The conformance kit: cases, comparison, how a case is classified, and a list of known failures that is strict."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from paddock.errors import NotAvailable, UsageError
from paddock.registry import Registry
from paddock.testing import nodes
from paddock.testing.__main__ import main
from paddock.testing.cases import CARRIERS, Case, array_of, data_sets, node_cases
from paddock.testing.comparing import decoded, difference
from paddock.testing.known import KNOWN, Known, stale, unexpected
from paddock.testing.matrix import as_json, show_matrix
from paddock.testing.nodes import Outcome, Result, Settings, check_adapters, run_nodes
from rich.console import Console

# Cases.


def only(name: str) -> Case:
    (found,) = node_cases(name)
    return found


def test_every_node_test_of_the_standard_is_a_case() -> None:
    cases = node_cases()
    assert len(cases) == 1288 and len({case.name for case in cases}) == 1288
    assert [case.name for case in cases] == sorted(case.name for case in cases)
    assert all(case.model.is_file() and case.operator and case.operators for case in cases)
    assert all((case.rtol, case.atol) == (1e-3, 1e-5) for case in cases)


def test_a_function_written_out_belongs_to_its_operator() -> None:
    whole, written_out = only("test_softmax_axis_0"), only("test_softmax_axis_0_expanded_ver18")
    assert whole.operators == ("Softmax",) and "ReduceMax" in written_out.operators
    assert whole.operator == written_out.operator == "Softmax"
    assert only("test_ai_onnx_ml_label_encoder_string_int").operator == "ai.onnx.ml.LabelEncoder"


def test_no_case_of_that_name() -> None:
    with pytest.raises(UsageError, match="test_rellu") as caught:
        node_cases("test_rellu")
    assert "test_relu" in str(caught.value.remedy)


def test_sequences_optionals_and_strings() -> None:
    (data,) = data_sets(only("test_sequence_insert_at_back"))
    assert [type(value) for value in data.inputs.values()] == [list, np.ndarray]
    assert all(isinstance(value, np.ndarray) for value in data.outputs["output_sequence"])
    assert data.dtypes == {"output_sequence": "int64"}
    (data,) = data_sets(only("test_optional_has_element_empty_optional_input"))
    assert data.inputs == {"optional_input": None}
    (data,) = data_sets(only("test_optional_has_element_optional_input"))
    assert isinstance(data.inputs["optional_input"], np.ndarray)
    (data,) = data_sets(only("test_optional_get_element_optional_sequence"))
    assert isinstance(data.inputs["optional_input"], list) and data.dtypes == {"output": "int32"}
    (data,) = data_sets(only("test_string_concat"))
    assert data.inputs["x"].dtype == object and data.inputs["x"].tolist() == ["abc", "def"]
    assert data.dtypes == {"result": "string"}


def test_a_case_states_its_own_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = unary(tmp_path, "Relu", np.ones(2, np.float32), np.ones(2, np.float32))
    (case.model.parent / "data.json").write_text('{"rtol": 0.25, "atol": 0.5}')
    listed = [onnx.backend.test.case.test_case.TestCase(
        name="test_own", model_name="own", url=None, model_dir=str(case.model.parent), model=None, data_sets=None,
        kind="node", rtol=0.25, atol=0.5)]  # fmt: skip
    monkeypatch.setattr("onnx.backend.test.loader.load_model_tests", lambda kind: listed)
    found = only("test_own")
    assert (found.rtol, found.atol, found.operator) == (0.25, 0.5, "Relu")


_EXOTIC = {
    "bfloat16": TensorProto.BFLOAT16, "float8e4m3fn": TensorProto.FLOAT8E4M3FN, "int4": TensorProto.INT4,
    "float8e4m3fnuz": TensorProto.FLOAT8E4M3FNUZ, "float8e5m2": TensorProto.FLOAT8E5M2, "uint4": TensorProto.UINT4,
    "float8e5m2fnuz": TensorProto.FLOAT8E5M2FNUZ,
}  # fmt: skip


@pytest.mark.parametrize("dtype", sorted(CARRIERS))
@pytest.mark.parametrize("raw", [False, True])
def test_exotic_elements_come_as_their_bits(dtype: str, raw: bool) -> None:
    numbers = np.array([[0, 1, -2], [3, 4, -5]], np.float32)
    if dtype == "uint4":
        numbers = np.abs(numbers)
    tensor = helper.make_tensor("t", _EXOTIC[dtype], numbers.shape, numbers)
    if raw:
        width = np.uint16 if dtype == "bfloat16" else np.uint8
        content = np.array(tensor.int32_data).astype(width).tobytes()
        del tensor.int32_data[:]
        tensor.raw_data = content
    array = array_of(tensor)
    assert array.dtype == CARRIERS[dtype] and array.shape == (2, 3) and array.flags.writeable
    np.testing.assert_array_equal(decoded(array, dtype), np.where(numbers == -5, decoded(array, dtype), numbers))
    assert abs(float(decoded(array, dtype)[1, 2])) == pytest.approx(5, abs=1)  # 5 has no code in every type


def test_an_odd_number_of_nibbles() -> None:
    tensor = helper.make_tensor("t", TensorProto.INT4, (3,), [-8, 7, -1])
    np.testing.assert_array_equal(array_of(tensor), np.array([-8, 7, -1], np.int8))


# Comparing.


@pytest.mark.parametrize("dtype", [name for name in sorted(CARRIERS) if name.startswith("float8")])
def test_every_float8_is_decoded_as_onnx_does(dtype: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    convert = numpy_helper.float8e4m3_to_float32 if "e4m3" in dtype else numpy_helper.float8e5m2_to_float32
    uz = dtype.endswith("fnuz")
    wanted = convert(codes.astype(np.int32), fn=uz or "e4m3" in dtype, uz=uz)
    np.testing.assert_array_equal(decoded(codes, dtype), wanted)
    assert decoded(codes, dtype).dtype == np.float32


def test_bfloat16_is_decoded() -> None:
    found = decoded(np.array([0x3F80, 0xC000, 0x7F80], np.uint16), "bfloat16")
    np.testing.assert_array_equal(found, np.array([1, -2, np.inf], np.float32))
    assert decoded(np.array([3], np.uint16), "uint16").dtype == np.uint16


def f32(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("found", "expected", "dtype"),
    [
        (f32(1.0009, 2), f32(1, 2), "float32"),
        (f32(9e-6), f32(0), "float32"),
        (f32(np.nan, np.inf, -np.inf), f32(np.nan, np.inf, -np.inf), "float32"),
        (f32(), f32(), "float32"),
        (np.array(1.0), np.array(1.0), "float64"),
        (np.array(["a", ""], object), np.array(["a", ""], object), "string"),
        ([f32(1), f32(1, 2)], [f32(1), f32(1, 2)], "float32"),
        ([], [], "float32"),
        (None, None, "float32"),
        (np.array([0x7F], np.uint8), np.array([0xFF], np.uint8), "float8e4m3fn"),
    ],
)
def test_what_counts_as_equal(found: Any, expected: Any, dtype: str) -> None:
    assert difference(found, expected, dtype) is None


@pytest.mark.parametrize(
    ("found", "expected", "dtype", "why"),
    [
        (f32(1.0012), f32(1), "float32", "1 of 1 elements, .* at .0., not"),
        (f32(1.2e-5), f32(0), "float32", "1 of 1"),
        (f32(1), f32(np.nan), "float32", "1 of 1"),
        (f32(np.inf), f32(-np.inf), "float32", "1 of 1"),
        (f32(1, 2, 3), f32(1, 5, 6), "float32", "2 of 3 elements, .*2.* at .1., not"),
        (f32(1), f32(1).astype(np.float64), "float32", "dtype float32, not float64"),
        (f32(1), f32(1).reshape(1, 1), "float32", r"shape \[1\], not \[1, 1\]"),
        (f32(1), f32(1).reshape(()), "float32", r"shape \[1\], not \[\]"),
        (f32(1, 1), f32(1), "float32", r"shape \[2\], not \[1\]"),
        (f32(2).reshape(()), f32(1).reshape(()), "float32", "1 of 1"),
        (np.array([True]), np.array([False]), "bool", "1 of 1"),
        (np.array([2], np.int64), np.array([1], np.int64), "int64", "1 of 1"),
        (np.array(["a"], object), np.array(["b"], object), "string", "'a' at .0., not 'b'"),
        ([f32(1)], [f32(1), f32(2)], "float32", "a sequence of 1, not of 2"),
        ([f32(1), f32(3)], [f32(1), f32(2)], "float32", "element 1: 1 of 1"),
        (f32(1), [f32(1)], "float32", "an array of float32, not a sequence of 1"),
        ([f32(1)], f32(1), "float32", "a sequence of 1, not an array"),
        (None, f32(1), "float32", "an empty optional, not an array"),
        (f32(1), None, "float32", "an array of float32, not an empty optional"),
        (1.0, f32(1), "float32", "a float, not an array"),
        (np.array([0x3F81], np.uint16), np.array([0x3F80], np.uint16), "bfloat16", "1 of 1"),
        (np.array([0x39], np.uint8), np.array([0x38], np.uint8), "float8e4m3fn", "1.125.* not .*1.0"),
    ],
)
def test_what_counts_as_different(found: Any, expected: Any, dtype: str, why: str) -> None:
    said = difference(found, expected, dtype)
    assert said is not None
    assert re.search(why, said), said


@given(st.lists(st.floats(width=32), max_size=8), st.integers(0, 7), st.floats(1.1, 1e6))
def test_one_element_out_of_tolerance_is_seen(values: list[float], position: int, factor: float) -> None:
    expected = np.array(values, np.float64)
    assert difference(expected.copy(), expected, "float64") is None
    if position < len(values) and np.isfinite(values[position]):
        found = expected.copy()
        found[position] += factor * (1e-5 + 1e-3 * abs(values[position]))
        said = difference(found, expected, "float64")
        assert said is not None and said.startswith("1 of")


# Classification, with a plugin whose manners go by the operator.

_PLUGIN = """
import os, time
from pathlib import Path
from typing import ClassVar
import numpy as np
from paddock.plan import Precision, Verdict
from paddock.spi import Adapter, Artifact, Selection, Session, hookimpl

SEEN = Path(__file__).with_name("seen")
FUNCTIONS = {"Relu": lambda x: np.maximum(x, 0), "Neg": np.negative, "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil}

class Moody(Adapter):
    hardware: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "moody"
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple] = ("onnx",)
    precisions: ClassVar[frozenset] = frozenset({Precision.FP32})

    def select_operators(self, model, context):
        if any(node.op == "Ceil" for node in model.graph.nodes):
            time.sleep(600)
        known = [node.op in FUNCTIONS for node in model.graph.nodes]
        return Selection(tuple(Verdict.yes() if k else Verdict.no("not in the mood") for k in known))

    def compile(self, model, plan, context):
        names = [tuple(v.name for v in vs) for vs in (model.graph.input_values, model.graph.output_values)]
        return Artifact(self.name(), "onnx", {}, *names, facts={"op": model.graph.nodes[0].op})

    def load(self, artifact, context):
        if artifact.facts["op"] == "Abs":  # fine when it is tried out, then not
            if SEEN.exists():
                os.abort()
            SEEN.touch()
        return MoodySession(artifact)

class MoodySession(Session):
    def __init__(self, artifact):
        self.artifact, self.runs = artifact, 0

    def run(self, feeds, outputs=None):
        self.runs += 1
        (x,) = feeds.values()
        answer = FUNCTIONS[self.artifact.facts["op"]](x)
        if self.artifact.facts["op"] == "Neg" and self.runs > 2:  # right while it is checked, then not
            answer = answer + 1
        return {self.artifact.outputs[0]: answer}

    def close(self):
        pass

@hookimpl
def paddock_adapters():
    return [Moody]
"""


@pytest.fixture
def moody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed plugin that brings cpu/moody, found by this process and its children."""
    place = tmp_path / "site"
    facts = place / "paddock_moody-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: paddock-moody\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[paddock]\nmoody = moody_plugin\n")
    (place / "moody_plugin.py").write_text(_PLUGIN)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PADDOCK_ALLOW", "paddock-moody,paddock-reference")
    return "cpu/moody"


def unary(folder: Path, op: str, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Case:
    """A case of one operator, laid out as the standard's are."""
    place = folder / f"test_{op.lower()}"
    data = place / "test_data_set_0"
    data.mkdir(parents=True)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in (("x", x), ("y", y))]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], op, values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), place / "model.onnx")
    (data / "input_0.pb").write_bytes(numpy_helper.from_array(x).SerializeToString())
    (data / "output_0.pb").write_bytes(numpy_helper.from_array(y).SerializeToString())
    return Case(place.name, place / "model.onnx", op, (op,))


X = f32(-1.5, 2.25, 3)


def by_case(results: tuple[Result, ...]) -> Mapping[str, Result]:
    return {result.case: result for result in results}


@pytest.mark.slow
def test_native_refused_wrong_and_a_worker_that_crashes(tmp_path: Path, moody: str) -> None:
    cases = [
        unary(tmp_path, "Abs", X, np.abs(X)),
        unary(tmp_path, "Relu", X, np.maximum(X, 0)),
        unary(tmp_path, "Neg", X, -X),
        unary(tmp_path, "Exp", X, np.exp(X)),
        unary(tmp_path, "Floor", X, np.ceil(X)),
    ]
    told: list[Result] = []
    results = run_nodes(cases, [moody], None, workers=1, told=told.append)
    assert [r.case for r in results] == [case.name for case in cases] and sorted(told, key=id) == sorted(
        results, key=id
    )
    found = by_case(results)
    assert found["test_abs"].outcome is Outcome.CRASHED and "SIGABRT" in found["test_abs"].reason
    assert found["test_relu"].outcome is Outcome.NATIVE and found["test_relu"].placed == {moody: 1}
    assert found["test_neg"].outcome is Outcome.WRONG and "3 of 3 elements" in found["test_neg"].reason
    assert found["test_exp"].outcome is Outcome.REFUSED and "not in the mood" in found["test_exp"].reason
    # Paddock's reference agrees with it: the case's own expectation is what judges.
    assert found["test_floor"].outcome is Outcome.WRONG


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended(tmp_path: Path, moody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "SECONDS", 3.0)
    (result,) = run_nodes([unary(tmp_path, "Ceil", X, np.ceil(X))], [moody], None, workers=1)
    assert result.outcome is Outcome.HUNG and "did not answer" in result.reason


@pytest.mark.long
@pytest.mark.slow
def test_a_few_of_the_standards_on_the_reference() -> None:
    cases = [only(n) for n in ("test_relu", "test_scan_sum", "test_sequence_insert_at_back", "test_string_concat")]
    results = by_case(run_nodes(cases, ["cpu/reference"], None, workers=2))
    outcomes = [results[case.name].outcome for case in cases]
    assert outcomes == [Outcome.NATIVE, Outcome.REFUSED, Outcome.NATIVE, Outcome.NATIVE], results
    assert "opset 9" in results["test_scan_sum"].reason


def test_adapters_are_checked_before_anything_runs(moody: str) -> None:
    registry = Registry.discover()
    assert check_adapters(registry, [moody, "cpu/reference", moody]) == (moody, "cpu/reference")
    with pytest.raises(NotAvailable, match="cpu/mody"):
        check_adapters(registry, ["cpu/mody"])


def test_the_chain_leaves_out_who_is_tested() -> None:
    settings = Settings(("a/b", "c/d"), True, 0.5)
    assert settings.config("a/b") == {
        "hardware": "a", "backend": "b", "strict": False, "fallback": ["c/d"], "repair": True,
        "accuracy": {"max_error": 0.5},
    }  # fmt: skip
    assert Settings(("c/d",), False).config("a/b")["repair"] is False
    assert Settings().config("a/b") == {"hardware": "a", "backend": "b", "strict": False}


# The list of what cannot come out right.


def result(case: str, outcome: Outcome, adapter: str = "a/b", reason: str = "") -> Result:
    return Result(case, "Op", adapter, outcome, reason, {}, 0.5)


def test_the_list_names_real_cases_and_reasons() -> None:
    names = {case.name for case in node_cases()}
    assert set(KNOWN) <= names
    assert all(entry.reason for entry in KNOWN.values())


def test_the_list_is_strict_both_ways() -> None:
    known = {"listed": Known("why"), "partly": Known("why", frozenset({"a/b"}))}
    wrong = [result(name, Outcome.WRONG) for name in ("listed", "partly", "other")]
    assert [r.case for r in unexpected(wrong, known)] == ["other"] and not stale(wrong, known)
    elsewhere = [result("listed", Outcome.WRONG, "c/d"), result("partly", Outcome.WRONG, "c/d")]
    assert [r.case for r in unexpected(elsewhere, known)] == ["partly"]
    for outcome in (Outcome.NATIVE, Outcome.HELPED):
        right = [result(name, outcome) for name in ("listed", "partly", "other")]
        assert [r.case for r in stale(right, known)] == ["listed", "partly"] and not unexpected(right, known)
        assert not stale([result("partly", outcome, "c/d")], known)
    drawn = {"listed": Known("draws random numbers", strict=False)}
    assert not stale([result("listed", Outcome.NATIVE)], drawn) and not unexpected(
        [result("listed", Outcome.WRONG)], drawn
    )
    refused = [result("listed", Outcome.REFUSED), result("other", Outcome.REFUSED)]
    assert not stale(refused, known) and not unexpected(refused, known)


def test_the_matrix_and_its_json() -> None:
    known = {"listed": Known("for a reason"), "stale": Known("no more")}
    results = [
        result("one", Outcome.NATIVE), result("two", Outcome.HELPED), result("stale", Outcome.NATIVE),
        result("other", Outcome.WRONG, reason="1 of 2"), result("three", Outcome.REFUSED, reason="no [kernel]"),
        result("listed", Outcome.WRONG, "c/d", "3 of 4"),
    ]  # fmt: skip
    out = Console(width=160, record=True, file=io.StringIO())
    show_matrix(out, results, known)
    text = out.export_text()
    assert "2 native, 1 helped, 1 refused, 1 wrong" in text and "no [kernel]" in text
    assert "3 of 4 [expected: for a reason]" in text
    assert "wrong and not expected: other on a/b: 1 of 2" in text and "right, yet on the list: stale on a/b" in text
    data = json.loads(json.dumps(as_json(results, Settings(("c/d",)), known)))
    assert data["totals"]["a/b"] == {
        "cases": 5,
        "right": 3,
        "native": 2,
        "helped": 1,
        "refused": 1,
        "wrong": 1,
        "crashed": 0,
        "hung": 0,
    }
    assert data["unexpected"] == [["other", "a/b"]] and data["stale"] == [["stale", "a/b"]]
    assert data["chain"] == ["c/d"] and len(data["results"]) == 6
    assert data["results"][3]["outcome"] == "wrong" and data["results"][3]["reason"] == "1 of 2"


# The command.


@pytest.mark.long
@pytest.mark.slow
def test_the_command_ends_by_what_it_found(
    tmp_path: Path, moody: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    case = unary(tmp_path, "Neg", X, -X)
    monkeypatch.setattr("paddock.testing.__main__.node_cases", lambda only: (case,))
    place = tmp_path / "out.json"
    asked = ["--adapter", moody, "--workers", "1", "--json", str(place)]
    assert main(asked) == 1
    assert json.loads(place.read_text())["unexpected"] == [["test_neg", moody]]
    assert "wrong and not expected" in capfd.readouterr().out
    monkeypatch.setattr("paddock.testing.__main__.unexpected", lambda results: ())
    assert main(asked) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--only", "nothing"], "'nothing'"), (["--adapter", "cpu/mody"], "cpu/mody"), (["--chain", "cpu/x"], "cpu/x")],
)
def test_the_command_says_why_it_cannot_begin(
    more: list[str], said: str, moody: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--adapter", moody, *more]) == 2
    assert said in capfd.readouterr().err
