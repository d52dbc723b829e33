"""Adapters whose device is never here, beside the odd ones. Importable by child processes under this name."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import paddock_calls as calls
import paddock_fakes_segments as odd
from paddock.cache import Store
from paddock.errors import ConfigError
from paddock.model import Model
from paddock.plan import Means, Precision, Remedy, Verdict
from paddock.registry import Registry
from paddock.spi import Adapter, Context, Device, Devices, ResolvedConfig, Selection, Shapes, hookimpl
from pydantic import BaseModel, ConfigDict


class FarOptions(BaseModel):
    """How it answers without its device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tiles: int = 4
    manner: str = ""


class Far(odd.Odd):
    """Runs where nobody is; says no to Tanh wherever it is asked, and cannot say more without its device."""

    hardware: ClassVar[str] = "npu"
    backend: ClassVar[str] = "far"
    aliases: ClassVar[tuple[str, ...]] = ("distant",)
    Options: ClassVar[type[BaseModel]] = FarOptions

    def __init__(self, config: ResolvedConfig, device: Device | None) -> None:
        super().__init__(config, device)
        if config.config.threads is not None:
            raise ConfigError("has no effect there", where="$.threads", remedy="leave it out")

    @classmethod
    def probe_device(cls) -> Devices:
        """None."""
        return Devices(Verdict.no("no far device answers", "a test"))

    def means(self, precision: Precision) -> Means:
        """Whatever it computes in, Paddock casts."""
        return Means.CAST

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """None."""
        return ()

    def notes(self, model: Model) -> Sequence[str]:
        """How far it is."""
        return (f"{len(model.graph.nodes)} nodes, far away",)

    def select_operators(self, model: Model, context: Context) -> Selection:
        """Provisional without a device; what is wrong with a device that nobody has, the test would see."""
        assert isinstance(self.config.options, FarOptions)
        if self.config.options.manner == "crash":
            calls.abort()
        if self.config.options.manner == "raise" or self.device is not None:
            raise RuntimeError(f"cannot reach {self.device}")
        no, open_ = (
            Verdict.no("no kernel for Tanh", "the far table"),
            Verdict.provisional("ask it there", "the far table"),
        )
        return Selection(tuple(no if node.type == "Tanh" else open_ for node in model.graph.nodes))


class Rigid(Far):
    """Takes fixed shapes, and computes in fp16 alone."""

    backend: ClassVar[str] = "rigid"
    aliases: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP16})
    shapes: ClassVar[Shapes] = Shapes.STATIC


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """The far ones."""
    return [Far, Rigid]


def discover(folder: Path) -> Registry:
    """These, the odd ones, onnxruntime and the reference, with a store in `folder`."""
    others = ("reference", "onnxruntime")
    points = [point for point in importlib.metadata.entry_points(group="paddock") if point.name in others]
    points += [importlib.metadata.EntryPoint(name, module, "paddock") for name, module in (
        ("odd", odd.__name__), ("far", __name__))]  # fmt: skip
    found = Registry.discover(Store(folder), points)
    assert {"cpu/odd", "npu/far", "npu/rigid", "cpu/onnxruntime", "cpu/reference"} <= set(found.names())
    return found
