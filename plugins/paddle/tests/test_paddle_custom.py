"""The base class for custom devices as a vendor without one sees it; npu/ascend's tests run it on a simulated NPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from paddock.config import HardwareConfig
from paddock.contract import environment
from paddock.errors import NotAvailable, Unsupported
from paddock.model import Model
from paddock.plan import Answer, Precision, PrecisionPlan, Segment, Verdict
from paddock.spi import Artifact, Context, Device, Probe, ResolvedConfig, SegmentMemory, SegmentPlan
from paddock_paddle.custom import BLACK_LIST, ROOT, CustomDeviceAdapter
from paddock_paddle.format import PaddleFormat
from paddock_paddle.kernels import Kernels
from paddock_paddle.placer import Placer
from paddock_paddle.predictor import PaddleSession, Realised, _begun

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
    monkeypatch.setenv("FLAGS_of_paddle", "1")
    told = environment(NpuAcme)
    assert told["ACME_VISIBLE_DEVICES"] == "3" and told[BLACK_LIST] == "softmax" and told["FLAGS_of_paddle"] == "1"
    assert "paddle-custom-acme" not in probe.versions
    monkeypatch.setattr(NpuAcme, "driver", "")
    probe = NpuAcme.probe()
    assert "driver" in probe.verdict.reason and probe.remedy == "install it"
    monkeypatch.setenv(ROOT, str(place / "nowhere"))
    probe = NpuAcme.probe()
    assert f"{ROOT}={place / 'nowhere'}: is no folder" in probe.verdict.reason and "unset it" in probe.remedy
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


def test_what_passes_add_on_the_cpu_is_told_unless_it_belongs_there(models: Path) -> None:
    """No node of the model bears the name, or only ones that belong on the host and are fewer."""
    graph = model_of(models, "rotary").graph
    placer = Placer(graph, backend="acme", known=kernels())
    own = Counter(graph.nodes[i].op.partition(".")[2] for i in placer.hosted)
    assert placer.added(own, {}) == () == placer.added({**own, "cos": 1}, {})
    assert placer.added({**own, "transpose": 2, "full": 1}, {"full": 1}) == ("transpose",)
    assert placer.added({**own, "transpose": 2}, {"transpose": 1}) == ("transpose",)
    assert placer.added({**own, "slice": own["slice"] + 1}, {"slice": own["slice"]}) == ("slice",)
    assert placer.added({**own, "slice": own["slice"] + 1}, {"slice": own["slice"] + 1}) == ()


def test_a_model_to_which_passes_add_what_the_cpu_would_run_is_refused(models: Path, tmp_path: Path) -> None:
    """No node is named, as none is known to be the cause: it goes to the fallback as a whole, or is refused."""

    class Placed(NpuAcme):
        program = Realised({("acme", "float32"): 1}, operations={("acme", "matmul"): 1, ("CPU", "transpose"): 2})

        def _session(self, artifact: Artifact, context: Context) -> PaddleSession:
            session: Any = SimpleNamespace(realised=self.program, close=lambda: None)
            return cast("PaddleSession", session)

    model = model_of(models, "softmax")
    config = ResolvedConfig(HardwareConfig.load({"hardware": "npu", "backend": "acme"}), NpuAcme.Options(), 1)
    every = Segment(0, "npu/acme", tuple(range(len(model.graph.nodes))), model.graph.inputs, model.graph.outputs)
    plan = SegmentPlan(every, PrecisionPlan(Precision.FP32), SegmentMemory())
    with pytest.raises(Unsupported, match=r"transpose \(its passes add it") as caught:
        Placed(config, None).compile(model, plan, Context(tmp_path, tmp_path))
    assert caught.value.nodes == ()
    Placed.program = replace(Placed.program, begun={"transpose": 2})
    assert Placed(config, None).compile(model, plan, Context(tmp_path, tmp_path)).facts["hosted"] == {"transpose": 2}


def test_what_belongs_on_the_host_is_told_by_what_it_reads() -> None:
    """Extents and constants, and what is worked out of them; not what reads a tensor that was brought over."""
    lines = [
        op("0", "builtin.constant", "", place="cpu"), op("1", "builtin.parameter", "", place="custom_device"),
        op("2", "shape64", "1", "npu"), op("3", "slice", "2 0", "CPU"), op("4", "builtin.combine", "3 0", place="cpu"),
        op("5", "stack", "4", "CPU"), op("6", "full_with_tensor", "0 5", "CPU"), op("7", "memcpy_d2h", "1", "npu"),
        op("8", "transpose", "7", "CPU"), op("9", "add", "8 3", "CPU"), op("10", "scale", "3 0", "npu"),
        op("11", "full", "", "CPU", "place:Place(cpu),"), op("12", "full", "", "CPU", "place:Place(undefined:0),"),
        op("13", "cast_", "11", "CPU"), op("14", "slice", "10 0", "CPU"), op("15", "cast", "12", "CPU"),
    ]  # fmt: skip
    assert _begun("\n".join(lines)) == {"slice": 1, "stack": 1, "full": 1, "cast": 1}


def op(result: str, name: str, operands: str, backend: str = "", more: str = "", place: str = "cpu") -> str:
    """A line as Paddle 3.3 prints it."""
    read = ", ".join(f"%{operand}" for operand in operands.split())
    key = f'kernel_key:<backend:{backend}|layout:NCHW|dtype:float32>,{more}op_name:"pd_op.{name}",' if backend else ""
    called = f"{name}(phi_kernel)" if backend else name
    mark = "" if backend else "[id:7] "
    return f'    (%{result}) = "{called}" {mark}({read}) {{{key}origin_id:3}} : () -> {place}_tensor<1xf32>'


def test_moves_between_memories_are_no_kernels_of_the_host() -> None:
    operations = {("CPU", "softmax"): 2, ("acme", "matmul"): 1, ("CPU", "memcpy_d2h"): 3, ("CUSTOM", "shadow_feed"): 1}
    assert Realised({}, operations=operations).hosted("acme") == {"softmax": 2}
