"""`cpu/openvino` from selection to answers, and how honest its verdicts are."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto as T
from onnx import helper as h
from paddock.config import HardwareConfig
from paddock.errors import BuildFailed, ConfigError, ModelError, RunFailed, StrictnessError, Unsupported, UsageError
from paddock.graph import Range
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import Answer, Means, Precision, PrecisionPlan, Segment, Verdict
from paddock.spi import Artifact, Context, ResolvedConfig, SegmentMemory, SegmentPlan, Session
from paddock_openvino.adapter import CpuOpenVino, CpuOptions, GpuOpenVino, NpuOpenVino
from paddock_openvino.integers import INTEGERS, SOURCE
from paddock_openvino.sdk import core
from pydantic import ValidationError

HAS_BF16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
BATCH = {"N": Range(1, 4, 8)}


def proto(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Mapping[str, Any] | None = None,
    opset: int = 17, domains: Mapping[str, int] | None = None,
) -> Any:  # fmt: skip
    """A model; inputs and outputs are (name, dtype, shape)."""
    graph = h.make_graph(
        nodes,
        "graph",
        [h.make_tensor_value_info(*i) for i in inputs],
        [h.make_tensor_value_info(*o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in (weights or {}).items()],
    )
    opsets = [h.make_opsetid("", opset), *(h.make_opsetid(d, v) for d, v in (domains or {}).items())]
    return h.make_model(graph, opset_imports=opsets, ir_version=8)


def model_of(content: Any, folder: Path, bounds: Mapping[str, Range] = BATCH) -> Model:
    """The model as Paddock reads it, bounded; `content` is a ModelProto or a file."""
    path = content if isinstance(content, Path) else folder / "model.onnx"
    if not isinstance(content, Path):
        onnx.save(content, path)
    format = OnnxFormat()
    files = format.complete({"model": path})
    return Model("onnx", files, "test", format.read(files).with_bounds(bounds))


def adapter_of(threads: int = 1, instances: int = 1, precision: str = "fp32", **options: Any) -> CpuOpenVino:
    config = HardwareConfig.load(
        {"hardware": "cpu", "backend": "openvino", "precision": precision, "instances": instances}
    )
    return CpuOpenVino(ResolvedConfig(config, CpuOptions(**options), threads), None)


def segment_of(model: Model, precision: str = "fp32", keep: tuple[int, ...] = ()) -> SegmentPlan:
    graph = model.graph
    segment = Segment(0, "cpu/openvino", tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
    folder = model.files["model"].parent
    verdicts = adapter_of().select_operators(model, Context(folder, folder)).verdicts
    wanted = PrecisionPlan(Precision(precision), Means.BACKEND, keep)
    return SegmentPlan(segment, wanted, SegmentMemory(), verdicts=verdicts)


def loaded(model: Model, folder: Path, precision: str = "fp32", **options: Any) -> Session:
    adapter, context = adapter_of(precision=precision, **options), Context(folder, folder)
    artifact = adapter.compile(model, segment_of(model, precision), context)
    return adapter.load(pickle.loads(pickle.dumps(artifact)), context)


def verdicts(model: Model, folder: Path) -> tuple[Verdict, ...]:
    return adapter_of().select_operators(model, Context(folder, folder)).verdicts


def answers(model: Model, folder: Path) -> list[Answer]:
    return [v.answer for v in verdicts(model, folder)]


RNG = np.random.default_rng(0)
W1, W2 = RNG.standard_normal((8, 16), "f"), RNG.standard_normal((16, 4), "f")


def mlp(names: Sequence[str] = ("a", "b", "c")) -> Any:
    nodes = [
        h.make_node("MatMul", ["x", "w1"], ["h"], name=names[0]),
        h.make_node("Relu", ["h"], ["r"], name=names[1]),
        h.make_node("MatMul", ["r", "w2"], ["y"], name=names[2]),
    ]
    return proto(nodes, [("x", T.FLOAT, ["N", 8])], [("y", T.FLOAT, ["N", 4])], {"w1": W1, "w2": W2})


def mlp_answer(x: Any) -> Any:
    return np.maximum(x @ W1, 0) @ W2


def conditional(op: str = "Mul", domain: str = "") -> Any:
    then = h.make_graph(
        [h.make_node("Add", ["x", "x"], ["t"])], "then", [], [h.make_tensor_value_info("t", T.FLOAT, ["N"])]
    )
    other = h.make_graph(
        [h.make_node(op, ["x", "x"], ["e"], domain=domain)],
        "else",
        [],
        [h.make_tensor_value_info("e", T.FLOAT, ["N"])],
    )
    node = h.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    domains = {domain: 1} if domain else {}
    inputs = [("c", T.BOOL, []), ("x", T.FLOAT, ["N"])]
    return proto([node], inputs, [("y", T.FLOAT, ["N"])], domains=domains)


@pytest.mark.parametrize("names", [("a", "b", "c"), ("", "", ""), ("same", "same", "same")])
def test_mlp_at_several_batch_sizes_whatever_its_node_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    model = model_of(mlp(names), tmp_path)
    assert answers(model, tmp_path) == [Answer.YES] * 3
    session = loaded(model, tmp_path)
    for batch in (1, 5, 3, 8):
        x = RNG.standard_normal((batch, 8), "f")
        np.testing.assert_allclose(session.run({"x": x})["y"], mlp_answer(x), rtol=1e-4, atol=1e-5)


def test_bounds_reach_openvino(tmp_path: Path) -> None:
    ranged = loaded(model_of(mlp(), tmp_path), tmp_path)
    with pytest.raises(Exception, match="incompatible"):
        ranged.run({"x": np.ones((9, 8), "f")})
    fixed = loaded(model_of(mlp(), tmp_path, {"N": Range(2, 2, 2)}), tmp_path)
    assert fixed.run({"x": np.ones((2, 8), "f")})["y"].shape == (2, 4)
    with pytest.raises(Exception, match="incompatible"):
        fixed.run({"x": np.ones((3, 8), "f")})


def test_conv_net(tmp_path: Path) -> None:
    kernel = RNG.standard_normal((2, 3, 3, 3), "f")
    nodes = [
        h.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        h.make_node("Relu", ["c"], ["r"]),
        h.make_node("GlobalAveragePool", ["r"], ["g"]),
        h.make_node("Flatten", ["g"], ["y"]),
    ]
    model = model_of(
        proto(nodes, [("x", T.FLOAT, ["N", 3, 8, 8])], [("y", T.FLOAT, ["N", 2])], {"k": kernel}), tmp_path
    )
    x = RNG.standard_normal((2, 3, 8, 8), "f")
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows: Any = sliding_window_view(wide, (3, 3), axis=(2, 3))  # type: ignore[call-overload]  # axis may be a tuple
    wanted = np.maximum(np.einsum("nchwij,ocij->nohw", windows, kernel), 0).mean(axis=(2, 3))
    np.testing.assert_allclose(loaded(model, tmp_path).run({"x": x})["y"], wanted, rtol=1e-4, atol=1e-5)


def test_decomposed_and_folded_nodes_are_traced_back(tmp_path: Path) -> None:
    nodes = [
        h.make_node("LayerNormalization", ["x", "s"], ["l"], axis=1),
        h.make_node("Dropout", ["l"], ["d"]),
        h.make_node("Identity", ["d"], ["i"]),
        h.make_node("Gelu", ["i"], ["y"]),
    ]
    tensors = [("x", T.FLOAT, ["N", 4])], [("y", T.FLOAT, ["N", 4])]
    found = verdicts(model_of(proto(nodes, *tensors, {"s": np.ones(4, "f")}, opset=20), tmp_path), tmp_path)
    assert [v.answer for v in found] == [Answer.YES] * 4
    assert any("folds it away" in v.reason for v in found)
    assert {v.source for v in found} == {"openvino.Core.read_model", "openvino.Core.query_model"}


def test_control_flow_bodies_are_judged_and_run(tmp_path: Path) -> None:
    model = model_of(conditional(), tmp_path)
    assert answers(model, tmp_path) == [Answer.YES]
    session, x = loaded(model, tmp_path), np.array([3.0], "f")
    assert session.run({"c": np.array(True), "x": x})["y"] == [6.0]
    assert session.run({"c": np.array(False), "x": x})["y"] == [9.0]


def test_a_no_inside_a_body_is_a_no_of_the_node(tmp_path: Path) -> None:
    model = model_of(conditional("Strange", "vendor"), tmp_path)
    (verdict,) = verdicts(model, tmp_path)
    assert verdict.answer is Answer.NO
    assert "in its body" in verdict.reason and "vendor.Strange" in verdict.reason


def strange() -> Any:
    nodes = [
        h.make_node("Relu", ["x"], ["r"]),
        h.make_node("Strange", ["r"], ["s"], domain="vendor"),
        h.make_node("Relu", ["s"], ["y"]),
    ]
    return proto(nodes, [("x", T.FLOAT, ["N"])], [("y", T.FLOAT, ["N"])], domains={"vendor": 1})


def test_an_unknown_operator_is_a_no_and_the_rest_provisional(tmp_path: Path) -> None:
    model = model_of(strange(), tmp_path)
    found = verdicts(model, tmp_path)
    assert [v.answer for v in found] == [Answer.PROVISIONAL, Answer.NO, Answer.PROVISIONAL]
    assert found[1].reason == "OpenVINO has no conversion rule for it"
    with pytest.raises(Unsupported, match="no conversion rule") as error:
        loaded(model, tmp_path)
    assert error.value.nodes == (0, 1, 2)
    # and OpenVINO really does refuse it
    artifact = Artifact("cpu/openvino", "onnx", model.files, ("x",), ("y",), facts={"shapes": {}})
    with pytest.raises(BuildFailed, match="Strange"):
        adapter_of().load(artifact, Context(tmp_path, tmp_path))


def test_an_attribute_that_openvino_refuses_names_the_one_node(tmp_path: Path) -> None:
    nodes = [
        h.make_node("Pad", ["x", "p"], ["a"], mode="reflect"),
        h.make_node("Pad", ["a", "p"], ["y"], mode="wrap"),
    ]
    content = proto(
        nodes, [("x", T.FLOAT, [4])], [("y", T.FLOAT, [8])], {"p": np.array([1, 1], np.int64)}, opset=19
    )  # fmt: skip
    found = verdicts(model_of(content, tmp_path), tmp_path)
    assert [v.answer for v in found] == [Answer.PROVISIONAL, Answer.NO]
    assert "wrap" in found[1].reason


def test_a_rank_that_the_plugin_refuses_names_the_one_node(tmp_path: Path) -> None:
    nodes = [h.make_node("Relu", ["x"], ["r"]), h.make_node("Unsqueeze", ["r", "axes"], ["y"])]
    inputs = [("x", T.FLOAT, ["N"]), ("axes", T.INT64, ["M"])]
    graph = h.make_graph(
        nodes,
        "graph",
        [h.make_tensor_value_info(*i) for i in inputs],
        [h.make_tensor_value_info("y", T.FLOAT, None)],
    )
    content = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    found = verdicts(model_of(content, tmp_path, {**BATCH, "M": Range(1, 1, 2)}), tmp_path)
    assert found[1].answer is Answer.NO and "dynamic rank" in found[1].reason
    assert found[0].answer is Answer.YES


@pytest.mark.parametrize("dtype", ["float64", "int64", "int32", "bool", "float16", "uint8"])
def test_other_dtypes_pass_unchanged(tmp_path: Path, dtype: str) -> None:
    kind = h.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = h.make_node("Concat", ["x", "x"], ["y"], axis=0)
    model = model_of(proto([node], [("x", kind, ["N"])], [("y", kind, ["M"])]), tmp_path)
    assert answers(model, tmp_path) == [Answer.YES]
    x = np.array([0, 1, 1]).astype(dtype)
    y = loaded(model, tmp_path).run({"x": x})["y"]
    assert y.dtype == x.dtype
    assert y.tolist() == [*x.tolist(), *x.tolist()]


@pytest.mark.parametrize(("dtype", "wide"), [("int64", 2**31), ("uint64", 2**40), ("uint32", 2**31), ("float64", 1e39)])
def test_what_openvino_would_cut_to_32_bits_is_refused(tmp_path: Path, dtype: str, wide: float) -> None:
    kind = h.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = h.make_node("Max", ["x", "x"], ["y"])
    model = model_of(proto([node], [("x", kind, ["N"])], [("y", kind, ["N"])]), tmp_path)
    session = loaded(model, tmp_path)
    assert session.run({"x": np.array([3], dtype)})["y"] == [3]
    with pytest.raises(UsageError, match=r"in (int32|float32)"):
        session.run({"x": np.array([wide], dtype)})
    (defect,) = adapter_of().known_defects(model)
    assert f"x ({dtype})" in defect.summary and defect.applied
    assert adapter_of().known_defects(model_of(mlp(), tmp_path)) == ()


@pytest.mark.parametrize("dtype", [T.STRING, T.BFLOAT16])
def test_what_numpy_and_openvino_cannot_exchange_is_refused(tmp_path: Path, dtype: int) -> None:
    node = h.make_node("Identity", ["x"], ["y"])
    (verdict,) = verdicts(model_of(proto([node], [("x", dtype, [2])], [("y", dtype, [2])]), tmp_path), tmp_path)
    assert verdict.answer is Answer.NO
    assert ("string" if dtype == T.STRING else "bfloat16") in verdict.reason


def test_scalar_outputs_and_a_choice_of_outputs(tmp_path: Path) -> None:
    nodes = [h.make_node("ReduceSum", ["x"], ["s"], keepdims=0), h.make_node("Relu", ["x"], ["r"])]
    content = proto(nodes, [("x", T.FLOAT, ["N"])], [("s", T.FLOAT, []), ("r", T.FLOAT, ["N"])])
    session = loaded(model_of(content, tmp_path), tmp_path)
    feeds = {"x": np.array([1, -3], "f")}
    everything = session.run(feeds)
    assert list(everything) == ["s", "r"]
    assert everything["s"].shape == () and everything["s"] == -2
    assert everything["r"].tolist() == [1, 0]
    assert list(session.run(feeds, ["r"])) == ["r"]
    assert session.run(feeds, []) == {}


@pytest.mark.parametrize("op", ["Relu", "Identity"])
@pytest.mark.parametrize("extent", ["N", 3])
def test_outputs_belong_to_the_caller(tmp_path: Path, op: str, extent: Any) -> None:
    nodes = [h.make_node(op, ["x"], ["y"]), h.make_node("Identity", ["w"], ["z"])]
    outputs = [("y", T.FLOAT, [extent]), ("z", T.FLOAT, [2])]
    content = proto(nodes, [("x", T.FLOAT, [extent])], outputs, {"w": np.ones(2, "f")})
    session = loaded(model_of(content, tmp_path), tmp_path)
    x = np.array([1, 2, 3], "f")
    first = session.run({"x": x})
    kept = {name: value.copy() for name, value in first.items()}
    second = session.run({"x": x + 1})
    for name, value in first.items():
        assert not np.shares_memory(value, second[name]) and not np.shares_memory(value, x)
        np.testing.assert_array_equal(value, kept[name])
        value[:] = 9  # the caller may write into what is his
    assert x.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(session.run({"x": x})["z"], [1, 1])
    session.close()
    np.testing.assert_array_equal(second["y"], [2, 3, 4])


def test_read_only_and_scalar_feeds(tmp_path: Path) -> None:
    x, c = np.ones(2, "f"), np.array(True)
    x.flags.writeable = c.flags.writeable = False
    assert loaded(model_of(conditional(), tmp_path), tmp_path).run({"c": c, "x": x})["y"].tolist() == [2, 2]


def test_read_only_feeds_are_held_while_they_are_read(tmp_path: Path) -> None:
    """Their copies were once freed before the request ran: half of the numbers were somebody else's."""
    for size in (1000, 100_000):
        inputs = [("a", T.FLOAT, [size]), ("b", T.FLOAT, [size])]
        content = proto([h.make_node("Max", ["a", "b"], ["y"])], inputs, [("y", T.FLOAT, [size])])
        session = loaded(model_of(content, tmp_path), tmp_path)
        a, b = RNG.standard_normal((2, size), "f")
        a.flags.writeable = b.flags.writeable = False
        for _ in range(5):
            np.testing.assert_array_equal(session.run({"a": a, "b": b})["y"], np.maximum(a, b))


def test_long_long_is_int64(tmp_path: Path) -> None:
    """onnxruntime gives such arrays for int64; to NumPy they are equal, to OpenVINO they are not."""
    content = proto([h.make_node("Cast", ["x"], ["y"], to=T.FLOAT)], [("x", T.INT64, ["N"])], [("y", T.FLOAT, ["N"])])
    session = loaded(model_of(content, tmp_path), tmp_path)
    assert session.run({"x": np.array([1, 2], np.longlong)})["y"].tolist() == [1, 2]


def test_unused_inputs_and_inputs_that_are_outputs(tmp_path: Path) -> None:
    inputs = [("x", T.FLOAT, ["N"]), ("unused", T.FLOAT, ["N"])]
    content = proto([h.make_node("Relu", ["x"], ["y"])], inputs, [("y", T.FLOAT, ["N"]), ("x", T.FLOAT, ["N"])])
    x = np.array([-1, 1], "f")
    found = loaded(model_of(content, tmp_path), tmp_path).run({"x": x, "unused": x})
    assert found["y"].tolist() == [0, 1] and found["x"].tolist() == [-1, 1]
    assert not np.shares_memory(found["x"], x)


def test_forks_share_the_compiled_model_and_nothing_else(tmp_path: Path) -> None:
    session = loaded(model_of(mlp(), tmp_path), tmp_path, instances=2)
    fork = session.fork()
    assert fork is not None
    x = RNG.standard_normal((2, 8), "f")
    first, second = session.run({"x": x}), fork.run({"x": x + 1})
    np.testing.assert_allclose(first["y"], mlp_answer(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second["y"], mlp_answer(x + 1), rtol=1e-4, atol=1e-5)
    assert fork.observed() == session.observed()
    session.close()
    np.testing.assert_allclose(fork.run({"x": x})["y"], mlp_answer(x), rtol=1e-4, atol=1e-5)


def test_closing(tmp_path: Path) -> None:
    session = loaded(model_of(mlp(), tmp_path), tmp_path)
    session.close()
    session.close()
    with pytest.raises(RunFailed):
        session.run({"x": np.ones((1, 8), "f")})
    with pytest.raises(RunFailed):
        session.fork()


def observed(model: Model, folder: Path, **options: Any) -> Mapping[str, Any]:
    return loaded(model, folder, **options).observed().settings


def test_threads_and_precision_are_read_back(tmp_path: Path) -> None:
    model = model_of(mlp(), tmp_path)
    found = loaded(model, tmp_path).observed()
    assert found.settings == {"precision": "fp32", "threads": 1, "options.denormals_as_zero": False}
    assert found.nodes is not None and 0 < found.nodes <= 4
    # OpenVINO takes no more threads than there are cores, and says so.
    assert observed(model, tmp_path, threads=4096)["threads"] < 4096


def test_bf16_is_claimed_only_where_it_takes_effect(tmp_path: Path) -> None:
    devices = CpuOpenVino.probe_device()
    verdict = devices.devices[0].precisions[Precision.BF16]
    assert (verdict.answer is Answer.YES) == HAS_BF16
    if not HAS_BF16:
        assert "FP32" in verdict.reason and devices.devices[0].name in verdict.reason
    model = model_of(mlp(), tmp_path)
    session = loaded(model, tmp_path, "bf16")
    assert session.observed().settings["precision"] == ("bf16" if HAS_BF16 else "fp32")
    x = RNG.standard_normal((4, 8), "f")
    np.testing.assert_allclose(session.run({"x": x})["y"], mlp_answer(x), rtol=0.1, atol=0.3)


def test_streams_have_an_effect_or_are_refused(tmp_path: Path) -> None:
    model = model_of(mlp(), tmp_path)
    assert observed(model, tmp_path, instances=2, streams=1)["options.streams"] == 1
    with pytest.raises(ConfigError, match="no effect"):
        adapter_of(instances=1, streams=2)
    adapter, context = adapter_of(instances=2), Context(tmp_path, tmp_path)
    session: Any = adapter.load(adapter.compile(model, segment_of(model), context), context)
    ways = session._compiled.get_property("NUM_STREAMS")
    # On one core there is one stream, and the threads read back say so.
    assert ways == 2 or session.observed().settings["threads"] == 0


def test_denormals_as_zero_changes_the_answer(tmp_path: Path) -> None:
    node = h.make_node("Mul", ["x", "w"], ["y"])
    content = proto([node], [("x", T.FLOAT, [64])], [("y", T.FLOAT, [64])], {"w": np.array([0.5], "f")})
    model, x = model_of(content, tmp_path), np.full(64, 1.2e-38, "f")
    for given in (False, True):
        session = loaded(model, tmp_path, denormals_as_zero=given)
        assert session.observed().settings["options.denormals_as_zero"] is given
        assert bool((session.run({"x": x})["y"] == 0).all()) is given


def test_dynamic_quantisation_is_off(tmp_path: Path) -> None:
    session: Any = loaded(model_of(mlp(), tmp_path), tmp_path)
    assert session._compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


def test_refusals(tmp_path: Path) -> None:
    model, context = model_of(mlp(), tmp_path), Context(tmp_path, tmp_path)
    with pytest.raises(StrictnessError):
        adapter_of().compile(model, segment_of(model, "fp16"), context)
    for bad in ({"stream": 1}, {"streams": 0}, {"performance_hint": "latency"}):
        with pytest.raises(ValidationError):
            CpuOptions(**bad)


def test_probe_and_devices() -> None:
    for adapter in (CpuOpenVino, GpuOpenVino, NpuOpenVino):
        probe = adapter.probe()
        assert probe.verdict.answer is Answer.YES and list(probe.versions) == ["openvino"]
        devices = adapter.probe_device()
        present = any(name.startswith(adapter.openvino_device) for name in core().available_devices)
        assert (devices.verdict.answer is Answer.YES) == present
        if present:
            assert all(set(device.precisions) == adapter.precisions for device in devices.devices)
        else:
            assert f"no {adapter.openvino_device} here; it finds CPU" in devices.verdict.reason


@pytest.mark.parametrize("adapter", [GpuOpenVino, NpuOpenVino])
def test_threads_are_refused_where_the_host_computes_nothing(adapter: type[GpuOpenVino | NpuOpenVino]) -> None:
    config = HardwareConfig.load({"hardware": adapter.hardware, "backend": "openvino", "threads": 2})
    with pytest.raises(ConfigError, match="no effect"):
        adapter(ResolvedConfig(config, adapter.Options(), 2), None)


@pytest.mark.parametrize("adapter", [GpuOpenVino, NpuOpenVino])
def test_without_its_device_what_cannot_be_read_is_a_no_and_the_rest_provisional(
    adapter: type[GpuOpenVino | NpuOpenVino], tmp_path: Path
) -> None:
    config = HardwareConfig.load({"hardware": adapter.hardware, "backend": "openvino", "precision": "fp16"})
    asked = adapter(ResolvedConfig(config, adapter.Options(), 1), None)
    context = Context(tmp_path, tmp_path)
    found = asked.select_operators(model_of(strange(), tmp_path), context).verdicts
    assert [v.answer for v in found] == [Answer.PROVISIONAL, Answer.NO, Answer.PROVISIONAL]
    found = asked.select_operators(model_of(mlp(), tmp_path), context).verdicts
    assert {v.answer for v in found} == {Answer.PROVISIONAL} and "only the device tells" in found[0].reason
    strings = proto([h.make_node("Identity", ["x"], ["y"])], [("x", T.STRING, ["N"])], [("y", T.STRING, ["N"])])
    (verdict,) = asked.select_operators(model_of(strings, tmp_path), context).verdicts
    assert verdict.answer is Answer.NO and "string" in verdict.reason


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
    return subprocess.run([sys.executable, "-c", path + code, *arguments], capture_output=True, text=True, check=False)


def test_importing_and_probing_load_no_sdk() -> None:
    done = run_python(
        "import paddock_openvino.plugin as p\n"
        "for adapter in p.paddock_adapters(): adapter.probe()\n"
        "found = {'onnx', 'onnxruntime', 'openvino', 'paddle'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    assert done.returncode == 0, done.stderr


def test_openvino_does_not_report_its_use() -> None:
    done = run_python(
        "from paddock_openvino.sdk import core\n"
        "core()\n"
        "found = [name for name in sys.modules if name.split('.')[0] == 'openvino_telemetry']\n"
        "sys.exit(str(found) if found else 0)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_child_loads_the_pickled_artifact_and_prints_nothing(tmp_path: Path) -> None:
    model = model_of(mlp(), tmp_path)
    adapter, context = adapter_of(), Context(tmp_path, tmp_path)
    work = (adapter, adapter.compile(model, segment_of(model), context), context.work)
    (tmp_path / "work.pickle").write_bytes(pickle.dumps(work))
    done = run_python(
        "import pickle, numpy as np\n"
        "from paddock.spi import Context\n"
        "adapter, artifact, folder = pickle.load(open(sys.argv[1], 'rb'))\n"
        "session = adapter.load(artifact, Context(folder, folder))\n"
        "y = session.run({'x': np.ones((2, 8), 'f')})['y']\n"
        "try: session.run({'x': np.ones((2, 9), 'f')})\n"
        "except Exception: np.save(sys.argv[2], y)",
        str(tmp_path / "work.pickle"), str(tmp_path / "y.npy"),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), mlp_answer(np.ones((2, 8), "f")), rtol=1e-4)


# Honesty: what ONNX's own node tests say about the verdicts.

FALSE_YES: Mapping[str, str] = {}
"""Claimed as yes although it does not load: test name -> reason. Strict: an entry that holds no longer fails."""

FALSE_NO: Mapping[str, str] = {}
"""Refused by OpenVINO's word although it loads: test name -> reason. Strict as well."""


def node_tests() -> Iterator[tuple[str, Model]]:
    """The first of ONNX's node tests for each set of operators and dtypes: all 1,288 take minutes."""
    from onnx.backend.test.loader import load_model_tests

    seen = set()
    for case in sorted(load_model_tests(kind="node"), key=lambda case: case.name):
        path = Path(case.model_dir) / "model.onnx"
        try:
            model = model_of(path, path.parent, {})
        except ModelError:
            continue
        kind = tuple(sorted({(n.type, *(v.dtype for v in model.graph.input_values)) for n in model.graph.walk()}))
        if kind not in seen:
            seen.add(kind)
            yield case.name, model


def loads(path: Path) -> bool:
    try:
        core().compile_model(core().read_model(path), "CPU", {"INFERENCE_NUM_THREADS": 1})
    except Exception:
        return False
    return True


@pytest.mark.long
def test_verdicts_on_onnx_node_tests_are_honest(tmp_path: Path) -> None:
    sdk = {f"openvino.Core.{call}" for call in ("read_model", "query_model", "compile_model")}
    yes, wrong, false_yes, false_no = 0, 0, set(), set()
    for name, model in node_tests():
        found = verdicts(model, tmp_path)
        if all(v.answer is Answer.YES for v in found):
            yes += 1
            if not loads(model.files["model"]):
                false_yes.add(name)
        elif SOURCE in {v.source for v in found}:
            # OpenVINO takes these, and gives wrong numbers: only integers are refused for that.
            wrong += 1
            for node, verdict in zip(model.graph.nodes, found, strict=True):
                dtypes = {model.graph.values[i].dtype for i in (*node.inputs, *node.outputs) if i is not None}
                assert verdict.source != SOURCE or dtypes & INTEGERS, name
        elif all(v.source in sdk for v in found) and loads(model.files["model"]):
            false_no.add(name)
    assert false_yes == set(FALSE_YES)
    assert false_no == set(FALSE_NO)
    assert yes > 280 and 5 < wrong < 60


# What is kept of a model


@pytest.mark.parametrize("bounds", [{}, BATCH, {"N": Range(2, 2, 2)}], ids=["open", "bounded", "fixed"])
def test_the_artifact_stands_alone(tmp_path: Path, bounds: Mapping[str, Range]) -> None:
    model = model_of(mlp(), tmp_path, bounds)
    work = tmp_path / "work"
    work.mkdir()
    artifact = adapter_of().compile(model, segment_of(model), Context(work, tmp_path))
    assert {path.parent for path in artifact.files.values()} == {work} and "model" not in artifact.files
    model.files["model"].unlink()
    session = adapter_of().load(artifact, Context(tmp_path, tmp_path))
    other = session.fork()
    assert other is not None
    session.close()  # the mapped file has to outlive whoever mapped it
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    np.testing.assert_allclose(other.run({"x": x})["y"], mlp_answer(x), rtol=1e-4, atol=1e-5)
    assert other.observed().settings["precision"] == "fp32"


@pytest.mark.parametrize("fails", ["write", "read"])
def test_an_artifact_that_cannot_be_kept_is_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    from paddock_openvino import blob

    def refuse(*args: Any) -> Any:
        raise RuntimeError("the device cannot do that")

    monkeypatch.setattr(blob, fails, refuse)
    model, told = model_of(mlp(), tmp_path), list[str]()
    artifact = adapter_of().compile(model, segment_of(model), Context(tmp_path, tmp_path, told.append))
    assert artifact.files == dict(model.files) and "the device cannot do that" in told[-1]
    session = adapter_of().load(artifact, Context(tmp_path, tmp_path))
    x = np.ones((2, 8), np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], mlp_answer(x), rtol=1e-4)


def test_a_blob_that_is_none_is_an_error(tmp_path: Path) -> None:
    model = model_of(mlp(), tmp_path)
    artifact = adapter_of().compile(model, segment_of(model), Context(tmp_path, tmp_path))
    (path,) = artifact.files.values()
    path.write_bytes(b"not a blob")
    with pytest.raises(BuildFailed, match="cannot import what it compiled"):
        adapter_of().load(artifact, Context(tmp_path, tmp_path))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_models_are_compiled_at_each_start(tmp_path: Path, op: str) -> None:
    """OpenVINO 2026.4.1 imports them wrongly: where this starts to pass with a blob, the rule can go."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    weights = {n: RNG.standard_normal((1, gates * 4, 4), "f") for n in ("w", "r")}
    node = h.make_node(op, ["x", "w", "r"], ["y"], hidden_size=4)
    content = proto([node], [("x", T.FLOAT, ["S", "N", 4])], [("y", T.FLOAT, ["S", 1, "N", 4])], weights)
    model, told = model_of(content, tmp_path, {}), list[str]()
    adapter, context = adapter_of(), Context(tmp_path, tmp_path, told.append)
    artifact = adapter.compile(model, segment_of(model), context)
    assert artifact.files == dict(model.files) and f"exports {op} wrongly" in told[-1]
    x = {"x": RNG.standard_normal((5, 3, 4), "f")}
    right = adapter.load(artifact, context).run(x)["y"]
    (wanted,) = onnx.reference.ReferenceEvaluator(content).run(None, x)
    np.testing.assert_allclose(right, wanted, rtol=1e-4, atol=1e-5)
    exported = adapter._exported(artifact, context)
    wrong = adapter.load(exported, context).run(x)["y"]
    assert float(np.abs(wrong - wanted).max()) > 0.01
