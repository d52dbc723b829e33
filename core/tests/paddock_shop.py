"""Small distributions, made for each test and installed in a folder."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Sequence
from pathlib import Path

from paddock.admission import Plugin
from paddock.cache import Store
from paddock.registry import Registry

HEAD = """
import ctypes, os, sys, time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from pydantic import BaseModel, ConfigDict
from paddock.plan import *
from paddock.spi import *

class Base(Adapter):
    hardware = "cpu"
    spi_version = 1
    formats = ("onnx",)
    precisions = frozenset({Precision.FP32})
    def select_operators(self, model, context): ...
    def compile(self, model, plan, context): ...
    def load(self, artifact, context): ...
"""
ADAPTERS = """
@hookimpl
def paddock_adapters():
    return [a for a in list(globals().values()) if isinstance(a, type) and issubclass(a, Base) and a is not Base]
"""
NUMBERS = itertools.count()


class Shop:
    """Makes distributions in a folder that is on sys.path, and discovers them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store")

    def distribution(
        self, name: str, source: str, point: str = "plugin", attribute: str = "", requires: Sequence[str] = ()
    ) -> str:
        """Installs `source` as a module with one entry point; returns the module's name."""
        module = f"shop_{next(NUMBERS)}"
        (self.folder / f"{module}.py").write_text(source)
        self.metadata(name, {point: f"{module}:{attribute}" if attribute else module}, requires=requires)
        return module

    def metadata(self, name: str, points: dict[str, str], known: bool = True, requires: Sequence[str] = ()) -> None:
        info = self.folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        if known:
            needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
        lines = "".join(f"{point} = {value}\n" for point, value in points.items())
        (info / "entry_points.txt").write_text(f"[paddock]\n{lines}")

    def adapter(
        self,
        name: str,
        backend: str,
        body: str = "",
        point: str = "plugin",
        before: str = "",
        requires: Sequence[str] = (),
    ) -> str:
        indented = "".join(f"    {line}\n" for line in body.splitlines())
        source = f"{HEAD}{before}\nclass A(Base):\n    backend = {backend!r}\n{indented}{ADAPTERS}"
        return self.distribution(name, source, point, requires=requires)

    def discover(self, only: Sequence[str] | None = None, fresh: bool = False) -> Registry:
        found = importlib.metadata.distributions(path=[str(self.folder)])
        points = [point for distribution in found for point in distribution.entry_points]
        return Registry.discover(self.store, points, only, fresh)


def plugin(registry: Registry, distribution: str) -> Plugin:
    (found,) = [p for p in registry.plugins if p.distribution == distribution]
    return found
