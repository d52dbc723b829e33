"""`"auto"` in a config: settled by measuring once, and remembered for the same model, versions and host.

A config whose hardware, backend or precision is "auto" is a question; `settled` answers it with an ordinary config.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paddock.child import Children
from paddock.config import AUTO, AUTO_KEYS, HardwareConfig
from paddock.config import json_schema as settled_schema
from paddock.config_errors import as_config_error
from paddock.contenders import Objective
from paddock.deployment import Deployment
from paddock.deployment import deploy as deploy_settled
from paddock.errors import ConfigError, UsageError
from paddock.jsontext import dump, loads, read_text
from paddock.machine import host_facts
from paddock.model import Model
from paddock.plan import Precision
from paddock.prepare import ConfigSource, ModelSource, Progress
from paddock.reading import open_model
from paddock.registry import CORE, Registry
from paddock.tune import tune
from paddock.warm import start

_KEPT = "tuned"
_SCHEMA_SAYS = {
    "hardware": "The kind of device",
    "backend": "What computes on it; `paddock adapters` lists the pairs",
    "precision": "What to compute in",
}


class Tune(BaseModel):
    """How an "auto" is settled."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """For how many seconds candidates are begun."""
    objective: Objective = "latency"
    """What is to be best: the time of single requests, requests per second with all instances busy, or memory."""
    mixed: bool = False
    """Whether several adapters together are tried as well; takes one to five minutes more."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    tune: Tune = Tune()


@dataclass(frozen=True)
class Auto:
    """A config with "auto" in it: what else it states, as data with absolute paths, and how it is to be settled.

    `warm_start` is what serves meanwhile; no candidate knows of it.
    """

    stated: Mapping[str, Any]
    tune: Tune
    source: str
    warm_start: str | None = None


def read(source: ConfigSource) -> HardwareConfig | Auto:
    """A config from whatever `HardwareConfig.load` takes; `Auto` where a hardware, backend or precision is "auto".

    Raises `ConfigError`, also where `tune` is stated and nothing is left to be found.
    """
    if isinstance(source, HardwareConfig):
        return source
    where, base = "config", Path()
    if isinstance(source, Mapping):
        text = dump(source)
    else:
        text = os.fspath(source)
        if not text.lstrip().startswith("{"):
            where, base = text, Path(text).parent
            text = read_text(Path(text))
    data = loads(text, where)
    if not isinstance(data, dict):
        return HardwareConfig.parse(text, where, base)  # says what it should be
    open_keys = [key for key in AUTO_KEYS if data.get(key) == AUTO]
    if "hardware" in open_keys or "backend" in open_keys:  # the other one, where nobody states it, is open as well
        open_keys += [key for key in ("hardware", "backend") if key not in data]
    asked = data.pop("tune", None)
    if not open_keys:
        if asked is not None:
            raise ConfigError(
                'has no effect: neither hardware, backend nor precision is "auto"', where=f"{where}: $.tune",
                remedy="leave it out",
            )  # fmt: skip
        return HardwareConfig.parse(text, where, base)
    try:
        how = _Asked.model_validate_json(json.dumps({} if asked is None else {"tune": asked})).tune
    except ValidationError as error:
        raise as_config_error(error, where, {"tune": asked}, _Asked) from None
    # Everything else is checked beside names that stand for the open ones.
    rest = {key: value for key, value in data.items() if key not in open_keys}
    shown = {**{key: "any" for key in ("hardware", "backend") if key in open_keys}, **rest}
    found = HardwareConfig.parse(json.dumps(shown), where, base).as_data()
    if "precision" not in open_keys:
        found.setdefault("precision", Precision.FP32.value)  # what a config means that leaves it out
    warm_start = found.pop("warm_start", None)
    return Auto({k: v for k, v in found.items() if k not in open_keys}, how, where, warm_start)


def stated(source: ConfigSource | None) -> dict[str, Any]:
    """What a config states, as data, with its precision: all but what is "auto", and `warm_start`.

    Nothing where there is none.
    """
    if source is None:
        return {}
    found = read(source)
    if isinstance(found, Auto):
        return dict(found.stated)
    data = {"precision": found.precision.value, **found.as_data()}
    data.pop("warm_start", None)
    return data


def json_schema() -> dict[str, Any]:
    """The JSON Schema of what `deploy` takes, for editors: `HardwareConfig`'s, with "auto" and `tune`."""
    schema = settled_schema()
    own = Tune.model_json_schema()
    properties = schema["properties"]
    precision = dict(properties["precision"])
    one = {"$ref": precision.pop("$ref")}
    properties["precision"] = {"anyOf": [one, {"const": AUTO}], **precision}
    for key in AUTO_KEYS:
        properties[key]["description"] = f'{_SCHEMA_SAYS[key]}; "auto" is settled by measuring.'
    properties["tune"] = {"$ref": "#/$defs/Tune"}
    schema["$defs"]["Tune"] = own
    # Beside an "auto" for one of the two, the other may be left out.
    pair = ("hardware", "backend")
    alone = [{"properties": {key: {"const": AUTO}}, "required": [key]} for key in pair]
    schema["required"] = [key for key in schema["required"] if key not in pair]
    schema["anyOf"] = [{"required": list(pair)}, *alone]
    # Without an "auto" it would have no effect.
    found = [{"properties": {key: {"const": AUTO}}, "required": [key]} for key in AUTO_KEYS]
    schema["dependentSchemas"] = {"tune": {"anyOf": found}}
    return schema


def settled(
    model: ModelSource,
    config: ConfigSource | Auto,
    *,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> HardwareConfig:
    """The config itself or, where it says "auto", what measuring found; the answer is kept."""
    found = config if isinstance(config, Auto) else read(config)
    if isinstance(found, HardwareConfig):
        return found
    path = _check_path(model)
    registry = registry if registry is not None else Registry.discover()
    with Children() as children:
        key = _key(open_model(model, registry, children), found, registry)
    known = registry.store.get(_KEPT, key)
    if known is None:
        tuned = tune(
            path, found.stated, seconds=found.tune.seconds, objective=found.tune.objective, mixed=found.tune.mixed,
            registry=registry, progress=progress,
        )  # fmt: skip
        if progress is not None:
            progress(tuned.reason)
        known = asdict(tuned)
        registry.store.put(_KEPT, key, known)
    warm = {} if found.warm_start is None else {"warm_start": found.warm_start}
    return HardwareConfig.load({**known["config"], **warm})


def settled_before(model: ModelSource, config: ConfigSource, registry: Registry, children: Children) -> HardwareConfig:
    """The config itself or, where it says "auto", what was measured before: this measures nothing.

    Raises `ConfigError` where nothing was.
    """
    found = read(config)
    if isinstance(found, HardwareConfig):
        return found
    known = registry.store.get(_KEPT, _key(open_model(model, registry, children), found, registry))
    if known is None:
        raise ConfigError(
            '"auto" was not settled for this model and host yet, and this measures nothing', where=found.source,
            remedy="`paddock tune` finds the best and writes it as a config; deploying it once keeps the answer too",
        )  # fmt: skip
    return HardwareConfig.load(known["config"])


def deploy(
    model: ModelSource,
    config: ConfigSource,
    *,
    registry: Registry | None = None,
    children: Children | None = None,
    progress: Progress | None = None,
    samples: Sequence[Mapping[str, Any]] | None = None,
) -> Deployment:
    """Deploys `model` as `config` says, checked against the reference; "auto" in it is settled by measuring first.

    Arguments and errors are those of `paddock.deployment.deploy`. What was measured is kept: the next deployment of the
    same model, under the same config and versions on this host, takes the same choice at once. With `warm_start` that
    adapter serves at once, and all this happens in the background (`Deployment.warm`).
    """
    found = read(config)
    if found.warm_start is None:
        chosen = settled(model, found, registry=registry, progress=progress)
        return deploy_settled(model, chosen, registry=registry, children=children, progress=progress, samples=samples)
    registry = registry if registry is not None else Registry.discover()
    settle = None
    if isinstance(found, Auto):
        _check_path(model)
        settle = partial(_settled_later, model, found, registry)
        found = _warm_config(found)
    return start(model, found, settle, registry=registry, children=children, progress=progress, samples=samples)


def _check_path(model: ModelSource) -> Path:
    if isinstance(model, Model):
        raise UsageError("is read already: candidates are measured in processes that read its files", where="model")
    return Path(model)


def _warm_config(found: Auto) -> HardwareConfig:
    """What is stated beside "auto", with the adapter of `warm_start` in the place of what is still to be found."""
    hardware, _, backend = (found.warm_start or "").partition("/")
    stated = {**found.stated, "hardware": hardware, "backend": backend, "warm_start": found.warm_start}
    return HardwareConfig.parse(json.dumps(stated), found.source, Path())


def _settled_later(model: ModelSource, found: Auto, registry: Registry, tell: Progress) -> HardwareConfig:
    return settled(model, found, registry=registry, progress=tell)


def _key(model: Model, asked: Auto, registry: Registry) -> list[Any]:
    """Whatever may change the answer, but the time that it may take."""
    here = {
        name: [[e.distribution, e.version, e.sources, dict(registry.probe(e).versions)] for e in entries]
        for name, entries in registry.adapters.items()
    }
    how = [asked.tune.objective, asked.tune.mixed]
    return [version(CORE), model.fingerprint, dict(asked.stated), how, here, host_facts()]
