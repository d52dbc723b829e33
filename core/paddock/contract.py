"""Whether what a plugin registers keeps the declarations of `paddock.spi`; what does not is listed with the reason."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel, ValidationError

from paddock.config import NAME_PATTERN, HardwareConfig
from paddock.errors import ConfigError, NotAvailable, did_you_mean
from paddock.jsontext import json_path
from paddock.plan import Precision
from paddock.spi import (
    SPI_VERSION,
    Adapter,
    Concurrency,
    Format,
    Process,
    ReferenceRole,
    Shapes,
)


def is_isolated(adapter: type[Adapter], config: HardwareConfig) -> bool:
    """Whether its sessions live in processes of their own: asked for, or because the adapter needs it."""
    return config.isolation == "process" or adapter.process is Process.EXCLUSIVE


def check_adapter(adapter: Any) -> None:
    """Raises TypeError where a class does not keep the contract's declarations."""
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise TypeError(f"{adapter!r} is no Adapter class")
    _check_version(adapter, adapter.__name__)
    missing = [n for n in ("hardware", "backend", "formats", "precisions") if not hasattr(adapter, n)]
    if missing:
        raise TypeError(f"{adapter.__name__} does not declare {', '.join(missing)}")
    abstract = sorted(getattr(adapter, "__abstractmethods__", ()))
    if abstract:
        raise TypeError(f"{adapter.__name__} does not write {', '.join(abstract)}")
    for several in ("formats", "aliases", "quantizes_with", "environment"):
        if not isinstance(getattr(adapter, several), tuple | list):
            raise TypeError(f"{adapter.__name__}: {several} is a tuple of strings (a comma may be missing)")
    names = (adapter.hardware, adapter.backend, *adapter.formats, *adapter.aliases)
    if not all(isinstance(n, str) and n for n in (*names, *adapter.quantizes_with, *adapter.environment)):
        kinds = "hardware, backend, formats, aliases, quantizes_with and environment"
        raise TypeError(f"{adapter.__name__}: {kinds} are non-empty strings")
    if not all(isinstance(p, Precision) for p in adapter.precisions):
        raise TypeError(f"{adapter.__name__}: precisions holds paddock.plan.Precision values")
    if not (isinstance(adapter.Options, type) and issubclass(adapter.Options, BaseModel)):
        raise TypeError(f"{adapter.__name__}: Options is a pydantic model class")
    if not all(re.fullmatch(NAME_PATTERN, n) for n in (adapter.hardware, adapter.backend, *adapter.aliases)):
        raise TypeError(f"{adapter.__name__}: hardware, backend and aliases are lower case, as a config names them")
    if not isinstance(adapter.shapes, Shapes) or not isinstance(adapter.process, Process):
        raise TypeError(f"{adapter.__name__}: shapes is a paddock.spi.Shapes, process a paddock.spi.Process")
    if not isinstance(adapter.concurrency, Concurrency):
        raise TypeError(f"{adapter.__name__}: concurrency is a paddock.spi.Concurrency")
    if not isinstance(adapter.contends, bool):
        raise TypeError(f"{adapter.__name__}: contends is True or False")
    _check_knobs(adapter)
    roles = adapter.references
    if not isinstance(roles, Mapping) or not all(isinstance(role, ReferenceRole) for role in roles.values()):
        raise TypeError(f"{adapter.__name__}: references holds a paddock.spi.ReferenceRole for each format")


def _check_knobs(adapter: type[Adapter]) -> None:
    for kind, knobs in (("tunables", adapter.tunables), ("savers", adapter.savers)):
        if not isinstance(knobs, Mapping) or not all(isinstance(values, tuple | list) for values in knobs.values()):
            raise TypeError(
                f"{adapter.__name__}: {kind} holds a tuple of values for each knob (a comma may be missing)"
            )
        for knob, values in knobs.items():
            part, _, name = knob.partition(".")
            if part != "options" or name not in adapter.Options.model_fields:
                known = sorted(adapter.Options.model_fields)
                raise TypeError(f"{adapter.__name__}: {kind} names {knob}, which is none of its options: {known}")
            try:
                json.dumps(values)
            except (TypeError, ValueError):
                raise TypeError(f"{adapter.__name__}: {kind} holds values of {knob} that are no JSON data") from None


def check_format(format: Any, owner: str | None) -> None:
    if not isinstance(format, Format):
        raise TypeError(f"{format!r} is no Format")
    kind = type(format).__name__
    _check_version(format, kind)
    name, suffixes = getattr(format, "name", None), getattr(format, "suffixes", None)
    if not isinstance(name, str) or not name:
        raise TypeError(f"{kind}: name is a non-empty string")
    if not isinstance(suffixes, tuple | list) or not all(isinstance(suffix, str) for suffix in suffixes):
        raise TypeError(f"{kind}: suffixes is a tuple of strings (a comma may be missing)")
    if owner is not None:
        raise TypeError(f"{kind}: the format {name} is already brought by {owner}")


def _check_version(thing: Any, name: str) -> None:
    version = getattr(thing, "spi_version", None)
    if not isinstance(version, int):
        raise TypeError(f"{name} does not declare spi_version (an int)")
    if version > SPI_VERSION:
        raise TypeError(
            f"{name} was written against version {version} of the contract, this Paddock has {SPI_VERSION}: "
            "upgrade paddock, or install an older release of the plugin"
        )


def environment(adapter: type[Adapter]) -> dict[str, str]:
    """The variables that are set and that its SDK reads, by its `environment` and those of its base classes."""
    patterns = {pattern for owner in adapter.__mro__ for pattern in vars(owner).get("environment", ())}
    return {n: os.environ[n] for n in sorted(os.environ) if any(fnmatchcase(n, pattern) for pattern in patterns)}


def unknown_options(adapter: type[Adapter], options: Mapping[str, Any]) -> tuple[str, ...]:
    """The names among these options that the adapter's schema does not have."""
    try:
        adapter.Options.model_validate_json(json.dumps(dict(options)))
    except ValidationError as error:
        found = [f["loc"] for f in error.errors(include_url=False) if f["type"] == "extra_forbidden"]
        return tuple(str(location[0]) for location in found if len(location) == 1)
    return ()


def undeclared_precision(name: str, adapter: type[Adapter], config: HardwareConfig) -> NotAvailable | None:
    """The error where the adapter declares no arithmetic in the config's precision, on any device; else None."""
    if config.precision in adapter.precisions:
        return None
    return NotAvailable(
        f"{name} does not compute in {config.precision}",
        where="$.precision",
        candidates=sorted(adapter.precisions),
        remedy="choose one of these, or another backend",
    )


def parse_options(name: str, adapter: type[Adapter], config: HardwareConfig) -> BaseModel:
    """The config's `options` by the adapter's own schema; `ConfigError` names the option and those that exist."""
    try:
        return adapter.Options.model_validate_json(json.dumps(dict(config.options)))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        known = sorted(adapter.Options.model_fields)
        unknown = found["type"] == "extra_forbidden"
        raise ConfigError(
            f"{name} has no such option" if unknown else f"{found['msg']} (found {ascii(found['input'])[:60]})",
            where=json_path(("options", *found["loc"])),
            candidates=known or ["(it has no options)"],
            remedy=did_you_mean(str(found["loc"][-1]), known) if unknown and found["loc"] else None,
        ) from None
