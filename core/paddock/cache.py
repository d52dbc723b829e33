"""The content-addressed store: what was computed once and holds for the same content, versions and host.

Entries are written beside their place and renamed into it, under a lock between processes; each tells what it is and
carries digests of its files, so that an entry that is cut off, altered, from elsewhere or of an older layout is made
again, with a warning, and never used. What was used longest ago goes where the store outgrows its bound; nothing goes
while a process uses it. Everything is read only from a folder that nobody but the user can write to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from paddock.cache_entries import (
    MANIFEST,
    MARK,
    OWN,
    About,
    Damaged,
    Seat,
    check_folder,
    discard,
    files_in,
    looks_like_a_store,
    others_may_write,
    pack,
    told_by,
    touch,
    unpack,
)
from paddock.cache_locks import Hold, exclusive, share
from paddock.cache_pruning import asked_bound, trim
from paddock.errors import BuildFailed, UsageError
from paddock.model import LARGE, SETTLED, file_digest

_log = logging.getLogger("paddock.cache")
_DIGESTS = "digests"
_TICK = 20_000_000
"""Nanoseconds: more than a tick of the clock that files' times are taken from (4 to 10 ms on Linux)."""
_REMEDY = "free some space (`paddock cache prune`), or set PADDOCK_CACHE to a folder that can be written"


def cache_root() -> Path:
    """`PADDOCK_CACHE`, or the platform's cache folder for "paddock"."""
    return Path(os.environ.get("PADDOCK_CACHE") or platformdirs.user_cache_dir("paddock"))


class Store:
    """The store in one folder. Kinds of entries live side by side; a key is any JSON data.

    The folders it gives out stay as they are for as long as it lives: no process prunes them. Raises `UsageError` where
    the folder cannot be made, others may write to it, or `PADDOCK_CACHE_SIZE` is no size.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_root()
        self._holds: dict[Path, Hold] = {}
        self._lock = threading.Lock()
        asked_bound()
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            problem = others_may_write(self.root)
        except OSError as error:
            raise UsageError(
                f"the cache folder cannot be made: {error.strerror}",
                where=str(self.root),
                remedy="set PADDOCK_CACHE to a folder that can be written",
            ) from error
        if problem:
            # What a backend loads from here can be native code.
            raise UsageError(
                f"the cache folder is not safe: {problem}",
                where=str(self.root),
                remedy="make it yours alone (chmod go-w), or set PADDOCK_CACHE to such a folder",
            )
        self._mark()

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.root,)

    def get(self, kind: str, key: Any) -> Any | None:
        """The JSON data kept under this key, or None."""
        seat = self._seat("data", kind, key)
        try:
            about, body = unpack(seat.place.read_bytes())
            if not about.fits(seat):
                raise Damaged("it was made for something else")
            data = json.loads(body)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (Damaged, OSError, ValueError, RecursionError) as error:
            _warn(seat, error)  # The caller makes it again, and `put` writes over it.
            return None
        touch(seat.place)
        return data

    def put(self, kind: str, key: Any, data: Any) -> None:
        """Keeps JSON data under this key."""
        seat = self._seat("data", kind, key)
        self._guarded(seat, lambda: _write(seat.place, pack(seat, data)))

    def remembered(self, kind: str, key: Any, compute: Callable[[], Any]) -> Any:
        """`get`, or else `compute()` kept with `put`; `compute` returns JSON data."""
        found = self.get(kind, key)
        if found is None:
            found = compute()
            self.put(kind, key, found)
        return found

    def folder(self, kind: str, key: Any, build: Callable[[Path], None]) -> Path:
        """The folder that `build(empty folder)` fills, made once for this key; its files are digest-checked.

        Nothing is to be written there afterwards: an entry with a file that was not built is made again.
        """
        return self._made(self._seat("folder", kind, key), build)

    def find(self, kind: str, key: Any) -> Path | None:
        """The folder that `folder` made for this key before, or None; what is damaged is told of."""
        seat = self._seat("folder", kind, key)
        return seat.place if self._used(seat, tell=True) else None

    def forget(self, kind: str, key: Any) -> None:
        """Removes what `folder` made for this key: it does not do. Whoever uses its files keeps them open."""
        seat = self._seat("folder", kind, key)
        with self._lock:
            self._holds.pop(seat.place, None)

        def drop() -> None:
            with exclusive(seat.place.with_suffix(".lock")):
                if seat.place.exists():
                    dropped = seat.place.with_name(f".dropped-{seat.place.name}-{os.urandom(4).hex()}")
                    seat.place.rename(dropped)
                    discard(dropped)

        self._guarded(seat, drop)

    def release(self) -> None:
        """Lets go of all folders that it gave out: they may be pruned, and no file is kept open for them."""
        with self._lock:
            self._holds.clear()

    def private(self, kind: str, key: Any) -> Path:
        """A folder for somebody else's cache (an SDK's own), kept for this key; nobody checks what is in it."""
        return self._made(self._seat("private", kind, key), lambda fresh: (fresh / OWN).mkdir()) / OWN

    def file_digest(self, path: Path) -> str:
        """SHA-256 (hex) of a file; see `paddock.model.file_digest`. That of a large file is kept between processes."""
        own = path.is_relative_to(self.root)
        return file_digest(path, self, _TICK if own else SETTLED)

    def recall(self, identity: Sequence[int]) -> str | None:
        """The digest of the file of this identity, where one is kept."""
        known = self.get(_DIGESTS, identity)
        return known if isinstance(known, str) else None

    def remember(self, identity: Sequence[int], digest: str) -> None:
        """Keeps the digest of a file; that it cannot be kept is no reason to fail."""
        with suppress(UsageError):
            self.put(_DIGESTS, identity, digest)

    def _made(self, seat: Seat, build: Callable[[Path], None]) -> Path:
        def make() -> None:
            with exclusive(seat.place.with_suffix(".lock")):
                if self._used(seat, tell=True):
                    return
                # Under the lock, so whoever was making this entry before is dead.
                for dead in (seat.place, *seat.place.parent.glob(f".making-{seat.place.name}-*")):
                    discard(dead)
                fresh = Path(tempfile.mkdtemp(dir=seat.place.parent, prefix=f".making-{seat.place.name}-"))
                try:
                    build(fresh)
                    _write(fresh / MANIFEST, self._about(seat, fresh).sealed())
                    self._keep(seat, share(fresh / MANIFEST))  # before anyone else can see it
                    fresh.rename(seat.place)
                finally:
                    shutil.rmtree(fresh, ignore_errors=True)
            self._trim()

        if not self._used(seat):
            self._guarded(seat, make)
        return seat.place

    def _used(self, seat: Seat, tell: bool = False) -> bool:
        """Whether the entry is there and whole: then it is marked as in use, and stays."""
        try:
            about = told_by(seat.place)
            hold = share(seat.place / MANIFEST)
            if not about.fits(seat):
                raise Damaged("it was made for something else")
            check_folder(seat.place, about, self.file_digest)
            if hold is None or not hold.stands_at(seat.place / MANIFEST):
                return False  # It was whole, and is being removed.
        except (Damaged, OSError) as error:
            if tell and os.path.lexists(seat.place):
                _warn(seat, error)
            return False
        touch(seat.place / MANIFEST)
        self._keep(seat, hold)
        return True

    def _about(self, seat: Seat, fresh: Path) -> About:
        try:
            files = files_in(fresh)
        except Damaged as damaged:
            raise BuildFailed(f"what was made for the cache cannot be kept: {damaged}", where=seat.kind) from damaged
        sizes = [path.stat().st_size for path in files.values()]
        if any(size >= LARGE for size in sizes):
            time.sleep(2 * _TICK / 1e9)  # their digests are remembered: a change from now on has to show in their times
        content = {name: self.file_digest(path) for name, path in sorted(files.items())}
        return About.of(seat, content, sum(sizes))

    def _keep(self, seat: Seat, hold: Hold | None) -> None:
        if hold is not None:
            with self._lock:
                self._holds[seat.place] = hold

    def _mark(self) -> None:
        mark = self.root / MARK
        try:
            if mark.exists():
                return
            # Paddock's own place may hold a store from before there were marks; what else is there is not ours to mark.
            ours = self.root == Path(platformdirs.user_cache_dir("paddock")) and looks_like_a_store(self.root)
            if ours or not any(self.root.iterdir()):
                mark.touch(mode=0o600)
        except OSError:
            pass  # A cache that can only be read: nothing will be pruned there.

    def _trim(self) -> None:
        try:
            trim(self.root)
        except (UsageError, OSError) as error:
            # The entry is made: that what was used long ago could not go is no reason to fail.
            _log.warning("the cache %s is not pruned: %s", self.root, getattr(error, "problem", error))

    def _seat(self, form: Any, kind: str, key: Any) -> Seat:
        return Seat(self.root, form, kind, current_sources(), key)

    def _guarded(self, seat: Seat, action: Callable[[], None]) -> None:
        try:
            seat.place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            action()
        except OSError as error:
            problem = f"the cache cannot be written: {error.strerror or error}"
            raise UsageError(problem, where=str(seat.place.parent), remedy=_REMEDY) from error


def _warn(seat: Seat, error: Exception) -> None:
    reason = str(error) or type(error).__name__
    _log.warning("the cache's entry %s/%s is made anew: %s", seat.kind, seat.place.name, reason)


def current_sources() -> str:
    """`source_digest` of Paddock itself."""
    return source_digest(Path(__file__).parent)


@cache
def source_digest(folder: Path) -> str:
    """SHA-256 (hex) of a package's files, data beside code: part of keys, so that no entry outlives what made it."""
    total = hashlib.sha256()
    for name in sorted(_sources(str(folder))):
        with open(os.path.join(folder, name), "rb") as file:
            total.update(f"\0{name}\0".encode() + file.read())
    return total.hexdigest()


def _sources(folder: str) -> Iterator[str]:
    """The files under a folder, relative to it; asked for at each start, so without a Path for each."""
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            path = os.path.join(inside, name)
            if not name.endswith((".pyc", ".so")) and os.path.isfile(path):  # an editor's lock is a link to nowhere
                yield path[len(folder) + 1 :]


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
