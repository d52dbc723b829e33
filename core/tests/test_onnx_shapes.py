"""Inner shapes told without a run: what onnx's evaluator has when it does run, at every value."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from paddock.cache import Store
from paddock.child import Children
from paddock.errors import BuildFailed, ChildFailed, ModelError
from paddock.model import Model, fingerprint
from paddock.onnx_format import OnnxFormat
from paddock.reading import open_model, shapes_at
from paddock.registry import Registry

FORMAT = OnnxFormat()
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node
Feeds = Mapping[str, np.ndarray[Any, Any]]


def value(name: str, shape: Any = ("N", "T", 4), dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def saved(
    nodes: Sequence[Any], outputs: Sequence[str], folder: Path, inits: Any = (), inputs: Any = None, opset: int = 17,
    inner: Any = (), functions: Any = (), domains: Any = (), external: bool = False,
) -> Model:  # fmt: skip
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(inits).items()]
    ends = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", inputs or [value("x")], ends, stored, value_info=list(inner))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))
    return kept(proto, folder, external)


def kept(proto: onnx.ModelProto, folder: Path, external: bool = False) -> Model:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "m.onnx"
    onnx.save_model(proto, str(path), save_as_external_data=external, location="weights.bin", size_threshold=0)
    files = FORMAT.complete({"model": path})
    return Model("onnx", files, fingerprint("onnx", files), FORMAT.read(files))


def told(model: Model, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {model.graph.values[index].name: shape for index, shape in FORMAT.shapes_at(model, inputs).items()}


def ran(model: Model, feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """The shapes of all values of the main graph that are arrays in a run."""
    proto = onnx.load(model.files["model"])
    given = {info.name for info in proto.graph.output}
    for name in [name for n in proto.graph.node for name in n.output if name and name not in given]:
        proto.graph.output.add(name=name)
    with np.errstate(all="ignore"):
        arrays = ReferenceEvaluator(proto).run(None, dict(feeds))
    names = [info.name for info in proto.graph.output]
    found = {n: np.shape(a) for n, a in zip(names, arrays, strict=True) if isinstance(a, np.ndarray | np.generic)}
    return {**found, **{name: array.shape for name, array in feeds.items()}}


def compared(model: Model, feeds: Feeds, unknown: Sequence[str] = ()) -> None:
    """What is told is what a run has, and nothing but `unknown` is left out."""
    found = told(model, {name: array.shape for name, array in feeds.items()})
    real = ran(model, feeds)
    assert {name: found[name] for name in real if name in found} == {n: s for n, s in real.items() if n in found}
    assert {name for name in real if name not in found} == set(unknown)


X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def ints(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


SHAPE = [
    node("Shape", ["x"], ["shape"]),
    node("Gather", ["shape", "i0"], ["n"]),
    node("Gather", ["shape", "i1"], ["t"]),
    node("Unsqueeze", ["n", "zero"], ["n1"]),
    node("Unsqueeze", ["t", "zero"], ["t1"]),
]
INITS = {"i0": np.int64(0), "i1": np.int64(1), "zero": ints(0), "one": ints(1), "minus": ints(-1), "two": ints(2)}


def body(nodes: Sequence[Any], outputs: Sequence[str], dtype: int = FLOAT, inputs: Any = ()) -> Any:
    ends = [helper.make_tensor_value_info(name, dtype, None) for name in outputs]
    return helper.make_graph(list(nodes), "body", list(inputs), ends)


CHAINS: dict[str, tuple[list[Any], str]] = {
    "reshape": (
        [node("Concat", ["n1", "minus", "two"], ["to"], axis=0), node("Reshape", ["x", "to"], ["y"])], "",
    ),
    "range": (
        [node("Range", ["i0", "t", "i1"], ["r"]), node("Unsqueeze", ["r", "one"], ["c"]),
         node("Add", ["c", "r"], ["y"])], "",
    ),
    "slice": ([node("Slice", ["x", "one", "t1", "one"], ["s"]), node("Relu", ["s"], ["y"])], ""),
    "expand": (
        [node("Concat", ["t1", "n1", "t1", "two", "one"], ["to"], axis=0),
         node("ConstantOfShape", ["to"], ["y"])], "",
    ),
    "tile": (
        [node("Concat", ["one", "n1", "t1"], ["to"], axis=0), node("Tile", ["x", "to"], ["y"])], "",
    ),
    "split": (
        [node("Sub", ["t1", "one"], ["rest"]), node("Concat", ["one", "rest"], ["sizes"], axis=0),
         node("Split", ["x", "sizes"], ["a", "b"], axis=1), node("Concat", ["b", "a", "b"], ["y"], axis=1)], "",
    ),
    "pad": (
        [node("Concat", ["zero", "n1", "zero", "t1", "zero", "zero"], ["pads"], axis=0),
         node("Pad", ["x", "pads"], ["y"])], "",
    ),
    "resize by floats": (
        [node("Cast", ["shape"], ["f"], to=FLOAT), node("Div", ["f", "f"], ["ones"]),
         node("Add", ["ones", "ones"], ["twice"]), node("Resize", ["x", "", "twice"], ["y"], mode="nearest")], "",
    ),
    "size": (
        [node("Size", ["x"], ["size"]), node("Reshape", ["size", "minus"], ["to"]),
         node("Reshape", ["x", "to"], ["y"])], "",
    ),
    "a part of a shape": (
        [node("Shape", ["x"], ["last"], start=-1), node("Shape", ["x"], ["front"], end=-1),
         node("Concat", ["last", "front"], ["to"], axis=0), node("Reshape", ["x", "to"], ["y"])], "",
    ),
    "where": (
        [node("Equal", ["t1", "two"], ["is"]), node("Where", ["is", "one", "t1"], ["to"]),
         node("ConstantOfShape", ["to"], ["y"])], "",
    ),
    "an element count that hangs on data": (
        [node("NonZero", ["x"], ["nz"]), node("Transpose", ["nz"], ["nzt"]), node("Shape", ["nzt"], ["s"]),
         node("Relu", ["x"], ["y"])], "nz nzt",
    ),
    "constants of which elements are chosen": (
        [node("Concat", ["one", "zero", "two"], ["c"], axis=0), node("NonZero", ["c"], ["nz"]),
         node("Gather", ["x", "nz"], ["y"], axis=1)], "",
    ),
    "an If whose condition is known": (
        [node("Greater", ["t", "i0"], ["has"]),
         node("If", ["has"], ["w"],
              then_branch=body([node("Squeeze", ["x1", "one_"], ["then"])], ["then"]),
              else_branch=body([node("Identity", ["x1"], ["else"])], ["else"])),
         node("Relu", ["w"], ["y"])], "",
    ),
    "an If whose condition is data": (
        [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["has"], to=BOOL),
         node("If", ["has"], ["w"],
              then_branch=body([node("Squeeze", ["x1", "one_"], ["then"])], ["then"]),
              else_branch=body([node("Identity", ["x1"], ["else"])], ["else"])),
         node("Relu", ["w"], ["y"])], "w y",
    ),
    "a Loop that grows": (
        [node("Loop", ["two0", "", "x"], ["y"], body=body(
            [node("Identity", ["c"], ["c2"]), node("Concat", ["v", "x"], ["v2"], axis=0)], ["c2", "v2"],
            inputs=[value("i", (), INT64), value("c", (), BOOL), value("v", None)]))], "y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_told_is_what_a_run_has(name: str, tmp_path: Path) -> None:
    nodes, unknown = CHAINS[name]
    front = [node("Unsqueeze", ["x", "one"], ["x1"])]
    inits = {**INITS, "one_": ints(1), "two0": np.int64(2)}
    model = saved([*SHAPE, *front, *nodes], ["y"], tmp_path, inits)
    compared(model, {"x": X}, unknown.split())


def step(kind: str, number: int, source: str) -> tuple[list[Any], str]:
    """Nodes that make a tensor of rank 3 of one, by numbers that they compute from its shape; and their result."""
    to, s, d, out = (f"{part}{number}" for part in ("to", "s", "d", "out"))
    parts = [node("Shape", [source], [s]), node("Split", [s], [f"{d}a", f"{d}b", f"{d}c"])]
    match kind:
        case "swap":
            parts.append(node("Concat", [f"{d}b", f"{d}a", f"{d}c"], [to], axis=0))
            return [*parts, node("Reshape", [source, to], [out])], out
        case "flat":
            parts += [node("Mul", [f"{d}b", f"{d}c"], [f"{d}m"])]
            parts += [node("Concat", [f"{d}a", f"{d}m", "one"], [to], axis=0)]
            return [*parts, node("Reshape", [source, to], [out])], out
        case "tile":
            parts.append(node("Concat", ["one", "two", "one"], [to], axis=0))
            return [*parts, node("Tile", [source, to], [out])], out
        case "half":
            parts += [node("Add", [f"{d}b", "one"], [f"{d}e"]), node("Div", [f"{d}e", "two"], [f"{d}h"])]
            return [*parts, node("Slice", [source, "zero", f"{d}h", "one"], [out])], out
        case "grow":
            parts += [node("Concat", [f"{d}a", "one", f"{d}c"], [to], axis=0), node("ConstantOfShape", [to], [f"{d}z"])]
            return [*parts, node("Concat", [source, f"{d}z"], [out], axis=1)], out
        case "turn":
            return [node("Transpose", [source], [out], perm=[1, 2, 0])], out
        case _:
            parts += [node("Squeeze", [f"{d}c", "zero"], [f"{d}l"]), node("Range", ["i0", f"{d}l", "i1"], [f"{d}r"])]
            parts += [node("Cast", [f"{d}r"], [f"{d}f"], to=FLOAT)]
            return [*parts, node("Add", [source, f"{d}f"], [out])], out


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from(["swap", "flat", "tile", "half", "grow", "turn", "range"]), min_size=1, max_size=6),
    extents=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)),
)
def test_chains_are_told_as_they_run(kinds: list[str], extents: tuple[int, int, int], tmp_path: Path) -> None:
    nodes, source = [], "x"
    for number, kind in enumerate(kinds):
        made, source = step(kind, number, source)
        nodes += made
    model = saved(nodes, [source], tmp_path, INITS, [value("x", ("A", None, "C"))])
    compared(model, {"x": np.zeros(extents, np.float32)})


NODES = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
NODE_TESTS = [*sorted(NODES.iterdir())[5::36], NODES / "test_stft", NODES / "test_group_normalization_example"]
"""A sample, and two that onnx's own inference has wrong and not at all."""


def _open(folder: Path) -> tuple[onnx.ModelProto, dict[str, Any]] | None:
    """A node test with every extent a symbol and its shorter inputs constants; its other inputs."""
    proto = onnx.load(folder / "model.onnx")
    feeds: dict[str, Any] = {}
    for number, info in enumerate(list(proto.graph.input)):
        stored = folder / "test_data_set_0" / f"input_{number}.pb"
        if info.type.WhichOneof("value") != "tensor_type" or not stored.exists():
            return None
        tensor = onnx.TensorProto.FromString(stored.read_bytes())
        tensor.name = info.name
        if number and np.prod(tensor.dims) <= 8 and tensor.data_type in (FLOAT, INT64, BOOL):
            proto.graph.initializer.append(tensor)
            proto.graph.input.remove(info)
            continue
        feeds[info.name] = numpy_helper.to_array(tensor)
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            dim.dim_param = f"{info.name}_{axis}"
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]
    return proto, feeds


def test_onnxs_own_models_are_told_as_they_run(tmp_path: Path) -> None:
    checked = left = 0
    told_alike = {"test_group_normalization_example"}
    for folder in NODE_TESTS:
        opened = _open(folder)
        if opened is None:
            continue
        try:
            model = kept(opened[0], tmp_path)
            real = ran(model, opened[1])
        except Exception:  # some need what is not installed here, or are none without their types
            continue
        found = told(model, {name: array.shape for name, array in opened[1].items()})
        wrong = {name: (found[name], shape) for name, shape in real.items() if found.get(name, shape) != shape}
        assert not wrong, folder.name
        if real.keys() <= found.keys():
            told_alike.discard(folder.name)
        checked += len(real)
        left += len(real.keys() - found.keys())
    assert checked > 80
    assert not told_alike
    assert left < checked / 10


def test_numbers_of_any_size_are_not_computed(tmp_path: Path) -> None:
    """Only their shapes are: these would take terabytes."""
    model = saved(
        [node("ConstantOfShape", ["big"], ["zeros"]), node("Range", ["i0", "huge", "i1"], ["r"]),
         node("Neg", ["r"], ["y"])],
        ["y", "zeros"], tmp_path, {**INITS, "big": ints(10**6, 10**7), "huge": np.int64(10**12)},
    )  # fmt: skip
    found = told(model, {})
    assert (found["zeros"], found["y"]) == ((10**6, 10**7), (10**12,))


@pytest.mark.parametrize("op", ["RandomUniform", "RandomNormal"])
def test_what_is_drawn_at_random_is_no_constant(op: str, tmp_path: Path) -> None:
    nodes = [
        node(op, [], ["r"], shape=[1], seed=1.0),
        node("Cast", ["r"], ["c"], to=INT64),
        node("ConstantOfShape", ["c"], ["y"]),
    ]
    found = told(saved(nodes, ["y"], tmp_path), {})
    assert found["c"] == (1,)
    assert "y" not in found


def test_weights_are_not_read(tmp_path: Path) -> None:
    weight = np.zeros((4, 4096), np.float32)
    nodes = [*SHAPE, node("MatMul", ["x", "w"], ["h"]), node("Concat", ["n1", "minus"], ["to"], axis=0)]
    nodes += [
        node("Reshape", ["h", "to"], ["y"]),
        node("Constant", [], ["k"], value=numpy_helper.from_array(weight.T, "k")),
    ]
    nodes += [node("MatMul", ["h", "k"], ["z"])]
    model = saved(nodes, ["y", "z"], tmp_path, {**INITS, "w": weight}, external=True)
    os.truncate(tmp_path / "weights.bin", 8192)  # the small constants come first, and are there
    found = told(model, {"x": (2, 3, 4)})
    assert (found["y"], found["z"]) == ((2, 3 * 4096), (2, 3, 4))


def test_external_data_is_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the model's folder, as here, nor in the current one, where onnx would look by default."""
    table = np.arange(3000, dtype=np.int64)  # few enough elements to be computed with, too many bytes to be kept
    nodes = [node("Gather", ["table", "two"], ["a"]), node("ConstantOfShape", ["a"], ["y"])]
    nodes += [
        node("Constant", [], ["k"], value=numpy_helper.from_array(table, "k")),
        node("Gather", ["k", "two"], ["b"]),
    ]
    nodes += [node("ConstantOfShape", ["b"], ["z"])]
    inits = {"table": table, "two": ints(2)}
    model = saved(nodes, ["y", "z"], tmp_path, inits, external=True)
    monkeypatch.chdir(tmp_path)
    found = told(model, {})
    assert (found["a"], found["b"]) == ((1,), (1,))
    assert not {"y", "z"} & found.keys()


def test_an_unknown_operator_has_what_the_file_states_of_it(tmp_path: Path) -> None:
    """Numbers, and symbols of the inputs; others, and what contradicts the operands, tell nothing."""
    nodes = [
        node("Odd", ["x"], ["stated"], domain="strange"),
        node("Relu", ["stated"], ["after"]),
        node("Odd", ["x"], ["foreign"], domain="strange"),
        node("Odd", ["x"], ["silent"], domain="strange"),
        node("Relu", ["x"], ["stale"]),
        node("Relu", ["stale"], ["y"]),
    ]
    inner = [value("stated", ("N", 7)), value("foreign", ("unk__9", 7)), value("stale", (1, 1, 4))]
    found = told(saved(nodes, ["y", "after"], tmp_path, inner=inner, domains=["strange"]), {"x": (2, 3, 4)})
    assert found == {"x": (2, 3, 4), "stated": (2, 7), "after": (2, 7), "stale": (2, 3, 4), "y": (2, 3, 4)}


def test_functions_compute_shapes_too(tmp_path: Path) -> None:
    made = [
        node("Shape", ["a"], ["s"]),
        node("Constant", [], ["m"], value_ints=[-1]),
        node("Slice", ["s", "k", "l"], ["part"]),
        node("Concat", ["part", "m"], ["to"], axis=0),
        node("Reshape", ["a", "to"], ["b"]),
        node("Constant", [], ["k"], value_ints=[0]),
        node("Constant", [], ["l"], value_ints=[2]),
    ]
    function = helper.make_function(
        "ours", "Fold", ["a"], ["b"], [made[5], made[6], *made[:5]], [helper.make_opsetid("", 17)]
    )
    inputs = [value("x", ("N", "T", 4, 5))]
    nodes = [node("Fold", ["x"], ["h"], domain="ours"), node("Relu", ["h"], ["y"])]
    model = saved(nodes, ["y"], tmp_path, inputs=inputs, functions=[function], domains=["ours"])
    compared(model, {"x": np.zeros((2, 3, 4, 5), np.float32)})


def test_an_input_that_is_not_named_stays_as_the_file_states_it(tmp_path: Path) -> None:
    inputs = [value("x", ("N", 4)), value("fixed", (3, 4)), value("open", ("M", 4))]
    nodes = [node("Relu", [name], [f"{name}.y"]) for name in ("x", "fixed", "open")]
    found = told(saved(nodes, ["x.y"], tmp_path, inputs=inputs), {"x": (2, 4)})
    assert found == {"x": (2, 4), "x.y": (2, 4), "fixed": (3, 4), "fixed.y": (3, 4)}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"z": (1,)}, "no input 'z'"),
        ({"x": (2, 3)}, r"\[N, T, 4\], not as \[2, 3\]"),
        ({"x": (2, 3, 5)}, r"\[N, T, 4\], not as \[2, 3, 5\]"),
        ({"x": (2, -3, 4)}, "not as"),
        ({"i0": ()}, "no input 'i0'"),
    ],
)
def test_inputs_that_contradict_the_model_are_refused(inputs: Any, says: str, tmp_path: Path) -> None:
    model = saved([*SHAPE, node("Relu", ["x"], ["y"])], ["y"], tmp_path, INITS)
    with pytest.raises(ModelError, match=says):
        FORMAT.shapes_at(model, inputs)


def test_operands_that_do_not_fit_tell_nothing_and_raise_nothing(tmp_path: Path) -> None:
    inputs = [value("x", ("N", 4)), value("z", ("M", 4))]
    nodes = [node("Add", ["x", "z"], ["sum"]), node("Relu", ["x"], ["y"])]
    found = told(saved(nodes, ["sum", "y"], tmp_path, inputs=inputs), {"x": (2, 4), "z": (3, 4)})
    assert found == {"x": (2, 4), "z": (3, 4), "y": (2, 4)}


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    model = saved([node("Relu", ["x"], ["y"])], ["y"], tmp_path)
    saved([node("Relu", ["x"], ["h"]), node("Relu", ["h"], ["y"])], ["y"], tmp_path)
    with pytest.raises(ModelError, match="has changed since"):
        FORMAT.shapes_at(model, {"x": (2, 3, 4)})


# Asked in a child, and kept.


class Here(Children):
    """Children that are this process; they count the calls."""

    calls = 0

    def get(self, label: str) -> Any:
        return self

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        self.calls += 1
        return function(*args)


class Odd(OnnxFormat):
    """Answers as it is told to."""

    answer: Any = None

    def shapes_at(self, model: Model, inputs: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.discover(Store(tmp_path / "cache"), [])


@pytest.fixture
def relu(tmp_path: Path) -> Model:
    return saved([node("Relu", ["x"], ["y"])], ["y"], tmp_path / "relu")


def test_shapes_are_asked_in_a_child_once(registry: Registry, relu: Model) -> None:
    with Children() as children:
        model = open_model(relu.files["model"], registry, children)
        assert shapes_at(model, {"x": (2, 3, 4)}, registry, children) == {0: (2, 3, 4), 1: (2, 3, 4)}
    here = Here()
    assert shapes_at(model, {"x": (2, 3, 4)}, registry, here) == {0: (2, 3, 4), 1: (2, 3, 4)}
    assert here.calls == 0
    assert shapes_at(model, {"x": (5, 3, 4)}, registry, here) == {0: (5, 3, 4), 1: (5, 3, 4)}
    with pytest.raises(ModelError, match="no input"):
        shapes_at(model, {"z": (5, 3, 4)}, registry, here)
    assert here.calls == 2


@pytest.mark.parametrize("error", [BuildFailed("no"), ChildFailed("it crashed")])
def test_a_format_that_fails_tells_nothing_and_is_asked_again(
    error: Exception, registry: Registry, relu: Model
) -> None:
    odd, here = Odd(), Here()
    registry.formats["onnx"] = odd
    odd.answer = error
    assert shapes_at(relu, {"x": (2, 3, 4)}, registry, here) == {}
    odd.answer = {0: (2, 3, 4)}
    assert shapes_at(relu, {"x": (2, 3, 4)}, registry, here) == {0: (2, 3, 4)}


@pytest.mark.parametrize(
    "answer",
    [None, [(2, 3)], {"x": (2, 3, 4)}, {7: (2, 3, 4)}, {-1: (2,)}, {0: "abc"}, {0: (2, None, 4)}, {0: (2.0, 3, 4)},
     {0: (-1, 3, 4)}, {True: (2, 3, 4)}],
)  # fmt: skip
def test_an_answer_that_is_none_is_refused(answer: Any, registry: Registry, relu: Model) -> None:
    odd = Odd()
    registry.formats["onnx"] = odd
    odd.answer = answer
    with pytest.raises(ModelError, match="format plugin's author"):
        shapes_at(relu, {"x": (2, 3, 4)}, registry, Here())


def test_a_shape_of_another_rank_is_dropped(registry: Registry, relu: Model) -> None:
    odd = Odd()
    registry.formats["onnx"] = odd
    odd.answer = {0: (2, 3), 1: (2, 3, 4)}
    assert shapes_at(relu, {"x": (2, 3, 4)}, registry, Here()) == {1: (2, 3, 4)}
