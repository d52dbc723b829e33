"""NVIDIA's driver and libraries as ONNX Runtime's CUDA provider needs them: found, told apart, loaded; and the devices.

Nothing here loads a library but `load` and `devices`, which are for processes that may.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paddock.errors import NotAvailable
from paddock.libraries import Driver, file_version, find_driver, find_library, package_folders

DRIVER = "libcuda.so.1"
CUDA = "13"
"""The major version of CUDA that onnxruntime's wheels are built with, and the only one known here."""
OLDEST_DRIVER = 580
"""The first branch of the driver that runs it (CUDA's release notes, minor compatibility)."""
DRIVER_REMEDY = f"install NVIDIA's driver, {OLDEST_DRIVER} or newer, with the system: nvidia-smi then lists the GPU"
GPU_REMEDY = "nvidia-smi and the kernel's log (dmesg) tell what is wrong with the driver or the GPU"


@dataclass(frozen=True, slots=True)
class Library:
    """A library that the provider asks for, and the wheel of NVIDIA's that brings it."""

    name: str
    wheel: str
    folder: tuple[str, ...]
    """Where that wheel puts it, under a folder that Python imports from."""
    needed: bool = True
    """Whether nothing runs without it; else what needs it fails by itself."""


_PLACE = ("nvidia", f"cu{CUDA}", "lib")
LIBRARIES = (
    Library(f"libcublasLt.so.{CUDA}", "nvidia-cublas", _PLACE),
    Library(f"libcublas.so.{CUDA}", "nvidia-cublas", _PLACE),
    Library(f"libnvrtc.so.{CUDA}", "nvidia-cuda-nvrtc", _PLACE, needed=False),
    Library("libcurand.so.10", "nvidia-curand", _PLACE),
    Library("libcufft.so.12", "nvidia-cufft", _PLACE, needed=False),
    Library(f"libcudart.so.{CUDA}", "nvidia-cuda-runtime", _PLACE),
    Library("libcudnn.so.9", f"nvidia-cudnn-cu{CUDA}", ("nvidia", "cudnn", "lib")),
)
"""What the provider loads, in the order in which one needs another."""


def located() -> dict[Library, Path | None]:
    """The file of each library, None where it is not to be found."""
    return {library: find_library(library.name, package_folders(*library.folder)) for library in LIBRARIES}


def driver() -> Driver | None:
    """The driver, as far as files tell; None where it is not here."""
    return find_driver("nvidia", DRIVER)


@dataclass(frozen=True, slots=True)
class Lack:
    """What is not here, or does not fit, and the wheels that bring it; none for what comes with the system."""

    what: str
    wheels: tuple[str, ...] = ()


def remedy(lacking: Sequence[Lack]) -> str:
    """What to do about them: the wheels to install, and the driver; "" where nothing lacks."""
    wheels = dict.fromkeys(wheel for lack in lacking for wheel in lack.wheels)
    system = any(not lack.wheels for lack in lacking)
    return "; ".join([*([f"pip install {' '.join(wheels)}"] if wheels else []), *([DRIVER_REMEDY] if system else [])])


def lacks() -> tuple[Lack, ...]:
    """What is not here of what the provider needs, or does not fit it."""
    here, found = driver(), []
    if here is None:
        found.append(Lack(f"NVIDIA's driver {OLDEST_DRIVER} or newer ({DRIVER})"))
    elif 0 < here.branch < OLDEST_DRIVER:
        found.append(Lack(f"NVIDIA's driver {OLDEST_DRIVER} or newer for CUDA {CUDA} ({here.version} is here)"))
    absent = [library for library, path in located().items() if path is None and library.needed]
    for what, own in ((f"CUDA {CUDA}", False), ("cuDNN 9", True)):
        parts = [library for library in absent if library.name.startswith("libcudnn") is own]
        if parts:
            names = ", ".join(library.name for library in parts)
            found.append(Lack(f"{what} ({names})", tuple(dict.fromkeys(library.wheel for library in parts))))
    return tuple(found)


def versions() -> dict[str, str]:
    """The versions of the driver and of the libraries found, which the numbers may depend on."""
    here = driver()
    found = {"NVIDIA driver": "none" if here is None else here.version or "unknown"}
    for library, path in located().items():
        if path is not None:
            found[library.name] = _version(library, path)
    return found


def load() -> None:
    """Loads the libraries that lie in wheels, where the loader does not look; raises `NotAvailable`."""
    for library, path in located().items():
        if path is not None:
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                if library.needed:
                    remedy = f"pip install --force-reinstall {library.wheel}, or mend {path}"
                    raise NotAvailable(f"{library.name} cannot be loaded: {error}", remedy=remedy) from error


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as the driver tells of it; `memory` in bytes."""

    index: int
    name: str
    memory: int
    capability: tuple[int, int]


def devices() -> tuple[Gpu, ...]:
    """The devices that the driver shows to this process, by CUDA_VISIBLE_DEVICES too; raises `NotAvailable`."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise NotAvailable(f"{DRIVER} cannot be loaded: {error}", remedy=DRIVER_REMEDY) from error
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
        why = f"the driver says: {(said.value or b'error').decode()} ({status})"
        raise NotAvailable(why, remedy=GPU_REMEDY)


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
