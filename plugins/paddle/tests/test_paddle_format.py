"""The paddle format: what is found, read, refused, and converted."""

from __future__ import annotations

import collections
import copy
import importlib.util
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paddock.child import call_in_child
from paddock.errors import ModelError, NotAvailable, Unsupported
from paddock.graph import BITS, Graph
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.samples import generate
from paddock_paddle.export import cause
from paddock_paddle.format import PaddleFormat, open_program
from paddock_paddle.neutral import neutral

FORMAT = PaddleFormat()
EXACT = (
    "recurrent",
    "linear",
    "embedding",
    "condition",
    "loop",
    "mixed",
    "rotary",
    "gathers",
    "infinite",
    "weightless",
    "resnet",
)


def files_of(folder: Path, name: str) -> dict[str, Path]:
    found = FORMAT.locate(folder / name)
    assert found is not None
    return dict(found)


def model_of(folder: Path, name: str) -> Model:
    files = files_of(folder, name)
    return Model("paddle", files, "test", FORMAT.read(files))


# Finding


def test_either_file_the_stem_and_the_folder_name_one_model(models: Path, tmp_path: Path) -> None:
    for ending in (".json", ".pdiparams"):
        shutil.copy(models / f"linear{ending}", tmp_path)
    pair = {"program": tmp_path / "linear.json", "params": tmp_path / "linear.pdiparams"}
    for path in (tmp_path / "linear.json", tmp_path / "linear.pdiparams", tmp_path / "linear", tmp_path):
        assert FORMAT.locate(path) == pair


@pytest.mark.parametrize("given", ["linear.json", "linear", "."])
def test_a_missing_params_file_is_named(models: Path, tmp_path: Path, given: str) -> None:
    shutil.copy(models / "linear.json", tmp_path)
    with pytest.raises(ModelError, match=r"linear\.pdiparams is missing"):
        FORMAT.locate(tmp_path / given)


@pytest.mark.parametrize("given", ["linear.pdiparams", "linear", "."])
def test_a_missing_program_is_named(models: Path, tmp_path: Path, given: str) -> None:
    shutil.copy(models / "linear.pdiparams", tmp_path)
    with pytest.raises(ModelError, match=r"linear\.json is missing"):
        FORMAT.locate(tmp_path / given)


def test_any_other_json_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hardware": "cpu", "backend": "mkldnn"}')
    (tmp_path / "notes.txt").write_text("")
    for path in ("config.json", "config", ".", "notes.txt", "absent"):
        assert FORMAT.locate(tmp_path / path) is None


def test_a_name_that_does_not_exist_gets_the_nearest(models: Path) -> None:
    with pytest.raises(ModelError, match="did you mean 'linear.json'"):
        FORMAT.locate(models / "liner.json")


def test_a_folder_with_several_models_lists_them(models: Path) -> None:
    with pytest.raises(ModelError) as caught:
        FORMAT.locate(models)
    assert "rotary.json" in caught.value.candidates


@pytest.mark.parametrize("given", ["old.pdmodel", "old.pdiparams", "old", "."])
def test_the_old_representation_is_refused_with_the_way_out(tmp_path: Path, given: str) -> None:
    for name in ("old.pdmodel", "old.pdiparams"):
        (tmp_path / name).write_bytes(b"\x0a\x00")
    with pytest.raises(ModelError, match=r"paddle\.jit\.save"):
        FORMAT.locate(tmp_path / given)


def test_a_program_without_parameters_needs_no_params_file(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "weightless.json", tmp_path)
    files = FORMAT.locate(tmp_path)
    assert files == {"program": tmp_path / "weightless.json"}
    assert FORMAT.read(files).weight_bytes == 0


# Reading


def test_reading_imports_no_paddle(models: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import paddock_paddle.plugin as p\n"
        "(f,) = p.paddock_formats(); f.versions(); [a.probe() for a in p.paddock_adapters()]\n"
        f"f.read(f.locate(Path({str(models / 'linear')!r})))\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('paddle', 'paddle2onnx', 'onnx')])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True).strip() == "[]"


@pytest.mark.parametrize("name", EXACT)
def test_the_graph_is_sound_and_plain_data(models: Path, name: str) -> None:
    graph = FORMAT.read(files_of(models, name))
    json.dumps(asdict(graph), allow_nan=False)
    _check_graph(graph)
    assert not {"pd_op.data", "builtin.parameter", "cf.yield"} & {node.type for node in graph.walk()}


def _check_graph(graph: Graph, captured: int = 0) -> None:
    known = {*graph.inputs, *graph.initializers}
    # A body's captured values come first seen, from outside: they are whatever nothing in it makes.
    made = {v for node in graph.nodes for v in node.outputs if v is not None}
    known |= set(range(len(graph.values))) - made if captured else set()
    for position, node in enumerate(graph.nodes):
        assert node.index == position
        assert {v for v in (*node.inputs, *node.captures) if v is not None} <= known
        for body in node.subgraphs:
            _check_graph(body, captured=len(node.captures))
        known |= {v for v in node.outputs if v is not None}
    assert set(graph.outputs) <= known
    for value in graph.values:
        assert value.dtype is None or value.dtype in BITS


def test_names_symbols_and_weights(models: Path) -> None:
    graph = FORMAT.read(files_of(models, "embedding"))
    assert [(v.name, v.dtype, v.shape) for v in graph.input_values] == [("ids", "int64", ("batch", "ids.1"))]
    assert {v.dtype for v in graph.output_values} == {"float32", "int64"}
    # All but the headers of the file are weights.
    size = (models / "embedding.pdiparams").stat().st_size
    assert 0 < size - graph.weight_bytes < 64 * len(graph.initializers)
    resnet = FORMAT.read(files_of(models, "resnet"))
    assert [v.shape for v in resnet.output_values] == [("batch", 10)]
    assert resnet.nbytes(resnet.nodes[0].outputs[0] or 0) is None  # "batch" is not bounded yet


def test_control_flow_keeps_its_bodies_and_captures(models: Path) -> None:
    (branch,) = [n for n in FORMAT.read(files_of(models, "condition")).nodes if n.type == "pd_op.if"]
    assert len(branch.subgraphs) == 2 and len(branch.captures) == 3  # x, and weight and bias of the layer
    assert not branch.subgraphs[0].inputs and len(branch.subgraphs[0].outputs) == 1
    (loop,) = [n for n in FORMAT.read(files_of(models, "loop")).nodes if n.type == "pd_op.while"]
    assert len(loop.subgraphs[0].inputs) == 2 and len(loop.captures) == 2
    assert len(loop.subgraphs[0].outputs) == 3  # the condition, then the state


def test_numbers_that_json_has_no_word_for(models: Path) -> None:
    graph = FORMAT.read(files_of(models, "infinite"))
    assert "INF" in {node.attributes.get("value") for node in graph.nodes}


@pytest.mark.parametrize("name", EXACT)
def test_operations_types_and_fetches_are_paddles_own(models: Path, name: str) -> None:
    """Op by op against paddle's loader, and the outputs' names and order against the predictor."""
    paddle = pytest.importorskip("paddle")
    files = files_of(models, name)
    paddle.enable_static()
    try:
        executor = paddle.static.Executor(paddle.CPUPlace())
        theirs, feeds, _ = paddle.static.load_inference_model(str(models / name), executor)
    finally:
        paddle.disable_static()
    ours = open_program(files).block.ops
    ops = theirs.global_block().ops
    assert [op.name for op in ours] == [op.name() for op in ops]
    for mine, other in zip(ours, ops, strict=True):
        for (_, kind), value in zip(mine.outputs, other.results(), strict=True):
            if kind.kind == "tensor" and value.initialized():
                assert kind.shape == tuple(value.shape), mine.name
                assert kind.dtype == str(value.dtype).split(".")[-1].lower(), mine.name
    graph = FORMAT.read(files)
    assert [v.name for v in graph.input_values] == feeds
    import paddle.inference as inference

    config = inference.Config(str(files["program"]), str(files.get("params", "")))
    config.disable_gpu()
    config.disable_mkldnn()
    config.enable_new_executor()
    config.enable_new_ir(True)
    config.disable_glog_info()
    assert [v.name for v in graph.output_values] == inference.create_predictor(config).get_output_names()


@pytest.mark.parametrize("name", ["linear", "embedding", "rotary", "gathers", "infinite", "resnet"])
def test_every_extent_that_is_claimed_is_the_one_computed(models: Path, tmp_path: Path, name: str) -> None:
    """Fetches every value of the program, and compares the shapes computed with the graph's symbols."""
    pytest.importorskip("paddle")
    import paddle.inference as inference

    found = neutral(open_program(files_of(models, name)), name)
    graph = found.graph
    wanted = _fetch_everything(models / name, tmp_path / "all", graph, found.nodes)
    config = inference.Config(str(tmp_path / "all.json"), str(tmp_path / "all.pdiparams"))
    config.disable_gpu()
    config.disable_mkldnn()
    config.enable_new_executor()
    config.enable_new_ir(True)
    config.disable_glog_info()
    config.set_optimization_level(0)
    predictor = inference.create_predictor(config)
    sample = generate(graph, FORMAT.gathers, FORMAT.transparent)[-1]
    symbols: dict[Any, int] = {}
    for value in graph.input_values:
        symbols.update(zip(value.shape or (), sample[value.name].shape, strict=True))
        predictor.get_input_handle(value.name).copy_from_cpu(sample[value.name])
    predictor.run()
    claimed = 0
    for fetch, index in wanted.items():
        shape, value = predictor.get_output_handle(fetch).copy_to_cpu().shape, graph.values[index]
        assert value.shape is not None and len(value.shape) == len(shape), value
        for dim, extent in zip(value.shape, shape, strict=True):
            claimed += isinstance(dim, str)
            assert dim is None or symbols.get(dim, dim) == extent, value
    assert claimed


def _fetch_everything(source: Path, target: Path, graph: Graph, positions: tuple[int, ...]) -> dict[str, int]:
    """Writes the program with a fetch for each value that its operations make; value indices by fetch name."""
    shutil.copy(f"{source}.pdiparams", f"{target}.pdiparams")
    data = json.loads(Path(f"{source}.json").read_text())
    block = data["program"]["regions"][0]["blocks"][0]
    ops = block["ops"]
    (pattern, *_) = [op for op in ops if op["#"] == "1.fetch"]
    block["ops"] = [op for op in ops if op["#"] != "1.fetch"]
    wanted: dict[str, int] = {}
    for node, position in zip(graph.nodes, positions, strict=True):
        for index, result in zip(node.outputs, ops[position]["O"], strict=True):
            # What batch normalisation computes beside its answer is for training alone.
            first = node.type != "pd_op.batch_norm_" or index == node.outputs[0]
            if index is None or graph.values[index].kind != "tensor" or not first:
                continue
            if graph.values[index].dtype == "bfloat16":
                continue
            fetch = copy.deepcopy(pattern)
            name = f"value.{len(wanted)}"
            fetch["A"][0]["AT"]["D"], fetch["A"][1]["AT"]["D"] = name, len(wanted)
            fetch["I"][0]["%"], fetch["O"][0] = result["%"], {"%": 10**6 + len(wanted), "TT": result["TT"]}
            block["ops"].append(fetch)
            wanted[name] = index
    Path(f"{target}.json").write_text(json.dumps(data))
    return wanted


# Broken files


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _random(content: bytes) -> bytes:
    return random.Random(0).randbytes(len(content))


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": _cut,
    "one byte short": lambda content: content[:-1],
    "random": _random,
    "zeros": lambda content: bytes(len(content)),
    "with a tail": lambda content: content + b"\0\0\0\0\0",
}


def _read_here(path: Path) -> int:
    files = FORMAT.locate(path)
    assert files is not None
    return len(FORMAT.read(files).nodes)


@pytest.mark.parametrize("ending", [".json", ".pdiparams"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_named(models: Path, tmp_path: Path, ending: str, how: str) -> None:
    for other in (".json", ".pdiparams"):
        shutil.copy(models / f"linear{other}", tmp_path / f"m{other}")
    path = tmp_path / f"m{ending}"
    path.write_bytes(BROKEN[how](path.read_bytes()))
    with pytest.raises(ModelError) as caught:
        _read_here(tmp_path / "m")
    assert str(path) in str(caught.value) and caught.value.remedy


def test_broken_files_are_the_same_from_a_child(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "linear.json", tmp_path / "m.json")
    (tmp_path / "m.pdiparams").write_bytes(_cut((models / "linear.pdiparams").read_bytes()))
    with pytest.raises(ModelError, match=r"m\.pdiparams.*cut off"):
        call_in_child("reading", FORMAT.read, FORMAT.locate(tmp_path / "m"), seconds=60)


@pytest.mark.parametrize(
    ("program", "params", "problem"),
    [
        ("linear", "embedding", "holds .* tensors"),
        ("embedding", "linear", "holds .* tensors"),
        ("infinite", "rotary", "they are not a pair"),
        ("linear", "weightless.json", "no Paddle parameter file"),
    ],
)
def test_files_of_two_models_are_no_pair(models: Path, tmp_path: Path, program: str, params: str, problem: str) -> None:
    shutil.copy(models / f"{program}.json", tmp_path / "m.json")
    shutil.copy(models / (params if "." in params else f"{params}.pdiparams"), tmp_path / "m.pdiparams")
    with pytest.raises(ModelError, match=problem):
        _read_here(tmp_path / "m")


def test_swapped_endings_are_seen(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "linear.json", tmp_path / "m.pdiparams")
    shutil.copy(models / "linear.pdiparams", tmp_path / "m.json")
    with pytest.raises(ModelError, match=r"m\.json: is not JSON"):
        _read_here(tmp_path / "m")


def test_a_parameter_of_another_dtype_is_named(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "infinite.json", tmp_path / "m.json")
    descriptor = bytes([0x08, 6, 0x10, 4])  # float64[4]
    head = struct.pack("<IQIi", 0, 0, 0, len(descriptor))
    (tmp_path / "m.pdiparams").write_bytes(head + descriptor + bytes(32))
    with pytest.raises(ModelError, match=r"holds float64\[4\] where m\.json declares parameter .* float32\[4\]"):
        _read_here(tmp_path / "m")


_HEAD = '"base_code": {"magic": "pir", "version": 4}'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "no Paddle program"),
        ("[]", "no Paddle program"),
        ('{"base_code": {"magic": "pir", "version": 99}}', "version 99"),
        (f'{{{_HEAD}, "program": {{}}}}', "broken Paddle program"),
        (f'{{{_HEAD}, "program": {{"regions": [{{"blocks": [{{"ops": []}}]}}]}}}}', "no output"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_programs_that_are_none(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "m.json").write_text(text)
    (tmp_path / "m.pdiparams").write_bytes(b"")
    with pytest.raises(ModelError, match=problem):
        _read_here(tmp_path / "m")


def test_an_old_value_read_too_early_is_refused(models: Path, tmp_path: Path) -> None:
    data = json.loads((models / "linear.json").read_text())
    ops = data["program"]["regions"][0]["blocks"][0]["ops"]
    ops.reverse()
    (tmp_path / "m.json").write_text(json.dumps(data))
    shutil.copy(models / "linear.pdiparams", tmp_path / "m.pdiparams")
    with pytest.raises(ModelError, match="before it is made"):
        _read_here(tmp_path / "m")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_altered_bytes_give_a_graph_or_a_model_error(models: Path, tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["linear", "condition", "loop", "mixed"]))
    ending = data.draw(st.sampled_from([".json", ".json", ".pdiparams"]))
    for other in (".json", ".pdiparams"):
        shutil.copy(models / f"{name}{other}", tmp_path / f"m{other}")
    content = bytearray((models / f"{name}{ending}").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / f"m{ending}").write_bytes(content)
    try:
        graph = FORMAT.read({"program": tmp_path / "m.json", "params": tmp_path / "m.pdiparams"})
    except ModelError as error:
        assert str(tmp_path) in str(error)
    else:
        json.dumps(asdict(graph))


_TOKENS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["#", "%", "D", "I", "O"]), inner),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_altered_structure_gives_a_graph_or_a_model_error(models: Path, tmp_path: Path, data: st.DataObject) -> None:
    """One place of the JSON tree gets another value of any kind."""
    tree = json.loads((models / f"{data.draw(st.sampled_from(['linear', 'loop', 'gathers']))}.json").read_text())
    places = list(_places(tree["program"]))
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(_TOKENS)
    (tmp_path / "m.json").write_text(json.dumps(tree))
    (tmp_path / "m.pdiparams").write_bytes((models / "linear.pdiparams").read_bytes())
    with_params = {"program": tmp_path / "m.json", "params": tmp_path / "m.pdiparams"}
    try:
        json.dumps(asdict(FORMAT.read(with_params)))
    except ModelError as error:
        assert str(tmp_path) in str(error)


def _places(tree: Any) -> Any:
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


# Samples


def test_generated_indices_stay_in_their_tables(models: Path) -> None:
    # One of the tables of "gathers" has an extent that is not known: then the indices are 0 and 1.
    for name, least, rows in (("embedding", 2, 50), ("gathers", 1, 5)):
        graph = FORMAT.read(files_of(models, name))
        drawn = [s["ids"].max() for s in generate(graph, FORMAT.gathers, FORMAT.transparent)]
        assert least <= max(drawn) < rows


# Conversion


@pytest.fixture(scope="module")
def converted(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Model, Path, Any]]:
    pytest.importorskip("paddle2onnx")
    known: dict[str, tuple[Model, Path, Any]] = {}

    def convert(name: str) -> tuple[Model, Path, Any]:
        if name not in known:
            model = model_of(models, name)
            files, provenance = FORMAT.convert(model, "onnx", tmp_path_factory.mktemp(name))
            known[name] = (model, files["model"], provenance)
        return known[name]

    return convert


CONVERTIBLE = (
    "recurrent",
    "linear",
    "embedding",
    "condition",
    "loop",
    "rotary",
    "gathers",
    "infinite",
    "weightless",
    "resnet",
)


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_every_onnx_node_is_traced(converted: Callable[[str], tuple[Model, Path, Any]], name: str) -> None:
    from paddock_paddle.conversion import untraced

    model, path, provenance = converted(name)
    graph = OnnxFormat().read({"model": path})
    assert len(provenance) == len(graph.nodes)
    assert untraced(provenance) == 0
    assert [v.name for v in graph.input_values] == [v.name for v in model.graph.input_values]
    assert [v.name for v in graph.output_values] == [v.name for v in model.graph.output_values]
    assert [v.shape for v in graph.input_values] == [v.shape for v in model.graph.input_values]
    assert graph.weight_bytes >= 0.9 * model.graph.weight_bytes
    same = {"Conv": "conv2d", "MatMul": "matmul", "Softmax": "softmax", "If": "if", "Loop": "while", "Relu": "relu"}
    for node, sources in zip(graph.nodes, provenance, strict=True):
        ops = {model.graph.nodes[index].op for index in sources}
        if node.op in same and name != "gathers":
            assert f"pd_op.{same[node.op]}" in ops, node
    # And the other way round: what computes in the source has a node.
    covered = {index for sources in provenance for index in sources}
    missing = collections.Counter(n.op for n in model.graph.nodes if n.index not in covered)
    assert not missing - collections.Counter({"pd_op.full": 99, "pd_op.full_int_array": 99, "builtin.combine": 99})


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_the_conversion_answers_as_paddle_does(
    models: Path, converted: Callable[[str], tuple[Model, Path, Any]], name: str
) -> None:
    ort = pytest.importorskip("onnxruntime")
    paddle = pytest.importorskip("paddle")
    model, path, _ = converted(name)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    layer = paddle.jit.load(str(models / name))
    for sample in generate(model.graph, FORMAT.gathers, FORMAT.transparent):
        answers = layer(*(paddle.to_tensor(sample[v.name]) for v in model.graph.input_values))
        wanted = [answers] if not isinstance(answers, (list, tuple)) else answers
        found = session.run([v.name for v in model.graph.output_values], dict(sample))
        for mine, theirs in zip(found, wanted, strict=True):
            scale = float(np.abs(theirs.numpy()).max())
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=1e-5 * max(scale, 1))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("singular", "it lacks pd_op.svd"),
        ("pool", "[OP: pd_op.pool2d] Adaptive only support static input shape."),
        ("resize", "[OP: pd_op.bilinear_interp] (Unimplemented) the 0th elementwise MUST be ir::FloatAttribute"),
    ],
)
def test_what_paddle2onnx_does_not_convert_is_named(models: Path, tmp_path: Path, name: str, why: str) -> None:
    """One class, whether it aborts the process, ends it, or raises."""
    pytest.importorskip("paddle2onnx")
    model = model_of(models, name)
    with pytest.raises(Unsupported) as caught:
        FORMAT.convert(model, "onnx", tmp_path)
    (node,) = caught.value.nodes
    assert model.graph.nodes[node].type in why
    assert caught.value.problem.startswith(f"paddle2onnx cannot convert the model: {why}")
    assert "\n" not in caught.value.problem and "(at /" not in caught.value.problem
    assert str(models / f"{name}.json") == caught.value.where
    assert caught.value.remedy == "choose cpu/paddle or cpu/mkldnn, which take the model as it is"


@pytest.mark.parametrize(
    ("words", "lacking", "why"),
    [
        ("", [], ""),
        ("[Paddle2ONNX] Start parsing\nError Message Summary:\nFatalError: `Process abort signal`", [], ""),
        ("[ERROR][Paddle2ONNX] Due to the unsupported operators, the conversion is aborted.", [], "does not say which"),
        ("[ERROR][Paddle2ONNX] Due to the unsupported operators, ...", ["pd_op.a", "pd_op.b"], "pd_op.a, pd_op.b"),
        ("[ERROR][Paddle2ONNX] There are unsupported features.", [], "There are unsupported features"),
        ("\x1b[0;31m1 [ERROR]\tFailed to convert PaddlePaddle model: no way (at /x.cc:1)\n.\x1b[0m", [], "no way"),
    ],
)
def test_the_cause_is_found_among_paddle2onnxs_words(words: str, lacking: list[str], why: str) -> None:
    found = cause(words, lacking)
    assert found.endswith(why) and bool(found) == bool(why)


def test_without_paddle2onnx_the_remedy_brings_it(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotAvailable, match="not installed") as caught:
        FORMAT.convert(model_of(models, "linear"), "onnx", tmp_path)
    assert caught.value.remedy == "pip install paddock-paddle[sdk]"


def test_there_is_no_other_conversion(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no conversion from paddle to nnef"):
        FORMAT.convert(model_of(models, "linear"), "nnef", tmp_path)
