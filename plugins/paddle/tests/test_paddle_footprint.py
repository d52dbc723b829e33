"""The bounds on what Paddle takes, against a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from paddock.child import Children
from paddock.compile import build
from paddock.footprint import largest, measure
from paddock.prepare import prepare

pytest.importorskip("paddle")


@pytest.mark.long
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


@pytest.mark.long
def test_shapes_that_primitives_are_kept_for_take_weights_each(tmp_path: Path) -> None:
    """16 MiB of weights, twelve batch sizes."""
    import paddle
    from paddle.static import InputSpec

    paddle.jit.save(
        paddle.nn.Linear(2048, 2048), str(tmp_path / "m"), input_spec=[InputSpec([None, 2048], "float32", "x")]
    )
    taken = []
    for kept in (1, 10):
        config = {"hardware": "cpu", "backend": "mkldnn", "batch_size": 12, "options": {"kept_shapes": kept}}
        with Children() as children:
            prepared = prepare(tmp_path / "m.json", config, children=children)
            found = measure(prepared, build(prepared.plan, prepared.parts), largest(prepared))
            prepared.discard()
        assert found.peak <= (prepared.plan.memory.most or 0)
        taken.append(found.peak)
    assert taken[0] + 5 * (16 << 20) < taken[1]
