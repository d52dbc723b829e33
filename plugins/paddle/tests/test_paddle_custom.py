"""The base class for custom devices as a vendor without one sees it; npu/ascend's tests run it on a simulated NPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from paddock.config import HardwareConfig
from paddock.errors import NotAvailable
from paddock.model import Model
from paddock.plan import Answer, Precision, Verdict
from paddock.spi import Context, Device, Probe, ResolvedConfig
from paddock_paddle.custom import BLACK_LIST, ROOT, CustomDeviceAdapter
from paddock_paddle.format import PaddleFormat
from paddock_paddle.kernels import Kernels
from paddock_paddle.placer import Placer
from paddock_paddle.predictor import Realised

paddle = pytest.importorskip("paddle")


class NpuAcme(CustomDeviceAdapter):
    """A vendor's whole adapter."""

    hardware: ClassVar[str] = "npu"
    backend: ClassVar[str] = "acme"
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32})
    device_type: ClassVar[str] = "acme"
    distributions: ClassVar[tuple[str, ...]] = ("pytest", "paddle-custom-acme")
    environment: ClassVar[tuple[str, ...]] = ("ACME_VISIBLE_DEVICES",)
    driver: ClassVar[str] = "1.2"

    @classmethod
    def probe_sdk(cls) -> Probe:
        if not cls.driver:
            return Probe(Verdict.no("Acme's driver is not installed", "/proc/driver/acme"), {}, "install it")
        return Probe(Verdict.yes("", "/proc/driver/acme"), {"acme driver": cls.driver})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ROOT, str(tmp_path))
    monkeypatch.delenv(BLACK_LIST, raising=False)
    return tmp_path


def model_of(folder: Path, name: str) -> Model:
    files = PaddleFormat().locate(folder / name)
    assert files is not None
    return Model("paddle", files, "test", PaddleFormat().read(files))


def test_probing_reads_what_is_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = NpuAcme.probe()
    assert probe.verdict.answer is Answer.NO and str(place) in probe.verdict.reason
    (place / "libacme.so").write_bytes(b"")
    monkeypatch.setenv("ACME_VISIBLE_DEVICES", "3")
    monkeypatch.setenv(BLACK_LIST, "softmax")
    probe = NpuAcme.probe()
    assert probe.verdict.answer is Answer.YES
    assert probe.versions["acme driver"] == "1.2" and "pytest" in probe.versions
    assert probe.versions["ACME_VISIBLE_DEVICES"] == "3" and probe.versions[BLACK_LIST] == "softmax"
    assert "paddle-custom-acme" not in probe.versions
    monkeypatch.setattr(NpuAcme, "driver", "")
    probe = NpuAcme.probe()
    assert "driver" in probe.verdict.reason and probe.remedy == "install it"
    monkeypatch.setenv(ROOT, "")
    monkeypatch.setattr(NpuAcme, "driver", "1.2")
    assert not NpuAcme.probe().verdict.usable


def test_a_type_that_paddle_does_not_know_is_a_verdict_and_no_abort(models: Path) -> None:
    devices = NpuAcme.probe_device()
    assert not devices.verdict.usable and "acme" in devices.verdict.reason
    config = HardwareConfig.load({"hardware": "npu", "backend": "acme"})
    adapter = NpuAcme(ResolvedConfig(config, NpuAcme.Options(), 1), None)
    with pytest.raises(NotAvailable, match="no devices of the type acme in this process"):
        adapter.configure(paddle.inference.Config(), {"device": 0})


def kernels(*names: str, dtype: str = "float32") -> Kernels:
    """Paddle's kernels, with these of a device beside."""
    known: dict[str, Mapping[str, frozenset[str]]] = {
        name: {"CPU": frozenset({"float32", "int64"})}
        for name in ("matmul", "softmax", "add", "multiply", "cos", "sin", "slice", "cast", "unsqueeze", "arange")
    }
    return known | {name: {**known.get(name, {}), "acme": frozenset({dtype})} for name in names}


def test_what_has_no_kernel_on_the_device_is_refused_with_the_reason(models: Path) -> None:
    graph = model_of(models, "softmax").graph
    verdicts = Placer(graph, backend="acme", known=kernels("matmul", "softmax")).verdicts()
    found = {node.op: verdict for node, verdict in zip(graph.nodes, verdicts, strict=True)}
    assert found["pd_op.matmul"] == Verdict.yes("acme kernel", found["pd_op.matmul"].source)
    assert found["pd_op.add"].answer is Answer.NO and "CPU without a word" in found["pd_op.add"].reason
    narrow = Placer(graph, backend="acme", known=kernels("matmul", dtype="float16")).verdicts()[0]
    assert narrow.answer is Answer.NO and "takes float16, not float32" in narrow.reason


def test_without_the_device_its_kernels_are_open(models: Path, tmp_path: Path) -> None:
    """A plan that is only looked at; with the device, and no kernel in Paddle's registry, all is refused."""
    config = ResolvedConfig(HardwareConfig.load({"hardware": "npu", "backend": "acme"}), NpuAcme.Options(), 1)
    model, context = model_of(models, "softmax"), Context(tmp_path, tmp_path)
    away = NpuAcme(config, None).select_operators(model, context).verdicts
    assert {verdict.answer for verdict in away} == {Answer.PROVISIONAL}
    here = NpuAcme(config, Device(0, "acme:0", {})).select_operators(model, context).verdicts
    assert {verdict.answer for verdict in here} == {Answer.NO}


def test_shapes_stay_on_the_host_and_what_is_made_of_them_does_not(models: Path) -> None:
    graph = model_of(models, "rotary").graph
    placer = Placer(graph, backend="acme", known=kernels())
    hosted = {graph.nodes[index].op for index in placer.hosted}
    assert {"pd_op.shape64", "pd_op.full_int_array"} <= hosted
    assert not hosted & {"pd_op.cos", "pd_op.sin", "pd_op.multiply", "pd_op.matmul", "pd_op.arange"}
    assert all(placer.verdicts()[index].usable for index in placer.hosted)


def test_only_what_is_more_than_the_hosts_has_strayed(models: Path) -> None:
    graph = model_of(models, "rotary").graph
    placer = Placer(graph, backend="acme", known=kernels())
    own = Counter(graph.nodes[i].op.partition(".")[2] for i in placer.hosted)
    assert placer.strayed(own) == ()
    strayed = placer.strayed({**own, "cos": 1})
    assert [graph.nodes[index].op for index in strayed] == ["pd_op.cos"]


def test_moves_between_memories_are_no_kernels_of_the_host() -> None:
    operations = {("CPU", "softmax"): 2, ("acme", "matmul"): 1, ("CPU", "memcpy_d2h"): 3, ("CUSTOM", "shadow_feed"): 1}
    assert Realised({}, operations=operations).hosted("acme") == {"softmax": 2}
