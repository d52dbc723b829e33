"""Offset assignment: what any result must hold, the search against brute force, and faults that the verifier finds."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from paddock.errors import PaddockError, UsageError
from paddock.planning import offset_search, offsets
from paddock.planning.offset_greedy import by_time, first_fit, orders
from paddock.planning.offset_problem import Problem, in_units
from paddock.planning.offsets import Allocation, Buffer, allocate, lower_bound
from paddock.planning.offsets_verifier import verify_allocation

INSTANCE = Path(__file__).parents[3] / "shared" / "data" / "minimalloc" / "benchmarks/challenging/A.1048576.csv"
COMPILED = offset_search.library() is not None
ALIGNMENTS = st.sampled_from([1, 1, 1, 2, 3, 4, 8, 12])


@st.composite
def lists_of_buffers(draw: st.DrawFn, most: int = 40, steps: int = 20, largest: int = 60) -> list[Buffer]:
    uniform = draw(st.none() | ALIGNMENTS)
    result = []
    for number in range(draw(st.integers(0, most))):
        lower = draw(st.integers(0, steps - 1))
        upper = draw(st.integers(lower + 1, steps))
        alignment = uniform if uniform is not None else draw(ALIGNMENTS)
        result.append(Buffer(number, lower, upper, draw(st.integers(0, largest)), alignment))
    return result


def least_height(buffers: Sequence[Buffer]) -> int:
    """The optimum: in the order of its offsets, each buffer of some best assignment rests on those before it."""
    best = None
    for order in permutations(buffers):
        placed: list[tuple[Buffer, int]] = []
        for buffer in order:
            offset = 0
            for other, at in placed:
                if other.lower < buffer.upper and buffer.lower < other.upper:
                    offset = max(offset, -(-(at + other.size) // buffer.alignment) * buffer.alignment)
            placed.append((buffer, offset))
        height = max((at + b.size for b, at in placed), default=0)
        best = height if best is None else min(best, height)
    return best or 0


def problem_of(buffers: Sequence[Buffer]) -> Problem:
    used = sorted((b for b in buffers if b.size), key=lambda b: (b.lower, b.upper))
    return in_units(
        [b.lower for b in used], [b.upper for b in used], [b.size for b in used], [b.alignment for b in used]
    )


def churned(seed: int, capacity: int, steps: int, live: int) -> list[Buffer]:
    """Buffers that fill `capacity` at every step: at each, adjacent blocks end and their room is divided anew."""
    rnd = random.Random(seed)
    blocks = [(0, capacity // live) for _ in range(live)]
    done: list[tuple[int, int, int]] = []
    for step in range(1, steps):
        count = rnd.randint(1, 3)
        at = rnd.randrange(live - count + 1)
        run = blocks[at : at + count]
        room = sum(size for _, size in run)
        done += [(born, step, size) for born, size in run if born < step]
        cuts = sorted(rnd.sample(range(1, room), count - 1))
        blocks[at : at + count] = [(step, b - a) for a, b in zip([0, *cuts], [*cuts, room], strict=True)]
    done += [(born, steps, size) for born, size in blocks]
    rnd.shuffle(done)
    return [Buffer(i, lower, upper, size) for i, (lower, upper, size) in enumerate(done)]


@settings(max_examples=100, deadline=None)
@given(lists_of_buffers(), st.none() | st.integers(0, 2000))
def test_any_result_is_right(buffers: list[Buffer], capacity: int | None) -> None:
    result = allocate(buffers, capacity, seconds=0.01)
    verify_allocation(buffers, result)
    assert result.bound == lower_bound(buffers)
    assert result.proven == (result.height == result.at_least)
    assert max((b.size for b in buffers), default=0) <= result.height


@settings(max_examples=100, deadline=None)
@given(lists_of_buffers(most=6, steps=6, largest=9))
def test_brute_force_agrees(buffers: list[Buffer]) -> None:
    least = least_height(buffers)
    result = allocate(buffers, seconds=5.0 if COMPILED else 0.05)
    assert result.at_least <= least <= result.height
    if COMPILED:  # small enough to be searched to the end
        assert result.proven and result.height == least
        verify_allocation(buffers, result)


@pytest.mark.skipif(not COMPILED, reason="the search was not built: no compiler")
@settings(max_examples=100, deadline=None)
@given(lists_of_buffers(most=6, steps=6, largest=9), st.integers(0, 40))
def test_a_capacity_is_met_or_refused_by_proof(buffers: list[Buffer], capacity: int) -> None:
    least = least_height(buffers)
    result = allocate(buffers, capacity, seconds=5.0)
    verify_allocation(buffers, result)
    assert (result.height <= capacity) == (least <= capacity)
    assert (result.at_least > capacity) == (least > capacity)


@pytest.mark.skipif(not COMPILED, reason="the search was not built: no compiler")
@pytest.mark.parametrize("seed", range(40))
def test_the_search_never_refuses_what_was_cut_to_fit(seed: int) -> None:
    buffers = churned(seed, 60, 14, 5)
    result = allocate(buffers, 60, seconds=10.0)
    verify_allocation(buffers, result)
    assert result.height == result.bound == 60 and result.proven


@settings(max_examples=100, deadline=None)
@given(lists_of_buffers(most=25))
def test_every_greedy_order_is_right_and_both_first_fits_agree(buffers: list[Buffer]) -> None:
    problem = problem_of(buffers)
    assume(len(problem))
    used = sorted((b for b in buffers if b.size), key=lambda b: (b.lower, b.upper))

    def check(found: Any) -> None:
        at = {b.id: int(o) * problem.unit for b, o in zip(used, found.tolist(), strict=True)}
        everything = {b.id: at.get(b.id, 0) for b in buffers}
        height = problem.height(found)
        verify_allocation(buffers, Allocation(everything, height, problem.bound, problem.bound))

    check(by_time(problem))
    plain, compiled = first_fit(problem), offset_search.compiled_first_fit(problem)
    for order in orders(problem):
        assert sorted(order.tolist()) == list(range(len(problem)))
        found = plain(order, float("inf"))
        assert found is not None
        check(found)
        if compiled is not None:
            same = compiled(order, float("inf"))
            assert same is not None and same.tolist() == found.tolist()


def test_without_the_compiled_search_orders_are_improved(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = churned(3, 6000, 40, 8)
    monkeypatch.setattr(offsets, "searchable", lambda problem: False)
    monkeypatch.setattr(offsets, "compiled_first_fit", lambda problem: None)
    result = allocate(buffers, seconds=0.5)
    verify_allocation(buffers, result)
    assert result.method in ("greedy", "orders")


def test_a_real_shape_reaches_the_bound_at_once() -> None:
    """A chain with residual branches: what a network's intermediates look like."""
    buffers = []
    for block in range(300):
        at = 4 * block
        buffers.append(Buffer(("skip", block), at, at + 4, 4096, 64))
        buffers += [Buffer((block, k), at + k, at + k + 2, 1000 * (k + 1) + block % 7, 64) for k in range(3)]
    result = allocate(buffers, seconds=20.0)
    verify_allocation(buffers, result)
    assert result.proven and result.height == result.bound


@pytest.mark.parametrize("live", [3, 400])
def test_large_traces_end(live: int) -> None:
    rnd = random.Random(live)
    buffers = []
    for i in range(20_000):
        lower = rnd.randrange(20_000)
        buffers.append(Buffer(i, lower, lower + 1 + rnd.randrange(2 * live), rnd.randrange(1, 1 << 20), 256))
    result = allocate(buffers, seconds=0.2)
    verify_allocation(buffers, result)


def test_deep_stacks_end() -> None:
    """All alive at once in 3,000 layers: as deep as the recursion of the search goes."""
    buffers = [Buffer(i, i % 7, 10 + i % 5, 1 + i % 13) for i in range(3000)]
    result = allocate(buffers, capacity=lower_bound(buffers) - 1, seconds=1.0)
    verify_allocation(buffers, result)
    assert result.at_least > lower_bound(buffers) - 1
    verify_allocation(buffers, allocate(buffers, seconds=1.0))


def test_parts_that_share_no_step_count_only_once() -> None:
    low = churned(1, 100, 10, 4)
    high = [Buffer(("high", b.id), b.lower + 50, b.upper + 50, 10 * b.size) for b in churned(2, 100, 10, 4)]
    result = allocate([*low, *high], seconds=10.0 if COMPILED else 0.2)
    verify_allocation([*low, *high], result)
    assert result.height == result.bound == 1000 if COMPILED else result.height >= 1000


def test_minimallocs_own_example_fits() -> None:
    rows = [(0, 3, 4), (3, 9, 4), (0, 9, 4), (9, 21, 4), (0, 21, 4)]
    buffers = [Buffer(i, *row) for i, row in enumerate(rows)]
    result = allocate(buffers, capacity=12, seconds=10.0)
    verify_allocation(buffers, result)
    assert result.height <= 12


@pytest.mark.skipif(not INSTANCE.exists(), reason="MiniMalloc's instances lie beside the repository, not in it")
@pytest.mark.skipif(not COMPILED, reason="the search was not built: no compiler")
def test_minimallocs_a_is_packed_without_a_gap() -> None:
    with INSTANCE.open() as lines:
        buffers = [Buffer(r["id"], int(r["lower"]), int(r["upper"]), int(r["size"])) for r in csv.DictReader(lines)]
    result = allocate(buffers, capacity=1_048_576, seconds=20.0)
    verify_allocation(buffers, result)
    assert result.proven and result.height == result.bound == 1_048_576


def test_nothing_at_all() -> None:
    assert allocate([]) == Allocation({}, 0, 0, 0)
    empty = allocate([Buffer("a", 0, 1, 0), Buffer("b", 0, 1, 0, 64)], capacity=0)
    assert dict(empty.offsets) == {"a": 0, "b": 0} and empty.height == 0 and empty.proven


def test_alignment_counts_in_the_bound() -> None:
    buffers = [Buffer("a", 0, 2, 100, 64), Buffer("b", 0, 2, 10, 64)]
    assert lower_bound(buffers) == 138 == allocate(buffers).height  # the larger below
    assert lower_bound([Buffer("a", 0, 2, 100), Buffer("b", 0, 2, 10, 64)]) == 110
    mixed = [Buffer("a", 0, 1, 3), Buffer("b", 0, 1, 3, 4), Buffer("c", 0, 1, 2, 2)]
    assert allocate(mixed, seconds=5.0).height == 8


@pytest.mark.parametrize(
    ("buffer", "named"),
    [
        (Buffer("bad", 0, 1, -1), "size"),
        (Buffer("bad", 1, 1, 1), "lifetime"),
        (Buffer("bad", 2, 1, 1), "lifetime"),
        (Buffer("bad", 0, 1, 1, 0), "alignment"),
        (Buffer("bad", 0, 1, 1.5), "whole"),  # type: ignore[arg-type]
        (Buffer("bad", 0, 1, True), "whole"),
        (Buffer("bad", None, 1, 1), "whole"),  # type: ignore[arg-type]
        (Buffer("good", 0, 1, 1), "twice"),
        (Buffer("bad", 0, 1, 1 << 62), "counted"),
        (Buffer("bad", 0, 1 << 70, 1), "range"),
    ],
)
def test_malformed_buffers_are_named(buffer: Buffer, named: str) -> None:
    for call in (allocate, lower_bound):
        with pytest.raises(UsageError, match=named) as caught:
            call([Buffer("good", 0, 1, 1), buffer])
        assert repr(buffer.id) in str(caught.value)


@pytest.mark.parametrize("arguments", [{"capacity": -1}, {"capacity": 1.5}, {"seconds": -1}, {"seconds": float("nan")}])
def test_malformed_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        allocate([Buffer("a", 0, 1, 1)], **arguments)


BUFFERS = (Buffer("a", 0, 4, 8, 4), Buffer("b", 2, 6, 4, 4), Buffer("c", 4, 8, 8, 4), Buffer("d", 0, 8, 4))
RIGHT = Allocation({"a": 0, "b": 8, "c": 0, "d": 12}, 16, 16, 16)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda r: replace(r, offsets={**r.offsets, "b": 4}), "overlap"),
        (lambda r: replace(r, offsets={**r.offsets, "b": 12, "d": 8}, height=16, bound=17), "bound"),
        (lambda r: replace(r, offsets={**r.offsets, "d": 10}), "height"),
        (lambda r: replace(r, offsets={**r.offsets, "a": 2}), "aligned"),
        (lambda r: replace(r, offsets={**r.offsets, "a": -4}), "lies at"),
        (lambda r: replace(r, offsets={k: v for k, v in r.offsets.items() if k != "c"}), "one offset"),
        (lambda r: replace(r, offsets={**r.offsets, "e": 0}), "one offset"),
        (lambda r: replace(r, height=17), "height"),
        (lambda r: replace(r, bound=15, at_least=16), "less than"),
        (lambda r: replace(r, at_least=17), "necessary"),
        (lambda r: replace(r, at_least=15), "necessary"),
        (lambda r: replace(r, offsets={**r.offsets, "d": 100}, height=104), "in a row"),
    ],
)
def test_the_verifier_finds_faults(change: Callable[[Allocation], Allocation], problem: str) -> None:
    verify_allocation(BUFFERS, RIGHT)
    with pytest.raises(PaddockError, match=problem):
        verify_allocation(BUFFERS, change(RIGHT))


def test_the_search_needs_no_library_to_be_imported() -> None:
    """Importing the planner must load no compiled code: a machine without it plans with less."""
    code = "import sys, paddock.planning.offset_search as s; assert s.library.cache_info().currsize == 0; " + (
        "s.LIBRARY = 'paddock.planning._not_there'; assert s.library() is None; "
        "from paddock.planning.offsets import Buffer, allocate; "
        "print(allocate([Buffer(1, 0, 2, 3)], seconds=0.1).height)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
