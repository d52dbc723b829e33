"""Operator selection: who runs each node, and the segments that follow from it.

Today a deployment is one segment on one adapter: a node that the adapter does not take refuses the deployment, with the
node, the reason and its source.
"""

from __future__ import annotations

from collections.abc import Sequence

from paddock.config import HardwareConfig
from paddock.errors import ConfigError, NotAvailable, did_you_mean
from paddock.graph import Graph, Node
from paddock.model import Model
from paddock.plan import NodePlacement, Placement, Segment, Verdict
from paddock.spi import Selection

_SHOWN = 5


def matching(model: Model, patterns: Sequence[str], where: str) -> frozenset[int]:
    """Indices of the nodes named by operator type or node name, the user's own model's names included.

    Raises `ConfigError` where a pattern names none.
    """
    if not patterns:
        return frozenset()
    names = [_names(model, node) for node in model.graph.nodes]
    found: set[int] = set()
    for position, pattern in enumerate(patterns):
        nodes = [index for index, known in enumerate(names) if pattern in known]
        if not nodes:
            candidates = sorted({node.type for node in model.origin.graph.nodes})
            raise ConfigError(
                f"{pattern!r} is neither an operator type nor a node's name in this model",
                where=f"{where}[{position}]",
                candidates=candidates,
                remedy=did_you_mean(pattern, sorted(set().union(*names))),
            )
        found.update(nodes)
    return frozenset(found)


def _names(model: Model, node: Node) -> set[str]:
    found = {node.type, node.op, node.name} - {""}
    if model.source is not None:
        for index in model.provenance[node.index]:
            found |= _names(model.source, model.source.graph.nodes[index])
    return found


def place(model: Model, adapter: str, selection: Selection, config: HardwareConfig) -> Placement:
    """The placement of a model on one adapter, from the adapter's own verdicts and the config's `operators.exclude`.

    Raises `NotAvailable` where a node is left that nobody takes.
    """
    graph = model.graph
    if len(selection.verdicts) != len(graph.nodes):
        raise NotAvailable(
            f"{adapter} gave {len(selection.verdicts)} verdicts for {len(graph.nodes)} nodes",
            remedy="report this to the plugin's author: select_operators must answer for every node",
        )
    excluded = matching(model, config.operators.exclude, "$.operators.exclude")
    nodes = tuple(
        _placed(node, adapter, selection.verdicts[node.index], node.index in excluded) for node in graph.nodes
    )
    refused = [placement for placement in nodes if placement.adapter is None]
    if refused:
        raise _uncovered(graph, adapter, refused, config)
    segment = Segment(0, adapter, tuple(node.index for node in graph.nodes), graph.inputs, graph.outputs)
    return Placement(nodes, (segment,))


def verify_placement(graph: Graph, placement: Placement) -> None:
    """Checks a placement by other means than it was made: each node placed once, in one segment of its adapter."""
    owners: dict[int, str] = {}
    for segment in placement.segments:
        for index in segment.nodes:
            if index in owners:
                raise AssertionError(f"node {index} stands in two segments")
            owners[index] = segment.adapter
    for node, placed in zip(graph.nodes, placement.nodes, strict=True):
        if placed.node != node.index or owners.get(node.index) != placed.adapter:
            raise AssertionError(f"{node.label} is not placed where its segment runs")


def _placed(node: Node, adapter: str, verdict: Verdict, excluded: bool) -> NodePlacement:
    if excluded:
        verdict = Verdict.no("excluded by the config", "$.operators.exclude")
    return NodePlacement(node.index, node.type, adapter if verdict.usable else None, verdict)


def _uncovered(graph: Graph, adapter: str, refused: Sequence[NodePlacement], config: HardwareConfig) -> NotAvailable:
    lines = [
        f"{graph.nodes[placement.node].label}: {placement.verdict.reason} [{placement.verdict.source}]"
        for placement in refused[:_SHOWN]
    ]
    more = f" (the first {_SHOWN} below)" if len(refused) > _SHOWN else ""
    remedy = "choose a backend that runs them (`paddock verify --all` tries every one that is here)"
    if config.fallback:
        remedy = "placing single nodes on the fallback adapters is not available in this version; " + remedy
    return NotAvailable(
        f"{adapter} does not take {len(refused)} of {len(graph.nodes)} nodes{more}", candidates=lines, remedy=remedy
    )
