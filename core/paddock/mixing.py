"""Whether several adapters together serve a model faster than the best alone: pieces and borders, measured.

Every time is that of an ordinary deployment of a part of the model, unverified: each piece, and each two neighbours as
one part, on every adapter in a process of its own; and each two neighbours on two adapters, in a process that holds
both runtimes, as the whole would. What a border costs is what two neighbours take beyond their pieces: copies, layouts
and what two runtimes in one process do to each other are all in it. The answer is an ordinary config, to be verified
and measured as a whole like any other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.errors import NotAvailable, PaddockError
from paddock.graph import Graph, Shape, Value
from paddock.machine import memory_available
from paddock.mixing_parts import Bench, Part
from paddock.model import Model
from paddock.plan import Placement, Precision, Segment
from paddock.planning import mixing as planning
from paddock.planning.partition import Partitioner, Piece
from paddock.planning.shapes import apply_shapes
from paddock.prepare import Progress
from paddock.reading import extracted, open_model, shapes_at
from paddock.registry import Registry
from paddock.samples import Sample

ROUNDS = 10
SWEEP_SECONDS = 0.25
"""How long one process measures before it is the next one's turn."""
WORTH = 0.98
"""A mix is tried where it is predicted to take less than this share of the best single adapter's time."""
_TIME_UP = "the time was up before all parts were deployed"
_COPIES = 2.0
"""What runtimes take for weights, in times of these, roughly."""
_OF_THE_WHOLE = frozenset(
    {"operators", "shapes", "batch_size", "accuracy", "memory", "candidates", "fallback", "repair"}
)
"""What a config states of the whole model, and not of its parts."""

Owned = Sequence[tuple[str, Collection[int]]]
"""Adapters with the nodes that they are to run."""


@dataclass(frozen=True)
class Mixed:
    """What came of mixed placement: `config`, where a mix is predicted to be faster, and the evidence.

    Times are in milliseconds. `alone` is what the same figures predict of each adapter by itself; `refused` says why
    parts did not run; `segments` is what the config is meant to become, without constants.
    """

    reason: str
    label: str = ""
    """The candidate that it became."""
    config: Mapping[str, Any] | None = None
    adapters: tuple[str, ...] = ()
    """Who is to run each piece."""
    predicted: float | None = None
    alone: Mapping[str, float] = field(default_factory=dict)
    pieces: tuple[Mapping[str, Any], ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    segments: tuple[tuple[str, tuple[int, ...]], ...] = ()
    seconds: float = 0.0

    def differs(self, placement: Placement) -> str:
        """What a placement has else than was meant, "" where nothing."""
        known = {node for _, nodes in self.segments for node in nodes}
        found = {(s.adapter, tuple(n for n in s.nodes if n in known)) for s in placement.segments}
        wrong = [(adapter, nodes) for adapter, nodes in self.segments if (adapter, nodes) not in found]
        if not wrong:
            return ""
        adapter, nodes = wrong[0]
        return (
            f"{len(wrong)} of {len(self.segments)} segments came out other than they were measured, the first that of "
            f"nodes #{nodes[0]} to #{nodes[-1]} on {adapter}"
        )


def mix(
    model: Path,
    best: Mapping[str, Any],
    others: Sequence[str],
    sample: Sample,
    *,
    registry: Registry,
    until: float,
    pieces: int = planning.PIECES,
    rounds: int = ROUNDS,
    worth: float = WORTH,
    progress: Progress | None = None,
) -> Mixed:
    """Measures a model's pieces on several adapters, and says which mix is predicted to be faster than each alone.

    Args:
        model: The model's path.
        best: The config of the best single adapter, as data.
        others: The adapters to mix in; they run with default options, as fallbacks do.
        sample: What to run on.
        registry: Which has the adapters.
        until: The time, by `time.monotonic`, from which no further part is deployed; there is no answer then.
        pieces: How many pieces at most.
        rounds: How often each is measured.
        worth: Which share of the fastest single adapter's time a mix must be predicted to stay below.
        progress: Told in a few words what is being done.
    """
    begun = time.monotonic()
    try:
        tell = progress or (lambda message: None)
        work, parts = _cut(model, best, others, sample, registry, pieces, tell)
        figures = _Figures()
        _measure(work, parts, figures, sample, until, rounds, tell)
        found = _decided(work, figures, worth)
    except NotAvailable as error:
        found = Mixed(error.problem)
    except PaddockError as error:
        found = Mixed(f"it could not be measured: {error.problem}")
    return replace(found, seconds=round(time.monotonic() - begun, 1))


def _cut(
    model: Path,
    best: Mapping[str, Any],
    others: Sequence[str],
    sample: Sample,
    registry: Registry,
    pieces: int,
    tell: Progress,
) -> tuple[_Work, Mapping[str, Sequence[Part]]]:
    """The work, and by bench its parts. Raises `NotAvailable` where nothing is to be mixed, with the reason."""
    config = HardwareConfig.load(best)
    _check(config.precision is Precision.FP32 and config.storage is None, "only models in plain fp32 are mixed")
    _check(not config.operators.exclude and not config.fallback, "the config states who runs what")
    _check(bool(others), "only one adapter serves the model")
    tell("mixed placement: cutting the model into pieces")
    with Children() as children:
        whole = open_model(model, registry, children)
        whole = whole.with_graph(apply_shapes(whole.graph, config))
        fed = {value.name: sample[value.name].shape for value in whole.graph.input_values if value.kind == "tensor"}
        work = _Work(whole, shapes_at(whole, fed, registry, children), config, others, registry, pieces)
        _check(bool(work.cuts), f"no cut with at most {planning.LIVE} values leaves work of some size on both sides")
        _check(
            work.bytes < memory_available() / 2,
            f"its parts might take {work.bytes / 2**30:.1f} GiB, more than half of the memory that is free",
        )
        return work, work.parts(children)


class _Work:
    """What is measured: the pieces, the adapters (the best one first), and the parts that follow."""

    def __init__(
        self,
        model: Model,
        shapes: Mapping[int, Shape],
        config: HardwareConfig,
        others: Sequence[str],
        registry: Registry,
        pieces: int,
    ) -> None:
        self.model, self.registry, self.stated = model, registry, config.as_data()
        names = (registry.canonical(name) for name in (config.adapter, *others))
        self.chain = tuple(dict.fromkeys(names))
        constants = registry.formats[model.format].constants
        # With the sizes that values have on the sample, which weigh the cuts.
        values = [_sized(v, shapes[i]) if i in shapes else v for i, v in enumerate(model.graph.values)]
        sized = replace(model.graph, values=tuple(values))
        self.partitioner = Partitioner(sized, [n.index for n in model.graph.nodes if n.type in constants])
        self.cuts = planning.cuts(self.partitioner, pieces)
        self.pieces = self.partitioner.intervals([cut.position for cut in self.cuts])

    @property
    def bytes(self) -> float:
        """What all parts might take in memory."""
        count = len(self.chain)
        return self.model.graph.weight_bytes * _COPIES * (3 * count + 2 * count * (count - 1))

    def parts(self, children: Children) -> dict[str, list[Part]]:
        """By bench: one for each adapter with all pieces and all pairs, one for each two adapters with all pairs."""
        singles = [self._extracted(piece, children) for piece in self.pieces]
        pairs = [self._extracted(self._pair(number), children) for number in range(len(self.cuts))]
        found = {}
        for name in self.chain:
            found[name] = [self._part((n,), (name,), cut) for n, cut in enumerate(singles)]
            found[name] += [self._part((n, n + 1), (name, name), cut) for n, cut in enumerate(pairs)]
        for two in itertools.combinations(self.chain, 2):
            ways = itertools.product(enumerate(pairs), (two, two[::-1]))
            found[" and ".join(two)] = [self._part((n, n + 1), way, cut) for (n, cut), way in ways]
        return found

    def _pair(self, first: int) -> Piece:
        return self.partitioner.intervals([c.position for n, c in enumerate(self.cuts) if n != first])[first]

    def _extracted(self, piece: Piece, children: Children) -> tuple[Model, Piece]:
        segment = Segment(0, self.chain[0], piece.nodes, piece.inputs, piece.outputs, piece.copies)
        return extracted(self.model, segment, self.registry, children), piece

    def _part(self, numbers: Sequence[int], adapters: Sequence[str], cut: tuple[Model, Piece]) -> Part:
        """These pieces deployed on these adapters, one each."""
        model, piece = cut
        here = {node: number for number, node in enumerate(sorted((*piece.nodes, *piece.copies)))}
        owned = [
            (adapter, [here[node] for node in self.pieces[number].nodes if node in here])
            for number, adapter in zip(numbers, adapters, strict=True)
        ]
        free = {at for node, at in here.items() if node in self.partitioner.free}
        base = {key: stated for key, stated in self.stated.items() if key not in _OF_THE_WHOLE}
        config = {**self.config(model.graph, owned, free, base), "accuracy": {"verify": "off"}}
        shapes = _shapes(model.graph)
        if shapes:
            config["shapes"] = shapes
        runs = tuple(adapter for adapter, _ in itertools.groupby(adapters))
        return Part(_name(numbers, adapters), next(iter(model.files.values())), config, runs)

    def config(self, graph: Graph, owned: Owned, free: Collection[int], base: Mapping[str, Any]) -> dict[str, Any]:
        """A config by which these adapters run these nodes; the best one goes first, and only it has options."""
        used = {adapter for adapter, _ in owned}
        chain = [adapter for adapter in self.chain if adapter in used]
        hardware, _, backend = chain[0].partition("/")
        found = {**base, "hardware": hardware, "backend": backend}
        if chain[0] != self.chain[0]:
            found.pop("options", None)
        if len(chain) > 1:
            exclude = planning.kept_off(graph, owned, chain, free)
            found |= {"fallback": chain[1:], "operators": {**base.get("operators", {}), "exclude": exclude}}
        return found

    def rows(self) -> tuple[dict[str, Any], ...]:
        """The pieces, and what crosses behind each."""
        nodes, found = self.model.graph.nodes, []
        for number, piece in enumerate(self.pieces):
            row: dict[str, Any] = {
                "nodes": len(piece.nodes), "from": nodes[piece.nodes[0]].label, "to": nodes[piece.nodes[-1]].label
            }  # fmt: skip
            if number < len(self.cuts):
                row |= {"values": len(self.cuts[number].values), "bytes": self.cuts[number].nbytes}
            found.append(row)
        return tuple(found)


class _Figures:
    """What was measured: seconds of parts in each round, and why some do not run."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[float]] = {}
        self.refused: dict[str, str] = {}

    def times(self, work: _Work) -> list[dict[str, float]]:
        """See `planning.Times`: medians over the rounds."""
        return [
            {a: float(np.median(found)) for a in work.chain if (found := self.rounds.get(_name((n,), (a,))))}
            for n in range(len(work.pieces))
        ]

    def borders(self, work: _Work) -> list[dict[tuple[str, str], float]]:
        """See `planning.Borders`: medians of what pairs take beyond their pieces in the same round."""
        found: list[dict[tuple[str, str], float]] = []
        for n in range(len(work.cuts)):
            found.append({})
            for one, other in itertools.product(work.chain, repeat=2):
                names = _name((n, n + 1), (one, other)), _name((n,), (one,)), _name((n + 1,), (other,))
                rounds = [self.rounds[name] for name in names if name in self.rounds]
                if len(rounds) == 3:
                    beyond = [both - first - second for both, first, second in zip(*rounds, strict=True)]
                    price = float(np.median(beyond))
                    # A border never saves anything; noise that says so would be what the search looks for.
                    found[-1][one, other] = price if one == other else max(0.0, price)
        return found


def _measure(
    work: _Work,
    parts: Mapping[str, Sequence[Part]],
    figures: _Figures,
    sample: Sample,
    until: float,
    rounds: int,
    tell: Progress,
) -> None:
    """Deploys all parts and measures them, the benches in turns. Raises `PaddockError` where that cannot be done."""
    with ExitStack() as stack:
        benches: dict[str, Bench] = {}
        for label, own in parts.items():
            _check(time.monotonic() < until, _TIME_UP)
            tell(f"mixed placement: deploying {len(own)} parts on {label}")
            bench = stack.enter_context(Bench(f"measuring parts on {label}"))
            try:
                opened = bench.open(own, until - time.monotonic())
            except PaddockError as error:
                figures.refused[label] = error.problem
                continue
            figures.refused.update((name, reason) for name, reason in opened.items() if reason)
            benches[label] = bench
        _check(time.monotonic() < until, _TIME_UP)
        able = [a for a in work.chain if a not in figures.refused and not _refuses(a, work, figures)]
        _check(bool(able), "no adapter takes every piece by itself")
        values = benches[able[0]].chain([_name((n,), able[:1]) for n in range(len(work.pieces))], sample)
        for bench in benches.values():
            bench.warm(values)
        for number in range(rounds):
            tell(f"mixed placement: measuring its parts, round {number + 1} of {rounds}")
            for bench in list(benches.values())[:: 1 if number % 2 else -1]:
                for name, seconds in bench.sweep(SWEEP_SECONDS).items():
                    figures.rounds.setdefault(name, []).append(seconds)


def _refuses(adapter: str, work: _Work, figures: _Figures) -> bool:
    return any(_name((n,), (adapter,)) in figures.refused for n in range(len(work.pieces)))


def _decided(work: _Work, figures: _Figures, worth: float) -> Mixed:
    """The evidence, with a config where a mix is predicted to be worth it."""
    times, borders = figures.times(work), figures.borders(work)
    alone = {a: planning.predicted([a] * len(times), times, borders) for a in work.chain}
    single = {name: 1e3 * seconds for name, seconds in alone.items() if seconds is not None}
    rows = []
    for number, row in enumerate(work.rows()):
        rows.append({**row, "ms": _milli(times[number].items())})
        if number < len(borders):
            rows[-1]["border ms"] = _milli((" -> ".join(two), seconds) for two, seconds in borders[number].items())
    found = planning.assign(times, borders, least=1)
    evidence = Mixed("no mix of the adapters runs", alone=single, pieces=tuple(rows), refused=figures.refused)
    if found is None or not single:
        return evidence
    best = min(single, key=lambda name: single[name])
    ratio = 1e3 * found.seconds / single[best]
    reason = f"the best mix is predicted to take {ratio:.2f} of the time of {best} alone"
    evidence = replace(evidence, reason=reason, adapters=found.adapters, predicted=1e3 * found.seconds)
    if ratio >= worth:
        return replace(evidence, reason=f"{reason}: not tried")
    free = work.partitioner.free
    segments = tuple(
        (adapter, tuple(n for n in nodes if n not in free))
        for adapter, nodes in planning.joined(work.pieces, found.adapters)
    )
    config = work.config(work.model.graph, segments, free, work.stated)
    return replace(evidence, config=config, segments=segments)


def _milli(found: Iterable[tuple[str, float]]) -> dict[str, float]:
    return {name: round(1e3 * seconds, 4) for name, seconds in found}


def _name(numbers: Sequence[int], adapters: Sequence[str]) -> str:
    """How a part is called: `piece 2 on A`, `pieces 2 and 3 on A and B`."""
    s = "" if len(numbers) == 1 else "s"
    return f"piece{s} {' and '.join(map(str, numbers))} on {' and '.join(adapters)}"


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise NotAvailable(problem)


def _sized(value: Value, shape: Shape) -> Value:
    """A value with its shape on the sample. Where the model states another (Paddle does, behind some broadcasts) a
    border would be typed wrongly: without a dtype it may not cross one."""
    stated = value.shape or ()
    wrong = any(isinstance(dim, int) and dim != extent for dim, extent in zip(stated, shape, strict=False))
    return replace(value, shape=shape, dtype=None if wrong else value.dtype)


def _shapes(graph: Graph) -> dict[str, Any]:
    """The bounds of a part's inputs as a config states them, where they are not fixed."""
    found = {}
    for value in graph.input_values:
        ranges = [bound for dim in value.shape or () if (bound := graph.range_of(dim)) is not None]
        if value.shape and len(ranges) == len(value.shape) and not all(bound.fixed for bound in ranges):
            found[value.name] = {w: [getattr(bound, w) for bound in ranges] for w in ("min", "opt", "max")}
    return found
