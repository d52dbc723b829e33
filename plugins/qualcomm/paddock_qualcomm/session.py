"""A session of the QNN provider behind Paddock's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddock.spi import Observed
from paddock_onnxruntime.session import OnnxRuntimeOptions, OnnxRuntimeSession


class QualcommSession(OnnxRuntimeSession):
    """A session that runs a compiled context; one thread at a time.

    Args:
        inner: onnxruntime's InferenceSession.
        outputs: The names of all outputs, in the model's order.
        settings: What took effect when it was compiled, in the config's terms.
        nodes: The operators of QNN's graphs.
    """

    def __init__(self, inner: Any, outputs: tuple[str, ...], settings: Mapping[str, Any], nodes: int) -> None:
        super().__init__(inner, outputs, OnnxRuntimeOptions())
        self._settings = settings
        self._nodes = nodes

    def observed(self) -> Observed:
        """What the provider's own description of the graph told when it was compiled: a context tells nothing more."""
        return Observed(dict(self._settings), nodes=self._nodes)
