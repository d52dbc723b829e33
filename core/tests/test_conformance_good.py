"""The kit on good adapters that are unlike those that it was written with: none is accused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paddock.child import call_in_child
from paddock.plan import Verdict
from paddock.spi import Probe
from paddock.testing.importing import import_here
from paddock.testing.outcomes import Outcome
from paddock.testing.runner import Runner
from paddock_good import KINDS, BatchOfOne, FourContexts, Int8Only, Kind

BRIEF = ("BatchOfOne", "FourContexts")
"""Run each time; the others by `make long`."""


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner(quick=True) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [pytest.param(a, marks=[] if a.__name__ in BRIEF else [pytest.mark.long], id=a.__name__) for a in KINDS],
)
def test_no_good_adapter_is_accused(runner: Runner, adapter: type[Kind]) -> None:
    table = runner.table(adapter)
    results = [runner.run(adapter, table[name]) for name in adapter.held_to]
    assert not [result for result in results if result.outcome.bad]
    assert any(result.outcome is Outcome.PASSED for result in results)


@pytest.mark.slow
def test_what_is_refused_is_told(runner: Runner) -> None:
    one = runner.run(BatchOfOne, runner.table(BatchOfOne)["models.any"])
    assert one.unproven == ("batches of more than 1: they are refused",)
    four = runner.run(FourContexts, runner.table(FourContexts)["concurrency.sessions_at_once"])
    assert four.outcome is Outcome.PASSED and "four contexts" in four.unproven[0]


@pytest.mark.long
def test_what_runs_in_int8_alone_is_certified(runner: Runner) -> None:
    results = runner.run_all(Int8Only)
    assert not [result for result in results if result.outcome.bad]
    passed = {result.check for result in results if result.outcome is Outcome.PASSED}
    assert {"operators.MatMul", "operators.Gemm", "operators.Conv", "models.transformer", "soak.runs"} <= passed


def test_what_the_plugin_requires_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the probe tells what the SDK is: else a requirement might be that."""
    site, other = tmp_path / "site", "hypothesis"
    facts = site / "paddock_table-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: paddock-table\nVersion: 1.0\nRequires-Dist: {other}\n"
    )
    (site / "table_plugin.py").write_text(f"import {other}, os\nos.environ['ACME_TABLE'] = '1'\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("ACME_TABLE", "1")  # as whoever imported it before hands down

    def found(**versions: str) -> tuple[list[str], list[str]]:
        probe = Probe(Verdict.yes(), {name.replace("_", "-"): version for name, version in versions.items()})
        foreign, _, changed = call_in_child("importing", import_here, ["table_plugin"], "paddock-table", probe)
        return foreign, changed

    foreign, changed = found(acme_sdk="1.0")
    assert other not in foreign and changed == ["the variable ACME_TABLE"]
    assert other in found()[0]
    assert other in found(hypothesis="6.0")[0], "the SDK itself, though it is required"
    assert "table_plugin" not in sys.modules
