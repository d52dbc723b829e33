"""`paddock new-plugin`: a whole distribution to begin with, for a device that is NumPy until it is replaced."""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from paddock.config import NAME_PATTERN
from paddock.errors import UsageError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUFFIX = ".txt"
"""Of the files of the template: nobody is to take them for modules of Paddock's own."""


def write_plugin(name: str, hardware: str, folder: Path) -> tuple[Path, ...]:
    """Writes the distribution `paddock-NAME` with the adapter `hardware/name` into `folder`; returns its files.

    Raises `UsageError` where a name is none, or where the folder holds something.
    """
    if _NAME.fullmatch(name) is None:
        remedy = "lower case letters and digits, parts joined by -: acme, acme-npu2"
        raise UsageError(f"{name!r} cannot be a plugin's name", where="NAME", remedy=remedy)
    if re.fullmatch(NAME_PATTERN, hardware) is None:
        raise UsageError(f"{hardware!r} cannot be a hardware", where="--hardware", remedy="as a config names it: npu")
    words = {
        "name": name,
        "package": name.replace("-", "_"),
        "title": "".join(part.capitalize() for part in name.split("-")),
        "hardware": hardware,
    }
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError("is there already, and not empty", where=str(folder), remedy="--output another folder")
        written = []
        for source, path in _files(resources.files("paddock") / "data" / "template", folder, words["package"]):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(source.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(folder)) from error
    return tuple(sorted(written))


def _files(folder: Traversable, target: Path, package: str) -> list[tuple[Traversable, Path]]:
    """Each file of the template, and where it goes."""
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            inner = f"paddock_{package}" if entry.name == "package" else entry.name
            found += _files(entry, target / inner, package)
        else:
            found.append((entry, target / entry.name.removesuffix(_SUFFIX)))
    return found
