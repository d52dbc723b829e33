"""What of driver, CUDA and TensorRT is here, and whether it fits together: from files and package metadata alone.

Nothing is loaded: a library that does not fit its driver ends the process that loads it.

Sources: CUDA 13's release notes (a driver of 580 or newer), TensorRT's support matrix (cuDNN is optional, and nothing
here needs it), the bindings' own import (`tensorrt_libs`, lib*.so.MAJOR).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paddock.libraries import Driver, file_version, find_driver, find_library
from paddock.plan import Verdict

SOURCE = "package metadata, library names and /proc; nothing was loaded"
DRIVER_LIBRARY = "libcuda.so.1"
MODULES = ("tensorrt_bindings", "tensorrt")
"""By what name TensorRT is imported: as the bindings in NVIDIA's wheels, or as in its .deb."""
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
"""What the bindings are linked with, each as lib*.so.MAJOR."""
BINDINGS = ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings", "tensorrt-cu13", "tensorrt-cu12", "tensorrt")
"""Distributions whose version is the bindings'."""
LIBRARY_WHEELS = ("tensorrt-cu13-libs", "tensorrt-cu12-libs")
"""Distributions that bring the libraries, in the package `tensorrt_libs`."""
CUDA = "cuda-bindings"
OLDEST, NEWEST = (10, 16), 11
"""TensorRT 10.16 to 11.x is what the adapter was checked against."""
DRIVER = 580
"""The oldest series of drivers that runs CUDA 13, which is the only one known here."""

DRIVER_REMEDY = "install NVIDIA's driver, version 580 or newer, on a host with an NVIDIA GPU (nvidia-smi then lists it)"
GPU_REMEDY = "nvidia-smi and the kernel's log (dmesg) tell what is wrong with the driver or the GPU"
TENSORRT_REMEDY = (
    "pip install 'tensorrt-cu13>=10.16,<12', on a host that reaches NVIDIA's own package index, where its libraries are"
)
CUDA_REMEDY = "pip install 'cuda-bindings>=13,<14' onnx, or pip install paddock-tensorrt[sdk]"


@dataclass(frozen=True)
class Present:
    """What was found; "" for what is not here.

    `tensorrt` is the bindings' version, `libraries` the version of each of TensorRT's libraries of that major version:
    as much of it as is told, None for one that is not here.
    """

    driver: Driver | None = None
    tensorrt: str = ""
    libraries: Mapping[str, str | None] = field(default_factory=dict)
    cuda: str = ""
    onnx: str = ""

    def versions(self) -> dict[str, str]:
        """Versions by what they are of: part of every key."""
        driver = "" if self.driver is None else self.driver.version
        found = {"tensorrt": self.tensorrt, "nvidia-driver": driver, CUDA: self.cuda, "onnx": self.onnx}
        return {name: version for name, version in found.items() if version}


def look() -> Present:
    """Looks in a few milliseconds."""
    tensorrt = _tensorrt()
    major = tensorrt.partition(".")[0]
    libraries = {name: _library(f"lib{name}.so.{major}") for name in LIBRARIES} if tensorrt else {}
    return Present(find_driver("nvidia", DRIVER_LIBRARY), tensorrt, libraries, _version(CUDA), _version("onnx"))


def judge(found: Present) -> tuple[Verdict, str]:
    """Whether it all is here and fits, naming everything that does not; and what to do about the first of it."""
    problems = [(problem, remedy) for problem, remedy in _problems(found) if problem]
    if not problems:
        driver = found.versions().get("nvidia-driver", "of unknown version")
        return Verdict.yes(f"TensorRT {found.tensorrt}, driver {driver}", SOURCE), ""
    return Verdict.no("; ".join(problem for problem, _ in problems), SOURCE), "; ".join(
        dict.fromkeys(remedy for _, remedy in problems)
    )


def libraries_remedy(version: str) -> str:
    """What to do where the libraries that belong to bindings of this version ("" for an unknown one) are not found."""
    wheel = f"tensorrt-cu13-libs=={version}" if version else "tensorrt-cu13-libs"
    return (
        f"pip install {wheel}, on a host that reaches NVIDIA's own package index, or put the folder with its "
        "libraries of that version on LD_LIBRARY_PATH"
    )


def _problems(found: Present) -> Iterator[tuple[str, str]]:
    if found.driver is None:
        yield f"there is no NVIDIA driver here (no {DRIVER_LIBRARY})", DRIVER_REMEDY
    elif 0 < found.driver.branch < DRIVER:
        yield f"the driver is {found.driver.version}, and CUDA 13 needs {DRIVER} or newer", DRIVER_REMEDY
    if not found.tensorrt:
        yield "TensorRT's Python package is not installed", TENSORRT_REMEDY
    else:
        numbers = _numbers(found.tensorrt)
        if numbers[:2] < OLDEST or numbers[0] > NEWEST:
            known = ".".join(map(str, OLDEST))
            yield f"TensorRT is {found.tensorrt}; this adapter knows {known} to {NEWEST}.x", TENSORRT_REMEDY
        remedy = libraries_remedy(found.tensorrt)
        missing = [f"lib{name}.so.{numbers[0]}" for name, version in found.libraries.items() if version is None]
        if missing:
            yield f"TensorRT {found.tensorrt} lacks its libraries {', '.join(missing)}", remedy
        for name, version in found.libraries.items():
            if version and not _same(version, found.tensorrt):
                yield f"TensorRT's bindings are {found.tensorrt}, and its lib{name} is {version}", remedy
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


def _library(name: str) -> str | None:
    """The version of a library, as much of it as the wheel that brings it or the file's name tells; None without it.

    The bindings load what lies in the wheel of libraries, then what lies beside themselves, then what the loader finds.
    """
    for module in ("tensorrt_libs", *MODULES):
        if any(Path(place, name).is_file() for place in _places(module)):
            return next((version for wheel in LIBRARY_WHEELS if (version := _version(wheel))), "")
    path = find_library(name)
    return None if path is None else file_version(path)


def _places(module: str) -> list[str]:
    """The folders of a module that may be imported; nothing is."""
    spec = importlib.util.find_spec(module)
    return list(spec.submodule_search_locations or ()) if spec is not None else []


def _same(version: str, other: str) -> bool:
    """Whether two versions are the same as far as both tell."""
    return all(one == another for one, another in zip(_numbers(version), _numbers(other), strict=False))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
