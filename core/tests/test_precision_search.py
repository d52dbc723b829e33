"""Nodes kept in fp32 where the backend lowers what it is given, and where it computes in nothing but a narrow type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddock_fakes_segments as odd
import pytest
from paddock.child import Children
from paddock.deployment import deploy
from paddock.errors import AccuracyRefused, NotAvailable, UsageError
from paddock.lowered import write_lowered
from paddock.plan import Means
from paddock.precision_search import as_deployed
from paddock.prepare import prepare
from paddock.registry import Registry
from paddock.verify import Outcome

X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return odd.discover(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = abs(tanh(-sqrt(abs(x)))), node by node."""
    nodes = [("a Abs", "x", "p"), ("b Sqrt", "p", "q"), ("c Neg", "q", "r"), ("d Tanh", "r", "s"), ("e Abs", "s", "y")]
    return odd.save(tmp_path_factory.mktemp("line") / "m.onnx", nodes, ["y"])


def config(**fields: Any) -> dict[str, Any]:
    return {"hardware": "cpu", "backend": "odd", "precision": "fp16", "accuracy": {"max_error": 1e-3}, **fields}


@pytest.mark.long
def test_what_a_backend_lowers_wrongly_runs_apart_in_fp32(line: Path, registry: Registry, children: Children) -> None:
    wrong = config(options={"wrong_narrow": ["b", "d"]})
    with deploy(line, wrong, registry=registry, children=children) as deployment:
        plan = deployment.plan
        assert [n.adapter for n in plan.placement.nodes] == [
            "cpu/odd", "cpu/odd in fp32", "cpu/odd", "cpu/odd in fp32", "cpu/odd"
        ]  # fmt: skip
        assert plan.precision.means is Means.BACKEND
        assert [n.dtype for n in plan.precision.nodes] == ["float16", "float32", "float16", "float32", "float16"]
        assert any("2 of 5 nodes run on cpu/odd in fp32" in note for note in plan.notes)
        assert not any("FALLBACK" in note for note in plan.notes)
        assert plan.precision.searched[0].kept == 0
        assert not plan.precision.searched[0].met
        assert deployment.report.outcome is Outcome.PASSED
        np.testing.assert_allclose(deployment.run({"x": X})["y"], np.abs(np.tanh(-np.sqrt(np.abs(X)))), rtol=1e-5)
    searched = len(plan.precision.searched)
    with deploy(line, wrong, registry=registry, children=children) as again:
        assert again.plan.key == plan.key
        assert len(again.plan.precision.searched) == searched, "kept, not searched again"
    looked = as_deployed(prepare(line, wrong, registry=registry, children=children))
    looked.discard()
    assert looked.plan.key == plan.key, "and whoever only plans sees it"
    exact = config(options={"wrong_narrow": ["b", "d"]}, operators={"keep_fp32": ["b", "#3 Tanh"]})
    with deploy(line, exact, registry=registry, children=children) as stated:
        assert stated.plan.placement.segments == plan.placement.segments
        assert not stated.plan.precision.searched
    with pytest.raises(AccuracyRefused) as caught:
        deploy(line, config(options={"wrong_narrow": ["b", "d"]}, operators={"keep_fp32": ["b"]}), registry=registry,
               children=children)  # fmt: skip
    assert [line for line in caught.value.candidates if "needs fp32" in line] == [
        "#1 Sqrt needs fp32: the accuracy budget needs it", "#3 Tanh needs fp32: the accuracy budget needs it"
    ]  # fmt: skip


@pytest.mark.long
def test_where_no_node_can_be_narrow(line: Path, registry: Registry, children: Children) -> None:
    with pytest.raises(AccuracyRefused) as caught:
        deploy(line, config(options={"wrong_narrow": list("abcde")}), registry=registry, children=children)
    assert "no node could be left in fp16" in " ".join(caught.value.candidates)


def test_without_fp32_it_goes_to_the_fallback_or_is_refused_by_name(
    tmp_path: Path, registry: Registry, children: Children
) -> None:
    """The mask of -1e12 overflows in the Add, and what reads its sums."""
    nodes = [("a Neg", "x", "p"), ("b Add", "p mask", "q"), ("c Tanh", "q", "r"), ("d Abs", "r", "y")]
    mask = np.where(np.arange(6).reshape(2, 3) % 2, np.float32(-1e12), np.float32(0))
    path = odd.save(tmp_path / "m.onnx", nodes, ["y"], mask=mask)
    narrow = {"hardware": "npu", "backend": "narrow", "precision": "fp16"}
    with pytest.raises(NotAvailable) as caught:
        deploy(path, narrow, registry=registry, children=children)
    assert {line.partition(":")[0] for line in caught.value.candidates} == {"#1 Add (b)", "#2 Tanh (c)"}
    assert all("has to stay in fp32" in line and "65,504" in line for line in caught.value.candidates)
    with deploy(path, {**narrow, "fallback": ["cpu/onnxruntime"]}, registry=registry, children=children) as deployment:
        assert [n.adapter for n in deployment.plan.placement.nodes] == [
            "npu/narrow", "cpu/onnxruntime", "cpu/onnxruntime", "npu/narrow"
        ]  # fmt: skip
        assert deployment.report.outcome is Outcome.PASSED


def test_a_model_written_in_another_precision(tmp_path: Path, registry: Registry) -> None:
    rng = np.random.default_rng(0)
    nodes = [("a Add", "x w", "p"), ("b Tanh", "p", "y")]
    path = odd.save(tmp_path / "m.onnx", nodes, ["y"], (256, 256), w=rng.standard_normal((256, 256)).astype("f"))
    fields = {"hardware": "cpu", "backend": "reference", "precision": "fp16", "operators": {"keep_fp32": []}}
    written = write_lowered(path, fields, tmp_path / "out", quantize=False, registry=registry)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(written.files)
    assert 0.5 < written.after / written.before < 0.51
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [node["dtype"] for node in report["nodes"]] == ["float16", "float16"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["operators"] == {"keep_fp32": []}
    with pytest.raises(UsageError, match="there already"):
        write_lowered(path, fields, tmp_path / "out", quantize=False, registry=registry)
    assert not (tmp_path / "other").exists()
    with pytest.raises(NotAvailable, match="no file to write"):
        write_lowered(path, config(options={}), tmp_path / "other", quantize=False, registry=registry)
    assert not (tmp_path / "other").exists()
