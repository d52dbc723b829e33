"""`paddock new-plugin`: a whole distribution to begin with, for a device that is NumPy until it is replaced."""

from __future__ import annotations

import importlib.metadata
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from pydantic import TypeAdapter, ValidationError

from paddock.config import AUTO, Name
from paddock.errors import UsageError
from paddock.wellknown import well_known

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUFFIX = ".txt"
"""Of the files of the template: nobody is to take them for modules of Paddock's own."""


def write_plugin(name: str, hardware: str, folder: Path) -> tuple[Path, ...]:
    """Writes the distribution `paddock-NAME` with the adapter `hardware/name` into `folder`; returns its files.

    Raises `UsageError` where a name is none or somebody's already, or where the folder holds something.
    """
    _check(name, hardware)
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


def _check(name: str, hardware: str) -> None:
    """Raises `UsageError` for what no config could name, or what would take the place of another plugin."""
    if _NAME.fullmatch(name) is None or not _is_a_config_s(name):
        remedy = "lower case letters and digits, parts joined by -, 64 at most: acme, acme-npu2"
        raise UsageError(f"{name!r} cannot be a plugin's name", where="NAME", remedy=remedy)
    if not _is_a_config_s(hardware):
        raise UsageError(f"{hardware!r} cannot be a hardware", where="--hardware", remedy="as a config names it: npu")
    distribution, adapter = f"paddock-{name}", f"{hardware}/{name}"
    for known, facts in well_known().items():
        aliases = [f"{known.partition('/')[0]}/{alias}" for alias in facts["aliases"]]
        taken = {distribution, adapter} & {facts["distribution"], known, *aliases}
        if taken:
            problem = f"{min(taken)} is taken, by {known} of {facts['distribution']} ({facts['title']})"
            raise UsageError(problem, where="NAME", remedy="choose another name")
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return
    remedy = f"choose another name, or `pip uninstall {distribution}` where it is an earlier try of yours"
    raise UsageError(f"{distribution} {version} is installed here, and would be replaced", where="NAME", remedy=remedy)


def _is_a_config_s(word: str) -> bool:
    try:
        TypeAdapter(Name).validate_python(word)
    except ValidationError:
        return False
    return word != AUTO  # a config's word for "whichever is best"


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
