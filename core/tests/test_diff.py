"""What changes from one config to another, on adapters that are here, that are not, and that nobody brings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddock_fakes_far as far
import paddock_fakes_segments as odd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock import auto
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import carry_out, deploy
from paddock.diff import Diff, Moved, compare, diff
from paddock.errors import ConfigError, ModelError, NotAvailable, PaddockError
from paddock.facts import OPEN, OWN, REFUSED, STAYS, UNASKED, Told
from paddock.memory_plan import Footprint, MemoryPlan, SegmentMemory
from paddock.npz import write_npz
from paddock.plan import (
    Answer,
    Means,
    NodePlacement,
    NodePrecision,
    Placement,
    Plan,
    Precision,
    PrecisionPlan,
    Remedy,
    Segment,
    Setting,
    Verdict,
)
from paddock.prepare import prepare
from paddock.reading import open_model
from paddock.registry import Registry
from paddock.sides import UNKNOWN, Side, side
from paddock.spi import Device, Devices, Shapes

ORT: Mapping[str, Any] = {"hardware": "cpu", "backend": "onnxruntime"}
ODD: Mapping[str, Any] = {"hardware": "cpu", "backend": "odd"}
FAR: Mapping[str, Any] = {"hardware": "npu", "backend": "far"}
RIGID: Mapping[str, Any] = {"hardware": "npu", "backend": "rigid", "precision": "fp16"}
REFERENCE: Mapping[str, Any] = {"hardware": "cpu", "backend": "reference"}
ABSENT: Mapping[str, Any] = {"hardware": "gpu", "backend": "tensorrt"}
Compared = Callable[..., Diff]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return far.discover(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`wide.onnx`: y = tanh(x @ w + w), x [n, 64]; `line.onnx`: y = abs(neg(x)), x [2, 3]."""
    place = tmp_path_factory.mktemp("models")
    w = np.eye(64, dtype=np.float32)
    nodes = [("a MatMul", "x w", "p"), ("b Tanh", "p", "q"), ("c Neg", "q", "y")]
    odd.save(place / "wide.onnx", nodes, ["y"], ["n", 64], w=w)
    odd.save(place / "line.onnx", [("a Neg", "x", "p"), ("b Abs", "p", "y")], ["y"])
    return place


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture(scope="module")
def compared(registry: Registry, children: Children, folder: Path) -> Compared:
    def call(before: Any, after: Any, model: str = "wide") -> Diff:
        return diff(folder / f"{model}.onnx", before, after, registry=registry, children=children)

    return call


def change(found: Diff, topic: str, what: str) -> tuple[Any, Any]:
    """The values before and after of one change; None where a side does not have it, `...` where nobody can tell."""
    hits = [c for c in found.changes if (c.topic, c.what) == (topic, what)]
    assert len(hits) == 1, [(c.topic, c.what) for c in found.changes]
    told = (hits[0].before, hits[0].after)
    here, there = (None if t is None else t.value if t.known else ... for t in told)
    return here, there


def groups(moved: tuple[Moved, ...]) -> set[tuple[str, str, str]]:
    return {(m.before, m.after, ", ".join(f"{n} {op}" for op, n in m.operators)) for m in moved}


def problems(found: Side) -> list[str]:
    return [f"{error.where}: {error.problem}" for error in found.refused]


# Adapters that are here


@pytest.mark.parametrize("config", [ORT, {**ODD, "batch_size": 4}, {**FAR, "precision": "fp16"}, ABSENT, RIGID])
def test_nothing_changes_from_a_config_to_itself(
    config: Mapping[str, Any], compared: Compared, registry: Registry, children: Children, folder: Path
) -> None:
    found = compared(config, dict(reversed(list(config.items()))))
    assert found.same and not found.lost
    # Told twice, not taken for the other because the configs are equal.
    loaded = HardwareConfig.load(config)
    sides = [side(folder / "wide.onnx", loaded, registry, children, 2**30, print) for _ in range(2)]
    again = compare(*sides)
    assert again.same and not again.lost and sides[0] is not sides[1]


def test_options_that_the_other_adapter_does_not_have_are_lost(compared: Compared) -> None:
    before = {**ORT, "options": {"spinning": True, "graph_optimization": "basic"}}
    found = compared(before, {**ODD, "options": {"level": 2}})
    assert change(found, "options", "spinning") == (True, None)
    assert change(found, "options", "level") == (None, 2)
    assert found.lost["options.spinning"] == "cpu/odd has no such option" == found.lost["options.graph_optimization"]
    assert not found.after.refused, "they are not stated there"
    has, gets = change(found, "options", "the adapter's own")
    assert "spinning" in has and "spinning" not in gets and "level" in gets


def test_a_config_with_another_adapters_options_is_told_and_would_be_refused(compared: Compared) -> None:
    """One line of the file was changed, as the promise goes."""
    found = compared({**ORT, "options": {"spinning": True}}, {**ODD, "options": {"spinning": True, "level": 1}})
    (refused,) = found.after.refused
    assert refused.where == "config: $.options.spinning" and "no such option" in refused.problem
    assert found.after.verdict == Verdict.yes() and "options.spinning" in found.lost
    assert change(found, "options", "level") == (None, 1)


def test_an_option_that_is_only_not_stated_falls_to_its_default(compared: Compared) -> None:
    found = compared({**ODD, "options": {"level": 2}}, ODD)
    assert change(found, "options", "level") == (2, 0)
    assert found.lost["options.level"] == "not stated for cpu/odd, whose default is 0"


def test_nodes_that_run_elsewhere(compared: Compared) -> None:
    before = {**ODD, "options": {"refuses": ["Tanh"]}, "fallback": ["cpu/reference"]}
    found = compared(before, ODD)
    assert groups(found.placed) == {("cpu/reference", OWN, "1 Tanh")}
    (moved,) = found.placed
    assert moved.nodes == (1,) and "not cpu/odd: no kernel for Tanh" in moved.reasons[0] and not moved.reasons[1]
    assert change(found, "operators", f"nodes {OWN}") == (2, 3)
    assert change(found, "operators", "nodes on cpu/reference") == (1, None)
    assert change(found, "operators", "segments") == (3, 1)
    assert change(found, "memory", "on cpu/odd")[0].startswith("2 segments, ")
    back = compared(ODD, before)
    assert groups(back.placed) == {(OWN, "cpu/reference", "1 Tanh")}


def test_nodes_that_nobody_takes_are_named_and_the_rest_is_told(compared: Compared) -> None:
    found = compared(ODD, {**ODD, "options": {"refuses": ["Tanh"]}, "batch_size": 8})
    assert found.after.verdict.answer is Answer.NO and "does not take 1 of 3 nodes" in found.after.verdict.reason
    assert groups(found.placed) == {(OWN, REFUSED, "1 Tanh"), (OWN, UNASKED, "1 MatMul, 1 Neg")}
    refused = next(m for m in found.placed if m.after == REFUSED)
    assert "no kernel for Tanh [the odd table]" in refused.reasons[1]
    assert change(found, "memory", "inputs and outputs") == (0, 2 * 8 * 64 * 4)
    assert change(found, "shapes", "x")[1] == "[1..8, 64]"
    assert not found.computed, "what the model says in fp32 is what is computed, whoever does"


def test_the_precision_changes(compared: Compared) -> None:
    found = compared(REFERENCE, {**REFERENCE, "precision": "fp16", "operators": {"keep_fp32": ["Tanh"]}})
    assert change(found, "precision", "precision") == ("fp32", "fp16")
    assert change(found, "precision", "means") == ("none", "cast")
    assert change(found, "precision", "nodes by dtype") == ({"float32": 3}, {"float16": 1, STAYS: 2})
    assert ("float32", STAYS, "1 Tanh") in groups(found.computed)
    reasons = {dict(m.operators).popitem()[0]: m.reasons for m in found.computed}
    assert reasons["Tanh"] == ("", "kept by the config") and reasons["MatMul"] == ("", "")
    assert "casts" in reasons["Neg"][1], "it stands between what stays and the output"
    assert change(found, "precision", "weights smaller by") == (None, 64 * 64 * 2)
    assert change(found, "memory", "weights") == (64 * 64 * 4, 64 * 64 * 2)
    assert change(found, "accuracy", "budget") == ("max_error 0.0001", "max_error 0.01")
    assert change(found, "config", "operators.keep_fp32") == (None, ["Tanh"])


def test_memory_and_shapes_change_with_the_batch(compared: Compared) -> None:
    found = compared({**ORT, "batch_size": 2}, {**ORT, "batch_size": 64, "memory": {"limit": "1GiB"}, "instances": 2})
    each = 2 * 64 * 4  # bytes for one row of x and y
    assert change(found, "memory", "inputs and outputs") == (2 * each, 2 * 64 * each)
    assert change(found, "shapes", "x") == ("[1..2, 64]", "[1..64, 64]")
    assert change(found, "config", "memory.limit") == (None, 2**30)
    least, most = change(found, "memory", "at least"), change(found, "memory", "at most")
    assert least[0] < least[1] and most[0] < most[1]
    largest = found.after.largest
    assert largest is not None and 64 < largest <= 65_536
    assert not found.placed and not found.computed


def test_what_is_over_its_limit_is_planned_and_would_be_refused(compared: Compared) -> None:
    found = compared(ORT, {**ORT, "batch_size": 64, "memory": {"limit": 1000}})
    assert found.after.verdict == Verdict.yes()
    (refused,) = found.after.refused
    assert "over memory.limit" in refused.problem and change(found, "memory", "at least")[1] > 1000


def test_known_defects_of_one_side(compared: Compared) -> None:
    found = compared({**ODD, "options": {"defect_nodes": ["b"]}, "fallback": ["cpu/reference"]}, ODD)
    before, after = change(found, "known defects", "odd-1")
    assert before == "applied, 1 node kept off: computes it oddly; kept off" and after is None


def test_what_an_adapter_or_precision_has_no_use_for_is_left_out_to_tell_the_rest(
    compared: Compared, tmp_path: Path
) -> None:
    rows = np.random.default_rng(7).standard_normal((16, 64)).astype(np.float32)
    write_npz(tmp_path / "c.npz", {"x": rows}, "test")
    stated = {"calibration": {"samples": str(tmp_path / "c.npz")}, "fallback": ["cpu/onnxruntime"]}
    found = compared({**REFERENCE, "precision": "fp16", **stated}, {**ORT, "threads": 1, **stated, "storage": "fp16"})
    assert problems(found.after) == [
        "config: $.fallback[0]: has no effect: it is the adapter that the config asks for",
        "config: $.calibration: has no effect with precision fp32",
    ]
    assert found.lost["calibration.samples"] == "fp32 on cpu/onnxruntime is given none"
    assert found.after.plan.precision.storage == "float16" and found.after.verdict == Verdict.yes()
    threads = compared({**ORT, "threads": 2}, {**REFERENCE, "threads": 2})
    assert [error.where for error in threads.after.refused] == ["config: $.threads"]
    assert threads.after.verdict == Verdict.yes()


def test_int8_without_samples_is_told_as_far_as_possible(compared: Compared) -> None:
    found = compared(ORT, {**ORT, "precision": "int8"})
    assert found.after.verdict.answer is Answer.NO and "needed with precision int8" in found.after.verdict.reason
    assert change(found, "precision", "means") == ("none", "quantize")
    assert change(found, "memory", "weights") == (64 * 64 * 4, 64 * 64)
    assert {(m.before, m.after) for m in found.computed} == {("float32", UNKNOWN)}


def test_golden_outputs(compared: Compared, tmp_path: Path) -> None:
    golden = {**ORT, "accuracy": {"verify": "golden", "golden": str(tmp_path / "none.npz")}}
    found = compared(golden, REFERENCE)
    assert "not stated: it is verified against cpu/reference" in found.lost["accuracy.golden"]
    assert len(found.before.refused) == 1 and "cannot be read" in found.before.refused[0].problem


# Hardware that is not here


def test_a_plan_without_the_device_is_provisional(compared: Compared) -> None:
    found = compared(ORT, {**FAR, "precision": "fp16"}, "line")
    assert found.after.verdict == Verdict.provisional("npu/far: no far device answers", "the adapter's declaration"), (
        found.after.verdict
    )
    assert not found.after.refused
    assert groups(found.placed) == {(OWN, OPEN, "1 Abs, 1 Neg")}
    assert found.placed[0].reasons == ("", "ask it there")
    assert change(found, "hardware", "device") == ("0 (CPU)", ...)
    assert change(found, "hardware", "threads of a session")[1] is ...
    assert change(found, "precision", "means") == ("none", "cast")
    assert change(found, "memory", "taken of") == ("host", "npu")
    assert change(found, "options", "the adapter's own")[1] == ["manner", "tiles"]
    assert {(m.before, m.after) for m in found.computed} == {("float32", "float16")}
    doubtful = {c.what for c in found.changes if c.after is not None and c.after.verdict.answer is Answer.PROVISIONAL}
    assert doubtful >= {"nodes by dtype", "casts", "at most"}


@pytest.mark.parametrize(("manner", "said"), [("raise", "cannot reach None"), ("crash", "SIGABRT")])
def test_an_adapter_that_cannot_answer_without_its_device(compared: Compared, manner: str, said: str) -> None:
    found = compared(ODD, {**FAR, "options": {"manner": manner, "tiles": 2}})
    assert groups(found.placed) == {(OWN, OPEN, "1 MatMul, 1 Neg, 1 Tanh")}
    reason = found.placed[0].reasons[1]
    assert "cannot be asked without its device" in reason and said in reason
    assert change(found, "options", "tiles") == (None, 2)


def test_what_it_refuses_even_so_goes_to_the_fallback_or_is_refused(compared: Compared) -> None:
    found = compared(ODD, {**FAR, "threads": 2, "fallback": ["cpu/odd"], "candidates": ["cpu/onnxruntime"]})
    assert groups(found.placed) == {(OWN, OPEN, "1 MatMul, 1 Neg"), (OWN, "cpu/odd", "1 Tanh")}
    assert problems(found.after) == ["config: $.threads: has no effect there"]
    assert change(found, "memory", "taken of") == ("host", "npu")
    assert any("candidates are left aside" in c.what for c in found.changes)
    alone = compared(ODD, FAR)
    assert (OWN, REFUSED, "1 Tanh") in groups(alone.placed)


def test_an_adapter_of_fixed_shapes_says_what_is_open(compared: Compared) -> None:
    found = compared(ORT, {**RIGID, "fallback": ["cpu/odd"]})
    (refused,) = found.after.refused
    assert refused.where == "config: $.shapes" and "these are open: {'x': '[n?, 64]'}" in refused.problem
    assert groups(found.placed) == {(OWN, OPEN, "1 MatMul, 1 Neg"), (OWN, "cpu/odd", "1 Tanh")}, "told all the same"
    assert change(found, "shapes", "the adapter takes") == ("any", "fixed shapes")
    assert change(found, "precision", "means") == ("none", "cast")
    assert change(found, "memory", "weights") == (64 * 64 * 4, 64 * 64 * 2)
    fixed = compared(ORT, {**RIGID, "fallback": ["cpu/odd"], "shapes": {"n": 1}})
    assert fixed.after.verdict.answer is Answer.PROVISIONAL and not fixed.after.refused
    wide = compared(ORT, {**RIGID, "precision": "fp32"})
    assert wide.after.verdict == Verdict.no("npu/rigid does not compute in fp32")


def test_the_largest_batch_of_a_device_of_unknown_memory(compared: Compared) -> None:
    found = compared({**ORT, "batch_size": "max"}, {**FAR, "batch_size": "max"}, "wide")
    assert found.before.verdict == Verdict.yes() and found.before.largest is not None
    # Tanh is refused before anybody asks for the batch, unless there is a fallback.
    assert found.after.verdict.answer is Answer.NO
    found = compared({**ORT, "batch_size": 4}, {**FAR, "batch_size": "max", "fallback": ["cpu/odd"]})
    assert "nobody can tell how large a batch fits" in problems(found.after)[0]
    assert found.after.verdict.answer is Answer.PROVISIONAL
    assert change(found, "config", "batch_size") == (4, "max")


def test_what_is_not_here_is_told_where_there_is_no_plan_either(compared: Compared) -> None:
    """Tanh is refused, and the device is away: the one would not go away with the other."""
    found = compared(ORT, {**FAR, "threads": 1}, "wide").after
    assert found.verdict.answer is Answer.NO and "does not take 1 of 3 nodes" in found.verdict.reason
    told = [error.problem for error in found.refused]
    assert told == ["npu/far: no far device answers", "has no effect there", found.verdict.reason]
    with pytest.raises(ConfigError, match="many") as malformed:
        compared(ORT, {**FAR, "options": {"tiles": "many"}})
    assert [each.problem for each in malformed.value.besides] == ["npu/far: no far device answers"]


def test_nothing_is_ever_deployed_on_an_assumed_device(registry: Registry, children: Children, folder: Path) -> None:
    model = folder / "line.onnx"
    prepared = prepare(model, FAR, registry=registry, children=children, assume=True)
    assert prepared.assumed == "npu/far: no far device answers"
    told = ("NOT CONFIRMED by a device: npu/far: no far device answers", "npu/far: 2 nodes, far away")
    assert set(told) <= set(prepared.plan.notes)
    with pytest.raises(NotAvailable, match="only to be looked at: npu/far: no far device answers"):
        carry_out(prepared)
    prepared.discard()
    with pytest.raises(NotAvailable, match="no far device answers"):
        deploy(model, FAR, registry=registry, children=children)
    with pytest.raises(NotAvailable, match="no far device answers"):
        prepare(model, FAR, registry=registry, children=children)
    served = prepare(model, {**FAR, "candidates": ["cpu/odd"]}, registry=registry, children=children)
    served.discard()
    assert served.plan.adapter == "cpu/odd" and not served.assumed


def test_what_was_told_of_an_assumed_device_is_no_answer_of_a_real_one(
    registry: Registry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assumed = registry.consider("npu/far", HardwareConfig.load(FAR), assume=True)
    assert assumed.assumed and assumed.instance().device is None
    usable = dict.fromkeys(Precision, Verdict.yes())
    device = Device(0, "far 1", usable)
    monkeypatch.setattr(registry, "devices", lambda registered, probe: Devices(Verdict.yes(), (device,)))
    real = registry.consider("npu/far", HardwareConfig.load(FAR))
    assert not real.assumed and real.instance().device == device
    assert real.versions != assumed.versions, "which are in every key"
    assert registry.consider("npu/far", HardwareConfig.load(FAR), assume=True) == real


def test_an_adapter_that_nobody_brings(compared: Compared) -> None:
    before = {**ORT, "options": {"spinning": True}, "batch_size": 4}
    found = compared(before, {**ABSENT, "precision": "fp16", "options": {"workspace": 1}, "batch_size": 4})
    assert "brought by the plugin paddock-tensorrt" in found.after.verdict.reason
    assert found.after.refused[-1].remedy and "pip install paddock-tensorrt" in found.after.refused[-1].remedy
    assert change(found, "options", "workspace") == (None, 1) and change(found, "options", "spinning") == (True, ...)
    assert found.lost["options.spinning"].startswith("perhaps: ")
    assert change(found, "memory", "weights") == (64 * 64 * 4, 64 * 64 * 2)
    assert change(found, "memory", "at least")[1] == 64 * 64 * 2 + 2 * 4 * 64 * 4, "inputs and outputs stay float32"
    assert change(found, "memory", "at most")[1] is ... and change(found, "shapes", "the adapter takes")[1] is ...
    assert change(found, "accuracy", "budget") == ("max_error 0.0001", "max_error 0.01")
    assert groups(found.placed) == {(OWN, UNASKED, "1 MatMul, 1 Neg, 1 Tanh")}


# Malformed


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ({**ORT, "batch": 4}, ConfigError, r"\$\.batch"),
        ({**ORT, "options": {"spinning": "often"}}, ConfigError, r"\$\.options\.spinning"),
        ({**ORT, "operators": {"exclude": ["Tahn"]}}, ConfigError, r"'Tahn' is neither"),
        ({**ABSENT, "operators": {"exclude": ["Tahn"]}}, ConfigError, r"'Tahn' is neither"),
        ({**ABSENT, "shapes": {"z": 1}}, ConfigError, r'\$\.shapes\.z'),
        ({**ABSENT, "fallback": ["cpu/onnxrutime"]}, ConfigError, r"\$\.fallback\[0\]: no such adapter"),
        ({**FAR, "devices": [0, 1]}, ConfigError, r"\$\.devices"),
        ({"hardware": "gpu", "backend": "nonesuch"}, NotAvailable, "no installed plugin brings gpu/nonesuch"),
        ({"hardware": "cpu", "backend": "auto"}, ConfigError, "was not settled"),
        ("no such.json", ConfigError, "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_an_error(
    compared: Compared, config: Any, error: type[PaddockError], said: str, first: bool
) -> None:
    with pytest.raises(error) as caught:
        compared(*((config, ORT) if first else (ORT, config)))
    assert re.search(said, str(caught.value)), str(caught.value)


def test_a_model_that_is_not_there(registry: Registry, folder: Path) -> None:
    for config in (ORT, ABSENT):
        with pytest.raises(ModelError, match="no such file"):
            diff(folder / "none.onnx", config, config, registry=registry)


def test_auto_takes_what_was_settled_and_measures_nothing(
    compared: Compared, registry: Registry, children: Children, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"hardware": "cpu", "backend": "auto", "batch_size": 4}
    monkeypatch.setattr(auto, "tune", lambda *a, **k: pytest.fail("it measures"))
    with pytest.raises(ConfigError, match="paddock tune"):
        compared(asked, ORT)
    found = auto.read(asked)
    assert isinstance(found, auto.Auto)
    key = auto._key(open_model(folder / "wide.onnx", registry, children), found, registry)
    registry.store.put("tuned", key, {"config": {**ORT, "batch_size": 4}})
    assert compared(asked, {**ORT, "batch_size": 4}).same


# Properties


OPS = ("Conv", "Conv", "Relu", "Shape")
NAMES = st.sampled_from(["a", "b"])
SIZES = st.integers(0, 3)
VERDICTS = st.builds(Verdict, st.sampled_from(Answer), NAMES)
DTYPES = st.sampled_from(["", "float32", "float16", UNKNOWN])


def _side(
    verdict: Verdict, placed: list[tuple[str, Verdict]], dtypes: list[str], kept: list[bool], sizes: list[int],
    words: list[str], options: Mapping[str, int | None] | None, config: Mapping[str, Any], shapes: Shapes | None,
    largest: int | None,
) -> Side:  # fmt: skip
    rows = enumerate(zip(OPS, placed, strict=True))
    nodes = tuple(NodePlacement(i, op, f"cpu/{name}", found) for i, (op, (name, found)) in rows)
    segments = tuple(Segment(i, "cpu/a", (i,), (), ()) for i in range(sizes[0]))
    memory = tuple(
        SegmentMemory(i, "cpu/a", weights=n, io=n, unknown=n // 2, footprint=Footprint(n, 0) if n % 2 else None)
        for i, n in enumerate(sizes)
    )
    reasons = [
        NodePrecision(i, op, d, "kept" if k else "") for i, (op, d, k) in enumerate(zip(OPS, dtypes, kept, strict=True))
    ]
    means = Means.CAST if kept[0] else Means.NONE
    plan = Plan(
        model="m", format=words[0], adapter=f"cpu/{words[1]}", device=words[0],
        precision=PrecisionPlan(Precision.FP16, means, nodes=tuple(reasons) if kept[1] else ()),
        placement=Placement(nodes, segments), memory=MemoryPlan(memory, sizes[1], measured=sizes[2] or None),
        shapes={words[2]: words[0]}, settings=(Setting("threads", sizes[0]),), budget=words[1],
        remedies=(Remedy(words[0], words[1], "", kept[2]),), notes=tuple(words),
    )  # fmt: skip
    loaded = HardwareConfig.load({"hardware": "cpu", "backend": words[1], **config})
    return Side(loaded, loaded, plan, verdict, (), tuple(dtypes), means if kept[3] else None, options, shapes, largest)


FOUR = 4
SIDES = st.builds(
    _side, VERDICTS, st.lists(st.tuples(NAMES, VERDICTS), min_size=FOUR, max_size=FOUR),
    st.lists(DTYPES, min_size=FOUR, max_size=FOUR), st.lists(st.booleans(), min_size=FOUR, max_size=FOUR),
    st.lists(SIZES, min_size=3, max_size=3), st.lists(NAMES, min_size=3, max_size=3),
    st.none() | st.dictionaries(NAMES, SIZES, max_size=2),
    st.fixed_dictionaries({}, optional={
        "batch_size": st.sampled_from([1, 2, "max"]), "strict": st.booleans(), "threads": st.integers(1, 2),
        "options": st.dictionaries(NAMES, SIZES, max_size=2), "memory": st.just({"limit": 5}),
        "shapes": st.dictionaries(NAMES, st.integers(1, 2), max_size=2),
        "operators": st.sampled_from([{}, {"exclude": ["x"]}, {"exclude": {"cpu/a": ["x"]}}]),
    }),
    st.none() | st.sampled_from(Shapes), st.none() | SIZES,
)  # fmt: skip


def mirrored(found: Diff) -> Any:
    """What a diff says, read from the other end."""
    changes = {(c.topic, c.what, _told(c.after), _told(c.before)) for c in found.changes}
    moved = [{(m.after, m.before, m.reasons[::-1], m.nodes, m.operators) for m in found.placed}]
    moved.append({(m.after, m.before, m.reasons[::-1], m.nodes, m.operators) for m in found.computed})
    return changes, moved


def read(found: Diff) -> Any:
    changes = {(c.topic, c.what, _told(c.before), _told(c.after)) for c in found.changes}
    moved = [{(m.before, m.after, m.reasons, m.nodes, m.operators) for m in found.placed}]
    moved.append({(m.before, m.after, m.reasons, m.nodes, m.operators) for m in found.computed})
    return changes, moved


def _told(told: Any) -> str:
    return repr(told)


@given(SIDES)
@settings(max_examples=100, deadline=None)
def test_nothing_differs_from_itself(one: Side) -> None:
    found = compare(one, replace(one))
    assert found.same and not found.lost


@given(SIDES, SIDES)
@settings(max_examples=200, deadline=None)
def test_the_way_back_is_the_mirror_image(one: Side, other: Side) -> None:
    there, back = compare(one, other), compare(other, one)
    assert read(there) == mirrored(back)
    assert there.same == back.same
    for found in (there, back):
        assert all(c.before is not None or c.after is not None for c in found.changes)
        assert len({(c.topic, c.what) for c in found.changes}) == len(found.changes)
        nodes = [node for moved in found.placed for node in moved.nodes]
        assert len(set(nodes)) == len(nodes)
        assert not found.same or not found.lost


def test_a_null_that_is_known_is_not_what_nobody_can_tell() -> None:
    yes = [("a", Verdict.yes())] * FOUR
    one = _side(Verdict.yes(), yes, [""] * FOUR, [False] * FOUR, [1, 1, 1], ["a"] * 3, {"a": None}, {}, None, None)
    stated = replace(one, config=one.config.model_copy(update={"options": {"a": None}}))
    unknown = replace(one, options=None)
    (row,) = [c for c in compare(stated, unknown).changes if (c.topic, c.what) == ("options", "a")]
    assert row.before == Told(None) and row.after is not None and not row.after.known


# The command


def paddock(folder: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "paddock.cli", "diff", *map(str, arguments)], capture_output=True, text=True,
        check=False, timeout=100,
        env={**os.environ, "PADDOCK_ALLOW": "paddock-reference,paddock-onnxruntime", "COLUMNS": "160"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def test_the_command_in_tables(folder: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps({**ORT, "options": {"spinning": True}}))
    b.write_text(json.dumps({**REFERENCE, "batch_size": 4, "options": {"spinning": True}}))
    done = paddock(folder, a, b, "--model", folder / "wide.onnx")
    assert done.returncode == 0, done.stderr
    for part in (
        f"A  cpu/onnxruntime ({a}): planned", f"B  cpu/reference ({b}): planned", "cpu/reference has no such option",
        "would be refused", "[1..4, 64]", "A cpu/onnxruntime -> B cpu/reference",
    ):  # fmt: skip
        assert part in done.stdout, done.stdout


def test_the_command_where_nothing_changes(folder: Path) -> None:
    same = paddock(folder, json.dumps(ORT), json.dumps(ORT), "--model", folder / "wide.onnx")
    assert same.returncode == 0 and same.stdout.endswith("nothing changes\n")


def test_the_command_on_hardware_that_nobody_brings(folder: Path) -> None:
    absent = paddock(folder, json.dumps(ORT), json.dumps(ABSENT), "--model", folder / "wide.onnx")
    assert absent.returncode == 0 and "NOT PLANNED" in absent.stdout and "paddock-tensorrt" in absent.stdout


def test_the_command_as_a_document(folder: Path) -> None:
    done = paddock(
        folder, json.dumps(ORT), json.dumps({**ABSENT, "precision": "fp16"}), "--model", folder / "wide.onnx", "--json"
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0 and not found["same"]
    assert found["before"]["planned"]["answer"] == "yes" and len(found["before"]["key"]) == 64
    assert found["after"]["planned"]["answer"] == "no" and found["after"]["refused"][0]["kind"] == "NotAvailable"
    rows = {(row["topic"], row["what"]): row for row in found["changes"]}
    assert rows["hardware", "adapter"]["after"]["value"] == "gpu/tensorrt"
    least = rows["memory", "at least"]
    assert least["before"]["value"] == 2 * least["after"]["value"] and least["after"]["unit"] == "bytes"
    assert found["operators"][0]["nodes"] == [0, 1, 2] and found["operators"][0]["operators"]["Tanh"] == 1


@pytest.mark.parametrize(
    ("after", "code"), [({**ORT, "batch": 1}, 2), ({"hardware": "gpu", "backend": "nonesuch"}, 3),
                        ({"hardware": "auto", "backend": "auto"}, 2)],
)  # fmt: skip
def test_the_command_on_malformed_input(folder: Path, after: Any, code: int) -> None:
    done = paddock(folder, json.dumps(ORT), json.dumps(after), "--model", folder / "wide.onnx", "--json")
    assert done.returncode == code == json.loads(done.stdout)["error"]["exit_code"]
