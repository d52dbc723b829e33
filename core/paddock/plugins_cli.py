"""`paddock plugins`: what is loaded into this process, from where, and what is not, with the reason."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from paddock.terminal import Terminal

_SHOWN = 16
"""Hex digits of a digest in the table; PADDOCK_ALLOW takes 8 or more."""


def plugins(
    context: typer.Context,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Try in a child process again what is kept as tried, or as crashing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Lists the plugins: whether each is loaded, its version, the digest of its files, and where they lie."""
    from paddock.registry import Registry
    from paddock.show import table

    terminal: Terminal = context.obj
    found = Registry.discover(fresh=fresh).plugins
    if json:
        terminal.document({"plugins": [asdict(plugin) for plugin in found]})
        return
    rows = [
        (
            f"{plugin.distribution} {plugin.version}",
            "yes" if plugin.verdict.usable else "no",
            plugin.digest[:_SHOWN] or "-",
            plugin.origin or "-",
            ", ".join((*plugin.adapters, *plugin.formats)) if plugin.verdict.usable else plugin.verdict.reason,
        )
        for plugin in found
    ]
    columns = ("plugin", "loaded", "digest", "from", "brings, or why it is not loaded")
    terminal.out.print(table(columns, rows))
