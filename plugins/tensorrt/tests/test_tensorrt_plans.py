"""What is told without a GPU: what is here and what is missing, verdicts from a list, profiles, layers, the bar."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddock import libraries
from paddock.config import HardwareConfig
from paddock.errors import BuildFailed, NotAvailable
from paddock.graph import Graph, Range, Value
from paddock.libraries import Driver
from paddock.plan import Answer, Precision
from paddock.planning.shapes import admits
from paddock.registry import Registry
from paddock.spi import Context
from paddock_tensorrt import build, layers, present
from paddock_tensorrt.adapter import EITHER, QUANTIZATION, GpuTensorRt
from paddock_tensorrt.operators import Asked, verdicts
from paddock_tensorrt.present import Present, judge, look
from paddock_tensorrt.profiles import MOST, profiles, unbounded
from paddock_tensorrt.progress import Bar
from tensorrt_models import T, adapter_of, config_of, h, model_of, net, save

# What is here


LIBRARIES = dict.fromkeys(present.LIBRARIES, "11.4.0.106")
DRIVER = Driver(Path("/lib/libcuda.so.580.65.06"), "580.65.06", 580)
WHOLE: dict[str, Any] = {
    "driver": DRIVER, "tensorrt": "11.4.0.106", "libraries": LIBRARIES, "cuda": "13.5.0", "onnx": "1.17.0"
}  # fmt: skip


def test_all_that_is_needed_is_here() -> None:
    verdict, remedy = judge(Present(**WHOLE))
    assert verdict.usable and not remedy and "TensorRT 11.4.0.106" in verdict.reason
    assert Present(**WHOLE).versions() == {
        "tensorrt": "11.4.0.106", "nvidia-driver": "580.65.06", "cuda-bindings": "13.5.0", "onnx": "1.17.0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words", "remedy"),
    [
        ({"driver": None}, "no NVIDIA driver here (no libcuda.so.1)", "install NVIDIA's driver"),
        (
            {"driver": replace(DRIVER, version="570.12", branch=570)},
            "the driver is 570.12, and CUDA 13 needs 580",
            "580 or newer",
        ),
        ({"tensorrt": "", "libraries": {}}, "Python package is not installed", "pip install 'tensorrt-cu13"),
        ({"tensorrt": "10.9.0"}, "TensorRT is 10.9.0; this adapter knows 10.16 to 11.x", "pip install 'tensorrt-cu13"),
        ({"tensorrt": "12.0.1"}, "TensorRT is 12.0.1", "pip install 'tensorrt-cu13"),
        (
            {"libraries": {**LIBRARIES, "nvinfer": None}},
            "lacks its libraries libnvinfer.so.11",
            "tensorrt-cu13-libs==11",
        ),
        ({"cuda": ""}, "cuda-bindings is not installed", "cuda-bindings>=13"),
        ({"cuda": "12.9.1"}, "cuda-bindings is 12.9.1, and this adapter knows 13.x", "cuda-bindings>=13"),
        ({"onnx": ""}, "onnx is not installed", "onnx"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named_with_what_to_do(
    change: dict[str, Any], words: str, remedy: str
) -> None:
    verdict, found = judge(Present(**{**WHOLE, **change}))
    assert not verdict.usable and words in verdict.reason and remedy in found


def test_everything_that_is_missing_is_named_at_once() -> None:
    verdict, remedy = judge(Present())
    assert verdict.reason.count(";") == 3 and remedy.count(";") >= 2


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to install wheels in; TensorRT 11.4.0.106's bindings and, by LD_LIBRARY_PATH, a driver are there."""
    for module in ("tensorrt_bindings", "tensorrt_libs"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").touch()
    wheel(tmp_path, "tensorrt_cu13_bindings", "11.4.0.106")
    for module in ("tensorrt_bindings", "tensorrt_libs"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/libcuda.so.580.1.2").touch()
    (tmp_path / "own/libcuda.so.1").symlink_to("libcuda.so.580.1.2")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(libraries, "_library_path", lambda: (str(tmp_path / "own"),))
    monkeypatch.setattr(libraries, "_DRIVERS", tmp_path / "drivers")
    return tmp_path


def wheel(site: Path, name: str, version: str) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")


def test_the_driver_is_found_as_for_every_adapter(site: Path) -> None:
    assert look().versions()["nvidia-driver"] == "580.1.2"
    (site / "drivers/nvidia").mkdir(parents=True)
    said = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.44.01  Release Build\nGCC"
    (site / "drivers/nvidia/version").write_text(said)
    found = look()
    assert found.versions()["nvidia-driver"] == "590.44.01" and found.driver is not None
    assert found.driver.library == site / "own/libcuda.so.580.1.2"


@pytest.mark.parametrize(
    ("libs", "words"),
    [("11.4.0.106", ""), ("11.0.0.1", "TensorRT's bindings are 11.4.0.106, and its libnvinfer is 11.0.0.1"), ("", "")],
)
def test_libraries_of_a_wheel_are_of_its_version(site: Path, libs: str, words: str) -> None:
    for name in present.LIBRARIES:
        (site / f"tensorrt_libs/lib{name}.so.11").touch()
    if libs:
        wheel(site, "tensorrt_cu13_libs", libs)
    verdict, remedy = judge(look())
    assert words in verdict.reason and ("libnvinfer" in verdict.reason) is bool(words)
    assert ("tensorrt-cu13-libs==11.4.0.106" in remedy) is bool(words)


def test_libraries_of_the_system_are_of_the_version_that_their_files_say(site: Path) -> None:
    for name, version in (("nvinfer", "11.4.0"), ("nvonnxparser", "11.3.0")):
        (site / f"own/lib{name}.so.{version}").touch()
        (site / f"own/lib{name}.so.11").symlink_to(f"lib{name}.so.{version}")
    verdict, remedy = judge(look())
    assert "lacks its libraries libnvinfer_plugin.so.11" in verdict.reason
    assert "its libnvonnxparser is 11.3.0" in verdict.reason and "its libnvinfer is" not in verdict.reason
    assert remedy.count("tensorrt-cu13-libs==11.4.0.106") == 1


def test_probing_imports_nothing() -> None:
    code = "import sys, paddock_tensorrt.plugin as p; found = p.paddock_adapters()[0].probe(); "
    code += "print(sorted({'onnx', 'tensorrt', 'tensorrt_bindings', 'cuda', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Verdicts without a device


def test_where_there_is_no_device_the_parsers_list_answers(tmp_path: Path) -> None:
    nodes = [
        h.make_node("Relu", ["x"], ["r"]),
        h.make_node("Det", ["r"], ["d"]),
        h.make_node("Unique", ["d"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [("x", T.FLOAT, [2, 3, 3])], [("y", T.FLOAT, [2])])
    found = adapter_of(config_of(), None).select_operators(model_of(path), Context(tmp_path, tmp_path)).verdicts
    assert [v.answer for v in found] == [Answer.PROVISIONAL, Answer.NO, Answer.NO]
    assert "operators.md" in found[1].source and "Unique is not listed" in found[2].reason


def test_the_bodies_of_control_flow_are_looked_at(tmp_path: Path) -> None:
    port = h.make_tensor_value_info("o", T.FLOAT, None)
    body = h.make_graph([h.make_node("Det", ["x"], ["o"])], "body", [], [port])
    node = h.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    path = save(
        tmp_path / "m.onnx", [node], [("c", T.BOOL, []), ("x", T.FLOAT, [2, 3, 3])], [("y", T.FLOAT, None)]
    )  # fmt: skip
    (found,) = adapter_of(config_of(), None).select_operators(model_of(path), Context(tmp_path, tmp_path)).verdicts
    assert found.answer is Answer.NO and "Det is not listed" in found.reason


def test_a_parser_that_says_nothing_is_no_yes(tmp_path: Path) -> None:
    graph = model_of(net(tmp_path / "net.onnx", 4)).graph
    assert {v.answer for v in verdicts(graph, Asked(False))} == {Answer.NO}
    assert {v.answer for v in verdicts(graph, Asked(True))} == {Answer.YES}
    assert "leaves it out of every subgraph" in verdicts(graph, Asked(False, (((0, 1), True),)))[4].reason
    some = verdicts(graph, Asked(False, (((0, 1), True), ((3,), False)), ((2, "no"),)))
    answers = [Answer.YES, Answer.YES, Answer.NO, Answer.PROVISIONAL, Answer.NO]
    assert [v.answer for v in some] == answers


# Profiles


def graph_of(*shapes: Any, **bounds: Range) -> Graph:
    values = tuple(Value(f"x{n}", "float32", tuple(shape)) for n, shape in enumerate(shapes))
    return Graph((), values, tuple(range(len(values))), ()).with_bounds(bounds)


def test_fixed_shapes_need_no_profile() -> None:
    assert profiles(graph_of([2, 3], ["n", 3], n=Range(4, 4, 4))) == ()
    assert build.told(()) == ["all shapes are fixed: no optimisation profile"]


def test_a_batch_is_one_profile_tuned_for_its_best() -> None:
    (found,) = profiles(graph_of(["n", 3], [7], n=Range(1, 32, 64)))
    assert found.inputs == (("x0", (1, 3), (32, 3), (64, 3)),)
    assert str(found) == "x0 1x3 .. 64x3 (best at 32x3)"


def test_too_many_and_missing_profiles_say_so() -> None:
    spans = tuple((n, n) for n in range(1, 6))
    many = graph_of(["a", "b"], a=Range(1, 5, 5, spans), b=Range(1, 5, 5, spans))
    with pytest.raises(BuildFailed, match=f"25 optimisation profiles, and an engine is given {MOST} at most"):
        profiles(many)
    assert unbounded(graph_of(["a", None, 3])) == ["x0: nothing bounds axis 0, 1"]
    with pytest.raises(BuildFailed, match="there is none for x0: nothing bounds axis 0") as caught:
        profiles(graph_of(["a"]))
    assert caught.value.where == "$.shapes"
    with pytest.raises(BuildFailed, match="its rank is not known"):
        profiles(Graph((), (Value("x"),), (0,), ()))


RANGES = st.builds(
    lambda low, more, best: Range(low, min(low + best, low + more), low + more),
    st.integers(1, 3), st.integers(0, 2), st.integers(0, 2),
)  # fmt: skip
SPANS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 1)), min_size=1, max_size=3).map(
    lambda found: tuple(sorted({(low, low + more) for low, more in found}))
)


@given(st.data())
def test_profiles_admit_just_what_the_graph_admits(data: st.DataObject) -> None:
    """For a dimension with gaps, and two that are coupled; by every shape there can be."""
    spans = data.draw(SPANS)
    bounds = {"n": Range(spans[0][0], spans[-1][1], max(high for _, high in spans), spans)}
    ways = tuple({"a": data.draw(RANGES), "b": data.draw(RANGES)} for _ in range(data.draw(st.integers(1, 3))))
    for symbol in "ab":
        found = [way[symbol] for way in ways]
        pairs = tuple(sorted({(r.min, r.max) for r in found}))
        bounds[symbol] = Range(min(r.min for r in found), found[0].opt, max(r.max for r in found), pairs)
    graph = Graph((), (Value("x", "float32", ("n", "a")), Value("y", "float32", ("b", 2))), (0, 1), ())
    graph = Graph((), graph.values, (0, 1), (), bounds=bounds, choices=(ways,))
    made = profiles(graph)
    assert len(set(made)) == len(made)
    for profile in made:
        for _, low, best, high in profile.inputs:
            assert all(p <= q <= r for p, q, r in zip(low, best, high, strict=True))
    for n, a, b in itertools.product(range(8), repeat=3):
        served = any(profile.admits({"x": (n, a), "y": (b, 2)}) for profile in made)
        assert served == admits(graph, {"n": n, "a": a, "b": b}), (n, a, b)


def test_the_configs_shapes_come_out_as_profiles(tmp_path: Path) -> None:
    config = config_of(batch_size=64, shapes={"x": {"min": [1, 16], "opt": [8, 16], "max": [64, 16]}})
    notes = adapter_of(config, None).notes(model_of(net(tmp_path / "net.onnx"), config))
    assert notes == ["optimisation profile 0: x 1x16 .. 64x16 (best at 8x16)"]


# Layers


def layer(kind: str, *dtypes: str, key: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": "l", "LayerType": kind, "Inputs": [{"Name": "x", key: dtype} for dtype in dtypes], "Outputs": []}


def test_layers_are_counted_by_kind_and_dtype_in_the_words_of_both_majors() -> None:
    found = layers.counted(
        [
            layer("CaskConvolution", "Channel major FP16 format where channel % 4 == 0"),
            layer("CaskConvolution", "Half", "Float"),
            layer("gemm", "Float", key="DataType"),
            layer("gemm", "Thirty-two wide channel vectorized row major Int8 format."),
            layer("Reformat", "Row major linear FP32"),
            layer("kgen", "N/A due to dynamic shapes"),
            layer("kgen", "BFloat16", key="DataType"),
            "a name alone",
            {"LayerType": 7, "Inputs": "x"},
        ]
    )
    assert found["CaskConvolution"] == {"float16": 2} and found["gemm"] == {"float32": 1, "int8": 1}
    assert found["kgen"] == {"?": 1, "bfloat16": 1} and found["?"] == {"?": 1}
    told = layers.summary(found)
    assert told.startswith("9 layers: ") and "2 in float16" in told and "CaskConvolution (2)" in told


@pytest.mark.parametrize(
    ("counts", "asked", "expected"),
    [
        ({"conv": {"float16": 3, "float32": 9}}, "fp16", "fp16"),
        ({"conv": {"float32": 9}, "Reformat": {"float16": 2}}, "fp16", "fp32"),
        ({"conv": {"int8": 1, "float16": 9}}, "int8", "int8"),
        ({"conv": {"float16": 9, "float32": 1}}, "int8", "fp16"),
        ({"conv": {"?": 3}}, "fp16", None),
        ({}, "fp32", None),
    ],
)
def test_the_precision_that_took_effect_is_that_of_layers_that_compute(
    counts: dict[str, dict[str, int]], asked: str, expected: str | None
) -> None:
    assert layers.computed(counts, Precision(asked)) == (None if expected is None else Precision(expected))


# The bar


def test_the_bar_grows_with_nested_phases() -> None:
    told: list[str] = []
    bar = Bar(told.append)
    bar.start("Building", None, 2)
    bar.start("Tactics", "Building", 4)
    shares = []
    for step in range(4):
        bar.step("Tactics", step)
        shares.append(bar.share())
    assert shares == [0.125, 0.25, 0.375, 0.5]
    bar.finish("Tactics")
    bar.step("Building", 1)
    assert bar.share() == 1.0 and told[-1].endswith("100% Building") and "#" * 24 in told[-1]
    bar.step("never started", 3)
    bar.finish("never started")
    bar.finish("Building")
    assert bar.share() == 0.0


# What quantising needs


@pytest.mark.parametrize(
    ("absent", "remedy"),
    [
        (["ml_dtypes"], QUANTIZATION),
        (["onnxruntime"], EITHER),
        (["paddock_onnxruntime", "onnxruntime"], f"{QUANTIZATION}; {EITHER}"),
    ],
)
def test_the_remedy_for_int8_names_what_is_absent(
    absent: list[str], remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else found(name))
    with pytest.raises(NotAvailable) as refused:
        adapter_of(config_of(), None).quantizer(model_of(net(tmp_path / "net.onnx")), [], tmp_path)
    assert refused.value.remedy == remedy


def test_no_extra_of_it_brings_a_build_of_onnxruntime() -> None:
    """The CPU's would lie over the files of gpu/cuda's, in the same environment."""
    assert brought("paddock-tensorrt", "quantization") >= {"paddock-onnxruntime", "ml_dtypes"}
    for extra in ("sdk", "device", "quantization"):
        assert not {"onnxruntime", "onnxruntime-gpu"} & brought("paddock-tensorrt", extra)
    assert "onnxruntime" in brought("paddock-onnxruntime", "sdk"), "or this could not fail"


def brought(distribution: str, extra: str) -> set[str]:
    """The distributions that an extra of ours brings, ours with theirs."""
    project = Path(__file__).resolve().parents[2] / distribution.removeprefix("paddock-") / "pyproject.toml"
    found = set()
    for line in tomllib.loads(project.read_text())["project"]["optional-dependencies"][extra]:
        name, _, extras = re.sub(r"[\]=<>].*", "", line).partition("[")
        found.add(name)
        if name.startswith("paddock-"):
            found |= {each for inner in filter(None, extras.split(",")) for each in brought(name, inner)}
    return found


# Through the core


def test_a_plan_without_a_gpu_is_shown_and_refused(tmp_path: Path) -> None:
    if GpuTensorRt.probe().verdict.usable:
        pytest.skip("TensorRT is here")
    config = '{"hardware": "gpu", "backend": "tensorrt", "precision": "fp16", "batch_size": 64}'
    command = [sys.executable, "-m", "paddock.cli", "plan", "--model", str(net(tmp_path / "net.onnx"))]
    done = subprocess.run([*command, "--config", config], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    for words in (
        "a device that is not here", "NOT CONFIRMED by a device", "optimisation profile 0: x 1x16 .. 64x16",
        "casts: ", "provisional", "at least",
    ):  # fmt: skip
        assert words in done.stdout, done.stdout
    assert "NotAvailable" in done.stderr and "there is no NVIDIA driver here" in done.stderr


@pytest.mark.long
def test_a_driver_that_is_too_old_for_cuda_says_what_to_do(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where files do not tell that it is: by CUDA's own answer, through to who deploys, and not in a circle."""
    fake.setenv("FAKE_CUDA", "old")
    with pytest.raises(NotAvailable, match=r"cudaErrorInsufficientDriver.*it takes CUDA none") as refused:
        Registry.discover().resolve(config_of())
    assert refused.value.remedy == present.DRIVER_REMEDY


def test_a_deployment_on_the_fake_is_verified_and_its_build_told(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All steps in their own processes, as they are on a GPU; the numbers are onnxruntime's."""
    import numpy as np
    from paddock.child import Children
    from paddock.compile import built_notes
    from paddock.deployment import deploy
    from paddock.prepare import prepare

    told: list[str] = []
    fields: dict[str, Any] = {"precision": "fp16", "batch_size": 4, "instances": 2}
    config = HardwareConfig.load({"hardware": "gpu", "backend": "tensorrt", **fields})
    with deploy(net(tmp_path / "net.onnx"), config, progress=told.append) as deployment:
        assert deployment.report.outcome == "passed" and "Fake GPU" in deployment.plan.device
        assert 0 < (deployment.report.error or 0) < 1e-2, "it was cast"
        effective = {setting.name: setting.effective for setting in deployment.plan.settings}
        assert effective["precision"] == "fp16"
        assert any("float16" in note and "layers" in note for note in deployment.plan.notes)
        answer = deployment.run({"x": np.ones((3, 16), np.float32)})
        assert answer["y"].shape == (3, 16)
    assert any("50% Tactics" in line for line in told), "a build's progress is heard out of its process"
    with Children() as children:
        prepared = prepare(tmp_path / "net.onnx", config, children=children)
        assert any("float16" in note for note in built_notes(prepared.plan, prepared.parts)), "as `paddock plan` shows"
        prepared.discard()


@pytest.mark.long
def test_what_the_parser_refuses_runs_on_the_fallback(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from paddock.deployment import deploy

    fake.setenv("FAKE_TENSORRT", "refuse=Softmax")
    fields: dict[str, Any] = {"batch_size": 4, "fallback": ["cpu/onnxruntime"]}
    config = {"hardware": "gpu", "backend": "tensorrt", **fields}
    with deploy(net(tmp_path / "net.onnx"), config) as deployment:
        placed = {node.op: node.adapter for node in deployment.plan.placement.nodes}
        assert placed["Softmax"] == "cpu/onnxruntime" and placed["MatMul"] == "gpu/tensorrt"
        assert deployment.report.outcome == "passed"


@pytest.mark.long
def test_what_reads_a_fed_shape_runs_on_the_fallback(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Found while it is built, since only the network tells; the rest stays."""
    import numpy as np
    from paddock.deployment import deploy

    nodes = [h.make_node("Relu", ["x"], ["r"]), h.make_node("Reshape", ["r", "s"], ["y"])]
    inputs = [("x", T.FLOAT, [4, 4]), ("s", T.INT64, [2])]
    path = save(tmp_path / "reshape.onnx", nodes, inputs, [("y", T.FLOAT, None)])
    samples = [{"x": np.random.default_rng(n).random((4, 4), np.float32), "s": np.array([2, 8])} for n in range(2)]
    config = {"hardware": "gpu", "backend": "tensorrt", "fallback": ["cpu/onnxruntime"]}
    with deploy(path, config, samples=samples) as deployment:
        placed = {node.op: node.adapter for node in deployment.plan.placement.nodes}
        assert placed == {"Relu": "gpu/tensorrt", "Reshape": "cpu/onnxruntime"}
        assert deployment.run(samples[0])["y"].shape == (2, 8)
