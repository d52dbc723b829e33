"""Runs the checks one by one in a long-lived child, each with its time; the child is started anew after a crash.

The child is one process for all checks of an adapter, as a server would be: what one check leaves behind is found by
the next. Only an adapter that declares that it needs a process of its own gets one for each check; and what is about
the process itself is run in another child, to which nothing is handed down that the other checks changed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from paddock.child import Child, Children
from paddock.errors import ChildFailed, PaddockError, UsageError, did_you_mean
from paddock.host import first_line
from paddock.registry import Registry
from paddock.spi import Adapter, Process
from paddock.testing.bench import Bench
from paddock.testing.checks_buffers import TABLE as BUFFERS
from paddock.testing.checks_concurrency import TABLE as CONCURRENCY
from paddock.testing.checks_contract import TABLE as CONTRACT
from paddock.testing.checks_honesty import TABLE as HONESTY
from paddock.testing.checks_input import TABLE as BAD_INPUT
from paddock.testing.checks_memory import MEMORY, SOAK
from paddock.testing.checks_models import MODELS, OPERATORS, model_checks, operator_checks
from paddock.testing.checks_precision import TABLE as PRECISION
from paddock.testing.checks_process import TABLE as PROCESS
from paddock.testing.outcomes import Outcome, Result
from paddock.testing.table import Broken, Check, Evidence, Refused, Skipped
from paddock.testing.zoo import ZOO


def checks_for(adapter: type[Adapter], registry: Registry) -> dict[str, Check]:
    """Every check there is for an adapter, by name, in the order in which they are run; loads no SDK."""
    formats = getattr(adapter, "formats", ())
    own = [n for f in formats if f in registry.formats for n in registry.formats[f].examples]
    names = tuple(ZOO) if "onnx" in formats or not own else tuple(own)
    checks = [
        *CONTRACT.checks,
        *PROCESS.checks,
        *BUFFERS.checks,
        *OPERATORS.checks,
        *(operator_checks() if "onnx" in formats else ()),
        *MODELS.checks,
        *model_checks(names),
        *HONESTY.checks,
        *PRECISION.checks,
        *BAD_INPUT.checks,
        *CONCURRENCY.checks,
        *MEMORY.checks,
        *SOAK.checks,
    ]
    return {check.name: check for check in checks}


def chosen(checks: Mapping[str, Check], patterns: Iterable[str], quick: bool) -> list[Check]:
    """The checks whose names or areas match one of the globs, all by default; raises `UsageError` where none does."""
    wanted = list(patterns)
    for pattern in wanted:
        if not any(_matches(check, pattern) for check in checks.values()):
            known = [*dict.fromkeys(c.area.value for c in checks.values()), *checks]
            raise UsageError(f"no check is called {pattern!r}", remedy=did_you_mean(pattern, known) or "try an area")
    found = [c for c in checks.values() if not wanted or any(_matches(c, p) for p in wanted)]
    return [c for c in found if not (quick and c.long)]


def _matches(check: Check, pattern: str) -> bool:
    return fnmatchcase(check.name, pattern) or check.area.value == pattern


class Runner:
    """The checks of one adapter after another, in one child and one cache; a context manager.

    Args:
        quick: Fewer sizes, runs and operators for each check.
    """

    def __init__(self, quick: bool = True) -> None:
        self.quick = quick
        self._children: dict[bool, Child] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="paddock-kit-"))
        self._tables: dict[type[Adapter], dict[str, Check]] = {}

    def table(self, adapter: type[Adapter]) -> dict[str, Check]:
        """Every check there is for the adapter, by name."""
        if adapter not in self._tables:
            self._tables[adapter] = checks_for(adapter, Registry.discover())
        return self._tables[adapter]

    def run(self, adapter: type[Adapter], check: Check, seconds: float | None = None) -> Result:
        """One check in the child, for `seconds` or else its own time; whatever happens there is its result."""
        begun = time.perf_counter()
        if adapter.process is Process.EXCLUSIVE:
            self._end()
        child = self._children.setdefault(check.apart, Child("the conformance kit"))
        try:
            found = child.call(
                _run_here, adapter, check.name, self._folder, self.quick, seconds=seconds or check.seconds
            )
        except ChildFailed as error:
            found = self._result(check, _ended(error), error.problem)
        except Broken as error:
            found = self._result(check, Outcome.FAILED, error.problem)
        except PaddockError as error:
            found = self._result(check, Outcome.FAILED, _cannot_cross(child, adapter) or first_line(error))
        return replace(found, seconds=time.perf_counter() - begun)

    def run_all(
        self, adapter: type[Adapter], patterns: Iterable[str] = (), told: Callable[[Result], None] | None = None
    ) -> tuple[Result, ...]:
        """All checks that the globs choose, in order; `told` of each as it comes."""
        results = []
        for check in chosen(self.table(adapter), patterns, self.quick):
            results.append(self.run(adapter, check))
            if told is not None:
                told(results[-1])
        return tuple(results)

    def close(self) -> None:
        """Ends the child and removes what was made; twice is fine."""
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        while self._children:
            self._children.popitem()[1].close()

    def _result(self, check: Check, outcome: Outcome, reason: str, **more: Any) -> Result:
        return Result(check.name, check.area, check.promise, outcome, reason, **more)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _cannot_cross(child: Child, adapter: type[Adapter]) -> str:
    """Why the child cannot take the class: that of a test file, say, which no other process can import; else ""."""
    try:
        child.call(_arrived, adapter)
    except ChildFailed:
        return ""
    except PaddockError as error:
        return f"the adapter's class does not cross processes: {first_line(error)}; import it from a module"
    return ""


def _arrived(adapter: type[Adapter]) -> None:
    """In the child: it was imported there."""


def _ended(error: ChildFailed) -> Outcome:
    return Outcome.HUNG if "did not answer" in error.problem else Outcome.CRASHED


@cache
def _children() -> Children:
    """In the child: the processes that all benches share."""
    return Children()


@cache
def _bench(adapter: type[Adapter], folder: Path, quick: bool) -> tuple[Bench, Mapping[str, Check]]:
    """In the child: the bench that all checks of an adapter share."""
    bench = Bench(adapter, folder / f"{adapter.__module__}.{adapter.__qualname__}", _children(), quick)
    return bench, checks_for(adapter, bench.registry)


def _run_here(adapter: type[Adapter], name: str, folder: Path, quick: bool) -> Result:
    try:
        bench, checks = _bench(adapter, folder, quick)
    except TypeError as error:  # the declarations are what everything else rests on
        raise Broken(str(error)) from error
    bench.enter()
    check = checks[name]

    def result(outcome: Outcome, reason: str, **more: Any) -> Result:
        return Result(check.name, check.area, check.promise, outcome, reason, **more)

    try:
        evidence = check.action(bench) or Evidence()
    except Skipped as error:
        return result(Outcome.SKIPPED, error.problem, refused=isinstance(error, Refused))
    except ChildFailed as error:  # what the adapter did in a child of the check's own
        return result(_ended(error), error.problem)
    except PaddockError as error:
        more = f" ({error.candidates[0]})" if error.candidates else ""
        return result(Outcome.FAILED, error.problem + more, matrix=dict(getattr(error, "matrix", {})))
    except (Exception, SystemExit) as error:
        return result(Outcome.FAILED, first_line(error))
    finally:
        bench.leave()
    return result(Outcome.PASSED, evidence.text, unproven=evidence.unproven, matrix=evidence.matrix)
