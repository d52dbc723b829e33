"""What this host is: limits of the cgroup, and the share of the threads."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import psutil
import pytest
from paddock import machine
from paddock.config import HardwareConfig
from paddock.machine import collector_paused


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    return tmp_path


MIB = 1 << 20


@pytest.mark.parametrize(
    ("limit", "used", "inactive", "left"),
    [
        (64 * MIB, 48 * MIB, 0, 16 * MIB),
        (64 * MIB, 60 * MIB, 56 * MIB, 60 * MIB),  # full of page cache, which the kernel takes back
        (64 * MIB, 70 * MIB, 0, 0),
    ],
)
def test_memory_within_a_cgroup_limit(cgroup: Path, limit: int, used: int, inactive: int, left: int) -> None:
    (cgroup / "memory.max").write_text(f"{limit}\n")
    (cgroup / "memory.current").write_text(f"{used}\n")
    (cgroup / "memory.stat").write_text(f"anon 123\ninactive_file {inactive}\nactive_file 5\n")
    assert machine.memory_available() == left


@pytest.mark.parametrize("content", ["max\n", "garbage\n", None])
def test_memory_without_a_limit_is_the_hosts(cgroup: Path, content: str | None) -> None:
    if content is not None:
        for name in ("memory.max", "memory.current"):
            (cgroup / name).write_text(content)
    assert 0 < machine.memory_available() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("content", "quota"),
    [("100000 100000\n", 1), ("150000 100000\n", 2), ("1000 100000\n", 1), ("max 100000\n", 4096), ("x\n", 4096)],
)
def test_cores_within_a_quota(cgroup: Path, content: str, quota: int) -> None:
    (cgroup / "cpu.max").write_text(content)
    assert machine.cores() == min(quota, len(os.sched_getaffinity(0)))


def test_share_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    base = {"hardware": "cpu", "backend": "any"}
    for more, share in (({}, 8), ({"instances": 3}, 2), ({"instances": 9}, 1), ({"instances": 3, "threads": 5}, 5)):
        assert machine.share_of_threads(HardwareConfig.load({**base, **more})) == share


def test_host_facts_are_json_data_and_stay() -> None:
    facts = machine.host_facts()
    assert facts == machine.host_facts()
    assert {"host", "cpu", "flags", "kernel", "python", "nvidia"} == set(facts)
    assert "glibc" not in str(facts["cpu"])


def test_the_collector_rests_until_the_last_block_is_left() -> None:
    assert gc.isenabled()
    first, second = collector_paused(), collector_paused()
    first.__enter__()
    second.__enter__()
    assert not gc.isenabled()
    first.__exit__(None, None, None)  # not in the order of entering, as two threads may
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
