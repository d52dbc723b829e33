"""defects.json of cpu/mkldnn: each entry is still true of the paddlepaddle installed.

A test that fails here because the numbers are right is good news: the entry's `versions` need an end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.config import HardwareConfig
from paddock.errors import PaddockError, RunFailed
from paddock.model import Model
from paddock.plan import Precision, PrecisionPlan, Remedy, Segment
from paddock.spi import Context, ResolvedConfig, SegmentMemory, SegmentPlan, Session
from paddock_paddle import defects
from paddock_paddle.adapters import CpuMkldnn, CpuPaddle, PaddleAdapter
from paddock_paddle.format import PaddleFormat

paddle = pytest.importorskip("paddle")

BF16 = paddle.base.core.supports_bfloat16()
INPLACE, SPECIAL, SCALE = "onednn-inplace-layout", "onednn-bf16-special-ops", "onednn-interpolate-scale"


def model_of(folder: Path, name: str) -> Model:
    form = PaddleFormat()
    files = form.locate(folder / name)
    assert files is not None
    return Model("paddle", files, "test", form.read(files))


def adapter_of(kind: type[PaddleAdapter], precision: str = "fp32", **options: Any) -> PaddleAdapter:
    config = HardwareConfig.load({"hardware": kind.hardware, "backend": kind.backend, "precision": precision})
    return kind(ResolvedConfig(config, kind.Options(**options), 1), None)


def session_of(adapter: PaddleAdapter, model: Model, folder: Path, without: str = "") -> Session:
    """A session with all of the adapter's remedies but one."""
    graph = model.graph
    segment = Segment(0, adapter.name(), tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
    remedies = tuple(remedy for remedy in adapter.known_defects(model) if remedy.name != without)
    plan = SegmentPlan(segment, PrecisionPlan(adapter.config.precision), SegmentMemory(), remedies)
    context = Context(folder, folder)
    return adapter.load(adapter.compile(model, plan, context), context)


def error(found: Any, wanted: Any) -> float:
    """The largest difference over the largest magnitude."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def listed(adapter: PaddleAdapter, model: Model) -> dict[str, bool]:
    return {remedy.name: remedy.applied for remedy in adapter.known_defects(model)}


def test_every_entry_is_tried() -> None:
    assert {defect.name for defect in defects.entries()} == {INPLACE, SPECIAL, SCALE}


def test_a_rotary_embedding_is_still_wrong_without_its_remedy(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "rotary")
    x = np.random.default_rng(0).standard_normal((2, 64, 256), dtype=np.float32)
    (wanted,) = session_of(adapter_of(CpuPaddle), model, tmp_path).run({"x": x}).values()
    (mended,) = session_of(adapter_of(CpuMkldnn), model, tmp_path).run({"x": x}).values()
    (broken,) = session_of(adapter_of(CpuMkldnn), model, tmp_path, without=INPLACE).run({"x": x}).values()
    (unmended,) = session_of(adapter_of(CpuMkldnn, workarounds=False), model, tmp_path).run({"x": x}).values()
    assert error(mended, wanted) < 1e-4
    assert error(broken, wanted) > 0.3 and error(unmended, wanted) > 0.3


@pytest.mark.skipif(not BF16, reason="this CPU does not compute in bf16")
def test_bf16_beyond_convolution_still_fails_without_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    from examples.deepseek.export import export

    export(tmp_path)
    model, tokens = model_of(tmp_path, "deepseek"), np.ones((1, 8), np.int64)
    adapter = adapter_of(CpuMkldnn, "bf16")
    assert session_of(adapter, model, tmp_path).run({"tokens": tokens})
    with pytest.raises(PaddockError, match="quantize"):
        session_of(adapter, model, tmp_path, without=SPECIAL).run({"tokens": tokens})


def test_interpolation_still_fails_and_is_kept_off(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "resize")
    adapter = adapter_of(CpuMkldnn)
    nodes = tuple(node.index for node in model.graph.nodes if node.op == "pd_op.bilinear_interp")
    (remedy,) = [remedy for remedy in adapter.known_defects(model) if remedy.name == SCALE]
    assert nodes and remedy.nodes == nodes and remedy.applied
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16), dtype=np.float32)
    assert not adapter_of(CpuPaddle).known_defects(model)
    assert session_of(adapter_of(CpuPaddle), model, tmp_path).run({"x": x})
    session = session_of(adapter, model, tmp_path)
    with pytest.raises(RunFailed, match="ConvertPirAttribute2RuntimeAttribute") as caught:
        session.run({"x": x})
    assert "/paddle/paddle" not in caught.value.problem and "\n" not in caught.value.problem


def test_known_defects_follow_precision_and_workarounds(models: Path) -> None:
    model = model_of(models, "linear")
    assert listed(adapter_of(CpuMkldnn), model) == {INPLACE: True}
    assert listed(adapter_of(CpuMkldnn, "bf16"), model) == {INPLACE: True, SPECIAL: True}
    assert listed(adapter_of(CpuMkldnn, "bf16", workarounds=False), model) == {INPLACE: False, SPECIAL: False}
    assert not adapter_of(CpuPaddle).known_defects(model)


def test_what_only_crashes_is_kept_off_without_workarounds(models: Path) -> None:
    model = model_of(models, "resize")
    assert listed(adapter_of(CpuMkldnn, workarounds=False), model) == {INPLACE: False, SCALE: True}


def test_the_passes_of_what_is_applied_are_deleted(models: Path) -> None:
    model = model_of(models, "linear")
    foreign = Remedy("another", "", "", True)
    found = adapter_of(CpuMkldnn, "bf16").known_defects(model)
    assert defects.passes_to_delete([*found, foreign]) == ("inplace_pass", "cpu_special_ops_bf16_pass")
    assert defects.passes_to_delete(adapter_of(CpuMkldnn, workarounds=False).known_defects(model)) == ()


@pytest.mark.parametrize(("version", "affected"), [("3.3.1", True), ("3.4.0", True), ("", True), ("3.2.2", False)])
def test_versions_newer_than_those_seen_are_mended_too(
    models: Path, monkeypatch: pytest.MonkeyPatch, version: str, affected: bool
) -> None:
    monkeypatch.setattr(defects, "installed", lambda: version)
    model = model_of(models, "linear")
    assert bool(defects.remedies(model.graph, Precision.FP32, workarounds=True)) is affected
