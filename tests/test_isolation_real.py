"""Real runtimes in processes of their own: the same answers, nothing of them in this process, back after a crash."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.child import Child
from paddock.deployment import deploy
from paddock.errors import ChildLost
from paddock.registry import Registry

SDKS = {
    "cpu/onnxruntime": "onnxruntime", "cpu/openvino": "openvino", "cpu/mkldnn": "paddle", "cpu/paddle": "paddle",
}  # fmt: skip


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, as a Paddle program."""
    from examples.linear.export import export  # which imports paddle, and children import this module

    with Child("exporting") as child:
        return child.call(export, tmp_path_factory.mktemp("linear"))


def isolated(model: Path, adapter: str) -> tuple[list[bytes], bool]:
    """Answers to requests of three batch sizes, the same after a crash, and whether the SDK was imported here."""
    hardware, _, backend = adapter.partition("/")
    config: dict[str, Any] = {
        "hardware": hardware, "backend": backend, "isolation": "process", "threads": 1, "batch_size": 8,
    }  # fmt: skip
    with deploy(model, config) as deployment:
        found = _answers(deployment)
        assert deployment.report.outcome == "passed" and deployment.isolation is not None
        os.kill(deployment.isolation.processes[0], signal.SIGSEGV)
        try:
            again = _answers(deployment)
        except ChildLost:  # a handler of the library's own may go on for a while
            again = _answers(deployment)
        assert again == found and deployment.isolation.restarts == 1
        return found, SDKS[adapter] in sys.modules


def here(model: Path, adapter: str) -> list[bytes]:
    """The same answers without isolation."""
    hardware, _, backend = adapter.partition("/")
    config = {"hardware": hardware, "backend": backend, "threads": 1, "batch_size": 8}
    with deploy(model, config) as deployment:
        return _answers(deployment)


def _answers(deployment: Any) -> list[bytes]:
    (name,) = deployment.inputs
    width = int(deployment.inputs[name].rstrip("]").split(", ")[-1])
    rng = np.random.default_rng(0)
    requests = [rng.standard_normal((rows, width)).astype(np.float32) for rows in (1, 8, 1, 3)]
    return [array.tobytes() for x in requests for array in deployment.run({name: x}).values()]


@pytest.mark.parametrize("adapter", ["cpu/onnxruntime", pytest.param("cpu/openvino", marks=pytest.mark.long),
                                     pytest.param("cpu/mkldnn", marks=pytest.mark.long)])  # fmt: skip
def test_a_real_runtime_is_isolated(linear: Path, registry: Registry, adapter: str) -> None:
    if adapter not in registry.names():
        pytest.skip(f"{adapter} is not installed")
    with Child("isolating") as child:
        found, imported = child.call(isolated, linear, adapter)
        assert not imported and found == child.call(here, linear, adapter)
