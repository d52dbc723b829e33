"""Child processes: what they bring back, how they end, and that nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import paddock_calls as calls
import psutil
import pytest
from paddock import deployment, spawned
from paddock.child import Child, Children, Crew, call_in_child, is_called_off, tell
from paddock.errors import BuildFailed, ChildFailed, ConfigError, PaddockError, Unsupported


# One for all tests: each leaves it usable, or the next one fails. A start costs half a second.
@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child("testing") as made:
        yield made


def wait_until(condition: Callable[[], bool], what: str) -> None:
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


def test_a_result_comes_back_from_one_process_that_stays(child: Child) -> None:
    assert child.call(calls.add, 2, 3) == 5
    first, second = child.call(calls.pid), child.call(calls.pid)
    assert first == second != os.getpid()


def test_paddock_error_keeps_its_fields(child: Child) -> None:
    with pytest.raises(ConfigError) as caught:
        child.call(calls.raise_config_error)
    error = caught.value
    assert (error.problem, error.where) == ("is wrong", "f.json: $.x")
    assert (error.candidates, error.remedy) == (("a", "b"), "do this")
    assert "a note" in error.__notes__
    with pytest.raises(Unsupported) as other:
        child.call(calls.raise_unsupported)
    assert (other.value.nodes, other.value.problem) == ((3, 5), "no such kernel")


def test_what_a_child_says_meanwhile_is_heard_and_is_no_answer(child: Child) -> None:
    lines = [f"step {number}" for number in range(50)]
    heard: list[str] = []
    assert child.call(calls.talk, lines, "done", hear=heard.append) == "done"
    assert sorted(heard) == sorted(lines)
    assert child.call(calls.talk, lines, "unheard") == "unheard"
    tell("in no child nobody hears")


@pytest.mark.parametrize("error", [LookupError, BrokenPipeError, EOFError])
def test_who_hears_and_fails_is_not_the_child_that_fails(child: Child, error: type[Exception]) -> None:
    def wrong(line: str) -> None:
        raise error(line)

    with pytest.raises(error):
        child.call(calls.talk, ["a", "b"], 1, hear=wrong)
    assert child.call(calls.add, 2, 3) == 5, "what was said to a call that ended is no answer to the next"


def test_foreign_exception_becomes_build_failed_with_its_trace(child: Child) -> None:
    with pytest.raises(BuildFailed) as caught:
        child.call(calls.raise_foreign)
    assert caught.value.problem == "ZeroDivisionError: first line"
    assert caught.value.where == "testing"
    assert any("raise_foreign" in note for note in caught.value.__notes__)
    assert not isinstance(caught.value, ChildFailed)
    assert child.call(calls.add, 1, 1) == 2


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        (calls.segfault, (), ("crashed with SIGSEGV", "on the way down")),
        (calls.abort, (), ("crashed with SIGABRT",)),
        (calls.end, (0,), ("ended with status 0",)),
        (calls.end, (7,), ("ended with status 7",)),
        (calls.leave, (3,), ("ended with status 3",)),
        (calls.end_by, (int(signal.SIGKILL),), ("crashed with SIGKILL",)),
        (calls.end_by, (int(signal.SIGRTMIN) + 3,), ("crashed with",)),
        (calls.end_amid_answer, (), ("ended with status 9",)),
    ],
)
def test_a_child_that_ends_is_an_error_and_the_next_call_works(
    child: Child, function: Callable[..., Any], args: tuple[Any, ...], words: tuple[str, ...]
) -> None:
    # The call before is the one that must work again after the last case.
    assert child.call(calls.add, 20, 3) == 23
    with pytest.raises(ChildFailed) as caught:
        child.call(function, *args)
    for word in words:
        assert word in caught.value.problem
    assert caught.value.where == "testing"


def test_a_child_that_was_killed_between_calls_is_an_error_once(child: Child) -> None:
    os.kill(child.call(calls.pid), signal.SIGKILL)
    with pytest.raises(ChildFailed, match="SIGKILL"):
        for _ in range(2):  # the first may still find the socket open
            child.call(calls.echo, bytes(1 << 20))
    assert child.call(calls.add, 1, 2) == 3


def test_a_hang_is_ended_at_its_limit(child: Child) -> None:
    process = child.call(calls.pid)
    with pytest.raises(ChildFailed, match=r"did not answer within 0\.2 s"):
        child.call(calls.hang, seconds=0.2)
    assert gone(process)
    assert child.call(calls.add, 1, 2) == 3


@pytest.mark.parametrize("argument", [threading.Lock(), lambda: None], ids=["lock", "lambda"])
def test_unpicklable_argument(child: Child, argument: Any) -> None:
    process = child.call(calls.pid)
    with pytest.raises(PaddockError) as caught:
        child.call(calls.echo, argument)
    assert caught.value.where == "testing"
    assert child.call(calls.pid) == process


@pytest.mark.parametrize("function", [calls.unpicklable, calls.unloadable, calls.raise_only_here, calls.raise_silent])
def test_an_answer_that_cannot_travel(child: Child, function: Callable[[], Any]) -> None:
    with pytest.raises(BuildFailed) as caught:
        child.call(function)
    assert caught.value.where == "testing"
    assert not isinstance(caught.value, ChildFailed)  # nothing crashed
    assert child.call(calls.add, 1, 2) == 3


def test_a_paddock_error_that_cannot_travel_still_says_what_was_wrong(child: Child) -> None:
    with pytest.raises(PaddockError, match="no such device"):
        child.call(calls.raise_unpicklable_paddock_error)
    assert child.call(calls.add, 1, 2) == 3


def test_a_huge_payload_both_ways(child: Child) -> None:
    sent = os.urandom(1 << 10) * (50 << 10)
    assert child.call(calls.size, sent) == 50 << 20
    assert child.call(calls.echo, sent) == sent


def test_a_call_that_is_interrupted_leaves_no_stale_answer(child: Child) -> None:
    child.call(calls.pid)
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            child.call(time.sleep, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert child.call(calls.add, 1, 2) == 3


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_noise_stays_out_of_this_process(child: Child, capfd: pytest.CaptureFixture[str]) -> None:
    child.close()  # to start it while the output is watched
    assert child.call(calls.noise) == "done"
    assert child.call(calls.read_stdin) == ""
    assert capfd.readouterr() == ("", "")


def test_a_child_that_cannot_be_started(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    child.close()
    with pytest.raises(ChildFailed, match="could not be started"):
        child.call(calls.pid)
    monkeypatch.undo()
    assert child.call(calls.add, 1, 2) == 3


def test_the_current_folder_hides_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "socket.py").write_text("raise SystemExit('a file of the user')")
    monkeypatch.chdir(tmp_path)
    with Child("testing") as child:
        path, folder = child.call(calls.path_and_folder)
    assert Path(folder) == tmp_path
    here = list(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
    assert path[: len(here)] == here


def test_modules_of_the_current_folder_are_found_where_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_in_this_folder.py").write_text("def answer():\n    return 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    import only_in_this_folder  # type: ignore[import-not-found]

    assert call_in_child("testing", only_in_this_folder.answer) == 42


def test_nothing_is_left_after_close() -> None:
    this = psutil.Process()
    before = this.children()
    call_in_child("testing", calls.pid)  # whatever is made once is made now
    files, threads = this.num_fds(), this.num_threads()
    pids = []
    with Children() as children:
        for label, function, seconds in (
            ("one", calls.segfault, 60),
            ("two", calls.raise_foreign, 60),
            ("three", calls.hang, 0.1),
        ):
            pids.append(children.get(label).call(calls.pid))
            with contextlib.suppress(PaddockError):
                children.get(label).call(function, seconds=seconds)
    assert all(gone(pid) for pid in pids)
    assert len(set(pids)) == len(pids)
    assert this.children() == before
    assert (this.num_fds(), this.num_threads()) == (files, threads)


def test_close_twice_and_before_the_first_call() -> None:
    child = Child("testing")
    child.close()
    process = child.call(calls.pid)
    child.close()
    child.close()
    assert gone(process)


def test_many_threads_share_a_child_and_each_gets_its_own_answer(child: Child) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: child.call(calls.add, n, 1000), range(200)))
    assert answers == [n + 1000 for n in range(200)]


def test_children_of_equal_label_are_one() -> None:
    with Children() as children, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: children.get(f"label {n % 2}").call(calls.pid), range(12)))
        assert found == found[:2] * 6 and found[0] != found[1]
        assert children.get("label 0") is children.get("label 0")
    assert all(gone(pid) for pid in found)


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "print('started')\n"
        "from paddock.child import call_in_child\n"
        "assert call_in_child('testing', os.getpid) != os.getpid()\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("started\ndone\n", 0), done.stderr


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_child_ends_with_its_parent(tmp_path: Path, busy: bool) -> None:
    mark = tmp_path / "pid"
    code = (
        "import sys; sys.path[:] = eval(sys.argv[1])\n"
        "import time, pathlib, paddock_calls\n"
        "from paddock.child import Child\n"
        "child = Child('testing')\n"
        + (
            "child.call(paddock_calls.write_pid_and_hang, sys.argv[2])\n"
            if busy
            else "pathlib.Path(sys.argv[2]).write_text(str(child.call(paddock_calls.pid))); time.sleep(600)\n"
        )
    )
    parent = subprocess.Popen([sys.executable, "-c", code, repr(sys.path), str(mark)])
    try:
        wait_until(lambda: mark.exists() and mark.read_text() != "", "the grandchild runs")
        grandchild = int(mark.read_text())
        assert not gone(grandchild)
        parent.kill()
        parent.wait()
        wait_until(lambda: gone(grandchild), "the grandchild has ended")
    finally:
        parent.kill()
        parent.wait()


def test_close_ends_a_child_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child("testing")
    process = child.call(calls.pid)
    os.kill(process, signal.SIGSTOP)
    monkeypatch.setattr(spawned, "PATIENCE", 0.1)
    child.close()
    assert gone(process)


# Crews


def test_a_crew_is_ended_inside_of_calls(tmp_path: Path) -> None:
    """Also of those that were made by who knows nothing of it; whoever is not of it goes on."""
    crew, mark, said = Crew(), tmp_path / "pid", list[BaseException]()
    with Child("outside") as outside:
        before = outside.call(calls.pid)

        def work() -> None:
            with crew, Children() as children:
                idle = children.get("idle").call(calls.pid)
                try:
                    call_in_child("busy", calls.write_pid_and_hang, str(mark))
                except PaddockError as error:
                    said.append(error)
                wait_until(lambda: gone(idle), "the idle one has ended too")
                for label in ("idle", "another"):
                    with pytest.raises(ChildFailed) as caught:
                        children.get(label).call(calls.pid)
                    said.append(caught.value)

        worker = threading.Thread(target=work)
        worker.start()
        wait_until(lambda: mark.exists() and mark.read_text() != "", "it is busy")
        crew.end()
        worker.join()
        assert [type(error) for error in said] == [ChildFailed] * 3 and "SIGKILL" in str(said[0])
        assert gone(int(mark.read_text())) and outside.call(calls.pid) == before
        assert "ended with what it is for" in str(said[2])


def test_work_knows_that_it_was_called_off() -> None:
    assert not is_called_off()
    with Crew() as crew:
        assert not is_called_off()
        crew.end()
        assert is_called_off()
    assert not is_called_off()


def test_a_build_that_is_called_off_blames_no_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[Any] = []

    def fails(*_: Any) -> NoReturn:
        raise BuildFailed("crashed with SIGKILL")

    monkeypatch.setattr(deployment, "are_kept", lambda *_: True)
    monkeypatch.setattr(deployment, "_carried_out", fails)
    monkeypatch.setattr(deployment, "forget", lambda *_: forgotten.append(True))
    for ended in (False, True):
        forgotten.clear()
        with Crew() as crew, pytest.raises(BuildFailed):
            if ended:
                crew.end()
            deployment._attempt(Mock(), Mock())
        assert bool(forgotten) is not ended


def test_a_crew_is_as_nice_as_it_is_said_to_be() -> None:
    with Crew(7), Child("nice") as nice:
        assert nice.call(os.nice, 0) == os.nice(0) + 7
        with ThreadPoolExecutor(1) as pool, Child("of the same thread") as other:
            assert pool.submit(other.call, os.nice, 0).result() == os.nice(0) + 7
    with Child("usual") as usual:
        assert usual.call(os.nice, 0) == os.nice(0)


def test_what_a_killed_member_leaves_is_removed() -> None:
    with Crew() as crew, Child("temporary") as child:
        left = Path(child.call(tempfile.mkdtemp))
        assert left.parent == Path(crew.folder) and left.is_dir()
        child.kill()
        with pytest.raises(ChildFailed):
            child.call(calls.pid)
    assert not Path(crew.folder).exists()


def test_crews_nest_and_end_with_their_block() -> None:
    inner, outer = Crew(), Crew()
    with outer:
        with inner:
            pass
        with Child("outer") as child:
            inner.end()
            assert child.call(calls.add, 1, 1) == 2
            outer.end()
            with pytest.raises(ChildFailed):
                child.call(calls.add, 1, 1)
