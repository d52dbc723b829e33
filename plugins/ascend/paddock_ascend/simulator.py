"""The Paddock simulated NPU: a custom device of Paddle's in the host's memory, for testing without an Ascend.

    export CUSTOM_DEVICE_ROOT=$(python -m paddock_ascend.simulator)

builds it once (g++, kept in Paddock's cache by its sources, Paddle and compiler) and makes every process of Paddle's
that is started from there load it, as it would a vendor's library. It is no Ascend: whatever runs on it says so.

What it does is set by PADDOCK_SIMULATOR_MEMORY (bytes), PADDOCK_SIMULATOR_DEVICES and PADDOCK_SIMULATOR_FAULTS, a comma
list of `missing:KERNEL`, `wrong:KERNEL`, `oom:KERNEL`, `crash:KERNEL`, `hang:KERNEL`, one for each kernel, and all but
the first, if so wished, with `@N` from its N-th call (1 or more) on; ASCEND_RT_VISIBLE_DEVICES hides devices. Each is
read once, when the library is loaded; what is none of these ends the process with a reason.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from paddock.cache import Store
from paddock.errors import BuildFailed, NotAvailable, PaddockError, UsageError
from paddock.machine import cpu

NAME = "Paddock simulated NPU"
MEMORY = 16 << 30
"""Bytes of each of its devices, where PADDOCK_SIMULATOR_MEMORY states none."""
SETTINGS = ("PADDOCK_SIMULATOR_MEMORY", "PADDOCK_SIMULATOR_DEVICES", "PADDOCK_SIMULATOR_FAULTS")
ROOT = "CUSTOM_DEVICE_ROOT"

_SOURCES = Path(__file__).resolve().parents[1] / "simulator"
_LIBRARY = "libpaddock-simulated-npu.so"
_MARK = "simulated.json"
_COMPILER = "g++"
_OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-w", "-DPADDLE_WITH_CUSTOM_DEVICE")
# -z nodelete: Paddle calls the device while the process ends, when a library that can be unloaded is gone already.
_LINKING = ("-shared", "-l:libphi_core.so", "-l:libphi.so", "-l:libcommon.so", "-Wl,-z,nodelete")
_SECONDS = 300


@dataclass(frozen=True)
class Simulated:
    """A library of it that CUSTOM_DEVICE_ROOT names, with what it was built from."""

    library: Path
    digest: str
    paddlepaddle: str


def here() -> Simulated | None:
    """The simulated NPU that Paddle would load in this environment, or None; reads one small file."""
    folder = os.environ.get(ROOT, "")
    if not folder:
        return None
    try:
        mark = json.loads((Path(folder) / _MARK).read_text())
        return Simulated(Path(folder) / _LIBRARY, str(mark["digest"]), str(mark["paddlepaddle"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def settings() -> dict[str, str]:
    """What the environment sets of it."""
    return {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}


def calls() -> dict[str, int]:
    """How often each of its kernels was called in this process, which has to have loaded it."""
    count = _loaded().paddock_simulator_calls
    count.restype = ctypes.c_size_t
    text = ctypes.create_string_buffer(count(None, ctypes.c_size_t(0)) + 4096)
    length = count(text, ctypes.c_size_t(len(text)))
    lines = text.raw[: min(length, len(text))].decode().splitlines()
    return {name: int(number) for name, number in (line.split() for line in lines)}


def memory(device: int = 0) -> tuple[int, int]:
    """Bytes taken of a device's memory in this process, now and at most."""
    used, peak = ctypes.c_size_t(), ctypes.c_size_t()
    _loaded().paddock_simulator_memory(ctypes.c_int(device), ctypes.byref(used), ctypes.byref(peak))
    return used.value, peak.value


def _loaded() -> ctypes.CDLL:
    found = here()
    if found is None:
        raise NotAvailable(f"no {NAME} is in this environment", remedy=f"set {ROOT}: see {__name__}")
    return ctypes.CDLL(str(found.library))


def build(store: Store | None = None) -> Path:
    """The folder with its library, built where it is not kept already; what CUSTOM_DEVICE_ROOT is to name.

    Raises:
        NotAvailable: Its sources, Paddle or g++ are not here.
        BuildFailed: The compiler refused them.
    """
    sources = sorted(path for path in _SOURCES.glob("*") if path.suffix in (".cc", ".h"))
    if not sources:
        raise NotAvailable(
            f"the sources of the {NAME} are not here", where=str(_SOURCES), remedy="run it from a checkout of Paddock"
        )
    if shutil.which(_COMPILER) is None:
        raise NotAvailable(f"the {NAME} is built with {_COMPILER}, which is not installed", remedy="install it")
    paddle, version = _paddle()
    compiler = subprocess.run([_COMPILER, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    mark = {"device": NAME, "digest": digest.hexdigest()[:16], "paddlepaddle": version}
    key = [mark, compiler, _OPTIONS, _LINKING, cpu()]

    def make(folder: Path) -> None:
        units = [path for path in sources if path.suffix == ".cc"]
        objects = [folder / f"{path.stem}.o" for path in units]
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(lambda unit, made: _compile(paddle, unit, made), units, objects))
        libraries = [f"-L{place}" for place in (paddle / "libs", paddle / "base")]
        _run([_COMPILER, *map(str, objects), "-o", str(folder / _LIBRARY), *libraries, *_LINKING])
        for made in objects:
            made.unlink()
        (folder / _MARK).write_text(json.dumps(mark))

    return (store if store is not None else Store()).folder("simulators", key, make)


def _paddle() -> tuple[Path, str]:
    spec = importlib.util.find_spec("paddle")
    if spec is None or spec.origin is None:
        raise NotAvailable("paddlepaddle is not installed", remedy="pip install paddock-paddle[sdk]")
    return Path(spec.origin).parent, importlib.metadata.version("paddlepaddle")


def _compile(paddle: Path, unit: Path, made: Path) -> None:
    include = paddle / "include"
    _run([_COMPILER, *_OPTIONS, f"-I{include}", f"-I{include / 'third_party'}", "-c", str(unit), "-o", str(made)])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"{command[0]} took longer than {_SECONDS} s", where=command[-1]) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        problem = f"{command[0]} failed: {' | '.join(lines[:3]) or f'status {done.returncode}'}"
        raise BuildFailed(problem, where=f"the {NAME}")


def environment(folder: Path, **settings: str) -> Mapping[str, str]:
    """The variables with which a process of Paddle's loads it from there, with settings such as `faults="..."`."""
    named = {f"PADDOCK_SIMULATOR_{name.upper()}": value for name, value in settings.items()}
    unknown = sorted(set(named) - set(SETTINGS))
    if unknown:
        raise UsageError(f"the {NAME} has no such setting", candidates=SETTINGS, where=unknown[0])
    return {ROOT: str(folder), **named}


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except PaddockError as error:
        sys.exit(str(error))
