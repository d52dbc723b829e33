"""`"auto"` beside every fixed adapter and beside an exhaustive search, on ten models: `python -m benchmarks.auto`.

For each model, auto settles on a deployment; then all that it could have chosen (each adapter, precision and knob, with
`--pairs` each two knobs) is measured in turns, each in a process of its own, and the choice once more as a second
process, which shows the noise. Each model is a line of the file `--out`, so that a run can be taken up again
(`--resume`) and reported again (`--report`).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from paddock.contenders import Candidate, candidates, turned
from paddock.contest import Contest, Contestant
from paddock.machine import cores, cpu
from paddock.planning.contests import ratio
from paddock.registry import Registry
from paddock.tune import Tuned, tune

from benchmarks.auto_report import AGAIN, report
from benchmarks.zoo import ZOO, Case, calibration, exported

PRECISIONS = ("fp32", "auto")
BUDGET = 0.1
"""What "auto" may lose in precision: the default of int8."""
EARLY, HOPELESS = 7, 1.5
"""After so many rounds, whoever is surely so many times slower than the best is measured no further."""


def main() -> int:
    """Measures what is asked for, and prints the report; the exit status says whether a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(ZOO), default=list(ZOO))
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help=f"auto: within an error of {BUDGET}")
    parser.add_argument("--seconds", type=float, default=60.0, help="what auto may take")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=1, help="how often auto is asked")
    parser.add_argument("--pairs", action="store_true", help="search each two knobs as well")
    parser.add_argument("--folder", type=Path, default=Path("out/auto"), help="where the models go")
    parser.add_argument("--out", type=Path, help="the file of rows; out/auto/rows.jsonl by default")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has")
    parser.add_argument("--report", action="store_true", help="measure nothing, report the file")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    out: Path = arguments.out or folder / "rows.jsonl"
    rows = _rows(out) if arguments.resume or arguments.report else []
    if not arguments.report:
        if not arguments.resume:
            out.unlink(missing_ok=True)
        name, flags = cpu()
        print(f"{name}, {os.cpu_count()} cores, {' '.join(flags)}; load {os.getloadavg()[0]:.2f}", flush=True)
        done = {(row["model"], row["asked"]) for row in rows}
        for model in arguments.models:
            if (model, arguments.precision) not in done:
                row = _measured(ZOO[model], folder, arguments)
                rows.append(row)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return report(rows)


def _rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def _measured(case: Case, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of one model."""
    model = exported(case, folder)
    base = {**case.base, "precision": "fp32"}
    if arguments.precision == "auto":
        samples = calibration(case, folder)
        base = {**case.base, "accuracy": {"max_error": BUDGET}, "calibration": {"samples": str(samples)}}
    registry = Registry.discover()
    begun, load = time.monotonic(), os.getloadavg()[0]
    found = [_asked(model, base, arguments.seconds, registry, n) for n in range(arguments.repeats)]
    choice = found[0]
    chosen = next(row for row in choice.tried if row.verdict == "chosen")
    field = _field(base, registry, arguments.pairs)
    mine = Candidate(chosen.label, choice.config, chosen.adapter, chosen.precision, tuple(chosen.knobs.items()))
    field.setdefault(mine.label, mine)
    print(f"{case.name}: auto takes {mine.label} ({choice.seconds:.0f} s); {len(field)} to search", flush=True)
    measured = _raced(model, {**field, AGAIN: replace(mine, label=AGAIN)}, mine.label, arguments.rounds)
    return {
        "model": case.name,
        "kind": case.kind,
        "asked": arguments.precision,
        "choice": mine.label,
        "config": dict(choice.config),
        "choices": [next(row.label for row in one.tried if row.verdict == "chosen") for one in found],
        "tuning seconds": [one.seconds for one in found],
        "tuned": [_figures(one) for one in found],
        "contestants": measured,
        "not here": {c.label: c.aside for c in candidates(base, registry, "paddle") if c.aside},
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "seconds": round(time.monotonic() - begun),
    }


def _asked(model: Path, base: Mapping[str, Any], seconds: float, registry: Registry, number: int) -> Tuned:
    found = tune(model, base, seconds=seconds, registry=registry)
    print(f"  auto, time {number + 1}: {found.reason} ({found.seconds:.0f} s)", flush=True)
    return found


def _figures(found: Tuned) -> dict[str, Any]:
    """What one search for the best saw of those that it tried."""
    return {
        row.label: {"verdict": row.verdict, "ratio": row.ratio, "ms": row.latency, "reason": row.reason}
        for row in found.tried
        if row.verdict != "not tried"
    }


def _field(base: Mapping[str, Any], registry: Registry, pairs: bool) -> dict[str, Candidate]:
    """All that auto could choose, by label: with no knob turned, with each one, and with each two."""
    plain = [c for c in candidates(base, registry, "paddle") if not c.aside]
    found = {c.label: c for c in plain}
    last = plain
    for _ in range(2 if pairs else 1):
        last = [c for one in last for c in turned(one, "latency", registry) if not c.aside]
        found.update({c.label: c for c in last})
    return found


def _raced(model: Path, field: Mapping[str, Candidate], mine: str, rounds: int) -> dict[str, Any]:
    """What became of each contestant: its milliseconds by turn, or why it could not be deployed."""
    with Contest(model, memory=False) as contest:
        entered = {label: Contestant(label, candidate.config) for label, candidate in field.items()}
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(contest.open, entered.values()))
        running = [c for c in entered.values() if c.error is None]
        for number in range(rounds):
            contest.round(running)
            running = [c for c in running if c.error is None]
            if number + 1 == EARLY:
                running = _hopeful(contest, running, mine)
    return {
        label: {
            "adapter": field[label].adapter,
            "precision": field[label].precision,
            "knobs": dict(field[label].knobs),
            "error": None if found.error is None else found.error.problem,
            "ms": _scores(found),
        }
        for label, found in entered.items()
    }


def _hopeful(contest: Contest, running: Sequence[Contestant], mine: str) -> list[Contestant]:
    best = min(running, key=lambda c: float(np.median(list(_scores(c).values()))))
    kept = []
    for contestant in running:
        slow = ratio(_scores(contestant), _scores(best)).low > HOPELESS
        if slow and contestant.label not in (mine, AGAIN):
            contest.close(contestant)
        else:
            kept.append(contestant)
    return kept


def _scores(contestant: Contestant) -> dict[int, float]:
    """Median milliseconds by turn."""
    found = zip(contestant.turns, contestant.rounds, strict=True)
    return {turn: 1e3 * float(np.median(seconds)) for turn, seconds in found}


if __name__ == "__main__":
    raise SystemExit(main())
