"""The search for the best deployment: on contests whose outcome is known, and once on real ones."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save
from paddock import auto, tune
from paddock.contest import Contestant
from paddock.errors import BuildFailed, ConfigError, NotAvailable, UsageError
from paddock.mixing import Mixed
from paddock.plan import Placement, Precision, Verdict
from paddock.registry import Registry
from paddock.tune import Candidate, Tuned

PLAN = SimpleNamespace(placement=Placement((), ()))
Speed = Callable[[Mapping[str, Any]], float | None]


class Told:
    """A contest in which a config's speed is told: seconds for a run; None where it cannot be deployed."""

    speed: Speed
    alive: set[str]
    most: int
    opened: list[str]
    sample = "a sample"

    def __init__(self, model: Path, sample: Any = None, memory: bool = True) -> None:
        Told.alive, Told.most, Told.opened, self.turn = set(), 0, [], 0
        self.rng = np.random.default_rng(7)

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *error: object) -> None:
        Told.alive.clear()

    def open(self, contestant: Contestant) -> bool:
        Told.opened.append(contestant.label)
        speed = Told.speed(contestant.source)
        if speed is None:
            contestant.error = BuildFailed("it does not fit")
            return False
        report: Any = SimpleNamespace(error=1e-6)
        taken = round(1e6 * speed)
        contestant.opened = SimpleNamespace(batch=2, taken=taken, report=report, plan=PLAN)  # type: ignore[assignment]
        Told.alive.add(contestant.label)
        Told.most = max(Told.most, len(Told.alive))
        return True

    def round(self, contestants: Sequence[Contestant], seconds: float = 0.2) -> None:
        self.turn += 1
        drift = math.exp(math.sin(self.turn))
        for contestant in contestants:
            assert contestant.label in Told.alive, "it is not running"
            speed = Told.speed(contestant.source)
            assert speed is not None
            took = [speed * drift * math.exp(self.rng.normal(0, 0.02)) for _ in range(5)]
            contestant.turns.append(self.turn)
            contestant.rounds.append(took)
            contestant.rates.append(1 / float(np.median(took)))

    def close(self, contestant: Contestant) -> None:
        Told.alive.discard(contestant.label)


def host(*adapters: str, precisions: Sequence[Precision] = (Precision.FP32,), **knobs: Sequence[Any]) -> Registry:
    """A registry of these adapters, each with the tunables given."""
    usable = {p: Verdict.yes() for p in precisions}
    found = {}
    for name in adapters:
        hardware, _, backend = name.partition("/")
        tunables = {knob.replace("__", "."): values for knob, values in knobs.items()}
        kind = SimpleNamespace(hardware=hardware, backend=backend, name=lambda name=name: name, tunables=tunables)
        devices = SimpleNamespace(verdict=Verdict.yes(), devices=[SimpleNamespace(precisions=usable)])
        found[name] = SimpleNamespace(adapter=kind), SimpleNamespace(verdict=Verdict.yes()), devices
    registry: Any = SimpleNamespace(  # as much of one as tuning asks for
        survey=lambda: found, get=lambda name: found[name][0], canonical=lambda name: name.replace("onednn", "mkldnn")
    )
    made: Registry = registry
    return made


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "Contest", Told)
    monkeypatch.setattr(tune, "cores", lambda: 1)


def tuned(speed: Speed, registry: Registry, base: Mapping[str, Any] | None = None, **options: Any) -> Tuned:
    Told.speed = staticmethod(speed)
    found = tune.tune(Path("m.onnx"), base or {}, registry=registry, **options)
    assert Told.most <= tune.ALIVE + 1 and not Told.alive
    return found


def verdicts(found: Tuned) -> dict[str, str]:
    return {row.label: row.verdict for row in found.tried}


SEVEN = [f"cpu/a{n}" for n in range(7)]


@pytest.mark.parametrize("objective", ["latency", "throughput", "memory"])
@pytest.mark.parametrize("fastest", range(7))
def test_the_fastest_wins_wherever_it_stands(fastest: int, objective: tune.Objective) -> None:
    speeds = {f"a{n}": 1.0 + 0.5 * ((n - fastest) % 7) for n in range(7)}
    found = tuned(lambda config: speeds[config["backend"]], host(*SEVEN), objective=objective)
    assert found.config == {"hardware": "cpu", "backend": f"a{fastest}", "precision": "fp32"}
    by = verdicts(found)
    assert by.pop(f"cpu/a{fastest} fp32") == "chosen" and set(by.values()) == {"slower"} and len(by) == 6
    for row in found.tried:
        if row.ratio is not None:
            true = speeds[row.adapter[4:]] / speeds[f"a{fastest}"]
            assert row.ratio[1] * 0.9 <= true <= row.ratio[2] * 1.1


def test_a_tie_goes_to_the_simpler() -> None:
    registry = host("cpu/a", "cpu/b", precisions=(Precision.FP32, Precision.BF16), options__x=(1, 2))
    found = tuned(lambda config: 1.0, registry)
    assert found.config == {"hardware": "cpu", "backend": "a", "precision": "fp32"}
    assert "cannot be told apart" in found.reason


def test_a_knob_is_turned_where_that_is_faster() -> None:
    registry = host("cpu/a", "cpu/b", options__x=(1, 2), options__y=(True,))

    def speed(config: Mapping[str, Any]) -> float:
        return (1.0 if config["backend"] == "a" else 1.3) * (0.7 if config.get("options", {}).get("x") == 2 else 1.0)

    found = tuned(speed, registry)
    assert found.config["options"] == {"x": 2} and found.config["backend"] == "a"
    assert dict(next(row.knobs for row in found.tried if row.verdict == "chosen")) == {"options.x": 2}
    kept = tuned(speed, registry, {"options": {"x": 1}})
    assert kept.config["options"] == {"x": 1}, "what is stated stays"


def test_who_cannot_be_deployed_is_told_and_loses_nothing() -> None:
    found = tuned(lambda config: None if config["backend"] in ("a0", "a3") else 1.0, host(*SEVEN))
    rows = {row.adapter: row for row in found.tried}
    assert rows["cpu/a0"].verdict == "refused" and rows["cpu/a0"].reason == "it does not fit"
    assert found.config["backend"] == "a1"
    with pytest.raises(NotAvailable, match="no candidate could be deployed") as caught:
        tuned(lambda config: None, host(*SEVEN))
    assert len(caught.value.candidates) == 7 and "cpu/a0 fp32: it does not fit" in caught.value.candidates


def test_after_its_time_nothing_further_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 3.0)
    monkeypatch.setattr("paddock.tune.time.monotonic", lambda: next(clock))
    found = tuned(lambda config: 1.0, host(*SEVEN), seconds=10.0)
    by = verdicts(found)
    late = [label for label, verdict in by.items() if verdict == "not tried"]
    assert late and len(by) == 7 and not set(late) & set(Told.opened)
    assert all(row.reason == "the time was up" for row in found.tried if row.label in late)


def test_only_what_is_open_is_varied() -> None:
    registry = host("cpu/mkldnn", "cpu/b", "gpu/b", precisions=(Precision.FP32, Precision.BF16, Precision.INT8))
    for base, labels in (
        ({"hardware": "gpu"}, {"gpu/b fp32", "gpu/b bf16"}),
        ({"backend": "onednn", "precision": "bf16"}, {"cpu/mkldnn bf16"}),
        ({"precision": "int8", "calibration": {}, "backend": "b"}, {"cpu/b int8", "gpu/b int8"}),
        ({"hardware": "cpu", "precision": "fp32"}, {"cpu/mkldnn fp32", "cpu/b fp32"}), ({"hardware": "tpu"}, set()),
    ):  # fmt: skip
        assert {candidate.label for candidate in tune.candidates(base, registry)} == labels
    assert [c.place for c in tune.candidates({}, registry)] == sorted(c.place for c in tune.candidates({}, registry))
    assert all(isinstance(c, Candidate) for c in tune.candidates({}, registry))


# Mixed placement

MIX = {"hardware": "cpu", "backend": "a0", "fallback": ["cpu/a1"], "operators": {"exclude": {"cpu/a0": ["#1 Op"]}}}


def mixing(monkeypatch: pytest.MonkeyPatch, found: Mixed) -> list[tuple[Any, ...]]:
    """What tuning asks to be mixed, which is answered with this."""
    asked: list[tuple[Any, ...]] = []

    def mix(*given: Any, **options: Any) -> Mixed:
        asked.append(given)
        return found

    monkeypatch.setattr(tune, "mix", mix)
    return asked


@pytest.mark.parametrize(("speed", "wins"), [(0.8, True), (1.0, False), (1.3, False), (None, False)])
def test_a_mix_wins_only_where_it_is_measured_faster(
    monkeypatch: pytest.MonkeyPatch, speed: float | None, wins: bool
) -> None:
    asked = mixing(monkeypatch, Mixed("predicted", config=MIX, adapters=("cpu/a0", "cpu/a1")))
    alone = {"a0": 1.0, "a1": 1.2, "a2": 9.0}
    found = tuned(
        lambda config: speed if "fallback" in config else alone[config["backend"]],
        host("cpu/a0", "cpu/a1", "cpu/a2"), mixed=True,
    )  # fmt: skip
    assert found.config == (MIX if wins else {"hardware": "cpu", "backend": "a0", "precision": "fp32"})
    ((_, best, others, sample),) = asked
    assert best["backend"] == "a0" and others == ["cpu/a1"] and sample == Told.sample, "a2 is too slow to be mixed in"
    by = verdicts(found)
    assert by.pop("cpu/a0 + cpu/a1 fp32, mixed") in (
        ("chosen",) if wins else ("refused",) if speed is None else ("tied", "slower")
    )
    assert found.mixed is not None and ("could not be deployed" in found.mixed.reason) == (speed is None)


def test_a_mix_that_came_out_otherwise_does_not_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    meant = Mixed("predicted", config=MIX, adapters=("cpu/a0", "cpu/a1"), segments=(("cpu/a0", (0, 1)),))
    mixing(monkeypatch, meant)
    found = tuned(lambda config: 0.1 if "fallback" in config else 1.0, host("cpu/a0", "cpu/a1"), mixed=True)
    assert found.mixed is not None and "1 of 1 segments came out other" in found.mixed.reason
    assert "fallback" not in found.config and set(verdicts(found)) == {"cpu/a0 fp32", "cpu/a1 fp32"}


def test_mixing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = mixing(monkeypatch, Mixed("no cut"))
    assert tuned(lambda config: 1.0, host("cpu/a0", "cpu/a1")).mixed is None and not asked
    found = tuned(lambda config: 1.0, host("cpu/a0", "cpu/a1"), mixed=True, objective="throughput")
    assert found.mixed is not None and "latency" in found.mixed.reason and not asked
    found = tuned(lambda config: 1.0, host("cpu/a0", "cpu/a1"), mixed=True)
    assert found.mixed is not None and found.mixed.reason == "no cut" and len(asked) == 1


# What a config says


@pytest.mark.parametrize(
    ("config", "error", "problem"),
    [
        ({"hardware": "cpu", "backend": "x", "tune": {}}, ConfigError, r"\$\.tune: has no effect"),
        ({"hardware": "auto", "backend": "auto", "tune": {"seconds": 0}}, ConfigError, r"\$\.tune\.seconds"),
        ({"hardware": "auto", "backend": "auto", "tune": {"objective": "size"}}, ConfigError, r"\$\.tune\.objective"),
        ({"hardware": "auto", "backend": "auto", "tune": {"secnds": 1}}, ConfigError, r"\$\.tune\.secnds"),
        ({"hardware": "auto", "backend": "auto", "tune": 5}, ConfigError, r"\$\.tune"),
        ({"hardware": "auto", "backend": "auto", "batch": 5}, ConfigError, r"\$\.batch"),
        ({"hardware": "auto", "backend": "auto", "instances": "auto"}, ConfigError, r"\$\.instances"),
        ("no such file.json", ConfigError, "no such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_beside_auto_is_told(config: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        auto.read(config)


def test_what_is_stated_beside_auto(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({
        "hardware": "cpu", "backend": "auto", "precision": "auto", "batch_size": 4, "accuracy": {"samples": "s.npz"},
        "tune": {"seconds": 5, "objective": "throughput"},
    }))  # fmt: skip
    found = auto.read(path)
    assert isinstance(found, auto.Auto) and found.tune == auto.Tune(seconds=5, objective="throughput")
    samples = str(tmp_path / "s.npz")
    assert found.stated == {"hardware": "cpu", "batch_size": 4, "accuracy": {"samples": samples}}
    assert auto.stated(None) == {} and auto.stated(str(path)) == found.stated
    plain = {"hardware": "cpu", "backend": "x"}
    assert auto.stated(plain) == plain and not isinstance(auto.read(plain), auto.Auto)


@pytest.mark.long
def test_auto_is_settled_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three real adapters on a model of one operator."""
    monkeypatch.undo()
    monkeypatch.setenv("PADDOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PADDOCK_PLUGINS", "paddock-onnxruntime,paddock-openvino,paddock-reference")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = tmp_path / "m.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    config = {"hardware": "auto", "backend": "auto", "tune": {"seconds": 30}}
    with auto.deploy(model, config) as deployment:
        chosen = deployment.plan.adapter
        assert deployment.report.outcome == "passed" and chosen.startswith("cpu/")
        assert deployment.run({"x": np.ones((2, 8), np.float32)})["y"].sum() == 16
    monkeypatch.setattr(auto, "tune", lambda *a, **k: pytest.fail("it was measured before"))
    assert auto.settled(model, config).adapter == chosen
    with pytest.raises(UsageError, match="is read already"):
        auto.settled(deployment.model, config)
