"""Buffers bound to a session of `cpu/onnxruntime`: the unbound session's numbers, in the caller's memory."""

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
from paddock.errors import RunFailed
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import Precision, PrecisionPlan, Segment
from paddock.spi import Context, ResolvedConfig, SegmentMemory, SegmentPlan, Session
from paddock_onnxruntime.adapter import CpuOnnxRuntime
from paddock_onnxruntime.session import OnnxRuntimeOptions

pytest.importorskip("onnxruntime")


Feeds = Mapping[str, np.ndarray[Any, Any]]

SHAPES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "sum": ("float32", (2, 4)),
    "root": ("float32", (2, 4)),
    "copy": ("float32", (2, 4)),
    "dropped": ("float32", (2, 4)),
    "flat": ("float32", (8,)),
    "again": ("float32", (2, 4)),
    "above": ("bool", (2, 4)),
    "twice": ("int64", (3,)),
    "constant": ("float32", (4,)),
    "folded": ("float32", (4,)),
    "w": ("float32", (4,)),
    "left": ("float32", (2, 4)),
}
"""Every output of the model below: computed, copied, reshaped, constant, and an input itself."""


def inputs_of(number: int) -> Feeds:
    draw = np.random.default_rng(number)
    return {
        "left": draw.standard_normal((2, 4), dtype=np.float32),
        "right": draw.standard_normal((2, 4), dtype=np.float32),
        "ids": draw.integers(-(2**50), 2**50, 3),
    }


def load(content: Any, folder: Path, **options: Any) -> Session:
    path = folder / "model.onnx"
    onnx.save(content, path)
    format = OnnxFormat()
    files = format.complete({"model": path})
    model = Model("onnx", files, "test", format.read(files))
    graph = model.graph
    config = HardwareConfig.load({"hardware": "cpu", "backend": "onnxruntime"})
    adapter = CpuOnnxRuntime(ResolvedConfig(config, OnnxRuntimeOptions(**options), 1), None)
    context = Context(folder, folder)
    segment = Segment(0, "cpu/onnxruntime", tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
    verdicts = adapter.select_operators(model, context).verdicts
    plan = SegmentPlan(segment, PrecisionPlan(Precision.FP32), SegmentMemory(), verdicts=verdicts)
    return adapter.load(adapter.compile(model, plan, context), context)


def model() -> Any:
    nodes = [
        h.make_node("Add", ["left", "right"], ["sum"]),
        h.make_node("Relu", ["sum"], ["positive"]),
        h.make_node("Sqrt", ["positive"], ["root"]),
        h.make_node("Identity", ["left"], ["copy"]),
        h.make_node("Dropout", ["left"], ["dropped"]),
        h.make_node("Reshape", ["sum", "eight"], ["flat"]),
        h.make_node("Identity", ["root"], ["again"]),
        h.make_node("Greater", ["left", "right"], ["above"]),
        h.make_node("Add", ["ids", "ids"], ["twice"]),
        h.make_node("Identity", ["w"], ["constant"]),
        h.make_node("Add", ["w", "w"], ["folded"]),
    ]
    kinds = {"float32": T.FLOAT, "bool": T.BOOL, "int64": T.INT64}
    weights = {"w": np.arange(4, dtype=np.float32), "eight": np.array([8])}
    graph = h.make_graph(
        nodes,
        "graph",
        [h.make_tensor_value_info(n, kinds[str(a.dtype)], a.shape) for n, a in inputs_of(0).items()],
        [h.make_tensor_value_info(n, kinds[dtype], shape) for n, (dtype, shape) in SHAPES.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(params=["off", "all"])
def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Session, Session]]:
    """One to bind and one that stays unbound."""
    pair = tuple(load(model(), tmp_path, graph_optimization=request.param) for _ in range(2))
    yield pair[0], pair[1]
    for session in pair:
        session.close()


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
        assert found.keys() == SHAPES.keys() - (buffers.keys() - {"left"})
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


def test_everything_bound_but_the_input_that_is_an_output(sessions: tuple[Session, Session]) -> None:
    buffers = {n: a.copy() for n, a in inputs_of(0).items()} | {n: spoiled(n) for n in SHAPES}
    assert sessions[0].bind(buffers) == buffers.keys() - {"left"}
    check(*sessions, buffers, fed=("left",))


@pytest.mark.parametrize("outputs", [(), ("root",), ("constant", "sum", "twice"), ("flat", "copy")])
@pytest.mark.parametrize("inputs", [(), ("right",), ("right", "ids")])
def test_some_bound(sessions: tuple[Session, Session], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    buffers = {n: inputs_of(0)[n].copy() for n in inputs} | {n: spoiled(n) for n in outputs}
    assert sessions[0].bind(buffers) == set(inputs) | set(outputs)
    check(*sessions, buffers, fed=tuple(n for n in ("left", "right", "ids") if n not in inputs))


def test_only_the_named_outputs_are_given(sessions: tuple[Session, Session]) -> None:
    bound, plain = sessions
    place = spoiled("sum")
    assert bound.bind({"sum": place}) == {"sum"}
    for number, names in enumerate([["root", "twice"], [], ["sum"], ["twice", "sum"], ["flat", "flat"]]):
        feeds, wanted = inputs_of(number), plain.run(inputs_of(number))
        found = bound.run(feeds, names)
        assert found.keys() == set(names) - {"sum"}
        for name, array in {**found, "sum": place}.items():
            np.testing.assert_array_equal(array, wanted[name])


def test_read_only_memory_is_bound_as_an_input_only(sessions: tuple[Session, Session]) -> None:
    buffers = {"right": inputs_of(3)["right"], "sum": spoiled("sum")}
    for buffer in buffers.values():
        buffer.flags.writeable = False
    assert sessions[0].bind(buffers) == {"right"}
    found = sessions[0].run({n: a for n, a in inputs_of(3).items() if n != "right"})
    np.testing.assert_array_equal(found["sum"], sessions[1].run(inputs_of(3))["sum"])


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
    buffers: Feeds = {
        "right": np.zeros((2, 4)),
        "ids": np.zeros(4, np.int64),
        "sum": np.zeros((4, 2), np.float32),
        "root": np.zeros((4, 2), np.float32).T,
        "unknown": np.zeros(3),
    }
    assert sessions[0].bind(buffers) == frozenset()
    check(*sessions, {}, fed=("left", "right", "ids"))


def test_another_session_of_the_same_model_stays_unbound(sessions: tuple[Session, Session]) -> None:
    place = spoiled("sum")
    sessions[0].bind({"sum": place})
    before = place.copy()
    assert sessions[1].run(inputs_of(1)).keys() == SHAPES.keys()
    np.testing.assert_array_equal(place, before)


def test_nothing_is_bound_beside_strings(tmp_path: Path) -> None:
    nodes = [h.make_node("Identity", ["text"], ["same"]), h.make_node("Relu", ["x"], ["y"])]
    ins = [("text", T.STRING, [2]), ("x", T.FLOAT, [3])]
    outs = [("same", T.STRING, [2]), ("y", T.FLOAT, [3])]
    info = h.make_tensor_value_info
    graph = h.make_graph(nodes, "graph", [info(*i) for i in ins], [info(*o) for o in outs])
    session = load(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path)
    assert session.bind({"x": np.zeros(3, np.float32), "y": np.zeros(3, np.float32)}) == frozenset()
    found = session.run({"text": np.array(["a", "b"], object), "x": np.array([-1, 0, 2], np.float32)})
    assert list(found["same"]) == ["a", "b"] and list(found["y"]) == [0, 0, 2]


def test_what_is_given_is_not_the_models_own_weight(sessions: tuple[Session, Session]) -> None:
    sessions[0].bind({"sum": spoiled("sum")})
    for _ in range(2):
        found = sessions[0].run(inputs_of(0))
        for name, wanted in (("w", [0, 1, 2, 3]), ("constant", [0, 1, 2, 3]), ("folded", [0, 2, 4, 6])):
            np.testing.assert_array_equal(found[name], wanted)
            found[name][...] = -1


def test_a_shape_that_comes_out_otherwise_is_an_error(tmp_path: Path) -> None:
    info = h.make_tensor_value_info
    graph = h.make_graph(
        [h.make_node("NonZero", ["x"], ["y"])], "graph", [info("x", T.FLOAT, [4])], [info("y", T.INT64, [1, None])]
    )
    session = load(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path)
    place = np.zeros((1, 2), np.int64)
    assert session.bind({"y": place}) == {"y"}
    assert session.run({"x": np.array([0, 1, 0, 1], np.float32)}) == {}
    assert place.tolist() == [[1, 3]]
    with pytest.raises(Exception, match="shape"):
        session.run({"x": np.array([1, 1, 0, 1], np.float32)})


def test_a_closed_session_binds_nothing(sessions: tuple[Session, Session]) -> None:
    sessions[0].bind({"sum": spoiled("sum")})
    sessions[0].close()
    with pytest.raises(RunFailed, match="closed"):
        sessions[0].run(inputs_of(0))
    with pytest.raises(RunFailed, match="closed"):
        sessions[0].bind({})
