"""Runs the standard's node tests through `paddock.deploy` and says how each came out on each adapter.

Every case is deployed, checked by Paddock on the case's own inputs, run on them, and only then compared with the
outputs that the standard expects. Workers are processes of their own: one that crashes or hangs is ended, its case is
counted so, and the run goes on.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from paddock.child import Child, Children
from paddock.deployment import Deployment, deploy
from paddock.errors import AccuracyRefused, ChildFailed, NotAvailable, PaddockError, UsageError
from paddock.plan import Precision
from paddock.registry import Registry
from paddock.spi import Adapter
from paddock.testing.bench import under_test
from paddock.testing.cases import Case, DataSet, data_sets
from paddock.testing.comparing import difference

SECONDS = 120.0
"""How long one case on one adapter may take before its worker is ended."""


class Outcome(StrEnum):
    """How one case came out on one adapter."""

    NATIVE = "native"
    """Right, with every node on the adapter asked for."""
    HELPED = "helped"
    """Right, with some nodes on adapters of the fallback chain."""
    REFUSED = "refused"
    """No answer, but a reason."""
    WRONG = "wrong"
    """Another answer than the standard's, and nobody said so."""
    CRASHED = "crashed"
    """The worker ended; in a deployment that would be this process."""
    HUNG = "hung"
    """It did not answer in time."""


@dataclass(frozen=True)
class Settings:
    """What every case is deployed with.

    `chain` are the adapters that may help, in order; the one under test is left out of it. `repair` moves nodes that
    are wrong to them, and means nothing without them. `max_error` is Paddock's own budget against its reference, None
    for the default. `precision` is what to compute in, and `tolerance`, relative and absolute, what that may lose where
    it is more than the case admits. With `unverified`, what Paddock's own verification refuses is deployed again
    without it, and wrong where the standard says so too: it was an answer that the adapter gave.
    """

    chain: tuple[str, ...] = ()
    repair: bool = True
    max_error: float | None = None
    precision: Precision = Precision.FP32
    tolerance: float = 0.0
    unverified: bool = False

    def config(self, adapter: str) -> dict[str, Any]:
        """The config of one deployment.

        Not strict: a constant output proves nothing about an input, and is right all the same.
        """
        hardware, _, backend = adapter.partition("/")
        found: dict[str, Any] = {"hardware": hardware, "backend": backend, "strict": False}
        if self.precision is not Precision.FP32:
            found["precision"] = self.precision.value
        if helpers := [name for name in self.chain if name != adapter]:
            found |= {"fallback": helpers, "repair": self.repair}
        if self.max_error is not None:
            found["accuracy"] = {"max_error": self.max_error}
        return found


@dataclass(frozen=True)
class Result:
    """One case on one adapter.

    `reason` says why it was refused, what is wrong, or why others had to help; `placed` counts nodes by adapter;
    `seconds` is the time from the config to the answer.
    """

    case: str
    operator: str
    adapter: str
    outcome: Outcome
    reason: str = ""
    placed: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether the answer is the standard's, whoever computed it."""
        return self.outcome in (Outcome.NATIVE, Outcome.HELPED)


def check_adapters(registry: Registry, names: Sequence[str]) -> tuple[str, ...]:
    """The adapters' own names, each once; aliases are resolved.

    Raises `NotAvailable` where one is not installed, `UsageError` where one takes no ONNX models.
    """
    found: dict[str, None] = {}
    for name in names:
        registered = registry.get(name)
        probe = registry.probe(registered)
        if not probe.verdict.usable:
            raise NotAvailable(f"{name}: {probe.verdict.reason}", remedy=probe.remedy or None)
        if "onnx" not in registered.adapter.formats:
            takes = " and ".join(registered.adapter.formats)
            raise UsageError(f"{name} takes {takes} models, and the node tests are ONNX models")
        found[registered.adapter.name()] = None
    return tuple(found)


def run_nodes(
    cases: Sequence[Case],
    adapters: Sequence[str],
    settings: Settings | None = None,
    workers: int = 2,
    told: Callable[[Result], None] | None = None,
    tested: type[Adapter] | None = None,
) -> tuple[Result, ...]:
    """Every case on every adapter (`hardware/backend`), in the order of `cases`, then of `adapters`.

    Args:
        settings: What to deploy with; no chain and repair by default.
        workers: How many processes work side by side.
        told: Called with each result as it comes, from one thread at a time.
        tested: A class that stands for its name whether a plugin brings it or not.

    Works in a cache of its own, so that nothing from an earlier run answers.
    """
    wanted = [(case, adapter) for case in cases for adapter in adapters]
    results: dict[int, Result] = {}
    # By case, so that the reference's answer for one adapter serves the next.
    tasks: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(wanted)):
        tasks.put(number)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(label: str, folder: Path) -> None:
        try:
            with Child(label) as child:
                while not failures:
                    try:
                        number = tasks.get_nowait()
                    except queue.Empty:
                        return
                    result = _in_worker(child, *wanted[number], settings or Settings(), folder, tested)
                    with lock:
                        results[number] = result
                        if told is not None:
                            told(result)
        except BaseException as error:
            failures.append(error)

    with tempfile.TemporaryDirectory(prefix="paddock-nodes-", ignore_cleanup_errors=True) as folder:
        threads = [
            threading.Thread(target=work, args=(f"node tests, worker {i}", Path(folder)), daemon=True)
            for i in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return tuple(results[number] for number in range(len(wanted)))


def _in_worker(
    child: Child, case: Case, adapter: str, settings: Settings, folder: Path, tested: type[Adapter] | None
) -> Result:
    before = time.perf_counter()
    try:
        return child.call(_run_here, case, adapter, settings, folder, tested, seconds=SECONDS)
    except PaddockError as error:
        outcome, how = Outcome.REFUSED, "not an error of Paddock's:"
        if isinstance(error, ChildFailed):
            outcome, how = Outcome.HUNG if "did not answer" in error.problem else Outcome.CRASHED, "the worker"
        reason = f"{how} {_first_line(error)}"
        return Result(case.name, case.operator, adapter, outcome, reason, {}, time.perf_counter() - before)


@cache
def _bench(folder: Path, tested: type[Adapter] | None) -> tuple[Registry, Children]:
    """In a worker: the plugins and the children that all its cases share, and a cache and work folders of the run's."""
    os.environ["PADDOCK_CACHE"] = str(folder / "cache")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return Registry.discover() if tested is None else under_test(tested), Children()


def _run_here(
    case: Case, adapter: str, settings: Settings, folder: Path, tested: type[Adapter] | None = None
) -> Result:
    registry, children = _bench(folder, tested)
    before = time.perf_counter()
    data = data_sets(case)
    placed: Mapping[str, int] = {}
    try:
        config = settings.config(adapter)
        inputs = [one.inputs for one in data]
        with deploy(case.model, config, registry=registry, children=children, samples=inputs) as deployment:
            placed = Counter(node.adapter or "-" for node in deployment.plan.placement.nodes)
            outcome, reason = _judged(case, adapter, deployment, data, settings.tolerance)
    except PaddockError as error:
        outcome, reason = Outcome.REFUSED, f"{type(error).__name__}: {_first_line(error)}"
        refuted = settings.unverified and isinstance(error, AccuracyRefused)
        if refuted and (why := _wrong(case, adapter, settings, registry, children)) is not None:
            outcome, reason = Outcome.WRONG, f"{why}; Paddock's verification: {_first_line(error)}"
    finally:
        registry.store.release()  # or each case would leave a file open
    return Result(case.name, case.operator, adapter, outcome, reason, dict(placed), time.perf_counter() - before)


def _wrong(case: Case, adapter: str, settings: Settings, registry: Registry, children: Children) -> str | None:
    """What is wrong by the standard with an answer that Paddock refuses; None where that finds nothing to object to.

    In a narrow precision the standard's numbers may not be to be had at all: a step jumps elsewhere, a number is
    beyond the range. So it has to be one where the first helper, the reference, is right in the same precision.
    """

    def judged(name: str) -> tuple[Outcome, str]:
        config = {**settings.config(name), "accuracy": {"verify": "off"}}
        with deploy(case.model, config, registry=registry, children=children) as deployment:
            return _judged(case, name, deployment, data_sets(case), settings.tolerance)

    narrow = settings.precision is not Precision.FP32
    try:
        if narrow and settings.chain and judged(settings.chain[0])[0] is Outcome.WRONG:
            return None
        outcome, why = judged(adapter)
    except PaddockError as error:  # one without tensors, say, which only Paddock's verification had inputs for
        return None if narrow else f"not to be had without verification: {_first_line(error)}"
    return why if outcome is Outcome.WRONG else None


def _judged(
    case: Case, adapter: str, deployment: Deployment, data: Sequence[DataSet], tolerance: float
) -> tuple[Outcome, str]:
    rtol, atol = max(case.rtol, tolerance), max(case.atol, tolerance)
    elsewhere = [node for node in deployment.plan.placement.nodes if node.adapter != adapter]
    helpers = ", ".join(dict.fromkeys(str(node.adapter) for node in elsewhere))
    for one in data:
        found = deployment.run(one.inputs)
        for name, expected in one.outputs.items():
            why = difference(found[name], expected, one.dtypes[name], rtol, atol)
            if why is not None:
                return Outcome.WRONG, f"output {name!r}: {why}" + (f"; with {helpers}" if helpers else "")
    if not elsewhere:
        return Outcome.NATIVE, ""
    return Outcome.HELPED, f"{elsewhere[0].op} on {elsewhere[0].adapter}: {elsewhere[0].verdict.reason}"


def _first_line(error: PaddockError) -> str:
    first = next(iter(error.problem.strip().splitlines()), "")
    # An error that lists what each of several adapters said is a puzzle without the first of them.
    return f"{first} ({error.candidates[0].strip().splitlines()[0]})" if error.candidates else first
