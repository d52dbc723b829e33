"""What Python would import of a plugin, found without running any of it, and the digest of these files.

The digest is over all that lies in the folder of the outermost package that has an `__init__`, native libraries and
linked folders with it: whatever of it is exchanged, the digest is another. `__pycache__` is left out, for Python
writes there by itself: the digest tells which files were installed, and does not hold off who may write beside them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from paddock.cache import Store
from paddock.errors import ModelError
from paddock.model import LARGE


def located(value: str) -> tuple[Path | None, tuple[Path, ...]]:
    """The file of the module that an entry point names, None where none is to be found; and what its digest is over.

    That is the folders of its outermost package with an `__init__`; where only namespaces are above it, the folder that
    it lies in; of a module in no package, the module alone.
    """
    first, *rest = value.partition(":")[0].strip().split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        spec = None
    whole: tuple[Path, ...] = ()
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None, ()
        folders = list(spec.submodule_search_locations)
        if not whole and spec.has_location:
            whole = tuple(map(Path, folders))
        # By its last name: by the whole one, a namespace would look for its parents among what is imported.
        spec = PathFinder.find_spec(name, folders)
    if spec is None or not spec.has_location or spec.origin is None:
        return None, ()
    path = Path(spec.origin)
    if not whole:
        packaged = bool(rest) or spec.submodule_search_locations is not None
        whole = (path.parent,) if packaged else (path,)
    return path, whole


def digest(places: Sequence[Path], store: Store) -> str:
    """SHA-256 (hex) of the files at these places, by name and content; "" where there are none, or one is unreadable.

    Those of large files are remembered in `store` until the file changes.
    """
    total, some = hashlib.sha256(), False
    try:
        for place in places:
            for name, path, size in _files(str(place)):
                if size >= LARGE:
                    found = store.file_digest(Path(path))
                else:
                    with open(path, "rb", buffering=0) as file:
                        found = hashlib.sha256(file.read()).hexdigest()
                total.update(b"\0" + os.fsencode(name) + b"\0" + found.encode())
                some = True
    except (OSError, ModelError):
        return ""
    return total.hexdigest() if some else ""


def _files(place: str) -> Iterator[tuple[str, str, int]]:
    """The name under a place, path and size of each file there; of a place inside an archive, the archive."""
    if os.path.isdir(place):
        yield from _under(place, "", {os.path.realpath(place)})
        return
    while place != os.path.dirname(place) and not os.path.isfile(place):
        place = os.path.dirname(place)
        if os.path.isdir(place):
            return
    yield os.path.basename(place), place, os.path.getsize(place)


def _under(folder: str, inside: str, seen: set[str]) -> Iterator[tuple[str, str, int]]:
    """As `_files`, in an order that holds everywhere. `seen`: the package's folder, and where links led already."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_file():  # no broken link, as editors make for locks, and no pipe
            yield inside + entry.name, entry.path, entry.stat().st_size
        elif entry.is_dir() and entry.name != "__pycache__":
            if entry.is_symlink():
                leads = os.path.realpath(entry.path)
                if any(f"{known}/".startswith(f"{leads.rstrip('/')}/") for known in seen):
                    continue  # in a circle
                seen.add(leads)
            yield from _under(entry.path, f"{inside}{entry.name}/", seen)
