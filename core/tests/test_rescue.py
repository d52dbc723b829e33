"""Deployments whose adapter is isolated: a crash under load costs no request where somebody rescues it, and no host."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddock_fakes_segments as odd
import paddock_frail as frail
import psutil
import pytest
from onnx import TensorProto, helper
from paddock.bundle import export, load_bundle
from paddock.cache import Store
from paddock.child import Child, Children
from paddock.config import HardwareConfig
from paddock.deployment import Deployment, deploy
from paddock.errors import ChildLost, ConfigError, MemoryRefused, NotAvailable, PaddockError, RunFailed, UsageError
from paddock.plan import Setting
from paddock.prepare import prepare
from paddock.registry import Registry
from paddock.verify import Outcome
from paddock.warm import start


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    points = [point for point in importlib.metadata.entry_points(group="paddock") if point.name == "reference"]
    for name, module in (("frail", frail.__name__), ("odd", odd.__name__)):
        points.append(importlib.metadata.EntryPoint(name, module, "paddock"))
    found = Registry.discover(Store(tmp_path_factory.mktemp("store")), points)
    assert {"cpu/frail", "cpu/sole", "cpu/calm", "cpu/odd", "cpu/reference"} <= set(found.names())
    return found


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No temporary file, no shared memory, and no process but those of `children`."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    frail.RESCUED.clear()
    frail.EVENTS.clear()
    yield
    gc.collect()
    assert list(place.iterdir()) == [] and "memfd:paddock" not in Path("/proc/self/maps").read_text()
    assert not [child for child in psutil.Process().children() if "attend" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = 2 x."""
    return save(tmp_path_factory.mktemp("double") / "m.onnx", [helper.make_node("Mul", ["x", "two"], ["y"], name="by")])


def save(path: Path, nodes: list[onnx.NodeProto]) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [two])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def config(**more: Any) -> dict[str, Any]:
    shapes = {"n": {"min": 1, "max": 4}}
    return {"hardware": "cpu", "backend": "frail", "shapes": shapes, "isolation": "process", **more}


def marked(mark: float) -> dict[str, Any]:
    return {"x": np.full((2, 4), mark, np.float32)}


def right(answer: dict[str, Any], mark: float) -> bool:
    return bool((answer["y"] == np.float32(2 * mark)).all())


def wait_until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"waited in vain until {what}")


def processes(deployment: Deployment) -> tuple[int, ...]:
    assert deployment.isolation is not None
    return deployment.isolation.processes


@pytest.mark.long
def test_it_serves_from_another_process(registry: Registry, children: Children, double: Path) -> None:
    with deploy(double, config(instances=2), registry=registry, children=children) as deployment:
        assert deployment.report.outcome is Outcome.PASSED
        assert right(deployment.run(marked(5.0)), 5.0)
        place = np.zeros((2, 4), np.float32)
        assert deployment.run(marked(6.0), into={"y": place})["y"] is place and place[0, 0] == 12.0
        assert deployment.submit(marked(7.0)).result()["y"][0, 0] == 14.0
        loose = {"x": np.asfortranarray(marked(8.0)["x"])[::-1]}
        assert right(deployment.run(loose), 8.0)
        pids = processes(deployment)
        assert len(set(pids)) == 2 and os.getpid() not in pids
        found = {s.name: s for s in deployment.plan.settings}
        assert found["isolation"] == Setting("isolation", "process", "process")
        assert found["timeout"].requested == 300.0
    assert processes(deployment) == ()
    with pytest.raises(RunFailed, match="closed"):
        deployment.run(marked(1.0))


def test_in_this_process_nothing_is_told_of_isolation(registry: Registry, children: Children, double: Path) -> None:
    for said in ({}, {"isolation": "none"}):
        plain = {k: v for k, v in config().items() if k != "isolation"} | said
        with deploy(double, plain, registry=registry, children=children) as deployment:
            assert deployment.isolation is None
            assert not {"isolation", "timeout"} & {s.name for s in deployment.plan.settings}


@pytest.mark.long
@pytest.mark.parametrize("mark", [frail.SEGFAULT, frail.HANG, frail.NO_MEMORY])
def test_without_a_rescue_the_request_inside_fails_and_no_other(
    registry: Registry, children: Children, double: Path, mark: int
) -> None:
    asked = config(timeout=5)
    with deploy(double, asked, registry=registry, children=children) as deployment, ThreadPoolExecutor(6) as pool:
        found = [pool.submit(deployment.run, marked(float(n))) for n in range(10)]
        bad = [pool.submit(deployment.run, marked(mark)), deployment.submit(marked(mark))]
        found += [pool.submit(deployment.run, marked(float(n))) for n in range(10, 20)]
        assert all(right(answer.result(), float(n)) for n, answer in enumerate(found))
        for answer in bad:
            with pytest.raises(ChildLost, match="cpu/frail: the process"):
                answer.result()
        status = deployment.isolation
        assert status is not None and status.restarts >= 1 and status.rescued == 0
        assert status.error is not None and status.error.startswith("cpu/frail: the process")


def test_what_is_lost_is_answered_by_the_rescue(registry: Registry, children: Children, double: Path) -> None:
    asked = config(rescue="cpu/calm", timeout=5)
    with deploy(double, asked, registry=registry, children=children) as deployment:
        assert frail.RESCUED.count(-1.0) == 0
        begun = len(frail.RESCUED)
        for mark in (frail.SEGFAULT, frail.HANG, frail.EXIT, frail.NO_MEMORY):
            wait_until(lambda: processes(deployment), "it is back")
            assert right(deployment.run(marked(mark)), mark)
            assert deployment.submit(marked(mark), ["y"]).result()["y"][0, 0] == 2 * mark
            place = np.zeros((2, 4), np.float32)
            deployment.run(marked(mark), into={"y": place})
            assert place[0, 0] == 2 * mark
        wait_until(lambda: processes(deployment), "it is back")
        assert right(deployment.run(marked(3.0)), 3.0)
        assert frail.RESCUED[begun:] == [m for m in (1001, 1004, 1003, 1005) for _ in range(3)]
        status = deployment.isolation
        assert status is not None and status.rescued == 12 and status.restarts >= 4
        with pytest.raises(RunFailed, match="Misfit"):  # what the SDK raises is an answer
            deployment.run(marked(frail.RAISES))
        with pytest.raises(UsageError):
            deployment.run({"x": np.zeros((9, 4), np.float32)})
        assert any("RESCUE: cpu/calm" in note for note in deployment.plan.notes)
        own = [event for event in frail.EVENTS if event.deployment == deployment.name]
    told = [event.facts for event in own if event.kind == "rescued"]
    assert len(told) == 12 and {facts["adapter"] for facts in told} == {"cpu/calm"}
    assert [e.facts["state"] for e in own if e.kind == "child"][:2] == ["lost", "back"]
    assert frail.RESCUED[-1] == -1.0  # closed with it


def test_one_that_stays_down_is_rescued_for_good(
    registry: Registry, children: Children, double: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    asked = config(rescue="cpu/calm", options={"mark": str(mark)})
    with deploy(double, asked, registry=registry, children=children) as deployment:
        mark.touch()
        assert right(deployment.run(marked(frail.SEGFAULT)), frail.SEGFAULT)
        wait_until(lambda: deployment.isolation and deployment.isolation.down, "it stays down")
        for n in range(5):
            assert right(deployment.run(marked(float(n))), float(n))
        assert deployment.isolation is not None and deployment.isolation.rescued == 6


def under_fire(deployment: Deployment, crashes: int) -> tuple[int, list[str]]:
    """Requests of four threads, while processes are killed at any moment and some requests crash: (answered, wrong)."""
    over, wrong, counts = threading.Event(), list[str](), [0] * 4

    def ask(number: int) -> None:
        chance = random.Random(number)
        while not over.is_set():
            mark = frail.SEGFAULT if chance.random() < 0.02 else chance.randrange(1000)
            try:
                answer = deployment.run(marked(mark)) if number % 2 else deployment.submit(marked(mark)).result()
                if not right(answer, mark):
                    wrong.append(f"{mark}: {answer}")
            except BaseException as error:
                wrong.append(f"{mark}: {error!r}")
            counts[number] += 1
            time.sleep(chance.random() * 0.004)  # or four busy loops would keep the cores from what starts again

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for asker in askers:
        asker.start()
    status = deployment.isolation
    assert status is not None
    chance = random.Random(0)
    while status.restarts < crashes and not wrong:
        for pid in status.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, chance.choice([signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT]))
        time.sleep(chance.random() * 0.05)
        status = deployment.isolation
        assert status is not None and not status.down
    over.set()
    for asker in askers:
        asker.join()
    return sum(counts), wrong


@pytest.mark.parametrize("crashes", [10, pytest.param(1000, marks=pytest.mark.long)])
def test_crashes_under_load_lose_no_request_where_there_is_a_rescue(
    registry: Registry, children: Children, double: Path, crashes: int
) -> None:
    asked = config(rescue="cpu/calm", instances=2)
    this = psutil.Process()
    with deploy(double, asked, registry=registry, children=children) as deployment:
        wait_until(lambda: len(processes(deployment)) == 2, "both serve")
        files, threads = this.num_fds(), this.num_threads()
        answered, wrong = under_fire(deployment, crashes)
        assert not wrong and answered > crashes
        wait_until(lambda: len(processes(deployment)) == 2, "both are back")
        wait_until(lambda: this.num_fds() <= files + 4, "nothing of the lost is held")
        assert this.num_threads() <= threads + 4  # those of two hosts that take what is submitted
        ours = [child for child in this.children() if "attend" in " ".join(child.cmdline())]
        assert len(ours) <= 3  # two that serve, and the spare


def test_requests_inside_are_answered_when_it_is_closed(registry: Registry, children: Children, double: Path) -> None:
    """Those that the rescue answers too."""
    deployment = deploy(double, config(rescue="cpu/calm"), registry=registry, children=children)
    with ThreadPoolExecutor(4) as pool:
        direct = [pool.submit(deployment.run, marked(frail.KILLED)) for _ in range(3)]
        futures = [deployment.submit(marked(frail.KILLED)) for _ in range(5)]
        wait_until(lambda: deployment.isolation and deployment.isolation.rescued, "the first is rescued")
        deployment.close()
        for answer in futures:
            assert right(answer.result(), frail.KILLED)
        for answer in direct:  # whoever came too late is told
            try:
                assert right(answer.result(), frail.KILLED)
            except RunFailed as error:
                assert "closed" in error.problem
    deployment.close()


def test_it_cannot_be_closed_by_who_hears_of_its_processes(
    registry: Registry, children: Children, double: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    with deploy(double, config(), registry=registry, children=children) as deployment:
        guard = deployment._host.guard
        assert guard is not None

        def close(kind: str, facts: Any) -> None:
            try:
                deployment.close()
            except PaddockError as error:
                said.append(error.problem)

        guard.listen(close)
        with pytest.raises(ChildLost):
            deployment.run(marked(frail.SEGFAULT))
        assert right(deployment.run(marked(1.0)), 1.0)
        wait_until(lambda: len(said) == 2, "both events came")
    assert "would wait for itself" in said[0]


def test_an_adapter_that_needs_a_process_of_its_own_has_one(
    registry: Registry, children: Children, double: Path
) -> None:
    plain = {k: v for k, v in config(backend="sole").items() if k != "isolation"}
    with deploy(double, plain, registry=registry, children=children) as deployment:
        assert right(deployment.run(marked(5.0)), 5.0)
        (pid,) = processes(deployment)
        assert pid != os.getpid()
        (setting,) = [s for s in deployment.plan.settings if s.name == "isolation"]
        assert (setting.effective, setting.reason) == ("process", "cpu/sole needs it")
        with pytest.raises(ChildLost):
            deployment.run(marked(frail.SEGFAULT))
        assert right(deployment.run(marked(6.0)), 6.0)
    with pytest.raises(NotAvailable, match="cpu/sole needs a process of its own") as caught:
        deploy(double, {**plain, "isolation": "none"}, registry=registry, children=children)
    assert caught.value.where == "config: $.isolation"


@pytest.mark.long
def test_fallbacks_stay_here_and_those_that_need_a_process_get_one(
    registry: Registry, children: Children, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["a"], name="first"),
        helper.make_node("Neg", ["a"], ["b"], name="second"),
        helper.make_node("Mul", ["b", "two"], ["y"], name="third"),
    ]
    model = save(tmp_path / "three.onnx", nodes)
    for backend, fallback, isolation, count in (
        ("frail", "cpu/odd", "process", 2),
        ("sole", "cpu/odd", None, 2),
        ("odd", "cpu/sole", None, 2),
        ("odd", "cpu/sole", "process", 3),
    ):
        asked = {k: v for k, v in config(backend=backend, fallback=[fallback]).items() if k != "isolation"}
        asked |= {"isolation": isolation} if isolation else {}
        if backend == "odd":
            asked["operators"] = {"exclude": {"cpu/odd": ["Mul"]}}
        with deploy(model, asked, registry=registry, children=children) as deployment:
            assert right(deployment.run(marked(3.0)), -6.0)
            assert len(deployment.plan.placement.segments) == 3 and len(processes(deployment)) == count
            assert deployment.run(marked(1.0), into={"y": np.zeros((2, 4), np.float32)})["y"][0, 0] == -4.0


def test_a_deployment_that_is_taken_up_again_is_isolated_too(
    registry: Registry, children: Children, double: Path
) -> None:
    asked = config(rescue="cpu/calm", threads=1)
    for again in (False, True):
        with deploy(double, asked, registry=registry, children=children) as deployment:
            assert deployment.report.kept is again
            assert len(processes(deployment)) == 1
            assert right(deployment.run(marked(frail.SEGFAULT)), frail.SEGFAULT)


def test_a_bundle_is_isolated_too(registry: Registry, children: Children, double: Path, tmp_path: Path) -> None:
    export(double, config(timeout=20), tmp_path / "bundle", registry=registry).close()
    with load_bundle(tmp_path / "bundle", registry=registry) as deployment:
        assert len(processes(deployment)) == 1 and deployment.config.timeout == 20
        with pytest.raises(ChildLost):
            deployment.run(marked(frail.SEGFAULT))
        assert right(deployment.run(marked(4.0)), 4.0)
    with pytest.raises(UsageError, match="holds one deployment") as caught:
        export(double, config(rescue="cpu/calm"), tmp_path / "other", registry=registry)
    assert caught.value.where is not None and caught.value.where.endswith("$.rescue")


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"rescue": "cpu/frail"}, ConfigError, r"\$\.rescue: cpu/frail is what the config asks to isolate"),
        ({"rescue": "cpu/weak"}, ConfigError, r"\$\.rescue"),
        ({"rescue": "cpu/calm", "candidates": ["cpu/calm"]}, ConfigError, r"\$\.rescue"),
        ({"rescue": "cpu/clam"}, NotAvailable, r"\$\.rescue.*cpu/clam"),
        ({"rescue": "cpu/calm", "isolation": "none"}, ConfigError, r'rescue has no effect without "isolation"'),
        ({"rescue": "cpu/calm", "batch_size": "max"}, ConfigError, "needs a stated batch_size"),
        ({"timeout": 3, "isolation": "none"}, ConfigError, r'timeout has no effect without "isolation"'),
        ({"timeout": 0}, ConfigError, r"\$\.timeout"),
        ({"timeout": True}, ConfigError, r"\$\.timeout"),
        ({"isolation": "thread"}, ConfigError, r"\$\.isolation"),
        ({"rescue": "cpu/calm", "memory": {"limit": "1KiB"}}, MemoryRefused, ""),
    ],
)
def test_what_cannot_be(
    registry: Registry, children: Children, double: Path, asked: dict[str, Any], kind: type[PaddockError], said: str
) -> None:
    for how in (deploy, prepare):  # no plan promises what is refused later
        if how is deploy or kind is not MemoryRefused:
            with pytest.raises(kind) as caught:
                how(double, config(**asked), registry=registry, children=children)
            assert re.search(said, str(caught.value), re.DOTALL), str(caught.value)


def test_a_warm_start_does_not_serve_here_what_is_to_be_isolated(
    registry: Registry, children: Children, double: Path
) -> None:
    asked = HardwareConfig.load(config(warm_start="cpu/frail"))
    with pytest.raises(ConfigError, match="serves in this process"):
        start(double, asked, registry=registry, children=children)
    asked = HardwareConfig.load(config(warm_start="cpu/calm"))
    with start(double, asked, registry=registry, children=children) as deployment:
        assert deployment.isolation is None
        for n in range(10_000):
            assert right(deployment.run(marked(float(n % 100))), float(n % 100))
            if deployment.warm is not None and deployment.warm.decided:
                break
            time.sleep(0.01)
        deployment.settle(60)
        assert deployment.warm is not None and deployment.warm.phase == "swapped"
        assert len(processes(deployment)) == 1


def test_what_is_exclusive_is_tried_by_itself(registry: Registry, double: Path) -> None:
    """Whoever is told other options has another process for its first tries, too."""
    labels: list[str] = []

    class Seen(Children):
        def get(self, label: str) -> Child:
            labels.append(label)
            return super().get(label)

    with Seen() as own:
        for threads in (1, 2):
            asked = {**config(backend="sole", threads=threads)}
            deploy(double, asked, registry=registry, children=own).close()
    assert len({label for label in labels if label.startswith("trying cpu/sole")}) == 2
