"""The models of `benchmarks.precision`: exported once, with the samples that calibrate and those that judge."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from paddock.child import Child, Children
from paddock.config import Agreement
from paddock.deployment import deploy
from paddock.metrics import agreement_with, relative_error
from paddock.npz import read_npz, write_npz
from paddock.prepare import prepare as plan

NAMES = ("resnet", "mobilenet", "decoder", "encoder", "linear")
EXAMPLES = 32
"""How many examples calibrate; half as many judge."""

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One model as it is measured: a Paddle program, the same in ONNX with fixed shapes, and its samples.

    `judge` and `calibration` are folders of .npz files that share no example; `few` holds the first two that judge, for
    what computes in software. `unseen` is a third set, which no search for fp32 nodes has been judged on.
    """

    name: str
    path: Path
    onnx: Path
    shapes: Mapping[str, Sequence[int]]
    judge: Path
    few: Path
    calibration: Path
    unseen: Path | None
    agreement: Agreement
    linear_heavy: bool
    references: dict[str, list[Any]] = field(default_factory=dict)
    """By folder name, the fp32 reference's output for each sample."""

    def figures(self, folder: Path, found: Sequence[Any]) -> tuple[float, float]:
        """(largest relative error, agreement) of the outputs for the first samples of `folder`.

        Top-1 is the share of all positions of all samples, cosine the smallest of any position.
        """
        wanted = self.references[folder.name][: len(found)]
        error = max(relative_error(w, f)[0] for w, f in zip(wanted, found, strict=True))
        mask = self.agreement.mask
        masks = [read_npz(file, "a sample")[mask] if mask else None for file in sorted(folder.glob("*.npz"))]
        levels = [agreement_with(w, f, self.agreement, m) for w, f, m in zip(wanted, found, masks, strict=False)]
        known = [level for level in levels if level is not None]
        return error, float(np.mean(known) if self.agreement.top1 is not None else min(known))


def load(folder: Path) -> list[dict[str, Any]]:
    """The samples of a folder, by name."""
    return [read_npz(file, "a sample") for file in sorted(folder.glob("*.npz"))]


def prepare(name: str, folder: Path) -> Case:
    """The model and its samples in `folder`, made where they are not there yet."""
    path = folder / ("decoder_trained.json" if name == "decoder" else f"{name}.json")
    if not path.exists():
        module = (
            ["examples.deepseek.train", str(folder)] if name == "decoder" else ["examples.export", str(folder), name]
        )
        subprocess.run([sys.executable, "-m", *module], check=True, stdout=subprocess.DEVNULL)
    sets = {kind: folder / f"{name}_{kind}" for kind in ("judge", "few", "calibrate", "unseen")}
    made = _samples(name, folder)
    for kind, samples in made.items():
        _write(sets[kind], samples)
    shapes = {key: array.shape for key, array in made["judge"][0].items()}
    rule = Agreement.model_validate(
        {"cosine" if name in ("encoder", "linear") else "top1": 0.99, "mask": "mask" if name == "encoder" else None}
    )
    case = Case(
        name, path, folder / f"{name}.fp32.onnx", {key: tuple(map(int, shape)) for key, shape in shapes.items()},
        sets["judge"], sets["few"], sets["calibrate"], sets["unseen"] if "unseen" in made else None,
        rule, name in ("decoder", "encoder", "linear"),
    )  # fmt: skip
    with Child("fp32 ONNX") as child:
        if not case.onnx.exists():
            child.call(converted, path, case.shapes, case.onnx)
    with Child("the fp32 reference") as child:
        for found in (case.judge, case.unseen):
            if found is not None:
                case.references[found.name] = child.call(reference, path, found)
    case.references[case.few.name] = case.references[case.judge.name][:2]
    return case


def converted(model: Path, shapes: Mapping[str, Sequence[int]], target: Path) -> None:
    """The model in ONNX as Paddock converts it, its inputs of fixed shapes: what every own way begins with."""
    import onnx

    config = {"hardware": "cpu", "backend": "onnxruntime", "accuracy": {"verify": "off"}}
    with Children() as children:
        prepared = plan(model, config, children=children)
        proto = onnx.load(prepared.parts[0].target.files["model"])
        prepared.discard()
    for port in proto.graph.input:
        for dim, extent in zip(port.type.tensor_type.shape.dim, shapes[port.name], strict=True):
            dim.dim_value = extent
    onnx.save(proto, target)


def reference(model: Path, folder: Path) -> list[Any]:
    """The fp32 output for each sample of the folder, by Paddle's own kernels without its passes."""
    config = {
        "hardware": "cpu", "backend": "paddle", "options": {"optimize": False}, "accuracy": {"verify": "off"}
    }  # fmt: skip
    with deploy(model, config) as deployment:
        (output,) = deployment.outputs
        return [deployment.run(sample)[output] for sample in load(folder)]


def _samples(name: str, folder: Path) -> dict[str, list[Sample]]:
    """Samples by set; every sample of a model has one shape, so that every backend may be told it."""
    if name == "decoder":
        held, kept = (load(folder / f"decoder_trained_{kind}") for kind in ("samples", "calibration"))
        half = EXAMPLES // 2
        judge, unseen = _stacked(held[:half], 8), _stacked(held[half:EXAMPLES], 8)
        return {"judge": judge, "few": judge[:2], "unseen": unseen, "calibrate": _stacked(kept[:EXAMPLES], 8)}
    rng = np.random.default_rng(20)
    make = {"encoder": _tokens, "linear": _vectors}.get(name, _image)
    judge = [make(rng) for _ in range(EXAMPLES // 2)]
    return {"judge": judge, "few": judge[:2], "calibrate": [make(rng) for _ in range(EXAMPLES)]}


def _stacked(windows: Sequence[Sample], rows: int) -> list[Sample]:
    tokens = np.concatenate([window["tokens"] for window in windows])
    return [{"tokens": tokens[start : start + rows]} for start in range(0, len(tokens), rows)]


def _image(rng: np.random.Generator) -> Sample:
    # What the examples set the statistics of the batch norms by: noise of unit deviation.
    return {"image": rng.standard_normal((1, 3, 224, 224), dtype=np.float32)}


def _vectors(rng: np.random.Generator) -> Sample:
    return {"x": rng.standard_normal((32, 768), dtype=np.float32)}


def _tokens(rng: np.random.Generator) -> Sample:
    length = int(rng.integers(16, 129))
    mask = (np.arange(128) < length).astype(np.int64)[None]
    return {"tokens": rng.integers(0, 30_522, (1, 128), dtype=np.int64) * mask, "mask": mask}


def _write(folder: Path, samples: Sequence[Sample]) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for number, sample in enumerate(samples):
        write_npz(folder / f"{number:03}.npz", sample, "a sample")
