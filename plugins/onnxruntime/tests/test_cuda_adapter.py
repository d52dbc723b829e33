"""What of `gpu/cuda` needs no GPU: what it says is missing, what it plans, what it refuses, and how it copies."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_at_work import DEVICE, adapter_of, model_of
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h
from paddock.diff import diff
from paddock.errors import BuildFailed, Exhausted, MemoryRefused, NotAvailable, OtherShape, Unsupported
from paddock.graph import Graph, Node, Value
from paddock.libraries import Driver, find_library
from paddock.plan import Answer, Precision
from paddock.registry import Registry
from paddock.spi import Context
from paddock_onnxruntime import cuda as cuda_module
from paddock_onnxruntime import cuda_footprint, kernels, nvidia
from paddock_onnxruntime.cuda import INSTALL, GpuCuda, named, verdicts
from paddock_onnxruntime.cuda_session import CudaOptions, CudaSession, Placed, astray, placed, session
from paddock_onnxruntime.host_nodes import host_names
from paddock_onnxruntime.installed import Installed, installed
from paddock_onnxruntime.kernels import CPU, CUDA, OPEN_END, Kernel, registry
from paddock_onnxruntime.named import full_name, index, name
from pydantic import ValidationError

ort = pytest.importorskip("onnxruntime")


WHEEL = Installed("onnxruntime-gpu", "1.31.1", Path("/nowhere"), "13.0")
WHEEL_12 = Installed("onnxruntime-gpu", "1.31.1", Path("/nowhere"), "12.8")
PLAIN = Installed("onnxruntime", "1.32.0", Path("/nowhere"))
NAMES = tuple(library.name for library in nvidia.LIBRARIES)


def saved(
    nodes: list[Any], folder: Path, weights: Mapping[str, Any] | None = None, shape: tuple[Any, ...] = ("n", 8)
) -> Path:
    inputs = [h.make_tensor_value_info("x", T.FLOAT, list(shape))]
    outputs = [h.make_tensor_value_info("y", T.FLOAT, None)]
    initializers = [onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in (weights or {}).items()]
    graph = h.make_graph(nodes, "graph", inputs, outputs, initializers)
    path = folder / "model.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    return path


def host(monkeypatch: pytest.MonkeyPatch, here: Installed | None, driver: str | None, *absent: str) -> None:
    """A host with this onnxruntime, this driver, and all of NVIDIA's libraries but those named."""
    there = {n: Path(f"/wheels/{n}") for n in NAMES if n not in absent}
    found = None
    if driver is not None:
        found = Driver(Path(f"/usr/lib/libcuda.so.{driver}"), driver, int(driver.partition(".")[0] or 0))
    monkeypatch.setattr(cuda_module, "installed", lambda: here)
    monkeypatch.setattr(nvidia, "find_library", lambda n, folders=(): there.get(n))
    monkeypatch.setattr(nvidia, "find_driver", lambda name, library: found)


# What is missing


def test_a_host_that_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, WHEEL, "580.159.04")
    probe = GpuCuda.probe()
    assert probe.verdict.usable
    assert probe.versions["onnxruntime-gpu"] == "1.31.1"
    assert probe.versions["NVIDIA driver"] == "580.159.04"
    assert set(NAMES) <= probe.versions.keys(), "what the numbers may depend on is in every key"


@pytest.mark.parametrize(
    ("here", "driver", "absent", "reason", "remedy"),
    [
        (None, "580.1", (), "missing: onnxruntime-gpu", INSTALL),
        (PLAIN, "580.1", (), "missing: onnxruntime-gpu (onnxruntime 1.32.0 is the CPU's build)", INSTALL),
        (WHEEL, None, (), "missing: NVIDIA's driver 580 or newer (libcuda.so.1)", "install NVIDIA's driver, 580"),
        (WHEEL, "570.86.15", (), "NVIDIA's driver 580 or newer for CUDA 13 (570.86.15 is here)", "driver"),
        (WHEEL, "580.1", ("libcudnn.so.9",), "missing: cuDNN 9 (libcudnn.so.9)", "pip install nvidia-cudnn-cu13"),
        (
            WHEEL, "580.1", ("libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"),
            "missing: CUDA 13 (libcublasLt.so.13, libcublas.so.13, libcurand.so.10)",
            "pip install nvidia-cublas nvidia-curand",
        ),
        (WHEEL, None, ("libcudnn.so.9",), "(libcuda.so.1); cuDNN 9 (libcudnn.so.9)", "nvidia-cudnn-cu13; install"),
        (None, None, ("libcudnn.so.9",), "(libcuda.so.1); cuDNN 9 (libcudnn.so.9)", f"{INSTALL}; install NVIDIA's"),
        (WHEEL_12, "580.1", (), "missing: onnxruntime-gpu for CUDA 13 (1.31.1 is built for CUDA 12.8)", INSTALL),
    ],
)  # fmt: skip
def test_it_says_exactly_what_is_missing(
    here: Installed | None, driver: str | None, absent: tuple[str, ...], reason: str, remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    host(monkeypatch, here, driver, *absent)
    probe = GpuCuda.probe()
    assert not probe.verdict.usable
    assert reason in probe.verdict.reason
    assert remedy in probe.remedy


def test_libraries_that_only_some_operators_need_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, WHEEL, "580.1", "libcufft.so.12", "libnvrtc.so.13")
    assert GpuCuda.probe().verdict.usable


def test_both_builds_in_one_environment_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Installed("onnxruntime-gpu", "1.31.1", Path("/nowhere"), "13.0", ("onnxruntime",))
    host(monkeypatch, both, "580.1")
    probe = GpuCuda.probe()
    assert not probe.verdict.usable and "takes the same import name" in probe.verdict.reason


def test_a_driver_that_does_not_start_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """`paddock doctor` says no more; and by an error, which is not remembered for the next time."""

    def tell(status: int, text: Any) -> None:
        text._obj.value = b"not now"

    library = SimpleNamespace(cuInit=lambda flags: 802, cuGetErrorString=tell)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    with pytest.raises(NotAvailable, match=r"the driver says: not now \(802\)") as refused:
        GpuCuda.probe_device()
    assert refused.value.remedy == nvidia.GPU_REMEDY


def test_what_is_installed_here_is_what_would_be_imported() -> None:
    here = installed()
    assert here is not None
    assert here.version == ort.__version__
    assert here.folder == Path(ort.__file__).parent
    assert here.gpu is ("CUDAExecutionProvider" in ort.get_available_providers())


def test_probing_imports_and_loads_nothing() -> None:
    code = "import sys; from paddock_onnxruntime.cuda import GpuCuda; GpuCuda.probe(); "
    code += "print(sorted({'onnx', 'onnxruntime'} & set(sys.modules)), 'libcudart' in open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


# Where nodes go


def shape_arithmetic(folder: Path) -> Path:
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["m"]),
        h.make_node("Shape", ["m"], ["s"]),
        h.make_node("Gather", ["s", "i"], ["rows"], axis=0),
        h.make_node("Concat", ["rows", "i"], ["to"], axis=0),
        h.make_node("Atan", ["m"], ["a"]),
        h.make_node("Reshape", ["a", "to"], ["y"]),
    ]
    return saved(nodes, folder, {"w": np.eye(8, dtype=np.float32), "i": np.array([0])})


def test_without_a_device_nothing_is_certain_but_what_has_no_kernel(tmp_path: Path) -> None:
    path = shape_arithmetic(tmp_path)
    found = adapter_of(None).select_operators(model_of(path), Context(tmp_path, tmp_path)).verdicts
    assert [v.answer for v in found] == [Answer.PROVISIONAL] * 4 + [Answer.NO, Answer.PROVISIONAL]
    assert "has no kernel for ai.onnx.Atan(7)" in found[4].reason
    assert "onnxruntime-gpu 1.31.1" in found[0].source, "whose table says so"


def test_precisions_are_told_by_kernels(tmp_path: Path) -> None:
    known = registry(CUDA).kernels["", "MatMul"]
    for dtype in ("float", "float16", "bfloat16"):
        assert any(f"tensor({dtype})" in types for kernel in known for types in kernel.types.values())
    assert ("", "QLinearConv") not in registry(CUDA).kernels, "int8 would be declared otherwise"
    assert Precision.INT8 not in GpuCuda.precisions


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "opset", "reason"),
    [
        ("ArgMax", 1, {"select_last_index": 1}, 17, "select_last_index"),
        ("GRU", 3, {}, 17, "linear_before_reset"),
        ("GRU", 3, {"linear_before_reset": 1, "clip": 1.0}, 17, "clip"),
        ("GRU", 3, {"linear_before_reset": 1}, 17, ""),
        ("RNN", 3, {"activations": ["Relu"]}, 17, "activations Relu"),
        ("RNN", 3, {"activations": ["tanh", "Tanh"]}, 17, ""),
        ("LSTM", 3, {"input_forget": 1}, 17, "input_forget"),
        ("LSTM", 8, {}, 17, "peepholes"),
        ("ConvTranspose", 2, {"auto_pad": "SAME_UPPER"}, 17, "auto_pad"),
        ("ConvTranspose", 2, {"pads": [0, 1]}, 17, "differ between"),
        ("ConvTranspose", 2, {"pads": [1, 1]}, 17, ""),
        ("BatchNormalization", 5, {"training_mode": 1}, 15, "training mode"),
    ],
)
def test_what_the_provider_leaves_to_the_cpu_in_spite_of_its_kernels(
    op: str, inputs: int, attributes: Mapping[str, Any], opset: int, reason: str, tmp_path: Path
) -> None:
    """The graphs are made by hand: onnx 1.17's own inference crashes on recurrent operators of a wrong rank."""
    values = (*(Value(f"v{i}", "float32") for i in range(inputs)), Value("y", "int64" if op == "ArgMax" else "float32"))
    node = Node(0, op, tuple(range(inputs)), (inputs,), attributes=attributes)
    graph = Graph((node,), values, tuple(range(inputs)), (inputs,), opsets={"": opset})
    (found,) = verdicts(graph, tmp_path / "none", on_device=True)
    assert found.usable is not bool(reason)
    assert reason in found.reason


def test_only_what_sees_no_fed_value_may_be_on_the_host(tmp_path: Path) -> None:
    graph = model_of(shape_arithmetic(tmp_path)).graph
    assert host_names(graph) == {"p1", "p2", "p3"}


def test_bodies_see_what_their_graph_sees(tmp_path: Path) -> None:
    """In a branch: a sum of what was fed, and one of extents alone."""

    def branch(given: str) -> Any:
        made = [h.make_node("Add", [given, given], ["t"]), h.make_node("Mul", ["rows", "rows"], ["u"])]
        return h.make_graph(made, "branch", [], [h.make_empty_tensor_value_info("t")])

    nodes = [
        h.make_node("Shape", ["x"], ["rows"]),
        h.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        h.make_node("Cast", ["m"], ["c"], to=T.BOOL),
        h.make_node("If", ["c"], ["y"], then_branch=branch("x"), else_branch=branch("x")),
    ]
    graph = model_of(saved(nodes, tmp_path)).graph
    assert host_names(graph) == {"p0", "p3.then_branch.1", "p3.else_branch.1"}


@given(
    st.lists(
        st.tuples(st.sampled_from(["Add", "Shape", "Mul", "Neg"]), st.integers(0, 30), st.integers(0, 30)), max_size=12
    )
)
def test_what_may_be_on_the_host_never_depends_on_what_is_fed(steps: list[tuple[str, int, int]]) -> None:
    """Against reachability: no way from the input to such a node but through a Shape."""
    values, nodes, fed = [Value("x"), Value("c")], list[Node](), {0}
    for op, first, second in steps:
        reads = tuple(n % len(values) for n in ([first, second] if op in ("Add", "Mul") else [first]))
        made = len(values)
        values.append(Value(f"v{made}"))
        nodes.append(Node(len(nodes), op, reads, (made,)))
        if op != "Shape" and fed & set(reads):
            fed.add(made)
    graph = Graph(tuple(nodes), tuple(values), (0,), (len(values) - 1,), {1: 8})
    clear = {name(node.index) for node in nodes if node.outputs[0] not in fed}
    assert host_names(graph) == clear


@dataclass(frozen=True)
class FakeNode:
    name: str
    op_type: str = "Op"


@dataclass(frozen=True)
class FakePart:
    ep_name: str
    nodes: tuple[FakeNode, ...]

    def get_nodes(self) -> tuple[FakeNode, ...]:
        return self.nodes


@dataclass(frozen=True)
class FakeSession:
    """What onnxruntime's session tells of where its nodes are."""

    parts: tuple[FakePart, ...] = field(default_factory=tuple)

    def get_provider_graph_assignment_info(self) -> tuple[FakePart, ...]:
        return self.parts


def test_what_is_left_to_the_cpu_is_told_by_name() -> None:
    host = tuple(FakeNode(n) for n in ("p1", "p2_token_3", "p3/Fused", "p4.body.1_x", "", "p12"))
    found = placed(FakeSession((FakePart(CUDA, (FakeNode("p9"),)), FakePart(CPU, host))))
    assert found.device == 1
    assert astray(found, frozenset({"p1", "p2", "p3", "p4.body.1"})).keys() == {"", "p12"}
    assert astray(Placed(0, {"p1_depth": "Cast"}), frozenset({"p1_depth"})) == {}


def test_names_lead_back_to_nodes() -> None:
    assert [index(n) for n in ("p7", "p7_token_1", "p7/MatMulAddFusion", "p7.body.2", "Memcpy_p7", "")] == [7] * 4 + [
        None
    ] * 2
    names = ("p7", "p7_token", "p7.body.2/x", "p7.a.1.b.2", "cast", "p7.body.2")
    assert [full_name(n) for n in names] == ["p7", "p7", "p7.body.2", "p7.a.1.b.2", "", "p7.body.2"]


def test_a_depth_is_cast_where_it_is_narrow_and_the_answer_stays(tmp_path: Path) -> None:
    nodes = [
        h.make_node("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
        h.make_node("OneHot", ["i", "depth", "values"], ["a"]),
        h.make_node("OneHot", ["i", "depth", "values"], ["b"]),
        h.make_node("Add", ["a", "b"], ["y"]),
    ]
    path = saved(nodes, tmp_path, {"depth": np.array(8, np.int32), "values": np.array([0, 1], np.float32)})
    assert all(v.usable for v in verdicts(model_of(path).graph, path, on_device=True))
    x = np.random.default_rng(0).standard_normal((5, 8), np.float32)
    answers = [
        ort.InferenceSession(content, providers=[CPU]).run(None, {"x": x})[0]
        for content in (path.read_bytes(), named(path).content, named(path, [1, 2]).content)
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])
    proto = onnx.load_from_string(named(path, [1, 2]).content)
    assert [node.name for node in proto.graph.node] == ["p0", "p1_depth", "p1", "p2_depth", "p2", "p3"]


def test_defects_of_other_kernels_are_not_its_own(tmp_path: Path) -> None:
    """A Resize over three axes is reported wrong on CUDA; what the CPU's kernels get wrong says nothing of others."""
    shape = (1, 1, 4, 4, 4)
    scales = {"scales": np.array([1, 1, 2, 2, 2], np.float32)}
    resized = saved([h.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")], tmp_path, scales, shape)
    (remedy,) = adapter_of().known_defects(model_of(resized))
    assert (remedy.name, remedy.nodes) == ("cuda-resize-trilinear", (0,))
    pooled = {"kernel_shape": [2], "strides": [2], "ceil_mode": 1, "count_include_pad": 1}
    average = saved([h.make_node("AveragePool", ["x"], ["y"], **pooled)], tmp_path, {}, (1, 1, 5))
    assert adapter_of().known_defects(model_of(average)) == ()


# Sessions


def test_a_build_without_the_provider_is_refused_and_not_the_cpu_taken(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this is the build with the provider")
    source = named(shape_arithmetic(tmp_path))
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(NotAvailable, match="on the CPU"):
        session(source, CudaOptions(), 0, {})


def on_the_cpu(path: Path) -> CudaSession:
    """The session class over the CPU's provider, whose numbers are right: what it copies where is the same code."""
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return CudaSession(ort.InferenceSession(path.read_bytes(), settings, providers=[CPU]), ("y",), 1)


def test_bound_inputs_are_read_anew_in_each_run(tmp_path: Path) -> None:
    """onnxruntime copies an input of a device's when it is bound: bound once, it would give yesterday's answer."""
    path = saved([h.make_node("Neg", ["x"], ["y"])], tmp_path)
    made = on_the_cpu(path)
    x, y = np.ones((3, 8), np.float32), np.zeros((3, 8), np.float32)
    assert made.bind({"x": x, "y": y}) == {"x", "y"}
    binding = made._binding
    assert binding is not None and binding._whole is None, "no binding is kept from run to run"
    for value in (2.0, 5.0):
        x[...] = value
        assert made.run({}, ()) == {}
        np.testing.assert_array_equal(y, np.full((3, 8), -value, np.float32))


def test_outputs_are_written_into_the_callers_arrays(tmp_path: Path) -> None:
    made = on_the_cpu(saved([h.make_node("Neg", ["x"], ["y"])], tmp_path))
    x, y = np.ones((4000, 8), np.float32), np.zeros((4000, 8), np.float32)
    made.run_into({"x": x}, {"y": y})
    np.testing.assert_array_equal(y, -x)
    made.close()
    made.close()


class Device:
    """onnxruntime's session on a device, as far as outputs go: copied to their places by the number of elements.

    So does its DataTransferManager; before, onnxruntime compares nothing where an output is made on a device.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def io_binding(self) -> Any:
        self.fed: dict[str, Any] = {}
        self.places: dict[str, Any] = {}
        return self

    def bind_cpu_input(self, name: str, array: Any) -> None:
        self.fed[name] = array

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.fed[name] = value.numpy()

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.places[name] = value.numpy()

    def run_with_iobinding(self, binding: Any) -> None:
        for output, place in self.places.items():
            (found,) = self._inner.run([output], self.fed)
            if found.size != place.size:
                raise RuntimeError(
                    f"[ONNXRuntimeError] : 1 : FAIL : Tensor size mismatch: source tensor size is {found.size}, "
                    f"destination tensor size is {place.size}"
                )
            place.ravel()[...] = found.ravel()

    def get_outputs_as_ortvaluevector(self) -> list[Any]:
        return []


def turned(folder: Path, shape: tuple[Any, ...]) -> CudaSession:
    path = saved([h.make_node("Transpose", ["x"], ["y"], perm=[1, 0])], folder, {}, shape)
    return CudaSession(Device(ort.InferenceSession(path.read_bytes(), providers=[CPU])), ("y",), 1)


@pytest.mark.parametrize("shape", [("n", "m"), ("n", 256), (128, "m"), (128, 256)])
def test_an_output_of_another_shape_is_told_whatever_its_count(shape: tuple[Any, ...], tmp_path: Path) -> None:
    """On a device onnxruntime would fill an array of [m, n] with an output of [n, m], and say nothing."""
    made, x = turned(tmp_path, shape), np.arange(128 * 256, dtype=np.float32).reshape(128, 256)
    for wrong in ((128, 256), (256, 127), (512, 64)):
        with pytest.raises(OtherShape) as told:
            made.run_into({"x": x}, {"y": np.empty(wrong, np.float32)})
        assert (told.value.output, told.value.given, told.value.found) == ("y", wrong, (256, 128))
    right = np.empty((256, 128), np.float32)
    made.run_into({"x": x}, {"y": right})
    np.testing.assert_array_equal(right, x.T)


def test_an_output_is_bound_on_a_device_where_its_count_tells_its_shape(tmp_path: Path) -> None:
    y = np.empty((256, 128), np.float32)
    assert turned(tmp_path, ("n", "m")).bind({"y": y}) == frozenset()
    assert turned(tmp_path, ("n", 256)).bind({"y": y}) == {"y"}


@pytest.mark.parametrize(
    "said",
    [
        "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0",
        "Available memory of 1048576 is smaller than requested bytes of 67108864",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    ],
)
def test_a_request_that_the_memory_does_not_hold_is_told_so(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = turned(tmp_path, ("n", 256))

    def fail(*arguments: Any) -> None:
        raise RuntimeError(said)

    x, y = np.ones((128, 256), np.float32), np.empty((256, 128), np.float32)
    monkeypatch.setattr(made._inner, "run", fail, raising=False)
    monkeypatch.setattr(made._inner, "run_with_iobinding", fail)
    with pytest.raises(Exhausted, match="does not hold this request"):
        made.run({"x": x})
    with pytest.raises(Exhausted, match="does not hold this request"):
        made.run_into({"x": x}, {"y": y})
    monkeypatch.undo()
    np.testing.assert_array_equal(made.run({"x": x})["y"], x.T)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0", MemoryRefused),
        ("Available memory of 1048576 is smaller than requested bytes of 67108864", MemoryRefused),
        ("Could not find an implementation for Det(11) node with name 'p3'", Unsupported),
        ("This is an invalid model.", BuildFailed),
    ],
)
def test_what_onnxruntime_says_becomes_an_error_of_its_kind(said: str, kind: type[Exception]) -> None:
    error = cuda_module._refused(RuntimeError(said), Path("m.onnx"))
    assert type(error) is kind
    assert not isinstance(error, Unsupported) or error.nodes == (3,)


# Options and memory


def test_options_are_the_providers() -> None:
    assert CudaOptions().provider(1) == {
        "device_id": "1", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "cudnn_conv_use_max_workspace": "1",
        "prefer_nhwc": "0", "arena_extend_strategy": "kNextPowerOfTwo", "gpu_mem_limit": str(2**64 - 1),
    }  # fmt: skip
    assert CudaOptions.model_validate({"arena_limit": "1GiB"}).provider(0)["gpu_mem_limit"] == str(1 << 30)
    with pytest.raises(ValidationError):
        CudaOptions.model_validate({"cuda_graph": True})


def test_a_memory_limit_is_the_arenas_less_what_cuda_takes() -> None:
    assert adapter_of(DEVICE, memory="4GiB")._options.arena_limit == (4096 - 2048 - 128) << 20
    assert adapter_of(DEVICE, memory="4GiB", arena_limit=1 << 20)._options.arena_limit == 1 << 20
    assert adapter_of(DEVICE)._options.arena_limit is None


def test_scratch_of_convolutions_is_bounded_or_nothing_is(tmp_path: Path) -> None:
    kernel = {"w": np.ones((8, 8, 1), np.float32)}
    path = saved([h.make_node("Conv", ["x", "w"], ["y"])], tmp_path, kernel, (1, 8, 5))
    assert cuda_footprint.footprint(model_of(path), "exact", bounded=False) is None
    found = cuda_footprint.footprint(model_of(path), "exact", bounded=True)
    assert found is not None and found.workspace
    plain = cuda_footprint.footprint(model_of(shape_arithmetic(tmp_path)), "exact", bounded=False)
    assert plain is not None and not plain.workspace


# The table


def test_kernels_serve_the_versions_that_they_were_registered_for() -> None:
    bounded, open_ended = Kernel(7, 12, {}), Kernel(13, OPEN_END, {})
    assert [v for v in range(1, 20) if bounded.takes_version(v)] == [7, 8, 9, 10, 11, 12]
    assert [v for v in range(1, 20) if open_ended.takes_version(v)] == [13]


def test_a_build_for_gpus_is_never_asked_for_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end the process where one provider's libraries are missing."""
    monkeypatch.setattr(kernels, "installed", lambda: WHEEL)
    monkeypatch.setattr(kernels, "_own_kernels", lambda provider: pytest.fail("asked"))
    for provider in (CPU, CUDA):
        found = kernels.registry.__wrapped__(provider)
        assert not found.doubt and ("", "MatMul") in found.kernels
    other = Installed("onnxruntime-gpu", "1.40.0", Path("/nowhere"), "13.0")
    monkeypatch.setattr(kernels, "installed", lambda: other)
    assert "1.40.0 is here" in kernels.registry.__wrapped__(CUDA).doubt


def test_without_any_onnxruntime_the_standards_schemas_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "installed", lambda: None)
    found = kernels.registry.__wrapped__(CUDA)
    assert "not installed" in found.doubt and ("", "Softmax") in found.schemas


# Through Paddock


@pytest.mark.long
def test_a_diff_to_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    if GpuCuda.probe().verdict.usable:
        pytest.skip("its libraries are here")
    path = shape_arithmetic(tmp_path)
    found = diff(path, {"hardware": "cpu", "backend": "onnxruntime"}, {"hardware": "gpu", "backend": "cuda"})
    assert found.after.verdict.answer is Answer.NO
    assert found.after.verdict.reason == "gpu/cuda does not take 1 of 6 nodes"
    rest = diff(
        path, {"hardware": "cpu", "backend": "onnxruntime"},
        {"hardware": "gpu", "backend": "cuda", "precision": "fp16", "fallback": ["cpu/onnxruntime"]},
    )  # fmt: skip
    assert rest.after.verdict.answer is Answer.PROVISIONAL


def test_a_config_for_it_is_refused_with_what_is_missing() -> None:
    if GpuCuda.probe().verdict.usable:
        pytest.skip("its libraries are here")
    registry = Registry.discover()
    assert "gpu/cuda" in registry.adapters
    probe = registry.probe(registry.get("gpu/cuda"))
    assert not probe.verdict.usable and "missing" in probe.verdict.reason
    assert find_library("libcuda.so.1") is not None or "libcuda.so.1" in probe.verdict.reason
