"""The ONNX format: finding, completing and reading models, good and broken ones."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from paddock.errors import ModelError
from paddock.graph import BITS, Graph
from paddock.onnx_format import LIST_LIMIT, OnnxFormat

FORMAT = OnnxFormat()
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def value(name: str, shape: Any, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Any,
    inputs: Any = None,
    outputs: Any = None,
    *,
    inits: Any = (),
    opset: int = 17,
    ir: int = 8,
    functions: Any = (),
    domains: Any = (),
    sparse: Any = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", ["N", 4])] if inputs is None else inputs,
        [value("y", None)] if outputs is None else outputs,
        initializer=list(inits),
        sparse_initializer=list(sparse),
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=list(functions))


def relu() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"])])


def read(proto: onnx.ModelProto | bytes, folder: Path) -> Graph:
    path = folder / "model.onnx"
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    files = FORMAT.locate(path)
    assert files is not None
    return FORMAT.read(FORMAT.complete(files))


def by_name(graph: Graph) -> dict[str, Any]:
    return {v.name: v for v in graph.values}


def check(graph: Graph) -> None:
    """What every graph promises, checked without the reader's help."""
    json.dumps([dict(n.attributes) for n in graph.nodes], allow_nan=False)
    assert len({v.name for v in graph.values}) == len(graph.values)
    assert all(v.dtype is None or v.dtype in BITS or v.dtype == "string" for v in graph.values)
    known = {*graph.inputs, *graph.initializers}
    produced = {o for n in graph.nodes for o in n.outputs if o is not None}
    known |= set(range(len(graph.values))) - produced  # captures of a body
    for position, node in enumerate(graph.nodes):
        assert node.index == position
        assert {i for i in (*node.inputs, *node.captures) if i is not None} <= known, node.label
        known |= {o for o in node.outputs if o is not None}
        for body in node.subgraphs:
            check(body)
            own = {*body.inputs, *body.initializers, *(o for n in body.nodes for o in n.outputs if o is not None)}
            free = {v.name for i, v in enumerate(body.values) if i not in own}
            assert free == {n for n in free if n in {graph.values[c].name for c in node.captures}}
    assert set(graph.outputs) <= known


# Finding.


def test_locates_a_file_a_folder_and_a_stem(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(relu(), path)
    for given_path in (path, tmp_path, tmp_path / "net"):
        assert FORMAT.locate(given_path) == {"model": path}


def test_leaves_what_is_not_onnx_to_others(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for path in (tmp_path, tmp_path / "other.json", tmp_path / "absent", tmp_path / "absent.json"):
        assert FORMAT.locate(path) is None


def test_a_folder_with_several_models_lists_them(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.ONNX"):
        onnx.save(relu(), tmp_path / name)
    with pytest.raises(ModelError) as error:
        FORMAT.locate(tmp_path)
    assert error.value.candidates == ("a.onnx", "b.ONNX")


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    onnx.save(relu(), tmp_path / "resnet.onnx")
    with pytest.raises(ModelError, match=r"resnet\.onnx"):
        FORMAT.locate(tmp_path / "resnat.onnx")


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".onnx", "a\0b", "a\0b.onnx"])
def test_impossible_names_are_none_or_an_error(tmp_path: Path, name: str) -> None:
    with contextlib.suppress(ModelError):
        assert FORMAT.locate(tmp_path / name) is None


# Reading.


def test_reads_every_backend_node_test() -> None:
    cases = load_model_tests(kind="node")
    assert len(cases) >= 1288
    for case in cases:
        path = Path(case.model_dir) / "model.onnx"
        graph = FORMAT.read({"model": path})
        proto = onnx.load(path)
        assert [n.op for n in graph.nodes] == [n.op_type for n in proto.graph.node], case.name
        assert [v.name for v in graph.output_values] == [o.name for o in proto.graph.output], case.name
        check(graph)


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_reads_the_light_models_with_every_shape(path: Path) -> None:
    graph = FORMAT.read({"model": path})
    check(graph)
    # Inference knows no mask of an old Dropout; nothing reads it.
    read_ones = {i for node in graph.nodes for i in node.inputs if i is not None} | {*graph.outputs}
    assert all(graph.values[i].shape is not None and graph.values[i].dtype is not None for i in read_ones)
    proto = onnx.load(path)
    assert graph.weight_bytes == sum(numpy_helper.to_array(t).nbytes for t in proto.graph.initializer)
    names = {t.name for t in proto.graph.initializer}
    assert [v.name for v in graph.input_values] == [i.name for i in proto.graph.input if i.name not in names]


def test_symbols_are_kept_and_anonymous_dimensions_named(tmp_path: Path) -> None:
    graph = read(model([helper.make_node("Relu", ["x"], ["y"])], [value("x", ["N", None, -1, 3])]), tmp_path)
    assert graph.input_values[0].shape == ("N", "x.1", "x.2", 3)
    assert graph.output_values[0].shape == ("N", "x.1", "x.2", 3)
    assert graph.symbols() == ("N", "x.1", "x.2")


def test_an_anonymous_dimension_never_takes_a_used_symbol(tmp_path: Path) -> None:
    graph = read(
        model([helper.make_node("Add", ["x", "z"], ["y"])], [value("x", [None]), value("z", ["x.0"])]), tmp_path
    )
    assert graph.input_values[0].shape == ("x.0_",)


def test_shapes_follow_data_through_shape_and_reshape(tmp_path: Path) -> None:
    inits = [numpy_helper.from_array(np.array([0]), "zero"), numpy_helper.from_array(np.array([-1]), "rest")]
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    graph = read(model(nodes, [value("x", ["N", 3, 4])], inits=inits), tmp_path)
    shape = graph.output_values[0].shape
    assert shape is not None and shape[0] == "N" and len(shape) == 2


def test_inputs_that_are_initializers_are_no_inputs(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", [1, 4]), value("w", [4, 2])], inits=[weight], ir=3
    )
    graph = read(proto, tmp_path)
    assert [v.name for v in graph.input_values] == ["x"]
    assert graph.weight_bytes == 32


def test_optional_inputs_and_outputs_left_out_are_none(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Clip", ["x", "", "high"], ["c"], name="clip"),
        helper.make_node("Dropout", ["c"], ["y", ""]),
    ]
    graph = read(model(nodes, inits=[numpy_helper.from_array(np.float32(1), "high")]), tmp_path)
    assert graph.nodes[0].inputs[1] is None and graph.nodes[0].name == "clip"
    assert graph.nodes[1].outputs[1] is None


def test_constants_stay_nodes_and_attributes_are_json(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones((4, 3), np.float16))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor),
        helper.make_node("Odd", ["x", "c"], ["y"], domain="acme", f=float("inf"), s="text", b=b"\xff", i=3, fs=[1.0]),
        helper.make_node("Odd", ["x"], ["z"], domain="acme", long=list(range(LIST_LIMIT + 1))),
    ]
    graph = read(model(nodes, domains=["acme"]), tmp_path)
    assert graph.nodes[0].attributes == {"value": {"tensor": "float16", "shape": [4, 3]}}
    assert not graph.initializers
    assert graph.nodes[1].attributes == {"f": "inf", "s": "text", "b": repr(b"\xff"), "i": 3, "fs": [1.0]}
    assert graph.nodes[2].attributes == {"long": {"list": "ints", "length": LIST_LIMIT + 1}}
    assert graph.nodes[1].type == "acme.Odd"
    assert graph.opsets == {"": 17, "acme": 1}


def test_control_flow_has_bodies_and_captures(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Add", ["x", "h"], ["i"])], "inner", [], [value("i", None)])
    nested = helper.make_node("If", ["c"], ["b"], then_branch=inner, else_branch=inner)
    then = helper.make_graph([helper.make_node("Neg", ["h"], ["t"])], "then", [], [value("t", None)])
    other = helper.make_graph([nested], "else", [], [value("b", None)])
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    graph = read(model(nodes, [value("x", ["N", 4]), value("c", [], TensorProto.BOOL)]), tmp_path)
    check(graph)
    node = graph.nodes[1]
    assert {graph.values[i].name for i in node.captures} == {"x", "h", "c"}
    bodies = {name: node.subgraphs[entry["subgraph"]] for name, entry in node.attributes.items()}
    assert [n.op for n in bodies["then_branch"].nodes] == ["Neg"]
    assert by_name(bodies["then_branch"])["t"].shape == ("N", 4)
    assert [n.op for n in graph.walk()].count("Add") == 2


def test_kinds_and_dtypes(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.STRING, None)
    inner = helper.make_tensor_type_proto(TensorProto.BFLOAT16, [2])
    optional = helper.make_value_info("o", helper.make_optional_type_proto(inner))
    mapped = helper.make_value_info("m", helper.make_map_type_proto(TensorProto.INT64, inner))
    nodes = [helper.make_node("Odd", ["s", "o", "m"], ["y"], domain="acme")]
    graph = read(model(nodes, [sequence, optional, mapped], [value("y", [1])], domains=["acme"]), tmp_path)
    assert [(v.kind, v.dtype, v.shape) for v in graph.input_values] == [
        ("sequence", "string", None),
        ("optional", "bfloat16", (2,)),
        ("map", None, None),
    ]


@pytest.mark.parametrize("dtype", sorted(TensorProto.DataType.values())[1:])
def test_every_dtype_of_onnx_has_a_size(tmp_path: Path, dtype: int) -> None:
    graph = read(
        model(
            [helper.make_node("Identity", ["x"], ["y"])],
            [value("x", [3], dtype)],
            [value("y", None, dtype)],
            opset=22,
            ir=10,
        ),
        tmp_path,
    )
    name = graph.input_values[0].dtype
    assert name == "string" or name in BITS
    assert graph.output_values[0].dtype == name


def test_sizes_of_strings_int4_and_sparse_constants(tmp_path: Path) -> None:
    strings = helper.make_tensor("t", TensorProto.STRING, [2], [b"ab", b"cde"])
    nibbles = helper.make_tensor("n", TensorProto.INT4, [3], [1, 2, 3])
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("sp", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("sp_index", TensorProto.INT64, [2], [0, 5]),
        [2, 3],
    )
    nodes = [helper.make_node("Odd", ["x", "t", "n", "sp"], ["y"], domain="acme")]
    graph = read(model(nodes, inits=[strings, nibbles], sparse=[sparse], domains=["acme"], opset=21, ir=10), tmp_path)
    assert {graph.values[i].name: size for i, size in graph.initializers.items()} == {"t": 5, "n": 2, "sp": 24}
    assert by_name(graph)["sp"].shape == (2, 3)


def test_the_standards_domain_has_one_spelling(tmp_path: Path) -> None:
    proto = relu()
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"
    graph = read(proto, tmp_path)
    assert graph.nodes[0].type == "Relu" and graph.opsets == {"": 17}


def test_functions_of_the_model_infer_through(tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("me", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    graph = read(
        model([helper.make_node("F", ["x"], ["y"], domain="me")], functions=[function], domains=["me"]), tmp_path
    )
    assert graph.nodes[0].type == "me.F" and graph.output_values[0].shape == ("N", 4)


def test_fifty_thousand_nodes(tmp_path: Path) -> None:
    count = 50_000
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i in range(count)]
    graph = read(model(nodes, [value("v0", ["N", 4])], [value(f"v{count}", None)]), tmp_path)
    assert len(graph.nodes) == count and graph.output_values[0].shape == ("N", 4)
    check(graph)


def test_weights_are_not_loaded(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((4, 4_000_000), np.float32), "w")
    path = tmp_path / "model.onnx"
    onnx.save(model([helper.make_node("MatMul", ["x", "w"], ["y"])], inits=[weight]), path)
    del weight
    tracemalloc.start()
    try:
        graph = FORMAT.read(FORMAT.complete({"model": path}))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert graph.weight_bytes == 64_000_000 and graph.output_values[0].shape == ("N", 4_000_000)
    assert peak < 4_000_000


# External data.


def external(folder: Path, threshold: int = 0) -> Path:
    """Two weights in w.bin, a small target of a Reshape in it too."""
    inits = [
        numpy_helper.from_array(np.ones((4, 4096), np.float32), "w"),
        numpy_helper.from_array(np.array([-1, 2, 2048]), "target"),
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Reshape", ["m", "target"], ["y"])]
    path = folder / "model.onnx"
    proto = model(nodes, [value("x", [3, 4])], inits=inits)
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=threshold)
    return path


def rewrite(path: Path, **entries: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())


def test_external_data_belongs_to_the_files(tmp_path: Path) -> None:
    path = external(tmp_path)
    files = FORMAT.complete({"model": path})
    assert files == {"model": path, "data/w.bin": tmp_path / "w.bin"}
    graph = FORMAT.read(files)
    assert graph.weight_bytes == 4 * 4096 * 4 + 24
    assert graph.output_values[0].shape == (3, 2, 2048)


def test_external_data_in_a_folder_below(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "w.bin").rename(tmp_path / "data/w.bin")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = "./data/w.bin"
    path.write_bytes(proto.SerializeToString())
    assert FORMAT.complete({"model": path})["data/data/w.bin"] == tmp_path / "data/w.bin"


def test_external_data_of_a_constants_attribute(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones((2, 3), np.float32), "c")
    onnx.external_data_helper.set_external_data(tensor, "c.bin")
    tensor.ClearField("raw_data")
    path = tmp_path / "model.onnx"
    path.write_bytes(model([helper.make_node("Constant", [], ["y"], value=tensor)], []).SerializeToString())
    with pytest.raises(ModelError, match=r"c\.bin"):
        FORMAT.complete({"model": path})
    (tmp_path / "c.bin").write_bytes(bytes(24))
    assert FORMAT.read(FORMAT.complete({"model": path})).output_values[0].shape == (2, 3)


def test_missing_external_data_names_file_and_tensor(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").unlink()
    for step in (FORMAT.complete, FORMAT.read):
        with pytest.raises(ModelError, match=r"'w\.bin' of the tensor 'w' is missing"):
            step({"model": path})


def test_short_external_data_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:-1])
    with pytest.raises(ModelError, match="truncated"):
        FORMAT.complete({"model": path})


@pytest.mark.parametrize("location", ["/etc/passwd", "../w.bin", "a/../../w.bin", "", ".", "..", "a\0b"])
def test_locations_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "m").mkdir()
    path = external(tmp_path / "m")
    (tmp_path / "w.bin").write_bytes((tmp_path / "m/w.bin").read_bytes())
    rewrite(path, location=location)
    with pytest.raises(ModelError, match="not in the model's folder"):
        FORMAT.complete({"model": path})


def test_links_out_of_the_folder_are_refused_and_a_cache_of_links_is_not(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    model_path = external(blobs)
    (snapshot / "w.bin").symlink_to(blobs / "w.bin")
    copy = snapshot / "copy.onnx"
    copy.write_bytes(model_path.read_bytes())
    with pytest.raises(ModelError, match="a link out of"):
        FORMAT.complete({"model": copy})
    (snapshot / "model.onnx").symlink_to(model_path)
    assert "data/w.bin" in FORMAT.complete({"model": snapshot / "model.onnx"})


@pytest.mark.parametrize("entries", [{"offset": "-4"}, {"offset": "many"}, {"length": "3"}, {"offset": "999999999999"}])
def test_impossible_offsets_and_lengths_are_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    path = external(tmp_path)
    rewrite(path, **entries)
    with pytest.raises(ModelError):
        FORMAT.complete({"model": path})


# Broken models.


def _cycle() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("me", 1)]
    body = [helper.make_node("F", ["a"], ["b"], domain="me")]
    function = helper.make_function("me", "F", ["a"], ["b"], body, opsets)
    return model([helper.make_node("F", ["x"], ["y"], domain="me")], functions=[function], domains=["me"])


def _short(**field: Any) -> onnx.ModelProto:
    weight = onnx.TensorProto(name="w", data_type=1, dims=[4, 4], **field)
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], inits=[weight])


BROKEN: dict[str, tuple[Any, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"hello world, this is no model", "ONNX model"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "ONNX model"),
    "zip": (b"PK\x03\x04" + bytes(100), "ONNX model"),
    "truncated": (relu().SerializeToString()[:-5], "ONNX model"),
    "no graph": (onnx.ModelProto(ir_version=8), "no graph"),
    "graph only": (relu().graph.SerializeToString(), "ONNX model"),
    "newer IR": (model([helper.make_node("Relu", ["x"], ["y"])], ir=99), "IR version 99"),
    "newer opset": (model([helper.make_node("Relu", ["x"], ["y"])], opset=99), "opset 99"),
    "unknown operator": (model([helper.make_node("Rleu", ["x"], ["y"])]), "Rleu"),
    "unknown domain": (model([helper.make_node("Relu", ["x"], ["y"], domain="who")]), "who"),
    "unsorted": (
        model([helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])]),
        "topologically sorted",
    ),
    "no such output": (model([helper.make_node("Relu", ["x"], ["z"])]), "'y'"),
    "written twice": (model([helper.make_node("Relu", ["x"], ["y"])] * 2), "SSA|single assignment"),
    "untyped input": (model([helper.make_node("Relu", ["x"], ["y"])], [onnx.ValueInfoProto(name="x")]), "no type"),
    "unknown dtype": (model([helper.make_node("Relu", ["x"], ["y"])], [value("x", [1], 77)]), "77"),
    "short raw data": (_short(raw_data=bytes(60)), "60 bytes"),
    "short float data": (_short(float_data=[0.0] * 15), "15 elements"),
    "no data": (_short(), "0 elements"),
    "recursive function": (_cycle(), "call themselves"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models_are_refused_by_name(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    with pytest.raises(ModelError, match=message) as error:
        read(content, tmp_path)
    assert error.value.where == str(tmp_path / "model.onnx")
    assert error.value.remedy


def test_large_tensors_are_checked_too(tmp_path: Path) -> None:
    weight = onnx.TensorProto(name="w", data_type=1, dims=[4, 40_000], raw_data=bytes(100_000))
    with pytest.raises(ModelError, match="100000 bytes"):
        read(model([helper.make_node("MatMul", ["x", "w"], ["y"])], inits=[weight]), tmp_path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "b", [], [value("y", None)])
    content = body.SerializeToString()
    for _ in range(3000):
        attribute = onnx.AttributeProto(name="then_branch", type=onnx.AttributeProto.GRAPH).SerializeToString()
        attribute += b"\x32" + _varint(len(content)) + content
        node = b"\x2a" + _varint(len(attribute)) + attribute
        content = b"\x0a" + _varint(len(node)) + node
    with pytest.raises(ModelError):
        read(b"\x08\x08\x3a" + _varint(len(content)) + content, tmp_path)


def _varint(number: int) -> bytes:
    out = []
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def _specimen() -> bytes:
    inner = helper.make_graph([helper.make_node("Neg", ["h"], ["t"])], "then", [], [value("t", None)])
    other = helper.make_graph([helper.make_node("Abs", ["h"], ["e"])], "else", [], [value("e", None)])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("If", ["c"], ["b"], then_branch=inner, else_branch=other),
        helper.make_node("Reshape", ["b", "target"], ["r"]),
        helper.make_node("Softmax", ["r"], ["y"], axis=-1),
    ]
    inits = [
        numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w"),
        numpy_helper.from_array(np.array([0, -1]), "target"),
    ]
    inputs = [value("x", ["N", 3, None, None]), value("c", [], TensorProto.BOOL)]
    content: bytes = model(nodes, inputs, inits=inits).SerializeToString()
    return content


SPECIMEN = _specimen()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SPECIMEN) - 1), st.integers(0, 255)), max_size=8),
    cut=st.none() | st.integers(0, len(SPECIMEN)),
)
def test_altered_bytes_give_a_graph_or_a_model_error(
    tmp_path: Path, flips: list[tuple[int, int]], cut: int | None
) -> None:
    content = bytearray(SPECIMEN)
    for place, byte in flips:
        content[place] = byte
    try:
        check(read(bytes(content[:cut]), tmp_path))
    except ModelError as error:
        assert error.where
