"""The extents that a graph leaves unknown, filled with what they come to at the largest shapes that are admitted.

A prediction that leaves values out promises too little. The rules here know operators by the last part of their names,
whatever the format; an operator without a rule gives what its operands' shapes suggest, and what nothing suggests takes
the largest extent that the config admits anywhere. What comes out is for counting bytes, not for checking shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from paddock.graph import Dim, Graph, Node

_Extents = tuple[int, ...]

_SAME_ELEMENTS = frozenset({"reshape", "flatten", "squeeze", "unsqueeze", "view", "identity"})
_JOINS = frozenset({"concat"})
_PRODUCTS = frozenset({"matmul", "bmm"})
_PACKS = frozenset({"combine"})
_PARTS = frozenset({"split", "split_with_num", "unbind"})


def completed(graph: Graph) -> Graph:
    """`graph` with a number in the place of every extent of every tensor of known rank, all bounds at their largest.

    Extents that are known stay what they are. Values of unknown rank stay as they are.
    """
    return _Completion(graph).run()


class _Completion:
    """Extents by value, filled in the order of the nodes.

    `packs` are lists of tensors that pass as one value, `cut` are wholes of which the parts do.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        admitted = [*graph.fixed.values(), *(bound.max for bound in graph.bounds.values())]
        self.largest = max(admitted, default=1)
        self.extents: dict[int, _Extents] = {}
        self.symbols: dict[str, int] = {}
        self.packs: dict[int, list[_Extents | None]] = {}
        self.cut: dict[int, _Extents | None] = {}

    def run(self) -> Graph:
        graph = self.graph
        made = {v for node in graph.nodes for v in node.outputs}
        for index in range(len(graph.values)):
            if index not in made:
                self._settle(index, None)
        for node in graph.nodes:
            self._node(node)
        values = tuple(
            replace(value, shape=self.extents[index]) if index in self.extents else value
            for index, value in enumerate(graph.values)
        )
        return replace(graph, values=values)

    def _node(self, node: Node) -> None:
        op = node.op.rpartition(".")[2].rstrip("_").lower()
        operands = [self.extents.get(v) if v is not None else None for v in node.inputs]
        outputs = [v for v in node.outputs if v is not None]
        first = node.inputs[0] if node.inputs else None
        if op in _PACKS and outputs:
            self.packs[outputs[0]] = operands
            return
        if op in _PARTS and first in self.packs:
            for value, part in zip(outputs, self.packs[first], strict=False):
                self._settle(value, part)
            return
        if op in _PARTS and first in self.cut:
            for value in outputs:
                self._settle(value, self._part(self.cut[first], self.graph.values[value].shape, len(outputs)))
            return
        if op in _PARTS and len(outputs) == 1 and self.graph.values[outputs[0]].shape is None and operands:
            self.cut[outputs[0]] = operands[0]
            return
        if op in _PARTS:
            for value in outputs:
                self._settle(
                    value, self._part(operands[0] if operands else None, self.graph.values[value].shape, len(outputs))
                )
            return
        if first in self.packs:
            operands = self.packs[first]
        for value in outputs:
            shape = self.graph.values[value].shape
            if shape is not None:
                self._settle(value, self._guess(op, node.attributes, operands, shape))

    def _part(self, whole: _Extents | None, shape: Sequence[Dim] | None, parts: int) -> Sequence[int] | None:
        """The whole's extents, divided evenly along the axis that is cut: the last open one where no known one is."""
        if whole is None or shape is None or len(whole) != len(shape):
            return whole
        known = [self._known(dim) for dim in shape]
        open_axes = [axis for axis, extent in enumerate(known) if extent is None]
        found = list(whole)
        if open_axes and all(extent is None or extent == w for extent, w in zip(known, whole, strict=True)):
            found[open_axes[-1]] = -(-whole[open_axes[-1]] // parts)
        return found

    def _settle(self, value: int, guess: Sequence[int] | None) -> None:
        """Keeps a value's extents: the known ones, else those of the guess, else the largest admitted."""
        found = self.graph.values[value]
        if found.shape is None or found.kind != "tensor":
            return
        extents = []
        for axis, dim in enumerate(found.shape):
            known = self._known(dim)
            if known is None:
                known = guess[axis] if guess is not None and axis < len(guess) else self.largest
                if isinstance(dim, str):
                    self.symbols[dim] = known
            extents.append(known)
        self.extents[value] = tuple(extents)

    def _known(self, dim: Dim) -> int | None:
        bound = self.graph.range_of(dim)
        if bound is not None:
            return bound.max
        return self.symbols.get(dim) if isinstance(dim, str) else None

    def _guess(
        self, op: str, attributes: Mapping[str, object], operands: Sequence[_Extents | None], shape: Sequence[Dim]
    ) -> Sequence[int] | None:
        known = [self._known(dim) for dim in shape]
        given = [extents for extents in operands if extents is not None]
        if not given:
            return None
        if op in _SAME_ELEMENTS:
            return _spread(math.prod(given[0]), given[0], known)
        if op in _JOINS:
            widest = max(given, key=math.prod)
            return _spread(sum(math.prod(extents) for extents in given if len(extents) == len(known)), widest, known)
        if op in _PRODUCTS and len(given) >= 2 and min(len(given[0]), len(given[1])) >= 2:
            left, right = given[:2]
            rows = left[-1] if _flag(attributes, "transpose_x") else left[-2]
            columns = right[-2] if _flag(attributes, "transpose_y") else right[-1]
            return (*_broadcast([left[:-2], right[:-2]]), rows, columns)
        if op == "transpose":
            order = attributes.get("perm")
            if isinstance(order, list) and sorted(order) == list(range(len(given[0]))):
                return [given[0][axis] for axis in order]
            return given[0][::-1]
        if len(known) == max(map(len, given)):
            return _broadcast([extents for extents in given if len(extents) <= len(known)])
        return given[0]  # what is reduced or put in comes behind what stays


def _spread(elements: int, source: _Extents, known: Sequence[int | None]) -> list[int]:
    """`elements` under another shape: an open extent keeps the source's in its place where that divides the rest."""
    left = max(1, elements // max(1, math.prod(extent for extent in known if extent is not None)))
    open_axes = [axis for axis, extent in enumerate(known) if extent is None]
    found = [1 if extent is None else extent for extent in known]
    for axis in open_axes[:-1]:
        kept = source[axis] if axis < len(source) else 1
        if kept and left % kept == 0:
            found[axis], left = kept, left // kept
    if open_axes:
        found[open_axes[-1]] = left
    return found


def _broadcast(shapes: Sequence[_Extents]) -> _Extents:
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(extents)) + extents for extents in shapes]
    return tuple(max(column) for column in zip(*padded, strict=True))


def _flag(attributes: Mapping[str, object], name: str) -> bool:
    return bool(attributes.get(name, attributes.get(name.replace("transpose", "trans"), False)))
