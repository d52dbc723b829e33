"""The simulated NPU, small models, and child processes that load it: Paddle takes devices only while it is imported."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paddock.cache import Store
from paddock.child import Child
from paddock_ascend import simulator

# Children get the parent's sys.path, so what stands here is found there by the same name.
sys.path.insert(0, str(Path(__file__).parent))

import paddock_ascend_calls as calls

ROOT = Path(__file__).resolve().parents[3]
CLEARED = (*simulator.SETTINGS, simulator.ROOT, "ASCEND_RT_VISIBLE_DEVICES", "CUSTOM_DEVICE_BLACK_LIST")

Simulate = Callable[..., Child]


@pytest.fixture(scope="session")
def library() -> Path:
    """The folder with the simulator's library, kept beside the demo's output: building it takes half a minute."""
    pytest.importorskip("paddle")
    if shutil.which("g++") is None:
        pytest.skip("the simulated NPU is built with g++")
    return simulator.build(Store(ROOT / "out" / "simulator"))


@pytest.fixture(autouse=True)
def _no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CLEARED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paddock's cache for these tests: probes, references, artifacts."""
    return tmp_path_factory.mktemp("ascend-cache")


@pytest.fixture
def simulate(library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulate]:
    """`simulate(faults="wrong:relu", ...)`: a process in which Paddle has the simulated NPU, with these settings."""
    made: list[Child] = []

    def start(**settings: str) -> Child:
        monkeypatch.setenv("PADDOCK_CACHE", str(cache))
        for name in simulator.SETTINGS:
            monkeypatch.delenv(name, raising=False)
        for name, value in simulator.environment(library, **settings).items():
            monkeypatch.setenv(name, value)
        made.append(Child("a process with the simulated NPU"))
        made[-1].call(os.getpid)  # now: a child gets its environment when it is started
        return made[-1]

    yield start
    for child in made:
        child.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.json of the models in `paddock_ascend_calls`; exported in a child without the device."""
    pytest.importorskip("paddle")
    folder = tmp_path_factory.mktemp("ascend-models")
    with Child("exporting models") as child:
        child.call(calls.export, folder)
    return folder
