"""`gpu/cuda` on the real CUDA provider of onnxruntime-gpu, over a CUDA runtime that is a fake and computes nothing.

What the provider takes, which of its options took effect, and what it takes and gives back of the device's memory are
its own doing here; numbers are not. Skipped where onnxruntime-gpu is not installed: `make test-gpu` has it.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from paddock.testing.cases import node_cases
from paddock_onnxruntime import kernels

pytestmark = pytest.mark.skipif(bool(fake_cuda.why_not()), reason=fake_cuda.why_not())

Call = Callable[..., Any]
WIDTH = 64


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fake's libraries."""
    return fake_cuda.build(tmp_path_factory.mktemp("fake-cuda"))


def calling(folder: Path) -> Call:
    """Calls a function of `cuda_at_work` in a process that has the libraries in `folder`."""

    def call(function: str, *arguments: Any, **environment: str) -> Any:
        answer = folder / f"answer-{os.getpid()}"
        answer.unlink(missing_ok=True)
        script = Path(__file__).with_name("cuda_at_work.py")
        done = subprocess.run(
            [sys.executable, str(script), str(answer)],
            input=pickle.dumps((function, arguments)),
            env={**fake_cuda.environment(folder), **environment},
            capture_output=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        assert not done.stderr and not done.stdout, "libraries print"
        return pickle.loads(answer.read_bytes())

    return call


@pytest.fixture
def call(fake: Path) -> Call:
    """Calls with the whole fake."""
    return calling(fake)


def saved(nodes: list[Any], folder: Path, weights: dict[str, Any], shape: tuple[Any, ...] = ("n", WIDTH)) -> Path:
    inputs = [h.make_tensor_value_info("x", T.FLOAT, list(shape))]
    outputs = [h.make_empty_tensor_value_info("y")]
    outputs[0].type.tensor_type.elem_type = T.FLOAT
    initializers = [onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()]
    graph = h.make_graph(nodes, "graph", inputs, outputs, initializers)
    path = folder / "model.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    return path


def mlp(folder: Path) -> Path:
    """Two products of 64 by 64, and between them a Reshape by extents that are computed."""
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["m"]),
        h.make_node("Shape", ["m"], ["s"]),
        h.make_node("Gather", ["s", "first"], ["rows"], axis=0),
        h.make_node("Concat", ["rows", "rest"], ["to"], axis=0),
        h.make_node("Reshape", ["m", "to"], ["r"]),
        h.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    eye = np.eye(WIDTH, dtype=np.float32)
    return saved(nodes, folder, {"w": eye, "first": np.array([0]), "rest": np.array([WIDTH])})


def test_the_table_of_kernels_is_what_the_library_answers(fake: Path) -> None:
    script = Path(fake_cuda.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "--here"],
        env=fake_cuda.environment(fake),
        capture_output=True,
        text=True,
        check=True,
    )
    kept = Path(kernels.__file__).with_name(kernels.TABLE)
    here, known = json.loads(done.stdout), json.loads(kept.read_text())
    if here["onnxruntime-gpu"] != known["onnxruntime-gpu"]:
        pytest.skip(f"the table is of {known['onnxruntime-gpu']}")
    assert here == known, f"python {script} {kept} writes it anew"


FED_SHAPES = "leaves Add, Concat, Div, Div, Max, Sub, Sub, Sub"
EXPECTED = {
    "test_center_crop_pad_crop_and_pad_expanded": FED_SHAPES,
    "test_center_crop_pad_crop_axes_chw_expanded": FED_SHAPES,
    "test_center_crop_pad_crop_axes_hwc_expanded": FED_SHAPES,
    "test_center_crop_pad_crop_expanded": FED_SHAPES,
    "test_center_crop_pad_crop_negative_axes_hwc_expanded": FED_SHAPES,
    "test_center_crop_pad_pad_expanded": FED_SHAPES,
}
"""Cases whose shape is itself fed: the provider computes with it on the host, so that compiling refuses the nodes."""
OF_THE_FAKE = ("test_lstm_", "test_rnn_", "test_simple_rnn_")
"""Recurrent kernels ask cuDNN how large their weights are, which the fake does not know."""
LATER = ("test_strnormalizer_",)
"""Provisional verdicts: kernels that need the host to have a locale."""


@pytest.mark.long
def test_every_node_case_is_placed_as_the_table_says(call: Call) -> None:
    """1,288 models: none that the table takes is left to the CPU or fails, and the provider takes none that it refuses.

    What the table refuses for its border alone (sequences, dtypes that NumPy has not) is left aside.
    """
    found = call("compare", [case.model for case in node_cases()])
    wrong = {
        name: problem
        for name, table, problem in found
        if table and problem and EXPECTED.get(name) != problem and not name.startswith((*OF_THE_FAKE, *LATER))
    }
    # Operators that onnxruntime writes out have no kernel of their own; whether all of theirs have is found out here.
    written_out = {name: why for name, why in wrong.items() if why.startswith("leaves") and "_expanded" not in name}
    assert not {name: why for name, why in wrong.items() if name not in written_out}
    assert len(written_out) < 60
    assert sum(table and not problem for _, table, problem in found) > 800


def test_a_session_is_run_bound_and_closed_and_leaves_nothing(call: Call, tmp_path: Path) -> None:
    found = call("lives", mlp(tmp_path), 300)
    assert found["shape"] == (300, WIDTH)
    assert found["bound"] == ["x", "y"] and found["written"], "outputs are written where they are bound"
    assert found["error"], "a feed of another width is an error"
    assert found["nodes"] >= 2, "the products are on the device"
    assert found["loaded"][0] > found["before"][0]
    assert found["left"][:2] == (0, 0), "something is left on the device"


def test_options_are_read_back_from_the_provider(call: Call, tmp_path: Path) -> None:
    path = mlp(tmp_path)
    plain = call("observe", path, {})
    other = {
        "graph_optimization": "basic", "tf32": True, "conv_search": "exhaustive", "conv_max_workspace": False,
        "channels_last": True, "memory_growth": "exact", "arena_limit": 64 << 20,
    }  # fmt: skip
    changed = call("observe", path, other)
    for name, value in other.items():
        assert changed[f"options.{name}"] == value
        assert plain[f"options.{name}"] != value
    assert plain["options.tf32"] is False, "float32 is float32 unless it is asked for otherwise"


def test_a_memory_limit_becomes_the_arenas(call: Call, tmp_path: Path) -> None:
    path = mlp(tmp_path)
    assert call("limited", path, "4GiB") == (4096 - 2048 - 128) << 20


def test_a_node_without_a_kernel_is_refused_by_name(call: Call, tmp_path: Path) -> None:
    path = saved([h.make_node("Relu", ["x"], ["r"]), h.make_node("Atan", ["r"], ["y"])], tmp_path, {})
    kind, problem, nodes = call("refusal", path, {})
    assert (kind, nodes) == ("Unsupported", (1,))
    assert "leaves it to the CPU (Atan)" in problem


def test_what_is_computed_from_a_fed_shape_is_refused(call: Call, tmp_path: Path) -> None:
    """The provider would compute x / sqrt(extent) on the CPU, where x is fed and the rest comes from its shape."""
    nodes = [
        h.make_node("Shape", ["x"], ["s"]),
        h.make_node("Gather", ["s", "one"], ["extent"], axis=0),
        h.make_node("Cast", ["extent"], ["f"], to=T.FLOAT),
        h.make_node("Sqrt", ["f"], ["root"]),
        h.make_node("Div", ["x", "root"], ["d"]),
        h.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    path = saved(nodes, tmp_path, {"one": np.array(1), "w": np.eye(WIDTH, dtype=np.float32)})
    kind, problem, refused = call("refusal", path, {})
    assert (kind, refused) == ("Unsupported", (4,))
    assert "Div" in problem


def test_a_narrow_depth_of_one_hot_is_cast(call: Call, tmp_path: Path) -> None:
    nodes = [
        h.make_node("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
        h.make_node("OneHot", ["i", "depth", "values"], ["o"]),
        h.make_node("MatMul", ["o", "w"], ["y"]),
    ]
    depth = np.array(WIDTH, np.int32)
    weights = {"depth": depth, "values": np.array([0, 1], np.float32), "w": np.eye(WIDTH, dtype=np.float32)}
    assert call("refusal", saved(nodes, tmp_path, weights), {}) == ("", "", ())


def test_weights_that_the_device_does_not_hold_are_a_refusal(call: Call, tmp_path: Path) -> None:
    path = saved([h.make_node("MatMul", ["x", "w"], ["y"])], tmp_path, {"w": np.zeros((WIDTH, 1 << 18), np.float32)})
    kind, problem, _ = call("refusal", path, {"arena_limit": 1 << 20})
    assert kind == "MemoryRefused" and "does not hold it" in problem
    kind, problem, _ = call("refusal", path, {}, PADDOCK_FAKE_CUDA_MEMORY=str(1 << 20))
    assert kind == "MemoryRefused" and "does not hold it" in problem


def test_a_run_that_the_arena_does_not_hold_fails_and_the_next_does_not(call: Call, tmp_path: Path) -> None:
    first, second = call("out_of_memory", mlp(tmp_path), {"arena_limit": 1 << 20}, 100_000)
    assert first.startswith("Exhausted: ") and "Available memory of" in first
    assert second == f"(2, {WIDTH})"


def test_the_fake_is_seen_through_by_the_probe(call: Call) -> None:
    usable, _, versions, devices = call("probed")
    assert usable and versions["libcudart.so.13"]
    for right, reason in devices["Paddock's fake CUDA device"].values():
        assert not right and "is off by" in reason, "products of nothing pass for right ones"


def test_without_the_drivers_library_nothing_is_on_the_cpu_in_silence(tmp_path: Path) -> None:
    folder = tmp_path / "fake"
    folder.mkdir()
    here = calling(fake_cuda.build(folder, without=["libcuda.so.1"]))
    usable, reason, _, _ = here("probed")
    if usable:
        pytest.skip("a driver of this host's stands in")
    assert reason == "missing: NVIDIA's driver 580 or newer (libcuda.so.1)"
    kind, problem, _ = here("refusal", mlp(tmp_path), {})
    assert kind == "NotAvailable"
    assert "would compute on the CPU" in problem and "libcuda.so.1" in problem
