"""`npu/qualcomm` on Qualcomm's HTP backend as it runs on x86: what it takes, computes in, compiles and loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from paddock.child import Child
from paddock.errors import BuildFailed, ConfigError, PaddockError, StrictnessError, Unsupported
from paddock.host import ChildHost
from paddock.plan import Answer, Precision
from paddock.spi import Artifact, Context, Observed, Process, Shapes
from paddock_qualcomm.adapter import NpuQualcomm
from paddock_qualcomm.named import named, source
from paddock_qualcomm.sdk import SIMULATED

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")

from qualcomm_at_work import (
    DEVICE,
    adapter_of,
    closed,
    compiled,
    crash,
    direct,
    into,
    verdicts,
)
from qualcomm_models import conv_net, encoder, model_of, proto, reference


class Loaded:
    """A session in a process of its own, as every deployment has it."""

    def __init__(self, artifact: Artifact, folder: Path, precision: str = "fp32", **options: Any) -> None:
        config = adapter_of(precision, **options).config
        self._child = Child("a session on QNN")
        context = Context(folder, folder)
        try:
            self._host = ChildHost(self._child, NpuQualcomm, config, DEVICE, artifact, context)
        except PaddockError:
            self._child.close()
            raise

    def run(self, **feeds: Any) -> dict[str, Any]:
        return self._host.run(feeds)

    def observed(self) -> Observed:
        return self._host.observed()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.close()


def relative(found: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


def test_a_conv_net_runs_whole_in_float32(tmp_path: Path) -> None:
    model = model_of(conv_net(), tmp_path)
    assert {v.answer for v in verdicts(model, tmp_path)} == {Answer.YES}
    x = np.random.default_rng(1).standard_normal((1, 3, 16, 16), "f")
    with Loaded(compiled(model, tmp_path), tmp_path) as loaded:
        assert relative(loaded.run(x=x)["y"], reference(conv_net(), x=x)) < 1e-6
        told = loaded.observed()
    assert told.settings == {"precision": "fp32"}
    assert told.nodes is not None and told.nodes >= 10


def test_a_conv_net_in_float16_computes_in_it(tmp_path: Path) -> None:
    narrow = conv_net(np.float16)
    x = np.random.default_rng(1).standard_normal((1, 3, 16, 16), "f")
    with Loaded(compiled(model_of(narrow, tmp_path), tmp_path, "fp16"), tmp_path, "fp16") as loaded:
        found = loaded.run(x=x.astype(np.float16))["y"]
        assert loaded.observed().settings == {"precision": "fp16"}
    assert found.dtype == np.float16
    assert 1e-5 < relative(found, reference(conv_net(), x=x)) < 5e-3


def test_an_encoder_block_runs_whole_in_float16(tmp_path: Path) -> None:
    narrow = encoder(np.float16)
    model = model_of(narrow, tmp_path)
    assert {v.answer for v in verdicts(model, tmp_path, "fp16")} == {Answer.YES}
    x = np.random.default_rng(1).standard_normal((1, 8, 32), "f")
    with Loaded(compiled(model, tmp_path, "fp16"), tmp_path, "fp16") as loaded:
        found = loaded.run(x=x.astype(np.float16))["y"]
    assert relative(found, reference(encoder(), x=x)) < 5e-3


def test_the_same_for_one_chip_computes_float32_in_float16_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="computes float32 in float16"):
        adapter_of("fp32", soc_model=57)
    with pytest.raises(StrictnessError, match="stay in float32"):  # a float32 model given to it as fp16
        compiled(model_of(conv_net(), tmp_path), tmp_path, "fp16", soc_model=57)
    artifact = compiled(model_of(conv_net(np.float16), tmp_path), tmp_path, "fp16", soc_model=57)
    assert artifact.facts["settings"] == {"precision": "fp16", "options.soc_model": 57}


def test_a_chip_that_the_backend_does_not_know_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="cannot be set up") as caught:
        verdicts(model_of(conv_net(np.float16), tmp_path), tmp_path, "fp16", soc_model=9999)
    assert caught.value.where == "$.options.soc_model"


def test_an_operator_that_it_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    nodes = [h.make_node("Relu", ["x"], ["r"]), h.make_node("Det", ["r"], ["d"]), h.make_node("Neg", ["d"], ["y"])]
    content = proto(nodes, [("x", T.FLOAT, [2, 3, 3])], [("y", T.FLOAT, [2])])
    found = verdicts(model_of(content, tmp_path), tmp_path)
    assert [v.answer for v in found] == [Answer.YES, Answer.NO, Answer.YES]
    assert "`Det` are not supported" in found[1].reason


def test_what_fails_only_when_the_graph_is_finalised_is_found_by_trying_each_node(tmp_path: Path) -> None:
    nodes = [h.make_node("Neg", ["x"], ["n"]), h.make_node("Elu", ["n"], ["e"]), h.make_node("Relu", ["e"], ["y"])]
    content = proto(nodes, [("x", T.FLOAT, [4, 8])], [("y", T.FLOAT, [4, 8])])
    found = verdicts(model_of(content, tmp_path), tmp_path)
    assert [v.answer for v in found] == [Answer.YES, Answer.NO, Answer.YES]
    assert "finalize" in found[1].reason
    with pytest.raises(Unsupported, match="finalize"):
        compiled(model_of(content, tmp_path), tmp_path)


def test_shapes_that_are_computed_are_folded_where_the_inputs_are_fixed(tmp_path: Path) -> None:
    nodes = [
        h.make_node("Shape", ["x"], ["s"]),
        h.make_node("Gather", ["s", "zero"], ["n"]),
        h.make_node("Concat", ["n", "rest"], ["to"], axis=0),
        h.make_node("Reshape", ["x", "to"], ["r"]),
        h.make_node("Relu", ["r"], ["y"]),
    ]
    held = {"zero": np.array([0], np.int64), "rest": np.array([-1], np.int64)}
    content = proto(nodes, [("x", T.FLOAT, ["N", 2, 3])], [("y", T.FLOAT, ["N", 6])], held)
    fixed = model_of(content, tmp_path, N=4)
    assert {v.answer for v in verdicts(fixed, tmp_path)} == {Answer.YES}
    x = np.random.default_rng(0).standard_normal((4, 2, 3), "f")
    with Loaded(compiled(fixed, tmp_path), tmp_path) as loaded:
        np.testing.assert_array_equal(loaded.run(x=x)["y"], np.maximum(x, 0).reshape(4, 6))
    assert Answer.NO in {v.answer for v in verdicts(model_of(content, tmp_path), tmp_path)}


@pytest.mark.parametrize("nodes", [[("Identity", "x", "y")], [("Identity", "c", "y")]], ids=["handed on", "constant"])
def test_a_model_of_which_nothing_is_left_is_refused(tmp_path: Path, nodes: Any) -> None:
    made = [h.make_node(op, [fed], [given]) for op, fed, given in nodes]
    content = proto(made, [("x", T.FLOAT, [2])], [("y", T.FLOAT, [2])], {"c": np.ones(2, "f")})
    model = model_of(content, tmp_path)
    found = verdicts(model, tmp_path)
    if found[0].answer is Answer.YES:  # then it has to run
        with Loaded(compiled(model, tmp_path), tmp_path) as loaded:
            x = np.array([1, -2], "f")
            np.testing.assert_array_equal(loaded.run(x=x)["y"], x)
    else:
        assert "nothing is left" in found[0].reason


def test_a_context_answers_bit_for_bit_as_the_model_does(tmp_path: Path) -> None:
    model = model_of(conv_net(), tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 3, 16, 16), "f")
    with Loaded(compiled(model, tmp_path), tmp_path) as loaded:
        first, again = loaded.run(x=x)["y"], loaded.run(x=x)["y"]
    with Child("the model itself") as child:
        alone = child.call(direct, source(named(model.files["model"], model.graph), model.files["model"]), x)
    np.testing.assert_array_equal(first, alone)
    np.testing.assert_array_equal(first, again)


def test_options_stick_to_a_process_which_is_why_it_asks_for_one_of_its_own(tmp_path: Path) -> None:
    """Seen with onnxruntime-qnn 2.7.0; where this fails, `process` may be shared."""
    assert NpuQualcomm.process is Process.EXCLUSIVE
    model = model_of(conv_net(), tmp_path)
    given = source(named(model.files["model"], model.graph), model.files["model"])
    x = np.random.default_rng(1).standard_normal((1, 3, 16, 16), "f")
    expected = reference(conv_net(), x=x)
    with Child("one process") as child:
        alone = child.call(direct, given, x)
    with Child("one process") as child:
        child.call(direct, given, x, 57)  # and closed
        after = child.call(direct, given, x)
    assert relative(alone, expected) < 1e-6
    assert relative(after, expected) > 1e-5


def test_what_another_version_compiled_is_not_loaded(tmp_path: Path) -> None:
    artifact = compiled(model_of(conv_net(), tmp_path), tmp_path)
    adapter = adapter_of()
    assert adapter.compatible(artifact).usable
    other = Artifact(**{**vars(artifact), "facts": {**artifact.facts, "sdk": "2.6.0"}})
    assert "2.6.0" in adapter.compatible(other).reason
    assert not adapter.compatible(other).usable


def test_a_damaged_context_is_an_error(tmp_path: Path) -> None:
    artifact = compiled(model_of(conv_net(), tmp_path), tmp_path)
    path = artifact.files["context"]
    content = onnx.load(path)
    held = next(a for a in content.graph.node[0].attribute if a.name == "ep_cache_context")
    held.s = held.s[: len(held.s) // 2]
    onnx.save(content, path)
    with pytest.raises(PaddockError):
        Loaded(artifact, tmp_path)


def test_a_session_that_is_closed_says_so(tmp_path: Path) -> None:
    artifact = compiled(model_of(conv_net(), tmp_path), tmp_path)
    with Child("a session on QNN") as child:
        assert "closed" in child.call(closed, artifact, tmp_path)


def test_answers_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    artifact = compiled(model_of(conv_net(), tmp_path), tmp_path)
    with Child("a session on QNN") as child:
        assert child.call(into, artifact, tmp_path)


def test_a_crash_of_the_sdk_is_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddock_qualcomm.asking.assess", crash)
    found = verdicts(model_of(conv_net(), tmp_path), tmp_path)
    assert {v.answer for v in found} == {Answer.NO}
    assert "SIGABRT" in found[0].reason


def test_the_device_is_called_what_it_is() -> None:
    with Child("probing") as child:
        found = child.call(NpuQualcomm.probe_device)
    assert found.verdict.usable
    assert found.devices[0].name == SIMULATED
    assert "no NPU" in found.verdict.reason
    assert found.facts["simulated"] is True
    answers = {p: v.answer for p, v in found.devices[0].precisions.items()}
    assert answers == {Precision.FP32: Answer.YES, Precision.FP16: Answer.YES, Precision.INT8: Answer.YES}


def test_it_is_declared_as_it_is() -> None:
    assert NpuQualcomm.shapes is Shapes.STATIC
    assert NpuQualcomm.name() == "npu/qualcomm"


def test_nothing_is_printed(tmp_path: Path) -> None:
    """What the SDK prints while it compiles stays in its process."""
    folder = str(tmp_path)
    code = f"""if True:
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from qualcomm_at_work import compiled
        from qualcomm_models import conv_net, model_of
        compiled(model_of(conv_net(), Path({folder!r})), Path({folder!r}))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
