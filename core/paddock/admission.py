"""Which plugins may be imported here: those that the user allows, and those that a child process could import before.

Importing a plugin runs its code. Whoever names the plugins that may load, `PADDOCK_ALLOW=paddock-acme,other@1f2e3d4c`,
is asked first, by the distribution's name and, where one is given, by the digest of the plugin's files; neither needs
an import. What passes and was not seen before is imported in a child first: there a crash or a hang ends nobody else.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import NormalizedName, canonicalize_name

from paddock.cache import Store
from paddock.child import Child
from paddock.errors import ChildFailed, UsageError, did_you_mean
from paddock.machine import cores, host_facts
from paddock.plan import Verdict
from paddock.plugin_files import digest, located

_log = logging.getLogger("paddock.plugins")
VARIABLE = "PADDOCK_ALLOW"
SECONDS = 60.0
"""How long the import of a plugin may take."""
LINGER = 1.0
"""Seconds after its import in which what a plugin has started may still crash, where it is looked for who crashes."""
_KIND = "plugins"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_FROM_OUTSIDE = {-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
"""Ends that are the host's doing (it has no memory left, it is shut down), and not the plugin's."""


@dataclass(frozen=True)
class Found:
    """One entry point, before anything of it is imported.

    `path` is its module's file, None where none is to be found. `digest`, SHA-256 in hex, is over the files of its
    package (see `plugin_files`); "" where they cannot be read.
    """

    distribution: str
    version: str
    value: str
    path: Path | None
    digest: str

    @classmethod
    def of(cls, point: importlib.metadata.EntryPoint, store: Store) -> Found:
        """Where an entry point leads."""
        # What an interrupted uninstall leaves has entry points, and neither a name nor a version.
        name, version = (point.dist.name, point.dist.version) if point.dist is not None else (None, None)
        path, places = located(point.value)
        return cls(name or f"(unknown: {point.value})", version or "0", point.value, path, digest(places, store))


@dataclass(frozen=True)
class Plugin:
    """One entry point found, loaded or not."""

    distribution: str
    version: str
    entry_point: str
    verdict: Verdict
    adapters: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    origin: str = ""
    """The file of its module."""
    digest: str = ""
    """SHA-256 (hex) of its files: what `PADDOCK_ALLOW` may name."""

    @property
    def sources(self) -> str:
        """Its digest, as it stands in keys."""
        return self.digest[:8]

    @property
    def remedy(self) -> str:
        """What to do where it is not loaded."""
        if self.verdict.source == VARIABLE:
            return f"if {self.distribution} is to load, name it in {VARIABLE} or --allow as `paddock plugins` lists it"
        return "mend that, or install another version of it; `paddock plugins --fresh` tries again"


def not_loaded(plugins: Iterable[Plugin], distribution: str) -> Plugin | None:
    """The plugin of this distribution that is installed and not loaded, if there is one."""
    wanted = canonicalize_name(distribution)
    return next((p for p in plugins if not p.verdict.usable and canonicalize_name(p.distribution) == wanted), None)


@dataclass(frozen=True)
class Allowed:
    """The distributions that may load, by canonical name, each with what its digest has to begin with ("": any)."""

    digests: Mapping[str, str]

    @classmethod
    def of(cls, entries: Iterable[str]) -> Allowed:
        """From `NAME` or `NAME@DIGEST` each; raises `UsageError` where one is neither, or two contradict each other."""
        found: dict[str, str] = {}
        for entry in filter(None, map(str.strip, entries)):
            written, pinned, wanted = entry.partition("@")
            if not _NAME.fullmatch(written):
                raise UsageError(
                    f"{entry!r} names no distribution", where=VARIABLE,
                    remedy="write NAME, or NAME@DIGEST with 8 or more hex digits of what `paddock plugins` lists",
                )  # fmt: skip
            if pinned and not _DIGEST.fullmatch(wanted):
                raise UsageError(
                    f"{entry!r} has no digest after the @, which is 8 to 64 lower-case hex digits", where=VARIABLE,
                    remedy="take what `paddock plugins` lists; without the @ any digest will do",
                )  # fmt: skip
            name = canonicalize_name(written)
            if found.setdefault(name, wanted) != wanted:
                both = [f"{name}@{each}" if each else name for each in (found[name], wanted)]
                problem = f"{entry!r} contradicts another entry of the same name"
                raise UsageError(problem, where=VARIABLE, candidates=both, remedy="leave one out")
        return cls(found)

    @classmethod
    def here(cls) -> Allowed | None:
        """What `PADDOCK_ALLOW` says; None where it is not set: all may load."""
        text = os.environ.get(VARIABLE)
        return None if text is None else cls.of(text.split(","))

    def unknown(self, plugins: Iterable[Found]) -> tuple[str, ...]:
        """A sentence for each name that no plugin installed here has: a fleet's list may name more than a host has."""
        here = {canonicalize_name(plugin.distribution) for plugin in plugins}
        return tuple(
            f"{VARIABLE} names {name}, and no such plugin is installed" + (f": {near}" if near else "")
            for name in self.digests
            if name not in here
            for near in (did_you_mean(name, sorted(here - self.digests.keys())),)
        )

    def verdicts(self, points: Sequence[tuple[Found, importlib.metadata.EntryPoint]]) -> dict[Found, Verdict]:
        """Whether each plugin may load: what it requires is imported with it, and so has to be allowed as well."""
        verdicts = {plugin: self._verdict(plugin) for plugin, _ in points}
        needs: dict[Found, list[NormalizedName]] = {}
        while refused := {canonicalize_name(p.distribution): v.reason for p, v in verdicts.items() if not v.usable}:
            needs = needs or {plugin: _required(point) for plugin, point in points}
            barred = {
                plugin: Verdict.no(f"it requires {name}, which is not allowed: {refused[name]}", VARIABLE)
                for plugin, names in needs.items()
                for name in names
                if verdicts[plugin].usable and name in refused
            }
            if not barred:
                break
            verdicts.update(barred)
        return verdicts

    def _verdict(self, plugin: Found) -> Verdict:
        wanted = self.digests.get(canonicalize_name(plugin.distribution))
        if wanted is None:
            return Verdict.no(f"not among {VARIABLE}", VARIABLE)
        if wanted and not plugin.digest:
            return Verdict.no(f"its files cannot be read, and {VARIABLE} names their digest", VARIABLE)
        if not plugin.digest.startswith(wanted):
            return Verdict.no(f"its files have the digest {plugin.digest[:12]}, {VARIABLE} has {wanted}", VARIABLE)
        return Verdict.yes("allowed", VARIABLE)


def tried(plugins: Sequence[Found], store: Store, fresh: bool = False) -> dict[Found, Verdict]:
    """Whether each plugin can be imported: from what is kept for its version, files and host, else tried in a child.

    Kept is that it imports, and that its import ends the process. What may be the host's doing is tried again the next
    time: an import that raises, that takes too long, or that no process could be started for. What this process has
    imported already is not asked about.
    """
    key = [[[each.distribution, each.version, each.value, each.digest] for each in plugins], host_facts()]
    kept = None if fresh or not plugins else store.get(_KIND, key)
    known: list[str | None] = kept if isinstance(kept, list) and len(kept) == len(plugins) else [None] * len(plugins)
    problems = {plugin: problem for plugin, problem in zip(plugins, known, strict=True) if problem is not None}
    asked = [plugin for plugin in plugins if plugin.value.partition(":")[0].strip() not in sys.modules]
    told = _imported([plugin for plugin in asked if plugin not in problems])
    problems.update({plugin: problem for plugin, (problem, _) in told.items()})
    lasting = [problems.get(each) if told.get(each, ("", True))[1] and each.digest else None for each in plugins]
    if lasting != known:
        with suppress(UsageError):  # a cache that cannot be written is no reason to fail
            store.put(_KIND, key, lasting)
    return {plugin: _verdict(problems[plugin], plugin) for plugin in asked}


def _imported(plugins: Sequence[Found]) -> dict[Found, tuple[str, bool]]:
    """What goes wrong when plugins are imported in a child, "" where nothing does; and whether that lasts.

    One child imports all. Where it ends, any of them may have done it: then each is imported in a child of its own.
    """
    told: dict[Found, tuple[str, bool]] = {}
    with Child("importing plugins") as child:
        for plugin in plugins:
            try:
                problem = child.call(_import_here, plugin.value, seconds=SECONDS)
            except ChildFailed as error:
                if error.code is None:
                    told[plugin] = _passing(plugin, error)
                else:
                    told.clear()
                break
            told[plugin] = problem, not problem
    left = [plugin for plugin in plugins if plugin not in told]
    if left:
        children = [Child(f"importing {plugin.value}") for plugin in left]
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            told.update(zip(left, pool.map(_imported_alone, left, children), strict=True))
    return told


def _imported_alone(plugin: Found, child: Child) -> tuple[str, bool]:
    ready = False
    with child:
        try:
            child.call(os.getpid)  # what ends it before this is not the plugin
            ready = True
            problem = child.call(_import_here, plugin.value, LINGER, seconds=SECONDS + LINGER)
        except ChildFailed as error:
            if not ready or error.code is None or error.code in _FROM_OUTSIDE:
                return _passing(plugin, error)
            return f"{error.problem}; that is kept, `paddock plugins --fresh` tries again", True
    return problem, not problem


def _passing(plugin: Found, error: ChildFailed) -> tuple[str, bool]:
    """What may be the host's doing is told each time, since it may have taken long."""
    _log.warning("the plugin %s is not loaded: %s; the next start tries again", plugin.distribution, error.problem)
    return error.problem, False


def _verdict(problem: str, plugin: Found) -> Verdict:
    return Verdict.no(f"failed to import: {problem}", plugin.value) if problem else Verdict.yes("imports", plugin.value)


def said(error: BaseException) -> str:
    """An error on one line, for tables."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _import_here(value: str, linger: float = 0.0) -> str:
    """In a child: what goes wrong when an entry point is loaded, "" where nothing does."""
    try:
        importlib.metadata.EntryPoint("plugin", value, "").load()
    except (Exception, SystemExit) as error:
        return said(error)
    time.sleep(linger)
    return ""


def _required(point: importlib.metadata.EntryPoint) -> list[NormalizedName]:
    """The distributions that a plugin's own requires on this host, extras left out, by canonical name."""
    from paddock.requirements import required  # a few milliseconds, which only those pay who refuse a plugin

    return [] if point.dist is None else [canonicalize_name(wanted.name) for wanted in required(point.dist)]
