"""Samples, generated and loaded, and the border that checks what comes in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from paddock.config import HardwareConfig
from paddock.errors import ConfigError, MemoryRefused, PaddockError, UsageError
from paddock.graph import Graph, Node, Shape, Value
from paddock.npz import read_npz, write_npz
from paddock.planning.shapes import apply_shapes
from paddock.samples import Border, Sample, digest_samples, generate, load_samples, typical


def arr(data: Any, dtype: str) -> np.ndarray[Any, Any]:
    return np.array(data, dtype)


GATHERS: Mapping[str, tuple[int, int]] = {"Gather": (1, 0)}
TRANSPARENT = frozenset({"Cast", "Reshape", "Identity"})


def graph(*inputs: Value) -> Graph:
    return Graph((), tuple(inputs), tuple(range(len(inputs))), ())


X = graph(Value("x", "float32", ("N", 3)))


def bounded(base: Graph, **fields: Any) -> Graph:
    return apply_shapes(base, HardwareConfig.load({"hardware": "cpu", "backend": "x", **fields}))


def made(base: Graph, seed: int = 0) -> list[Sample]:
    return generate(base, GATHERS, TRANSPARENT, seed)


# Generated samples

DTYPES = st.sampled_from(
    ["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "uint64", "bool", "string", "complex64"]
)
SIZE = st.integers(1, 12)


@st.composite
def bounded_graphs(draw: Any) -> Graph:
    dims = st.sampled_from(["N", "M", "K", "L", 1, 3])
    shapes: list[Shape] = draw(st.lists(st.lists(dims, max_size=4).map(tuple), min_size=1, max_size=3))
    base = graph(*(Value(f"i{n}", draw(DTYPES), shape) for n, shape in enumerate(shapes)))
    asked: dict[str, Any] = {}
    names = [*(f"i{n}" for n, shape in enumerate(shapes) if shape), *base.symbols()]
    for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else ():
        axes = shapes[int(name[1:])] if name[0] == "i" else (name,)
        profiles = []
        for _ in range(draw(st.integers(1, 3))):
            ends = [sorted((draw(SIZE), draw(SIZE))) if isinstance(d, str) else [d, d] for d in axes]
            profiles.append({"min": [low for low, _ in ends], "max": [high for _, high in ends]})
        asked[name] = draw(st.sampled_from([profiles, {"buckets": [profile["min"] for profile in profiles]}]))
    fields: dict[str, Any] = {"batch_size": draw(st.integers(1, 9))} if draw(st.booleans()) else {}
    try:
        return bounded(base, shapes=asked, **fields)
    except ConfigError:
        reject()


@given(bounded_graphs(), st.integers(0, 9))
@settings(max_examples=120, deadline=None)
def test_generated_samples_pass_the_border(found: Graph, seed: int) -> None:
    border = Border(found)
    samples = [*made(found, seed), typical(found, GATHERS, TRANSPARENT, seed)]
    for sample in samples:
        border.check(sample)
    shapes = [{name: array.shape for name, array in sample.items()} for sample in samples]
    assert shapes[0] == shapes[1], "two of one shape show whether outputs vary"
    assert len(samples) == (4 if found.symbols() else 3), "two shapes wherever a dimension is dynamic"
    assert len(samples) == 3 or shapes[2] != shapes[0]


def test_shapes_that_no_request_can_have() -> None:
    base = graph(Value("x", "float32", ("N", "M")), Value("y", "float32", ("N", "M")))
    found = bounded(base, shapes={"x": {"buckets": [[1, 4], [2, 8]]}, "y": {"buckets": [[1, 8], [2, 4]]}})
    with pytest.raises(ConfigError) as caught:
        made(found)
    assert caught.value.where == "$.shapes"


def test_profiles_listed_in_another_order_for_each_input_still_go_together() -> None:
    base = graph(Value("x", "float32", ("N", "M")), Value("y", "float32", ("N", "K")))
    found = bounded(base, shapes={"x": {"buckets": [[1, 4], [2, 8]]}, "y": {"buckets": [[2, 6], [1, 3]]}})
    shapes = {tuple(array.shape for array in sample.values()) for sample in made(found)}
    assert shapes == {((1, 4), (1, 3)), ((2, 8), (2, 6))}
    assert {n: a.shape for n, a in typical(found, GATHERS, TRANSPARENT).items()} == {"x": (1, 4), "y": (1, 3)}


def test_typical_takes_the_optimum() -> None:
    found = bounded(X, shapes={"N": {"min": 1, "opt": 5, "max": 9}})
    assert typical(found, GATHERS, TRANSPARENT)["x"].shape == (5, 3)


def test_seeds_are_deterministic_and_differ() -> None:
    assert digest_samples(made(X)) == digest_samples(made(X))
    assert digest_samples(made(X)) != digest_samples(made(X, seed=1))
    first, second, other = made(X)
    assert not np.array_equal(first["x"], second["x"]) and other["x"].shape != first["x"].shape


def test_inputs_are_drawn_apart() -> None:
    sample = made(graph(Value("a", "float32", (8,)), Value("b", "float32", (8,))))[0]
    assert not np.array_equal(sample["a"], sample["b"])


@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8"])
def test_indices_stay_below_the_rows_of_the_table_they_reach(rows: int, dtype: str) -> None:
    values = (
        Value("ids", dtype, ("N", 50)), Value("table", "float32", (rows, 4)), Value("cast", "int64", ("N", 50)),
        Value("flat", "int64", (None,)), Value("out", "float32", (None, 4)), Value("free", "int64", (200,)),
        Value("wide", "float32", (4, rows + 5)), Value("out2", "float32", None),
    )  # fmt: skip
    nodes = (
        Node(0, "Cast", (0,), (2,)), Node(1, "Reshape", (2, None), (3,)), Node(2, "Gather", (1, 3), (4,)),
        Node(3, "Gather", (6, 3), (7,), attributes={"axis": 1}),
    )  # fmt: skip
    found = Graph(nodes, values, (0, 5), (4, 7), {1: 16 * rows})
    for sample in made(found):
        ids = sample["ids"].astype(np.int64)
        assert ids.min() >= 0 and ids.max() < rows
        assert set(np.unique(sample["free"])) == {0, 1}
        assert ids.max() >= min(rows, 100) // 2, "the whole table is reached"


def test_the_smallest_of_several_tables_counts() -> None:
    values = tuple(
        Value(name, dtype, shape)
        for name, dtype, shape in (("ids", "int64", (99,)), ("a", "float32", (50, 2)), ("b", "float32", (5, 2)))
    )
    nodes = (Node(0, "Gather", (1, 0), ()), Node(1, "Gather", (2, 0), ()))
    assert made(Graph(nodes, values, (0,), (), {1: 1, 2: 1}))[0]["ids"].max() == 4


def test_inputs_that_nothing_can_be_generated_for() -> None:
    for value in (
        Value("x", "float32", None), Value("x", None, (1,)), Value("x", "bfloat16", (1,)),
        Value("x", "float32", (1,), "sequence"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            made(graph(value))
        assert "'x'" in caught.value.problem and caught.value.remedy == "give samples"


@pytest.mark.parametrize("extent", [2**40, 2**62])
def test_a_sample_too_large_for_this_host(extent: int) -> None:
    with pytest.raises(MemoryRefused, match="too large"):
        made(graph(Value("x", "float32", (extent, 16))))


# Files


def test_what_is_written_is_read(tmp_path: Path) -> None:
    arrays = {
        "file": np.arange(3), "allow_pickle": arr([[1]], "float32"), "a/b:0": np.array(2.5), "s": np.array(["x", ""]),
        "o": np.array(["é", "long"], object), "none": np.zeros((0, 2)),
    }  # fmt: skip
    write_npz(tmp_path / "a.npz", arrays, "here")
    found = read_npz(tmp_path / "a.npz", "here")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape and found[name].tolist() == array.tolist()
        assert found[name].dtype == array.dtype or array.dtype == object


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for place, arrays in (
        (tmp_path, {}), (tmp_path / "no" / "a.npz", {}), (tmp_path / "a.npz", {"x": [np.zeros(1)]}),
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            write_npz(place, arrays, "--output")
        assert caught.value.where == f"--output: {place}"


def bad_files(folder: Path) -> dict[str, Path]:
    good = folder / "good.npz"
    np.savez_compressed(good, x=np.arange(500.0))
    content = good.read_bytes()
    files = {
        "truncated": content[: len(content) // 2], "empty": b"", "garbage": b"PK\3\4" + bytes(99),
        "text": b"{}", "damaged": content[:80] + b"\xff" * 60 + content[140:],
    }  # fmt: skip
    places = {name: folder / f"{name}.bad" for name in files}
    for name, place in places.items():
        place.write_bytes(files[name])
    np.savez(folder / "pickled.npz", x=np.array([{}], object))
    np.save(folder / "array.npy", np.zeros(2))
    return {
        **places, "pickled": folder / "pickled.npz", "an .npy": folder / "array.npy",
        "missing": folder / "no.npz", "a folder": folder, "NUL": Path("a\0b"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["truncated", "empty", "garbage", "text", "damaged", "pickled", "an .npy", "missing", "a folder", "NUL"]
)
def test_files_that_are_no_samples(tmp_path: Path, kind: str) -> None:
    place = bad_files(tmp_path)[kind]
    with pytest.raises(UsageError) as caught:
        read_npz(place, "--input")
    assert caught.value.where == f"--input: {place}" and caught.value.problem


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_archives(tmp_path: Path, choose: st.DataObject) -> None:
    place = tmp_path / "d.npz"
    write_npz(place, {"x": np.arange(40.0), "y": np.array(["a", "b"])}, "w")
    content = bytearray(place.read_bytes())
    for _ in range(choose.draw(st.integers(1, 6))):
        content[choose.draw(st.integers(0, len(content) - 1))] = choose.draw(st.integers(0, 255))
    place.write_bytes(
        bytes(content[: choose.draw(st.integers(0, len(content)))] if choose.draw(st.booleans()) else content)
    )
    try:
        read_npz(place, "w")
    except UsageError as error:
        assert str(place) in str(error)


def test_samples_from_a_file_and_from_a_folder(tmp_path: Path) -> None:
    for name, rows in (("b", 2), ("a", 1), ("c", 7)):
        np.savez(tmp_path / f"{name}.npz", x=np.full((rows, 3), rows, np.float32))
    assert [s["x"].shape for s in load_samples(tmp_path, X)] == [(1, 3), (2, 3), (7, 3)]
    assert [s["x"].shape for s in load_samples(tmp_path / "c.npz", X)] == [(7, 3)]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"no \.npz"):
        load_samples(empty, X)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": np.zeros((1, 3), np.float32)}, "missing 'x' and unknown 'y'"),
        ({}, "missing 'x'"),
        ({"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)}, "unknown 'z'"),
        ({"x": np.zeros((1, 3))}, "is float64, the model takes float32"),
        ({"x": np.zeros(3, np.float32)}, "has rank 1"),
        ({"x": np.zeros((1, 4), np.float32)}, "has extent 4 on axis 1"),
    ],
)
def test_samples_that_do_not_fit_name_the_file(tmp_path: Path, arrays: Any, says: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        load_samples(tmp_path, X)
    assert str(tmp_path / "s.npz") in (caught.value.where or "") and "$.accuracy.samples" in (caught.value.where or "")


# The border


def refusal(base: Graph, feeds: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        Border(base).check(feeds)
    return caught.value


@pytest.mark.parametrize(
    ("feeds", "where", "says"),
    [
        ({"X": np.zeros((1, 3), np.float32)}, "inputs", "missing 'x' and unknown 'X'"),
        ({1: np.zeros((1, 3), np.float32)}, "inputs", "unknown 1"),
        ({"x": [[1.0, 2.0, 3.0]]}, "input 'x'", "is a list, not an array"),
        ({"x": 1.0}, "input 'x'", "is a float"),
        ({"x": np.float32(1)}, "input 'x'", "is a float32"),
        ({"x": None}, "input 'x'", "is a NoneType"),
        ({"x": "text"}, "input 'x'", "is a str"),
        ({"x": np.zeros((1, 3), np.float16)}, "input 'x'", "is float16, the model takes float32"),
        ({"x": np.zeros((1, 3), ">f4")}, "input 'x'", "is >f4"),
        ({"x": np.zeros((1, 3), object)}, "input 'x'", "is object"),
        ({"x": np.zeros((3,), np.float32)}, "input 'x'", "has rank 1 [3], the model takes rank 2"),
        ({"x": np.zeros((), np.float32)}, "input 'x'", "has rank 0"),
        ({"x": np.zeros((1, 2), np.float32)}, "input 'x'", "has extent 2 on axis 1, this deployment takes 3"),
        ([np.zeros((1, 3), np.float32)], "inputs", "are a list"),
        (None, "inputs", "are a NoneType"),
    ],
)
def test_feeds_that_do_not_fit(feeds: Any, where: str, says: str) -> None:
    error = refusal(X, feeds)
    assert error.where == where and says in error.problem and str(error)


def test_an_extent_outside_the_config_names_the_dimension() -> None:
    error = refusal(bounded(X, shapes={"N": {"min": 2, "max": 4}}), {"x": np.zeros((5, 3), np.float32)})
    assert error.problem == "has extent 5 on axis 0 (N), the config's shapes and batch_size admit 2..4"
    assert error.remedy


def test_names_are_suggested() -> None:
    found = refusal(graph(Value("input_ids", "int64", (1,))), {"input_id": np.zeros(1)})
    assert found.remedy == "did you mean 'input_ids'?" and found.candidates == ("input_ids",)


def test_arrays_come_out_dense_and_otherwise_untouched() -> None:
    dense = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert Border(X).check({"x": dense})["x"] is dense
    for odd in (
        np.asfortranarray(dense),
        np.repeat(dense, 2, 1)[:, ::2],
        dense[::-1],
        np.broadcast_to(dense[:1], (2, 3)),
    ):
        ready = Border(X).check({"x": odd})["x"]
        assert ready.flags.c_contiguous and np.array_equal(ready, odd)


class OnlyDlpack:
    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class NoDevice:
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("gone")


class OtherDevice(OnlyDlpack):
    def __dlpack_device__(self) -> Any:
        return (2, 0)

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("on a GPU")


def test_dlpack() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    duck: Any = OnlyDlpack(array)
    assert np.array_equal(Border(X).check({"x": duck})["x"], array)
    assert "float64" in refusal(X, {"x": OnlyDlpack(array.astype(np.float64))}).problem
    for broken in (NoDevice(), OtherDevice(array), OnlyDlpack(np.array(["a"]))):
        error = refusal(X, {"x": broken})
        assert "DLPack" in error.problem and error.where == "input 'x'"


def test_strings_and_what_has_no_numpy_dtype() -> None:
    strings = graph(Value("s", "string", (2,)))
    for array in (np.array(["a", "b"]), np.array(["a", "b"], object)):
        assert Border(strings).check({"s": array})["s"] is array
    refusal(strings, {"s": np.zeros(2)})
    narrow = np.zeros(2, np.uint16)
    assert Border(graph(Value("b", "bfloat16", (2,)))).check({"b": narrow})["b"] is narrow


def test_sequences_pass_as_they_are() -> None:
    given_sequence = [np.zeros(1), np.zeros(2)]
    base = graph(Value("s", "float32", None, "sequence"), Value("o", "float32", (1,), "optional"))
    ready: Mapping[str, Any] = Border(base).check({"s": given_sequence, "o": None})  # type: ignore[dict-item]
    assert ready["s"] is given_sequence and ready["o"] is None


def test_unbounded_dimensions_take_any_extent_even_none() -> None:
    base = graph(Value("x", "float32", (None, "N")))
    for shape in ((0, 0), (1, 7), (9, 1)):
        Border(base).check({"x": np.zeros(shape, np.float32)})


@given(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["float32", "int64", "U3", "?"]))
@settings(max_examples=100, deadline=None)
def test_any_array_is_taken_or_refused(shape: list[int], dtype: str) -> None:
    array = np.zeros(shape, dtype)
    fits = array.dtype == np.float32 and array.ndim == 2 and array.shape[1] == 3
    try:
        Border(X).check({"x": array})
        assert fits
    except PaddockError as error:
        assert not fits and error.where == "input 'x'"


def test_the_digest_sees_names_dtypes_shapes_and_values() -> None:
    base = np.arange(4, dtype=np.int32)
    samples: list[Sample] = [
        {"x": base}, {"y": base}, {"x": base.astype(np.int64)}, {"x": base.reshape(2, 2)}, {"x": base + 1},
        {"x": np.array(["a"], object)}, {"x": np.array(["b"], object)}, {"x": base, "y": base},
    ]  # fmt: skip
    digests = {digest_samples([sample]) for sample in samples}
    assert len(digests) == len(samples)
    assert digest_samples([samples[-1]]) == digest_samples([{name: samples[-1][name] for name in ("y", "x")}])


def test_types_that_another_package_taught_numpy_are_bits_all_the_same() -> None:
    """ml_dtypes, once imported by anybody, makes np.dtype("bfloat16") a type; what is fed are still its bits."""
    import ml_dtypes

    assert np.dtype("bfloat16") == ml_dtypes.bfloat16
    graph = Graph((), (Value("b", "bfloat16", (2,)),), (0,), (0,))
    bits = np.array([1, 2], np.uint16)
    assert Border(graph).check({"b": bits})["b"] is bits
