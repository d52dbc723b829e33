"""`run_into` on `cpu/paddle` and `cpu/mkldnn`: the numbers of `run`, in the caller's arrays and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.config import HardwareConfig
from paddock.errors import RunFailed, UsageError
from paddock.model import Model
from paddock.plan import PrecisionPlan, Segment
from paddock.spi import Context, ResolvedConfig, SegmentMemory, SegmentPlan
from paddock_paddle.adapters import CpuMkldnn, CpuPaddle, PaddleAdapter
from paddock_paddle.format import PaddleFormat

pytest.importorskip("paddle")

Feeds = Mapping[str, np.ndarray[Any, Any]]
Call = Callable[[str, Callable[[Any], Any]], Any]


@pytest.fixture(params=[CpuPaddle, CpuMkldnn])
def on(request: pytest.FixtureRequest, models: Path, tmp_path: Path) -> Iterator[Call]:
    """Does something with a model's session, on the thread that loaded it."""
    with ThreadPoolExecutor(1) as thread:
        sessions: dict[str, Any] = {}

        def load(name: str) -> Any:
            files = PaddleFormat().locate(models / name)
            assert files is not None
            model = Model("paddle", files, "test", PaddleFormat().read(files))
            kind: type[PaddleAdapter] = request.param
            config = HardwareConfig.load({"hardware": kind.hardware, "backend": kind.backend})
            adapter, context = kind(ResolvedConfig(config, kind.Options(), 1), None), Context(tmp_path, tmp_path)
            nodes = tuple(range(len(model.graph.nodes)))
            segment = Segment(0, adapter.name(), nodes, model.graph.inputs, model.graph.outputs)
            remedies = tuple(adapter.known_defects(model))
            plan = SegmentPlan(segment, PrecisionPlan(config.precision), SegmentMemory(), remedies)
            return adapter.load(adapter.compile(model, plan, context), context)

        def call(name: str, action: Callable[[Any], Any]) -> Any:
            if name not in sessions:
                sessions[name] = thread.submit(load, name).result()
            return thread.submit(action, sessions[name]).result()

        yield call
        for session in sessions.values():
            thread.submit(session.close).result()


def guarded(like: Feeds) -> tuple[dict[str, np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Arrays that lie amid bytes which nobody may touch, filled with what no model answers; and those bytes."""
    arrays, wholes = {}, []
    for name, array in like.items():
        whole = np.full(array.nbytes + 256, 0xAB, np.uint8)
        arrays[name] = whole[128 : 128 + array.nbytes].view(array.dtype).reshape(array.shape)
        wholes.append(whole)
    return arrays, wholes


def feeds_of(name: str, rows: int) -> Feeds:
    draw = np.random.default_rng(rows)
    if name == "embedding":
        return {"ids": draw.integers(0, 2, (rows, 7))}
    if name == "mixed":
        return {
            "x": draw.standard_normal((3, 4), dtype=np.float32),
            "flag": draw.integers(0, 2, (3, 4)).astype(bool),
            "scale": np.array(rows, np.float32),
            "ids": draw.integers(0, 9, (2, 2)),
        }
    return {"x": draw.standard_normal((rows, 4), dtype=np.float32)}


def run(session: Any, feeds: Feeds) -> Any:
    return session.run(feeds)


def run_into(session: Any, feeds: Feeds, arrays: Any) -> None:
    session.run_into(feeds, arrays)


@pytest.mark.parametrize("name", ["linear", "embedding", "mixed"])
def test_the_numbers_of_run_in_these_arrays_and_nowhere_else(on: Call, name: str) -> None:
    for rows in (3, 1, 5, 3):
        feeds = feeds_of(name, rows)
        wanted = on(name, functools.partial(run, feeds=feeds))
        for names in (list(wanted), list(wanted)[:1]):
            arrays, wholes = guarded({key: wanted[key] for key in names})
            on(name, functools.partial(run_into, feeds=feeds, arrays=arrays))
            for key, array in arrays.items():
                assert array.dtype == wanted[key].dtype and array.tobytes() == wanted[key].tobytes()
            assert all((whole[:128] == 0xAB).all() and (whole[-128:] == 0xAB).all() for whole in wholes)


@pytest.mark.parametrize("name", ["linear", "embedding"])
def test_another_shape_is_refused_and_nothing_written(on: Call, name: str) -> None:
    wanted = on(name, lambda session: session.run(feeds_of(name, 3)))
    for key, array in wanted.items():
        for shape in ((1, *array.shape), array.shape[1:], (*array.shape[:-1], array.shape[-1] + 1), (array.size,)):
            arrays, wholes = guarded({key: np.empty(shape, array.dtype)})
            with pytest.raises(UsageError, match="has the shape"):
                on(name, functools.partial(run_into, feeds=feeds_of(name, 3), arrays=arrays))
            assert all((whole == 0xAB).all() for whole in wholes)


def test_a_closed_session(on: Call) -> None:
    on("linear", lambda session: session.close())
    with pytest.raises(RunFailed, match="closed"):
        on("linear", lambda session: session.run_into(feeds_of("linear", 3), {"y": np.empty((3, 4), np.float32)}))
