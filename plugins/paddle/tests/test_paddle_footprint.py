"""The bounds on what Paddle takes, against a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from paddock.child import Children
from paddock.compile import build
from paddock.footprint import largest, measure
from paddock.prepare import prepare

pytest.importorskip("paddle")


@pytest.mark.parametrize(("backend", "instances"), [("paddle", 2), ("mkldnn", 1)])
def test_the_bound_is_not_exceeded(models: Path, backend: str, instances: int) -> None:
    config = {"hardware": "cpu", "backend": backend, "batch_size": 2, "instances": instances}
    with Children() as children:
        prepared = prepare(models / "resnet.json", config, children=children)
        found = measure(prepared, build(prepared.plan, prepared.parts), largest(prepared))
        prepared.discard()
    bound, weights = prepared.plan.memory.most, prepared.plan.memory.segments[0].weights
    assert bound is not None
    assert instances * weights < found.peak <= bound
