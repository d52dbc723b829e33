"""Which nodes make a deployment wrong: found by moving them to the fallbacks, in children, until it agrees.

`paddock bisect` writes a smallest set down as a config; with `"repair": true` a deployment does the same by itself,
says so in its plan, and remembers the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paddock.cache import Store
from paddock.compile import Refused
from paddock.errors import AccuracyRefused, BuildFailed, NotAvailable, PaddockError, RunFailed
from paddock.machine import host_facts
from paddock.placing import Denials
from paddock.plan import Verdict
from paddock.planning.bisection import Oracle, TooManyRunsError, smallest
from paddock.prepare import Prepared
from paddock.references import Reference
from paddock.samples import digest_samples
from paddock.sampling import Samples
from paddock.spi import Event
from paddock.trials import judged_in_children, trial_store
from paddock.verify import Outcome, Report

RUNS = 256
"""How many deployments are tried before the search is given up."""

_SHOWN = 8


@dataclass(frozen=True)
class Culprits:
    """Nodes by the adapter that they are to be kept off, and how they were found."""

    nodes: Mapping[str, tuple[int, ...]]
    runs: int
    problem: str
    """What was wrong before."""

    def denials(self) -> Denials:
        """For planning."""
        reason = Verdict.no(f"kept off by repair: with it, {self.problem}", f"bisection, {self.runs} runs")
        return {adapter: dict.fromkeys(nodes, reason) for adapter, nodes in self.nodes.items()}

    def note(self, prepared: Prepared) -> str:
        """For the plan."""
        nodes = prepared.origin.graph.nodes
        shown = []
        for adapter, found in self.nodes.items():
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            shown.append(f"{', '.join(nodes[n].label for n in found[:_SHOWN])}{more} kept off {adapter}")
        return f"REPAIRED in {self.runs} runs: {'; '.join(shown)}; before: {self.problem}"


def repairable(error: PaddockError) -> bool:
    """Whether moving nodes could help: wrong numbers, or an SDK that fails to build or to run the model."""
    if isinstance(error, AccuracyRefused):
        return isinstance(error.report, Report) and error.report.outcome is Outcome.FAILED
    return isinstance(error, (BuildFailed, RunFailed)) and not isinstance(error, Refused)


def repaired_before(prepared: Prepared, samples: Samples) -> Prepared | None:
    """The plan with the repair that it needed when it was deployed before on this host, if it asks for repair."""
    kept = prepared.registry.store.get("repairs", _key(prepared, samples)) if prepared.config.repair else None
    if kept is None:
        return None
    culprits = Culprits({a: tuple(n) for a, n in kept["nodes"].items()}, kept["runs"], kept["problem"])
    try:
        return _applied(prepared, culprits)
    except NotAvailable:
        return None  # a fallback that helped then is gone


def repair(prepared: Prepared, samples: Samples, error: PaddockError) -> Prepared:
    """The plan with the nodes to blame moved to the fallbacks; raises `error` again where there are none."""
    prepared.tell("searching for the nodes to blame")
    try:
        culprits = search(prepared, samples, error.problem)
        if not culprits.nodes:
            raise BuildFailed("it agrees in a child process: there is nothing to search for")
    except PaddockError as failed:
        error.candidates = (*error.candidates, f"the repair failed: {failed.problem}")
        raise error from failed
    facts = {"nodes": {a: list(n) for a, n in culprits.nodes.items()}, "runs": culprits.runs}
    prepared.registry.observe(Event("repair", prepared.name, facts))
    prepared.registry.store.put("repairs", _key(prepared, samples), {**facts, "problem": culprits.problem})
    return _applied(prepared, culprits)


def search(prepared: Prepared, samples: Samples, problem: str = "") -> Culprits:
    """A smallest set of nodes without which the deployment agrees with the reference.

    First among the nodes of the adapter asked for; where moving them all does not help, among those of every adapter
    but the chain's last. Raises `NotAvailable` where nothing helps.

    Args:
        prepared: The plan that fails; its chain has an adapter to move nodes to.
        samples: What it is judged on.
        problem: What is wrong with it, where that is known; what the first run shows otherwise.
    """
    reference = samples.reference or prepared.reference(samples)
    chain = prepared.job.chain
    runs = 0
    for kept_off in dict.fromkeys((chain[:1], chain[:-1] or chain)):
        attempt = _Attempt(prepared, reference, kept_off, samples.source)
        oracle = Oracle(attempt.agrees, RUNS - runs)
        try:
            found = smallest(attempt.movable(), oracle)
        except TooManyRunsError:
            raise NotAvailable(f"no set of nodes was found to blame in {RUNS} runs") from None
        runs += oracle.runs
        if found is not None:
            nodes = {name: tuple(sorted(found)) for name in kept_off} if found else {}
            return Culprits(nodes, runs, problem or attempt.problem)
    if len(chain) == 1:
        raise NotAvailable(
            f"there is no other adapter in the chain to move nodes to: {chain[0]} stands alone", where="$.fallback",
            remedy="name one that is right: `paddock verify --all` shows which ones are",
        )  # fmt: skip
    raise NotAvailable(
        f"even with all of its nodes on {', '.join(chain[1:])} the model does not agree ({runs} runs)",
        remedy="end the chain with an adapter that is right: `paddock verify --all` shows which ones are",
    )


class _Attempt:
    """Deployments with some nodes kept off some adapters, made and asked in children."""

    def __init__(self, prepared: Prepared, reference: Reference, kept_off: Sequence[str], source: str) -> None:
        self.prepared = prepared
        self.reference = reference
        self.kept_off = kept_off
        self.source = source
        self.problem = ""
        """What the first run that failed showed."""
        self.reason = Verdict.no("kept off for a try", "bisection")

    def movable(self) -> list[int]:
        """The nodes that can be moved: those on these adapters that a later one of the chain takes."""
        with trial_store(self.prepared) as store:
            placed = self._planned(frozenset(), store).plan.placement.nodes
            nodes = [p.node for p in placed if p.adapter in self.kept_off]
            while nodes:
                try:
                    self._planned(frozenset(nodes), store)
                    break
                except NotAvailable as error:
                    stuck = set(error.nodes)
                    if not stuck & set(nodes):
                        raise
                    nodes = [node for node in nodes if node not in stuck]
        return nodes

    def agrees(self, out: frozenset[int]) -> bool:
        """Whether the deployment without these nodes on those adapters builds, runs and agrees."""
        self.prepared.tell(f"trying without {len(out)} nodes on {', '.join(self.kept_off)}")
        problem = self._problem(out)
        self.problem = self.problem or problem
        return not problem

    def _problem(self, out: frozenset[int]) -> str:
        try:
            with trial_store(self.prepared) as store:
                report = judged_in_children(self._planned(out, store), self.reference, self.source)
                return report.reason if report.outcome is Outcome.FAILED else ""
        except (NotAvailable, BuildFailed, RunFailed) as error:
            return error.problem

    def _planned(self, out: frozenset[int], store: Store) -> Prepared:
        denied = {name: dict(nodes) for name, nodes in self.prepared.denied.items()}
        for name in self.kept_off:
            denied.setdefault(name, {}).update(dict.fromkeys(out, self.reason))
        return self.prepared.again(denied, trial=store)


def _applied(prepared: Prepared, culprits: Culprits) -> Prepared:
    denied = {name: dict(nodes) for name, nodes in prepared.denied.items()}
    for adapter, nodes in culprits.denials().items():
        denied.setdefault(adapter, {}).update(nodes)
    return prepared.again(denied, (*prepared.notes, culprits.note(prepared)))


def _key(prepared: Prepared, samples: Samples) -> list[object]:
    """What a repair is kept under: the plan that fails, the chain, and what it is judged on and against."""
    golden = samples.reference
    judged = golden.samples if golden is not None else samples.inputs
    against = [[e.adapter.name(), e.version, dict(prepared.registry.probe(e).versions)] for e in prepared.references()]
    outputs = digest_samples(golden.outputs) if golden is not None else ""
    return [prepared.plan.key, prepared.job.chain, digest_samples(judged), outputs, against, host_facts()]
