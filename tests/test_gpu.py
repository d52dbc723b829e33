"""What needs an NVIDIA GPU: `make test-gpu`. Each test is skipped with what is missing where there is none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.config import HardwareConfig
from paddock.deployment import deploy
from paddock.errors import AccuracyRefused, PaddockError
from paddock.plan import Precision
from paddock.registry import Registry
from paddock.spi import Adapter
from paddock.testing.runner import Runner
from paddock.testing.zoo import ZOO, Draft

from benchmarks.gpu_measuring import Row, measure
from benchmarks.gpu_models import MODELS
from benchmarks.gpu_native import free_bytes

ADAPTERS = [pytest.param(name, marks=pytest.mark.gpu(name)) for name in ("gpu/cuda", "gpu/tensorrt")]
on_each = pytest.mark.parametrize("name", ADAPTERS)
READY = Path(__file__).resolve().parents[1] / "adapters_json"


def class_of(name: str) -> type[Adapter]:
    return Registry.discover().get(name).adapter


def config_of(name: str, **fields: Any) -> dict[str, Any]:
    hardware, _, backend = name.partition("/")
    return {"hardware": hardware, "backend": backend, **fields}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """The process that the conformance kit's checks run in."""
    made = Runner(quick=True)
    yield made
    made.close()


@on_each
def test_it_keeps_all_that_it_declares(name: str, runner: Runner) -> None:
    """The conformance kit, quick form, all checks of one adapter together."""
    results = runner.run_all(class_of(name))
    assert not {found.check: f"{found.outcome}: {found.reason}" for found in results if found.outcome.bad}


@on_each
@pytest.mark.parametrize("model", [*sorted(ZOO), *sorted(MODELS)])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_models_are_verified_against_the_reference(name: str, model: str, precision: str, tmp_path: Path) -> None:
    write = {**ZOO, **MODELS}[model]
    config = config_of(name, precision=precision, batch_size=4)
    try:
        with deploy(write(tmp_path / "model.onnx"), config) as deployment:
            assert deployment.report.outcome == "passed"
            assert deployment.plan.placement.on(name) == len(deployment.plan.placement.nodes)
    except AccuracyRefused:
        raise
    except PaddockError as error:
        if precision != "fp32":
            pytest.skip(f"refused, with the reason: {error.problem}")
        raise


@on_each
@pytest.mark.parametrize("model", ["deepseek", "resnet", "rotary"])
def test_the_example_models_are_verified(name: str, model: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("paddle", reason="the example models are exported by PaddlePaddle")
    path = request.getfixturevalue("models")[model]
    with deploy(path, config_of(name)) as deployment:
        assert deployment.report.outcome == "passed"


@on_each
def test_nothing_is_left_on_the_device_by_a_closed_deployment(name: str, tmp_path: Path) -> None:
    path = MODELS["encoder"](tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((4, 128, 512), np.float32)
    config = config_of(name, batch_size=4, accuracy={"verify": "off"})
    free = []
    for _ in range(4):
        with deploy(path, config) as deployment:
            deployment.run({"x": x})
        gc.collect()
        free.append(free_bytes())
    assert free[0] is not None, "the CUDA runtime is not in this process"
    assert free[-1] == free[1], "what the first one left is a context; later ones leave nothing"


@on_each
def test_concurrent_runs_do_not_mix_their_answers(name: str, tmp_path: Path) -> None:
    path = MODELS["linear"](tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal((4, 768), np.float32) for _ in range(64)]
    with deploy(path, config_of(name, batch_size=4, instances=2)) as deployment:
        alone = [deployment.run({"x": x})["y"] for x in feeds]
        together = [future.result()["y"] for future in [deployment.submit({"x": x}) for x in feeds]]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@on_each
def test_the_benchmark_runs_to_its_end(name: str, tmp_path: Path) -> None:
    rows = measure("linear", MODELS["linear"](tmp_path / "linear.onnx"), name, "fp32", [1, 4])
    assert [row.batch for row in rows] == [1, 4]
    assert all(isinstance(row, Row) and row.left == 0 and row.paddock > 0 for row in rows)


@pytest.mark.gpu("gpu/cuda")
def test_the_reported_defect_of_trilinear_resize_still_stands(tmp_path: Path) -> None:
    """Where this fails, `cuda-resize-trilinear` in defects.json was only true of the versions before."""
    ort = pytest.importorskip("onnxruntime")
    d = Draft("resize")
    x = d.input("x", (1, 1, 1, 1, 1))
    made = d("Gemm", d("Reshape", x, d.ints(1, 1)), d.weight(1, 1), d.weight(1))
    sizes = d.ints(1, 1, 511, 1, 1)
    path = d.save(
        tmp_path / "m.onnx", y=d("Resize", d("Reshape", made, d.ints(1, 1, 1, 1, 1)), "", "", sizes, mode="linear")
    )
    answers = []
    for providers in (["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]):
        session = ort.InferenceSession(str(path), providers=providers)
        answers.append(session.run(None, {"x": np.full((1, 1, 1, 1, 1), 3, np.float32)})[0])
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


@pytest.mark.parametrize("path", sorted(READY.glob("gpu-cuda*.json")), ids=lambda path: str(path.stem))
@pytest.mark.gpu("gpu/cuda")
def test_ready_configs_deploy(path: Path, tmp_path: Path) -> None:
    config = HardwareConfig.load(path)
    with deploy(ZOO["mlp"](tmp_path / "model.onnx"), path) as deployment:
        assert deployment.report.outcome == "passed"
        assert config.precision in (Precision.FP32, Precision.FP16, Precision.BF16)
