"""Known defects of SDKs as data: which form of which operator an SDK gets wrong, and what is done about it.

A plugin keeps its entries in one file, `defects.json` inside its package, and hands what `remedies` finds for a model
to `Adapter.known_defects`. Whatever cannot be told from the graph (an unknown dtype, an open extent) counts as the
wrong form, save that nobody is taken to feed nothing: a needless remedy costs some speed, a missing one the answer.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import BeforeValidator, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from paddock.errors import ConfigError
from paddock.graph import Graph, Node, Value
from paddock.jsontext import json_path, loads
from paddock.plan import Precision, Remedy

FILE = "defects.json"
"""The name of the file in a plugin's package: an array of entries, each with the fields of `Defect`."""


def _specifiers(text: object) -> object:
    if not isinstance(text, str):
        return text
    try:
        return SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(str(error)) from None


Specifiers = Annotated[SpecifierSet, BeforeValidator(_specifiers)]
"""Versions as pip writes them, `">=3.3,<3.5"`; numbers of inputs and opsets as well, `">6"`."""
_ANY = SpecifierSet()
Place = Annotated[str, StringConstraints(pattern=r"^(input|output) (0|[1-9][0-9]*)$")]
"""`"input 0"`, `"output 2"`: one position of an operator."""
Text = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True)
class Pattern:
    """The wrong form of some operators: a node has to meet every condition that is given.

    `operators` are node types (`Node.type`). `attributes` maps a name to its wrong values, `other_than` to its right
    ones: any other is wrong; null stands for an attribute left out. `dtypes` maps a place to dtypes of which its value
    has one. What stands at the `present` places is given, at the `absent` ones left out, at the `fed` ones an
    input of the graph. `inputs` is the number of inputs, `rank` that of the first one, `opset` the
    version of the operator's domain. `form` is what no single value tells; see `FORMS`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    operators: tuple[Text, ...] = ()
    attributes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    other_than: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    dtypes: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    present: tuple[Place, ...] = ()
    absent: tuple[Place, ...] = ()
    fed: tuple[Place, ...] = ()
    inputs: Specifiers = _ANY
    rank: Specifiers = _ANY
    opset: Specifiers = _ANY
    form: Literal["adds several", "empty", "uneven", "late window"] | None = None

    def matches(self, node: Node, graph: Graph) -> bool:
        """Whether this very node of `graph` (a model's, or a body's) has the wrong form; its own bodies apart."""
        if self.operators and node.type not in self.operators:
            return False
        given = node.attributes
        first = _value(node, "input 0", graph)
        return (
            all(given.get(name) in wrong for name, wrong in self.attributes.items())
            and all(given.get(name) not in right for name, right in self.other_than.items())
            and all(_has_dtype(_value(node, place, graph), among) for place, among in self.dtypes.items())
            and all(_at(node, place) is not None for place in self.present)
            and all(_at(node, place) is None for place in self.absent)
            and all(_at(node, place) in graph.inputs for place in self.fed)
            and str(len(node.inputs)) in self.inputs
            and (first is None or first.shape is None or str(len(first.shape)) in self.rank)
            and (node.domain not in graph.opsets or str(graph.opsets[node.domain]) in self.opset)
            and (self.form is None or FORMS[self.form](node, graph))
        )


@dataclass(frozen=True)
class Defect:
    """One thing that an SDK is known to get wrong.

    `sdk` is the distribution and `versions` those of its versions that are affected. It concerns a model in which a
    node matches one of the `patterns`, any model where there are none, computed in one of the `precisions`. `remedy`
    says what is done: "exclude" keeps such nodes off the adapter, "drop_pass" switches the SDK's `passes` off, "refuse"
    refuses the model. `evidence` says what was run on which version, and what came out.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    name: Text
    summary: Text
    evidence: Text
    sdk: Text
    versions: Specifiers
    remedy: Literal["exclude", "drop_pass", "refuse"]
    patterns: tuple[Pattern, ...] = ()
    passes: tuple[Text, ...] = ()
    precisions: tuple[Precision, ...] = tuple(Precision)

    def __post_init__(self) -> None:
        if bool(self.passes) != (self.remedy == "drop_pass"):
            raise ValueError('"passes" are what "drop_pass" drops, and nothing else has them')
        if self.remedy == "exclude" and not self.patterns:
            raise ValueError('"exclude" needs "patterns" that say what')

    def affects(self, version: str | None) -> bool:
        """Whether a version of the SDK is affected; one that is unknown is."""
        try:
            return version is None or self.versions.contains(Version(version), prereleases=True)
        except InvalidVersion:
            return True

    def found_in(self, graph: Graph) -> dict[int, str]:
        """The nodes that match, with where it lies: "" for the node itself, else the type of a node in its bodies."""
        found: dict[int, str] = {}
        for node in graph.nodes:
            for where, inner, owner in _within(node, graph):
                if any(pattern.matches(inner, owner) for pattern in self.patterns):
                    found[node.index] = where
                    break
        return found


def remedies(
    defects: Sequence[Defect], graph: Graph, versions: Mapping[str, str], precision: Precision, applied: bool = True
) -> tuple[Remedy, ...]:
    """What is to be done about a model.

    Args:
        defects: A plugin's entries.
        graph: The model's graph, in the adapter's format, with the config's bounds.
        versions: Those installed, by distribution; one that is missing counts as affected.
        precision: What the adapter computes in.
        applied: Whether passes are dropped; exclusions and refusals always apply.
    """
    found: list[Remedy] = []
    for defect in defects:
        if precision not in defect.precisions or not defect.affects(versions.get(defect.sdk)):
            continue
        nodes = defect.found_in(graph)
        if defect.patterns and not nodes:
            continue
        if defect.remedy == "exclude":
            # One for each place, since the summary is the reason of the verdict.
            for where in sorted(set(nodes.values())):
                inside = f"in its body, {where}: " if where else ""
                indices = tuple(index for index, place in nodes.items() if place == where)
                action = f"{len(indices)} nodes kept off the adapter" if len(indices) > 1 else "kept off the adapter"
                found.append(Remedy(defect.name, inside + defect.summary, action, True, defect.evidence, indices))
        elif defect.remedy == "refuse":
            found.append(Remedy(defect.name, defect.summary, "refused", True, defect.evidence, refuses=True))
        else:
            action = f"delete_pass({', '.join(map(repr, defect.passes))})"
            found.append(Remedy(defect.name, defect.summary, action, applied, defect.evidence))
    return tuple(found)


@cache
def load(package: str) -> tuple[Defect, ...]:
    """The entries of an installed package, from the `defects.json` in it.

    Raises `ConfigError` with the file and the place in it where it is missing, not JSON, or holds what is no entry.
    """
    where = f"{package}/{FILE}"
    remedy = f"report this to the author of {package}"
    try:
        text = importlib.resources.files(package).joinpath(FILE).read_text(encoding="utf-8")
    except (OSError, ModuleNotFoundError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=where, remedy=remedy) from error
    try:
        found = _entries().validate_python(loads(text, where))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{json_path(first['loc'])}: {first['msg']}", where=where, remedy=remedy) from None
    names = [defect.name for defect in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two entries are called {twice!r}", where=where, remedy=remedy)
    return found


@cache
def _entries() -> TypeAdapter[tuple[Defect, ...]]:
    return TypeAdapter(tuple[Defect, ...])


def _within(node: Node, graph: Graph) -> Iterator[tuple[str, Node, Graph]]:
    """A node and those of its bodies, each with the graph that its values stand in and its type where it is inside."""
    yield "", node, graph
    for body in node.subgraphs:
        for inner in body.nodes:
            for where, found, owner in _within(inner, body):
                yield where or inner.type, found, owner


def _at(node: Node, place: str) -> int | None:
    """The index of the value at a place, None where there is none."""
    side, _, position = place.partition(" ")
    values = node.inputs if side == "input" else node.outputs
    return values[int(position)] if int(position) < len(values) else None


def _value(node: Node, place: str, graph: Graph) -> Value | None:
    index = _at(node, place)
    return None if index is None else graph.values[index]


def _has_dtype(value: Value | None, among: tuple[str, ...]) -> bool:
    return value is not None and value.dtype in (None, *among)


def _may_be_empty(node: Node, graph: Graph) -> bool:
    value = _value(node, "input 0", graph)
    ranges = [graph.range_of(dim) for dim in value.shape or ()] if value is not None else []
    return any(found is not None and found.min == 0 for found in ranges)


def _may_be_uneven(node: Node, graph: Graph) -> bool:
    value = _value(node, "input 0", graph)
    if value is None or value.shape is None:
        return True
    ranges = [graph.range_of(dim) for dim in value.shape[:-1]]
    return any(found is None or not found.fixed or found.min & (found.min - 1) for found in ranges)


def _may_start_late(node: Node, graph: Graph) -> bool:
    kernel = node.attributes.get("kernel_shape", ())
    ones = [1] * len(kernel)
    strides, dilations = (node.attributes.get(name) or ones for name in ("strides", "dilations"))
    ends = (node.attributes.get("pads") or [0, 0] * len(kernel))[len(kernel) :]
    spans = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    return any(stride + end > span for stride, end, span in zip(strides, ends, spans, strict=True))


def _may_add_several(node: Node, graph: Graph) -> bool:
    kernel = node.attributes.get("kernel_shape", ())
    ones = [1] * len(kernel)
    strides, dilations = (node.attributes.get(name) or ones for name in ("strides", "dilations"))
    pads = node.attributes.get("pads") or [0, 0] * len(kernel)
    value = _value(node, "input 0", graph)
    extents = value.shape[2:] if value is not None and value.shape is not None else (None,) * len(kernel)
    for axis, (size, stride, dilation, extent) in enumerate(zip(kernel, strides, dilations, extents, strict=False)):
        if stride <= 2:
            continue  # rounding up adds less than a stride
        if not isinstance(extent, int):
            return True
        rest = (extent + pads[axis] + pads[axis + len(kernel)] - dilation * (size - 1) - 1) % stride
        if rest and stride - rest > 1:
            return True
    return False


FORMS: Mapping[str, Callable[[Node, Graph], bool]] = {
    "adds several": _may_add_several,
    "empty": _may_be_empty,
    "uneven": _may_be_uneven,
    "late window": _may_start_late,
}
"""Properties of a node: "adds several", rounding the number of pooling windows up adds more than one element to an
axis, or may; "empty", an extent of the first input is stated as 0, or may be; "uneven", one of its extents but the last
is, or may be, no power of two; "late window", a pooling window may begin beyond the input and its first padding when
the number of windows is rounded up."""
