"""Well-known `hardware/backend` names: the one place that knows vendors, and it is data."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from paddock.admission import Plugin, not_loaded
from paddock.errors import NotAvailable, did_you_mean


@cache
def well_known() -> Mapping[str, Mapping[str, Any]]:
    """Well-known `hardware/backend` names (data/well_known.json): who brings them, their aliases, what they need.

    `references` are the formats of which Paddock trusts them to be the reference.
    """
    text = importlib.resources.files("paddock").joinpath("data", "well_known.json").read_text(encoding="utf-8")
    data: Mapping[str, Mapping[str, Any]] = json.loads(text)
    return data


def trusted(name: str, distribution: str, format: str) -> bool:
    """Whether an adapter is a reference that Paddock knows: by its name and by the distribution that brings it."""
    known = well_known().get(name, {})
    return known.get("distribution") == distribution and format in known.get("references", ())


def missing_here(known: Mapping[str, Any]) -> Iterator[str]:
    """What a well-known adapter needs (an entry of `well_known`) and this host lacks."""
    for need in known["needs"]:
        here = Path(need["path"]).exists() if "path" in need else importlib.util.find_spec(need["module"]) is not None
        if not here:
            yield need["what"]


def not_installed(
    name: str, installed: Sequence[str], plugins: Sequence[Plugin], unknown: Sequence[str] = ()
) -> NotAvailable:
    """The error for a `hardware/backend` that nobody brings: which plugin would, why it does not, what this host lacks.

    Args:
        installed: The names that are to be had, as candidates.
        plugins: Those found, loaded or not.
        unknown: What is known of plugins that are asked for by name, and are not here.
    """
    known = well_known().get(name)
    failures = [f"{p.distribution} ({p.verdict.reason})" for p in plugins if not p.verdict.usable]
    failed = [f"plugins that did not load: {'; '.join(failures)}"] if failures else []
    suffix = "".join(f"; {each}" for each in (*failed, *unknown))
    where = "$.hardware/$.backend"
    if known is None:
        near = did_you_mean(name, [*installed, *well_known()])
        remedy = near or "`paddock adapters` lists what is installed"
        return NotAvailable(
            f"no installed plugin brings {name}{suffix}", where=where, candidates=installed, remedy=remedy
        )
    missing = list(missing_here(known))
    lacks = f"; this host also lacks {' and '.join(missing)}" if missing else ""
    plugin = known["distribution"]
    here, remedy = "is not installed", f"pip install {plugin}"
    barred = not_loaded(plugins, plugin)
    if barred is not None:
        here, remedy = f"is installed as {barred.version} and not loaded", barred.remedy
    elif older := [p.version for p in plugins if canonicalize_name(p.distribution) == plugin]:
        here, remedy = f"is installed as {older[0]} without it", f"pip install --upgrade {plugin}"
    return NotAvailable(
        f"{name} ({known['title']}) is brought by the plugin {plugin}, which {here}{lacks}{suffix}",
        where=where,
        candidates=installed,
        remedy=remedy + (", on a host that has the hardware" if missing else ""),
    )
