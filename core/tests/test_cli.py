"""The command line as a user meets it: one process a command, its stdout, its exit status, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from paddock import errors, terminal
from paddock.auto import json_schema
from paddock.errors import PaddockError
from paddock.npz import read_npz, write_npz


def arr(data: Any, dtype: str) -> np.ndarray[Any, Any]:
    return np.array(data, dtype)


PADDOCK = [sys.executable, "-m", "paddock.cli"]
OURS = {"PADDOCK_ALLOW": "paddock-reference,paddock-onnxruntime"}
ORT: Mapping[str, Any] = {"hardware": "cpu", "backend": "onnxruntime"}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON document that stdout holds."""
        return json.loads(self.out)


def paddock(*arguments: Any, env: Mapping[str, str] | None = None, code: int | None = 0, **options: Any) -> Ended:
    """Runs the command; it must end with `code` and without a traceback."""
    done = subprocess.run(
        [*PADDOCK, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, **OURS, **(env or {})}, **options,
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert code is None or done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return Ended(done.returncode, done.stdout, done.stderr)


def on_path(folder: Path) -> str:
    """PYTHONPATH with a folder before what stands in it."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def failed(code: int, kind: str, *arguments: Any, **options: Any) -> Any:
    """The error of a command with --json: the only thing on stdout, saying the same code."""
    error = paddock(*arguments, "--json", code=code, **options).data["error"]
    assert error["kind"] == kind and error["exit_code"] == code and error["problem"]
    return error


def save(place: Path, nodes: Any, inits: Any = (), domain: str = "") -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=list(inits))
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(place))
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, configs and inputs, good and bad."""
    place = tmp_path_factory.mktemp("cli")
    save(place / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    zero = numpy_helper.from_array(np.float32(0), "zero")
    save(place / "constant.onnx", [helper.make_node("Mul", ["x", "zero"], ["y"])], [zero])
    save(place / "unknown.onnx", [helper.make_node("Nonesuch", ["x"], ["y"], domain="com.none")], domain="com.none")
    (place / "broken.onnx").write_bytes(b"\x08\x08no model")
    (place / "empty.onnx").write_bytes(b"")
    write_npz(place / "in.npz", {"x": arr([[-1, 0, 2]], "float32")}, "test")
    write_npz(place / "wrong.npz", {"x": arr([[-1, 0]], "float32")}, "test")
    (place / "garbage.npz").write_bytes(b"PK\3\4 garbage")
    rows, wrong = arr([[1, -1, 2]], "float32"), arr([[1, 0, 3]], "float32")
    write_npz(place / "bad_golden.npz", {"0/in/x": rows, "0/out/y": wrong}, "test")
    write_npz(place / "golden.npz", {
        "0/in/x": rows, "0/out/y": np.maximum(rows, 0), "1/in/x": rows + 1, "1/out/y": np.maximum(rows + 1, 0),
    }, "test")  # fmt: skip
    configs: Mapping[str, Any] = {
        "ort": ORT,
        "reference": {"hardware": "cpu", "backend": "reference"},
        "misspelt": {**ORT, "accuracy": {"max_eror": 1}},
        "tensorrt": {"hardware": "gpu", "backend": "tensorrt"},
        "bf16": {**ORT, "precision": "bf16"},
        "inaccurate": {**ORT, "accuracy": {"verify": "golden", "golden": "bad_golden.npz"}},
        "golden": {**ORT, "accuracy": {"verify": "golden", "golden": "golden.npz"}},
        "small": {**ORT, "batch_size": 64, "memory": {"limit": 64}},
    }
    for name, data in configs.items():
        (place / f"{name}.json").write_text(json.dumps(data))
    return place


def test_every_exception_has_an_exit_code_of_the_documented_table() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, PaddockError)]
    assert len(kinds) > 8
    for kind in kinds:
        code = terminal.exit_code(kind.__new__(kind))
        assert (code == terminal.INTERNAL) == (kind is PaddockError), kind


# What each command prints


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_adapters(flag: Sequence[str]) -> None:
    done = paddock("adapters", *flag)
    if flag:
        found = {entry["adapter"]: entry for entry in done.data["adapters"]}
        assert set(found) == {"cpu/onnxruntime", "cpu/reference", "gpu/cuda"}
        assert found["cpu/onnxruntime"]["devices"]["verdict"]["answer"] == "yes"
        assert found["cpu/onnxruntime"]["options"]["properties"]
        assert {p["distribution"] for p in done.data["plugins"]} >= {"paddock", "paddock-reference"}
    else:
        assert "cpu/onnxruntime" in done.out and "fp32" in done.out


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_doctor(flag: Sequence[str]) -> None:
    done = paddock("doctor", *flag)
    if flag:
        assert done.data["host"]["python"] == sys.version.split()[0]
        assert done.data["not installed"]["gpu/tensorrt"]["plugin"] == "paddock-tensorrt"
    else:
        assert "gpu/tensorrt" in done.out and "pip install paddock-tensorrt" in done.out


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_schema(flag: Sequence[str]) -> None:
    assert paddock("schema", *flag).data == json_schema()


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_plan(folder: Path, flag: Sequence[str]) -> None:
    done = paddock("plan", "--model", folder / "relu.onnx", "--config", folder / "ort.json", *flag)
    if flag:
        assert done.data["plan"]["adapter"] == "cpu/onnxruntime" and len(done.data["key"]) == 64
    else:
        assert "cpu/onnxruntime" in done.out and "Relu" in done.out


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_a_plan_that_is_over_its_limit_is_shown_and_fails(folder: Path, flag: Sequence[str]) -> None:
    config = json.dumps({**ORT, "batch_size": 1, "memory": {"limit": 1}})
    done = paddock("plan", "--model", folder / "relu.onnx", "--config", config, *flag, code=5)
    if flag:
        assert done.data["plan"]["adapter"] == "cpu/onnxruntime" and done.data["refused"]["exit_code"] == 5
    else:
        assert "Relu" in done.out and "exceeded" in done.out and "MemoryRefused" in done.err


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_run(folder: Path, tmp_path: Path, flag: Sequence[str]) -> None:
    output = tmp_path / "out.npz"
    done = paddock(
        "run", "--model", folder / "relu.onnx", "--config", json.dumps(ORT), "--input", folder / "in.npz",
        "--output", output, *flag,
    )  # fmt: skip
    assert read_npz(output, "test")["y"].tolist() == [[0, 0, 2]]
    if flag:
        assert done.data["report"]["outcome"] == "passed" and done.data["written"] == str(output)
        assert done.data["outputs"] == {"y": "float32 [1, 3]"}
    else:
        assert "passed" in done.out and str(output) in done.out


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_verify(folder: Path, flag: Sequence[str]) -> None:
    done = paddock("verify", "--model", folder / "relu.onnx", "--config", folder / "ort.json", *flag)
    if flag:
        assert done.data["report"]["outcome"] == "passed" and done.data["plan"]["adapter"] == "cpu/onnxruntime"
    else:
        assert done.out.startswith("passed") and "cpu/reference" in done.out


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_verify_all(folder: Path, flag: Sequence[str]) -> None:
    done = paddock("verify", "--model", folder / "relu.onnx", "--all", "--config", folder / "ort.json", *flag)
    if flag:
        found = {(r["adapter"], r["precision"]): r["report"] and r["report"]["outcome"] for r in done.data["adapters"]}
        assert found == {
            ("cpu/onnxruntime", "fp32"): "passed",
            ("cpu/onnxruntime", "int8"): None,  # passed over: there is nothing to calibrate on
            **{("cpu/reference", precision): "passed" for precision in ("fp32", "fp16", "bf16")},
        }
    else:
        assert done.out.count("verified") == 4
        assert "needs calibration.samples" in done.out


@pytest.mark.long
@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_bench(folder: Path, flag: Sequence[str]) -> None:
    both = ["--config", folder / "ort.json", "--config", folder / "reference.json"]
    done = paddock("bench", "--model", folder / "relu.onnx", *both, "--seconds", "0.2", *flag)
    if flag:
        found = {entry["config"]: entry["measured"] for entry in done.data["bench"]}
        assert set(found) == {"ort", "reference"}
        assert all(m["runs"] > 0 and m["report"]["outcome"] == "passed" for m in found.values())
    else:
        assert "cpu/onnxruntime" in done.out and "cpu/reference" in done.out


@pytest.mark.parametrize("arguments", [["--help"], [], ["plan", "--help"], ["bench", "--help"]])
def test_help_is_on_stdout(arguments: Sequence[str]) -> None:
    done = paddock(*arguments)
    assert "Usage: paddock" in done.out and not done.err


@pytest.mark.long
def test_golden_from_writing_to_a_host_without_a_reference(folder: Path, tmp_path: Path) -> None:
    stored, config = tmp_path / "g.npz", tmp_path / "c.json"
    paddock("verify", "--model", folder / "relu.onnx", "--config", folder / "ort.json", "--write-golden", stored)
    config.write_text(json.dumps({**ORT, "accuracy": {"verify": "golden", "golden": "g.npz"}}))
    only = {"PADDOCK_ALLOW": "paddock-onnxruntime"}
    done = paddock("verify", "--model", folder / "relu.onnx", "--config", config, "--json", env=only)
    assert done.data["report"]["reference"] == "golden (cpu/reference)"
    assert done.data["report"]["outcome"] == "passed"
    failed(2, "UsageError", "verify", "--model", folder / "relu.onnx", "--config", config, "--write-golden", stored)


def test_which_plugins_are_loaded_and_which_may() -> None:
    listed = {each["distribution"]: each for each in paddock("plugins", "--json").data["plugins"]}
    assert (
        listed["paddock-reference"]["verdict"]["answer"] == listed["paddock-onnxruntime"]["verdict"]["answer"] == "yes"
    )
    digest, where = listed["paddock-reference"]["digest"], listed["paddock-reference"]["origin"]
    assert Path(where).is_file()
    shown = paddock("--allow", f"paddock-reference@{digest[:16]}", "plugins", env={"COLUMNS": "300"}).out
    row = next(line for line in shown.splitlines() if "paddock-reference" in line)
    assert digest[:16] in row and where in row and "cpu/reference" in row
    assert "not among PADDOCK_ALLOW" in next(line for line in shown.splitlines() if "paddock-onnxruntime" in line)
    other = paddock("--allow", "paddock-reference@00000000", "adapters", "--json").data
    assert other["adapters"] == []
    failed(2, "UsageError", "--allow", "no such", "plugins")


# Each exit code, provoked


@pytest.mark.parametrize(
    ("config", "model", "code", "kind"),
    [
        ("misspelt.json", "relu.onnx", 2, "ConfigError"),
        ("no.json", "relu.onnx", 2, "ConfigError"),
        (".", "relu.onnx", 2, "ConfigError"),
        ("relu.onnx", "relu.onnx", 2, "ConfigError"),
        ("ort.json", "no.onnx", 2, "ModelError"),
        ("ort.json", "broken.onnx", 2, "ModelError"),
        ("ort.json", "empty.onnx", 2, "ModelError"),
        ("ort.json", "ort.json", 2, "ModelError"),
        ("tensorrt.json", "relu.onnx", 3, "NotAvailable"),
        ("bf16.json", "relu.onnx", 3, "NotAvailable"),
        ("ort.json", "unknown.onnx", 3, "NotAvailable"),
        ("inaccurate.json", "relu.onnx", 4, "AccuracyRefused"),
        ("ort.json", "constant.onnx", 4, "AccuracyRefused"),
        ("small.json", "relu.onnx", 5, "MemoryRefused"),
    ],
)
def test_refusals(folder: Path, config: str, model: str, code: int, kind: str) -> None:
    error = failed(code, kind, "verify", "--model", folder / model, "--config", folder / config)
    assert code != 2 or error["where"]
    if kind == "AccuracyRefused":
        assert error["report"]["outcome"] in ("failed", "inconclusive")


def test_a_refusal_without_json_is_on_stderr(folder: Path) -> None:
    done = paddock("plan", "--model", folder / "relu.onnx", "--config", folder / "misspelt.json", code=2)
    assert not done.out
    assert "$.accuracy.max_eror" in done.err and "did you mean 'max_error'?" in done.err


@pytest.mark.long
def test_the_highest_of_several_configs_counts(folder: Path) -> None:
    names = ("ort", "misspelt", "inaccurate", "small", "tensorrt")
    configs = [item for name in names for item in ("--config", folder / f"{name}.json")]
    done = paddock("bench", "--model", folder / "relu.onnx", *configs, "--seconds", "0.2", "--json", code=5)
    codes = {e["config"]: e["error"] and e["error"]["exit_code"] for e in done.data["bench"]}
    assert codes == {"ort": None, "misspelt": 2, "inaccurate": 4, "small": 5, "tensorrt": 3}
    assert done.data["bench"][0]["measured"]["runs"] > 0, "the good one is measured all the same"


def test_verify_all_takes_the_highest_too(folder: Path) -> None:
    done = paddock("verify", "--model", folder / "constant.onnx", "--all", "--json", code=4)
    kinds = {row["precision"]: row["error"] and row["error"]["kind"] for row in done.data["adapters"]}
    assert kinds == {"fp32": "AccuracyRefused", "int8": None, "fp16": "AccuracyRefused", "bf16": "AccuracyRefused"}


def test_two_configs_of_one_name_are_told_apart(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "ort.json"
    other.write_text(json.dumps({**ORT, "precision": "fp23"}))
    places = [folder / "misspelt.json", other, tmp_path / "misspelt.json"]
    configs = [item for place in places for item in ("--config", place)]
    done = paddock("bench", "--model", folder / "relu.onnx", *configs, "--seconds", "0.2", "--json", code=2)
    assert [e["config"] for e in done.data["bench"]] == [str(places[0]), "ort", str(places[2])]
    twice = ["--config", other, "--config", other]
    failed(2, "UsageError", "bench", "--model", folder / "relu.onnx", *twice)


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("--input", "no.npz", "UsageError"),
        ("--input", "garbage.npz", "UsageError"),
        ("--input", ".", "UsageError"),
        ("--input", "wrong.npz", "UsageError"),
        ("--output", ".", "UsageError"),
        ("--output", "no/such/folder/out.npz", "UsageError"),
        ("--output", "relu.onnx/out.npz", "UsageError"),
    ],
)
def test_inputs_and_outputs_that_do_not_work(folder: Path, tmp_path: Path, field: str, value: str, kind: str) -> None:
    given = {"--input": folder / "in.npz", "--output": tmp_path / "out.npz", field: folder / value}
    options = [item for pair in given.items() for item in pair]
    error = failed(
        2, kind, "run", "--model", folder / "relu.onnx", "--config", folder / "golden.json", *options
    )  # fmt: skip
    assert field in error["where"] or value == "wrong.npz"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonesuch"],
        ["plan"],
        ["plan", "--model", "x"],
        ["plan", "--nope"],
        ["plan", "--model"],
        ["bench", "--model", "x", "--config", "{}", "--seconds", "often"],
        ["bench", "--model", "x", "--config", "{}", "--seconds", "nan"],
        ["bench", "--model", "x", "--config", "{}", "--seconds", "-1"],
        ["verify", "--model", "x"],
        ["verify", "--model", "x", "--all", "--write-golden", "g"],
        ["adapters", "surplus"],
    ],
)
def test_wrong_usage(arguments: Sequence[str]) -> None:
    failed(2, "UsageError", *arguments)


def test_wrong_usage_without_json() -> None:
    done = paddock("plan", "--model", code=2)
    assert not done.out and done.err.startswith("UsageError command line: ")


def test_names_that_are_markup_or_no_text_are_shown(folder: Path) -> None:
    done = paddock("plan", "--model", "[bold]m[/bold].onnx", "--config", folder / "ort.json", code=2)
    assert "[bold]m[/bold].onnx" in done.err
    arguments = [os.fsencode(part) for part in PADDOCK] + [b"plan", b"--model", b"\xff.onnx", b"--config", b"\xfe.json"]
    for flag in ([], [b"--json"]):
        ended = subprocess.run([*arguments, *flag], capture_output=True, check=False, timeout=60)
        assert ended.returncode == 2 and b"Traceback" not in ended.stderr


# Streams and signals


@pytest.mark.parametrize("command", ["plan", "run", "bench"])
def test_a_command_says_that_it_takes_no_account_of_warm_start(folder: Path, tmp_path: Path, command: str) -> None:
    config = json.dumps({**ORT, "warm_start": "cpu/reference"})
    more: Mapping[str, Sequence[Any]] = {
        "plan": [],
        "run": ["--input", folder / "in.npz", "--output", tmp_path / "out.npz"],
        "bench": ["--seconds", "0.2"],
    }
    ended = paddock(command, "--model", folder / "relu.onnx", "--config", config, *more[command], "--json")
    assert "note: warm_start cpu/reference has no effect here" in " ".join(ended.err.split())
    assert '"adapter": "cpu/onnxruntime"' in ended.out
    if command == "plan":
        assert any("warm_start" in note for note in ended.data["plan"]["notes"])


@pytest.mark.parametrize("arguments", [["schema"], ["adapters"], ["--help"], ["plan", "--json"]])
def test_a_reader_that_leaves(arguments: Sequence[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [*PADDOCK, *arguments], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
            env={**os.environ, **OURS},
        )  # fmt: skip
    finally:
        os.close(theirs)
    assert done.returncode == 141 and not done.stderr


@pytest.mark.parametrize("arguments", ["schema", "adapters", "plan --json"])
@pytest.mark.parametrize("target", [">/dev/full", ">&-"])
def test_a_stdout_that_takes_nothing(arguments: str, target: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m paddock.cli {arguments} {target}', sys.executable],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **OURS},
    )  # fmt: skip
    assert "Traceback" not in done.stderr and not done.stdout
    assert target == ">&-" or done.returncode in (1, 2)
    assert target != ">/dev/full" or "No space left" in done.stderr


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_ctrl_c(folder: Path, flag: Sequence[str]) -> None:
    arguments = ["bench", "--model", folder / "relu.onnx", "--config", folder / "golden.json", "--seconds", "90"]
    process = subprocess.Popen(
        [*PADDOCK, *map(str, arguments), *flag], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, **OURS},
    )  # fmt: skip
    while process.poll() is None and not psutil.Process(process.pid).children():
        time.sleep(0.05)  # until it is at work: its first child is there
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert "Traceback" not in err and process.returncode == 130, err
    if flag:
        assert json.loads(out)["error"] == {
            "kind": "PaddockError", "problem": "interrupted", "where": None, "candidates": [], "remedy": None,
            "exit_code": 130,
        }  # fmt: skip
    else:
        assert not out and "interrupted" in err


NOISY = """
    import os, sys
    import numpy as np
    from paddock.plan import Precision, Verdict
    from paddock.spi import Adapter, Artifact, Observed, Probe, Selection, Session, hookimpl

    def shout(what):
        print("NOISE python", what)
        sys.stdout.flush()
        os.write(1, b"NOISE fd\\n")
        os.system("echo NOISE child")
        if os.environ.get("NOISY_FAILS") == what:
            raise RuntimeError(f"[bold]{what}[/bold] went wrong")

    shout("import")

    class NoisySession(Session):
        def run(self, feeds, outputs=None):
            shout("run")
            return {"y": np.maximum(feeds["x"], 0)}
        def close(self):
            shout("close")
        def observed(self):
            shout("observed")
            return Observed()

    class Noisy(Adapter):
        hardware, backend, spi_version = "cpu", "noisy", 1
        formats, precisions = ("onnx",), frozenset({Precision.FP32})
        def select_operators(self, model, context):
            shout("select")
            return Selection(tuple(Verdict.yes("x", "y") for node in model.graph.nodes))
        def compile(self, model, plan, context):
            shout("compile")
            return Artifact(self.name(), "onnx", model.files, ("x",), ("y",))
        def load(self, artifact, context):
            shout("load")
            return NoisySession()

    @hookimpl
    def paddock_adapters():
        shout("hook")
        return [Noisy]
"""


def installed(place: Path, name: str, code: str) -> Mapping[str, str]:
    """The environment in which a plugin of this code is installed, and the reference's beside it."""
    (place / f"{name}_plugin.py").write_text(textwrap.dedent(code))
    facts = place / f"paddock_{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: paddock-{name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[paddock]\n{name} = {name}_plugin\n")
    return {"PYTHONPATH": on_path(place), "PADDOCK_ALLOW": f"paddock-{name},paddock-reference"}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """An installed plugin that writes to stdout, and to descriptor 1, wherever it is called."""
    return installed(tmp_path_factory.mktemp("noisy"), "noisy", NOISY)


NOISY_CONFIG = json.dumps({"hardware": "cpu", "backend": "noisy"})


AWAY = """
    from paddock.errors import ConfigError
    from paddock.plan import Precision, Verdict
    from paddock.spi import Adapter, Probe, Selection, hookimpl
    from pydantic import BaseModel, ConfigDict

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        tiles: int = 4

    class Away(Adapter):
        hardware, backend, spi_version = "npu", "away", 1
        formats, precisions = ("onnx",), frozenset({Precision.FP32})
        Options = Options
        @classmethod
        def probe(cls):
            return Probe(Verdict.no("no driver here", "a test"), remedy="install the driver")
        def __init__(self, config, device):
            super().__init__(config, device)
            if config.config.threads is not None:
                raise ConfigError("threads have no effect", where="$.threads", remedy="leave it out")
        def select_operators(self, model, context):
            no, open_ = Verdict.no("no kernel", "its table"), Verdict.provisional("ask there", "its table")
            return Selection(tuple(open_ if node.type == "Relu" else no for node in model.graph.nodes))
        def compile(self, model, plan, context): ...
        def load(self, artifact, context): ...

    @hookimpl
    def paddock_adapters():
        return [Away]
"""


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """An installed plugin whose device is not here."""
    return installed(tmp_path_factory.mktemp("away"), "away", AWAY)


@pytest.mark.parametrize(
    ("config", "model", "code", "problems"),
    [
        ({}, "relu.onnx", 3, []),
        ({"options": {"tile": 3}}, "relu.onnx", 2, ["npu/away has no such option"]),
        ({"options": {"tiles": "many"}}, "relu.onnx", 2, ["should be a valid integer"]),
        ({"threads": 3}, "relu.onnx", 2, ["threads have no effect"]),
        ({"shapes": {"z": [1]}}, "relu.onnx", 2, ["is neither an input nor a dimension of the model"]),
        ({"rescue": "npu/away", "isolation": "process"}, "relu.onnx", 2, ["is what the config asks to isolate"]),
        ({"precision": "bf16"}, "relu.onnx", 3, ["npu/away does not compute in bf16"]),
        (
            {"precision": "bf16", "options": {"tile": 3}}, "relu.onnx", 2,
            ["npu/away has no such option", "npu/away does not compute in bf16"],
        ),
        ({}, "constant.onnx", 3, ["npu/away does not take 1 of 1 nodes"]),
        ({"batch_size": 64, "memory": {"limit": 64}}, "relu.onnx", 5, ["over memory.limit of 64 B"]),
    ],
)  # fmt: skip
def test_what_stands_against_a_plan_is_told_beside_the_hardware_that_is_not_here(
    folder: Path, away: Mapping[str, str], config: Mapping[str, Any], model: str, code: int, problems: Sequence[str]
) -> None:
    """And decides the status: it would be refused where the hardware is, too."""
    asked = json.dumps({"hardware": "npu", "backend": "away", **config})
    data = paddock("plan", "--model", folder / model, "--config", asked, "--json", env=away, code=code).data
    told = data.get("error") or data["refused"]
    assert told["exit_code"] == code
    found = [told, *told.get("besides", ())]
    assert [each["problem"] for each in found[-1:]] == ["npu/away: no driver here"]
    assert found[-1]["remedy"] == "install the driver"
    assert len(found) == len(problems) + 1
    assert all(problem in each["problem"] for each, problem in zip(found, problems, strict=False))
    assert ("plan" in data) is (not problems or code == 5), "what can be told is"


def test_each_error_is_a_line_of_its_own_in_text(folder: Path, away: Mapping[str, str]) -> None:
    config = json.dumps({"hardware": "npu", "backend": "away", "options": {"tile": 3}})
    for command in ("plan", "verify"):
        done = paddock(command, "--model", folder / "relu.onnx", "--config", config, env=away, code=2)
        lines = done.err.splitlines()
        assert "$.options.tile: npu/away has no such option" in lines[0]
        assert lines[-2:] == ["besides: npu/away: no driver here", "  remedy: install the driver"]


@pytest.mark.parametrize("command", ["adapters", "run", "verify", "bench"])
def test_what_an_adapter_prints_stays_off_stdout(
    folder: Path, tmp_path: Path, noisy: Mapping[str, str], command: str
) -> None:
    arguments: list[Any] = [command, "--json"]
    if command not in ("adapters", "doctor"):
        arguments += ["--model", folder / "relu.onnx", "--config", NOISY_CONFIG]
    more: Mapping[str, Sequence[Any]] = {
        "run": ["--input", folder / "in.npz", "--output", tmp_path / "o.npz"],
        "bench": ["--seconds", "0.2"],
    }
    arguments += more.get(command, [])
    done = paddock(*arguments, env=noisy)
    assert done.data and "NOISE" not in done.out
    # The children of `bench` keep what they print, for the case that they crash.
    assert command == "bench" or all(f"NOISE {kind}" in done.err for kind in ("python import", "fd", "child"))


@pytest.mark.parametrize("step", ["select", "compile", "observed"])
def test_an_adapter_that_raises_is_a_build_or_run_that_failed(
    folder: Path, noisy: Mapping[str, str], step: str, tmp_path: Path
) -> None:
    env = {**noisy, "NOISY_FAILS": step, "PADDOCK_CACHE": str(tmp_path / "cache")}
    given: Sequence[str | Path] = ["verify", "--model", folder / "relu.onnx", "--config", NOISY_CONFIG]
    assert f"[bold]{step}[/bold] went wrong" in failed(6, "BuildFailed", *given, env=env)["problem"]
    if step == "select":
        assert f"[bold]{step}[/bold] went wrong" in paddock(*given, env=env, code=6).err


def test_an_internal_error_is_one_line(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import paddock.registry as r\nr.Registry.survey = lambda *a: 1 / 0\n")
    env = {"PYTHONPATH": on_path(tmp_path)}
    error = failed(1, "PaddockError", "adapters", env=env)
    assert "ZeroDivisionError" in error["problem"] and "PADDOCK_TRACEBACK=1" in error["remedy"]


def test_a_config_on_stdin(folder: Path) -> None:
    done = paddock(
        "plan", "--model", folder / "relu.onnx", "--config", "/dev/stdin", "--json", input=json.dumps(ORT)
    )  # fmt: skip
    assert done.data["plan"]["adapter"] == "cpu/onnxruntime"


@pytest.mark.parametrize("name", ["cpu/noisy", "cpu/nonesuch"])
def test_a_config_for_what_is_not_installed_lists_what_is(folder: Path, name: str) -> None:
    hardware, _, backend = name.partition("/")
    config = json.dumps({"hardware": hardware, "backend": backend})
    error = failed(3, "NotAvailable", "plan", "--model", folder / "relu.onnx", "--config", config)
    assert error["candidates"] == ["cpu/onnxruntime", "cpu/reference", "gpu/cuda"] and error["remedy"]


def test_cache_that_cannot_be_written(folder: Path) -> None:
    env = {"PADDOCK_CACHE": str(folder / "relu.onnx")}
    error = failed(2, "UsageError", "adapters", env=env)
    assert "PADDOCK_CACHE" in error["remedy"]
