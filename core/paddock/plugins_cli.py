"""`paddock adapters | doctor | plugins | new-plugin`: what is here, what is missing, and a plugin to begin with."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paddock import __version__

if TYPE_CHECKING:
    from paddock.terminal import Terminal

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
_SHOWN = 16
"""Hex digits of a digest in the table; PADDOCK_ALLOW takes 8 or more."""


def adapters(
    context: typer.Context,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask the devices anew instead of taking kept answers.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Lists the adapters, what they compute in here, and what is missing."""
    from paddock import show
    from paddock.registry import Registry

    terminal: Terminal = context.obj
    registry = Registry.discover()
    survey = registry.survey(fresh)
    if json:
        terminal.document(
            {
                "adapters": [
                    show.adapter_json(registered, probe, devices) for registered, probe, devices in survey.values()
                ],
                "plugins": [asdict(plugin) for plugin in registry.plugins],
            }
        )
    else:
        show.show_adapters(terminal.out, survey, registry.plugins)


def doctor(context: typer.Context, json: JsonFlag = False) -> None:
    """Says what is installed, what each missing piece needs, and what this host is."""
    from paddock import machine, show
    from paddock.cache import cache_root
    from paddock.planning.memory import readable
    from paddock.planning.offset_search import library
    from paddock.registry import Registry
    from paddock.wellknown import missing_here, well_known

    terminal: Terminal = context.obj
    registry = Registry.discover()
    survey = registry.survey()
    name, flags = machine.cpu()
    host = {
        "paddock": __version__,
        "python": sys.version.split()[0],
        "cpu": name,
        "cpu flags": " ".join(flags) or "none of those that matter",
        "cores": machine.cores(),
        "memory available": readable(machine.memory_available()),
        "memory layouts": "searched" if library() is not None else "greedy: no C++ compiler built the search",
        "cache": str(cache_root()),
    }
    absent = {
        name: {"plugin": facts["distribution"], "host lacks": list(missing_here(facts))}
        for name, facts in well_known().items()
        if name not in registry.adapters
    }
    if json:
        found = [show.adapter_json(registered, probe, devices) for registered, probe, devices in survey.values()]
        terminal.document({"host": host, "adapters": found, "not installed": absent})
        return
    show.show_facts(terminal.out, host)
    terminal.out.print()
    show.show_adapters(terminal.out, survey, registry.plugins)
    terminal.out.print()
    rows = [
        (name, f"pip install {facts['plugin']}", " and ".join(facts["host lacks"]) or "nothing else")
        for name, facts in absent.items()
    ]
    terminal.out.print(show.table(("not installed", "brought by", "this host also lacks"), rows))


def plugins(
    context: typer.Context,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Try in a child process again what is kept as tried, or as crashing.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Lists the plugins: whether each is loaded, its version, the digest of its files, and where they lie."""
    from paddock.registry import Registry
    from paddock.show import table

    terminal: Terminal = context.obj
    registry = Registry.discover(fresh=fresh)
    if json:
        terminal.document({"plugins": [asdict(plugin) for plugin in registry.plugins], "unknown": registry.unknown})
        return
    rows = [
        (
            f"{plugin.distribution} {plugin.version}",
            "yes" if plugin.verdict.usable else "no",
            plugin.digest[:_SHOWN] or "-",
            plugin.origin or "-",
            ", ".join((*plugin.adapters, *plugin.formats)) if plugin.verdict.usable else plugin.verdict.reason,
        )
        for plugin in registry.plugins
    ]
    columns = ("plugin", "loaded", "digest", "from", "brings, or why it is not loaded")
    terminal.out.print(table(columns, rows))
    for sentence in registry.unknown:
        terminal.out.print(sentence, soft_wrap=True, highlight=False, markup=False)


def new_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The backend's name; the distribution is paddock-NAME.", metavar="NAME")],
    hardware: Annotated[str, typer.Option("--hardware", help="What it runs on, as a config names it: npu, gpu.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="The folder to make; paddock-NAME by default.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Writes a whole plugin that runs on NumPy and passes conformance: replace its device, and it is yours."""
    from paddock.new_plugin import write_plugin

    terminal: Terminal = context.obj
    folder = output if output is not None else Path(f"paddock-{name}")
    files = write_plugin(name, hardware, folder)
    install = shlex.join(["pip", "install", "-e", f"{folder}[quantization]"])
    steps = [install, f"paddock conformance {hardware}/{name}"]
    if json:
        terminal.document({"files": [str(path) for path in files], "next": steps})
        return
    for path in files:
        terminal.out.print(str(path), soft_wrap=True, highlight=False, markup=False)
    terminal.out.print(
        "next:", *(f"  {step}" for step in steps), sep="\n", soft_wrap=True, highlight=False, markup=False
    )
