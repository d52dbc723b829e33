"""Every exception that Paddock raises, and nothing else.

A message answers four questions: what is wrong, where (the file and the JSON path in it), what could
have stood there (the candidates), and what to do (the remedy). The command line maps these classes to exit
codes in one table (`paddock.cli.EXIT_CODES`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Self


class PaddockError(Exception):
    """The base of all errors a user or a vendor can meet.

    Args:
        problem: One sentence: what is wrong.
        where: The file, JSON path, model value or distribution it is about.
        candidates: What could have stood there; shown as a list.
        remedy: What to do about it; an instruction or a command.
    """

    besides: tuple[PaddockError, ...] = ()
    """What else stands against it, so that no error hides another."""

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        candidates: Sequence[str] = (),
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.where = where
        self.candidates = tuple(candidates)
        self.remedy = remedy
        super().__init__(problem)

    def __str__(self) -> str:
        lines = self._lines()
        for other in self.besides:
            first, *more = other._lines()
            lines += [f"besides: {first}", *more]
        return "\n".join(lines)

    def _lines(self) -> list[str]:
        lines = [f"{self.where}: {self.problem}" if self.where else self.problem]
        if self.candidates:
            lines.append("  candidates: " + ", ".join(self.candidates))
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return lines

    def beside(self, *others: PaddockError) -> Self:
        """This error, with others (and what stands beside those) told beside it, each of them once."""
        found: dict[tuple[object, ...], PaddockError] = {_told(self): self}
        for error in (*self.besides, *(each for other in others for each in (other, *other.besides))):
            found.setdefault(_told(error), error)
        _, *besides = found.values()
        self.besides = tuple(besides)
        return self

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (children report them), and keyword-only arguments do not pickle by default.
        return _rebuild, (type(self), dict(self.__dict__))


def _rebuild(kind: type[PaddockError], state: dict[str, object]) -> PaddockError:
    error = kind.__new__(kind)
    error.__dict__.update(state)
    error.args = (state["problem"],)
    return error


def _told(error: PaddockError) -> tuple[object, ...]:
    """What two errors have in common that need not both be told."""
    return type(error), error.where, error.problem


class ConfigError(PaddockError):
    """The JSON config is malformed, contradicts itself, or does not fit the model."""


class UsageError(PaddockError):
    """A call or a command was given something it cannot take (a wrong input name, dtype, rank or extent)."""


class OtherShape(UsageError):
    """An output has another shape in this run than the array that was given for it.

    Args:
        output: The output's name.
        given: The array's shape.
        found: The output's.
    """

    def __init__(self, output: str, given: Sequence[int], found: Sequence[int]) -> None:
        self.output, self.given, self.found = output, tuple(given), tuple(found)
        super().__init__(
            f"the output {output!r} has the shape {list(found)} in this run", where="into",
            candidates=[f"given: {list(given)}"], remedy="give an array of that shape",
        )  # fmt: skip


class ModelError(PaddockError):
    """The model's files are missing, broken, foreign, or of no known format."""


class StrictnessError(PaddockError):
    """Something asked for would have no effect, or something other than asked for would happen."""


class NotAvailable(PaddockError):
    """The hardware, the backend, its SDK, the precision or an operator asked for is not available on this host."""

    nodes: tuple[int, ...] = ()
    """The nodes that nobody takes, where it is about these."""
    reasons: tuple[str, ...] = ()
    """Why nobody takes each of them."""


class AccuracyRefused(PaddockError):
    """The deployment disagrees with the reference by more than its budget, or nothing could be concluded."""

    report: object = None


class MemoryRefused(PaddockError):
    """The deployment would need more memory than its limit or its device has."""


class BuildFailed(PaddockError):
    """An adapter could not compile, load or try out the model."""


class Unsupported(BuildFailed):
    """Raised by `Adapter.compile` when the SDK turns out to refuse some nodes.

    Args:
        nodes: Indices of the refused nodes in the model's graph.
        reason: What the SDK said.
    """

    def __init__(self, nodes: Iterable[int], reason: str) -> None:
        self.nodes = tuple(nodes)
        super().__init__(reason)


class RunFailed(PaddockError):
    """A session failed while it ran, or is closed."""


class Exhausted(RunFailed):
    """A device or a process ran out of memory while a session ran: isolated, it is started anew."""


class ChildLost(RunFailed):
    """The process that an adapter is isolated in crashed, hung or ran out of memory with a request, or is not back."""


class ChildFailed(BuildFailed):
    """A child process crashed, hung past its time, or could not be started."""

    code: int | None = None
    """Where the process ended by itself: its exit status, or the number of the signal, negative."""


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, or None when nothing is near (difflib's ratio under 0.6)."""
    found = difflib.get_close_matches(name, list(candidates), n=1)
    return found[0] if found else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """A remedy sentence for a misspelt name, or None when nothing is near."""
    near = nearest(name, candidates)
    return f"did you mean {near!r}?" if near is not None else None
