"""Hosts: on which threads sessions run, how many at once, and how they end."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import paddock_calls as calls
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock.child import Child
from paddock.config import HardwareConfig
from paddock.errors import BuildFailed, ChildFailed, ConfigError, RunFailed
from paddock.host import ChildHost, InProcessHost
from paddock.spi import Arrays, Artifact, Context, Observed, ResolvedConfig, Session, Threading
from paddock_fakes import FakeAdapter, FakeOptions

KINDS = list(Threading)
FEEDS = {"x": np.ones(1)}


class Null(Session):
    """Records who runs it, how many at once, and what else happens to it."""

    def __init__(self, forks: bool = False) -> None:
        self.loaded_on = threading.get_ident()
        self.threads: set[int] = set()
        self.most = 0
        self.runs = 0
        self.closed_on: list[int] = []
        self.observed_on: list[int] = []
        self.body: Callable[[Arrays], None] = lambda feeds: None
        self.forked: list[Null] = []
        self._forks = forks
        self._inside = 0
        self._lock = threading.Lock()

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        with self._lock:
            assert not self.closed_on, "run after close"
            self._inside += 1
            self.runs += 1
            self.most = max(self.most, self._inside)
            self.threads.add(threading.get_ident())
        try:
            self.body(feeds)
            return {"y": feeds["x"] * 2}
        finally:
            with self._lock:
                self._inside -= 1

    def close(self) -> None:
        assert self._inside == 0, "closed while a call is inside"
        self.closed_on.append(threading.get_ident())

    def fork(self) -> Session | None:
        if not self._forks:
            return None
        self.forked.append(Null())
        return self.forked[-1]

    def observed(self) -> Observed:
        self.observed_on.append(threading.get_ident())
        return Observed({"precision": "fp32"})


class Loader:
    """Loads Null sessions and keeps them; `fail_at` is the load that fails."""

    def __init__(self, forks: bool = False, fail_at: int | None = None) -> None:
        self.sessions: list[Null] = []
        self._forks = forks
        self._fail_at = fail_at

    def __call__(self) -> Session:
        if len(self.sessions) == self._fail_at:
            raise BuildFailed("out of device memory")
        self.sessions.append(Null(self._forks))
        return self.sessions[-1]


def make(kind: Threading, instances: int = 1, **loader: Any) -> tuple[InProcessHost, list[Null]]:
    load = Loader(**loader)
    host = InProcessHost(load, kind, instances, "cpu/null")
    return host, load.sessions


def from_threads(count: int, action: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        barrier = threading.Barrier(count)

        def at_once(number: int) -> Any:
            barrier.wait(30)
            return action(number)

        return list(pool.map(at_once, range(count)))


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    left = [t.name for t in threading.enumerate() if t not in before and t.name.startswith("paddock cpu/null")]
    assert left == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instances", [1, 3])
def test_every_kind_answers_each_caller_its_own(kind: Threading, instances: int) -> None:
    host, sessions = make(kind, instances)
    found = from_threads(8, lambda n: [host.run({"x": np.full(2, n * 100 + i)})["y"].tolist() for i in range(25)])
    assert found == [[[2 * (n * 100 + i)] * 2 for i in range(25)] for n in range(8)]
    assert sum(session.runs for session in sessions) == 200
    host.close()
    assert [len(session.closed_on) for session in sessions] == [1] * instances


def test_reentrant_runs_concurrently_on_the_callers_threads() -> None:
    host, (session,) = make(Threading.REENTRANT)
    inside = threading.Barrier(6)
    session.body = lambda feeds: inside.wait(30) and None  # type: ignore[assignment]
    callers = from_threads(6, lambda n: (host.run(FEEDS), threading.get_ident())[1])
    assert session.most == 6
    assert session.threads == set(callers)
    host.close()


@pytest.mark.parametrize("kind", [Threading.SERIAL, Threading.HOME, Threading.BOUND])
@settings(max_examples=15, deadline=None)
@given(
    instances=st.integers(1, 3),
    plan=st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=6), min_size=2, max_size=6),
)
def test_others_never_overlap_in_a_session(kind: Threading, instances: int, plan: list[list[tuple[bool, int]]]) -> None:
    host, sessions = make(kind, instances)
    for session in sessions:
        session.body = lambda feeds: time.sleep(0.0005 * feeds["x"][0])

    def act(number: int) -> None:
        for through_submit, pause in plan[number]:
            feeds = {"x": np.full(1, pause)}
            answer = host.submit(feeds).result() if through_submit else host.run(feeds)
            assert answer["y"][0] == 2 * pause

    from_threads(len(plan), act)
    host.close()
    assert all(session.most <= 1 for session in sessions)
    assert sum(session.runs for session in sessions) == sum(map(len, plan))


@pytest.mark.parametrize("kind", [Threading.SERIAL, Threading.BOUND, Threading.HOME])
def test_instances_serve_in_parallel(kind: Threading) -> None:
    host, sessions = make(kind, 2)
    together = threading.Barrier(2)
    for session in sessions:
        session.body = lambda feeds: together.wait(30) and None  # type: ignore[assignment]
    from_threads(2, lambda n: host.run(FEEDS))  # the barrier breaks unless both are inside at once
    assert [session.runs for session in sessions] == [1, 1]
    host.close()


@pytest.mark.parametrize("kind", [Threading.REENTRANT, Threading.SERIAL, Threading.HOME])
def test_run_on_the_home_thread_is_inline(kind: Threading) -> None:
    host, (session,) = make(kind)
    host.run(FEEDS)
    assert session.threads == {threading.get_ident()} == {session.loaded_on}
    host.close()


@pytest.mark.parametrize("instances", [1, 2])
def test_home_stays_on_few_threads(instances: int) -> None:
    host, sessions = make(Threading.HOME, instances)
    home = threading.get_ident()
    for _ in range(4):  # other threads each time
        callers = from_threads(6, lambda n: ([host.run(FEEDS) for _ in range(5)], threading.get_ident())[1])
        assert home not in callers
    others = set().union(*(session.threads for session in sessions)) - {home}
    assert 1 <= len(others) <= instances
    host.run(FEEDS)
    assert home in set().union(*(session.threads for session in sessions))
    assert others == set().union(*(session.threads for session in sessions)) - {home}
    host.close()


@pytest.mark.parametrize("instances", [1, 3])
def test_bound_does_everything_on_the_thread_that_loaded(instances: int) -> None:
    host, sessions = make(Threading.BOUND, instances)
    host.run(FEEDS)
    from_threads(6, lambda n: [host.run(FEEDS) for _ in range(5)])
    assert host.submit(FEEDS).result()["y"] == 2
    assert host.observed().settings == {"precision": "fp32"}
    host.close()
    assert len({session.loaded_on for session in sessions}) == instances
    assert threading.get_ident() not in {session.loaded_on for session in sessions}
    for session in sessions:
        assert session.threads | set(session.closed_on) | set(session.observed_on) <= {session.loaded_on}


@pytest.mark.parametrize("kind", [Threading.REENTRANT, Threading.SERIAL, Threading.HOME])
def test_further_instances_are_forked_where_that_can_be(kind: Threading) -> None:
    host, sessions = make(kind, 3, forks=True)
    (first,) = sessions
    assert len(first.forked) == 2
    together = threading.Barrier(3)
    for session in (first, *first.forked):
        session.body = lambda feeds: together.wait(30) and None  # type: ignore[assignment]
    from_threads(3, lambda n: host.run(FEEDS))
    assert [session.runs for session in (first, *first.forked)] == [1, 1, 1]
    host.close()
    assert all(len(session.closed_on) == 1 for session in (first, *first.forked))
    host, sessions = make(kind, 3, forks=False)
    assert len(sessions) == 3
    host.close()


@pytest.mark.parametrize("kind", KINDS)
def test_close_waits_for_the_calls_inside(kind: Threading) -> None:
    host, (session,) = make(kind)
    entered, leave, closed = threading.Event(), threading.Event(), threading.Event()

    def body(feeds: Arrays) -> None:
        entered.set()
        assert leave.wait(30)

    session.body = body
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(host.run, FEEDS)
        assert entered.wait(30)

        def close() -> None:
            host.close()
            closed.set()

        closing = pool.submit(close)
        assert not closed.wait(0.05) and session.closed_on == []
        leave.set()
        assert running.result(30)["y"] == 2
        closing.result(30)
    assert len(session.closed_on) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_after_close_there_is_only_run_failed(kind: Threading) -> None:
    host, (session,) = make(kind)
    host.run(FEEDS)
    host.close()
    host.close()
    for _ in range(3):
        with pytest.raises(RunFailed, match="cpu/null is closed"):
            host.run(FEEDS)
        with pytest.raises(RunFailed, match="cpu/null is closed"):
            host.submit(FEEDS).result(30)
    assert all(isinstance(error, RunFailed) for error in from_threads(3, lambda n: caught(lambda: host.run(FEEDS))))
    assert len(session.closed_on) == 1


def caught(action: Callable[[], Any]) -> BaseException | None:
    try:
        action()
    except BaseException as error:
        return error
    return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instances", [1, 2])
def test_close_from_several_threads_amid_calls(kind: Threading, instances: int) -> None:
    host, sessions = make(kind, instances)

    def act(number: int) -> BaseException | None:
        if number < 2:
            time.sleep(0.01)
            return caught(host.close)

        def serve() -> None:
            while True:
                assert host.run(FEEDS)["y"] == 2

        return caught(serve)

    errors = from_threads(6, act)
    assert errors[:2] == [None, None]
    assert [type(error) for error in errors[2:]] == [RunFailed] * 4
    assert [len(session.closed_on) for session in sessions] == [1] * instances


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_failures_use_nothing_up(kind: Threading) -> None:
    host, (session,) = make(kind)

    def fail(feeds: Arrays) -> None:
        raise MemoryError("the SDK is out of memory\nsecond line")

    session.body = fail
    for _ in range(1000):
        with pytest.raises(RunFailed) as failed:
            host.run(FEEDS)
    assert failed.value.problem == "cpu/null failed while running: MemoryError: the SDK is out of memory"
    assert isinstance(failed.value.__cause__, MemoryError)

    def refuse(feeds: Arrays) -> None:
        raise ConfigError("is Paddock's own")

    session.body = refuse
    with pytest.raises(ConfigError):
        host.run(FEEDS)
    session.body = lambda feeds: None
    assert host.run(FEEDS)["y"] == 2
    host.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_gives_the_permit_back(kind: Threading) -> None:
    host, (session,) = make(kind)

    def interrupt(feeds: Arrays) -> None:
        raise KeyboardInterrupt

    session.body = interrupt
    for _ in range(300):  # more than a reentrant session has permits
        with pytest.raises(KeyboardInterrupt):
            host.run(FEEDS)
    session.body = lambda feeds: None
    assert host.run(FEEDS)["y"] == 2
    host.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_load_that_fails_closes_what_was_loaded(kind: Threading, fail_at: int) -> None:
    load = Loader(fail_at=fail_at)
    with pytest.raises(BuildFailed, match="out of device memory"):
        InProcessHost(load, kind, 3, "cpu/null")
    assert [len(session.closed_on) for session in load.sessions] == [1] * fail_at


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_that_fails_to_close_keeps_no_other_open(kind: Threading) -> None:
    host, (first, second) = make(kind, 2)

    def fail() -> None:
        raise OSError("device lost")

    first.close = fail  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="cpu/null failed while closing: OSError: device lost"):
        host.close()
    assert len(second.closed_on) == 1
    host.close()
    with pytest.raises(RunFailed, match="is closed"):
        host.run(FEEDS)


def test_a_load_that_fails_is_the_error_even_if_closing_fails_too() -> None:
    made: list[Session] = []

    class Stubborn(Null):
        def close(self) -> None:
            raise OSError("device lost")

    def load() -> Session:
        if made:
            raise BuildFailed("out of device memory")
        made.append(Stubborn())
        return made[0]

    with pytest.raises(BuildFailed, match="out of device memory"):
        InProcessHost(load, Threading.SERIAL, 2, "cpu/null")


def test_submit_queues_and_answers_all() -> None:
    host, (session,) = make(Threading.SERIAL)
    futures = [host.submit({"x": np.full(1, n)}) for n in range(50)]
    host.close()  # waits for them
    assert not wait(futures, 30).not_done
    assert [future.result()["y"][0] for future in futures] == [2 * n for n in range(50)]
    assert session.most == 1


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child("hosting") as made:
        yield made


def child_host(child: Child, folder: Path, **manners: Any) -> ChildHost:
    options = FakeOptions(**manners)
    resolved = ResolvedConfig(HardwareConfig.load({"hardware": "cpu", "backend": "fake"}), options, 1)
    compiled = folder / "compiled.bin"
    compiled.write_bytes(bytes(1000))
    artifact = Artifact("cpu/fake", "onnx", {"compiled": compiled}, ("x",), ("y",))
    return ChildHost(child, FakeAdapter, resolved, None, artifact, Context(folder, folder))


def test_child_hosts_keep_their_sessions_apart(child: Child, tmp_path: Path) -> None:
    feeds = {"x": np.ones((1, 2), np.float32)}
    first, second = child_host(child, tmp_path), child_host(child, tmp_path, numbers="wrong")
    first.close()
    third = child_host(child, tmp_path, level=2)
    assert second.run(feeds)["y"].tolist() == [[np.float32(2.1), 2.0]]
    assert third.run(feeds)["y"].tolist() == [[2.0, 2.0]]
    assert (second.observed().settings["options.level"], third.observed().settings["options.level"]) == (0, 2)
    first.close()
    second.close()
    with pytest.raises(RunFailed):
        second.run(feeds)
    assert third.run(feeds)["y"].tolist() == [[2.0, 2.0]]
    third.close()


def test_a_child_host_whose_process_crashed_never_answers_with_another_session(child: Child, tmp_path: Path) -> None:
    feeds = {"x": np.ones((1, 2), np.float32)}
    before = child_host(child, tmp_path, numbers="wrong")
    with pytest.raises(ChildFailed):
        child.call(calls.abort)
    after = child_host(child, tmp_path)
    with pytest.raises(RunFailed, match="ended with its process"):
        before.run(feeds)
    before.close()
    assert after.run(feeds)["y"].tolist() == [[2.0, 2.0]]
    after.close()


def test_a_child_hosts_limit(child: Child, tmp_path: Path) -> None:
    slow = child_host(child, tmp_path, run="hang")
    slow.limit(0.2)
    with pytest.raises(ChildFailed, match=r"did not answer within 0\.2 s"):
        slow.run({"x": np.ones((1, 2), np.float32)})
    slow.close()
