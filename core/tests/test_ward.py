"""A session in a process of its own answers as one here would, and what ends that process ends nothing else."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddock_frail as frail
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from paddock import line, spawned, ward
from paddock.child import Child
from paddock.errors import BuildFailed, ChildFailed, ChildLost, NotAvailable, OtherShape, PaddockError, RunFailed
from paddock.guard import Guard
from paddock.host import InProcessHost
from paddock.shared import Shared, packed
from paddock.spi import Session, Threading
from paddock.ward import Spares, Ward

LOST = {
    frail.SEGFAULT: "crashed with SIGSEGV; its last words: .*on the way down",
    frail.ABORT: "crashed with SIGABRT",
    frail.EXIT: "ended with status 3",
    frail.KILLED: "crashed with SIGKILL",
    frail.NO_MEMORY: "ran out of memory .MemoryError: Unable to allocate 8.00 TiB",
    frail.BAD_ALLOC: "ran out of memory .RuntimeError: the SDK failed",
}


def made(load: Callable[[], Session], seconds: float = 60.0, guard: Guard | None = None) -> Ward:
    return Ward("testing", load, guard or Guard(), Spares(frail.nothing), seconds)


def marked(mark: float) -> dict[str, Any]:
    return {"x": np.full((2, 3), mark, np.float32)}


def doubles(session: Session, mark: float = 5.0) -> None:
    np.testing.assert_array_equal(session.run(marked(mark))["y"], np.full((2, 3), 2 * mark, np.float32))


def wait_until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"waited in vain until {what}")


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# One for many tests: whatever happens to its process, the next test finds it at work.
@pytest.fixture(scope="module")
def doubling() -> Iterator[Ward]:
    session = made(frail.Doubling)
    yield session
    session.close()


@pytest.fixture(scope="module")
def echo() -> Iterator[Ward]:
    session = made(frail.Echo)
    yield session
    session.close()


DTYPES = st.one_of(
    arrays.boolean_dtypes(), arrays.integer_dtypes(endianness="="), arrays.unsigned_integer_dtypes(endianness="="),
    arrays.floating_dtypes(endianness="=", sizes=(16, 32, 64)), arrays.complex_number_dtypes(endianness="="),
    arrays.unicode_string_dtypes(endianness="=", max_len=4), arrays.datetime64_dtypes(endianness="="),
)  # fmt: skip
VALUES = DTYPES.flatmap(lambda d: arrays.arrays(d, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))
OTHERS = st.one_of(st.none(), st.lists(VALUES, max_size=2), st.just(np.array(["a", None], object)))
FEEDS = st.dictionaries(st.text(max_size=3), st.one_of(VALUES, OTHERS), max_size=4)


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(same, found, wanted))
    if not isinstance(wanted, np.ndarray):
        return bool(found == wanted)
    alike = type(found) is np.ndarray and (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    return alike and (wanted.dtype.hasobject or found.tobytes() == wanted.tobytes())


@settings(max_examples=200, deadline=None)
@given(feeds=FEEDS, data=st.data())
def test_whatever_is_fed_comes_through_unchanged(echo: Ward, feeds: dict[str, Any], data: st.DataObject) -> None:
    names = data.draw(st.none() | st.lists(st.sampled_from(sorted(feeds)), unique=True) if feeds else st.none())
    for _ in range(2):  # the second is known by its number
        found = echo.run(feeds, names)
        assert found.keys() == (feeds.keys() if names is None else set(names))
        assert all(same(found[name], feeds[name]) for name in found)
        for name, value in found.items():
            if isinstance(value, np.ndarray) and value.size:
                assert value.flags.writeable and not np.may_share_memory(value, feeds[name])


@settings(max_examples=50, deadline=None)
@given(value=VALUES.filter(lambda a: a.dtype.kind in "biufc"))
def test_outputs_are_written_into_the_callers_arrays(echo: Ward, value: np.ndarray[Any, Any]) -> None:
    place = np.zeros_like(value, order="C")
    echo.run_into({"x": value}, {"x": place})
    assert same(place, value)
    with pytest.raises(OtherShape) as caught:
        echo.run_into({"x": value}, {"x": np.zeros((*value.shape, 2), value.dtype)})
    assert caught.value.output == "x" and caught.value.found == value.shape


def test_the_memory_grows_for_large_inputs_and_for_large_outputs(echo: Ward) -> None:
    for size in (10, 100_000, 50, 3_000_000, 7):
        x = np.arange(size, dtype=np.float64)
        np.testing.assert_array_equal(echo.run({"x": x})["x"], x)


def test_outputs_larger_than_the_inputs_get_room() -> None:
    session = made(frail.Direct)
    try:
        for rows in (3, 3, 100_000, 3, 5):
            x = np.full((1, 4), rows, np.float32)
            assert session.run({"x": x})["y"].shape == (rows, 4)
            np.testing.assert_array_equal(session.run({"x": x})["y"], np.full((rows, 4), rows, np.float32))
    finally:
        session.close()


def test_what_can_write_into_arrays_does_where_shapes_stay() -> None:
    session = made(frail.Direct)
    try:
        x = np.full((1, 2), 2, np.float32)
        assert [int(session.run({"x": x})["written"]) for _ in range(3)] == [0, 1, 2]
        place: dict[str, np.ndarray[Any, Any]] = {"y": np.zeros((2, 2), np.float32), "written": np.zeros((), np.int64)}
        session.run_into({"x": x}, place)
        assert int(place["written"]) == 3 and place["y"].all()
    finally:
        session.close()


def test_an_output_that_is_not_written_is_no_answer_of_before() -> None:
    session = made(partial(frail.Direct, forgets=True))
    try:
        x = np.full((1, 2), 2, np.float32)
        right = session.run({"x": x})["y"]
        assert not np.isnan(right).any() and np.isnan(session.run({"x": x})["y"]).all()
    finally:
        session.close()


def test_feeds_cannot_be_changed_there() -> None:
    session = made(frail.Writer)
    try:
        x = marked(3.0)
        with pytest.raises(line.Foreign, match="read-only"):
            session.run(x)
        assert x["x"][0, 0] == 3.0
    finally:
        session.close()


def test_more_forms_of_requests_than_are_known_at_once(echo: Ward) -> None:
    for _ in range(2):
        for size in range(1, line._LAYOUTS + 20):
            x = np.arange(size, dtype=np.float32)
            np.testing.assert_array_equal(echo.run({"x": x})["x"], x)


def test_errors_of_the_sdk_are_those_that_would_be_raised_here(doubling: Ward) -> None:
    pid = doubling.observed().settings["process"]
    with pytest.raises(Exception, match="^no such number") as caught:
        doubling.run(marked(frail.RAISES))
    assert (type(caught.value).__name__, str(caught.value)) == ("Misfit", "no such number")
    assert "mischief" in caught.value.__notes__[0]
    with pytest.raises(RunFailed, match="not this one") as told:
        doubling.run(marked(frail.REFUSES))
    assert told.value.remedy == "another one"
    assert isinstance(doubling.run(marked(frail.LIST)), list)
    doubles(doubling, frail.NOISE)
    assert doubling.observed().settings == {"process": pid, "isolation": "process"}


@pytest.mark.parametrize("mark", LOST)
def test_a_loss_is_told_and_the_next_request_is_answered(doubling: Ward, mark: int) -> None:
    pid = doubling.observed().settings["process"]
    with pytest.raises(ChildLost, match=f"testing: the process {LOST[mark]}") as caught:
        doubling.run(marked(mark))
    assert caught.value.remedy
    wait_until(lambda: gone(pid), "it has ended")
    doubles(doubling)
    assert doubling.observed().settings["process"] != pid


@pytest.mark.parametrize("mark", [frail.HANG, frail.DEAF])
def test_a_hang_is_ended_at_its_limit(mark: int) -> None:
    session = made(frail.Doubling, seconds=1.0)
    try:
        pid = session.observed().settings["process"]
        begun = time.monotonic()
        with pytest.raises(ChildLost, match="did not answer within 1 s and was ended"):
            session.run(marked(mark))
        assert time.monotonic() - begun < 30 and gone(pid)
        wait_until(lambda: session._keeper.line, "it is back")
        doubles(session)
    finally:
        session.close()


def test_an_end_between_requests_costs_none(doubling: Ward) -> None:
    for _ in range(3):
        os.kill(doubling.observed().settings["process"], signal.SIGKILL)
        doubles(doubling)


def test_a_request_that_was_never_taken_goes_to_the_next_process(doubling: Ward) -> None:
    """The process is stopped before it reads the request, and killed while the request lies there."""
    pid = doubling.observed().settings["process"]
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(doubles, doubling, 7.0)
        time.sleep(0.3)
        assert not answer.done()
        os.kill(pid, signal.SIGKILL)
        answer.result(60)


def test_whoever_waits_behind_a_request_that_is_lost_is_answered(doubling: Ward) -> None:
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(doubling.run, marked(frail.SLOW))
        time.sleep(0.1)
        lost = pool.submit(doubling.run, marked(frail.SEGFAULT))
        others = [pool.submit(doubles, doubling, float(n)) for n in range(20)]
        assert first.result()["y"][0, 0] == 2 * frail.SLOW
        with pytest.raises(ChildLost):
            lost.result()
        for other in others:
            other.result()


def test_a_call_that_is_interrupted_leaves_no_stale_answer(doubling: Ward) -> None:
    doubles(doubling)
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            doubling.run(marked(frail.SLOW))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    doubles(doubling)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_is_not_for_the_process(doubling: Ward) -> None:
    pid = doubling.observed().settings["process"]
    os.kill(pid, signal.SIGINT)
    doubles(doubling)
    assert doubling.observed().settings["process"] == pid


@pytest.mark.parametrize(
    ("load", "kind", "said"),
    [
        (frail.refuse, NotAvailable, "no such device"),
        (frail.raise_foreign, BuildFailed, "loading failed: Misfit: broken artifact"),
        (frail.no_session, BuildFailed, "returned a int, not a Session"),
        (frail.die, ChildFailed, "crashed with SIGSEGV"),
    ],
)
def test_a_session_that_cannot_be_loaded(load: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        made(load)


def test_a_load_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ward, "LOADING", 1.0)
    with pytest.raises(ChildFailed, match="did not answer within 1 s"):
        made(frail.hang)


def test_a_process_that_does_not_come_up_again_stays_down(tmp_path: Path) -> None:
    guard, events = Guard(), list[Any]()
    guard.listen(lambda kind, facts: events.append((kind, facts["state"])))
    session = made(partial(frail.twice_at_most, str(tmp_path / "mark")), guard=guard)
    try:
        for _ in range(2):
            with pytest.raises(ChildLost, match="SIGSEGV"):
                session.run(marked(frail.SEGFAULT))
        with pytest.raises(ChildLost, match="testing stays down: the process crashed with SIGSEGV"):
            session.run(marked(1.0))
        wait_until(lambda: len(events) == 4, "all is told")
        assert guard.status.down == ("testing: " + str(guard.status.error).removeprefix("testing: "),)
        assert (tmp_path / "mark").read_text() == "." * (2 + ward.TRIES)
        assert guard.status.restarts == 1 and guard.status.processes == ()
        assert events == [("child", s) for s in ("lost", "back", "lost", "down")]
    finally:
        session.close()


def test_a_process_that_ends_by_itself_each_time_stays_down() -> None:
    guard = Guard()
    session = made(frail.short_lived, guard=guard)
    try:
        wait_until(lambda: guard.status.down, "it stays down")
        assert "ended by itself 3 times in a row: the process ended with status 5" in guard.status.down[0]
        with pytest.raises(ChildLost, match="stays down"):
            session.run(marked(1.0))
    finally:
        session.close()


def test_where_somebody_else_answers_nobody_waits() -> None:
    guard = Guard()
    guard.patient = False
    session = made(frail.Doubling, guard=guard)
    try:
        with pytest.raises(ChildLost, match="SIGSEGV"):
            session.run(marked(frail.SEGFAULT))
        with pytest.raises(ChildLost, match="started anew|SIGSEGV"):
            session.run(marked(1.0))
        wait_until(lambda: guard.status.processes, "it is back")
        doubles(session)
        assert guard.status.restarts == 1
    finally:
        session.close()


@pytest.mark.parametrize("how", ["closed", "not loaded", "starting"])
def test_nothing_is_left_behind(how: str) -> None:
    """In a process of its own, where no session of another test comes and goes."""
    with Child("testing") as child:
        assert child.call(left_behind, how) == ([], 0, 0, 0)


def left_behind(how: str) -> tuple[list[int], int, int, int]:
    """Processes, files, threads and mappings of shared memory that are there only after sessions were."""
    made(frail.Doubling).close()  # whatever is made once is made now
    gc.collect()
    this = psutil.Process()
    before, files, threads = set(this.children()), this.num_fds(), this.num_threads()
    sessions = [] if how == "not loaded" else [made(frail.Doubling) for _ in range(2)]
    for session in sessions:
        doubles(session)
        with pytest.raises(ChildLost):
            session.run(marked(frail.SEGFAULT))
        if how != "starting":
            doubles(session)
        assert set(this.children()) - before and mapped()
    for session in sessions:
        session.close()
        session.close()
        with pytest.raises(RunFailed, match="is closed"):
            session.run(marked(1.0))
    for load in (frail.refuse, frail.die):
        with pytest.raises(PaddockError):
            made(load)
    left = [child.pid for child in set(this.children()) - before]
    gc.collect()
    return left, this.num_fds() - files, this.num_threads() - threads, mapped()


def mapped() -> int:
    """How often memory that is shared with a session is mapped here."""
    return Path("/proc/self/maps").read_text().count("memfd:paddock")


def test_one_that_is_dropped_ends_its_process() -> None:
    session = made(frail.Doubling)
    pid, this = session.observed().settings["process"], psutil.Process()
    files = this.num_fds()
    del session
    gc.collect()
    wait_until(lambda: gone(pid) and this.num_fds() < files, "it has ended")


def test_a_session_that_fails_while_it_is_closed() -> None:
    session = made(frail.Stubborn)
    pid = session.observed().settings["process"]
    with pytest.raises(line.Foreign, match="device lost"):
        session.close()
    session.close()
    assert gone(pid)


def test_one_that_is_never_done_with_closing_is_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(line, "PATIENCE", 0.5)
    session = made(frail.Lingering)
    pid = session.observed().settings["process"]
    session.close()
    assert gone(pid) and "while closing, the process did not answer within 0.5 s" in caplog.text


def test_a_host_takes_it_for_any_other_session() -> None:
    guard = Guard()
    host = InProcessHost(lambda: made(frail.Doubling, guard=guard), Threading.SERIAL, 2, "cpu/frail")
    try:
        assert host.writes and len(guard.status.processes) == 2
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: host.run(marked(float(n)))["y"][0, 0], range(100)))
        assert found == [2.0 * n for n in range(100)]
        with pytest.raises(RunFailed, match="cpu/frail failed while running: Misfit: no such number"):
            host.run(marked(frail.RAISES))
        with pytest.raises(ChildLost):
            host.run(marked(frail.ABORT))
        assert host.run(marked(2.0))["y"][0, 0] == 4.0
    finally:
        host.close()


def test_a_long_log_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawned, "_LOG_BYTES", 100)
    monkeypatch.setattr(spawned, "_LOG_KEPT", 40)
    session = made(frail.Doubling)
    try:
        for _ in range(20):
            doubles(session, frail.NOISE)
        keeper = session._keeper
        assert keeper.line is not None
        keeper.line.process.trim()
        assert os.fstat(keeper.line.process._log.fileno()).st_size == 40
        doubles(session, frail.NOISE)
        assert keeper.line.process._words()[-1] == "noise of C"
    finally:
        session.close()


@pytest.mark.parametrize("mark", [0, frail.DEAF], ids=["idle", "deaf"])
def test_the_process_ends_with_this_one(tmp_path: Path, mark: int) -> None:
    """Also where it is inside of a call that never gives the interpreter's lock back."""
    place = tmp_path / "pid"
    code = (
        "import sys; sys.path[:] = eval(sys.argv[1])\n"
        "import pathlib, time, threading, test_ward\n"
        "session = test_ward.made(test_ward.frail.Doubling)\n"
        f"threading.Thread(target=session.run, args=(test_ward.marked({mark}),)).start()\n"
        "time.sleep(0.5)\n"
        "pathlib.Path(sys.argv[2]).write_text(str(session._keeper.line.process.pid)); time.sleep(600)\n"
    )
    path = [str(Path(__file__).parent), *sys.path]
    parent = subprocess.Popen([sys.executable, "-c", code, repr(path), str(place)])
    try:
        wait_until(lambda: place.exists() and place.read_text() != "", "the process runs")
        pid = int(place.read_text())
        assert not gone(pid)
        parent.kill()
        parent.wait()
        wait_until(lambda: gone(pid), "it has ended")
    finally:
        parent.kill()
        parent.wait()


def test_shared_memory_cannot_be_taken_away() -> None:
    memory = Shared()
    memory.grow(1 << 16)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 0)
    (place,), _ = packed([("x", np.zeros(3))], 0)
    view = memory.view(place)
    view[:] = 1
    memory.close()
    memory.close()
    assert view.sum() == 3  # what it was mapped for lasts as long as its views


@given(st.lists(arrays.arrays(np.uint8, st.integers(0, 200)), max_size=5), st.integers(0, 1000))
def test_places_lie_apart(found: list[np.ndarray[Any, Any]], start: int) -> None:
    places, end = packed([(str(n), array) for n, array in enumerate(found)], start)
    at = start
    for place, array in zip(places, found, strict=True):
        assert place.offset >= at and place.offset % 64 == 0 and place.nbytes == array.nbytes
        at = place.offset + place.nbytes
    assert end == at
