"""The ten models of `benchmarks.auto`, exported once each: `python -m benchmarks.zoo FOLDER [NAME ...]`.

Five are those of the first table of speeds; a detector, a recurrent net, an encoder, a super-resolver and a recommender
stand beside them, of sizes that are used in earnest, at the small end. This module imports no SDK unless it exports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paddock.npz import write_npz

CALIBRATING = 32
"""Examples to quantise by."""


@dataclass(frozen=True)
class Case:
    """A model and the one set of shapes that it is measured at; `limits` are the rows of what integer inputs index."""

    name: str
    kind: str
    shapes: Mapping[str, Sequence[int]]
    limits: Mapping[str, int]

    @property
    def base(self) -> dict[str, Any]:
        """What every config for it says."""
        return {"shapes": {name: list(shape) for name, shape in self.shapes.items()}}


def _image(name: str, kind: str, side: int) -> Case:
    return Case(name, kind, {"image": (1, 3, side, side)}, {})


ZOO: Mapping[str, Case] = {
    case.name: case
    for case in (
        _image("resnet18", "classification, ResNet-18", 224),
        _image("resnet", "classification, ResNet-50", 224),
        _image("mobilenet", "classification, MobileNetV2", 224),
        Case("deepseek", "decoder, latent attention and experts", {"tokens": (2, 64)}, {"tokens": 512}),
        Case("linear", "one layer, 768 to 1024, batch 32", {"x": (32, 768)}, {}),
        _image("detector", "detection, like YOLOv8n at 320", 320),
        Case("listener", "recurrent, LSTM 2 x 256 both ways", {"frames": (1, 100, 80)}, {}),
        Case(
            "embedder", "encoder, 6 x 384, 128 tokens",
            {"tokens": (1, 128), "mask": (1, 128)}, {"tokens": 30_522, "mask": 2},
        ),
        _image("sharpener", "super-resolution, like EDSR, 96 to 192", 96),
        Case(
            "recommender", "recommendation, like DLRM, batch 128",
            {"numbers": (128, 13), "categories": (128, 26)}, {"categories": 260_000},
        ),
    )
}  # fmt: skip


def exported(case: Case, folder: Path) -> Path:
    """The model's .json in `folder`, exported in a process of its own where it is not there yet."""
    path = folder / f"{case.name}.json"
    if not path.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.zoo", str(folder), case.name], check=True)
    return path


def calibration(case: Case, folder: Path) -> Path:
    """A folder of examples to quantise by, written where it is not there yet: noise, as what judges is."""
    place = folder / f"{case.name}_calibration"
    if not place.exists():
        place.mkdir(parents=True)
        rng = np.random.default_rng(11)
        for number in range(CALIBRATING):
            write_npz(place / f"{number:03}.npz", _drawn(case, rng), "an example")
    return place


def _drawn(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: rng.integers(0, case.limits[name], shape, dtype=np.int64)
        if name in case.limits
        else rng.standard_normal(shape, dtype=np.float32)
        for name, shape in case.shapes.items()
    }


def _exporters() -> Mapping[str, Callable[[Path], Path]]:
    from benchmarks import zoo_models
    from examples.export import ALL

    own = (zoo_models.detector, zoo_models.listener, zoo_models.embedder, zoo_models.sharpener, zoo_models.recommender)
    return {**ALL, "resnet18": zoo_models.resnet18_export, **{export.__name__: export for export in own}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Export models of the zoo, print the .json paths.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[[], *ZOO], default=[])
    arguments = parser.parse_args()
    for name in arguments.names or ZOO:
        print(_exporters()[name](arguments.folder))
