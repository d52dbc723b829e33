"""What an entry of the store is: where it stands, what it tells about itself, and whether it can be used.

    ROOT/.paddock-cache        the mark of a folder that is a store; locked by who prunes
    ROOT/KIND/ID.json          data: what is told about it, and the data
    ROOT/KIND/ID/              a folder: manifest.json (what is told about it, a digest of each file) and the files
    ROOT/KIND/ID/own/          beside a manifest without files: somebody else's cache, that nobody can check
    ROOT/KIND/ID.lock          held by who makes or removes the folder ID

ID is the beginning of a digest over everything that decides about the content; the whole digest is told inside, so
that an entry that was copied from elsewhere is known by it. The modification time of a data file, or of a manifest, is
the last use.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from paddock import __version__
from paddock.errors import ModelError
from paddock.plan import digest

LAYOUT = 2
"""Part of every key: a change of what entries look like makes all of them new."""
MANIFEST = "manifest.json"
OWN = "own"
MARK = ".paddock-cache"
HOUR = 3600.0
"""Seconds: a last use is written down no more often, and nothing used since is pruned."""

Form = Literal["data", "folder", "private"]

_ID = re.compile(r"[0-9a-f]{40}")
_LEFT = re.compile(r"\.(making|dropped)-[0-9a-f]{40}-\w+|\.writing-\w+")
_LONGEST_KEY = 4000
_OPENING, _BETWEEN, _CLOSING = b'{"about": ', b',\n"data": ', b"}\n"


class Damaged(Exception):
    """What stands at an entry's place is not that entry, or not any more; the message says why."""


@dataclass(frozen=True)
class Seat:
    """Where the entry of a key stands in a store, if it is there. `sources` is a digest of the code that makes it."""

    root: Path
    form: Form
    kind: str
    sources: str
    key: Any

    @cached_property
    def entry(self) -> str:
        """SHA-256 (hex) over all that decides about the entry's content."""
        return digest([LAYOUT, self.form, self.kind, self.sources, self.key])

    @cached_property
    def place(self) -> Path:
        """The entry itself: a file or a folder."""
        return self.root / self.kind / (self.entry[:40] + (".json" if self.form == "data" else ""))


@dataclass(frozen=True)
class About:
    """What an entry tells about itself. `made` is in seconds since 1970, `size` the bytes of its content then.

    `key` is the key as JSON data, or {"shortened": the beginning of its text} where it is long. `content` has the
    SHA-256 (hex) of each file by its path in the folder; of a data entry that of the data's bytes, as "data".
    """

    form: Form
    kind: str
    entry: str
    key: Any
    sources: str
    paddock: str
    made: float
    size: int
    content: Mapping[str, str]
    layout: int = LAYOUT

    @classmethod
    def of(cls, seat: Seat, content: Mapping[str, str], size: int) -> About:
        """What the entry at `seat` tells when it is made now."""
        text = json.dumps(seat.key, default=str)
        key = json.loads(text) if len(text) <= _LONGEST_KEY else {"shortened": text[:_LONGEST_KEY]}
        return cls(seat.form, seat.kind, seat.entry, key, seat.sources, __version__, time.time(), size, content)

    def sealed(self) -> bytes:
        """As one line of JSON with a digest of itself."""
        told = asdict(self)
        return json.dumps({**told, "digest": digest(told)}).encode()

    @classmethod
    def unsealed(cls, content: bytes) -> About:
        """What `sealed` wrote; raises `Damaged`."""
        try:
            told = json.loads(content)
            if not isinstance(told, dict) or "layout" not in told:
                raise Damaged("it does not tell what it is")
            if told["layout"] != LAYOUT:
                raise Damaged(f"it has layout {told['layout']}, not {LAYOUT}")
            if told.pop("digest", None) != digest(told):
                raise Damaged("what it tells about itself was altered")
            about = cls(**told)
        except (ValueError, TypeError, RecursionError):
            raise Damaged("what it tells about itself is not readable") from None
        if not isinstance(about.content, dict):
            raise Damaged("what it tells about itself is not readable")
        return about

    def fits(self, seat: Seat) -> bool:
        """Whether this is told by the entry that belongs there."""
        return (self.form, self.kind, self.entry) == (seat.form, seat.kind, seat.entry)

    def stands_at(self, place: Path) -> bool:
        """Whether an entry that tells this may stand there, as far as names show."""
        data = place.suffix == ".json"
        return (self.kind, self.entry[:40], self.form == "data") == (place.parent.name, place.name[:40], data)


def pack(seat: Seat, data: Any) -> bytes:
    """The content of a data entry's file: one JSON document whose first line tells what it is."""
    body = json.dumps(data).encode()
    about = About.of(seat, {"data": hashlib.sha256(body).hexdigest()}, len(body))
    return _OPENING + about.sealed() + _BETWEEN + body + _CLOSING


def unpack(content: bytes) -> tuple[About, bytes]:
    """What a data entry tells, and its data as JSON text; raises `Damaged`."""
    head, between, rest = content.partition(_BETWEEN)
    if not (head.startswith(_OPENING) and between and rest.endswith(_CLOSING)):
        raise Damaged("it is cut off, or no entry of this layout")
    about, body = About.unsealed(head[len(_OPENING) :]), rest[: -len(_CLOSING)]
    if about.content.get("data") != hashlib.sha256(body).hexdigest():
        raise Damaged("its data was altered")
    return about, body


def files_in(folder: Path) -> dict[str, Path]:
    """The files of a folder entry by their path in it, without the manifest; raises `Damaged` where one is no file."""
    found = {}
    for parent, folders, files in os.walk(folder, onerror=_unreadable):
        for name in (*folders, *files):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[path.relative_to(folder).as_posix()] = path
            elif not stat.S_ISDIR(mode):
                raise Damaged(f"{name} is neither a file nor a folder")
    found.pop(MANIFEST, None)
    return found


def _unreadable(error: OSError) -> None:
    raise error


def told_by(folder: Path) -> About:
    """What a folder or private entry tells about itself; raises `Damaged`."""
    try:
        return About.unsealed((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise Damaged("it has no manifest") from None
    except OSError as error:
        raise Damaged(f"its manifest cannot be read: {error.strerror}") from None


def check_folder(folder: Path, about: About, digest_of: Callable[[Path], str]) -> None:
    """Raises `Damaged` where a folder's files are not those it tells of, or others than its user may write to it."""
    try:
        problem = others_may_write(folder)
        if problem:
            raise Damaged(problem)
        if about.form == "private":
            if not (folder / OWN).is_dir():
                raise Damaged(f"{OWN} is missing")
            return
        found = files_in(folder)
        if found.keys() != about.content.keys():
            first = min(found.keys() ^ about.content.keys())
            raise Damaged(f"{first} is {'not of it' if first in found else 'missing'}")
        for name, path in found.items():
            if digest_of(path) != about.content[name]:
                raise Damaged(f"{name} was altered")
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror}") from None
    except ModelError as error:
        raise Damaged(error.problem) from None


def others_may_write(folder: Path) -> str | None:
    """Why a folder is not the user's alone to write in, or None. Raises OSError where it is not there."""
    found = folder.stat()
    if found.st_uid != os.geteuid():
        return f"it belongs to another user (number {found.st_uid})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def touch(path: Path) -> None:
    """Writes down that an entry is used now, unless that was done within the hour."""
    try:
        if time.time() - path.stat().st_mtime > HOUR:
            os.utime(path)
    except OSError:
        pass  # A cache that can only be read: what was used when matters to who can prune it.


def discard(path: Path) -> None:
    """Removes a file, a link (not what it leads to) or a folder with all in it, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # As with a folder: whoever needs the place empty finds out.
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Found:
    """What stands where an entry may stand: last use in seconds since 1970, size in bytes with all files."""

    place: Path
    used: float
    size: int

    @property
    def kind(self) -> str:
        return self.place.parent.name

    @property
    def lock(self) -> Path:
        """The lock file of a folder entry."""
        return self.place.with_suffix(".lock")

    @property
    def is_data(self) -> bool:
        return self.place.suffix == ".json"


def entries(root: Path, kind: str | None = None) -> list[Found]:
    """All that stands where entries may stand, links left out; what vanishes meanwhile is left out too."""
    found = []
    for folder in kinds(root):
        if kind not in (None, folder.name):
            continue
        for item in _items(folder):
            data = item.name.endswith(".json")
            if not _ID.fullmatch(item.name.removesuffix(".json")):
                continue
            if item.is_file(follow_symlinks=False) if data else item.is_dir(follow_symlinks=False):
                try:
                    found.append(_found(Path(item.path), data))
                except OSError:
                    continue  # Another process has removed it.
    return found


def _found(place: Path, data: bool) -> Found:
    own = place.stat()
    if data:
        return Found(place, own.st_mtime, own.st_size)
    manifest = place / MANIFEST
    used = manifest.stat().st_mtime if manifest.is_file() else own.st_mtime
    return Found(place, used, _size(place))


def _size(folder: Path) -> int:
    total = 0
    for item in _items(folder):
        try:
            inner = item.is_dir(follow_symlinks=False)
            total += _size(Path(item.path)) if inner else item.stat(follow_symlinks=False).st_size
        except OSError:
            continue  # An SDK removes files from its own cache too.
    return total


def kinds(root: Path) -> list[Path]:
    """The folders of a store that hold entries, by name."""
    inner = (item for item in _items(root) if item.is_dir(follow_symlinks=False) and not item.name.startswith("."))
    return sorted(Path(item.path) for item in inner)


def leftovers(root: Path) -> Iterator[Path]:
    """What processes that were ended left behind, or are at work on: half-made and half-removed entries, lock files."""
    for folder in kinds(root):
        for item in _items(folder):
            lock = item.name.endswith(".lock") and _ID.fullmatch(item.name.removesuffix(".lock"))
            if lock or _LEFT.fullmatch(item.name):
                yield Path(item.path)


def looks_like_a_store(root: Path) -> bool:
    """Whether everything in a folder is named as a store's things are (an empty folder looks like one)."""
    for item in _items(root):
        if not item.is_dir(follow_symlinks=False):
            return False
        for inner in _items(Path(item.path)):
            stem, dot, suffix = inner.name.partition(".")
            expected = inner.is_file if dot + suffix in (".json", ".lock") else inner.is_dir
            entry = _ID.fullmatch(stem) and dot + suffix in ("", ".json", ".lock") and expected(follow_symlinks=False)
            if not entry and not _LEFT.fullmatch(inner.name):
                return False
    return True


def _items(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError:
        return []
