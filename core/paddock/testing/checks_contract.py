"""The contract: declarations, purity, what crosses processes, and that nothing is imported before it is needed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import pickle
import shutil
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from paddock.artifacts import normal
from paddock.child import Child
from paddock.compile import local_plan
from paddock.contract import check_adapter
from paddock.errors import PaddockError
from paddock.model import fingerprint
from paddock.plan import Answer, Verdict
from paddock.registry import Resolved
from paddock.spi import Adapter, Context, Devices, Observed, Probe, Session
from paddock.testing.bench import Bench, Serving
from paddock.testing.judging import apart
from paddock.testing.outcomes import Area
from paddock.testing.table import Broken, Evidence, Skipped, Table
from paddock.testing.watching import caught, read, state

TABLE = Table(Area.CONTRACT)
_CHEAP = 1.0
"""Seconds that the fastest of three calls of `probe` may take: reading metadata takes a hundredth of that."""
_OWN = ("numpy", "onnx", "pydantic", "pluggy", "psutil", "rich", "typer", "packaging", "platformdirs", "filelock")
"""What Paddock itself needs: its presence says nothing about the adapter."""


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
        found, said, changed = child.call(_import_here, modules, packages_of(bench.probe))
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
    for bare in (False, True):
        where = " with an empty environment" if bare else ""
        with Child("probing") as child:
            try:
                seconds, found, said, changed = child.call(_probe_here, bench.adapter, bare)
            except PaddockError as error:
                raise Broken(f"probe(){where}: {error.problem}") from error
        if found:
            raise Broken(f"probe() imports {', '.join(found)}")
        if said:
            raise Broken(f"probe() prints {said[:80]!r}")
        if changed:
            raise Broken(f"after probe(){where} {'; '.join(changed)}")
        if seconds > _CHEAP:
            raise Broken(f"probe() takes {seconds:.1f} s each time, at most {_CHEAP:g} s are cheap")
    return Evidence(f"{seconds * 1000:.0f} ms; {bench.probe.verdict.answer}")


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


def packages_of(probe: Probe) -> frozenset[str]:
    """The packages of the distributions that a probe names the versions of: the SDK."""
    named = {name.lower().replace("_", "-") for name in probe.versions}
    if not named:
        return frozenset()
    packages = importlib.metadata.packages_distributions()
    return frozenset(
        package
        for package, distributions in packages.items()
        if package not in _OWN and any(d.lower().replace("_", "-") in named for d in distributions)
    )


def _import_here(modules: Sequence[str], packages: Collection[str]) -> tuple[list[str], str, list[str]]:
    ours = _ours(modules)
    before, there = state(), set(sys.modules)
    with caught(1) as out, caught(2) as err:
        for module in modules:
            importlib.import_module(module)
        said = read(out) + read(err)
    new = {name.partition(".")[0] for name in set(sys.modules) - there}
    foreign = {name for name in new if not ours(name)} | (set(packages) & set(sys.modules))
    return sorted(foreign), said, list(before.changes(state()))


def _ours(modules: Sequence[str]) -> Callable[[str], bool]:
    """Whether a top-level package is Python's, Paddock's (with what that needs), a plugin's, or lies beside one."""
    providers = importlib.metadata.packages_distributions()
    plugins = {p.dist.name for p in importlib.metadata.entry_points(group="paddock") if p.dist is not None}
    known = _needed("paddock") | {_plain(name) for name in plugins}
    tops = {module.partition(".")[0] for module in modules}
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}

    def ours(name: str) -> bool:
        if name in tops or name in sys.stdlib_module_names or name in sys.builtin_module_names:
            return True
        if name in providers:
            return any(_plain(each) in known for each in providers[name])
        place = _place(name)
        beside = {folder for top in tops if (folder := _place(top)) is not None} - installed
        return place is None or place in beside or name.startswith(("paddock", "__editable__", "_"))

    return ours


def _place(name: str) -> Path | None:
    """The folder in which a module that is imported lies."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return None
    path = Path(file).resolve()
    return path.parent.parent if path.name == "__init__.py" else path.parent


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _needed(distribution: str) -> set[str]:
    """It and the distributions that it needs, with those that they need."""
    found: set[str] = set()
    waiting = [distribution]
    while waiting:
        name = _plain(waiting.pop())
        if name in found:
            continue
        found.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for text in importlib.metadata.requires(name) or ():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    waiting.append(requirement.name)
    return found


def _probe_here(adapter: type[Adapter], bare: bool) -> tuple[float, list[str], str, list[str]]:
    if bare:
        os.environ.clear()
    importlib.metadata.packages_distributions()  # what it takes is none of the adapter's time
    modules, before = set(sys.modules), state()
    with caught(1) as out, caught(2) as err:
        first: object
        times, first = [], None
        for number in range(3):
            begun, spent = time.perf_counter(), os.times()
            found: object = adapter.probe()
            now = os.times()
            children = now.children_user + now.children_system - spent.children_user - spent.children_system
            times.append(max(time.perf_counter() - begun, children))
            if not isinstance(found, Probe) or not isinstance(found.verdict, Verdict):
                raise Broken(f"returned a {type(found).__name__}, not a Probe with a Verdict")
            if number and found != first:
                raise Broken("answers otherwise when it is asked again")
            first = found
        said = read(out) + read(err)
    assert isinstance(first, Probe)
    if not first.verdict.usable and not first.verdict.reason:
        raise Broken("says no without a reason")
    changed = [f"{what} {how}" for what, how in before.changes(state()).items()]
    new = {name.partition(".")[0] for name in set(sys.modules) - modules}
    return min(times), sorted(new & (packages_of(first) | {"onnx"})), said, changed


def _run_elsewhere(segment: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    session: Session = segment.load(lambda message: None)
    try:
        return dict(session.run(feeds))
    finally:
        session.close()
