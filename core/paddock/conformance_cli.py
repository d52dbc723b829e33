"""`paddock conformance`: an adapter held to all that it declares, and the certificate of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paddock.errors import NotAvailable, UsageError

if TYPE_CHECKING:
    from paddock.terminal import Terminal
    from paddock.testing.outcomes import Result

DOES_NOT_CONFORM = 6
"""The exit status, as of what could not be built or run."""
_COLORS = {"passed": "green", "failed": "red", "crashed": "red", "hung": "red", "skipped": "yellow"}


def conformance(
    context: typer.Context,
    adapter: Annotated[str, typer.Argument(help="hardware/backend, as `paddock adapters` lists them.")],
    json: Annotated[Path | None, typer.Option("--json", help="Write the certificate as JSON.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the certificate as one page.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="An area, or a glob of checks as in 'models.*'; repeatable.")
    ] = None,
    expected: Annotated[
        Path | None, typer.Option("--expected", help="JSON: check -> reason, of those that are known to fail.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="More sizes, runs and operators for each check, and ONNX's own node tests.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the checks with what they promise; run none.")] = False,
) -> None:
    """Checks that an adapter does what it declares; ends with 6 where it does not."""
    from rich.markup import escape

    from paddock import show
    from paddock.jsontext import write_json, write_text
    from paddock.registry import Registry
    from paddock.testing.certificate import certify
    from paddock.testing.certificate import html as page
    from paddock.testing.outcomes import counted
    from paddock.testing.runner import Runner, checks_for, chosen

    terminal: Terminal = context.obj
    terminal.json = False  # --json names a file here
    for path, option in ((json, "--json"), (html, "--html")):
        if path is not None:
            _check_writable(path, option)
    reasons = _expected(expected) if expected is not None else {}
    registry = Registry.discover()
    registered = registry.get(adapter)
    table = checks_for(registered.adapter, registry)
    wanted = chosen(table, only or (), not full)
    if list_:
        terminal.out.print(show.table(("check", "promise"), [(check.name, check.promise) for check in wanted]))
        return
    probe = registry.probe(registered)
    if not probe.verdict.usable:
        raise NotAvailable(f"{adapter}: {probe.verdict.reason}", remedy=probe.remedy or None)

    def told(result: Result) -> None:
        mark = f"[{_COLORS[result.outcome]}]{result.outcome:>7}[/]"
        why = f"  [dim]{escape(result.reason)}[/]" if result.reason else ""
        terminal.out.print(f"{mark} {result.check}{why}", soft_wrap=True)
        terminal.flush()

    with Runner(not full) as runner:
        results = runner.run_all(registered.adapter, only or (), told)
    certificate = certify(registered, registry, results, list(table), expected=reasons, quick=not full, whole=not only)
    if json is not None:
        write_json(json, certificate.to_json(), "--json")
    if html is not None:
        write_text(html, page(certificate), "--html")
    terminal.out.print()
    terminal.out.print(", ".join(f"{n} {way}" for way, n in counted(results).items() if n))
    for title, ways in (("operators", certificate.operators), ("models", certificate.models)):
        if ways:
            counts = {way: sum(w == way for w in ways.values()) for way in dict.fromkeys(ways.values())}
            terminal.out.print(f"{title}: {', '.join(f'{n} {way}' for way, n in counts.items())}")
    if certificate.unproven:
        terminal.out.print(f"{sum(map(len, certificate.unproven.values()))} claims that nobody could prove")
    for what, names in (
        ("[red]does not keep[/]", certificate.unexpected),
        ("[red]passes, and is expected to fail[/]", certificate.stale),
        ("[red]expected, and no check[/]", certificate.unknown),
    ):
        if names:
            terminal.out.print(f"{what}: {', '.join(names)}", soft_wrap=True)
    if certificate.idle:
        terminal.out.print("[red]it served no model here, which proves nothing[/]")
    said = certificate.verdict if certificate.kept else "does not conform"
    terminal.out.print(escape(f"{certificate.adapter} on {certificate.device}: {said}"), soft_wrap=True)
    if not certificate.kept:
        raise typer.Exit(DOES_NOT_CONFORM)


def _check_writable(path: Path, option: str) -> None:
    """A run takes minutes: what could not be written at its end is told before it begins."""
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError("is no file in a folder that exists", where=f"{option}: {path}")
    if path.exists() and not path.is_file():
        return  # a pipe, which opening would disturb
    there = path.exists()
    try:
        path.open("a").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=f"{option}: {path}") from None


def _expected(path: Path) -> dict[str, str]:
    from paddock.jsontext import loads, read_text

    found = loads(read_text(path), f"--expected: {path}")
    if not isinstance(found, dict) or not all(isinstance(reason, str) and reason for reason in found.values()):
        raise UsageError("is no object of checks with reasons", where=f"--expected: {path}")
    return found
