"""What pydantic finds wrong with a config, as one error: the place, what could stand there, the remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from paddock.errors import ConfigError, did_you_mean
from paddock.jsontext import json_path, short


def as_config_error(error: ValidationError, where: str, data: Any, model: type[BaseModel]) -> ConfigError:
    """The first finding, with the names that could have stood there; a misspelt key before one that is missing."""
    findings = error.errors(include_url=False)
    found = next((f for f in findings if f["type"] == "extra_forbidden"), findings[0])
    location = tuple(found["loc"])
    candidates: Sequence[str] = ()
    remedy = None
    message = found["msg"]
    if found["type"] == "extra_forbidden":
        candidates = _keys_at(model, location[:-1])
        message = "no such key"
        remedy = did_you_mean(str(location[-1]), candidates)
    elif found["type"] == "missing":
        message = "is required"
        remedy = f'add it, as in {{"{location[-1]}": ...}}'
    elif found["type"] == "json_invalid":
        # What Python's parser lets through and pydantic's does not: half a surrogate pair, 200 levels of nesting.
        message = "is not JSON: " + re.sub(r" at line \d+ column \d+$", "", str(found["ctx"]["error"]))
    elif found["type"] in ("enum", "literal_error"):
        candidates = [c.strip(" '") for c in re.split(r",| or ", str(found["ctx"]["expected"]))]
        message = f"{short(found['input'])} is not one of the known values"
        remedy = did_you_mean(str(found["input"]), candidates)
    else:
        message = f"{message} (found {short(found['input'])})"
    others = error.error_count() - 1
    if others:
        message += f"; {others} more finding{'s' if others > 1 else ''}"
    return ConfigError(message, where=f"{where}: {json_path(location)}", candidates=candidates, remedy=remedy)


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys that the object at this place may have; none where there is no object."""
    for part in location:
        field = model.model_fields.get(str(part))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return sorted(field.alias or name for name, field in model.model_fields.items())
