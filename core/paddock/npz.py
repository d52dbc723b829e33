"""Arrays in .npz files, never pickled objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from paddock.errors import UsageError


def read_npz(path: Path, where: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of one .npz (never pickled objects); raises `UsageError` naming the file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=f"{where}: {path}") from None
    except Exception as error:  # A damaged archive raises a dozen kinds, from zlib's own to MemoryError.
        raise UsageError(f"is not an .npz of plain arrays: {error}", where=f"{where}: {path}") from None


def write_npz(path: Path, arrays: Mapping[str, Any], where: str) -> None:
    """Writes what `read_npz` reads; object arrays are written as strings. Raises `UsageError` naming the file.

    NumPy's own savez takes the names as keywords, so that it cannot write an array called "file".
    """
    try:
        with ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                if not isinstance(array, np.ndarray):
                    problem = f"{name!r} is a {type(array).__name__}, not a tensor: an .npz cannot hold it"
                    raise UsageError(problem, where=f"{where}: {path}")
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    plain = array.astype(str) if array.dtype == object else array
                    np.lib.format.write_array(member, plain, allow_pickle=False)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror or error}", where=f"{where}: {path}") from None
