"""Warm start: no request is lost or wrong whatever becomes of what is built, and nothing is left when it ends."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper
from paddock import auto, shadow
from paddock.cache import Store
from paddock.config import HardwareConfig, Memory
from paddock.errors import (
    AccuracyRefused,
    BuildFailed,
    ConfigError,
    MemoryRefused,
    ModelError,
    NotAvailable,
    PaddockError,
    RunFailed,
    UsageError,
)
from paddock.exchange import AGREEING
from paddock.registry import Registry
from paddock.serving import Deployment, WarmStart
from paddock.shadow import HELD, Answered, Shadow, copied, put_to
from paddock.standin import beside, stand_in
from paddock.tune import Tuned
from paddock.verify import Outcome
from paddock.warm import WarmDeployment
from paddock_warm import HELD_BY, STAGE, Stage, wait_until

Array = np.ndarray[Any, Any]
Start = Callable[..., Deployment]
LONG = 30.0
"""Seconds for which anything that comes about is waited for."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    installed = importlib.metadata.entry_points(group="paddock")
    points = [point for point in installed if point.name == "reference"]
    points.append(importlib.metadata.EntryPoint("warm", "paddock_warm", "paddock"))
    return Registry.discover(Store(tmp_path_factory.mktemp("store")), points)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two outputs, each twice the input."""
    return save(tmp_path_factory.mktemp("double") / "m.onnx")


def save(path: Path, factor: float = 2.0) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xyz"]
    nodes = [helper.make_node("Mul", ["x", "f"], [name], name=name) for name in "yz"]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [helper.make_tensor("f", TensorProto.FLOAT, [], [factor])]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stage for each test; afterwards there is no thread, child or folder that was not there before."""
    for name, value in vars(Stage()).items():
        setattr(STAGE, name, value)
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    threads, children = set(threading.enumerate()), set(psutil.Process().children())
    yield
    STAGE.load.set()
    STAGE.run.set()
    gc.collect()
    wait_until(lambda: not set(threading.enumerate()) - threads, "its threads ended")
    wait_until(lambda: not set(psutil.Process().children()) - children, "its children ended")
    assert list(place.iterdir()) == []


@pytest.fixture
def start(registry: Registry, model: Path) -> Iterator[Start]:
    made: list[Deployment] = []

    def call(options: Mapping[str, Any] | None = None, **more: Any) -> Deployment:
        found = auto.deploy(model, config(options or {}, **more), registry=registry)
        made.append(found)
        return found

    yield call
    STAGE.load.set()
    STAGE.run.set()
    for deployment in made:
        deployment.close()


def config(options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    base = {"hardware": "cpu", "backend": "second", "warm_start": "cpu/first", "options": dict(options)}
    return {**base, "shapes": {"n": {"min": 1, "max": 8}}, **more}


def phase(deployment: Deployment) -> str:
    assert deployment.warm is not None
    return deployment.warm.phase


def settled(deployment: Deployment) -> WarmStart:
    found = deployment.settle(LONG)
    assert found is not None and found.decided
    return found


def comparing(deployment: Deployment) -> None:
    wait_until(lambda: phase(deployment) != "building", "it is built")
    assert phase(deployment) == "comparing", deployment.warm


def doing(deployment: Deployment, what: str) -> None:
    wait_until(lambda: deployment.warm is not None and what in deployment.warm.reason, f"it says {what!r}")


def rows(first: float, count: int = 2) -> Array:
    x = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    x[0, 0] = first
    return x


def ask(deployment: Deployment, first: float = 1.0, **more: Any) -> bool:
    """A request, whose answer must be right."""
    x = rows(first)
    for array in deployment.run({"x": x}, **more).values():
        np.testing.assert_array_equal(array, 2 * x)
    return True


def ask_until_settled(deployment: Deployment, first: float = 1.0, **more: Any) -> WarmStart:
    def decided() -> bool:
        ask(deployment, first, **more)
        return deployment.warm is not None and deployment.warm.decided

    wait_until(decided, "it is decided")
    return settled(deployment)


def told(kind: str = "warm") -> list[Mapping[str, Any]]:
    return [event.facts for event in STAGE.events if event.kind == kind]


# Right builds


def test_the_second_takes_over_once_enough_live_requests_agree(start: Start) -> None:
    STAGE.load.clear()
    deployment = start()
    assert isinstance(deployment, WarmDeployment)
    assert deployment.plan.adapter == "cpu/first" and deployment.config.precision == "fp32"
    ask(deployment)
    assert STAGE.loading.wait(LONG) and phase(deployment) == "building"
    assert deployment.warm is not None and "verifying" not in deployment.warm.reason and deployment.warm.reason
    before, name = STAGE.runs["first"], deployment.name
    ask(deployment)
    assert STAGE.runs["first"] == before + 1, "the first one serves meanwhile"
    STAGE.load.set()
    comparing(deployment)
    assert deployment.plan.adapter == "cpu/first"
    found = ask_until_settled(deployment)
    assert found.phase == "swapped" and found.compared == AGREEING and found.worst == 0 and found.error is None
    assert found.serving == deployment.plan.adapter == deployment.config.adapter == "cpu/second"
    assert deployment.report.outcome is Outcome.PASSED and deployment.config.warm_start is None
    assert STAGE.closed == {"first": STAGE.loaded["first"]}
    before = STAGE.runs["first"]
    ask(deployment)
    assert STAGE.runs["first"] == before
    assert [facts["phase"] for facts in told()] == ["comparing", "swapped"]
    assert {event.deployment for event in STAGE.events if event.kind == "warm"} == {name}
    deployment.close()
    deployment.close()
    with pytest.raises(RunFailed, match="is closed"):
        ask(deployment)
    assert phase(deployment) == "swapped"


def compared(deployment: Deployment, count: int) -> bool:
    return deployment.warm is not None and deployment.warm.compared == count


def test_without_live_requests_nothing_is_swapped(start: Start) -> None:
    deployment = start()
    comparing(deployment)
    found = deployment.settle(0.05)
    assert found is not None and not found.decided and found.compared == 0
    for number in range(AGREEING - 1):
        ask(deployment)
        wait_until(partial(compared, deployment, number + 1), "it was compared")
    assert phase(deployment) == "comparing"
    ask(deployment)
    assert settled(deployment).phase == "swapped"


@pytest.mark.parametrize("instances", [1, 3])
def test_no_request_is_lost_or_wrong_under_load(start: Start, instances: int) -> None:
    """Callers of every kind go on all the time, from before the second is loaded until after the first is closed."""
    STAGE.load.clear()
    deployment = start(instances=instances)
    stop, counts, errors = threading.Event(), [0] * 6, list[BaseException]()

    def call(number: int) -> None:
        try:
            while not stop.is_set():
                x = rows(float(number), 1 + counts[number] % 8)
                if number % 3 == 0:
                    answer = deployment.run({"x": x})
                elif number % 3 == 1:
                    answer = {"z": np.empty_like(x)}
                    assert deployment.run({"x": x}, into=answer).keys() == {"z"}
                else:
                    futures = [deployment.submit({"x": x}, ["y"]) for _ in range(3)]
                    answer = [future.result(LONG) for future in futures][-1]
                for array in answer.values():
                    np.testing.assert_array_equal(array, 2 * x)
                    array[...] = np.nan  # it is the caller's
                x[...] = np.nan
                counts[number] += 1
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(len(counts))]
    for caller in callers:
        caller.start()
    wait_until(lambda: all(counts), "all are served by the first")
    STAGE.load.set()
    found = settled(deployment)
    after = list(counts)
    wait_until(lambda: errors or all(now > then for now, then in zip(counts, after, strict=True)), "all go on")
    stop.set()
    for caller in callers:
        caller.join()
    assert not errors
    assert found.phase == "swapped", found
    assert STAGE.closed["first"] == STAGE.loaded["first"] > 0 == STAGE.closed["second"]


def test_who_is_inside_the_first_is_waited_for(start: Start) -> None:
    STAGE.run.clear()
    deployment = start()
    x = rows(HELD_BY)
    inside: list[Mapping[str, Array]] = []
    caller = threading.Thread(target=lambda: inside.append(deployment.run({"x": x})))
    caller.start()
    future = deployment.submit({"x": x}, into={"y": (y := np.zeros_like(x))})
    for _ in range(2):
        assert STAGE.held.acquire(timeout=LONG)
    comparing(deployment)

    def swapped() -> bool:
        ask(deployment)
        return phase(deployment) == "swapped"

    wait_until(swapped, "it is swapped")
    assert deployment.plan.adapter == "cpu/second" and not STAGE.closed and not future.done() and not inside
    later = deployment.submit({"x": rows(3.0)})
    np.testing.assert_array_equal(later.result(LONG)["z"], 2 * rows(3.0))
    closer = threading.Thread(target=deployment.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive(), "two requests are inside"
    STAGE.run.set()
    np.testing.assert_array_equal(future.result(LONG)["y"], 2 * x)
    assert future.result()["y"] is y
    caller.join()
    np.testing.assert_array_equal(inside[0]["z"], 2 * x)
    closer.join()
    assert STAGE.closed == STAGE.loaded


@pytest.mark.parametrize("way", ["run", "submit"])
def test_who_is_on_the_way_to_the_first_is_waited_for(start: Start, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A request that was given to the first just before the swap, and comes to it after."""
    deployment = start()
    comparing(deployment)
    assert isinstance(deployment, WarmDeployment)
    first, go, late = deployment._exchange.now, threading.Event(), threading.Event()
    original = getattr(first, way)

    def slow(feeds: Any, *more: Any, **options: Any) -> Any:
        if threading.current_thread() is caller:
            late.set()
            assert go.wait(LONG)
        return original(feeds, *more, **options)

    def call() -> None:
        found = getattr(deployment, way)({"x": rows(1.0)})
        answers.append(found if way == "run" else found.result(LONG))

    answers: list[Mapping[str, Array]] = []
    caller = threading.Thread(target=call)
    monkeypatch.setattr(first, way, slow)
    caller.start()
    assert late.wait(LONG)
    wait_until(lambda: ask(deployment) and phase(deployment) == "swapped", "it is swapped")
    found = deployment.settle(0.1)
    assert found is not None and found.decided and not STAGE.closed
    go.set()
    caller.join()
    np.testing.assert_array_equal(answers[0]["y"], 2 * rows(1.0))
    settled(deployment)
    assert STAGE.closed == {"first": STAGE.loaded["first"]}


@pytest.mark.parametrize("backend", ["bound", "second"])
def test_submitted_requests_fail_and_are_cancelled_as_ever(start: Start, backend: str) -> None:
    deployment = start({"raises": True}, backend=backend, warm_start="cpu/first", accuracy={"verify": "off"})
    comparing(deployment)
    with pytest.raises(UsageError, match="x"):
        deployment.submit({"y": rows(1.0)})
    with pytest.raises(UsageError, match="no output 'w'"):
        deployment.run({"x": rows(1.0)}, ["w"])
    with pytest.raises(UsageError, match="exclude each other"):
        deployment.run({"x": rows(1.0)}, ["y"], into={"y": rows(1.0)})
    STAGE.run.clear()
    blocked = deployment.submit({"x": rows(HELD_BY)})
    assert STAGE.held.acquire(timeout=LONG)
    cancelled = deployment.submit({"x": rows(1.0)})
    assert cancelled.cancel() and not blocked.done()
    STAGE.run.set()
    assert blocked.result(LONG)["y"][0, 0] == 2 * HELD_BY
    assert ask_until_settled(deployment).phase == "swapped"


# Wrong or failing builds


FAULTS: list[tuple[dict[str, Any], type[PaddockError], str]] = [
    ({"compile": "segfault"}, BuildFailed, "SIGSEGV"),
    ({"select": "abort"}, BuildFailed, "SIGABRT"),
    ({"load": "raise"}, BuildFailed, "the vendor's SDK says no"),
    ({"run": "exit"}, BuildFailed, "status 3"),
    ({"compile": "unsupported"}, NotAvailable, "no kernel for this one"),
    ({"numbers": "wrong"}, AccuracyRefused, "relative error"),
]


@pytest.mark.parametrize(("options", "kind", "said"), FAULTS, ids=[str(next(iter(o.items()))) for o, _, _ in FAULTS])
def test_a_build_that_fails_is_reported_and_service_goes_on(
    start: Start, caplog: pytest.LogCaptureFixture, options: dict[str, Any], kind: type[PaddockError], said: str
) -> None:
    with caplog.at_level(logging.WARNING, "paddock.warm"):
        deployment = start(options)
        found = settled(deployment)
    assert found.phase == "refused" and found.serving == "cpu/first" and isinstance(found.error, kind)
    assert said in found.reason and "cpu/second" in found.reason, found
    assert said in caplog.text and "cpu/first goes on serving" in caplog.text
    assert told()[-1]["phase"] == "refused" and said in told()[-1]["reason"]
    ask(deployment)
    assert deployment.plan.adapter == "cpu/first"
    deployment.close()
    assert STAGE.closed == STAGE.loaded


@pytest.mark.parametrize("ask_for", [{}, {"outputs": ["z"]}, {"into": {"z": np.empty((2, 4), np.float32)}}])
def test_one_disagreement_on_a_live_request_refuses_it(start: Start, ask_for: dict[str, Any]) -> None:
    deployment = start({"wrong": ["z"]})
    comparing(deployment)
    ask(deployment)
    found = ask_until_settled(deployment, 1000.0, **ask_for)
    assert found.phase == "refused" and 1 <= found.compared <= AGREEING, found
    assert isinstance(found.error, AccuracyRefused) and found.worst is not None and 0.02 < found.worst < 0.03
    report: Any = found.error.report
    assert report.outcome is Outcome.FAILED and [c.name for c in report.outputs if c.error] == ["z"]
    assert "x [2, 4]" in found.reason and "'z'" in found.reason and "cpu/first" in found.reason
    assert deployment.plan.adapter == "cpu/first" and STAGE.closed == {"second": STAGE.loaded["second"]}
    ask(deployment, 1000.0)
    assert found.error.__traceback__ is None, "its frames would keep what was refused"


def test_only_what_is_asked_for_is_compared(start: Start) -> None:
    deployment = start({"wrong": ["z"]})
    comparing(deployment)
    found = ask_until_settled(deployment, 1000.0, outputs=["y"])
    assert found.phase == "swapped" and found.compared == AGREEING


def test_requests_that_ask_for_nothing_prove_nothing(start: Start) -> None:
    deployment = start()
    comparing(deployment)
    runs = STAGE.runs["second"]
    for _ in range(2 * AGREEING):
        assert deployment.run({"x": rows(1.0)}, []) == {}
    assert deployment.settle(0.05) == deployment.warm and phase(deployment) == "comparing"
    assert STAGE.runs["second"] == runs


def test_a_request_that_only_the_second_fails_refuses_it(start: Start) -> None:
    deployment = start({"raises": True})
    comparing(deployment)
    found = ask_until_settled(deployment, 1000.0)
    assert found.phase == "refused" and isinstance(found.error, RunFailed)
    assert "no such number" in found.reason and "that cpu/first answers" in found.reason
    assert STAGE.closed == {"second": STAGE.loaded["second"]}


def test_where_min_agreement_speaks_of_one_output_only_that_proves_something(start: Start) -> None:
    deployment = start(accuracy={"min_agreement": {"cosine": 0.999, "output": "z"}})
    comparing(deployment)
    before = STAGE.runs["second"]
    wait_until(lambda: ask(deployment, outputs=["y"]) and STAGE.runs["second"] > before + AGREEING, "many were put")
    assert deployment.warm is not None and deployment.warm.compared == 0
    assert ask_until_settled(deployment).phase == "swapped"


def test_a_second_that_cannot_be_closed_disturbs_nobody(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    deployment = start({"wrong": ["y"], "fails_close": True})
    comparing(deployment)
    with caplog.at_level(logging.WARNING, "paddock.warm"):
        assert ask_until_settled(deployment, 1000.0).phase == "refused"
    assert "device lost" in caplog.text
    ask(deployment)


@pytest.mark.parametrize("when", ["before it is read again", "while it is loaded"])
def test_a_model_that_changed_meanwhile_is_not_taken(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path, other = save(tmp_path / "changing.onnx"), save(tmp_path / "other.onnx", 3.0)
    asked = config({}, accuracy={"verify": "off"})
    del asked["options"]

    def tune(*args: Any, **options: Any) -> Tuned:
        os.replace(other, path)
        return Tuned({k: v for k, v in asked.items() if k != "warm_start"}, "latency", "the best", (), 1.0)

    early = when == "before it is read again"
    monkeypatch.setattr(auto, "tune", tune)
    STAGE.load.clear()
    with auto.deploy(path, {**asked, "backend": "auto"} if early else asked, registry=registry) as deployment:
        assert STAGE.loading.wait(LONG)
        if not early:
            os.replace(other, path)
        STAGE.load.set()
        found = settled(deployment)
        assert found.phase == "refused" and isinstance(found.error, ModelError) and "changed" in found.reason
        assert early == ("since it serves" in found.reason)
        ask(deployment)


def test_a_bug_of_ours_is_reported_like_any_failure(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("paddock.exchange.put_to", lambda *a: 1 // 0)
    deployment = start()
    comparing(deployment)
    found = ask_until_settled(deployment)
    assert found.phase == "refused" and "ZeroDivisionError" in found.reason and "ZeroDivisionError" in caplog.text


# Closing


def test_closing_while_it_is_built_in_a_child(start: Start) -> None:
    deployment = start({"compile": "hang"})
    doing(deployment, "building for")
    deployment.close()
    assert phase(deployment) == "closed" and not STAGE.loaded["second"]
    assert STAGE.closed == STAGE.loaded
    with pytest.raises(RunFailed, match="is closed"):
        ask(deployment)
    assert deployment.settle(LONG) == deployment.warm


def test_closing_while_it_is_loaded_here(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    STAGE.load.clear()
    deployment = start()
    assert STAGE.loading.wait(LONG)
    closer = threading.Thread(target=deployment.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive(), "no SDK is left behind by its caller"
    ask(deployment)  # it serves until there is nothing else to wait for
    STAGE.load.set()
    closer.join()
    assert phase(deployment) == "closed" and STAGE.closed == STAGE.loaded and "goes on" not in caplog.text
    assert [facts["phase"] for facts in told()] == []


def test_closing_while_it_is_compared(start: Start) -> None:
    deployment = start()
    comparing(deployment)
    ask(deployment)
    deployment.close()
    assert phase(deployment) == "closed" and STAGE.closed == STAGE.loaded == {"first": 1, "second": 1}


def test_many_may_close_at_once(start: Start) -> None:
    deployment = start()
    comparing(deployment)
    closers = [threading.Thread(target=deployment.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    assert STAGE.closed == STAGE.loaded


@pytest.mark.parametrize("when", ["building", "comparing", "swapped"])
def test_a_callback_of_its_own_cannot_close_it(start: Start, when: str) -> None:
    """It would wait for itself: also on a thread of the one that is being left."""
    if when == "building":
        STAGE.load.clear()
    deployment = start()
    if when != "building":
        comparing(deployment)
    STAGE.run.clear()
    future = deployment.submit({"x": rows(HELD_BY)})
    assert STAGE.held.acquire(timeout=LONG)
    said: Future[str] = Future()

    def close(finished: Future[Any]) -> None:
        try:
            deployment.close()
            said.set_result("closed")
        except RunFailed as error:
            said.set_result(error.problem)

    future.add_done_callback(close)
    if when == "swapped":
        wait_until(lambda: ask(deployment) and phase(deployment) == "swapped", "it is swapped")
    STAGE.run.set()
    assert "callback of its own" in said.result(LONG)
    STAGE.load.set()
    ask(deployment)


def test_where_no_thread_can_be_had_nothing_is_left(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "warm start" in thread.name:
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        start()
    assert STAGE.closed == STAGE.loaded


def test_who_hears_of_it_cannot_close_it(start: Start, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    STAGE.load.clear()
    deployment = start()
    said: list[str] = []
    observe = registry.observe

    def hear(event: Any) -> None:
        if event.kind == "warm":
            try:
                deployment.close()
            except RunFailed as error:
                said.append(error.problem)
        observe(event)

    monkeypatch.setattr(registry, "observe", hear)
    STAGE.load.set()
    assert ask_until_settled(deployment).phase == "swapped"
    assert len(said) == 2 and "wait for itself" in said[0]


@pytest.mark.parametrize("when", ["building", "comparing", "refused", "swapped"])
def test_dropped_without_being_closed_it_leaves_nothing(registry: Registry, model: Path, when: str) -> None:
    options = {"building": {"load": "hang"}, "refused": {"numbers": "wrong"}}.get(when, {})
    deployment = auto.deploy(model, config(options), registry=registry)
    if when == "building":
        doing(deployment, "building for")
    elif when == "comparing":
        comparing(deployment)
    else:
        assert ask_until_settled(deployment).phase == when
    assert isinstance(deployment, WarmDeployment)
    served = weakref.ref(deployment._exchange.now)
    dropped = weakref.ref(deployment)
    del deployment
    gc.collect()
    assert dropped() is None
    wait_until(lambda: gc.collect() is not None and served() is None, "what served is gone")
    # Threads, children and folders: the fixture looks.


SCRIPT = """
import importlib.metadata, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from paddock import auto
from paddock.cache import Store
from paddock.registry import Registry
from paddock_warm import wait_until
installed = [p for p in importlib.metadata.entry_points(group="paddock") if p.name == "reference"]
points = [*installed, importlib.metadata.EntryPoint("warm", "paddock_warm", "paddock")]
registry = Registry.discover(Store(Path({store!r})), points)
deployment = auto.deploy({model!r}, {config!r}, registry=registry)
wait_until(lambda: {until!r} in deployment.warm.phase + deployment.warm.reason, "it is there")
print(deployment.warm.phase)
"""


@pytest.mark.parametrize(
    ("options", "until"), [({"load": "hang"}, "building for"), ({}, "comparing")], ids=["building", "comparing"]
)
def test_a_program_that_ends_without_closing_it_ends(
    registry: Registry, model: Path, tmp_path: Path, options: Any, until: str
) -> None:
    script = SCRIPT.format(
        tests=str(Path(__file__).parent), store=str(registry.store.root), model=str(model), config=config(options),
        until=until,
    )  # fmt: skip
    (tmp_path / "own").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=100,
        env={**os.environ, "TMPDIR": str(tmp_path / "own"), "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, until.partition(" ")[0], "")
    assert list((tmp_path / "own").iterdir()) == []


# What is said before anything is built


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"warm_start": "first"}, ConfigError, r"\$\.warm_start"),
        ({"warm_start": 5}, ConfigError, r"\$\.warm_start"),
        ({"warm_start": "cpu/frist"}, NotAvailable, r"\$\.warm_start.*cpu/frist"),
        ({"warm_start": "cpu/absent"}, NotAvailable, r"\$\.warm_start.*its SDK is not installed"),
        ({"warm_start": "cpu/second"}, ConfigError, r"\$\.warm_start.*it is what the config asks for"),
        ({"backend": "one"}, ConfigError, r"\$\.warm_start.*it is what the config asks for"),
        ({"warm_start": "cpu/refusing"}, NotAvailable, "cpu/refusing, which is to serve first .*no kernel"),
        ({"batch_size": "max"}, ConfigError, "needs a stated batch_size"),
        ({"precision": "fp16", "io_dtype": "fp16"}, ConfigError, "does not go with io_dtype"),
        ({"backend": "absent"}, NotAvailable, "its SDK is not installed"),
        ({"backend": "absnt"}, NotAvailable, "cpu/absnt"),
        ({"precision": "bf16"}, NotAvailable, r"\$\.precision"),
        ({"options": {"levl": 1}}, ConfigError, r"options\.levl"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_at_once(
    registry: Registry, model: Path, change: dict[str, Any], kind: type[PaddockError], said: str
) -> None:
    with pytest.raises(kind, match=f"(?s){said}"):
        auto.deploy(model, {**config({}), **change}, registry=registry)
    assert not STAGE.loaded["first"]


def test_what_serves_first_has_what_it_can_use_of_the_config(registry: Registry) -> None:
    asked = HardwareConfig.load({
        "hardware": "cpu", "backend": "absent", "warm_start": "cpu/one", "precision": "int8", "options": {"x": 1},
        "candidates": ["cpu/second"], "fallback": ["cpu/first", "cpu/second"], "repair": True, "devices": [3],
        "operators": {"exclude": {"cpu/second": ["Mul"], "cpu/absent": ["Add"]}, "keep_fp32": ["Sub"]},
        "calibration": {"samples": "c.npz"}, "threads": 2, "instances": 3, "memory": {"limit": "2MiB"},
        "accuracy": {"max_error": 0.1}, "batch_size": 4,
    })  # fmt: skip
    assert stand_in(asked, "warm_start", registry) == HardwareConfig.load({
        "hardware": "cpu", "backend": "first", "fallback": ["cpu/second"], "threads": 2, "instances": 3,
        "operators": {"exclude": {"cpu/second": ["Mul"]}}, "memory": {"limit": "2MiB"}, "accuracy": {"max_error": 0.1},
        "batch_size": 4,
    })  # fmt: skip
    listed = asked.model_copy(update={"operators": asked.operators.model_copy(update={"exclude": ("Mul",)})})
    assert stand_in(listed, "warm_start", registry).operators.exclude == ()


@pytest.mark.parametrize("key", ["warm_start", "rescue"])
def test_threads_stay_with_who_is_asked_for_where_they_have_no_effect_on_the_other(
    registry: Registry, key: str
) -> None:
    asked = HardwareConfig.load({
        "hardware": "cpu", "backend": "second", "threads": 2, key: "cpu/threadless",
        **({"isolation": "process"} if key == "rescue" else {}),
    })  # fmt: skip
    assert stand_in(asked, key, registry) == HardwareConfig.load({"hardware": "cpu", "backend": "threadless"})
    other = asked.model_copy(update={key: "cpu/first"})
    assert stand_in(other, key, registry).threads == 2


# Memory


@pytest.mark.long
def test_the_two_stay_within_the_limit_together(start: Start) -> None:
    deployment = start(memory={"limit": "512MiB"})
    first = deployment.plan.memory
    assert first.measured is not None and first.limit == 512 << 20
    assert ask_until_settled(deployment).phase == "swapped"
    copies = HELD * 3 * 8 * 4 * 4
    assert deployment.plan.memory.limit == (512 << 20) - first.measured - copies


def test_where_the_first_takes_it_all_the_second_is_refused(registry: Registry) -> None:
    asked = HardwareConfig.load(config({}, memory={"limit": "1MiB"}))

    def serving(measured: int | None, most: int | None, kind: str = "host") -> Any:
        segments = [SimpleNamespace(io=100)]
        memory = SimpleNamespace(measured=measured, most=most, least=5, kind=kind, segments=segments)
        return SimpleNamespace(plan=SimpleNamespace(adapter="cpu/first", memory=memory))

    def left(*memory: Any) -> int | None:
        return beside(asked, serving(*memory), registry, "warm_start", HELD).memory.limit

    assert left(1000, 5000) == (1 << 20) - 1000 - HELD * 100
    assert left(None, 5000) == (1 << 20) - 5000 - HELD * 100
    assert left(1 << 30, None, "gpu") == 1 << 20, "another memory"
    free = asked.model_copy(update={"memory": Memory()})
    assert beside(free, serving(1 << 30, None), registry, "warm_start", HELD).memory == Memory()
    for full in ((1 << 20) - HELD * 100, 1 << 20, 1 << 30):
        with pytest.raises(MemoryRefused, match="cpu/first, which serves first") as caught:
            left(full, None)
        assert caught.value.where == "$.memory.limit" and caught.value.remedy


# Auto


def test_tuning_goes_on_while_it_serves(registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, bases = threading.Event(), list[Any]()
    winner = {"hardware": "cpu", "backend": "second", "shapes": {"n": {"min": 1, "max": 8}}}

    def tune(path: Path, base: Mapping[str, Any], **options: Any) -> Tuned:
        bases.append(base)
        assert path == model and go.wait(LONG)
        options["progress"]("measuring")
        return Tuned(winner, "latency", "it is the best", (), 1.0)

    monkeypatch.setattr(auto, "tune", tune)
    asked = {**config({}), "hardware": "auto", "backend": "auto", "precision": "auto"}
    del asked["options"]
    with auto.deploy(model, asked, registry=registry) as deployment:
        assert deployment.plan.adapter == "cpu/first"
        ask(deployment)
        go.set()
        assert ask_until_settled(deployment).phase == "swapped"
        assert deployment.plan.adapter == "cpu/second"
    assert bases == [{"shapes": {"n": {"min": 1, "max": 8}}}]
    monkeypatch.setattr(auto, "tune", lambda *a, **k: pytest.fail("it was measured before"))
    assert auto.settled(model, asked, registry=registry).warm_start == "cpu/first"
    with auto.deploy(model, asked, registry=registry) as deployment:
        comparing(deployment)


def test_where_tuning_finds_what_serves_it_is_kept(
    registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = {"hardware": "cpu", "backend": "one", "precision": "fp32", "shapes": {"n": {"min": 1, "max": 7}}}
    found = Tuned(winner, "latency", "it is the best", (), 1.0)
    monkeypatch.setattr(auto, "tune", lambda *a, **k: found)
    asked = {"hardware": "cpu", "backend": "auto", "warm_start": "cpu/first", "shapes": {"n": {"min": 1, "max": 7}}}
    with auto.deploy(model, asked, registry=registry) as deployment:
        assert settled(deployment).phase == "kept"
        ask(deployment)
        assert STAGE.loaded["first"] == 1 and not STAGE.closed
        with pytest.raises(UsageError, match="is read already"):
            auto.deploy(deployment.model, asked, registry=registry)
    assert STAGE.closed["first"] == 1


# The surface, and the pieces


def test_everything_public_is_handed_on() -> None:
    own = {name for name in vars(Deployment) if not name.startswith("_")}
    told = {"config", "plan", "artifacts", "interface", "model"}  # by `ready`, which is handed on
    assert own - told <= set(vars(WarmDeployment)), "a member of Deployment that asks what WarmDeployment does not have"


def test_it_tells_of_what_serves(start: Start) -> None:
    deployment = start()
    plain = deployment._exchange.now if isinstance(deployment, WarmDeployment) else deployment
    for name in ("name", "config", "plan", "report", "artifacts", "interface", "registry", "owned_bytes", "outputs"):
        assert getattr(deployment, name) == getattr(plain, name)
    assert deployment.inputs == plain.inputs and deployment.lowered == plain.lowered
    assert deployment.model.fingerprint == plain.model.fingerprint
    assert deployment.measure_memory().peak >= 0
    assert plain.warm is None and plain.settle(LONG) is None


def test_without_warm_start_a_deployment_is_plain(start: Start) -> None:
    deployment = start(warm_start=None)
    assert type(deployment) is Deployment and deployment.warm is None and deployment.plan.adapter == "cpu/second"


def test_a_command_takes_what_it_is_swapped_for(registry: Registry, model: Path) -> None:
    from paddock.deployment import deploy

    with deploy(model, config({}), registry=registry) as deployment:
        assert deployment.plan.adapter == "cpu/second"
        assert any("warm_start cpu/first is not in effect" in note for note in deployment.plan.notes)
        with deploy(model, config({}, warm_start=None), registry=registry) as plain:
            assert plain.plan.key == deployment.plan.key


def test_samples_given_in_the_call_judge_both(registry: Registry, model: Path) -> None:
    STAGE.load.clear()
    sample = rows(1000.0)
    with auto.deploy(model, config({"wrong": ["y"]}), registry=registry, samples=[{"x": sample}]) as deployment:
        assert deployment.report.source == "given in the call"
        sample[...] = rows(5.0)  # it is the caller's again
        STAGE.load.set()
        found = settled(deployment)
        assert found.phase == "refused" and isinstance(found.error, AccuracyRefused) and found.compared == 0


def test_at_most_so_many_copies_are_held() -> None:
    kept = Shadow()
    x = rows(1.0)
    for _ in range(HELD + 3):
        kept.offer({"x": x}, {"y": 2 * x})
    x[...] = -1
    for round_ in range(2):
        taken = [kept.take() for _ in range(HELD)] if not round_ else [kept.take()]
        for one in taken:
            assert one is not None
            expected = rows(1.0) if not round_ else x
            np.testing.assert_array_equal(one.feeds["x"], expected)
            kept.done()
        if not round_:
            kept.offer({"x": x}, {"y": 2 * x})
    kept.end()
    assert kept.take() is None
    kept.offer({"x": x}, {"y": x})
    kept.finish()
    kept.offer({"x": x}, {"y": x})
    kept.end()
    assert kept.take() is None, "what waited is dropped, and no more is taken"


def test_what_cannot_be_copied_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, told = Shadow(), list[str]()
    monkeypatch.setattr(shadow, "_log", SimpleNamespace(warning=lambda text, *more: told.append(text)))
    monkeypatch.setattr(shadow, "copied", lambda value: 1 // 0)
    for _ in range(2 * HELD):
        kept.offer({}, {"y": rows(1.0)})
    monkeypatch.undo()
    assert any("could not be copied" in text for text in told)
    kept.offer({}, {"y": rows(1.0)})
    assert kept.take() is not None


class Lent:
    """An array of somebody else's library."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def test_copies_share_nothing() -> None:
    x, text = rows(1.0), np.array(["a", None], object)
    given = {"x": x, "t": x.T, "items": [x, (x, None)], "text": text, "none": None, "lent": Lent(x)}
    found = copied(given)
    arrays = [found["x"], found["items"][0], found["items"][1][0], found["lent"]]
    for array in arrays:
        np.testing.assert_array_equal(array, x)
        assert not np.shares_memory(array, x)
    assert found["t"].flags.c_contiguous and found["none"] is None and found["items"][1][1] is None
    assert found["text"] is not text and found["text"].tolist() == ["a", None]


class Other:
    """A deployment that gives these outputs."""

    def __init__(self, answer: Mapping[str, Any], **accuracy: Any) -> None:
        self.answer = answer
        self.config = HardwareConfig.load({"hardware": "cpu", "backend": "b", "accuracy": accuracy})

    def run(self, feeds: Any, outputs: Any) -> Any:
        return {name: self.answer[name] for name in outputs}


NAN, MANY = np.array([1, np.nan, 3], np.float32), np.arange(100)


@pytest.mark.parametrize(
    ("here", "there", "outcome"),
    [
        (NAN, NAN, True),
        (NAN, np.array([1, 2, 3], np.float32), False),
        (np.array([1, np.inf], np.float32), np.array([1, -np.inf], np.float32), False),
        (MANY, MANY, True),
        (MANY, np.roll(MANY, 1), False),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False),
        ([rows(1.0)], [rows(1.0)], True),
        ([rows(1.0)], [rows(9.0)], False),
        (rows(1.0), rows(1.0).astype(np.float64), False),
        (rows(1.0), rows(1.0)[:1], False),
        (rows(1.0), rows(1.0) * np.float32(1 + 1e-6), True),
        (rows(1.0), rows(1.0) * np.float32(1 + 1e-3), False),
        (np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), True),
        (np.array(True), np.array(True), True),
    ],
)
def test_outputs_are_compared_as_verification_does(here: Any, there: Any, outcome: bool) -> None:
    other: Any = Other({"y": there})
    report = put_to(other, Answered({"x": rows(1.0)}, {"y": here}), "cpu/first")
    assert report is not None and (report.outcome is not Outcome.FAILED) is outcome


def test_a_mask_that_leaves_nothing_proves_nothing() -> None:
    other: Any = Other({"y": rows(1.0)}, min_agreement={"top1": 0.9, "mask": "m"})
    for mask, proves in (([1, 0], True), ([0, 0], False)):
        request = Answered({"x": rows(1.0), "m": np.array(mask)}, {"y": rows(1.0)})
        assert (put_to(other, request, "cpu/first") is not None) is proves
    assert put_to(other, Answered({"m": np.array([1])}, {"y": np.arange(3)}), "cpu/first") is None


def test_the_status_is_frozen() -> None:
    status = WarmStart("building", "cpu/first", "")
    assert not status.decided and not replace(status, phase="comparing").decided
    assert all(replace(status, phase=p).decided for p in ("swapped", "kept", "refused", "closed"))
    with pytest.raises(AttributeError):
        status.phase = "swapped"  # type: ignore[misc]
