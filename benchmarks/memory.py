"""Offset assignment on MiniMalloc's instances, others like them and large traces: `python -m benchmarks.memory`.

MiniMalloc's (ASPLOS 2023) are read from `../shared/data/minimalloc` beside the repository, or from `--data FOLDER`;
each must fit its capacity within 60 s, and come to 1.05 of the bound or less in 5 s without one. "Others like them" are
cut from a full rectangle of capacity and time, so that an assignment of that height is known to be there; a part of the
buffers is dropped from some. Omnimalloc's portfolio (PyPI, 1.0.0) is measured beside where it is installed.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

from paddock.planning.offset_search import library
from paddock.planning.offsets import Buffer, allocate, lower_bound
from paddock.planning.offsets_verifier import verify_allocation

ROOT = Path(__file__).resolve().parents[1]
CAPACITY, LIMIT, SECONDS, TARGET = 1_048_576, 60.0, 5.0, 1.05
GRAIN = 1024


def main() -> int:
    """Prints three tables; the exit status is 1 where a target of MiniMalloc's instances is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "minimalloc")
    parser.add_argument("--peer-seconds", type=float, default=SECONDS, help="for omnimalloc; 0 leaves it out")
    parser.add_argument("--like-seconds", type=float, default=10.0, help="for each of the others like them")
    parser.add_argument("--only", choices=("minimalloc", "others", "large"))
    arguments = parser.parse_args()
    if library() is None:
        print("the compiled search was not built (no C++ compiler?): these are the figures without it")
    missed = 0
    if arguments.only in (None, "minimalloc"):
        files = sorted((arguments.data / "benchmarks" / "challenging").glob("*.csv"))
        if not files:
            print(f"no instances of MiniMalloc in {arguments.data}: give their folder with --data")
            missed += 1
        else:
            missed += minimalloc(files, arguments.peer_seconds)
    if arguments.only in (None, "others"):
        others(arguments.like_seconds)
    if arguments.only in (None, "large"):
        large()
    return 1 if missed else 0


def minimalloc(files: Sequence[Path], peer_seconds: float) -> int:
    """Heights over the bound, and the time to fit the capacity; returns how many targets were missed."""
    print(f"MiniMalloc's instances: height/bound, {SECONDS:g} s without a capacity; then the time to fit {CAPACITY:,}")
    print(
        f"{'file':<6} buffers {'bound':>9} {'by size':>8} {'peer':>8} {'ours':>7} proven {'s':>6}  capacity",
    )
    missed = 0
    for file in files:
        buffers = read(file)
        bound = lower_bound(buffers)
        greedy = by_size(buffers) / bound
        peer = with_omnimalloc(buffers, peer_seconds)
        began = perf_counter()
        free = allocate(buffers, seconds=SECONDS)
        took = perf_counter() - began
        verify_allocation(buffers, free)
        began = perf_counter()
        bounded = allocate(buffers, CAPACITY, LIMIT)
        fitted = perf_counter() - began
        verify_allocation(buffers, bounded)
        solved = bounded.height <= CAPACITY
        over = free.height / bound > TARGET
        missed += (not solved) + over
        print(
            f"{file.name.split('.')[0]:<6} {len(buffers):>7} {bound:>9} {greedy:>8.3f} "
            f"{f'{peer / bound:.4f}' if peer else '-':>8} {free.height / bound:>7.4f} "
            f"{'yes' if free.proven else 'no':>6} {took:>6.2f}  "
            f"{'solved' if solved else 'NOT SOLVED'} in {fitted:.2f} s{'  OVER 1.05' if over else ''}",
            flush=True,
        )
    return missed


def others(seconds: float) -> None:
    """Instances that are known to fit, of other sizes and shapes: which are solved, and in what time."""
    print(f"\nothers like them, each known to fit {CAPACITY:,}: up to {seconds:g} s with that capacity")
    solved = total = 0
    for name, buffers in known_to_fit():
        began = perf_counter()
        found = allocate(buffers, CAPACITY, seconds)
        took = perf_counter() - began
        verify_allocation(buffers, found)
        fits = found.height <= CAPACITY
        solved, total = solved + fits, total + 1
        print(
            f"{name:<28} {len(buffers):>5} buffers  by size {by_size(buffers) / CAPACITY:.3f}  "
            f"{'solved' if fits else f'{found.height / CAPACITY:.4f}'} in {took:.2f} s",
            flush=True,
        )
        if found.at_least > CAPACITY:
            print("  WRONG: refused what fits")
    print(f"{solved} of {total} solved")


def large() -> None:
    """Traces of short and long lifetimes: that they end on time, and how near the bound."""
    print("\nlarge traces, 1 s")
    for count in (20_000, 60_000):
        for live in (10, 200, 5000):
            buffers = trace(count, live, seed=1)
            began = perf_counter()
            found = allocate(buffers, seconds=1.0)
            took = perf_counter() - began
            verify_allocation(buffers, found)
            print(f"{count:>6} buffers, scale {live:>4}: {found.height / found.bound:.4f} in {took:.2f} s", flush=True)


def read(file: Path) -> list[Buffer]:
    """The buffers of a file with columns id, lower, upper, size."""
    with file.open() as lines:
        return [Buffer(r["id"], int(r["lower"]), int(r["upper"]), int(r["size"])) for r in csv.DictReader(lines)]


def by_size(buffers: Sequence[Buffer]) -> int:
    """The height of plain greedy by size with best fit, as most frameworks have it."""
    placed: list[tuple[int, int, Buffer]] = []
    height = 0
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.lower)):
        best: tuple[int, int] | None = None
        end = 0
        for start, top, other in sorted(placed, key=lambda p: p[:2]):
            if other.lower < buffer.upper and buffer.lower < other.upper:
                if start - end >= buffer.size and (best is None or start - end < best[0]):
                    best = (start - end, end)
                end = max(end, top)
        offset = best[1] if best else end
        placed.append((offset, offset + buffer.size, buffer))
        height = max(height, offset + buffer.size)
    return height


def with_omnimalloc(buffers: Sequence[Buffer], seconds: float) -> int | None:
    """The height that omnimalloc's portfolio reaches with 12 threads; None where it is not installed or not wanted."""
    if seconds <= 0 or importlib.util.find_spec("omnimalloc") is None:
        return None
    import omnimalloc  # type: ignore[import-not-found, unused-ignore]

    omnimalloc.set_max_threads(max(12, os.cpu_count() or 1))
    items = tuple(omnimalloc.Allocation(id=b.id, size=b.size, start=b.lower, end=b.upper) for b in buffers)
    solver = omnimalloc.allocators.SupermallocAllocator(timeout=seconds, num_threads=12)
    return int(solver.solve(items).peak)


def known_to_fit() -> Iterator[tuple[str, list[Buffer]]]:
    """Seeded instances of several shapes, all of which fit `CAPACITY` without a gap before any buffer is dropped."""
    for seed in range(2):
        for drop in (0.0, 0.03, 0.1):
            for pieces, steps in ((100, 60), (200, 100), (400, 200)):
                yield f"sliced {pieces} drop {drop} seed {seed}", sliced(seed, steps, pieces, drop)
            for live, steps in ((12, 60), (25, 60), (25, 200), (50, 80)):
                yield f"churned {live}x{steps} drop {drop} seed {seed}", churned(seed, steps, live, drop)


def sliced(seed: int, steps: int, pieces: int, drop: float) -> list[Buffer]:
    """The rectangle of time and capacity, cut in two again and again."""
    rnd = random.Random(seed)
    parts = [(0, steps, 0, CAPACITY)]
    while len(parts) < pieces:
        at = max(
            rnd.sample(range(len(parts)), min(3, len(parts))),
            key=lambda i: (parts[i][1] - parts[i][0]) * (parts[i][3] - parts[i][2]),
        )
        lower, upper, bottom, top = parts[at]
        long, high = upper - lower > 1, top - bottom >= 2 * GRAIN
        if long and (rnd.random() < 0.5 or not high):
            cut = rnd.randint(lower + 1, upper - 1)
            parts[at : at + 1] = [(lower, cut, bottom, top), (cut, upper, bottom, top)]
        elif high:
            cut = rnd.randrange(bottom // GRAIN + 1, top // GRAIN) * GRAIN
            parts[at : at + 1] = [(lower, upper, bottom, cut), (lower, upper, cut, top)]
    return _dropped(rnd, [(lower, upper, top - bottom) for lower, upper, bottom, top in parts], drop)


def churned(seed: int, steps: int, live: int, drop: float) -> list[Buffer]:
    """At each step some runs of adjacent blocks end, and their room is divided anew."""
    rnd = random.Random(seed)

    def divide(size: int, into: int) -> list[int]:
        units = size // GRAIN
        cuts = sorted(rnd.sample(range(1, units), min(into, units) - 1))
        return [(b - a) * GRAIN for a, b in zip([0, *cuts], [*cuts, units], strict=True)]

    blocks = [(0, size) for size in divide(CAPACITY, live)]
    done: list[tuple[int, int, int]] = []
    for step in range(1, steps):
        for _ in range(max(1, round(rnd.expovariate(1 / 1.5)))):
            count = min(len(blocks), max(1, round(rnd.expovariate(0.5))))
            at = rnd.randrange(len(blocks) - count + 1)
            run = blocks[at : at + count]
            done += [(born, step, size) for born, size in run if born < step]
            into = max(1, min(2 * count, live - len(blocks) + count + rnd.randint(-1, 1)))
            blocks[at : at + count] = [(step, size) for size in divide(sum(size for _, size in run), into)]
    return _dropped(rnd, done + [(born, steps, size) for born, size in blocks], drop)


def trace(count: int, live: int, seed: int) -> list[Buffer]:
    """Log-normal sizes and lifetimes, aligned to 256: most are short and small, some are neither."""
    rnd = random.Random(seed)
    buffers = []
    for number in range(count):
        lower = rnd.randrange(2 * count)
        upper = min(2 * count, lower + 1 + int(rnd.lognormvariate(0, 2) * live / 4))
        buffers.append(Buffer(number, lower, upper, max(1, int(rnd.lognormvariate(9, 2))), 256))
    return buffers


def _dropped(rnd: random.Random, parts: list[tuple[int, int, int]], drop: float) -> list[Buffer]:
    rnd.shuffle(parts)
    kept = [part for part in parts if rnd.random() >= drop]
    return [Buffer(number, lower, upper, size) for number, (lower, upper, size) in enumerate(kept)]


if __name__ == "__main__":
    sys.exit(main())
