"""Buffers bound to `cpu/paddle` and `cpu/mkldnn`: the unbound session's numbers, from the caller's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.config import HardwareConfig
from paddock.errors import RunFailed, UsageError
from paddock.model import Model
from paddock.plan import PrecisionPlan, Segment
from paddock.spi import Context, ResolvedConfig, SegmentMemory, SegmentPlan
from paddock_paddle.adapters import CpuMkldnn, CpuPaddle, PaddleAdapter
from paddock_paddle.format import PaddleFormat

paddle = pytest.importorskip("paddle")

Feeds = Mapping[str, np.ndarray[Any, Any]]

FORMAT = PaddleFormat()
SHAPES: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]] = {
    "linear": {"x": ("float32", (3, 4))},
    "embedding": {"ids": ("int64", (2, 7))},
    "mixed": {
        "x": ("float32", (3, 4)),
        "flag": ("bool", (3, 4)),
        "scale": ("float32", ()),
        "ids": ("int64", (2, 2)),
    },
    "gathers": {"ids": ("int64", (3,)), "x": ("float32", (2, 6))},
    "softmax": {"x": ("float32", (3, 8, 4))},
    "pool": {"x": ("float32", (2, 3, 16, 16))},
    "mean": {"x": ("float32", (2, 5, 16))},
    "resnet": {"x": ("float32", (1, 3, 32, 32))},
    "condition": {"x": ("float32", (3, 4))},
    "loop": {"x": ("float32", (3, 4))},
    "overwriting": {"x": ("float32", (3, 4))},
    "handing": {"x": ("float32", (3, 4))},
    "reshaped": {"x": ("float32", (3, 4))},
}
"""The inputs of each model at the shapes that are run."""

COPIED = ("condition", "loop", "overwriting", "handing")
"""Models whose program may write over its inputs, as far as can be told."""


class Apart:
    """A session on a thread of its own, as Paddock's host runs it."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.session = self._thread.submit(load).result()

    def run(self, feeds: Feeds, outputs: list[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        found: dict[str, np.ndarray[Any, Any]] = self._thread.submit(self.session.run, feeds, outputs).result()
        return found

    def bind(self, buffers: Feeds) -> frozenset[str]:
        found: frozenset[str] = self._thread.submit(self.session.bind, buffers).result()
        return found

    def close(self) -> None:
        self._thread.submit(self.session.close).result()
        self._thread.shutdown()


@pytest.fixture(scope="module")
def programs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where each model lies; those that treat their input's memory in a way of their own are exported here."""
    from paddle import nn

    folder = tmp_path_factory.mktemp("paddle-bind")

    class Layer(nn.Layer):
        def __init__(self, function: Callable[[Any], Any]) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: Any) -> Any:
            return self.function(x)

    def handing(x: Any) -> Any:
        return paddle.static.nn.cond(x.sum() > 0, lambda: x, lambda: x * 2).sum()

    def reshaped(x: Any) -> Any:
        flat = paddle.nn.functional.relu(paddle.reshape(x, [12]))
        return paddle.exp(flat + 1), paddle.nn.functional.relu(x[0]), paddle.assign(x)

    own = {"overwriting": lambda x: paddle.static.setitem(x, 0, 5.0) * 2, "handing": handing, "reshaped": reshaped}
    for name, function in own.items():
        spec = paddle.static.InputSpec([3, 4], "float32", "x")
        paddle.jit.save(Layer(function), str(folder / name), input_spec=[spec])
    return lambda name: (folder if name in own else models) / name


@pytest.fixture(params=[CpuPaddle, CpuMkldnn])
def load(
    request: pytest.FixtureRequest, programs: Callable[[str], Path], tmp_path: Path
) -> Iterator[Callable[[str], Apart]]:
    """Loads a model by its name."""
    loaded: list[Apart] = []

    def session(name: str) -> Any:
        files = FORMAT.locate(programs(name))
        assert files is not None
        model = Model("paddle", files, "test", FORMAT.read(files))
        kind: type[PaddleAdapter] = request.param
        config = HardwareConfig.load({"hardware": kind.hardware, "backend": kind.backend})
        adapter, context = kind(ResolvedConfig(config, kind.Options(), 1), None), Context(tmp_path, tmp_path)
        nodes = tuple(range(len(model.graph.nodes)))
        segment = Segment(0, adapter.name(), nodes, model.graph.inputs, model.graph.outputs)
        remedies = tuple(adapter.known_defects(model))
        plan = SegmentPlan(segment, PrecisionPlan(config.precision), SegmentMemory(), remedies)
        return adapter.load(adapter.compile(model, plan, context), context)

    def made(name: str) -> Apart:
        loaded.append(Apart(lambda: session(name)))
        return loaded[-1]

    yield made
    for one in loaded:
        one.close()


def inputs_of(name: str, number: int) -> dict[str, np.ndarray[Any, Any]]:
    draw, found = np.random.default_rng(number), {}
    for key, (dtype, shape) in SHAPES[name].items():
        if dtype == "float32":
            found[key] = np.asarray(draw.standard_normal(shape, dtype=np.float32) + (number % 2) - 0.5, np.float32)
        else:
            found[key] = draw.integers(0, 2, shape).astype(dtype)
    return found


def check(bound: Apart, plain: Apart, name: str, buffers: Feeds) -> None:
    """Several inputs in turn, rewritten in place: each run must equal the unbound session's."""
    kept: list[tuple[Feeds, Feeds]] = []
    for number in range(4):
        feeds = inputs_of(name, number)
        for key, buffer in buffers.items():
            buffer[...] = feeds[key]
        wanted = plain.run(feeds)
        found = bound.run({key: array for key, array in feeds.items() if key not in buffers})
        assert found.keys() == wanted.keys()
        for key, array in wanted.items():
            np.testing.assert_array_equal(found[key], array, err_msg=key)
        for key, buffer in buffers.items():
            np.testing.assert_array_equal(buffer, feeds[key])  # only read
        kept.append((found, wanted))
    for earlier, answer in kept:  # no later run has touched what an earlier one gave
        for key, array in answer.items():
            np.testing.assert_array_equal(earlier[key], array)


@pytest.mark.parametrize("name", SHAPES)
def test_inputs_are_bound_where_the_program_keeps_them(load: Callable[[str], Apart], name: str) -> None:
    bound, plain = load(name), load(name)
    buffers = inputs_of(name, 0)
    taken = bound.bind(buffers)
    assert taken == (frozenset() if name in COPIED else buffers.keys())
    check(bound, plain, name, {key: buffers[key] for key in taken})


def test_some_bound(load: Callable[[str], Apart]) -> None:
    bound, plain = load("mixed"), load("mixed")
    buffers = {key: array for key, array in inputs_of("mixed", 0).items() if key in ("flag", "ids")}
    assert bound.bind(buffers) == buffers.keys()
    check(bound, plain, "mixed", buffers)


def test_outputs_stay_the_callers(load: Callable[[str], Apart]) -> None:
    bound, plain = load("linear"), load("linear")
    x = np.ones((3, 4), np.float32)
    (output,) = plain.run({"x": x})
    place = np.full((3, 3), 7, np.float32)
    assert bound.bind({"x": x, output: place}) == {"x"}
    np.testing.assert_array_equal(bound.run({})[output], plain.run({"x": x})[output])
    assert (place == 7).all()
    assert bound.run({}, []) == {}


def test_one_array_for_an_input_and_an_output(load: Callable[[str], Apart]) -> None:
    bound, plain = load("pool"), load("pool")
    x = inputs_of("pool", 0)["x"]
    (output,) = plain.run({"x": x})
    assert bound.bind({"x": x, output: x}) == {"x"}
    check(bound, plain, "pool", {"x": x})


def test_buffers_at_odd_places_and_read_only_ones(load: Callable[[str], Apart]) -> None:
    bound, plain = load("softmax"), load("softmax")
    arena = np.zeros(1 + 96, np.float32)
    view = arena[1:].reshape(3, 8, 4)
    view.flags.writeable = False
    assert bound.bind({"x": view}) == {"x"}
    for number in range(3):
        feeds = inputs_of("softmax", number)
        arena[1:] = feeds["x"].ravel()
        (wanted,), (found,) = plain.run(feeds).values(), bound.run({}).values()
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "array",
    [np.zeros((0, 4), np.float32), np.zeros((3, 4), np.int8), np.zeros((4, 3), np.float32).T],
    ids=["empty", "int8", "strided"],
)
def test_what_cannot_be_shared_is_fed(load: Callable[[str], Apart], array: np.ndarray[Any, Any]) -> None:
    bound = load("linear")
    assert bound.bind({"x": array, "unknown": np.zeros(3, np.float32)}) == frozenset()
    with pytest.raises(UsageError, match="extent of 0"):
        bound.run({"x": np.zeros((0, 4), np.float32)})


def test_another_session_of_the_same_model_stays_unbound(load: Callable[[str], Apart]) -> None:
    bound, plain = load("linear"), load("linear")
    x = inputs_of("linear", 0)["x"]
    bound.bind({"x": x})
    assert plain.session.fork() is None and bound.session.fork() is None
    check(bound, plain, "linear", {"x": x})


def test_a_closed_session_binds_nothing(load: Callable[[str], Apart]) -> None:
    bound = load("linear")
    bound.bind({"x": np.ones((3, 4), np.float32)})
    bound.close()
    with pytest.raises(RunFailed, match="closed"):
        bound.session.bind({})
    with pytest.raises(RunFailed, match="closed"):
        bound.session.run({})
    bound._thread = ThreadPoolExecutor(1)
