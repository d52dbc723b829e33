"""What changes for a model from one config to another: hardware, operators, precision, memory, what is lost on the way.

Each side is told by itself (`paddock.sides`) and put into facts under common names (`paddock.facts`); what differs
between the facts is the diff. So nothing differs from itself, and the way back is the mirror image.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from paddock.auto import settled_before
from paddock.child import Children
from paddock.facts import Facts, Told, dtype, facts, nobody, option, outlined, place
from paddock.machine import memory_available
from paddock.plan import Means
from paddock.prepare import ConfigSource, ModelSource, Progress
from paddock.registry import Registry
from paddock.sides import Side, side

_OWN_FACTS = frozenset({"schema_", "version", "hardware", "backend", "precision", "options"})
"""Keys of the config that are not compared as they stand: they have facts of their own, or no effect."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs; None on the side that does not have it at all."""

    topic: str
    what: str
    before: Told | None
    after: Told | None


@dataclass(frozen=True, slots=True)
class Moved:
    """Nodes that fare otherwise, all in the same way: where they run, or what they compute in; and each side's reason.

    `operators` counts them by type, most frequent first; `nodes` are their indices in the model.
    """

    before: str
    after: str
    reasons: tuple[str, str]
    nodes: tuple[int, ...]
    operators: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Diff:
    """What changes from one side to the other."""

    before: Side
    after: Side
    changes: tuple[Change, ...] = ()
    placed: tuple[Moved, ...] = ()
    """Nodes that run elsewhere."""
    computed: tuple[Moved, ...] = ()
    """Nodes that compute in another dtype."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """What does not carry over, each with the reason; the way back may lose other things."""

    @property
    def same(self) -> bool:
        """Whether nothing changes."""
        return not (self.changes or self.placed or self.computed)


def diff(
    model: ModelSource,
    before: ConfigSource,
    after: ConfigSource,
    *,
    registry: Registry | None = None,
    children: Children | None = None,
    progress: Progress | None = None,
) -> Diff:
    """What changes for `model` from the config `before` to the config `after`; nothing is built, nothing deployed.

    Arguments as of `paddock.deploy`. Raises what `paddock.sides.side` raises, and `ConfigError` for an "auto" that was
    not settled before.
    """
    registry = registry if registry is not None else Registry.discover()
    tell = progress or (lambda message: None)
    with ExitStack() as stack:
        if children is None:
            children = stack.enter_context(Children())
        here, there = [settled_before(model, config, registry, children) for config in (before, after)]
        free = memory_available()
        first = side(model, here, registry, children, free, tell)
        return compare(first, first if here == there else side(model, there, registry, children, free, tell))


def compare(before: Side, after: Side) -> Diff:
    """The diff of two sides of one model."""
    changes = (
        *_changes(facts(before), facts(after)), *_config(before, after), *_options(before, after),
    )  # fmt: skip
    count = range(len(before.plan.placement.nodes))
    placed = _moved(before, [(place(before, node), place(after, node)) for node in count])
    computed = _moved(before, [(dtype(before, node), dtype(after, node)) for node in count])
    # Of a node without floats on one side, such as one that only counts extents, there is nothing to say.
    computed = tuple(moved for moved in computed if moved.before and moved.after)
    same = not (changes or placed or computed)
    return Diff(before, after, changes, placed, computed, {} if same else _lost(before, after))


def _changes(before: Facts, after: Facts) -> Iterator[Change]:
    # The order of topics is the facts' own, whichever side has more of them.
    topics = dict.fromkeys(topic for topic, _ in (*before, *after))
    for wanted in topics:
        for topic, what in dict.fromkeys((*before, *after)):
            if topic == wanted and _differ(before.get((topic, what)), after.get((topic, what))):
                yield Change(topic, what, before.get((topic, what)), after.get((topic, what)))


def _differ(here: Told | None, there: Told | None) -> bool:
    if here is None or there is None:
        return here is not there
    return here.known != there.known or (here.known and here.value != there.value)


def _moved(side: Side, nodes: Sequence[tuple[tuple[str, str], tuple[str, str]]]) -> tuple[Moved, ...]:
    """The nodes of which both sides say something else, by what they say and why; the largest group first."""
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for index, ((here, why), (there, because)) in enumerate(nodes):
        if here != there:
            groups.setdefault((here, there, why, because), []).append(index)
    found = []
    for (here, there, why, because), group in groups.items():
        counts = Counter(side.plan.placement.nodes[node].op for node in group)
        operators = tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        found.append(Moved(here, there, (why, because), tuple(group), operators))
    return tuple(sorted(found, key=lambda moved: (-len(moved.nodes), moved.nodes)))


def _config(before: Side, after: Side) -> Iterator[Change]:
    """Where the configs themselves differ, defaults included, by dotted path; null is as good as not stated."""
    here, there = (found.config.model_dump(mode="json", exclude=set(_OWN_FACTS)) for found in (before, after))
    for path, *both in _differences("", here, there):
        unit = "bytes" if path == "memory.limit" else ""
        one, other = (None if found is None else Told(found, unit=unit) for found in both)
        yield Change("config", path, one, other)


def _differences(path: str, here: Any, there: Any) -> Iterator[tuple[str, Any, Any]]:
    if here == there:
        return
    if all(found is None or isinstance(found, Mapping) for found in (here, there)):
        one, other = here or {}, there or {}
        for key in sorted({*one, *other}):
            yield from _differences(f"{path}.{key}" if path else str(key), one.get(key), other.get(key))
    else:
        yield path, here, there


def _options(before: Side, after: Side) -> Iterator[Change]:
    """What either config states, and what becomes of it on the other side; then what each adapter has at all."""
    for name in sorted({*before.config.options, *after.config.options}):
        here, there = option(before, name), option(after, name)
        if _differ(here, there):
            yield Change("options", name, here, there)
    has, gets = (nobody(s) if s.options is None else Told(sorted(s.options)) for s in (before, after))
    if _differ(has, gets):
        yield Change("options", "the adapter's own", has, gets)


def _lost(before: Side, after: Side) -> dict[str, str]:
    """What the first side has that the second does not get, with the reason."""
    found: dict[str, str] = {}
    to, here, there = after.plan.adapter, before.planned, after.planned
    for name in here.options:
        if after.options is None:
            found[f"options.{name}"] = f"perhaps: which options {to} has is known once its plugin is installed"
        elif name not in after.options:
            found[f"options.{name}"] = f"{to} has no such option"
        elif name not in there.options:
            found[f"options.{name}"] = f"not stated for {to}, whose default is {json.dumps(after.options[name])}"
    if here.calibration is not None and there.calibration is None:
        found["calibration.samples"] = f"{there.precision} on {to} is given none"
    elif here.calibration is not None and Means.QUANTIZE in (before.means, after.means):
        found["what was quantised"] = f"{to} is given its own, from the calibration samples"
    if here.accuracy.golden is not None and there.accuracy.verify in ("always", "cached"):
        needs = " or ".join(after.plan.reference) or "a reference, and none is here"
        found["accuracy.golden"] = f"not stated: it is verified against {needs}"
    if here.repair and not there.repair:
        found["repair"] = "not asked for: a wrong answer is refused, not mended"
    if before.plan.precision.searched:
        found["the nodes found to need fp32"] = f"searched anew for {to}"
    if before.plan.memory.measured is not None and after.plan.memory.measured is None:
        found["the measured memory"] = f"of {to} there is only a prediction"
    if not outlined(before) and before.plan.key != after.plan.key:
        found["what was built, tried and verified"] = "it belongs to the other plan: this one begins anew"
    return found
