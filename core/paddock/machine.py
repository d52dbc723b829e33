"""What this host is: cores, memory, CPU flags, and how its threads are shared out.

Runtimes in one process fight over the cores, so the thread budget is decided here, in one place.
"""

from __future__ import annotations

import gc
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from paddock.config import HardwareConfig

_FLAGS_THAT_MATTER = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve",
)  # fmt: skip
_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores this process may use: its affinity, capped by a cgroup v2 quota (rounded up)."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        pass  # No cgroup v2 quota here: the affinity stands.
    return count


def share_of_threads(config: HardwareConfig) -> int:
    """Compute threads for each session: `threads` of the config, or the cores divided by its instances (at least 1)."""
    return config.threads or max(1, cores() // config.instances)


def busy_cores(seconds: float) -> float:
    """How many cores are kept busy by whatever runs on this host, on average over so many seconds from now."""
    return float(psutil.cpu_percent(interval=seconds)) / 100 * (psutil.cpu_count() or 1)


_PAUSING = threading.Lock()
_pauses: list[bool] = []
"""One for each block inside of `collector_paused`: whether it found the collector running."""


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keeps the cyclic garbage collector from running; blocks may nest and overlap, in any threads.

    For imports, which make many objects and hardly any garbage, and for which each round looks at all objects anew: a
    sixth of the time that Paddle's take.
    """
    with _PAUSING:
        _pauses.append(gc.isenabled())
        gc.disable()
    try:
        yield
    finally:
        with _PAUSING:
            if _pauses.pop():  # the first one's, which whoever leaves last takes
                gc.enable()


def memory_available() -> int:
    """Bytes of host memory that can be taken without swapping, within a cgroup v2 limit."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        # The page cache counts as used, but the kernel takes its inactive part back before it refuses anything.
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used -= int(stat.get("inactive_file", 0))
        if limit != "max":
            available = min(available, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # No cgroup v2 limit here.
    return available


def available(memory: int | None, kind: str) -> int | None:
    """Bytes that can be taken: of a device's own `memory` or, where it works in the host's, of that."""
    if kind != "host":
        return memory
    free = memory_available()
    return min(memory or free, free)


@cache
def cpu() -> tuple[str, tuple[str, ...]]:
    """The CPU's model name and those of its flags that decide which kernels a runtime takes."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    except OSError:
        pass  # Not Linux: the platform module's name has to do.
    return name, tuple(flag for flag in _FLAGS_THAT_MATTER if flag in flags)


@cache
def host_facts() -> Mapping[str, Any]:
    """What decides whether an answer found on this host still holds: CPU, kernel, drivers, Python."""
    name, flags = cpu()
    driver = Path("/proc/driver/nvidia/version")
    return {
        "host": platform.node(),
        "cpu": name,
        "flags": list(flags),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nvidia": driver.read_text().splitlines()[0] if driver.exists() else None,
    }
