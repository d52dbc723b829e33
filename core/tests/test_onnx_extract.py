"""Segments cut out of ONNX models: joined again they answer as the whole does, and they read back as they were cut."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from paddock.errors import ModelError, NotAvailable
from paddock.graph import Graph, Range
from paddock.model import Files, Model
from paddock.onnx_format import OnnxFormat
from paddock.onnx_store import INLINE
from paddock.plan import Segment

FORMAT = OnnxFormat()
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
Feeds = dict[str, Any]
Runner = Callable[[Path, Feeds], list[Any]]


def value(name: str, shape: Any = ("N", 4), dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def tensor(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), name)


def proto_of(
    nodes: Any,
    outputs: Any,
    *,
    inputs: Any = None,
    inits: Any = (),
    sparse: Any = (),
    functions: Any = (),
    domains: Any = (),
    infos: Any = (),
    opset: int = 17,
    ir: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "whole",
        [value("x")] if inputs is None else inputs,
        [value(o, None) if isinstance(o, str) else o for o in outputs],
        initializer=list(inits),
        sparse_initializer=list(sparse),
        value_info=list(infos),
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=list(functions))


node = helper.make_node


def opened(path: Path) -> Model:
    files = FORMAT.complete({"model": path})
    return Model("onnx", files, "", FORMAT.read(files))


def saved(proto: onnx.ModelProto, folder: Path) -> Model:
    path = folder / "whole.onnx"
    path.write_bytes(proto.SerializeToString())
    return opened(path)


def segments_of(graph: Graph, groups: Sequence[Sequence[int]]) -> list[Segment]:
    """One segment for each group of nodes, in an order that can be run; constants of other groups are copied."""
    found = []
    position = {index: place for place, group in enumerate(groups) for index in group}
    makers = {o: n.index for n in graph.nodes for o in n.outputs if o is not None}
    readers: dict[int, set[int]] = {}
    for n in graph.nodes:
        for i in (*n.inputs, *n.captures):
            if i is not None:
                readers.setdefault(i, set()).add(position[n.index])
    for place, group in enumerate(groups):
        own = set(group)
        reads = {i for n in own for i in (*graph.nodes[n].inputs, *graph.nodes[n].captures) if i is not None}
        foreign = {i for i in reads if i not in graph.initializers and makers.get(i) not in own}
        copied = {makers[i] for i in foreign if i in makers and graph.nodes[makers[i]].type in FORMAT.constants}
        inputs = [i for i in sorted(foreign) if makers.get(i) not in copied]
        made = [o for n in sorted(own) for o in graph.nodes[n].outputs if o is not None]
        outputs = [o for o in graph.outputs if o in made]
        if place == len(groups) - 1:  # what the model only passes through
            passed = [o for o in graph.outputs if o not in makers and o not in outputs]
            outputs += passed
            inputs += [o for o in passed if o not in graph.initializers and o not in inputs]
        crossing = (o for o in made if readers.get(o, set()) - {place} and o not in outputs)
        outputs += [o for o in crossing if graph.nodes[makers[o]].type not in FORMAT.constants]
        if outputs:  # else it holds only constants that others copy
            nodes, constants = tuple(sorted(own)), tuple(sorted(copied))
            found.append(Segment(place, "any/any", nodes, tuple(inputs), tuple(outputs), constants))
    return found


def random_groups(graph: Graph, count: int, chance: random.Random) -> list[list[int]]:
    """Consecutive runs of a random topological order: convex, and seldom consecutive in the file."""
    makers = {o: n.index for n in graph.nodes for o in n.outputs if o is not None}
    waiting = {
        n.index: {makers[i] for i in (*n.inputs, *n.captures) if i is not None and i in makers} for n in graph.nodes
    }
    order: list[int] = []
    while waiting:
        ready = chance.choice(sorted(index for index, needs in waiting.items() if not needs & waiting.keys()))
        del waiting[ready]
        order.append(ready)
    ends = [0, *sorted(chance.sample(range(1, len(order)), min(count, len(order)) - 1)), len(order)]
    return [order[a:b] for a, b in pairwise(ends)]


def by_reference(path: Path, feeds: Feeds) -> list[Any]:
    return list(ReferenceEvaluator(str(path)).run(None, feeds))


def by_runtime(path: Path, feeds: Feeds) -> list[Any]:
    return list(plain_session(path).run(None, feeds))


def plain_session(path: Path) -> onnxruntime.InferenceSession:
    """Without fusion, which a cut would change, and so the last bits."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_cut(model: Model, segment: Segment, files: Files) -> None:
    """Reads back as it was cut, node by node and along the border; passes the checker."""
    graph, again = model.graph, FORMAT.read(FORMAT.complete({"model": files["model"]}))
    assert FORMAT.complete({"model": files["model"]}) == dict(files)
    wanted = [graph.nodes[i] for i in sorted({*segment.nodes, *segment.constants})]
    assert [n.type for n in again.nodes] == [n.type for n in wanted]
    for here, there in zip(again.nodes, wanted, strict=True):
        assert (here.name, here.attributes) == (there.name, there.attributes)
        assert [again.values[i].name if i is not None else None for i in here.inputs] == [
            graph.values[i].name if i is not None else None for i in there.inputs
        ]
    for indices, found in ((segment.inputs, again.input_values), (segment.outputs, again.output_values)):
        assert [(v.name, v.dtype, v.kind) for v in found] == [
            (graph.values[i].name, graph.values[i].dtype, graph.values[i].kind) for i in indices
        ]
    for index, read in zip(segment.inputs, again.input_values, strict=True):
        shape = graph.values[index].shape
        assert read.shape is None if shape is None else read.shape is not None and len(read.shape) == len(shape)
        assert all(b == a for a, b in zip(shape or (), read.shape or (), strict=True) if a is not None)
    kept = {again.values[i].name for i in again.initializers}
    reads = {i for n in wanted for i in (*n.inputs, *n.captures)} | {*segment.outputs}
    assert kept == {graph.values[i].name for i in reads if i is not None and i in graph.initializers}
    if all(graph.values[i].shape is not None for i in (*segment.inputs, *segment.outputs)):
        checker.check_model(str(files["model"]))  # it insists on shapes that the format leaves optional
    plain_session(files["model"])


def equal(here: Any, there: Any) -> None:
    if isinstance(here, list):
        assert isinstance(there, list) and len(here) == len(there)
        for a, b in zip(here, there, strict=True):
            equal(a, b)
    elif here is None:
        assert there is None
    else:
        assert here.dtype == there.dtype
        np.testing.assert_array_equal(here, there, strict=True)


def joined(model: Model, groups: Sequence[Sequence[int]], folder: Path, feeds: Feeds, run: Runner) -> list[Any]:
    """The model's outputs by its segments in turn."""
    known = dict(feeds)
    values = model.graph.values
    for segment in segments_of(model.graph, groups):
        target = folder / f"{'-'.join(map(str, groups[0][:40]))[:80]}.{len(groups)}.{segment.index}"
        files = FORMAT.extract(model, segment, target)
        check_cut(model, segment, files)
        answers = run(files["model"], {values[i].name: known[values[i].name] for i in segment.inputs})
        known.update(zip((values[o].name for o in segment.outputs), answers, strict=True))
    return [known[v.name] for v in model.graph.output_values]


def check_all_cuts(model: Model, folder: Path, feeds: Feeds, run: Runner = by_reference) -> None:
    """Every prefix and suffix, each node alone, and some random cuts into three."""
    whole = run(model.files["model"], feeds)
    count = len(model.graph.nodes)
    cuts: list[list[list[int]]] = [[list(range(k)), list(range(k, count))] for k in range(1, count)]
    cuts += [[[k] for k in range(count)], [list(range(count))]]
    cuts += [random_groups(model.graph, 3, random.Random(seed)) for seed in range(3)]
    for number, groups in enumerate(cuts):
        for here, there in zip(joined(model, groups, folder / str(number), feeds, run), whole, strict=True):
            equal(here, there)


X = np.random.default_rng(7).standard_normal((3, 4)).astype(np.float32)


# Graphs made by hand, cut everywhere.


def residual() -> onnx.ModelProto:
    nodes = [
        node("Relu", ["x"], ["a"], name="first"),
        node("MatMul", ["a", "w"], ["b"]),
        node("Add", ["b", "x"], ["c"]),
        node("Add", ["c", "a"], ["y"]),
    ]
    return proto_of(nodes, ["y"], inits=[tensor("w", 4, 4)])


def shared_initializer() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w2"], ["b"]), node("MatMul", ["b", "w"], ["y"])]
    return proto_of(nodes, ["y"], inits=[tensor("w", 4, 100), tensor("w2", 100, 4), tensor("unread", 300)])


def constant_copied() -> onnx.ModelProto:
    nodes = [
        node("Constant", [], ["c"], value=tensor("", 4)),
        node("Add", ["x", "c"], ["a"]),
        node("Mul", ["a", "c"], ["b"]),
        node("Constant", [], ["axes"], value_ints=[0]),
        node("ReduceSum", ["b", "axes"], ["s"]),
        node("Sub", ["a", "s"], ["d"]),
        node("Add", ["d", "c"], ["y"]),
    ]
    return proto_of(nodes, ["y"])


def branches() -> onnx.ModelProto:
    inner = helper.make_graph(
        [node("Add", ["h", "only_inside"], ["i1"]), node("Mul", ["i1", "x"], ["i"])], "inner", [], [value("i", None)]
    )
    other = helper.make_graph([node("Identity", ["h"], ["j"])], "other", [], [value("j", None)])
    nested = node("If", ["flag"], ["n"], then_branch=inner, else_branch=other)
    then = helper.make_graph(
        [nested, node("Add", ["n", "own"], ["t"])], "then", [], [value("t", None)], initializer=[tensor("own", 1, 4)]
    )
    els = helper.make_graph([node("Neg", ["c"], ["e"])], "else", [], [value("e", None)])
    nodes = [
        node("Relu", ["x"], ["h"]),
        node("ReduceSum", ["h"], ["sum"], keepdims=0),
        node("Constant", [], ["zero"], value_float=0.0),
        node("Greater", ["sum", "zero"], ["flag"]),
        node("Constant", [], ["c"], value=tensor("", 3, 4)),
        node("If", ["flag"], ["b"], then_branch=then, else_branch=els),
        node("Add", ["b", "h"], ["y"]),
    ]
    return proto_of(nodes, ["y"], inits=[tensor("only_inside", 3, 4), tensor("unread", 4)])


def loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [
            node("Identity", ["cond"], ["cond_out"]),
            node("MatMul", ["state", "w"], ["m"]),
            node("Add", ["m", "h"], ["next"]),
            node("ReduceMean", ["next"], ["scan"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("cond", [], TensorProto.BOOL), value("state", ["N", 4])],
        [value("cond_out", [], TensorProto.BOOL), value("next", ["N", 4]), value("scan", None)],
    )
    nodes = [
        node("Tanh", ["x"], ["h"]),
        node("Loop", ["trips", "go", "h"], ["last", "means"], body=body),
        node("Add", ["last", "h"], ["y"]),
    ]
    inits = [numpy_helper.from_array(np.array(v), n) for v, n in ((3, "trips"), (True, "go"))] + [tensor("w", 4, 4)]
    return proto_of(nodes, ["means", "y"], inits=inits)


def sequences() -> onnx.ModelProto:
    nodes = [
        node("SequenceConstruct", ["x", "x"], ["s"]),
        node("Neg", ["x"], ["n"]),
        node("SequenceInsert", ["s", "n"], ["t"]),
        node("ConcatFromSequence", ["t"], ["y"], axis=0),
        node("SequenceLength", ["s"], ["count"]),
    ]
    return proto_of(nodes, ["y", value("count", [], TensorProto.INT64)])


def optionals() -> onnx.ModelProto:
    nodes = [
        node("Optional", ["x"], ["o"]),
        node("OptionalGetElement", ["o"], ["g"]),
        node("SequenceConstruct", ["g", "x"], ["s"]),
        node("Optional", ["s"], ["os"]),
        node("OptionalGetElement", ["os"], ["t"]),
        node("ConcatFromSequence", ["t"], ["y"], axis=0),
    ]
    return proto_of(nodes, ["y"])


def functions() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    twice = helper.make_function("local", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], opsets[:1])
    calls = [node("Twice", ["a"], ["t"], domain="local"), node("Neg", ["t"], ["b"])]
    outer = helper.make_function("local", "Outer", ["a"], ["b"], calls, opsets)
    unused = helper.make_function("local", "Unused", ["a"], ["b"], [node("Abs", ["a"], ["b"])], opsets[:1])
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Outer", ["r"], ["o"], domain="local"),
        node("Sigmoid", ["o"], ["g"]),
        node("Twice", ["g"], ["y"], domain="local"),
    ]
    return proto_of(nodes, ["y"], functions=[unused, twice, outer], domains=["local"])


def left_out() -> onnx.ModelProto:
    nodes = [
        node("Clip", ["x", "", "high"], ["c"]),
        node("LayerNormalization", ["c", "scale"], ["l", "", "deviation"]),
        node("Split", ["l"], ["p", ""], axis=1),
        node("Add", ["p", "deviation"], ["y"]),
    ]
    return proto_of(nodes, ["y"], inits=[numpy_helper.from_array(np.float32(1), "high"), tensor("scale", 4)])


def output_read_inside() -> onnx.ModelProto:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Add", ["a", "b"], ["c"])]
    return proto_of(nodes, ["c", "a", "b"])


def passed_through() -> onnx.ModelProto:
    nodes = [node("Relu", ["x"], ["a"]), node("Add", ["a", "w"], ["b"])]
    inits = [tensor("w", 4), tensor("big", 400)]
    return proto_of(nodes, [value("x"), "b", value("w", [4]), value("big", [400])], inits=inits)


def strings() -> onnx.ModelProto:
    words = helper.make_tensor("words", TensorProto.STRING, [2], ["a", "long " * 500])
    nodes = [
        node("Concat", ["words", "words"], ["all"], axis=0),
        node("Identity", ["all"], ["again"]),
        node("Concat", ["again", "words"], ["y"], axis=0),
    ]
    return proto_of(nodes, [value("y", [6], TensorProto.STRING)], inputs=[], inits=[words])


def old_ir() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("Add", ["b", "w2"], ["y"])]
    inits = [tensor("w", 4, 80), tensor("w2", 80)]
    return proto_of(
        nodes, ["y"], inputs=[value("w2", [80]), value("x"), value("w", [4, 80])], inits=inits, opset=9, ir=3
    )


def default_domain_spelt_out() -> onnx.ModelProto:
    proto = residual()
    for each in proto.graph.node:
        each.domain = "ai.onnx"
    proto.opset_import[0].domain = "ai.onnx"
    return proto


BY_HAND = (
    residual, shared_initializer, constant_copied, branches, loop, sequences, optionals, functions, left_out,
    output_read_inside, passed_through, strings, old_ir, default_domain_spelt_out,
)  # fmt: skip


@pytest.mark.parametrize("build", BY_HAND, ids=lambda build: build.__name__)
def test_every_cut_joins_to_the_whole(build: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    model = saved(build(), tmp_path)
    feeds = {"x": X} if any(v.name == "x" for v in model.graph.input_values) else {}
    # The reference knows no "ai.onnx", and makes an array of an optional sequence.
    run = by_runtime if build in (default_domain_spelt_out, optionals) else by_reference
    check_all_cuts(model, tmp_path, feeds, run)


@pytest.mark.parametrize("positive", [True, False])
def test_both_branches_survive_a_cut(positive: bool, tmp_path: Path) -> None:
    check_all_cuts(saved(branches(), tmp_path), tmp_path, {"x": np.abs(X) if positive else -np.abs(X)})


def test_a_sparse_initializer_stays_sparse(tmp_path: Path) -> None:
    held = numpy_helper.from_array(np.array([3, 4], np.float32), "sparse")
    places = numpy_helper.from_array(np.array([1, 3], np.int64), "places")
    unread = helper.make_sparse_tensor(numpy_helper.from_array(np.array([1], np.float32), "unread"), places, [4])
    unread.indices.CopyFrom(numpy_helper.from_array(np.array([0], np.int64), "place"))
    sparse = [helper.make_sparse_tensor(held, places, [4]), unread]
    nodes = [node("Add", ["x", "sparse"], ["a"]), node("Relu", ["a"], ["b"]), node("Mul", ["b", "sparse"], ["y"])]
    model = saved(proto_of(nodes, ["y"], sparse=sparse), tmp_path)
    # onnx's reference takes no sparse initializer.
    check_all_cuts(model, tmp_path, {"x": X}, by_runtime)
    first = segments_of(model.graph, [[0], [1, 2]])[0]
    cut = onnx.load(FORMAT.extract(model, first, tmp_path / "cut")["model"])
    assert [s.values.name for s in cut.graph.sparse_initializer] == ["sparse"]


# The networks of the onnx wheel.


def livened(path: Path, folder: Path, seed: int) -> Model:
    """A light network with half of its constant weights made random initializers; else its output is a constant."""
    proto, chance = onnx.load(path), np.random.default_rng(seed)
    shapes = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    kept = []
    for each in proto.graph.node:
        if each.op_type != "ConstantOfShape" or chance.random() < 0.5:
            kept.append(each)
            continue
        shape = tuple(int(extent) for extent in shapes[each.input[0]])
        numbers = chance.uniform(0.5, 1.5, shape) if len(shape) == 1 else chance.standard_normal(shape)
        fan_in = max(1, int(np.prod(shape[1:])))
        proto.graph.initializer.append(
            numpy_helper.from_array((numbers / np.sqrt(fan_in)).astype(np.float32), each.output[0])
        )
        proto.graph.input.append(value(each.output[0], shape))
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    return saved(proto, folder)


def light_feeds(model: Model, seed: int) -> Feeds:
    (source,) = model.graph.input_values
    shape = [extent for extent in source.shape or () if isinstance(extent, int)]
    return {source.name: np.random.default_rng(seed).random(shape, np.float32)}


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v1", "densenet121"])
def test_random_cuts_of_a_real_network_join_to_the_whole(name: str, tmp_path: Path) -> None:
    model = livened(LIGHT / f"light_{name}.onnx", tmp_path, 1)
    feeds = light_feeds(model, 2)
    whole = by_runtime(model.files["model"], feeds)
    for seed in range(2):
        groups = random_groups(model.graph, 3, random.Random(seed))
        for here, there in zip(joined(model, groups, tmp_path, feeds, by_runtime), whole, strict=True):
            equal(here, there)


@pytest.mark.slow
def test_a_real_network_cut_in_two_joins_by_the_reference_too(tmp_path: Path) -> None:
    model = livened(LIGHT / "light_squeezenet.onnx", tmp_path, 3)
    feeds = light_feeds(model, 4)
    whole = by_reference(model.files["model"], feeds)
    groups = random_groups(model.graph, 2, random.Random(5))
    equal(joined(model, groups, tmp_path, feeds, by_reference), whole)


# Any small graph, cut anywhere.


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Unary, binary, two-output, constant and branching nodes over values of shape [N, 4], some read often."""
    names, nodes = ["x", "w", "big"], list[onnx.NodeProto]()

    def any_of() -> str:
        return draw(st.sampled_from(names))

    for number in range(draw(st.integers(2, 9))):
        kind, out = draw(st.sampled_from(["unary", "binary", "split", "constant", "if"])), f"v{number}"
        if kind == "unary":
            nodes.append(node(draw(st.sampled_from(["Relu", "Neg", "Tanh"])), [any_of()], [out]))
        elif kind == "binary":
            nodes.append(node(draw(st.sampled_from(["Add", "Mul", "Max"])), [any_of(), any_of()], [out]))
        elif kind == "split":
            nodes.append(node("TopK", [any_of(), "four"], [out, f"i{number}"], sorted=1))
        elif kind == "constant":
            nodes.append(node("Constant", [], [out], value=tensor("", 1, 4, seed=number)))
        else:
            bodies = [
                helper.make_graph([node(op, [any_of(), any_of()], [f"{op}{number}"])], op, [], [value(f"{op}{number}")])
                for op in ("Sub", "Min")
            ]
            nodes.append(node("If", ["yes"], [out], then_branch=bodies[0], else_branch=bodies[1]))
        names.append(out)
    made = [name for name in names if name.startswith("v")]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    inits = [tensor("w", 1, 4), tensor("big", 100, 4), numpy_helper.from_array(np.array([4]), "four")]
    return proto_of(nodes, outputs, inits=[*inits, numpy_helper.from_array(np.array(True), "yes")])


@settings(max_examples=60, deadline=None)
@given(proto=graphs(), data=st.data())
def test_prefix_and_suffix_of_any_graph_join_to_the_whole(
    proto: onnx.ModelProto, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    model = saved(proto, folder)
    groups = random_groups(model.graph, data.draw(st.integers(2, 3)), data.draw(st.randoms(use_true_random=False)))
    feeds = {"x": np.repeat(X[:1], 100, 0)}
    whole = by_reference(model.files["model"], feeds)
    for here, there in zip(joined(model, groups, folder, feeds, by_reference), whole, strict=True):
        equal(here, there)


# What the file holds.


def cut(model: Model, nodes: Sequence[int], folder: Path) -> tuple[onnx.ModelProto, Files]:
    rest = [n.index for n in model.graph.nodes if n.index not in nodes]
    before, after = [i for i in rest if i < min(nodes)], [i for i in rest if i > min(nodes)]
    segments = segments_of(model.graph, [group for group in (before, list(nodes), after) if group])
    segment = next(s for s in segments if s.nodes == tuple(nodes))
    files = FORMAT.extract(model, segment, folder)
    check_cut(model, segment, files)
    return onnx.load(files["model"], load_external_data=False), files


def test_symbols_that_the_config_fixed_are_numbers(tmp_path: Path) -> None:
    infos = [value("a", ["N", "M"]), value("b", ["N", "M"])]
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Exp", ["b"], ["y"])]
    model = saved(proto_of(nodes, [value("y", ["N", "M"])], inputs=[value("x", ["N", "M"])], infos=infos), tmp_path)
    model = model.with_graph(model.graph.with_bounds({"N": Range(3, 3, 3)}))
    proto, files = cut(model, [1, 2], tmp_path / "cut")
    for info in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        dims = info.type.tensor_type.shape.dim
        assert (dims[0].dim_value, dims[1].dim_param) == (3, "M"), info.name
    assert [info.name for info in proto.graph.value_info] == ["b"]
    assert FORMAT.read(files).symbols() == ("M",)


def test_an_unknown_rank_and_an_unknown_extent_stay_unknown(tmp_path: Path) -> None:
    infos = [value("a", None), value("b", ["N", None])]
    nodes = [
        node("Odd", ["x"], ["a"], domain="acme"),
        node("Odd", ["x"], ["b"], domain="acme"),
        node("Odd", ["a", "b"], ["y"], domain="acme"),
    ]
    model = saved(proto_of(nodes, ["y"], domains=["acme"], infos=infos), tmp_path)
    proto = onnx.load(FORMAT.extract(model, segments_of(model.graph, [[0, 1], [2]])[1], tmp_path / "cut")["model"])
    first, second = (info.type.tensor_type for info in proto.graph.input)
    assert not first.HasField("shape")
    assert second.shape.dim[0].dim_param == "N" and second.shape.dim[1].WhichOneof("value") is None


def test_only_the_functions_that_are_called_are_kept(tmp_path: Path) -> None:
    model = saved(functions(), tmp_path)
    kept = [[f.name for f in cut(model, [n], tmp_path / str(n))[0].functions] for n in range(4)]
    assert kept == [[], ["Twice", "Outer"], [], ["Twice"]]


def test_a_nested_optional_keeps_its_whole_type(tmp_path: Path) -> None:
    proto, _ = cut(saved(optionals(), tmp_path), [4, 5], tmp_path / "cut")
    inner = proto.graph.input[0].type.optional_type.elem_type.sequence_type.elem_type.tensor_type
    assert inner.elem_type == TensorProto.FLOAT and inner.shape.dim[1].dim_value == 4


def test_a_sequence_inside_a_segment_is_not_stated_as_a_tensor(tmp_path: Path) -> None:
    proto = sequences()
    inside = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 4])
    proto.graph.value_info.add(name="s", type=helper.make_sequence_type_proto(inside))
    check_all_cuts(saved(proto, tmp_path), tmp_path, {"x": X})


def test_an_initializer_that_is_an_input_of_the_segment_is_fed(tmp_path: Path) -> None:
    model = saved(residual(), tmp_path)
    index = {v.name: i for i, v in enumerate(model.graph.values)}
    segment = Segment(0, "any/any", (1,), (index["w"], index["a"]), (index["b"],))
    files = FORMAT.extract(model, segment, tmp_path / "cut")
    graph = FORMAT.read(files)
    assert [v.name for v in graph.input_values] == ["w", "a"] and not graph.initializers
    weight = np.eye(4, dtype=np.float32) * 2
    equal(by_reference(files["model"], {"w": weight, "a": X}), [X * 2])


def test_metadata_is_dropped_and_annotations_follow_their_tensors(tmp_path: Path) -> None:
    proto = residual()
    proto.metadata_props.add(key="author", value="somebody")
    proto.doc_string = "a text"
    for name, scale in (("b", "w"), ("a", "w"), ("y", "gone")):
        note = proto.graph.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)
    found, _ = cut(saved(proto, tmp_path), [1, 2], tmp_path / "cut")
    assert not found.metadata_props and not found.doc_string
    assert [note.tensor_name for note in found.graph.quantization_annotation] == ["b", "a"]
    assert (found.ir_version, found.opset_import[0].version) == (8, 17)


def test_the_same_cut_gives_the_same_bytes(tmp_path: Path) -> None:
    model = saved(shared_initializer(), tmp_path)
    one, two = (cut(model, [0, 1], tmp_path / name)[1] for name in ("one", "two"))
    assert {role: path.read_bytes() for role, path in one.items()} == {r: p.read_bytes() for r, p in two.items()}


# Constants, wherever they are stored.


def test_large_constants_lie_aligned_beside_the_model(tmp_path: Path) -> None:
    inits = [tensor("w", 4, 65), tensor("v", 65, 65, seed=1), tensor("u", 65)]
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "v"], ["b"]), node("Add", ["b", "u"], ["y"])]
    proto, files = cut(saved(proto_of(nodes, ["y"], inits=inits), tmp_path), [0, 1, 2], tmp_path / "cut")
    places = {t.name: {e.key: e.value for e in t.external_data} for t in proto.graph.initializer}
    assert places == {
        "w": {"location": "weights.bin", "offset": "0", "length": "1040"},
        "v": {"location": "weights.bin", "offset": "1088", "length": "16900"},
        "u": {},
    }
    whole = onnx.load(files["model"])
    for origin, found in zip(inits, whole.graph.initializer, strict=True):
        equal(numpy_helper.to_array(found), numpy_helper.to_array(origin))


def test_a_model_without_large_constants_is_one_file(tmp_path: Path) -> None:
    _, files = cut(saved(residual(), tmp_path), [1], tmp_path / "cut")
    assert list(files) == ["model"] and [p.name for p in (tmp_path / "cut").iterdir()] == ["model.onnx"]


LISTS = {
    "float_data": {"FLOAT": "<f4", "COMPLEX64": "<f4"},
    "double_data": {"DOUBLE": "<f8", "COMPLEX128": "<f8"},
    "int64_data": {"INT64": "<i8"},
    "uint64_data": {"UINT64": "<u8", "UINT32": "<u4"},
    "int32_data": {
        **dict.fromkeys(("UINT16", "FLOAT16", "BFLOAT16"), "<u2"),
        **dict.fromkeys(("UINT8", "BOOL", "INT4", "UINT4"), "u1"),
        **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), "u1"),
        "INT32": "<i4",
        "INT16": "<i2",
        "INT8": "i1",
    },
}
"""Where the format stores each dtype that is not raw (onnx.proto, TensorProto), and its bits as NumPy's."""


def test_every_dtype_is_listed() -> None:
    listed = {name for names in LISTS.values() for name in names}
    assert listed == set(TensorProto.DataType.keys()) - {"UNDEFINED", "STRING"}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("field, name", [(field, name) for field, names in LISTS.items() for name in names])
def test_every_dtype_keeps_its_bits(field: str, name: str, raw: bool, tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 2 if name == "BOOL" else 2**31, 2 * INLINE)
    bits = stored.astype(LISTS[field][name])  # of an int8 and int16: negative ones among them
    count = bits.size // 2 if name.startswith("COMPLEX") else bits.size * 2 if name.endswith("INT4") else bits.size
    origin = onnx.TensorProto(name="w", data_type=TensorProto.DataType.Value(name), dims=[count])
    if raw:
        origin.raw_data = bits.tobytes()
    else:
        getattr(origin, field).extend(bits.tolist())
    outputs = [value("y", [count], origin.data_type)]
    proto = proto_of([node("Identity", ["w"], ["y"])], outputs, inputs=[], inits=[origin], opset=21, ir=10)
    model = saved(proto, tmp_path)
    files = FORMAT.extract(model, segments_of(model.graph, [[0]])[0], tmp_path / "cut")
    (found,) = onnx.load(files["model"]).graph.initializer
    assert (found.data_type, list(found.dims), found.raw_data) == (origin.data_type, [count], bits.tobytes())
    assert files["data/weights.bin"].read_bytes() == bits.tobytes()


def test_external_data_is_streamed_and_tied_weights_stay_tied(tmp_path: Path) -> None:
    size = 4 << 20  # floats
    data = np.arange(size, dtype=np.float32)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "data.bin").write_bytes(b"head" + data.tobytes())

    def outside(name: str, at: int, *shape: int) -> onnx.TensorProto:
        found = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        found.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", "deep/data.bin"), ("offset", at), ("length", 4 * int(np.prod(shape)))):
            found.external_data.add(key=key, value=str(entry))
        return found

    body = helper.make_graph([node("Add", ["x", "own"], ["t"])], "b", [], [value("t", None)])
    body.initializer.append(outside("own", 4 + 4 * 1000, 500, 4))
    nodes = [
        node("Constant", [], ["c"], value=outside("", 4 + 4 * 8, 4)),
        node("Constant", [], ["yes"], value=helper.make_tensor("", TensorProto.BOOL, [], [True])),
        node("Add", ["x", "c"], ["a"]),
        node("If", ["yes"], ["i"], then_branch=body, else_branch=body),
        node("Add", ["a", "i"], ["s"]),
        node("ReduceMax", ["big"], ["m"], keepdims=0),
        node("Add", ["s", "m"], ["u"]),
        node("Sub", ["u", "small"], ["d"]),
        node("ReduceMin", ["tied"], ["n"], keepdims=0),
        node("Add", ["d", "n"], ["y"]),
    ]
    inits = [outside("big", 4, size), outside("tied", 4, size), outside("small", 4 + 4 * 20, 4)]
    model = saved(proto_of(nodes, ["y"], inputs=[value("x", [500, 4])], inits=inits), tmp_path)
    feeds = {"x": np.ones((500, 4), np.float32)}
    whole = by_reference(model.files["model"], feeds)
    for number, groups in enumerate([[list(range(10))], [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]]):
        equal(joined(model, groups, tmp_path / str(number), feeds, by_reference), whole)
        for path in (tmp_path / str(number)).rglob("weights.bin"):
            assert path.stat().st_size <= data.nbytes + 8000 + 64
    (segment,) = segments_of(model.graph, [list(range(10))])
    tracemalloc.start()
    FORMAT.extract(model, segment, tmp_path / "traced")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < data.nbytes // 4


# What cannot be cut.


def test_a_value_without_a_dtype_cannot_cross(tmp_path: Path) -> None:
    nodes = [node("Odd", ["x"], ["hidden"], domain="acme"), node("Odd", ["hidden"], ["y"], domain="acme")]
    model = saved(proto_of(nodes, ["y"], domains=["acme"]), tmp_path)
    for segment in segments_of(model.graph, [[0], [1]]):
        with pytest.raises(NotAvailable, match="'hidden' has no dtype"):
            FORMAT.extract(model, segment, tmp_path / "cut")
    (whole,) = segments_of(model.graph, [[0, 1]])
    FORMAT.extract(model, whole, tmp_path / "whole")


@pytest.mark.parametrize("kind", ["map", "sequence of maps", "sparse"])
def test_maps_and_sparse_tensors_cannot_cross(kind: str, tmp_path: Path) -> None:
    if kind == "sparse":
        crossing = onnx.ValueInfoProto(name="m", type=helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [4]))
    else:
        inside = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        type_ = helper.make_map_type_proto(TensorProto.INT64, inside)
        wrapped = helper.make_sequence_type_proto(type_) if kind.startswith("sequence") else type_
        crossing = onnx.ValueInfoProto(name="m", type=wrapped)
    nodes = [node("Odd", ["x"], ["m"], domain="acme"), node("Odd", ["m"], ["y"], domain="acme")]
    model = saved(proto_of(nodes, ["y"], domains=["acme"], infos=[crossing]), tmp_path)
    with pytest.raises(NotAvailable, match="'m'"):
        FORMAT.extract(model, segments_of(model.graph, [[0], [1]])[0], tmp_path / "cut")
    (whole,) = segments_of(model.graph, [[0, 1]])  # inside a segment they may stay, their type unstated
    assert not onnx.load(FORMAT.extract(model, whole, tmp_path / "whole")["model"]).graph.value_info


def test_files_that_changed_since_they_were_read_are_refused(tmp_path: Path) -> None:
    model = saved(shared_initializer(), tmp_path)
    (segment, _) = segments_of(model.graph, [[0], [1, 2]])
    saved(residual(), tmp_path)
    with pytest.raises(ModelError, match="changed since it was read"):
        FORMAT.extract(model, segment, tmp_path / "cut")
    model.files["model"].write_bytes(b"\xff" * 50)
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        FORMAT.extract(model, segment, tmp_path / "cut")


def test_external_data_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    onnx.save(shared_initializer(), tmp_path / "m.onnx", save_as_external_data=True, location="d.bin", size_threshold=0)
    model = opened(tmp_path / "m.onnx")
    (segment, _) = segments_of(model.graph, [[0], [1, 2]])
    (tmp_path / "d.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match="early"):
        FORMAT.extract(model, segment, tmp_path / "cut")
    with pytest.raises(ModelError, match=r"no role 'data/d\.bin'"):
        FORMAT.extract(Model("onnx", {"model": model.files["model"]}, "", model.graph), segment, tmp_path / "cut")
