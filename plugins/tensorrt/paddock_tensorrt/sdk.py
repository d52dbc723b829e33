"""The one way into TensorRT's Python API, of 10.16 and later and of 11: what both majors have, and nothing else.

Modules write `from paddock_tensorrt.sdk import trt` and import nothing by that. A type checker sees TensorRT's own
types there, so that a test can hold every name, enum member and signature that is used against both majors.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from paddock.errors import NotAvailable

from paddock_tensorrt.present import MODULES, TENSORRT_REMEDY, libraries_remedy, look

T = TypeVar("T")


@cache
def _tensorrt() -> Any:
    """TensorRT's module; raises `NotAvailable` where it cannot be imported. Others use `trt`, which has types."""
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
            return getattr(_tensorrt(), name)

    trt = _Module()

__all__ = ["Said", "content", "extents", "is_no_memory", "made", "said", "trt"]

_NO_MEMORY = (
    "out of memory", "outofmemory", "insufficient memory", "memoryallocation", "memory allocation", "allocation failed"
)  # fmt: skip
"""What TensorRT's log says where something takes more of the device's memory than there is."""
_LONGEST = 600
"""Characters of what is told of a log."""


def is_no_memory(why: str) -> bool:
    """Whether TensorRT says that the device's memory does not suffice."""
    return any(words in why.lower() for words in _NO_MEMORY)


def extents(dims: trt.Dims) -> tuple[int, ...]:
    """A shape; -1 where an extent is open."""
    return tuple(int(dims[axis]) for axis in range(len(dims)))


def content(memory: trt.IHostMemory) -> bytes:
    """A copy of what TensorRT gave: its own memory goes with the object."""
    whole: Any = memory  # a buffer, which its docstrings do not tell
    return bytes(whole)


class Said:
    """What TensorRT said beside its answers: it returns None or False, and logs why.

    Args:
        logger: What it is said to.
        lines: The errors, each with the thread that said it; the oldest are forgotten.
    """

    def __init__(self, logger: trt.ILogger, lines: deque[tuple[int, str]]) -> None:
        self.logger = logger
        self._lines = lines

    def why(self, otherwise: str = "TensorRT does not say why") -> str:
        """Its errors since the last call, those of this thread if there are any, on one line; else `otherwise`.

        The last ones, where they are too long together: what was tried before matters less.
        """
        kept = list(self._lines)
        own = [each for each in kept if each[0] == threading.get_ident()] or kept
        for each in own:
            with suppress(ValueError):  # another thread has taken it
                self._lines.remove(each)
        return _short([line for _, line in own]) or otherwise

    def forget(self) -> None:
        """What was said so far came to nothing: a build logs errors of kernels that it only tried."""
        self._lines.clear()


def said() -> Said:
    """The logger of this process, for something new: what was said before is forgotten.

    Nothing is printed, errors are kept. It is one, since kernels and plugins log to the first that TensorRT was given.
    """
    found = _said()
    found.forget()
    return found


@cache
def _said() -> Said:
    lines: deque[tuple[int, str]] = deque(maxlen=100)

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                lines.append((threading.get_ident(), msg))

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
    """The last messages, each once, on one line."""
    told = ""
    for line in reversed(dict.fromkeys(" ".join(line.split()) for line in lines)):
        longer = f"{line}; {told}" if told else line
        if len(longer) > _LONGEST:
            return told or longer[:_LONGEST]
        told = longer
    return told
