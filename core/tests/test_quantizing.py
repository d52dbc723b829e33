"""Vendors' quantisers that misbehave: an error that names them, each time, and nothing of it is kept."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddock_fakes_segments as odd
import pytest
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import deploy
from paddock.errors import PaddockError
from paddock.kept import place
from paddock.registry import Registry


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return odd.discover(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m")
    rng = np.random.default_rng(99)
    for number in range(16):
        (folder / "c").mkdir(exist_ok=True)
        np.savez(folder / "c" / f"{number}.npz", x=rng.standard_normal((2, 3)).astype("f"))
    return odd.save(folder / "m.onnx", [("a Abs", "x", "p"), ("b Tanh", "p", "y")], ["y"])


@pytest.mark.parametrize(
    ("manner", "problem"),
    [
        ("raises", "the vendor's library"),
        ("writes nothing", "no such file"),
        ("writes rubbish", "cannot be read"),
        ("traces rubbish", "not as tuples of node indices"),
        ("traces too few", "traced 1 nodes of 2"),
        ("traces too far", "which the model does not have"),
        ("traces nothing", "traced no node at all"),
        ("another border", "changed the border"),
    ],
)
def test_a_quantiser_that_misbehaves(
    manner: str, problem: str, model: Path, registry: Registry, children: Children
) -> None:
    config = {
        "hardware": "cpu", "backend": "eight", "precision": "int8", "options": {"manner": manner},
        "calibration": {"samples": str(model.parent / "c")}, "accuracy": {"max_error": 1.0},
    }  # fmt: skip
    for _ in range(2):  # the second time is no better, and no worse: nothing was kept
        with pytest.raises(PaddockError) as caught:
            deploy(model, config, registry=registry, children=children)
        assert problem in str(caught.value)
        assert "eight" in str(caught.value)


def test_what_other_versions_wrote_is_written_anew(
    model: Path, registry: Registry, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "hardware": "cpu", "backend": "eight", "precision": "int8", "options": {"manner": "rounds"},
        "calibration": {"samples": str(model.parent / "c")}, "accuracy": {"max_error": 1.0},
    }  # fmt: skip

    def written() -> int:
        with deploy(model, config, registry=registry, children=children):
            return sum(path.is_dir() for path in registry.store.root.glob("quantized/*"))

    def key() -> Any:
        found = place(model, HardwareConfig.load(config), registry)
        assert found is not None
        return found.key

    here, real = {"numpy": "1.0"}, importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: here.get(name) or real(name))
    monkeypatch.setattr(odd.Eight, "quantizes_with", ("numpy", "no-such-distribution"))
    before, known = written(), key()
    assert (written(), key()) == (before, known)
    here["numpy"] = "1.1"
    assert key() != known
    assert written() == before + 1
