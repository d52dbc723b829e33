"""The harness of `benchmarks.gpu` where there is no GPU: it says so, and measures what stands in for one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from paddock.testing.zoo import ZOO

from benchmarks import gpu, gpu_measuring
from benchmarks.gpu_measuring import GPUS, Row, measure
from benchmarks.gpu_models import MODELS
from benchmarks.gpu_native import NATIVE
from benchmarks.measuring import compare_calls

STAND_IN = "cpu/onnxruntime"


def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    here, missing = gpu.available(GPUS)
    if here:
        pytest.skip("there is a GPU here")
    assert gpu.main([]) == 2
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("no GPU to measure: ")
    assert all(f"{name}: {why}" in said for name, why in missing.items())


@pytest.mark.long
def test_a_stand_in_is_measured_verified_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, target = tmp_path / "models", tmp_path / "figures.json"
    folder.mkdir()
    ZOO["mlp"](folder / "mlp.onnx")
    arguments = ["--adapter", "cpu/onnxruntime", "--models", str(folder), "--batch", "1", "3", "--json", str(target)]
    assert gpu.main(arguments) == 0
    found = json.loads(target.read_text())
    assert found["cpu/onnxruntime"]["devices"] == ["CPU"]
    assert [row["batch"] for row in found["rows"]] == [1, 3]
    for row in found["rows"]:
        assert row["apart"] == 0 and row["error"] < 1e-5 and row["left"] is None
        assert row["native"] > 0 and row["paddock"] > 0
    assert capsys.readouterr().out.count("cpu/onnxruntime fp32") == 2


@pytest.mark.long
def test_a_native_side_that_fails_leaves_paddocks_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, batch: int) -> None:
        raise RuntimeError("no such library")

    monkeypatch.setattr(gpu_measuring, "NATIVE", {**NATIVE, "cpu/onnxruntime": broken})
    (row,) = measure("mlp", ZOO["mlp"](tmp_path / "mlp.onnx"), "cpu/onnxruntime", "fp32", [2])
    assert row.native is None and row.ratio is None and row.paddock > 0
    assert "no such library" in row.note and "no such library" in gpu.line(row)


@pytest.mark.parametrize(
    ("adapter", "left", "shown", "status"),
    [("gpu/cuda", 4096, "4096", 1), ("gpu/cuda", None, "?", 1), ("gpu/cuda", 0, "0", 0), (STAND_IN, None, "?", 0)],
)
def test_bytes_that_are_left_or_may_be_are_a_failure(
    adapter: str, left: int | None, shown: str, status: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    row = Row("m", adapter, "fp32", 1, 1.0, 2.0, 1.0, 0.1, 2.0, 0.0, 0.0, left)

    class FakeChild:
        def __init__(self, label: str) -> None: ...
        def __enter__(self) -> FakeChild:
            return self

        def __exit__(self, *_: object) -> None: ...
        def call(self, *_: object, seconds: float) -> list[Row]:
            return [row]

    monkeypatch.setattr(gpu, "Child", FakeChild)
    assert gpu.main(["--adapter", STAND_IN, "--model", "linear"]) == status
    assert shown in capsys.readouterr().out.split()


def test_calls_are_compared_in_blocks_of_a_length() -> None:
    calls = {"native": 0, "ours": 0}

    def count(name: str) -> None:
        calls[name] += 1

    found = compare_calls(lambda: count("native"), lambda: count("ours"), 3, 1e-6)
    assert calls["native"] >= 3 and calls["ours"] >= 3
    assert found.keys() == {"native", "paddock", "added", "spread"}
    alone = compare_calls(None, lambda: count("ours"), 3, 1e-6)
    assert alone["native"] is None and alone["paddock"] is not None


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_models_answer_by_their_input_alone(name: str, tmp_path: Path) -> None:
    """Finite, of a usual size, one row by another: what a check against the reference can tell apart."""
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(MODELS[name](tmp_path / "m.onnx")), providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    rng = np.random.default_rng(0)
    x = rng.standard_normal([3, *port.shape[1:]], np.float32)
    (whole,) = session.run(None, {port.name: x})
    assert np.isfinite(whole).all() and 0.01 < np.abs(whole).max() < 1e4
    (second,) = session.run(None, {port.name: x[1:2]})
    np.testing.assert_allclose(whole[1:2], second, rtol=1e-3, atol=1e-4)
    assert np.abs(whole[0] - whole[1]).max() > 0.01 * np.abs(whole).max()
