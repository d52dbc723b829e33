"""Asks the adapters of a chain who runs what, places the model, cuts it, and asks again about each piece.

An adapter is first asked about the whole model. What it then gets may be a part of it, whose border no whole model
shows: a value that the SDK cannot exchange, a shape that is now open, a node behind one that hid it. So each adapter is
asked again about exactly the segment that it would get, and a node refused there goes to the next adapter. Every round
refuses at least one more node to one adapter, so the rounds end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from paddock.cache import Store
from paddock.child import Children
from paddock.errors import NotAvailable, PaddockError, Unsupported
from paddock.lowering import Lowered, Lowering
from paddock.model import Model, origins
from paddock.plan import Answer, Placement, Precision, Remedy, Segment, Verdict
from paddock.planning.operators import Candidate, place, units
from paddock.planning.verifier import verify_placement
from paddock.reading import adapted, extracted
from paddock.registry import Registry
from paddock.workshop import Part, Workshop, defects, select

Denials = Mapping[str, Mapping[int, Verdict]]
"""By adapter, the nodes that are kept off it, and why."""

_ROUNDS = 64
_PINS = 16


@dataclass(frozen=True)
class Link:
    """One adapter of the chain; `open` raises `PaddockError` where it is not to be had."""

    name: str
    open: Callable[[], Workshop]


@dataclass(frozen=True)
class Placed:
    """A placement and its segments, each in its adapter's format; `absent` are fallbacks that are not to be had."""

    placement: Placement
    parts: tuple[Part, ...]
    absent: Mapping[str, str]
    remedies: tuple[Remedy, ...] = ()
    """What the adapters asked know to be wrong with their SDKs, each defect once, with all its nodes."""


def place_model(
    model: Model,
    chain: Sequence[Link],
    denied: Denials,
    registry: Registry,
    children: Children,
    lower: Lowering,
    trial: Store | None = None,
) -> Placed:
    """The placement of `model` on `chain`, fallbacks asked only as far as they are needed.

    Each adapter is asked about, and given, the model in the precision it is to compute in: see `Lowering`.

    The segments of a trial are kept in a store of its own. No node is moved for its cost where any is denied to an
    adapter: what was asked for, or tried, is then what runs.

    Raises `NotAvailable` where nodes are left that nobody takes; what opening or asking the first adapter raises comes
    through where there is no other.
    """
    return _Placer(model, chain, denied, registry, children, lower, trial).run()


class _Placer:
    def __init__(
        self,
        model: Model,
        chain: Sequence[Link],
        denied: Denials,
        registry: Registry,
        children: Children,
        lower: Lowering,
        trial: Store | None,
    ) -> None:
        self.lower = lower
        self.trial = trial
        self.trim = trial is None and not any(denied.values())
        self.model = model
        self.chain = chain
        self.registry = registry
        self.children = children
        self.constants = registry.formats[model.format].constants
        self.units = units(model.graph)
        self.denied: dict[str, dict[int, Verdict]] = {link.name: dict(denied.get(link.name, {})) for link in chain}
        self.workshops: dict[str, Workshop] = {}
        self.answers: dict[str, Sequence[Verdict]] = {}
        self.absent: dict[str, str] = {}
        self.whole: dict[str, Part] = {}
        """By adapter, the whole model as one segment, where it could be asked about."""
        self.pieces: dict[tuple[str, Segment], Part] = {}

    def run(self) -> Placed:
        for _ in range(_ROUNDS):
            placement = place(self.model.graph, self._candidates(), self.constants, self._remedy(), self.trim)
            parts = [self._part(segment) for segment in placement.segments]
            found = [part for part in parts if part is not None]
            if len(found) == len(parts):
                verify_placement(self.model.graph, placement, self.constants)
                return Placed(placement, tuple(found), self.absent, self._remedies(found))
        raise NotAvailable(
            f"the model could not be placed in {_ROUNDS} rounds",
            candidates=[f"{name}: {len(nodes)} nodes refused so far" for name, nodes in self.denied.items()],
            remedy="keep the operators that are refused one after another off the adapter: operators.exclude",
        )

    def _candidates(self) -> list[Candidate]:
        """The chain as far as it is needed: whoever comes after all nodes have somebody is not asked.

        Nodes that have to stay together need somebody who takes all of them.
        """
        found: list[Candidate] = []
        left = set(range(len(self.model.graph.nodes)))
        apart = self.units
        for link in self.chain:
            if found and not left and not apart:
                break
            verdicts = list(self._asked(link))
            for node, verdict in self.denied[link.name].items():
                verdicts[node] = verdict
            workshop = self.workshops.get(link.name)
            far = workshop is not None and workshop.resolved.device.memory_kind != "host"
            found.append(Candidate(link.name, verdicts, far))
            left = {node for node in left if not verdicts[node].usable}
            apart = [unit for unit in apart if not all(verdicts[node].usable for node in unit)]
        return found

    def _asked(self, link: Link) -> Sequence[Verdict]:
        """The adapter's verdicts about the whole model, asked once."""
        if link.name not in self.answers:
            try:
                self.answers[link.name] = self._ask(link)
            except PaddockError as error:
                if link is self.chain[0]:
                    raise
                self.absent[link.name] = error.problem
                self.answers[link.name] = self._nobody(Verdict.no(error.problem, "the config's fallback"))
        return self.answers[link.name]

    def _ask(self, link: Link) -> Sequence[Verdict]:
        workshop = self.workshops[link.name] = link.open()
        try:
            target = adapted(self.model, workshop.resolved.registered.adapter, self.registry, self.children)
        except Unsupported as error:
            if len(self.chain) == 1:
                raise NotAvailable(error.problem, where=error.where, remedy=error.remedy) from error
            rest = Verdict.provisional("the model as a whole cannot be converted; its parts may", "the conversion")
            reason = Verdict.no(error.problem, "the conversion")
            return [reason if node.index in error.nodes else rest for node in self.model.graph.nodes]
        except NotAvailable as error:
            if len(self.chain) == 1:
                raise
            # Which node it is, it does not say: each segment is tried by itself.
            return self._nobody(Verdict.provisional(f"as a whole: {error.problem}", "the conversion"))
        part = self._examined(self._all(link.name), workshop, target)
        self.whole[link.name] = part
        return _traced(part, self.model)[0]

    def _part(self, segment: Segment) -> Part | None:
        """The segment in its adapter's format; None where the adapter then refuses some of its nodes."""
        whole = segment.nodes == tuple(range(len(self.model.graph.nodes)))
        key = (segment.adapter, replace(segment, index=0))
        part = self.whole.get(segment.adapter) if whole else self.pieces.get(key)
        if part is None:
            part = self._cut(segment)
        if part is None:
            return None
        verdicts, blanket = _traced(part, self.model)
        no = {node: verdicts[node] for node in segment.nodes if not verdicts[node].usable}
        if no or blanket:
            self._refuse(segment, no, blanket)
            return None
        self.pieces[key] = part
        return replace(part, segment=segment)

    def _cut(self, segment: Segment) -> Part | None:
        workshop = self.workshops[segment.adapter]
        source = extracted(self.model, segment, self.registry, self.children, self.trial)
        try:
            adapter = workshop.resolved.registered.adapter
            target = adapted(source, adapter, self.registry, self.children, self.trial)
        except Unsupported as error:
            reason = Verdict.no(error.problem, "the conversion")
            refused = [found for node, found in enumerate(source.provenance) if node in error.nodes]
            self._refuse(segment, {i: reason for found in refused for i in found}, error.problem)
            return None
        except NotAvailable as error:
            self._refuse(segment, {}, error.problem)
            return None
        return self._examined(segment, workshop, target)

    def _refuse(self, segment: Segment, nodes: Mapping[int, Verdict], blanket: str) -> None:
        """Remembers what an adapter does not take: these nodes or, where it cannot be told, the segment."""
        own = {node: verdict for node, verdict in nodes.items() if node in set(segment.nodes)}
        self.denied[segment.adapter].update(
            own or {node: Verdict.no(f"in this segment: {blanket}", "asking again") for node in segment.nodes}
        )

    def _examined(self, segment: Segment, workshop: Workshop, given: Model) -> Part:
        """The segment as the adapter gets it, with its verdicts: nodes that it refuses narrow are left in fp32."""
        whole = len(segment.nodes) == len(self.model.graph.nodes)
        pinned: dict[int, str] = {}
        for _ in range(_PINS):
            lowered = self.lower(workshop, given, whole, pinned)
            verdicts, remedies = self._verdicts(workshop, lowered.model)
            refused = {node: verdicts[node] for node in lowered.narrow if not verdicts[node].usable}
            if not refused:
                break
            pinned.update(
                (found, f"{workshop.name} does not take it narrow: {verdict.reason}")
                for node, verdict in refused.items()
                for found in lowered.model.provenance[node]
            )
        if lowered.plan.keep_fp32 and Precision.FP32 not in workshop.resolved.registered.adapter.precisions:
            self._wide(workshop, lowered, verdicts)
        found = _numbered(remedies, lowered.model, self.model)
        return Part(segment, workshop, lowered.model, tuple(verdicts), found, lowered.plan, lowered.nodes, whole)

    def _wide(self, workshop: Workshop, lowered: Lowered, verdicts: list[Verdict]) -> None:
        """Refuses what has to stay in fp32 for an adapter that does not compute in it."""
        kept = set(lowered.plan.keep_fp32)
        for node in lowered.model.graph.nodes:
            hit = origins(lowered.model, node.index, self.model) & kept
            if hit:
                why = lowered.nodes[min(hit)].reason if min(hit) in lowered.nodes else "kept by the config"
                verdicts[node.index] = Verdict.no(
                    f"it has to stay in fp32, in which {workshop.name} does not compute: {why}", "precision"
                )

    def _verdicts(self, workshop: Workshop, target: Model) -> tuple[list[Verdict], tuple[Remedy, ...]]:
        """The adapter's verdicts on a segment, with the nodes that its known defects keep off it."""
        verdicts = list(select(workshop, target).verdicts)
        if len(verdicts) != len(target.graph.nodes):
            raise NotAvailable(
                f"{workshop.name} gave {len(verdicts)} verdicts for {len(target.graph.nodes)} nodes",
                remedy="report this to the plugin's author: select_operators must answer for every node",
            )
        remedies = defects(workshop, target)
        strange = sorted({n for remedy in remedies for n in remedy.nodes} - set(range(len(verdicts))))
        if strange:
            raise NotAvailable(
                f"{workshop.name} knows defects of nodes {strange}, and was asked about {len(verdicts)} nodes",
                remedy="report this to the plugin's author: known_defects must name nodes of the model it is given",
            )
        for remedy in remedies:
            if remedy.applied:
                nodes: Sequence[int] = range(len(verdicts)) if remedy.refuses else remedy.nodes
                for node in nodes:
                    verdicts[node] = Verdict.no(remedy.summary, f"known defect {remedy.name}")
        return verdicts, remedies

    def _remedies(self, parts: Sequence[Part]) -> tuple[Remedy, ...]:
        found: dict[tuple[str, bool], Remedy] = {}
        for part in (*self.whole.values(), *parts):
            for remedy in part.remedies:
                key = (remedy.name, remedy.applied)
                nodes = found[key].nodes if key in found else ()
                found[key] = replace(remedy, nodes=tuple(sorted({*nodes, *remedy.nodes})))
        return tuple(found.values())

    def _all(self, adapter: str) -> Segment:
        graph = self.model.graph
        return Segment(0, adapter, tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)

    def _nobody(self, verdict: Verdict) -> list[Verdict]:
        return [verdict] * len(self.model.graph.nodes)

    def _remedy(self) -> str | None:
        if self.absent:
            return "; ".join(f"{name} is not to be had: {reason}" for name, reason in self.absent.items())
        if len(self.chain) == 1:
            return (
                'name adapters for single nodes in "fallback", or choose a backend that runs them '
                "(`paddock verify --all` tries every one that is here)"
            )
        return 'end "fallback" with an adapter that takes them; `paddock adapters` lists what is here'


def _traced(part: Part, root: Model) -> tuple[list[Verdict], str]:
    """The verdicts on a part by the nodes of `root`, the worst where there are several; and why the whole part is
    refused, where a node is that nobody can be blamed for."""
    worst: dict[int, Verdict] = {}
    blanket = ""
    for node, verdict in zip(part.target.graph.nodes, part.verdicts, strict=True):
        found = origins(part.target, node.index, root)
        if not found and not verdict.usable:
            blanket = f"{node.label}, which the conversion makes: {verdict.reason}"
        for index in found:
            if index not in worst or _GRAVITY[verdict.answer] > _GRAVITY[worst[index].answer]:
                worst[index] = verdict
    gone = Verdict.yes(f"nothing is left of it in {part.target.format}", "the conversion")
    traced = [worst.get(node.index, gone) for node in root.graph.nodes]
    if blanket and len(part.segment.nodes) == len(root.graph.nodes):
        # About the whole model this is no last word: the segment that it will be in is asked about again.
        doubt = Verdict.provisional(blanket, "the conversion")
        traced = [doubt if verdict.usable else verdict for verdict in traced]
    return traced, blanket


_GRAVITY = {Answer.YES: 0, Answer.PROVISIONAL: 1, Answer.NO: 2}


def _numbered(remedies: Sequence[Remedy], target: Model, root: Model) -> tuple[Remedy, ...]:
    """Remedies with the nodes of `root` instead of those of `target`."""
    return tuple(
        replace(remedy, nodes=tuple(sorted({i for node in remedy.nodes for i in origins(target, node, root)})))
        for remedy in remedies
    )
