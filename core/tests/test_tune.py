"""The search for the best deployment: on contests whose outcome is known, and once on real ones."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from onnx import TensorProto, helper, save
from paddock import auto, contenders, tune
from paddock.config import HardwareConfig
from paddock.contenders import LAST_RESORT, NO_BUDGET, Candidate, Objective
from paddock.contest import Contestant
from paddock.errors import BuildFailed, ConfigError, NotAvailable, UsageError
from paddock.mixing import Mixed
from paddock.plan import Placement, Precision, Verdict
from paddock.registry import Registry
from paddock.tune import Tuned

PLAN = SimpleNamespace(placement=Placement((), ()))
Speed = Callable[[Mapping[str, Any]], float | None]


class Told:
    """A contest in which a config's speed is told: seconds for a run; None where it cannot be deployed."""

    speed: Speed
    dies: Callable[[str, int], bool]
    noise = 0.02
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

    def open(self, contestant: Contestant, seconds: float) -> bool:
        Told.opened.append(contestant.label)
        speed = Told.speed(contestant.source)
        if speed is None:
            contestant.error = BuildFailed("it does not fit")
            return False
        report: Any = SimpleNamespace(error=1e-6)
        taken = round(1e6 * speed)
        opened: Any = SimpleNamespace(batch=2, taken=taken, report=report, plan=PLAN)
        contestant.opened = opened
        Told.alive.add(contestant.label)
        Told.most = max(Told.most, len(Told.alive))
        return True

    def round(self, contestants: Sequence[Contestant], seconds: float = 0.2) -> None:
        self.turn += 1
        drift = math.exp(math.sin(self.turn))
        for contestant in contestants:
            assert contestant.label in Told.alive, "it is not running"
            if contestant.error is not None or Told.dies(contestant.label, self.turn):
                contestant.error = contestant.error or BuildFailed("the process crashed with SIGSEGV")
                continue
            speed = Told.speed(contestant.source)
            assert speed is not None
            took = [speed * drift * math.exp(self.rng.normal(0, self.noise)) for _ in range(5)]
            contestant.turns.append(self.turn)
            contestant.rounds.append(took)
            contestant.rates.append(1 / float(np.median(took)))

    def close(self, contestant: Contestant) -> None:
        Told.alive.discard(contestant.label)


class Fake:
    """An adapter as far as tuning asks; some things it refuses together, as real ones do."""

    formats = ("onnx",)

    def __init__(self, config: HardwareConfig, device: Any) -> None:
        if config.options.get("x") == 3:
            raise ConfigError("x of 3 does not go with this config", where="$.options.x")

    @classmethod
    def name(cls) -> str:
        return f"{cls.hardware}/{cls.backend}"  # type: ignore[attr-defined]


def host(
    *adapters: str,
    precisions: Sequence[Precision] = (Precision.FP32,),
    savers: Mapping[str, Sequence[Any]] | None = None,
    aside: Sequence[str] = (),
    **knobs: Sequence[Any],
) -> Registry:
    """A registry of these adapters, each with the tunables given; those `aside` do not contend."""
    usable = {p: Verdict.yes() for p in precisions}
    found = {}
    for name in adapters:
        hardware, _, backend = name.partition("/")
        tunables = {knob.replace("__", "."): values for knob, values in knobs.items()}
        kind = type(backend, (Fake,), {
            "hardware": hardware, "backend": backend, "tunables": tunables, "savers": savers or {},
            "precisions": frozenset(precisions), "contends": name not in aside,
        })  # fmt: skip
        devices = SimpleNamespace(verdict=Verdict.yes(), devices=[SimpleNamespace(precisions=usable)])
        found[name] = SimpleNamespace(adapter=kind), SimpleNamespace(verdict=Verdict.yes()), devices
    registry: Any = SimpleNamespace(  # as much of one as tuning asks for
        survey=lambda: found,
        get=lambda name: found[name][0],
        canonical=lambda name: name.replace("onednn", "mkldnn"),
        consider=lambda name, config: SimpleNamespace(config=config, device=None),
        formats={"onnx": SimpleNamespace(converts_to=()), "other": SimpleNamespace(converts_to=())},
    )
    made: Registry = registry
    return made


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "Contest", Told)
    monkeypatch.setattr(tune, "cores", lambda: 1)
    monkeypatch.setattr("paddock.tune.busy_cores", lambda seconds: 0.1)
    monkeypatch.setattr(contenders, "cores", lambda: 1)
    monkeypatch.setattr(tune, "open_model", lambda *asked: SimpleNamespace(format="onnx"))


def tuned(
    speed: Speed,
    registry: Registry,
    base: Mapping[str, Any] | None = None,
    dies: Callable[[str, int], bool] = lambda label, turn: False,
    **options: Any,
) -> Tuned:
    Told.speed, Told.dies = staticmethod(speed), staticmethod(dies)
    found = tune.tune(Path("m.onnx"), base or {}, registry=registry, **options)
    assert Told.most <= tune.ALIVE + 1 and not Told.alive
    return found


def verdicts(found: Tuned) -> dict[str, str]:
    return {row.label: row.verdict for row in found.tried}


SEVEN = [f"cpu/a{n}" for n in range(7)]


@pytest.mark.parametrize("objective", ["latency", "throughput", "memory"])
@pytest.mark.parametrize("fastest", range(7))
def test_the_fastest_wins_wherever_it_stands(fastest: int, objective: Objective) -> None:
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


def test_who_crashes_while_it_is_measured_loses_nothing_for_the_others() -> None:
    speeds = {f"a{n}": 1.0 + n for n in range(7)}
    found = tuned(lambda c: speeds[c["backend"]], host(*SEVEN), dies=lambda label, turn: "a0" in label and turn > 1)
    rows = {row.adapter: row for row in found.tried}
    assert found.config["backend"] == "a1" and rows["cpu/a0"].verdict == "refused"
    assert rows["cpu/a0"].reason == "the process crashed with SIGSEGV"
    with pytest.raises(NotAvailable) as caught:
        tuned(lambda c: 1.0, host("cpu/a", "cpu/b"), dies=lambda label, turn: turn > 5)
    assert len(caught.value.candidates) == 2 and "SIGSEGV" in caught.value.candidates[0]


def test_a_noisy_final_goes_on_until_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def speed(config: Mapping[str, Any]) -> float:
        return 1.12 if config["backend"] == "a" else 1.0

    quiet = tuned(speed, host("cpu/a", "cpu/b"))
    assert {row.rounds for row in quiet.tried} == {tune.FINAL} and quiet.config["backend"] == "b"
    monkeypatch.setattr(Told, "noise", 0.6)
    noisy = tuned(speed, host("cpu/a", "cpu/b"))
    assert {row.rounds for row in noisy.tried} == {tune.FINALS * tune.FINAL}, "and ends all the same"
    alike = tuned(lambda config: 1.0, host("cpu/a", "cpu/b"), objective="memory")
    assert {row.rounds for row in alike.tried} == {tune.RUNGS[0]}, "of memory, three rounds tell"


def test_a_busy_host_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(lambda config: 1.0, host("cpu/a"))
    assert found.load == 0.1 and "busy" not in found.reason
    seen = iter([0.0, 0.8])  # before and after
    monkeypatch.setattr("paddock.tune.busy_cores", lambda seconds: next(seen))
    found = tuned(lambda config: 1.0, host("cpu/a"))
    assert found.load == 0.8 and "others kept 0.8 of 1 cores busy" in found.reason


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
        ({"precision": "int8", "calibration": {"samples": "s"}, "backend": "b"}, {"cpu/b int8", "gpu/b int8"}),
        ({"hardware": "cpu", "precision": "fp32"}, {"cpu/mkldnn fp32", "cpu/b fp32"}), ({"hardware": "tpu"}, set()),
    ):  # fmt: skip
        budget = {"accuracy": {"max_error": 0.01}}
        assert {c.label for c in contenders.candidates({**base, **budget}, registry, "onnx") if not c.aside} == labels
    found = contenders.candidates({}, registry, "onnx")
    assert [c.place for c in found] == sorted(c.place for c in found)
    assert all(isinstance(c, Candidate) for c in found)


def asides(base: Mapping[str, Any], registry: Registry, format: str = "onnx") -> dict[str, str]:
    return {c.label: c.aside for c in contenders.candidates(base, registry, format)}


def test_a_narrow_precision_wins_only_inside_a_stated_budget() -> None:
    registry = host("cpu/a", precisions=(Precision.FP32, Precision.BF16, Precision.INT8))

    def speed(config: Mapping[str, Any]) -> float:
        return {"fp32": 1.0, "bf16": 0.5, "int8": 0.2}[config["precision"]]

    found = tuned(speed, registry)
    assert found.config["precision"] == "fp32" and NO_BUDGET in found.reason
    reasons = {row.label: row.reason for row in found.tried if row.verdict == "not tried"}
    assert reasons == {"cpu/a bf16": NO_BUDGET, "cpu/a int8": NO_BUDGET}
    budget = {"accuracy": {"max_error": 0.01}}
    found = tuned(speed, registry, budget)
    assert found.config == {**budget, "hardware": "cpu", "backend": "a", "precision": "bf16"}
    assert NO_BUDGET not in found.reason and verdicts(found)["cpu/a int8"] == "not tried"
    calibrated = {"accuracy": {"min_agreement": {"top1": 0.9}}, "calibration": {"samples": "s"}}
    found = tuned(speed, registry, calibrated)
    assert found.config["precision"] == "int8" and found.config["calibration"] == {"samples": "s"}
    assert tuned(speed, registry, {"precision": "bf16"}).config["precision"] == "bf16", "asked for by name"


def test_who_is_there_to_be_checked_against_is_the_last_resort() -> None:
    registry = host("cpu/a", "cpu/z", aside=["cpu/a"])
    found = tuned(lambda config: 0.1 if config["backend"] == "a" else 1.0, registry)
    assert found.config["backend"] == "z" and verdicts(found)["cpu/a fp32"] == "not tried"
    named = tuned(lambda config: 1.0, registry, {"hardware": "cpu", "backend": "a"})
    assert named.config["backend"] == "a" and named.tried[0].latency is not None, "measured even where it is alone"
    assert asides({"backend": "a"}, registry) == {"cpu/a fp32": LAST_RESORT}, "only the backend is named"
    found = tuned(lambda config: 1.0 if config["backend"] == "a" else None, registry)
    assert found.config["backend"] == "a" and verdicts(found) == {"cpu/z fp32": "refused", "cpu/a fp32": "chosen"}


def test_what_does_not_fit_is_told_and_not_tried() -> None:
    registry = host("cpu/a", options__x=(2, 3))
    found = tuned(lambda config: 1.0, registry)
    rows = {row.label: row.reason for row in found.tried if row.verdict == "not tried"}
    assert rows == {"cpu/a fp32, options.x 3": "x of 3 does not go with this config"}
    assert "does not go" in asides({"options": {"x": 3}}, registry)["cpu/a fp32"]
    assert "no way there from other" in asides({}, registry, "other")["cpu/a fp32"]
    with pytest.raises(NotAvailable) as caught:
        tuned(lambda config: 1.0, registry, {"options": {"x": 3}})
    assert caught.value.candidates == ("cpu/a fp32: x of 3 does not go with this config",)


def test_knobs_are_turned_together_while_that_is_faster() -> None:
    registry = host("cpu/a", options__x=(1, 2), options__y=(1,))

    def speed(config: Mapping[str, Any]) -> float:
        options = config.get("options", {})
        return (0.8 if options.get("x") == 2 else 1.0) * (0.7 if options.get("y") == 1 else 1.0)

    found = tuned(speed, registry)
    assert found.config["options"] == {"x": 2, "y": 1}
    assert len(found.tried) == 6 and Told.opened.count("cpu/a fp32, options.x 2, options.y 1") == 1, "in either order"


@pytest.mark.parametrize(
    ("objective", "base", "knobs"),
    [
        ("latency", {}, [("options.x", 1), ("threads", 4), ("threads", 2), ("threads", 1)]),
        ("memory", {}, [("options.s", 9), ("threads", 4), ("threads", 2), ("threads", 1)]),
        ("throughput", {"threads": 8}, [("options.x", 1), *(("instances", n) for n in (8, 4, 2))]),
        ("latency", {"instances": 4}, [("options.x", 1), ("threads", 1)]),
        ("latency", {"instances": 8, "options": {"x": 7}}, []),
    ],
)  # fmt: skip
def test_knobs_are_those_that_can_matter(
    objective: Objective, base: Mapping[str, Any], knobs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "cores", lambda: 8)
    registry = host("cpu/a", savers={"options.s": (9,)}, options__x=(1,))
    (plain,) = contenders.candidates(base, registry, "onnx")
    found = list(contenders.turned(plain, objective, registry))
    assert [c.knobs[0] for c in found] == knobs and len({c.label for c in found}) == len(found)


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
    assert auto.stated(plain) == {**plain, "precision": "fp32"} and not isinstance(auto.read(plain), auto.Auto)
    assert auto.stated({"hardware": "auto", "backend": "x"}) == {"backend": "x", "precision": "fp32"}, "as ever"


def test_the_other_half_of_an_adapter_is_open_where_it_is_left_out() -> None:
    for alone in ({"hardware": "auto"}, {"backend": "auto"}):
        assert auto.stated(alone) == {"precision": "fp32"}
    for alone in ({"precision": "auto"}, {"hardware": "cpu", "precision": "auto"}):
        with pytest.raises(ConfigError, match="is required"):
            auto.read(alone)


def test_editors_are_told_of_auto() -> None:
    taken = jsonschema.Draft202012Validator(auto.json_schema())
    for config in (
        {"hardware": "auto", "backend": "auto", "precision": "auto", "tune": {"seconds": 5, "objective": "memory"}},
        {"hardware": "cpu", "backend": "x", "precision": "auto", "tune": {}}, {"hardware": "cpu", "backend": "auto"},
        {"hardware": "cpu", "backend": "x", "precision": "int8"}, {"hardware": "auto"}, {"backend": "auto"},
        {"hardware": "auto", "tune": {"seconds": 1}},
    ):  # fmt: skip
        auto.read(config)
        taken.validate(config)
    for config in (
        {"hardware": "cpu", "backend": "x", "tune": {}}, {"hardware": "auto", "backend": "auto", "precision": "fp33"},
        {"hardware": "auto", "backend": "auto", "tune": {"seconds": 0}},
        {"hardware": "auto", "backend": "auto", "tune": {"objective": "size"}},
        {"hardware": "auto", "backend": "auto", "tune": {"secnds": 1}}, {"precision": "auto"}, {"hardware": "cpu"},
        {"backend": "x", "precision": "auto"},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            auto.read(config)
        assert not taken.is_valid(config), config


@pytest.mark.long
def test_auto_is_settled_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three real adapters on a model of one operator."""
    monkeypatch.undo()
    monkeypatch.setenv("PADDOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PADDOCK_ALLOW", "paddock-onnxruntime,paddock-openvino,paddock-reference")
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
