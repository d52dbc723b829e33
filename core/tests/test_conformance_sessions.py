"""The conformance kit on sessions side by side, buffers and counts; who judges; and what its certificate says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paddock import cli
from paddock.child import call_in_child
from paddock.registry import Registry
from paddock.testing.certificate import Certificate, certify, html
from paddock.testing.outcomes import Area, Outcome, Result
from paddock.testing.runner import Runner, checks_for
from paddock.testing.singles import SINGLES
from paddock.testing.table import Broken
from paddock_broken import GoodAdapter, NpuAdapter, few_cases
from paddock_broken_sessions import SESSIONS, CountsOne, Halved, TellsWhatIsPlanned, beside_a_friend, with_few_files

BRIEF = ("SharesScratch", "RunIntoForgetsARow", "BindsOnce", "CountsNothing")
"""Run each time; the others by `make long`."""


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner(quick=True) as made:
        yield made


def run(runner: Runner, adapter: type[GoodAdapter], name: str) -> Result:
    return runner.run(adapter, runner.table(adapter)[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [pytest.param(a, marks=[] if a.__name__ in BRIEF else [pytest.mark.long], id=a.__name__) for a in SESSIONS],
)
def test_a_broken_adapter_is_caught(runner: Runner, adapter: type[GoodAdapter]) -> None:
    for name in adapter.caught_by:
        result = run(runner, adapter, name)
        assert result.outcome is Outcome.FAILED, result


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [GoodAdapter, NpuAdapter], ids=lambda adapter: adapter.__name__)
@pytest.mark.parametrize("name", ["concurrency.sessions_at_once", "contract.run_into", "contract.deploys"])
def test_no_good_adapter_is_accused(runner: Runner, adapter: type[GoodAdapter], name: str) -> None:
    result = run(runner, adapter, name)
    assert result.outcome is Outcome.PASSED, result


@pytest.mark.long
def test_what_a_device_tells_within_its_plan_is_fine(runner: Runner) -> None:
    result = run(runner, TellsWhatIsPlanned, "memory.planned")
    assert result.outcome is Outcome.PASSED and "8.0 MiB of the npu's, as observed() tells" in result.reason, result


@pytest.mark.slow
def test_what_binds_nothing_is_asked_no_more(runner: Runner) -> None:
    result = run(runner, GoodAdapter, "contract.bind")
    assert result.outcome is Outcome.SKIPPED and not result.refused and "bind nothing" in result.reason


@pytest.mark.long
def test_one_node_of_many_is_told_and_not_judged(runner: Runner) -> None:
    result = run(runner, CountsOne, "models.transformer")
    assert result.outcome is Outcome.PASSED
    assert any("counts 1 where" in claim for claim in result.unproven)
    assert not run(runner, CountsOne, "operators.Sigmoid").unproven


# Who judges.


@pytest.mark.long
def test_a_vendors_own_reference_does_not_judge(tmp_path: Path) -> None:
    with pytest.raises(Broken, match="relative error"):
        call_in_child("with a friend", beside_a_friend, Halved, tmp_path, "operators.Sigmoid")
    (tmp_path / "good").mkdir()
    call_in_child("with a friend", beside_a_friend, GoodAdapter, tmp_path / "good", "operators.Sigmoid")


@pytest.mark.long
def test_what_paddock_would_refuse_is_a_wrong_answer_to_the_standard(tmp_path: Path) -> None:
    with pytest.raises(Broken, match=r"\b2 wrong; 2 are not as the standard says: test_tanh") as caught:
        call_in_child("a few node cases", few_cases, Halved, tmp_path, "test_tanh*")
    assert dict(caught.value.matrix) == {"Tanh": {"wrong": 2}}


# What is not the adapter's fault.


@pytest.mark.long
def test_checks_leave_no_files_open() -> None:
    names = [f"operators.{name}" for name in SINGLES][:40]
    results = call_in_child("with few files", with_few_files, GoodAdapter, names, 72)
    assert not [result for result in results if result.outcome.bad]
    assert sum(result.outcome is Outcome.PASSED for result in results) > 30


def test_another_failure_is_not_told_as_a_class_that_does_not_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    check = checks_for(GoodAdapter, Registry.discover())["contract.declared"]
    monkeypatch.setenv("PADDOCK_CACHE_SIZE", "huge")
    with Runner() as own:
        result = own.run(GoodAdapter, check)
    assert result.outcome is Outcome.FAILED
    assert "PADDOCK_CACHE_SIZE" in result.reason and "cross" not in result.reason


# What the certificate says.


def certificate(whole: bool = True, expected: tuple[str, ...] = (), **outcomes: Outcome) -> Certificate:
    registry = Registry.discover()
    named = {"models.any": Outcome.PASSED, **{name.replace("_", ".", 1): o for name, o in outcomes.items()}}
    results = [Result(name, Area(name.partition(".")[0]), "a promise", o) for name, o in named.items()]
    reasons = dict.fromkeys(expected, "why")
    known = [result.check for result in results]
    return certify(registry.get("cpu/reference"), registry, results, known, expected=reasons, whole=whole)


def shown(made: Certificate) -> tuple[str, str]:
    """The colour and the words of the verdict on the page."""
    found = re.search(r'<p class="verdict (\w+)">([^<]*)</p>', html(made))
    assert found is not None
    return found[1], found[2]


def test_only_the_whole_kit_certifies() -> None:
    assert shown(certificate(contract_declared=Outcome.PASSED)) == ("yes", "conforms")
    some = certificate(whole=False, contract_declared=Outcome.PASSED)
    assert not some.conforms and some.kept and not some.to_json()["conforms"]
    assert shown(some) == ("partly", "no certificate: some checks only, all kept")
    bad = certificate(whole=False, contract_declared=Outcome.FAILED)
    assert not bad.kept and shown(bad) == ("no", "does not conform: contract.declared")


def test_what_fails_as_expected_is_said_beside_the_verdict() -> None:
    made = certificate(
        expected=("models.mlp", "operators.Relu", "operators.Add"),
        models_mlp=Outcome.FAILED, operators_Relu=Outcome.CRASHED, operators_Add=Outcome.HUNG,
    )  # fmt: skip
    assert made.conforms
    color, said = shown(made)
    assert color == "partly"
    assert said == "conforms but for 3 expected failures: models.mlp, operators.Relu (crashed), operators.Add (hung)"
    assert made.to_json()["verdict"] == said
    one = certificate(expected=("models.mlp",), models_mlp=Outcome.FAILED)
    assert one.verdict == "conforms but for 1 expected failure: models.mlp"


def test_the_device_and_the_judges_are_named() -> None:
    made = certificate()
    data = json.loads(json.dumps(made.to_json()))
    assert data["device"] and f"<h1>cpu/reference on {data['device']}</h1>" in html(made)
    (judges,) = data["references"].values()
    assert any(judge.startswith("cpu/onnxruntime (paddock-onnxruntime ") for judge in judges)
    assert not any(judge.startswith("cpu/reference") for judge in judges), "nobody judges itself"
    assert "Judged by" in html(made) and judges[0] in html(made)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("option", ["--json", "--html"])
def test_what_cannot_be_written_is_told_before_anything_runs(tmp_path: Path, option: str) -> None:
    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", cli.__name__, "conformance", "cpu/reference", "--only", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done
        return done.stdout + done.stderr

    text = said("contract.declared", option, "/proc/x")
    assert f"{option}: /proc/x: cannot be written" in text and "passed" not in text
    kept, fresh = tmp_path / "kept", tmp_path / "fresh"
    kept.write_text("what was there")
    for place in (kept, fresh):
        assert "no check is called" in said("nothing", option, str(place))
    assert kept.read_text() == "what was there" and not fresh.exists(), "trying leaves no trace"
