"""The import rules of the design: who may import whom, and that importing loads no SDK."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "core" / "paddock"
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))

# Read top to bottom, this is the way a config takes; a module imports only what stands above it.
ORDER = [
    "errors", "libraries", "graph", "memory_plan", "plan", "jsontext", "config_errors", "config", "machine", "model",
    "planning", "planning.classes", "planning.aliasing", "planning.workspace", "planning.mincut", "planning.casts",
    "formats", "spi", "device_session", "defects",
    "onnx_wire", "onnx_tensors", "onnx_store", "onnx_extract", "onnx_ports", "onnx_cast", "onnx_ranges", "onnx_shapes",
    "onnx_dtypes", "onnx_cast_check",
    "onnx_format", "builtin", "spawned", "wire", "child", "cache_locks", "cache_entries", "cache_pruning",
    "cache", "plugin_files", "requirements", "admission", "contract", "devices", "wellknown", "new_plugin", "registry",
    "planning.corners", "planning.shapes", "planning.cost", "planning.partition", "planning.verifier",
    "planning.operators", "planning.contests", "planning.mixing",
    "planning.bisection", "planning.fewest", "planning.precision",
    "planning.offset_problem", "planning.offset_greedy", "planning.offset_search", "planning.offsets",
    "planning.offsets_verifier",
    "planning.lifetimes", "planning.memory", "arena", "occupancy", "timeline", "page_layout", "page_data", "page",
    "npz", "samples", "into", "staging", "own_thread", "guard", "host", "workshop", "artifacts", "compile",
    "translation", "references", "reading", "sampling",
    "quantizing", "lowering", "placing", "flow", "pipeline", "shared", "attendant", "line", "ward",
    "built", "metrics", "verify",
    "budget", "draft", "asked", "prepare", "ready", "trials", "precision_search", "repair", "resident", "footprint",
    "checks", "rescue", "serving", "standin", "kept",
    "deployment", "shadow", "exchange", "warm", "bundle",
    "contest", "contenders", "mixing_parts", "mixing", "tune", "auto",
    "sides", "facts", "diff", "bench", "bisect", "compare", "lowered",
    "testing.outcomes", "testing.table", "testing.singles", "testing.configuring", "testing.zoo", "testing.bench",
    "testing.judging", "testing.watching", "testing.cases", "testing.comparing", "testing.nodes", "testing.known",
    "testing.matrix", "testing.__main__", "testing.light",
    "testing.importing", "testing.checks_contract", "testing.checks_process", "testing.checks_buffers",
    "testing.checks_models", "testing.checks_honesty", "testing.checks_precision",
    "testing.checks_input", "testing.checks_concurrency", "testing.checks_memory",
    "testing.runner", "testing.certificate", "testing.conformance", "testing",
    "show", "terminal", "cache_cli", "tune_cli",
    "diff_cli", "bench_cli", "bundle_cli", "plugins_cli", "conformance_cli", "cli",
]  # fmt: skip
SDKS = (
    "paddle",
    "paddle2onnx",
    "onnx",
    "onnxruntime",
    "onnxruntime_qnn",
    "openvino",
    "tensorrt",
    "tensorrt_bindings",
    "cuda",
    "torch",
)
FOR_PLUGINS = {
    f"paddock.{name}"
    for name in (
        "spi",
        "graph",
        "errors",
        "plan",
        "model",
        "child",
        "planning",
        "planning.memory",
        "testing",
        "defects",
        "machine",
        "libraries",
        "device_session",
        "cache",
    )
}
# Paddle is also what users call their models; the backends of this name are not to be named.
VENDORS = {"tensorrt", "openvino", "mkldnn", "onednn", "ascend", "qualcomm", "onnxruntime", "cann", "cuda"}


def modules(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(folder).with_suffix("").parts)
        yield name.removesuffix(".__init__") or "__init__", path


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Names of the modules that a file imports: anywhere in it, or at import time only."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else _at_import(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _at_import(node)


def test_the_order_names_every_core_module() -> None:
    names = {name for name, _ in modules(CORE)} - {"__init__"}
    assert {name.removesuffix(".__init__") for name in names} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_core_modules_import_only_what_stands_above(name: str) -> None:
    path = dict(modules(CORE))[name]
    allowed = {f"paddock.{above}" for above in ORDER[: ORDER.index(name)]}
    ours = {imported for imported in imports(path) if imported.startswith("paddock.")}
    known = {f"paddock.{other}" for other in ORDER}
    assert {imported for imported in ours if imported in known} <= allowed


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: str(path.name))
def test_plugins_import_only_the_contract(plugin: Path) -> None:
    package = next(path.parent for path in plugin.glob("paddock_*/__init__.py"))
    for _, path in modules(package):
        foreign = {
            name
            for name in imports(path)
            if name.startswith("paddock.") and not any(name == a or name.startswith(a + ".") for a in FOR_PLUGINS)
        }
        assert not foreign, f"{path.name} imports {foreign}"
        stated = (package.parent / "pyproject.toml").read_text().replace("-", "_")
        others = {
            name
            for name in imports(path)
            if name.startswith("paddock_")
            and not name.startswith(package.name)
            and name.partition(".")[0] not in stated
        }
        assert not others, f"{path.name} imports another plugin: {others}"


@pytest.mark.parametrize("folder", [CORE, *PLUGINS], ids=lambda path: str(path.name))
def test_no_sdk_is_imported_at_import_time(folder: Path) -> None:
    for name, path in modules(folder):
        if "tests" in path.parts:
            continue
        found = {imported.partition(".")[0] for imported in imports(path, everywhere=False)} & set(SDKS)
        assert not found, f"{name} imports {found} at import time"


def test_importing_paddock_and_its_plugins_loads_no_sdk() -> None:
    packages = [next(plugin.glob("paddock_*/plugin.py")).parent.name for plugin in PLUGINS]
    code = "import sys, paddock, paddock.registry\n"
    code += "".join(f"import {package}.plugin\n" for package in packages)
    code += f"print(sorted(set({SDKS!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_core_code_names_no_vendor() -> None:
    """Code, not prose: docstrings and comments may give examples; names and messages may not."""
    for name, path in modules(CORE):
        tree = ast.parse(path.read_text())
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                text = node.value
            elif isinstance(node, (ast.Name, ast.Attribute)):
                text = node.id if isinstance(node, ast.Name) else node.attr
            found = set(re.findall(r"[a-z0-9]+", text.lower())) & VENDORS
            assert not found, f"{name} line {getattr(node, 'lineno', '?')} names {found}: {text!r}"


def test_modules_are_one_idea_each() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in (CORE, *PLUGINS)
        for _, path in modules(folder)
        if "tests" not in path.parts and (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long, "a module of more than 400 lines is two ideas"
