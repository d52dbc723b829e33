"""Memory of the core's own: what a session writes into it and binds to it, and a whole deployment, which uses both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from paddock.deployment import Deployment, deploy
from paddock.errors import NotAvailable, OtherShape, PaddockError
from paddock.host import first_line
from paddock.into import unlike
from paddock.plan import Precision
from paddock.spi import Session
from paddock.testing.bench import Bench, Outputs, Serving
from paddock.testing.judging import BUDGET, apart
from paddock.testing.outcomes import Area
from paddock.testing.table import Broken, Evidence, Refused, Skipped, Table

TABLE = Table(Area.CONTRACT)
_EDGE = 16
"""Elements before and behind an array that is to be written: they have to stay as they are."""
_LARGE = 246 << 10
"""Bytes of the large model's inputs, in fp32: sessions may copy what is small and write the rest in place."""
_FIXED = {"batch": 3, "other": 5}
"""What is bound has one shape."""

Array = np.ndarray[Any, Any]


class _Place:
    """An array to write into, with other numbers than those expected in it and known ones around it."""

    def __init__(self, like: Array) -> None:
        self._whole = np.zeros(like.size + 2 * _EDGE, like.dtype)
        self.array = self._whole[_EDGE : _EDGE + like.size].reshape(like.shape)
        self.array[...] = unlike(like)

    @property
    def spilt(self) -> bool:
        """Whether something was written around it."""
        return bool(self._whole[:_EDGE].any() or self._whole[-_EDGE:].any())


@contextmanager
def _raising(what: str) -> Iterator[None]:
    try:
        yield
    except PaddockError:
        raise
    except Exception as error:
        raise Broken(f"{what} raises {first_line(error)}") from error


def _models(bench: Bench) -> Iterator[Serving]:
    """The plainest model, one with two outputs, and one whose arrays are large; those that it serves."""
    paths: list[tuple[Path, dict[str, int]]] = [(bench.plain, {})]
    if bench.precision is not Precision.INT8:  # to calibrate by so much takes its time
        paths.append((bench.moving, {"batch": _many(bench, bench.moving)}))
    paths += [(bench.model("two_by_two"), {})] if "two_by_two" in bench.names else []
    for path, extents in paths:
        with suppress(Refused), bench.serving(path, extents) as serving:
            yield serving


def _many(bench: Bench, path: Path) -> int:
    """Rows that make the inputs large: of images a few do, where a model of nothing else is served."""
    shapes = [value.shape or () for value in bench.read(path).graph.input_values]
    row = sum(int(np.prod([extent for extent in shape if isinstance(extent, int)], dtype=int)) for shape in shapes)
    return -(-_LARGE // (4 * row))


@TABLE.check("run_into", "run_into() writes all of the outputs that it is given arrays for, and nothing else")
def _run_into(bench: Bench) -> Evidence:
    own = False
    for serving in _models(bench):
        session = serving.load()
        own |= type(session).run_into is not Session.run_into
        kept: list[tuple[Outputs, dict[str, _Place]]] = []
        for seed in (0, 1):
            sample = serving.sample(seed)
            (wanted,) = serving.expected(sample)
            found = _answered(serving, session, sample)
            for names in dict.fromkeys((serving.outputs, *((name,) for name in serving.outputs))):
                places = {name: _Place(found[name]) for name in names}
                _written(serving, session, sample, places)
                _same(serving, wanted, found, {n: p.array for n, p in places.items()}, "run_into()")
                kept.append((found, places))
        for found, places in kept:
            _same(serving, None, found, {n: p.array for n, p in places.items()}, "a later run changes what run_into()")
        _other_shape(serving, session)
    return Evidence("in a way of its own" if own else "copies")


def _answered(serving: Serving, session: Session, sample: Any) -> Outputs:
    with _raising("run()"):
        return dict(session.run(serving.feeds(sample)))


def _written(serving: Serving, session: Session, sample: Any, places: Mapping[str, _Place]) -> None:
    feeds = serving.feeds(sample)
    before = {name: array.tobytes() for name, array in feeds.items()}
    with _raising("run_into()"):
        session.run_into(feeds, {name: place.array for name, place in places.items()})
    if any(array.tobytes() != before[name] for name, array in feeds.items()):
        raise Broken("run_into() writes into the arrays that it is fed")
    if spilt := [name for name, place in places.items() if place.spilt]:
        raise Broken(f"run_into() writes beyond the array of {spilt[0]!r}")


def _same(serving: Serving, wanted: Outputs | None, found: Outputs, written: Outputs, who: str) -> None:
    """What was written is what run() gives, and what the reference expects."""
    given = {name: found[name] for name in written}
    if (why := apart(given, dict(written), serving.precision)) is not None:
        raise Broken(f"{who} wrote other numbers than run() gives: {why}")
    if wanted is not None:
        there = {there: here for here, there in serving.prepared.translation.outputs}
        right = {there[name]: array.astype(wanted[there[name]].dtype) for name, array in written.items()}
        if (why := apart({name: wanted[name] for name in right}, right, serving.precision)) is not None:
            raise Broken(f"{who} wrote wrong numbers: {why}")


def _other_shape(serving: Serving, session: Session) -> None:
    """An array of another shape is told of by the one error that is for that."""
    sample = serving.sample(2)
    found = _answered(serving, session, sample)
    name = serving.outputs[0]
    if not found[name].ndim:
        return
    place = _Place(np.concatenate([found[name], found[name][:1]]))
    try:
        session.run_into(serving.feeds(sample), {name: place.array})
    except OtherShape:
        return
    except Exception as error:
        raise Broken(
            f"run_into() with an array of another shape raises {first_line(error)}, not other_shape"
        ) from error
    raise Broken("run_into() takes an array of another shape than the output has, and says nothing")


@TABLE.check("bind", "what bind() says it bound is read from, and written to, these very arrays in each run")
def _bind(bench: Bench) -> Evidence:
    told = set()
    for path in dict.fromkeys((bench.plain, bench.moving)):
        with suppress(Refused), bench.serving(path, {} if bench.static else _FIXED) as serving:
            for only in ((*serving.inputs, *serving.outputs), serving.inputs, serving.outputs):
                told |= _bound(serving, only)
    if not told:
        raise Skipped("its sessions bind nothing")
    return Evidence(f"binds {', '.join(sorted(told))}")


def _bound(serving: Serving, offered: tuple[str, ...]) -> set[str]:
    """One session with these offered, run three times with other numbers; gives what kinds of them it bound."""
    plain, session = serving.load(), serving.load()
    first = serving.sample(0)
    fed, given = serving.feeds(first), _answered(serving, plain, first)
    places = {name: _Place(array) for name, array in {**fed, **given}.items() if name in offered}
    with _raising("bind()"):
        taken: object = session.bind({name: place.array for name, place in places.items()})
    if not isinstance(taken, (set, frozenset)) or not taken <= places.keys():
        raise Broken(f"bind() returned {ascii(taken)[:80]}, not a set of the names that it was given")
    for seed in (0, 1, 2):
        sample = serving.sample(seed)
        feeds, wanted = serving.feeds(sample), _answered(serving, plain, sample)
        for name, place in places.items():
            place.array[...] = feeds[name] if name in feeds else unlike(wanted[name])
        with _raising(f"run() with {len(taken)} arrays bound"):
            found = dict(session.run({name: array for name, array in feeds.items() if name not in taken}))
        if set(found) != set(wanted) - taken:
            raise Broken(
                f"with {', '.join(sorted(taken)) or 'nothing'} bound run() gives {', '.join(found) or 'nothing'}"
            )
        found |= {name: place.array for name, place in places.items() if name in taken and name in wanted}
        if (why := apart(wanted, found, serving.precision)) is not None:
            raise Broken(f"with {', '.join(sorted(taken))} bound, run {seed + 1} is wrong: {why}")
        if any(place.spilt for place in places.values()):
            raise Broken("a run writes beyond the arrays that are bound")
    for done in (plain, session):
        serving.close(done)
    return {"inputs" if name in fed else "outputs" for name in taken}


@TABLE.check("deploys", "deployed as a customer would, it is verified and answers right, also into arrays", seconds=240)
def _deploys(bench: Bench) -> Evidence:
    with bench.serving(bench.plain) as serving:
        samples = [serving.sample(seed) for seed in (0, 1)]
        wanted = serving.expected(*samples)
        config = serving.prepared.config
        if config.default_max_error < BUDGET[serving.precision]:  # no check is stricter than the others are
            accuracy = config.accuracy.model_copy(update={"max_error": BUDGET[serving.precision]})
            config = config.model_copy(update={"accuracy": accuracy})
        try:
            deployed = deploy(serving.path, config, registry=bench.registry, children=bench.children)
        except NotAvailable as error:
            raise Refused(error.problem) from error
        except PaddockError as error:
            more = f" ({error.candidates[0]})" if error.candidates else ""
            raise Broken(f"paddock.deploy: {type(error).__name__}: {error.problem}{more}") from error
        with deployed:
            for sample, should in zip(samples, wanted, strict=True):
                _right(serving, deployed, sample, should)
            return Evidence(f"verification {deployed.report.outcome}, against {deployed.report.reference or 'nobody'}")


def _right(serving: Serving, deployed: Deployment, sample: Any, wanted: Outputs) -> None:
    """Both ways of asking, under the user's own names; in fp16 the border is narrow where the config says so."""
    kinds = {value.name: value.dtype or "" for value in deployed.interface.input_values}
    feeds = {name: array.astype(kinds[name]) for name, array in sample.items()}
    found = deployed.run(feeds)
    into = {name: unlike(array) for name, array in found.items()}
    for way, answer in (("run", found), ("run with into", deployed.run(feeds, into=into))):
        same = {name: array.astype(wanted[name].dtype) for name, array in answer.items()}
        if (why := apart(wanted, same, serving.precision)) is not None:
            raise Broken(f"paddock.deploy: {way}: {why}")
