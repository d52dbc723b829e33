"""Honesty: what is declared or claimed has an effect, and what is claimed of one model holds for the next."""

from __future__ import annotations

import enum
import hashlib
import pickle
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from paddock.child import Child, Children
from paddock.errors import BuildFailed, ConfigError, NotAvailable, PaddockError, StrictnessError
from paddock.spi import Adapter, Process
from paddock.testing.bench import Bench, Serving
from paddock.testing.judging import apart
from paddock.testing.outcomes import Area
from paddock.testing.table import Broken, Evidence, Refused, Skipped, Table
from paddock.workshop import UNSAID

TABLE = Table(Area.HONESTY)


@TABLE.check("options", "each option declared takes effect, or is refused with a reason")
def _options(bench: Bench) -> Evidence:
    fields = bench.adapter.Options.model_fields
    if not fields:
        raise Skipped("the adapter has no options")
    plain, told = _found(bench, {}), []
    unproven: list[str] = []
    for name in fields:
        values = _others(bench, name)
        if not values:
            unproven.append(f"{name}: no other value could be found for it")
            continue
        for value in values:
            options = bench.adapter.Options.model_validate({name: value})
            if pickle.loads(pickle.dumps(options)).model_dump() != options.model_dump():
                raise Broken(f"options.{name} = {value!r} is lost on the way to another process, or another there")
        answers = [_tried(bench, name, value, plain) for value in values]
        if "no trace" in answers:
            value = values[answers.index("no trace")]
            raise Broken(
                f"options.{name} = {value!r} changes neither the artifact nor what observed() tells: it has no "
                "effect, or nobody can see that it has"
            )
        told.append(f"{name}: {', '.join(dict.fromkeys(answers))}")
        if "observed" not in answers and "in the artifact" in answers:
            unproven.append(f"{name}: it reaches the artifact, and observed() does not say that it took effect")
        elif "echoed" in answers:
            unproven.append(
                f"{name}: observed() repeats it, and nothing else tells: the artifact's files and the answers are the "
                "same in every bit"
            )
    return Evidence("; ".join(told), tuple(unproven))


def _tried(bench: Bench, name: str, value: Any, plain: _Traces) -> str:
    """How one other value shows."""
    try:
        found = _found(bench, {name: value})
    except (Refused, ConfigError, NotAvailable, StrictnessError, BuildFailed):
        return "refused"
    key = f"options.{name}"
    if key in found.settings and found.settings[key] != value:
        raise Broken(f"{key} = {value!r} was asked for and took effect as {found.settings[key]!r}")
    beside = [{k: v for k, v in traces.settings.items() if k != key} for traces in (found, plain)]
    # Facts are no proof: they are where an adapter puts what the config says, for `load` to have it.
    made = (found.files, found.answer) != (plain.files, plain.answer)
    if beside[0] != beside[1] or (key in found.settings and made):
        return "observed"
    if key in found.settings and found.settings != plain.settings:
        return "echoed"  # any adapter can repeat what the config says
    return "in the artifact" if (found.facts, found.files) != (plain.facts, plain.files) else "no trace"


class _Traces(typing.NamedTuple):
    settings: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, str]
    answer: str


def _found(bench: Bench, options: dict[str, Any]) -> _Traces:
    """`_traces`, in a process of its own where options stick to a process."""
    if bench.adapter.process is Process.SHARED:
        return _traces(bench, options)
    with Child("an option") as child:
        return child.call(_traces_there, bench.adapter, bench.folder, bench.quick, options)


def _traces_there(adapter: type[Adapter], folder: Path, quick: bool, options: dict[str, Any]) -> _Traces:
    with Children() as children:
        return _traces(Bench(adapter, folder, children, quick), options)


def _traces(bench: Bench, options: dict[str, Any]) -> _Traces:
    """Where an option may show; raises `Broken` where it makes answers wrong."""
    with bench.serving(bench.plain, options=options) as serving:
        session, sample = serving.load(), serving.sample()
        (wanted,) = serving.expected(sample)
        found = serving.answer(session, sample)
        if (why := apart(wanted, found, serving.precision)) is not None:
            raise Broken(f"with options {options}: {why}")
        artifact = serving.segment.artifact
        files = {role: hashlib.sha256(path.read_bytes()).hexdigest() for role, path in artifact.files.items()}
        bits = hashlib.sha256(b"".join(found[name].tobytes() for name in sorted(found))).hexdigest()
        return _Traces(dict(session.observed().settings), dict(artifact.facts), files, bits)


def _others(bench: Bench, name: str) -> list[Any]:
    """Values of an option beside its default: those that tuning may turn it to, else such as its type has."""
    knobs = {**bench.adapter.tunables, **bench.adapter.savers}.get(f"options.{name}")
    field = bench.adapter.Options.model_fields[name]
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    candidates = list(knobs) if knobs is not None else _of_type(field.annotation, default)
    found = []
    for value in candidates:
        if value == default:
            continue
        try:
            bench.adapter.Options.model_validate({name: value})
        except ValueError:
            continue
        found.append(value)
    return found[:2]


def _of_type(annotation: Any, default: Any) -> list[Any]:
    if annotation is bool:
        return [not default]
    if annotation is int:
        return [(default or 0) + 1, max(1, (default or 2) // 2)]
    if annotation is float:
        return [(default or 0.0) * 2 + 0.5, (default or 1.0) / 2]
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return list(typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return [value for part in typing.get_args(annotation) for value in _of_type(part, default)]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [member.value for member in annotation]
    return []


@TABLE.check("unknown_option", "an option that is not declared is refused")
def _unknown_option(bench: Bench) -> Evidence:
    options: type[BaseModel] = bench.adapter.Options
    try:
        with bench.serving(bench.plain, options={"frobnicate": 1}):
            pass
    except (ConfigError, Refused) as error:
        return Evidence(error.problem)
    raise Broken(f'{options.__name__} takes any option: give it model_config = ConfigDict(extra="forbid", frozen=True)')


@TABLE.check("threads", "the number of threads asked for is the one that takes effect, or is refused")
def _threads(bench: Bench) -> Evidence:
    try:
        with bench.serving(bench.plain, threads=1) as serving:
            session, sample = serving.load(), serving.sample()
            (wanted,) = serving.expected(sample)
            if (why := apart(wanted, serving.answer(session, sample), serving.precision)) is not None:
                raise Broken(f"on one thread: {why}")
            told = session.observed().settings.get("threads")
    except (ConfigError, Refused) as error:
        return Evidence(f"refused: {error.problem}")
    if told is not None and told != 1:
        raise Broken(f"1 thread was asked for, and observed() says {told}")
    return Evidence("" if told else "it serves", () if told else ("threads: observed() does not tell",))


@TABLE.check("claims", "what select_operators() says yes to, compile() takes: in every model of the kit")
def _claims(bench: Bench) -> Evidence:
    served, refused = [], []
    for name in bench.names:
        try:
            with bench.serving(bench.model(name)) as serving:
                _loaded(serving, name)
                served.append(name)
        except Refused as error:
            if UNSAID in error.problem:
                raise Broken(f"select_operators() says no without a reason: {name}: {error.problem}") from error
            refused.append(f"{name}: {error.problem}")
    if not served:
        raise Skipped(f"it serves none: {'; '.join(refused)[:400]}")
    return Evidence(f"serves {', '.join(served)}" + (f"; refuses {', '.join(refused)[:300]}" if refused else ""))


def _loaded(serving: Serving, name: str) -> None:
    """Raises `Broken` where what was claimed does not load."""
    try:
        serving.load()
    except PaddockError as error:
        raise Broken(f"{name} is claimed and compiled, and does not load: {error.problem}") from error
