"""Every name, enum member and signature of TensorRT's that the adapter uses is in the real bindings of both majors.

So is what the fake has, by which the rest of the tests run. And what derives from TensorRT's classes is made for real.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorrt_typed import MAJORS, ROOT, bindings, check, in_child, stub_libraries, types

PACKAGE = ROOT / "plugins/tensorrt/paddock_tensorrt"
FAKE = Path(__file__).parent / "fake_sdk"

Checked = Callable[[str, Path], list[str]]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_libraries(tmp_path_factory.mktemp("stubs"))


@pytest.fixture(scope="module")
def typed(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with the types of a major's bindings."""
    made: dict[str, Path] = {}

    def of(major: str) -> Path:
        if major not in made:
            made[major] = types(major, libraries, tmp_path_factory.mktemp(f"types-{major}"))
        return made[major]

    return of


@pytest.fixture(scope="module")
def checked(typed: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """What is wrong with a package by a major's types."""
    folder = tmp_path_factory.mktemp("checked")
    return lambda major, package: check(package, typed(major), folder, folder / "cache")


@pytest.mark.parametrize("major", MAJORS)
def test_the_adapter_uses_nothing_that_a_major_lacks(major: str, checked: Checked) -> None:
    assert checked(major, PACKAGE) == []


@pytest.mark.parametrize("major", MAJORS)
def test_neither_does_what_it_is_measured_against(major: str, checked: Checked) -> None:
    assert checked(major, ROOT / "benchmarks/gpu_tensorrt.py") == []


WRONG = {
    "config.set_flag(trt.BuilderFlag.FP16)": {"11"},
    "config.int8_calibrator": {"11"},
    "engine.device_memory_size": {"11"},
    "trt.OnnxParser.supports_model": {"11"},
    "config.build_route": {"10"},
    "trt.CausalMaskKind.NONE": {"10"},
    "config.set_memory_pool_limit(1 << 20)": {"10", "11"},
    "config.no_such_thing()": {"10", "11"},
    "engine.get_tensor_name('0')": {"10", "11"},
    "config.get_flag(trt.BuilderFlag.TF32)": set(),
}
"""Uses of TensorRT, with the majors on which they are wrong."""


@pytest.mark.parametrize("major", MAJORS)
def test_the_check_fails_where_a_major_lacks_a_name_or_takes_other_arguments(
    major: str, checked: Checked, tmp_path: Path
) -> None:
    """The adapter with these uses in it: in a method of its own module, on objects that it has made."""
    package = tmp_path / "paddock_tensorrt"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    path, before = package / "build.py", "    timings = _kept_timings("
    text = path.read_text()
    assert text.count(before) == 1
    engine = "    engine = trt.Runtime(heard.logger).deserialize_cuda_engine(b'')\n"
    path.write_text(text.replace(before, engine + "".join(f"    {use}\n" for use in WRONG) + before))
    lines = path.read_text().splitlines()
    numbers = {int(found[1]) for line in checked(major, package) if (found := re.search(r"build\.py:(\d+): ", line))}
    assert {lines[number - 1].strip() for number in numbers} == {
        use for use, majors in WRONG.items() if major in majors
    }


DERIVED = """
from paddock_tensorrt import build, cuda, engine, outputs, progress, sdk
from paddock_tensorrt.sdk import trt
from paddock.errors import NotAvailable

told = []
bar = progress.Bar(told.append)
monitor = progress.monitor(bar)
monitor.phase_start("Building", None, 2)
assert monitor.step_complete("Building", 0) is True
monitor.phase_finish("Building")
assert "50% Building" in told[-1], told
output = outputs.OpenOutput("y", cuda.Memory)
output.allocator.notify_shape("y", trt.Dims((2, 3)))
assert output._shape == (2, 3)
heard = sdk.said()
heard.logger.log(trt.ILogger.Severity.WARNING, "no matter")
heard.logger.log(trt.ILogger.Severity.ERROR, "that is\\n  why")
assert heard.why() == "that is why", heard.why()
assert sdk.extents(trt.Dims((2, -1, 3))) == (2, -1, 3) and sdk.extents(trt.Dims(())) == ()
for make in (lambda: build.Network(sdk.said()), lambda: engine.load(b"", (), 0, sdk.said())):
    try:
        make()
    except NotAvailable as error:
        assert error.problem.startswith("TensorRT gives no "), error
    else:
        raise SystemExit("stub libraries gave an object")
print(trt.__version__)
"""


@pytest.mark.parametrize("major", MAJORS)
def test_what_derives_from_tensorrts_classes_is_made_and_a_null_builder_is_an_error(
    major: str, libraries: Path
) -> None:
    done = in_child(DERIVED, major, libraries)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{major}.")


@pytest.mark.parametrize("major", MAJORS)
def test_what_is_built_is_a_buffer(major: str, libraries: Path) -> None:
    """Its docstrings do not tell; of an object without a content Python can tell without asking for it."""
    code = (
        "import ctypes, tensorrt_bindings as t\n"
        "made = [ctypes.py_object(kind.__new__(kind)) for kind in (t.IHostMemory, t.Dims)]\n"
        "print(*map(ctypes.pythonapi.PyObject_CheckBuffer, made))"
    )
    done = in_child(code, major, libraries)
    assert done.stdout.split() == ["1", "0"], done.stderr


TOLD = """
import json, re, tensorrt_bindings as t
found = {}
for name in ("ILogger", "IProgressMonitor", "IOutputAllocator"):
    kind = getattr(t, name)
    told = re.findall(r"def ([a-z]\\w*)\\(self(?:, )?(.*?)\\):", kind.__doc__)
    for member, value in vars(kind).items():
        if member[0] != "_" and callable(value) and not isinstance(value, type):
            told += re.findall(rf"({member})\\(self: [\\w.]+(?:, )?(.*?)\\) ->", value.__doc__)
    found[name] = {m: [a.partition(":")[0] for a in text.split(", ") if a] for m, text in told}
print(json.dumps(found))
"""
"""The methods that bindings call on what derives from these classes, by their docstrings. They look them up by name."""


@pytest.mark.parametrize("major", MAJORS)
def test_what_the_bindings_call_back_has_the_names_and_arguments_that_they_call(
    major: str, libraries: Path, tmp_path: Path
) -> None:
    done = in_child(TOLD, major, libraries)
    assert done.returncode == 0, done.stderr
    real = json.loads(done.stdout)
    assert real["IOutputAllocator"]["reallocate_output_async"] == [
        "tensor_name",
        "memory",
        "size",
        "alignment",
        "stream",
    ]
    assert _overrides(PACKAGE) == real
    package = tmp_path / "paddock_tensorrt"
    for module, right, wrong in (
        ("sdk", "def log(", "def loog("),
        ("progress", "def step_complete(", "def step_completed("),
        ("outputs", "def notify_shape(", "def notify_shapes("),
        ("outputs", "alignment: int, stream: Any", "alignment: int"),
    ):
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        path = package / f"{module}.py"
        assert right in path.read_text()
        path.write_text(path.read_text().replace(right, wrong))
        assert _overrides(package) != real, wrong


def _overrides(package: Path) -> dict[str, dict[str, list[str]]]:
    """What derives from a class of TensorRT's: by that class and method, the arguments."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in package.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id == "trt":
                        methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
                        found[base.attr] = {
                            m.name: [a.arg for a in m.args.args[1:]] for m in methods if m.name[0] != "_"
                        }
    return found


def test_tensorrt_is_reached_by_what_has_its_types_alone() -> None:
    """What a type checker is to hold against both majors must come from `sdk.trt`."""
    for path in PACKAGE.glob("*.py"):
        if path.stem == "sdk":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
                names = {module, *(alias.name for alias in node.names)}
                assert not {name.partition(".")[0] for name in names} & {"tensorrt", "tensorrt_bindings"}, path
                assert "_tensorrt" not in names, path
            assert not (isinstance(node, ast.Attribute) and node.attr == "_tensorrt"), path


@pytest.mark.parametrize("major", MAJORS)
def test_the_fake_has_only_what_the_real_one_has(major: str, typed: Callable[[str], Path]) -> None:
    real = _classes(typed(major) / "tensorrt_bindings/tensorrt.pyi")
    fake = _classes(FAKE / "tensorrt_bindings/__init__.py")
    assert len(fake) > 25
    for name, members in fake.items():
        assert name in real, name
        for member, arguments in members.items():
            if member == "nbytes" or (member.startswith("_") and member != "__getitem__") or name == "Severity":
                continue
            assert member in real[name], f"{name}.{member}"
            ways = real[name][member]
            assert any(_like(arguments[0], way) for way in ways), f"{name}.{member}{arguments[0]} is {ways}"


def _like(fake: Any, real: Any) -> bool:
    """Whether arguments are the same by name, in order; of what is no function nothing is compared."""
    return fake is None or real is None or real[:1] == ("*args",) or fake == real


def _classes(path: Path) -> dict[str, dict[str, list[Any]]]:
    """By class (nested ones too) and member, the argument names of each overload; None for what is no function."""
    found: dict[str, dict[str, list[Any]]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            members = found.setdefault(node.name, {})
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in item.decorator_list)
                    rest = [f"*{item.args.vararg.arg}"] if item.args.vararg else []
                    names = tuple([a.arg for a in item.args.args[1:]] + rest)
                    members.setdefault(item.name, []).append(None if is_property else names)
                    if item.name == "__init__":
                        for name in filter(None, map(_own, ast.walk(item))):  # attributes are the real one's properties
                            members.setdefault(name, []).append(None)
                elif isinstance(item, ast.Assign):
                    members.update({t.id: [None] for t in item.targets if isinstance(t, ast.Name)})
                elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    members[item.target.id] = [None]
    return found


def _own(node: ast.AST) -> str:
    """The attribute of `self` that it sets, if any."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" else ""
    return ""


# CUDA's bindings, which import without a driver


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The real `cuda.bindings.runtime`."""
    import sys

    monkeypatch.syspath_prepend(str(bindings("cuda")))
    for name in [name for name in sys.modules if name.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    from paddock_tensorrt import cuda

    cuda.runtime.cache_clear()
    return cuda.runtime()  # type: ignore[no-any-return]


def test_every_call_of_cudas_is_a_real_one_with_these_arguments(runtime: ModuleType) -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse((PACKAGE / "cuda.py").read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")
    }
    assert {"cudaMalloc", "cudaMemcpyAsync", "cudaGraphLaunch"} <= used
    kinds = (runtime, runtime.cudaError_t, runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode)
    assert [name for name in sorted(used) if not any(hasattr(kind, name) for kind in kinds)] == []
    fake = _functions(FAKE / "cuda/bindings/runtime.py")
    for name in sorted(name for name in used if callable(getattr(runtime, name, None))):
        if inspect.isclass(getattr(runtime, name)):
            continue
        told = re.match(rf"{name}\((.*?)\)", getattr(runtime, name).__doc__)
        assert told is not None and name in fake, name
        real = [argument.partition(":")[0].split()[-1] for argument in told[1].split(", ") if argument]
        assert fake[name] == real, name


def _functions(path: Path) -> dict[str, list[str]]:
    tree = ast.parse(path.read_text())
    return {node.name: [a.arg for a in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_without_a_driver_cuda_says_so(runtime: ModuleType) -> None:
    from paddock.errors import NotAvailable, PaddockError
    from paddock_tensorrt import cuda

    status, _ = runtime.cudaGetDeviceCount()
    if status == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a driver here")
    if status == runtime.cudaError_t.cudaErrorNoDevice:  # there is a driver, which lists none
        assert cuda.gpus() == []
    else:
        with pytest.raises(NotAvailable, match="driver version is insufficient"):
            cuda.gpus()
    for call in (lambda: cuda.use(0), cuda.Stream, lambda: cuda.Memory(16), lambda: cuda.Pinned(16)):
        with pytest.raises(PaddockError, match="^CUDA: "):
            call()
    assert cuda.versions()[0].startswith("13.")
