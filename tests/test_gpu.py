"""What needs an NVIDIA GPU: `make test-gpu`. Each test is skipped with what is missing where there is none."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import deploy
from paddock.errors import NotAvailable
from paddock.plan import Precision
from paddock.prepare import prepare
from paddock.registry import Registry
from paddock.spi import Adapter
from paddock.testing.runner import Runner
from paddock.testing.zoo import ZOO, Draft

from benchmarks.gpu_measuring import Row, measure
from benchmarks.gpu_models import MODELS
from benchmarks.gpu_native import free_bytes

ADAPTERS = [pytest.param(name, marks=pytest.mark.gpu(name)) for name in ("gpu/cuda", "gpu/tensorrt")]
on_each = pytest.mark.parametrize("name", ADAPTERS)
READY = sorted((Path(__file__).resolve().parents[1] / "adapters_json").glob("gpu-*.json"))
FIXED = ("recurrent",)
"""Models whose shapes are all fixed."""
WITHOUT_EFFECT = (("depthwise", "bf16"), ("segmentation", "bf16"))
"""Models that have nothing to compute in a precision: ONNX has no bfloat16 convolution in their opset."""
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "deepseek": {"tokens": {"min": [1, 1], "max": [4, 64]}},
    "resnet": {"image": {"min": [1, 3, 224, 224], "max": [4, 3, 224, 224]}},
    "rotary": {"x": {"min": [1, 1, 256], "max": [4, 64, 256]}},
}
"""The shapes that the example models are asked for in."""


def class_of(name: str) -> type[Adapter]:
    return Registry.discover().get(name).adapter


def config_of(name: str, **fields: Any) -> dict[str, Any]:
    hardware, _, backend = name.partition("/")
    return {"hardware": hardware, "backend": backend, **fields}


def asked(name: str, model: str, precision: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A model's file, and the config that it is to be deployed with."""
    batch = {} if model in FIXED else {"batch_size": 4}
    return {**ZOO, **MODELS}[model](folder / f"{model}.onnx"), config_of(name, precision=precision, **batch)


def example_config(name: str, model: str) -> dict[str, Any]:
    """What an example model is to be deployed with."""
    return config_of(name, shapes=EXAMPLES[model])


def denial(name: str, precision: Precision) -> str:
    """Why the device here does not compute in a precision; "" where it does."""
    registry = Registry.discover()
    entry = registry.get(name)
    (device, *_) = registry.devices(entry, registry.probe(entry)).devices
    verdict = device.precisions[precision]
    return "" if verdict.usable else verdict.reason


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
    path, config = asked(name, model, precision, tmp_path)
    if (model, precision) in WITHOUT_EFFECT:
        with pytest.raises(NotAvailable, match="would have no effect"):
            deploy(path, config)
        return
    denied = denial(name, Precision(precision))
    if denied:
        with pytest.raises(NotAvailable, match=re.escape(denied)):
            deploy(path, config)
        pytest.skip(f"this device does not compute in {precision}: {denied}")
    with deploy(path, config) as deployment:
        assert deployment.report.outcome == "passed"
        assert deployment.plan.placement.on(name) == len(deployment.plan.placement.nodes)


@pytest.mark.long
@pytest.mark.parametrize("name", ["gpu/cuda", "gpu/tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_is_asked_of_a_device_can_be_planned_without_one(name: str, precision: str, tmp_path: Path) -> None:
    """So that no test of a device fails or is passed over for what is wrong with its own config."""
    registry = Registry.discover()
    with Children() as children:
        for model in {**ZOO, **MODELS}:
            path, config = asked(name, model, precision, tmp_path)
            if (model, precision) in WITHOUT_EFFECT:
                with pytest.raises(NotAvailable, match="would have no effect"):
                    prepare(path, config, registry=registry, children=children, assume=True)
                continue
            prepared = prepare(path, config, registry=registry, children=children, assume=True)
            prepared.discard()
            assert prepared.plan.placement.on(name) == len(prepared.plan.placement.nodes), model


@on_each
@pytest.mark.parametrize("model", EXAMPLES)
def test_the_example_models_are_verified(name: str, model: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("paddle", reason="the example models are exported by PaddlePaddle")
    path = request.getfixturevalue("models")[model]
    with deploy(path, example_config(name, model)) as deployment:
        assert deployment.report.outcome == "passed"
        placement = deployment.plan.placement
    assert placement.on(name) == len(placement.nodes)


@pytest.mark.parametrize("name", ["gpu/cuda", "gpu/tensorrt"])
@pytest.mark.parametrize("model", EXAMPLES)
def test_the_example_models_can_be_planned_without_a_device(
    name: str, model: str, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("paddle", reason="the example models are exported by PaddlePaddle")
    path = request.getfixturevalue("models")[model]
    with Children() as children:
        prepared = prepare(path, example_config(name, model), children=children, assume=True)
        prepared.discard()
    placement = prepared.plan.placement
    assert placement.on(name) == len(placement.nodes)
    assert not any("needs a profile" in note for note in prepared.plan.notes)


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


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.gpu(f"gpu/{backend}"), id=path.stem)
        for path in READY
        for backend in ("cuda", "tensorrt")
        if path.stem.split("-")[1] == backend
    ],
)
def test_ready_configs_deploy(path: Path, tmp_path: Path) -> None:
    config = HardwareConfig.load(path)
    denied = denial(config.adapter, config.precision)
    if denied:
        pytest.skip(f"this device does not compute in {config.precision}: {denied}")
    with deploy(ZOO["mlp"](tmp_path / "model.onnx"), path) as deployment:
        assert deployment.report.outcome == "passed"
        assert deployment.plan.placement.on(config.adapter) == len(deployment.plan.placement.nodes)
