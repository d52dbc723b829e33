"""JSON text read strictly: no key twice, no NaN, nothing endless; and how errors name a place in it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from paddock.errors import ConfigError, UsageError, did_you_mean


def read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        near = did_you_mean(path.name, _json_files(path.parent))
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), remedy=near) from None
    except ValueError as error:
        raise ConfigError(f"is no path: {error}", where=ascii(str(path))) from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"is larger than {MAX_BYTES // 1024} KiB: not a config", where=str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8: {error.reason} at byte {error.start}", where=str(path)) from None


def _json_files(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.glob("*.json"))
    except OSError:
        return []


def dump(data: Mapping[str, Any]) -> str:
    try:
        return json.dumps(data, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"is not JSON data: {error}", where="config") from None


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else os.fspath(value)


def write_json(path: Path, data: Any, where: str) -> None:
    """Writes JSON data, readable; raises `UsageError` naming the file."""
    write_text(path, json.dumps(data, indent=2) + "\n", where)


def write_text(path: Path, text: str, where: str) -> None:
    """Writes a file as UTF-8; raises `UsageError` naming it."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=f"{where}: {path}") from None


def loads(text: str, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"the key {twice!r} stands twice in one object", where=where)
        return found

    def refuse(constant: str) -> Any:
        raise ConfigError(f"{constant} is not JSON", where=where)

    def finite(number: str) -> float:
        if math.isinf(float(number)):
            raise ConfigError(f"{short(number)} is too large for a number", where=where)
        return float(number)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        place = f"{where}: line {error.lineno}, column {error.colno}"
        raise ConfigError(f"is not JSON: {error.msg}", where=place) from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"is not JSON: {error}", where=where) from None


def kind_of(data: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(data), "a number")


def json_path(location: Sequence[int | str]) -> str:
    """`("accuracy", "samples", 0)` -> `$.accuracy.samples[0]`; `("shapes", "x.0")` -> `$.shapes["x.0"]`."""

    def step(part: int | str) -> str:
        if isinstance(part, str) and re.fullmatch(r"[A-Za-z_$][A-Za-z0-9_$-]*", part):
            return f".{part}"
        return f"[{json.dumps(part)}]"

    return "$" + "".join(map(step, location))


def short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def named(path: Any) -> Any:
    if path == "":
        raise PydanticCustomError("path", "names no file or folder")
    return path


MAX_BYTES = 64 * 1024
