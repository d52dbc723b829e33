"""What this process holds of the host's memory: now, and at its peak over a stretch of time."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PERIOD = 0.01
"""Seconds between two looks at a process where the kernel keeps no mark, or where it has a limit."""
_LARGEST_MAPPED = (32 << 20) - (1 << 16)
"""Bytes of a block just under glibc's DEFAULT_MMAP_THRESHOLD_MAX."""
_SLACK = 1 << 20
"""Bytes by which the mark may be above what is resident right after it was set back."""
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def settled() -> int:
    """Resident bytes after what was freed has gone back to the kernel.

    What the allocator kept would be used again by the sessions, and they would seem to take that much less. Nor may it
    matter what was allocated before: glibc maps a block apart, and gives it back at once, if it is larger than any such
    block that was freed before (of 32 MiB at most). Processes that have lived for a while map none; nor does this one.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc's own; elsewhere nothing is known to be kept
        library = ctypes.CDLL(None)
        library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        library.free.argtypes = [ctypes.c_void_p]
        library.free(library.malloc(_LARGEST_MAPPED))
        library.mallopt(-1, 2**31 - 1)
        library.malloc_trim(0)
    return resident()


def resident() -> int:
    return _status("VmRSS") or int(psutil.Process().memory_info().rss)


def _status(name: str) -> int | None:
    """A figure of the kernel's about this process in bytes; None where it has none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


@contextlib.contextmanager
def peak() -> Iterator[Callable[[], tuple[int, bool]]]:
    """The largest resident size of the block, asked for after it, and whether it is the kernel's own mark.

    The mark counts from the process's beginning, with all that importing the runtimes took for a moment. Where it
    cannot be set back, it still tells a peak above the one before; any other is what a thread sees.
    """
    with contextlib.suppress(OSError):  # not Linux, or not allowed in this container
        _CLEAR.write_text("5")
    before, begun = _status("VmHWM"), resident()
    marked = before is not None and before - begun <= _SLACK
    seen = [begun]
    done = threading.Event()

    def look() -> None:
        while not done.wait(PERIOD):
            seen.append(max(seen.pop(), resident()))

    thread = threading.Thread(target=look, daemon=True)
    if not marked:
        thread.start()

    def highest() -> tuple[int, bool]:
        mark = _status("VmHWM")
        if mark is not None and (marked or (before is not None and mark > before)):
            return mark, True
        return max(seen[0], resident()), False

    try:
        yield highest
    finally:
        done.set()
        if not marked:
            thread.join()
