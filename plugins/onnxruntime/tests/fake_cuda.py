"""Builds the fake CUDA runtime (fake_cuda.c) for onnxruntime-gpu's CUDA provider, which then loads without a GPU.

The provider's own code decides there what it takes, parses its options and takes memory from its own arena; kernels
compute nothing, so no number that comes out means anything. In a process that is to use it, LD_LIBRARY_PATH holds the
folder from the start.

`python fake_cuda.py kernels.json` writes the table of kernels that `paddock_onnxruntime.kernels` reads.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "fake_cuda.c"
PARTS = {
    "libcuda.so.1": "FAKE_DRIVER",
    "libcudart.so.13": "FAKE_CUDART",
    "libcublas.so.13": "FAKE_CUBLAS",
    "libcublasLt.so.13": "FAKE_CUBLASLT",
    "libcurand.so.10": "FAKE_CURAND",
    "libcudnn.so.9": "FAKE_CUDNN",
    "libnvinfer.so.10": "FAKE_NVINFER",
    "libnvonnxparser.so.10": "FAKE_NVONNXPARSER",
}
"""The libraries, and which part of the source each one is; what else a provider asks of it is made to return 0."""
UNVERSIONED = {"cu": "libcuda.so.1", "createNvOnnx": "libnvonnxparser.so.10", "": "libnvinfer.so.10"}
"""By the beginning of a name the library of those that say none."""
TENSORRT = ("libcudnn.so.9", "libnvinfer.so.10", "libnvonnxparser.so.10")
"""What only the table of kernels needs: onnxruntime lists them for all providers together or ends the process."""


def why_not() -> str:
    """Why it cannot be built here; "" where it can."""
    from paddock_onnxruntime.installed import installed

    here = installed()
    if here is None or not here.gpu:
        return "onnxruntime-gpu is not installed here (make test-gpu installs it)"
    missing = [tool for tool in ("cc", "readelf") if shutil.which(tool) is None]
    return f"no {' and no '.join(missing)} here to build the fake CUDA runtime with" if missing else ""


def build(folder: Path, without: Sequence[str] = ()) -> Path:
    """The libraries in `folder`, but for those named in `without`; returns the folder."""
    from paddock_onnxruntime.installed import installed

    here = installed()
    assert here is not None
    providers = sorted((here.folder / "capi").glob("libonnxruntime_providers_*.so"))
    wanted: dict[str, set[str]] = {}
    for provider in providers:
        for library, name in _undefined(provider):
            wanted.setdefault(library, set()).add(name)
    # cuDNN is not linked: the provider looks its functions up by name.
    named = re.findall(
        rb"\0(cudnn[A-Z]\w+)(?=\0)", (here.folder / "capi" / "libonnxruntime_providers_cuda.so").read_bytes()
    )
    wanted.setdefault("libcudnn.so.9", set()).update(name.decode() for name in named)
    text = SOURCE.read_text()
    for library, macro in PARTS.items():
        if library in without:
            continue
        own = text.partition(f"#ifdef {macro}\n")[2].partition("#endif")[0]
        rest = sorted(name for name in wanted.get(library, ()) if not re.search(rf"\b{name}\(", own))
        made = folder / f"{library}.c"
        made.write_text(
            f'#define {macro}\n#include "{SOURCE}"\n' + "".join(f"long {n}(void) {{ return 0; }}\n" for n in rest)
        )
        versions = folder / f"{library}.map"
        versions.write_text(f"{library} {{ global: *; }};\n")
        command = ["cc", "-shared", "-fPIC", "-O1", "-w", "-o", str(folder / library), f"-Wl,-soname,{library}"]
        command += [] if library == "libcuda.so.1" else [f"-Wl,--version-script={versions}"]
        subprocess.run([*command, str(made)], check=True)
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a process that is to use the libraries in `folder`."""
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), **more}


def _undefined(provider: Path) -> Iterator[tuple[str, str]]:
    """The functions of NVIDIA's that a provider asks for, each with the library that it is to come from."""
    said = subprocess.run(["readelf", "--dyn-syms", "-W", str(provider)], capture_output=True, text=True, check=True)
    for line in said.stdout.splitlines():
        found = re.search(r"\bUND (\w+)(?:@+(lib\S+))?", line)
        if found is None:
            continue
        name, library = found.groups()
        if library is None and re.match(r"cu[A-Z]|create(Infer|NvOnnx)|getInferLib|getPluginRegistry", name):
            library = next(value for start, value in UNVERSIONED.items() if name.startswith(start))
        if library in PARTS:
            yield library, name


def _table() -> Mapping[str, Any]:
    """What the library installed answers, for the CPU's provider and CUDA's; in a process that has the fake."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state
    from paddock_onnxruntime.installed import installed
    from paddock_onnxruntime.kernels import CPU, CUDA, OPEN_END

    here = installed()
    assert here is not None
    sets: dict[tuple[str, ...], int] = {}
    providers: dict[str, dict[str, list[Any]]] = {CPU: {}, CUDA: {}}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider not in providers or kernel.domain == "com.ms.internal.nhwc":
            continue
        start, end = kernel.version_range
        types = {n: sets.setdefault(tuple(sorted(t)), len(sets)) for n, t in sorted(kernel.type_constraints.items())}
        found = providers[kernel.provider].setdefault(f"{kernel.domain}:{kernel.op_name}", [])
        found.append([start, 0 if end == OPEN_END else end, types])
    ordered = {name: {key: found[key] for key in sorted(found)} for name, found in providers.items()}
    return {"onnxruntime-gpu": here.version, "types": [list(types) for types in sets], "providers": ordered}


def _written(table: Mapping[str, Any]) -> str:
    """The table as JSON, a line for each operator."""
    lines = [f'"onnxruntime-gpu": {json.dumps(table["onnxruntime-gpu"])}', '"types": [']
    lines[-1] += ",\n".join(json.dumps(types) for types in table["types"]) + "]"
    providers = []
    for name, found in table["providers"].items():
        rows = ",\n".join(
            f"{json.dumps(key)}: {json.dumps(kernels, separators=(',', ':'))}" for key, kernels in found.items()
        )
        providers.append(f"{json.dumps(name)}: {{\n{rows}}}")
    lines.append('"providers": {' + ",\n".join(providers) + "}")
    return "{" + ",\n".join(lines) + "}\n"


def main() -> None:
    """Writes the table into the file named on the command line."""
    if sys.argv[1:2] == ["--here"]:
        sys.stdout.write(_written(_table()))
        return
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder))
        command = [sys.executable, str(Path(__file__).resolve()), "--here"]
        said = subprocess.run(command, env=environment(built), capture_output=True, text=True, check=True)
    Path(sys.argv[1]).write_text(said.stdout)


if __name__ == "__main__":
    main()
