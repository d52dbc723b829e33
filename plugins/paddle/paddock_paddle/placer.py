"""Who computes an operation on a custom device: the device by a kernel of its own, or nobody.

Where the device has no kernel Paddle takes the CPU's, with copies there and back, and says nothing. Here that is a
refusal. What belongs on the host whatever the device are shapes, and what is worked out of them there: Paddle keeps a
value that begins in the host's memory on the CPU as long as all that is read with it is there, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from paddock.graph import Graph, Node
from paddock.plan import Verdict

from paddock_paddle.kernels import EXECUTOR, REGISTRY, Selector, dtypes_of, needs_no_kernel
from paddock_paddle.predictor import EXTENTS, MAKERS

_ON_HOST = [1, 0, ""]
"""The attribute of an operation whose result the program wants in the CPU's memory."""


@dataclass(frozen=True)
class Placer(Selector):
    """Judges the nodes of one graph for the device type `backend`, which is to run them itself."""

    @cached_property
    def hosted(self) -> frozenset[int]:
        """The top graph's nodes that belong on the host whatever the device, by index."""
        values: set[int] = set()
        found: set[int] = set()
        for node in self.graph.nodes:
            reads = [index for index in node.inputs if index is not None]
            follows = bool(reads) and values.issuperset(reads) and _plain(node) not in MAKERS and not node.subgraphs
            if follows or _begins_on_host(node):
                values.update(index for index in node.outputs if index is not None)
                found.add(node.index)
        return frozenset(found)

    def strayed(self, realised: Mapping[str, int]) -> tuple[int, ...]:
        """The top graph's nodes that are to run on the device and of whose operation Paddle left some to the CPU.

        Args:
            realised: How many kernels of each operation Paddle placed on the CPU; see `Realised.hosted`.
        """
        more = self._more(realised)
        return tuple(node.index for node in self.graph.nodes if not more.isdisjoint(self._away(node)))

    def added(self, realised: Mapping[str, int], begun: Mapping[str, int]) -> tuple[str, ...]:
        """The operations that Paddle left to the CPU and that no node accounts for: its own passes made them.

        Args:
            realised: As for `strayed`.
            begun: How many of them read nothing but what begins in the host's memory, where they belong; see
                `Realised.begun`.
        """
        asked = {name for node in self.graph.nodes for name in self._away(node)}
        more = self._more(realised) - asked
        return tuple(sorted(name for name in more if realised[name] > begun.get(name, 0)))

    def _more(self, realised: Mapping[str, int]) -> set[str]:
        """The operations of which there are more on the CPU than belong there."""
        known = Counter(_plain(self.graph.nodes[index]) for index in self.hosted)
        known += Counter(_plain(n) for node in self.graph.nodes for n in _inside(node) if _begins_on_host(n))
        return {name for name, count in realised.items() if count > known[name]}

    def _away(self, node: Node) -> set[str]:
        """The operations that a node of the top graph is to run on the device, those of its bodies among them."""
        own = set() if node.index in self.hosted else {_plain(node)}
        return own | {_plain(n) for n in _inside(node)}

    def _own(self, node: Node, graph: Graph) -> Verdict:
        if needs_no_kernel(node):
            return Verdict.yes("needs no kernel", EXECUTOR)
        if node.index in self.hosted if graph is self.graph else _begins_on_host(node):
            return Verdict.yes("on the host, as for every device: shapes and constants that are read there", EXECUTOR)
        kernels = self._kernels(node.op)
        if kernels is None:
            return Verdict.provisional(f"no kernel is called like {node.op}; compiling will tell", REGISTRY)
        own, dtypes = kernels.get(self.backend, frozenset()), dtypes_of(node, graph)
        if own & dtypes or (own and not dtypes):
            return Verdict.yes(f"{self.backend} kernel", REGISTRY)
        lacks = f"takes {', '.join(sorted(own))}, not {', '.join(sorted(dtypes))}" if own else "is not there"
        return Verdict.no(f"the {self.backend} kernel {lacks}; Paddle would run it on the CPU without a word", REGISTRY)


def _begins_on_host(node: Node) -> bool:
    return _plain(node) in EXTENTS or node.attributes.get("place") == _ON_HOST


def _inside(node: Node) -> list[Node]:
    """All nodes of a node's bodies."""
    return [n for body in node.subgraphs for inner in body.nodes for n in (inner, *_inside(inner))]


def _plain(node: Node) -> str:
    """An operation's name without dialect and the "_" of operations in place."""
    return node.op.partition(".")[2].removesuffix("_")
