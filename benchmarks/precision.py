"""Precisions beside each backend's own way to them: `python -m benchmarks.precision [--model NAME] [--adapter NAME]`.

For each model and CPU adapter: error and agreement against the fp32 reference on samples that calibrated nothing, time,
size of the file and nodes in the narrow type, in fp32, bf16, fp16 and int8. Each row lives in a process of its own;
they take turns in rounds, so that drift of the host hits all alike, and ratios are medians of the rounds' own ratios.
What is refused says why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paddock.child import Child
from paddock.errors import PaddockError
from paddock.machine import cpu, memory_available

from benchmarks.precision_models import NAMES, Case, prepare
from benchmarks.precision_native import (
    OWN_WAYS,
    THREADS,
    answers,
    close,
    measure,
    open_cast_file,
    open_own,
    open_paddock,
)

ADAPTERS = ("cpu/onnxruntime", "cpu/openvino", "cpu/mkldnn", "cpu/paddle", "cpu/reference")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
SOFTWARE = "cpu/reference"
"""Computes in NumPy, the narrow types in software: judged, never timed."""
CHUNK_SECONDS = 0.2
ANSWER_SECONDS = 60.0
RESIDENT = 3.0
"""Resident memory of a row's process over its fp32 file, about; decides how many are open at once."""
PADDOCK = "paddock"
CAST_FILE = "paddock's cast file"
SEARCHED, NARROW = "top1 0.99, searched", "all narrow"


@dataclass
class Row:
    """One way to a precision on one adapter: what became of it."""

    model: str
    adapter: str
    precision: str
    way: str
    refused: str = ""
    error: float | None = None
    agreement: float | None = None
    unseen: float | None = None
    """Agreement on samples that no search was judged on."""
    ms: float | None = None
    over_own: float | None = None
    over_fp32: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: list[float] = field(default_factory=list)


Opener = Callable[[Child], dict[str, Any]]


def main() -> int:
    """Prints a table for each model and what misses the targets; the exit status says whether anything does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=NAMES)
    parser.add_argument("--adapter", action="append", choices=ADAPTERS)
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("out/precision"), help="where models and files go")
    parser.add_argument("--json", type=Path, help="where to write every figure of every round")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    name, flags = cpu()
    print(f"{name}, {THREADS} threads, {' '.join(flags)}; load {os.getloadavg()[0]:.2f}")
    wanted = (arguments.adapter or ADAPTERS, arguments.precision or PRECISIONS)
    rows: list[Row] = []
    missed: list[str] = []
    for model in arguments.model or NAMES:
        begun = time.perf_counter()
        case = prepare(model, arguments.folder.absolute())
        found = _measured(case, *wanted, arguments.rounds)
        print(f"\n{model}: {time.perf_counter() - begun:.0f} s, load {os.getloadavg()[0]:.2f}", flush=True)
        _print(found)
        rows += found
        missed += _missed(found, case)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print("\n" + ("\n".join(["misses:", *missed]) if missed else "every target is met"))
    return 1 if missed else 0


def _measured(case: Case, adapters: Sequence[str], precisions: Sequence[str], rounds: int) -> list[Row]:
    pairs = [pair for adapter in adapters for pair in _rows(case, adapter, precisions)]
    together = memory_available() > RESIDENT * len(pairs) * case.onnx.stat().st_size
    groups = [pairs] if together else [[p for p in pairs if p[0].adapter == adapter] for adapter in adapters]
    for group in groups:
        _run(case, group, rounds)
    rows = [row for row, _ in pairs]
    for row in rows:
        base = _first(rows, row.adapter, "fp32", PADDOCK)
        row.over_fp32 = _over(row, base)
        if row.way.startswith(PADDOCK):
            row.over_own = _over(
                row, _first(rows, row.adapter, row.precision, OWN_WAYS.get((row.adapter, row.precision)))
            )
    return rows


def _run(case: Case, pairs: Sequence[tuple[Row, Opener]], rounds: int) -> None:
    """Opens each row in a child, judges it, and times the open ones in turns."""
    children = {id(row): Child(f"{row.adapter} {row.precision} {row.way}") for row, _ in pairs}

    def open_row(pair: tuple[Row, Opener]) -> None:
        row, opener = pair
        child = children[id(row)]
        try:
            row.facts = opener(child)
            _judge(case, row, child)
        except PaddockError as error:
            row.refused = error.problem
        result = "refused" if row.refused else f"error {row.error:.3g}, agreement {row.agreement:.4f}"
        print(f"{case.name} {child.label}: {result}", file=sys.stderr, flush=True)
        if row.refused or row.adapter == SOFTWARE:
            _end(child)
            del children[id(row)]

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(open_row, pairs))
        live = [row for row, _ in pairs if not row.refused and row.adapter != SOFTWARE]
        for number in range(rounds):
            # Every other round the other way round: nobody always runs after the same neighbour.
            for row in [row for row in (live if number % 2 == 0 else live[::-1]) if not row.refused]:
                try:
                    row.rounds.append(children[id(row)].call(measure, CHUNK_SECONDS))
                except PaddockError as error:
                    row.refused = error.problem
        for row in live:
            row.ms = None if row.refused else statistics.median(row.rounds)
    finally:
        for child in children.values():
            _end(child)


def _end(child: Child) -> None:
    with suppress(PaddockError):  # what it crashed of is in its row already
        child.call(close)
    child.close()


def _judge(case: Case, row: Row, child: Child) -> None:
    row.error, row.agreement = case.figures(case.judge, child.call(answers, case.judge, ANSWER_SECONDS, seconds=900))
    if case.unseen is not None:
        _, row.unseen = case.figures(case.unseen, child.call(answers, case.unseen, ANSWER_SECONDS, seconds=900))


def _rows(case: Case, adapter: str, precisions: Sequence[str]) -> list[tuple[Row, Opener]]:
    """What is measured on one adapter: Paddock's ways, then the backend's own, by precision."""
    found: list[tuple[Row, Opener]] = []

    def add(precision: str, way: str, function: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        row = Row(case.name, adapter, precision, way)
        found.append((row, lambda child: child.call(function, *arguments, seconds=1800)))

    if adapter == SOFTWARE and case.name not in ("decoder", "linear"):
        return []  # onnx.reference takes seconds for each convolution; the small models show what it computes
    for precision in precisions:
        add(precision, PADDOCK, open_paddock, case.path, _config(case, adapter, precision))
        if precision in ("bf16", "fp16") and adapter in ("cpu/onnxruntime", "cpu/openvino"):
            stored = _config(case, adapter, "fp32", storage=precision)
            add(precision, f"{PADDOCK}, stored only", open_paddock, case.path, stored)
        if precision == "fp16" and adapter == "cpu/onnxruntime":
            add(precision, CAST_FILE, open_cast_file, case.path, case.onnx, _config(case, SOFTWARE, "fp16"))
        own = OWN_WAYS.get((adapter, precision))
        if own is not None:
            add(precision, own, open_own, adapter, precision, case.path, case.onnx, case.calibration)
        if case.name == "decoder" and (adapter, precision) in _SEARCHED:
            budget = {"min_agreement": case.agreement.model_dump(exclude_unset=True)}
            searched = _config(case, adapter, precision, budget=budget)
            add(precision, SEARCHED, open_paddock, case.path, searched)
            narrow = _config(case, adapter, precision, operators={"keep_fp32": []})
            add(precision, NARROW, open_paddock, case.path, narrow)
    return found


_SEARCHED = {(SOFTWARE, "bf16"), (SOFTWARE, "fp16"), ("cpu/openvino", "int8"), ("cpu/onnxruntime", "int8")}
"""Where the decoder is also held to a budget, and computed with nothing in fp32."""


def _config(
    case: Case, adapter: str, precision: str, budget: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A config with a budget that every row meets, unless another is given: errors are to be told, not refused."""
    hardware, _, backend = adapter.partition("/")
    samples = case.few if adapter == SOFTWARE and case.name != "decoder" else case.judge
    config = {
        "hardware": hardware,
        "backend": backend,
        "precision": precision,
        "shapes": {name: list(shape) for name, shape in case.shapes.items()},
        "accuracy": {"samples": str(samples), **(budget or {"max_error": 1e6})},
        **more,
    }
    if adapter != SOFTWARE:
        config["threads"] = THREADS
    if precision == "int8":
        config["calibration"] = {"samples": str(case.calibration)}
    return config


def _first(rows: Sequence[Row], adapter: str, precision: str, way: str | None) -> Row | None:
    key = (adapter, precision, way)
    return next((row for row in rows if (row.adapter, row.precision, row.way) == key), None)


def _own(rows: Sequence[Row], row: Row) -> Row | None:
    """The backend's own way to what `row` is another way to."""
    return _first(rows, row.adapter, row.precision, OWN_WAYS.get((row.adapter, row.precision)))


def _over(row: Row, other: Row | None) -> float | None:
    """The median of the rounds' ratios of two rows' times; rows of one group have their rounds side by side."""
    if other is None or row.ms is None or other.ms is None:
        return None
    return statistics.median(here / there for here, there in zip(row.rounds, other.rounds, strict=True))


def _print(rows: Sequence[Row]) -> None:
    print(
        f"{'adapter':<16} {'prec':<5} {'way':<24} {'error':>9} {'agree':>7} {'unseen':>7} {'ms':>8} {'x own':>6} "
        f"{'x fp32':>6} {'size':>6} {'narrow/floats':>13}  note"
    )
    for row in rows:
        head = f"{row.adapter:<16} {row.precision:<5} {row.way:<24}"
        if row.refused:
            print(f"{head} refused: {row.refused[:150]}")
            continue
        facts = row.facts
        nodes = f"{facts['narrow']}/{facts['floats']}" if "narrow" in facts else "-"
        tries = f"{facts['kept']} kept in fp32 after {facts['tries']} tries; " if facts.get("tries") else ""
        numbers = (
            _number(row.error, ">9.2e"), _number(row.agreement, ">7.4f"), _number(row.unseen, ">7.4f"),
            _number(row.ms, ">8.2f"), _number(row.over_own, ">6.2f"), _number(row.over_fp32, ">6.2f"),
            _number(facts["ratio"], ">6.3f"),
        )  # fmt: skip
        print(f"{head} {' '.join(numbers)} {nodes:>13}  {tries}{facts.get('note', '')}".rstrip())


def _number(value: float | None, form: str) -> str:
    return format("-", form.partition(".")[0]) if value is None else format(value, form)


def _missed(rows: Sequence[Row], case: Case) -> list[str]:
    """What falls short: slower or less accurate than the own way, int8 files over 0.27, a budget not met."""
    found = []
    for row in rows:
        label = f"{row.model} {row.adapter} {row.precision} {row.way}"
        ratio = row.facts.get("ratio", 0.0)
        if row.refused:
            if row.way == SEARCHED:
                found.append(f"{label}: refused")
            continue
        if row.way == PADDOCK and row.precision == "int8" and case.linear_heavy and ratio > LARGEST_INT8:
            found.append(f"{label}: the file is {ratio:.3f} of the fp32 one, the target {LARGEST_INT8}")
        if row.way == SEARCHED and (row.agreement or 0.0) < 0.99:
            found.append(f"{label}: agreement {row.agreement:.4f}, the target 0.99")
        own = _own(rows, row)
        if row.way != PADDOCK or row.precision not in ("bf16", "int8") or own is None or own.refused:
            continue
        if row.over_own is not None and row.over_own > 1 + NOISE:
            found.append(f"{label}: {row.over_own:.2f} times as slow as {own.way}")
        if row.error is not None and own.error is not None and row.error > own.error:
            found.append(f"{label}: error {row.error:.3g}, {own.way} has {own.error:.3g}")
    return found


LARGEST_INT8 = 0.27
NOISE = 0.03
"""How far two runs of the same thing are apart in one run of this benchmark."""


if __name__ == "__main__":
    sys.exit(main())
