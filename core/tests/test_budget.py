"""The memory budget of whole deployments: refused, measured or let through, and the largest batch that fits."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddock_fakes_segments as odd
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from paddock import budget, deployment, footprint, machine
from paddock.child import Children
from paddock.deployment import deploy
from paddock.errors import BuildFailed, ConfigError, MemoryRefused, NotAvailable, UsageError
from paddock.memory_plan import Footprint
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
    limit_bytes = found.config.memory.limit
    assert isinstance(batch, int) and limit_bytes is not None
    assert (found.plan.memory.most or 0) <= limit_bytes < (found.budgeter.at_batch(batch + 1).most or 0)
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
        serve(registry, children, reshaped, batch_size=65_536, memory={"limit": limit})
    error = caught.value
    assert exit_code(error) == 5 and str(error.where).endswith("$.memory.limit")
    assert "needs at least" in error.problem and "set batch_size to 16, the largest that is sure to fit" in str(
        error.remedy
    )
    assert error.candidates[0].startswith("intermediates") and any("at the peak: " in line for line in error.candidates)
    assert not list(registry.store.root.glob("tried/*")), "nothing was built for it"


def test_between_the_bounds_a_run_decides_and_is_remembered(
    registry: Registry, children: Children, reshaped: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = plan(batch_size=64).plan.memory
    assert memory.most is not None
    with serve(registry, children, reshaped, batch_size=64, memory={"limit": memory.most - 1}) as served:
        taken = served.plan.memory.measured
        assert taken is not None and memory.least < taken <= memory.most
    monkeypatch.setattr(footprint, "measure", lambda *args: pytest.fail("it was measured before"))
    with serve(registry, children, reshaped, batch_size=64, memory={"limit": memory.most - 1}) as served:
        assert served.plan.memory.measured == taken
    with pytest.raises(MemoryRefused, match="took, when it was measured"):
        serve(registry, children, reshaped, batch_size=64, memory={"limit": taken - 1})


def test_an_adapter_that_tells_no_bound_is_measured_where_there_is_a_limit(
    registry: Registry, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = odd.save(tmp_path / "m.onnx", [("a MatMul", "x W", "y")], ("y",), (4, 512), W=np.eye(512, dtype=np.float32))
    fields = {"backend": "odd", "accuracy": {"verify": "off"}}
    with serve(registry, children, model, **fields) as served:
        assert served.plan.memory.most is None and served.plan.memory.measured is None
    with pytest.raises(MemoryRefused, match="over the limit of"):
        serve(registry, children, model, **fields, memory={"limit": served.plan.memory.least + 1})
    with serve(registry, children, model, **fields, memory={"limit": "64MiB"}) as served:
        assert 0 < (served.plan.memory.measured or 0) < 64 * MIB


def inputs_of(path: Path, nodes: list[Any], shape: tuple[Any, ...], *constants: Any) -> Path:
    """A model of one input x and one output y, whose shape it leaves open."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in (("x", shape), ("y", None))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_coupled_profiles_are_planned_one_by_one(registry: Registry, children: Children, tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Exp", ["t"], ["y"])]
    model = inputs_of(tmp_path / "m.onnx", nodes, ("b", "s"))
    profiles = [{"min": [1, 1], "max": [2, 4096]}, {"min": [1, 1], "max": [1024, 16]}]
    config = {"hardware": "cpu", "backend": "onnxruntime", "shapes": {"x": profiles}, "accuracy": {"verify": "off"}}
    found = prepare(model, config, registry=registry, children=children)
    found.discard()
    memory, largest = found.plan.memory, 4 * 1024 * 16
    assert (memory.least, memory.owned, memory.segments[0].arena) == (2 * largest, largest, largest)


def test_what_grows_as_an_input_shrinks_is_planned_where_it_is_largest(
    registry: Registry, children: Children, tmp_path: Path
) -> None:
    """y = the sum of 1,000,000 - n zeros, and so of 4 MB for the shortest input."""
    names = {"whole": [1_000_000], "none": [0]}
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in names.items()]
    nodes = [
        helper.make_node("Shape", ["x"], ["n"]), helper.make_node("Sub", ["whole", "n"], ["left"]),
        helper.make_node("ConstantOfShape", ["left"], ["zeros"]), helper.make_node("Exp", ["zeros"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "none"], ["y"], keepdims=0),
    ]  # fmt: skip
    model = inputs_of(tmp_path / "m.onnx", nodes, ("n",), *constants)
    shapes = {"n": {"min": 10, "max": 999_000}}
    config = {"hardware": "cpu", "backend": "onnxruntime", "shapes": shapes, "accuracy": {"verify": "off"}}
    found = prepare(model, config, registry=registry, children=children)
    found.discard()
    assert found.plan.memory.segments[0].arena >= 4 * (1_000_000 - 10)


def test_max_takes_samples_of_any_batch_that_then_fits(
    registry: Registry, children: Children, reshaped: Path, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    np.savez(tmp_path / "in.npz", x=rows)
    fields = {"batch_size": "max", "memory": {"limit": "200MiB"}}
    config = {"hardware": "cpu", "backend": "onnxruntime", **fields}
    with deploy(reshaped, config, registry=registry, children=children, samples=[{"x": rows}]) as served:
        assert served.report.source == "given in the call"
    config["accuracy"] = {"samples": str(tmp_path / "in.npz")}
    deploy(reshaped, config, registry=registry, children=children).close()
    np.savez(tmp_path / "in.npz", x=np.ones((60_000, 64), np.float32))
    with pytest.raises(UsageError, match=r"extent 60000 on axis 0 \(n\), the config's shapes and batch_size admit 1"):
        deploy(reshaped, config, registry=registry, children=children)


def test_max_without_a_limit_leaves_something(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([100 * MIB, 100 * MIB, 1])
    monkeypatch.setattr(machine, "memory_available", lambda: next(free))
    found = plan(batch_size="max")
    assert 80 * MIB < (found.plan.memory.most or 0) <= 90 * MIB
    assert any("90% of the host's available memory" in note for note in found.plan.notes)


def test_max_of_an_adapter_that_tells_no_bound_is_refused(plan: Plan) -> None:
    with pytest.raises(NotAvailable, match="cpu/odd does not say what its sessions take at most") as caught:
        plan("odd", batch_size="max", operators={"exclude": ["Shape", "Reshape", "Mul"]}, fallback=["cpu/onnxruntime"])
    assert str(caught.value.where).endswith("$.batch_size") and "measured" in str(caught.value.remedy)


def test_a_limit_is_not_kept_where_inputs_are_of_any_size(
    registry: Registry, children: Children, reshaped: Path
) -> None:
    with pytest.raises(ConfigError, match="nothing bounds the shapes of these inputs") as caught:
        serve(registry, children, reshaped, memory={"limit": "1GiB"})
    assert list(caught.value.candidates) == ["x [n?, 64]"]


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ("much", "a str, not a Footprint"), (Footprint(-1, 0), "-1 for process"),
        (Footprint(0, True), "True for session"), (Footprint(0, 0, kept=float("nan")), "nan for kept"),
        (Footprint(0, 0, kept=0.0, loading=0.0), "a bound of "),
    ],
)  # fmt: skip
def test_an_adapters_figures_are_checked(
    registry: Registry, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any, problem: str
) -> None:
    model = odd.save(tmp_path / "m.onnx", [("a MatMul", "x W", "y")], ("y",), (4, 512), W=np.eye(512, dtype=np.float32))
    monkeypatch.setattr(odd.Odd, "footprint", lambda *args: told)
    with pytest.raises(BuildFailed, match=f"cpu/odd: footprint\\(\\) returned {problem}") as caught:
        serve(registry, children, model, backend="odd", accuracy={"verify": "always"})
    assert "plugin's author" in str(caught.value.remedy)


def test_nothing_is_tried_out_unwatched_where_a_run_must_decide(
    registry: Registry, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = odd.save(tmp_path / "m.onnx", [("a MatMul", "x W", "y")], ("y",), (8, 512), W=np.eye(512, dtype=np.float32))
    monkeypatch.setattr(deployment, "try_out", lambda *args: pytest.fail("it was tried out first"))
    with pytest.raises(MemoryRefused, match="over its runtimes"):
        serve(registry, children, model, backend="odd", memory={"limit": "1100KiB"})
    monkeypatch.undo()
    with pytest.raises(BuildFailed, match="crashed with SIGSEGV"):  # as it is told without a limit
        crashes = {"crash_run": ["a"]}
        serve(registry, children, model, backend="odd", options=crashes, memory={"limit": "1GiB"})


@pytest.mark.parametrize(("limit", "together"), [(None, 4), ("1GiB", 2)])
def test_with_a_limit_no_more_requests_are_inside_than_instances(
    registry: Registry, children: Children, tmp_path: Path, limit: str | None, together: int
) -> None:
    model = odd.save(tmp_path / "m.onnx", [("a Neg", "x", "y")], ("y",), (2, 3))
    memory = {} if limit is None else {"memory": {"limit": limit}}
    with serve(registry, children, model, backend="odd", instances=2, **memory) as served:
        lock, inside, most = threading.Lock(), 0, 0
        real = odd.OddSession.run

        def slow(*args: Any, **named: Any) -> Any:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.2)
            with lock:
                inside -= 1
            return real(*args, **named)

        with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(4) as callers:
            patched.setattr(odd.OddSession, "run", slow)
            feeds = {"x": np.ones((2, 3), np.float32)}
            assert [a["y"].sum() for a in callers.map(served.run, [feeds] * 4)] == [-6.0] * 4
    assert most == together


def test_shapes_that_share_an_extent_are_planned(registry: Registry, children: Children, tmp_path: Path) -> None:
    """One extent of a symbol in all alternatives: it is a number then, and no symbol any more."""
    model = odd.save(tmp_path / "m.onnx", [("a Neg", "x", "y")], ("y",), ("n", "s"))
    for shapes in ({"buckets": [[1, 64], [1, 16]]}, [{"min": [2, 1], "max": [2, 9]}, {"min": [2, 20], "max": [2, 30]}]):
        config = {"hardware": "cpu", "backend": "odd", "shapes": {"x": shapes}}
        with deploy(model, config, registry=registry, children=children) as served:
            assert served.plan.memory.owned == 256, "64 elements, or 60 and what aligns them"
            with pytest.raises(UsageError, match="extent"):
                served.run({"x": np.ones((2, 10) if isinstance(shapes, list) else (1, 17), np.float32)})


def test_many_buckets_are_no_product(registry: Registry, children: Children, tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = inputs_of(tmp_path / "m.onnx", nodes, ("h", "w"))
    for count in (63, 64):
        buckets = [[16 * i, 16 * (count + 1 - i)] for i in range(1, count + 1)]
        config = {"hardware": "cpu", "backend": "onnxruntime", "shapes": {"x": {"buckets": buckets}}}
        found = prepare(model, {**config, "accuracy": {"verify": "off"}}, registry=registry, children=children)
        found.discard()
        assert found.plan.memory.least == 2 * 4 * max(h * w for h, w in buckets)


def test_what_grows_with_one_input_and_shrinks_with_another(
    registry: Registry, children: Children, tmp_path: Path
) -> None:
    """A value of [n, 1000 - s]."""
    constants = [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in {"whole": [1000], "first": [0], "second": [1], "none": [0, 1]}.items()
    ]
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"]), helper.make_node("Gather", ["shape", "second"], ["s"]),
        helper.make_node("Sub", ["whole", "s"], ["left"]), helper.make_node("Concat", ["n", "left"], ["to"], axis=0),
        helper.make_node("ConstantOfShape", ["to"], ["zeros"]), helper.make_node("Exp", ["zeros"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "none"], ["y"], keepdims=0),
    ]  # fmt: skip
    model = inputs_of(tmp_path / "m.onnx", nodes, ("n", "s"), *constants)
    config = {
        "hardware": "cpu", "backend": "onnxruntime", "accuracy": {"verify": "off"},
        "shapes": {"n": {"min": 1, "max": 50}, "s": {"min": 1, "max": 999}},
    }  # fmt: skip
    found = prepare(model, config, registry=registry, children=children)
    found.discard()
    assert found.plan.memory.segments[0].arena >= 4 * 50 * 999


def test_what_is_known_of_no_batch_is_not_sure_to_fit(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a batch of 7 the sizes are unknown: then nothing bounds it."""
    real = budget.Budgeter.at_batch

    def unsized(self: Any, batch: int) -> Any:
        found = real(self, batch)
        segments = tuple(dataclasses.replace(segment, unknown=int(batch > 7)) for segment in found.segments)
        return dataclasses.replace(found, segments=segments)

    monkeypatch.setattr(budget.Budgeter, "at_batch", unsized)
    assert plan(batch_size="max", memory={"limit": "200MiB"}).config.batch_size == 7


def test_a_limit_stays_unkept_on_open_shapes_whatever_was_measured(
    registry: Registry, children: Children, reshaped: Path
) -> None:
    with serve(registry, children, reshaped) as served:
        served.measure_memory()
    with pytest.raises(ConfigError, match="nothing bounds the shapes"):
        serve(registry, children, reshaped, memory={"limit": "1GiB"})


def test_whoever_waits_for_an_instance_holds_no_copy(registry: Registry, children: Children, tmp_path: Path) -> None:
    model = odd.save(tmp_path / "m.onnx", [("a Neg", "x", "y")], ("y",), (64, 128))
    with serve(registry, children, model, backend="odd", memory={"limit": "1GiB"}) as served:
        inside, go = threading.Event(), threading.Event()
        staged: list[int] = []
        real = odd.OddSession.run

        def slow(*args: Any, **named: Any) -> Any:
            inside.set()
            assert go.wait(20)
            return real(*args, **named)

        stage = served._arena.stage

        def counted(feeds: Any) -> Any:
            staged.append(1)
            return stage(feeds)

        loose = np.ones((64, 256), np.float32)[:, ::2]
        with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(5) as callers:
            patched.setattr(odd.OddSession, "run", slow)
            patched.setattr(served._arena, "stage", counted)
            answers = [callers.submit(served.run, {"x": loose}) for _ in range(3)]
            answers += [served.submit({"x": loose}) for _ in range(3)]
            assert inside.wait(20)
            time.sleep(0.2)
            assert len(staged) == 1
            go.set()
            assert all((answer.result(20)["y"] == -1).all() for answer in answers)
        assert len(staged) == 6


def test_the_users_own_values_are_measured(registry: Registry, children: Children, tmp_path: Path) -> None:
    """Indices from 1,000 on: what is generated would be out of range."""
    constants = [
        numpy_helper.from_array(np.eye(8, 256, dtype=np.float32), "table"),
        numpy_helper.from_array(np.array(1000, np.int64), "start"),
    ]
    nodes = [helper.make_node("Sub", ["i", "start"], ["at"]), helper.make_node("Gather", ["table", "at"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants,
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    samples = [{"i": np.arange(1000, 1003)}, {"i": np.arange(1003, 1006)}]
    config = {
        "hardware": "cpu", "backend": "onnxruntime", "batch_size": 4, "strict": False, "memory": {"limit": "3MiB"},
    }  # fmt: skip
    with deploy(tmp_path / "m.onnx", config, registry=registry, children=children, samples=samples) as served:
        assert 0 < (served.plan.memory.measured or 0) < 3 * MIB
