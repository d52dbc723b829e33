"""Shared libraries of the system: where the loader would find them, without loading any.

What an SDK needs can so be told before something of it is loaded that ends the process where a part is missing.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_CACHE = Path("/etc/ld.so.cache")
_DRIVERS = Path("/proc/driver")
_DEFAULT = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu")


def find_library(name: str, folders: Iterable[Path] = ()) -> Path | None:
    """The file of a library to load, links followed; None where there is none.

    Looked for in LD_LIBRARY_PATH as it was when this process began, then in `folders` (from which it has to be loaded
    by its path, before whatever asks for it by name), then where the loader looks: its cache, the system's folders.
    """
    searched = [*_library_path(), *map(str, folders)]
    cached = _cached().get(name)
    candidates = [os.path.join(folder, name) for folder in searched if folder]
    candidates += [cached] if cached else []
    candidates += [os.path.join(folder, name) for folder in _DEFAULT]
    for path in candidates:
        if os.path.isfile(path):
            return Path(os.path.realpath(path))
    return None


def package_folders(*parts: str) -> tuple[Path, ...]:
    """The folders of this name in the places that Python imports from: where wheels put libraries."""
    found = (Path(place, *parts) for place in dict.fromkeys(sys.path) if place)
    return tuple(folder for folder in found if folder.is_dir())


def file_version(path: Path) -> str:
    """What a library's file name says after `.so.`: `9.14.0` of `libx.so.9.14.0`; "" where it says nothing."""
    return path.name.partition(".so.")[2]


@dataclass(frozen=True, slots=True)
class Driver:
    """A device's driver: the kernel's module, and the library by which programs reach it.

    `version` is the module's, which the vendor's tools show, or the library's where the kernel does not tell; "" where
    neither does. `branch` is the first number of the newer of the two, 0 where it is unknown: a newer library can stand
    in for the module's own.
    """

    library: Path
    version: str
    branch: int


def find_driver(name: str, library: str) -> Driver | None:
    """The driver whose module is called `name` and whose library is called `library`; None where that is not here."""
    path = find_library(library)
    if path is None:
        return None
    try:
        said = (_DRIVERS / name / "version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        said = ""  # as in a container or virtual machine that does not show it
    # The first number with a dot that stands by itself: what is around it differs between a vendor's modules.
    stated = re.search(r"(?<!\S)\d+(?:\.\d+)+(?!\S)", said)
    own = file_version(path)
    if own.partition(".")[0] == file_version(Path(library)):
        own = ""  # the version of its interface
    versions = [found for found in (stated[0] if stated else "", own) if re.match(r"\d+\.", found)]
    return Driver(path, next(iter(versions), ""), max((int(found.partition(".")[0]) for found in versions), default=0))


@cache
def _library_path() -> tuple[str, ...]:
    # The loader has read it before Python began; a change since then changes nothing.
    return tuple(os.environ.get("LD_LIBRARY_PATH", "").split(":"))


@cache
def _cached() -> dict[str, str]:
    """By name the files that the loader's cache lists, the first of each, as the loader would take it."""
    try:
        strings = _CACHE.read_bytes().split(b"\0")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for string in strings:
        if string.startswith(b"/") and b".so" in string:
            path = os.fsdecode(string)
            found.setdefault(os.path.basename(path), path)
    return found
