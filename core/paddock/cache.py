"""The content-addressed store: what was computed once and holds for the same content, versions and host.

Entries are written beside their place and renamed into it, under a lock between processes; each carries digests of
its files, so that a truncated or altered entry is dropped and made again, never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from paddock.errors import ModelError, UsageError
from paddock.model import file_digest
from paddock.plan import digest

_MANIFEST = "manifest.json"
LAYOUT = 1
"""Part of every key: a change of what entries look like makes all of them new."""


def cache_root() -> Path:
    """`PADDOCK_CACHE`, or the platform's cache folder for "paddock"."""
    return Path(os.environ.get("PADDOCK_CACHE") or platformdirs.user_cache_dir("paddock"))


class Store:
    """The store in one folder. Kinds of entries live side by side; a key is any JSON data."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_root()
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(
                f"the cache folder cannot be made: {error.strerror}",
                where=str(self.root),
                remedy="set PADDOCK_CACHE to a folder that can be written",
            ) from error

    def get(self, kind: str, key: Any) -> Any | None:
        """The JSON data kept under this key, or None."""
        try:
            entry = json.loads(self._place(kind, key).with_suffix(".json").read_bytes())
            if entry["digest"] == digest(entry["data"]):
                return entry["data"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # Missing or damaged: the caller makes it again, and `put` writes over it.
        return None

    def put(self, kind: str, key: Any, data: Any) -> None:
        """Keeps JSON data under this key."""
        place = self._place(kind, key).with_suffix(".json")
        self._guarded(place.parent, lambda: _write(place, json.dumps({"digest": digest(data), "data": data}).encode()))

    def remembered(self, kind: str, key: Any, compute: Callable[[], Any]) -> Any:
        """`get`, or else `compute()` kept with `put`; `compute` returns JSON data."""
        found = self.get(kind, key)
        if found is None:
            found = compute()
            self.put(kind, key, found)
        return found

    def folder(self, kind: str, key: Any, build: Callable[[Path], None]) -> Path:
        """The folder that `build(empty folder)` fills, made once for this key; its files are digest-checked."""
        place = self._place(kind, key)

        def make() -> None:
            if _intact(place):
                return
            # Under the lock, so whoever was making this entry before is dead.
            for dead in (place, *place.parent.glob(f".making-{place.name}-*")):
                shutil.rmtree(dead, ignore_errors=True)
            fresh = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".making-{place.name}-"))
            try:
                build(fresh)
                files = {
                    p.relative_to(fresh).as_posix(): file_digest(p) for p in sorted(fresh.rglob("*")) if p.is_file()
                }
                _write(fresh / _MANIFEST, json.dumps(files).encode())
                fresh.rename(place)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)

        if not _intact(place):
            self._guarded(place.parent, make, lock=place.with_suffix(".lock"))
        return place

    def private(self, kind: str, key: Any) -> Path:
        """A folder for somebody else's cache (an SDK's own), kept for this key."""
        place = self._place(kind, key)
        self._guarded(place, lambda: None)
        return place

    def _place(self, kind: str, key: Any) -> Path:
        return self.root / kind / digest([LAYOUT, source_digest(Path(__file__).parent), key])[:40]

    def _guarded(self, folder: Path, action: Callable[[], None], lock: Path | None = None) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if lock is None:
                action()
            else:
                with FileLock(lock):
                    action()
        except OSError as error:
            raise UsageError(
                f"the cache cannot be written: {error.strerror or error}",
                where=str(folder),
                remedy="free some space, or set PADDOCK_CACHE to a folder that can be written",
            ) from error


@cache
def source_digest(folder: Path) -> str:
    """SHA-256 (hex) of a folder's Python files: part of keys, so that no entry outlives the code that made it."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def _write(place: Path, content: bytes) -> None:
    handle, fresh = tempfile.mkstemp(dir=place.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, place)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def _intact(place: Path) -> bool:
    try:
        files = json.loads((place / _MANIFEST).read_bytes())
        return all(file_digest(place / name) == expected for name, expected in files.items())
    except (OSError, ValueError, AttributeError, RecursionError, ModelError):
        return False
