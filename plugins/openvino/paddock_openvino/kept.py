"""What OpenVINO's CPU plugin keeps for shapes to come, bounded: else a process grows with every shape it meets.

It compiles kernels for each new shape and keeps them in two places: the plugin its own, by the compiled model, and
oneDNN inside of it the primitives that those are made of, by the process. Measured on OpenVINO 2026.4.1 with a decoder
of 12 MB of weights: 190 MB after the first run, and 2.5 MB more for each shape, 790 MB after 240 of them. With these
bounds it stays under 375 MB however many follow, and takes 5 % more time at most.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import Any

from paddock_openvino.sdk import core, openvino

KERNELS = 128
"""Kernels of each kind that a compiled model keeps where shapes vary, instead of 5,000.

They serve the last ten shapes or so as fast as ever; a shape that was away for longer is compiled again.
"""
PRIMITIVES = 256
"""Primitives that oneDNN keeps for all models of the process, instead of 1,024."""

_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
_lock = threading.Lock()


def kernels_kept() -> dict[str, Any]:
    """The property to compile a model of varying shapes with; OpenVINO takes it and does not give it back."""
    return {"CPU_RUNTIME_CACHE_CAPACITY": KERNELS}


def bound_primitives() -> None:
    """Has oneDNN keep `PRIMITIVES`, unless the environment says otherwise; once for this process, before any model.

    oneDNN reads the environment when it makes its first primitive, and never again. So a convolution is compiled while
    the variable is set, and the environment is left as it was: Paddle's oneDNN, which relies on finding its primitives
    again, reads the same one.
    """
    with _lock:
        _bound_once()


@cache
def _bound_once() -> None:
    if any(name in os.environ for name in _VARIABLES):
        return
    import numpy as np

    operations = openvino().opset16
    image = operations.parameter([1, 16, 8, 8], np.float32)
    kernel = operations.constant(np.ones((16, 16, 3, 3), np.float32))
    result = operations.convolution(image, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    model = openvino().Model([result], [image])
    os.environ[_VARIABLES[0]] = str(PRIMITIVES)
    try:
        core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})
    finally:
        os.environ.pop(_VARIABLES[0], None)
