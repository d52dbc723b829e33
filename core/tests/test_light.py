"""The light networks: their random weights, and the smallest of them on real adapters."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from paddock.errors import UsageError
from paddock.registry import Registry
from paddock.testing import light
from paddock.testing.light import Row, available, image, networks, run_light, show, with_weights
from rich.console import Console

SMALL = ("squeezenet", "shufflenet", "inception_v1", "inception_v2")
"""Those whose files are below 50 MB, as far as they differ in what their weights are for."""


def constants(path: Path) -> Mapping[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_there_are_nine() -> None:
    known = networks()
    assert len(known) == 9 and set(SMALL) < set(known)
    assert list(networks("inception*")) == ["inception_v1", "inception_v2"]
    with pytest.raises(UsageError, match="squeezenets") as caught:
        networks("squeezenets")
    assert "squeezenet" in str(caught.value.remedy)


@pytest.mark.parametrize("name", SMALL)
def test_every_made_up_weight_is_replaced_and_the_rest_stays(name: str, tmp_path: Path) -> None:
    source = networks()[name]
    path = with_weights(source, tmp_path / "network.onnx")
    onnx.checker.check_model(path)
    before, after = onnx.load(source).graph, onnx.load(path).graph
    made = {node.output[0] for node in before.node if node.op_type == "ConstantOfShape"}
    assert made and list(after.node) == [n for n in before.node if n.output[0] not in made]
    assert len(after.input) == 1 and list(after.output) == list(before.output)
    old, new = constants(source), constants(path)
    assert new.keys() - old.keys() == made
    shapes = {node.output[0]: old[node.input[0]] for node in before.node if node.op_type == "ConstantOfShape"}
    for weight, array in new.items():
        if weight in old:
            np.testing.assert_array_equal(array, old[weight])
        else:
            assert array.dtype == np.float32 and list(array.shape) == list(shapes[weight])
            assert np.isfinite(array).all() and array.std() > 0
    for node in after.node:
        if node.op_type == "BatchNormalization":
            assert (new[node.input[4]] > 0).all()


def test_the_seed_decides(tmp_path: Path) -> None:
    source = networks()["squeezenet"]
    one, same, other = (with_weights(source, tmp_path / f"{i}", seed) for i, seed in enumerate((1, 1, 2)))
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()
    assert image(1).shape == (1, 3, 224, 224) and image(1).dtype == np.float32
    assert np.array_equal(image(1), image(1)) and not np.array_equal(image(1), image(2))


@pytest.mark.parametrize("name", SMALL)
def test_nothing_explodes_or_vanishes(name: str, tmp_path: Path) -> None:
    """Every convolution's result is of a sane size, and the network's own depends on the picture."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = with_weights(networks()[name], tmp_path / "network.onnx")
    proto = onnx.load(path)
    (fed,), (answer,) = proto.graph.input, [value.name for value in proto.graph.output]
    inner = [n.output[0] for n in proto.graph.node if n.op_type in ("Conv", "Gemm") and n.output[0] != answer]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(value) for value in inner)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    first, *rest = session.run([answer, *inner], {fed.name: image(0)})
    sizes = {value: float(result.std()) for value, result in zip(inner, rest, strict=True)}
    assert min(sizes.values()) > 0.01 and max(sizes.values()) < 200, sizes
    stored = constants(path)
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization" and node.input[0] in sizes:
            expected = float(np.sqrt(stored[node.input[4]].mean()))
            assert 0.05 < sizes[node.input[0]] / expected < 20, f"{node.input[0]} is not of size {expected}"
    (second,) = session.run([answer], {fed.name: image(1)})
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()
    assert np.sort(first.ravel())[-2] > 1e-3 * first.max(), "one class takes all"


def test_a_weight_of_unknown_use(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([4]), "shape")
    made = helper.make_node("ConstantOfShape", ["shape"], ["w"])
    graph = helper.make_graph(
        [made, helper.make_node("PRelu", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])],
        [shape],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)]), tmp_path / "in.onnx")
    with pytest.raises(UsageError, match="input 1 of a PRelu"):
        with_weights(tmp_path / "in.onnx", tmp_path / "out.onnx")


@pytest.mark.long
@pytest.mark.slow
def test_the_smallest_network_is_served_natively_everywhere() -> None:
    """But not on the evaluator, which takes seconds for each picture and is no fit for this one's last node."""
    registry = Registry.discover()
    adapters = [name for name in available(registry) if registry.get(name).adapter.plans_memory]
    if not adapters:
        pytest.skip("no adapter that takes ONNX is here, beside the reference")
    told: list[Row] = []
    rows = run_light(networks("squeezenet"), adapters, adapters, told.append)
    assert [(row.network, row.adapter) for row in rows] == [("squeezenet", adapter) for adapter in adapters]
    assert list(rows) == told
    for row in rows:
        assert row.passed and (row.native, row.helped, row.segments) == (66, 0, 1), row
        assert row.error is not None and row.error <= 1e-4 and row.reference


def test_the_command_says_how_it_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    passed = Row("net", "cpu/reference", "passed", 3, 1, 2, 1e-6, "cpu/reference", 1.0)
    refused = replace(passed, outcome="refused", native=0, helped=0, error=None, reason="no [kernel]")
    found = [passed]
    monkeypatch.setattr(light, "run_light", lambda *asked: tuple(found))
    asked = ["--adapter", "cpu/reference", "--only", "squeezenet"]
    assert light.main(asked) == 0
    found.append(refused)
    assert light.main(asked) == 1
    assert "net on cpu/reference: no [kernel]" in capsys.readouterr().out
    assert light.main(["--only", "nothing"]) == 2 and light.main(["--adapter", "cpu/nothing"]) == 2
    assert "'nothing'" in capsys.readouterr().err
    out = Console(width=120, record=True, file=io.StringIO())
    show(out, found)
    assert "1.0e-06" in out.export_text()
