"""`run_into` on `cpu/openvino`: the numbers of `run`, in the caller's arrays and nowhere else; and what is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddock_openvino.adapter
import paddock_openvino.session
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from paddock.config import HardwareConfig
from paddock.errors import RunFailed, UsageError
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import Precision, PrecisionPlan, Segment
from paddock.spi import Context, ResolvedConfig, SegmentMemory, SegmentPlan, Session
from paddock_openvino import kept
from paddock_openvino.adapter import CpuOpenVino, CpuOptions
from paddock_openvino.sdk import core
from paddock_openvino.session import OpenVinoSession

pytest.importorskip("openvino")


Feeds = Mapping[str, np.ndarray[Any, Any]]
info = h.make_tensor_value_info


def load(nodes: Any, inputs: Any, outputs: Any, folder: Path, weights: Feeds | None = None) -> Session:
    arrays = [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = h.make_graph(nodes, "graph", [info(*i) for i in inputs], [info(*o) for o in outputs], arrays)
    path = folder / "model.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    format = OnnxFormat()
    files = format.complete({"model": path})
    model = Model("onnx", files, "test", format.read(files))
    config = HardwareConfig.load({"hardware": "cpu", "backend": "openvino"})
    adapter, context = CpuOpenVino(ResolvedConfig(config, CpuOptions(), 1), None), Context(folder, folder)
    nodes_of = tuple(range(len(model.graph.nodes)))
    segment = Segment(0, "cpu/openvino", nodes_of, model.graph.inputs, model.graph.outputs)
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


KINDS = {"float64": T.DOUBLE, "float16": T.FLOAT16, "bool": T.BOOL, "int64": T.INT64}
OTHERS = ("sum", "root", "copy", "flat", "turned", "again", "constant", "folded", "w")
ALL = [*OTHERS, "x", *KINDS]


@pytest.fixture(params=["fixed", "free"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    """Outputs computed, copied, reshaped, constant, cast, sharing a tensor, an input itself; rows fixed or free."""
    nodes = [
        h.make_node("Add", ["x", "x"], ["sum"]),
        h.make_node("Abs", ["sum"], ["above"]),
        h.make_node("Sqrt", ["above"], ["root"]),
        h.make_node("Identity", ["root"], ["again"]),
        h.make_node("Identity", ["x"], ["copy"]),
        h.make_node("Reshape", ["sum", "all"], ["flat"]),
        h.make_node("Transpose", ["x"], ["turned"], perm=[1, 0]),
        h.make_node("Identity", ["w"], ["constant"]),
        h.make_node("Add", ["w", "w"], ["folded"]),
        h.make_node("Cast", ["above"], ["float64"], to=T.DOUBLE),
        h.make_node("Cast", ["above"], ["float16"], to=T.FLOAT16),
        h.make_node("Greater", ["x", "sum"], ["bool"]),
        h.make_node("Identity", ["ids"], ["int64"]),
    ]
    weights = {"w": np.arange(4, dtype=np.float32), "all": np.array([-1])}
    rows = 3 if request.param == "fixed" else "n"
    shapes: dict[str, Any] = {"flat": [None], "turned": [4, rows], "constant": [4], "folded": [4], "w": [4]}
    outputs = [(name, T.FLOAT, shapes.get(name, [rows, 4])) for name in (*OTHERS, "x")]
    outputs += [(name, kind, [rows, 4]) for name, kind in KINDS.items()]
    made = load(nodes, [("x", T.FLOAT, [rows, 4]), ("ids", T.INT64, [rows, 4])], outputs, tmp_path, weights)
    yield made
    made.close()


@pytest.fixture(params=["placed", "small"], autouse=True)
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether OpenVINO is given even the small arrays of these tests."""
    if request.param == "placed":
        monkeypatch.setattr(paddock_openvino.session, "WORTH_PLACING", 1)
    return bool(request.param == "placed")


def feeds_of(rows: int, number: int = 0) -> Feeds:
    draw = np.random.default_rng([rows, number])
    return {"x": draw.uniform(-50, 50, (rows, 4)).astype(np.float32), "ids": draw.integers(-99, 99, (rows, 4))}


def alike(found: Feeds, wanted: Feeds) -> None:
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype
        assert array.tobytes() == wanted[name].tobytes(), name


def rows_of(session: Session) -> tuple[int, ...]:
    """What to run it with: free rows vary."""
    assert isinstance(session, OpenVinoSession)
    return (3, 1, 40, 3, 2) if session._compiled.inputs[0].get_partial_shape().is_dynamic else (3, 3)


@pytest.mark.parametrize("names", [ALL, ["root"], ["root", "again"], ["x", "w"], ["constant", "float16"], []])
def test_the_numbers_of_run_in_these_arrays_and_nowhere_else(session: Session, names: Sequence[str]) -> None:
    kept: list[tuple[Feeds, Feeds]] = []
    for number, rows in enumerate(rows_of(session)):
        feeds = feeds_of(rows, number)
        before = feeds["x"].copy()
        wanted = session.run(feeds)
        guarded = Guarded({name: wanted[name] for name in names})
        session.run_into(feeds, guarded.arrays)
        alike(guarded.arrays, wanted)
        assert guarded.untouched(*names)
        assert feeds["x"].tobytes() == before.tobytes()
        kept.append((guarded.arrays, {name: wanted[name] for name in names}))
    session.run(feeds_of(3, 9))
    session.run_into(feeds_of(3, 10), {"turned": np.empty((4, 3), np.float32)})
    for arrays, numbers in kept:  # no later run writes to them
        alike(arrays, numbers)


def test_what_is_placed_is_not_copied(session: Session, placed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(session, OpenVinoSession)
    fixed = len(rows_of(session)) == 2
    wanted = session.run(feeds_of(3))
    places = {name: np.empty_like(wanted[name]) for name in ("sum", "root", "turned", "int64", "constant")}
    found: list[Any] = []
    infer = session._infer

    def watched(*given: Any, **named: Any) -> list[Any]:
        found.extend(infer(*given, **named))
        return found

    monkeypatch.setattr(session, "_infer", watched)
    session.run_into(feeds_of(3), places)
    written = {n for n, place in places.items() if any(np.shares_memory(place, array) for array in found)}
    alike(places, wanted)
    if not placed:
        assert not written
    else:
        assert written == ({"sum", "root", "turned", "int64"} if fixed else set())


def test_another_shape_is_refused_and_nothing_written(session: Session) -> None:
    wanted = session.run(feeds_of(3))
    for name in ("sum", "copy", "flat", "constant", "folded", "turned", "x", "bool", "int64"):
        for shape in ((2, 4), (3, 4), (4, 3), (40, 4), (12,), (2,), (0, 4), (3, 4, 1), (0,)):
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


def test_a_run_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    ports = [("x", T.FLOAT, [3]), ("ids", T.INT64, [2])]
    nodes = [h.make_node("Relu", ["x"], ["y"]), h.make_node("Identity", ["ids"], ["same"])]
    session = load(nodes, ports, [("y", T.FLOAT, [3]), ("same", T.INT64, [2])], tmp_path)
    guarded = Guarded({"y": np.empty(3, np.float32)})
    with pytest.raises(UsageError, match="int32"):
        session.run_into({"x": np.ones(3, np.float32), "ids": np.array([1, 2**40])}, guarded.arrays)
    session.run({"x": np.ones(3, np.float32), "ids": np.array([1, 2])})
    assert guarded.untouched()
    session.close()


def test_shapes_that_depend_on_the_numbers(tmp_path: Path) -> None:
    nodes = [h.make_node("NonZero", ["x"], ["where"])]
    session = load(nodes, [("x", T.FLOAT, [3, 4])], [("where", T.INT64, [2, None])], tmp_path)
    for count in (5, 1, 0, 12):
        feeds = {"x": (np.arange(12).reshape(3, 4) < count).astype(np.float32)}
        wanted = session.run(feeds)
        guarded = Guarded(wanted)
        session.run_into(feeds, guarded.arrays)
        alike(guarded.arrays, wanted)
        assert guarded.untouched("where")
        for other in (count + 1, max(0, count - 1)):
            wrong = Guarded({"where": np.empty((2, other), np.int64)})
            if other != count:
                with pytest.raises(UsageError, match="has the shape"):
                    session.run_into(feeds, wrong.arrays)
            assert wrong.untouched()
    session.close()


def test_forks_at_once_write_each_into_its_own(session: Session) -> None:
    forks = [session, *(session.fork() for _ in range(2))]

    def work(number: int) -> None:
        fork = forks[number]
        assert fork is not None
        for turn in range(30):
            feeds = feeds_of(3, turn + 100 * number)
            wanted = fork.run(feeds)
            guarded = Guarded(wanted)
            fork.run_into(feeds, guarded.arrays)
            alike(guarded.arrays, wanted)
            assert guarded.untouched(*wanted)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    for turn in range(10):  # one session from several threads in turn
        with ThreadPoolExecutor(1) as pool:
            guarded = Guarded(wanted := session.run(feeds_of(3, turn)))
            pool.submit(session.run_into, feeds_of(3, turn), guarded.arrays).result()
            alike(guarded.arrays, wanted)


def test_beside_bound_buffers(tmp_path: Path) -> None:
    nodes = [h.make_node("Add", ["x", "y"], ["sum"]), h.make_node("Mul", ["x", "y"], ["product"])]
    ports = [("x", T.FLOAT, [2, 4]), ("y", T.FLOAT, [2, 4])]
    session = load(nodes, ports, [(name, T.FLOAT, [2, 4]) for name in ("sum", "product", "y")], tmp_path)
    bound = {"x": np.ones((2, 4), np.float32), "sum": np.zeros((2, 4), np.float32)}
    assert session.bind(bound) == bound.keys()
    for number in range(3):
        bound["x"][...] = number
        feeds = {"y": np.full((2, 4), 7 + number, np.float32)}
        feeds["y"].flags.writeable = number > 0
        for names in (["product"], ["product", "y"], ["y"], []):
            bound["sum"][...] = -1
            guarded = Guarded(dict.fromkeys(names, bound["x"]))
            session.run_into(feeds, guarded.arrays)
            alike(guarded.arrays, {"product": bound["x"] * feeds["y"], "y": feeds["y"]})
            assert guarded.untouched(*names)
            assert (bound["sum"] == number + 7 + number).all()
        assert session.run(feeds).keys() == {"product", "y"}


def test_a_closed_session(session: Session) -> None:
    session.close()
    with pytest.raises(RunFailed, match="closed"):
        session.run_into(feeds_of(3), {"sum": np.empty((3, 4), np.float32)})


@pytest.mark.parametrize("rows", [3, "n"])
def test_kernels_kept_are_bounded_where_shapes_vary(
    tmp_path: Path, rows: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Mapping[str, Any]] = []
    real = core()

    class Core:
        def compile_model(self, model: Any, target: str, properties: Mapping[str, Any]) -> Any:
            given.append(properties)
            return real.compile_model(model, target, properties)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(paddock_openvino.adapter, "core", Core)
    ports = [("x", T.FLOAT, [rows, 4])]
    load([h.make_node("Relu", ["x"], ["y"])], ports, [("y", T.FLOAT, [rows, 4])], tmp_path).close()
    bounds = [properties.get("CPU_RUNTIME_CACHE_CAPACITY") for properties in given]
    assert bounds == [kept.KERNELS if rows == "n" else None]


def test_onednn_is_told_once_and_the_environment_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    variable = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"

    class Core:
        def compile_model(self, *arguments: Any) -> None:
            seen.append(os.environ.get(variable))
            raise RuntimeError("refused")

    kept._bound_once.cache_clear()
    monkeypatch.setattr(kept, "core", Core)
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("DNNL_PRIMITIVE_CACHE_CAPACITY", raising=False)
    with pytest.raises(RuntimeError, match="refused"):
        kept.bound_primitives()
    assert seen == [str(kept.PRIMITIVES)] and variable not in os.environ
    monkeypatch.setenv(variable, "7")  # what the user says counts
    kept.bound_primitives()
    kept.bound_primitives()
    assert len(seen) == 1 and os.environ[variable] == "7"
