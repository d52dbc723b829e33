"""The models of the precision benchmark: of sensible size, following their input, right on every CPU backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.child import Child, Children
from paddock.deployment import deploy
from paddock.metrics import relative_error
from paddock.npz import read_npz
from paddock.registry import Registry

from examples.deepseek.text import PARAGRAPHS, split

Arrays = Mapping[str, "np.ndarray[Any, Any]"]

VOCABULARY, SEQUENCE = 64, 16
SMALL = ("encoder", "linear", "decoder_trained")


def export_small(folder: Path) -> Path:
    """In a child: the encoder and the trained decoder at a fraction of their size, and the linear layer."""
    from examples.deepseek import train
    from examples.encoder import export as encoder
    from examples.linear import export as linear

    sizes = encoder.Config(vocabulary=VOCABULARY, sequence=SEQUENCE, hidden=32, layers=2, heads=4, width=64)
    encoder.export(folder, sizes)
    linear.export(folder)
    train.export(folder, _small_decoder(), steps=2)
    return folder


def _small_decoder() -> Any:
    from examples.deepseek import train

    return replace(train.CONFIG, hidden=32, layers=2, heads=2, dense_width=32, expert_width=16, routed_experts=4)


def mobilenet_activations() -> tuple[list[tuple[float, float]], np.ndarray[Any, Any]]:
    """In a child: (deviation, largest magnitude) behind each batch norm, and logits [4, 1000], on unseen noise."""
    import paddle
    from paddle import nn

    from examples.mobilenet.export import build

    paddle.seed(0)
    model = build()
    found: list[tuple[float, float]] = []

    def keep(layer: Any, inputs: Any, output: Any) -> None:
        found.append((float(output.std()), float(output.abs().max())))

    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer.register_forward_post_hook(keep)
    with paddle.no_grad():
        logits = model(paddle.randn([4, 3, 224, 224])).numpy()
    return found, logits


def grouped_and_own() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """In a child: the decoder's logits as it trains and as it is exported."""
    import paddle

    from examples.deepseek import train
    from examples.deepseek.model import Decoder

    paddle.seed(0)
    decoder = Decoder(_small_decoder())
    tokens = paddle.to_tensor(np.random.default_rng(0).integers(0, 128, (3, 7)))
    with paddle.no_grad():
        with train.differentiable(decoder):
            training = decoder(tokens).numpy()
        return training, decoder(tokens).numpy()


def trained_twice(steps: int) -> tuple[Any, bool, bool]:
    """In a child: what was learnt, whether a second time gives the same bits, whether the random state was kept."""
    import paddle

    from examples.deepseek import train

    paddle.seed(7)
    wanted = paddle.randn([3]).numpy()
    paddle.seed(7)
    first = train.train(_small_decoder(), steps)
    kept = bool((paddle.randn([3]).numpy() == wanted).all())
    second = train.train(_small_decoder(), steps)
    same = all(np.array_equal(value, second.weights[name]) for name, value in first.weights.items())
    return (first.before, first.after), same and first.after == second.after, kept


@pytest.fixture(scope="module")
def exporter() -> Iterator[Child]:
    with Child("building the task models") as child:
        yield child


@pytest.fixture(scope="module")
def small(exporter: Child, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exporter.call(export_small, tmp_path_factory.mktemp("small"))


def feeds_for(name: str) -> Arrays:
    rng = np.random.default_rng(31)
    if name == "encoder":
        lengths = np.array([SEQUENCE, 9, 1])
        mask = (np.arange(SEQUENCE) < lengths[:, None]).astype(np.int64)
        return {"tokens": rng.integers(0, VOCABULARY, (3, SEQUENCE)), "mask": mask}
    if name == "linear":
        return {"x": rng.standard_normal((3, 768), dtype=np.float32)}
    return {"tokens": rng.integers(0, 128, (3, 21))}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "encoder" else name for name in SMALL]
)
def test_verified_on_every_cpu_backend(name: str, small: Path, registry: Registry, children: Children) -> None:
    wanted = None
    for backend in ("onnxruntime", "openvino"):  # each is checked against the reference, which is cpu/paddle
        config: dict[str, Any] = {"hardware": "cpu", "backend": backend}
        if name == "decoder_trained":
            kind = "samples" if backend == "onnxruntime" else "calibration"
            config["accuracy"] = {"samples": str(small / f"decoder_trained_{kind}")}
        with deploy(small / f"{name}.json", config, registry=registry, children=children) as deployment:
            assert deployment.report.outcome == "passed"
            (found,) = deployment.run(feeds_for(name)).values()
        wanted = found if wanted is None else wanted
        assert relative_error(wanted, found)[0] < 1e-4
        assert found.std(axis=0).mean() > 0.1, "the answers hardly follow the input"


def test_what_is_masked_does_not_count_and_what_is_not_does(
    small: Path, registry: Registry, children: Children
) -> None:
    config = {"hardware": "cpu", "backend": "onnxruntime"}
    feeds = feeds_for("encoder")
    real = feeds["mask"] != 0
    tokens = feeds["tokens"]
    padding = {**feeds, "tokens": np.where(real, tokens, (tokens + 1) % VOCABULARY)}
    content = {**feeds, "tokens": np.where(real & (np.arange(SEQUENCE) == 8), (tokens + 1) % VOCABULARY, tokens)}
    with deploy(small / "encoder.json", config, registry=registry, children=children) as deployment:
        before, after, changed = (next(iter(deployment.run(each).values())) for each in (feeds, padding, content))
    np.testing.assert_allclose(after[real], before[real], atol=1e-5)
    assert np.abs(changed[:2, 0] - before[:2, 0]).max(axis=-1).min() > 1e-3
    np.testing.assert_array_equal(changed[2], before[2])  # its one real token stands at 0


def test_mobilenet_neither_vanishes_nor_explodes_and_follows_the_image(exporter: Child) -> None:
    layers, logits = exporter.call(mobilenet_activations)
    assert len(layers) == 52
    assert all(0.7 < deviation < 1.5 and largest < 20 for deviation, largest in layers)
    assert np.abs(logits).max() < 20
    assert 0.5 < logits.std(axis=0).mean() < 2
    assert np.abs(logits.mean(axis=0)).mean() < 1.0, "the logits are mostly a part that no image changes"


def test_training_computes_what_is_exported(exporter: Child) -> None:
    training, exported = exporter.call(grouped_and_own)
    np.testing.assert_allclose(training, exported, rtol=1e-4, atol=1e-5)


def test_training_learns_and_is_the_same_each_time(exporter: Child) -> None:
    (before, after), same, kept = exporter.call(trained_twice, 6)
    assert same and kept
    assert after.loss < before.loss - 1 and after.accuracy > before.accuracy
    assert 0 < after.margin < 1 and 0 <= after.idlest < 0.25 < after.busiest <= 0.5


def test_what_judges_neither_trained_nor_calibrates(small: Path) -> None:
    def windows(kind: str) -> list[str]:
        files = sorted((small / f"decoder_trained_{kind}").glob("*.npz"))
        return [bytes(read_npz(file, kind)["tokens"].astype(np.uint8).ravel()).decode("ascii") for file in files]

    judge, calibrate = windows("samples"), windows("calibration")
    trains = "\n".join(line for number, line in enumerate(PARAGRAPHS) if number % 4 != 3)
    assert min(len(set(judge)), len(set(calibrate))) >= 32
    assert {len(window) for window in judge + calibrate} == {48}
    assert all(window in trains for window in calibrate) and not any(window in trains for window in judge)


def test_no_held_out_line_trains() -> None:
    kept, held = (bytes(part.astype(np.uint8)).decode("ascii").split("\n") for part in split())
    assert sorted(kept + held) == sorted(PARAGRAPHS) and not set(kept) & set(held)
    assert 4096 <= len("\n".join(PARAGRAPHS)) <= 8192


def test_what_every_test_exports_stays_small() -> None:
    """The fixture of all tests exports EXPORTS; the encoder's 434 MB and the training stay out of it."""
    from examples.export import ALL, EXPORTS, TASKS

    assert set(EXPORTS) == {"deepseek", "resnet", "rotary"}
    assert set(TASKS) == {"encoder", "linear", "mobilenet"} and ALL == {**EXPORTS, **TASKS}
