"""Each runtime called by its own API, as its documentation shows it: what Paddock's overhead is measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Feeds = Mapping[str, np.ndarray[Any, Any]]
Runner = Callable[[Feeds], Any]


def onnxruntime(files: Mapping[str, Path], threads: int) -> Runner:
    """ONNX Runtime's `InferenceSession.run`, with the threads and the spinning that Paddock sets."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(files["model"]), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def openvino(files: Mapping[str, Path], threads: int) -> Runner:
    """OpenVINO's `InferRequest.infer`, outputs copied out, since the request overwrites them at its next call."""
    from paddock_openvino.sdk import openvino as without_telemetry

    ov = without_telemetry()
    compiled = ov.Core().compile_model(
        str(files["model"]), "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    )
    request = compiled.create_infer_request()

    def run(feeds: Feeds) -> Any:
        found = request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        return [np.array(value) for value in found.values()]

    return run


def _paddle(onednn: bool) -> Callable[[Mapping[str, Path], int], Runner]:
    def make(files: Mapping[str, Path], threads: int) -> Runner:
        import paddle.inference as inference

        config = inference.Config(str(files["program"]), str(files.get("params", "")))
        config.disable_glog_info()
        config.enable_new_executor()
        config.enable_new_ir(True)
        config.enable_memory_optim()
        if onednn:
            config.enable_mkldnn()
            config.delete_pass("inplace_pass")
        else:
            config.disable_mkldnn()
        config.set_cpu_math_library_num_threads(threads)
        predictor = inference.create_predictor(config)
        inputs = {name: predictor.get_input_handle(name) for name in predictor.get_input_names()}
        outputs = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

        def run(feeds: Feeds) -> Any:
            for name, array in feeds.items():
                inputs[name].copy_from_cpu(array)
            predictor.run()
            return [handle.copy_to_cpu() for handle in outputs]

        return run

    return make


NATIVE: Mapping[str, Callable[[Mapping[str, Path], int], Runner]] = {
    "cpu/onnxruntime": onnxruntime,
    "cpu/openvino": openvino,
    "cpu/paddle": _paddle(onednn=False),
    "cpu/mkldnn": _paddle(onednn=True),
}
