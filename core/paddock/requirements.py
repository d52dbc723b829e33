"""The distributions that a deployment needs, with the versions that are installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from contextlib import suppress

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


def locked(roots: Iterable[str]) -> tuple[str, ...]:
    """`name==version` of the distributions named and of all that they require, as they are installed here, by name.

    A root may name extras (`paddock-acme[sdk]`). What is not installed is left out: it was not needed to run.
    """
    found: dict[str, str] = {}
    waiting = list(_parsed(roots))
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        key = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            distribution = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[key[0]] = f"{key[0]}=={distribution.version}"
        waiting += required(distribution, wanted.extras)
    return tuple(found[name] for name in sorted(found))


def required(distribution: importlib.metadata.Distribution, extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """What a distribution requires here, with these of its extras."""
    for wanted in _parsed(distribution.requires or ()):
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield wanted


def _parsed(texts: Iterable[str]) -> Iterator[Requirement]:
    """Those that are requirements: a plugin that no distribution brings has no name that pip could take."""
    for text in texts:
        with suppress(InvalidRequirement):
            yield Requirement(text)
