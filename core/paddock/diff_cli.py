"""`paddock diff`: what changes for a model when the config, and with it the hardware, changes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from paddock.diff import Change, Diff, Moved
    from paddock.facts import Told
    from paddock.sides import Side
    from paddock.terminal import Terminal

_OPERATORS = 6
"""How many operator types of a group are shown; `--json` has all of them, and the nodes."""


def diff(
    context: typer.Context,
    before: Annotated[str, typer.Argument(metavar="A", help="The config before: a JSON file, or JSON text.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The config after.")],
    model: Annotated[Path, typer.Option("--model", help="A Paddle model (.json, .pdiparams, stem, folder) or .onnx.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Shows what changes from config A to config B, also for hardware that is not here; builds nothing."""
    from paddock.diff import diff as compared

    terminal: Terminal = context.obj
    with terminal.progress() as tell:
        found = compared(model, before, after, progress=tell)
    if json:
        terminal.document(_document(found))
    else:
        _show(terminal, found)


def _document(found: Diff) -> dict[str, Any]:
    return {
        "before": _side_json(found.before),
        "after": _side_json(found.after),
        "same": found.same,
        "lost": dict(found.lost),
        "changes": [
            {"topic": c.topic, "what": c.what, "before": _told_json(c.before), "after": _told_json(c.after)}
            for c in found.changes
        ],
        "operators": [_moved_json(moved) for moved in found.placed],
        "precision": [_moved_json(moved) for moved in found.computed],
    }


def _side_json(side: Side) -> dict[str, Any]:
    from paddock.terminal import error_json

    return {
        "config": side.config.source,
        "adapter": side.plan.adapter,
        "planned": asdict(side.verdict),
        "refused": [error_json(error) for error in side.refused],
        "key": side.plan.key if side.verdict.answer == "yes" else None,
    }


def _told_json(told: Told | None) -> dict[str, Any] | None:
    return None if told is None else {"value": told.value, "unit": told.unit, **asdict(told.verdict)}


def _moved_json(moved: Moved) -> dict[str, Any]:
    return {**asdict(moved), "operators": dict(moved.operators), "reasons": list(moved.reasons)}


def _show(terminal: Terminal, found: Diff) -> None:
    from rich.markup import escape

    from paddock.show import table

    out = terminal.out
    sides = (found.before, found.after)
    for name, side in zip("AB", sides, strict=True):
        out.print(escape(f"{name}  {_head(side)}"), soft_wrap=True)
        for error in side.refused if side.verdict.answer != "no" else side.refused[:-1]:
            out.print(f"   [red]would be refused[/red] {escape(str(error))}", soft_wrap=True)
        if side.verdict.answer == "no" and side.refused[-1].remedy:
            out.print(escape(f"   remedy: {side.refused[-1].remedy}"), soft_wrap=True)
    if found.same:
        out.print("nothing changes")
        return
    arrow = f"A {found.before.plan.adapter} -> B {found.after.plan.adapter}"
    if found.lost:
        out.print()
        out.print(table((f"not carried over, {arrow}", "because"), found.lost.items()))
    out.print()
    rows = [(c.topic, *_cells(c, sides)) for c in found.changes]
    out.print(table(("", "", "A", "-> B"), rows))
    for title, groups in (("runs on", found.placed), ("computes in", found.computed)):
        if groups:
            out.print()
            cells = [(str(len(m.nodes)), _operators(m), m.before, m.after, _because(m)) for m in groups]
            out.print(table(("nodes", "operators", f"A {title}", "-> B", "because"), cells))
    out.print()
    out.print("~ provisional, ? not to be told from here: for the reason that stands at A or B above, or beside it")


def _head(side: Side) -> str:
    states = {
        "yes": "planned",
        "provisional": "PROVISIONAL, for a device that is not here",
        "no": "NOT PLANNED, told as far as the config and the model go",
    }
    reason = f": {side.verdict.reason}" if side.verdict.reason else ""
    return f"{side.plan.adapter} ({side.config.source}): {states[side.verdict.answer]}{reason}"


def _cells(change: Change, sides: tuple[Side, Side]) -> tuple[str, str, str]:
    both = zip((change.before, change.after), sides, strict=True)
    here, there = (_cell(told, side) for told, side in both)
    return "" if change.topic == "notes" else change.what, here, there


def _cell(told: Told | None, side: Side) -> str:
    if told is None:
        return "-"
    verdict = told.verdict
    beside = f" ({verdict.reason})" if verdict.reason and verdict.reason != side.verdict.reason else ""
    if not told.known:
        return f"?{beside}"
    return _text(told) + (f" ~{beside}" if verdict.answer == "provisional" else "")


def _text(told: Told) -> str:
    import json

    from paddock.planning.memory import readable

    value = told.value
    if told.unit == "bytes":
        return readable(value)
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items()) or "none"
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return ", ".join(value) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def _operators(moved: Moved) -> str:
    shown = ", ".join(f"{count} {op}" for op, count in moved.operators[:_OPERATORS])
    more = len(moved.operators) - _OPERATORS
    return f"{shown} and {more} more types" if more > 0 else shown


def _because(moved: Moved) -> str:
    here, there = moved.reasons
    return there or (f"no longer: {here}" if here else "")
