"""What a deployment takes, measured in a process of its own; against adapters that take a known amount."""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper
from paddock import footprint, resident
from paddock.cache import Store
from paddock.child import Children
from paddock.compile import build
from paddock.errors import ChildFailed, MemoryRefused
from paddock.footprint import Measured, keep, known, largest, measure
from paddock.prepare import Prepared, prepare
from paddock.registry import Registry

MIB = 1 << 20
NEAR = 4 * MIB
HELD, TAKEN = 40, 64
"""MiB; what is taken in one piece over 32 MiB goes back to the kernel, smaller ones glibc may keep."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    points = [p for p in importlib.metadata.entry_points(group="paddock") if p.name == "reference"]
    points.append(importlib.metadata.EntryPoint("holder", "paddock_holder", "paddock"))
    return Registry.discover(Store(tmp_path_factory.mktemp("store")), points)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = -(2 x)."""
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    nodes = [helper.make_node("Mul", ["x", "two"], ["t"]), helper.make_node("Neg", ["t"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [two])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def plan(registry: Registry, children: Children, model: Path) -> Iterator[Any]:
    """Plans a model of two segments, the first one on the adapter that takes memory."""
    made: list[Prepared] = []

    def planned(options: dict[str, Any] | None = None, **more: Any) -> Prepared:
        config = {
            "hardware": "cpu", "backend": "holder", "fallback": ["cpu/reference"], "accuracy": {"verify": "off"},
            "shapes": {"n": {"min": 1, "max": 4}}, "options": options or {}, **more,
        }  # fmt: skip
        made.append(prepare(model, config, registry=registry, children=children))
        return made[-1]

    yield planned
    for prepared in made:
        prepared.discard()


def measured(prepared: Prepared, limit: int | None = None) -> Measured:
    return measure(prepared, build(prepared.plan, prepared.parts), largest(prepared), limit, seconds=60)


@pytest.mark.long
def test_what_sessions_hold_and_runs_take_is_measured(plan: Any) -> None:
    """Neither what importing took for a moment counts, nor does what it left free hide what the sessions take."""
    none = measured(plan())
    two = measured(plan({"held": HELD, "taken": TAKEN}, instances=2))
    assert (none.exact, none.instances, two.instances) == (True, 1, 2)
    assert none.peak < 60 * MIB
    assert abs(two.steady - none.steady - 2 * HELD * MIB) < NEAR
    runs = two.peak - none.peak - 2 * HELD * MIB
    assert TAKEN * MIB - NEAR < runs < 2 * TAKEN * MIB + NEAR  # they may run at the very same time


@pytest.mark.long
def test_what_is_kept_for_each_shape_is_measured_too(plan: Any) -> None:
    shapes = {"n": {"min": 1, "max": 5}}
    none, each = measured(plan(shapes=shapes)), measured(plan({"each": 8}, shapes=shapes))
    assert abs(each.peak - none.peak - 5 * 8 * MIB) < NEAR


def test_a_shape_that_is_refused_is_not_measured(plan: Any) -> None:
    assert measured(plan({"odd": True, "each": 8})).peak > measured(plan()).peak + 2 * 8 * MIB - NEAR


@pytest.mark.long
def test_staging_copies_are_measured(plan: Any) -> None:
    small, large = (measured(plan(shapes={"n": {"min": 1, "max": n}})) for n in (4, 2_000_000))
    assert large.peak > small.peak + 2 * 32 * MIB  # the request itself, and room for a copy of it


def test_whoever_takes_more_than_the_limit_is_ended_at_once(plan: Any) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    prepared, begun = plan({"held": 4 * HELD, "hangs": True}), time.perf_counter()
    artifacts, request = build(prepared.plan, prepared.parts), largest(prepared)
    with pytest.raises(MemoryRefused, match="over its runtimes and was ended, over the limit of 60.0 MiB"):
        measure(prepared, artifacts, request, 60 * MIB, seconds=50)
    assert time.perf_counter() - begun < 30  # it would hang for 60 seconds
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    assert not list(prepared.job.work.glob("footprint-*"))


def test_a_peak_that_nobody_saw_in_time_is_refused_as_well(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "PERIOD", 60.0)
    prepared = plan({"held": HELD})
    with pytest.raises(MemoryRefused, match="at its peak"):
        measured(prepared, HELD * MIB // 2)


def test_a_crash_is_no_matter_of_memory(plan: Any) -> None:
    with pytest.raises(ChildFailed, match="SIGKILL"):
        measured(plan({"crashes": True}), 4 << 30)


def test_what_was_measured_is_kept_for_the_same_plan(plan: Any, registry: Registry) -> None:
    def of(prepared: Any) -> Measured | None:
        return known(registry.store, prepared.plan)

    found = Measured(1000, 2000, -5, 2, 0.25)
    prepared = plan({"held": 3})
    assert of(prepared) is None
    keep(prepared, found)
    assert of(plan({"held": 3})) == found
    assert of(plan({"held": 3}, accuracy={"max_error": 0.5})) == found  # how it is judged takes no memory
    for other in (plan({"held": 4}), plan({"held": 3}, instances=2), plan({"held": 3}, shapes={"n": 2})):
        assert of(other) is None
    keep(prepared, replace(found, peak=7))
    again = known(prepared.registry.store, prepared.plan)
    assert again is not None
    assert again.peak == 7


@pytest.mark.parametrize(
    "data", [[], "x", {}, {"peak": "1"}, {"peak": -1}, {"peak": 1.5}, {"peak": None}, {"more": 1}, {"exact": 1}]
)
def test_foreign_data_is_measured_anew(plan: Any, data: Any) -> None:
    prepared = plan({"held": 5})
    whole = {"baseline": 1, "peak": 1, "steady": 1, "instances": 1, "seconds": 0.5, "exact": True}
    foreign = {**whole, **data} if isinstance(data, dict) and data else data
    prepared.registry.store.put("footprints", footprint._key(prepared.plan), foreign)
    assert known(prepared.registry.store, prepared.plan) is None
    prepared.registry.store.put("footprints", footprint._key(prepared.plan), whole)
    assert known(prepared.registry.store, prepared.plan) == Measured(1, 1, 1, 1, 0.5)


def test_a_request_arrives_as_it_was(tmp_path: Path) -> None:
    feeds: dict[str, Any] = {
        "plain": np.arange(6.0).reshape(2, 3), "strided": np.arange(12, dtype=np.int8)[::2], "empty": np.empty((0, 3)),
        "scalar": np.array(7), "text": np.array(["a", "ü"], object),
        "list": [np.ones(3), np.zeros((2, 2))], "none": None,
    }  # fmt: skip
    footprint._write(tmp_path / "feeds", feeds)
    found = footprint._read(tmp_path / "feeds")
    assert found.keys() == feeds.keys()
    for name in ("plain", "strided", "empty", "scalar", "text"):
        np.testing.assert_array_equal(found[name], feeds[name])
        assert found[name].dtype == feeds[name].dtype
    assert found["plain"].flags.writeable
    assert found["none"] is None
    assert [array.tolist() for array in found["list"]] == [[1, 1, 1], [[0, 0], [0, 0]]]


def test_an_input_in_another_shape_has_its_own_elements() -> None:
    whole = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert footprint._reshaped(whole, (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.shares_memory(footprint._reshaped(whole, (2, 3)), whole)
    assert footprint._reshaped(whole, (5, 3)).ravel().tolist() == [*range(12), 0, 1, 2]
    assert footprint._reshaped(whole, (0, 4)).shape == (0, 4)
    assert footprint._reshaped(whole, None) is whole and footprint._reshaped([whole], (1,)) == [whole]


def test_where_the_mark_cannot_be_set_back_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    highest = b"\1" * (150 * MIB)
    del highest
    monkeypatch.setattr(resident, "_CLEAR", Path(tempfile.gettempdir()) / "no" / "such" / "file")
    before = resident.resident()
    with resident.peak() as peak:
        taken = b"\1" * (50 * MIB)
        time.sleep(10 * resident.PERIOD)
        del taken
    found, exact = peak()
    assert not exact
    assert abs(found - before - 50 * MIB) < NEAR
