"""Vendors' quantisers that misbehave: an error that names them, each time, and nothing of it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddock_fakes_segments as odd
import pytest
from paddock.child import Children
from paddock.deployment import deploy
from paddock.errors import PaddockError
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
