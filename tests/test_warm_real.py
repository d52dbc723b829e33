"""Warm start with real runtimes in one process: one serves while the other is imported, compiled and loaded."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import paddock
import pytest
from paddock.child import Child
from paddock.registry import Registry

from examples.linear.export import export

LONG = 300.0


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, as a Paddle program."""
    with Child("exporting") as child:
        return child.call(export, tmp_path_factory.mktemp("linear"))


@pytest.mark.long
@pytest.mark.parametrize("backend", ["openvino", "mkldnn"])
def test_a_real_runtime_takes_over_under_load(linear: Path, registry: Registry, backend: str) -> None:
    wanted = f"cpu/{backend}"
    if wanted not in registry.names():
        pytest.skip(f"{wanted} is not installed")
    config: dict[str, Any] = {"hardware": "cpu", "backend": backend, "warm_start": "cpu/onnxruntime", "threads": 1}
    rng = np.random.default_rng(0)
    with paddock.deploy(linear, {**config, "batch_size": 8}) as deployment:
        assert deployment.plan.adapter == "cpu/onnxruntime"
        (name,) = deployment.inputs
        width = int(deployment.inputs[name].rstrip("]").split(", ")[-1])
        xs = [rng.standard_normal((rows, width)).astype(np.float32) for rows in range(1, 9)]
        right = [deployment.run({name: x}) for x in xs]
        stop, served, errors = threading.Event(), [0, 0, 0], list[BaseException]()

        def call(caller: int) -> None:
            try:
                while not stop.is_set():
                    number = served[caller] % len(xs)
                    request = {name: xs[number]}
                    found = deployment.submit(request).result(LONG) if caller else deployment.run(request)
                    for output, array in found.items():
                        np.testing.assert_allclose(array, right[number][output], rtol=1e-3, atol=1e-4)
                    served[caller] += 1
            except BaseException as error:
                errors.append(error)

        callers = [threading.Thread(target=call, args=(caller,)) for caller in range(len(served))]
        for thread in callers:
            thread.start()
        status = deployment.settle(LONG)
        before = list(served)
        while not errors and not all(now > then for now, then in zip(served, before, strict=True)):
            stop.wait(0.01)
        stop.set()
        for thread in callers:
            thread.join()
        assert not errors
        assert status is not None and status.phase == "swapped" and status.serving == wanted, status
        assert status.worst is not None and status.worst < 1e-4
        assert deployment.plan.adapter == wanted and deployment.report.outcome == "passed"
