"""`paddock plugins | new-plugin`: what is loaded into this process, from where, or why not; and one to begin with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
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


def new_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The backend's name; the distribution is paddock-NAME.", metavar="NAME")],
    hardware: Annotated[str, typer.Option("--hardware", help="What it runs on, as a config names it: npu, gpu.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="The folder to make; paddock-NAME by default.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Writes a whole plugin that runs on NumPy and passes conformance: replace its device, and it is yours."""
    from paddock.new_plugin import write_plugin

    terminal: Terminal = context.obj
    folder = output if output is not None else Path(f"paddock-{name}")
    files = write_plugin(name, hardware, folder)
    steps = [f"pip install -e {folder}[quantization]", f"paddock conformance {hardware}/{name}"]
    if json:
        terminal.document({"files": [str(path) for path in files], "next": steps})
        return
    for path in files:
        terminal.out.print(str(path), soft_wrap=True, highlight=False, markup=False)
    terminal.out.print(
        "next:", *(f"  {step}" for step in steps), sep="\n", soft_wrap=True, highlight=False, markup=False
    )
