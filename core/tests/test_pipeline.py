"""Several segments as one deployment: the answers of the whole, from any thread, in arrays that are the caller's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddock_fakes_segments as odd
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from paddock.child import Children
from paddock.deployment import Deployment, deploy
from paddock.errors import BuildFailed, PaddockError, RunFailed, StrictnessError, UsageError
from paddock.pipeline import Pipeline
from paddock.registry import Registry
from paddock.spi import Arrays
from paddock.verify import Outcome

Array = np.ndarray[Any, Any]
Deploy = Callable[..., Deployment]

REAL = ("cpu/onnxruntime", "cpu/openvino", "cpu/reference")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return odd.discover(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture
def serve(registry: Registry, children: Children) -> Iterator[Deploy]:
    """Deploys, and closes what was deployed."""
    made: list[Deployment] = []

    def call(model: Path, adapter: str = "cpu/odd", **fields: Any) -> Deployment:
        hardware, _, backend = adapter.partition("/")
        config = {"hardware": hardware, "backend": backend, **fields}
        made.append(deploy(model, config, registry=registry, children=children))
        return made[-1]

    yield call
    for deployment in made:
        deployment.close()


def wanted(model: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What the whole model answers."""
    evaluator = ReferenceEvaluator(str(model))
    return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


def agree(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape


def segments(deployment: Deployment) -> list[tuple[str, tuple[int, ...]]]:
    return [(segment.adapter, segment.nodes) for segment in deployment.plan.placement.segments]


def batch(rows: int = 2, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)}


W = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
RESIDUAL = [
    ("a Abs", "x", "p"), ("b MatMul", "p W", "q"), ("c Tanh", "q", "r"), ("d Add", "r p", "s"), ("e Mul", "s x", "y"),
]  # fmt: skip
"""p and x pass over the segment of c; p is read in two of them."""


def residual(folder: Path, outputs: Sequence[str] = ("y",), rows: int | str = 2) -> Path:
    return odd.save(folder / "m.onnx", RESIDUAL, outputs, (rows, 3), W=W)


# Who runs what, and whether it is the same


@pytest.mark.parametrize(
    ("adapter", "fallback"),
    [
        ("cpu/odd", "cpu/onnxruntime"), ("cpu/onnxruntime", "cpu/odd"), ("cpu/openvino", "cpu/onnxruntime"),
        ("cpu/onnxruntime", "cpu/openvino"), ("cpu/openvino", "cpu/reference"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", [2, "n"])
def test_a_residual_over_a_segment(serve: Deploy, tmp_path: Path, adapter: str, fallback: str, rows: int | str) -> None:
    model = residual(tmp_path, ("y", "p"), rows)  # p is an output, and read in two segments as well
    deployment = serve(model, adapter, fallback=[fallback], operators={"exclude": ["c"]})
    assert segments(deployment) == [(adapter, (0, 1)), (fallback, (2,)), (adapter, (3, 4))]
    assert deployment.report.outcome is Outcome.PASSED and len(deployment.artifacts) == 3
    for seed, count in enumerate((2, 2) if rows == 2 else (2, 5, 1)):
        agree(deployment.run(batch(count, seed)), wanted(model, batch(count, seed)))


@pytest.mark.parametrize(
    "exclude",
    [
        ["Tanh"], ["c"], ["#2"], ["#2 Tanh"], {"cpu/odd": ["Tanh"]}, {"cpu/strange": ["#2 Tanh"]},
        {"cpu/odd": ["c"], "cpu/onnxruntime": ["d"]},
    ],
)  # fmt: skip
def test_the_forms_of_exclude(serve: Deploy, tmp_path: Path, exclude: Any) -> None:
    model = residual(tmp_path)
    deployment = serve(model, fallback=["cpu/onnxruntime"], operators={"exclude": exclude})
    assert [p.adapter for p in deployment.plan.placement.nodes] == [
        "cpu/odd", "cpu/odd", "cpu/onnxruntime", "cpu/odd", "cpu/odd",
    ]  # fmt: skip
    passed = deployment.plan.placement.nodes[2].passed
    assert [(n, v.reason, v.source) for n, v in passed] == [
        ("cpu/odd", "excluded by the config", "$.operators.exclude")
    ]
    agree(deployment.run(batch()), wanted(model, batch()))


def test_three_adapters_in_turn(serve: Deploy, tmp_path: Path) -> None:
    model = residual(tmp_path, rows="n")
    exclude = {"cpu/odd": ["b", "c", "d"], "cpu/openvino": ["c", "d"], "cpu/onnxruntime": ["d"]}
    fallback = ["cpu/openvino", "cpu/onnxruntime", "cpu/reference"]
    deployment = serve(model, fallback=fallback, operators={"exclude": exclude})
    assert [a for a, _ in segments(deployment)] == ["cpu/odd", *fallback, "cpu/odd"]
    assert sum("FALLBACK: 1 of 5 nodes" in note for note in deployment.plan.notes) == 3
    agree(deployment.run(batch(7)), wanted(model, batch(7)))


def test_an_input_that_is_an_output(serve: Deploy, tmp_path: Path) -> None:
    model = odd.save(tmp_path / "m.onnx", [("a Abs", "x", "p"), ("b Tanh", "p", "y")], ["x", "y"])
    deployment = serve(model, fallback=["cpu/onnxruntime"], operators={"exclude": ["b"]})
    assert len(segments(deployment)) == 2
    feeds = batch()
    answer = deployment.run(feeds)
    agree(answer, wanted(model, feeds))
    assert not np.shares_memory(answer["x"], feeds["x"])
    answer["x"][:] = 7
    agree(deployment.run(feeds), wanted(model, feeds))


@pytest.mark.parametrize("adapter", REAL[:2])
@pytest.mark.parametrize("op", ["Identity", "Flatten", "Cast"])
def test_an_answer_that_is_a_view_of_what_crosses(serve: Deploy, tmp_path: Path, adapter: str, op: str) -> None:
    """The last segment only hands on what lies in a buffer of the lane: the answer must be a copy all the same."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
    extra = {"to": TensorProto.FLOAT} if op == "Cast" else {}
    nodes = [helper.make_node("Abs", ["x"], ["p"], name="a"), helper.make_node(op, ["p"], ["y"], name="b", **extra)]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(proto, tmp_path / "m.onnx")
    other = next(name for name in REAL if name != adapter)
    for first, second, kept_off in ((adapter, other, "b"), (other, adapter, "b")):
        deployment = serve(
            tmp_path / "m.onnx", first, fallback=[second], operators={"exclude": [kept_off]}
        )  # fmt: skip
        assert [a for a, _ in segments(deployment)] == [first, second]
        answers = [deployment.run(batch(seed=seed))["y"] for seed in range(3)]
        for seed, answer in enumerate(answers):
            np.testing.assert_array_equal(answer, np.abs(batch(seed=seed)["x"]))
            assert answer.flags.writeable


# Buffers


@pytest.fixture
def binds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Array], frozenset[str]]]:
    """What sessions of onnxruntime are asked to bind, and what they bound."""
    from paddock_onnxruntime.session import OnnxRuntimeSession

    seen: list[tuple[dict[str, Array], frozenset[str]]] = []
    real = OnnxRuntimeSession.bind

    def spy(self: OnnxRuntimeSession, buffers: Arrays) -> frozenset[str]:
        bound = real(self, buffers)
        seen.append((dict(buffers), bound))
        return bound

    monkeypatch.setattr(OnnxRuntimeSession, "bind", spy)
    return seen


Binds = list[tuple[dict[str, Array], frozenset[str]]]


def test_fixed_shapes_lie_in_buffers(serve: Deploy, tmp_path: Path, binds: Binds) -> None:
    model = residual(tmp_path, ("y", "p"))
    deployment = serve(model, "cpu/onnxruntime", fallback=["cpu/odd"], operators={"exclude": ["c"]})
    # The first writes q; p is an answer, and never lies in a buffer. What odd makes it returns: it binds nothing.
    assert [(set(buffers), set(bound)) for buffers, bound in binds] == [({"q"}, {"q"})]
    buffers = [array for offered, _ in binds for array in offered.values()]
    answers = [deployment.run(batch(seed=seed)) for seed in range(4)]
    for seed, answer in enumerate(answers):
        agree(answer, wanted(model, batch(seed=seed)))
        for other in (*buffers, *(array for later in answers[seed + 1 :] for array in later.values())):
            assert not any(np.shares_memory(array, other) for array in answer.values())
    np.testing.assert_allclose(buffers[0], np.abs(batch(seed=3)["x"]) @ W, rtol=1e-5)


def test_one_session_writes_where_the_next_reads(
    serve: Deploy, tmp_path: Path, binds: Binds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between sessions that both bind, the buffer of a border is one array, and each lane has its own."""
    from paddock_openvino.session import OpenVinoSession

    real = OpenVinoSession.bind

    def spy(self: OpenVinoSession, buffers: Arrays) -> frozenset[str]:
        bound = real(self, buffers)
        binds.append((dict(buffers), bound))
        return bound

    monkeypatch.setattr(OpenVinoSession, "bind", spy)
    model = residual(tmp_path)
    deployment = serve(
        model, "cpu/onnxruntime", fallback=["cpu/openvino"], operators={"exclude": ["c"]}, instances=2
    )  # fmt: skip
    assert [(set(offered), set(bound)) for offered, bound in binds] == [
        ({"p", "q"}, {"p", "q"}), ({"q", "r"}, {"q", "r"}), ({"p", "r"}, {"p", "r"}),
    ] * 2  # fmt: skip
    for lane in (binds[:3], binds[3:]):
        (first, _), (second, _), (third, _) = lane
        assert first["q"] is second["q"] and second["r"] is third["r"] and first["p"] is third["p"]
    assert binds[0][0]["q"] is not binds[3][0]["q"]
    for seed in range(3):
        agree(deployment.run(batch(seed=seed)), wanted(model, batch(seed=seed)))


def test_open_shapes_are_not_bound(serve: Deploy, tmp_path: Path, binds: Binds) -> None:
    model = residual(tmp_path, rows="n")
    deployment = serve(model, "cpu/onnxruntime", fallback=["cpu/odd"], operators={"exclude": ["c"]})
    assert binds == []
    answers = [deployment.run(batch(rows, rows))["y"] for rows in (1, 4, 4, 2)]
    for rows, answer in zip((1, 4, 4, 2), answers, strict=True):
        np.testing.assert_allclose(answer, wanted(model, batch(rows, rows))["y"], rtol=1e-5)


# Requests


@pytest.mark.parametrize("rows", [2, "n"])
@pytest.mark.parametrize("instances", [1, 2])
def test_from_many_threads(serve: Deploy, tmp_path: Path, rows: int | str, instances: int) -> None:
    model = residual(tmp_path, rows=rows)
    deployment = serve(
        model, "cpu/onnxruntime", fallback=["cpu/odd"], operators={"exclude": ["c"]}, instances=instances
    )  # fmt: skip
    expected = [wanted(model, batch(seed=seed)) for seed in range(8)]
    start = threading.Barrier(8)

    def ask(seed: int) -> None:
        start.wait(20)
        for _ in range(25):
            agree(deployment.run(batch(seed=seed)), expected[seed])
            agree(deployment.submit(batch(seed=seed)).result(20), expected[seed])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_run_on_each_instance_and_a_choice_of_outputs(serve: Deploy, tmp_path: Path) -> None:
    model = residual(tmp_path, ("y", "p", "q"))
    deployment = serve(model, fallback=["cpu/onnxruntime"], operators={"exclude": ["c"]}, instances=2)
    host = deployment._host
    assert isinstance(host, Pipeline)
    feeds, expected = batch(), wanted(model, batch())
    for instance in (0, 1):
        agree(host.run_on(instance, feeds), expected)
    assert list(deployment.run(feeds, ["p"])) == ["p"] and deployment.run(feeds, []) == {}
    np.testing.assert_array_equal(deployment.run(feeds, ["q", "y"])["y"], deployment.run(feeds)["y"])
    assert set(deployment.submit(feeds, ["q", "p"]).result(20)) == {"p", "q"}
    with pytest.raises(UsageError, match="no output 'r'"):
        deployment.run(feeds, ["r"])
    with pytest.raises(UsageError):
        deployment.run({"x": feeds["x"].astype(np.float64)})
    assert host.observed().nodes == 5 and host.observed().settings["precision"] == "fp32"


WIDE = [("b MatMul", "x V", "q"), ("meet MatMul", "x V", "r"), ("d Add", "q r", "y")]
"""The first two need nothing of each other."""


@pytest.mark.parametrize("instances", [1, 2])
def test_two_heavy_segments_run_at_the_same_time(
    serve: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instances: int
) -> None:
    model = odd.save(tmp_path / "m.onnx", WIDE, ["y"], (1, 1500), V=np.eye(1500, dtype=np.float32))
    deployment = serve(
        model,
        fallback=["cpu/wrong-at-neg", "cpu/onnxruntime"],
        operators={"exclude": {"cpu/odd": ["meet", "d"], "cpu/wrong-at-neg": ["d"]}},
        options={"meet": ["b"]},
        instances=instances,
    )
    assert segments(deployment) == [("cpu/odd", (0,)), ("cpu/wrong-at-neg", (1,)), ("cpu/onnxruntime", (2,))]
    # From now on each of the two waits until as many are inside as there can be.
    monkeypatch.setattr(odd.WATCH, "barrier", threading.Barrier(2 * instances))
    x = np.random.default_rng(0).standard_normal((1, 1500)).astype(np.float32)
    with ThreadPoolExecutor(instances) as pool:
        for answer in pool.map(lambda _: deployment.run({"x": x}), range(2 * instances)):
            np.testing.assert_allclose(answer["y"], 2 * x, rtol=1e-5)


def test_a_light_segment_stays_on_the_callers_thread(serve: Deploy, tmp_path: Path) -> None:
    model = odd.save(tmp_path / "m.onnx", WIDE, ["y"], (1, 8), V=np.eye(8, dtype=np.float32))
    exclude = {"cpu/odd": ["meet", "d"], "cpu/wrong-at-neg": ["d"]}
    deployment = serve(model, fallback=["cpu/wrong-at-neg", "cpu/onnxruntime"], operators={"exclude": exclude})
    before = threading.active_count()
    x = np.ones((1, 8), np.float32)
    np.testing.assert_array_equal(deployment.run({"x": x})["y"], 2 * x)
    assert threading.active_count() == before


# Ends and errors


def test_closing(serve: Deploy, tmp_path: Path) -> None:
    deployment = serve(
        residual(tmp_path), fallback=["cpu/onnxruntime"], operators={"exclude": ["c"]}, instances=2
    )  # fmt: skip
    odd.WATCH.closed.clear()
    pending = [deployment.submit(batch(seed=seed)) for seed in range(20)]
    deployment.close()
    assert all(future.result(0)["y"].shape == (2, 3) for future in pending)
    assert sorted(odd.WATCH.closed) == ["a,b", "a,b", "d,e", "d,e"]
    deployment.close()
    assert len(odd.WATCH.closed) == 4
    with pytest.raises(RunFailed, match="cpu/odd is closed"):
        deployment.run(batch())
    with pytest.raises(RunFailed, match="cpu/odd is closed"):
        deployment.submit(batch())


def test_closing_from_a_callback_of_its_own(serve: Deploy, tmp_path: Path) -> None:
    deployment = serve(residual(tmp_path), fallback=["cpu/onnxruntime"], operators={"exclude": ["c"]})
    caught: list[BaseException] = []
    told, held = threading.Event(), threading.Event()

    def close(_: Any) -> None:
        try:
            deployment._host.close()
        except PaddockError as error:
            caught.append(error)
        told.set()

    def hold() -> dict[str, Array]:
        held.wait(20)
        return {}

    lane = deployment._host
    assert isinstance(lane, Pipeline)
    first = lane._threads.submit(hold)  # so that the callback is there before the answer
    future = deployment.submit(batch())
    future.add_done_callback(close)
    held.set()
    assert told.wait(20) and first.done()
    assert isinstance(caught[0], RunFailed) and "from a callback of its own" in str(caught[0])
    assert deployment.run(batch())["y"].shape == (2, 3)


def test_a_session_that_fails_to_close_keeps_no_other_open(serve: Deploy, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"fallback": ["cpu/onnxruntime"], "operators": {"exclude": ["c"]}}
    # In the child it fails to close as well, which spoils no answer there.
    deployment = serve(residual(tmp_path), options={"fail_close": ["a"]}, **fields)
    odd.WATCH.closed.clear()
    with pytest.raises(RunFailed, match=r"segment 0 .* failed while closing: OSError: device lost"):
        deployment.close()
    assert odd.WATCH.closed == ["a,b", "d,e"]
    deployment.close()


def test_after_a_fork(serve: Deploy, tmp_path: Path) -> None:
    deployment = serve(residual(tmp_path), fallback=["cpu/onnxruntime"], operators={"exclude": ["c"]})
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for ask in (deployment.run, deployment.submit):
                try:
                    ask(batch())
                except RunFailed as error:
                    status = 0 if "another process" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert deployment.run(batch())["y"].shape == (2, 3)


MIDDLE = r"segment 1 \(2 nodes, #1 MatMul \(b\) to #2 Tanh \(c\)\)"


def in_the_middle(**options: Any) -> dict[str, Any]:
    """The odd adapter in between, with these manners."""
    exclude = {"cpu/odd": ["a", "d", "e"], "cpu/onnxruntime": ["b", "c"]}
    return {"fallback": ["cpu/onnxruntime"], "operators": {"exclude": exclude}, "options": options}


def test_an_error_names_the_segment_and_its_nodes(serve: Deploy, tmp_path: Path) -> None:
    deployment = serve(residual(tmp_path), **in_the_middle())
    host = deployment._host
    assert isinstance(host, Pipeline)
    session: Any = host._hosts[1]._sessions[0]
    real = session._manners
    session._manners = real.model_copy(update={"raise_run": ("c",)})
    asks: list[Callable[[], Any]] = [lambda: deployment.run(batch()), lambda: deployment.submit(batch()).result(20)]
    for ask in asks:
        with pytest.raises(RunFailed, match=MIDDLE) as caught:
            ask()
        assert "ArithmeticError: odd arithmetic" in caught.value.problem and "cpu/odd" in caught.value.problem
        assert caught.value.problem.count("segment 1") == 1
    for _ in range(20):  # nothing is used up by failures
        with pytest.raises(RunFailed):
            deployment.run(batch())
    session._manners = real
    agree(deployment.run(batch()), wanted(tmp_path / "m.onnx", batch()))


@pytest.mark.parametrize("manner", ["raise_run", "fail_run", "crash_run", "crash_load", "garbage"])
def test_a_first_run_that_fails_names_the_segment(serve: Deploy, tmp_path: Path, manner: str) -> None:
    with pytest.raises((BuildFailed, RunFailed), match=MIDDLE) as caught:
        serve(residual(tmp_path), **in_the_middle(**{manner: ["c"]}))
    assert "cpu/odd" in caught.value.problem and caught.value.problem.count("segment 1") == 1


def test_a_session_that_leaves_out_an_output(serve: Deploy, tmp_path: Path) -> None:
    with pytest.raises(PaddockError, match="left out the output 'r' of " + MIDDLE):
        serve(residual(tmp_path), **in_the_middle(leave_out=["r"]))


def test_what_took_effect_is_asked_of_the_adapter_asked_for(serve: Deploy, tmp_path: Path) -> None:
    with pytest.raises(StrictnessError, match="options.level 9 took effect as 3"):
        serve(residual(tmp_path), **in_the_middle(level=9))
    deployment = serve(residual(tmp_path), **in_the_middle(level=2, levels=[1, 2]))
    effects = {setting.name: setting.effective for setting in deployment.plan.settings}
    assert effects["options.level"] == 2 and effects["options.levels"] == [1, 2] and effects["precision"] == "fp32"


# Values that are no tensors of numbers


def test_strings_cross(serve: Deploy, tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Identity", ["x"], ["p"], name="a"),
        helper.make_node("StringConcat", ["p", "x"], ["q"], name="b"),
        helper.make_node("Identity", ["q"], ["y"], name="c"),
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.save(proto, tmp_path / "m.onnx")
    deployment = serve(
        tmp_path / "m.onnx", "cpu/onnxruntime", fallback=["cpu/reference"], operators={"exclude": ["b"]}
    )  # fmt: skip
    assert [a for a, _ in segments(deployment)] == ["cpu/onnxruntime", "cpu/reference", "cpu/onnxruntime"]
    assert deployment.run({"x": np.array(["a", "", "paddock"], object)})["y"].tolist() == ["aa", "", "paddockpaddock"]


def sequences(path: Path) -> Path:
    """Splits x into a sequence, and puts its parts together again."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Abs", ["x"], ["p"], name="a"),
        helper.make_node("SplitToSequence", ["p"], ["s"], name="b", axis=0),
        helper.make_node("ConcatFromSequence", ["s"], ["q"], name="c", axis=0),
        helper.make_node("Neg", ["q"], ["y"], name="d"),
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(proto, path)
    return path


def test_sequences_stay_in_one_segment(serve: Deploy, tmp_path: Path) -> None:
    """c is excluded, so b goes with it: the last of the chain takes both, though each has an earlier taker."""
    model = sequences(tmp_path / "m.onnx")
    exclude = {"cpu/odd": [], "cpu/onnxruntime": ["b"]}
    fallback = ["cpu/onnxruntime", "cpu/reference"]
    deployment = serve(model, fallback=fallback, operators={"exclude": exclude})
    assert segments(deployment) == [("cpu/odd", (0,)), ("cpu/reference", (1, 2)), ("cpu/odd", (3,))]
    agree(deployment.run(batch(3)), wanted(model, batch(3)))


def test_a_sequence_that_has_to_cross(serve: Deploy, tmp_path: Path) -> None:
    """Made and read by one adapter, with a segment of another in between that the reading waits for."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in EDGES]
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], name="a", axis=0),
        helper.make_node("SequenceLength", ["s"], ["k"], name="b"),
        helper.make_node("Neg", ["k"], ["first"], name="c"),
        helper.make_node("SequenceAt", ["s", "first"], ["y"], name="d"),
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(proto, tmp_path / "m.onnx")
    deployment = serve(tmp_path / "m.onnx", fallback=["cpu/reference"], operators={"exclude": {"cpu/reference": ["c"]}})
    assert segments(deployment) == [("cpu/reference", (0, 1)), ("cpu/odd", (2,)), ("cpu/reference", (3,))]
    for rows in (1, 3):
        np.testing.assert_array_equal(deployment.run(batch(rows))["y"], batch(rows)["x"][:1])


EDGES: Sequence[tuple[str, list[Any]]] = [("x", ["n", 3]), ("y", [1, 3])]
