"""With the mend off, repair finds what oneDNN gets wrong in the examples and moves that alone; answers are right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from paddock.child import Children
from paddock.deployment import deploy
from paddock.metrics import relative_error
from paddock.registry import Registry

from tests.test_examples import unseen_feeds

CONFIG: Mapping[str, Any] = {
    "hardware": "cpu",
    "backend": "mkldnn",
    "fallback": ["cpu/paddle"],
    "repair": True,
    "options": {"workarounds": False},
}


@pytest.mark.long
@pytest.mark.parametrize(("name", "share"), [("rotary", 0.8), ("deepseek", 0.9)])
def test_repair_moves_a_few_nodes_off_onednn(
    name: str, share: float, models: Mapping[str, Path], registry: Registry, children: Children
) -> None:
    told: list[str] = []
    plain = {"hardware": "cpu", "backend": "paddle"}
    with (
        deploy(models[name], CONFIG, registry=registry, children=children, progress=told.append) as deployment,
        deploy(models[name], plain, registry=registry, children=children) as reference,
    ):
        assert "searching for the nodes to blame" in told
        assert deployment.report.outcome == "passed"
        placement = deployment.plan.placement
        assert share * len(placement.nodes) <= placement.on("cpu/mkldnn") < len(placement.nodes)
        assert set(placement.adapters) == {"cpu/mkldnn", "cpu/paddle"}
        (note,) = [note for note in deployment.plan.notes if note.startswith("REPAIRED in ")]
        moved = [node for node in placement.nodes if node.adapter == "cpu/paddle"]
        blamed = [node for node in moved if "kept off by repair" in node.reason]
        assert blamed and all(f"#{node.node} {node.op}" in note for node in blamed)
        assert "kept off cpu/mkldnn" in note and "relative error" in note
        # The mend is off: nothing but the placement makes it right.
        assert not any(remedy.applied for remedy in deployment.plan.remedies)
        for seed in (1, 2):
            for feeds in unseen_feeds(name, seed):
                wanted, found = reference.run(feeds), deployment.run(feeds)
                assert found.keys() == wanted.keys()
                for output, expected in wanted.items():
                    distance, note = relative_error(expected, found[output])
                    assert distance <= 1e-4, f"{output}: {distance:.3g} {note}"
    again: list[str] = []
    with deploy(models[name], CONFIG, registry=registry, children=children, progress=again.append) as second:
        assert "searching for the nodes to blame" not in again
        assert second.plan.placement == placement and second.plan.notes == deployment.plan.notes
