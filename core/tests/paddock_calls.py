"""Functions that tests have called in a child process. Imports little, so that those children start fast."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from paddock.cache import Store
from paddock.child import tell
from paddock.errors import ConfigError, NotAvailable, PaddockError, Unsupported


def add(a: int, b: int) -> int:
    return a + b


def pid() -> int:
    return os.getpid()


def talk(lines: list[str], answer: Any) -> Any:
    """Says the lines from threads of its own, all at once, and answers."""
    threads = [threading.Thread(target=tell, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answer


def echo(value: Any) -> Any:
    return value


def size(value: bytes) -> int:
    return len(value)


def path_and_folder() -> tuple[list[str], str]:
    return sys.path, os.getcwd()


def raise_config_error() -> NoReturn:
    error = ConfigError("is wrong", where="f.json: $.x", candidates=["a", "b"], remedy="do this")
    error.add_note("a note")
    raise error


def raise_unsupported() -> NoReturn:
    raise Unsupported([3, 5], "no such kernel")


def raise_foreign() -> NoReturn:
    raise ZeroDivisionError("first line\nsecond line")


class Silent(Exception):
    """Cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def raise_silent() -> NoReturn:
    raise Silent


def raise_unpicklable_paddock_error() -> NoReturn:
    error = NotAvailable("no such device", remedy="buy one")
    error.handle = threading.Lock()  # type: ignore[attr-defined]
    raise error


class OnlyHere(PaddockError):
    """Pickles in the child, and cannot be made anew in the parent."""

    def __reduce__(self) -> tuple[object, ...]:
        return _only_in, (os.getpid(),)


def _only_in(process: int) -> OnlyHere:
    if os.getpid() != process:
        raise LookupError("made in another process")
    return OnlyHere("made here")


def raise_only_here() -> NoReturn:
    raise OnlyHere("made here")


class ResultOnlyHere:
    """A result that the parent cannot load."""

    def __reduce__(self) -> tuple[object, ...]:
        return _only_in, (os.getpid(),)


def unloadable() -> ResultOnlyHere:
    return ResultOnlyHere()


def unpicklable() -> Any:
    return threading.Lock()


def segfault(*_: Any) -> NoReturn:
    sys.stderr.write("on the way down\n")
    sys.stderr.flush()
    ctypes.string_at(0)
    raise AssertionError


def abort(*_: Any) -> NoReturn:
    os.abort()


def end(status: int) -> NoReturn:
    os._exit(status)


def leave(status: int) -> NoReturn:
    sys.exit(status)


def end_by(signal: int) -> NoReturn:
    os.kill(os.getpid(), signal)
    time.sleep(60)
    raise AssertionError


def end_amid_answer() -> NoReturn:
    """As when the kernel ends a process that runs out of memory while it writes a large answer."""
    os.write(int(sys.argv[-1]), struct.pack("!i", 1 << 20) + b"the beginning")
    os._exit(9)


def hang(*_: Any) -> NoReturn:
    while True:
        time.sleep(1)


def write_pid_and_hang(place: str) -> NoReturn:
    Path(place).write_text(str(os.getpid()))
    hang()


def noise() -> str:
    sys.stdout.write("noise of Python\n")
    os.write(1, b"noise of C\n")
    os.write(2, b"noise on stderr\n")
    subprocess.run(["echo", "noise of a grandchild"], check=True)
    return "done"


def read_stdin() -> str:
    return sys.stdin.read()


def fill(folder: Path) -> None:
    """Builds a store's entry, slowly enough that others come in between, and leaves a mark for each time."""
    with open(folder.parent / "builds.txt", "a") as log:
        log.write(f"{os.getpid()}\n")
    time.sleep(0.2)
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.bin").write_bytes(bytes(1000))


def build_entry(root: str) -> str:
    return str(Store(Path(root)).folder("things", {"k": 1}, fill))


def build_in_ten_processes(root: str) -> str:
    """Forks, which is safe here: this process has no threads; ten interpreters would take seconds to start."""
    children = []
    for _ in range(10):
        process = os.fork()
        if process == 0:
            status = 1
            try:
                build_entry(root)
                status = 0
            finally:
                os._exit(status)
        children.append(process)
    return ",".join(str(os.waitpid(process, 0)[1]) for process in children)


def write_for_ever(root: str) -> NoReturn:
    store = Store(Path(root))
    (Path(root) / "started").touch()
    while True:
        store.put("data", "key", {"number": random.random(), "filler": "x" * 200_000})


def build_and_hang(root: str) -> NoReturn:
    def build(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        (Path(root) / "started").touch()
        time.sleep(600)

    Store(Path(root)).folder("things", {"k": 1}, build)
    raise AssertionError


def leave_a_helper_and_crash() -> NoReturn:
    if not os.fork():
        time.sleep(600)
        os._exit(0)
    segfault()
