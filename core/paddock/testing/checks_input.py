"""What is fed and what is given back: feeds are only read, answers belong to the caller, odd values come through."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paddock.errors import PaddockError
from paddock.graph import BITS
from paddock.plan import Precision
from paddock.spi import Session
from paddock.testing.bench import Bench, Outputs, Serving
from paddock.testing.judging import apart, same_bits
from paddock.testing.outcomes import Area
from paddock.testing.singles import Grade
from paddock.testing.table import Broken, Evidence, Refused, Skipped, Table

TABLE = Table(Area.BAD_INPUT)


def _answered(session: Any, feeds: Mapping[str, Any], outputs: list[str] | None = None) -> Outputs:
    found: object = session.run(feeds, outputs)
    if not isinstance(found, dict):
        raise Broken(f"run() returned a {type(found).__name__}, not a dict of arrays")
    return found


@TABLE.check("feeds_only_read", "feeds are only read, also those that cannot be written")
def _feeds_only_read(bench: Bench) -> None:
    with bench.serving(bench.plain) as serving:
        session = serving.load()
        feeds = serving.feeds(serving.sample())
        before = {name: array.tobytes() for name, array in feeds.items()}
        first = _answered(session, feeds)
        if any(array.tobytes() != before[name] for name, array in feeds.items()):
            raise Broken("run() writes into the arrays that it is fed")
        for array in feeds.values():
            array.flags.writeable = False
        if not same_bits(first, _answered(session, feeds)):
            raise Broken("arrays that cannot be written give another answer")


@TABLE.check("read_anew", "arrays that are written anew and fed again are read again, and those to write into written")
def _read_anew(bench: Bench) -> None:
    """As whoever serves from one buffer does; an address says nothing about what lies there."""
    for path in dict.fromkeys((bench.plain, bench.moving)):
        with bench.serving(path) as serving:
            session = serving.load()
            samples = [serving.sample(seed) for seed in range(3)]
            feeds, into = serving.feeds(samples[0]), _answered(session, serving.feeds(samples[0]))

            for way in ("run()", "run_into()"):
                for sample, wanted in zip(samples, serving.expected(*samples), strict=True):
                    again = partial(_written, session, feeds, into if way == "run_into()" else None)
                    found = dict(serving.prepared.translation.answer(again, sample))
                    if (why := apart(wanted, found, serving.precision)) is not None:
                        raise Broken(f"{way} with other numbers in the same arrays: {why}")


def _written(session: Session, feeds: Outputs, into: Outputs | None, given: Mapping[str, Any]) -> Outputs:
    """One run with these numbers, in arrays that were fed before; its answer written into `into`, where that is one."""
    for name, array in given.items():
        feeds[name][...] = array
    if into is None:
        return _answered(session, feeds)
    session.run_into(feeds, into)
    return {name: np.array(array) for name, array in into.items()}


@TABLE.check("answers_are_the_callers", "arrays that run() returns are changed by no later run, and share nothing")
def _answers_are_the_callers(bench: Bench) -> None:
    with bench.serving(bench.plain) as serving:
        session = serving.load()
        feeds = serving.feeds(serving.sample(0))
        first = _answered(session, feeds)
        kept = {name: np.array(array) for name, array in first.items()}
        others = [_answered(session, serving.feeds(serving.sample(seed))) for seed in (1, 2, 3)]
        if not same_bits(first, kept):
            raise Broken("a later run changes arrays that an earlier one returned")
        for name, array in first.items():
            if any(np.may_share_memory(array, fed) and np.shares_memory(array, fed) for fed in feeds.values()):
                raise Broken(f"the output {name!r} is the memory of an input")
            if any(np.shares_memory(array, other[name]) for other in others):
                raise Broken(f"the output {name!r} of two runs is the same memory")
            if not array.flags.writeable:
                raise Broken(f"the output {name!r} cannot be written: it is not the caller's")
            array.fill(1)
        if not same_bits(kept, _answered(session, feeds)):
            raise Broken("writing into what run() returned changes the next answer")


@TABLE.check("passed_through", "an output that is an input's numbers is not the input's memory")
def _passed_through(bench: Bench) -> Evidence:
    tried = []
    for name in ("Identity", "Reshape", "Flatten", "Relu", "Slice"):
        try:
            with bench.serving(bench.single(name)) as serving:
                feeds = serving.feeds(serving.sample())
                found = _answered(serving.load(), feeds)
                if any(np.shares_memory(a, fed) for a in found.values() for fed in feeds.values()):
                    raise Broken(f"{name} gives back the memory that it is fed")
                tried.append(name)
        except Refused:
            continue
    if not tried:
        raise Skipped("it runs no operator that passes numbers through")
    return Evidence(", ".join(tried))


@TABLE.check("outputs", "run() gives exactly the outputs asked for: each, none left out, in the dtypes of the graph")
def _outputs(bench: Bench) -> Evidence:
    with bench.serving(_several_outputs(bench)) as serving:
        session = serving.load()
        sample = serving.sample()
        feeds = serving.feeds(sample)
        whole = _answered(session, feeds)
        if set(whole) != set(serving.outputs):
            raise Broken(f"run() gives {', '.join(sorted(whole))}, and the outputs are {', '.join(serving.outputs)}")
        for value in serving.prepared.target.graph.output_values:
            known = value.dtype is not None and value.dtype in BITS and value.dtype != "bfloat16"
            if known and whole[value.name].dtype != np.dtype(str(value.dtype)):
                raise Broken(f"the output {value.name!r} is {whole[value.name].dtype}, the graph states {value.dtype}")
        for count in range(1, len(serving.outputs) + 1):
            for asked in itertools.permutations(serving.outputs, count):
                found = _answered(session, feeds, list(asked))
                if set(found) != set(asked):
                    raise Broken(f"asked for {', '.join(asked)}, run() gives {', '.join(found) or 'nothing'}")
                if not same_bits(found, {name: whole[name] for name in asked}):
                    raise Broken(f"asked for {', '.join(asked)}, run() gives other numbers than asked for all")
        (wanted,) = serving.expected(sample)
        if (why := apart(wanted, serving.answer(session, sample), serving.precision)) is not None:
            raise Broken(why)
        return Evidence(f"{len(serving.outputs)} outputs")


def _several_outputs(bench: Bench) -> Path:
    """A model of two outputs, as far as it serves one."""
    ways: tuple[Callable[[], Path], ...] = (lambda: bench.model("two_by_two"), lambda: bench.single("Split"))
    for path in ways if "two_by_two" in bench.names else ():
        with suppress(Skipped), bench.serving(path()):
            return path()
    return bench.plain


@TABLE.check("unaligned", "dense arrays may begin anywhere in memory")
def _unaligned(bench: Bench) -> None:
    with bench.serving(bench.plain) as serving:
        session = serving.load()
        feeds = serving.feeds(serving.sample())
        first = _answered(session, feeds)
        for shift in (1, 3):  # elements: aligned to the element, to nothing more
            shifted = {name: _shifted(array, shift) for name, array in feeds.items()}
            if not _alike(serving, first, _answered(session, shifted)):
                raise Broken(f"arrays that begin {shift} elements into a buffer give another answer")


def _alike(serving: Serving, one: Outputs, other: Outputs) -> bool:
    """Equal but for the order of sums, which may follow the alignment."""
    wide = [
        {n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in found.items()} for found in (one, other)
    ]
    return apart(wide[0], wide[1], serving.precision) is None


def _shifted(array: np.ndarray[Any, Any], by: int) -> np.ndarray[Any, Any]:
    line = max(1, 64 // array.itemsize)
    buffer = np.zeros(array.size + by + line, array.dtype)
    start = (-buffer.ctypes.data // array.itemsize) % line + by
    place = buffer[start : start + array.size].reshape(array.shape)
    place[...] = array
    return place


@TABLE.check("odd_sizes", "every size counts: rows and batches of 1, 2, 3, ... elements are right to the last")
def _odd_sizes(bench: Bench) -> Evidence:
    most = 17 if bench.quick else 70
    extents: list[Mapping[str, Any]] = [{"batch": {"min": 1, "opt": 2, "max": most}}]
    if bench.static:
        sizes = (1, 3, 7, 17) if bench.quick else range(1, most)
        extents = [{"batch": n} for n in (sizes if bench.takes_batches else (1,))]
    count = 0
    for admitted in extents:
        with bench.serving(bench.moving, admitted) as serving:
            session = serving.load()
            samples = [serving.sample(seed, each) for seed, each in enumerate(serving.extents())]
            for sample, wanted in zip(samples, serving.expected(*samples), strict=True):
                if (why := apart(wanted, serving.answer(session, sample), serving.precision)) is not None:
                    raise Broken(f"with {', '.join(str(list(a.shape)) for a in sample.values())}: {why}")
                count += 1
    return Evidence(f"{count} sizes of {bench.moving.stem}{_many_rows(bench)}")


def _many_rows(bench: Bench) -> str:
    """The rows of a matrix product, beyond those of one tile; what was tried, where it is served."""
    admitted: Mapping[str, Any] = {"batch": 17 if bench.static else {"min": 1, "opt": 2, "max": 17}}
    try:
        with bench.serving(bench.single("Gemm"), admitted) as serving:
            session, extents = serving.load(), serving.extents()
            samples = [serving.sample(seed, each) for seed, each in enumerate(extents) if len(extents) - seed < 11]
            for sample, wanted in zip(samples, serving.expected(*samples), strict=True):
                if (why := apart(wanted, serving.answer(session, sample), serving.precision)) is not None:
                    raise Broken(f"Gemm with {', '.join(str(list(a.shape)) for a in sample.values())}: {why}")
            return f", {len(samples)} of Gemm"
    except Skipped:
        return ""


_VALUES: Mapping[str, Callable[[Any], float]] = {
    "NaN": lambda kind: np.nan,
    "infinity": lambda kind: np.inf,
    "-infinity": lambda kind: -np.inf,
    "the largest": lambda kind: float(kind.max),
    "the smallest normal": lambda kind: float(kind.tiny),
    "zero": lambda kind: 0.0,
}


@TABLE.check("extremes", "NaN, infinities and the largest and smallest numbers come through where numbers only move")
def _extremes(bench: Bench) -> Evidence:
    tried: list[str] = []
    denormal = ""
    for name in ("Transpose", "Concat", "Identity", "Reshape", "Gather"):
        try:
            with bench.serving(bench.single(name)) as serving:
                if serving.precision is Precision.INT8:
                    raise Skipped("int8 holds none of them")
                session = serving.load()
                kind = np.finfo(np.float16 if serving.precision is Precision.FP16 else np.float32)
                for what, value in _VALUES.items():
                    sample = _strewn(serving, np.float32(value(kind)))
                    (wanted,) = serving.expected(sample)
                    why = apart(wanted, serving.answer(session, sample), serving.precision, Grade.EXACT)
                    if why is not None:
                        raise Broken(f"{what} in {name}: {why}")
                sample = _strewn(serving, np.float32(kind.smallest_subnormal))
                (wanted,) = serving.expected(sample)
                if apart(wanted, serving.answer(session, sample), serving.precision, Grade.EXACT) is not None:
                    denormal = "; denormal numbers are flushed"
                tried.append(name)
        except Refused:
            continue
        if len(tried) == 2 and bench.quick:
            break
    if not tried:
        raise Skipped("it runs no operator that only moves numbers")
    return Evidence(f"{', '.join(tried)}{denormal}{_overflow(bench)}")


def _overflow(bench: Bench) -> str:
    """What the largest number twice is, where not infinity; told and not judged, since some devices saturate."""
    with suppress(Skipped), bench.serving(bench.single("Add")) as serving:
        largest = float(np.finfo(np.float16 if serving.precision is Precision.FP16 else np.float32).max)
        sample = {name: serving.rounded(np.full_like(a, largest)) for name, a in serving.sample().items()}
        found = next(iter(serving.answer(serving.load(), sample).values()))
        if not np.isposinf(found).all():
            return f"; overflow saturates: the largest number twice is {found.min():g}"
    return ""


@TABLE.check("not_a_number", "what is computed of NaN is NaN, and nothing beside it")
def _not_a_number(bench: Bench) -> Evidence:
    tried: list[str] = []
    swallowed: list[str] = []
    astray: list[str] = []
    for name in (*_ARITHMETIC[: 6 if bench.quick else None], *_CHOICES[: 2 if bench.quick else None]):
        try:
            with bench.serving(bench.single(name)) as serving:
                if serving.precision is Precision.INT8:
                    raise Skipped("int8 holds none")
                sample = _strewn(serving, np.float32(np.nan))
                (wanted,) = serving.expected(sample)
                found = serving.answer(serving.load(), sample)
                there = [(np.isnan(wanted[n]), np.isnan(found[n])) for n in wanted]
                if all(np.array_equal(should, is_there) for should, is_there in there):
                    tried.append(name)
                elif name in _ARITHMETIC:
                    most, count = (sum(int(each[i].sum()) for each in there) for i in (0, 1))
                    astray.append(f"{name}: NaN stands in {count} places, the reference's in {most}, not all the same")
                else:
                    swallowed.append(name)
        except Refused:
            continue
    if astray:
        raise Broken(f"of NaN is computed what is not NaN: {'; '.join(astray)}")
    if not tried and not swallowed:
        raise Skipped("it runs none of these operators")
    # The standard says max(0, x) and leaves open what the larger of a number and none is.
    unproven = (f"that NaN comes through {', '.join(swallowed)}: it is taken for a number",) if swallowed else ()
    return Evidence(f"through {', '.join(tried) or 'none'}", unproven)


_ARITHMETIC = (
    "Add", "MatMul", "Gemm", "Conv", "Softmax", "LayerNormalization",
    "Mul", "Sigmoid", "ReduceMean", "BatchNormalization",
)  # fmt: skip
_CHOICES = ("Relu", "MaxPool", "Max", "Clip")


def _strewn(serving: Serving, value: np.float32) -> dict[str, np.ndarray[Any, Any]]:
    sample = {name: np.array(array) for name, array in serving.sample().items()}
    for array in sample.values():
        array.reshape(-1)[::3] = value
    return sample


@TABLE.check("refused", "what does not fit is refused before the backend sees it, and the next request is right")
def _refused(bench: Bench) -> Evidence:
    from paddock.deployment import deploy

    with bench.serving(bench.plain) as serving:
        sample = dict(serving.sample())
        config = serving.prepared.config.as_data()
        off = {**config, "accuracy": {"verify": "off"}}
        name, array = next((n, a) for n, a in sample.items() if a.ndim)
        wrong: dict[str, dict[str, Any]] = {
            "a missing input": {n: a for n, a in sample.items() if n != name},
            "another name": {**sample, "nobody": array},
            "another dtype": {**sample, name: array.astype(np.float64 if array.dtype.kind == "f" else np.float32)},
            "another rank": {**sample, name: array[None]},
            "no array": {**sample, name: "paddock"},
            "another extent": {**sample, name: np.concatenate([array] * 9, array.ndim - 1)},
        }
        kinds = {v.name: v.dtype for v in serving.prepared.interface.input_values}
        fitting = {n: a.astype(str(kinds[n])) for n, a in sample.items()}
        with deploy(
            serving.prepared.origin.origin, off, registry=bench.registry, children=bench.children
        ) as deployment:
            before = deployment.run(fitting)
            for what, feeds in wrong.items():
                try:
                    deployment.run(
                        {n: a.astype(str(kinds[n])) if n != name and n in kinds else a for n, a in feeds.items()}
                    )
                except PaddockError:
                    continue
                raise Broken(f"{what} is not refused")
            strided = {n: np.repeat(a, 2, -1)[..., ::2] if a.ndim else a for n, a in fitting.items()}
            for again in (fitting, strided):
                if not _alike(serving, before, deployment.run(again)):
                    raise Broken("after what was refused, or with strides, a request is answered otherwise")
        return Evidence(", ".join(wrong))
