"""Adapters that are slow at nodes by name, as a plugin of its own: alone, each is slow at half of a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import onnx
from paddock.plan import Precision
from paddock.spi import Adapter, Artifact, Context, Session, hookimpl
from paddock_fakes_segments import Odd, OddOptions, OddSession

SECONDS = 0.004


class SlowSession(OddSession):
    """Sleeps before each node whose name begins as it is told."""

    slow = ""
    seconds = SECONDS

    def _happen(self, name: str) -> None:
        if name.startswith(self.slow):
            time.sleep(self.seconds)


class Early(Odd):
    """Slow at nodes called late."""

    hardware: ClassVar[str] = "npu"
    backend: ClassVar[str] = "early"
    aliases: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32})
    slow: ClassVar[str] = "late"
    seconds: ClassVar[float] = SECONDS

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A session that is slow at some nodes."""
        assert isinstance(self.config.options, OddOptions)
        session = SlowSession(onnx.load(artifact.files["model"]), self.config.options, "fp32")
        session.slow, session.seconds = self.slow, self.seconds
        return session


class Late(Early):
    """Slow at nodes called early."""

    backend: ClassVar[str] = "late"
    slow: ClassVar[str] = "early"


class Poor(Early):
    """Slower at all nodes than either of them is at some."""

    hardware: ClassVar[str] = "dsp"
    backend: ClassVar[str] = "poor"
    seconds: ClassVar[float] = 3 * SECONDS
    slow: ClassVar[str] = ""


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """All of them."""
    return [Early, Late, Poor]


def install(folder: Path) -> None:
    """Makes a distribution of this module in a folder of `sys.path`, for children to find."""
    info = folder / "twins-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: twins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[paddock]\ntwins = {__name__}\n")
