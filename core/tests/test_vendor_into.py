"""What a vendor's sessions answer and write is checked, and made the caller's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddock_fakes_segments as odd
import paddock_vendor_into as vendor
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock.arena import Arena
from paddock.child import Children
from paddock.deployment import Deployment, deploy
from paddock.errors import AccuracyRefused, OtherShape, RunFailed, UsageError
from paddock.flow import Flow, Stage
from paddock.graph import Graph, Node, Value
from paddock.host import InProcessHost
from paddock.into import _PAIRS, Answers, unlike
from paddock.pipeline import Pipeline
from paddock.registry import Registry
from paddock.spi import Arrays, Session, Threading, other_shape
from paddock.verify import Outcome, Report

Array = np.ndarray[Any, Any]
Deploy = Callable[..., Deployment]

STEPS = [("a Abs", "x", "p"), ("b Neg", "p", "q"), ("c Tanh", "q", "y")]
CUT = {"fallback": ["cpu/odd"], "operators": {"exclude": ["b"]}}
SAME = [("a Abs", "x", "p"), ("b Neg", "p", "q"), ("c Identity", "q", "y"), ("d Identity", "x", "z")]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return vendor.discover(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture
def serve(registry: Registry, children: Children, tmp_path: Path) -> Iterator[Deploy]:
    made: list[Deployment] = []
    for name, value in vars(vendor.Manners()).items():
        setattr(vendor.MANNERS, name, value)

    def call(adapter: str = "cpu/placing", steps: Any = STEPS, outputs: Any = ("y", "p"), **fields: Any) -> Deployment:
        model = odd.save(tmp_path / "m.onnx", steps, outputs, ("n", 3))
        hardware, _, backend = adapter.partition("/")
        config = {"hardware": hardware, "backend": backend, "batch_size": 8, "accuracy": {"verify": "always"}, **fields}
        made.append(deploy(model, config, registry=registry, children=children))
        return made[-1]

    yield call
    for name, value in vars(vendor.Manners()).items():
        setattr(vendor.MANNERS, name, value)
    for deployment in made:
        deployment.close()


def batch(rows: int = 2, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)}


# A session's own way into arrays is verified


BAD = {
    "leaves all": "is not written",
    "leaves the last": "is not written",
    "leaves an element": "NaN or infinity",
    "writes wrong": "has relative error",
    "raises": "ArithmeticError: the device has no room there",
    "raises usage": "the vendor wants something else",
}


@pytest.mark.parametrize("fields", [{}, CUT], ids=["whole", "cut"])
@pytest.mark.parametrize("manner", BAD)
def test_what_is_written_wrong_is_refused(serve: Deploy, manner: str, fields: dict[str, Any]) -> None:
    # All outputs are the vendor's last segment's or it is the whole: nothing is written through it before.
    vendor.MANNERS.into = manner
    with pytest.raises(AccuracyRefused, match=BAD[manner]) as refused:
        serve(**fields, outputs=("y",), batch_size=None)
    report = refused.value.report
    assert isinstance(report, Report) and report.outcome is Outcome.FAILED
    assert report.reason.startswith("into the caller's arrays: ")


@pytest.mark.parametrize("adapter", ["cpu/placing", "cpu/copying", "npu/placing-narrow"])
@pytest.mark.parametrize("fields", [{}, CUT, {"instances": 3}], ids=["whole", "cut", "three"])
def test_what_is_written_well_is_admitted(serve: Deploy, adapter: str, fields: dict[str, Any]) -> None:
    if adapter.startswith("npu"):
        fields = {**fields, "precision": "fp16", "accuracy": {"max_error": 0.01}}
        fields |= {"io_dtype": "fp16"} if "fallback" not in fields else {}
    deployment = serve(adapter, **fields)
    assert deployment.report.outcome is Outcome.PASSED
    assert bool(vendor.MANNERS.places) == (adapter != "cpu/copying")
    if "fallback" not in fields:
        assert vendor.MANNERS.named == 0, "what copies by default is not tried"
    kind = deployment.interface.output_values[0].dtype
    feeds = {"x": batch()["x"].astype(kind)}
    place = np.empty((2, 3), kind)
    np.testing.assert_array_equal(deployment.run(feeds, into={"y": place})["y"], deployment.run(feeds)["y"])


def test_an_output_that_no_budget_is_for_is_written_all_the_same(serve: Deploy) -> None:
    vendor.MANNERS.into = "leaves the last"
    with pytest.raises(AccuracyRefused, match="output 'p' is not written"):
        serve(accuracy={"min_agreement": {"cosine": 0.9, "output": "y"}})


@given(st.sampled_from(list("?bBhHiIqQefdFD")), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_unlike_differs_everywhere(kind: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    array = draw.integers(0, 2, 40) if kind == "?" else draw.integers(0, 256, (20, 16)).astype(np.uint8)
    array = array.astype(bool) if kind == "?" else np.frombuffer(array.tobytes(), kind)
    if array.dtype.kind in "fc":
        array = np.concatenate([array, np.array([np.nan, np.inf, 0, 1, -np.inf], kind)])
    other = unlike(array)
    assert other.dtype == array.dtype and other.shape == array.shape and not np.shares_memory(other, array)
    with np.errstate(invalid="ignore"):
        same = (other == array) | ((other != other) & (array != array))
    assert not same.any()


# What it answers is checked


def test_arrays_to_write_into_are_dense_whatever_an_answer_is_like(serve: Deploy) -> None:
    vendor.MANNERS.answer = "by columns"
    assert serve().report.outcome is Outcome.PASSED and vendor.MANNERS.places


@pytest.mark.parametrize("fields", [{}, CUT], ids=["whole", "cut"])
def test_an_input_may_be_an_output_as_well(serve: Deploy, fields: dict[str, Any]) -> None:
    deployment = serve(outputs=("y", "x"), **fields)
    feeds = batch()
    found = deployment.run(feeds)
    assert np.array_equal(found["x"], feeds["x"]) and not np.shares_memory(found["x"], feeds["x"])


@pytest.mark.parametrize("manner", [m for m in vendor.ANSWERS if m not in ("", "more", "by columns")])
@pytest.mark.parametrize("fields", [{}, CUT], ids=["whole", "cut"])
def test_a_malformed_answer_is_the_adapters_failure(serve: Deploy, manner: str, fields: dict[str, Any]) -> None:
    deployment = serve(**fields)
    vendor.MANNERS.answer = manner
    calls: tuple[Callable[[], Any], ...] = (
        lambda: deployment.run(batch()),
        lambda: deployment.run(batch(), ["y"]),
        lambda: deployment.submit(batch()).result(20),
        lambda: deployment.submit(batch(), ["y"]).result(20),
    )
    for call in calls:
        with pytest.raises(RunFailed, match="cpu/placing"):
            call()
    vendor.MANNERS.answer = ""
    assert deployment.run(batch()).keys() == {"y", "p"}


def test_what_nobody_asked_for_is_not_handed_on(serve: Deploy) -> None:
    deployment = serve()
    vendor.MANNERS.answer = "more"
    assert deployment.run(batch()).keys() == deployment.submit(batch()).result(20).keys() == {"y", "p"}


# What is given belongs to the caller


def loose(array: Array) -> Array:
    return np.repeat(array, 2, axis=1)[:, ::2]


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "loose"])
@pytest.mark.parametrize("submitted", [False, True], ids=["run", "submit"])
@pytest.mark.parametrize("fields", [{}, CUT], ids=["whole", "cut"])
def test_an_answer_that_is_a_view_of_what_was_fed(
    serve: Deploy, dense: bool, submitted: bool, fields: dict[str, Any]
) -> None:
    deployment = serve(steps=SAME, outputs=("y", "z"), **fields)
    vendor.MANNERS.answer = "view"
    kept, feeds = [], [batch(5, seed)["x"] for seed in range(4)]
    for x in feeds:
        fed = {"x": x if dense else loose(x)}
        answer = deployment.submit(fed).result(20) if submitted else deployment.run(fed)
        for array in answer.values():
            assert not np.shares_memory(array, fed["x"]) and not np.shares_memory(array, deployment._arena._bytes)
        kept.append(answer)
    for x, answer in zip(feeds, kept, strict=True):
        np.testing.assert_array_equal(answer["y"], -np.abs(x))
        np.testing.assert_array_equal(answer["z"], x)


def graph_of(inputs: int, outputs: int, kind: str = "tensor") -> Graph:
    values = [Value(f"x{i}", "float32", ("n",), kind) for i in range(inputs)]
    values += [Value(f"y{i}", "float32", ("n",), kind) for i in range(outputs)]
    return Graph((), tuple(values), tuple(range(inputs)), tuple(range(inputs, inputs + outputs)))


@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (3, 5), (9, 9), (30, 12)]))
@settings(max_examples=60, deadline=None)
def test_copied_where_bytes_are_shared_and_nowhere_else(seed: int, size: tuple[int, int]) -> None:
    inputs, outputs = size
    draw = np.random.default_rng(seed)
    whole = np.arange(4096, dtype=np.float32)

    def piece() -> Array:
        if draw.integers(3) == 0:
            return draw.standard_normal(draw.integers(1, 9)).astype(np.float32)
        start, length = draw.integers(4000), draw.integers(1, 40)
        return whole[start : start + length][:: int(draw.choice([1, 2, -1, -3]))]

    feeds = {f"x{i}": piece() for i in range(inputs)}
    fed = list(feeds.values())
    found = {f"y{i}": fed[draw.integers(inputs)] if draw.integers(4) == 0 else piece() for i in range(outputs)}
    graph = graph_of(inputs, outputs)
    answers = Answers(graph, {name: name for name in found}, "cpu/x").given(found, feeds)
    for name, array in answers.items():
        np.testing.assert_array_equal(array, found[name])
        assert not any(np.shares_memory(array, other) for other in fed)
        if not any(np.may_share_memory(found[name], other) for other in fed):
            assert array is found[name] or inputs * outputs > _PAIRS


def test_items_of_a_sequence_too() -> None:
    given, apart = np.ones(3, np.float32), np.zeros(3, np.float32)
    feeds: dict[str, Any] = {"x0": [given, given * 2]}
    answers = Answers(graph_of(1, 1, "sequence"), {"y0": "there"}, "cpu/x")
    found: Any = answers.given({"there": [given, feeds["x0"][1][1:], apart]}, feeds)["y0"]
    assert [a.tolist() for a in found] == [[1, 1, 1], [2, 2], [0, 0, 0]]
    assert not np.shares_memory(found[0], given) and not np.shares_memory(found[1], feeds["x0"][1])
    assert found[2] is apart
    same: Any = answers.given({"there": feeds["x0"]}, feeds)["y0"]
    assert same is not feeds["x0"]


# Arrays of another shape


class Told(Session):
    """Gives two values of `rows` rows, whatever it is fed, and counts; writes in arrays by itself."""

    def __init__(self, rows: int, names: Sequence[str]) -> None:
        self.rows, self.names, self.calls = rows, names, 0

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self.calls += 1
        return {name: np.full((self.rows, 3), 5, np.float32) for name in self.names}

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        self.calls += 1
        for name, array in into.items():
            if array.shape != (self.rows, 3):
                raise other_shape(name, array.shape, (self.rows, 3))
            array[...] = 5

    def close(self) -> None:
        pass


@pytest.fixture
def two() -> Iterator[Callable[[int], tuple[Pipeline, list[Told]]]]:
    """x -> p, q (by the first session) -> y (by the second); the graph says that all have the rows of x."""
    made: list[Pipeline] = []

    def call(rows: int) -> tuple[Pipeline, list[Told]]:
        values = tuple(Value(name, "float32", ("n", 3)) for name in ("x", "p", "q", "y"))
        nodes = (Node(0, "A", (0,), (1, 2)), Node(1, "B", (2,), (3,)))
        graph = Graph(nodes, values, (0,), (3, 1))
        stages = (
            Stage("cpu/told", "segment 1", ((0, "in"),), ((1, "a"), (2, "b")), values[1:3], given=frozenset({1})),
            Stage("cpu/told", "segment 2", ((2, "in"),), ((3, "c"),), values[3:], given=frozenset({3})),
        )
        flow = Flow(graph, stages, ((0,), (1,)), ((0,), (2,)))
        sessions = [Told(rows, "ab"), Told(rows, "c")]
        hosts = [InProcessHost(lambda s=s: s, Threading.SERIAL, 1, "cpu/told") for s in sessions]  # type: ignore[misc]
        arena = Arena(flow.arena(1), graph)
        made.append(Pipeline(flow, hosts, 1, "cpu/told", arena))
        for lane in made[-1]._lanes:
            for stage in lane:  # borders get places by the graph's shapes
                object.__setattr__(stage, "dynamic", True)
                object.__setattr__(stage, "arena", Roomy(arena))
        return made[-1], sessions

    yield call
    for pipeline in made:
        pipeline.close()


class Roomy:
    """An arena that has a place for everything."""

    def __init__(self, arena: Arena) -> None:
        self.holds = arena.holds

    def border(self, lane: int, value: int, shape: Sequence[int]) -> Array:
        return np.empty(shape, np.float32)


def test_a_callers_array_of_another_shape_is_told_at_once(two: Any) -> None:
    pipeline, (first, second) = two(2)
    x, fit, wrong = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(OtherShape, match="the output 'p' has the shape") as told:
        pipeline.run({"x": x}, None, {"p": wrong, "y": fit})
    assert "segment" not in told.value.problem and told.value.given == (4, 3) and told.value.found == (2, 3)
    assert (first.calls, second.calls) == (1, 0)
    with pytest.raises(OtherShape, match="the output 'y' has the shape"):
        pipeline.run({"x": x}, None, {"p": fit, "y": wrong})
    assert (first.calls, second.calls) == (2, 1)


def test_a_guess_of_another_shape_is_made_good(two: Any) -> None:
    pipeline, (first, second) = two(5)  # x has 2 rows, so that every place by the graph is wrong
    x, p, y = np.zeros((2, 3), np.float32), np.zeros((5, 3), np.float32), np.zeros((5, 3), np.float32)
    assert pipeline.run({"x": x})["y"].shape == (5, 3)
    assert (first.calls, second.calls) == (2, 2)
    pipeline.run({"x": x}, None, {"p": p, "y": y})
    assert (p == 5).all() and (y == 5).all()
    assert (first.calls, second.calls) == (4, 3), "q was guessed, y was not"


def test_no_other_error_is_answered_by_computing_again(two: Any) -> None:
    pipeline, (first, second) = two(2)

    def refuse(feeds: Arrays, into: Arrays) -> None:
        first.calls += 1
        raise UsageError("the input holds what the device cannot")

    first.run_into = refuse
    with pytest.raises(UsageError, match="cannot; in segment 1 on cpu/told"):
        pipeline.run({"x": np.zeros((2, 3), np.float32)})
    assert (first.calls, second.calls) == (1, 0)


@pytest.mark.parametrize("fields", [{}, CUT], ids=["whole", "cut"])
def test_a_deployment_computes_once_for_an_array_that_does_not_fit(serve: Deploy, fields: dict[str, Any]) -> None:
    deployment = serve(**fields)
    parts = len(deployment.plan.placement.segments)
    for call in (deployment.run, lambda *a, **k: deployment.submit(*a, **k).result(20)):
        vendor.MANNERS.runs = 0
        with pytest.raises(OtherShape, match=r"the output 'y' has the shape \[2, 3\] in this run"):
            call(batch(2), into={"y": np.empty((3, 3), np.float32)})
        assert vendor.MANNERS.runs == (1 if parts == 1 else 2), "each of its segments once"


def test_an_error_names_the_output_as_the_caller_does(serve: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = serve()
    deployment._outputs = {"y": "inner y", "p": "inner p"}

    def run(*_: Any) -> Any:
        raise other_shape("inner y", (3, 3), (2, 3))

    monkeypatch.setattr(deployment._host, "run", run)
    monkeypatch.setattr(deployment._host, "submit", lambda *a: ThreadPoolExecutor(1).submit(run))
    for call in (deployment.run, lambda *a, **k: deployment.submit(*a, **k).result(20)):
        with pytest.raises(OtherShape, match="the output 'y' has"):
            call(batch(2), into={"y": np.empty((3, 3), np.float32)})


# How many calls are inside


class Crowded(Session):
    """Notes how many calls are inside at once; each waits until `leave` is set, or for `pause` seconds."""

    most = 0
    inside = 0
    lock = threading.Lock()
    leave = threading.Event()

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        with Crowded.lock:
            Crowded.inside += 1
            Crowded.most = max(Crowded.most, Crowded.inside)
        Crowded.leave.wait(0.01 if outputs is None else 30)
        with Crowded.lock:
            Crowded.inside -= 1
        return {"y": feeds["x"]}

    def close(self) -> None:
        assert Crowded.inside == 0


@pytest.fixture
def crowd() -> Iterator[Callable[..., InProcessHost]]:
    Crowded.most = Crowded.inside = 0
    Crowded.leave.clear()
    made: list[InProcessHost] = []

    def call(instances: int, inside: int | None) -> InProcessHost:
        made.append(InProcessHost(Crowded, Threading.REENTRANT, instances, "cpu/crowded", inside=inside))
        return made[-1]

    yield call
    Crowded.leave.set()
    for host in made:
        host.close()


FEEDS = {"x": np.zeros(1)}


@pytest.mark.parametrize(("instances", "inside", "most"), [(1, 1, 1), (2, 1, 2), (2, 2, 4), (1, None, 8)])
def test_no_more_calls_are_inside_than_are_admitted(crowd: Any, instances: int, inside: int | None, most: int) -> None:
    host = crowd(instances, inside)
    start = threading.Barrier(8)

    def ask(number: int) -> None:
        start.wait(30)
        for _ in range(5):
            if number % 4 == 0:
                host.submit(FEEDS).result(30)
            else:
                host.run(FEEDS)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert 1 <= Crowded.most <= most


def test_closing_while_calls_wait_for_their_turn(crowd: Any) -> None:
    host = crowd(2, 1)
    with ThreadPoolExecutor(7) as pool:
        calls = [pool.submit(host.run, FEEDS, ("y",)) for _ in range(6)]
        while Crowded.inside < 2:
            time.sleep(0.001)
        closing = pool.submit(host.close)
        while not host._threads._closed:
            time.sleep(0.001)
        Crowded.leave.set()
        closing.result(30)
        errors = [call.exception(30) for call in calls]
    assert Crowded.most == 2 and Crowded.inside == 0
    assert sum(error is None for error in errors) >= 2, "those that were inside are answered"
    assert all(error is None or "is closed" in str(error) for error in errors)


def test_a_close_that_was_interrupted_can_be_gone_on_with(crowd: Any) -> None:
    host = crowd(3, 1)
    real = host._free

    class Interrupted:
        """Raises at the second of the permits."""

        taken = 0

        def get(self) -> Any:
            self.taken += 1
            if self.taken == 2:
                raise KeyboardInterrupt
            return real.get()

    host._free = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        host.close()
    host._free = real
    closed: list[int] = []
    for session in host._sessions:
        session.close = lambda: closed.append(1)
    host.close()
    host.close()
    assert len(closed) == 3
