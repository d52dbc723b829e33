"""cpu/reference: ONNX's own node tests through the adapter, and what an adapter promises beyond them."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from paddock.config import HardwareConfig
from paddock.errors import RunFailed, UsageError
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import Answer, Precision, PrecisionPlan, Segment, Verdict
from paddock.spi import (
    Context,
    NoOptions,
    ResolvedConfig,
    SegmentMemory,
    SegmentPlan,
    Selection,
    Session,
    Shapes,
    Threading,
)
from paddock_reference.adapter import ReferenceAdapter

_RANDOM = "draws random numbers"

# Run, and not as expected: test -> reason. Strict: one that starts to pass fails here.
EXPECTED: dict[str, str] = {
    "test_bernoulli": _RANDOM,
    "test_bernoulli_double": _RANDOM,
    "test_bernoulli_double_expanded": _RANDOM,
    "test_bernoulli_expanded": _RANDOM,
    "test_bernoulli_seed": _RANDOM,
    "test_bernoulli_seed_expanded": _RANDOM,
}

# Refused by select_operators or a known defect: test -> a part of the verdict's reason. Strict both ways.
REFUSED: dict[str, str] = {
    "test_adam_multiple": "Adam rightly for one tensor only",
    "test_conv_with_autopad_same": "the batch and the channels for the extents",
    "test_convtranspose_group_2": "ConvTranspose in groups",
    "test_convtranspose_group_2_image_3": "ConvTranspose in groups",
    "test_convtranspose_kernel_shape": "output_shape",
    "test_convtranspose_output_shape": "output_shape",
    "test_maxpool_with_argmax_2d_precomputed_pads": "wrong indices",
    "test_if_opt": "an optional",
    "test_range_float_type_positive_delta_expanded": "what a Loop scans",
    "test_range_int32_type_negative_delta_expanded": "what a Loop scans",
    "test_lrn": "as many channels",
    "test_lrn_default": "as many channels",
    "test_lstm_with_peepholes": "sequence lengths",
    "test_qlinearmatmul_2D_int8_float16": "saturates",
    "test_qlinearmatmul_2D_int8_float32": "saturates",
    "test_qlinearmatmul_2D_uint8_float16": "saturates",
    "test_qlinearmatmul_2D_uint8_float32": "saturates",
    "test_qlinearmatmul_3D_int8_float16": "saturates",
    "test_qlinearmatmul_3D_int8_float32": "saturates",
    "test_qlinearmatmul_3D_uint8_float16": "saturates",
    "test_qlinearmatmul_3D_uint8_float32": "saturates",
    "test_resize_downsample_scales_cubic_align_corners": "aligns corners",
    "test_resize_downsample_scales_linear_align_corners": "aligns corners",
    "test_resize_upsample_scales_cubic_align_corners": "aligns corners",
    "test_resize_upsample_scales_linear_align_corners": "aligns corners",
    "test_scan_sum": "Scan before opset 9",
    "test_scatter_with_axis": "does not implement Scatter",
    "test_scatter_without_axis": "does not implement Scatter",
}
if not importlib.util.find_spec("re2"):
    REFUSED |= dict.fromkeys(
        ("test_regex_full_match_basic", "test_regex_full_match_email_domain", "test_regex_full_match_empty"),
        "google-re2",
    )

NODE_TESTS = {case.name: Path(case.model_dir) for case in load_model_tests(kind="node")}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(work=tmp_path, cache=tmp_path)


def adapter() -> ReferenceAdapter:
    config = HardwareConfig.load({"hardware": "cpu", "backend": "reference"})
    return ReferenceAdapter(ResolvedConfig(config, NoOptions(), threads=1), None)


def read(path: Path) -> Model:
    form = OnnxFormat()
    files = form.complete({"model": path})
    return Model("onnx", files, "0" * 64, form.read(files))


def select(model: Model, context: Context) -> Selection:
    """What the adapter takes, as the core asks it: without the nodes of its known defects."""
    selection = adapter().select_operators(model, context)
    assert len(selection.verdicts) == len(model.graph.nodes)
    assert all(v.reason and v.source for v in selection.verdicts)
    verdicts = list(selection.verdicts)
    for remedy in adapter().known_defects(model):
        for node in remedy.nodes:
            verdicts[node] = Verdict.no(remedy.summary, f"known defect {remedy.name}")
    return Selection(tuple(verdicts))


def open_session(model: Model, context: Context) -> Session:
    graph, one = model.graph, adapter()
    segment = Segment(0, one.name(), tuple(n.index for n in graph.nodes), graph.inputs, graph.outputs)
    plan = SegmentPlan(segment, PrecisionPlan(Precision.FP32), SegmentMemory())
    return one.load(one.compile(model, plan, context), context)


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return path


def make(nodes: Any, inputs: Any, outputs: Any, **more: Any) -> onnx.ModelProto:
    inits = more.pop("inits", ())
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=list(inits))
    opsets = [helper.make_opsetid("", more.pop("opset", 17)), *more.pop("domains", ())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def tensor(name: str, shape: Any, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def test_outputs_come_into_the_callers_arrays(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["where"]), helper.make_node("Identity", ["x"], ["same"])]
    outputs = [tensor("where", [2, None], TensorProto.INT64), tensor("same", ["n", 4]), tensor("x", ["n", 4])]
    model = read(save(make(nodes, [tensor("x", ["n", 4])], outputs), tmp_path))
    session = open_session(model, Context(tmp_path, tmp_path))
    for rows in (2, 0, 5):
        x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
        wanted = session.run({"x": x})
        into = {name: np.full_like(array, -1) for name, array in wanted.items()}
        session.run_into({"x": x}, into)
        assert all(np.array_equal(into[name], wanted[name]) for name in wanted)
        wrong = np.full((2, len(wanted["where"][0]) + 1), -1)
        with pytest.raises(UsageError, match="has the shape"):
            session.run_into({"x": x}, {"where": wrong})
        assert (wrong == -1).all()


# ONNX's node tests.


def stored(path: Path, type_: Any) -> Any:
    content, kind = path.read_bytes(), type_.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def differs(got: Any, wanted: Any) -> str | None:
    if isinstance(wanted, list):
        if not isinstance(got, list) or len(got) != len(wanted):
            return "not the same sequence"
        return next((d for pair in zip(got, wanted, strict=True) if (d := differs(*pair))), None)
    if wanted is None:
        return None if got is None else "not empty"
    wanted = np.asarray(wanted)
    if not isinstance(got, np.ndarray) or (got.dtype, got.shape) != (wanted.dtype, wanted.shape):
        return f"{getattr(got, 'dtype', type(got))} {getattr(got, 'shape', '')}, not {wanted.dtype} {wanted.shape}"
    if wanted.dtype.kind in "OSUb":
        return None if np.array_equal(got, wanted) else "other values"
    return None if np.allclose(got, wanted, rtol=1e-3, atol=1e-5, equal_nan=True) else "other numbers"


@cache
def outcomes() -> dict[str, tuple[str, str]]:
    """Each node test through the adapter: ("passed" | "refused" | "failed", why)."""
    found = {}
    context = Context(work=Path(), cache=Path())
    for name, folder in NODE_TESTS.items():
        model = read(folder / "model.onnx")
        noes = [v.reason for v in select(model, context).verdicts if not v.usable]
        found[name] = ("refused", noes[0]) if noes else _ran(folder, model, context)
    return found


def _ran(folder: Path, model: Model, context: Context) -> tuple[str, str]:
    proto = onnx.load(folder / "model.onnx").graph
    try:
        session = open_session(model, context)
        for data in sorted(folder.glob("test_data_set_*")):
            feeds = {v.name: stored(data / f"input_{i}.pb", v.type) for i, v in enumerate(proto.input)}
            wanted = [stored(data / f"output_{i}.pb", v.type) for i, v in enumerate(proto.output)]
            got = session.run(feeds)
            assert list(got) == [v.name for v in proto.output]
            for result, expected in zip(got.values(), wanted, strict=True):
                if why := differs(result, expected):
                    return "failed", why
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    return "passed", ""


@pytest.mark.long
def test_every_node_test_is_right_refused_or_expected_to_fail() -> None:
    found = outcomes()
    assert len(found) >= 1288
    failed = {name: why for name, (kind, why) in found.items() if kind == "failed"}
    refused = {name: why for name, (kind, why) in found.items() if kind == "refused"}
    assert {n: w for n, w in failed.items() if n not in EXPECTED} == {}
    assert EXPECTED.keys() - failed.keys() == set(), "these pass now: take them off the list"
    assert {n: w for n, w in refused.items() if REFUSED.get(n, "\0") not in w} == {}
    assert REFUSED.keys() - refused.keys() == set(), "these are taken now: take them off the list"


# What an adapter promises beyond them.


def test_what_it_declares() -> None:
    assert ReferenceAdapter.name() == "cpu/reference"
    assert ReferenceAdapter.precisions == {Precision.FP32, Precision.FP16, Precision.BF16}
    (device,) = ReferenceAdapter.probe_device().devices
    assert all("in software" in device.precisions[p].reason for p in (Precision.FP16, Precision.BF16))
    assert ReferenceAdapter.shapes is Shapes.DYNAMIC
    assert ReferenceAdapter.concurrency.threading is Threading.SERIAL
    assert not ReferenceAdapter.plans_memory
    assert ReferenceAdapter.references["onnx"].rank == 0
    probe = ReferenceAdapter.probe()
    assert probe.verdict.usable and probe.versions["onnx"] == onnx.__version__


def test_the_plugin_brings_the_adapter() -> None:
    from paddock_reference import plugin

    assert plugin.paddock_adapters() == [ReferenceAdapter]


def test_any_batch_the_outputs_asked_for_and_float32(tmp_path: Path, context: Context) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Exp", ["h"], ["y"])]
    proto = make(nodes, [tensor("x", ["N", 3])], [tensor("y", ["N", 3]), tensor("h", ["N", 3])])
    session = open_session(read(save(proto, tmp_path)), context)
    for batch in (1, 5):
        x = np.linspace(-1, 1, 3 * batch, dtype=np.float32).reshape(batch, 3)
        got = session.run({"x": x})
        assert list(got) == ["y", "h"] and got["y"].dtype == np.float32
        np.testing.assert_allclose(got["y"], np.exp(np.maximum(x, 0)), rtol=1e-6)
        assert list(session.run({"x": x}, ["h"])) == ["h"]
    assert session.observed().nodes == 2


def test_results_belong_to_the_caller(tmp_path: Path, context: Context) -> None:
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["w"], ["z"])]
    proto = make(nodes, [tensor("x", [3])], [tensor("y", [3]), tensor("z", [3])], inits=[weight])
    session = open_session(read(save(proto, tmp_path)), context)
    x = np.zeros(3, np.float32)
    for _ in range(2):
        got = session.run({"x": x})
        assert not x.any() and (got["z"] == 1).all()
        got["y"] += 7
        got["z"] += 7


def test_external_data_behind_a_link(tmp_path: Path, context: Context) -> None:
    weights = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    more = numpy_helper.from_array(np.array([10, 20], np.float32), "b")
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    proto = make(nodes, [tensor("x", ["N", 3])], [tensor("y", ["N", 2])], inits=[weights, more])
    blobs, cache_ = tmp_path / "blobs", tmp_path / "cache"
    blobs.mkdir()
    cache_.mkdir()
    onnx.save(proto, blobs / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    for name in ("m.onnx", "w.bin"):
        (cache_ / name).symlink_to(blobs / name)
    for folder in (blobs, cache_):
        session = open_session(read(folder / "m.onnx"), context)
        got = session.run({"x": np.ones((1, 3), np.float32)})["y"]
        np.testing.assert_array_equal(got, [[16, 29]])


def test_functions_with_default_attributes_in_any_order(tmp_path: Path, context: Context) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("me", 1)]
    call = helper.make_node("F", ["a"], ["b"], domain="me")
    outer = helper.make_function("me", "Outer", ["a"], ["b"], [call], opsets)
    inner = helper.make_function("me", "F", ["a"], ["b"], [helper.make_node("LeakyRelu", ["a"], ["b"])], opsets)
    reference = inner.node[0].attribute.add()
    reference.name, reference.ref_attr_name, reference.type = "alpha", "slope", onnx.AttributeProto.FLOAT
    inner.attribute_proto.append(helper.make_attribute("slope", 0.5))
    nodes = [helper.make_node("Outer", ["x"], ["y"], domain="me")]
    proto = make(nodes, [tensor("x", [2])], [tensor("y", [2])], domains=opsets[1:], functions=[outer, inner])
    model = read(save(proto, tmp_path))
    verdict = select(model, context).verdicts[0]
    assert verdict.answer is Answer.YES and "function" in verdict.source
    got = open_session(model, context).run({"x": np.array([-1, 2], np.float32)})["y"]
    np.testing.assert_array_equal(got, np.array([-0.5, 2], np.float32))
    given = outer.node[0].attribute.add()
    given.name, given.ref_attr_name, given.type = "slope", "steep", onnx.AttributeProto.FLOAT
    outer.attribute.append("steep")
    proto = make(nodes, [tensor("x", [2])], [tensor("y", [2])], domains=opsets[1:], functions=[outer, inner])
    assert select(read(save(proto, tmp_path)), context).verdicts[0].answer is Answer.NO


def test_a_function_that_runs_the_unknown_is_refused(tmp_path: Path, context: Context) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("me", 1), helper.make_opsetid("acme", 1)]
    body = [helper.make_node("Odd", ["a"], ["b"], domain="acme")]
    function = helper.make_function("me", "F", ["a"], ["b"], body, opsets)
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("F", ["h"], ["y"], domain="me")]
    proto = make(nodes, [tensor("x", [2])], [tensor("y", [2])], domains=opsets[1:], functions=[function])
    verdicts = select(read(save(proto, tmp_path)), context).verdicts
    assert [v.answer for v in verdicts] == [Answer.YES, Answer.NO]
    assert "acme" in verdicts[1].reason


def test_a_body_that_runs_the_unknown_is_refused(tmp_path: Path, context: Context) -> None:
    odd = helper.make_graph([helper.make_node("Odd", ["x"], ["a"], domain="acme")], "a", [], [tensor("a", [2])])
    fine = helper.make_graph([helper.make_node("Neg", ["x"], ["b"])], "b", [], [tensor("b", [2])])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=odd, else_branch=fine)]
    inputs = [tensor("x", [2]), tensor("c", [], TensorProto.BOOL)]
    proto = make(nodes, inputs, [tensor("y", [2])], domains=[helper.make_opsetid("acme", 1)])
    verdict = select(read(save(proto, tmp_path)), context).verdicts[0]
    assert verdict.answer is Answer.NO and "acme.Odd" in verdict.reason


def test_the_standards_other_spelling_runs(tmp_path: Path, context: Context) -> None:
    proto = make([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")], [tensor("x", [2])], [tensor("y", [2])])
    proto.opset_import[0].domain = "ai.onnx"
    model = read(save(proto, tmp_path))
    assert all(v.usable for v in select(model, context).verdicts)
    got = open_session(model, context).run({"x": np.array([-1, 2], np.float32)})["y"]
    np.testing.assert_array_equal(got, [0, 2])


def test_an_output_of_another_dtype_than_stated_is_an_error(tmp_path: Path, context: Context) -> None:
    proto = make([helper.make_node("Neg", ["x"], ["y"])], [tensor("x", [2], TensorProto.INT64)], [tensor("y", [2])])
    session = open_session(read(save(proto, tmp_path)), context)
    with pytest.raises(RunFailed, match="int64"):
        session.run({"x": np.array([1, 2])})


def test_closing_twice_is_fine_and_running_then_is_not(tmp_path: Path, context: Context) -> None:
    proto = make([helper.make_node("Neg", ["x"], ["y"])], [tensor("x", [2])], [tensor("y", [2])])
    session = open_session(read(save(proto, tmp_path)), context)
    session.close()
    session.close()
    with pytest.raises(RunFailed, match="closed"):
        session.run({"x": np.zeros(2, np.float32)})
