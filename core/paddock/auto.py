"""`"auto"` in a config: settled by measuring once, and remembered for the same model, versions and host.

A config whose hardware, backend or precision is "auto" is a question; `settled` answers it with an ordinary config.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paddock.child import Children
from paddock.config import AUTO, AUTO_KEYS, HardwareConfig
from paddock.config_errors import as_config_error
from paddock.deployment import Deployment
from paddock.deployment import deploy as deploy_settled
from paddock.errors import ConfigError, UsageError
from paddock.jsontext import dump, loads, read_text
from paddock.machine import host_facts
from paddock.model import Model
from paddock.prepare import ConfigSource, ModelSource, Progress
from paddock.reading import open_model
from paddock.registry import Registry
from paddock.tune import Objective, tune

_KEPT = "tuned"


class Tune(BaseModel):
    """How an "auto" is settled: for how many seconds candidates are begun, and what is to be best."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    objective: Objective = "latency"
    mixed: bool = False
    """Whether several adapters together are tried as well; takes one to five minutes more."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    tune: Tune = Tune()


@dataclass(frozen=True)
class Auto:
    """A config with "auto" in it: what else it states, as data with absolute paths, and how it is to be settled."""

    stated: Mapping[str, Any]
    tune: Tune
    source: str


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
    shown = {"hardware": "any", "backend": "any", **rest}
    found = HardwareConfig.parse(json.dumps(shown), where, base).as_data()
    return Auto({k: v for k, v in found.items() if k not in open_keys}, how, where)


def stated(source: ConfigSource | None) -> dict[str, Any]:
    """What a config states, as data: all of it but what is "auto"; nothing where there is none."""
    if source is None:
        return {}
    found = read(source)
    return dict(found.stated) if isinstance(found, Auto) else found.as_data()


def settled(
    model: ModelSource,
    config: ConfigSource,
    *,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> HardwareConfig:
    """The config itself or, where it says "auto", what measuring found; the answer is kept."""
    found = read(config)
    if isinstance(found, HardwareConfig):
        return found
    if isinstance(model, Model):
        raise UsageError("is read already: candidates are measured in processes that read its files", where="model")
    registry = registry if registry is not None else Registry.discover()
    with Children() as children:
        key = _key(open_model(model, registry, children), found, registry)
    known = registry.store.get(_KEPT, key)
    if known is None:
        tuned = tune(
            Path(model), found.stated, seconds=found.tune.seconds, objective=found.tune.objective,
            mixed=found.tune.mixed, registry=registry, progress=progress,
        )  # fmt: skip
        known = asdict(tuned)
        registry.store.put(_KEPT, key, known)
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
    same model, under the same config and versions on this host, takes the same choice at once.
    """
    chosen = settled(model, config, registry=registry, progress=progress)
    return deploy_settled(model, chosen, registry=registry, children=children, progress=progress, samples=samples)


def _key(model: Model, asked: Auto, registry: Registry) -> list[Any]:
    """Whatever may change the answer, but the time that it may take."""
    here = {
        name: [[e.distribution, e.version, e.sources, dict(registry.probe(e).versions)] for e in entries]
        for name, entries in registry.adapters.items()
    }
    return [model.fingerprint, dict(asked.stated), asked.tune.objective, asked.tune.mixed, here, host_facts()]
