"""The report of `benchmarks.auto`, on rows whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from benchmarks import auto_report
from benchmarks.zoo import ZOO

ORT, DNN, VINO = "cpu/onnxruntime fp32", "cpu/mkldnn fp32", "cpu/openvino fp32"


def row(
    speeds: Mapping[str, float], choice: str, model: str = "m", choices: list[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """One model's row: milliseconds in 20 turns on a host that drifts, with noise of 2 %."""
    rng = np.random.default_rng(seed)
    drift = np.exp(np.cumsum(rng.normal(0, 0.2, 21)))
    contestants = {
        label: {
            "adapter": label.split()[0],
            "precision": "fp32",
            "knobs": {"threads": 1} if "threads" in label else {},
            "error": None,
            "ms": {str(t): ms * drift[t] * math.exp(rng.normal(0, 0.02)) for t in range(1, 21)},
        }
        for label, ms in {**speeds, auto_report.AGAIN: speeds[choice]}.items()
    }
    return {
        "model": model, "kind": "", "asked": "fp32", "choice": choice, "choices": choices or [choice], "load": [0, 0],
        "contestants": contestants, "not here": {},
    }  # fmt: skip


def test_a_right_choice_meets_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row({ORT: 1.0, DNN: 2.0, VINO: 1.5}, ORT, f"m{n}", seed=n) for n in range(3)]
    assert auto_report.report(rows) == 0
    said = capsys.readouterr().out
    assert said.count(": met") >= 3 and "MISSED" not in said
    (line,) = [line for line in said.splitlines() if "over always-oneDNN" in line]
    assert 1.95 < float(line.split(": ")[1].split()[0]) < 2.05


def test_a_wrong_choice_misses(capsys: pytest.CaptureFixture[str]) -> None:
    assert auto_report.report([row({ORT: 1.0, DNN: 2.0, VINO: 1.5}, VINO)]) == 1
    said = capsys.readouterr().out
    assert "exhaustive best on each model: MISSED: m 1.5" in said and "by more than the noise: MISSED: m 1.5" in said
    assert "geometric mean over always-oneDNN in fp32, with fp32: 1.3" in said


def test_the_best_of_equals_is_not_too_good() -> None:
    """The least of twelve noisy figures is too small; turns that did not choose it say so."""
    speeds = {ORT: 1.0, **{f"cpu/a{n} fp32": 1.0 for n in range(11)}}
    found = [auto_report.over_the_best(row(speeds, ORT, seed=seed))[1].median for seed in range(200)]
    assert abs(float(np.mean(found)) - 1) < 0.003


def test_whoever_left_early_is_fixed_and_not_the_best() -> None:
    made = row({ORT: 1.0, DNN: 5.0}, ORT)
    dropped = made["contestants"][DNN]
    dropped["ms"] = {turn: ms for turn, ms in dropped["ms"].items() if int(turn) <= 7}
    made["contestants"]["cpu/x fp32"] = {**dropped, "ms": {}, "error": "no"}
    assert auto_report.over_the_best(made)[0] == ORT and set(auto_report.fixed_ones(made)) == {ORT, DNN}


def test_stability(capsys: pytest.CaptureFixture[str]) -> None:
    speeds = {ORT: 1.0, DNN: 2.0, VINO: 1.001}
    assert auto_report.report([row(speeds, ORT, choices=[ORT] * 6 + [VINO] * 4)]) == 0, "they are tied"
    assert "or within the noise: met" in capsys.readouterr().out
    assert auto_report.report([row(speeds, ORT, choices=[ORT] * 8 + [DNN] * 2)]) == 1
    assert "or within the noise: MISSED" in capsys.readouterr().out


def test_the_zoo_has_what_the_issue_asks_for() -> None:
    assert len(ZOO) >= 10 and all(name == case.name and case.shapes for name, case in ZOO.items())
    for kind in ("detection", "recurrent", "encoder", "super-resolution", "recommendation", "decoder"):
        assert any(kind in case.kind for case in ZOO.values())
