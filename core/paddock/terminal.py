"""What the command line prints and exits with: stdout kept apart from backends, errors as text or JSON, exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from paddock.errors import (
    AccuracyRefused,
    BuildFailed,
    ConfigError,
    MemoryRefused,
    ModelError,
    NotAvailable,
    PaddockError,
    RunFailed,
    StrictnessError,
    UsageError,
)

INTERRUPTED, BROKEN_PIPE = 130, 141
"""What a shell reports for SIGINT and SIGPIPE."""


EXIT_CODES: Sequence[tuple[type[PaddockError], int]] = (
    (ConfigError, 2),
    (UsageError, 2),
    (ModelError, 2),
    (StrictnessError, 2),
    (NotAvailable, 3),
    (AccuracyRefused, 4),
    (MemoryRefused, 5),
    (BuildFailed, 6),
    (RunFailed, 6),
)


INTERNAL = 1


def exit_code(error: PaddockError) -> int:
    """The exit status for an error; anything not in the table is an internal error."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), INTERNAL)


class Terminal:
    """Our stdout, kept apart from what backends write to file descriptor 1."""

    def __init__(self) -> None:
        # The document and the tables go here; descriptor 1 itself becomes stderr, for C++ code that prints.
        try:
            sys.stdout.flush()
            own = os.dup(1)
        except (AttributeError, OSError):
            own = os.open(os.devnull, os.O_WRONLY)  # We were started with stdout closed.
        self._stream = os.fdopen(own if own != 1 else os.dup(own), "w", encoding="utf-8", errors="backslashreplace")
        os.dup2(2, 1)
        self.out = Console(file=self._stream, width=None if self._stream.isatty() else 160, highlight=False)
        self.err = Console(stderr=True, highlight=False)
        self.json = False

    def document(self, data: Any) -> None:
        """Prints one JSON document."""
        self._stream.write(json.dumps(data, indent=2, default=str) + "\n")

    def help(self) -> None:
        """Lets typer print its help to our stdout."""
        sys.stdout = self._stream

    def flush(self) -> None:
        """Writes out what is buffered."""
        self._stream.flush()

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """A status line on stderr where that is a terminal."""
        if not self.err.is_terminal:
            yield lambda message: None
            return
        with self.err.status("starting") as status:
            yield status.update

    def note_warm_start(self, adapter: str | None) -> None:
        """Says on stderr that a command takes no account of the config's `warm_start`."""
        if adapter is not None:
            self.err.print(f"note: warm_start {adapter} has no effect here: a command takes what it is swapped for")

    def interrupted(self) -> None:
        """Shows that the user ended it."""
        if self.json:
            self.document({"error": {**error_json(PaddockError("interrupted")), "exit_code": INTERRUPTED}})
        else:
            self.err.print("interrupted")

    def failed(self, error: PaddockError) -> None:
        """Shows an error a user can cause."""
        if self.json:
            self.document({"error": error_json(error)})
        else:
            self.err.print(f"[red]{type(error).__name__}[/red] {escape(str(error))}", soft_wrap=True)


def error_json(error: PaddockError) -> dict[str, Any]:
    """An error as plain JSON data, with those that stand beside it."""
    besides = [_error_json(other) for other in error.besides]
    return {**_error_json(error), **({"besides": besides} if besides else {})}


def _error_json(error: PaddockError) -> dict[str, Any]:
    report = getattr(error, "report", None)
    return {
        "kind": type(error).__name__,
        "problem": error.problem,
        "where": error.where,
        "candidates": list(error.candidates),
        "remedy": error.remedy,
        "exit_code": exit_code(error),
        **({"report": report.to_json()} if report is not None else {}),
    }
