"""The precision claimed is the one computed in, and what a precision need not lose is not lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paddock.errors import BuildFailed
from paddock.metrics import relative_error
from paddock.plan import Means, Precision
from paddock.testing.bench import Bench, Serving
from paddock.testing.judging import BUDGET, apart
from paddock.testing.outcomes import Area
from paddock.testing.singles import IR, OPSET, SINGLES, Grade
from paddock.testing.table import Broken, Evidence, Refused, Skipped, Table

TABLE = Table(Area.PRECISION)

FLOOR = {Precision.FP16: 2e-5, Precision.BF16: 2e-4, Precision.INT8: 2e-4}
"""The error below which an answer was not computed in the precision: a tenth of what rounding the operands makes."""


_SIZES = 12, 128
"""Of unit matrices: one that is no multiple of a tile, and one of whole tiles, which have units of their own."""


def _usable(bench: Bench, precision: Precision) -> None:
    if precision not in bench.adapter.precisions:
        raise Skipped(f"the adapter does not declare {precision}")
    if precision not in bench.precisions:
        verdict = bench.device.precisions.get(precision)
        raise Skipped(
            f"the device does not compute in {precision}: {verdict.reason if verdict else 'it has no verdict'}"
        )


def _identity(bench: Bench, size: int = 12, there_and_back: float | None = None) -> Path:
    """x times the unit matrix: exactly x, in whatever order it is summed, unless x itself is cut short.

    `there_and_back` is added to that, kept as it is above zero, and taken away.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    if bench.format != "onnx":
        raise Skipped(f"it takes {bench.format} models, and this one is ONNX")
    path = bench.folder / (f"unit-{size}.onnx" if there_and_back is None else f"unit-{size}-{there_and_back:g}.onnx")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size]) for n in "xy")
    stored = [numpy_helper.from_array(np.eye(size, dtype=np.float32), "unit")]
    nodes = [helper.make_node("MatMul", ["x", "unit"], ["y"])]
    if there_and_back is not None:
        stored.append(numpy_helper.from_array(np.array([there_and_back], np.float32), "far"))
        nodes = [
            helper.make_node("MatMul", ["x", "unit"], ["same"]),
            helper.make_node("Add", ["same", "far"], ["there"]),
            helper.make_node("Relu", ["there"], ["kept"]),
            helper.make_node("Sub", ["kept", "far"], ["y"]),
        ]
    graph = helper.make_graph(nodes, "unit", [x], [y], stored)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR), path)
    return path


def _keeps_bits(precision: Precision) -> Callable[[Bench], Evidence]:
    def action(bench: Bench) -> Evidence:
        _usable(bench, precision)
        for size in _SIZES:
            with bench.serving(_identity(bench, size), precision=precision) as serving:
                session, sample = serving.load(), serving.sample()
                found = serving.answer(session, sample)
                if (why := apart({"y": sample["x"]}, found, precision, Grade.EXACT)) is not None:
                    what = f"x times the unit matrix of {size} rows is not x"
                    raise Broken(f"{what}: operands are narrower than {precision}: {why}")
        return Evidence(f"x times the unit matrix is x, with {' and '.join(map(str, _SIZES))} rows")

    return action


def _exact(precision: Precision) -> Callable[[Bench], Evidence]:
    def action(bench: Bench) -> Evidence:
        _usable(bench, precision)
        names = [n for n, single in SINGLES.items() if single.grade is not Grade.CLOSE]
        chosen = [n for n in names if n in _COMMON] if bench.quick else names
        tried, refused = [], []
        for name in chosen:
            try:
                with bench.serving(bench.single(name), precision=precision) as serving:
                    _check_single(serving, name)
                    tried.append(name)
            except Refused:
                refused.append(name)
        if not tried:
            raise Skipped("it runs none of the operators that round at most once")
        return Evidence(f"{len(tried)} operators", (f"{', '.join(refused)}: refused",) if refused else ())

    return action


_COMMON = ("Relu", "Max", "Transpose", "Concat", "MaxPool", "Add", "Mul")


def _check_single(serving: Serving, name: str) -> None:
    single, session = SINGLES[name], serving.load()
    sample = {n: serving.rounded(single.placed(a, 0)) for n, a in serving.sample(11).items()}
    (wanted,) = serving.expected(sample)
    if (why := apart(wanted, serving.answer(session, sample), serving.precision, single.grade)) is not None:
        raise Broken(f"{name} in {serving.precision}: {why}")


def _computed(precision: Precision) -> Callable[[Bench], Evidence]:
    def action(bench: Bench) -> Evidence:
        _usable(bench, precision)
        found: dict[str, Evidence] = {}
        refused: list[str] = []
        enough = _enough(bench, precision)
        for name in sorted(bench.names, key=lambda name: name not in enough):
            if found and name not in enough:
                break
            try:
                with bench.serving(bench.model(name), precision=precision) as serving:
                    found[name] = _judged(serving, name, precision, floor=not found)
            except Refused as error:
                refused.append(f"{name}: {error.problem}")
            except BuildFailed as error:
                if precision is not Precision.INT8:
                    raise
                refused.append(f"{name}: {error.problem}")  # its quantiser says so before anything is served
        if not found:
            raise Broken(f"{precision} is declared, and every whole model refused: {'; '.join(refused)[:500]}")
        unproven = dict.fromkeys(claim for evidence in found.values() for claim in evidence.unproven)
        if refused:
            unproven[f"refused: {'; '.join(refused)[:300]}"] = None
        return Evidence("; ".join(evidence.text for evidence in found.values()), tuple(unproven))

    return action


def _enough(bench: Bench, precision: Precision) -> tuple[str, ...]:
    """The models to run; quick ones have every kind of layer, save that quantisers take their time."""
    if not bench.quick:
        return bench.names
    few = {bench.precision: _FEW[:1], Precision.INT8: _FEW[:2]}.get(precision, _FEW)
    return tuple(name for name in bench.names if name in few) or bench.names[: len(few)]


_FEW = ("mlp", "residual", "transformer", "recurrent", "recommender")


def _judged(serving: Serving, name: str, precision: Precision, floor: bool) -> Evidence:
    session = serving.load()
    samples = [serving.sample(seed) for seed in (0, 1)]
    largest = 0.0
    for sample, wanted in zip(samples, serving.expected(*samples), strict=True):
        found = serving.answer(session, sample)
        if (why := apart(wanted, found, precision)) is not None:
            raise Broken(f"{name} in {precision}: {why}")
        floats = [n for n, a in wanted.items() if a.dtype.kind == "f"]
        largest = max(largest, *(relative_error(wanted[n], found[n])[0] for n in floats), 0.0)
    settings: Any = session.observed().settings
    told = settings.get("precision")
    if told is not None and told != precision.value:
        raise Broken(f"{precision} was asked for, and observed() says {told}")
    if floor and precision in FLOOR and largest < FLOOR[precision]:
        raise Broken(
            f"{name} in {precision} has an error of {largest:.1g}, as fp32 has: it is not computed in {precision}"
        )
    means = serving.prepared.plan.precision.means
    unproven = []
    if told is None and means is not Means.NONE:
        unproven.append("what is accumulated in: observed() tells no precision")
    return Evidence(f"{name}: error {largest:.1g} of {BUDGET[precision]:g} admitted, by {means}", tuple(unproven))


def _narrow_operators(precision: Precision) -> Callable[[Bench], Evidence]:
    def action(bench: Bench) -> Evidence:
        _usable(bench, precision)
        if precision is bench.precision:
            raise Skipped(f"the operators' own checks run in {precision}, its widest")
        names = _BESIDE_MODELS if bench.quick else [n for n, s in SINGLES.items() if s.grade is Grade.CLOSE]
        tried, refused = [], []
        for name in names:
            if SINGLES[name].offset:
                continue
            try:
                with bench.serving(bench.single(name), precision=precision) as serving:
                    _check_single(serving, name)
                    tried.append(name)
            except Refused:
                refused.append(name)
        if not tried:
            raise Skipped(f"it runs none of these operators in {precision}")
        return Evidence(f"{len(tried)} operators", (f"{', '.join(refused)}: refused",) if refused else ())

    return action


_BESIDE_MODELS = ("Tanh", "Erf", "HardSwish", "AveragePool", "Softmax, far apart")
"""What computes, and stands in none of the models that are run in every precision; a few of them."""
_COARSE = {Precision.FP16: 2048.0, Precision.BF16: 256.0}
"""Numbers after which the next one of the precision is 2 away."""


def _steps(precision: Precision) -> Callable[[Bench], Evidence]:
    """Whether what passes from one operator to the next is rounded: what `observed` says proves nothing."""

    def action(bench: Bench) -> Evidence:
        _usable(bench, precision)
        with bench.serving(_identity(bench, there_and_back=_COARSE.get(precision)), precision=precision) as serving:
            sample = serving.sample()
            found = serving.answer(serving.load(), sample)
            error, _ = relative_error(sample["x"], found["y"])
            if precision is Precision.INT8:
                if error < FLOOR[precision]:
                    raise Broken(
                        f"x times the unit matrix differs from x by {error:.1g}: 256 steps over a range are coarser, "
                        "so what is multiplied is not rounded to int8"
                    )
                return Evidence(f"x times the unit matrix differs from x by {error:.1g}, as 256 steps do")
            coarse = f"adding {_COARSE[precision]:g} and taking it away"
            if error < 0.01:  # steps of 2 make a third, fp32 a ten thousandth
                return Evidence(f"{coarse} rounds nothing", (f"that numbers between operators are of {precision}",))
            return Evidence(f"{coarse} rounds, as {precision} must")

    return action


for _precision in Precision:
    TABLE.check(
        f"computed.{_precision}",
        f"{_precision}, where declared, is what is computed in, and no worse than it must be",
        seconds=600,  # quantisers take their time
    )(_computed(_precision))
for _precision in (Precision.FP32, Precision.FP16):
    TABLE.check(f"keeps_bits.{_precision}", f"no operand is narrower than {_precision}")(_keeps_bits(_precision))
    TABLE.check(f"exact.{_precision}", f"operators that round at most once are exact in {_precision}")(
        _exact(_precision)
    )
for _precision in (Precision.FP16, Precision.BF16):
    TABLE.check(
        f"operators.{_precision}", f"operators are right in {_precision} too, where that is not the widest precision"
    )(_narrow_operators(_precision))
for _precision in (Precision.FP16, Precision.BF16, Precision.INT8):
    TABLE.check(f"steps.{_precision}", f"numbers are rounded to {_precision} on their way, not only in the answer")(
        _steps(_precision)
    )
