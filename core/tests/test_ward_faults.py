"""What may go wrong beside the session itself: helpers that hold the connection, observers, what a host lacks."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddock_calls as calls
import paddock_frail as frail
import pytest
from paddock import ward, wire
from paddock.child import call_in_child
from paddock.errors import ChildFailed, ChildLost, RunFailed
from paddock.guard import Guard
from paddock.line import Line
from paddock.ward import Spares, Ward
from test_ward import doubles, gone, made, marked, wait_until


def process(session: Ward) -> int:
    found: int = session.observed().settings["process"]
    return found


@pytest.mark.parametrize(
    ("mark", "said"), [(frail.CUT_OFF, "weights truncated"), (frail.UNREACHABLE, "licence server refused")]
)
def test_what_reads_like_the_end_of_a_connection_is_an_answer(mark: int, said: str) -> None:
    session = made(frail.Doubling)
    try:
        pid = process(session)
        with pytest.raises(Exception, match=said):
            session.run(marked(mark))
        doubles(session)
        assert process(session) == pid
    finally:
        session.close()


def test_memory_that_ran_out_is_a_loss_in_whatever_words() -> None:
    guard = Guard()
    session = made(frail.Doubling, guard=guard)
    try:
        with pytest.raises(ChildLost, match="ran out of memory .Exhausted: the device has not enough memory"):
            session.run(marked(frail.EXHAUSTED))
        doubles(session)
        assert guard.status.restarts == 1
    finally:
        session.close()


class Undefinable:
    """Pickles, and is nothing that can be loaded."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_form_that_cannot_be_told_fails_its_own_requests_alone() -> None:
    session = made(frail.Doubling)
    try:
        pid = process(session)
        odd = np.dtype(np.float32, metadata={"of": Undefinable()})
        for n in range(4):
            with pytest.raises(Exception, match="no number"):
                session.run({"x": np.zeros(3, odd)})
            doubles(session, float(n))
            np.testing.assert_array_equal(session.run({"x": np.arange(n + 1.0)})["y"], 2 * np.arange(n + 1.0))
        assert process(session) == pid
    finally:
        session.close()


def test_an_answer_to_another_request_is_no_answer() -> None:
    session = made(frail.Doubling)
    try:
        line = session._keeper.line
        assert line is not None
        doubles(session)
        line._sent += 1
        with pytest.raises(ChildLost, match="answered another request"):
            session.run(marked(1.0))
        doubles(session)
    finally:
        session.close()


@pytest.mark.parametrize("when", ["inside", "idle"])
def test_a_crash_is_noticed_though_helpers_hold_the_connection(when: str) -> None:
    session = made(frail.Accompanied, seconds=600)
    try:
        told = session.observed().settings
        pid, helpers = told["process"], told["helpers"]
        if when == "inside":
            with pytest.raises(ChildLost, match="crashed with SIGSEGV"):
                session.run(marked(frail.SEGFAULT))
        else:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: all(map(gone, helpers)), "its helpers have ended with it")
        doubles(session)
        helpers = session.observed().settings["helpers"]
    finally:
        session.close()
    wait_until(lambda: all(map(gone, helpers)), "the next one's as well")


@pytest.fixture
def dying() -> Iterator[Ward]:
    session = made(frail.Dying, seconds=4.0)  # dying takes 11 s
    yield session
    session.close()


def test_a_crash_is_told_before_it_is_over(dying: Ward) -> None:
    with pytest.raises(ChildLost, match="crashed with SIGSEGV"):
        dying.run(marked(frail.SEGFAULT))
    wait_until(lambda: dying._keeper.line, "it is back")
    doubles(dying)


def test_a_request_that_comes_while_it_crashes_was_not_in_it(dying: Ward) -> None:
    os.kill(process(dying), signal.SIGSEGV)
    time.sleep(0.5)
    doubles(dying)


def test_a_fork_that_crashes_is_not_the_process(dying: Ward) -> None:
    told = dying.observed().settings
    assert told["fork"] == signal.SIGABRT
    doubles(dying)
    assert process(dying) == told["process"]


@pytest.mark.parametrize("fatal", ["SIGSEGV", "SIGFPE", "SIGABRT", "SIGBUS", "SIGILL"])
def test_a_report_of_a_crash_names_the_signal(fatal: str) -> None:
    ours, theirs = socket.socketpair()
    code = (
        "import os, signal, socket; from paddock import wire;"
        f"wire.report_crashes(socket.socket(fileno={theirs.fileno()})); os.kill(os.getpid(), signal.{fatal})"
    )
    with ours, theirs:
        subprocess.run([sys.executable, "-c", code], pass_fds=(theirs.fileno(),), stderr=subprocess.DEVNULL)
        theirs.close()
        with pytest.raises(wire.Crashed, match=f"^{fatal}$"):
            wire.receive(ours)


def test_a_call_in_a_child_ends_though_a_helper_holds_the_connection() -> None:
    with pytest.raises(ChildFailed, match="SIGSEGV"):
        call_in_child("testing", calls.leave_a_helper_and_crash, seconds=600)


def test_nobody_waits_longer_than_one_request_may_take() -> None:
    """Of many that come while a process is not back, each would otherwise wait its turn, and then its time."""
    session = made(frail.Doubling, seconds=0.5)
    keeper = session._keeper
    try:
        line = keeper.line
        assert line is not None
        keeper.noticed(line)  # it is taken for lost, and nobody starts another
        keeper._trouble = ": it has gone"
        with pytest.raises(ChildLost, match=r"not back in 0.5 s: it has gone") as caught:
            keeper.wait(time.monotonic() + 3600)
        assert '"timeout"' in str(caught.value.remedy)
        with pytest.raises(ChildLost, match="not back"):
            keeper.wait(time.monotonic() + 3600)
    finally:
        keeper.line = line
        session.close()


def test_a_request_by_who_hears_of_the_loss_does_not_wait_for_itself() -> None:
    guard, heard = Guard(), list[Exception]()
    session = made(frail.Doubling, seconds=600, guard=guard)

    def tell(kind: str, facts: Any) -> None:
        if facts["state"] == "lost":
            try:
                session.run(marked(1.0))
            except RunFailed as error:
                heard.append(error)

    guard.listen(tell)
    try:
        with pytest.raises(ChildLost):
            session.run(marked(frail.SEGFAULT))
        doubles(session)
        assert len(heard) == 1 and "another thread" in str(heard[0])
    finally:
        session.close()


@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_a_keeper_that_fails_keeps_nobody_waiting(error: type[BaseException]) -> None:
    guard = Guard()
    session = made(frail.Doubling, seconds=600, guard=guard)

    def tell(kind: str, facts: Any) -> None:
        raise error("no")

    guard.listen(tell)
    try:
        with pytest.raises(ChildLost, match="SIGSEGV"):
            session.run(marked(frail.SEGFAULT))
        with pytest.raises(ChildLost, match="stays down: testing: internal error: .*no"):
            session.run(marked(1.0))
    finally:
        session.close()
        session.close()


def test_what_the_host_lacks_for_a_while_costs_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ward, "_PAUSE", 0.01)
    guard, tries, real = Guard(), 2 * ward.TRIES, Spares.take

    def take(self: Spares) -> Any:
        nonlocal tries
        tries -= 1
        if tries > 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(self)

    session = made(frail.Doubling, guard=guard)
    try:
        monkeypatch.setattr(Spares, "take", take)
        with pytest.raises(ChildLost, match="SIGSEGV"):
            session.run(marked(frail.SEGFAULT))
        doubles(session)
        assert tries <= 0 and guard.status.down == ()
    finally:
        session.close()


def test_a_first_start_that_the_host_cannot_make_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Spares, "take", lambda self: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files"))
    )
    with pytest.raises(ChildFailed, match="could not be started: .*Too many open files"):
        made(frail.Doubling)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_has_ended_needs_no_closing(stop: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddock.line.PATIENCE", 0.5)
    session = made(frail.Doubling)
    pid = process(session)
    os.kill(pid, stop)
    session.close()
    assert gone(pid)


def test_closing_that_was_interrupted_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    session = made(frail.Doubling)
    pid, threads = process(session), threading.active_count()

    def interrupted(self: Line) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Line, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.close()
    assert not gone(pid)
    session.close()
    assert gone(pid) and threading.active_count() == threads - 1
    session.close()


def test_a_fork_of_the_host_keeps_no_process_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is ended, whoever else holds it: else patience would run out first."""
    session = made(frail.Doubling)
    doubles(session)
    pid = process(session)
    monkeypatch.setattr("paddock.spawned.PATIENCE", 600.0)
    spares = session._keeper._spares
    wait_until(lambda: spares._ready, "no other process is being started: a fork would hold its pipes")
    fork = os.fork()
    if not fork:
        time.sleep(60)
        os._exit(0)
    try:
        session.close()
        assert gone(pid)
    finally:
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)
