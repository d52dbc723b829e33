"""Which plugins there are, what they bring, and whether it works here.

Entry points are loaded in a loop of our own, because pluggy's drops a second distribution with an equal entry-point
name without a word and lets one plugin that fails to import end the discovery of all. Every failure is recorded with
its reason, shown by `paddock adapters`, and listed in the error of a config that cannot be resolved.
"""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pluggy
from pydantic import TypeAdapter

from paddock import builtin, spi
from paddock.admission import Allowed, Found, Plugin, said, tried
from paddock.cache import Store, current_sources
from paddock.child import call_in_child
from paddock.config import HardwareConfig
from paddock.contract import check_adapter, check_format, environment, parse_options, undeclared_precision
from paddock.devices import assumed_device, devices_from, pick_device
from paddock.errors import BuildFailed, ConfigError, NotAvailable, PaddockError, did_you_mean
from paddock.machine import host_facts, share_of_threads
from paddock.plan import Verdict
from paddock.spi import Adapter, Device, Devices, Event, Format, Probe, ResolvedConfig
from paddock.wellknown import not_installed, trusted, well_known

GROUP = "paddock"
CORE = "paddock"
_LOADED = Verdict.yes("loaded", "the contract in paddock.spi")


@dataclass(frozen=True)
class Registered:
    """An adapter class and the distribution that brings it."""

    adapter: type[Adapter]
    distribution: str
    version: str
    sources: str
    """A digest of the plugin's files, part of every key beside the version."""


@dataclass(frozen=True)
class Resolved:
    """The answer of `Registry.resolve`: an adapter that is available for a config, and who was passed over."""

    registered: Registered
    config: ResolvedConfig
    device: Device
    versions: Mapping[str, str]
    skipped: tuple[tuple[str, str], ...] = ()
    absent: NotAvailable | None = None
    """Why the device is not here, where it is one that is only assumed: nothing is ever built for it."""

    @property
    def assumed(self) -> str:
        """What is not here; "" where nothing is assumed."""
        return "" if self.absent is None else self.absent.problem

    @property
    def name(self) -> str:
        """`hardware/backend`."""
        return self.registered.adapter.name()

    def instance(self) -> Adapter:
        """The adapter for this config; it is given no device where that is only assumed."""
        return self.registered.adapter(self.config, None if self.assumed else self.device)


@dataclass
class Registry:
    """What was discovered. Make one with `Registry.discover()`."""

    store: Store
    plugins: list[Plugin] = field(default_factory=list)
    adapters: dict[str, list[Registered]] = field(default_factory=dict)
    formats: dict[str, Format] = field(default_factory=dict)
    observer_failures: list[str] = field(default_factory=list)
    unknown: tuple[str, ...] = ()
    """What `PADDOCK_ALLOW` names and is not installed here, a sentence for each."""
    _probes: dict[type[Adapter], Probe] = field(default_factory=dict)
    _manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(GROUP))

    @classmethod
    def discover(
        cls,
        store: Store | None = None,
        entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
        only: Iterable[str] | None = None,
        fresh: bool = False,
    ) -> Registry:
        """Loads the plugins installed here.

        Args:
            store: Where device probes are remembered; the user's cache by default.
            entry_points: Instead of those installed (for tests).
            only: The distributions that may load, `NAME` or `NAME@DIGEST`; `PADDOCK_ALLOW` (a comma list) by default,
                else all.
            fresh: Whether each plugin that is not imported yet is tried in a child, whatever is kept.

        Raises `UsageError` where an entry of `only` or `PADDOCK_ALLOW` is no name with or without a digest.
        """
        registry = cls(store if store is not None else Store())
        registry._manager.add_hookspecs(spi)
        own = Plugin(
            CORE, importlib.metadata.version(CORE), CORE, _LOADED, (), (), str(builtin.__file__), current_sources()
        )
        registry._register(builtin, own)
        allowed = Allowed.here() if only is None else Allowed.of(only)
        found = importlib.metadata.entry_points(group=GROUP) if entry_points is None else entry_points
        points = [(Found.of(point, registry.store), point) for point in found]
        points.sort(key=lambda each: (each[0].distribution, each[1].name))
        verdicts = {} if allowed is None else allowed.verdicts(points)
        registry.unknown = () if allowed is None else allowed.unknown(place for place, _ in points)
        asked = [place for place, _ in points if place not in verdicts or verdicts[place].usable]
        verdicts.update(tried(asked, registry.store, fresh))
        for place, point in points:
            registry._load(place, point, verdicts.get(place, _LOADED))
        return registry

    def names(self) -> list[str]:
        """Every adapter's `hardware/backend`, sorted."""
        return sorted(self.adapters)

    def canonical(self, name: str) -> str:
        """The name an alias stands for: `cpu/onednn` -> `cpu/mkldnn`; other names come back as they are.

        Raises `ConfigError` where several installed adapters claim the alias.
        """
        if name in self.adapters:
            return name  # A real name goes before anybody's alias for something else.
        hardware, _, backend = name.partition("/")
        meant = [
            known
            for known, entries in self.adapters.items()
            if any(entry.adapter.hardware == hardware and backend in entry.adapter.aliases for entry in entries)
        ]
        if len(meant) > 1:
            raise ConfigError(
                f"{name} is an alias of several adapters", candidates=sorted(meant), remedy="use one of these names"
            )
        if meant:
            return meant[0]
        for known, facts in well_known().items():
            if known.partition("/")[0] == hardware and backend in facts["aliases"]:
                return known
        return name

    def get(self, name: str) -> Registered:
        """The adapter of this name or alias; raises `NotAvailable` with the candidates, or what brings it."""
        name = self.canonical(name)
        entries = self.adapters.get(name, [])
        if len(entries) > 1:
            both = [f"{entry.distribution} {entry.version}" for entry in entries]
            raise ConfigError(
                f"{name} is brought by several distributions",
                candidates=both,
                remedy="uninstall one, or name the ones to load in PADDOCK_ALLOW",
            )
        if entries:
            return entries[0]
        raise not_installed(name, self.names(), self.plugins, self.unknown)

    def probe(self, registered: Registered) -> Probe:
        """The adapter's own `probe()`, asked once; one that raises is a verdict."""
        if registered.adapter not in self._probes:
            self._probes[registered.adapter] = self._probe(registered)
        return self._probes[registered.adapter]

    def _probe(self, registered: Registered) -> Probe:
        try:
            found = registered.adapter.probe()
        except (Exception, SystemExit) as error:
            return Probe(Verdict.no(f"its probe() raised {said(error)}"))
        if not isinstance(found, Probe) or not isinstance(found.verdict, Verdict):
            return Probe(Verdict.no("its probe() returned no Probe with a Verdict"))
        if not isinstance(found.versions, Mapping):
            return Probe(Verdict.no("its probe() returned versions that are no mapping"))
        return replace(found, versions={**found.versions, **environment(registered.adapter)})

    def devices(self, registered: Registered, probe: Probe, fresh: bool = False) -> Devices:
        """The adapter's `probe_device()`, asked in a child process and remembered by versions and host."""
        if not probe.verdict.usable:
            return Devices(probe.verdict)
        name = registered.adapter.name()
        brought_by = [registered.distribution, registered.version, registered.sources]
        key = [name, brought_by, dict(probe.versions), host_facts()]
        known = None if fresh else self.store.get("probes", key)
        if known is not None:
            return devices_from(known)
        try:
            found = call_in_child(f"probing {name}", _probe_device, registered.adapter, seconds=60)
        except PaddockError as error:
            # Not remembered: what crashed or hung once may be mended by the time of the next try.
            return Devices(
                Verdict.no(error.problem, "probing the device in a child process"), remedy=error.remedy or ""
            )
        self.store.put("probes", key, _devices().dump_python(found, mode="json"))
        return found

    def survey(self, fresh: bool = False) -> dict[str, tuple[Registered, Probe, Devices]]:
        """Every adapter with its probes; the children run side by side."""
        entries = [entry for name in self.names() for entry in self.adapters[name]]
        if fresh:
            self._probes.clear()
        probes = [self.probe(entry) for entry in entries]
        with ThreadPoolExecutor(max_workers=8) as pool:
            found = list(pool.map(self.devices, entries, probes, itertools.repeat(fresh)))
        answers = zip(entries, probes, found, strict=True)
        return {f"{e.adapter.name()} ({e.distribution})": (e, probe, devices) for e, probe, devices in answers}

    def resolve(self, config: HardwareConfig, assume: bool = False) -> Resolved:
        """The adapter that serves `config`: its own, else the first of its `candidates` that is available.

        With `assume` it is its own, whether its device is here or not: see `consider`.

        Raises the adapter's own error where it is the only one considered, else `NotAvailable` listing each.
        """
        self.check_names(config)
        passed: list[tuple[str, PaddockError]] = []
        for name in (config.adapter, *(() if assume else config.candidates)):
            try:
                resolved = self.consider(name, config, assume)
            except PaddockError as error:
                if name == config.adapter and isinstance(error, ConfigError):
                    raise  # a misspelt option is no reason to take another adapter
                passed.append((name, error))
                continue
            skipped = tuple((name, error.problem) for name, error in passed)
            return replace(resolved, skipped=skipped)
        if len(passed) == 1:
            raise passed[0][1]
        raise NotAvailable(
            "none of the adapters that the config names is available",
            candidates=[f"{name}: {error.problem}" for name, error in passed],
            remedy="`paddock doctor` says what each one needs",
        )

    def check_names(self, config: HardwareConfig) -> None:
        """Raises `ConfigError` for an adapter beside the first that no plugin, installed or well known, has."""
        known = list(dict.fromkeys((*self.adapters, *well_known())))
        for key, names in (("candidates", config.candidates), ("fallback", config.fallback)):
            for position, name in enumerate(names):
                if self.canonical(name) not in known:
                    where, near = f"$.{key}[{position}]", did_you_mean(name, known)
                    raise ConfigError("no such adapter", where=where, candidates=known, remedy=near)

    def consider(self, name: str, config: HardwareConfig, assume: bool = False) -> Resolved:
        """One adapter for a config, or the error that says why not; what no host would take, before what is not here.

        With `assume`, an SDK, device or precision of a device that is not here is taken as the adapter declares it: for
        a plan that is only looked at.
        """
        registered = self.get(name)
        adapter, probe, absent = registered.adapter, self.probe(registered), None
        try:
            device = self._device(name, registered, probe, config)
        except NotAvailable as error:
            absent = error
        against = [error for error in (undeclared_precision(name, adapter, config), absent) if error is not None]
        try:
            options = parse_options(name, adapter, config)
        except ConfigError as error:
            raise error.beside(*against) from None
        if against and against[0] is not absent:
            raise against[0].beside(*against)
        if absent is not None:
            if not assume:
                raise absent
            device = assumed_device(adapter, config)
        resolved = ResolvedConfig(config, options, share_of_threads(config))
        versions = {registered.distribution: f"{registered.version}+{registered.sources}", **probe.versions}
        if absent is not None:
            versions[f"{name}'s device"] = "assumed"  # in every key: what is kept of it is nobody else's
        return Resolved(registered, resolved, device, versions, absent=absent)

    def _device(self, name: str, registered: Registered, probe: Probe, config: HardwareConfig) -> Device:
        if not probe.verdict.usable:
            raise NotAvailable(f"{name}: {probe.verdict.reason}", remedy=probe.remedy or None)
        undeclared = undeclared_precision(name, registered.adapter, config)
        if undeclared is not None:
            raise undeclared  # before a process is started to ask for devices
        devices = self.devices(registered, probe)
        if not devices.verdict.usable:
            raise NotAvailable(f"{name}: {devices.verdict.reason}", remedy=devices.remedy or probe.remedy or None)
        return pick_device(name, devices, config)

    def references(self, format: str) -> list[Registered]:
        """The adapters that declare themselves a reference for this format, best first, installed ones only.

        Where one of them is here that Paddock knows, nobody else's is asked: no vendor judges itself, or others.
        """
        declared = [e[0] for e in self.adapters.values() if len(e) == 1 and format in e[0].adapter.references]
        ranked = sorted(declared, key=lambda entry: (entry.adapter.references[format].rank, entry.adapter.name()))
        here = [entry for entry in ranked if self.probe(entry).verdict.usable]
        return [e for e in here if trusted(e.adapter.name(), e.distribution, format)] or here

    def observe(self, event: Event) -> None:
        """Tells every observer; one that raises is recorded in `observer_failures` and disturbs nothing."""
        for implementation in self._manager.hook.paddock_observe.get_hookimpls():
            try:
                implementation.function(*(event for _ in implementation.argnames))  # none, where it takes none
            except (Exception, SystemExit) as error:
                self.observer_failures.append(f"{implementation.plugin_name}: {said(error)}")

    def _load(self, place: Found, point: importlib.metadata.EntryPoint, verdict: Verdict) -> None:
        found = Plugin(
            place.distribution, place.version, point.name, verdict, (), (), str(place.path or ""), place.digest
        )
        if not verdict.usable:
            self.plugins.append(found)
            return
        try:
            module = point.load()
        except (Exception, SystemExit) as error:
            self.plugins.append(replace(found, verdict=Verdict.no(f"failed to import: {said(error)}", point.value)))
            return
        self._register(module, found)

    def _register(self, module: Any, plugin: Plugin) -> None:
        name = f"{plugin.distribution}:{plugin.entry_point}"
        taken = self._manager.has_plugin(name)
        try:
            self._manager.register(module, name=name)
            # Hooks are called for this plugin alone, so that one that raises spoils nobody else's answer.
            others = [plugin for plugin in self._manager.get_plugins() if plugin is not module]
            classes = _flat(self._manager.subset_hook_caller("paddock_adapters", others)())
            formats = _flat(self._manager.subset_hook_caller("paddock_formats", others)())
            for adapter in classes:
                check_adapter(adapter)
            for format in formats:
                check_format(format, self._owner_of(format))
            # Whoever is rejected is unregistered, so what is pending is this plugin's: a hook with a misspelt name.
            self._manager.check_pending()
            if not classes and not formats and not self._observes(module):
                raise TypeError("it registers nothing: no adapters, no formats, no observer")
        except (Exception, SystemExit) as error:
            # By name, and only its own: the same module or name may stand registered before, and that one stays.
            if not taken and self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            verdict = Verdict.no(f"rejected: {said(error)}", "the contract in paddock.spi")
            self.plugins.append(replace(plugin, verdict=verdict))
            return
        for adapter in classes:
            registered = Registered(adapter, plugin.distribution, plugin.version, plugin.sources)
            self.adapters.setdefault(adapter.name(), []).append(registered)
        for format in formats:
            self.formats[format.name] = format
        names = tuple(adapter.name() for adapter in classes)
        brings = tuple(format.name for format in formats)
        self.plugins.append(replace(plugin, verdict=_LOADED, adapters=names, formats=brings))

    def _observes(self, module: Any) -> bool:
        return any(hook.name == "paddock_observe" for hook in self._manager.get_hookcallers(module) or ())

    def _owner_of(self, format: Any) -> str | None:
        """The distribution that brought a format of this name before."""
        name = getattr(format, "name", None)
        return next((plugin.distribution for plugin in self.plugins if name in plugin.formats), None)


@cache
def _devices() -> TypeAdapter[Devices]:
    return TypeAdapter(Devices)


def _probe_device(adapter: type[Adapter]) -> Devices:
    found = adapter.probe_device()
    try:
        # As it will come back from the store: what is no JSON data, or not of the declared types, ends here.
        return _devices().validate_python(_devices().dump_python(found, mode="json", warnings=False))
    except (TypeError, ValueError) as error:
        raise BuildFailed(f"probe_device() returned no Devices: {said(error)}") from error


def _flat(answers: Any) -> list[Any]:
    return [item for answer in answers for item in answer]
