"""Segments cut out of PIR programs: read again, run on `cpu/paddle` and joined, and converted to ONNX."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.config import HardwareConfig
from paddock.errors import ModelError, NotAvailable, Unsupported
from paddock.graph import Graph, Range
from paddock.model import Model
from paddock.plan import Precision, PrecisionPlan, Segment
from paddock.samples import Sample, generate
from paddock.spi import Context, ResolvedConfig, SegmentMemory, SegmentPlan
from paddock_paddle.adapters import CpuPaddle, PlainOptions
from paddock_paddle.format import PaddleFormat, open_program

FORMAT = PaddleFormat()
Feeds = Mapping[str, np.ndarray[Any, Any]]


def model_of(folder: Path, name: str) -> Model:
    files = FORMAT.locate(folder / name)
    assert files is not None
    return Model("paddle", files, "test", FORMAT.read(files))


def sample_of(model: Model) -> Sample:
    return generate(model.graph, FORMAT.gathers, FORMAT.transparent)[0]


def captured(graph: Graph, nodes: Sequence[int]) -> list[int]:
    """The values that these nodes read, in order."""
    return [
        v for n in nodes for v in dict.fromkeys((*graph.nodes[n].inputs, *graph.nodes[n].captures)) if v is not None
    ]


def segment_of(graph: Graph, nodes: Sequence[int], index: int = 0) -> Segment:
    """The segment of these nodes: what it reads from outside, and what others or the caller read of it."""
    makers = {value: node for node in graph.nodes for value in node.outputs if value is not None}
    constants = {v for v, node in makers.items() if node.type in FORMAT.constants}
    chosen = set(nodes)
    inside = {value for value, node in makers.items() if node.index in chosen}
    outside = [value for value in captured(graph, sorted(chosen)) if value not in inside | set(graph.initializers)]
    returned = [value for value in graph.outputs if value in graph.initializers]  # made by no node
    elsewhere = {*captured(graph, sorted({n.index for n in graph.nodes} - chosen))} - constants | {*graph.outputs}
    return Segment(
        index,
        "cpu/paddle",
        tuple(sorted(chosen)),
        tuple(sorted({value for value in outside if value not in constants})),
        (*sorted(inside & elsewhere), *(returned if len(graph.nodes) - 1 in chosen else ())),
        tuple(sorted({makers[value].index for value in outside if value in constants})),
    )


def halves(graph: Graph, cut: int) -> list[Segment]:
    """The nodes before `cut` and those from it on, where they give anything at all."""
    parts = [segment_of(graph, range(cut), 0), segment_of(graph, range(cut, len(graph.nodes)), 1)]
    return [part for part in parts if part.outputs]


def extracted(model: Model, segment: Segment, folder: Path) -> Model:
    """The segment as a model of its own, checked against what was asked for."""
    folder = folder / str(segment.index)
    folder.mkdir(parents=True, exist_ok=True)
    files = FORMAT.extract(model, segment, folder)
    assert all(path.parent == folder for path in files.values())
    assert FORMAT.locate(files["program"]) == files
    graph, whole = FORMAT.read(files), model.graph

    def border(values: Sequence[int]) -> list[tuple[str, str | None]]:
        return [(whole.values[value].name, whole.values[value].dtype) for value in values]

    assert [(v.name, v.dtype) for v in graph.input_values] == border(segment.inputs)
    assert [(v.name, v.dtype) for v in graph.output_values] == border(segment.outputs)
    nodes = sorted((*segment.nodes, *segment.constants))
    assert [node.type for node in graph.nodes] == [whole.nodes[node].type for node in nodes]
    assert [node.attributes for node in graph.nodes] == [whole.nodes[node].attributes for node in nodes]
    for value, index in zip(graph.input_values, segment.inputs, strict=True):
        fixed = [dim if isinstance(dim, int) else None for dim in whole.values[index].shape or ()]
        assert [dim if isinstance(dim, int) else None for dim in value.shape or ()] == fixed
    return Model("paddle", files, "test", graph)


def run(model: Model, feeds: Feeds, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    pytest.importorskip("paddle")
    config = HardwareConfig.load({"hardware": "cpu", "backend": "paddle"})
    # Without passes: what they fuse in the whole may be apart in the segments, which moves the last bits.
    adapter = CpuPaddle(ResolvedConfig(config, PlainOptions(optimize=False), 1), None)
    graph = model.graph
    whole = Segment(0, adapter.name(), tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
    plan = SegmentPlan(whole, PrecisionPlan(Precision.FP32), SegmentMemory(), ())
    context = Context(folder, folder)
    session = adapter.load(adapter.compile(model, plan, context), context)
    try:
        return dict(session.run({value.name: feeds[value.name] for value in graph.input_values}))
    finally:
        session.close()


def converted(model: Model, feeds: Feeds, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The answers of the model's conversion to ONNX."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("paddle2onnx")
    folder.mkdir(exist_ok=True)
    files, provenance = FORMAT.convert(model, "onnx", folder)
    assert {node for nodes in provenance for node in nodes} <= {node.index for node in model.graph.nodes}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(files["model"]), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in model.graph.output_values]
    return dict(zip(names, session.run(names, {v.name: feeds[v.name] for v in model.graph.input_values}), strict=True))


def assert_same(found: Feeds, wanted: Feeds, tolerance: float) -> None:
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        scale = max(float(np.abs(array.astype(np.float64)).max()), 1.0)
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale, err_msg=name)


def assert_joins(model: Model, segments: Sequence[Segment], folder: Path, onnx: bool = False) -> None:
    """The segments one after another give what the whole gives, and their conversions what they give."""
    feeds: dict[str, Any] = dict(sample_of(model))
    wanted = run(model, feeds, folder)
    for segment in segments:
        part = extracted(model, segment, folder)
        answers = run(part, feeds, folder)
        if onnx:
            assert_same(converted(part, feeds, folder / f"onnx-{segment.index}"), answers, 2e-5)
        feeds.update(answers)
    assert_same({name: feeds[name] for name in wanted}, wanted, 1e-6)


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models of examples/."""
    pytest.importorskip("paddle")
    root = Path(__file__).parents[3]
    folder = tmp_path_factory.mktemp("examples")
    sys.path.insert(0, str(root))
    try:
        from examples.export import EXPORTS

        for export in EXPORTS.values():
            export(folder)
    finally:
        sys.path.remove(str(root))
    return folder


# Joined again


@pytest.mark.parametrize("cut", range(1, 18))
def test_every_cut_of_the_rotary_model(examples: Path, tmp_path: Path, cut: int) -> None:
    model = model_of(examples, "rotary")
    assert len(model.graph.nodes) == 18
    assert_joins(model, halves(model.graph, cut), tmp_path, onnx=cut in (5, 9, 13))


@pytest.mark.parametrize("cut", [20, 126, 338])
def test_cuts_of_the_decoder(examples: Path, tmp_path: Path, cut: int) -> None:
    model = model_of(examples, "deepseek")
    assert_joins(model, halves(model.graph, cut), tmp_path, onnx=cut == 126)


@pytest.mark.long
def test_a_resnet_cut_through_a_residual_branch(examples: Path, tmp_path: Path) -> None:
    model = model_of(examples, "resnet")
    graph = model.graph
    crossing = next(
        cut for cut in range(60, len(graph.nodes)) if len(segment_of(graph, range(cut, len(graph.nodes))).inputs) > 1
    )
    parts = halves(graph, crossing)
    assert_joins(model, parts, tmp_path, onnx=True)
    # No parameter is copied that is not read.
    sizes = [(tmp_path / str(part.index) / f"resnet-{part.index}.pdiparams").stat().st_size for part in parts]
    assert sum(sizes) == model.files["params"].stat().st_size


@pytest.mark.parametrize(
    "name", ["linear", "condition", "loop", "mixed", "through", "gathers", "embedding", "infinite", "weightless"]
)
def test_every_cut_of_small_models(models: Path, tmp_path: Path, name: str) -> None:
    model = model_of(models, name)
    if name == "through":  # Paddle does not run a program that returns an input
        for segment in halves(model.graph, 1):
            assert extracted(model, segment, tmp_path).graph.output_values
        return
    for cut in range(1, len(model.graph.nodes)):
        parts = halves(model.graph, cut)
        if any(model.graph.values[v].kind != "tensor" for part in parts for v in (*part.inputs, *part.outputs)):
            with pytest.raises(NotAvailable, match="no tensor but a sequence"):
                assert_joins(model, parts, tmp_path / str(cut))
        else:
            (tmp_path / str(cut)).mkdir()
            assert_joins(model, parts, tmp_path / str(cut))


def test_three_segments_of_which_one_is_not_contiguous(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "mixed")
    graph = model.graph
    casts = [n.index for n in graph.nodes if n.op in {"pd_op.cast", "pd_op.logical_not"}]
    first = [i for i in range(casts[-1]) if i not in casts]
    multiply = next(i for i in first if casts[0] < i)
    first.remove(multiply)  # it reads what the second segment makes
    last = [i for i in range(len(graph.nodes)) if i not in (*first, *casts)]
    assert_joins(model, [segment_of(graph, nodes, i) for i, nodes in enumerate((first, casts, last))], tmp_path)


# What a segment takes along


def test_a_body_that_captures(models: Path, tmp_path: Path) -> None:
    """The branch reads an input of the model and parameters that nothing outside it reads."""
    model = model_of(models, "condition")
    graph = model.graph
    (branch,) = (node for node in graph.nodes if node.type == "pd_op.if")
    segment = segment_of(graph, [branch.index])
    names = [graph.values[value].name for value in segment.inputs]
    assert names == ["x", "pd_op.greater_than.0.0"]
    part = extracted(model, segment, tmp_path)
    program = open_program(part.files)
    assert set(program.parameters) == set(open_program(model.files).parameters)
    assert not {v for n in part.graph.nodes for v in n.inputs if v is not None} & set(part.graph.initializers)
    for truth in (True, False):
        feeds = {"x": np.ones((2, 4), np.float32), "pd_op.greater_than.0.0": np.array(truth)}
        whole = run(model, {"x": feeds["x"] if truth else -feeds["x"]}, tmp_path)
        answer = run(part, {**feeds, "x": feeds["x"] if truth else -feeds["x"]}, tmp_path)
        assert_same(answer, whole, 1e-6)


def save(folder: Path, name: str, forward: Callable[[Any, Any], Any]) -> Model:
    """A model of one weight `w` of shape [4] over `x` of shape [batch, 4]."""
    pytest.importorskip("paddle")
    import paddle
    from paddle import nn

    class Layer(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.w = self.create_parameter([4])

        def forward(self, x: Any) -> Any:
            return forward(x, self.w)

    layer = Layer()
    layer.eval()
    spec = paddle.static.InputSpec([None, 4], "float32", "x")
    paddle.jit.save(layer, str(folder / name), input_spec=[spec])
    return model_of(folder, name)


def test_a_segment_of_a_segment(tmp_path: Path) -> None:
    """Its border has the whole model's names, which may be what its own operations are called by their number."""

    def forward(x: Any, w: Any) -> Any:
        import paddle

        for _ in range(6):
            x = paddle.nn.functional.softmax(x)
        return x * w

    model = save(tmp_path, "again", forward)
    feeds = sample_of(model)
    first, second = halves(model.graph, 2)
    inner = extracted(model, second, tmp_path / "inner")
    names = [value.name for value in inner.graph.values]
    assert names.count("pd_op.softmax.1.0") == 1 and len(names) == len(set(names))
    known = run(extracted(model, first, tmp_path), feeds, tmp_path)
    for part in halves(inner.graph, 2):
        piece = extracted(inner, part, tmp_path / "piece")
        known |= run(piece, {value.name: known[value.name] for value in piece.graph.input_values}, tmp_path)
    whole = run(model, feeds, tmp_path)
    assert_same({name: known[name] for name in whole}, whole, 1e-6)


def test_a_parameter_and_a_constant_that_both_segments_read(tmp_path: Path) -> None:
    def forward(x: Any, w: Any) -> Any:
        import paddle

        three = paddle.full([1], 3.0)
        return paddle.exp(x * w - three) * w - three

    model = save(tmp_path, "shared", forward)
    graph = model.graph
    exp = next(node.index for node in graph.nodes if node.op == "pd_op.exp")
    first, second = halves(graph, exp)
    assert [graph.nodes[i].op for i in second.constants] == ["pd_op.full"] and not first.constants
    assert second.constants[0] in first.nodes
    for part in (first, second):
        assert len(open_program(extracted(model, part, tmp_path).files).parameters) == 1
    assert_joins(model, [first, second], tmp_path, onnx=True)


def test_a_segment_without_parameters_has_no_file_for_them(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "linear")
    relu = next(node.index for node in model.graph.nodes if node.op == "pd_op.relu")
    part = extracted(model, segment_of(model.graph, [relu]), tmp_path)
    assert set(part.files) == {"program"}
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["linear-0.json"]
    x = np.array([[-1.0, 0.0, 2.0]], np.float32)
    assert_same(run(part, {"pd_op.add.0.0": x}, tmp_path), {"fetch_name_0": np.maximum(x, 0)}, 0)


def fetched_again(models: Path, folder: Path) -> Model:
    """ "linear" with two fetches more, which jit.save would not write: its result's once more, and a parameter's."""
    data = json.loads((models / "linear.json").read_text())
    ops = data["program"]["regions"][0]["blocks"][0]["ops"]
    bias = next(op["O"] for op in ops if op["#"] == "p" and op["A"][3].endswith("b_0"))
    for column, (name, source) in enumerate([("again", ops[-1]["I"][0]["%"]), ("bias", bias["%"])], 1):
        more = copy.deepcopy(ops[-1])
        more["A"][0]["AT"]["D"], more["A"][1]["AT"]["D"] = name, column
        more["I"][0]["%"], more["O"][0]["%"] = source, more["O"][0]["%"] + 1
        more["O"][0]["TT"] = bias["TT"] if name == "bias" else more["O"][0]["TT"]
        ops.append(more)
    (folder / "twice.json").write_text(json.dumps(data))
    shutil.copy(models / "linear.pdiparams", folder / "twice.pdiparams")
    return model_of(folder, "twice")


def test_a_value_that_is_fetched_twice(models: Path, tmp_path: Path) -> None:
    """Paddle's predictor loses the first name of such a value; in a segment of its own, the second fetch runs."""
    model = fetched_again(models, tmp_path)
    graph = model.graph
    assert [v.name for v in graph.output_values] == ["fetch_name_0", "again", "bias"]
    fetches = [node.index for node in graph.nodes if node.op == "pd_op.fetch"]
    for cut in range(1, len(graph.nodes)):
        for part in halves(graph, cut):
            extracted(model, part, tmp_path / f"cut-{cut}")
    first, second = halves(graph, fetches[0])
    feeds = dict(sample_of(model))
    answers = run(extracted(model, first, tmp_path), feeds, tmp_path)
    more = run(extracted(model, second, tmp_path), answers, tmp_path)
    np.testing.assert_array_equal(more["again"], answers["fetch_name_0"])
    assert_same(converted(model, feeds, tmp_path / "whole"), {**answers, **more}, 1e-6)
    assert_same(converted(extracted(model, second, tmp_path), answers, tmp_path / "second"), more, 0)


def test_extents_that_the_config_fixes_are_fixed(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "rotary")
    graph = model.graph.with_bounds({"batch": Range(2, 2, 2), "x.1": Range(5, 5, 5)})
    model = model.with_graph(graph)
    first, second = halves(graph, len(graph.nodes) - 2)
    assert graph.values[graph.inputs[0]].shape == (2, 5, 256)
    part = extracted(model, first, tmp_path)
    assert part.graph.input_values[0].shape == (2, 5, 256)
    declared = json.loads(part.files["program"].read_text())["program"]["regions"][0]["blocks"][0]["ops"]
    (feed,) = (op for op in declared if op["#"] == "1.data")
    assert feed["O"][0]["TT"]["D"][1] == [2, 5, 256]
    assert next(a["AT"]["D"] for a in feed["A"] if a["N"] == "shape") == [2, 5, 256]
    assert_joins(model, [first, second], tmp_path)


def test_inputs_and_outputs_come_in_the_order_asked_for(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "mixed")
    graph = model.graph
    segment = segment_of(graph, range(len(graph.nodes) // 2, len(graph.nodes)))
    assert len(segment.inputs) > 1 < len(segment.outputs)
    turned = replace(segment, inputs=segment.inputs[::-1], outputs=segment.outputs[::-1])
    extracted(model, turned, tmp_path)


@pytest.mark.long
def test_a_scalar_at_the_border_stays_one_in_onnx(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "condition")
    reduced = next(node for node in model.graph.nodes if node.op == "pd_op.sum")
    assert_joins(model, halves(model.graph, reduced.index + 1), tmp_path, onnx=True)
    assert_same(converted(model, sample_of(model), tmp_path), run(model, sample_of(model), tmp_path), 1e-5)


# What is kept of the files


def test_parameters_are_copied_byte_for_byte(examples: Path, tmp_path: Path) -> None:
    model = model_of(examples, "deepseek")
    part = extracted(model, halves(model.graph, 200)[1], tmp_path)
    kept, all_of_them = (open_program(m.files).parameters for m in (part, model))
    assert 0 < len(kept) < len(all_of_them)
    whole, cut = (m.files["params"].read_bytes() for m in (model, part))
    header = {}
    at = 0
    for name in sorted(all_of_them, key=str.encode):
        # 12 bytes, no level of detail, version and length of the descriptor
        size = 20 + int.from_bytes(whole[at + 16 : at + 20], "little") + all_of_them[name].nbytes
        header[name] = whole[at : at + size]
        at += size
    assert at == len(whole)
    assert cut == b"".join(header[name] for name in sorted(kept, key=str.encode))


def test_operations_are_taken_over_as_they_stand(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "infinite")

    def ops(found: Model) -> list[Any]:
        listed = json.loads(found.files["program"].read_text())["program"]["regions"][0]["blocks"][0]["ops"]
        return [op for op in listed if op["#"] not in {"1.data", "1.fetch"}]

    graph = model.graph
    everything = segment_of(graph, range(len(graph.nodes)))
    assert ops(extracted(model, everything, tmp_path)) == ops(model)
    # The bound of this clip is infinite, for which JSON has no number.
    bound = re.search(r'"VD":"(\w+)"', (tmp_path / "0" / "infinite-0.json").read_text())
    assert bound is not None and math.isinf(float(bound[1]))


def test_broken_files_are_refused(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "linear")
    for path in model.files.values():
        shutil.copy(path, tmp_path)
    copied = model_of(tmp_path, "linear")
    params = copied.files["params"]
    params.write_bytes(params.read_bytes()[:-1])
    with pytest.raises(ModelError, match="cut off"):
        FORMAT.extract(copied, segment_of(copied.graph, [0]), tmp_path)


def test_constants_are_made_alike_in_every_run(models: Path) -> None:
    """What is copied has no operand; and whatever is random is not copied."""
    core = pytest.importorskip("paddle").base.core
    kernels = core._get_registered_phi_kernels("all")
    for name in FORMAT.constants:
        assert name.removeprefix("pd_op.") in kernels, name
    for name in ("gaussian", "uniform", "randint", "randperm", "empty", "data", "seed"):
        assert f"pd_op.{name}" not in FORMAT.constants
    for model in ("embedding", "condition", "loop", "mixed", "rotary"):
        for node in model_of(models, model).graph.walk():
            assert node.type not in FORMAT.constants or not (node.inputs or node.subgraphs)


# Conversion of what is cut out


@pytest.mark.long
def test_only_the_segment_with_the_operator_is_not_converted(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("paddle2onnx")
    model = model_of(models, "resize")
    graph = model.graph
    resize = next(node.index for node in graph.nodes if node.op == "pd_op.bilinear_interp")
    with pytest.raises(Unsupported) as caught:
        FORMAT.convert(model, "onnx", tmp_path)
    assert caught.value.nodes == (resize,)
    first, second = halves(graph, resize)
    part = extracted(model, first, tmp_path)
    feeds = sample_of(model)
    assert_same(converted(part, feeds, tmp_path / "first"), run(part, feeds, tmp_path), 1e-5)
    part = extracted(model, second, tmp_path)
    with pytest.raises(Unsupported) as caught:
        FORMAT.convert(part, "onnx", tmp_path)
    assert [part.graph.nodes[node].op for node in caught.value.nodes] == ["pd_op.bilinear_interp"]
