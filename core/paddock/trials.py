"""Deployments tried out in child processes: once before they are loaded, or many in search of one that agrees."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from paddock.cache import Store
from paddock.compile import Refused, blamed, tried
from paddock.errors import NotAvailable
from paddock.flow import Flow, run_through
from paddock.host import ExecutionHost, Outputs
from paddock.model import origins
from paddock.plan import Verdict
from paddock.prepare import Prepared
from paddock.references import Reference
from paddock.samples import Sample
from paddock.spi import Artifact
from paddock.verify import Outcome, Report, compare

REPLANS = 16
"""How often a plan is made anew because an SDK refused nodes only when it compiled them."""


@contextmanager
def trial_store(prepared: Prepared) -> Iterator[Store]:
    """For the models that one try is made of: each holds weights, and no other try has the same."""
    with tempfile.TemporaryDirectory(dir=prepared.job.work, prefix="trial-") as folder:
        yield Store(Path(folder))


def judged_in_children(prepared: Prepared, reference: Reference, source: str, whole: bool = False) -> Report:
    """The report on a plan that is carried out in children only: up to the first sample that fails, or the whole.

    Raises `BuildFailed` or `RunFailed` where it cannot be, `NotAvailable` where SDKs go on refusing nodes.
    """
    for _ in range(REPLANS):
        try:
            with tried(prepared.plan, prepared.parts, keep=prepared.trial is None) as (_, hosts):
                asked = reference.samples[: reference.judged]
                answers = []
                for sample in asked:
                    answers.append(_answer(prepared, hosts, sample))
                    if whole and len(answers) < len(asked):
                        continue
                    report = compare(reference, answers, prepared.config, source)
                    if report.outcome is Outcome.FAILED:
                        break
            return report
        except Refused as refused:
            prepared = replanned(prepared, refused)
    raise NotAvailable("an SDK refused other nodes each time")


def try_out(prepared: Prepared, samples: Sequence[Sample]) -> list[Artifact]:
    """The artifacts of a plan, compiled, loaded and run on the first of `samples` in children."""
    with tried(prepared.plan, prepared.parts) as (artifacts, hosts):
        for sample in samples[:1]:
            _answer(prepared, hosts, sample)
    return artifacts


def _answer(prepared: Prepared, hosts: Sequence[ExecutionHost], sample: Sample) -> Outputs:
    if len(prepared.parts) == 1:
        with blamed(prepared.parts[0]):
            return prepared.translation.answer(hosts[0].run, sample)
    flow = Flow.of(prepared.parts, prepared.origin.graph)
    return prepared.translation.answer(lambda feeds: run_through(flow, hosts, feeds), sample)


def replanned(prepared: Prepared, refused: Refused) -> Prepared:
    """The plan made anew without the nodes that an SDK refused; raises `NotAvailable` where nobody else takes them."""
    part, origin = refused.part, prepared.origin
    nodes = {found for node in refused.nodes for found in origins(part.target, node, origin)}
    own = nodes & set(part.segment.nodes) or set(part.segment.nodes)
    if not prepared.config.fallback:
        raise NotAvailable(
            refused.problem, candidates=refused.candidates, remedy='name adapters for single nodes in "fallback"'
        ) from refused
    reason = Verdict.no(refused.problem, f"{part.workshop.name}, while compiling")
    denied = {name: dict(found) for name, found in prepared.denied.items()}
    denied.setdefault(part.workshop.name, {}).update(dict.fromkeys(own, reason))
    return prepared.again(denied, prepared.notes)
