"""Mixed placement, predicted and measured: `python -m benchmarks.mixing [MODEL ...] [--models FOLDER] [--rounds N]`.

Each of the example models (`python -m examples.export FOLDER`) is served by every adapter alone in fp32, in turns; its
pieces are measured on the two fastest, and the best mix of these is deployed whatever is predicted of it, verified, and
measured in turns with all of them. So the prediction is judged where it says no, too. Ratios are over the fastest
single adapter, medians of the rounds' with 95 % intervals; a mix wins where its whole interval lies below 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from paddock.contest import Contest, Contestant
from paddock.mixing import mix
from paddock.planning.contests import Scores, leader, ratio
from paddock.registry import Registry

ADAPTERS = ("cpu/onnxruntime", "cpu/openvino", "cpu/mkldnn")
MODELS: Mapping[str, Mapping[str, Any]] = {
    "resnet": {"batch_size": 1},
    "mobilenet": {"batch_size": 1},
    "deepseek": {"shapes": {"tokens": [2, 64]}},
    "encoder": {"batch_size": 1},
}
SECONDS = 600.0
"""How long parts of one model may be deployed."""


def main() -> int:
    """Prints a row for each model; the exit status is 1 where a model could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--models", type=Path, default=Path("models"), help="where `python -m examples.export` wrote")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of the last comparison")
    parser.add_argument("--evidence", type=Path, help="a .json file for all that was measured")
    asked = parser.parse_args()
    unknown = sorted(set(asked.names) - set(MODELS))
    if unknown or asked.rounds < 3:
        parser.error(f"no such model: {', '.join(unknown)}" if unknown else "--rounds must be 3 or more")
    rows = []
    for name in asked.names or MODELS:
        rows.append(measure(name, asked.models / f"{name}.json", asked.rounds))
        print(_line(rows[-1]), flush=True)
        if asked.evidence is not None:
            asked.evidence.write_text(json.dumps(rows, indent=1))
    print(_summary(rows))
    return 1 if any("mixed" not in row for row in rows) else 0


def measure(name: str, model: Path, rounds: int) -> dict[str, Any]:
    """What is predicted and measured of one model; times in milliseconds."""
    base = {"precision": "fp32", **MODELS[name]}
    row: dict[str, Any] = {"model": name}
    with Contest(model, memory=False) as contest:
        alone = []
        for adapter in ADAPTERS:
            hardware, _, backend = adapter.partition("/")
            contestant = Contestant(adapter, {"hardware": hardware, "backend": backend, **base})
            if contest.open(contestant):
                alone.append(contestant)
        for _ in range(6):
            contest.round(alone)
        ranked = sorted((c for c in alone if c.error is None), key=lambda c: float(np.median(c.latencies)))
        if len(ranked) < 2 or contest.sample is None:
            return {**row, "reason": "fewer than two adapters serve it"}
        best, second = ranked[:2]
        until = time.monotonic() + SECONDS
        found = mix(
            model, best.source, [second.label], contest.sample, registry=Registry.discover(), until=until,
            worth=math.inf, progress=lambda message: print(f"  {name}: {message}", file=sys.stderr),
        )  # fmt: skip
        row |= {"reason": found.reason, "evidence": asdict(found)}
        if found.config is None:
            return row
        together = Contestant("mixed", found.config)
        if not contest.open(together) or together.opened is None:
            return {**row, "reason": f"the mix is refused: {together.error}"}
        row["differs"] = found.differs(together.opened.plan.placement)
        row["error"] = together.opened.report.error
        for _ in range(rounds):
            contest.round([*ranked, together])
        scores = {c.label: _scores(c, rounds) for c in (*ranked, together) if c.error is None}
    if "mixed" not in scores:
        return {**row, "reason": f"the mix failed: {together.error}"}
    first = leader({label: found for label, found in scores.items() if label != "mixed"})
    compared = ratio(scores["mixed"], scores[first])
    medians = {label: 1e3 * float(np.median(list(found.values()))) for label, found in scores.items()}
    return {
        **row, "mixed": [compared.median, compared.low, compared.high], "over": first, "measured": medians,
        "predicted": found.predicted, "alone": dict(found.alone), "adapters": found.adapters,
        "borders": len(found.segments) - 1,
    }  # fmt: skip


def _scores(contestant: Contestant, rounds: int) -> Scores:
    """The median of each of the last rounds, by turn."""
    found = zip(contestant.turns[-rounds:], contestant.rounds[-rounds:], strict=True)
    return {turn: float(np.median(seconds)) for turn, seconds in found}


def _line(row: Mapping[str, Any]) -> str:
    if "mixed" not in row:
        return f"{row['model']}: no mix measured: {row['reason']}"
    median, low, high = row["mixed"]
    said = row["predicted"] / min(row["alone"].values())
    singles = ", ".join(
        f"{label} {row['alone'][label]:.2f} -> {ms:.2f}" if label in row["alone"] else f"{label} {ms:.2f}"
        for label, ms in row["measured"].items()
        if label != "mixed"
    )
    return (
        f"{row['model']}: mixed over {row['over']}: predicted {said:.2f}, "
        f"measured {median:.2f} ({low:.2f} to {high:.2f}); "
        f"ms, predicted -> measured: mixed {row['predicted']:.2f} -> {row['measured']['mixed']:.2f}, {singles}; "
        f"{row['borders']} borders: {' | '.join(row['adapters'])}"
        + (f"; NOT AS MEANT: {row['differs']}" if row["differs"] else "")
    )


def _summary(rows: list[dict[str, Any]]) -> str:
    measured = [row for row in rows if "mixed" in row]
    won = [row for row in measured if row["mixed"][2] < 1 and not row["differs"]]
    gains = ", ".join(f"{row['model']} {1 / row['mixed'][0]:.2f}x" for row in won)
    return f"a mix wins on {len(won)} of {len(measured)} models" + (f": {gains}" if gains else "")


if __name__ == "__main__":
    sys.exit(main())
