"""`run_into` on `cpu/onnxruntime`: the numbers of `run`, in the caller's arrays and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddock_onnxruntime.session
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from paddock.config import HardwareConfig
from paddock.errors import OtherShape, RunFailed, UsageError
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import Precision, PrecisionPlan, Segment
from paddock.spi import Context, ResolvedConfig, SegmentMemory, SegmentPlan, Session
from paddock_onnxruntime.adapter import CpuOnnxRuntime
from paddock_onnxruntime.session import OnnxRuntimeOptions, OnnxRuntimeSession

onnxruntime = pytest.importorskip("onnxruntime")


Feeds = Mapping[str, np.ndarray[Any, Any]]
info = h.make_tensor_value_info


def load(nodes: Any, inputs: Any, outputs: Any, folder: Path, weights: Feeds | None = None, **options: Any) -> Session:
    arrays = [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = h.make_graph(nodes, "graph", [info(*i) for i in inputs], [info(*o) for o in outputs], arrays)
    path = folder / "model.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    format = OnnxFormat()
    files = format.complete({"model": path})
    model = Model("onnx", files, "test", format.read(files))
    config = HardwareConfig.load({"hardware": "cpu", "backend": "onnxruntime"})
    adapter = CpuOnnxRuntime(ResolvedConfig(config, OnnxRuntimeOptions(**options), 1), None)
    context = Context(folder, folder)
    nodes_of = tuple(range(len(model.graph.nodes)))
    segment = Segment(0, "cpu/onnxruntime", nodes_of, model.graph.inputs, model.graph.outputs)
    verdicts = adapter.select_operators(model, context).verdicts
    plan = SegmentPlan(segment, PrecisionPlan(Precision.FP32), SegmentMemory(), verdicts=verdicts)
    return adapter.load(adapter.compile(model, plan, context), context)


class Guarded:
    """Arrays that lie amid bytes which nobody may touch, themselves filled with what no model answers."""

    def __init__(self, like: Feeds) -> None:
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._all = []
        for name, array in like.items():
            whole = np.full(array.nbytes + 256, 0xAB, np.uint8)
            self.arrays[name] = whole[128 : 128 + array.nbytes].view(array.dtype).reshape(array.shape)
            self._all.append((name, whole))

    def untouched(self, *names: str) -> bool:
        """Whether nothing but these arrays was written."""
        edges = [b for n, w in self._all for b in ((w[:128], w[-128:]) if n in names else (w,))]
        return all(bool((edge == 0xAB).all()) for edge in edges)


KINDS = {
    "float64": T.DOUBLE, "float16": T.FLOAT16, "int8": T.INT8, "int16": T.INT16, "int32": T.INT32, "int64": T.INT64,
    "uint8": T.UINT8, "uint16": T.UINT16, "uint32": T.UINT32, "uint64": T.UINT64, "bool": T.BOOL,
}  # fmt: skip
OTHERS = ("sum", "root", "copy", "flat", "head", "constant", "folded")


@pytest.fixture(params=["off", "all"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    """Outputs computed, copied, reshaped, constant, cast, an input itself, and one that is empty where n is 1."""
    nodes = [
        h.make_node("Add", ["x", "x"], ["sum"]),
        h.make_node("Abs", ["sum"], ["above"]),
        h.make_node("Sqrt", ["above"], ["root"]),
        h.make_node("Identity", ["x"], ["copy"]),
        h.make_node("Reshape", ["sum", "all"], ["flat"]),
        h.make_node("Slice", ["x", "one", "end"], ["head"]),
        h.make_node("Identity", ["w"], ["constant"]),
        h.make_node("Add", ["w", "w"], ["folded"]),
        *(h.make_node("Cast", ["above"], [name], to=kind) for name, kind in KINDS.items()),
    ]
    weights = {"w": np.arange(4, dtype=np.float32)}
    weights |= {name: np.array([value]) for name, value in (("all", -1), ("one", 1), ("end", 1000))}
    shapes: dict[str, Any] = {"flat": [None], "head": [None, 4], "constant": [4], "folded": [4]}
    outputs = [(name, T.FLOAT, shapes.get(name, ["n", 4])) for name in (*OTHERS, "x")]
    outputs += [(name, kind, ["n", 4]) for name, kind in KINDS.items()]
    made = load(nodes, [("x", T.FLOAT, ["n", 4])], outputs, tmp_path, weights, graph_optimization=request.param)
    yield made
    made.close()


@pytest.fixture(params=["placed", "small"], autouse=True)
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether onnxruntime is given even the small arrays of these tests."""
    if request.param == "placed":
        monkeypatch.setattr(paddock_onnxruntime.session, "WORTH_PLACING", 1)
    return bool(request.param == "placed")


def feeds_of(rows: int, number: int = 0) -> Feeds:
    return {"x": np.random.default_rng([rows, number]).uniform(-50, 50, (rows, 4)).astype(np.float32)}


def alike(found: Feeds, wanted: Feeds) -> None:
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype
        assert array.tobytes() == wanted[name].tobytes(), name


ALL = [*OTHERS, "x", *KINDS]


@pytest.mark.parametrize("names", [ALL, ["root"], ["x"], ["constant", "float16"], ["flat", "head"], []])
def test_the_numbers_of_run_in_these_arrays_and_nowhere_else(session: Session, names: Sequence[str]) -> None:
    kept: list[tuple[Feeds, Feeds]] = []
    for rows in (3, 1, 40, 3, 2):
        feeds = feeds_of(rows)
        before = feeds["x"].copy()
        wanted = session.run(feeds)
        guarded = Guarded({name: wanted[name] for name in names})
        session.run_into(feeds, guarded.arrays)
        alike(guarded.arrays, wanted)
        assert guarded.untouched(*names)
        assert feeds["x"].tobytes() == before.tobytes()
        kept.append((guarded.arrays, {name: wanted[name] for name in names}))
    session.run(feeds_of(3, 9))
    for arrays, numbers in kept:  # no later run writes to them
        alike(arrays, numbers)


def test_what_is_placed_is_not_copied(session: Session, placed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = session.run(feeds_of(3))
    places = {name: np.empty_like(wanted[name]) for name in ALL if name != "x"}
    monkeypatch.setattr(OnnxRuntimeSession, "run", lambda *_: pytest.fail("run was called"))
    if placed:
        session.run_into(feeds_of(3), places)
        alike(places, wanted)
    else:
        with pytest.raises(pytest.fail.Exception):
            session.run_into(feeds_of(3), places)


def test_another_shape_is_refused_and_nothing_written(session: Session) -> None:
    wanted = session.run(feeds_of(3))
    for name in ("sum", "copy", "flat", "constant", "folded", "head", "x", "bool", "int64"):
        for shape in ((2, 4), (4, 3), (40, 4), (12,), (2,), (0, 4), (3, 4, 1), (0,)):
            if wanted[name].shape == shape:
                continue
            guarded = Guarded({name: np.empty(shape, wanted[name].dtype)})
            with pytest.raises(UsageError, match="has the shape") as caught:
                session.run_into(feeds_of(3), guarded.arrays)
            assert str(list(wanted[name].shape)) in caught.value.problem
            assert guarded.untouched()
        good = {name: np.empty_like(wanted[name])}
        session.run_into(feeds_of(3), good)  # and the session goes on
        alike(good, wanted)


@pytest.mark.parametrize("rows", [3, 4])
def test_shapes_that_depend_on_the_numbers(tmp_path: Path, rows: int) -> None:
    then = h.make_graph([h.make_node("Neg", ["x"], ["t"])], "then", [], [info("t", T.FLOAT, None)])
    other = h.make_graph([h.make_node("Reshape", ["x", "all"], ["o"])], "other", [], [info("o", T.FLOAT, None)])
    nodes = [
        h.make_node("NonZero", ["x"], ["where"]),
        h.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        h.make_node("Greater", ["most", "zero"], ["any"]),
        h.make_node("If", ["any"], ["y"], then_branch=then, else_branch=other),
    ]
    outputs = [("where", T.INT64, [2, None]), ("y", T.FLOAT, None)]
    weights = {"all": np.array([-1]), "zero": np.array(0, np.float32)}
    session = load(nodes, [("x", T.FLOAT, ["n", 4])], outputs, tmp_path, weights)
    for value in (1, -1, 0):
        feeds = {"x": np.zeros((rows, 4), np.float32)}
        feeds["x"][: rows - 1] = value
        wanted = session.run(feeds)
        guarded = Guarded(wanted)
        session.run_into(feeds, guarded.arrays)
        alike(guarded.arrays, wanted)
        assert guarded.untouched(*wanted)
        for name in wanted:
            wrong = Guarded(
                {name: np.empty((*wanted[name].shape[:-1], wanted[name].shape[-1] + 1), wanted[name].dtype)}
            )
            with pytest.raises(UsageError, match="has the shape"):
                session.run_into(feeds, wrong.arrays)
            assert wrong.untouched()
    session.close()


def test_a_model_that_states_another_shape_than_it_computes(tmp_path: Path) -> None:
    nodes = [h.make_node("NonZero", ["x"], ["y"])]
    session = load(nodes, [("x", T.FLOAT, [4])], [("y", T.INT64, [1, 3])], tmp_path)
    for values in ([1, 0, 1, 0], [1, 1, 1, 0]):
        wanted = session.run({"x": np.array(values, np.float32)})
        guarded = Guarded(wanted)
        session.run_into({"x": np.array(values, np.float32)}, guarded.arrays)
        alike(guarded.arrays, wanted)
        assert guarded.untouched("y")


def test_threads_at_once_write_each_into_its_own(session: Session) -> None:
    def work(number: int) -> None:
        for turn in range(40):
            feeds = feeds_of(1 + (number + turn) % 7, turn)
            wanted = session.run(feeds)
            guarded = Guarded(wanted)
            session.run_into(feeds, guarded.arrays)
            alike(guarded.arrays, wanted)
            assert guarded.untouched(*wanted)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))


def test_empty_inputs_and_read_only_ones(session: Session) -> None:
    for rows in (0, 2):
        feeds = feeds_of(rows)
        feeds["x"].flags.writeable = False
        wanted = session.run(feeds)
        guarded = Guarded(wanted)
        session.run_into(feeds, guarded.arrays)
        alike(guarded.arrays, wanted)
        assert guarded.untouched(*wanted)


def test_beside_bound_buffers(tmp_path: Path) -> None:
    nodes = [h.make_node("Add", ["x", "y"], ["sum"]), h.make_node("Mul", ["x", "y"], ["product"])]
    ports = [("x", T.FLOAT, [2, 4]), ("y", T.FLOAT, [2, 4])]
    outputs = [(name, T.FLOAT, [2, 4]) for name in ("sum", "product", "y")]
    session = load(nodes, ports, outputs, tmp_path)
    bound = {"x": np.ones((2, 4), np.float32), "sum": np.zeros((2, 4), np.float32)}
    assert session.bind(bound) == bound.keys()
    for number in range(3):
        bound["x"][...] = number
        feeds = {"y": np.full((2, 4), 7 + number, np.float32)}
        for names in (["product"], ["product", "y"], ["y"], []):
            bound["sum"][...] = -1
            guarded = Guarded(dict.fromkeys(names, bound["x"]))
            session.run_into(feeds, guarded.arrays)
            wanted = {"product": bound["x"] * feeds["y"], "y": feeds["y"]}
            alike(guarded.arrays, wanted)
            assert guarded.untouched(*names)
            assert (bound["sum"] == number + 7 + number).all()
        assert session.run(feeds).keys() == {"product", "y"}


def test_beside_strings(tmp_path: Path) -> None:
    nodes = [h.make_node("Identity", ["text"], ["same"]), h.make_node("Relu", ["x"], ["y"])]
    ins, outs = [("text", T.STRING, [2]), ("x", T.FLOAT, [3])], [("same", T.STRING, [2]), ("y", T.FLOAT, [3])]
    session = load(nodes, ins, outs, tmp_path)
    guarded = Guarded({"y": np.empty(3, np.float32)})
    text = np.empty(2, object)
    session.run_into(
        {"text": np.array(["a", "b"], object), "x": np.array([-1, 0, 2], np.float32)},
        {**guarded.arrays, "same": text},
    )
    assert list(text) == ["a", "b"] and list(guarded.arrays["y"]) == [0, 0, 2] and guarded.untouched("y")


def test_what_onnxruntime_fails_at_is_raised(tmp_path: Path) -> None:
    nodes = [h.make_node("Gather", ["x", "at"], ["y"])]
    session = load(nodes, [("x", T.FLOAT, ["n"]), ("at", T.INT64, [2])], [("y", T.FLOAT, [2])], tmp_path)
    place = np.empty(2, np.float32)
    with pytest.raises(Exception, match="out of data bounds"):
        session.run_into({"x": np.zeros(3, np.float32), "at": np.array([0, 9])}, {"y": place})


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each time that onnxruntime computes."""
    made: list[str] = []

    def watched(name: str) -> None:
        real = getattr(onnxruntime.InferenceSession, name)

        def call(*given: Any, **named: Any) -> Any:
            made.append(name)
            return real(*given, **named)

        monkeypatch.setattr(onnxruntime.InferenceSession, name, call)

    watched("run")
    watched("run_with_iobinding")
    return made


def test_another_shape_is_told_without_computing_again(session: Session, placed: bool, computed: list[str]) -> None:
    for name in ("sum", "root", "flat", "copy", "bool"):
        wrong = np.empty((5,) if name == "flat" else (5, 4), bool if name == "bool" else np.float32)
        computed.clear()
        with pytest.raises(OtherShape, match="has the shape") as told:
            session.run_into(feeds_of(3), {name: wrong})
        assert told.value.output == name and told.value.given == wrong.shape
        assert told.value.found == ((12,) if name == "flat" else (3, 4))
        assert computed == (["run_with_iobinding"] if placed else ["run"])


def test_a_failure_is_not_tried_again(tmp_path: Path, placed: bool, computed: list[str]) -> None:
    nodes = [h.make_node("Gather", ["x", "at"], ["y"])]
    session = load(nodes, [("x", T.FLOAT, ["n"]), ("at", T.INT64, [2])], [("y", T.FLOAT, [2])], tmp_path)
    computed.clear()
    with pytest.raises(Exception, match="out of data bounds"):
        session.run_into({"x": np.zeros(3, np.float32), "at": np.array([0, 9])}, {"y": np.empty(2, np.float32)})
    assert computed == (["run_with_iobinding"] if placed else ["run"])


def test_a_closed_session(session: Session) -> None:
    session.close()
    with pytest.raises(RunFailed, match="closed"):
        session.run_into(feeds_of(3), {"sum": np.empty((3, 4), np.float32)})


@pytest.mark.parametrize("rows", [3, "n"])
def test_no_layouts_are_kept_where_shapes_vary(tmp_path: Path, rows: object) -> None:
    nodes, ports = [h.make_node("Relu", ["x"], ["y"])], [("x", T.FLOAT, [rows, 4])]
    session = load(nodes, ports, [("y", T.FLOAT, [rows, 4])], tmp_path)
    assert isinstance(session, OnnxRuntimeSession)
    assert session._inner.get_session_options().enable_mem_pattern is (rows == 3)
