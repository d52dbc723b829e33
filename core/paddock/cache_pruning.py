"""Keeps a store small and sound: its bound, what is removed from it, and what never is.

Only what stands where entries stand, in a folder that is marked as a store, is removed; never what a process has in
use, and no link is followed. An entry is renamed before it is deleted: nobody meets half of one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from paddock.cache_entries import (
    HOUR,
    MANIFEST,
    MARK,
    About,
    Damaged,
    Found,
    check_folder,
    discard,
    entries,
    leftovers,
    told_by,
    unpack,
)
from paddock.cache_locks import claim, exclusive
from paddock.config import Size
from paddock.errors import UsageError

LARGEST = 20 * 2**30
"""Bytes a store may take where nothing else is said, and a tenth of the disk is not less."""
_SHARE = 10


def parsed_size(text: str, where: str) -> int:
    """Bytes of a size written as in the config ("8GiB"); raises `UsageError` naming `where` it was said."""
    try:
        return TypeAdapter(Size).validate_python(text)
    except ValidationError as error:
        remedy = 'a size is written like "8GiB", "512MiB" or a whole number of bytes'
        raise UsageError(f"{text!r} is no size", where=where, remedy=remedy) from error


def asked_bound() -> int | None:
    """The bytes that `PADDOCK_CACHE_SIZE` allows, or None where it is not set; raises `UsageError`."""
    text = os.environ.get("PADDOCK_CACHE_SIZE")
    return parsed_size(text, "PADDOCK_CACHE_SIZE") if text else None


def bound_of(root: Path, held: int) -> int:
    """The bytes that the store may take, of which it holds `held` now.

    What it holds counts as free, or the bound would sink as it fills. Raises `UsageError`.
    """
    asked = asked_bound()
    return asked if asked is not None else min(LARGEST, (shutil.disk_usage(root).free + held) // _SHARE)


def check_is_store(root: Path) -> None:
    """Raises `UsageError` where a folder is not marked as a store: what stands in it may be somebody else's."""
    mark = root / MARK
    if mark.is_symlink() or not mark.is_file():
        raise UsageError(
            "is not marked as a cache of Paddock's: it held something else when it was first used as one",
            where=str(root),
            remedy="set PADDOCK_CACHE to a new or empty folder, and remove what is not wanted here by hand",
        )


def examine(found: Found) -> tuple[About | None, str | None]:
    """What an entry tells, and what is wrong with it or None; every byte of it is read, whatever is remembered."""
    about, problem = _examined(found)
    # A second look: it may just have been removed or made anew by another process, which is no damage.
    return _examined(found) if problem is not None else (about, problem)


def _examined(found: Found) -> tuple[About | None, str | None]:
    about = None
    try:
        about = about_of(found)
        if not found.is_data:
            check_folder(found.place, about, _digest)
    except Damaged as damaged:
        return about, str(damaged) if os.path.lexists(found.place) else None
    return about, None


def about_of(found: Found) -> About:
    """What an entry tells about itself; raises `Damaged` also where that does not fit its place."""
    if found.is_data:
        try:
            about, body = unpack(found.place.read_bytes())
            json.loads(body)
        except OSError as error:
            raise Damaged(f"it cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise Damaged("its data is not JSON") from None
    else:
        about = told_by(found.place)
    if not about.stands_at(found.place):
        raise Damaged("it belongs to another place")
    return about


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(found: Found, unused_since: float = float("inf")) -> bool:
    """Removes an entry, unless a process uses or makes it, or it was used after `unused_since`; whether it did."""
    try:
        if found.is_data:
            if found.place.lstat().st_mtime > unused_since:
                return False
            found.place.unlink()
            return True
        with exclusive(found.lock, wait=False) as alone:
            gone = alone and _remove_folder(found.place, unused_since)
            if gone:
                found.lock.unlink(missing_ok=True)
            return gone
    except FileNotFoundError:
        return False  # Another process was faster.
    except OSError as error:
        # What cannot be removed stays, and is told of by who asked; a full disk must not keep anyone from pruning.
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ENOSPC, errno.ELOOP):
            return False
        raise


def _remove_folder(place: Path, unused_since: float) -> bool:
    hold = None
    with suppress(FileNotFoundError):  # Without a manifest nobody can use it.
        hold = claim(place / MANIFEST)
        if hold is None:
            return False
    used = (place / MANIFEST if hold is not None else place).lstat().st_mtime
    if used > unused_since:
        return False
    # No folder is made for it first: on a full disk that would fail.
    dropped = place.with_name(f".dropped-{place.name}-{secrets.token_hex(8)}")
    place.rename(dropped)
    discard(dropped)
    return True


@dataclass
class Pruned:
    """What pruning did: entries with the reason, those that had to stay though they should have gone, what is left."""

    removed: list[tuple[Found, str]] = field(default_factory=list)
    kept: list[tuple[Found, str]] = field(default_factory=list)
    left: list[Found] = field(default_factory=list)

    def drop(self, found: Found, why: str, unused_since: float = float("inf")) -> bool:
        """Removes an entry if it can go, and notes what came of it; whether it is gone."""
        gone = remove(found, unused_since)
        (self.removed if gone else self.kept).append((found, why))
        return gone

    @property
    def freed(self) -> int:
        """Bytes."""
        return total(found for found, _ in self.removed)


def trim(root: Path) -> Pruned | None:
    """Removes what was used longest ago until the store is within its bound; None where another process does.

    Raises `UsageError` where that is to be done and the folder is not marked as a store, or the bound is no size.
    """
    done = Pruned(left=entries(root))
    bound = bound_of(root, total(done.left))
    if total(done.left) <= bound:
        return done
    check_is_store(root)
    with exclusive(root / MARK, wait=False) as alone:
        if not alone:
            return None
        _to_bound(done, bound)
        return done


def prune(
    root: Path, sources: str, bound: int | None = None, progress: Callable[[str], None] = lambda message: None
) -> Pruned:
    """Removes what is damaged, what other code than `sources` made, and then what was used longest ago.

    Every byte is read. What was used within the hour, or is in use, stays. Raises `UsageError` as `trim` does.
    """
    check_is_store(root)
    with exclusive(root / MARK):
        done = Pruned()
        _sweep(root)
        recent = time.time() - HOUR
        for found in entries(root):
            progress(f"reading {found.kind}/{found.place.name}")
            about, problem = examine(found)
            if problem is not None:
                gone = done.drop(found, problem)
            elif about is not None and about.sources != sources:
                # Another installation, of another version, may live off the same store.
                gone = done.drop(found, f"made by other code, of Paddock {about.paddock}", recent)
            else:
                gone = False
            if not gone:
                done.left.append(found)
        held = total(done.left)
        _to_bound(done, bound if bound is not None else bound_of(root, held))
        return done


def clear(root: Path, kind: str | None = None) -> Pruned:
    """Removes every entry (of one kind) that is not in use. Raises `UsageError` as `trim` does."""
    check_is_store(root)
    with exclusive(root / MARK):
        done = Pruned()
        for found in entries(root, kind):
            done.drop(found, "cleared")
        _sweep(root)
        done.left = entries(root)
        return done


def _to_bound(done: Pruned, bound: int) -> None:
    held, recent = total(done.left), time.time() - HOUR
    told = {id(found) for found, _ in done.kept}
    for found in sorted(done.left, key=lambda found: found.used):
        if held <= bound or found.used > recent:
            break
        if id(found) not in told and done.drop(found, "beyond the bound", recent):
            held -= found.size
    gone = {id(found) for found, _ in done.removed}
    done.left = [found for found in done.left if id(found) not in gone]


def _sweep(root: Path) -> None:
    """Removes what ended processes left behind; what belongs to one at work stays."""
    for path in leftovers(root):
        with suppress(OSError):  # Another process was faster, or may do what this one may not.
            if path.name.startswith(".dropped-"):
                discard(path)
            elif path.name.startswith(".writing-"):
                if time.time() - path.lstat().st_mtime > HOUR:
                    path.unlink()
            else:
                _sweep_made(path)


def _sweep_made(path: Path) -> None:
    name = path.name.split("-")[1] if path.name.startswith(".") else path.stem
    lock = path.with_name(f"{name}.lock")
    with exclusive(lock, wait=False) as alone:
        if alone and path != lock:
            discard(path)
        if alone and not os.path.lexists(path.with_name(name)):
            lock.unlink()


def total(found: Iterable[Found]) -> int:
    """Their bytes together."""
    return sum(each.size for each in found)
