"""No wrong answer gets out: every ready config on every example model agrees with the reference, or deploy() raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import Deployment, deploy
from paddock.errors import AccuracyRefused, NotAvailable
from paddock.metrics import relative_error
from paddock.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
READY = sorted(path for path in (ROOT / "adapters_json").glob("*.json") if "schema" not in path.name)
UNSEEN: Mapping[str, Sequence[tuple[int, ...]]] = {
    "deepseek": [(1, 1), (3, 33)],
    "resnet": [(3,)],
    "rotary": [(1, 5), (4, 40)],
}


def unseen_feeds(model: str, seed: int) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Inputs of shapes and values that verification does not generate."""
    rng = np.random.default_rng([90210, seed])
    for shape in UNSEEN[model]:
        if model == "deepseek":
            yield {"tokens": rng.integers(0, 512, shape)}
        elif model == "resnet":
            yield {"image": rng.standard_normal((*shape, 3, 224, 224), dtype=np.float32)}
        else:
            yield {"x": 3 * rng.standard_normal((*shape, 256), dtype=np.float32)}


@pytest.fixture(scope="module")
def references(
    models: Mapping[str, Path], registry: Registry, children: Children
) -> Iterator[Mapping[str, Deployment]]:
    """Each model on the plainest path."""
    config = {"hardware": "cpu", "backend": "paddle"}
    made = {name: deploy(path, config, registry=registry, children=children) for name, path in models.items()}
    yield made
    for deployment in made.values():
        deployment.close()


def is_long(name: str, path: Path) -> bool:
    """Whether it takes ten seconds or more."""
    if name == "resnet" and path.stem in ("cpu-reference", "cpu-mkldnn", "cpu-openvino", "cpu-paddle"):
        return True
    # Where the CPU computes in bf16, what has to stay in fp32 is searched with up to 96 deployments.
    return name != "rotary" and path.stem in ("cpu-mkldnn-bf16", "cpu-openvino-bf16")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param(name, path, marks=[pytest.mark.long] if is_long(name, path) else [])
        for name in ("deepseek", "resnet", "rotary")
        for path in READY
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.stem),
)
def test_right_or_refused(
    name: str,
    path: Path,
    models: Mapping[str, Path],
    references: Mapping[str, Deployment],
    registry: Registry,
    children: Children,
) -> None:
    config = HardwareConfig.load(path)
    budget = config.max_error
    assert budget is not None
    try:
        deployment = deploy(models[name], config, registry=registry, children=children)
    except NotAvailable as error:
        assert config.hardware != "cpu" or config.precision == "bf16", error
        return
    except AccuracyRefused as error:
        assert config.precision != "fp32", error
        return
    with deployment:
        assert deployment.report.outcome == "passed"
        placement = deployment.plan.placement
        assert placement.on(config.adapter) == len(placement.nodes)
        for feeds in unseen_feeds(name, 1):
            wanted = references[name].run(feeds)
            found = deployment.run(feeds)
            assert found.keys() == wanted.keys()
            for output, expected in wanted.items():
                distance, note = relative_error(expected, found[output])
                assert distance <= budget, f"{output}: {distance:.3g} {note}"


@pytest.mark.parametrize("name", ["deepseek", "rotary"])
def test_without_the_mend_onednn_is_refused_with_its_error(
    name: str, models: Mapping[str, Path], registry: Registry, children: Children
) -> None:
    config = {"hardware": "cpu", "backend": "mkldnn", "options": {"workarounds": False}}
    with pytest.raises(AccuracyRefused, match="relative error") as caught:
        deploy(models[name], config, registry=registry, children=children)
    report: Any = caught.value.report
    assert report.error > 0.2


def test_the_mend_stands_in_the_plan(models: Mapping[str, Path], registry: Registry, children: Children) -> None:
    config = {"hardware": "cpu", "backend": "onednn"}
    with deploy(models["rotary"], config, registry=registry, children=children) as deployment:
        assert deployment.report.error is not None and deployment.report.error < 1e-5
        assert any(remedy.applied and "inplace_pass" in remedy.action for remedy in deployment.plan.remedies)


def test_an_onnx_model_has_no_way_to_paddle(tmp_path: Path, registry: Registry, children: Children) -> None:
    from onnx import TensorProto, helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    path = tmp_path / "relu.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    with pytest.raises(NotAvailable, match="no way there from onnx") as caught:
        deploy(path, {"hardware": "cpu", "backend": "mkldnn"}, registry=registry, children=children)
    assert "cpu/onnxruntime" in caught.value.candidates


def test_one_deployment_from_many_threads(models: Mapping[str, Path], registry: Registry, children: Children) -> None:
    """Sixteen requests at once, on each backend, each answered as if it were alone."""
    feeds = [next(unseen_feeds("rotary", seed)) for seed in range(16)]
    for backend in ("mkldnn", "onnxruntime", "openvino"):
        config = {"hardware": "cpu", "backend": backend, "instances": 2, "threads": 1}
        with deploy(models["rotary"], config, registry=registry, children=children) as deployment:
            alone = [deployment.run(each) for each in feeds]
            together = [future.result() for future in [deployment.submit(each) for each in feeds]]
            for one, other in zip(alone, together, strict=True):
                for name in one:
                    np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)
