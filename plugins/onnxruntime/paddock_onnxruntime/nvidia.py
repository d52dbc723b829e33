"""NVIDIA's driver and libraries as ONNX Runtime's CUDA provider needs them: found, told apart, loaded; and the devices.

Nothing here loads a library but `load` and `devices`, which are for processes that may.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paddock.libraries import file_version, find_library, package_folders

DRIVER = "libcuda.so.1"
OLDEST_DRIVER = {"13": 580, "12": 525}
"""By CUDA's major version the first branch of the driver that runs it (CUDA's release notes, minor compatibility)."""
_MODULE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Library:
    """A library that the provider asks for, and the wheel of NVIDIA's that brings it."""

    name: str
    wheel: str
    folder: tuple[str, ...]
    """Where that wheel puts it, under a folder that Python imports from."""
    needed: bool = True
    """Whether nothing runs without it; else what needs it fails by itself."""


def libraries(cuda: str) -> tuple[Library, ...]:
    """What a provider built with this version of CUDA loads, in the order in which one needs another."""
    major = cuda.partition(".")[0]
    place = ("nvidia", f"cu{major}", "lib")
    return (
        Library(f"libcublasLt.so.{major}", "nvidia-cublas", place),
        Library(f"libcublas.so.{major}", "nvidia-cublas", place),
        Library(f"libnvrtc.so.{major}", "nvidia-cuda-nvrtc", place, needed=False),
        Library("libcurand.so.10", "nvidia-curand", place),
        Library(f"libcufft.so.{int(major) - 1 if major.isdigit() else major}", "nvidia-cufft", place, needed=False),
        Library(f"libcudart.so.{major}", "nvidia-cuda-runtime", place),
        Library("libcudnn.so.9", f"nvidia-cudnn-cu{major}", ("nvidia", "cudnn", "lib")),
    )


def located(cuda: str) -> dict[Library, Path | None]:
    """The file of each library, None where it is not to be found."""
    return {library: find_library(library.name, package_folders(*library.folder)) for library in libraries(cuda)}


def driver_version() -> str | None:
    """The version of the driver: the kernel module's, else that of its library; None where there is no driver."""
    try:
        said = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _MODULE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        said = None
    if said is not None:
        return said[1]
    found = find_library(DRIVER)
    return None if found is None else file_version(found)


@dataclass(frozen=True, slots=True)
class Lack:
    """What is not here, or does not fit, and the wheels that bring it; none for what comes with the system."""

    what: str
    wheels: tuple[str, ...] = ()


def lacks(cuda: str) -> tuple[Lack, ...]:
    """What is not here of what a provider built with this version of CUDA needs, or does not fit it."""
    major, driver = cuda.partition(".")[0], driver_version()
    oldest = OLDEST_DRIVER.get(major, 0)
    found = []
    if driver is None or find_library(DRIVER) is None:
        found.append(Lack(f"NVIDIA's driver{f' {oldest} or newer' if oldest else ''} ({DRIVER})"))
    elif 1 < _branch(driver) < oldest:
        found.append(Lack(f"NVIDIA's driver {oldest} or newer for CUDA {major} ({driver} is here)"))
    absent = [library for library, path in located(cuda).items() if path is None and library.needed]
    for what, own in ((f"CUDA {major}", False), ("cuDNN 9", True)):
        parts = [library for library in absent if library.name.startswith("libcudnn") is own]
        if parts:
            names = ", ".join(library.name for library in parts)
            found.append(Lack(f"{what} ({names})", tuple(dict.fromkeys(library.wheel for library in parts))))
    return tuple(found)


def _branch(driver: str) -> int:
    """The first number of a driver's version; 0 where it has none."""
    first = driver.partition(".")[0]
    return int(first) if first.isdigit() else 0


def versions(cuda: str) -> dict[str, str]:
    """The versions of the driver and of the libraries found, which the numbers may depend on."""
    found = {"NVIDIA driver": driver_version() or "none"}
    for library, path in located(cuda).items():
        if path is not None:
            found[library.name] = _version(library, path)
    return found


def load(cuda: str) -> None:
    """Loads the libraries that lie in wheels, where the loader does not look; raises `OSError`."""
    for library, path in located(cuda).items():
        if path is not None:
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                if library.needed:
                    raise


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as the driver tells of it; `memory` in bytes."""

    index: int
    name: str
    memory: int
    capability: tuple[int, int]


def devices() -> tuple[Gpu, ...]:
    """The devices that the driver shows to this process, by CUDA_VISIBLE_DEVICES too; raises `OSError` with why not."""
    driver = ctypes.CDLL(DRIVER)
    count = ctypes.c_int()
    _check(driver, driver.cuInit(0))
    _check(driver, driver.cuDeviceGetCount(ctypes.byref(count)))
    return tuple(_device(driver, index) for index in range(count.value))


def _device(driver: ctypes.CDLL, index: int) -> Gpu:
    handle, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    _check(driver, driver.cuDeviceGet(ctypes.byref(handle), index))
    _check(driver, driver.cuDeviceGetName(name, len(name), handle))
    _check(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle))
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and MINOR
        number = ctypes.c_int()
        _check(driver, driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, handle))
        capability.append(number.value)
    return Gpu(index, name.value.decode(errors="replace"), memory.value, (capability[0], capability[1]))


def _check(driver: ctypes.CDLL, status: int) -> None:
    if status != 0:
        said = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(said))
        raise OSError(f"the driver says: {(said.value or b'error').decode()} ({status})")


def _version(library: Library, path: Path) -> str:
    """The wheel's version where the file lies in it, else what the file's name says."""
    for folder in package_folders(*library.folder):
        if path.is_relative_to(folder.resolve()):
            try:
                return importlib.metadata.version(library.wheel)
            except importlib.metadata.PackageNotFoundError:
                break
    return file_version(path) or "unknown"


def as_facts(gpu: Gpu) -> Mapping[str, object]:
    """A device as JSON data."""
    return {"name": gpu.name, "memory": gpu.memory, "capability": ".".join(map(str, gpu.capability))}
