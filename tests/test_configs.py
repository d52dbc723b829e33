"""The ready configs: every one loads, none is missing, and the schema is the code's own."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from paddock.auto import json_schema
from paddock.config import HardwareConfig
from paddock.errors import NotAvailable
from paddock.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "adapters_json"
SCHEMA = FOLDER / "hardware_config.schema.json"
READY = sorted(path for path in FOLDER.glob("*.json") if path != SCHEMA)


def test_the_schema_file_is_what_the_code_says() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), "run `make schema`"


@pytest.mark.parametrize("path", READY, ids=lambda path: str(path.stem))
def test_ready_configs_load_and_fit_the_schema(path: Path) -> None:
    config = HardwareConfig.load(path)
    precision = "" if config.precision == "fp32" else f"-{config.precision}"
    storage = "" if config.storage is None else f"-{config.storage}-storage"
    assert path.stem == f"{config.hardware}-{config.backend}{precision}{storage}"
    jsonschema.validate(json.loads(path.read_text()), json.loads(SCHEMA.read_text()))
    assert (path.parent / str(config.schema_)).resolve() == SCHEMA


NOT_READY = {
    "cpu/reference fp16": "computed in software, for checks and not for serving",
    "cpu/reference bf16": "computed in software, for checks and not for serving",
    "cpu/onnxruntime fp16": "storage only on the CPUs that there are",
    "cpu/onnxruntime bf16": "storage only on the CPUs that there are",
    "npu/ascend fp16": "Paddle ignores it without a word for the programs of today",
    "cpu/openvino fp16": "needs AVX-512 FP16, which no machine of ours has had",
    **dict.fromkeys(
        ("cpu/onnxruntime int8", "cpu/openvino int8", "cpu/mkldnn int8", "npu/qualcomm int8", "gpu/tensorrt int8"),
        "needs samples of the model to quantise by",
    ),
}


def test_there_is_one_for_each_adapter_and_precision(registry: Registry) -> None:
    wanted = {
        (name, precision)
        for name, entries in registry.adapters.items()
        for entry in entries
        for precision in entry.adapter.precisions
    }
    there = {(c.adapter, c.precision) for c in map(HardwareConfig.load, READY)}
    assert {f"{adapter} {precision}" for adapter, precision in wanted - there} == NOT_READY.keys()


@pytest.mark.parametrize("name", ["gpu-tensorrt-fp16", "npu-ascend"])
def test_absent_hardware_says_which_plugin_brings_it(name: str) -> None:
    config = HardwareConfig.load(FOLDER / f"{name}.json")
    registry = Registry.discover(entry_points=())
    with pytest.raises(NotAvailable, match=f"brought by the plugin paddock-{config.backend}"):
        registry.resolve(config)
    renamed = {"npu/ascend": "cann", "gpu/tensorrt": "trt"}[config.adapter]
    alias = HardwareConfig.load({"hardware": config.hardware, "backend": renamed})
    with pytest.raises(NotAvailable, match=f"brought by the plugin paddock-{config.backend}"):
        registry.resolve(alias)


def test_mkldnn_and_onednn_are_one_adapter(registry: Registry) -> None:
    names = {registry.get(f"cpu/{backend}").adapter.name() for backend in ("mkldnn", "onednn")}
    assert names == {"cpu/mkldnn"}
