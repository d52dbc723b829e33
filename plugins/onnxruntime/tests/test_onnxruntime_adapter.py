"""`cpu/onnxruntime` from selection to answers, and how honest its verdicts are."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto as T
from onnx import helper as h
from paddock.config import HardwareConfig
from paddock.errors import BuildFailed, ModelError, PaddockError, RunFailed, StrictnessError, Unsupported
from paddock.graph import Range
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import Answer, Precision, PrecisionPlan, Segment
from paddock.spi import Context, Probe, ResolvedConfig, SegmentMemory, SegmentPlan, Session
from paddock_onnxruntime.adapter import CpuOnnxRuntime
from paddock_onnxruntime.operators import Selector
from paddock_onnxruntime.session import OnnxRuntimeOptions
from pydantic import ValidationError

ort = pytest.importorskip("onnxruntime")


def proto(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Mapping[str, Any] | None = None,
    opset: int = 17, domains: Mapping[str, int] | None = None, functions: Sequence[Any] = (),
) -> Any:  # fmt: skip
    """A model; inputs and outputs are (name, dtype, shape)."""
    graph = h.make_graph(
        nodes,
        "graph",
        [h.make_tensor_value_info(*i) for i in inputs],
        [h.make_tensor_value_info(*o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in (weights or {}).items()],
    )
    opsets = [h.make_opsetid("", opset), *(h.make_opsetid(d, v) for d, v in (domains or {}).items())]
    return h.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def model_of(content: Any, folder: Path) -> Model:
    """The model as Paddock reads it; `content` is a ModelProto or a file."""
    path = content if isinstance(content, Path) else folder / "model.onnx"
    if not isinstance(content, Path):
        onnx.save(content, path)
    format = OnnxFormat()
    files = format.complete({"model": path})
    return Model("onnx", files, "test", format.read(files))


def adapter_of(threads: int = 1, **options: Any) -> CpuOnnxRuntime:
    config = HardwareConfig.load({"hardware": "cpu", "backend": "onnxruntime"})
    return CpuOnnxRuntime(ResolvedConfig(config, OnnxRuntimeOptions(**options), threads), None)


def segment_of(model: Model, precision: Precision = Precision.FP32) -> SegmentPlan:
    graph = model.graph
    segment = Segment(0, "cpu/onnxruntime", tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
    verdicts = Selector(graph, model.files["model"]).verdicts()
    return SegmentPlan(segment, PrecisionPlan(precision), SegmentMemory(), verdicts=tuple(verdicts))


def loaded(model: Model, folder: Path, **options: Any) -> Session:
    adapter, context = adapter_of(**options), Context(folder, folder)
    artifact = adapter.compile(model, segment_of(model), context)
    return adapter.load(pickle.loads(pickle.dumps(artifact)), context)


def answers(model: Model, folder: Path) -> list[Answer]:
    return [v.answer for v in adapter_of().select_operators(model, Context(folder, folder)).verdicts]


RNG = np.random.default_rng(0)
W1, W2 = RNG.standard_normal((8, 16), "f"), RNG.standard_normal((16, 4), "f")


def mlp(names: Sequence[str] = ("a", "b", "c")) -> Any:
    nodes = [
        h.make_node("MatMul", ["x", "w1"], ["h"], name=names[0]),
        h.make_node("Relu", ["h"], ["r"], name=names[1]),
        h.make_node("MatMul", ["r", "w2"], ["y"], name=names[2]),
    ]
    return proto(nodes, [("x", T.FLOAT, ["N", 8])], [("y", T.FLOAT, ["N", 4])], {"w1": W1, "w2": W2})


def mlp_answer(x: Any) -> Any:
    return np.maximum(x @ W1, 0) @ W2


def conditional(op: str = "Mul", domain: str = "") -> Any:
    then = h.make_graph(
        [h.make_node("Add", ["x", "x"], ["t"])], "then", [], [h.make_tensor_value_info("t", T.FLOAT, ["N"])]
    )
    other = h.make_graph(
        [h.make_node(op, ["x", "x"], ["e"], domain=domain)],
        "else",
        [],
        [h.make_tensor_value_info("e", T.FLOAT, ["N"])],
    )
    node = h.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    domains = {domain: 1} if domain else {}
    inputs = [("c", T.BOOL, []), ("x", T.FLOAT, ["N"])]
    return proto([node], inputs, [("y", T.FLOAT, ["N"])], domains=domains)


@pytest.mark.parametrize("names", [("a", "b", "c"), ("", "", ""), ("same", "same", "same")])
def test_mlp_at_several_batch_sizes_whatever_its_node_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    model = model_of(mlp(names), tmp_path)
    assert answers(model, tmp_path) == [Answer.YES] * 3
    session = loaded(model, tmp_path)
    for batch in (1, 5, 3):
        x = RNG.standard_normal((batch, 8), "f")
        np.testing.assert_allclose(session.run({"x": x})["y"], mlp_answer(x), rtol=1e-4, atol=1e-5)


def test_verdicts_say_who_says_so(tmp_path: Path) -> None:
    model = model_of(mlp(), tmp_path)
    verdicts = adapter_of().select_operators(model, Context(tmp_path, tmp_path)).verdicts
    assert all("kernel registry" in v.source for v in verdicts)
    assert "MatMul(13)" in verdicts[0].reason


def test_conv_net(tmp_path: Path) -> None:
    kernel = RNG.standard_normal((2, 3, 3, 3), "f")
    nodes = [
        h.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        h.make_node("Relu", ["c"], ["r"]),
        h.make_node("GlobalAveragePool", ["r"], ["g"]),
        h.make_node("Flatten", ["g"], ["y"]),
    ]
    model = model_of(
        proto(nodes, [("x", T.FLOAT, ["N", 3, 8, 8])], [("y", T.FLOAT, ["N", 2])], {"k": kernel}), tmp_path
    )
    x = RNG.standard_normal((2, 3, 8, 8), "f")
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows: Any = sliding_window_view(wide, (3, 3), axis=(2, 3))  # type: ignore[call-overload]  # axis may be a tuple
    wanted = np.maximum(np.einsum("nchwij,ocij->nohw", windows, kernel), 0).mean(axis=(2, 3))
    np.testing.assert_allclose(loaded(model, tmp_path).run({"x": x})["y"], wanted, rtol=1e-4, atol=1e-5)


def test_control_flow_bodies_are_judged_and_run(tmp_path: Path) -> None:
    model = model_of(conditional(), tmp_path)
    assert answers(model, tmp_path) == [Answer.YES]
    session, x = loaded(model, tmp_path), np.array([3.0], "f")
    assert session.run({"c": np.array(True), "x": x})["y"] == [6.0]
    assert session.run({"c": np.array(False), "x": x})["y"] == [9.0]


def test_a_no_inside_a_body_is_a_no_of_the_node(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(conditional("Strange", "vendor"), path)
    model = model_of(path, tmp_path)
    (verdict,) = adapter_of().select_operators(model, Context(tmp_path, tmp_path)).verdicts
    assert verdict.answer is Answer.NO
    assert "in its body" in verdict.reason and "vendor.Strange" in verdict.reason
    with pytest.raises(BuildFailed, match="Strange"):
        loaded(model, tmp_path)


def test_an_unknown_operator_is_a_no_and_the_rest_a_yes(tmp_path: Path) -> None:
    nodes = [h.make_node("Relu", ["x"], ["r"]), h.make_node("Strange", ["r"], ["y"], domain="vendor")]
    content = proto(nodes, [("x", T.FLOAT, ["N"])], [("y", T.FLOAT, ["N"])], domains={"vendor": 1})
    model = model_of(content, tmp_path)
    assert answers(model, tmp_path) == [Answer.YES, Answer.NO]
    with pytest.raises(BuildFailed, match="Strange"):
        loaded(model, tmp_path)


def test_a_missing_dtype_is_a_no_that_names_it(tmp_path: Path) -> None:
    node = h.make_node("Max", ["a", "b"], ["y"])
    tensors = [("a", T.INT16, [2]), ("b", T.INT16, [2])]
    model = model_of(proto([node], tensors, [("y", T.INT16, [2])]), tmp_path)
    (verdict,) = adapter_of().select_operators(model, Context(tmp_path, tmp_path)).verdicts
    assert verdict.answer is Answer.NO
    for part in ("ai.onnx.Max(13)", "'a': int16", "CPUExecutionProvider"):
        assert part in verdict.reason
    with pytest.raises(BuildFailed):
        loaded(model, tmp_path)


def local_function(dtype: int) -> Any:
    body = h.make_function(
        "mine", "Larger", ["a", "b"], ["c"], [h.make_node("Max", ["a", "b"], ["c"])], [h.make_opsetid("", 17)]
    )
    node = h.make_node("Larger", ["x", "x"], ["y"], domain="mine")
    return proto([node], [("x", dtype, ["N"])], [("y", dtype, ["N"])], domains={"mine": 1}, functions=[body])


def test_a_models_own_function_is_provisional_until_compile(tmp_path: Path) -> None:
    model = model_of(local_function(T.FLOAT), tmp_path)
    assert answers(model, tmp_path) == [Answer.PROVISIONAL]
    assert loaded(model, tmp_path).run({"x": np.ones(2, "f")})["y"].tolist() == [1, 1]

    refused = model_of(local_function(T.INT16), tmp_path)
    with pytest.raises(Unsupported, match="Max") as error:
        loaded(refused, tmp_path)
    assert error.value.nodes == (0,)


@pytest.mark.parametrize("dtype", ["float64", "int64", "bool", "float16", "uint8"])
def test_other_dtypes_pass_unchanged(tmp_path: Path, dtype: str) -> None:
    kind = h.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = h.make_node("Concat", ["x", "x"], ["y"], axis=0)
    model = model_of(proto([node], [("x", kind, ["N"])], [("y", kind, ["M"])]), tmp_path)
    assert answers(model, tmp_path) == [Answer.YES]
    x = np.array([0, 1, 1]).astype(dtype)
    if dtype == "int64":
        x[0] = 2**40
    y = loaded(model, tmp_path).run({"x": x})["y"]
    assert y.dtype == x.dtype
    assert y.tolist() == [*x.tolist(), *x.tolist()]


def test_strings_pass(tmp_path: Path) -> None:
    tensors = [("x", T.STRING, ["N"])], [("y", T.STRING, ["N"])]
    model = model_of(proto([h.make_node("Identity", ["x"], ["y"])], *tensors), tmp_path)
    assert answers(model, tmp_path) == [Answer.YES]
    assert loaded(model, tmp_path).run({"x": np.array(["a", "bc"], object)})["y"].tolist() == ["a", "bc"]


def test_bfloat16_is_refused_at_the_border_and_taken_inside(tmp_path: Path) -> None:
    out = proto([h.make_node("Cast", ["x"], ["y"], to=T.BFLOAT16)], [("x", T.FLOAT, [2])], [("y", T.BFLOAT16, [2])])
    (verdict,) = adapter_of().select_operators(model_of(out, tmp_path), Context(tmp_path, tmp_path)).verdicts
    assert verdict.answer is Answer.NO and "bfloat16" in verdict.reason

    nodes = [h.make_node("Cast", ["x"], ["b"], to=T.BFLOAT16), h.make_node("Cast", ["b"], ["y"], to=T.FLOAT)]
    inside = model_of(proto(nodes, [("x", T.FLOAT, [2])], [("y", T.FLOAT, [2])]), tmp_path)
    assert answers(inside, tmp_path) == [Answer.YES] * 2
    y = loaded(inside, tmp_path).run({"x": np.array([1, 1.0009765625], "f")})["y"]
    assert y.tolist() == [1, 1]


def test_sequences_are_refused_at_the_border(tmp_path: Path) -> None:
    node = h.make_node("SequenceConstruct", ["x", "x"], ["y"])
    graph = h.make_graph(
        [node],
        "graph",
        [h.make_tensor_value_info("x", T.FLOAT, [2])],
        [h.make_tensor_sequence_value_info("y", T.FLOAT, None)],
    )
    model = model_of(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path)
    (verdict,) = adapter_of().select_operators(model, Context(tmp_path, tmp_path)).verdicts
    assert verdict.answer is Answer.NO and "sequence" in verdict.reason


def test_scalar_outputs_and_a_choice_of_outputs(tmp_path: Path) -> None:
    nodes = [h.make_node("ReduceSum", ["x"], ["s"], keepdims=0), h.make_node("Relu", ["x"], ["r"])]
    content = proto(nodes, [("x", T.FLOAT, ["N"])], [("s", T.FLOAT, []), ("r", T.FLOAT, ["N"])])
    session = loaded(model_of(content, tmp_path), tmp_path)
    feeds = {"x": np.array([1, -3], "f")}
    everything = session.run(feeds)
    assert list(everything) == ["s", "r"]
    assert everything["s"].shape == () and everything["s"] == -2
    assert list(session.run(feeds, ["r"])) == ["r"]
    assert session.run(feeds, []) == {}


@pytest.mark.parametrize("op", ["Relu", "Identity"])
@pytest.mark.parametrize("level", ["off", "all"])
def test_outputs_belong_to_the_caller(tmp_path: Path, op: str, level: str) -> None:
    nodes = [h.make_node(op, ["x"], ["y"]), h.make_node("Identity", ["w"], ["z"])]
    outputs = [("y", T.FLOAT, [3]), ("z", T.FLOAT, [2])]
    content = proto(nodes, [("x", T.FLOAT, [3])], outputs, {"w": np.ones(2, "f")})
    session = loaded(model_of(content, tmp_path), tmp_path, graph_optimization=level)
    x = np.array([1, 2, 3], "f")
    first = session.run({"x": x})
    kept = {name: value.copy() for name, value in first.items()}
    second = session.run({"x": x + 1})
    for name, value in first.items():
        assert not np.shares_memory(value, second[name]) and not np.shares_memory(value, x)
        np.testing.assert_array_equal(value, kept[name])
        value[:] = 9  # the caller may write into what is his
    assert x.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(session.run({"x": x})["z"], [1, 1])


def test_many_threads_at_once(tmp_path: Path) -> None:
    session = loaded(model_of(mlp(), tmp_path), tmp_path, threads=2)

    def work(seed: int) -> bool:
        x = np.random.default_rng(seed).standard_normal((1 + seed % 5, 8)).astype("f")
        return all(np.allclose(session.run({"x": x})["y"], mlp_answer(x), atol=1e-4) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))


def observed(model: Model, folder: Path, **options: Any) -> Mapping[str, Any]:
    return loaded(model, folder, **options).observed().settings


def test_threads_and_spinning_take_effect(tmp_path: Path) -> None:
    model = model_of(mlp(), tmp_path)
    assert observed(model, tmp_path, threads=2)["threads"] == 2
    assert "options.spinning" not in observed(model, tmp_path)
    for given in (True, False):
        assert observed(model, tmp_path, spinning=given)["options.spinning"] is given


@pytest.mark.parametrize(("default", "option", "wanted"), [(True, None, "1"), (False, None, "0"), (False, True, "1")])
def test_spinning_follows_the_host_unless_the_option_says(
    tmp_path: Path, default: bool, option: bool | None, wanted: str
) -> None:
    config = HardwareConfig.load({"hardware": "cpu", "backend": "onnxruntime"})
    adapter = CpuOnnxRuntime(ResolvedConfig(config, OnnxRuntimeOptions(spinning=option), 1, default), None)
    model, context = model_of(mlp(), tmp_path), Context(tmp_path, tmp_path)
    session: Any = adapter.load(adapter.compile(model, segment_of(model), context), context)
    actual = session._inner.get_session_options().get_session_config_entry("session.intra_op.allow_spinning")
    assert actual == wanted


def test_graph_optimization_changes_what_runs(tmp_path: Path) -> None:
    bias = h.make_node("Add", ["m", "b"], ["y"])
    nodes = [h.make_node("MatMul", ["x", "w"], ["m"]), bias]
    weights = {"w": W1, "b": np.ones(16, "f")}
    model = model_of(proto(nodes, [("x", T.FLOAT, ["N", 8])], [("y", T.FLOAT, ["N", 16])], weights), tmp_path)
    counts = {}
    for level in ("off", "basic", "extended", "all"):
        found = loaded(model, tmp_path, graph_optimization=level).observed()
        assert found.settings["options.graph_optimization"] == level
        counts[level] = found.nodes
    assert counts["off"] == 2
    assert counts["all"] == 1


def test_memory_arena_is_set(tmp_path: Path) -> None:
    model = model_of(mlp(), tmp_path)
    for given in (True, False):
        assert observed(model, tmp_path, memory_arena=given)["options.memory_arena"] is given


def test_fixed_symbols_become_fixed_in_onnxruntime(tmp_path: Path) -> None:
    model = model_of(mlp(), tmp_path)
    fixed = model.with_graph(model.graph.with_bounds({"N": Range(2, 2, 2)}))
    adapter, context = adapter_of(), Context(tmp_path, tmp_path)
    artifact = adapter.compile(fixed, segment_of(fixed), context)
    assert artifact.facts["fixed_dims"] == {"N": 2}
    session = adapter.load(artifact, context)
    assert session.run({"x": np.ones((2, 8), "f")})["y"].shape == (2, 4)
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run({"x": np.ones((3, 8), "f")})
    ranged = model.with_graph(model.graph.with_bounds({"N": Range(1, 2, 4)}))
    artifact = adapter.compile(ranged, segment_of(ranged), context)
    assert artifact.facts["fixed_dims"] == {} and artifact.bounds == {"N": Range(1, 2, 4)}


@pytest.mark.parametrize("names", [("a", "b", "c"), ("same", "same", "same")])
def test_external_data_is_referred_to(tmp_path: Path, names: Sequence[str]) -> None:
    path = tmp_path / "big.onnx"
    onnx.save(mlp(names), path, save_as_external_data=True, location="big.bin", size_threshold=0)
    session = loaded(model_of(path, tmp_path), tmp_path)
    x = np.ones((1, 8), "f")
    np.testing.assert_allclose(session.run({"x": x})["y"], mlp_answer(x), rtol=1e-4)


def test_closing(tmp_path: Path) -> None:
    session = loaded(model_of(mlp(), tmp_path), tmp_path)
    session.close()
    session.close()
    with pytest.raises(RunFailed):
        session.run({"x": np.ones((1, 8), "f")})
    assert session.observed().settings == {}


def test_refusals(tmp_path: Path) -> None:
    model, context = model_of(mlp(), tmp_path), Context(tmp_path, tmp_path)
    with pytest.raises(StrictnessError, match="has no effect"):
        adapter_of(graph_optimization="basic").compile(model, segment_of(model, Precision.INT8), context)
    for bad in ({"graph_optimisation": "all"}, {"graph_optimization": "most"}, {"inter_op_threads": 2}):
        with pytest.raises(ValidationError):
            OnnxRuntimeOptions(**bad)


def test_probe_and_device() -> None:
    probe = CpuOnnxRuntime.probe()
    assert isinstance(probe, Probe) and probe.verdict.answer is Answer.YES
    assert probe.versions == {"onnxruntime": ort.__version__, "onnx": onnx.__version__}
    devices = CpuOnnxRuntime.probe_device()
    assert devices.verdict.answer is Answer.YES
    assert set(devices.devices[0].precisions) == CpuOnnxRuntime.precisions


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
    return subprocess.run([sys.executable, "-c", path + code, *arguments], capture_output=True, text=True, check=False)


def test_importing_and_probing_load_no_sdk() -> None:
    done = run_python(
        "import paddock_onnxruntime.plugin as p\n"
        "p.paddock_adapters()[0].probe()\n"
        "found = {'onnx', 'onnxruntime', 'openvino', 'paddle'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    assert done.returncode == 0, done.stderr


def test_a_child_loads_the_pickled_artifact_and_prints_nothing(tmp_path: Path) -> None:
    model = model_of(mlp(), tmp_path)
    adapter, context = adapter_of(), Context(tmp_path, tmp_path)
    work = (adapter, adapter.compile(model, segment_of(model), context), context.work)
    (tmp_path / "work.pickle").write_bytes(pickle.dumps(work))
    done = run_python(
        "import pickle, numpy as np\n"
        "from paddock.spi import Context\n"
        "adapter, artifact, folder = pickle.load(open(sys.argv[1], 'rb'))\n"
        "session = adapter.load(artifact, Context(folder, folder))\n"
        "y = session.run({'x': np.ones((2, 8), 'f')})['y']\n"
        "try: session.run({'x': np.ones((2, 9), 'f')})\n"
        "except Exception: np.save(sys.argv[2], y)",
        str(tmp_path / "work.pickle"), str(tmp_path / "y.npy"),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), mlp_answer(np.ones((2, 8), "f")), rtol=1e-4)


# Honesty: what ONNX's own node tests say about the verdicts.

FALSE_YES: Mapping[str, str] = {}
"""Claimed as yes although no session can be made: test name -> reason. Strict: an entry that no longer holds fails."""

FALSE_NO: Mapping[str, str] = {}
"""Refused for want of a kernel although onnxruntime takes it: test name -> reason. Strict as well."""


def node_tests() -> Iterator[tuple[str, Path]]:
    from onnx.backend.test.loader import load_model_tests

    for case in load_model_tests(kind="node"):
        yield case.name, Path(case.model_dir) / "model.onnx"


def loads(path: Path) -> bool:
    settings = ort.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads = 4, 1
    try:
        ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def test_verdicts_on_onnx_node_tests_are_honest(tmp_path: Path) -> None:
    adapter, context = adapter_of(), Context(tmp_path, tmp_path)
    yes, false_yes, false_no = 0, set(), set()
    for name, path in node_tests():
        try:
            model = model_of(path, tmp_path)
        except ModelError:
            continue
        try:
            verdicts = adapter.select_operators(model, context).verdicts
        except PaddockError as error:  # pragma: no cover
            pytest.fail(f"{name}: {error}")
        runs = loads(path)
        if all(v.answer is Answer.YES for v in verdicts):
            yes += 1
            if not runs:
                false_yes.add(name)
        # Bodies of functions and the contract's dtypes are refused for reasons of their own.
        elif runs and any(v.answer is Answer.NO and v.source == "onnxruntime's kernel registry" for v in verdicts):
            false_no.add(name)
    assert false_yes == set(FALSE_YES)
    assert false_no == set(FALSE_NO)
    assert yes > 900


# What is kept of a model


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_the_artifact_stands_alone(tmp_path: Path, level: str) -> None:
    wide = np.eye(64, dtype=np.float32)
    nodes = [h.make_node("MatMul", ["x", "w"], ["h"]), h.make_node("Relu", ["h"], ["y"])]
    model = model_of(proto(nodes, [("x", T.FLOAT, ["N", 64])], [("y", T.FLOAT, ["N", 64])], {"w": wide}), tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    adapter = adapter_of(graph_optimization=level)
    artifact = adapter.compile(model, segment_of(model), Context(work, tmp_path))
    assert set(artifact.files) == {"model", "weights"} and {path.parent for path in artifact.files.values()} == {work}
    assert artifact.files["weights"].stat().st_size >= wide.nbytes
    model.files["model"].unlink()
    session = adapter.load(artifact, Context(tmp_path, tmp_path))
    x = np.linspace(-1, 1, 192, dtype=np.float32).reshape(3, 64)
    np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x, 0))
    assert session.observed().settings["options.graph_optimization"] == level


@pytest.mark.parametrize("fails", ["writing", "loading"])
def test_an_artifact_that_cannot_be_kept_is_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    adapter, told = adapter_of(), list[str]()
    real = adapter._session

    def session(artifact: Any, optimization: str | None = None, written: Path | None = None) -> Any:
        if (written is not None) == (fails == "writing"):
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : not this one")
        return real(artifact, optimization, written)

    monkeypatch.setattr(adapter, "_session", session)
    model = model_of(mlp(), tmp_path)
    artifact = adapter.compile(model, segment_of(model), Context(tmp_path, tmp_path, told.append))
    assert artifact.files == dict(model.files) and "FAIL: not this one" in told[-1]
    assert "optimised" not in artifact.facts


def test_an_unoptimised_artifact_is_the_model(tmp_path: Path) -> None:
    model = model_of(mlp(), tmp_path)
    artifact = adapter_of(graph_optimization="off").compile(model, segment_of(model), Context(tmp_path, tmp_path))
    assert artifact.files == dict(model.files)
