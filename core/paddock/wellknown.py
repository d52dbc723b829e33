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

from paddock.errors import NotAvailable, did_you_mean


@cache
def well_known() -> Mapping[str, Mapping[str, Any]]:
    """Well-known `hardware/backend` names: who brings them, their aliases, what they need (data/well_known.json)."""
    text = importlib.resources.files("paddock").joinpath("data", "well_known.json").read_text(encoding="utf-8")
    data: Mapping[str, Mapping[str, Any]] = json.loads(text)
    return data


def missing_here(known: Mapping[str, Any]) -> Iterator[str]:
    """What a well-known adapter needs (an entry of `well_known`) and this host lacks."""
    for need in known["needs"]:
        here = Path(need["path"]).exists() if "path" in need else importlib.util.find_spec(need["module"]) is not None
        if not here:
            yield need["what"]


def not_installed(
    name: str, installed: Sequence[str], failures: Sequence[str], distributions: Mapping[str, str]
) -> NotAvailable:
    """The error for a `hardware/backend` that nobody brings: which plugin would, and what this host lacks.

    Args:
        installed: The names that are to be had, as candidates.
        failures: Plugins that did not load, with their reasons.
        distributions: The plugins found, by distribution, with their versions.
    """
    known = well_known().get(name)
    suffix = f"; plugins that did not load: {'; '.join(failures)}" if failures else ""
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
    older = plugin in distributions
    here = f"is installed as {distributions[plugin]} without it" if older else "is not installed"
    brought = f"is brought by the plugin {plugin}, which {here}"
    return NotAvailable(
        f"{name} ({known['title']}) {brought}{lacks}{suffix}",
        where=where,
        candidates=installed,
        remedy=f"pip install {'--upgrade ' if older else ''}{plugin}"
        + (", on a host that has the hardware" if missing else ""),
    )
