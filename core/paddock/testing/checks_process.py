"""The process: what an adapter leaves as it was, what it leaves behind, and that its process ends in peace.

The adapter lives once through everything (its SDK's import, compiling, loading, running, closing) in an interpreter
that has nothing else to do and ends as a user's script does. It is started from a process in which the adapter ran
nothing, since environment, ignored signals and cores are handed down. What its SDK does when it is merely imported is
told, and held against nobody.
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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from paddock.child import Children
from paddock.compile import local_plan
from paddock.errors import PaddockError
from paddock.host import first_line
from paddock.spi import Adapter, Context, Session
from paddock.testing.bench import Bench, Serving
from paddock.testing.importing import packages_of
from paddock.testing.outcomes import Area
from paddock.testing.table import Broken, Evidence, Table
from paddock.testing.watching import Kept, Watch, state

TABLE = Table(Area.PROCESS)
_COMPILES, _LOADS, _RUNS = 6, 6, 45
_SECONDS = 600.0
"""For a whole check: some compilers take half a minute each time."""
_STEP = 120.0
"""Seconds in which the next sign of life has to come: each compilation, load and run is one."""
_ENDING = 60.0


@dataclass(frozen=True)
class Life:
    """What was seen of one life: by phase what changed and what was kept, and what imports alone changed.

    `modules` are those that came to be imported while it lived, `processes` those that it left, by number and begin.
    """

    changed: dict[str, dict[str, str]]
    kept: dict[str, Kept]
    imported: dict[str, str]
    modules: tuple[str, ...]
    processes: tuple[tuple[int, float], ...]

    @property
    def disturbed(self) -> bool:
        """Whether something is to be held against it that an import may have done."""
        return any(self.changed.values()) or any(kept.printed for kept in self.kept.values())


@TABLE.check(
    "undisturbed",
    "environment, folder, signals, locale, cores, arithmetic, random numbers, logging and standard output are left be",
    seconds=_SECONDS,
    apart=True,
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
    "nothing_kept",
    "compiled, loaded and run again and again it leaves no file, thread, process or line of text",
    seconds=_SECONDS,
    apart=True,
)
def _nothing_kept(bench: Bench) -> Evidence:
    life, _ = _lived(bench)
    complaints = [text for phase, kept in life.kept.items() for text in kept.complaints(phase)]
    if complaints:
        raise Broken("; ".join(complaints))
    doubts = tuple(text for phase, kept in life.kept.items() for text in kept.doubts(phase))
    return Evidence(", ".join(f"{phase} {kept.times} times" for phase, kept in life.kept.items()), doubts)


@TABLE.check("ends", "an interpreter that served it ends as it should", seconds=_SECONDS, apart=True)
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


def _lived(bench: Bench) -> tuple[Life, int]:
    """One life of the adapter and the exit status of its interpreter; the checks of this module share it.

    It is kept in the bench's folder: an adapter that needs a process of its own has another one for each check. Raises
    `Broken` where it did not live to the end, and what its checks raise where it serves nothing.
    """
    kept = bench.folder / "lived"
    if not kept.exists():
        kept.write_bytes(pickle.dumps(_living(bench)))
    found: tuple[Life, int] | PaddockError = pickle.loads(kept.read_bytes())
    if isinstance(found, PaddockError):
        raise found
    return found


def _living(bench: Bench) -> tuple[Life, int] | PaddockError:
    """Where something is disturbed, once more with all imported before that was imported on the way."""
    try:
        life, status = _one_life(bench, ())
        return _one_life(bench, life.modules) if life.disturbed else (life, status)
    except PaddockError as error:
        return error


def _one_life(bench: Bench, modules: Sequence[str]) -> tuple[Life, int]:
    place = Path(tempfile.mkdtemp(dir=bench.folder, prefix="life-"))
    (place / "asked").write_bytes(pickle.dumps((bench.adapter, bench.folder, bench.quick, modules)))
    with (place / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import live; live({str(place)!r})"],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
        )  # fmt: skip
    _wait(process, place)
    if not (place / "found").exists():
        words = (place / "said").read_text(errors="replace").strip().splitlines()[-1:]
        how = _signal(-process.returncode) if process.returncode < 0 else f"status {process.returncode}"
        raise Broken(f"compiling, loading or running ends the interpreter with {how}: {' '.join(words)[:200]}")
    found: Life | PaddockError = pickle.loads((place / "found").read_bytes())
    if isinstance(found, PaddockError):
        raise found
    _end_all(found.processes)
    return found, process.returncode


def _wait(process: subprocess.Popen[bytes], place: Path) -> None:
    """Until it ended; raises `Broken` where it shows no more sign of life, or does not end."""
    found, alive = place / "found", place / "alive"
    begun = time.time()
    while process.poll() is None:
        last = max(path.stat().st_mtime if path.exists() else begun for path in (alive, found))
        seconds = _ENDING if found.exists() else _STEP
        if time.time() - last > seconds:
            process.kill()
            process.wait()
            where = "does not end after everything was closed" if found.exists() else "does not come back"
            raise Broken(f"its interpreter {where} within {seconds:g} s")
        time.sleep(0.02)


def _end_all(processes: Sequence[tuple[int, float]]) -> None:
    """Ends what is left of these: what a leaky adapter leaves would outlive the kit."""
    for pid, begun in processes:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == begun:
                process.kill()


def live(place: str) -> None:
    """In an interpreter of its own: lives, writes down what was seen, and returns."""
    adapter, folder, quick, modules = pickle.loads((Path(place) / "asked").read_bytes())
    try:
        found: Life | PaddockError = _life(adapter, folder, quick, modules, Path(place))
    except PaddockError as error:
        found = error
    except Exception as error:
        found = Broken(first_line(error))
    written = Path(place) / "writing"
    written.write_bytes(pickle.dumps(found))
    written.rename(Path(place) / "found")


def _life(adapter: type[Adapter], folder: Path, quick: bool, modules: Sequence[str], place: Path) -> Life:
    with Children() as children:
        bench = Bench(adapter, folder, children, quick)
        with Watch(place / "watched") as watch:
            fresh = state()
            _import([*sorted(packages_of(bench.probe)), *modules])
            before, there = state(), set(sys.modules)
            imported = fresh.changes(before)
            changed: dict[str, dict[str, str]] = {}
            kept: dict[str, Kept] = {}
            with bench.serving(bench.plain) as serving:
                (place / "alive").touch()
                changed["selecting"] = before.changes(state())
                for phase, action, times in _phases(serving, place):
                    kept[phase] = watch.again(times, _signing(action, place / "alive"))
                    changed[phase] = before.changes(state())
    own = adapter.__module__.partition(".")[0]
    new = tuple(name for name in sys.modules if name not in there and name.partition(".")[0] not in (own, "paddock"))
    left = psutil.Process().children(recursive=True)
    return Life(changed, kept, imported, new, tuple((child.pid, child.create_time()) for child in left))


def _signing(action: Callable[[int], None], alive: Path) -> Callable[[int], None]:
    """The same, with a sign of life each time."""

    def signing(number: int) -> None:
        action(number)
        alive.touch()

    return signing


def _phases(serving: Serving, place: Path) -> Sequence[tuple[str, Callable[[int], None], int]]:
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
        serving.close(session)

    served: list[Session] = []

    def run(number: int) -> None:
        if not served:
            served.append(serving.load())
        served[0].run(feeds)

    return (("compiling", compile, _COMPILES), ("loading", load, _LOADS), ("running", run, _RUNS))


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        with contextlib.suppress(Exception):  # what does not import does nothing either
            importlib.import_module(name)
