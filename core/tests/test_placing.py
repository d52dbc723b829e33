"""Who gets which nodes: adapters that change their minds about a segment, and chains that are not all there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddock_fakes_segments as odd
import pytest
from onnx import TensorProto, helper
from paddock.child import Children
from paddock.deployment import Deployment, deploy
from paddock.errors import BuildFailed, ConfigError, NotAvailable, PaddockError, StrictnessError
from paddock.plan import Plan, Precision
from paddock.prepare import prepare
from paddock.registry import Registry
from paddock.verify import Outcome

Deploy = Callable[..., Deployment]
Drawn = Callable[..., Plan]


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
def plan(registry: Registry, children: Children) -> Drawn:
    """The plan alone."""

    def call(model: Path, adapter: str = "cpu/odd", **fields: Any) -> Plan:
        odd.WATCH.events.clear()
        prepared = prepare(model, config(adapter, **fields), registry=registry, children=children)
        prepared.discard()
        return prepared.plan

    return call


@pytest.fixture
def serve(registry: Registry, children: Children) -> Iterator[Deploy]:
    made: list[Deployment] = []

    def call(model: Path, adapter: str = "cpu/odd", **fields: Any) -> Deployment:
        odd.WATCH.events.clear()
        made.append(deploy(model, config(adapter, **fields), registry=registry, children=children))
        return made[-1]

    yield call
    for deployment in made:
        deployment.close()


def on(plan: Plan) -> str:
    """Who runs each node, in letters: o(dd), O(nnxruntime), r(eference), w(rong-at-neg)."""
    letters = {"cpu/odd": "o", "cpu/onnxruntime": "O", "cpu/reference": "r", "cpu/wrong-at-neg": "w"}
    return "".join(letters[node.adapter] for node in plan.placement.nodes)


def reasons(plan: Plan, node: int) -> dict[str, str]:
    return {name: f"{verdict.reason} [{verdict.source}]" for name, verdict in plan.placement.nodes[node].passed}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = abs(tanh(-sqrt(abs(x)))), node by node."""
    nodes = [("a Abs", "x", "p"), ("b Sqrt", "p", "q"), ("c Neg", "q", "r"), ("d Tanh", "r", "s"), ("e Abs", "s", "y")]
    return odd.save(tmp_path_factory.mktemp("line") / "m.onnx", nodes, ["y"])


X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


def right(deployment: Deployment) -> None:
    found = deployment.run({"x": X})["y"]
    np.testing.assert_allclose(found, np.abs(np.tanh(-np.sqrt(np.abs(X)))), rtol=1e-5)
    assert deployment.report.outcome is Outcome.PASSED


# An adapter that is asked again


@pytest.mark.long
def test_a_no_about_the_segment_alone_moves_the_node_on(serve: Deploy, line: Path) -> None:
    """Nothing is wrong with d in the whole model; behind the cut, its session would be fed r."""
    fields: dict[str, Any] = {"fallback": ["cpu/onnxruntime"], "operators": {"exclude": ["c"]}}
    assert on(serve(line, **fields).plan) == "ooOoo"
    deployment = serve(line, options={"refuses_border": ["r"]}, **fields)
    assert on(deployment.plan) == "ooOOo"
    assert reasons(deployment.plan, 3) == {"cpu/odd": "cannot be fed that value [the odd border]"}
    assert reasons(deployment.plan, 2) == {"cpu/odd": "excluded by the config [$.operators.exclude]"}
    right(deployment)


def test_a_border_that_moves_is_asked_about_again(serve: Deploy, line: Path) -> None:
    """Each refusal makes a new border, which is refused in its turn."""
    deployment = serve(
        line, fallback=["cpu/onnxruntime"], operators={"exclude": ["b"]}, options={"refuses_border": ["q", "r", "s"]}
    )  # fmt: skip
    assert on(deployment.plan) == "oOOOO"
    right(deployment)
    with pytest.raises(NotAvailable, match=r"none of cpu/odd, cpu/onnxruntime takes 1 of 5 nodes") as caught:
        serve(
            line, fallback=["cpu/onnxruntime"], options={"refuses_border": ["q"]},
            operators={"exclude": {"cpu/odd": ["b"], "cpu/onnxruntime": ["c"]}},
        )  # fmt: skip
    (line_,) = caught.value.candidates
    assert "#2 Neg (c): cpu/odd: cannot be fed that value [the odd border]" in line_
    assert "cpu/onnxruntime: excluded by the config [$.operators.exclude]" in line_


def test_a_refusal_at_compile_time(serve: Deploy, line: Path) -> None:
    deployment = serve(line, fallback=["cpu/onnxruntime"], options={"unsupported": ["b", "d"]})
    assert on(deployment.plan) == "oOoOo"  # nothing else is moved where a build has refused nodes
    assert "while compiling" in reasons(deployment.plan, 1)["cpu/odd"]
    assert "the odd compiler has no such kernel" in reasons(deployment.plan, 3)["cpu/odd"]
    right(deployment)
    with pytest.raises(NotAvailable, match="cpu/odd refused 2 nodes while compiling") as caught:
        serve(line, options={"unsupported": ["b", "d"]})
    assert caught.value.candidates == ("#1 Sqrt (b)", "#3 Tanh (d)") and "fallback" in (caught.value.remedy or "")


def test_a_refusal_at_compile_time_that_the_fallback_cannot_take(serve: Deploy, line: Path) -> None:
    with pytest.raises(NotAvailable, match="takes 1 of 5 nodes") as caught:
        serve(
            line, fallback=["cpu/onnxruntime"], options={"unsupported": ["b"]},
            operators={"exclude": {"cpu/onnxruntime": ["b"]}},
        )  # fmt: skip
    assert "the odd compiler has no such kernel" in str(caught.value)


@pytest.mark.parametrize("index", [99, -1])
def test_a_refusal_of_nodes_that_are_none(serve: Deploy, line: Path, index: int) -> None:
    """The adapter names a node that its model does not have: the whole segment goes, and nothing falls over."""
    for exclude in ([], ["c"]):
        # Not strict, since options of an adapter that is left with no node have no effect.
        fields: dict[str, Any] = {
            "options": {"unsupported_index": index}, "operators": {"exclude": exclude}, "strict": False,
        }  # fmt: skip
        deployment = serve(line, fallback=["cpu/onnxruntime"], **fields)
        assert on(deployment.plan) == "OOOOO"
        right(deployment)
    with pytest.raises(NotAvailable, match="cpu/odd refused the model while compiling: the odd compiler has no such"):
        serve(line, options={"unsupported_index": index})


def test_selection_that_says_no(serve: Deploy, line: Path) -> None:
    deployment = serve(line, fallback=["cpu/onnxruntime"], options={"refuses": ["Abs"]}, strict=False)
    assert on(deployment.plan) == "OOOOO"  # what is left in between is not worth the way
    assert reasons(deployment.plan, 0) == {"cpu/odd": "no kernel for Abs [the odd table]"}
    right(deployment)
    with pytest.raises(NotAvailable, match="cpu/odd does not take 2 of 5 nodes") as caught:
        serve(line, options={"refuses": ["Abs"]})
    assert caught.value.nodes == (0, 4)


def test_no_node_is_left_for_the_adapter_asked_for(serve: Deploy, line: Path) -> None:
    """What the fallback observes is not held against it; options that nobody has any more are no options."""
    every = ["Abs", "Sqrt", "Neg", "Tanh"]
    fields: dict[str, Any] = {
        "fallback": ["cpu/wrong-at-neg"], "operators": {"exclude": every}, "precision": "fp16",
        "accuracy": {"max_error": 10},
    }  # fmt: skip
    deployment = serve(line, **fields)
    assert on(deployment.plan) == "wwwww"
    assert {setting.effective for setting in deployment.plan.settings} == {None}
    with pytest.raises(StrictnessError, match="cpu/odd runs none of the nodes"):
        serve(line, options={"level": 2}, **fields)


# Fallbacks that are not all there


def test_a_fallback_that_is_not_installed_is_passed_over(serve: Deploy, plan: Drawn, line: Path) -> None:
    fields: dict[str, Any] = {"operators": {"exclude": ["b"]}}
    deployment = serve(line, fallback=["gpu/tensorrt", "cpu/onnxruntime"], **fields)
    assert on(deployment.plan) == "oOooo"
    (note,) = [note for note in deployment.plan.notes if "gpu/tensorrt" in note]
    assert note.startswith("the fallback gpu/tensorrt is not to be had: ")
    assert "gpu/tensorrt" in reasons(deployment.plan, 1)
    right(deployment)
    with pytest.raises(NotAvailable, match="none of cpu/odd, gpu/tensorrt takes 1 of 5 nodes") as caught:
        plan(line, fallback=["gpu/tensorrt"], **fields)
    assert "gpu/tensorrt is not to be had" in (caught.value.remedy or "")
    # Where it is not needed, nobody asks whether it is there.
    assert not plan(line, fallback=["gpu/tensorrt"]).notes


def test_a_fallback_whose_selection_crashes_is_passed_over(plan: Drawn, line: Path) -> None:
    found = plan(line, fallback=["cpu/broken", "cpu/onnxruntime"], operators={"exclude": ["b"]})
    assert on(found) == "oOooo"
    assert any("cpu/broken is not to be had" in note and "SIGABRT" in note for note in found.notes)
    with pytest.raises(BuildFailed, match="SIGABRT"):
        plan(line, "cpu/broken", fallback=["cpu/onnxruntime"])


def test_a_name_that_nobody_has(plan: Drawn, line: Path) -> None:
    with pytest.raises(ConfigError, match="no such adapter") as caught:
        plan(line, fallback=["cpu/reference", "cpu/onnxrutime"])
    assert caught.value.where == "config: $.fallback[1]"
    assert caught.value.remedy == "did you mean 'cpu/onnxruntime'?"


def test_a_fallback_that_computes_in_fp32_only(serve: Deploy, line: Path) -> None:
    deployment = serve(
        line, fallback=["cpu/onnxruntime"], operators={"exclude": ["c"]}, precision="fp16"
    )  # fmt: skip
    found = deployment.plan
    assert found.precision.precision is Precision.FP16
    assert "cpu/onnxruntime computes its nodes in fp32: it does not compute in fp16" in found.notes
    assert not any("cpu/odd computes" in note for note in found.notes)
    origin: Any = deployment._origin
    computed = [part.precision.precision for part in origin.prepared.parts]
    assert computed == [Precision.FP16, Precision.FP32, Precision.FP16]
    right(deployment)


def test_an_adapter_stands_in_the_chain_once(plan: Drawn, line: Path) -> None:
    exclude = {"cpu/odd": ["b"], "cpu/ort": ["b"]}
    fallback = ["cpu/ort", "cpu/onnxruntime", "cpu/reference"]
    found = plan(line, "cpu/strange", fallback=fallback, operators={"exclude": exclude})
    assert on(found) == "orooo" and found.adapter == "cpu/odd"
    assert list(reasons(found, 1)) == ["cpu/odd", "cpu/onnxruntime"]


@pytest.mark.parametrize("own", ["cpu/odd", "cpu/strange"])
def test_an_adapter_is_no_fallback_of_its_own(plan: Drawn, line: Path, own: str) -> None:
    with pytest.raises(ConfigError, match="has no effect") as caught:
        plan(line, fallback=["cpu/onnxruntime", own])
    assert caught.value.where == "config: $.fallback[1]"


# What the config excludes


@pytest.mark.parametrize(
    ("exclude", "where", "said"),
    [
        (["Abs", "Sqr"], "$.operators.exclude[1]", "neither an operator type nor a node's name"),
        (["#5"], "$.operators.exclude[0]", "no node #5, only #0 to #4"),
        (["#1 Neg"], "$.operators.exclude[0]", "node #1 is a Sqrt, not a Neg"),
        ({"cpu/odd": ["b", "Neg", "z"]}, '$.operators.exclude["cpu/odd"][2]', "neither an operator type"),
        ({"cpu/openvino": ["b"]}, '$.operators.exclude["cpu/openvino"]', "has no effect"),
        ({"cpu/odd": ["b"], "gpu/cuda": ["b"]}, '$.operators.exclude["gpu/cuda"]', "has no effect"),
    ],
)
def test_an_exclusion_without_effect(plan: Drawn, line: Path, exclude: Any, where: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(line, fallback=["cpu/onnxruntime"], operators={"exclude": exclude})
    assert caught.value.where == f"config: {where}" and said in caught.value.problem
    assert caught.value.candidates or caught.value.remedy or "#5" in said


# Known defects


def test_a_known_defect_keeps_its_nodes_off(serve: Deploy, line: Path) -> None:
    deployment = serve(line, fallback=["cpu/onnxruntime"], options={"defect_nodes": ["c"]})
    assert on(deployment.plan) == "ooOoo"
    assert reasons(deployment.plan, 2) == {"cpu/odd": "computes it oddly [known defect odd-1]"}
    (remedy,) = deployment.plan.remedies
    assert (remedy.name, remedy.applied, remedy.nodes) == ("odd-1", True, (2,))
    right(deployment)
    with pytest.raises(NotAvailable, match="does not take 1 of 5 nodes"):
        serve(line, options={"defect_nodes": ["c"]})


def test_the_nodes_of_a_defect_are_those_of_the_model(serve: Deploy, line: Path) -> None:
    """Known of a segment, told by the whole model's indices; each defect stands in the plan once."""
    deployment = serve(
        line, fallback=["cpu/onnxruntime"], options={"defect_nodes": ["a", "d"]}, operators={"exclude": ["b"]}
    )  # fmt: skip
    (remedy,) = deployment.plan.remedies
    assert remedy.nodes == (0, 3) and on(deployment.plan)[0] == on(deployment.plan)[3] == "O"
    right(deployment)


def test_a_defect_that_refuses_the_model(serve: Deploy, line: Path) -> None:
    deployment = serve(line, fallback=["cpu/onnxruntime"], options={"defect_refuses": True}, strict=False)
    assert on(deployment.plan) == "OOOOO"
    assert [(remedy.name, remedy.refuses) for remedy in deployment.plan.remedies] == [("odd-1", True)]
    assert "FALLBACK: 5 of 5 nodes run on cpu/onnxruntime" in deployment.plan.notes
    right(deployment)
    with pytest.raises(NotAvailable, match="does not take 5 of 5 nodes"):
        serve(line, options={"defect_refuses": True})


@pytest.mark.parametrize("exclude", [[], ["c"]])
def test_a_defect_of_nodes_that_are_none(plan: Drawn, line: Path, exclude: Sequence[str]) -> None:
    with pytest.raises(NotAvailable, match=r"knows defects of nodes \[99\]") as caught:
        plan(line, fallback=["cpu/onnxruntime"], options={"defect_index": 99}, operators={"exclude": exclude})
    assert "plugin's author" in (caught.value.remedy or "")


# Values that no array carries


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nodes with a sequence between them."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], name="a", axis=0),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], name="b", axis=0),
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    path = tmp_path_factory.mktemp("sequence") / "m.onnx"
    onnx.save(proto, path)
    return path


def test_a_unit_goes_to_whoever_takes_all_of_it(serve: Deploy, sequence: Path) -> None:
    fields: dict[str, Any] = {"fallback": ["cpu/reference"], "operators": {"exclude": ["b"]}}
    deployment = serve(sequence, "cpu/onnxruntime", **fields)
    assert on(deployment.plan) == "rr"
    assert reasons(deployment.plan, 0)["cpu/onnxruntime"].startswith("kept with the nodes that it exchanges values")


def test_the_chain_is_asked_until_units_are_taken_too(serve: Deploy, sequence: Path) -> None:
    """Each node has somebody before the last of the chain, but the sequence between them nobody."""
    chain = ["cpu/wrong-at-neg", "cpu/reference"]
    deployment = serve(sequence, fallback=chain, options={"claims": ["SplitToSequence"]}, strict=False)
    assert on(deployment.plan) == "rr"
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(deployment.run({"x": x})["y"], x)


# What is told


def test_events(serve: Deploy, line: Path) -> None:
    serve(line, fallback=["cpu/onnxruntime"], operators={"exclude": ["c"]})
    assert odd.WATCH.of("fallback") == [{"adapter": "cpu/onnxruntime", "nodes": 1}]
    assert len(odd.WATCH.of("plan")) == 1 and odd.WATCH.of("artifact") == [{"adapter": "cpu/odd", "outcome": "passed"}]
    serve(line)
    assert odd.WATCH.of("fallback") == []
    with pytest.raises(PaddockError):
        serve(line, options={"unsupported": ["b"]})
    assert [facts["error"] for facts in odd.WATCH.of("refused")] == ["NotAvailable"]


def test_the_key_tells_placements_apart(plan: Drawn, line: Path) -> None:
    def key(exclude: Any) -> str:
        return plan(line, fallback=["cpu/onnxruntime"], operators={"exclude": exclude}).key

    assert key(["b"]) == key({"cpu/odd": ["Sqrt"]}) == key(["#1"])
    assert len({key([]), key(["b"]), key(["c"]), key(["b", "c"])}) == 4
