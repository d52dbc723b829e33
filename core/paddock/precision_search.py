"""Which nodes have to stay in fp32 for the accuracy budget: as few as can be, weighted by their work.

Each try is a deployment in children, judged on the samples. Nodes are ranked by what was seen of them (which part of
the model moves the error most, which operators are prone to it) and searched by `paddock.planning.fewest`. What was
found is kept, and stands in the plan as the exact list that `operators.keep_fp32` takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from paddock.errors import AccuracyRefused, BuildFailed, NotAvailable, PaddockError, RunFailed
from paddock.graph import Graph, Range
from paddock.host import building
from paddock.lowering import checked_classes
from paddock.machine import host_facts
from paddock.model import origins
from paddock.plan import Means, SearchStep
from paddock.planning import cost
from paddock.planning.bisection import Oracle
from paddock.planning.classes import Role
from paddock.planning.fewest import fewest
from paddock.planning.precision import Keep, portable
from paddock.prepare import Prepared
from paddock.references import Reference
from paddock.samples import Sample, digest_samples
from paddock.sampling import Samples
from paddock.spi import Event
from paddock.trials import judged_in_children, trial_store
from paddock.verify import Outcome, Report, describe_budget

RUNS = 96
"""How many deployments are tried; what has passed by then is taken."""

_BLOCKS = 12
"""Into how many parts a larger model is divided to see which of them moves the error."""

_REASON = "the accuracy budget needs it"


def searchable(prepared: Prepared, error: PaddockError) -> bool:
    """Whether keeping nodes in fp32 could mend what verification found."""
    reduced = prepared.plan.precision.means is not Means.NONE and not prepared.plan.precision.storage
    report = error.report if isinstance(error, AccuracyRefused) else None
    return reduced and isinstance(report, Report) and report.outcome is Outcome.FAILED


def found_before(prepared: Prepared, samples: Samples) -> Prepared | None:
    """The plan with what a search found on this host before, for the same model, samples and budget."""
    plan = prepared.plan.precision
    if prepared.keep.exact or plan.means is Means.NONE or plan.storage:
        return None
    kept = prepared.registry.store.get("kept-in-fp32", _key(prepared, samples))
    if kept is None:
        return None
    steps = tuple(SearchStep(**step) for step in kept["steps"])
    return prepared.keeping(_keep(kept["nodes"], steps))


def as_deployed(prepared: Prepared) -> Prepared:
    """The plan with what a search found before, where there was one: for those who only look at it."""
    if prepared.plan.precision.means is Means.NONE or prepared.config.accuracy.verify == "off":
        return prepared
    with prepared.config.named():
        return found_before(prepared, prepared.samples()) or prepared


def search(prepared: Prepared, samples: Samples, error: PaddockError) -> Prepared:
    """The plan with as few nodes in fp32 as the budget needs; raises `error` again, with the reason, where none helps.

    Where the config's list is exact, it is not changed: `error` then names the nodes that need fp32 beside it.
    """
    if prepared.keep.searched:  # what was found before does not do any more
        prepared = prepared.keeping(Keep())
    prepared.tell("searching for what has to stay in fp32")
    reference = samples.reference or prepared.reference(samples)
    attempt = _Search(prepared, reference, samples.source)
    nodes = attempt.run()
    if nodes is None:
        asked = prepared.config.precision
        error.candidates = (*error.candidates, f"no node could be left in {asked}: even a few are out of the budget")
        error.remedy = "set precision to fp32, or widen the budget (accuracy)"
        raise error
    listed = portable(prepared.origin, nodes)
    if prepared.keep.exact:
        error.candidates = (*error.candidates, *(f"{name} needs fp32: {_REASON}" for name in listed))
        error.remedy = "leave operators.keep_fp32 out to have them kept, or add these to it"
        raise error
    steps = tuple(attempt.steps)
    prepared.registry.observe(Event("precision", prepared.name, {"keep_fp32": listed, "runs": len(steps)}))
    kept = {"nodes": sorted(nodes), "steps": [asdict(step) for step in steps]}
    prepared.registry.store.put("kept-in-fp32", _key(prepared, samples), kept)
    return prepared.keeping(_keep(nodes, steps))


class _Search:
    """The tries of one search."""

    def __init__(self, prepared: Prepared, reference: Reference, source: str) -> None:
        self.prepared = prepared
        self.reference = reference
        self.source = source
        self.steps: list[SearchStep] = []
        graph = _fixed(prepared.origin.graph, reference.samples[0])
        self.work = {node.index: cost.work(graph, node) for node in graph.nodes}
        self.total = sum(self.work.values()) or 1.0
        # Nodes that only hand values on go with their neighbours, except where quantisers round what they read.
        transparent = prepared.registry.formats[prepared.origin.format].transparent
        if prepared.plan.precision.means is Means.QUANTIZE:
            transparent = frozenset()
        self.movable = [
            node.node
            for node in prepared.plan.precision.nodes
            if node.dtype not in ("", "float32") and node.op not in transparent
        ]

    def run(self) -> frozenset[int] | None:
        """The nodes to keep beside those that are; None where no set leaves any node narrow."""
        self.oracle = Oracle(self._passes, RUNS)
        found = fewest(self._ranked(), self.work, self.oracle)
        found |= frozenset(self.prepared.keep.nodes)
        return None if found >= frozenset(self.movable) else found

    def _ranked(self) -> Sequence[int]:
        """The movable nodes, the most suspicious first: by the part of the model that they are in, then by class."""
        roles = _roles(self.prepared)
        gain: Mapping[int, float] = {}
        if len(self.movable) > 2 * _BLOCKS:
            gain = self._gains()
        rank = {Role.DENY: 0, Role.INFER: 1, Role.ALLOW: 2}
        return sorted(self.movable, key=lambda n: (-gain.get(n, 0.0), rank[roles.get(n, Role.INFER)], n))

    def _gains(self) -> dict[int, float]:
        """By node, how much smaller the error is with the node's part of the model in fp32."""
        size = -(-len(self.movable) // _BLOCKS)
        found = {}
        self.oracle(frozenset())
        before = self._figure()
        for start in range(0, len(self.movable), size):
            block = self.movable[start : start + size]
            self.oracle(frozenset(block))
            found.update(dict.fromkeys(block, before - self._figure()))
        return found

    def _figure(self) -> float:
        """How bad the last try was, the error or what lacks of agreement; a large number where it has none."""
        step = self.steps[-1]
        worst = 1e9
        return worst if step.error is None else step.error if step.agreement is None else 1 - step.agreement

    def _passes(self, kept: frozenset[int]) -> bool:
        share = sum(self.work[node] for node in kept) / self.total
        self.prepared.tell(f"try {len(self.steps) + 1}: {len(kept)} of {len(self.movable)} nodes in fp32")
        error: float | None = None
        agreement, met, problem = None, False, ""
        try:
            with trial_store(self.prepared) as store:
                nodes = {**self.prepared.keep.nodes, **dict.fromkeys(kept, _REASON)}
                planned = self.prepared.keeping(Keep(nodes, self.prepared.keep.exact), store)
                report = judged_in_children(planned, self.reference, self.source, whole=True)
                agreements = [o.agreement for o in report.outputs if o.agreement is not None]
                error = report.error if report.error is not None and math.isfinite(report.error) else None
                agreement, met = min(agreements, default=None), report.outcome is not Outcome.FAILED
        except (NotAvailable, BuildFailed, RunFailed) as failed:
            problem = failed.problem
        self.steps.append(SearchStep(len(kept), share, error, agreement, met, problem))
        return met


def _fixed(graph: Graph, sample: Sample) -> Graph:
    """The graph with its open dimensions as a sample has them, so that the work of its nodes can be told."""
    bounds: dict[str, Range] = {}
    for value in graph.input_values:
        for dim, extent in zip(value.shape or (), np.shape(sample[value.name]), strict=False):
            if isinstance(dim, str):
                bounds[dim] = Range(extent, extent, extent)
    return graph.with_bounds(bounds)


def _roles(prepared: Prepared) -> dict[int, Role]:
    """The class of each of the user's nodes: the most suspicious of the operators that were made of it."""
    found: dict[int, Role] = {}
    for part in prepared.parts:
        adapter = part.workshop.adapter()
        name = part.workshop.name
        classes = checked_classes(name, building(f"{name}: operator classes", adapter.operator_classes))
        for node in part.target.graph.nodes:
            role = classes.role(node.type)
            for index in origins(part.target, node.index, prepared.origin):
                if role is Role.DENY or index not in found or (role is Role.ALLOW and found[index] is Role.INFER):
                    found[index] = role
    return found


def _keep(nodes: Sequence[int] | frozenset[int], steps: tuple[SearchStep, ...]) -> Keep:
    return Keep(dict.fromkeys(sorted(nodes), _REASON), False, steps)


def _key(prepared: Prepared, samples: Samples) -> list[object]:
    """What a search is kept under: the plan without what it found, and what it is judged by and calibrated on."""
    golden = samples.reference
    outputs = digest_samples(golden.outputs) if golden is not None else ""
    return [
        prepared.plan.key, prepared.job.chain, describe_budget(prepared.config), digest_samples(samples.judged),
        outputs, digest_samples(prepared.job.calibration), host_facts(),
    ]  # fmt: skip
