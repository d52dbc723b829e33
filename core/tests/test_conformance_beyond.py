"""The kit on adapters that are wrong beyond what is tried first, and on those that disturb their process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from paddock.testing import checks_process, watching
from paddock.testing.outcomes import Outcome, Result
from paddock.testing.runner import Runner
from paddock.testing.table import Broken
from paddock.testing.watching import LEFT, OPEN, THREADS, TOLD, Kept, Watch, caught, read, state
from paddock_broken import GoodAdapter, NpuAdapter
from paddock_broken_numbers import NUMBERS, Saturates
from paddock_broken_process import RUDE, EchoesAnOption, EchoesByFacts, SetsVariables
from paddock_broken_sdk import ImportsAnSdk
from paddock_broken_state import STATE, IgnoresSignals, SetsVariablesInCompile, TakesOneCore

ALL: list[type[GoodAdapter]] = [*NUMBERS, *RUDE, *STATE, ImportsAnSdk]
SKIPPED = {"contract.every_device", "precision.computed.fp16", "precision.operators.fp16", "precision.steps.int8"}
"""Checks that do not apply to the good adapter: one device, fp32 only."""


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """One process for all of them, as far as they leave it alive."""
    with Runner(quick=True) as made:
        yield made


def run(runner: Runner, adapter: type[GoodAdapter], name: str) -> Result:
    return runner.run(adapter, runner.table(adapter)[name])


@pytest.mark.parametrize(
    "adapter",
    [pytest.param(a, id=a.__name__, marks=[pytest.mark.long] if n % 4 else []) for n, a in enumerate(ALL)],
)
def test_each_check_that_should_find_it_does(runner: Runner, adapter: type[GoodAdapter]) -> None:
    for name in adapter.caught_by:
        assert run(runner, adapter, name).outcome.bad, name


@pytest.mark.long
@pytest.mark.parametrize("name", sorted({name for adapter in ALL for name in adapter.caught_by}))
def test_what_finds_them_accuses_no_good_one(runner: Runner, name: str) -> None:
    result = run(runner, GoodAdapter, name)
    assert result.outcome is (Outcome.SKIPPED if name in SKIPPED else Outcome.PASSED), result
    assert not run(runner, NpuAdapter, name).outcome.bad


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [SetsVariables, SetsVariablesInCompile, IgnoresSignals, TakesOneCore])
def test_what_other_checks_did_hides_nothing(adapter: type[GoodAdapter]) -> None:
    with Runner(quick=True) as own:
        assert run(own, adapter, "contract.observed").outcome is Outcome.PASSED
        assert run(own, adapter, "process.undisturbed").outcome is Outcome.FAILED


@pytest.mark.long
@pytest.mark.parametrize("adapter", [EchoesAnOption, EchoesByFacts], ids=lambda adapter: adapter.__name__)
def test_an_echo_proves_nothing(runner: Runner, adapter: type[GoodAdapter]) -> None:
    result = run(runner, adapter, "honesty.options")
    assert result.outcome is Outcome.PASSED
    assert any(claim.startswith("turbo: observed() repeats it") for claim in result.unproven)


@pytest.mark.long
def test_saturation_is_told(runner: Runner) -> None:
    result = run(runner, Saturates, "bad_input.extremes")
    assert result.outcome is Outcome.PASSED
    assert "overflow saturates: the largest number twice is 3.40282e+38" in result.reason
    assert "overflow" not in run(runner, GoodAdapter, "bad_input.extremes").reason


# Watching a process.


def test_what_grows_is_told_from_what_is_there_once() -> None:
    grown = Kept(6, {OPEN: (5, 7, 9), THREADS: (1, 1, 1), LEFT: (0, 1, 1)})
    assert grown.complaints("loading") == ["loading 6 times leaves open files: 5, 7, 9 after each third"]
    assert grown.doubts("loading") == []
    assert Kept(6, {OPEN: (5, 9, 9), THREADS: (1, 2, 1), LEFT: (3, 3, 3), TOLD: (0, 0, 9)}).complaints("loading") == []
    doubtful = Kept(3, {OPEN: (5, 7, 9)}, doubtful=True)
    assert doubtful.complaints("loading") == [] and len(doubtful.doubts("loading")) == 1
    assert Kept(6, printed="hello").complaints("running") == ["running writes to standard output: 'hello'"]


def test_changes_are_named_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = state()
    assert before.changes(state()) == {}
    monkeypatch.setenv("PADDOCK_TEST_OF_WATCHING", "1")
    monkeypatch.chdir(tmp_path)
    assert set(before.changes(state())) == {"the variable PADDOCK_TEST_OF_WATCHING", "the current folder"}


def test_output_is_caught_past_python() -> None:
    with caught(1) as out:
        assert sys.__stdout__ is not None
        sys.__stdout__.write("one\n")
        sys.__stdout__.flush()
        os.write(1, b"two\n")
        found = read(out)
    assert sorted(found.split()) == ["one", "two"]


def test_a_watched_process_has_its_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(watching, "_ENDING_SECONDS", 0.1)
    here, opened = Path.cwd(), []
    try:
        with Watch(tmp_path / "watched") as watch:

            def leave(number: int) -> None:
                opened.append(os.open("/dev/null", os.O_RDONLY))
                Path(f"left-{number}").touch()

            kept: Any = watch.again(6, leave)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert Path.cwd() == here
    assert [after - before for before, after in pairwise(kept.counts[LEFT])] == [2, 2]
    assert len(kept.complaints("it")) == 2


def test_a_pool_that_fills_up_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with Watch(tmp_path / "watched") as watch:
        kept = watch.again(6, lambda number: Path(f"slot-{number % 8}").touch())
    assert kept.counts[LEFT] == (8, 8, 8) and not kept.complaints("it") and not kept.doubts("it")


def test_what_could_not_be_repeated_is_doubtful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(watching, "_FILLING_SECONDS", 0.0)
    monkeypatch.setattr(watching, "_ENDING_SECONDS", 0.0)
    with Watch(tmp_path / "watched") as watch:
        kept = watch.again(6, lambda number: Path(f"left-{number}").touch())
    assert not kept.complaints("it") and len(kept.doubts("it")) == 1


def test_files_of_others_in_shared_memory_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(watching, "_ENDING_SECONDS", 0.2)
    begun, entries = time.monotonic(), watching._entries

    def busy(folder: str) -> int:
        return int((time.monotonic() - begun) * 1e6) if folder == "/dev/shm" else entries(folder)

    monkeypatch.setattr(watching, "_entries", busy)
    with Watch(tmp_path / "watched") as watch:
        kept = watch.again(6, lambda number: None)
    assert not kept.complaints("it") and not kept.doubts("it")


def test_a_slow_compiler_has_time_as_long_as_it_shows_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_process, "_STEP", 1.0)

    def lives(code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", "-c", f"import pathlib, time\n{code}"], cwd=tmp_path)

    busy = lives("for _ in range(8):\n    time.sleep(0.25)\n    pathlib.Path('alive').touch()")
    checks_process._wait(busy, tmp_path)
    assert busy.returncode == 0
    with pytest.raises(Broken, match="does not come back within 1 s"):
        checks_process._wait(lives("time.sleep(60)"), tmp_path)
