"""Which nodes are narrow: against trying every labelling of small random graphs, and at the limits of each type."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from paddock.graph import Graph, Node, Value
from paddock.onnx_store import narrowed
from paddock.planning.casts import CastRequest, Casts, Ports, out_of_range, plan_casts
from paddock.planning.classes import OperatorClasses, Role, standard_classes

CLASSES = OperatorClasses(frozenset({"Product"}), frozenset({"Sum"}))
OPS = ("Product", "Sum", "Follow", "Follow", "Follow", "Free", "Fixed", "Body")
NEWER = {"Attention", "RMSNormalization"}
"""Operators of the standard that onnx 1.17 does not have yet: opset 23."""


@dataclass(frozen=True)
class Case:
    graph: Graph
    ports: Mapping[int, Ports]
    request: CastRequest


def drawn(seed: int) -> Case:
    """A random graph of up to nine nodes, with random ports, optional inputs, captures, and several outputs."""
    rng = random.Random(seed)
    values: list[Value] = []

    def new(prefix: str) -> int:
        values.append(Value(f"{prefix}{len(values)}", rng.choice(("float32",) * 6 + ("int64",)), (4,)))
        return len(values) - 1

    inputs = tuple(new("x") for _ in range(rng.randint(1, 2)))
    weights = {new("w"): 16 for _ in range(rng.randint(0, 3))}
    nodes: list[Node] = []
    ports: dict[int, Ports] = {}
    for index in range(rng.randint(1, 9)):
        op = rng.choice(OPS)
        read = tuple(
            None
            if rng.random() < 0.1
            else rng.randrange(len(values))
            if rng.random() < 0.4
            else _late(rng, len(values))
            if rng.random() < 0.1
            else rng.randrange(len(values))
            if rng.random() < 0.4
            else _late(rng, len(values))
            for _ in range(rng.randint(1, 3))
        )
        captures = tuple(rng.sample(range(len(values)), 1)) if op == "Body" else ()
        made = tuple(None if rng.random() < 0.1 else new("v") for _ in range(rng.randint(1, 2)))
        nodes.append(Node(index, op, read, made, captures=captures))
        floats_in = {at for at, v in enumerate(read) if v is not None and values[v].dtype == "float32"}
        floats_out = {at for at, v in enumerate(made) if v is not None and values[v].dtype == "float32"}
        if op == "Free":
            ports[index] = Ports(free=frozenset(floats_in), reason="free")
        elif op in ("Fixed", "Body"):
            ports[index] = Ports(reason="fixed")
        else:
            apart = {at for at in floats_in if rng.random() < 0.15}
            beside = {at for at in floats_out if rng.random() < 0.15}
            ports[index] = Ports(frozenset(floats_in - apart), frozenset(floats_out - beside), reason="no floats")
    produced = [v for node in nodes for v in node.outputs if v is not None]
    outputs = set(rng.sample(produced, min(len(produced), rng.randint(1, 2))))
    outputs |= {v for v in (*inputs, *weights) if rng.random() < 0.1}
    graph = Graph(tuple(nodes), tuple(values), inputs, tuple(sorted(outputs)), weights)
    keep = {node.index: "said so" for node in nodes if rng.random() < 0.15}
    return Case(graph, ports, CastRequest("float16", CLASSES, keep, narrow_border=rng.random() < 0.4))


def _late(rng: random.Random, count: int) -> int:
    return max(rng.randrange(count) for _ in range(2))


def needed(case: Case, narrow: Iterable[int]) -> dict[str, tuple[set[int], set[int]]]:
    """For this labelling, by place ("inside" or "border"): the values cast down and those cast up. Written anew."""
    graph, narrow = case.graph, set(narrow)
    makers = {v: (node.index, at) for node in graph.nodes for at, v in enumerate(node.outputs) if v is not None}
    found: dict[str, tuple[set[int], set[int]]] = {"inside": (set(), set()), "border": (set(), set())}
    for index, value in enumerate(graph.values):
        if value.dtype != "float32":
            continue
        types = set()
        for node in graph.nodes:
            for at, read in enumerate(node.inputs):
                if read == index and at not in case.ports[node.index].free:
                    types.add("n" if node.index in narrow and at in case.ports[node.index].inputs else "w")
            if index in node.captures:
                types.add("w")
        given = "n" if case.request.narrow_border else "w"
        if index in graph.inputs:
            made = given
        elif index in graph.initializers:
            made = "n" if types | ({given} if index in graph.outputs else set()) == {"n"} else "w"
        else:
            maker, at = makers[index]
            made = "n" if maker in narrow and at in case.ports[maker].outputs else "w"
        wanted = types | ({given} if index in graph.outputs else set())
        for type_ in wanted - {made}:
            free = index in graph.inputs or (index in graph.outputs and type_ == given)
            found["border" if free or (index in graph.initializers and index in graph.outputs) else "inside"][
                0 if type_ == "n" else 1
            ].add(index)
    return found


def count(found: tuple[set[int], set[int]]) -> int:
    return len(found[0]) + len(found[1])


def settled(case: Case) -> tuple[set[int], list[int]]:
    """The nodes that are narrow whatever the casts, and those that are free to choose."""
    narrow, free = set(), []
    for node in case.graph.nodes:
        if not case.ports[node.index].movable or node.index in case.request.keep:
            continue
        if case.request.classes.role(node.type) is Role.ALLOW:
            narrow.add(node.index)
        else:
            free.append(node.index)
    return narrow, free


@pytest.mark.parametrize("seed", range(400))
def test_the_casts_are_the_fewest_and_most_nodes_are_narrow(seed: int) -> None:
    case = drawn(seed)
    casts = plan_casts(case.graph, case.ports, case.request)
    always, free = settled(case)
    assert always <= casts.narrow <= always | set(free), "a kept node is narrow, or a product is not"
    best = min(
        (count(needed(case, always | set(chosen))["inside"]), -len(chosen))
        for size in range(len(free) + 1)
        for chosen in itertools.combinations(free, size)
    )
    found = needed(case, casts.narrow)
    assert (count(found["inside"]), -len(casts.narrow - always)) == best
    assert casts.down == found["inside"][0] | found["border"][0]
    assert casts.up == found["inside"][1] | found["border"][1]
    assert not casts.down & casts.up


@pytest.mark.parametrize("seed", range(100))
def test_weights_that_only_narrow_nodes_read_are_stored_narrow(seed: int) -> None:
    case = drawn(seed)
    casts = plan_casts(case.graph, case.ports, case.request)
    for value in case.graph.initializers:
        if case.graph.values[value].dtype != "float32":
            assert value not in casts.stored | casts.down | casts.up
            continue
        types = {
            node.index in casts.narrow and at in case.ports[node.index].inputs
            for node in case.graph.nodes
            for at, read in enumerate(node.inputs)
            if read == value and at not in case.ports[node.index].free
        }
        types |= {False for node in case.graph.nodes if value in node.captures}
        types |= {case.request.narrow_border} if value in case.graph.outputs else set()
        assert (value in casts.stored) == (types == {True})


def test_every_node_has_a_reason_that_is_its_own() -> None:
    for seed in range(50):
        case = drawn(seed)
        casts = plan_casts(case.graph, case.ports, case.request)
        for node in case.graph.nodes:
            reason = casts.reasons[node.index]
            if not case.ports[node.index].movable:
                assert reason == case.ports[node.index].reason
            elif node.index in case.request.keep:
                assert reason == "said so"
            else:
                assert reason


def test_the_plan_is_the_same_each_time() -> None:
    for seed in range(20):
        case = drawn(seed)
        assert plan_casts(case.graph, case.ports, case.request) == plan_casts(case.graph, case.ports, case.request)


@pytest.mark.parametrize("seed", range(50))
def test_storage_narrows_all_weights_that_fit_and_nothing_else(seed: int) -> None:
    case, rng = drawn(seed), random.Random(seed)
    reach = {value: rng.choice((0.0, 1.0, 65504.0, 65520.0, 1e-9)) for value in case.graph.initializers}
    request = replace(case.request, storage_only=True, reach=reach, narrow_border=False)
    casts = plan_casts(case.graph, case.ports, request)
    captured = {value for node in case.graph.nodes for value in node.captures}
    fit = {
        value
        for value, reached in reach.items()
        if case.graph.values[value].dtype == "float32"
        and reached in (0.0, 1.0, 65504.0)
        and value not in captured
        and value not in case.graph.outputs
    }
    read = {value for n in case.graph.nodes for at, value in enumerate(n.inputs) if at not in case.ports[n.index].free}
    assert casts == Casts(frozenset(), casts.reasons, frozenset(), frozenset(fit & read), frozenset(fit))


# The limits


def chain(reach: Mapping[int, float], narrow: str) -> dict[int, str]:
    """What is out of range in x -> Follow -> a -> Follow -> b, where only the values' ports count."""
    graph = Graph(
        (Node(0, "Follow", (0,), (1,)), Node(1, "Follow", (1,), (2,))),
        (Value("x", "float32"), Value("a", "float32"), Value("b", "float32")),
        (0,), (2,),
    )  # fmt: skip
    both = Ports(frozenset({0}), frozenset({0}))
    return out_of_range(graph, {0: both, 1: both}, CastRequest(narrow, CLASSES, reach=reach))


def rounded(number: float, narrow: str) -> float:
    bits = narrowed(np.array([number], np.float32), narrow)
    return float(bits[0]) if narrow == "float16" else float((bits.astype(np.uint32) << 16).view(np.float32)[0])


EDGES = {
    "float16": (65504.0, 65519.99, 65520.0, 1e6, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 2.0**-26, 1e-30, 1.0),
    "bfloat16": (65520.0, 3.38e38, 3.3895e38, 3.3961774e38, 3.4028235e38, 2.0**-133, 2.0**-134, 2.0**-140, 1.0),
}


@pytest.mark.parametrize(("narrow", "edge"), [(narrow, edge) for narrow, edges in EDGES.items() for edge in edges])
def test_out_of_range_is_what_rounding_makes_infinite_or_zero(narrow: str, edge: float) -> None:
    edge = float(np.float32(edge))
    lost = not 0 < rounded(edge, narrow) < math.inf
    found = chain({2: edge}, narrow)
    assert (1 in found) == lost
    assert 0 not in found
    if lost:
        assert "'b'" in found[1] and narrow in found[1]
    assert set(chain({1: edge}, narrow)) == ({0, 1} if lost else set()), "who makes it and who reads it"


@pytest.mark.parametrize("reach", [math.inf, math.nan, 0.0])
def test_an_infinity_or_nan_of_its_own_and_zero_keep_nothing_wide(reach: float) -> None:
    assert chain({0: reach, 1: reach, 2: reach}, "float16") == {}


def test_only_ports_count_for_the_range() -> None:
    graph = Graph((Node(0, "Follow", (0, None), (1,)),), (Value("x", "float32"), Value("a", "float32")), (0,), (1,))
    request = CastRequest("float16", CLASSES, reach={0: 1e9})
    assert out_of_range(graph, {0: Ports(frozenset(), frozenset({0}))}, request) == {}
    assert set(out_of_range(graph, {0: Ports(frozenset({0, 1}), frozenset())}, request)) == {0}


# The operators' classes


def test_the_classes_name_operators_of_the_standard_once() -> None:
    classes = standard_classes()
    assert not classes.allow & classes.deny
    known = {schema.name for schema in onnx.defs.get_all_schemas()} | NEWER
    assert classes.allow | classes.deny <= known
    assert not NEWER & {schema.name for schema in onnx.defs.get_all_schemas()}, "no longer newer"


def test_refined_classes_stay_disjoint_and_move_what_is_named() -> None:
    classes = OperatorClasses(frozenset("ab"), frozenset("cd")).refined(allow="c", deny="a", infer="d")
    assert (classes.allow, classes.deny) == (frozenset("bc"), frozenset("a"))
    assert [classes.role(name) for name in "abcde"] == [Role.DENY, Role.ALLOW, Role.ALLOW, Role.INFER, Role.INFER]


@pytest.mark.parametrize(
    ("reach", "kept"), [(255.9, False), (256.0, True), (1e3, True), (2e-4, False), (1.7e-4, True), (0.0, False)]
)
def test_a_variance_leaves_the_type_before_its_values_do(reach: float, kept: bool) -> None:
    values = tuple(Value(name, "float32", (2, 2)) for name in ("x", "scale", "y"))
    both = Ports(frozenset({0, 1}), frozenset({0}))
    for kind, counts in (("LayerNormalization", kept), ("Add", False)):
        graph = Graph((Node(0, kind, (0, 1), (2,)),), values, (0, 1), (2,))
        for narrow in ("float16", "bfloat16"):
            found = out_of_range(graph, {0: both}, CastRequest(narrow, CLASSES, reach={0: reach, 1: 1.0, 2: 1.0}))
            assert (set(found) == {0}) == (counts and narrow == "float16")
            assert all("the square of 'x'" in reason for reason in found.values())
