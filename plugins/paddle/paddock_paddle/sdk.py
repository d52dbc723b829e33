"""The border to Paddle: imported without its noise, its messages shortened, what it prints on stdout held back."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from paddock.machine import collector_paused

INSTALL = "pip install paddock-paddle[sdk]"
AGAIN = "save the model again with paddle.jit.save, and keep the .json and the .pdiparams of one save together"

_ENVIRONMENT = {"GLOG_minloglevel": "2"}
"""What Paddle reads while it is imported: no log lines under ERROR (Paddle logs on stderr through glog)."""

_LEFT_BEHIND = ("OMP_NUM_THREADS", "CUSTOM_DEVICE_ROOT")

_TRACE = re.compile(r"-+|In user code:|\d+\s+.*|C\+\+ Traceback.*|\[operator <.*")

_importing = threading.Lock()
_printing = threading.Lock()


def import_quietly(name: str) -> Any:
    """Imports Paddle, or a package that imports it, and leaves the environment as it was.

    Paddle sets OMP_NUM_THREADS to 1 for its process and whatever that starts, though its own threads do not depend on
    it, and an empty CUSTOM_DEVICE_ROOT.
    """
    with _importing, collector_paused(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = {key: os.environ.get(key) for key in (*_ENVIRONMENT, *_LEFT_BEHIND)}
        os.environ.update({key: value for key, value in _ENVIRONMENT.items() if kept[key] is None})
        try:
            return importlib.import_module(name)
        finally:
            for key, value in kept.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


def short(error: BaseException) -> str:
    """The sentence that matters of Paddle's message, which is mostly a C++ trace.

    `(Unimplemented) no kernel ... (at /paddle/...cc:116)` loses its place in the source; a `[Hint: ...]` is kept.
    """
    text = str(error)
    head, _, summary = text.partition("Error Message Summary:")
    lines = [line.strip() for line in (summary or head).splitlines()]
    lines = [re.sub(r"\s*\(at /[^)]*\)\s*$", "", line) for line in lines]
    useful = [line for line in lines if line and not _TRACE.fullmatch(line)]
    if not useful:
        return type(error).__name__
    hint = next((line for line in useful[1:] if line.startswith("[Hint")), "")
    return f"{useful[0]} {hint}".strip()[:400]


@contextlib.contextmanager
def captured_stdout() -> Iterator[Callable[[], str]]:
    """Holds back what C++ writes to stdout; the function that it gives returns the text once the block is left.

    Lines of other threads that are caught with it are written out afterwards, by `release`.
    """
    text = ""
    with _printing:
        flush = ctypes.CDLL(None).fflush
        _flush(flush)
        try:
            kept = os.dup(1)
        except OSError:  # stdout is closed: nothing can be written there
            yield lambda: ""
            return
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 1)
            try:
                yield lambda: text
            finally:
                _flush(flush)
                os.dup2(kept, 1)
                os.close(kept)
                file.seek(0)
                text = file.read().decode(errors="replace")


def release(text: str, noise: Callable[[str], bool]) -> None:
    """Writes to stdout whatever of a captured text is not Paddle's noise."""
    lines = "".join(line for line in text.splitlines(keepends=True) if not noise(line))
    if lines:
        os.write(1, lines.encode())


def _flush(flush: Any) -> None:
    if sys.stdout is not None:
        with contextlib.suppress(ValueError, OSError):
            sys.stdout.flush()
    flush(None)
