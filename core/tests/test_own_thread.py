"""A thread that runs one call at a time: answers go to who asked, errors too, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from paddock.own_thread import OwnThread


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def soon(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def test_calls_run_there_and_nowhere_else() -> None:
    thread = OwnThread("t")
    first = thread.call(threading.get_ident)
    assert first != threading.get_ident() and thread.call(threading.get_ident) == first
    thread.shutdown()


def test_an_error_comes_back_and_the_thread_goes_on() -> None:
    thread = OwnThread("t")
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 / 0)
    assert thread.call(len, (1, 2)) == 2
    thread.shutdown()


def test_every_caller_gets_its_own_answer() -> None:
    thread = OwnThread("t")
    wrong: list[int] = []

    def ask(start: int) -> None:
        for number in range(start, start + 1000):
            if thread.call(lambda n: 2 * n, number) != 2 * number:
                wrong.append(number)

    callers = [threading.Thread(target=ask, args=(1000 * k,)) for k in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
    thread.shutdown()


def test_an_interrupted_call_leaves_its_answer_to_nobody() -> None:
    thread = OwnThread("t")
    started = threading.Event()

    def slow() -> str:
        started.set()
        time.sleep(0.3)
        return "late"

    def interrupt() -> None:
        started.wait()
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        thread.call(slow)
    other.join()
    assert thread.call(lambda: "next") == "next"
    thread.shutdown()


def test_nothing_is_left_after_the_end() -> None:
    before = descriptors()
    thread = OwnThread("t")
    thread.shutdown()
    thread.shutdown()
    with pytest.raises(RuntimeError, match="ended"):
        thread.call(len, ())
    assert descriptors() == before


def test_a_dropped_thread_ends() -> None:
    before, alive = descriptors(), threading.active_count()
    thread = OwnThread("t")
    assert threading.active_count() == alive + 1
    del thread
    gc.collect()
    assert soon(lambda: threading.active_count() == alive and descriptors() == before)


def test_a_fork_and_the_interpreters_end_do_not_wait() -> None:
    script = (
        "import os\nfrom paddock.own_thread import OwnThread\nthread = OwnThread('t')\npid = os.fork()\n"
        "if pid == 0:\n    thread.shutdown()\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0 and thread.call(len, (1, 2)) == 2\nprint('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "ok"
