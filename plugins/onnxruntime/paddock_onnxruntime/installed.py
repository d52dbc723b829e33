"""Which onnxruntime is installed, from metadata and files alone: several distributions take the same import name."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

PLAIN = "onnxruntime"
GPU = "onnxruntime-gpu"


@dataclass(frozen=True, slots=True)
class Installed:
    """The onnxruntime that an import would get.

    `distribution` is the one whose files lie there: who is installed last overwrites the others' files, and all stay in
    the list of what is installed (`beside`).
    """

    distribution: str
    version: str
    folder: Path
    cuda: str = ""
    """The version of CUDA that it was built with; "" for a build without."""
    beside: tuple[str, ...] = ()

    @property
    def gpu(self) -> bool:
        """Whether it is the build with NVIDIA's providers."""
        return bool(self.cuda)


def installed() -> Installed | None:
    """What `import onnxruntime` would load; None where there is none. Imports nothing, takes under a millisecond."""
    try:
        spec = importlib.util.find_spec(PLAIN)
    except ValueError:
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    try:
        said = (folder / "capi" / "build_and_package_info.py").read_text(encoding="utf-8")
    except OSError:
        said = ""
    facts = dict(re.findall(r"^(\w+) = '([^']*)'$", said, re.MULTILINE))
    listed = {name: found for name in (PLAIN, GPU) if (found := version_of(name)) is not None}
    name = facts.get("package_name", PLAIN if PLAIN in listed else GPU)
    version = facts.get("__version__") or listed.get(name)
    if version is None:
        return None
    others = tuple(other for other in listed if other != name)
    return Installed(name, version, folder, facts.get("cuda_version", ""), others)


def version_of(distribution: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
