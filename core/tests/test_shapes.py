"""`shapes` and `batch_size` applied to a graph, and that the border lets in exactly what they admit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from paddock.config import HardwareConfig
from paddock.errors import ConfigError, UsageError
from paddock.graph import Graph, Node, Range, Shape, Value
from paddock.planning.shapes import admits, apply_shapes, describe_shape
from paddock.samples import Border


def graph(**inputs: Shape | None) -> Graph:
    """A graph of inputs only, and one output of the first input's shape."""
    values = [Value(name, "float32", shape) for name, shape in inputs.items()]
    values.append(Value("out", "float32", values[0].shape))
    nodes = (Node(0, "Relu", (0,), (len(values) - 1,)),)
    return Graph(nodes, tuple(values), tuple(range(len(inputs))), (len(values) - 1,))


def config(**fields: Any) -> HardwareConfig:
    return HardwareConfig.load({"hardware": "cpu", "backend": "x", **fields})


def applied(given_graph: Graph, **fields: Any) -> Graph:
    return apply_shapes(given_graph, config(**fields))


def refusal(given_graph: Graph, **fields: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        applied(given_graph, **fields)
    return caught.value


def accepted(bounded: Graph, **shapes: Sequence[int]) -> bool:
    try:
        # A view of one element: extents may be as large as they like.
        Border(bounded).check({n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()})
    except UsageError:
        return False
    return True


NX = graph(x=("N", 3, "H"))


def test_nothing_asked_changes_nothing() -> None:
    assert applied(NX) == NX
    assert describe_shape(NX, NX.input_values[0]) == "[N?, 3, H?]"


def test_per_dimension() -> None:
    found = applied(NX, shapes={"N": {"min": 2, "opt": 3, "max": 4}, "H": 8})
    assert found.bounds == {"N": Range(2, 3, 4)}
    assert found.values[0].shape == ("N", 3, 8), "one extent becomes a number"
    assert found.values[1].shape == ("N", 3, 8), "everywhere"
    assert describe_shape(found, found.values[0]) == "[2..4, 3, 8]"
    assert [n for n in range(1, 7) if accepted(found, x=(n, 3, 8))] == [2, 3, 4]
    assert not accepted(found, x=(2, 3, 9)) and not accepted(found, x=(2, 4, 8))


def test_opt_defaults_to_max() -> None:
    assert applied(NX, shapes={"N": {"min": 2, "max": 4}}).bounds["N"].opt == 4


def test_per_input() -> None:
    found = applied(NX, shapes={"x": {"min": [1, 3, 5], "opt": [2, 3, 6], "max": [4, 3, 9]}})
    assert found.bounds == {"N": Range(1, 2, 4), "H": Range(5, 6, 9)}
    fixed = applied(NX, shapes={"x": [2, 3, 7]})
    assert fixed.values[0].shape == (2, 3, 7) and not fixed.bounds


def test_profiles_couple_dimensions() -> None:
    profiles = [{"min": [1, 3, 8], "max": [2, 3, 8]}, {"min": [4, 3, 16], "max": [4, 3, 32]}]
    found = applied(NX, shapes={"x": profiles})
    allowed = {(n, h) for n in range(1, 6) for h in range(1, 40) if accepted(found, x=(n, 3, h))}
    assert allowed == {(n, 8) for n in (1, 2)} | {(4, h) for h in range(16, 33)}
    assert describe_shape(found, found.values[0]) == "[1..2|4, 3, 8|16..32]"


@pytest.mark.parametrize(
    "entry", [{"N": {"buckets": [8, 1, 4]}}, {"x": {"buckets": [[8, 3, 5], [1, 3, 5], [4, 3, 5]]}}]
)
def test_buckets(entry: Any) -> None:
    found = applied(NX, shapes=entry)
    height = 5
    assert [n for n in range(1, 12) if accepted(found, x=(n, 3, height))] == [1, 4, 8]


def test_buckets_of_shapes_couple() -> None:
    found = applied(NX, shapes={"x": {"buckets": [[1, 3, 8], [2, 3, 4]]}})
    assert accepted(found, x=(1, 3, 8)) and accepted(found, x=(2, 3, 4))
    assert not accepted(found, x=(1, 3, 4)) and not accepted(found, x=(2, 3, 8))
    with pytest.raises(UsageError, match="not admitted together"):
        Border(found).check({"x": np.zeros((1, 3, 4), np.float32)})
    assert admits(found, {"N": 1, "H": 8}) and not admits(found, {"N": 1, "H": 4})


def test_one_bucket_is_a_fixed_shape() -> None:
    found = applied(NX, shapes={"N": {"buckets": [4, 4]}})
    assert found.values[0].shape == (4, 3, "H") and not found.bounds


def test_batch_size() -> None:
    found = applied(NX, batch_size=4)
    assert found.bounds == {"N": Range(1, 4, 4)}
    assert applied(NX, batch_size=1).values[0].shape == (1, 3, "H")
    agreed = applied(NX, batch_size=4, shapes={"N": {"min": 2, "max": 4}})
    assert agreed.bounds["N"] == Range(2, 4, 4)
    fixed = graph(x=(4, 3))
    assert applied(fixed, batch_size=4) == fixed
    two = graph(x=("N", 3), y=("M",), z=())
    assert applied(two, batch_size=2).bounds == {"N": Range(1, 2, 2), "M": Range(1, 2, 2)}


@pytest.mark.parametrize(
    "shapes", [{"N": 8}, {"N": {"min": 1, "max": 8}}, {"x": [2, 3, 5]}, {"N": {"buckets": [1, 2]}}]
)
def test_batch_size_against_shapes(shapes: Any) -> None:
    error = refusal(NX, batch_size=4, shapes=shapes)
    assert error.where == "$.batch_size" and error.remedy and "N" in error.problem


def test_batch_size_against_the_model() -> None:
    error = refusal(graph(x=(2, 3)), batch_size=4)
    assert error.where == "$.batch_size" and "fixes axis 0 of x at 2" in error.problem
    assert "no effect" in refusal(graph(x=()), batch_size=4).problem


@pytest.mark.parametrize(
    ("shapes", "where", "says"),
    [
        ({"X": 1}, "$.shapes.X", "neither an input nor a dimension"),
        ({"in.put": 1}, '$.shapes["in.put"]', "neither an input nor a dimension"),
        ({"x": [1, 3]}, "$.shapes.x", "has 2 extents"),
        ({"x": 1}, "$.shapes.x", "has 1 extents"),
        ({"N": [1, 2]}, "$.shapes.N", "has 2 extents"),
        ({"x": [1, 4, 5]}, "$.shapes.x", "the model fixes at 3"),
        ({"x": {"min": [1, 3, 1], "max": [1, 4, 1]}}, "$.shapes.x", "the model fixes at 3"),
        ({"N": 2, "x": [3, 3, 5]}, "$.shapes.x", "another entry asks for 2"),
        ({"x": [{"min": [1, 3, 1], "max": [1, 3, 1]}, {"min": [1, 3], "max": [1, 3]}]}, "$.shapes.x", "2 extents"),
    ],
)
def test_shapes_that_do_not_fit(shapes: Any, where: str, says: str) -> None:
    error = refusal(NX, shapes=shapes)
    assert error.where == where and says in error.problem


def test_an_unknown_name_gets_candidates() -> None:
    error = refusal(graph(pixels=("batch", 3)), shapes={"pixel": [1, 3]})
    assert error.candidates == ("pixels", "batch") and error.remedy == "did you mean 'pixels'?"


def test_one_symbol_twice_in_an_input() -> None:
    square = graph(x=("N", "N"))
    assert applied(square, shapes={"x": [4, 4]}).values[0].shape == (4, 4)
    assert refusal(square, shapes={"x": [4, 5]}).where == "$.shapes.x"
    ranged = applied(square, shapes={"N": {"min": 1, "max": 4}})
    assert accepted(ranged, x=(2, 2)) and not accepted(ranged, x=(2, 3))


def test_a_symbol_shared_by_inputs() -> None:
    found = applied(graph(x=("N", 2), y=("N",)), shapes={"x": {"min": [1, 2], "max": [4, 2]}})
    assert accepted(found, x=(3, 2), y=(3,))
    assert not accepted(found, x=(5, 2), y=(5,)) and not accepted(found, x=(3, 2), y=(2,))
    with pytest.raises(UsageError, match="N is 3 elsewhere"):
        Border(found).check({"x": np.zeros((3, 2), np.float32), "y": np.zeros(2, np.float32)})
    fixed = applied(graph(x=("N", 2), y=("N",)), shapes={"y": [3]})
    assert fixed.values[0].shape == (3, 2), "fixed by the other input"


def test_an_input_may_not_borrow_anothers_extent_to_fit_a_profile() -> None:
    shapes = {"x": {"buckets": [[1, 4], [2, 8]]}}
    found = applied(graph(x=("N", "M"), y=("N",)), shapes=shapes)
    assert accepted(found, x=(1, 4), y=(1,)) and accepted(found, x=(2, 8), y=(2,))
    assert not accepted(found, x=(1, 8), y=(2,))


def test_the_same_profiles_in_another_order_agree() -> None:
    shapes = {"x": {"buckets": [[1, 4], [2, 8]]}, "y": {"buckets": [[2, 6], [1, 3]]}}
    found = applied(graph(x=("N", "M"), y=("N", "K")), shapes=shapes)
    assert accepted(found, x=(1, 4), y=(1, 3)) and accepted(found, x=(2, 8), y=(2, 6))
    assert not accepted(found, x=(1, 4), y=(1, 6))


def test_an_input_of_unknown_rank() -> None:
    unknown = graph(x=None, y=("N",))
    assert accepted(unknown, x=(1, 2, 3), y=(1,)) and describe_shape(unknown, unknown.values[0]) == "[any rank]"
    found = applied(unknown, shapes={"x": {"min": [1, 2], "max": [4, 2]}})
    assert accepted(found, x=(3, 2), y=(9,))
    assert not accepted(found, x=(3, 2, 1), y=(9,)) and not accepted(found, x=(5, 2), y=(9,))
    assert applied(unknown, shapes={"x": 5}).values[0].shape == (5,)


# The border against an oracle that reads the config itself

SMALL = st.integers(1, 4)


def _sorted_profile(draw: Any, axes: Sequence[Any]) -> dict[str, list[int]]:
    pairs = []
    for dim in axes:
        low, high = sorted((draw(SMALL), draw(SMALL)))
        pairs.append((dim, dim) if isinstance(dim, int) else (low, high))
    return {"min": [low for low, _ in pairs], "max": [high for _, high in pairs]}


@st.composite
def cases(draw: Any) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any]]:
    dims = st.sampled_from(["N", "M", "K", 2, 3])
    shapes = draw(st.lists(st.lists(dims, min_size=1, max_size=2).map(tuple), min_size=1, max_size=2))
    inputs = {f"i{number}": shape for number, shape in enumerate(shapes)}
    symbols = sorted({d for s in shapes for d in s if isinstance(d, str)})
    asked: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from([*inputs, *symbols]), max_size=3, unique=True)):
        axes = inputs.get(name, (name,))
        kind = draw(st.sampled_from(["fixed", "range", "list", "buckets"]))
        profiles = [_sorted_profile(draw, axes) for _ in range(draw(st.integers(1, 3)))]
        points = [profile["min"] for profile in profiles]
        entry: Any = {"fixed": points[0], "range": profiles[0], "list": profiles, "buckets": {"buckets": points}}[kind]
        if name in symbols and kind == "fixed" and draw(st.booleans()):
            entry = points[0][0]
        asked[name] = entry
    fields: dict[str, Any] = {"shapes": asked}
    if draw(st.booleans()):
        fields["batch_size"] = draw(SMALL)
    return inputs, fields


def oracle(inputs: Mapping[str, Shape], fields: Mapping[str, Any], extents: Mapping[str, Sequence[int]]) -> bool:
    by_symbol: dict[str, int] = {}
    for name, shape in inputs.items():
        for dim, extent in zip(shape, extents[name], strict=True):
            if isinstance(dim, int):
                if dim != extent:
                    return False
            elif isinstance(dim, str) and by_symbol.setdefault(dim, extent) != extent:
                return False
    for name, entry in fields["shapes"].items():
        actual = list(extents[name]) if name in inputs else [by_symbol[name]]
        if isinstance(entry, int):
            boxes = [([entry], [entry])]
        elif isinstance(entry, dict) and "buckets" in entry:
            boxes = [(point, point) for point in entry["buckets"]]
        elif isinstance(entry, dict):
            boxes = [(entry["min"], entry["max"])]
        elif isinstance(entry[0], dict):
            boxes = [(profile["min"], profile["max"]) for profile in entry]
        else:
            boxes = [(entry, entry)]
        if not any(all(a <= e <= b for a, e, b in zip(low, actual, high, strict=True)) for low, high in boxes):
            return False
    batch = fields.get("batch_size")
    return batch is None or all(e[0] <= batch for n, e in extents.items() if isinstance(inputs[n][0], str))


@given(cases())
@settings(max_examples=100, deadline=None)
def test_the_border_accepts_exactly_what_the_config_admits(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    inputs, fields = case
    try:
        found = applied(graph(**inputs), **fields)
    except ConfigError as error:
        assert error.where
        reject()
    border = Border(found)
    axes = [range(1, 6)] * sum(len(shape) for shape in inputs.values())
    for flat in itertools.product(*axes):
        rest = iter(flat)
        extents = {name: tuple(itertools.islice(rest, len(shape))) for name, shape in inputs.items()}
        try:
            border.check({name: np.broadcast_to(np.float32(0), shape) for name, shape in extents.items()})
            let_in = True
        except UsageError as error:
            assert error.where
            let_in = False
        assert let_in == oracle(inputs, fields, extents), extents
