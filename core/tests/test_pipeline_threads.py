"""A pipeline keeps calls of `Threading.HOME` adapters on few threads, as a single session's host does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from paddock.flow import Flow, Stage
from paddock.graph import Graph, Node, Value
from paddock.host import InProcessHost
from paddock.pipeline import Pipeline
from paddock.spi import Arrays, Session, Threading


class Adder(Session):
    """Adds one, and remembers who called."""

    def __init__(self, seen: set[int]) -> None:
        self._seen = seen

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        self._seen.add(threading.get_ident())
        (value,) = feeds.values()
        return {"out": value + 1}

    def close(self) -> None:
        pass


def test_home_sessions_see_few_threads() -> None:
    seen: set[int] = set()
    values = tuple(Value(f"v{i}", "float32", ("n",)) for i in range(3))
    graph = Graph(tuple(Node(i, "Add", (i,), (i + 1,)) for i in range(2)), values, (0,), (2,))
    stages = tuple(
        Stage("cpu/home", f"segment {i}", ((i, "in"),), ((i + 1, "out"),), (values[i + 1],), False, True)
        for i in range(2)
    )
    flow = Flow(graph, stages, ((0,), (1,)), ((0,), (1,)))
    hosts = [InProcessHost(lambda: Adder(seen), Threading.HOME, 1, "cpu/home") for _ in stages]
    pipeline = Pipeline(flow, hosts, 1, "cpu/home")
    answers: list[float] = []

    def ask() -> None:
        answers.extend(float(pipeline.run({"v0": np.zeros(1, np.float32)})["v2"][0]) for _ in range(20))

    callers = [threading.Thread(target=ask) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    ask()  # at home
    pipeline.close()
    assert answers == [2.0] * 180
    assert len(seen) == 2 and threading.get_ident() in seen
