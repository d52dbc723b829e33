"""A plan as one self-contained HTML page: the graph with its placement, each value's type, and memory over time.

Nothing is fetched: style, script and data stand in the page, and its content security policy admits only these by their
hashes. Every text from a model or a config is escaped where it is put in.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources

from paddock.graph import Graph
from paddock.memory_plan import MemoryPlan, SegmentMemory
from paddock.occupancy import alive_at, occupancy
from paddock.page_data import Traces, page_data
from paddock.plan import Plan, Setting
from paddock.planning.memory import readable, told_limit

_LARGEST = 14
_WIDE = 6
"""A table of more columns takes the whole width."""
_ADAPTER_COLORS = 8
_SCRIPTS = ("page.js", "page_graph.js", "page_memory.js")
_FIGURES = {
    "nodes", "bytes", "weights", "intermediates", "bound", "in and out", "least", "most", "nodes in fp32",
    "of the work", "error", "agreement",
}  # fmt: skip
_PROSE = {
    "what", "where", "made by", "because", "laid out by", "value", "took effect as", "in budget", "asked for",
}  # fmt: skip
"""Columns that may wrap."""
_PLANNED_BY = {
    "backend": "the backend itself; this is the best layout of its graph",
    "paddock": "Paddock, which runs with these very offsets",
    "none": "nobody: nothing is reused",
}


def page(graph: Graph, plan: Plan, traced: Traces | None = None) -> str:
    """One HTML page that shows a plan; equal arguments give equal text, in ASCII-safe or UTF-8 encodable characters.

    Args:
        graph: The model as the user gave it, with the config's bounds.
        plan: The plan for it.
        traced: Where segments were converted, the nodes of `graph` that their values come from (`page_data.traces`).
            Without it, buffers are linked to nodes by the names of values, where exactly one has that name.
    """
    style = _data("page.css")
    script = "(() => {\n'use strict';\n" + "".join(_data(name) for name in _SCRIPTS) + "})();"
    data = page_data(graph, plan, traced)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n',
        f"<title>{_text(plan.adapter)} plan - Paddock</title>\n<style>{style}</style>\n</head>\n<body>\n",
        *_header(graph, plan),
        _data("page.html"),
        '<main class="tables">\n',
        *_tables(plan, data["adapters"]),
        "</main>\n",
        f'<script type="application/json" id="data">{_json(data)}</script>\n',
        f"<script>{script}</script>\n</body>\n</html>\n",
    ]
    return "".join(parts)


def _data(name: str) -> str:
    return resources.files("paddock").joinpath("data", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _json(data: object) -> str:
    """JSON in ASCII that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(text: object) -> str:
    """Text or an attribute's value: escaped, what cannot be printed or encoded shown as an escape sequence."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return escape("".join(shown), quote=True)


def _header(graph: Graph, plan: Plan) -> Iterator[str]:
    precision = plan.precision
    yield '<header>\n<div class="title"><p class="brand">Paddock <span>plan</span></p>'
    yield f"<h1>{_text(plan.adapter)}</h1>"
    yield f'<p class="on">on device {_text(plan.device)}, in <b>{_text(precision.precision.value)}</b></p>'
    yield '<button id="theme" type="button" title="Light or dark">Light / dark</button></div>\n'
    yield '<div class="facts"><dl>\n'
    placement = plan.placement
    shares = ", ".join(f"{placement.on(name)} on {name}" for name in placement.adapters)
    facts = [
        ("model", f"{graph.name or 'unnamed'}, {plan.format}, {plan.model[:12]}"),
        ("nodes", f"{len(graph.nodes)}" + (f": {shares}" if len(placement.adapters) > 1 else "")),
        ("segments", str(len(placement.segments))),
        ("shapes", ", ".join(f"{name} {shape}" for name, shape in plan.shapes.items())),
        ("precision", precision.reason),
        ("verify", f"{plan.verify}, {plan.budget}, reference {' or '.join(plan.reference) or '-'}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in plan.versions.items())),
        ("key", plan.key[:16]),
    ]
    for name, fact in facts:
        if fact:
            yield f"<div><dt>{_text(name)}</dt><dd>{_text(fact)}</dd></div>\n"
    yield "</dl>\n"
    yield from _budget(plan.memory)
    yield "</div>\n"
    yield from _told(plan)
    yield "</header>\n"


def _budget(memory: MemoryPlan) -> Iterator[str]:
    """Predicted, measured and admitted bytes on one scale."""
    most = memory.most
    scale = max(memory.least, most or 0, memory.measured or 0, memory.limit or 0, 1)
    over = memory.limit is not None and memory.within(memory.limit) is False
    width = 600

    def at(size: int) -> float:
        return round(size * width / scale, 1)

    yield f'<div class="budget{" over" if over else ""}"><p>Predicted memory on the {_text(memory.kind)}</p>'
    bounds = readable(memory.least) + (f"<i> to </i>{readable(most)}" if most is not None else "<i> or more</i>")
    yield f'<p class="figure">{bounds}</p>'
    told = f"at least {readable(memory.least)}, at most {readable(most) if most is not None else 'unknown'}"
    yield f'<svg viewBox="0 0 {width} 22" preserveAspectRatio="none" role="img" aria-label="{told}">'
    yield f'<rect class="track" width="{width}" height="14" y="4"/>'
    if most is not None:
        yield f'<rect class="most" width="{at(most)}" height="14" y="4"/>'
    yield f'<rect class="least" width="{at(memory.least)}" height="14" y="4"/>'
    for kind, mark in (("measured", memory.measured), ("limit", memory.limit)):
        if mark is not None:
            yield f'<rect class="{kind}" x="{min(at(mark), width - 3)}" width="3" height="22"/>'
    yield "</svg><ul>"
    rows: list[tuple[str, str, str]] = [
        ("least", "at least", readable(memory.least)),
        ("most", "at most", readable(most) if most is not None else "unknown until a run is measured"),
    ]
    if memory.measured is not None:
        rows.append(("measured", "measured", readable(memory.measured)))
    rows.append(("limit", "limit", told_limit(memory)))
    rows.append(("", "Paddock's own", readable(memory.owned)))
    rows.append(("", "instances", str(memory.instances)))
    if memory.unknown:
        rows.append(("", "of unknown size", f"{memory.unknown} values, in no sum"))
    for kind, name, size in rows:
        yield f'<li class="{kind}"><span>{_text(name)}</span> {_text(size)}</li>'
    yield "</ul></div>\n"


def _told(plan: Plan) -> Iterator[str]:
    """What a reader must know before the pictures."""
    rows = [("note", note, "") for note in plan.notes]
    for remedy in plan.remedies:
        kind = "applied" if remedy.applied else "not applied"
        evidence = f" ({remedy.evidence})" if remedy.evidence else ""
        rows.append((kind, f"{remedy.name}: {remedy.summary}", remedy.action + evidence))
    if rows:
        yield '<ul class="told">\n'
        for kind, head, rest in rows:
            warns = kind == "not applied" or head.startswith(("FALLBACK", "NOT ", "not strict"))
            more = f" <em>{_text(rest)}</em>" if rest else ""
            yield f"<li{_class('warns' if warns else '')}><b>{_text(kind)}</b> {_text(head)}{more}</li>\n"
        yield "</ul>\n"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _tables(plan: Plan, adapters: Sequence[str]) -> Iterator[str]:
    memory, precision = plan.memory, plan.precision
    colors = {name: f"a{i % _ADAPTER_COLORS}" for i, name in enumerate(adapters)}
    yield from _table(
        "Largest contributors", ("bytes", "what", "made by", "where", "alive"), _contributors(memory), wide=True
    )
    heads = (
        "segment",
        "runs on",
        "device",
        "nodes",
        "weights",
        "intermediates",
        "bound",
        "in and out",
        "least",
        "most",
    )
    yield from _table("Memory by segment", (*heads, "laid out by"), map(_segment, memory.segments), colors, 1)
    rows = [(op, str(count), adapter, answer, why) for op, adapter, answer, why, count in plan.placement.by_operator()]
    yield from _table("Placement by operator", ("operator", "nodes", "runs on", "verdict", "because"), rows, colors, 2)
    computed = [(op, str(count), dtype, why) for op, dtype, why, count in precision.by_operator()]
    yield from _table("Precision by operator", ("operator", "nodes", "computes in", "because"), computed)
    yield from _table("Casts", ("value", "to"), precision.casts)
    yield from _table("Settings", ("setting", "asked for", "took effect as", "because"), map(_setting, plan.settings))
    steps = (
        (
            str(number), str(step.kept), f"{step.share:.1%}", "-" if step.error is None else f"{step.error:.3g}",
            "-" if step.agreement is None else f"{step.agreement:.4f}", "yes" if step.met else step.problem or "no",
        )
        for number, step in enumerate(precision.searched, start=1)
    )  # fmt: skip
    tried = ("try", "nodes in fp32", "of the work", "error", "agreement", "in budget")
    yield from _table("Search for the nodes to keep in fp32", tried, steps)


def _contributors(memory: MemoryPlan) -> list[tuple[str, ...]]:
    """Weights, borders and the buffers of each segment's peak, largest first, of one instance."""
    rows: list[tuple[int, tuple[str, ...]]] = [(memory.owned, ("Paddock's own buffers", "", f"the {memory.kind}", ""))]
    for segment in memory.segments:
        where = f"segment {segment.segment}, {segment.adapter}"
        rows.append((segment.weights, ("weights, all together", "", where, "always")))
        rows.append((segment.io, ("inputs and outputs", "", where, "")))
        at, _ = occupancy(segment.layout).peaks
        for buffer in alive_at(segment.layout, at):
            more = f" and {len(buffer.values) - 1} more in it" if len(buffer.values) > 1 else ""
            name = buffer.values[0] + more if buffer.values else "inside a body"
            rows.append((buffer.size, (name, buffer.op, where, f"{buffer.lower} to {buffer.upper - 1}")))
    least = sum(segment.weights + segment.io for segment in memory.segments) // 1000
    largest = sorted((row for row in rows if row[0] > least), key=lambda row: -row[0])[:_LARGEST]
    return [(readable(size), *told) for size, told in largest]


def _segment(s: SegmentMemory) -> Sequence[str]:
    arena = readable(s.arena) + (" (proven least)" if s.proven else "")
    most = "unknown" if s.most is None else readable(s.most)
    by = _PLANNED_BY.get(s.planned_by, s.planned_by) + (f" ({readable(s.unshared)})" if s.planned_by == "none" else "")
    figures = (readable(s.weights), arena, readable(s.bound), readable(s.io), readable(s.least), most)
    return (str(s.segment), s.adapter, s.kind, str(s.nodes), *figures, by)


def _setting(setting: Setting) -> Sequence[str]:
    took = "not yet built" if setting.effective is None else str(setting.effective)
    return (setting.name, str(setting.requested), took, setting.reason)


def _table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    colors: dict[str, str] | None = None,
    colored: int = -1,
    wide: bool = False,
) -> Iterator[str]:
    """A table with a heading; nothing where there are no rows."""
    cells = [tuple(row) for row in rows]
    if not cells:
        return
    kind = " wide" if wide or len(columns) > _WIDE else ""
    yield f'<section class="table{kind}"><h2>{_text(title)} <span>{len(cells)}</span></h2>'
    yield '<div class="scroll"><table>\n<thead><tr>'
    kinds = [_class("n" if column in _FIGURES else "" if column in _PROSE else "k") for column in columns]
    yield "".join(f'<th scope="col"{kind}>{_text(column)}</th>' for column, kind in zip(columns, kinds, strict=True))
    yield "</tr></thead>\n<tbody>\n"
    for row in cells:
        yield "<tr>"
        for at, cell in enumerate(row):
            swatch = f'<i class="swatch {colors[cell]}"></i>' if colors and at == colored and cell in colors else ""
            yield f"<td{kinds[at]}>{swatch}{_text(cell)}</td>"
        yield "</tr>\n"
    yield "</tbody></table></div></section>\n"
