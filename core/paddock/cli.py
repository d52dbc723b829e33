"""The command line: `paddock schema | plan | run | verify | bisect | cast | quantize` here, and `adapters |
doctor | plugins | new-plugin | conformance | bench | tune | diff | export | cache` beside it.

Whatever a backend prints goes to stderr, so that stdout holds the answer alone; with `--json` that is one JSON
document, errors included. Exit codes come from the exceptions, in one table.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from paddock import bench_cli, bundle_cli, cache_cli, conformance_cli, diff_cli, plugins_cli, tune_cli
from paddock.errors import NotAvailable, PaddockError, UsageError
from paddock.terminal import INTERNAL, Terminal, error_json, exit_code

if TYPE_CHECKING:
    from paddock.config import HardwareConfig
    from paddock.prepare import Progress

INTERRUPTED, BROKEN_PIPE = 130, 141
"""What a shell reports for SIGINT and SIGPIPE."""


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cache_cli.app, name="cache")
app.command()(plugins_cli.adapters)
app.command()(plugins_cli.doctor)
app.command()(plugins_cli.plugins)
app.command()(plugins_cli.new_plugin)
app.command()(bench_cli.bench)
app.command()(tune_cli.tune)
app.command()(bundle_cli.export)
app.command()(diff_cli.diff)
app.command()(conformance_cli.conformance)

ModelOption = Annotated[
    Path, typer.Option("--model", help="A Paddle model (.json, .pdiparams, stem, folder) or .onnx.")
]
ConfigOption = Annotated[str, typer.Option("--config", help="The hardware config: a JSON file, or JSON text.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


_terminal: Terminal


@app.callback()
def settings(
    allow: Annotated[
        str | None,
        typer.Option("--allow", help="Plugins that may load, NAME or NAME@DIGEST, comma-separated: PADDOCK_ALLOW."),
    ] = None,
) -> None:
    """Deploys PaddlePaddle and ONNX models on the hardware that a JSON file names, checked against the reference."""
    if allow is not None:
        os.environ["PADDOCK_ALLOW"] = allow  # children are to keep to it as well


@app.command()
def schema(json: JsonFlag = False) -> None:
    """Prints the JSON Schema of the config, for editors (it is JSON with or without --json)."""
    from paddock.auto import json_schema

    _terminal.document(json_schema())


@app.command()
def plan(
    model: ModelOption,
    config: ConfigOption,
    nodes: Annotated[bool, typer.Option("--nodes", help="Show what every single node computes in, and why.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write the plan as one self-contained page.")] = None,
    json: JsonFlag = False,
) -> None:
    """Shows what would run where, in which precision and memory, without building it; fails if that is too much.

    Where the hardware is not here, what can be told without it is shown, and the command fails: as a deployment would
    where that hardware is, if one would fail there too.
    """
    from paddock import show
    from paddock.checks import refusals, with_known_memory
    from paddock.child import Children
    from paddock.compile import built_notes
    from paddock.jsontext import write_text
    from paddock.page import page
    from paddock.page_data import traces
    from paddock.precision_search import as_deployed
    from paddock.prepare import prepare

    if html is not None:
        _check_file(html, "--html")
    with _terminal.progress() as tell, Children() as children:
        settled = _settled(model, config, tell)
        absent: tuple[PaddockError, ...] = ()
        try:
            prepared = prepare(model, settled, children=children, progress=tell)
        except NotAvailable as error:
            absent = (error,)
            try:
                prepared = prepare(model, settled, children=children, progress=tell, assume=True)
            except PaddockError as found:
                raise found.beside(error) from None
        try:
            prepared = prepared if absent else with_known_memory(as_deployed(prepared))
            against = (*refusals(prepared), *absent)
            refused = against[0].beside(*against[1:]) if against else None
            built = built_notes(prepared.plan, prepared.parts)
            shown = replace(prepared.plan, notes=(*prepared.plan.notes, *built))
        finally:
            prepared.discard()
    if html is not None:
        traced = {part.segment.index: traces(part.target, prepared.origin) for part in prepared.parts}
        write_text(html, page(prepared.origin.graph, shown, traced), "--html")
    if json:
        told = error_json(refused) if refused is not None else None
        _terminal.document({"plan": shown.to_json(), "key": shown.key, "refused": told})
    else:
        show.show_plan(_terminal.out, shown, nodes)
        if refused is not None:
            _terminal.failed(refused)
    if refused is not None:
        raise typer.Exit(exit_code(refused))


@app.command()
def run(
    input: Annotated[Path, typer.Option("--input", help="An .npz with an array for each input.")],
    output: Annotated[Path, typer.Option("--output", help="The .npz to write.")],
    model: Annotated[Path | None, typer.Option("--model", help="A Paddle or ONNX model; with --config.")] = None,
    config: Annotated[str | None, typer.Option("--config", help="The hardware config; with --model.")] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Instead of both: what `export` wrote.")] = None,
    json: JsonFlag = False,
) -> None:
    """Deploys a model, or takes a bundle; verifies, runs once on the input and writes the outputs."""
    from paddock.bundle import load_bundle
    from paddock.deployment import deploy
    from paddock.npz import read_npz, write_npz

    feeds = read_npz(input, "--input")
    _check_file(output, "--output")
    with _terminal.progress() as tell, ExitStack() as stack:
        if bundle is not None and model is None and config is None:
            deployment = stack.enter_context(load_bundle(bundle, progress=tell))
        elif bundle is None and model is not None and config is not None:
            deployment = stack.enter_context(deploy(model, _settled(model, config, tell), progress=tell))
        else:
            raise UsageError("needs --model and --config, or --bundle alone", where="paddock run")
        answers = deployment.run(feeds)
        report, adapter = deployment.report, deployment.plan.adapter
    write_npz(output, answers, "--output")
    shapes = {name: f"{array.dtype} {list(array.shape)}" for name, array in answers.items()}
    if json:
        _terminal.document({"adapter": adapter, "outputs": shapes, "report": report.to_json(), "written": str(output)})
    else:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        verdict = report.outcome.value + ("" if report.error is None else f", error {report.error:.2g}")
        _terminal.out.print(escape(f"{adapter} ({verdict}): {listed} -> {output}"), soft_wrap=True)


@app.command()
def verify(
    model: ModelOption,
    config: Annotated[str | None, typer.Option("--config", help="The hardware config; optional with --all.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Try every adapter and precision that is here.")] = False,
    write_golden: Annotated[
        Path | None, typer.Option("--write-golden", help="Store samples and reference outputs for verify: golden.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Checks a deployment against the reference, or every adapter that is here with --all."""
    from paddock import show
    from paddock.compare import every_adapter, verify_one

    if all:
        if write_golden is not None:
            raise UsageError("--write-golden has no effect with --all", remedy="leave one of the two out")
        with _terminal.progress() as tell:
            rows = every_adapter(model, config, tell)
        if json:
            found = [
                {
                    "adapter": row.adapter,
                    "precision": row.precision,
                    "report": row.report.to_json() if row.report else None,
                    "error": error_json(row.error) if row.error else None,
                }
                for row in rows
            ]
            _terminal.document({"adapters": found})
        else:
            cells = [(row.adapter, row.precision, row.verdict, row.figure, row.detail) for row in rows]
            columns = ("adapter", "precision", "verdict", "error", "detail")
            _terminal.out.print(show.table(columns, cells))
        raise typer.Exit(max((exit_code(row.error) for row in rows if row.error is not None), default=0))
    if config is None:
        raise UsageError("needs --config, or --all", where="paddock verify")
    with _terminal.progress() as tell:
        deployed_plan, report = verify_one(model, _settled(model, config, tell), write_golden, tell)
    if json:
        _terminal.document({"report": report.to_json(), "plan": deployed_plan.to_json()})
    else:
        show.show_report(_terminal.out, report, f"{deployed_plan.adapter}, device {deployed_plan.device}")


@app.command()
def bisect(
    model: ModelOption,
    config: ConfigOption,
    output: Annotated[Path | None, typer.Option("--output", help="Where to write the config; shown otherwise.")] = None,
    json: JsonFlag = False,
) -> None:
    """Finds the nodes that make a deployment wrong, and writes a config that keeps them off."""
    from paddock import show
    from paddock.bisect import bisect as search
    from paddock.jsontext import write_json

    if output is not None:
        _check_file(output, "--output")
    with _terminal.progress() as tell:
        found = search(model, _settled(model, config, tell), progress=tell)
    if output is not None:
        write_json(output, found.config, "--output")
    if json:
        culprits = found.culprits
        _terminal.document(
            {
                "nodes": {adapter: list(nodes) for adapter, nodes in found.nodes.items()},
                "runs": culprits.runs,
                "problem": culprits.problem,
                "config": found.config,
                "written": str(output) if output is not None else None,
            }
        )
    else:
        show.show_bisection(_terminal.out, found, output)


@app.command()
def cast(
    model: ModelOption,
    config: ConfigOption,
    output: Annotated[Path, typer.Option("--output", help="The folder to write; new or empty.")],
    json: JsonFlag = False,
) -> None:
    """Writes the model cast to fp16 or bf16 as a verified file, with its config and report."""
    _lower(model, config, output, json, quantize=False)


@app.command()
def quantize(
    model: ModelOption,
    config: ConfigOption,
    output: Annotated[Path, typer.Option("--output", help="The folder to write; new or empty.")],
    json: JsonFlag = False,
) -> None:
    """Writes the model quantised to int8 from calibration.samples, with its config and report."""
    _lower(model, config, output, json, quantize=True)


def _lower(model: Path, config: str, output: Path, json: bool, quantize: bool) -> None:
    from paddock import show
    from paddock.lowered import write_lowered

    with _terminal.progress() as tell:
        written = write_lowered(model, _settled(model, config, tell), output, quantize=quantize, progress=tell)
    if json:
        _terminal.document({**written.to_json(), "written": str(output)})
    else:
        show.show_written(_terminal.out, written)


def _settled(model: Path, config: str, tell: Progress) -> HardwareConfig:
    from paddock.auto import settled

    found = settled(model, config, progress=tell)
    _terminal.note_warm_start(found.warm_start)
    return found


def _check_file(path: Path, option: str) -> None:
    """Raises `UsageError` where nothing can be written there: before any work is done for it."""
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError("is no file in a folder that exists", where=f"{option}: {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits the process with its status."""
    global _terminal
    _terminal = Terminal()
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    _terminal.json = "--json" in arguments
    if "--help" in arguments:
        _terminal.help()
    try:
        code = _run(arguments)
        _terminal.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    except OSError as error:
        sys.stderr.write(f"stdout cannot be written: {error.strerror}\n")
        code = exit_code(UsageError("stdout cannot be written"))
    sys.stderr.flush()
    # Not through the interpreter's exit: SDKs crash in their destructors there and would spoil the status.
    os._exit(code)


def _run(arguments: list[str]) -> int:
    try:
        result = app(arguments, prog_name="paddock", standalone_mode=False, obj=_terminal)
        if result == INTERRUPTED:  # typer has turned a KeyboardInterrupt into this
            _terminal.interrupted()
        return result if isinstance(result, int) else 0
    except PaddockError as error:
        _terminal.failed(error)
        return exit_code(error)
    except typer.Exit as error:
        return int(error.exit_code)
    except typer.TyperException as error:
        _terminal.failed(UsageError(error.format_message(), where="command line", remedy="paddock --help"))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _terminal.interrupted()
        return INTERRUPTED
    except (Exception, SystemExit) as error:
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            return BROKEN_PIPE  # rich and typer make a SystemExit of a pipe that nobody reads any more.
        problem = PaddockError(
            f"internal error: {type(error).__name__}: {error}",
            remedy="please report this, with what PADDOCK_TRACEBACK=1 shows",
        )
        _terminal.failed(problem)
        if os.environ.get("PADDOCK_TRACEBACK"):
            _terminal.err.print_exception()
        return INTERNAL


if __name__ == "__main__":
    main()
