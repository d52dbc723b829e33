"""What the command line shows: rich tables and plain lines, made from plans, reports and figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paddock.admission import Plugin
from paddock.bench import Entry, Measured
from paddock.bisect import Bisection
from paddock.lowered import Written
from paddock.plan import Plan, PrecisionPlan, SearchStep
from paddock.planning.memory import readable, told_limit
from paddock.registry import Registered
from paddock.spi import Devices, Probe
from paddock.timeline import timeline
from paddock.verify import Report

_CASTS = 8
_STYLE = {"yes": "green", "no": "red", "provisional": "yellow"}


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], title: str | None = None) -> Table:
    """A table of plain text; the last column may wrap."""
    names = list(columns)
    made = Table(
        title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False, show_header=any(names)
    )
    for position, name in enumerate(names):
        made.add_column(name, overflow="fold", no_wrap=position < len(names) - 1 and position == 0)
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


def show_adapters(
    out: Console, survey: Mapping[str, tuple[Registered, Probe, Devices]], plugins: Iterable[Plugin]
) -> None:
    """Adapters with their devices, then plugins that did not load."""
    rows = []
    for registered, probe, devices in survey.values():
        adapter = registered.adapter
        usable = probe.verdict.usable and devices.verdict.usable
        precisions = sorted({p.value for d in devices.devices for p, v in d.precisions.items() if v.usable})
        reason = probe.verdict.reason if not probe.verdict.usable else devices.verdict.reason
        state = ", ".join(d.name for d in devices.devices) if usable else reason
        remedy = devices.remedy or probe.remedy
        names = "/".join((adapter.backend, *adapter.aliases))
        rows.append(
            (
                f"{adapter.hardware}/{names}",
                "yes" if usable else "no",
                ", ".join(precisions) or "-",
                ", ".join(adapter.formats),
                f"{registered.distribution} {registered.version}",
                state if usable or not remedy else f"{state}; {remedy}",
            )
        )
    out.print(table(("adapter", "here", "precisions", "takes", "from", "devices, or what is missing"), rows))
    failed = [plugin for plugin in plugins if not plugin.verdict.usable]
    for plugin in failed:
        out.print(
            f"[red]not loaded[/red] {escape(f'{plugin.distribution} {plugin.version}: {plugin.verdict.reason}')}",
            soft_wrap=True,
        )


def adapter_json(registered: Registered, probe: Probe, devices: Devices) -> Mapping[str, Any]:
    """An adapter as JSON data: what it is, what was found of it here, and the schema of its options."""
    adapter = registered.adapter
    return {
        "adapter": adapter.name(),
        "aliases": list(adapter.aliases),
        "distribution": registered.distribution,
        "version": registered.version,
        "formats": list(adapter.formats),
        "probe": asdict(probe),
        "devices": asdict(devices),
        "options": adapter.Options.model_json_schema(),
    }


def show_plan(out: Console, plan: Plan, nodes: bool = False) -> None:
    """A plan: what runs where, in what, in how much memory, and why; with `nodes`, the dtype of every single one."""
    facts = [
        ("adapter", f"{plan.adapter} on device {plan.device}"),
        ("precision", _precision(plan.precision)),
        ("nodes", _nodes(plan)),
        ("shapes", ", ".join(f"{name} {shape}" for name, shape in plan.shapes.items())),
        ("memory", _memory(plan)),
        ("verify", f"{plan.verify}, {plan.budget}, reference {' or '.join(plan.reference) or '-'}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in plan.versions.items())),
        ("key", plan.key[:16]),
    ]
    for setting in plan.settings:
        effect = "not yet built" if setting.effective is None else f"took effect as {setting.effective}"
        why = f" ({setting.reason})" if setting.reason else ""
        facts.append((setting.name, f"{setting.requested}{why}, {effect}"))
    for remedy in plan.remedies:
        facts.append(
            ("applied" if remedy.applied else "NOT applied", f"{remedy.name}: {remedy.summary}; {remedy.action}")
        )
    facts += [("note", note) for note in plan.notes]
    out.print(table(("", ""), facts))
    out.print()
    rows = [
        (op, str(count), adapter, answer, reason) for op, adapter, answer, reason, count in plan.placement.by_operator()
    ]
    out.print(table(("operator", "nodes", "runs on", "verdict", "because"), rows))
    _show_precision(out, plan.precision, nodes)
    out.print()
    out.print(timeline(plan.memory, out.width))


def _show_precision(out: Console, plan: PrecisionPlan, nodes: bool) -> None:
    """What is computed in what: by operator, or node by node; what was searched."""
    if plan.nodes:
        out.print()
        if nodes:
            each = [(f"#{n.node} {n.op}", n.dtype, n.reason) for n in plan.nodes if n.dtype]
            out.print(table(("node", "computes in", "because"), each))
        else:
            rows = [(op, str(count), dtype, reason) for op, dtype, reason, count in plan.by_operator()]
            out.print(table(("operator", "nodes", "computes in", "because"), rows))
    if plan.casts:
        out.print()
        shown = ", ".join(f"{value} to {dtype}" for value, dtype in plan.casts[:_CASTS])
        more = f" and {len(plan.casts) - _CASTS} more" if len(plan.casts) > _CASTS else ""
        out.print(escape(f"casts: {len(plan.casts)} ({shown}{more})"), soft_wrap=True)
    _show_search(out, plan.searched)


def _show_search(out: Console, steps: Sequence[SearchStep]) -> None:
    if steps:
        rows = [
            (
                str(number),
                str(step.kept),
                f"{step.share:.1%}",
                "-" if step.error is None else f"{step.error:.3g}",
                "-" if step.agreement is None else f"{step.agreement:.4f}",
                "yes" if step.met else f"no: {step.problem}" if step.problem else "no",
            )
            for number, step in enumerate(steps, start=1)
        ]
        out.print()
        out.print(table(("try", "nodes in fp32", "of the work", "error", "agreement", "in budget"), rows))


def show_written(out: Console, written: Written) -> None:
    """A model that was cast or quantised: its files, size, error, and what stays in fp32."""
    plan = written.plan.precision
    out.print(escape(f"{written.plan.adapter}, {plan.reason}"), soft_wrap=True)
    ratio = written.after / max(1, written.before)
    out.print(f"{readable(written.after)}, {ratio:.2f} of {readable(written.before)}")
    show_report(out, written.report)
    _show_search(out, plan.searched)
    reasons = {node.node: node.reason for node in plan.nodes}
    for node, name in zip(plan.keep_fp32, written.keep_fp32, strict=True):
        out.print(escape(f"  {name} stays in fp32: {reasons.get(node, '')}"), soft_wrap=True)
    out.print(escape(f"written: {written.folder} ({', '.join(written.files)})"), soft_wrap=True)


def _nodes(plan: Plan) -> str:
    placement = plan.placement
    shares = ", ".join(f"{placement.on(name)} on {name}" for name in placement.adapters)
    return f"{len(placement.nodes)}: {shares}; segments: {len(placement.segments)}, format {plan.format}"


def show_report(out: Console, report: Report, where: str = "") -> None:
    """A verification's verdict and each output's figures; `where` names the adapter and its device."""
    color = {"passed": "green", "failed": "red"}.get(report.outcome.value, "yellow")
    kept = " (kept from an earlier run)" if report.kept else ""
    reason = f": {report.reason}" if report.reason else ""
    on = f" on {where}" if where else ""
    out.print(f"[{color}]{report.outcome.value}[/{color}]{escape(on + kept + reason)}", soft_wrap=True)
    if not report.outputs:
        return
    out.print(escape(f"against {report.reference}, budget {report.budget}, samples {report.source}"), soft_wrap=True)
    for shape in report.shapes:
        out.print(escape(f"  {shape}"), soft_wrap=True)
    rows = [
        (
            o.name,
            f"{o.error:.3g}",
            "-" if o.agreement is None else f"{o.agreement:.4f}",
            "yes" if o.varies else "no",
            o.note,
        )
        for o in report.outputs
    ]
    out.print(table(("output", "error", "agreement", "varies", ""), rows))


def show_bisection(out: Console, found: Bisection, written: Path | None) -> None:
    """What is to be kept off whom, and the config that does it."""
    runs = f"{found.culprits.runs} run{'s' if found.culprits.runs != 1 else ''}"
    if not found.nodes:
        out.print(f"agrees as it is: nothing to keep off ({runs})")
        return
    for adapter, nodes in found.nodes.items():
        head = f"{len(nodes)} of {found.total} nodes make {adapter} wrong ({runs}): {found.culprits.problem}"
        out.print(escape(head), soft_wrap=True)
        for node in nodes:
            out.print(escape(f"  {node}"), soft_wrap=True)
    if written is not None:
        out.print(escape(f"a config without them: {written}"), soft_wrap=True)
    else:
        out.print(escape(json.dumps(found.config, indent=2)), soft_wrap=True)


def show_bench(out: Console, entries: Iterable[Entry]) -> None:
    """Configs side by side; the fastest median has ratio 1.00."""
    entries = list(entries)
    best = min((e.measured.median for e in entries if e.measured), default=1.0)
    rows = []
    for entry in entries:
        m = entry.measured
        if m is None:
            problem = entry.error.problem if entry.error is not None else "not measured"
            rows.append((entry.label, *"---------", problem))
            continue
        figures = (f"{m.median:.3f}", f"{m.median / best:.2f}", f"{m.p95:.3f}", f"{m.p99:.3f}", f"{m.throughput:.1f}")
        error = "-" if m.report.error is None else f"{m.report.error:.2g}"
        rows.append((entry.label, m.adapter, *figures, *_taken(m), f"{m.report.outcome.value}, error {error}"))
    columns = (
        "config", "adapter", "p50 ms", "ratio", "p95 ms", "p99 ms", "samples/s", "took", "planned", "verdict",
    )  # fmt: skip
    out.print(table(columns, rows))
    shapes = {e.measured.shapes for e in entries if e.measured}
    for shape in sorted(shapes):
        out.print(escape(f"on {shape}; each config in a process of its own, interleaved"), soft_wrap=True)
    if shapes:
        out.print("took: the sessions' peak at the largest shapes, in a fresh process, over the loaded runtimes")


def _taken(found: Measured) -> tuple[str, str]:
    """What the sessions took, and what the plan says of it."""
    taken = readable(found.taken) if found.taken is not None else f"not measured: {found.untaken}"
    if found.kept is not None:
        return taken, f"{readable(found.kept)}, as measured before"
    return taken, f"{readable(found.least)} to {readable(found.most) if found.most is not None else '?'}"


def show_facts(out: Console, facts: Mapping[str, Any]) -> None:
    """Lines of name and value."""
    out.print(table(("", ""), [(name, str(value)) for name, value in facts.items()]))


def _precision(plan: PrecisionPlan) -> str:
    saved = f"; weights are {readable(plan.weights_saved)} smaller" if plan.weights_saved else ""
    return f"{plan.precision.value}: {plan.reason}{saved}"


def _memory(plan: Plan) -> str:
    m = plan.memory
    most = f", at most {readable(m.most)}" if m.most is not None else ""
    measured = f", measured {readable(m.measured)}" if m.measured is not None else ""
    limit = f", limit {told_limit(m)}" if m.limit is not None else ""
    unknown = f", {m.unknown} values of unknown size not counted" if m.unknown else ""
    return f"at least {readable(m.least)}{most} on the {m.kind}{measured}{limit}{unknown}; {m.instances} instance(s)"
