"""`cpu/paddle` and `cpu/mkldnn` from selection to answers."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.config import HardwareConfig
from paddock.errors import BuildFailed, ModelError, NotAvailable, RunFailed, StrictnessError, UsageError
from paddock.model import Model
from paddock.plan import Answer, Precision, PrecisionPlan, Segment
from paddock.samples import Sample, generate
from paddock.spi import Artifact, Context, ResolvedConfig, SegmentMemory, SegmentPlan, Threading
from paddock_paddle import sdk
from paddock_paddle.adapters import CpuMkldnn, CpuPaddle, MkldnnOptions, PaddleAdapter, PlainOptions
from paddock_paddle.format import PaddleFormat
from paddock_paddle.kernels import CARRIED, Selector
from paddock_paddle.predictor import PaddleSession
from pydantic import BaseModel, ValidationError

paddle = pytest.importorskip("paddle")

FORMAT = PaddleFormat()
ADAPTERS: list[type[PaddleAdapter]] = [CpuPaddle, CpuMkldnn]
RUNNABLE = (
    "linear", "embedding", "condition", "loop", "mixed", "rotary", "gathers", "infinite", "weightless", "mean",
    "resnet",
)  # fmt: skip
BF16 = paddle.base.core.supports_bfloat16()


def model_of(folder: Path, name: str) -> Model:
    files = FORMAT.locate(folder / name)
    assert files is not None
    return Model("paddle", files, "test", FORMAT.read(files))


def adapter_of(kind: type[PaddleAdapter], threads: int = 1, precision: str = "fp32", **options: Any) -> PaddleAdapter:
    config = HardwareConfig.load({"hardware": kind.hardware, "backend": kind.backend, "precision": precision})
    return kind(ResolvedConfig(config, kind.Options(**options), threads), None)


def segment_of(model: Model, adapter: PaddleAdapter, precision: Precision | None = None) -> SegmentPlan:
    graph = model.graph
    segment = Segment(0, adapter.name(), tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
    plan = PrecisionPlan(precision or adapter.config.precision)
    return SegmentPlan(segment, plan, SegmentMemory(), tuple(adapter.known_defects(model)))


def artifact_of(adapter: PaddleAdapter, model: Model, folder: Path) -> Artifact:
    artifact = adapter.compile(model, segment_of(model, adapter), Context(folder, folder))
    copy: Artifact = pickle.loads(pickle.dumps(artifact))
    return copy


def session_of(kind: type[PaddleAdapter], model: Model, folder: Path, **settings: Any) -> PaddleSession:
    adapter = adapter_of(kind, **settings)
    session = adapter.load(artifact_of(adapter, model, folder), Context(folder, folder))
    assert isinstance(session, PaddleSession)
    return session


def samples_of(model: Model) -> list[Sample]:
    return generate(model.graph, FORMAT.gathers, FORMAT.transparent)


def error(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """The largest difference over the largest magnitude, over all outputs."""
    assert found.keys() == wanted.keys()
    worst = 0.0
    for name, array in wanted.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        scale = float(np.abs(array.astype(np.float64)).max()) or 1.0
        worst = max(worst, float(np.abs(found[name].astype(np.float64) - array.astype(np.float64)).max()) / scale)
    return worst


# Declarations


def test_importing_the_plugin_and_probing_imports_no_paddle() -> None:
    code = (
        "import sys, paddock_paddle.plugin as p\n"
        "print([str(a.probe().verdict.answer) for a in p.paddock_adapters()], 'paddle' in sys.modules)"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True) == "['yes', 'yes'] False\n"


def test_importing_paddle_leaves_the_environment_alone() -> None:
    code = (
        "import os; from paddock_paddle import sdk; before = dict(os.environ); sdk.import_quietly('paddle')\n"
        "print(dict(os.environ) == before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
    assert done.stderr == ""


def test_the_devices_say_what_they_compute_in() -> None:
    (plain,) = CpuPaddle.probe_device().devices
    (onednn,) = CpuMkldnn.probe_device().devices
    assert set(plain.precisions) == CpuPaddle.precisions and set(onednn.precisions) == CpuMkldnn.precisions
    verdict = onednn.precisions[Precision.BF16]
    assert verdict.usable is BF16 and verdict.source
    if not BF16:
        assert "avx512" in verdict.reason


@pytest.mark.parametrize("kind", ADAPTERS)
def test_unknown_options_are_refused(kind: type[PaddleAdapter]) -> None:
    with pytest.raises(ValidationError):
        kind.Options(nonsense=1)
    assert kind.concurrency.threading is Threading.BOUND


# Selection


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("name", RUNNABLE)
def test_what_runs_is_selected(models: Path, tmp_path: Path, kind: type[PaddleAdapter], name: str) -> None:
    model = model_of(models, name)
    verdicts = adapter_of(kind).select_operators(model, Context(tmp_path, tmp_path)).verdicts
    assert len(verdicts) == len(model.graph.nodes)
    assert {v.answer for v in verdicts} == {Answer.YES}
    assert all(v.reason and v.source for v in verdicts)


def test_onednn_says_which_kernel(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "embedding")
    verdicts = adapter_of(CpuMkldnn).select_operators(model, Context(tmp_path, tmp_path)).verdicts
    by_op = {node.type: v.reason for node, v in zip(model.graph.nodes, verdicts, strict=True)}
    assert by_op["pd_op.matmul"] == "oneDNN kernel"
    assert by_op["pd_op.embedding"] == "plain CPU kernel (no oneDNN kernel)"


def test_what_the_predictor_cannot_exchange_is_refused(models: Path, tmp_path: Path) -> None:
    context = Context(tmp_path, tmp_path)
    through = adapter_of(CpuPaddle).select_operators(model_of(models, "through"), context).verdicts
    assert next(v.reason for v in through if not v.usable).startswith("Paddle's predictor refuses a program")
    number = adapter_of(CpuPaddle).select_operators(model_of(models, "complex"), context).verdicts
    assert any("complex64" in v.reason for v in number if not v.usable)
    assert "bfloat16" not in CARRIED


def test_unknown_and_lacking_kernels_are_told_apart(models: Path) -> None:
    graph = model_of(models, "linear").graph
    nothing = Selector(graph, known={}).verdicts()
    assert {v.answer for v in nothing} == {Answer.PROVISIONAL}
    integers = {name: {"CPU": frozenset({"int64"})} for name in ("matmul", "add", "relu")}
    lacking = Selector(graph, known=integers).verdicts()
    assert {v.answer for v in lacking} == {Answer.NO} and "float32" in lacking[0].reason
    body = model_of(models, "condition").graph
    cpu = {"CPU": frozenset({"float32", "int64", "bool"})}
    known = dict.fromkeys(("sum", "full", "full_int_array", "greater_than", "scale"), cpu)
    inside = Selector(body, known=known).verdicts()
    (branch,) = [v for n, v in zip(body.nodes, inside, strict=True) if n.type == "pd_op.if"]
    assert branch.answer is Answer.PROVISIONAL and "in its body" in branch.reason


# Answers


@pytest.fixture(scope="module")
def reference(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """The layer's own answers, as jit.load computes them."""

    def answers(name: str) -> list[dict[str, Any]]:
        model = model_of(models, name)
        layer = paddle.jit.load(str(models / name))
        found = []
        for sample in samples_of(model):
            given = layer(*(paddle.to_tensor(sample[v.name]) for v in model.graph.input_values))
            arrays = [given] if not isinstance(given, (list, tuple)) else given
            names = [v.name for v in model.graph.output_values]
            found.append({n: a.numpy() for n, a in zip(names, arrays, strict=True)})
        return found

    return answers


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("name", RUNNABLE)
def test_answers_agree(
    models: Path,
    tmp_path: Path,
    reference: Callable[[str], list[dict[str, Any]]],
    kind: type[PaddleAdapter],
    name: str,
) -> None:
    """At both shapes, with the dtypes that the graph states."""
    model = model_of(models, name)
    session = session_of(kind, model, tmp_path)
    wanted = reference(name) if name != "weightless" else [{"fetch_name_0": s["x"] * 2 + 1} for s in samples_of(model)]
    for sample, answer in zip(samples_of(model), wanted, strict=True):
        found = session.run(sample)
        assert error(found, answer) < 1e-4
        assert [str(a.dtype) for a in found.values()] == [v.dtype for v in model.graph.output_values]
    session.close()
    session.close()
    with pytest.raises(RunFailed, match="closed"):
        session.run(samples_of(model)[0])


@pytest.mark.parametrize("name", ["embedding", "rotary", "resnet"])
def test_the_reference_path_skips_paddles_passes(models: Path, tmp_path: Path, name: str) -> None:
    model = model_of(models, name)
    options = CpuPaddle.references["paddle"].options
    plain, optimized = session_of(CpuPaddle, model, tmp_path, **options), session_of(CpuPaddle, model, tmp_path)
    for sample in samples_of(model):
        assert error(optimized.run(sample), plain.run(sample)) < 1e-5
    assert plain.realised.on("CPU") >= optimized.realised.on("CPU") > 0
    if name == "embedding":
        assert plain.realised.on("CPU") > optimized.realised.on("CPU")


def test_outputs_are_selected_and_belong_to_the_caller(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "embedding")
    session = session_of(CpuMkldnn, model, tmp_path)
    first, second = samples_of(model)[:2]
    name = model.graph.output_values[1].name
    kept = session.run(first, [name])
    assert list(kept) == [name] and session.run(first, []) == {}
    before = kept[name].copy()
    session.run(second)
    assert np.array_equal(kept[name], before)


def test_a_wrong_dtype_is_an_error_and_the_session_goes_on(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "linear")
    session = session_of(CpuPaddle, model, tmp_path)
    x = np.ones((2, 4), np.float32)
    wanted = session.run({"x": x})
    with pytest.raises(RunFailed):
        session.run({"x": x.astype(np.float64)})
    assert error(session.run({"x": x}), wanted) == 0


def test_two_threads_in_turn(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "rotary")
    session = session_of(CpuMkldnn, model, tmp_path)
    inputs = [np.random.default_rng(i).standard_normal((1 + i, 8 + i, 256), dtype=np.float32) for i in range(4)]
    wanted = [session.run({"x": x}) for x in inputs]
    turn, worst = threading.Lock(), list[float]()

    def work() -> None:
        for _ in range(3):
            for x, answer in zip(inputs, wanted, strict=True):
                with turn:
                    worst.append(error(session.run({"x": x}), answer))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 24 and max(worst) < 1e-6


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("name", ["condition", "linear"])
def test_an_empty_input_is_refused_and_the_session_goes_on(
    models: Path, tmp_path: Path, kind: type[PaddleAdapter], name: str
) -> None:
    """Paddle answers the condition with what it gave for the request before."""
    session = session_of(kind, model_of(models, name), tmp_path)
    x = np.full((3, 4), 7, np.float32)
    wanted = session.run({"x": x})
    with pytest.raises(UsageError, match=r"shape \[0, 4\].*extent of 0") as caught:
        session.run({"x": x[:0]})
    assert caught.value.where == "x" and caught.value.remedy
    assert error(session.run({"x": x}), wanted) == 0


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_what_took_effect_is_read_back(models: Path, tmp_path: Path, kind: type[PaddleAdapter], threads: int) -> None:
    session = session_of(kind, model_of(models, "resnet"), tmp_path, threads=threads)
    observed = session.observed()
    assert observed.settings == {"threads": threads, "precision": "fp32"}
    assert observed.nodes is not None and observed.nodes > 20
    assert (session.realised.on("ONEDNN") > 20) is (kind is CpuMkldnn)


def test_nothing_is_printed(models: Path, tmp_path: Path) -> None:
    """In a process of its own: a predictor of each kind made and run, and one whose kernels print on stdout."""
    code = (
        "import sys, numpy; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import test_paddle_adapters as t\n"
        "folder, work = Path(sys.argv[2]), Path(sys.argv[3])\n"
        "for name in ('embedding', 'mean'):\n"
        "    model = t.model_of(folder, name)\n"
        "    for kind in t.ADAPTERS:\n"
        "        session = t.session_of(kind, model, work)\n"
        "        for sample in t.samples_of(model): session.run(sample)\n"
        "print('done')"
    )
    here = str(Path(__file__).parent)
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, here, str(models), str(tmp_path)],
        capture_output=True, text=True, env=env, check=True,
    )  # fmt: skip
    assert done.stdout == "done\n"
    assert done.stderr == ""


def test_what_others_print_meanwhile_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with sdk.captured_stdout() as printed:
        os.write(1, b"mine\n")
        subprocess.run(["echo", "ReduceMeanCheckIfOneDNNSupport"], check=True)
    assert capfd.readouterr().out == ""
    sdk.release(printed(), lambda line: "OneDNN" in line)
    assert capfd.readouterr().out == "mine\n"


def test_bf16_is_real_or_refused(models: Path, tmp_path: Path) -> None:
    model = model_of(models, "resnet")
    adapter = adapter_of(CpuMkldnn, precision="bf16")
    artifact = artifact_of(adapter, model, tmp_path)
    assert artifact.facts["deleted_passes"] == ["inplace_pass", "cpu_special_ops_bf16_pass"]
    if not BF16:
        with pytest.raises(NotAvailable, match="avx512"):
            adapter.load(artifact, Context(tmp_path, tmp_path))
        return
    session = adapter.load(artifact, Context(tmp_path, tmp_path))
    assert session.observed().settings["precision"] == "bf16"
    sample = samples_of(model)[0]
    wanted = session_of(CpuPaddle, model, tmp_path).run(sample)
    assert 1e-6 < error(session.run(sample), wanted) < 0.1


# Refusals


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_precision_that_is_not_computed_in_is_refused(
    models: Path, tmp_path: Path, kind: type[PaddleAdapter]
) -> None:
    model, adapter = model_of(models, "linear"), adapter_of(kind)
    with pytest.raises(StrictnessError, match="fp16"):
        adapter.compile(model, segment_of(model, adapter, Precision.FP16), Context(tmp_path, tmp_path))


def test_files_broken_after_planning_are_not_loaded(models: Path, tmp_path: Path) -> None:
    """Paddle itself would load both of these and answer from uninitialised memory."""
    for ending in (".json", ".pdiparams"):
        shutil.copy(models / f"linear{ending}", tmp_path / f"m{ending}")
    model = model_of(tmp_path, "m")
    adapter, context = adapter_of(CpuPaddle), Context(tmp_path, tmp_path)
    artifact = artifact_of(adapter, model, tmp_path)
    params = tmp_path / "m.pdiparams"
    params.write_bytes(params.read_bytes()[:-1])
    with pytest.raises(ModelError, match="cut off"):
        adapter.load(artifact, context)
    params.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        adapter.load(artifact, context)


def test_an_operation_unknown_to_paddle_is_provisional_and_fails_to_build(models: Path, tmp_path: Path) -> None:
    text = (models / "linear.json").read_text().replace('"1.relu"', '"1.relux"')
    (tmp_path / "m.json").write_text(text)
    shutil.copy(models / "linear.pdiparams", tmp_path / "m.pdiparams")
    model, adapter, context = model_of(tmp_path, "m"), adapter_of(CpuPaddle), Context(tmp_path, tmp_path)
    verdicts = adapter.select_operators(model, context).verdicts
    assert [v.answer for v in verdicts].count(Answer.PROVISIONAL) == 1
    with pytest.raises(BuildFailed, match="kernel output args") as caught:
        adapter.load(artifact_of(adapter, model, tmp_path), context)
    assert "\n" not in caught.value.problem


def test_an_artifact_of_another_paddle_is_not_compatible(models: Path, tmp_path: Path) -> None:
    adapter = adapter_of(CpuPaddle)
    artifact = artifact_of(adapter, model_of(models, "linear"), tmp_path)
    assert adapter.compatible(artifact).usable
    other = Artifact(
        artifact.adapter, artifact.format, artifact.files, artifact.inputs, artifact.outputs,
        facts={**artifact.facts, "paddlepaddle": "3.2.0"},
    )  # fmt: skip
    assert "3.2.0" in adapter.compatible(other).reason


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (
            "(Unimplemented) no way [x].\n  [Hint: Expected a == b.] (at /paddle/x.cc:1)",
            "(Unimplemented) no way [x]. [Hint: Expected a == b.]",
        ),
        (
            "\n\n----\nC++ Traceback (most recent call last):\n----\n0   a::b()\n1   c()\n\n----\n"
            "Error Message Summary:\n----\nFatal: it broke (at /p.cc:2)",
            "Fatal: it broke",
        ),
        ("", "ValueError"),
    ],
)
def test_messages_are_reduced_to_what_matters(text: str, meant: str) -> None:
    assert sdk.short(ValueError(text)) == meant


def test_options_are_models_of_their_own() -> None:
    assert issubclass(PlainOptions, BaseModel) and PlainOptions().optimize and MkldnnOptions().workarounds
