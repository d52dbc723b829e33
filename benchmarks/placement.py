"""How long placing a large graph takes: `python -m benchmarks.placement`.

Random graphs of up to 50,000 nodes on a chain of three adapters, of which the first two refuse each node with a given
chance (0.5 is far worse than any model: every second node changes hands). The target is 2 s at 50,000 nodes, and time
that grows with the number of nodes. Medians; the verifier's own time stands beside.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

from paddock.graph import Graph, Node, Value
from paddock.plan import Verdict
from paddock.planning.operators import Candidate, place
from paddock.planning.verifier import verify_placement

SIZES = (6_250, 12_500, 25_000, 50_000)
CHANCES = (0.001, 0.05, 0.5)
TARGET_SECONDS = 2.0


def main() -> int:
    """Prints one table; the exit status is 1 where the largest graph is over the target."""
    missed = 0
    print(f"{'nodes':>7} {'refused':>8} {'segments':>9} {'place s':>8} {'us a node':>10} {'verify s':>9}")
    for chance in CHANCES:
        for size in SIZES:
            graph, chain = _case(size, chance)
            placement = place(graph, chain)
            seconds = _median(partial(place, graph, chain))
            checking = _median(partial(verify_placement, graph, placement))
            over = size == SIZES[-1] and seconds > TARGET_SECONDS
            missed += over
            print(
                f"{size:>7} {chance:>8} {len(placement.segments):>9} {seconds:>8.2f} {seconds / size * 1e6:>10.1f} "
                f"{checking:>9.2f}{'  OVER 2 s' if over else ''}",
                flush=True,
            )
    return 1 if missed else 0


def _case(size: int, chance: float) -> tuple[Graph, list[Candidate]]:
    """A graph whose nodes read one or two of the eight latest values, and the chain."""
    dice = random.Random(size)
    nodes = tuple(
        Node(i, "Op", tuple(dice.randrange(max(0, i - 7), i + 1) for _ in range(dice.randint(1, 2))), (i + 1,))
        for i in range(size)
    )
    values = tuple(Value(f"v{i}", "float32", (64, 64)) for i in range(size + 1))
    read = {v for node in nodes for v in node.inputs}
    outputs = tuple(i + 1 for i in range(size) if i + 1 not in read)
    yes, no = Verdict.yes("it can"), Verdict.no("it cannot")
    chain = [Candidate(f"cpu/{name}", [no if dice.random() < chance else yes for _ in nodes]) for name in "ab"]
    return Graph(nodes, values, (0,), outputs), [*chain, Candidate("cpu/c", [yes] * size)]


def _median(call: Callable[[], object], repeats: int = 3) -> float:
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
