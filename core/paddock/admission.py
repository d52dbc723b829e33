"""Which plugins may be imported here: those that the user allows, and those that a child process could import before.

Importing a plugin runs its code. Whoever names the plugins that may load, `PADDOCK_ALLOW=paddock-acme,other@1f2e3d4c`,
is asked first, by the distribution's name and, where one is given, by the digest of the plugin's files; neither needs
an import. What passes and was not seen before is imported in a child first: there a crash or a hang ends nobody else.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from paddock.cache import Store, source_digest
from paddock.child import Children
from paddock.errors import ChildFailed, UsageError
from paddock.machine import host_facts
from paddock.plan import Verdict

VARIABLE = "PADDOCK_ALLOW"
SECONDS = 60.0
"""How long the import of a plugin may take."""
_KIND = "plugins"
_ENTRY = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<digest>[0-9a-f]{8,64}))?")


@dataclass(frozen=True)
class Found:
    """One entry point, before anything of it is imported.

    `path` is its module's file, None where none is to be found. `digest`, SHA-256 in hex, is over the files of the
    folder that the module lies in, or over a module that is in no package.
    """

    distribution: str
    version: str
    value: str
    path: Path | None
    digest: str

    @classmethod
    def of(cls, point: importlib.metadata.EntryPoint) -> Found:
        """Where an entry point leads."""
        # What an interrupted uninstall leaves has entry points, and neither a name nor a version.
        name, version = (point.dist.name, point.dist.version) if point.dist is not None else (None, None)
        path, alone = _module(point.value)
        digest = "" if path is None else _file_digest(path) if alone else source_digest(path.parent)
        return cls(name or "(unknown)", version or "0", point.value, path, digest)


@dataclass(frozen=True)
class Allowed:
    """The distributions that may load, by canonical name, each with what its digest has to begin with ("": any)."""

    digests: Mapping[str, str]

    @classmethod
    def of(cls, entries: Iterable[str]) -> Allowed:
        """From `NAME` or `NAME@DIGEST` each; raises `UsageError` where one is neither."""
        found: dict[str, str] = {}
        for entry in filter(None, map(str.strip, entries)):
            match = _ENTRY.fullmatch(entry)
            if match is None:
                raise UsageError(
                    f"{entry!r} names no distribution", where=VARIABLE,
                    remedy="write NAME, or NAME@DIGEST with 8 or more hex digits of what `paddock plugins` lists",
                )  # fmt: skip
            found[canonicalize_name(match["name"])] = match["digest"] or ""
        return cls(found)

    @classmethod
    def here(cls) -> Allowed | None:
        """What `PADDOCK_ALLOW` says; None where it is not set: all may load."""
        text = os.environ.get(VARIABLE)
        return None if text is None else cls.of(text.split(","))

    def verdict(self, plugin: Found) -> Verdict:
        """Whether a plugin may load."""
        wanted = self.digests.get(canonicalize_name(plugin.distribution))
        if wanted is None:
            return Verdict.no(f"not among {VARIABLE}", VARIABLE)
        if not plugin.digest.startswith(wanted):
            return Verdict.no(f"its files have the digest {plugin.digest[:12]}, {VARIABLE} has {wanted}", VARIABLE)
        return Verdict.yes("allowed", VARIABLE)


def tried(plugins: Sequence[Found], store: Store, fresh: bool = False) -> dict[Found, Verdict]:
    """Whether each plugin can be imported: from what is kept for its version, files and host, else tried in a child.

    What this process has imported already is not asked about. An import that only raises is tried again the next time:
    what it lacks may be installed by then.
    """
    key = [[[each.distribution, each.version, each.value, each.digest] for each in plugins], host_facts()]
    kept = None if fresh or not plugins else store.get(_KIND, key)
    known: list[str | None] = kept if isinstance(kept, list) and len(kept) == len(plugins) else [None] * len(plugins)
    found: dict[Found, Verdict] = {}
    lasting = list(known)
    with Children() as children:
        for place, plugin in enumerate(plugins):
            if plugin.value.partition(":")[0].strip() in sys.modules:
                continue
            problem = known[place]
            if problem is None:
                problem, lasts = _tried(plugin, children)
                lasting[place] = problem if lasts else None
            found[plugin] = _verdict(problem, plugin)
    if lasting != known:
        with suppress(UsageError):  # a cache that cannot be written is no reason to fail
            store.put(_KIND, key, lasting)
    return found


def _tried(plugin: Found, children: Children) -> tuple[str, bool]:
    """What goes wrong when a plugin is imported in a child, "" where nothing does; and whether that is to be kept."""
    try:
        problem = children.get("importing plugins").call(_import_here, plugin.value, seconds=SECONDS)
    except ChildFailed as error:
        return error.problem, True
    return problem, not problem


def _verdict(problem: str, plugin: Found) -> Verdict:
    return Verdict.no(f"failed to import: {problem}", plugin.value) if problem else Verdict.yes("imports", plugin.value)


def said(error: BaseException) -> str:
    """An error on one line, for tables."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _import_here(value: str) -> str:
    """In a child: what goes wrong when an entry point is loaded, "" where nothing does."""
    try:
        importlib.metadata.EntryPoint("plugin", value, "").load()
    except (Exception, SystemExit) as error:
        return said(error)
    return ""


def _module(value: str) -> tuple[Path | None, bool]:
    """The file of the module that an entry point names, found without running it, and whether it is in no package."""
    first, *rest = value.partition(":")[0].strip().split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return None, False
    if not rest and spec.submodule_search_locations is None:
        return (Path(spec.origin), True) if spec.has_location and spec.origin else (None, False)
    for root in spec.submodule_search_locations or ():
        base = Path(root, *rest)
        for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if path.is_file():
                return path, False
    return None, False


def _file_digest(path: Path) -> str:
    with suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return ""
