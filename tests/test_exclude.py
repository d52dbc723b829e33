"""`operators.exclude` takes effect on every adapter: what is excluded is not in what that adapter is given to run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from filelock import FileLock
from onnx import TensorProto, helper, numpy_helper
from paddock.child import Children
from paddock.deployment import Deployment, deploy
from paddock.errors import ConfigError, NotAvailable
from paddock.metrics import relative_error
from paddock.prepare import prepare
from paddock.registry import Registry

BUDGET = 1e-4
FALLBACK = {
    "cpu/paddle": "cpu/mkldnn",
    "cpu/mkldnn": "cpu/paddle",
    "cpu/onnxruntime": "cpu/reference",
    "cpu/openvino": "cpu/onnxruntime",
    "cpu/reference": "cpu/onnxruntime",
}
FED_ONNX = ("cpu/onnxruntime", "cpu/openvino", "cpu/reference")
IN_ONNX = {"pd_op.tanh": "Tanh", "pd_op.softmax": "Softmax", "pd_op.sigmoid": "Sigmoid", "pd_op.relu": "Relu"}
"""What becomes of a Paddle operator in a model that is converted."""

# In a process of its own: exporting changes Paddle's global state.
_EXPORT = """
import sys
import paddle
from paddle import nn
from paddle.nn import functional
from paddle.static import InputSpec

class Small(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        h = paddle.tanh(self.a(x))
        return functional.softmax(x + h * functional.sigmoid(self.b(h)), -1)

class Resize(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2D(3, 8, 3, padding=1), nn.Conv2D(8, 4, 3)

    def forward(self, x):
        h = functional.relu(self.a(x))
        return functional.relu(self.b(functional.interpolate(h, scale_factor=2, mode="bilinear")))

paddle.seed(0)
for name, layer, shape in (("small", Small(), [None, None, 16]), ("resize", Resize(), [None, 3, 16, 16])):
    layer.eval()
    paddle.jit.save(layer, f"{sys.argv[1]}/{name}", input_spec=[InputSpec(shape, "float32", "x")])
"""


@pytest.fixture(scope="module")
def small(shared: Path, models: Mapping[str, Path]) -> Mapping[str, Path]:
    """The models here by name: Paddle's "small", "resize" and "rotary", and "onnx"."""
    folder = shared / "exclude-models"
    with FileLock(str(shared / "exclude-models.lock")):
        if not folder.exists():
            folder.mkdir()
            # A file, not -c: Paddle reads the source of what it exports.
            script = folder / "export.py"
            script.write_text(_EXPORT)
            subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
            _save_onnx(folder / "small.onnx")
    found = {name: folder / f"{name}.json" for name in ("small", "resize")}
    return {**found, "onnx": folder / "small.onnx", "rotary": models["rotary"]}


def _save_onnx(path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((16, 16)).astype(np.float32) / 4, name) for name in ("a", "b")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"], name="first"),
        helper.make_node("Tanh", ["xa"], ["h"], name="bend"),
        helper.make_node("MatMul", ["h", "b"], ["hb"], name="second"),
        helper.make_node("Sigmoid", ["hb"], ["g"], name="gate"),
        helper.make_node("Mul", ["h", "g"], ["hg"], name="gated"),
        helper.make_node("Add", ["x", "hg"], ["sum"], name="around"),
        helper.make_node("Softmax", ["sum"], ["y"], name="shares", axis=-1),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16]) for name in "xy"]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def feeds_of(name: str) -> list[dict[str, Any]]:
    """Inputs of two shapes that verification does not generate."""
    rng = np.random.default_rng(7)
    shapes: Mapping[str, Sequence[tuple[int, ...]]] = {
        "onnx": [(3, 16), (11, 16)],
        "small": [(3, 2, 16), (1, 7, 16)],
        "resize": [(3, 3, 16, 16), (1, 3, 16, 16)],
        "rotary": [(1, 5, 256), (4, 40, 256)],
    }
    return [{"x": 2 * rng.standard_normal(shape, dtype=np.float32)} for shape in shapes[name]]


def config_of(adapter: str, fallback: Sequence[str], exclude: Any) -> dict[str, Any]:
    hardware, _, backend = adapter.partition("/")
    asked = {"hardware": hardware, "backend": backend, "operators": {"exclude": exclude}}
    return {**asked, "fallback": list(fallback)} if fallback else asked


def held(deployment: Deployment, adapter: str) -> list[str]:
    """The types of all nodes in the models that an adapter is given, read back from their files."""
    formats = deployment.registry.formats
    made = getattr(deployment._origin, "prepared", None)  # none where it was taken up from the cache
    with Children() as children:
        prepared = made or prepare(deployment.model, deployment.config, registry=deployment.registry, children=children)
        mine = [part.target for part in prepared.parts if part.workshop.name == adapter]
        assert len(mine) == sum(artifact.adapter == adapter for artifact in deployment.artifacts)
        found = [node.type for target in mine for node in formats[target.format].read(target.files).walk()]
        if made is None:
            prepared.discard()
    return found


@pytest.fixture(scope="module")
def whole(small: Mapping[str, Path], registry: Registry, children: Children) -> Any:
    """Each model on the plainest path: its answers to `feeds_of`."""
    answers: dict[str, list[dict[str, np.ndarray[Any, Any]]]] = {}

    def of(name: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        if name not in answers:
            backend = "reference" if name == "onnx" else "paddle"
            with deploy(
                small[name], {"hardware": "cpu", "backend": backend}, registry=registry, children=children
            ) as plain:
                assert len(plain.plan.placement.segments) == 1
                answers[name] = [plain.run(feeds) for feeds in feeds_of(name)]
        return answers[name]

    return of


def assert_agrees(deployment: Deployment, name: str, wanted: Sequence[Mapping[str, Any]]) -> None:
    assert deployment.report.outcome == "passed"
    for feeds, expected in zip(feeds_of(name), wanted, strict=True):
        found = deployment.run(feeds)
        # The output of a model from Paddle is called by its own name, whoever runs it.
        assert found.keys() == expected.keys()
        for output, array in expected.items():
            distance, note = relative_error(array, found[output])
            assert distance <= BUDGET, f"{output}: {distance:.3g} {note}"


CASES = [
    *((adapter, "onnx", exclude, "Tanh") for adapter in FED_ONNX for exclude in ("Tanh", "bend", "#1 Tanh", "#1")),
    *((adapter, "small", exclude, "pd_op.tanh") for adapter in FALLBACK for exclude in ("pd_op.tanh", "#2 pd_op.tanh")),
    ("cpu/openvino", "onnx", "Softmax", "Softmax"),
    ("cpu/mkldnn", "small", "pd_op.softmax", "pd_op.softmax"),
    ("cpu/onnxruntime", "small", "pd_op.sigmoid", "pd_op.sigmoid"),
    ("cpu/paddle", "rotary", "pd_op.sin", "pd_op.sin"),
    ("cpu/mkldnn", "rotary", "pd_op.sin", "pd_op.sin"),
]


@pytest.mark.parametrize(
    ("adapter", "name", "exclude", "kind"),
    [pytest.param(*case, marks=[pytest.mark.long] if n % 2 else []) for n, case in enumerate(CASES)],
    ids=lambda value: str(value).replace("/", "-"),
)
def test_what_is_excluded_runs_elsewhere(
    adapter: str,
    name: str,
    exclude: str,
    kind: str,
    small: Mapping[str, Path],
    whole: Any,
    registry: Registry,
    children: Children,
) -> None:
    fallback = "cpu/paddle" if adapter == "cpu/openvino" and name == "small" else FALLBACK[adapter]
    config = config_of(adapter, [fallback], [exclude])
    with deploy(small[name], config, registry=registry, children=children) as deployment:
        placement = deployment.plan.placement
        (moved,) = [node for node in placement.nodes if node.op == kind]
        assert moved.adapter == fallback
        assert [(passed, why.source) for passed, why in moved.passed] == [(adapter, "$.operators.exclude")]
        assert placement.on(adapter) > 0 and {node.adapter for node in placement.nodes} == {adapter, fallback}
        theirs = IN_ONNX.get(kind, kind)
        for which, wanted in ((adapter, False), (fallback, True)):
            types = held(deployment, which)
            assert types and any(found in (kind, theirs) for found in types) is wanted, f"{which}: {types}"
        assert f"FALLBACK: {placement.on(fallback)} of {len(placement.nodes)} nodes run on {fallback}" in (
            deployment.plan.notes
        )
        assert_agrees(deployment, name, whole(name))


def test_an_operator_with_several_nodes_and_a_single_one_of_them(
    small: Mapping[str, Path], whole: Any, registry: Registry, children: Children
) -> None:
    for exclude, left in ((["MatMul"], 0), (["first"], 1), (["#2 MatMul"], 1), (["first", "second"], 0)):
        config = config_of("cpu/onnxruntime", ["cpu/reference"], exclude)
        with deploy(small["onnx"], config, registry=registry, children=children) as deployment:
            assert held(deployment, "cpu/onnxruntime").count("MatMul") == left
            assert held(deployment, "cpu/reference").count("MatMul") == 2 - left
            assert_agrees(deployment, "onnx", whole("onnx"))


REFUSED = [
    *((adapter, "onnx", "bend", "#1 Tanh (bend)") for adapter in FED_ONNX),
    *((adapter, "small", "pd_op.tanh", "#2 pd_op.tanh") for adapter in FALLBACK),
]


@pytest.mark.parametrize(("adapter", "name", "exclude", "label"), REFUSED)
def test_without_a_fallback_it_is_refused(
    adapter: str,
    name: str,
    exclude: str,
    label: str,
    small: Mapping[str, Path],
    registry: Registry,
    children: Children,
) -> None:
    with pytest.raises(NotAvailable, match=f"{adapter} does not take 1 of") as caught:
        deploy(small[name], config_of(adapter, [], [exclude]), registry=registry, children=children)
    (line,) = caught.value.candidates
    assert label in line and "$.operators.exclude" in line


def test_a_fallback_that_is_excluded_too(small: Mapping[str, Path], registry: Registry, children: Children) -> None:
    exclude = {"cpu/mkldnn": ["pd_op.tanh"], "cpu/paddle": ["pd_op.tanh"]}
    with pytest.raises(NotAvailable, match="none of cpu/mkldnn, cpu/paddle takes") as caught:
        deploy(small["small"], config_of("cpu/mkldnn", ["cpu/paddle"], exclude), registry=registry, children=children)
    (line,) = caught.value.candidates
    assert "#2 pd_op.tanh" in line and line.count("$.operators.exclude") == 2


def test_a_name_that_the_model_does_not_have(small: Mapping[str, Path], registry: Registry, children: Children) -> None:
    with pytest.raises(ConfigError, match=r"\$\.operators\.exclude\[1\]") as caught:
        deploy(
            small["small"],
            config_of("cpu/openvino", ["cpu/paddle"], ["pd_op.tanh", "pd_op.tan"]),
            registry=registry,
            children=children,
        )
    assert "pd_op.tanh" in caught.value.candidates


@pytest.mark.long
@pytest.mark.parametrize(
    ("adapter", "fallback", "name", "kind", "segments"),
    [
        ("cpu/mkldnn", "cpu/onnxruntime", "small", "pd_op.tanh", 3),
        ("cpu/openvino", "cpu/paddle", "resize", "pd_op.relu", 4),
    ],
)
def test_paddles_segments_and_onnx_segments_in_one_deployment(
    adapter: str,
    fallback: str,
    name: str,
    kind: str,
    segments: int,
    small: Mapping[str, Path],
    whole: Any,
    registry: Registry,
    children: Children,
) -> None:
    config = config_of(adapter, [fallback], [kind])
    with deploy(small[name], config, registry=registry, children=children) as deployment:
        assert {artifact.format for artifact in deployment.artifacts} == {"paddle", "onnx"}
        assert len(deployment.artifacts) == len(deployment.plan.placement.segments) == segments
        moved = [node.op for node in deployment.plan.placement.nodes if node.adapter == fallback]
        assert kind in moved
        assert not {kind, IN_ONNX[kind]} & set(held(deployment, adapter))
        assert_agrees(deployment, name, whole(name))


@pytest.mark.long
def test_three_adapters_each_with_what_the_ones_before_do_not_take(
    small: Mapping[str, Path], whole: Any, registry: Registry, children: Children
) -> None:
    """The relu is excluded from oneDNN and converted; the resize is neither oneDNN's nor can it be converted."""
    config = config_of("cpu/mkldnn", ["cpu/onnxruntime", "cpu/paddle"], ["pd_op.relu"])
    with deploy(small["resize"], config, registry=registry, children=children) as deployment:
        placed = {node.op: node.adapter for node in deployment.plan.placement.nodes}
        assert placed["pd_op.relu"] == "cpu/onnxruntime" and placed["pd_op.bilinear_interp"] == "cpu/paddle"
        assert placed["pd_op.conv2d"] == "cpu/mkldnn"
        assert set(held(deployment, "cpu/onnxruntime")) == {"Relu"}
        assert "pd_op.relu" not in held(deployment, "cpu/mkldnn") + held(deployment, "cpu/paddle")
        assert_agrees(deployment, "resize", whole("resize"))


def test_a_bilinear_resize_alone_leaves_onednn(
    small: Mapping[str, Path], whole: Any, registry: Registry, children: Children
) -> None:
    """Paddle's oneDNN has none, which its registry does not say: `known_defects` does."""
    config = config_of("cpu/mkldnn", ["cpu/paddle"], [])
    with deploy(small["resize"], config, registry=registry, children=children) as deployment:
        placement = deployment.plan.placement
        assert [node.op for node in placement.nodes if node.adapter != "cpu/mkldnn"] == ["pd_op.bilinear_interp"]
        assert held(deployment, "cpu/mkldnn").count("pd_op.conv2d") == 2
        assert "pd_op.bilinear_interp" not in held(deployment, "cpu/mkldnn")
        assert_agrees(deployment, "resize", whole("resize"))
    with pytest.raises(NotAvailable, match="cpu/mkldnn does not take 1 of") as caught:
        deploy(small["resize"], config_of("cpu/mkldnn", [], []), registry=registry, children=children)
    assert "pd_op.bilinear_interp" in caught.value.candidates[0]
