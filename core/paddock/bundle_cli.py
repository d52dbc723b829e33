"""`paddock export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from paddock.terminal import Terminal


def export(
    context: typer.Context,
    model: Annotated[Path, typer.Option("--model", help="A Paddle model (.json, .pdiparams, stem, folder) or .onnx.")],
    config: Annotated[str, typer.Option("--config", help="The hardware config: a JSON file, or JSON text.")],
    output: Annotated[Path, typer.Option("--output", help="The folder to write; new or empty.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Writes a bundle: all that serves the model on a host like this one, without network, compiler or reference."""
    from paddock.auto import settled
    from paddock.bundle import REQUIREMENTS, export

    terminal: Terminal = context.obj
    with terminal.progress() as tell:
        chosen = settled(model, config, progress=tell)
        terminal.note_warm_start(chosen.warm_start)
        with export(model, chosen, output, progress=tell) as deployment:
            plan, report = deployment.plan, deployment.report
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if json:
        terminal.document({"adapter": plan.adapter, "report": report.to_json(), "written": str(output), "bytes": size})
        return
    from paddock.planning.memory import readable

    terminal.out.print(escape(f"{plan.adapter} ({report.outcome.value}): {readable(size)} -> {output}"), soft_wrap=True)
    terminal.out.print(
        escape(f"there: pip install --requirement {REQUIREMENTS}, then paddock run --bundle {output.name}"),
        soft_wrap=True,
    )
