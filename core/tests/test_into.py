"""Outputs written into the caller's arrays, and what Paddock's own memory holds meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddock_fakes_segments as odd
import pytest
from paddock.arena import ALIGNMENT, Arena, plan_arena
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import Deployment, deploy
from paddock.errors import RunFailed, UsageError
from paddock.graph import Graph, Value
from paddock.pipeline import Pipeline
from paddock.planning.shapes import apply_shapes
from paddock.registry import Registry

Array = np.ndarray[Any, Any]
Deploy = Callable[..., Deployment]

W = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
STEPS = [
    ("a Abs", "x", "p"),
    ("b MatMul", "p W", "q"),
    ("c Tanh", "q", "r"),
    ("d Add", "r p", "s"),
    ("e Mul", "s x", "y"),
]
CUT = {"fallback": ["cpu/onnxruntime"], "operators": {"exclude": ["c"]}}
"""c runs elsewhere, so that q and r cross borders, and p passes by."""
NINE = {"shapes": {"x": {"min": [1, 3], "max": [9, 3]}}}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return odd.discover(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture
def serve(registry: Registry, children: Children, tmp_path: Path) -> Iterator[Deploy]:
    made: list[Deployment] = []

    def call(rows: int | str = "n", adapter: str = "cpu/odd", **fields: Any) -> Deployment:
        model = odd.save(tmp_path / "m.onnx", STEPS, ("y", "p"), (rows, 3), W=W)
        hardware, _, backend = adapter.partition("/")
        config = {"hardware": hardware, "backend": backend, **fields}
        made.append(deploy(model, config, registry=registry, children=children))
        return made[-1]

    yield call
    for deployment in made:
        deployment.close()


def batch(rows: int, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)}


def guarded(rows: int) -> tuple[Array, Array]:
    """An array for an output, and the larger one that it lies in the middle of."""
    whole = np.full((rows + 2, 3), 77, np.float32)
    return whole[1:-1], whole


@pytest.mark.parametrize("adapter", ["cpu/odd", "cpu/onnxruntime", "cpu/openvino", "cpu/reference"])
@pytest.mark.parametrize(
    "fields", [{}, CUT, {**CUT, **NINE}, {**NINE, "instances": 2}], ids=["whole", "cut", "9", "two"]
)
def test_the_same_bytes_in_the_callers_arrays(serve: Deploy, adapter: str, fields: dict[str, Any]) -> None:
    if adapter == "cpu/onnxruntime":
        fields = {**fields, **({"fallback": ["cpu/odd"]} if "fallback" in fields else {})}
    deployment = serve("n", adapter, **fields)
    for seed, rows in enumerate((2, 7, 1, 7)):
        feeds = batch(rows, seed)
        wanted = deployment.run(feeds)
        (y, y_whole), (p, _) = guarded(rows), guarded(rows)
        found = deployment.run(feeds, into={"y": y})
        assert list(found) == ["y"] and found["y"] is y
        np.testing.assert_array_equal(y, wanted["y"])
        assert (y_whole[[0, -1]] == 77).all()
        again = deployment.submit(feeds, into={"p": p, "y": y}).result()
        assert again["p"] is p and again["y"] is y
        np.testing.assert_array_equal(p, wanted["p"])


@pytest.mark.parametrize("fields", [{}, CUT], ids=["whole", "cut"])
def test_an_array_of_another_shape_is_told(serve: Deploy, fields: dict[str, Any]) -> None:
    deployment = serve("n", **fields)
    y, whole = guarded(3)
    with pytest.raises(UsageError, match=r"the output 'y' has the shape \[2, 3\] in this run"):
        deployment.run(batch(2), into={"y": y})
    assert (whole == 77).all()
    assert deployment.run(batch(3), into={"y": y})["y"] is y, "and the deployment goes on"


def strided() -> Array:
    return np.zeros((2, 6), np.float32)[:, ::2]


def fixed() -> Array:
    array = np.zeros((2, 3), np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("into", "problem"),
    [
        ({"z": np.zeros((2, 3), np.float32)}, "the model has no output 'z'"),
        ({"y": np.zeros((2, 3))}, "is float64, the output is float32"),
        ({"y": np.zeros((2, 3, 1), np.float32)}, r"has the shape \[2, 3, 1\], the output has \[1..9, 3\]"),
        ({"y": np.zeros((10, 3), np.float32)}, r"has the shape \[10, 3\], the output has"),
        ({"y": strided()}, "is not dense and row-major"), ({"y": fixed()}, "is not writable"),
        ({"y": [[0.0] * 3] * 2}, "is a list, not a NumPy array"), ({}, "takes a mapping with an array"),
        (np.zeros(3), "takes a mapping with an array"),
    ],
)  # fmt: skip
def test_what_cannot_take_an_output(serve: Deploy, into: Any, problem: str) -> None:
    deployment = serve("n", **NINE)
    for call in (deployment.run, deployment.submit):
        with pytest.raises(UsageError, match=problem):
            call(batch(2), into=into)


def test_arrays_lie_apart_and_outputs_is_not_for_them(serve: Deploy) -> None:
    deployment = serve("n")
    feeds, y = batch(2), np.zeros((2, 3), np.float32)
    with pytest.raises(UsageError, match="shares memory with input 'x'"):
        deployment.run(feeds, into={"y": feeds["x"]})
    with pytest.raises(UsageError, match="shares memory with into 'y'"):
        deployment.run(feeds, into={"y": y, "p": y})
    with pytest.raises(UsageError, match="exclude each other"):
        deployment.run(feeds, ["y"], into={"y": y})


# Paddock's own memory


@pytest.mark.parametrize(
    "fields", [{}, CUT, {**CUT, "instances": 3}, {**CUT, **NINE}], ids=["whole", "cut", "three", "9"]
)
@pytest.mark.parametrize("rows", [4, "n"])
def test_what_is_planned_is_what_is_allocated(serve: Deploy, rows: int | str, fields: dict[str, Any]) -> None:
    if rows == 4 and "shapes" in fields:
        fields = {**fields, "shapes": {"x": [4, 3]}}
    deployment = serve(rows, **fields)
    assert deployment.owned_bytes == deployment.plan.memory.owned == deployment._arena._bytes.size
    known = rows == 4 or "shapes" in fields
    assert (deployment.owned_bytes > 0) == known, "nothing can be kept for what has no largest size"


@pytest.mark.parametrize("rows", [4, "n"])
def test_borders_lie_in_the_one_allocation(serve: Deploy, rows: int | str) -> None:
    fields = {"fallback": ["cpu/odd"], "operators": {"exclude": ["c"]}, "instances": 2, **(NINE if rows == "n" else {})}
    deployment = serve(rows, "cpu/onnxruntime", **fields)
    assert isinstance(deployment._host, Pipeline)
    seen: list[tuple[str, Array]] = []

    def watched(call: Any) -> Any:
        def run(feeds: dict[str, Array], into: Any = None) -> Any:
            seen.extend(feeds.items())
            return call(feeds, into)

        return run

    for lane in deployment._host._lanes:
        for stage in lane:
            object.__setattr__(stage, "run", watched(stage.run))
    for instance in range(2):
        deployment._host.run_on(instance, batch(4))
    memory = deployment._arena._bytes
    inner = {name: array for name, array in seen if name in ("q", "r")}
    assert "q" in inner and all(np.shares_memory(array, memory) for array in inner.values())
    assert all(array.ctypes.data % ALIGNMENT == 0 for array in inner.values())


@pytest.mark.parametrize("fields", [NINE, {**NINE, **CUT}, {**NINE, "instances": 2}], ids=["whole", "cut", "two"])
def test_feeds_that_are_not_dense_from_many_threads(serve: Deploy, fields: dict[str, Any]) -> None:
    deployment = serve("n", **fields)

    def ask(seed: int) -> None:
        dense = batch(1 + seed % 9, seed)
        loose = {"x": np.asfortranarray(dense["x"]) if seed % 3 else np.repeat(dense["x"], 2, axis=0)[::2]}
        answer = deployment.run(loose) if seed % 2 else deployment.submit(loose).result()
        np.testing.assert_array_equal(answer["y"], deployment.run(dense)["y"])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(120)))
    free = deployment._arena._staging.qsize()
    assert free == deployment.config.instances, "every stretch came back"


def test_a_failure_gives_the_staging_copy_back(serve: Deploy) -> None:
    deployment = serve("n", **NINE)
    loose = {"x": np.asfortranarray(batch(2)["x"])}
    deployment._host.close()
    for call in (deployment.run, deployment.submit):
        with pytest.raises(RunFailed):
            call(loose)
    with pytest.raises(UsageError):
        deployment.run(loose, into={"z": loose["x"]})
    assert deployment._arena._staging.qsize() == 1


def test_a_place_is_never_handed_out_larger_than_it_is() -> None:
    values = (
        Value("x", "float32", ("N",)),
        Value("p", "float32", ("N",)),
        Value("q", "int8", (3,)),
        Value("s", "string", (3,)),
    )
    config = HardwareConfig.load({"hardware": "cpu", "backend": "x", "shapes": {"x": {"min": [1], "max": [10]}}})
    graph = apply_shapes(Graph((), values, (0,), ()), config)
    plan = plan_arena(graph, {1: (0, 1), 2: (1, 2), 3: (0, 2)}, 2)
    arena = Arena(plan, graph)
    assert set(plan.borders) == {1, 2} and plan.nbytes == 2 * (2 * ALIGNMENT + ALIGNMENT)
    first, second = arena.border(0, 1, (10,)), arena.border(1, 1, (10,))
    assert first is not None and second is not None and not np.shares_memory(first, second)
    assert arena.border(0, 1, (11,)) is None and arena.border(0, 3, (3,)) is None
    loose = np.arange(22, dtype=np.float32)[::2]
    dense, stretch = arena.stage({0: loose})
    assert stretch is not None and not np.shares_memory(dense[0], arena._bytes), "it is larger than its place"
    np.testing.assert_array_equal(dense[0], loose)
