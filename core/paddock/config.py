"""The JSON config, validated: `HardwareConfig`.

Read from a file, a dict or a JSON string. Paths in it are relative to the file (else to the current folder).
Every error names the file, the JSON path, the candidates and the remedy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from paddock.config_errors import as_config_error
from paddock.errors import ConfigError, PaddockError
from paddock.jsontext import dump, kind_of, loads, named, read_text
from paddock.plan import Precision

AUTO = "auto"
AUTO_KEYS = ("hardware", "backend", "precision")
"""What may be "auto": `paddock.auto` settles it by measuring."""

DEFAULT_MAX_ERROR: Mapping[Precision, float] = {
    Precision.FP32: 1e-4,
    Precision.FP16: 1e-2,
    Precision.BF16: 5e-2,
    Precision.INT8: 1e-1,
}
"""The accuracy budget where a config names none: relative error against the fp32 reference (docs/config.md)."""


class _Part(BaseModel):
    # Built at the first use: building validators would be half of what importing paddock takes.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


def _beside_the_config(path: Path, info: ValidationInfo) -> Path:
    if "\0" in str(path):
        raise PydanticCustomError("path", "a path cannot hold a NUL character")
    base = info.context["base"] if info.context else Path()
    return Path(os.path.normpath(base / path))


_SIZE = r"^[0-9]{1,12}(\.[0-9]{1,6})?\s*([kKmMgGtT](i?[bB])?|[bB])?$"


def _readable_size(size: Any) -> Any:
    if not (type(size) is int and size > 0) and not (isinstance(size, str) and re.fullmatch(_SIZE, size)):
        raise PydanticCustomError("size", 'a size is written like "2GiB", "512MiB" or a whole number of bytes')
    return size


def _whole_number(value: Any) -> Any:
    # To a Literal, true and 1.0 are equal to 1.
    if type(value) is not int:
        raise PydanticCustomError("version", "the version is the number 1")
    return value


def _distinct(names: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(names)) != len(names):
        raise PydanticCustomError("distinct", "names one entry twice")
    return names


ConfigPath = Annotated[Path, BeforeValidator(named), AfterValidator(_beside_the_config), Field(strict=False)]
Size = Annotated[
    ByteSize,
    BeforeValidator(_readable_size),
    Field(gt=0),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": _SIZE}, {"type": "integer", "minimum": 1}]}),
]
NAME_PATTERN = r"^[a-z][a-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)]
AdapterName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*/[a-z][a-z0-9_.-]*$", max_length=129)]
Extent = Annotated[int, Field(ge=1, le=2**40, strict=True)]
# Not strict, or a list that passed through a validator of ours would no longer do for a tuple.
Extents = Extent | Annotated[tuple[Extent, ...], Field(strict=False, min_length=1, max_length=64)]


class Profile(_Part):
    """The extents that one dimension (numbers) or one input (lists) may take; `opt` defaults to `max`."""

    min: Extents
    opt: Extents | None = None
    max: Extents

    @model_validator(mode="after")
    def _ordered(self) -> Profile:
        low, best, high = (_as_tuple(e) for e in (self.min, self.opt if self.opt is not None else self.max, self.max))
        same_kind = isinstance(self.min, int) == isinstance(self.max, int)
        if not same_kind or not len(low) == len(best) == len(high):
            raise PydanticCustomError("profile", "min, opt and max must have the same rank")
        if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
            raise PydanticCustomError("profile", "a profile needs min <= opt <= max on every axis")
        return self


class Buckets(_Part):
    """The only extents (numbers) or shapes (lists) that are served."""

    buckets: Annotated[tuple[Extents, ...], Field(strict=False, min_length=1, max_length=64)]


def _one_message(value: Any, handler: Any) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        own = [e["msg"] for e in error.errors() if e["type"] == "profile"]
        raise PydanticCustomError(
            "shapes",
            own[0]
            if own
            else "takes an extent >= 1, a list of extents, {min, opt, max}, a list of those, or {buckets}",
        ) from None


ShapeEntry = Annotated[
    Extents | Profile | Annotated[tuple[Profile, ...], Field(strict=False, min_length=1, max_length=64)] | Buckets,
    WrapValidator(_one_message),
]


def _list_or_lists(value: Any, handler: Any) -> Any:
    try:
        return handler(value)
    except ValidationError:
        raise PydanticCustomError(
            "exclude", "takes a list of operators, or an object with such a list for each hardware/backend"
        ) from None


def _batch(value: Any, handler: Any) -> Any:
    try:
        return handler(value)
    except ValidationError:
        raise PydanticCustomError("batch", 'a batch size is a whole number from 1 to 2**40, or "max"') from None


Patterns = Annotated[tuple[str, ...], Field(strict=False)]


class Operators(_Part):
    """Which operators are kept off an adapter, or in fp32: by type, by node name, or as "#12" or "#12 TYPE"."""

    exclude: Annotated[Patterns | Mapping[AdapterName, Patterns], WrapValidator(_list_or_lists)] = ()
    """Kept off hardware/backend or, in an object, off each adapter that it names; the next of `fallback` runs them."""
    keep_fp32: Patterns | None = None
    """Exactly these stay in fp32; what the accuracy budget needs is searched where it is left out."""


class Memory(_Part):
    """The memory budget: of the host or the device, as the adapter's memory is."""

    limit: Size | None = None


class Agreement(_Part):
    """At least this agreement with the reference instead of an error bound.

    `cosine`: cosine similarity of each vector along `axis`, the smallest counts. `top1`: share of positions whose
    largest element along `axis` is the reference's. `output` picks one output (default: every float output);
    `mask` names an input whose non-zero elements say which positions count.
    """

    cosine: Annotated[float, Field(gt=0, le=1)] | None = None
    top1: Annotated[float, Field(gt=0, le=1)] | None = None
    output: str | None = None
    axis: int = -1
    mask: str | None = None

    @model_validator(mode="after")
    def _one_metric(self) -> Agreement:
        if (self.cosine is None) == (self.top1 is None):
            raise PydanticCustomError("agreement", "needs exactly one of cosine and top1")
        return self


class Accuracy(_Part):
    """How close to the reference the deployment must be, on what, and when that is checked."""

    max_error: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Largest absolute difference over the reference's largest magnitude, for each output."""
    min_agreement: Agreement | None = None
    samples: ConfigPath | None = None
    """An .npz with an array for each input, or a folder of them."""
    verify: Literal["always", "cached", "golden", "off"] = "cached"
    golden: ConfigPath | None = None
    """Stored inputs and outputs (`paddock verify --write-golden`), for hosts without a reference."""

    @model_validator(mode="after")
    def _consistent(self) -> Accuracy:
        if self.max_error is not None and self.min_agreement is not None:
            raise PydanticCustomError("accuracy", "takes max_error or min_agreement, not both")
        if (self.verify == "golden") != (self.golden is not None):
            raise PydanticCustomError("accuracy", 'verify "golden" and a golden file go together')
        if self.verify in ("golden", "off") and self.samples is not None:
            raise PydanticCustomError("accuracy", f'samples have no effect with verify "{self.verify}"')
        if self.verify == "off" and (self.max_error is not None or self.min_agreement is not None):
            raise PydanticCustomError("accuracy", 'a budget has no effect with verify "off"')
        return self


class Calibration(_Part):
    """Samples to measure the ranges of values on, and to quantise by: never the ones that judge."""

    samples: ConfigPath


class HardwareConfig(_Part):
    """What to deploy on: the one file that changes when the hardware does."""

    model_config = ConfigDict(title="Paddock hardware config")

    _source: str = PrivateAttr("config")
    """The file it was read from; errors name it."""
    schema_: Annotated[str | None, Field(alias="$schema")] = None
    version: Annotated[Literal[1], BeforeValidator(_whole_number)] = 1
    hardware: Name
    backend: Name
    devices: Annotated[
        tuple[Annotated[int, Field(ge=0, le=4096)], ...], Field(min_length=1), AfterValidator(_distinct)
    ] = (0,)
    instances: Annotated[PositiveInt, Field(le=1024)] = 1
    """Sessions that serve in parallel."""
    precision: Precision = Precision.FP32
    """What to compute in."""
    storage: Literal["fp16", "bf16"] | None = None
    """What weights are stored in, with precision fp32: half the file, the same arithmetic."""
    io_dtype: Literal["fp16"] | None = None
    """What float inputs and outputs are in, with precision fp16; float32, as the model says, by default."""
    batch_size: Annotated[Extent | Literal["max"] | None, WrapValidator(_batch)] = None
    """The largest extent on axis 0 of the inputs; "max" is the largest that the memory budget allows."""
    shapes: Mapping[str, ShapeEntry] = Field(default_factory=dict)
    """By input or by named dimension."""
    operators: Operators = Operators()
    memory: Memory = Memory()
    accuracy: Accuracy = Accuracy()
    calibration: Calibration | None = None
    candidates: Annotated[tuple[AdapterName, ...], AfterValidator(_distinct)] = ()
    """Adapters for the whole model, tried in order when hardware/backend is not available."""
    fallback: Annotated[tuple[AdapterName, ...], AfterValidator(_distinct)] = ()
    """Adapters for single nodes that hardware/backend cannot run, in order."""
    repair: bool = False
    """Whether a deployment that fails or disagrees is searched for the nodes to blame, which then go to `fallback`."""
    strict: bool = True
    """Refuse where what took effect differs from what was asked for, and where a check proves nothing."""
    threads: Annotated[PositiveInt, Field(le=4096)] | None = None
    warm_start: AdapterName | None = None
    """Who serves, in fp32 and without options, until hardware/backend is built and agrees with it on live requests."""
    isolation: Literal["none", "process"] | None = None
    """Whether hardware/backend runs in processes of its own, one for each instance; as it needs, by default."""
    timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = None
    """Seconds that one request may take there."""
    rescue: AdapterName | None = None
    """Who answers, in this process, in fp32 and without options, while such a process is lost, and what it had."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """The adapter's own options; `paddock adapters` lists them."""

    @model_validator(mode="after")
    def _repairable(self) -> HardwareConfig:
        if self.repair and not self.fallback:
            raise PydanticCustomError("repair", "repair has no effect without fallback: name who runs what is wrong")
        if self.repair and self.accuracy.verify == "off":
            raise PydanticCustomError("repair", 'repair has no effect with accuracy.verify "off"')
        return self

    @model_validator(mode="after")
    def _precise(self) -> HardwareConfig:
        if self.storage is not None and self.precision is not Precision.FP32:
            raise PydanticCustomError("storage", f"storage has no effect with precision {self.precision}")
        if self.storage is not None and self.operators.keep_fp32 is not None:
            raise PydanticCustomError("storage", "operators.keep_fp32 has no effect with storage")
        if self.io_dtype is not None and self.precision is not Precision.FP16:
            raise PydanticCustomError("io_dtype", f"io_dtype {self.io_dtype} goes with precision fp16 only")
        return self

    @model_validator(mode="after")
    def _isolated(self) -> HardwareConfig:
        for key in ("timeout", "rescue"):
            if getattr(self, key) is not None and self.isolation != "process":
                missing = f'{key} has no effect without "isolation": "process": add that, or leave {key} out'
                raise PydanticCustomError(key, missing)
        for key in ("warm_start", "rescue"):
            if getattr(self, key) is not None and self.io_dtype is not None:
                raise PydanticCustomError(key, f"{key} serves in fp32, so it does not go with io_dtype")
            if getattr(self, key) is not None and self.batch_size == "max":
                problem = f'{key} needs a stated batch_size: how much "max" is differs from adapter to adapter'
                raise PydanticCustomError(key, problem)
        return self

    def __eq__(self, other: object) -> bool:
        """Equal contents, wherever they were read from."""
        return isinstance(other, HardwareConfig) and self.__dict__ == other.__dict__

    @property
    def source(self) -> str:
        """The file it was read from, as errors name it."""
        return self._source

    @property
    def adapter(self) -> str:
        """`hardware/backend`."""
        return f"{self.hardware}/{self.backend}"

    @property
    def max_error(self) -> float | None:
        """The error budget in force, or None where `accuracy.min_agreement` is."""
        if self.accuracy.min_agreement is not None:
            return None
        return self.accuracy.max_error or self.default_max_error

    @property
    def default_max_error(self) -> float:
        """The error budget where none is stated: that of the narrowest type that numbers pass through."""
        return DEFAULT_MAX_ERROR[self.precision if self.storage is None else Precision(self.storage)]

    def as_data(self) -> dict[str, Any]:
        """What was stated, as JSON data that can stand in any folder: with absolute paths."""
        data: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for part, key in (("accuracy", "samples"), ("accuracy", "golden"), ("calibration", "samples")):
            if (data.get(part) or {}).get(key) is not None:
                data[part][key] = str(Path(data[part][key]).absolute())
        return data

    @contextmanager
    def named(self) -> Iterator[None]:
        """Names this config's file in errors whose place is a JSON path (`$.devices`) raised inside."""
        try:
            yield
        except PaddockError as error:
            for each in (error, *error.besides):
                if each.where is not None and each.where.startswith("$"):
                    each.where = f"{self._source}: {each.where}"
            raise

    @classmethod
    def load(cls, source: str | os.PathLike[str] | Mapping[str, Any] | HardwareConfig) -> HardwareConfig:
        """A config from a file's path, a dict, or a string of JSON; raises `ConfigError`, nothing else."""
        if isinstance(source, HardwareConfig):
            return source
        if isinstance(source, Mapping):
            return cls.parse(dump(source), "config", Path())
        text = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        if not isinstance(text, str):
            raise ConfigError("a config is a path, a dict or a JSON string", where="config")
        if text.lstrip().startswith("{"):
            return cls.parse(text, "config", Path())
        path = Path(text)
        return cls.parse(read_text(path), str(path), path.parent)

    @classmethod
    def parse(cls, text: str, where: str, base: Path) -> HardwareConfig:
        """A config from JSON text that errors call `where`, its paths relative to `base`."""
        data = loads(text, where)
        if not isinstance(data, dict):
            raise ConfigError(f"a config is a JSON object, not {kind_of(data)}", where=where)
        for key in AUTO_KEYS:
            if data.get(key) == AUTO:
                raise ConfigError(
                    '"auto" is settled by measuring, which this does not do',
                    where=f"{where}: $.{key}",
                    remedy="name one: `paddock tune` finds the best and writes it as a config",
                )
        try:
            config = cls.model_validate_json(json.dumps(data), context={"base": base})
        except ValidationError as error:
            raise as_config_error(error, where, data, cls) from None
        config._source = where
        return config


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `HardwareConfig`, for editors; `paddock schema` prints it."""
    schema = HardwareConfig.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _as_tuple(extents: Extents) -> tuple[int, ...]:
    return (extents,) if isinstance(extents, int) else extents
