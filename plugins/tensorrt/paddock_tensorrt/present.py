"""What of driver, CUDA and TensorRT is here, and whether it fits together: from files and package metadata alone.

Nothing is loaded: a library that does not fit its driver ends the process that loads it. So libraries are looked for
where the linker would (LD_LIBRARY_PATH, the folders of ld.so.conf, the usual ones) and in the wheels that bring them.

Sources: CUDA 13's release notes (a driver of 580 or newer), TensorRT's support matrix (cuDNN is optional, and nothing
here needs it), the bindings' own import (`tensorrt_libs`, lib*.so.MAJOR).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paddock.plan import Verdict

from paddock_tensorrt.sdk import MODULES

SOURCE = "package metadata, library names and /proc; nothing was loaded"
ROOT = Path("/")
VERSION_FILE = ROOT / "proc/driver/nvidia/version"
DRIVER_LIBRARY = "libcuda.so.1"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
"""What the bindings are linked with, each as lib*.so.MAJOR."""
BINDINGS = ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings", "tensorrt-cu13", "tensorrt-cu12", "tensorrt")
"""Distributions whose version is TensorRT's."""
CUDA = "cuda-bindings"
OLDEST, NEWEST = (10, 16), 11
"""TensorRT 10.16 to 11.x is what the adapter was checked against."""
DRIVERS: Mapping[int, int] = {13: 580, 12: 525}
"""By CUDA's major version, the oldest series of drivers that runs it."""

DRIVER_REMEDY = "install NVIDIA's driver, version 580 or newer, on a host with an NVIDIA GPU (nvidia-smi then lists it)"
TENSORRT_REMEDY = "pip install tensorrt-cu13 from NVIDIA's own package index, which has the libraries"
LIBRARIES_REMEDY = (
    "pip install tensorrt-cu13-libs of the same version from NVIDIA's own package index, or put the folder with "
    "TensorRT's libraries on LD_LIBRARY_PATH"
)
CUDA_REMEDY = "pip install 'cuda-bindings>=13,<14' onnx, or pip install paddock-tensorrt[sdk]"


@dataclass(frozen=True)
class Present:
    """What was found; "" for what is not here.

    `tensorrt` is the bindings' version, `libraries` the folder of each of TensorRT's libraries of that major version.
    """

    driver: str = ""
    driver_library: str = ""
    tensorrt: str = ""
    libraries: Mapping[str, str] | None = None
    cuda: str = ""
    onnx: str = ""

    def versions(self) -> dict[str, str]:
        """Versions by what they are of: part of every key."""
        found = {"tensorrt": self.tensorrt, "nvidia-driver": self.driver, CUDA: self.cuda, "onnx": self.onnx}
        return {name: version for name, version in found.items() if version}


def look() -> Present:
    """Looks in a few milliseconds."""
    tensorrt = _tensorrt()
    folders = list(_folders())
    libraries = {}
    if tensorrt:
        major = tensorrt.partition(".")[0]
        libraries = {name: _library(f"lib{name}.so.{major}", folders) for name in LIBRARIES}
    library = _library(DRIVER_LIBRARY, folders)
    return Present(
        driver=_driver(library), driver_library=library, tensorrt=tensorrt, libraries=libraries,
        cuda=_version(CUDA), onnx=_version("onnx"),
    )  # fmt: skip


def judge(found: Present) -> tuple[Verdict, str]:
    """Whether it all is here and fits, naming everything that does not; and what to do about the first of it."""
    problems = [(problem, remedy) for problem, remedy in _problems(found) if problem]
    if not problems:
        return Verdict.yes(f"TensorRT {found.tensorrt}, driver {found.driver or 'of unknown version'}", SOURCE), ""
    return Verdict.no("; ".join(problem for problem, _ in problems), SOURCE), "; ".join(
        dict.fromkeys(remedy for _, remedy in problems)
    )


def _problems(found: Present) -> Iterator[tuple[str, str]]:
    if not found.driver_library:
        yield f"there is no NVIDIA driver here (no {DRIVER_LIBRARY})", DRIVER_REMEDY
    elif found.driver and found.cuda:
        major = int(found.cuda.partition(".")[0])
        needed = DRIVERS.get(major)
        if needed is not None and _numbers(found.driver)[:1] < (needed,):
            yield f"the driver is {found.driver}, and CUDA {major} needs {needed} or newer", DRIVER_REMEDY
    if not found.tensorrt:
        yield "TensorRT's Python package is not installed", TENSORRT_REMEDY
    else:
        numbers = _numbers(found.tensorrt)
        if numbers[:2] < OLDEST or numbers[0] > NEWEST:
            known = ".".join(map(str, OLDEST))
            yield f"TensorRT is {found.tensorrt}; this adapter knows {known} to {NEWEST}.x", TENSORRT_REMEDY
        missing = [f"lib{n}.so.{numbers[0]}" for n, place in (found.libraries or {}).items() if not place]
        if missing:
            yield f"TensorRT {found.tensorrt} lacks its libraries {', '.join(missing)}", LIBRARIES_REMEDY
    for name, version in ((CUDA, found.cuda), ("onnx", found.onnx)):
        if not version:
            yield f"{name} is not installed", CUDA_REMEDY
    if found.cuda and not found.cuda.startswith("13."):
        yield f"{CUDA} is {found.cuda}, and this adapter knows 13.x", CUDA_REMEDY


def _tensorrt() -> str:
    """The version of TensorRT's bindings, where a module of theirs is to be had."""
    if all(importlib.util.find_spec(module) is None for module in MODULES):
        return ""
    return next((version for name in BINDINGS if (version := _version(name))), "")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""


def _driver(library: str) -> str:
    """The driver's version: from the kernel module or, where a container hides that, from its library's name."""
    try:
        match = re.search(r"Kernel Module\D+(\d+(?:\.\d+)+)", VERSION_FILE.read_text(errors="replace"))
    except OSError:
        match = None
    if match is None and library:
        match = re.search(r"\.so\.(\d+\.\d+(?:\.\d+)*)$", str(Path(library).resolve()))
    return match[1] if match else ""


def _library(name: str, folders: list[Path]) -> str:
    return next((str(folder / name) for folder in folders if (folder / name).exists()), "")


def _folders() -> Iterator[Path]:
    """Where libraries are: in wheels, and where the linker looks."""
    for module in ("tensorrt_libs", *MODULES):  # the bindings look beside themselves, too
        spec = importlib.util.find_spec(module)
        yield from map(Path, (spec.submodule_search_locations or ()) if spec is not None else ())
    yield from (Path(place) for place in os.environ.get("LD_LIBRARY_PATH", "").split(":") if place)
    for file in (ROOT / "etc/ld.so.conf", *sorted((ROOT / "etc/ld.so.conf.d").glob("*.conf"))):
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        yield from (Path(line.strip()) for line in lines if line.strip().startswith("/"))
    usual = ("usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib", "usr/local/cuda/lib64", "usr/lib/wsl/lib")
    yield from (ROOT / place for place in (*usual, "usr/local/nvidia/lib64"))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
