"""What a run of the kit certifies: versions, device, every check, the operators, and what nobody could prove."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from paddock import __version__
from paddock.machine import cpu
from paddock.registry import Registered, Registry
from paddock.testing.outcomes import Area, Outcome, Result, counted, judged

OPERATOR, MODEL = f"{Area.OPERATORS}.", f"{Area.MODELS}."


@dataclass(frozen=True)
class Certificate:
    """The outcome of one run, as plain data.

    `subject` says what was tested (adapter, distribution and version with the digest of its sources, SDK versions),
    `host` and `device` on what, the first of `devices`; `references` who judged it, by format, in the order in which
    they are asked. `whole` is False where only some checks were asked for.
    """

    adapter: str
    made: str
    quick: bool
    whole: bool
    subject: Mapping[str, str]
    declared: Mapping[str, Any]
    device: str
    devices: tuple[str, ...]
    references: Mapping[str, tuple[str, ...]]
    host: Mapping[str, str]
    results: tuple[Result, ...]
    expected: Mapping[str, str] = field(default_factory=dict)
    unexpected: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether nothing failed, crashed or hung that was not expected to, and the other way round; and it served."""
        return not (self.unexpected or self.stale or self.unknown or self.idle)

    @property
    def conforms(self) -> bool:
        """Whether all of the checks were asked for, and what was promised was kept, but for what was expected."""
        return self.whole and self.kept

    @property
    def failing(self) -> tuple[str, ...]:
        """What is bad as expected, with how where that is worse than failing."""
        bad = (r for r in self.results if r.outcome.bad and r.check in self.expected)
        return tuple(r.check if r.outcome is Outcome.FAILED else f"{r.check} ({r.outcome})" for r in bad)

    @property
    def verdict(self) -> str:
        """What came of it, in a line; nothing that is not whole is called conformance."""
        against = (*self.unexpected, *self.stale, *self.unknown, *(("it served no model here",) if self.idle else ()))
        if against:
            return f"does not conform: {', '.join(against)}"
        n, known = len(self.failing), ", ".join(self.failing)
        but = f" but for {n} expected failure{'s' if n > 1 else ''}: {known}" if n else ""
        return f"conforms{but}" if self.whole else f"no certificate: some checks only, all kept{but}"

    @property
    def idle(self) -> bool:
        """Whether all that was asked for was asked in vain: no model was served, which proves nothing."""
        served = any(r.check == f"{MODEL}any" and r.outcome is Outcome.PASSED for r in self.results)
        return self.whole and not served

    @property
    def operators(self) -> dict[str, str]:
        """By operator: native, refused, skipped, or what went wrong."""
        return _ways(self.results, OPERATOR, without=("unknown", "onnx_cases"))

    @property
    def models(self) -> dict[str, str]:
        """The same by whole model."""
        return _ways(self.results, MODEL, without=("any", "repeats"))

    @property
    def matrix(self) -> Mapping[str, Mapping[str, int]]:
        """ONNX's own node cases by operator and way, where they were run."""
        return next((r.matrix for r in self.results if r.matrix), {})

    @property
    def unproven(self) -> dict[str, tuple[str, ...]]:
        """By check the claims that it could neither confirm nor refute."""
        return {r.check: r.unproven for r in self.results if r.unproven}

    def to_json(self) -> dict[str, Any]:
        """The certificate as plain JSON data."""
        return {
            "certificate": 1,
            "adapter": self.adapter,
            "conforms": self.conforms,
            "verdict": self.verdict,
            "made": self.made,
            "run": {"quick": self.quick, "whole": self.whole},
            "subject": dict(self.subject),
            "declared": dict(self.declared),
            "device": self.device,
            "devices": list(self.devices),
            "references": {format: list(names) for format, names in self.references.items()},
            "host": dict(self.host),
            "counts": counted(self.results),
            "areas": {a.value: counted(r for r in self.results if r.area is a) for a in _areas(self.results)},
            "operators": self.operators,
            "models": self.models,
            "onnx_cases": {operator: dict(ways) for operator, ways in self.matrix.items()},
            "unproven": {check: list(claims) for check, claims in self.unproven.items()},
            "expected": dict(self.expected),
            "unexpected": list(self.unexpected),
            "idle": self.idle,
            "stale": list(self.stale),
            "unknown": list(self.unknown),
            "checks": [result.to_json() for result in self.results],
        }


def certify(
    registered: Registered,
    registry: Registry,
    results: Sequence[Result],
    known: Sequence[str],
    *,
    expected: Mapping[str, str] | None = None,
    quick: bool = True,
    whole: bool = True,
) -> Certificate:
    """The certificate of a run: `results` of the checks of an adapter, `known` the names of all that there are."""
    adapter, probe = registered.adapter, registry.probe(registered)
    found = registry.devices(registered, probe)
    judgement = judged(results, expected or {}, known)
    processor, flags = cpu()
    versions = {name: str(version) for name, version in probe.versions.items()}
    facts = {name: str(fact) for name, fact in found.facts.items()}
    plugin = {registered.distribution: f"{registered.version}+{registered.sources}"}
    return Certificate(
        adapter=adapter.name(),
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        quick=quick,
        whole=whole,
        subject={"paddock": __version__, **plugin, **versions, **facts},
        declared={
            "formats": list(adapter.formats),
            "precisions": sorted(p.value for p in adapter.precisions),
            "shapes": adapter.shapes.value,
            "threading": adapter.concurrency.threading.value,
            "shares_weights": adapter.concurrency.shares_weights,
            "process": adapter.process.value,
            "options": sorted(adapter.Options.model_fields),
        },
        device=found.devices[0].name if found.devices else "no device",
        devices=tuple(
            f"{d.name}: {', '.join(p.value for p, v in d.precisions.items() if v.usable)}{_NOT_TESTED if i else ''}"
            for i, d in enumerate(found.devices)
        ),
        references={format: _references(registered, registry, format) for format in adapter.formats},
        host={
            "processor": processor,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": platform.python_version(),
            "flags": " ".join(flags),
        },
        results=tuple(results),
        expected={n: r for n, r in (expected or {}).items() if n in {result.check for result in results}},
        unexpected=tuple(r.check for r in judgement.unexpected),
        stale=tuple(r.check for r in judgement.stale),
        unknown=judgement.unknown,
    )


_NOT_TESTED = " (not tested)"


def _references(tested: Registered, registry: Registry, format: str) -> tuple[str, ...]:
    """Who judges models of a format, with what brings them; an adapter itself only where there is nobody else."""
    found = [entry for entry in registry.references(format) if entry.adapter is not tested.adapter]
    return tuple(
        f"{e.adapter.name()} ({', '.join([f'{e.distribution} {e.version}', *_versions(registry, e)])})"
        + (", of the same distribution" if e.distribution == tested.distribution else "")
        for e in found
    ) or ("nobody but itself" if format in tested.adapter.references else "nobody",)


def _versions(registry: Registry, entry: Registered) -> list[str]:
    return [f"{name} {version}" for name, version in registry.probe(entry).versions.items()]


def _areas(results: Sequence[Result]) -> list[Area]:
    return list(dict.fromkeys(result.area for result in results))


def _ways(results: Sequence[Result], prefix: str, without: Sequence[str]) -> dict[str, str]:
    found = {}
    for result in results:
        name = result.check.removeprefix(prefix)
        if result.check.startswith(prefix) and name not in without:
            native = {Outcome.PASSED: "native", Outcome.FAILED: "wrong"}.get(result.outcome, result.outcome.value)
            found[name] = "refused" if result.refused else native
    return found


_STYLE = """
:root { color-scheme: light dark; font: 14px/1.5 system-ui, sans-serif; }
body { max-width: 1100px; margin: 0 auto; padding: 24px; }
h1 { margin: 0; font-size: 26px; } h2 { margin: 28px 0 8px; font-size: 17px; }
.verdict { font-size: 18px; margin: 8px 0 16px; }
table { border-collapse: collapse; width: 100%; }
td { text-align: left; vertical-align: top; padding: 3px 10px 3px 0;
  border-bottom: 1px solid color-mix(in srgb, currentColor 15%, transparent); overflow-wrap: anywhere; }
td:first-child { white-space: nowrap; }
.passed, .native, .yes { color: #0b7a4f; } .failed, .crashed, .hung, .wrong, .no { color: #c0341d; font-weight: 600; }
.skipped, .refused, .partly { color: #8a6d1a; } .small { opacity: .7; }
ul.grid { columns: 4; padding: 0; list-style: none; margin: 0; }
@media (prefers-color-scheme: dark) { .passed, .native, .yes { color: #4fd1a5; } .failed, .crashed, .hung, .wrong, .no
  { color: #ff7a62; } .skipped, .refused, .partly { color: #f0c05a; } }
"""


def html(certificate: Certificate) -> str:
    """The certificate as one self-contained page: no script, nothing is fetched."""
    c = certificate
    color = "no" if not c.kept else "yes" if c.conforms and not c.failing else "partly"
    scope = ("quick" if c.quick else "full") + ("" if c.whole else ", only some of the checks")
    counts = ", ".join(f"{n} {way}" for way, n in counted(c.results).items() if n)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
        f"<title>{_text(c.adapter)} on {_text(c.device)} - Paddock conformance</title>\n",
        f"<style>{_STYLE}</style>\n</head>\n<body>\n",
        f"<h1>{_text(c.adapter)} on {_text(c.device)}</h1>\n",
        f'<p class="verdict {color}">{_text(c.verdict)}</p>\n',
        f'<p class="small">{_text(c.made)}, {_text(scope)}: {_text(counts)}</p>\n',
    ]
    told = (c.subject, c.declared, c.references, c.host)
    for title, facts in zip(("What was tested", "What it declares", "Judged by", "On what"), told, strict=True):
        parts.append(f"<h2>{title}</h2>\n{_rows((k, v) for k, v in facts.items())}")
    parts.append("<ul>" + "".join(f"<li>{_text(device)}</li>" for device in c.devices) + "</ul>\n")
    for title, ways in (("Operators", c.operators), ("Models", c.models)):
        if ways:
            cells = "".join(f'<li><span class="{way}">{way}</span> {_text(name)}</li>' for name, way in ways.items())
            parts.append(f'<h2>{title}</h2>\n<ul class="grid">{cells}</ul>\n')
    if c.matrix:
        ways_of = ((op, ", ".join(f"{n} {way}" for way, n in ways.items())) for op, ways in sorted(c.matrix.items()))
        parts.append(f"<h2>ONNX's own node cases</h2>\n{_rows(ways_of)}")
    if c.unproven:
        rows = ((check, "; ".join(claims)) for check, claims in c.unproven.items())
        parts.append(f"<h2>Claims that nobody could prove</h2>\n{_rows(rows)}")
    for area in _areas(c.results):
        parts.append(f"<h2>{area.value.replace('_', ' ')}</h2>\n<table>\n")
        for r in (result for result in c.results if result.area is area):
            why = f"expected: {c.expected[r.check]}; {r.reason}" if r.check in c.expected else r.reason
            parts.append(
                f'<tr><td class="{r.outcome}">{r.outcome}</td><td>{_text(r.check)}<br><span class="small">'
                f"{_text(r.promise)}</span></td><td>{_text(why)}</td></tr>\n"
            )
        parts.append("</table>\n")
    return "".join((*parts, "</body>\n</html>\n"))


def _rows(facts: Any) -> str:
    cells = "".join(f"<tr><td>{_text(name)}</td><td>{_text(fact)}</td></tr>\n" for name, fact in facts)
    return f"<table>\n{cells}</table>\n"


def _text(value: object) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in shown), quote=True)
