"""What comes with a plugin's import and with `probe()`: packages, libraries, words, and changes to the process.

All of it is asked in a process that has nothing else behind it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from paddock.plan import Verdict
from paddock.spi import Adapter, Probe
from paddock.testing.table import Broken
from paddock.testing.watching import caught, read, state

_LINKED = ("ctypes", "hashlib", "ssl", "bz2", "lzma", "sqlite3", "uuid", "subprocess", "pwd")
"""Of Python's own modules those that bring libraries with them."""
_OF_LIBC = ("libnss_", "libgcc_s", "libresolv", "/gconv/")
"""Libraries that the C library loads as it needs them."""
_OWN = ("numpy", "onnx", "pydantic", "pluggy", "psutil", "rich", "typer", "packaging", "platformdirs", "filelock")
"""What Paddock itself needs: its presence says nothing about the adapter."""


def packages_of(probe: Probe) -> frozenset[str]:
    """The packages of the distributions that a probe names the versions of: the SDK."""
    named = {name.lower().replace("_", "-") for name in probe.versions}
    if not named:
        return frozenset()
    packages = importlib.metadata.packages_distributions()
    return frozenset(
        package
        for package, distributions in packages.items()
        if package not in _OWN and any(d.lower().replace("_", "-") in named for d in distributions)
    )


def import_here(modules: Sequence[str], distribution: str, probe: Probe) -> tuple[list[str], str, list[str]]:
    """Imports a plugin's modules in this process: gives foreign packages that came, what was printed, what changed.

    Args:
        distribution: The plugin's. What it requires beside the SDK is its own, where its probe tells what the SDK is.
    """
    packages, sdk = packages_of(probe), {_plain(name) for name in probe.versions}
    ours = _ours(modules, _needed(distribution, sdk) if sdk else set())
    there = set(sys.modules)
    with caught(1) as out, caught(2) as err:
        # Empty: who started this process has imported the plugin, and hands down the variables that it sets.
        kept = dict(os.environ)
        os.environ.clear()
        before = state()
        try:
            _import_all(modules)
        except Exception:  # it may need one of them
            os.environ.update(kept)
            before = state()
            _import_all(modules)
        said = read(out) + read(err)
    new = {name.partition(".")[0] for name in set(sys.modules) - there}
    foreign = {name for name in new if not ours(name)} | (packages & set(sys.modules))
    changed = before.changes(state())
    changed.pop("the filters of warnings", None)  # what NumPy and others add to when they are imported
    return sorted(foreign), said, list(changed)


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def _ours(modules: Sequence[str], required: Collection[str]) -> Callable[[str], bool]:
    """Whether a top-level package is Python's, Paddock's (with what that needs), a plugin's, or lies beside one.

    `required` are more distributions whose packages are.
    """
    providers = importlib.metadata.packages_distributions()
    plugins = {p.dist.name for p in importlib.metadata.entry_points(group="paddock") if p.dist is not None}
    known = _needed("paddock") | {_plain(name) for name in plugins} | set(required)
    tops = {module.partition(".")[0] for module in modules}
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}

    def ours(name: str) -> bool:
        if name in tops or name in sys.stdlib_module_names or name in sys.builtin_module_names:
            return True
        if name in providers:
            return any(_plain(each) in known for each in providers[name])
        place = _place(name)
        beside = {folder for top in tops if (folder := _place(top)) is not None} - installed
        return place is None or place in beside or name.startswith(("paddock", "__editable__", "_"))

    return ours


def _place(name: str) -> Path | None:
    """The folder in which a module that is imported lies."""
    file = _file(name)
    if file is None:
        return None
    path = Path(file).resolve()
    return path.parent.parent if path.name == "__init__.py" else path.parent


def _file(name: str) -> str | None:
    found: str | None = getattr(sys.modules.get(name), "__file__", None)
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _needed(distribution: str, without: Collection[str] = ()) -> set[str]:
    """It and the distributions that it needs, with those that they need; `without` these, and what they alone need."""
    found = set(without)
    waiting = [distribution]
    while waiting:
        name = _plain(waiting.pop())
        if name in found:
            continue
        found.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for text in importlib.metadata.requires(name) or ():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    waiting.append(requirement.name)
    return found - set(without)


def probe_here(adapter: type[Adapter], bare: bool) -> tuple[float, list[str], list[str], str, list[str]]:
    """Seconds of its first call; packages and libraries that came with it; what was said, and what changed."""
    for name in _LINKED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if bare:
        os.environ.clear()
    importlib.metadata.packages_distributions()  # what it takes is none of the adapter's time
    modules, mapped, before = set(sys.modules), _mapped(), state()
    with caught(1) as out, caught(2) as err:
        first: object
        times, first = [], None
        for number in range(3):
            begun, spent = time.perf_counter(), os.times()
            found: object = adapter.probe()
            now = os.times()
            children = now.children_user + now.children_system - spent.children_user - spent.children_system
            times.append(max(time.perf_counter() - begun, children))
            if not isinstance(found, Probe) or not isinstance(found.verdict, Verdict):
                raise Broken(f"returned a {type(found).__name__}, not a Probe with a Verdict")
            if number and found != first:
                raise Broken("answers otherwise when it is asked again")
            first = found
        said = read(out) + read(err)
    assert isinstance(first, Probe)
    if not first.verdict.usable and not first.verdict.reason:
        raise Broken("says no without a reason")
    changed = [f"{what} {how}" for what, how in before.changes(state()).items()]
    new = {name.partition(".")[0] for name in set(sys.modules) - modules}
    extensions = {Path(file).resolve() for name in set(sys.modules) - modules if (file := _file(name)) is not None}
    libraries = _mapped() - mapped
    if libraries & extensions:  # what a module in C brings with it cannot be told from what was loaded beside it
        libraries = set()
    loaded = sorted({path.name for path in libraries if not any(part in str(path) for part in _OF_LIBC)})
    return times[0], sorted(new & (packages_of(first) | {"onnx"})), loaded, said, changed


def _mapped() -> set[Path]:
    """The shared libraries in this process, Python's modules in C with them; none where nobody tells."""
    with contextlib.suppress(OSError):
        fields = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
        names = {each[5] for each in fields if len(each) > 5}
        return {Path(name).resolve() for name in names if name.endswith(".so") or ".so." in name}
    return set()
