"""What `"isolation": "process"` costs, and how soon a lost process is told and back: `python -m benchmarks.isolation`.

A request on an identity, in this process and isolated, in turns in blocks of one run; beside them, in the same turns,
the two copies that isolation cannot do without: into memory that is there, and out of it into a new array. Then
processes are killed while requests run: how long until one that was inside is told, and until the next is answered.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from paddock.deployment import Deployment, deploy
from paddock.errors import ChildLost, PaddockError
from paddock.registry import Registry

from benchmarks.measuring import save_identities
from benchmarks.native import NATIVE

SIZES = {"64 B": 1, "600 KiB": 9_600, "6 MiB": 98_304}
"""Rows of 16 float32."""
_COLUMNS = ("here", "isolated", "added", "copies", "beyond", "spread")
COST_US, DETECTED_MS, BACK_S = 80.0, 50.0, 1.0


def main() -> int:
    """Prints two tables; the exit status is 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=301)
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--adapter", action="append", help="for the second table; by default those of the overhead")
    arguments = parser.parse_args()
    logging.getLogger("paddock.isolation").setLevel(logging.CRITICAL)  # every loss is meant
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as scratch:
        identities = save_identities(Path(scratch))
        registry = Registry.discover()
        missed = costs(identities["onnx"], registry, arguments.blocks)
        print()
        missed += crashes(identities, registry, arguments.kills, arguments.adapter or list(NATIVE))
    return 1 if missed else 0


def costs(model: Path, registry: Registry, blocks: int) -> int:
    """The first table; how many targets are missed."""
    plain = {"hardware": "cpu", "backend": "onnxruntime", "threads": 1, "accuracy": {"verify": "off"}}
    missed = 0
    print("".join(f"{name:>12}" for name in ("microseconds", *_COLUMNS)))
    with (
        deploy(model, plain, registry=registry) as here,
        deploy(model, {**plain, "isolation": "process"}, registry=registry) as isolated,
    ):
        for label, rows in SIZES.items():
            x = np.random.default_rng(0).standard_normal((rows, 16), dtype=np.float32)
            place = np.zeros_like(x)

            def copies(x: np.ndarray[Any, Any] = x, place: np.ndarray[Any, Any] = place) -> Any:
                np.copyto(place, x)
                return place.copy()

            calls: dict[str, Callable[[], Any]] = {
                "here": partial(here.run, {"x": x}),
                "isolated": partial(isolated.run, {"x": x}),
                "copies": copies,
            }
            found = _medians(calls, blocks if rows < 50_000 else blocks // 3)
            over = rows == SIZES["600 KiB"] and found["beyond"] > COST_US
            missed += over
            figures = "".join(f"{found[name]:>12.1f}" for name in _COLUMNS)
            verdict = "" if rows != SIZES["600 KiB"] else f"  {'MISSED' if over else 'met'}: at most {COST_US:g} beyond"
            print(f"{label:>12}{figures}{verdict}", flush=True)
    return missed


def _medians(calls: Mapping[str, Callable[[], Any]], blocks: int) -> dict[str, float]:
    """Microseconds: medians, also of what isolation adds, and of what it adds beyond the copies, with its spread."""
    for call in (*calls.values(),) * 5:
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(blocks):
        for name in names if number % 2 else names[::-1]:
            begun = time.perf_counter()
            calls[name]()
            times[name].append((time.perf_counter() - begun) * 1e6)
    rounds = list(zip(times["here"], times["isolated"], times["copies"], strict=True))
    beyond = sorted(isolated - here - copies for here, isolated, copies in rounds)
    return {
        **{name: statistics.median(found) for name, found in times.items()},
        "added": statistics.median(isolated - here for here, isolated, _ in rounds),
        "beyond": statistics.median(beyond),
        "spread": beyond[len(beyond) * 3 // 4] - beyond[len(beyond) // 4],
    }


def crashes(identities: Mapping[str, Path], registry: Registry, kills: int, adapters: list[str]) -> int:
    """The second table; how many targets are missed."""
    columns = zip(("told ms", "worst", "back s", "worst", "kills"), (9, 7, 8, 7, 6), strict=True)
    print(f"{'adapter':<18} {' '.join(f'{name:>{width}}' for name, width in columns)}")
    missed = 0
    for adapter in adapters:
        hardware, _, backend = adapter.partition("/")
        model = identities["paddle" if adapter in ("cpu/paddle", "cpu/mkldnn") else "onnx"]
        config = {"hardware": hardware, "backend": backend, "isolation": "process", "accuracy": {"verify": "off"}}
        try:
            with deploy(model, config, registry=registry) as deployment:
                told, back = _killed(deployment, kills)
        except PaddockError as error:
            print(f"{adapter:<18} {error.problem}")
            continue
        over = statistics.median(told) > DETECTED_MS or statistics.median(back) > BACK_S
        missed += over
        figures = f"{statistics.median(told):>9.1f} {max(told):>7.1f} {statistics.median(back):>8.2f} {max(back):>7.2f}"
        targets = f"at most {DETECTED_MS:g} ms and {BACK_S:g} s"
        print(f"{adapter:<18} {figures} {len(told):>6}  {'MISSED' if over else 'met'}: {targets}", flush=True)
    return missed


def _killed(deployment: Deployment, kills: int) -> tuple[list[float], list[float]]:
    """Milliseconds until a request inside is told of the end, and seconds until the next is answered, by kill."""
    x = np.ones((SIZES["6 MiB"], 16), np.float32)
    feeds = {next(iter(deployment.inputs)): x}
    told, back = list[float](), list[float]()
    while len(told) < kills:
        time.sleep(2)  # for the spare to stand ready, as it mostly does
        deployment.run(feeds)
        assert deployment.isolation is not None
        (pid,) = deployment.isolation.processes
        killed: list[float] = []

        def kill(pid: int = pid, killed: list[float] = killed) -> None:
            killed.append(time.perf_counter())
            os.kill(pid, signal.SIGSEGV)

        timer = threading.Timer(0.05, kill)
        timer.start()
        try:
            while timer.is_alive() or not killed:
                deployment.run(feeds)
            continue  # it was hit between two requests
        except ChildLost:
            told.append((time.perf_counter() - killed[0]) * 1e3)
        finally:
            timer.join()
        deployment.run(feeds)
        back.append(time.perf_counter() - killed[0])
    return told, back


if __name__ == "__main__":
    sys.exit(main())
