"""The example models on the simulated NPU: verified, with the share of their nodes that it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddock_ascend_calls as calls
import pytest
from paddock.child import Child

from examples.export import EXPORTS

Simulate = Callable[..., Child]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder and ResNet-50, exported in a child without the device."""
    pytest.importorskip("paddle")
    folder = tmp_path_factory.mktemp("ascend-examples")
    with Child("exporting the examples") as child:
        for name in ("deepseek", "resnet"):
            child.call(EXPORTS[name], folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize(("name", "share"), [("deepseek", 239), ("resnet", 176)])
def test_verified_with_every_node_there(simulate: Simulate, examples: Path, name: str, share: int) -> None:
    """Beside these there are only nodes that make shapes, and that need no kernel."""
    rng = np.random.default_rng(3)
    feeds = {
        "deepseek": {"tokens": rng.integers(0, 512, (3, 33))},
        "resnet": {"image": rng.standard_normal((1, 3, 224, 224), dtype=np.float32)},
    }[name]
    child = simulate()
    found = child.call(calls.ran, examples / f"{name}.json", feeds)
    assert found.outcome == "passed" and found.error is not None and found.error < 1e-4
    reasons = Counter(node.verdict.reason for node in found.plan.placement.nodes if node.adapter == "npu/ascend")
    assert reasons.total() == len(found.plan.placement.nodes)
    assert reasons["npu kernel"] == share and all("host" in r or "no kernel" in r for r in reasons if r != "npu kernel")
    assert sum(found.calls.values()) >= share and found.left == 0
    wanted = child.call(calls.reference, examples / f"{name}.json", feeds)
    for output, array in wanted.items():
        assert np.abs(found.answers[output] - array).max() <= 1e-4 * np.abs(array).max()
