"""Deployments beside each other, and beside the user's own Paddle: nothing that one leaves behind reaches another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddock
import pytest
from paddock.verify import Outcome

paddle = pytest.importorskip("paddle")

ROWS = np.random.default_rng(0).standard_normal((3, 8, 4), dtype=np.float32)
IMAGE = np.random.default_rng(1).standard_normal((2, 3, 16, 16), dtype=np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_CACHE", str(tmp_path / "cache"))


def on_one_thread(work: Callable[[], None]) -> None:
    """Runs it on a new thread, which it may leave in whatever state: the other tests' predictors share this one."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    for error in raised:
        raise error


def deploy(models: Path, name: str, backend: str) -> paddock.Deployment:
    deployment = paddock.deploy(models / name, {"hardware": "cpu", "backend": backend})
    assert deployment.report.outcome is Outcome.PASSED
    return deployment


def softmax(models: Path, x: Any) -> Any:
    """What the model computes, in NumPy."""
    layer = paddle.jit.load(str(models / "softmax"))
    bias, matrix = (value.numpy() for value in sorted(layer.parameters(), key=lambda p: p.ndim))
    raised = np.exp(x @ matrix + bias)
    return raised / raised.sum(-1, keepdims=True)


def check(deployment: paddock.Deployment, x: Any, wanted: Any) -> None:
    (found,) = deployment.run({"x": x}).values()
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # the shape too


@pytest.mark.parametrize("first", ["softmax", pytest.param("pool", marks=pytest.mark.long)])
def test_two_deployments_do_not_disturb_each_other(models: Path, first: str) -> None:
    """The pool leaves NHWC behind on its thread, and the softmax would then read its input as that."""

    def work() -> None:
        names = ("softmax", "pool") if first == "softmax" else ("pool", "softmax")
        made = {name: deploy(models, name, {"softmax": "mkldnn", "pool": "paddle"}[name]) for name in names}
        rows, images = made["softmax"], made["pool"]
        (pooled,) = images.run({"x": IMAGE}).values()
        assert pooled.shape == (2, 3, 7, 7)
        for x in (ROWS, ROWS[:, :5], ROWS):
            check(rows, x, wanted[x.shape])
            check(images, IMAGE, pooled)
        images.close()
        check(rows, ROWS, wanted[ROWS.shape])
        rows.close()

    wanted = {x.shape: softmax(models, x) for x in (ROWS, ROWS[:, :5])}
    on_one_thread(work)


@pytest.mark.long
def test_the_users_own_paddle_does_not_disturb_a_deployment(models: Path) -> None:
    def own() -> None:
        inference = paddle.inference
        config = inference.Config(str(models / "pool.json"), "")
        config.disable_gpu()
        config.disable_mkldnn()
        config.disable_glog_info()
        config.enable_new_executor()
        config.enable_new_ir(True)
        predictor = inference.create_predictor(config)
        predictor.get_input_handle("x").copy_from_cpu(IMAGE)
        predictor.run()
        kept.append(predictor)  # its end would undo what it left behind
        paddle.nn.functional.adaptive_avg_pool2d(paddle.to_tensor(IMAGE), 7)

    def work() -> None:
        with deploy(models, "softmax", "mkldnn") as rows:
            check(rows, ROWS, wanted)
            own()
            check(rows, ROWS, wanted)
            with deploy(models, "softmax", "mkldnn") as later:
                check(later, ROWS, wanted)
            check(rows, ROWS, wanted)

    kept: list[Any] = []
    wanted = softmax(models, ROWS)
    on_one_thread(work)
    kept.clear()


@pytest.mark.long
def test_instances_and_many_callers(models: Path) -> None:
    """Every session is made, run and closed on its own thread, whoever calls."""
    found: list[bool] = []

    def call() -> None:
        for _ in range(20):
            (answer,) = deployment.run({"x": ROWS}).values()
            found.append(np.allclose(answer, wanted, atol=1e-5))

    wanted = softmax(models, ROWS)
    with paddock.deploy(models / "softmax", {"hardware": "cpu", "backend": "mkldnn", "instances": 2}) as deployment:
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 80 and all(found)
    with pytest.raises(paddock.PaddockError, match="closed"):
        deployment.run({"x": ROWS})
