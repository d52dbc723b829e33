"""`paddock cache list | verify | prune | clear`: what the store holds, whether it is sound, and making it smaller."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paddock.errors import UsageError

if TYPE_CHECKING:
    from paddock.cache_entries import About, Found
    from paddock.cache_pruning import Pruned
    from paddock.terminal import Terminal

app = typer.Typer(help="Lists, checks and clears what Paddock keeps between runs.")

KindOption = Annotated[str | None, typer.Option("--kind", help="Only entries of this kind, as `list` names them.")]
SizeOption = Annotated[str | None, typer.Option("--size", help='What may be left, like "2GiB"; by default the bound.')]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]

DAMAGED = 1
"""What `verify` exits with where an entry is damaged."""
_HEX, _WIDEST = re.compile(r"\b[0-9a-f]{32,}\b"), 80


@app.command("list")
def list_entries(context: typer.Context, kind: KindOption = None, json: JsonFlag = False) -> None:
    """Lists the entries, the one used last at the end, with what they were made for and what they take."""
    from paddock.cache_entries import Damaged
    from paddock.cache_pruning import about_of, bound_of, total
    from paddock.planning.memory import readable
    from paddock.show import table

    root = _root()
    every = _of_kind(root, None)
    found = [each for each in every if kind in (None, each.kind)]
    _check_kind(kind, every)
    bound = bound_of(root, total(every))
    rows, listed = [], []
    for each in sorted(found, key=lambda each: each.used):
        about, problem = None, ""
        try:
            about = about_of(each)
        except Damaged as damaged:
            problem = str(damaged)
        listed.append({**_entry(each, about), "problem": problem or None})
        made = _time(about.made) if about is not None else "-"
        what = told(about.key) if about is not None else f"cannot be used: {problem}"
        rows.append((each.kind, made, _time(each.used), readable(each.size), what))
    terminal = _terminal(context)
    if json:
        terminal.document({"cache": str(root), "entries": listed, "bytes": total(found), "bound": bound})
        return
    terminal.out.print(table(("kind", "made", "last used", "size", "what"), rows))
    share = f" of {readable(total(every))} in all" if kind is not None else ""
    summary = f"{len(found)} entries, {readable(total(found))}{share}; {readable(bound)} allowed; in {root}"
    terminal.out.print(summary, soft_wrap=True, markup=False)


@app.command()
def verify(context: typer.Context, json: JsonFlag = False) -> None:
    """Reads every byte and lists what is damaged; exits with 1 where anything is. Changes nothing."""
    from paddock.cache_pruning import examine
    from paddock.show import table

    root = _root()
    every, damaged, unchecked = _of_kind(root, None), [], 0
    terminal = _terminal(context)
    with terminal.progress() as tell:
        for each in every:
            tell(f"reading {_name(each)}")
            about, problem = examine(each)
            unchecked += about is not None and about.form == "private"
            if problem is not None:
                damaged.append((each, about, problem))
    if json:
        listed = [{**_entry(each, about), "problem": problem} for each, about, problem in damaged]
        facts = {"cache": str(root), "checked": len(every) - unchecked, "unchecked": unchecked}
        terminal.document({**facts, "damaged": listed})
    else:
        if damaged:
            terminal.out.print(table(("damaged", "problem"), [(_name(each), problem) for each, _, problem in damaged]))
        whole = len(every) - unchecked - len(damaged)
        terminal.out.print(f"{whole} entries are whole, {len(damaged)} damaged; {unchecked} backends' own not checked")
        if damaged:
            terminal.out.print("`paddock cache prune` removes them; nothing damaged is ever used")
    if damaged:
        raise typer.Exit(DAMAGED)


@app.command()
def prune(context: typer.Context, size: SizeOption = None, json: JsonFlag = False) -> None:
    """Removes what is damaged, what other versions made, and what was used longest ago beyond the bound."""
    from paddock.cache import current_sources
    from paddock.cache_pruning import parsed_size
    from paddock.cache_pruning import prune as carry_out

    bound = parsed_size(size, "--size") if size is not None else None
    root = _root()
    terminal = _terminal(context)
    with terminal.progress() as tell, _writing(root):
        done = carry_out(root, current_sources(), bound, tell)
    _tell(terminal, root, done, json)


@app.command()
def clear(
    context: typer.Context,
    kind: KindOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Removes all entries, or those of one kind, except what a process uses."""
    from paddock.cache_pruning import check_is_store, total
    from paddock.cache_pruning import clear as carry_out
    from paddock.planning.memory import readable

    root = _root()
    check_is_store(root)
    every = _of_kind(root, None)
    _check_kind(kind, every)
    found = [each for each in every if kind in (None, each.kind)]
    terminal = _terminal(context)
    if not yes:
        if json or not sys.stdin.isatty():
            raise UsageError("would remove entries without being asked to", where="paddock cache clear", remedy="--yes")
        typer.confirm(f"Remove {len(found)} entries, {readable(total(found))}, in {root}?", abort=True, err=True)
    with _writing(root):
        done = carry_out(root, kind)
    _tell(terminal, root, done, json)


def told(key: Any) -> str:
    """A key as one short line: its leaves in order, digests cut to eight digits."""
    text = " ".join(str(leaf) for leaf in _leaves(key) if leaf not in (None, ""))
    text = _HEX.sub(lambda match: match[0][:8], " ".join(text.split()))
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def _leaves(data: Any) -> Iterator[Any]:
    if isinstance(data, dict):
        for name, value in data.items():
            inner = list(_leaves(value))
            yield from (name, *inner) if name != "shortened" else inner
    elif isinstance(data, list):
        for value in data:
            yield from _leaves(value)
    else:
        yield data


def _root() -> Path:
    from paddock.cache import Store

    return Store().root


def _of_kind(root: Path, kind: str | None) -> list[Found]:
    from paddock.cache_entries import entries

    return entries(root, kind)


def _check_kind(kind: str | None, every: Sequence[Found]) -> None:
    known = sorted({each.kind for each in every})
    if kind is not None and kind not in known:
        raise UsageError(f"the cache holds no entries of kind {kind!r}", where="--kind", candidates=known)


def _tell(terminal: Terminal, root: Path, done: Pruned, json: bool) -> None:
    from paddock.cache_pruning import total
    from paddock.planning.memory import readable
    from paddock.show import table

    if json:
        removed, kept = ([{**_entry(f, None), "why": why} for f, why in pairs] for pairs in (done.removed, done.kept))
        facts = {"cache": str(root), "freed": done.freed, "bytes": total(done.left)}
        terminal.document({**facts, "removed": removed, "kept": kept})
        return
    rows = []
    for verdict, pairs in (("removed", done.removed), ("stays: in use, or used lately", done.kept)):
        alike: dict[tuple[str, str], list[Found]] = {}
        for found, why in pairs:
            alike.setdefault((found.kind, why), []).append(found)
        rows += [
            (verdict, kind, str(len(each)), readable(total(each)), why) for (kind, why), each in sorted(alike.items())
        ]
    if rows:
        terminal.out.print(table(("", "kind", "entries", "size", "why"), rows))
    told = f"{readable(done.freed)} freed, {readable(total(done.left))} left in {root}"
    terminal.out.print(told, soft_wrap=True, markup=False)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "run it as the user that the cache belongs to, on a file system that can be written"
        raise UsageError(f"cannot be changed: {error.strerror or error}", where=str(root), remedy=remedy) from error


def _name(found: Found) -> str:
    return f"{found.kind}/{found.place.name}"


def _entry(found: Found, about: About | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": found.kind, "name": found.place.name, "used": found.used, "bytes": found.size}
    if about is not None:
        facts.update(form=about.form, key=about.key, made=about.made, paddock=about.paddock, sources=about.sources)
    return facts


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _terminal(context: typer.Context) -> Terminal:
    terminal: Terminal = context.obj
    return terminal
