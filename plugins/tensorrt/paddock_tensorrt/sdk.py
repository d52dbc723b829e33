"""The one way into TensorRT's Python API, of 10.16 and later and of 11: what both majors have, and nothing else.

Modules write `from paddock_tensorrt.sdk import trt` and import nothing by that. A type checker sees TensorRT's own
types there, so that a test can hold every name, enum member and signature that is used against both majors.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from paddock.errors import NotAvailable

from paddock_tensorrt.present import MODULES, TENSORRT_REMEDY, libraries_remedy, look

T = TypeVar("T")


@cache
def tensorrt() -> Any:
    """TensorRT's module; raises `NotAvailable` where it cannot be imported."""
    for name in MODULES:
        if importlib.util.find_spec(name) is not None:
            try:
                return importlib.import_module(name)
            except ImportError as error:  # its libraries are not where the linker looks
                remedy = libraries_remedy(look().tensorrt)
                raise NotAvailable(f"{name} cannot be imported: {error}", remedy=remedy) from error
    raise NotAvailable("TensorRT's Python package is not installed", remedy=TENSORRT_REMEDY)


if TYPE_CHECKING:
    import tensorrt_bindings as trt
else:

    class _Module:
        """TensorRT's module, imported when the first name is taken from it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tensorrt(), name)

    trt = _Module()

__all__ = ["Said", "content", "extents", "made", "said", "tensorrt", "trt"]


def extents(dims: trt.Dims) -> tuple[int, ...]:
    """A shape; -1 where an extent is open."""
    return tuple(int(dims[axis]) for axis in range(len(dims)))


def content(memory: trt.IHostMemory) -> bytes:
    """A copy of what TensorRT gave: its own memory goes with the object."""
    whole: Any = memory  # a buffer, which its docstrings do not tell
    return bytes(whole)


class Said:
    """What TensorRT said beside its answers: it returns None or False, and logs why."""

    def __init__(self, logger: trt.ILogger, lines: list[str]) -> None:
        self.logger = logger
        self._lines = lines

    def why(self, otherwise: str = "TensorRT does not say why") -> str:
        """Its errors since the last call, on one line; else `otherwise`."""
        found = list(dict.fromkeys(self._lines))
        self._lines.clear()
        return _short(found) or otherwise


def said() -> Said:
    """A logger of our own: nothing is printed, errors are kept."""
    lines: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                lines.append(msg)

    return Said(Logger(), lines)


def made(what: str, make: Callable[[], T], heard: Said) -> T:
    """`make()`; raises `NotAvailable` where TensorRT gives no object, as where there is no device."""
    try:
        found = make()
    except TypeError as error:  # what its bindings raise for a null pointer, and for nothing else here
        raise NotAvailable(f"TensorRT gives no {what}: {heard.why(str(error))}") from error
    if found is None:
        raise NotAvailable(f"TensorRT gives no {what}: {heard.why()}")
    return found


def _short(lines: Sequence[str]) -> str:
    """Messages on one line, without the places in TensorRT's sources."""
    text = "; ".join(" ".join(line.split()) for line in lines)
    return text[:600]
