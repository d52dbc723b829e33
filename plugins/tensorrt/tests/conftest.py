"""The real bindings where make put them, and the fake of TensorRT and CUDA that stands in for a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paddock import libraries
from paddock_tensorrt import cuda, sdk

HERE = Path(__file__).parent
# Children get the parent's sys.path, so what stands here is found there by the same name.
sys.path.insert(0, str(HERE))

FAKE = HERE / "fake_sdk"
MODULES = ("tensorrt_bindings", "tensorrt_libs", "tensorrt", "cuda")


def _forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in MODULES:
            del sys.modules[name]
    for kept in (sdk._tensorrt, sdk._said, cuda.runtime, libraries._library_path):
        kept.cache_clear()


def _fake(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[pytest.MonkeyPatch]:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("PADDOCK_CACHE", str(cache))  # what is kept with a fault is not for other tests
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(FAKE / "driver"), prepend=os.pathsep)
    for name in ("FAKE_TENSORRT", "FAKE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    _forget()
    yield monkeypatch
    _forget()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """The fake in place of TensorRT and CUDA, here and in children; gives the means to set its faults."""
    yield from _fake(monkeypatch, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="class")
def faked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """The same for all tests of a class."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from _fake(monkeypatch, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("PADDOCK_CACHE")
    os.environ["PADDOCK_CACHE"] = str(tmp_path_factory.mktemp("tensorrt-cache"))
    yield
    if before is None:
        del os.environ["PADDOCK_CACHE"]
    else:
        os.environ["PADDOCK_CACHE"] = before
