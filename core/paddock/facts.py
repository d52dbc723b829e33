"""One side of a diff as facts: each under a topic and a name, with how sure it is.

Facts of two sides are compared by these names, so a fact has one name whatever the adapter. A value is JSON data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paddock.memory_plan import SegmentMemory
from paddock.plan import Answer, Means, Precision, Verdict
from paddock.planning.casts import WIDE
from paddock.planning.memory import readable
from paddock.planning.precision import in_fp32
from paddock.sides import UNKNOWN, Side
from paddock.spi import Shapes

OWN, OPEN, REFUSED, UNASKED = "as asked", "perhaps as asked", "refused", "not known"
"""Where a node runs: on the config's own adapter, surely or perhaps; nowhere; or nobody can tell from here."""
APART = "as asked, apart, in fp32"
STAYS = "stays in float32"

_YES = Verdict.yes()
_BYTES = "bytes"
_SEGMENTS = 8
"""Up to how many segments are told one by one."""
_SHAPES: Mapping[Shapes, str] = {Shapes.STATIC: "fixed shapes", Shapes.BOUNDED: "bounded", Shapes.DYNAMIC: "any"}


@dataclass(frozen=True, slots=True)
class Told:
    """What one side says of something; with a no, nobody can tell from here. `unit` is "bytes" or ""."""

    value: Any
    verdict: Verdict = _YES
    unit: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.verdict.usable


Facts = Mapping[tuple[str, str], Told]
"""By topic and name."""


def facts(side: Side) -> Facts:
    """Everything about a side but its single nodes, its options and the config's own words."""
    topics = {
        "hardware": _hardware, "shapes": _shapes, "operators": _operators, "precision": _precision,
        "memory": _memory, "accuracy": _accuracy, "known defects": _defects, "notes": _notes,
    }  # fmt: skip
    return {(topic, what): told for topic, tell in topics.items() for what, told in tell(side)}


def outlined(side: Side) -> bool:
    """Whether no plan could be made."""
    return side.verdict.answer is Answer.NO


def place(side: Side, index: int) -> tuple[str, str]:
    """Where a node runs, and why, where that is not plainly on the adapter asked for."""
    plan, node = side.plan, side.plan.placement.nodes[index]
    if node.verdict.answer is Answer.NO:
        return REFUSED, node.reason
    if outlined(side):
        return UNASKED, ""
    if node.adapter != plan.adapter:
        return APART if node.adapter == in_fp32(plan.adapter) else node.adapter, node.reason
    return (OWN, "") if node.verdict.answer is Answer.YES else (OPEN, node.reason)


def dtype(side: Side, index: int) -> tuple[str, str]:
    """What a node computes in; where it stays in fp32 while a narrower type is asked for, that and why."""
    plan, found = side.plan.precision, side.dtypes[index]
    if plan.precision is Precision.FP32 or found != WIDE or not plan.nodes:
        return found, ""
    return STAYS, plan.nodes[index].reason


def option(side: Side, name: str) -> Told | None:
    """An option with its value, the default where none is stated; None where the adapter does not have it."""
    if side.options is not None:
        return Told(side.options[name]) if name in side.options else None
    if name not in side.config.options:
        return nobody(side)
    return Told(side.config.options[name], Verdict.provisional(side.verdict.reason))


def nobody(side: Side) -> Told:
    """What nobody can tell of a side that is not planned."""
    return Told(None, Verdict.no(side.verdict.reason))


def _planned(side: Side, value: Any, unit: str = "") -> Told:
    """A figure of the plan, as sure as the plan is."""
    return nobody(side) if outlined(side) else Told(value, side.verdict, unit)


def _hardware(side: Side) -> Iterator[tuple[str, Told]]:
    plan, here = side.plan, side.verdict.answer is Answer.YES
    yield "adapter", Told(plan.adapter)
    yield "device", Told(plan.device) if here else nobody(side)
    yield "model given as", Told(plan.format) if plan.format else nobody(side)
    threads = next((s.requested for s in plan.settings if s.name == "threads"), None) if here else side.planned.threads
    yield "threads of a session", nobody(side) if threads is None else Told(threads)


def _shapes(side: Side) -> Iterator[tuple[str, Told]]:
    for name, shape in side.plan.shapes.items():
        yield name, Told(shape)
    yield "the adapter takes", nobody(side) if side.shapes is None else Told(_SHAPES[side.shapes])


def _operators(side: Side) -> Iterator[tuple[str, Told]]:
    places = Counter(place(side, index)[0] for index in range(len(side.plan.placement.nodes)))
    first = (OWN, OPEN, APART, REFUSED, UNASKED)
    for name in (*first, *sorted(places.keys() - set(first))):
        if places[name]:
            yield f"nodes {name}" if name in first else f"nodes on {name}", Told(places[name])
    yield "segments", _planned(side, len(side.plan.placement.segments))


def _precision(side: Side) -> Iterator[tuple[str, Told]]:
    plan = side.plan.precision
    yield "precision", Told(plan.precision.value)
    yield "means", nobody(side) if side.means is None else Told(side.means.value)
    dtypes = (dtype(side, index)[0] for index in range(len(side.dtypes)))
    counts = dict(sorted(Counter(found for found in dtypes if found).items()))
    as_it_is = Told(counts) if side.means is Means.NONE else _planned(side, counts)
    yield "nodes by dtype", nobody(side) if UNKNOWN in counts else as_it_is
    if side.means is not Means.NONE:
        yield "casts", _planned(side, len(plan.casts))
        yield "weights smaller by", _planned(side, plan.weights_saved, _BYTES)


def _memory(side: Side) -> Iterator[tuple[str, Told]]:
    memory, segments = side.plan.memory, side.plan.memory.segments
    graph = Verdict.provisional("from the graph's weights, inputs and outputs alone")
    verdict = graph if outlined(side) else side.verdict
    yield "taken of", Told(memory.kind)
    yield "at least", Told(memory.least, verdict, _BYTES)
    unbounded = _planned(side, "not bounded")
    yield "at most", unbounded if memory.most is None else _planned(side, memory.most, _BYTES)
    if memory.measured is not None:
        yield "measured", Told(memory.measured, unit=_BYTES)
    yield "weights", Told(sum(s.weights * s.copies for s in segments), verdict, _BYTES)
    yield "inputs and outputs", Told(sum(s.io * s.instances for s in segments), verdict, _BYTES)
    yield "intermediates, best layout", _planned(side, sum(s.arena * s.instances for s in segments), _BYTES)
    if memory.unknown:
        yield "values of unknown size, not counted", Told(memory.unknown, verdict)
    if len(segments) > 1:
        yield "between segments", _planned(side, memory.owned, _BYTES)
        for adapter in dict.fromkeys(segment.adapter for segment in segments):
            own = [segment for segment in segments if segment.adapter == adapter]
            yield f"on {adapter}", Told(f"{len(own)} segments, {_span(own)}", verdict)
    for segment in segments if 1 < len(segments) <= _SEGMENTS else ():
        where = f"{_count(segment.nodes)} on {segment.adapter}, {_span([segment])}"
        yield f"segment {segment.segment}", Told(where, verdict)
    if side.config.batch_size is not None:
        unknown = Told(None, Verdict.no("no bound or no budget is known"))
        yield "largest batch sure to fit", unknown if side.largest is None else Told(side.largest, verdict)


def _count(nodes: int) -> str:
    return f"{nodes} node{'s' if nodes != 1 else ''}"


def _span(segments: Sequence[SegmentMemory]) -> str:
    bounds = [segment.most for segment in segments]
    most = "?" if None in bounds else readable(sum(bound for bound in bounds if bound is not None))
    return f"{readable(sum(segment.least for segment in segments))} to {most} of the {segments[0].kind}"


def _accuracy(side: Side) -> Iterator[tuple[str, Told]]:
    plan = side.plan
    yield "budget", Told(plan.budget)
    yield "verified", Told(plan.verify)
    yield "against", Told(" or ".join(plan.reference) or "-")


def _defects(side: Side) -> Iterator[tuple[str, Told]]:
    for remedy in side.plan.remedies:
        nodes = f", {_count(len(remedy.nodes))} kept off" if remedy.nodes else ""
        done = f"{'applied' if remedy.applied else 'NOT applied'}{nodes}"
        yield remedy.name, Told(f"{done}: {remedy.summary}; {remedy.action}", side.verdict)


def _notes(side: Side) -> Iterator[tuple[str, Told]]:
    for note in side.plan.notes:
        yield note, Told(note)
