"""What runs in the children of `benchmarks.precision`: Paddock's way, and each backend's own as it documents it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from paddock.child import Children
from paddock.deployment import deploy
from paddock.prepare import prepare

from benchmarks.precision_models import Sample, load

THREADS = 2
WARM_UP_SECONDS = 0.3

OWN_WAYS: Mapping[tuple[str, str], str] = {
    ("cpu/onnxruntime", "fp32"): "InferenceSession",
    ("cpu/onnxruntime", "fp16"): "onnxconverter-common",
    ("cpu/onnxruntime", "int8"): "quantize_static",
    ("cpu/openvino", "fp32"): "hint f32",
    ("cpu/openvino", "bf16"): "hint bf16",
    ("cpu/openvino", "fp16"): "hint f16",
    ("cpu/openvino", "int8"): "nncf.quantize",
    ("cpu/mkldnn", "fp32"): "enable_mkldnn",
    ("cpu/mkldnn", "bf16"): "enable_mkldnn_bfloat16",
    ("cpu/mkldnn", "int8"): "enable_mkldnn_int8",
    ("cpu/paddle", "fp32"): "Predictor",
}
"""Each backend's own way to a precision; it has none where there is no entry."""

Run = Callable[[Sample], Any]
_HERE: dict[str, Any] = {}
"""In a child: what it runs, and what keeps that alive."""


def open_paddock(model: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Deploys; sizes are of the model in the adapter's format before and after, `floats` the nodes on floats."""
    deployment = deploy(model, config)
    (output,) = deployment.outputs
    _HERE.update(run=lambda feeds: deployment.run(feeds)[output], kept=deployment)
    plan = deployment.plan.precision
    before, after = (sum(path.stat().st_size for path in files.values()) for files in deployment.lowered)
    floats = [node for node in plan.nodes if node.dtype]
    return {
        "ratio": after / before,
        "narrow": sum(node.dtype != "float32" for node in floats),
        "floats": len(floats),
        "kept": len(plan.keep_fp32),
        "tries": len(plan.searched),
        "judged": min((o.agreement for o in deployment.report.outputs if o.agreement is not None), default=None),
        "note": "",
    }


def open_own(adapter: str, precision: str, model: Path, onnx: Path, calibration: Path) -> dict[str, Any]:
    """The backend by its own API, on the same fp32 model; what it writes for itself is kept beside the model."""
    if adapter in ("cpu/mkldnn", "cpu/paddle"):
        _HERE["run"], note = _paddle(model, adapter == "cpu/mkldnn", precision)
        return {"ratio": 1.0, "note": note}
    if adapter == "cpu/onnxruntime":
        make = {"fp16": _converted_fp16, "int8": _quantised_static}.get(precision)
        return open_file(onnx, onnx if make is None else _kept(onnx, calibration, f"ort-{precision}.onnx", make))
    if precision != "int8":
        hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision]
        _HERE["run"], note = _openvino(onnx, {"INFERENCE_PRECISION_HINT": hint})
        return {"ratio": 1.0, "note": note}
    path = _kept(onnx, calibration, "nncf.xml", _quantised_nncf)
    _HERE["run"], note = _openvino(path, {})
    size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
    return {"ratio": size / onnx.stat().st_size, "note": note}


def open_cast_file(model: Path, onnx: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The file that Paddock casts for an adapter that computes in the type, run in ONNX Runtime."""
    with Children() as children:
        prepared = prepare(model, config, children=children)
        try:
            files = prepared.parts[0].target.files
            floats = [node for node in prepared.plan.precision.nodes if node.dtype]
            narrow = sum(node.dtype != "float32" for node in floats)
            size = sum(path.stat().st_size for path in files.values())
            opened = open_file(onnx, files["model"])
            return {**opened, "ratio": size / onnx.stat().st_size, "narrow": narrow, "floats": len(floats)}
        finally:
            prepared.discard()


def open_file(onnx: Path, path: Path) -> dict[str, Any]:
    """An ONNX file in ONNX Runtime, with the threads and the spinning that Paddock sets."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    _HERE["run"] = lambda feeds: session.run(None, dict(feeds))[0]
    return {"ratio": path.stat().st_size / onnx.stat().st_size, "note": ""}


def answers(folder: Path, seconds: float) -> list[Any]:
    """The output for each sample of the folder, until `seconds` have passed; then warms up."""
    found: list[Any] = []
    samples = load(folder)
    begun = time.perf_counter()
    for sample in samples:
        found.append(np.array(_HERE["run"](sample)))
        if time.perf_counter() - begun > seconds:
            return found
    _HERE["sample"] = samples[0]
    begun = time.perf_counter()
    while time.perf_counter() - begun < WARM_UP_SECONDS:
        _HERE["run"](_HERE["sample"])
    return found


def measure(seconds: float) -> float:
    """The median of single runs within `seconds`, at least one, in milliseconds."""
    run, sample = _HERE["run"], _HERE["sample"]
    times: list[float] = []
    begun = time.perf_counter()
    while not times or time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        run(sample)
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1e3


def close() -> None:
    """Ends a deployment, whose work folder would outlive the process otherwise."""
    if "kept" in _HERE:
        _HERE["kept"].close()


def _kept(onnx: Path, calibration: Path, name: str, make: Callable[[Path, Path, Path], None]) -> Path:
    """What `make(onnx, calibration, path)` writes, written once for the same bytes and versions."""
    digest = hashlib.sha256(onnx.read_bytes())
    for file in sorted(calibration.glob("*.npz")):
        digest.update(file.read_bytes())
    for package in ("onnxruntime", "openvino", "nncf", "onnxconverter-common"):
        with suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    path = onnx.parent / "own" / f"{onnx.stem}-{digest.hexdigest()[:12]}-{name}"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        make(onnx, calibration, path)
    return path


def _converted_fp16(onnx: Path, calibration: Path, path: Path) -> None:
    import onnx as package

    float16 = importlib.import_module("onnxconverter_common.float16")
    package.save(float16.convert_float_to_float16(package.load(onnx), keep_io_types=True), path)


def _quantised_static(onnx: Path, calibration: Path, path: Path) -> None:
    """As onnxruntime's documentation has it: pre-processed, then `quantize_static` with its defaults (QDQ)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # its base is Any: onnxruntime is not followed
        def __init__(self) -> None:
            self._left = iter(load(calibration))

        def get_next(self) -> Any:
            return next(self._left, None)

    prepared = path.with_suffix(".prepared.onnx")
    # Symbolic shapes need sympy, which onnxruntime does not bring; here every input has a fixed shape anyway.
    quant_pre_process(str(onnx), str(prepared), skip_symbolic_shape=find_spec("sympy") is None)
    quantize_static(str(prepared), str(path), Reader(), quant_format=QuantFormat.QDQ)
    prepared.unlink()


def _quantised_nncf(onnx: Path, calibration: Path, path: Path) -> None:
    """As NNCF's documentation has it: `nncf.quantize` of OpenVINO's model, everything else by default."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # a benchmark must not call home
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(onnx))
    ov.save_model(nncf.quantize(model, nncf.Dataset(load(calibration))), str(path), compress_to_fp16=False)


def _openvino(path: Path, properties: Mapping[str, Any]) -> tuple[Run, str]:
    from paddock_openvino.sdk import openvino

    compiled = openvino().Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": THREADS, **properties})
    request = compiled.create_infer_request()

    def run(feeds: Sample) -> Any:
        found = request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        return np.array(next(iter(found.values())))

    took = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    kinds = [op.get_rt_info()["runtimePrecision"].astype(str) for op in compiled.get_runtime_model().get_ops()]
    seen = {kind: kinds.count(kind) for kind in ("f32", "bf16", "f16", "i8", "u8") if kind in kinds}
    return run, f"hint took effect as {took}; executed nodes: " + ", ".join(f"{n} {k}" for k, n in seen.items())


def _paddle(model: Path, onednn: bool, precision: str) -> tuple[Run, str]:
    import paddle.inference as inference

    config = inference.Config(str(model), str(model.with_suffix(".pdiparams")))
    config.disable_glog_info()
    config.enable_new_executor()
    config.enable_new_ir(True)
    config.enable_memory_optim()
    config.set_cpu_math_library_num_threads(THREADS)
    note = ""
    if onednn:
        config.enable_mkldnn()
        if precision == "bf16":
            config.enable_mkldnn_bfloat16()
            note = "Paddle does not tell whether it took effect"
        if precision == "int8":
            config.enable_mkldnn_int8()
            note = f"mkldnn_int8_enabled: {config.mkldnn_int8_enabled()}"
    else:
        config.disable_mkldnn()
    predictor = inference.create_predictor(config)
    output = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(feeds: Sample) -> Any:
        for name, array in feeds.items():
            predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(array))
        predictor.run()
        return output.copy_to_cpu()

    return run, note
