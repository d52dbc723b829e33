"""The memory plan in a terminal: predicted bytes for each segment, and what is alive over the order of execution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from paddock.memory_plan import MemoryPlan, PlannedBuffer, SegmentMemory
from paddock.occupancy import Occupancy, alive_at, occupancy
from paddock.planning.memory import readable, told_limit

_ROWS = 8
_NAMED = 5
"""How many buffers of a peak are named."""
_CHARTS = 6
"""How many segments are drawn; of the others, the table tells."""
_WIDEST = 4
"""Columns for one position, where there are few of them."""
_LEAST_WIDTH = 40

_PLANNED_BY = {
    "backend": "laid out by the backend itself; this is the best layout of its graph",
    "paddock": "laid out by Paddock: it runs with these very offsets",
    "none": "nothing is reused: all of them together take",
}


@dataclass(frozen=True, slots=True)
class _Glyphs:
    levels: str
    """From nothing to a full cell."""
    axis: str
    corner: str
    line: str
    mark: str
    dots: str


_BLOCKS = _Glyphs(" ▁▂▃▄▅▆▇█", "│", "└", "─", "▲", "…")
_PLAIN = _Glyphs(" .:#", "|", "+", "-", "^", "...")


@dataclass(frozen=True)
class Timeline:
    """A rich renderable, never wider than `width` or the console; ASCII where its encoding has no blocks."""

    memory: MemoryPlan
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = _PLAIN if options.ascii_only else _BLOCKS
        width = max(_LEAST_WIDTH, self.width)
        for line in _lines(self.memory, width, glyphs):
            if options.ascii_only:
                plain = line.plain.encode("ascii", "backslashreplace").decode()
                line = line if plain == line.plain else Text(plain, line.style)
            line.no_wrap, line.overflow = True, "ellipsis" if glyphs is _BLOCKS else "crop"
            line.truncate(min(width, options.max_width), overflow=line.overflow)
            yield line


def timeline(memory: MemoryPlan, width: int) -> Timeline:
    """The predicted peak of each segment and device, and the intermediates alive over the order of execution.

    Args:
        memory: The plan; segments without a layout are told in numbers only.
        width: Columns to use, at least 40.
    """
    return Timeline(memory, width)


def _lines(memory: MemoryPlan, width: int, glyphs: _Glyphs) -> Iterator[Text]:
    yield from _totals(memory)
    if not memory.segments:
        return
    yield Text()
    yield from _table(memory, width, glyphs)
    drawn = sorted(sorted(memory.segments, key=lambda s: -s.arena)[:_CHARTS], key=lambda s: s.segment)
    for segment in drawn:
        yield Text()
        yield from _chart(segment, width, glyphs)
    if len(drawn) < len(memory.segments):
        yield Text()
        yield Text(f"{len(memory.segments) - len(drawn)} segments with less intermediates are not drawn", "dim")


def _totals(memory: MemoryPlan) -> Iterator[Text]:
    head = Text("memory on the ")
    head.append(memory.kind, "bold")
    head.append(f": at least {readable(memory.least)}, ")
    most = memory.most
    head.append(f"at most {readable(most)}" if most is not None else "at most: unknown until a run is measured", "bold")
    yield head
    if memory.measured is not None:
        yield Text(f"  measured  {readable(memory.measured)}, the peak of a run in a process of its own")
    if memory.limit is not None:
        style = {True: "", False: "red", None: "yellow"}[memory.within(memory.limit)]
        yield Text(f"  limit     {told_limit(memory)}", style)
    if memory.owned:
        yield Text(f"  Paddock's own buffers  {readable(memory.owned)}, exactly")
    if memory.instances != 1:
        yield Text(f"  instances {memory.instances}")
    if memory.unknown:
        yield Text(f"  {memory.unknown} values of unknown size are in none of the sums", "yellow")


def _table(memory: MemoryPlan, width: int, glyphs: _Glyphs) -> Iterator[Text]:
    """One row a segment; the adapter's name gives way where the terminal is narrow."""
    head: tuple[str, ...] = (
        "segment", "runs on", "device", "nodes", "weights", "intermed.", "in/out", "least", "most",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [
        (
            str(s.segment),
            _shown(s.adapter, 24, glyphs),
            _shown(s.kind, 10, glyphs),
            str(s.nodes),
            readable(s.weights),
            readable(s.arena),
            readable(s.io),
            readable(s.least),
            "unknown" if s.most is None else readable(s.most),
        )
        for s in memory.segments
    ]
    if all(s.kind == memory.kind for s in memory.segments):  # the line above the table tells it
        head, rows = (*head[:2], *head[3:]), [(*row[:2], *row[3:]) for row in rows]
    texts = {head.index(name) for name in ("runs on", "device") if name in head}
    widths = [max(cell_len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    gap = 2 if sum(widths) + 2 * len(widths) <= width else 1
    narrow = sum(widths) + gap * len(widths) - width
    if narrow > 0:
        widths[1] = max(7, widths[1] - narrow)
    for number, row in enumerate((head, *rows)):
        cells = [
            set_cell_size(_shown(cell, widths[i], glyphs), widths[i])
            if i in texts
            else " " * (widths[i] - cell_len(cell)) + cell
            for i, cell in enumerate(row)
        ]
        yield Text((" " * gap).join(cells), "bold" if not number else "")


def _chart(segment: SegmentMemory, width: int, glyphs: _Glyphs) -> Iterator[Text]:
    yield _heading(segment, glyphs)
    by = _PLANNED_BY.get(segment.planned_by, f"laid out by {_shown(segment.planned_by, 20, glyphs)}")
    proven = "proven least" if segment.proven else f"bound {readable(segment.bound)}"
    yield Text(f"  intermediates {readable(segment.arena)} ({proven})", "dim")
    yield Text(f"  {by}" + (f" {readable(segment.unshared)}" if segment.planned_by == "none" else ""), "dim")
    if segment.unknown:
        yield Text(f"  {segment.unknown} values of unknown size are not in it", "yellow")
    found = occupancy(segment.layout)
    if not found.peak:
        why = "their layout is not told" if segment.arena else "there are none"
        yield Text(f"  no intermediates to draw: {why}")
        return
    yield from _bars(segment, found, width, glyphs)
    yield from _contributors(segment, found, width, glyphs)


def _heading(segment: SegmentMemory, glyphs: _Glyphs) -> Text:
    heading = Text(f"segment {segment.segment} ", "bold")
    heading.append(_shown(segment.adapter, 32, glyphs), "bold cyan")
    heading.append(f" on the {_shown(segment.kind, 10, glyphs)}", "")
    return heading


def _bars(segment: SegmentMemory, found: Occupancy, width: int, glyphs: _Glyphs) -> Iterator[Text]:
    """The block chart: each column the most that is alive in its part of the execution."""
    labels = {0: readable(found.peak), _ROWS // 2: readable(found.peak // 2), _ROWS: "0 B"}
    margin = max(cell_len(label) for label in labels.values()) + 3
    length = max(segment.nodes, found.end)
    room = width - margin - 2
    columns = min(room, length * min(_WIDEST, max(1, room // length)))
    heights = found.largest_in(columns, length)
    steps = len(glyphs.levels) - 1
    # What is alive shows, be it ever so little.
    filled = [-(-height * _ROWS * steps // found.peak) for height in heights]
    peaks = [column for column, height in enumerate(heights) if height == found.peak]
    for row in range(_ROWS):
        line = Text(labels.get(row, "").rjust(margin - 1) + glyphs.axis)
        under = (_ROWS - 1 - row) * steps
        cells = "".join(glyphs.levels[min(steps, max(0, level - under))] for level in filled)
        start = len(line)
        line.append(cells, "cyan")
        for column in peaks:
            line.stylize("bold red", start + column, start + column + 1)
        yield line
    axis = "".join(glyphs.mark if column == peaks[0] else glyphs.line for column in range(columns))
    bottom = Text(labels[_ROWS].rjust(margin - 1) + glyphs.corner)
    bottom.append(axis[: peaks[0]]).append(axis[peaks[0]], "bold red").append(axis[peaks[0] + 1 :])
    yield bottom
    numbers = f"0{str(length).rjust(columns - 1)}" if columns > len(str(length)) else f"0..{length}"
    yield Text(" " * margin + numbers + " nodes", "dim") if columns < room - 6 else Text(" " * margin + numbers, "dim")


def _contributors(segment: SegmentMemory, found: Occupancy, width: int, glyphs: _Glyphs) -> Iterator[Text]:
    first, until = found.peaks
    there = alive_at(segment.layout, first)
    span = f"at node {first}" if until == first + 1 else f"from node {first} to {until - 1}"
    head = Text(f"  peak {readable(found.peak)} ", "bold red")
    head.append(f"{span}, made by", "")
    yield head
    named = [b for number, b in enumerate(there[:_NAMED]) if not number or b.size * 100 >= found.peak]
    for buffer in named:
        share = f"{buffer.size / found.peak:4.0%}"
        start = f"  {readable(buffer.size):>10} {share}  "
        name, op = _name(buffer), _clean(buffer.op)
        room = width - cell_len(start) - 2
        op = _shown(op, max(12, room - cell_len(name)), glyphs)
        line = Text(start)
        line.append(_shown(name, max(8, room - cell_len(op)), glyphs))
        line.append(f"  {op}", "dim")
        yield line
    if len(there) > len(named):
        rest = sum(buffer.size for buffer in there[len(named) :])
        yield Text(f"  {readable(rest):>10} {rest / found.peak:4.0%}  {len(there) - len(named)} more", "dim")


def _name(buffer: PlannedBuffer) -> str:
    if not buffer.values:
        return "inside a body"
    more = f" and {len(buffer.values) - 1} more in it" if len(buffer.values) > 1 else ""
    return _clean(buffer.values[0]) + more


def _clean(text: str) -> str:
    """A name on one line: what is no printable character is shown escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(text: str, room: int, glyphs: _Glyphs) -> str:
    """A name in at most `room` cells; of a longer one the beginning and the end, which tells more."""
    text = _clean(text)
    if cell_len(text) <= room:
        return text
    if room <= len(glyphs.dots) + 1:
        return set_cell_size(text, max(0, room)).rstrip()
    ends = room - len(glyphs.dots)
    head = set_cell_size(text, ends // 2)
    tail = text[-(ends - ends // 2) :]
    while cell_len(head) + cell_len(tail) > ends:
        tail = tail[1:]
    return head + glyphs.dots + tail
