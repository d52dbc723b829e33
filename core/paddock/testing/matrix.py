"""The outcome of a run of node tests: a table per operator and adapter, the totals, what is wrong and refused, JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paddock.testing.known import KNOWN, Known, stale, unexpected
from paddock.testing.nodes import Outcome, Result, Settings

_COLORS = {Outcome.NATIVE: "green", Outcome.HELPED: "cyan", Outcome.REFUSED: "yellow", Outcome.WRONG: "red"} | {
    Outcome.CRASHED: "red",
    Outcome.HUNG: "red",
}


def show_matrix(out: Console, results: Sequence[Result], known: Mapping[str, Known] = KNOWN) -> None:
    """Prints the table of operators, the reasons behind what is not right, and the totals last."""
    adapters = list(dict.fromkeys(result.adapter for result in results))
    grid = _table(("operator", *adapters))
    for operator in sorted({result.operator for result in results}):
        row = [r for r in results if r.operator == operator]
        grid.add_row(escape(operator), *(_cell(r for r in row if r.adapter == a) for a in adapters))
    out.print(grid)
    out.print()
    _show_reasons(out, results, known)
    totals = _table(("adapter", "cases", "right", *(outcome.value for outcome in Outcome), "seconds"))
    for adapter in adapters:
        own = [r for r in results if r.adapter == adapter]
        counts = Counter(r.outcome for r in own)
        cells = [len(own), sum(r.right for r in own), *(counts[o] for o in Outcome), round(sum(r.seconds for r in own))]
        totals.add_row(adapter, *map(str, cells))
    out.print(totals)
    for result in unexpected(results, known):
        out.print(
            f"[red]wrong and not expected[/red]: {_named(result)}: {escape(result.reason)}",
            soft_wrap=True,
            highlight=False,
        )
    for result in stale(results, known):
        why = escape(known[result.case].reason)
        out.print(
            f"[red]right, yet on the list[/red]: {_named(result)}: {why}; take it off", soft_wrap=True, highlight=False
        )


def as_json(results: Sequence[Result], settings: Settings, known: Mapping[str, Known] = KNOWN) -> dict[str, Any]:
    """The same as JSON data, with every single result."""
    totals: dict[str, dict[str, int]] = {}
    for adapter in dict.fromkeys(result.adapter for result in results):
        own = [r for r in results if r.adapter == adapter]
        counts = Counter(r.outcome for r in own)
        totals[adapter] = {"cases": len(own), "right": sum(r.right for r in own), **{o: counts[o] for o in Outcome}}
    return {
        "chain": list(settings.chain),
        "repair": settings.repair,
        "max_error": settings.max_error,
        "totals": totals,
        "unexpected": [[r.case, r.adapter] for r in unexpected(results, known)],
        "stale": [[r.case, r.adapter] for r in stale(results, known)],
        "results": [
            {
                "case": r.case,
                "operator": r.operator,
                "adapter": r.adapter,
                "outcome": r.outcome.value,
                "reason": r.reason,
                "placed": dict(r.placed),
                "seconds": round(r.seconds, 3),
            }
            for r in results
        ],
    }


def _show_reasons(out: Console, results: Sequence[Result], known: Mapping[str, Known]) -> None:
    """What crashed, hung or is wrong, then what was refused, with the reasons; an expected one is marked with why."""
    for outcome in (Outcome.CRASHED, Outcome.HUNG, Outcome.WRONG, Outcome.REFUSED):
        found = [r for r in results if r.outcome is outcome]
        if not found:
            continue
        for result in found:
            entry = known.get(result.case)
            expected = f" [expected: {entry.reason}]" if entry and entry.concerns(result.adapter) else ""
            mark = f"[{_COLORS[outcome]}]{outcome.value}[/]"
            out.print(f"{mark} {_named(result)}: {escape(result.reason + expected)}", soft_wrap=True, highlight=False)
        out.print()


def _table(columns: Iterable[str]) -> Table:
    made = Table(header_style="bold", show_edge=False, pad_edge=False)
    for position, name in enumerate(columns):
        made.add_column(name, overflow="fold", no_wrap=position == 0)
    return made


def _cell(results: Iterable[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    return ", ".join(f"[{_COLORS[o]}]{counts[o]} {o.value}[/]" for o in Outcome if counts[o]) or "-"


def _named(result: Result) -> str:
    return escape(f"{result.case} on {result.adapter}")
