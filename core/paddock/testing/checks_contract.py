"""The contract: declarations, purity, what crosses processes, and that nothing is imported before it is needed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddock.artifacts import normal
from paddock.child import Child
from paddock.compile import local_plan
from paddock.contract import check_adapter
from paddock.errors import PaddockError
from paddock.model import fingerprint
from paddock.plan import Answer, Verdict
from paddock.registry import Resolved
from paddock.spi import Context, Devices, Observed, Session
from paddock.testing.bench import Bench, Serving
from paddock.testing.importing import import_here, packages_of, probe_here
from paddock.testing.judging import apart
from paddock.testing.outcomes import Area
from paddock.testing.table import Broken, Evidence, Skipped, Table

TABLE = Table(Area.CONTRACT)
_CHEAP = 1.0
"""Seconds that the first call of `probe` in a process may take: reading metadata takes a hundredth of that."""


@TABLE.check("declared", "the class declares what spi.py asks for")
def _declared(bench: Bench) -> None:
    try:
        check_adapter(bench.adapter)
    except TypeError as error:
        raise Broken(str(error)) from error


@TABLE.check(
    "imports_no_sdk", "importing the plugin imports no SDK, prints nothing and leaves the environment as it was"
)
def _imports_no_sdk(bench: Bench) -> Evidence:
    module, distribution = bench.adapter.__module__, bench.registered.distribution
    points = importlib.metadata.entry_points(group="paddock")
    modules = [*(p.module for p in points if p.dist is not None and p.dist.name == distribution), module]
    with Child("importing the plugin") as child:
        found, said, changed = child.call(import_here, modules, distribution, bench.probe)
    if found:
        raise Broken(
            f"importing {' and '.join(dict.fromkeys(modules))} imports {', '.join(found)}, "
            "which is neither the plugin's own nor Paddock's: import it where it is needed"
        )
    if said:
        raise Broken(f"importing {module} prints {said[:80]!r}")
    if changed:
        raise Broken(f"importing {module} changes the environment: {', '.join(changed)}")
    packages = sorted(packages_of(bench.probe))
    return Evidence(f"none of {', '.join(packages)}" if packages else "nothing but the plugin's own and Paddock's")


@TABLE.check("probe", "probe() never raises, imports no SDK, answers again, changes nothing and takes next to no time")
def _probe(bench: Bench) -> Evidence:
    fastest = float("inf")
    for bare in (False, True):
        where = " with an empty environment" if bare else ""
        with Child("probing") as child:
            try:
                seconds, found, libraries, said, changed = child.call(probe_here, bench.adapter, bare)
            except PaddockError as error:
                raise Broken(f"probe(){where}: {error.problem}") from error
        if found:
            raise Broken(f"probe() imports {', '.join(found)}")
        if libraries:
            raise Broken(f"probe() loads {', '.join(libraries)}: it answers from metadata, probe_device() may load")
        if said:
            raise Broken(f"probe() prints {said[:80]!r}")
        if changed:
            raise Broken(f"after probe(){where} {'; '.join(changed)}")
        fastest = min(fastest, seconds)
    if fastest > _CHEAP:  # a process that was kept waiting is not held against anybody: two are asked
        raise Broken(f"probe() takes {fastest:.1f} s the first time, at most {_CHEAP:g} s are cheap")
    return Evidence(f"{fastest * 1000:.0f} ms; {bench.probe.verdict.answer}")


@TABLE.check("device", "probe_device() gives devices with a verdict for each declared precision")
def _device(bench: Bench) -> Evidence:
    if not bench.probe.verdict.usable:
        raise Skipped(f"its SDK is not here: {bench.probe.verdict.reason}")
    found: object = bench.adapter.probe_device()
    if not isinstance(found, Devices):
        raise Broken(f"probe_device() returned a {type(found).__name__}, not Devices")
    if pickle.loads(pickle.dumps(found)) != found:
        raise Broken("what probe_device() returned is another after it was pickled")
    for device in bench.devices.devices:
        silent = [p for p in sorted(bench.adapter.precisions) if p not in device.precisions]
        if silent:
            raise Broken(f"device {device.index} has no verdict for {', '.join(silent)}, which the adapter declares")
        unsaid = [p for p, v in device.precisions.items() if not v.usable and not v.reason]
        if unsaid:
            raise Broken(f"device {device.index} says no to {', '.join(unsaid)} without a reason")
        if device.memory is not None and device.memory <= 0:
            raise Broken(f"device {device.index} has {device.memory} bytes of memory")
    twice = [index for index, count in Counter(d.index for d in bench.devices.devices).items() if count > 1]
    if twice:
        raise Broken(f"several devices have the index {', '.join(map(str, twice))}")
    usable = [(d.name, [p for p, v in d.precisions.items() if v.usable]) for d in bench.devices.devices]
    return Evidence("; ".join(f"{name}: {', '.join(found) or 'no precision'}" for name, found in usable))


@TABLE.check("every_device", "each device that is listed answers right")
def _every_device(bench: Bench) -> Evidence:
    first, *others = bench.devices.devices
    if not others:
        raise Skipped(f"there is one device only: {first.name}")
    for device in others:
        with bench.serving(bench.plain, devices=[device.index]) as serving:
            sample = serving.sample()
            (wanted,) = serving.expected(sample)
            if (why := apart(wanted, serving.answer(serving.load(), sample), serving.precision)) is not None:
                raise Broken(f"on device {device.index} ({device.name}): {why}")
    return Evidence(f"all else is run on {first.name}; here on {', '.join(d.name for d in others)}")


@TABLE.check("pickles", "the class, its config and its device cross processes and come back the same")
def _pickles(bench: Bench) -> None:
    if pickle.loads(pickle.dumps(bench.adapter)) is not bench.adapter:
        raise Broken("the class is another after it was pickled")
    with bench.serving(bench.plain) as serving:
        resolved: Resolved = serving.segment.resolved
        again = pickle.loads(pickle.dumps(resolved))
        if (again.config, again.device) != (resolved.config, resolved.device):
            raise Broken("the resolved config or the device is another after it was pickled: do its options compare?")


@TABLE.check("selects_purely", "select_operators() answers for every node, the same again, and changes nothing")
def _selects_purely(bench: Bench) -> Evidence:
    with bench.serving(bench.plain) as serving:
        part = serving.prepared.parts[0]
        model, context = part.target, part.context
        before = pickle.dumps(model), fingerprint(model.format, model.files)
        answers = [serving.segment.resolved.instance().select_operators(model, context).verdicts for _ in range(2)]
        if (pickle.dumps(model), fingerprint(model.format, model.files)) != before:
            raise Broken("select_operators() changes the model")
        if len(answers[0]) != len(model.graph.nodes):
            raise Broken(f"select_operators() gave {len(answers[0])} verdicts for {len(model.graph.nodes)} nodes")
        if answers[0] != answers[1]:
            raise Broken("select_operators() gives other verdicts when it is asked again")
        if any(v.answer is Answer.NO and not v.reason for v in answers[0]):
            raise Broken("select_operators() says no without a reason")
        unsourced = sum(not v.source for v in answers[0])
        return Evidence(f"{len(answers[0])} verdicts", (f"{unsourced} verdicts name no source",) if unsourced else ())


@TABLE.check("compiles_to_data", "compile() leaves files and plain data, and only reads the model")
def _compiles_to_data(bench: Bench) -> Evidence:
    with bench.serving(bench.plain) as serving:
        part = serving.prepared.parts[0]
        model = part.target
        before = {role: path.read_bytes() for role, path in model.files.items()}
        work = bench.folder / "compiled"
        work.mkdir(exist_ok=True)
        made = serving.segment.resolved.instance().compile(
            model, local_plan(part, serving.prepared.plan), Context(work, part.context.cache)
        )
        if {role: path.read_bytes() for role, path in model.files.items()} != before:
            raise Broken("compile() writes into the model's own files")
        artifact = normal(made, bench.name)
        if artifact.facts != dict(made.facts):
            raise Broken("facts come back otherwise from JSON: tuples, or keys that are no strings")
        graph = model.graph
        if artifact.inputs != tuple(v.name for v in graph.input_values):
            raise Broken(f"the artifact's inputs are {list(artifact.inputs)}, not the model's, in order")
        if artifact.outputs != tuple(v.name for v in graph.output_values):
            raise Broken(f"the artifact's outputs are {list(artifact.outputs)}, not the model's, in order")
        own = {path.resolve() for path in model.files.values()} | {p.resolve() for p in model.origin.files.values()}
        astray = [p for p in artifact.files.values() if not p.is_relative_to(work) and p.resolve() not in own]
        if astray:
            raise Broken(f"the artifact names {astray[0].name}, which lies neither in the work folder nor in the model")
        verdict: object = serving.segment.resolved.instance().compatible(artifact)
        if not isinstance(verdict, Verdict) or not verdict.usable:
            raise Broken(f"compatible() does not accept what compile() just made: {verdict}")
        return Evidence(f"files: {', '.join(artifact.files) or 'none'}; facts: {', '.join(artifact.facts) or 'none'}")


@TABLE.check(
    "loads_elsewhere",
    "an artifact loads and answers right in another process, without the adapter's cache or the model",
)
def _loads_elsewhere(bench: Bench) -> None:
    with bench.serving(bench.plain) as serving, Child("loading elsewhere") as child:
        sample = serving.sample()
        model = serving.prepared.parts[0].target
        own = {path.resolve() for files in (model.files, model.origin.files) for path in files.values()}
        named = {path.resolve() for path in serving.segment.artifact.files.values()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(_without(serving.segment.cache))
            for path in own - named:
                stack.enter_context(_moved(path))
            found = child.call(_run_elsewhere, serving.segment, dict(serving.feeds(sample)))
        _right(serving, sample, found)


@contextlib.contextmanager
def _moved(path: Path) -> Iterator[None]:
    """A file of the model's is elsewhere, as the user's are one day: an artifact needs those only that it names."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextlib.contextmanager
def _without(cache: Path) -> Iterator[None]:
    """The adapter's own cache is empty, as it is where the artifact was sent: it may save time, and hold nothing."""
    aside = cache.with_name(f"{cache.name}.aside")
    there = cache.is_dir()
    if there:
        cache.rename(aside)
        cache.mkdir()
    try:
        yield
    finally:
        if there:
            shutil.rmtree(cache, ignore_errors=True)
            aside.rename(cache)


@TABLE.check("observed", "observed() tells what took effect as plain data, in the config's terms")
def _observed(bench: Bench) -> Evidence:
    with bench.serving(bench.plain) as serving:
        session = serving.load()
        serving.answer(session, serving.sample())
        found: object = session.observed()
        if not isinstance(found, Observed):
            raise Broken(f"observed() returned a {type(found).__name__}, not Observed")
        try:
            json.dumps(dict(found.settings))
        except (TypeError, ValueError) as error:
            raise Broken(f"observed() gives settings that are no JSON data: {error}") from error
        config = serving.prepared.config
        asked: dict[str, Any] = {
            "precision": config.precision.value,
            "threads": serving.segment.resolved.config.threads,
        }
        for name, value in asked.items():
            effective = found.settings.get(name)
            if effective is not None and effective != value:
                raise Broken(f"{name} {value!r} was asked for and took effect as {effective!r}")
        silent = [name for name in asked if found.settings.get(name) is None]
        more = ["how many nodes run"] if found.nodes is None else []
        unproven = [f"{name}: observed() does not tell" for name in (*silent, *more)]
        return Evidence(f"tells {', '.join(found.settings) or 'no settings'}", tuple(unproven))


def _right(serving: Serving, sample: Any, found: dict[str, Any]) -> None:
    names = {there: here for here, there in serving.prepared.translation.outputs}
    (wanted,) = serving.expected(sample)
    given = {names.get(n, n): a.astype(wanted[names[n]].dtype) if n in names else a for n, a in found.items()}
    if (why := apart(wanted, given, serving.precision)) is not None:
        raise Broken(why)


def _run_elsewhere(segment: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    session: Session = segment.load(lambda message: None)
    try:
        return dict(session.run(feeds))
    finally:
        session.close()
