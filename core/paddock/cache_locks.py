"""Locks between processes that end with the process that holds them, however it ends: flock(2) on small files.

Two kinds: who builds or prunes is alone, and waits or goes away; who uses an entry shares it with others, so that
nobody removes it meanwhile.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Hold:
    """A lock on an open file; it ends when this object does."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def stands_at(self, path: Path) -> bool:
        """Whether the file that is locked is (still) the one at `path`."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path, follow_symlinks=False))
        except OSError:
            return False

    def __del__(self) -> None:
        os.close(self._descriptor)


@contextmanager
def exclusive(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock file `path` alone, made where it is missing; gives False where that would be to wait.

    Who holds it may remove the file, as the last thing done: from then on others can hold the next one.

    Raises OSError where the file cannot be made, or its file system has no locks.
    """
    while True:
        hold = Hold(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        try:
            fcntl.flock(hold._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        # Who held it before may have removed the file: others then meet at a new one.
        if hold.stands_at(path):
            break
    try:
        yield True
    finally:
        del hold


def share(path: Path) -> Hold | None:
    """Marks a file that is there as used; None where somebody is about to remove it. Raises OSError as `open` does."""
    return _at_once(path, os.O_RDONLY, fcntl.LOCK_SH)


def claim(path: Path) -> Hold | None:
    """Keeps others from using a file that is there; None where somebody uses it. Raises OSError as `open` does."""
    return _at_once(path, os.O_RDWR, fcntl.LOCK_EX)


def _at_once(path: Path, mode: int, lock: int) -> Hold | None:
    hold = Hold(os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW))
    try:
        fcntl.flock(hold._descriptor, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        pass  # A file system without locks: the time of the last use is all that protects the entry there.
    return hold
