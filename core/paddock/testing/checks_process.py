"""The process: what an adapter leaves as it was, what it leaves behind, and that its process ends in peace.

The adapter lives once through everything (its SDK's import, compiling, loading, running, closing) in an interpreter
that has nothing else to do and ends as a user's script does. What its SDK does when it is merely imported is told, and
held against nobody.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from paddock.child import Children
from paddock.compile import local_plan
from paddock.errors import PaddockError
from paddock.host import first_line
from paddock.spi import Adapter, Context
from paddock.testing.bench import Bench, Serving
from paddock.testing.checks_contract import packages_of
from paddock.testing.outcomes import Area
from paddock.testing.table import Broken, Evidence, Table
from paddock.testing.watching import Kept, Watch, state

TABLE = Table(Area.PROCESS)
_COMPILES, _LOADS, _RUNS = 6, 6, 45
_SECONDS = 100.0


@dataclass(frozen=True)
class Life:
    """What was seen of one life: by phase what changed and what was kept, and what the SDK's import alone changed."""

    changed: dict[str, dict[str, str]]
    kept: dict[str, Kept]
    imported: dict[str, str]


@TABLE.check(
    "undisturbed",
    "environment, current folder, signal handlers, standard output and NumPy's state are left as they were",
)
def _undisturbed(bench: Bench) -> Evidence:
    life, _ = _lived(bench)
    for phase, changes in life.changed.items():
        if changes:
            raise Broken(f"after {phase} {_listed(changes)}")
    for phase, kept in life.kept.items():
        if kept.printed:
            raise Broken(f"{phase} writes to standard output: {kept.printed[:80]!r}")
    return Evidence(f"importing its SDK alone: {_listed(life.imported)}" if life.imported else "")


@TABLE.check(
    "nothing_kept", "compiled, loaded and run again and again it leaves no file, no thread and no line of text"
)
def _nothing_kept(bench: Bench) -> Evidence:
    life, _ = _lived(bench)
    complaints = [text for phase, kept in life.kept.items() for text in kept.complaints(phase)]
    if complaints:
        raise Broken("; ".join(complaints))
    return Evidence(", ".join(f"{phase} {kept.times} times" for phase, kept in life.kept.items()))


@TABLE.check("ends", "an interpreter that served it ends as it should")
def _ends(bench: Bench) -> Evidence:
    _, status = _lived(bench)
    if status < 0:
        raise Broken(f"the interpreter ends with {_signal(-status)} after everything was closed")
    if status:
        raise Broken(f"the interpreter ends with status {status} after everything was closed")
    return Evidence("status 0")


def _listed(changes: dict[str, str]) -> str:
    return "; ".join(f"{what} {how}" for what, how in changes.items())[:600]


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@cache
def _lived(bench: Bench) -> tuple[Life, int]:
    """One life of the adapter and the exit status of its interpreter; the checks of this module share it.

    Raises `Broken` where it did not live to the end, and what its checks raise where it serves nothing.
    """
    assert bench.plain, "raises here where nothing is served"
    place = Path(tempfile.mkdtemp(dir=bench.folder, prefix="life-"))
    (place / "asked").write_bytes(pickle.dumps((bench.adapter, bench.folder, bench.quick)))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"from {__name__} import live; live({str(place)!r})"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        where = "does not end after everything was closed" if (place / "found").exists() else "does not come back"
        raise Broken(f"its interpreter {where} within {_SECONDS:g} s") from None
    if not (place / "found").exists():
        words = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        how = _signal(-done.returncode) if done.returncode < 0 else f"status {done.returncode}"
        raise Broken(f"compiling, loading or running ends the interpreter with {how}: {' '.join(words)[:200]}")
    found: Life | PaddockError = pickle.loads((place / "found").read_bytes())
    if isinstance(found, PaddockError):
        raise found
    return found, done.returncode


def live(place: str) -> None:
    """In an interpreter of its own: lives, writes down what was seen, and returns."""
    adapter, folder, quick = pickle.loads((Path(place) / "asked").read_bytes())
    try:
        found: Life | PaddockError = _life(adapter, folder, quick, Path(place))
    except PaddockError as error:
        found = error
    except Exception as error:
        found = Broken(first_line(error))
    written = Path(place) / "writing"
    written.write_bytes(pickle.dumps(found))
    written.rename(Path(place) / "found")


def _life(adapter: type[Adapter], folder: Path, quick: bool, place: Path) -> Life:
    with Children() as children:
        bench = Bench(adapter, folder, children, quick)
        with Watch(place / "watched") as watch:
            fresh = state()
            _import_sdk(sorted(packages_of(bench.probe)))
            before = state()
            imported = fresh.changes(before)
            changed: dict[str, dict[str, str]] = {}
            kept: dict[str, Kept] = {}
            with bench.serving(bench.plain) as serving:
                changed["selecting"] = before.changes(state())
                for phase, action, times in _phases(serving, place):
                    kept[phase] = watch.again(times, action)
                    changed[phase] = before.changes(state())
    return Life(changed, kept, imported)


def _phases(serving: Serving, place: Path) -> Sequence[tuple[str, Any, int]]:
    part, plan = serving.prepared.parts[0], serving.prepared.plan
    instance = serving.segment.resolved.instance
    feeds = serving.feeds(serving.sample())

    def compile(number: int) -> None:
        work = place / f"work-{number}"
        work.mkdir()
        instance().compile(part.target, local_plan(part, plan), Context(work, part.context.cache))

    def load(number: int) -> None:
        session = serving.load()
        session.run(feeds)
        session.close()
        serving.forget(session)

    served: list[Any] = []

    def run(number: int) -> None:
        if not served:
            served.append(serving.load())
        served[0].run(feeds)

    return (("compiling", compile, _COMPILES), ("loading", load, _LOADS), ("running", run, _RUNS))


def _import_sdk(packages: Sequence[str]) -> None:
    for name in packages:
        with contextlib.suppress(Exception):  # what does not import does nothing either
            importlib.import_module(name)
