"""Memory: what was planned bounds what is taken, a budget is kept, and nothing grows however long it serves."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, ClassVar

import psutil

from paddock.deployment import deploy
from paddock.errors import MemoryRefused, NotAvailable
from paddock.footprint import largest, measure
from paddock.planning.memory import readable
from paddock.resident import settled
from paddock.testing.bench import Bench, Serving
from paddock.testing.judging import apart
from paddock.testing.outcomes import Area
from paddock.testing.table import Broken, Evidence, Refused, Skipped, Table

MEMORY = Table(Area.MEMORY)
SOAK = Table(Area.SOAK)

MIB = 1 << 20
_RUNS = 150, 3000
"""Runs of a soak: quick, and long."""
_LOADS = 12, 60
_SLACK = 3 * MIB
"""Growth of the resident size that is noise: allocators keep pages in pieces."""
_WIDE = 8192
"""Columns of the soak's model: 32 KiB a row, so that a forgotten answer shows in a hundred runs."""


@MEMORY.check("planned", "what sessions take, measured in a process of their own, is at most what the adapter planned")
def _planned(bench: Bench) -> Evidence:
    with bench.serving(bench.plain) as serving:
        prepared = serving.prepared
        memory = prepared.plan.memory
        found = measure(prepared, [serving.segment.artifact], largest(prepared))
        taken = readable(found.peak)
        if memory.kind != "host":
            # What a driver keeps on the host is its own affair, and nobody's to bound; its size is told.
            claims = (f"a bound of the {memory.kind}'s memory, which is not measured from here",)
            told = f"{taken} of the host's memory taken, beside {_on_device(serving)}"
            return Evidence(told, claims)
        if memory.most is None:
            return Evidence(f"{taken} taken", ("a bound: footprint() tells none",))
        if found.peak > memory.most:
            raise Broken(f"sessions take {taken}, and at most {readable(memory.most)} was planned")
        return Evidence(f"{taken} taken, between {readable(memory.least)} and {readable(memory.most)} planned")


def _on_device(serving: Serving) -> str:
    """What a session that has run tells of the memory there; raises `Broken` where that is more than was planned."""
    memory, session = serving.prepared.plan.memory, serving.load()
    serving.answer(session, serving.sample())
    told = session.observed().peak_bytes
    if told is None:
        return f"the {memory.kind}'s"
    if memory.most is not None and told > memory.most:
        raise Broken(
            f"observed() tells {readable(told)} of the {memory.kind}'s memory, and at most {readable(memory.most)} was "
            "planned"
        )
    return f"{readable(told)} of the {memory.kind}'s, as observed() tells"


@MEMORY.check("budget", "a model over memory.limit is refused before anything of it is loaded")
def _budget(bench: Bench) -> Evidence:
    with bench.serving(bench.plain) as serving:
        config = {**serving.prepared.config.as_data(), "memory": {"limit": 64}, "accuracy": {"verify": "off"}}
        try:
            with deploy(serving.path, config, registry=bench.registry, children=bench.children):
                pass
        except MemoryRefused as error:
            return Evidence(error.problem)
        except NotAvailable as error:
            raise Skipped(error.problem) from error
        raise Broken("it was deployed with a limit of 64 bytes")


def _wide(bench: Bench) -> Any:
    """A model with large inputs and answers and next to nothing to compute, as far as the adapter serves one."""
    from onnx import TensorProto, helper, save

    if bench.format != "onnx":
        return bench.plain
    path = bench.folder / "wide.onnx"
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", _WIDE]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "wide", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    try:
        with bench.serving(path):
            return path
    except Refused:
        return bench.plain


def _plateau(what: str, times: int, action: Callable[[int], None], slack: int = _SLACK) -> str:
    """Does it again and again; raises `Broken` where the second half adds to what the first half took."""
    sizes: list[int] = []
    for number in range(times):
        action(number)
        if number >= times // 5 and number % max(1, times // 20) == 0:  # the first fifth fills pools and caches
            gc.collect()
            sizes.append(settled())
    half = len(sizes) // 2
    grown = int(median(sizes[half:]) - median(sizes[:half])) if _rises(sizes) else 0
    if grown > slack:
        raise Broken(
            f"{what} {times} times makes the process {readable(grown)} larger from one half to the next, "
            f"{readable(sizes[-1] - sizes[0])} in all: nothing says that it ends"
        )
    return f"{what} {times} times: {readable(max(0, sizes[-1] - sizes[0]))} more at the end"


def _rises(sizes: Sequence[int]) -> bool:
    """Whether it went on to the end: a last step alone is a pool that was filled late."""
    quarter = max(1, len(sizes) // 4)
    return min(sizes[-quarter:]) > max(sizes[:quarter])


@SOAK.check("runs", "run after run the process stays as large as it was", seconds=300)
def _runs(bench: Bench) -> Evidence:
    times = _RUNS[0] if bench.quick else _RUNS[1]
    with bench.serving(_wide(bench)) as serving:
        session = serving.load()
        extents = serving.extents()
        feeds = [serving.feeds(serving.sample(seed, extents[-1])) for seed in range(2)]

        def run(number: int) -> None:
            session.run(feeds[number % 2])

        return Evidence(_plateau("running", times, run))


_ROUNDS = 8
_FILLING, _FILLING_SECONDS, _ENOUGH = 3000, 40.0, 1000
"""Runs, and seconds at most, in which a history or an arena may fill up before what grew is counted again; and runs
without which nothing can be told."""
_MOST = 1024
"""Bytes a run may add to what was allocated: a record of it is smaller, an answer of a real model larger."""


@SOAK.check("kept", "no run keeps a kilobyte, as the C library counts what is allocated")
def _kept(bench: Bench) -> Evidence:
    times = 25 if bench.quick else 400
    with bench.serving(bench.plain) as serving:
        session = serving.load()
        extents = serving.extents()
        feeds = serving.feeds(serving.sample(0, extents[-1]))
        runs = 0

        def run() -> None:
            nonlocal runs
            session.run(feeds)
            runs += 1

        least, more = _added(times, run)
        if least > times * _MOST:
            until = time.monotonic() + _FILLING_SECONDS
            while runs < _FILLING and time.monotonic() < until:
                run()
            least, more = _added(times, run)
        told = f"{runs} runs: {readable(more)} more at the end"
        if least <= times * _MOST:
            return Evidence(told)
        grown = f"each {times} runs add at least {readable(least)} to what is allocated, {least // times} bytes a run"
        if runs < _ENOUGH:
            return Evidence(told, (f"that it ends: {grown}, in {runs} runs",))
        raise Broken(f"{grown}, also after {runs - _ROUNDS * times} runs")


def _added(times: int, run: Callable[[], None]) -> tuple[int, int]:
    """What any of several rounds of so many runs added at least, and what all did, in bytes; the first ones may."""
    sizes: list[int] = []
    for _ in range(_ROUNDS):
        for _ in range(times):
            run()
        gc.collect()
        sizes.append(_allocated())
    settled = sizes[_ROUNDS // 4 :]
    return min(later - earlier for earlier, later in pairwise(settled)), max(0, settled[-1] - settled[0])


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`; what is taken of it is what is in use, in the heaps and in mappings."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_: ClassVar[list[Any]] = [(name, ctypes.c_size_t) for name in _names.split()]


def _allocated() -> int:
    """Bytes in use in all of the C library's heaps; raises `Skipped` for a library that does not tell."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        raise Skipped("this C library does not tell what is allocated") from None
    ask.restype = _MallInfo
    told = ask()
    return int(told.uordblks + told.hblkhd)


@SOAK.check("answers", "the answer after many runs is the answer of the first", seconds=300)
def _answers(bench: Bench) -> Evidence:
    times = _RUNS[0] if bench.quick else _RUNS[1]
    with bench.serving(bench.plain) as serving:
        session = serving.load()
        extents = serving.extents()
        samples = [serving.sample(seed, extents[seed % len(extents)]) for seed in range(7)]
        wanted = serving.expected(*samples)
        for number in range(times):
            found = serving.answer(session, samples[number % 7])
            if (why := apart(wanted[number % 7], found, serving.precision)) is not None:
                raise Broken(f"after {number} runs: {why}")
        return Evidence(f"{times} runs")


@SOAK.check("loads", "loaded and closed again and again it leaves no memory, no thread and no open file", seconds=300)
def _loads(bench: Bench) -> Evidence:
    times = _LOADS[0] if bench.quick else _LOADS[1]
    process = psutil.Process()
    with bench.serving(bench.plain) as serving:
        feeds = serving.feeds(serving.sample())
        held: list[tuple[int, int]] = []

        def load(number: int) -> None:
            session = serving.load()
            session.run(feeds)
            serving.close(session)
            held.append((threading.active_count() + process.num_threads(), process.num_fds()))

        told = _plateau("loading", times, load)
        for kind, first, last in zip(("threads", "open files"), held[times // 2], held[-1], strict=True):
            if last - first >= times // 2 - 1:
                raise Broken(f"each load leaves {kind}: {first} after {times // 2}, {last} after {times}")
        kind = serving.prepared.plan.memory.kind
        unseen = () if kind == "host" else (f"that loads leave none of the {kind}'s memory: it is not seen from here",)
        return Evidence(f"{told}; {held[-1][1]} open files", unseen)
