"""The memory budget of whole deployments: refused, measured or let through, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddock_fakes_segments as odd
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from paddock import footprint
from paddock.child import Children
from paddock.deployment import deploy
from paddock.errors import ConfigError, MemoryRefused
from paddock.prepare import Prepared, prepare
from paddock.registry import Registry
from paddock.terminal import exit_code

MIB = 1 << 20
Plan = Callable[..., Prepared]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return odd.discover(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture(scope="module")
def reshaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """[n, 64] -> MatMul, a reshape by computed numbers whose result the standard's inference cannot tell, MatMul."""
    w = numpy_helper.from_array(np.ones((64, 4096), np.float32) / 64, "w")
    back = numpy_helper.from_array(np.ones((64, 8), np.float32) / 64, "back")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Mul", ["shape", "times"], ["target"]),
        helper.make_node("Reshape", ["wide", "target"], ["tall"]),
        helper.make_node("MatMul", ["tall", "back"], ["y"]),
    ]
    times = numpy_helper.from_array(np.array([64, 1], np.int64), "times")
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [w, back, times],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "reshaped.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def plan(registry: Registry, children: Children, reshaped: Path) -> Iterator[Plan]:
    made: list[Prepared] = []

    def call(backend: str = "onnxruntime", **fields: Any) -> Prepared:
        config = {"hardware": "cpu", "backend": backend, "accuracy": {"verify": "off"}, **fields}
        made.append(prepare(reshaped, config, registry=registry, children=children))
        return made[-1]

    yield call
    for prepared in made:
        prepared.discard()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "odd"])
@pytest.mark.parametrize("instances", [1, 2])
def test_another_batch_is_predicted_as_it_would_be_planned(plan: Plan, backend: str, instances: int) -> None:
    exclude = {"operators": {"exclude": ["Shape", "Reshape", "Mul"]}, "fallback": ["cpu/onnxruntime"]}
    fields = {"instances": instances, **(exclude if backend == "odd" else {})}
    small = plan(backend, batch_size=4, **fields)
    for batch in (2, 3, 17):
        there, here = plan(backend, batch_size=batch, **fields).plan.memory, small.budgeter.at_batch(batch)
        assert (here.least, here.most, here.owned, here.unknown) == (there.least, there.most, there.owned, 0)
    assert len(small.parts) == (3 if backend == "odd" else 1)


@pytest.mark.parametrize("limit", ["40MiB", "200MiB", "1GiB"])
def test_max_is_the_largest_batch_that_is_sure_to_fit(plan: Plan, limit: str) -> None:
    found = plan(batch_size="max", memory={"limit": limit})
    batch = found.config.batch_size
    budget = found.config.memory.limit
    assert isinstance(batch, int) and budget is not None
    assert (found.plan.memory.most or 0) <= budget < (found.budgeter.at_batch(batch + 1).most or 0)
    assert found.plan.shapes == {"x": f"[1..{batch}, 64]"}
    assert f'batch_size "max" is {batch}: the largest that is sure to stay within memory.limit' in found.plan.notes


def test_max_where_not_even_one_fits(plan: Plan) -> None:
    with pytest.raises(MemoryRefused) as caught:
        plan(batch_size="max", memory={"limit": "1MiB"})
    assert exit_code(caught.value) == 5 and caught.value.candidates
    lower = plan(batch_size=1).plan.memory
    assert lower.most is not None and lower.least < lower.most
    with pytest.raises(MemoryRefused, match="not even one sample is sure to fit") as caught:
        plan(batch_size="max", memory={"limit": lower.most - 1})
    assert "measured before it is served" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"batch_size": "max", "shapes": {"x": [4, 64]}}, 'is max, but shapes allow 4 for n'),
        ({"batch_size": "most"}, 'a whole number from 1 to 2\\*\\*40, or "max"'),
        ({"batch_size": 0}, 'a whole number from 1'), ({"batch_size": True}, "a whole number from 1"),
    ],
)  # fmt: skip
def test_what_max_does_not_go_with(plan: Plan, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        plan(**fields)


def serve(registry: Registry, children: Children, model: Path, **fields: Any) -> Any:
    config = {"hardware": "cpu", "backend": "onnxruntime", "accuracy": {"verify": "off"}, **fields}
    return deploy(model, config, registry=registry, children=children)


def test_over_the_limit_is_refused_with_the_batch_that_fits(
    registry: Registry, children: Children, reshaped: Path, plan: Plan
) -> None:
    limit = (plan(batch_size=16).plan.memory.most or 0) + 1000
    with pytest.raises(MemoryRefused) as caught:
        serve(registry, children, reshaped, batch_size=4096, memory={"limit": limit})
    error = caught.value
    assert exit_code(error) == 5 and str(error.where).endswith("$.memory.limit")
    assert "needs at least" in error.problem and "set batch_size to 16, the largest that fits" in str(error.remedy)
    assert error.candidates[0].startswith("intermediates") and any("at the peak: " in line for line in error.candidates)
    assert not list(registry.store.root.glob("tried/*")), "nothing was built for it"


def test_between_the_bounds_a_run_decides_and_is_remembered(
    registry: Registry, children: Children, reshaped: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = plan(batch_size=64).plan.memory
    assert memory.most is not None
    with serve(registry, children, reshaped, batch_size=64, memory={"limit": memory.most - 1}) as deployment:
        taken = deployment.plan.memory.measured
        assert taken is not None and memory.least < taken <= memory.most
    monkeypatch.setattr(footprint, "measure", lambda *args: pytest.fail("it was measured before"))
    with serve(registry, children, reshaped, batch_size=64, memory={"limit": memory.most - 1}) as deployment:
        assert deployment.plan.memory.measured == taken
    with pytest.raises(MemoryRefused, match="took, when it was measured"):
        serve(registry, children, reshaped, batch_size=64, memory={"limit": taken - 1})


def test_an_adapter_that_tells_no_bound_is_measured_where_there_is_a_limit(
    registry: Registry, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = odd.save(tmp_path / "m.onnx", [("a MatMul", "x W", "y")], ("y",), (4, 512), W=np.eye(512, dtype=np.float32))
    fields = {"backend": "odd", "accuracy": {"verify": "off"}}
    with serve(registry, children, model, **fields) as deployment:
        assert deployment.plan.memory.most is None and deployment.plan.memory.measured is None
    with pytest.raises(MemoryRefused, match="over the limit of"):
        serve(registry, children, model, **fields, memory={"limit": deployment.plan.memory.least + 1})
    with serve(registry, children, model, **fields, memory={"limit": "64MiB"}) as deployment:
        assert 0 < (deployment.plan.memory.measured or 0) < 64 * MIB
