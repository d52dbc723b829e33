"""Repair and bisect: the nodes to blame are found, moved, told and remembered, or the first error stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddock_fakes_segments as odd
import pytest
from paddock import repair as repair_module
from paddock.bisect import bisect
from paddock.child import Children
from paddock.deployment import Deployment, deploy
from paddock.errors import AccuracyRefused, ConfigError, NotAvailable, PaddockError
from paddock.npz import write_npz
from paddock.registry import Registry
from paddock.verify import Outcome

Deploy = Callable[..., Deployment]
ORT = ["cpu/onnxruntime"]
SHAPE = (128, 1024)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return odd.discover(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


def config(adapter: str = "cpu/odd", **fields: Any) -> dict[str, Any]:
    hardware, _, backend = adapter.partition("/")
    return {"hardware": hardware, "backend": backend, **fields}


@pytest.fixture
def serve(registry: Registry, children: Children) -> Iterator[Deploy]:
    made: list[Deployment] = []

    def call(model: Path, **fields: Any) -> Deployment:
        odd.WATCH.events.clear()
        made.append(deploy(model, config(**fields), registry=registry, children=children))
        return made[-1]

    yield call
    for deployment in made:
        deployment.close()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight nodes in a row, at half a MiB a value: two of them are worth a segment of their own between others."""
    ops = ["Abs", "Sqrt", "Neg", "Tanh", "Abs", "Neg", "Tanh", "Abs"]
    names = "pqrstuv"
    wires = list(zip("abcdefgh", ops, f"x{names}", f"{names}y", strict=True))
    return odd.save(
        tmp_path_factory.mktemp("line") / "m.onnx", [(f"{n} {op}", read, made) for n, op, read, made in wires], ["y"],
        SHAPE,
    )  # fmt: skip


X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def right(deployment: Deployment) -> None:
    found = deployment.run({"x": X})["y"]
    np.testing.assert_allclose(found, np.tanh(np.abs(np.tanh(-np.sqrt(np.abs(X))))), rtol=1e-4, atol=1e-6)
    assert deployment.report.outcome is Outcome.PASSED


def on(deployment: Deployment, adapter: str = "cpu/odd") -> str:
    """The nodes that an adapter runs, by name."""
    graph = deployment.model.graph
    return "".join(graph.nodes[p.node].name for p in deployment.plan.placement.nodes if p.adapter == adapter)


def repaired(deployment: Deployment) -> str:
    (note,) = [note for note in deployment.plan.notes if note.startswith("REPAIRED")]
    return note


# What repair finds


@pytest.mark.long
def test_one_type_that_is_wrong(serve: Deploy, line: Path) -> None:
    with pytest.raises(AccuracyRefused, match="relative error") as caught:
        serve(line, fallback=ORT, options={"wrong_types": ["Tanh"]})
    deployment = serve(line, fallback=ORT, options={"wrong_types": ["Tanh"]}, repair=True)
    right(deployment)
    note = repaired(deployment)
    assert "#3 Tanh (d), #6 Tanh (g) kept off cpu/odd" in note and f"before: {caught.value.problem}" in note
    assert set("dg").isdisjoint(on(deployment)) and "a" in on(deployment)
    (facts,) = odd.WATCH.of("repair")
    assert facts["nodes"] == {"cpu/odd": [3, 6]} and f"REPAIRED in {facts['runs']} runs" in note
    passed = deployment.plan.placement.nodes[3].passed
    assert passed[0][1].reason.startswith("kept off by repair: with it, ")
    assert passed[0][1].source == f"bisection, {facts['runs']} runs"


@pytest.mark.parametrize("culprit", ["c", "f"])
def test_one_node_of_its_type(serve: Deploy, line: Path, culprit: str) -> None:
    deployment = serve(line, fallback=ORT, options={"wrong_nodes": [culprit]}, repair=True)
    right(deployment)
    assert odd.WATCH.of("repair")[0]["nodes"] == {"cpu/odd": ["abcdefgh".index(culprit)]}
    assert on(deployment) == "abcdefgh".replace(culprit, "")


@pytest.mark.parametrize("beside", [{"c": "f"}, {"f": "c"}, {"a": "b"}, {"g": "b"}])
def test_a_node_that_is_wrong_beside_another(serve: Deploy, line: Path, beside: Mapping[str, str]) -> None:
    """Which of the two goes does not matter; one is enough, and any in between that parts them."""
    deployment = serve(line, fallback=ORT, options={"wrong_beside": beside}, repair=True)
    right(deployment)
    (facts,) = odd.WATCH.of("repair")
    assert len(facts["nodes"]["cpu/odd"]) == 1 and len(on(deployment)) >= 6


@pytest.mark.parametrize("manner", ["crash_run", "crash_load", "raise_run"])
def test_a_node_that_is_the_end_of_the_process(serve: Deploy, line: Path, manner: str) -> None:
    deployment = serve(line, fallback=ORT, options={manner: ["e"]}, repair=True)
    right(deployment)
    assert "#4 Abs (e) kept off cpu/odd" in repaired(deployment)
    said = "ArithmeticError: odd arithmetic" if manner == "raise_run" else "SIGSEGV"
    assert said in repaired(deployment)


@pytest.mark.parametrize("manner", ["fail_run", "garbage_beside_a_border"])
def test_a_session_that_gives_up_in_words_of_paddocks(serve: Deploy, line: Path, manner: str) -> None:
    fields: dict[str, Any] = {"options": {"fail_run": ["e"]}}
    if manner != "fail_run":
        fields = {"options": {"garbage": ["e"]}, "operators": {"exclude": ["b"]}}
    right(serve(line, fallback=ORT, repair=True, **fields))


def test_cheap_nodes_are_not_blamed_for_others(serve: Deploy, tmp_path: Path) -> None:
    names = "abcdefgh"
    nodes = [(f"{n} {'Tanh' if n in 'dg' else 'Abs'}", f"v{i}", f"v{i + 1}") for i, n in enumerate(names)]
    model = odd.save(tmp_path / "m.onnx", nodes, ["v8"])
    serve(model, fallback=ORT, options={"wrong_types": ["Tanh"]}, repair=True)
    assert odd.WATCH.of("repair")[0]["nodes"] == {"cpu/odd": [3, 6]}


def test_attempts_are_no_events(serve: Deploy, line: Path) -> None:
    serve(line, fallback=ORT, options={"wrong_nodes": ["a"]}, repair=True)
    assert len(odd.WATCH.of("plan")) == 2 and len(odd.WATCH.of("fallback")) == 1


def test_a_node_that_fails_in_the_pipeline(serve: Deploy, line: Path) -> None:
    """What is wrong before the search is itself in several segments."""
    deployment = serve(line, fallback=ORT, options={"wrong_nodes": ["f"]}, operators={"exclude": ["b"]}, repair=True)
    right(deployment)
    assert odd.WATCH.of("repair")[0]["nodes"] == {"cpu/odd": [5]}
    assert on(deployment) == "acdegh"
    assert deployment.plan.placement.nodes[1].passed[0][1].reason == "excluded by the config"


def test_what_compilation_refuses_is_no_fault(serve: Deploy, line: Path) -> None:
    """Refused nodes go without a search, and a search meets refusals on its way."""
    deployment = serve(line, fallback=ORT, options={"unsupported": ["b"]}, repair=True)
    right(deployment)
    assert odd.WATCH.of("repair") == [] and on(deployment) == "acdefgh"
    deployment = serve(line, fallback=ORT, options={"unsupported": ["b"], "wrong_nodes": ["g"]}, repair=True)
    right(deployment)
    assert odd.WATCH.of("repair")[0]["nodes"] == {"cpu/odd": [6]} and on(deployment) == "acdefh"


def test_a_fallback_that_is_wrong_too(serve: Deploy, line: Path) -> None:
    """Moving the two Neg to the next adapter does not help; the search then keeps them off both."""
    deployment = serve(
        line, fallback=["cpu/wrong-at-neg", "cpu/reference"], options={"wrong_types": ["Neg"]}, repair=True
    )  # fmt: skip
    right(deployment)
    (facts,) = odd.WATCH.of("repair")
    assert facts["nodes"] == {"cpu/odd": [2, 5], "cpu/wrong-at-neg": [2, 5]}
    note = repaired(deployment)
    assert "kept off cpu/odd" in note and "kept off cpu/wrong-at-neg" in note
    assert [deployment.plan.placement.nodes[n].adapter for n in (2, 5)] == ["cpu/reference"] * 2


def test_only_what_somebody_else_takes_is_moved(serve: Deploy, line: Path) -> None:
    """The fallback does not take every node; the search leaves those where they are."""
    exclude = {"cpu/onnxruntime": ["a", "h"]}
    deployment = serve(
        line, fallback=ORT, options={"wrong_nodes": ["d"]}, operators={"exclude": exclude}, repair=True
    )  # fmt: skip
    right(deployment)
    assert odd.WATCH.of("repair")[0]["nodes"] == {"cpu/odd": [3]}


# What is remembered


def compiled(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_the_second_deployment_does_not_search(serve: Deploy, line: Path, tmp_path: Path) -> None:
    options = {"wrong_nodes": ["d"], "log": str(tmp_path / "log")}
    first = serve(line, fallback=ORT, options=options, repair=True)
    searched = compiled(tmp_path / "log")
    (facts,) = odd.WATCH.of("repair")
    second = serve(line, fallback=ORT, options=options, repair=True)
    right(second)
    assert odd.WATCH.of("repair") == [] and repaired(second) == repaired(first)
    assert compiled(tmp_path / "log") == searched >= facts["runs"], "what was made then is kept"
    assert second.plan.key == first.plan.key and second.plan.placement == first.plan.placement


def test_what_is_remembered_is_of_this_check_alone(serve: Deploy, line: Path) -> None:
    """Another budget, other samples, and no repair asked for: nothing of it is used."""
    fields: dict[str, Any] = {"fallback": ORT, "options": {"wrong_nodes": ["g"]}}
    serve(line, **fields, repair=True)
    with pytest.raises(AccuracyRefused):
        serve(line, **fields)
    wide = serve(line, **fields, repair=True, accuracy={"max_error": 10})
    assert on(wide) == "abcdefgh" and odd.WATCH.of("repair") == []
    serve(line, **fields, repair=True, accuracy={"max_error": 0.001})
    assert len(odd.WATCH.of("repair")) == 1


def test_nothing_is_searched_for_where_all_is_well(serve: Deploy, line: Path) -> None:
    deployment = serve(line, fallback=ORT, repair=True)
    assert odd.WATCH.of("repair") == [] and on(deployment) == "abcdefgh"
    assert not any("REPAIRED" in note for note in deployment.plan.notes)


# Where nothing helps


def test_the_first_error_stands_where_nothing_helps(serve: Deploy, line: Path) -> None:
    with pytest.raises(AccuracyRefused) as plain:
        serve(line, fallback=["cpu/wrong-at-neg"], options={"wrong_types": ["Neg"]})
    with pytest.raises(AccuracyRefused) as caught:
        serve(line, fallback=["cpu/wrong-at-neg"], options={"wrong_types": ["Neg"]}, repair=True)
    assert caught.value.problem == plain.value.problem and caught.value.report == plain.value.report
    assert "the repair failed: even with all of its nodes on" in str(caught.value)
    assert odd.WATCH.of("repair") == []


def test_a_search_that_takes_too_long_is_given_up(serve: Deploy, line: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_module, "RUNS", 3)
    with pytest.raises(AccuracyRefused) as caught:
        serve(line, fallback=ORT, options={"wrong_nodes": ["b", "g"]}, repair=True)
    assert caught.value.candidates == ("the repair failed: no set of nodes was found to blame in 3 runs",)


def test_a_check_that_proves_nothing_is_not_repaired(serve: Deploy, tmp_path: Path) -> None:
    model = odd.save(
        tmp_path / "m.onnx", [("a Mul", "x zero", "p"), ("b Abs", "p", "y")], ["y"], zero=np.zeros((2, 3), np.float32)
    )
    with pytest.raises(AccuracyRefused, match="inconclusive") as caught:
        serve(model, fallback=ORT, repair=True)
    assert "the repair failed" not in str(caught.value)


@pytest.mark.parametrize("fields", [{"repair": True}, {"repair": True, "fallback": ORT, "accuracy": {"verify": "off"}}])
def test_repair_without_effect_is_a_config_error(serve: Deploy, line: Path, fields: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match="repair has no effect"):
        serve(line, **fields)


# Bisect


def test_bisect_writes_a_config_that_works(registry: Registry, children: Children, serve: Deploy, line: Path) -> None:
    fields: dict[str, Any] = {"options": {"wrong_types": ["Tanh"]}, "operators": {"exclude": ["b"]}, "repair": True}
    found = bisect(line, config(fallback=ORT, **fields), registry=registry, children=children)
    assert found.nodes == {"cpu/odd": ("#3 Tanh", "#6 Tanh")} and found.total == 8
    assert found.config == {
        "hardware": "cpu", "backend": "odd", "fallback": ORT, "options": {"wrong_types": ["Tanh"]},
        "operators": {"exclude": ["b", "#3 Tanh", "#6 Tanh"]},
    }  # fmt: skip
    right(serve(line, **{k: v for k, v in found.config.items() if k not in ("hardware", "backend")}))


def test_bisect_finds_its_own_fallbacks(registry: Registry, children: Children, serve: Deploy, line: Path) -> None:
    found = bisect(line, config(options={"wrong_nodes": ["d"]}), registry=registry, children=children)
    assert found.config["fallback"] == ["cpu/reference", "cpu/onnxruntime"] == list(found.chain[1:])
    assert found.config["operators"] == {"exclude": ["#3 Tanh"]}
    right(serve(line, **{k: v for k, v in found.config.items() if k not in ("hardware", "backend")}))


def test_bisect_over_several_adapters(registry: Registry, children: Children, serve: Deploy, line: Path) -> None:
    chain = ["cpu/wrong-at-neg", "cpu/reference"]
    before = {"cpu/reference": ["b"], "cpu/strange": ["#0"]}
    wrong = config(fallback=chain, options={"wrong_types": ["Neg"]}, operators={"exclude": before})
    found = bisect(line, wrong, registry=registry, children=children)
    both = ["#2 Neg", "#5 Neg"]
    assert found.config["operators"]["exclude"] == {
        "cpu/reference": ["b"], "cpu/strange": ["#0"], "cpu/odd": both, "cpu/wrong-at-neg": both,
    }  # fmt: skip
    right(serve(line, **{k: v for k, v in found.config.items() if k not in ("hardware", "backend")}))


def test_bisect_where_there_is_nothing_to_find(registry: Registry, children: Children, line: Path) -> None:
    ask: dict[str, Any] = {"registry": registry, "children": children}
    found = bisect(line, config(operators={"exclude": {"cpu/odd": ["b"]}}, fallback=ORT), **ask)
    assert found.nodes == {} and found.culprits.runs == 1 and found.culprits.problem == ""
    assert found.config["operators"] == {"exclude": {"cpu/odd": ["b"]}}
    with pytest.raises(NotAvailable, match="even with all of its nodes on cpu/wrong-at-neg"):
        wrong = config(fallback=["cpu/wrong-at-neg"], options={"wrong_types": ["Neg"]})
        bisect(line, wrong, **ask)
    with pytest.raises(PaddockError, match="verify"):
        bisect(line, config(accuracy={"verify": "off"}), **ask)


def test_bisect_with_nobody_to_move_nodes_to(children: Children, line: Path, tmp_path: Path) -> None:
    """No reference is installed, so that golden outputs judge and nobody else could run a node."""
    registry = odd.discover(tmp_path / "store", ())
    answers = np.tanh(np.abs(np.tanh(-np.sqrt(np.abs(X)))))
    more = {"1/in/x": 2 * X, "1/out/y": np.tanh(np.abs(np.tanh(-np.sqrt(np.abs(2 * X)))))}
    write_npz(tmp_path / "g.npz", {"0/in/x": X, "0/out/y": answers, **more}, "test")
    accuracy = {"verify": "golden", "golden": str(tmp_path / "g.npz")}
    wrong = config(options={"wrong_nodes": ["b"]}, accuracy=accuracy)
    with pytest.raises(NotAvailable, match="no other adapter in the chain to move nodes to: cpu/odd stands alone"):
        bisect(line, wrong, registry=registry, children=children)
    alone = bisect(line, config(accuracy=accuracy), registry=registry, children=children)
    assert alone.nodes == {} and alone.culprits.runs == 1


# The command


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, line: Path) -> Path:
    """A folder with the model, configs, samples, and the odd plugin as an installed distribution."""
    place = tmp_path_factory.mktemp("shop")
    (place / "m.onnx").write_bytes(line.read_bytes())
    facts = place / "site" / "paddock_odd-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: paddock-odd\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[paddock]\nodd = paddock_fakes_segments\n")
    (place / "configs").mkdir()
    (place / "elsewhere").mkdir()
    write_npz(place / "configs" / "s.npz", {"x": X}, "test")
    wrong = config(fallback=ORT, options={"wrong_nodes": ["d"]}, accuracy={"samples": "s.npz"})
    (place / "configs" / "wrong.json").write_text(json.dumps(wrong))
    (place / "configs" / "well.json").write_text(json.dumps(config(fallback=ORT)))
    return place


def command(shop: Path, *arguments: Any, code: int = 0) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(shop / "site"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "paddock.cli", "bisect", *map(str, arguments)], capture_output=True, text=True,
        timeout=100, check=False, cwd=shop,
        env={**os.environ, "PYTHONPATH": path, "PADDOCK_ALLOW": "paddock-odd,paddock-onnxruntime,paddock-reference"},
    )  # fmt: skip
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.long
def test_the_command_in_text_and_the_config_it_writes(shop: Path) -> None:
    output = Path("elsewhere/out.json")
    done = command(shop, "--model", "m.onnx", "--config", "configs/wrong.json", "--output", output)
    assert "1 of 8 nodes make cpu/odd wrong (" in done.stdout and "\n  #3 Tanh\n" in done.stdout
    assert done.stdout.rstrip().endswith("a config without them: elsewhere/out.json")
    written = json.loads((shop / output).read_text())
    assert written["operators"] == {"exclude": ["#3 Tanh"]}
    assert written["accuracy"] == {"samples": str(shop / "configs" / "s.npz")}
    # The config agrees, wherever it stands: with it there is nothing left to find.
    again = command(shop, "--model", "m.onnx", "--config", output)
    assert again.stdout == "agrees as it is: nothing to keep off (1 run)\n"


@pytest.mark.long
def test_the_command_in_json(shop: Path) -> None:
    done = command(shop, "--model", "m.onnx", "--config", "configs/wrong.json", "--json")
    data = json.loads(done.stdout)
    assert data["nodes"] == {"cpu/odd": ["#3 Tanh"]} and data["runs"] > 1 and data["written"] is None
    assert data["config"]["operators"] == {"exclude": ["#3 Tanh"]} and "relative error" in data["problem"]
    well = json.loads(command(shop, "--model", "m.onnx", "--config", "configs/well.json", "--json").stdout)
    assert (well["nodes"], well["runs"], well["problem"]) == ({}, 1, "")


@pytest.mark.long
def test_the_command_without_an_output_shows_the_config(shop: Path) -> None:
    done = command(shop, "--model", "m.onnx", "--config", "configs/wrong.json")
    shown = json.loads(done.stdout[done.stdout.index("{") :])
    assert shown["operators"] == {"exclude": ["#3 Tanh"]}


def test_the_command_that_cannot_write(shop: Path) -> None:
    done = command(
        shop, "--model", "m.onnx", "--config", "configs/well.json", "--output", "no/out.json", "--json", code=2
    )  # fmt: skip
    assert json.loads(done.stdout)["error"]["where"] == "--output: no/out.json"
    off = json.dumps(config(accuracy={"verify": "off"}))
    error = json.loads(command(shop, "--model", "m.onnx", "--config", off, "--json", code=3).stdout)["error"]
    assert error["where"] == "$.accuracy.verify"


def test_bisect_begins_where_the_adapter_alone_would_be_refused(
    line: Path, registry: Registry, children: Children
) -> None:
    """Without a fallback of the config's own, the excluded node would have nobody."""
    found = bisect(line, config(operators={"exclude": ["b"]}), registry=registry, children=children)
    assert found.nodes == {} and found.config["fallback"]
