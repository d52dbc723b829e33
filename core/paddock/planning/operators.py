"""Operator selection: who runs each node, and the segments that follow from it.

Each node goes to the first adapter of the chain that takes it: the one asked for, then the config's fallbacks in order.
Values that cannot pass between sessions keep their nodes together. Then what lies on the adapter asked for and is not
worth the way there and back is moved to the adapter around it. Every node keeps its reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from paddock.errors import ConfigError, NotAvailable, did_you_mean
from paddock.graph import Graph, Node, Value
from paddock.model import Model
from paddock.plan import NodePlacement, Placement, Segment, Verdict
from paddock.planning import cost
from paddock.planning.partition import Partitioner, Piece, reads

_SHOWN = 5
_TRIMS = 2
"""How often trimming is repeated: what is moved can leave another island behind."""

CARRIED = frozenset(
    {
        "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
        "bool", "string", "complex64", "complex128",
    }
)  # fmt: skip
"""The dtypes that NumPy has an array for, so that any two sessions can hand them over."""

_INDEXED = re.compile(r"#(\d+)(?:\s+(\S.*))?")


@dataclass(frozen=True)
class Candidate:
    """One adapter of the chain with a verdict for each node; `far` where its memory is not the host's."""

    adapter: str
    verdicts: Sequence[Verdict]
    far: bool = False


def matching(model: Model, patterns: Sequence[str], where: str) -> frozenset[int]:
    """Indices of the nodes named by operator type (a body's count too), by name, or as `#12` or `#12 TYPE`.

    Raises `ConfigError` where a pattern names none.
    """
    if not patterns:
        return frozenset()
    graph = model.graph
    names = [_names(model, node) for node in graph.nodes]
    found: set[int] = set()
    for position, pattern in enumerate(patterns):
        nodes = [index for index, known in enumerate(names) if pattern in known]
        indexed = _INDEXED.fullmatch(pattern)
        if not nodes and indexed is not None:
            nodes = [_by_index(graph, int(indexed[1]), indexed[2], f"{where}[{position}]")]
        if not nodes:
            candidates = sorted({node.type for node in model.origin.graph.walk()})
            raise ConfigError(
                f"{pattern!r} is neither an operator type nor a node's name in this model",
                where=f"{where}[{position}]",
                candidates=candidates,
                remedy=did_you_mean(pattern, sorted(set().union(*names))),
            )
        found.update(nodes)
    return frozenset(found)


def _by_index(graph: Graph, index: int, kind: str | None, where: str) -> int:
    if index >= len(graph.nodes):
        raise ConfigError(
            f"the model has no node #{index}, only #0 to #{len(graph.nodes) - 1}", where=where,
            remedy="`paddock bisect` writes the list anew",
        )  # fmt: skip
    node = graph.nodes[index]
    if kind is not None and kind not in (node.type, node.op):
        raise ConfigError(
            f"node #{index} is a {node.type}, not a {kind}: the list was written for another model", where=where,
            remedy="`paddock plan` shows the nodes; `paddock bisect` writes the list anew",
        )  # fmt: skip
    return index


def _names(model: Model, node: Node) -> set[str]:
    """What a node is called: its type and name, the types in its bodies, and the same of what it was converted from."""
    found = {node.type, node.op, node.name} - {""}
    for body in node.subgraphs:
        for inner in body.walk():
            found |= {inner.type, inner.op}
    if model.source is not None:
        for index in model.provenance[node.index]:
            found |= _names(model.source, model.source.graph.nodes[index])
    return found


def carried(value: Value) -> bool:
    """Whether a value can pass from one session to another as a NumPy array."""
    return value.kind == "tensor" and value.dtype in CARRIED


def place(
    graph: Graph,
    chain: Sequence[Candidate],
    constants: Collection[str] = (),
    remedy: str | None = None,
    trim: bool = True,
) -> Placement:
    """The placement of a model on a chain of adapters.

    Args:
        graph: The model's graph, with the config's bounds.
        chain: The adapter asked for, then its fallbacks, each with its verdicts.
        constants: Node types that make a constant, which every segment that reads one gets a copy of.
        remedy: For the error's end.
        trim: Whether nodes that are not worth the way are moved; a search for culprits wants them where they are.

    Raises `NotAvailable` (with the `nodes`) where a node is left that nobody takes, with everybody's reasons.
    """
    for candidate in chain:
        if len(candidate.verdicts) != len(graph.nodes):
            raise NotAvailable(
                f"{candidate.adapter} gave {len(candidate.verdicts)} verdicts for {len(graph.nodes)} nodes",
                remedy="report this to the plugin's author: select_operators must answer for every node",
            )
    owners = _owners(graph, chain)
    open_nodes = [node for node, owner in zip(graph.nodes, owners, strict=True) if owner is None]
    if open_nodes:
        raise _uncovered(graph, chain, open_nodes, remedy)
    settled = [owner for owner in owners if owner is not None]
    moved: dict[int, Verdict] = {}
    if len(set(settled)) == 1:
        return _placement(graph, chain, (), settled, moved)
    copied = [n.index for n in graph.nodes if n.type in constants and all(c.verdicts[n.index].usable for c in chain)]
    partitioner = Partitioner(graph, copied)
    for _ in range(_TRIMS if trim else 0):
        islands = _islands(graph, chain, partitioner.pieces(settled, quick=True))
        if not islands:
            break
        for piece, target, reason in islands:
            for node in piece.nodes:
                settled[node] = target
                moved[node] = reason
    return _placement(graph, chain, partitioner.pieces(settled), settled, moved)


def _owners(graph: Graph, chain: Sequence[Candidate]) -> list[int | None]:
    """The first of the chain that takes each node; nodes joined by a value that cannot be handed over stay together."""
    owners: list[int | None] = [
        next((i for i, c in enumerate(chain) if c.verdicts[node.index].usable), None) for node in graph.nodes
    ]
    for unit in units(graph):
        together = next((i for i, c in enumerate(chain) if all(c.verdicts[n].usable for n in unit)), None)
        if together is not None:
            for node in unit:
                owners[node] = together
    return owners


def units(graph: Graph) -> list[list[int]]:
    """Sets of several nodes between which a value passes that no array carries (a sequence, an unknown dtype)."""
    leader = list(range(len(graph.nodes)))

    def find(node: int) -> int:
        while leader[node] != node:
            leader[node] = node = leader[leader[node]]
        return node

    made_by: dict[int, int] = {}
    for node in graph.nodes:
        for value in reads(node):
            if value in made_by:
                leader[find(made_by[value])] = find(node.index)
        made_by.update((v, node.index) for v in node.outputs if v is not None and not carried(graph.values[v]))
    units: dict[int, list[int]] = {}
    for index in range(len(leader)):
        units.setdefault(find(index), []).append(index)
    return [unit for unit in units.values() if len(unit) > 1]


def _islands(graph: Graph, chain: Sequence[Candidate], pieces: Sequence[Piece]) -> list[tuple[Piece, int, Verdict]]:
    """Pieces between two borders to one other adapter that takes them too, whose work is not worth those borders."""
    maker = {value: number for number, piece in enumerate(pieces) for value in piece.outputs}
    around: list[set[int]] = [set() for _ in pieces]
    below: set[int] = set()
    for number, piece in enumerate(pieces):
        for value in piece.inputs:
            if value in maker:
                around[number].add(pieces[maker[value]].owner)
                around[maker[value]].add(piece.owner)
                below.add(maker[value])
    ends = set(graph.outputs)
    found = []
    touched: set[int] = set()
    for number, piece in enumerate(pieces):
        entered = [value for value in piece.inputs if value in maker]
        left = [value for value in piece.outputs if value not in ends]
        if not entered or not left or number not in below or len(around[number]) != 1:
            continue
        (other,) = around[number]
        neighbours = {maker[value] for value in entered}
        if (
            other == piece.owner
            or not all(chain[other].verdicts[n].usable for n in piece.nodes)
            or neighbours & touched
        ):
            continue
        far = chain[other].far != chain[piece.owner].far
        borders = cost.crossing(graph, tuple(entered), far) + cost.crossing(graph, tuple(left), far)
        gain = cost.GAIN * sum(cost.work(graph, graph.nodes[n]) for n in piece.nodes)
        if gain < borders:
            touched.add(number)
            reason = Verdict.no(
                f"{len(piece.nodes)} nodes among those of {chain[other].adapter}: about {gain:.0f} us to gain here, "
                f"{borders:.0f} us for the way here and back",
                "the cost of borders (paddock.planning.cost)",
            )
            found.append((piece, other, reason))
    return found


def _placement(
    graph: Graph,
    chain: Sequence[Candidate],
    pieces: Sequence[Piece],
    settled: Sequence[int],
    moved: Mapping[int, Verdict],
) -> Placement:
    owners = list(settled)
    for piece in pieces:
        for node in piece.nodes:  # constants go with their readers
            owners[node] = piece.owner
    nodes = tuple(
        NodePlacement(
            node.index,
            node.type,
            chain[owners[node.index]].adapter,
            chain[owners[node.index]].verdicts[node.index],
            tuple(_passed(node.index, owners[node.index], chain, moved)),
        )
        for node in graph.nodes
    )
    if len(pieces) <= 1:
        owner = owners[0] if owners else 0
        whole = Segment(0, chain[owner].adapter, tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
        return Placement(nodes, (whole,))
    segments = tuple(
        Segment(number, chain[p.owner].adapter, p.nodes, p.inputs, p.outputs, p.copies)
        for number, p in enumerate(pieces)
    )
    return Placement(nodes, segments)


def _passed(
    node: int, owner: int, chain: Sequence[Candidate], moved: Mapping[int, Verdict]
) -> list[tuple[str, Verdict]]:
    """Who stands before the owner in the chain, and why it does not run the node."""
    found = []
    for candidate in chain[:owner]:
        verdict = candidate.verdicts[node]
        if verdict.usable:
            verdict = moved.get(node) or Verdict.no("kept with the nodes that it exchanges values with", "placement")
        found.append((candidate.adapter, verdict))
    return found


def _uncovered(graph: Graph, chain: Sequence[Candidate], nodes: Sequence[Node], remedy: str | None) -> NotAvailable:
    reasons = [
        "; ".join(
            (f"{c.adapter}: " if len(chain) > 1 else "") + f"{c.verdicts[node.index].reason} "
            f"[{c.verdicts[node.index].source}]"
            for c in chain
        )
        for node in nodes
    ]
    lines = [f"{node.label}: {reason}" for node, reason in zip(nodes[:_SHOWN], reasons, strict=False)]
    more = f" (the first {_SHOWN} below)" if len(nodes) > _SHOWN else ""
    takers = chain[0].adapter if len(chain) == 1 else f"none of {', '.join(c.adapter for c in chain)}"
    verb = "does not take" if len(chain) == 1 else "takes"
    error = NotAvailable(
        f"{takers} {verb} {len(nodes)} of {len(graph.nodes)} nodes{more}",
        candidates=lines,
        remedy=remedy or "choose a backend that runs them (`paddock verify --all` tries every one that is here)",
    )
    error.nodes, error.reasons = tuple(node.index for node in nodes), tuple(reasons)
    return error
