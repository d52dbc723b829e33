"""The report of `benchmarks.auto`: ratios with their 95 % intervals, and each target of issue 6 beside its figure.

The best of an exhaustive search is found in the odd turns and compared in the even ones: the least of many noisy
figures is too small by its noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from paddock.contenders import LAST_RESORT
from paddock.planning.contests import Ratio, leader, ratio

AGAIN = "the choice again"
"""A second process of the choice, beside it: how far apart the same comes out."""
ONEDNN, ONNXRUNTIME = "cpu/mkldnn fp32", "cpu/onnxruntime fp32"
NEAR = 1.03
"""How near auto is to be to the best."""
_RESAMPLES = 1000

Row = Mapping[str, Any]
Scores = dict[int, float]


def report(rows: Sequence[Row]) -> int:
    """Prints everything; 1 where a target is missed, else 0."""
    missed = 0
    for asked in dict.fromkeys(row["asked"] for row in rows):
        missed += _part([row for row in rows if row["asked"] == asked], asked)
    return 1 if missed else 0


def _part(rows: Sequence[Row], asked: str) -> int:
    """The rows of one precision; how many targets are missed."""
    print(f"\nprecision {asked}: {len(rows)} models\n")
    print("| model | auto takes | ms | over the best | the best | worst over a fixed one | the same again | load |")
    print("|---|---|---|---|---|---|---|---|")
    near, worst, noise = {}, {}, {}
    for row in rows:
        scores = scores_of(row)
        mine = scores[row["choice"]]
        name, near[row["model"]] = over_the_best(row)
        fixed = {label: ratio(mine, scores[label]) for label in fixed_ones(row)}
        slow, worst[row["model"]] = max(fixed.items(), key=lambda item: item[1].median)
        noise[row["model"]] = ratio(scores[AGAIN], mine) if AGAIN in scores else Ratio(1.0, 0.0, math.inf, 0)
        cells = (
            row["model"], row["choice"], f"{np.median(list(mine.values())):.3g}", _shown(near[row["model"]]), name,
            f"{_shown(worst[row['model']])} ({slow})", _shown(noise[row["model"]]), str(row["load"]),
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    print()
    found = [
        _told(
            f"within {NEAR - 1:.0%} of the exhaustive best on each model",
            [f"{model} {_shown(r)}" for model, r in near.items() if r.median > NEAR],
        ),
        _told(
            "never slower than a fixed adapter by more than the noise",
            [f"{model} {_shown(r)}" for model, r in worst.items() if r.low > 1 and r.median > NEAR],
        ),
    ]
    absent = [found for row in rows for found in row["not here"].items()]
    narrow = {label: why for label, why in absent if " bf16" in label and why != LAST_RESORT}
    int8 = any(c["precision"] == "int8" and c["error"] is None for row in rows for c in row["contestants"].values())
    target = 1.5 if asked == "fp32" else 3.0 if int8 else 2.2
    found.append(_mean(rows, ONEDNN, f"over always-oneDNN in fp32, with {asked}", target))
    found.append(_mean(rows, ONNXRUNTIME, f"over always-onnxruntime in fp32, with {asked}", None))
    if asked == "auto":
        for why, labels in _grouped(narrow).items():
            print(f"bf16 is not here: {', '.join(labels)}: {why}; its targets (2.2 and 1.4) are not to be told here")
    found.append(_stable(rows))
    return sum(found)


def scores_of(row: Row) -> dict[str, Scores]:
    """Milliseconds by turn of everybody that was measured."""
    found = row["contestants"].items()
    return {label: {int(turn): ms for turn, ms in c["ms"].items()} for label, c in found if c["ms"]}


def fixed_ones(row: Row) -> list[str]:
    """The adapters' defaults in fp32 and in each precision that ran."""
    scores = scores_of(row)
    return [label for label, c in row["contestants"].items() if label in scores and not c["knobs"] and label != AGAIN]


def over_the_best(row: Row) -> tuple[str, Ratio]:
    """Who was best in the odd turns, and the choice over it in the even ones."""
    scores = {label: found for label, found in scores_of(row).items() if label != AGAIN}
    most = max(len(found) for found in scores.values())
    full = {label: found for label, found in scores.items() if len(found) == most}
    best = leader({label: {t: ms for t, ms in found.items() if t % 2} for label, found in full.items()})
    even = [{t: ms for t, ms in scores[label].items() if t % 2 == 0} for label in (row["choice"], best)]
    return best, ratio(*even)


def geometric_mean(pairs: Sequence[tuple[Scores, Scores]]) -> Ratio:
    """The mean over models of the median ratio of one over the other, with its interval by resampling each's turns."""
    rng = np.random.default_rng(0)
    means, least = np.zeros(_RESAMPLES + 1), math.inf
    for one, other in pairs:
        turns = sorted(one.keys() & other.keys())
        logs = np.log([one[turn] / other[turn] for turn in turns])
        means[0] += np.median(logs) / len(pairs)
        means[1:] += np.median(rng.choice(logs, (_RESAMPLES, len(logs))), axis=1) / len(pairs)
        least = min(least, len(turns))
    low, high = (math.exp(float(np.percentile(means[1:], at))) for at in (2.5, 97.5))
    return Ratio(math.exp(float(means[0])), low, high, int(least))


def _mean(rows: Sequence[Row], fixed: str, what: str, target: float | None) -> int:
    scores = {row["model"]: (scores_of(row), row["choice"]) for row in rows}
    pairs = {model: (found[fixed], found[mine]) for model, (found, mine) in scores.items() if fixed in found}
    absent = [model for model in scores if model not in pairs]
    if not pairs:
        print(f"geometric mean {what}: nothing to tell, it ran on none")
        return 0
    mean = geometric_mean(list(pairs.values()))
    state = "" if target is None else f"; target {target:g}: {'met' if mean.median >= target else 'MISSED'}"
    each = ", ".join(f"{model} {ratio(*pair).median:.2f}" for model, pair in pairs.items())
    print(f"geometric mean {what}: {_shown(mean)}{state} ({each})")
    if absent:
        print(f"  left out, since it could not be deployed: {', '.join(absent)}")
    return int(target is not None and mean.median < target)


def _stable(rows: Sequence[Row]) -> int:
    """Whether auto chose alike each time: 9 in 10, or what differs is within the noise."""
    asked = [row for row in rows if len(row["choices"]) > 1]
    missed = 0
    for row in asked:
        usual = max(row["choices"], key=row["choices"].count)
        same, scores, apart = row["choices"].count(usual), scores_of(row), []
        for label in sorted({label for label in row["choices"] if label != usual}):
            found = ratio(scores.get(label, {}), scores.get(usual, {}))
            apart.append(f"{label} {row['choices'].count(label)} times, {_shown(found)} of it")
            wrong = not found.tied and abs(math.log(found.median)) > math.log(NEAR)
            missed += wrong and same < 0.9 * len(row["choices"])
        print(f"{row['model']}: {usual} {same} times of {len(row['choices'])}; {'; '.join(apart) or 'nothing else'}")
    if asked:
        print(f"the same choice in 9 of 10, or within the noise: {'MISSED' if missed else 'met'}")
    return int(missed > 0)


def _told(target: str, misses: Sequence[str]) -> int:
    print(f"{target}: {'MISSED: ' + '; '.join(misses) if misses else 'met'}")
    return int(bool(misses))


def _grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for label, why in reasons.items():
        found.setdefault(why, []).append(label)
    return found


def _shown(found: Ratio) -> str:
    return f"{found.median:.3f} ({found.low:.2f} to {found.high:.2f})"
