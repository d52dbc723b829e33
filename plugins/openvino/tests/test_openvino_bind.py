"""Buffers bound to a session of `cpu/openvino`: the unbound session's numbers, in the caller's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from paddock.config import HardwareConfig
from paddock.errors import BuildFailed, RunFailed, UsageError
from paddock.graph import Range
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import Means, Precision, PrecisionPlan, Segment
from paddock.spi import Context, ResolvedConfig, SegmentMemory, SegmentPlan, Session
from paddock_openvino.adapter import CpuOpenVino, CpuOptions
from paddock_openvino.sdk import core
from paddock_openvino.session import OpenVinoSession

Feeds = Mapping[str, np.ndarray[Any, Any]]

PRECISIONS = ["fp32", *(["bf16"] if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else [])]

SHAPES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "sum": ("float32", (2, 4)),
    "root": ("float32", (2, 4)),
    "copy": ("float32", (2, 4)),
    "flat": ("float32", (8,)),
    "again": ("float32", (2, 4)),
    "turned": ("float32", (4, 2)),
    "half": ("float16", (2, 4)),
    "double": ("float64", (2, 4)),
    "above": ("bool", (2, 4)),
    "numbers": ("int64", (3,)),
    "first": ("float32", (1, 4)),
    "second": ("float32", (1, 4)),
    "whole": ("float32", (4, 4)),
    "folded": ("float32", (4,)),
    "constant": ("float32", (4,)),
    "w": ("float32", (4,)),
    "left": ("float32", (2, 4)),
}
"""Every output of the model below: computed, copied, reshaped, cast, split, constant, and an input itself."""

SHARED = ("constant", "w", "left")
"""Of them, those that OpenVINO takes for one tensor with another, or that are an input."""


def inputs_of(number: int) -> Feeds:
    draw = np.random.default_rng(number)
    return {
        "left": draw.standard_normal((2, 4), dtype=np.float32),
        "right": draw.standard_normal((2, 4), dtype=np.float32),
        "ids": draw.integers(-(2**31), 2**31, 3),
    }


def load(content: Any, folder: Path, precision: str = "fp32", bounds: Mapping[str, Range] | None = None) -> Session:
    path = folder / "model.onnx"
    onnx.save(content, path)
    format = OnnxFormat()
    files = format.complete({"model": path})
    model = Model("onnx", files, "test", format.read(files).with_bounds(bounds or {}))
    graph = model.graph
    config = HardwareConfig.load({"hardware": "cpu", "backend": "openvino", "precision": precision})
    adapter, context = CpuOpenVino(ResolvedConfig(config, CpuOptions(), 1), None), Context(folder, folder)
    segment = Segment(0, "cpu/openvino", tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
    verdicts = adapter.select_operators(model, context).verdicts
    wanted = PrecisionPlan(Precision(precision), Means.BACKEND)
    plan = SegmentPlan(segment, wanted, SegmentMemory(), verdicts=verdicts)
    return adapter.load(adapter.compile(model, plan, context), context)


def graph_of(nodes: Any, inputs: Any, outputs: Any, weights: Mapping[str, Any] | None = None) -> Any:
    """A model; inputs and outputs are (name, dtype, shape)."""
    info = h.make_tensor_value_info
    arrays = [onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in (weights or {}).items()]
    graph = h.make_graph(nodes, "graph", [info(*i) for i in inputs], [info(*o) for o in outputs], arrays)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def model() -> Any:
    nodes = [
        h.make_node("Add", ["left", "right"], ["sum"]),
        h.make_node("Relu", ["sum"], ["positive"]),
        h.make_node("Sqrt", ["positive"], ["root"]),
        h.make_node("Identity", ["left"], ["copy"]),
        h.make_node("Reshape", ["sum", "eight"], ["flat"]),
        h.make_node("Identity", ["root"], ["again"]),
        h.make_node("Transpose", ["right"], ["turned"], perm=[1, 0]),
        h.make_node("Cast", ["sum"], ["half"], to=T.FLOAT16),
        h.make_node("Cast", ["right"], ["double"], to=T.DOUBLE),
        h.make_node("Greater", ["left", "right"], ["above"]),
        h.make_node("Identity", ["ids"], ["numbers"]),
        h.make_node("Split", ["root"], ["first", "second"], axis=0),
        h.make_node("Concat", ["left", "root"], ["whole"], axis=0),
        h.make_node("Add", ["w", "w"], ["folded"]),
        h.make_node("Identity", ["w"], ["constant"]),
    ]
    kinds = {"float32": T.FLOAT, "bool": T.BOOL, "int64": T.INT64, "float16": T.FLOAT16, "float64": T.DOUBLE}
    inputs = [(n, kinds[str(a.dtype)], a.shape) for n, a in inputs_of(0).items()]
    outputs = [(n, kinds[dtype], shape) for n, (dtype, shape) in SHAPES.items()]
    return graph_of(nodes, inputs, outputs, {"w": np.arange(4, dtype=np.float32), "eight": np.array([8])})


@pytest.fixture(params=PRECISIONS)
def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Session, Session]]:
    """One to bind and one that stays unbound: two requests on one compiled model."""
    first = load(model(), tmp_path, request.param)
    second = first.fork()
    assert second is not None
    yield first, second
    first.close()
    second.close()


def spoiled(name: str) -> np.ndarray[Any, Any]:
    """A buffer for an output that holds nothing the model could answer."""
    dtype, shape = SHAPES[name]
    buffer = np.empty(shape, dtype)
    buffer.view(np.uint8)[...] = 0x01 if dtype == "bool" else 0xAB
    return buffer


def spoil(buffers: Feeds) -> None:
    for name, buffer in buffers.items():
        if name in SHAPES:
            buffer[...] = spoiled(name)


def check(session: Session, plain: Session, buffers: Feeds, fed: tuple[str, ...] = ()) -> None:
    """Several inputs in turn, rewritten in place: each run must equal the unbound session's, wherever it lies."""
    kept: list[tuple[Any, Any]] = []
    for number in range(5):
        feeds = inputs_of(number)
        spoil(buffers)
        for name in feeds.keys() - set(fed):
            buffers[name][...] = feeds[name]
        wanted = plain.run(feeds)
        found = session.run({name: feeds[name] for name in fed})
        assert found.keys() == SHAPES.keys() - buffers.keys()
        for name, array in wanted.items():
            place = buffers[name] if name not in found else found[name]
            np.testing.assert_array_equal(place, array, err_msg=name)
            if name in found:
                assert not any(np.shares_memory(found[name], other) for other in (*buffers.values(), *feeds.values()))
                kept.append((found[name], array))
        for name in feeds.keys() - set(fed):
            np.testing.assert_array_equal(buffers[name], feeds[name])  # only read
    for array, wanted_array in kept:  # no later run has touched what an earlier one gave
        np.testing.assert_array_equal(array, wanted_array)


def test_everything_bound_but_what_shares_its_memory(sessions: tuple[Session, Session]) -> None:
    buffers = {n: a.copy() for n, a in inputs_of(0).items()} | {n: spoiled(n) for n in SHAPES}
    bound = {n: a for n, a in buffers.items() if n not in SHARED}
    assert sessions[0].bind(buffers) == bound.keys()
    check(*sessions, bound, fed=("left",))


@pytest.mark.parametrize("name", [n for n in SHAPES if n not in SHARED])
def test_one_bound(sessions: tuple[Session, Session], name: str) -> None:
    """Alone, since a neighbour in the caller's memory changes what OpenVINO may compute in place."""
    buffers = {name: spoiled(name)}
    assert sessions[0].bind(buffers) == {name}
    check(*sessions, buffers, fed=("left", "right", "ids"))


@pytest.mark.parametrize("outputs", [(), ("root",), ("folded", "sum", "numbers"), ("flat", "copy")])
@pytest.mark.parametrize("inputs", [("right",), ("right", "ids")])
def test_some_bound(sessions: tuple[Session, Session], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    buffers = {n: inputs_of(0)[n].copy() for n in inputs} | {n: spoiled(n) for n in outputs}
    assert sessions[0].bind(buffers) == set(inputs) | set(outputs)
    check(*sessions, buffers, fed=tuple(n for n in ("left", "right", "ids") if n not in inputs))


def test_a_fork_is_unbound(sessions: tuple[Session, Session]) -> None:
    place = spoiled("sum")
    assert sessions[0].bind({"sum": place, "right": inputs_of(0)["right"].copy()}) == {"sum", "right"}
    fork = sessions[0].fork()
    assert fork is not None
    before = place.copy()
    found = fork.run(inputs_of(1))
    assert found.keys() == SHAPES.keys()
    np.testing.assert_array_equal(place, before)
    np.testing.assert_array_equal(found["sum"], sessions[1].run(inputs_of(1))["sum"])
    other = spoiled("sum")
    assert fork.bind({"sum": other}) == {"sum"}
    for session, into, number in ((sessions[0], place, 0), (fork, other, 2), (sessions[0], place, 0)):
        feeds = inputs_of(number)
        session.run(feeds if session is fork else {n: a for n, a in feeds.items() if n != "right"})
        np.testing.assert_array_equal(into, sessions[1].run(feeds)["sum"])


def test_wide_numbers_are_refused_in_a_bound_input_too(sessions: tuple[Session, Session]) -> None:
    ids, place = np.array([1, 2, 3]), spoiled("numbers")
    assert sessions[0].bind({"ids": ids, "numbers": place}) == {"ids", "numbers"}
    feeds = {n: a for n, a in inputs_of(0).items() if n != "ids"}
    sessions[0].run(feeds)
    assert place.tolist() == [1, 2, 3]
    ids[1] = 2**40
    with pytest.raises(UsageError, match="computes int64 in int32"):
        sessions[0].run(feeds)
    ids[1] = -5
    sessions[0].run(feeds)
    assert place.tolist() == [1, -5, 3]


def test_only_the_named_outputs_are_given(sessions: tuple[Session, Session]) -> None:
    bound, plain = sessions
    place = spoiled("sum")
    assert bound.bind({"sum": place}) == {"sum"}
    for number, names in enumerate([["root", "numbers"], [], ["sum"], ["numbers", "sum"]]):
        feeds, wanted = inputs_of(number), plain.run(inputs_of(number))
        found = bound.run(feeds, names)
        assert found.keys() == set(names) - {"sum"}
        for name, array in {**found, "sum": place}.items():
            np.testing.assert_array_equal(array, wanted[name])


def test_an_output_whose_memory_is_also_anothers_is_not_bound(sessions: tuple[Session, Session]) -> None:
    shared = inputs_of(0)["right"].copy()
    arena = np.zeros(12, np.float32)
    buffers = {"right": shared, "sum": shared, "root": arena[:8].reshape(2, 4), "flat": arena[4:]}
    assert sessions[0].bind(buffers) == {"right"}
    check(*sessions, {"right": shared}, fed=("left", "ids"))


def test_buffers_side_by_side_at_odd_places(sessions: tuple[Session, Session]) -> None:
    arena = np.zeros(1 + 8 + 8 + 8, np.float32)[1:]
    buffers = {name: arena[8 * i : 8 * i + 8].reshape(2, 4) for i, name in enumerate(("right", "sum", "root"))}
    assert sessions[0].bind(buffers) == buffers.keys()
    check(*sessions, buffers, fed=("left", "ids"))


def test_what_does_not_fit_is_not_bound(sessions: tuple[Session, Session]) -> None:
    read_only = spoiled("flat")
    read_only.flags.writeable = False
    buffers: Feeds = {
        "right": np.zeros((2, 4)),
        "ids": np.zeros(4, np.int64),
        "sum": np.zeros((4, 2), np.float32),
        "root": np.zeros((4, 2), np.float32).T,
        "flat": read_only,
        "unknown": np.zeros(3),
    }
    assert sessions[0].bind(buffers) == frozenset()
    check(*sessions, {}, fed=("left", "right", "ids"))


def test_a_shape_that_varies_is_not_bound(tmp_path: Path) -> None:
    nodes = [h.make_node("Relu", ["x"], ["y"])]
    content = graph_of(nodes, [("x", T.FLOAT, ["N", 4])], [("y", T.FLOAT, ["N", 4])])
    x, y = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)
    assert load(content, tmp_path, bounds={"N": Range(1, 2, 4)}).bind({"x": x, "y": y}) == frozenset()
    fixed = load(content, tmp_path, bounds={"N": Range(2, 2, 2)})
    assert fixed.bind({"x": x, "y": y}) == {"x", "y"}
    x[...] = np.arange(-3, 5).reshape(2, 4)
    assert fixed.run({}) == {}
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_a_closed_session_binds_nothing(sessions: tuple[Session, Session]) -> None:
    sessions[0].bind({"sum": spoiled("sum")})
    sessions[0].close()
    with pytest.raises(RunFailed, match="closed"):
        sessions[0].run(inputs_of(0))
    with pytest.raises(RunFailed, match="closed"):
        sessions[0].bind({})


def test_an_input_whose_name_openvino_loses_is_refused(tmp_path: Path) -> None:
    """A Dropout of x that is the output y leaves the input the name y: nothing could ever be put there."""
    content = graph_of([h.make_node("Dropout", ["x"], ["y"])], [("x", T.FLOAT, [2])], [("y", T.FLOAT, [2])])
    onnx.save(content, tmp_path / "model.onnx")
    compiled = core().compile_model(str(tmp_path / "model.onnx"), "CPU")
    with pytest.raises(BuildFailed, match="input 'y' that is none of the model's"):
        OpenVinoSession(compiled, ("x",), ("y",), {})


def test_an_output_whose_name_openvino_loses_is_found_by_its_place(tmp_path: Path) -> None:
    nodes = [h.make_node("Relu", ["x"], ["z"]), h.make_node("Dropout", ["z"], ["y"]), h.make_node("Neg", ["x"], ["n"])]
    session = load(graph_of(nodes, [("x", T.FLOAT, [2])], [(n, T.FLOAT, [2]) for n in ("z", "n", "y")]), tmp_path)
    buffers: Feeds = {n: np.zeros(2, np.float32) for n in ("z", "n", "y")}
    assert session.bind(buffers) == {"n"}
    found = session.run({"x": np.array([-1, 2], np.float32)})
    assert {n: a.tolist() for n, a in found.items()} == {"z": [0, 2], "y": [0, 2]}
    assert buffers["n"].tolist() == [1, -2]
