"""Whatever stands in a config file: a config or a ConfigError that can be printed and names a place."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paddock.config import HardwareConfig, json_schema
from paddock.errors import ConfigError

VALIDATOR = jsonschema.Draft202012Validator(json_schema())

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, -0.0, 1e308, float("inf"), float("nan"), 2**63, 10**40, 1.0]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "\0", "\ud800", "auto", "2GiB", "1e999", "a/b", "x" * 3000, "../..", "\u0662"]),
)
ANY = st.recursive(
    ODD,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=6), inner, max_size=3),
        st.integers(100, 300).flatmap(lambda depth: inner.map(lambda value: _nested(value, depth))),
    ),
    max_leaves=8,
)


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


EXTENT = st.integers(1, 2**40)


def _ordered(profile: dict[str, Any]) -> dict[str, Any]:
    """min, opt and max of one rank, sorted on each axis."""
    names = [name for name in ("min", "opt", "max") if name in profile]
    if isinstance(profile["min"], int):
        return dict(zip(names, sorted(profile[name] for name in names), strict=True))
    columns = [sorted(axis) for axis in zip(*(profile[name] for name in names), strict=True)]
    return {name: [column[i] for column in columns] for i, name in enumerate(names)}


def _profile(rank: int | None) -> st.SearchStrategy[dict[str, Any]]:
    size = EXTENT if rank is None else st.lists(EXTENT, min_size=rank, max_size=rank)
    return st.fixed_dictionaries({"min": size, "max": size}, optional={"opt": size}).map(_ordered)


PROFILE = st.one_of(st.none(), st.integers(1, 3)).flatmap(_profile)
SHAPES = st.one_of(
    EXTENT,
    st.lists(EXTENT, min_size=1, max_size=4),
    PROFILE,
    st.lists(PROFILE, min_size=1, max_size=3),
    st.fixed_dictionaries({"buckets": st.lists(st.one_of(EXTENT, st.lists(EXTENT, min_size=1)), min_size=1)}),
)
NAME = st.from_regex(r"\A[a-z][a-z0-9_.-]{0,9}\Z")
PAIR = st.builds("{}/{}".format, NAME, NAME)
SAMPLES = st.sampled_from(["s.npz", "../folder", ".", "/abs"])
ONE_METRIC = st.sampled_from(["cosine", "top1"]).flatmap(
    lambda metric: st.fixed_dictionaries(
        {metric: st.floats(0, 1, exclude_min=True)},
        optional={"output": st.text(max_size=5), "mask": st.text(max_size=5), "axis": st.integers()},
    )
)
ACCURACY = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "max_error": st.floats(0, exclude_min=True, allow_infinity=False),
            "samples": SAMPLES,
            "verify": st.sampled_from(["always", "cached"]),
        },
    ),
    st.fixed_dictionaries({"min_agreement": ONE_METRIC}, optional={"samples": SAMPLES}),
    st.fixed_dictionaries({"verify": st.just("golden"), "golden": SAMPLES}),
    st.just({"verify": "off"}),
)
SIZE = st.one_of(
    st.integers(1, 2**50), st.from_regex(r"\A[1-9][0-9]{0,8}(\.[0-9]{1,6})? ?([kKmMgGtT](i?[bB])?|[bB])?\Z")
)
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(st.characters(codec="utf-8"), max_size=5)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text("abc"), inner, max_size=3)),
    max_leaves=5,
)
NAMES = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=3)
VALID = st.fixed_dictionaries(
    {"hardware": NAME.filter(lambda n: n != "auto"), "backend": NAME.filter(lambda n: n != "auto")},
    optional={
        "$schema": st.text("abc/"),
        "version": st.just(1),
        "devices": st.lists(st.integers(0, 4096), min_size=1, max_size=4, unique=True),
        "instances": st.integers(1, 1024),
        "precision": st.sampled_from(["fp32", "fp16", "bf16", "int8"]),
        "batch_size": EXTENT,
        "shapes": st.dictionaries(st.text("abN.:0", max_size=4), SHAPES, max_size=3),
        "operators": st.fixed_dictionaries({}, optional={"exclude": NAMES, "keep_fp32": NAMES}),
        "memory": st.fixed_dictionaries({}, optional={"limit": SIZE}),
        "accuracy": ACCURACY,
        "calibration": st.fixed_dictionaries({"samples": SAMPLES}),
        "candidates": st.lists(PAIR, max_size=3, unique=True),
        "fallback": st.lists(PAIR, max_size=3, unique=True),
        "strict": st.booleans(),
        "threads": st.integers(1, 4096),
        "options": st.dictionaries(st.text("abc", max_size=4), JSON, max_size=3),
    },
)


def outcome(source: Any) -> HardwareConfig | ConfigError:
    """The config or its refusal; anything else escapes and fails the test."""
    try:
        return HardwareConfig.load(source)
    except ConfigError as error:
        assert error.where and error.problem
        assert str(error).startswith(error.where)
        return error


def positions(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, child in children:
        yield from positions(child, (*path, key))


@given(VALID)
@settings(max_examples=100, deadline=None)
def test_valid_configs_are_taken_and_the_schema_agrees(data: dict[str, Any]) -> None:
    config = HardwareConfig.load(data)
    VALIDATOR.validate(data)
    again = HardwareConfig.load(config.model_dump(mode="json", by_alias=True, exclude_unset=True))
    assert again == config, "what `paddock verify --all` builds its configs from"


@given(VALID, ANY, st.data())
@settings(max_examples=150, deadline=None)
def test_any_value_in_any_position(data: dict[str, Any], odd: Any, choose: st.DataObject) -> None:
    changed = copy.deepcopy(data)
    path = choose.draw(st.sampled_from(list(positions(changed))))
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = odd
    for source in (changed, json.dumps(changed)):
        if not isinstance(outcome(source), ConfigError):
            VALIDATOR.validate(changed)


@given(VALID, st.text(min_size=1, max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_an_unknown_key_is_refused_by_both(data: dict[str, Any], name: str, choose: st.DataObject) -> None:
    changed = copy.deepcopy(data)
    inner = [changed, *(changed[key] for key in ("operators", "memory", "accuracy", "calibration") if key in changed)]
    place = choose.draw(st.sampled_from(inner))
    place[name + "?"] = None
    assert isinstance(outcome(changed), ConfigError)
    assert not VALIDATOR.is_valid(changed)


@given(ANY)
@settings(max_examples=150, deadline=None)
def test_any_data(data: Any) -> None:
    outcome(data)


@given(ANY)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_file(tmp_path: Path, data: Any) -> None:
    place = tmp_path / "c.json"
    place.write_text(json.dumps(data))
    outcome(place)


@given(st.one_of(st.text(), st.text().map(lambda text: "{" + text), st.characters(codec=None)))
@settings(max_examples=150, deadline=None)
def test_any_text(text: str) -> None:
    outcome(text)


@given(VALID, st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files(tmp_path: Path, data: dict[str, Any], choose: st.DataObject) -> None:
    content = bytearray(json.dumps(data).encode())
    for _ in range(choose.draw(st.integers(1, 4))):
        at = choose.draw(st.integers(0, len(content)))
        content[at : at + choose.draw(st.integers(0, 3))] = choose.draw(st.binary(max_size=3))
    place = tmp_path / "c.json"
    place.write_bytes(bytes(content))
    outcome(place)
