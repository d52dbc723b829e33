"""TensorRT's real bindings, imported against stub libraries, and their types for a type checker.

The libraries are made by the C compiler of the symbols that the bindings want; each returns a null pointer, so that
nothing can be built or run with them. mypy's stubgen reads the types from the bindings' own signatures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MAJORS = ("10", "11")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip


def bindings(name: str) -> Path:
    """Where make put a set of real bindings (PADDOCK_BINDINGS by choice); skips the test where it did not."""
    place = Path(os.environ.get("PADDOCK_BINDINGS", Path(sys.prefix) / "bindings")) / name
    if not place.is_dir():
        pytest.skip(f"the real bindings {name} are not at {place}: make puts them there")
    return place


def stub_libraries(folder: Path) -> Path:
    """Libraries of both majors without anything in them, in `folder`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("the stub libraries are built with a C compiler")
    source = folder / "stub.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for major in MAJORS:
        for library in LIBRARIES:
            name = f"lib{library}.so.{major}"
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
            subprocess.run(command, check=True, capture_output=True)
    return folder


def in_child(code: str, major: str, libraries: Path) -> subprocess.CompletedProcess[str]:
    """`code` in an interpreter that has the real bindings of a major, and CUDA's where they are to be had."""
    paths = [str(bindings(f"tensorrt-{major}")), *sys.path]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def types(major: str, libraries: Path, folder: Path) -> Path:
    """The bindings' types as stub files in `folder`."""
    arguments = ["-q", "--inspect-mode", "-m", "tensorrt_bindings.tensorrt", "-o", str(folder)]
    code = f"from mypy.stubgen import main; main({arguments})"
    done = in_child(code, major, libraries)
    package = folder / "tensorrt_bindings"
    assert done.returncode == 0 and (package / "tensorrt.pyi").is_file(), done.stderr
    (package / "__init__.pyi").write_text("from .tensorrt import *\n__version__: str\n")
    path = package / "tensorrt.pyi"
    path.write_text(_readable(path.read_text()))
    return folder


def _readable(text: str) -> str:
    """What stubgen writes, made valid: a value called bool hides the type, and a default is missing after others."""
    text = re.sub(r"(?<=[ \[(])bool(?=[\]),:| =]|$)", "_bool", text, flags=re.MULTILINE)
    text = text.replace("from typing import", "from builtins import bool as _bool\nfrom typing import", 1)
    return re.sub(r"^(\s*def \w+\()(.*?)(\) ->.*)$", _defaulted, text, flags=re.MULTILINE)


def _defaulted(found: re.Match[str]) -> str:
    head, arguments, tail = found.groups()
    parts, seen = [], False
    for part in arguments.split(", "):
        seen = seen or "=" in part
        parts.append(f"{part} = ..." if seen and "=" not in part and ":" in part and part[0] != "*" else part)
    return head + ", ".join(parts) + tail


def check(package: Path, stubs: Path, folder: Path, cache: Path) -> list[str]:
    """What mypy says of a package's uses of TensorRT by these types: one line for each error."""
    config = folder / "mypy.ini"
    config.write_text(
        f"[mypy]\nmypy_path = {package.parent}:{stubs}\npython_version = 3.11\nexplicit_package_bases = true\n"
        "check_untyped_defs = true\n[mypy-tensorrt_bindings.*]\nignore_errors = true\n"
        # Of all others `make lint` knows the types: here it is TensorRT's that count.
        "[mypy-paddock.*,paddock_onnxruntime.*,numpy.*,pydantic.*,onnx.*,cuda.*]\n"
        "ignore_missing_imports = true\nfollow_imports = skip\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(cache), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]
