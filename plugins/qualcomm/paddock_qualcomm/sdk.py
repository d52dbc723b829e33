"""onnxruntime's QNN provider: registered, asked for a session, and what it says meanwhile.

Only processes that are made for it come here. Its backend is one for a process, and so are its options: the model of
the chip that is given first holds for all later sessions, also after the first is gone (a session without any, made
after one for a chip, computes float32 in float16 and says nothing), and a session for another chip makes those before
it fail in their next run (2.7.0).
"""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from paddock_onnxruntime.named import DATA_FOLDER, Source
from paddock_onnxruntime.session import ASSIGNMENT

PROVIDER = "QNNExecutionProvider"
SIMULATED = "HTP backend on x86 (simulation by Qualcomm)"
"""What there is on x86: Qualcomm's own backend for its tensor processor, computing on the host's CPU."""

ERROR, FATAL = 3, 4
_STRICT = "session.disable_cpu_ep_fallback"


def is_simulated() -> bool:
    """Whether this host has the simulation and no NPU of Qualcomm's."""
    return platform.machine().lower() in ("x86_64", "amd64")


@cache
def devices() -> tuple[Any, ...]:
    """The provider's devices that its HTP backend serves, the NPUs first; registers the provider in this process."""
    import onnxruntime
    import onnxruntime_qnn

    onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    found = [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER and d.device.type.name != "GPU"]
    return tuple(sorted(found, key=lambda device: device.device.type.name != "NPU"))


def session(
    model: Source | Path,
    soc_model: int | None = None,
    *,
    strict: bool = True,
    severity: int = FATAL,
    options: Mapping[str, str] | None = None,
    entries: Mapping[str, str] | None = None,
) -> Any:
    """onnxruntime's session on the HTP backend.

    Args:
        model: What to load.
        soc_model: Qualcomm's number of the chip to compile for; None for the backend's default.
        strict: Whether it fails where the provider does not take every node; otherwise onnxruntime's CPU provider
            gets the rest.
        severity: From which of onnxruntime's levels messages are printed.
        options: Further options of the provider.
        entries: Further settings of the session.
    """
    import onnxruntime
    import onnxruntime_qnn

    onnxruntime.set_default_logger_severity(severity)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = severity
    # Basic: constants are folded, as shapes that are computed need; what is more is for other providers.
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.intra_op_num_threads = 1  # of the CPU provider, which runs nothing
    settings.add_session_config_entry(ASSIGNMENT, "1")
    if strict:
        settings.add_session_config_entry(_STRICT, "1")
    if isinstance(model, Source):
        settings.add_session_config_entry(DATA_FOLDER, str(model.folder))
    for key, value in (entries or {}).items():
        settings.add_session_config_entry(key, value)
    chosen = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "offload_graph_io_quantization": "0"}
    if soc_model is not None:
        chosen["soc_model"] = str(soc_model)
    settings.add_provider_for_devices(devices()[:1], {**chosen, **(options or {})})
    made = onnxruntime.InferenceSession(model.content if isinstance(model, Source) else str(model), settings)
    made.disable_fallback()  # where a run fails, onnxruntime would try the CPU provider
    return made


def placed(made: Any) -> tuple[list[str], list[str]]:
    """The names of a session's nodes: (those that the QNN provider took, those left to the CPU provider)."""
    taken: list[str] = []
    left: list[str] = []
    for part in made.get_provider_graph_assignment_info():
        (taken if part.ep_name == PROVIDER else left).extend(node.name for node in part.get_nodes())
    return taken, left


@contextmanager
def listening() -> Iterator[list[str]]:
    """What onnxruntime logs as an error while inside, line by line; nothing is printed. For a process of its own."""
    found: list[str] = []
    saved = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield found
        finally:
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            found.extend(_said(file.read().decode(errors="replace")))


def short(error: Exception) -> str:
    """onnxruntime's message on one line, without its error code and the places in its sources."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+?:\d+ \S.*?\) |\[ONNXRuntimeError\]", "", text)
    return text[:400] or type(error).__name__


def _said(text: str) -> Iterator[str]:
    for line in text.splitlines():
        match = re.search(r"\[[EF]:onnxruntime:[^\]]*\] (.*?)(?:\x1b\[m)?$", line)
        if match is not None:
            yield match[1]
