"""The config: each field, each refusal with its place and remedy, and the schema that editors check by."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jsonschema
import pytest
from paddock.config import DEFAULT_MAX_ERROR, HardwareConfig, Profile, json_schema
from paddock.errors import ConfigError
from paddock.jsontext import MAX_BYTES, json_path
from paddock.plan import Precision

CPU: Mapping[str, Any] = {"hardware": "cpu", "backend": "onnxruntime"}
SCHEMA = json_schema()


def load(**fields: Any) -> HardwareConfig:
    return HardwareConfig.load({**CPU, **fields})


def refusal(source: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        HardwareConfig.load(source)
    return caught.value


def refused(**fields: Any) -> ConfigError:
    return refusal({**CPU, **fields})


# What is accepted


@pytest.mark.parametrize(
    "text",
    [
        '{\n"hardware": "gpu", "backend": "tensorrt",\n"precision": "fp16", "batch_size": 64\n}',
        '{"hardware": "cpu", "backend": "mkldnn"}',
        '{"hardware": "npu", "backend": "ascend"}',
    ],
)
def test_the_promise_validates_as_it_stands(text: str) -> None:
    config = HardwareConfig.load(text)
    given = json.loads(text)
    assert config.model_dump(mode="json", exclude_unset=True, by_alias=True) == given
    jsonschema.validate(given, SCHEMA)


def test_the_defaults() -> None:
    config = load()
    assert (config.version, config.devices, config.instances, config.precision) == (1, (0,), 1, Precision.FP32)
    assert (config.batch_size, dict(config.shapes), config.memory.limit, config.calibration) == (None, {}, None, None)
    assert (config.candidates, config.fallback, config.strict, config.threads) == ((), (), True, None)
    assert (config.operators.exclude, config.operators.keep_fp32, dict(config.options)) == ((), None, {})
    accuracy = config.accuracy
    assert (accuracy.verify, accuracy.max_error, accuracy.min_agreement) == ("cached", None, None)
    assert (accuracy.samples, accuracy.golden) == (None, None)


@pytest.mark.parametrize("precision", list(Precision))
def test_every_precision_has_a_default_budget(precision: Precision) -> None:
    assert load(precision=precision.value).max_error == DEFAULT_MAX_ERROR[precision]


def test_a_budget_of_its_own_wins_and_agreement_replaces_it() -> None:
    assert load(accuracy={"max_error": 0.5}).max_error == 0.5
    assert load(accuracy={"min_agreement": {"top1": 0.9}}).max_error is None


def test_every_field_is_taken(tmp_path: Path) -> None:
    data = {
        "$schema": "hardware_config.schema.json",
        "version": 1,
        "hardware": "cpu",
        "backend": "openvino",
        "devices": [1],
        "instances": 2,
        "precision": "int8",
        "batch_size": 8,
        "shapes": {"x": [8, 3], "N": {"min": 1, "opt": 4, "max": 8}, "y": [{"min": [1, 2], "max": [2, 2]}]},
        "operators": {"exclude": ["Relu"], "keep_fp32": ["Softmax"]},
        "warm_start": "cpu/onnxruntime",
        "isolation": "process",
        "timeout": 2.5,
        "rescue": "cpu/onnxruntime",
        "memory": {"limit": "2GiB"},
        "accuracy": {
            "min_agreement": {"cosine": 0.99, "output": "y", "axis": 1, "mask": "m"},
            "samples": "s.npz",
            "verify": "cached",
        },
        "calibration": {"samples": "c.npz"},
        "candidates": ["cpu/onnxruntime"],
        "fallback": ["cpu/reference"],
        "repair": True,
        "strict": False,
        "threads": 2,
        "options": {"anything": [1, {"deep": None}]},
    }
    place = tmp_path / "c.json"
    place.write_text(json.dumps(data))
    config = HardwareConfig.load(place)
    jsonschema.validate(data, SCHEMA)
    # With precision int8 these two have no effect.
    others = {"storage", "io_dtype"}
    assert set(type(config).model_fields) == config.model_fields_set | others, "a field is not tested here"
    assert config.memory.limit == 2 * 2**30
    assert config.shapes["N"] == Profile(min=1, opt=4, max=8)
    assert config.shapes["x"] == (8, 3)
    assert config.options["anything"] == [1, {"deep": None}]
    assert config.adapter == "cpu/openvino"
    assert config.accuracy.samples == tmp_path / "s.npz"
    assert config.calibration is not None and config.calibration.samples == tmp_path / "c.npz"


@pytest.mark.parametrize(
    ("written", "size"),
    [("2GiB", 2**31), ("512MiB", 2**29), ("1.5KiB", 1536), ("1GB", 10**9), ("17", 17), (17, 17), ("2 gib", 2**31)],
)
def test_sizes(written: Any, size: int) -> None:
    assert load(memory={"limit": written}).memory.limit == size


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    place = tmp_path / "deep" / "c.json"
    for written, meant in (
        ("s.npz", tmp_path / "deep" / "s.npz"),
        ("../s", tmp_path / "s"),
        (".", tmp_path / "deep"),
        ("/abs/s", Path("/abs/s")),
    ):
        place.write_text(json.dumps({**CPU, "accuracy": {"samples": written}}))
        assert HardwareConfig.load(place).accuracy.samples == meant
    monkeypatch.chdir(tmp_path)
    place.write_text(json.dumps({**CPU, "accuracy": {"verify": "golden", "golden": "g.npz"}}))
    assert HardwareConfig.load("deep/c.json").accuracy.golden == Path("deep/g.npz")
    assert load(accuracy={"samples": "s.npz"}).accuracy.samples == Path("s.npz")


def test_sources(tmp_path: Path) -> None:
    wanted = load()
    place = tmp_path / "c.json"
    place.write_text(json.dumps(CPU))
    for source in (json.dumps(CPU), "  \n" + json.dumps(CPU), str(place), place, dict(CPU), MappingProxyType({**CPU})):
        assert HardwareConfig.load(source) == wanted
    assert HardwareConfig.load(wanted) is wanted
    place.write_bytes(b"\xef\xbb\xbf" + json.dumps(CPU).encode())
    assert HardwareConfig.load(place) == wanted, "a byte order mark"
    assert load(precision=Precision.FP16, accuracy={"samples": tmp_path / "x.npz"}).precision is Precision.FP16


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().threads = 3


# What is refused, and how


@pytest.mark.parametrize(
    ("fields", "where", "remedy"),
    [
        ({"accuracy": {"max_eror": 1}}, "$.accuracy.max_eror", "did you mean 'max_error'?"),
        ({"precison": "fp16"}, "$.precison", "did you mean 'precision'?"),
        ({"memory": {"limt": 1}}, "$.memory.limt", "did you mean 'limit'?"),
        ({"operators": {"exclud": []}}, "$.operators.exclud", "did you mean 'exclude'?"),
        ({"calibration": {"sample": "x"}}, "$.calibration.sample", "did you mean 'samples'?"),
        (
            {"accuracy": {"min_agreement": {"cosin": 0.9}}},
            "$.accuracy.min_agreement.cosin",
            "did you mean 'cosine'?",
        ),
        ({"precision": "fp23"}, "$.precision", "did you mean 'fp32'?"),
        ({"accuracy": {"verify": "alway"}}, "$.accuracy.verify", "did you mean 'always'?"),
    ],
)
def test_a_misspelling_is_placed_with_candidates_and_the_nearest(
    tmp_path: Path, fields: Any, where: str, remedy: str
) -> None:
    place = tmp_path / "my.json"
    place.write_text(json.dumps({**CPU, **fields}))
    error = refusal(place)
    assert error.where == f"{place}: {where}"
    assert error.remedy == remedy
    assert remedy.split("'")[1] in error.candidates
    assert str(place) in str(error) and where in str(error) and remedy in str(error)


def test_a_misspelt_required_key_is_named_rather_than_the_missing_one() -> None:
    error = refusal({"hardwre": "cpu", "backend": "x"})
    assert error.where == "config: $.hardwre" and error.remedy == "did you mean 'hardware'?"


@pytest.mark.parametrize("missing", ["hardware", "backend"])
def test_required_keys(missing: str) -> None:
    error = refusal({key: value for key, value in CPU.items() if key != missing})
    assert error.where == f"config: $.{missing}" and "required" in error.problem and missing in (error.remedy or "")


@pytest.mark.parametrize("key", ["hardware", "backend", "precision"])
def test_auto_is_no_name_of_an_adapter(key: str) -> None:
    error = refused(**{key: "auto"})
    assert error.where == f"config: $.{key}" and "auto" in error.problem and error.remedy


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"hardware": "CPU"}, "$.hardware"),
        ({"hardware": ""}, "$.hardware"),
        ({"backend": "a" * 65}, "$.backend"),
        ({"version": 2}, "$.version"),
        ({"version": True}, "$.version"),
        ({"version": 1.0}, "$.version"),
        ({"devices": []}, "$.devices"),
        ({"devices": [-1]}, "$.devices[0]"),
        ({"devices": [0, 1, 0]}, "$.devices"),
        ({"devices": 0}, "$.devices"),
        ({"devices": [True]}, "$.devices[0]"),
        ({"candidates": ["cpu/a", "cpu/a"]}, "$.candidates"),
        ({"candidates": ["cpu"]}, "$.candidates[0]"),
        ({"fallback": ["cpu/a", "cpu/a"]}, "$.fallback"),
        ({"instances": 0}, "$.instances"),
        ({"instances": 2000}, "$.instances"),
        ({"threads": 0}, "$.threads"),
        ({"threads": True}, "$.threads"),
        ({"batch_size": "64"}, "$.batch_size"),
        ({"batch_size": 0}, "$.batch_size"),
        ({"batch_size": 1.5}, "$.batch_size"),
        ({"batch_size": 10**30}, "$.batch_size"),
        ({"strict": 1}, "$.strict"),
        ({"operators": {"exclude": "Relu"}}, "$.operators.exclude"),
        ({"memory": {"limit": "2 apples"}}, "$.memory.limit"),
        ({"memory": {"limit": -1}}, "$.memory.limit"),
        ({"memory": {"limit": 0}}, "$.memory.limit"),
        ({"memory": {"limit": "0B"}}, "$.memory.limit"),
        ({"memory": {"limit": True}}, "$.memory.limit"),
        ({"memory": {"limit": 1.5}}, "$.memory.limit"),
        ({"memory": {"limit": "\u0662GiB"}}, "$.memory.limit"),
        ({"accuracy": {"max_error": 0}}, "$.accuracy.max_error"),
        ({"accuracy": {"max_error": "1e-3"}}, "$.accuracy.max_error"),
        ({"accuracy": {"min_agreement": {}}}, "$.accuracy.min_agreement"),
        ({"accuracy": {"min_agreement": {"top1": 1, "cosine": 1}}}, "$.accuracy.min_agreement"),
        ({"accuracy": {"min_agreement": {"top1": 1.5}}}, "$.accuracy.min_agreement.top1"),
        ({"accuracy": {"max_error": 1, "min_agreement": {"top1": 1}}}, "$.accuracy"),
        ({"accuracy": {"verify": "golden"}}, "$.accuracy"),
        ({"accuracy": {"golden": "g.npz"}}, "$.accuracy"),
        ({"accuracy": {"verify": "golden", "golden": "g", "samples": "s"}}, "$.accuracy"),
        ({"accuracy": {"verify": "off", "samples": "s"}}, "$.accuracy"),
        ({"accuracy": {"verify": "off", "max_error": 1}}, "$.accuracy"),
        ({"accuracy": {"samples": ""}}, "$.accuracy.samples"),
        ({"accuracy": {"samples": "a\0b"}}, "$.accuracy.samples"),
        ({"accuracy": {"samples": 3}}, "$.accuracy.samples"),
        ({"calibration": {}}, "$.calibration.samples"),
        ({"shapes": {"x": 0}}, "$.shapes.x"),
        ({"shapes": {"x": []}}, "$.shapes.x"),
        ({"shapes": {"x": True}}, "$.shapes.x"),
        ({"shapes": {"x": [1, "N"]}}, "$.shapes.x"),
        ({"shapes": {"x": {"min": 2, "max": 1}}}, "$.shapes.x"),
        ({"shapes": {"x": {"min": 1, "opt": 9, "max": 8}}}, "$.shapes.x"),
        ({"shapes": {"x": {"min": [1, 2], "max": [3]}}}, "$.shapes.x"),
        ({"shapes": {"x": {"min": 1, "max": [3]}}}, "$.shapes.x"),
        ({"shapes": {"x": {"max": 3}}}, "$.shapes.x"),
        ({"shapes": {"x": {"buckets": []}}}, "$.shapes.x"),
        ({"shapes": {"x": {"buckets": [1], "min": 1}}}, "$.shapes.x"),
        ({"shapes": {"in.put:0": 0}}, '$.shapes["in.put:0"]'),
        ({"shapes": {"a\nb": 0}}, '$.shapes["a\\nb"]'),
        ({"options": []}, "$.options"),
        ({"$schema": 5}, "$.$schema"),
    ],
)
def test_wrong_values_are_placed(fields: Any, where: str) -> None:
    error = refused(**fields)
    assert error.where == f"config: {where}"
    assert error.problem and "\n" not in error.problem


@pytest.mark.parametrize(
    "text",
    ['{"hardware": "cpu", "hardware": "gpu", "backend": "x"}', '{"options": {"a": 1, "a": 2}, "hardware": "c"}'],
)
def test_a_key_twice(text: str) -> None:
    error = refusal(text)
    assert "twice" in error.problem and ("'hardware'" in error.problem or "'a'" in error.problem)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("place", ['"accuracy": {"max_error": %s}', '"options": {"deep": [%s]}', '"threads": %s'])
def test_numbers_that_are_none(number: str, place: str) -> None:
    error = refusal('{"hardware": "cpu", "backend": "x", ' + place % number + "}")
    assert number in error.problem and error.where == "config"
    assert isinstance(refused(options={"x": float("inf")}), ConfigError)


@pytest.mark.parametrize("digits", [30, 400, 5000])
def test_huge_integers(digits: int) -> None:
    refusal('{"hardware": "cpu", "backend": "x", "threads": ' + "9" * digits + "}")
    refused(threads=10**digits)
    refused(options={"x": 10**5000})


@pytest.mark.parametrize("depth", [190, 210, 900, 1200, 20_000])
@pytest.mark.parametrize("key", ["options", "devices"])
def test_deep_nesting(key: str, depth: int) -> None:
    value = "[" * depth + "]" * depth
    value = '{"deep": ' + value + "}" if key == "options" else value
    try:
        HardwareConfig.load(f'{{"hardware": "cpu", "backend": "x", "{key}": {value}}}')
    except ConfigError as error:
        assert len(str(error)) < 500
    else:
        assert key == "options" and depth < 200


def test_half_a_surrogate_pair() -> None:
    for text in ('{"hardware": "\\ud800", "backend": "x"}', '{"hardware": "\ud800", "backend": "x"}'):
        assert "escape" in refusal(text).problem or "surrogate" in refusal(text).problem


@pytest.mark.parametrize("data", ["[1]", '"x"', "3", "true", "null", "", "{", "{]", "{'a': 1}", "// c\n{}", "\x00"])
def test_a_file_of_something_else(tmp_path: Path, data: str) -> None:
    place = tmp_path / "c.json"
    place.write_text(data)
    error = refusal(place)
    assert str(place) in (error.where or "") and "JSON" in error.problem


def test_the_line_of_a_syntax_error(tmp_path: Path) -> None:
    place = tmp_path / "c.json"
    place.write_text('{\n  "hardware": "cpu",\n  "backend" "x"\n}')
    assert refusal(place).where == f"{place}: line 3, column 13"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    place = tmp_path / "gpu.json"
    place.write_text(json.dumps(CPU))
    error = refusal(tmp_path / "gpuu.json")
    assert error.where == str(tmp_path / "gpuu.json") and error.remedy == "did you mean 'gpu.json'?"
    assert refusal(tmp_path).problem == "cannot be read: Is a directory"
    assert "Not a directory" in refusal(place / "x.json").problem
    assert "too long" in refusal("x" * 5000).problem
    assert "NUL" in refusal("a\0b").problem or "null" in refusal("a\0b").problem
    place.write_bytes(b'{"hardware": "\xff"}')
    assert "UTF-8" in refusal(place).problem and refusal(place).where == str(place)
    place.write_text(json.dumps(CPU) + " " * MAX_BYTES)
    assert "larger than 64 KiB" in refusal(place).problem
    assert "larger than 64 KiB" in refusal("/dev/zero").problem, "a file without an end"


@pytest.mark.parametrize("source", [None, 5, [], b"{}", object(), {"hardware": object()}, {("a", 1): 2}, {1: 2}])
def test_foreign_sources(source: Any) -> None:
    refusal(source)
    circular: dict[str, Any] = dict(CPU)
    circular["options"] = circular
    refusal(circular)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    place = tmp_path / "c.json"
    place.write_text(json.dumps(CPU))
    place.chmod(0)
    assert refusal(place).problem == "cannot be read: Permission denied"


def test_json_path() -> None:
    assert json_path(()) == "$"
    assert json_path(("accuracy", "samples", 0)) == "$.accuracy.samples[0]"
    assert json_path(("shapes", "x.0", "$schema")) == '$.shapes["x.0"].$schema'


# The schema


def test_the_schema_is_a_valid_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_the_schema_knows_every_key_and_forbids_others() -> None:
    assert set(SCHEMA["properties"]) == {f.alias or name for name, f in HardwareConfig.model_fields.items()}
    assert SCHEMA["required"] == ["hardware", "backend"]
    objects = [SCHEMA, *(part for part in SCHEMA["$defs"].values() if part["type"] == "object")]
    assert all(part["additionalProperties"] is False for part in objects)


@pytest.mark.parametrize(
    "fields",
    [
        {"version": True},
        {"memory": {"limit": 0}},
        {"memory": {"limit": "2 apples"}},
        {"memory": {"limit": -5}},
        {"batch_size": 0},
        {"devices": []},
        {"precision": "fp23"},
        {"shapes": {"x": 0}},
        {"accuracy": {"max_eror": 1}},
        {"repair": {}},
        {"options": 3},
    ],
)
def test_the_schema_refuses_what_the_code_refuses(fields: Any) -> None:
    refused(**fields)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**CPU, **fields}, SCHEMA)
