"""The conformance kit on adapters that are known: every broken one is caught, and no good one is accused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddock import cli
from paddock.child import call_in_child
from paddock.errors import UsageError
from paddock.plan import Precision
from paddock.registry import Registry
from paddock.testing.certificate import certify, html
from paddock.testing.checks_honesty import _others as others
from paddock.testing.judging import apart, narrowed, same_bits
from paddock.testing.outcomes import Area, Outcome, Result, counted, judged
from paddock.testing.runner import Runner, checks_for, chosen
from paddock.testing.singles import SINGLES, Grade, write_single
from paddock.testing.zoo import ZOO
from paddock_broken import BROKEN, GOOD, GoodAdapter, HangsInRun, NpuAdapter, SegfaultsInRun, few_cases
from paddock_broken_loud import LoudWhenImported
from pydantic import BaseModel, Field

ALL_BROKEN: list[type[GoodAdapter]] = [*BROKEN, LoudWhenImported]
SLOW_TO_CATCH = {"HangsInRun": 12.0, "DeadlocksOnAnotherThread": 12.0}
"""Seconds for which those that never come back are waited for."""


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """One process for all of them, as far as they leave it alive."""
    with Runner(quick=True) as made:
        yield made


def run(runner: Runner, adapter: type[GoodAdapter], name: str, seconds: float | None = None) -> Result:
    return runner.run(adapter, runner.table(adapter)[name], seconds)


def cases() -> list[Any]:
    """All of them; two of three are long ones, and those that never come back, or end the process."""
    slow = ("HangsInRun", "DeadlocksOnAnotherThread", "SegfaultsOnReload", "SegfaultsInRun")
    long = [each.__name__ in slow or position % 3 != 0 for position, each in enumerate(ALL_BROKEN)]
    return [
        pytest.param(each, id=each.__name__, marks=[pytest.mark.long] if is_long else [])
        for each, is_long in zip(ALL_BROKEN, long, strict=True)
    ]


@pytest.mark.parametrize("adapter", cases())
def test_a_broken_adapter_is_caught(runner: Runner, adapter: type[GoodAdapter]) -> None:
    found = [run(runner, adapter, name, SLOW_TO_CATCH.get(adapter.__name__)) for name in adapter.caught_by]
    assert any(result.outcome.bad for result in found), found


def test_there_are_enough_of_them() -> None:
    assert len({adapter.__name__ for adapter in ALL_BROKEN}) == len(ALL_BROKEN) >= 25
    assert all(adapter.caught_by for adapter in ALL_BROKEN)


@pytest.mark.long
@pytest.mark.parametrize("adapter", ALL_BROKEN, ids=lambda adapter: adapter.__name__)
def test_what_catches_it_accuses_nobody_else(runner: Runner, adapter: type[GoodAdapter]) -> None:
    """The checks that a broken adapter fails pass on the good one that it is made from."""
    good = NpuAdapter if issubclass(adapter, NpuAdapter) else GoodAdapter
    for name in adapter.caught_by:
        if "bf16" in name or "fork" in name:
            continue  # the good one declares neither, and is skipped
        result = run(runner, good, name)
        assert result.outcome is Outcome.PASSED, result


@pytest.mark.long
@pytest.mark.parametrize("adapter", GOOD, ids=lambda adapter: adapter.__name__)
def test_no_good_adapter_is_accused(adapter: type[GoodAdapter]) -> None:
    with Runner(quick=True) as own:
        results = own.run_all(adapter)
    assert not [result for result in results if result.outcome.bad]
    counts = counted(results)
    assert counts["passed"] > counts["skipped"] and counts["passed"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("adapter", GOOD, ids=lambda adapter: adapter.__name__)
@pytest.mark.parametrize(
    "name", ["models.mlp", "operators.Relu", "bad_input.outputs", "concurrency.threads", "soak.runs"]
)
def test_nor_by_the_few_checks_that_are_run_each_time(runner: Runner, adapter: type[GoodAdapter], name: str) -> None:
    result = run(runner, adapter, name)
    assert result.outcome is Outcome.PASSED, result


@pytest.mark.long
def test_onnx_own_cases_are_counted_by_operator_and_way(tmp_path: Path) -> None:
    found = call_in_child("a few node cases", few_cases, NpuAdapter, tmp_path, "test_relu*")
    assert found is not None and found.matrix == {"Relu": {"native": 1, "helped": 1}}
    assert found.text == "1 native, 1 helped; helped by cpu/reference"


@pytest.mark.long
def test_each_way_of_ending_is_told_apart(runner: Runner) -> None:
    crashed = run(runner, SegfaultsInRun, "models.mlp")
    assert crashed.outcome is Outcome.CRASHED and "SIGSEGV" in crashed.reason
    hung = run(runner, HangsInRun, "models.mlp", 5.0)
    assert hung.outcome is Outcome.HUNG and "did not answer" in hung.reason
    again = run(runner, GoodAdapter, "models.mlp")
    assert again.outcome is Outcome.PASSED, "a new process goes on where the last one ended"
    skipped = run(runner, GoodAdapter, "concurrency.fork")
    assert skipped.outcome is Outcome.SKIPPED and not skipped.refused and "fork" in skipped.reason
    refused = run(runner, NpuAdapter, "operators.LSTM")
    assert refused.outcome is Outcome.SKIPPED and refused.refused and "not in the table" in refused.reason


def test_a_class_that_no_process_can_import_is_told(runner: Runner) -> None:
    class Local(GoodAdapter):
        pass

    result = run(runner, Local, "contract.declared")
    assert result.outcome is Outcome.FAILED and "import it from a module" in result.reason


# What counts as right.


def test_the_last_bit_counts_where_nothing_is_rounded() -> None:
    x = np.array([0.5, 1.5, -2.25, 1000], np.float32)
    for precision, narrow in ((Precision.FP32, np.float32), (Precision.FP16, np.float16)):
        found = np.nextafter(x.astype(narrow), narrow(np.inf)).astype(np.float32)
        assert apart({"y": x}, {"y": x.copy()}, precision, Grade.EXACT) is None
        said = apart({"y": x}, {"y": found}, precision, Grade.EXACT)
        assert said is not None and "4 of 4" in said
        assert apart({"y": x}, {"y": found}, precision, Grade.ROUNDED) is None
        assert apart({"y": x}, {"y": found}, precision, Grade.CLOSE) is None
        twice = np.nextafter(np.nextafter(x.astype(narrow), narrow(np.inf)), narrow(np.inf)).astype(np.float32)
        assert apart({"y": x}, {"y": twice}, precision, Grade.ROUNDED) is not None


@pytest.mark.parametrize("grade", list(Grade))
def test_form_counts_in_every_grade(grade: Grade) -> None:
    x = np.ones((2, 3), np.float32)
    for other in (x.astype(np.float64), x[:1], np.full_like(x, np.nan), np.full_like(x, np.inf), x + 1):
        assert apart({"y": x}, {"y": other}, Precision.FP32, grade) is not None
    assert apart({"y": x}, {}, Precision.FP32, grade) is not None
    assert apart({"y": x}, {"y": x, "z": x}, Precision.FP32, grade) is not None
    odd = np.array([np.nan, np.inf, -np.inf, 0], np.float32)
    assert apart({"y": odd}, {"y": odd.copy()}, Precision.FP16, grade) is None


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_rounding_is_to_the_nearest(number: float) -> None:
    x = np.array([number], np.float32)
    with np.errstate(over="ignore"):
        assert narrowed(x, Precision.FP16)[0] == np.float32(x.astype(np.float16)[0])
    rounded = float(narrowed(x, Precision.BF16)[0])
    down = float(np.asarray(x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)[0])
    step = abs(float(np.asarray(x.view(np.uint32) + np.uint32(0x10000)).view(np.float32)[0]) - abs(number))
    assert rounded == down or np.isinf(rounded) or abs(rounded - number) <= max(abs(down - number), step)


def test_bits_are_compared_as_bits() -> None:
    zero, minus = np.zeros(2, np.float32), -np.zeros(2, np.float32)
    assert same_bits({"y": zero}, {"y": zero.copy()})
    assert not same_bits({"y": zero}, {"y": minus}) and not same_bits({"y": zero}, {"y": zero.astype(np.float64)})
    assert not same_bits({"y": zero}, {"z": zero})


# The models.


def test_models_are_the_same_every_time(tmp_path: Path) -> None:
    for name, write in ZOO.items():
        one, other = write(tmp_path / "one.onnx"), write(tmp_path / "other.onnx")
        assert one.read_bytes() == other.read_bytes() and one.stat().st_size < 40_000, name
    for name, single in SINGLES.items():
        one, other = write_single(single, tmp_path / "one.onnx"), write_single(single, tmp_path / "other.onnx")
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("name", [*ZOO])
def test_every_row_and_input_of_a_model_matters(tmp_path: Path, name: str) -> None:
    """What does not depend on its input proves nothing."""
    from onnx import load
    from onnx.reference import ReferenceEvaluator

    path = ZOO[name](tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for value in load(path).graph.input:
        shape = [d.dim_value or (4 if d.dim_param == "batch" else 5) for d in value.type.tensor_type.shape.dim]
        integers = value.type.tensor_type.elem_type == 7
        feeds[value.name] = rng.integers(0, 40, shape) if integers else rng.standard_normal(shape).astype(np.float32)
    evaluator = ReferenceEvaluator(str(path))
    first = evaluator.run(None, feeds)
    assert all(np.isfinite(array).all() for array in first)
    for key, array in feeds.items():
        other = evaluator.run(None, {**feeds, key: np.ascontiguousarray(np.flip(array, 0))})
        assert any(not np.allclose(a, b, rtol=1e-3) for a, b in zip(first, other, strict=True)), key


# Options.


class Many(BaseModel):
    """An option of each kind."""

    flag: bool = True
    level: Annotated[int, Field(ge=1, le=4)] = 2
    share: float = 0.5
    mode: Literal["a", "b"] = "a"
    maybe: bool | None = None
    text: str = "x"


def test_other_values_of_an_option_are_such_as_it_takes() -> None:
    bench: Any = SimpleNamespace(adapter=SimpleNamespace(Options=Many, tunables={}, savers={"options.text": ("y",)}))
    found = {name: others(bench, name) for name in Many.model_fields}
    assert found["flag"] == [False] and found["mode"] == ["b"] and found["maybe"] == [True] and found["text"] == ["y"]
    assert set(found["level"]) <= {1, 3} and found["level"] and 0.5 not in found["share"] and found["share"]
    bench.adapter.savers = {}
    assert others(bench, "text") == [], "what it could be is not guessed"


# What came of it.


def result(check: str, outcome: Outcome, reason: str = "", **more: Any) -> Result:
    return Result(check, Area(check.partition(".")[0]), "a promise", outcome, reason, **more)


def test_expectations_are_strict_both_ways() -> None:
    found = [
        result("models.a", Outcome.FAILED),
        result("models.b", Outcome.CRASHED),
        result("models.c", Outcome.PASSED),
        result("models.d", Outcome.SKIPPED),
        result("models.e", Outcome.HUNG),
    ]
    known = [r.check for r in found]
    none = judged(found, {}, known)
    assert [r.check for r in none.unexpected] == ["models.a", "models.b", "models.e"] and not none.conforms
    reasons = dict.fromkeys(("models.a", "models.b", "models.e"), "why")
    assert judged(found, reasons, known).conforms
    assert [r.check for r in judged(found, {**reasons, "models.c": "why"}, known).stale] == ["models.c"]
    assert judged(found, {**reasons, "models.d": "why"}, known).conforms, "what is skipped proves nothing"
    assert judged(found, {**reasons, "models.x": "why"}, known).unknown == ("models.x",)


def test_checks_are_chosen_by_area_and_by_name() -> None:
    table = checks_for(GoodAdapter, Registry.discover())
    assert len(table) > 90
    assert {check.area for check in chosen(table, ["soak", "memory"], True)} == {Area.SOAK, Area.MEMORY}
    assert [check.name for check in chosen(table, ["*.Relu"], True)] == ["operators.Relu"]
    assert len(chosen(table, [], False)) == len(table) > len(chosen(table, [], True))
    with pytest.raises(UsageError, match="operators"):
        chosen(table, ["operatrs"], True)


def test_the_certificate_says_what_was_tested_and_what_nobody_could_prove() -> None:
    registry = Registry.discover()
    registered = registry.get("cpu/reference")
    results = [
        result("operators.Relu", Outcome.PASSED, unproven=("that it runs there",)),
        result("operators.LSTM", Outcome.SKIPPED, "no <kernel>", refused=True),
        result("operators.Exp", Outcome.CRASHED, "SIGSEGV"),
        result("models.mlp", Outcome.FAILED, "1 of 2"),
        result("operators.onnx_cases", Outcome.PASSED, matrix={"Relu": {"native": 2, "refused": 1}}),
    ]
    made = certify(registered, registry, results, [r.check for r in results], expected={"models.mlp": "known"})
    assert not made.conforms and made.unexpected == ("operators.Exp",) and not made.stale
    data = json.loads(json.dumps(made.to_json()))
    assert data["operators"] == {"Relu": "native", "LSTM": "refused", "Exp": "crashed"} and data["models"] == {
        "mlp": "wrong"
    }
    assert data["counts"] == {"passed": 2, "failed": 1, "crashed": 1, "hung": 0, "skipped": 1}
    assert data["onnx_cases"] == {"Relu": {"native": 2, "refused": 1}}
    assert data["subject"]["onnx"] and data["unproven"] == {"operators.Relu": ["that it runs there"]}
    assert data["declared"]["precisions"] == ["bf16", "fp16", "fp32"] and data["run"] == {"quick": True, "whole": True}
    alone = certify(registered, registry, results[:2], [r.check for r in results])
    assert alone.idle and not alone.conforms, "what served no model has proven nothing"
    assert certify(registered, registry, results[:2], [r.check for r in results], whole=False).kept
    page = html(made)
    assert (
        "2 native, 1 refused" in page
        and "no &lt;kernel&gt;" in page
        and "does not conform" in page
        and "<script" not in page
    )


# As a vendor's tests, and from the command line.

_VENDOR = """
from paddock.testing import AdapterConformance
from paddock_broken import DropsAnOutput, GoodAdapter

class TestGood(AdapterConformance):
    adapter = GoodAdapter
    only = ("contract.declared", "contract.probe", "concurrency.fork", "operators.Relu")

class TestBroken(AdapterConformance):
    adapter = DropsAnOutput
    only = ("bad_input.outputs", "contract.declared")

class TestKnown(TestBroken):
    expected = {"bad_input.outputs": "a known defect"}

class TestMended(AdapterConformance):
    adapter = GoodAdapter
    only = ("bad_input.outputs",)
    expected = {"bad_input.outputs": "mended since", "models.nobody": "why"}
"""


@pytest.mark.long
@pytest.mark.slow
def test_two_lines_are_a_test_file(tmp_path: Path) -> None:
    (tmp_path / "test_vendor.py").write_text(_VENDOR)
    (tmp_path / "conftest.py").write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n")
    arguments = ["-q", "-rA", "--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        capture_output=True, text=True, cwd=tmp_path, check=False, env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    lines = {line for line in done.stdout.splitlines() if line.startswith(("PASSED", "FAILED", "XFAIL", "SKIPPED"))}
    told = "\n".join(sorted(lines))
    assert "PASSED test_vendor.py::TestGood::test_conforms[operators.Relu]" in told, done.stdout
    assert "FAILED test_vendor.py::TestBroken::test_conforms[bad_input.outputs]" in told
    assert "XFAIL test_vendor.py::TestKnown::test_conforms[bad_input.outputs] - a known defect" in told
    assert "FAILED test_vendor.py::TestMended::test_conforms[bad_input.outputs]" in told and "take it off" in told
    assert "FAILED test_vendor.py::TestMended::test_expectations_name_checks" in told and "models.nobody" in told
    assert "SKIPPED" in told and "do not fork" in told
    assert sum(line.startswith("FAILED") for line in lines) == 3, told


def command(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", cli.__name__, "conformance", *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.slow
def test_the_command_writes_the_certificate(tmp_path: Path) -> None:
    data, page = tmp_path / "c.json", tmp_path / "c.html"
    asked = ("cpu/reference", "--only", "operators.Relu", "--only", "contract.probe")
    status, said = command(*asked, "--json", str(data), "--html", str(page))
    assert status == 0, said
    assert "no certificate: some checks only, all kept" in said and "1 native" in said
    found = json.loads(data.read_text())
    assert not found["conforms"] and found["run"] == {"quick": True, "whole": False} and len(found["checks"]) == 2
    assert "cpu/reference" in page.read_text()
    stale = tmp_path / "expected.json"
    stale.write_text('{"operators.Relu": "no kernel"}')
    status, said = command(*asked, "--expected", str(stale))
    assert status == 6 and "passes, and is expected to fail: operators.Relu" in said


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (("cpu/nobody",), "cpu/nobody", 3),
        (("cpu/reference", "--only", "modls"), "modls", 2),
        (("cpu/reference", "--json", "/nowhere/at/all.json"), "--json", 2),
        (("cpu/reference", "--expected", "/nowhere.json"), "cannot be read", 2),
    ],
)
def test_the_command_says_why_it_cannot_begin(arguments: tuple[str, ...], said: str, status: int) -> None:
    found, text = command(*arguments)
    assert found == status and said in text, text


def test_the_command_lists_what_is_promised() -> None:
    status, text = command("cpu/reference", "--list", "--only", "soak")
    assert status == 0 and "soak.runs" in text and "run after run" in text
