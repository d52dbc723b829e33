"""From a path to a `Model`, and from a model to the format that an adapter takes.

Reading and converting run in a child process, because SDKs abort on broken files; what was read once is kept by its
content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from paddock.cache import Store
from paddock.child import Children
from paddock.errors import (
    BuildFailed,
    ConfigError,
    ModelError,
    NotAvailable,
    PaddockError,
    Unsupported,
    nearest,
)
from paddock.graph import Graph, Range, Value
from paddock.host import first_line
from paddock.model import Files, Model, check_unchanged, fingerprint
from paddock.plan import Segment
from paddock.registry import Registry
from paddock.spi import Adapter, Format


@cache
def graphs() -> TypeAdapter[Graph]:
    """Between graphs and plain data."""
    return TypeAdapter(Graph)


T = TypeVar("T")

_CONVERSION = "conversion.json"
_SEGMENT = "segment.json"


def open_model(path: str | os.PathLike[str] | Model, registry: Registry, children: Children) -> Model:
    """The model at `path` (a file, a stem or a folder) in whichever format knows it; raises `ModelError`."""
    return read_files(*locate(path, registry), registry, children)


def locate(path: str | os.PathLike[str] | Model, registry: Registry) -> tuple[Format, Files]:
    """The format that knows the model at `path`, and all its files; raises `ModelError`."""
    if isinstance(path, Model):
        # Read again: the files may have changed since, and its graph carries another config's bounds.
        origin = path.origin
        if origin.format not in registry.formats:
            raise ModelError(f"no plugin that is loaded reads {origin.format} models")
        if not origin.files:
            raise ModelError("has no files here: it is that of a bundle", remedy="deploy the model itself")
        return _complete(registry.formats[origin.format], origin.files)
    try:
        place = Path(os.fspath(path))
        place.exists()
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"cannot be looked up: {error}", where=ascii(str(path))[:200]) from None
    located = {
        name: files
        for name, format in registry.formats.items()
        if (files := _asked(format, place, lambda format=format: format.locate(place))) is not None  # type: ignore[misc]
    }
    if not located:
        raise _unknown(place, registry)
    if len(located) > 1:
        raise ModelError(
            "holds models of several formats", where=str(place), candidates=sorted(located), remedy="name one file"
        )
    name, files = next(iter(located.items()))
    return _complete(registry.formats[name], files)


def _complete(format: Format, files: Files) -> tuple[Format, Files]:
    return format, dict(_asked(format, next(iter(files.values())), lambda: format.complete(files)))


def adapted(
    model: Model, adapter: type[Adapter], registry: Registry, children: Children, store: Store | None = None
) -> Model:
    """`model` in the first format that `adapter` takes, converted where it must be, with the same bounds.

    `store` is where a conversion is kept, the registry's by default. Raises `NotAvailable` where none leads there.
    """
    if model.format in adapter.formats:
        return model
    converts_to = registry.formats[model.format].converts_to
    target = next((name for name in adapter.formats if name in converts_to), None)
    if target is None or target not in registry.formats:
        able = [name for name in registry.names() if _takes(registry, name, (model.format, *converts_to))]
        raise NotAvailable(
            f"{adapter.name()} takes {' and '.join(adapter.formats)} models; there is no way there from {model.format}",
            where="$.hardware/$.backend",
            candidates=able,
            remedy=f"choose an adapter that takes {model.format} models, or export the model anew",
        )
    return _convert(model, target, registry, children, store or registry.store)


def extracted(
    model: Model, segment: Segment, registry: Registry, children: Children, store: Store | None = None
) -> Model:
    """One segment of `model` as a model of its own, of the same format, nodes traced back; kept by its content.

    Its border has the dtypes and shapes of `model.graph`, bounds included. `store` is where it is kept, the registry's
    by default.
    """
    format, owner = registry.formats[model.format], owner_of(registry.formats[model.format], registry)
    graph = model.graph
    border = [graph.values[value] for value in (*segment.inputs, *segment.outputs)]
    nodes = tuple(sorted((*segment.nodes, *segment.constants)))
    key = [
        model.fingerprint, nodes, segment.inputs, segment.outputs, [(v.name, v.dtype, v.shape) for v in border], owner
    ]  # fmt: skip

    def build(folder: Path) -> None:
        files = children.get(owner[0]).call(_extract_here, format, model, segment, folder)
        check_unchanged(model)
        names = {role: path.relative_to(folder).as_posix() for role, path in files.items()}
        (folder / _SEGMENT).write_text(json.dumps(names))

    folder = (store or registry.store).folder("segments", key, build)
    kept = json.loads((folder / _SEGMENT).read_text())
    part = read_files(format, {role: folder / name for role, name in kept.items()}, registry, children)
    _check_extract(part.graph, model.graph, segment, nodes, folder)
    bounds = carried_bounds([graph.values[value] for value in segment.inputs], graph, part.graph)
    traced = tuple((node,) for node in nodes)
    return Model(model.format, part.files, part.fingerprint, part.graph.with_bounds(bounds), model, traced)


def shapes_at(
    model: Model, inputs: Mapping[str, tuple[int, ...]], registry: Registry, children: Children
) -> Mapping[int, tuple[int, ...]]:
    """The shapes of `model`'s tensors with its inputs, by name, of these shapes; by value index, kept by its content.

    As far as its format tells; nothing where that fails. Raises `ModelError` where `inputs` contradict the model, and
    where the format's answer is none.
    """
    format, owner = registry.formats[model.format], owner_of(registry.formats[model.format], registry)

    def ask() -> Any:
        found = children.get(owner[0]).call(_shapes_here, format, model, dict(inputs))
        check_unchanged(model)
        return found

    try:
        found = registry.store.remembered("shapes", [model.fingerprint, sorted(inputs.items()), *owner], ask)
    except BuildFailed:
        return {}
    shapes = {}
    for index, extents in found.items():
        known = model.graph.values[int(index)].shape
        if known is None or len(known) == len(extents):  # another rank is of no use to whoever reads the graph
            shapes[int(index)] = tuple(extents)
    return shapes


def _check_extract(part: Graph, whole: Graph, segment: Segment, nodes: Sequence[int], folder: Path) -> None:
    """Raises `ModelError` where what was cut out is not what was asked for."""
    wanted = [whole.nodes[node].type for node in nodes]
    found = [node.type for node in part.nodes]
    borders = [[v.name for v in part.input_values], [v.name for v in part.output_values]]
    if wanted != found or borders != [[whole.values[v].name for v in b] for b in (segment.inputs, segment.outputs)]:
        raise ModelError(
            f"segment {segment.index} was cut out wrongly: {len(found)} nodes with the border {borders}",
            where=str(folder),
            remedy="report this to the format plugin's author",
        )


def _takes(registry: Registry, name: str, formats: Sequence[str]) -> bool:
    return any(format in entry.adapter.formats for entry in registry.adapters[name] for format in formats)


def read_files(format: Format, files: Files, registry: Registry, children: Children) -> Model:
    """The model that these files hold, read in a child; kept by its content."""
    _, complete = _complete(format, files)
    mark = fingerprint(format.name, complete, registry.store)
    owner = owner_of(format, registry)

    def read() -> Any:
        try:
            return children.get(owner[0]).call(_read_here, format, dict(complete))
        except BuildFailed as error:
            where = str(next(iter(files.values())))
            broken = ModelError(f"cannot be read as {format.name}: {error.problem}", where=where)
            raise broken from error

    graph = graphs().validate_python(registry.store.remembered("graphs", [mark, *owner], read))
    return Model(format.name, dict(complete), mark, graph)


def _convert(model: Model, target: str, registry: Registry, children: Children, store: Store) -> Model:
    format = registry.formats[model.format]
    owner = owner_of(format, registry)

    def build(folder: Path) -> None:
        try:
            files, provenance = children.get(owner[0]).call(_convert_here, format, model, target, folder)
        except Unsupported:
            raise  # names the nodes: another adapter may take these
        except BuildFailed as error:
            raise NotAvailable(
                f"the model cannot be converted from {model.format} to {target}: {error.problem}",
                where=str(next(iter(model.files.values()))),
                remedy=f"choose an adapter that takes {model.format} models",
            ) from error
        check_unchanged(model)
        names = {role: path.relative_to(folder).as_posix() for role, path in files.items()}
        (folder / _CONVERSION).write_text(json.dumps({"files": names, "provenance": provenance}))

    folder = store.folder("conversions", [model.fingerprint, target, *owner], build)
    kept = json.loads((folder / _CONVERSION).read_text())
    files = {role: folder / name for role, name in kept["files"].items()}
    converted = read_files(registry.formats[target], files, registry, children)
    graph = converted.graph.with_bounds(carried_bounds(model.graph.input_values, model.graph, converted.graph))
    provenance = tuple(tuple(nodes) for nodes in kept["provenance"])
    if len(provenance) != len(graph.nodes):
        raise ModelError(
            f"the conversion traces {len(provenance)} nodes, the {target} reader sees {len(graph.nodes)}",
            where=str(folder),
            remedy="report this to the format plugin's author",
        )
    return Model(target, converted.files, converted.fingerprint, graph, model, provenance)


def carried_bounds(inputs: Sequence[Value], source: Graph, target: Graph) -> dict[str, Range]:
    """The ranges of `inputs`, values of `source`, under the target's symbols, by position of input and axis."""
    if len(inputs) != len(target.inputs):
        raise ModelError(f"the conversion has {len(target.inputs)} inputs, the model {len(inputs)}")
    bounds: dict[str, Range] = {}
    for here, there in zip(inputs, target.input_values, strict=True):
        for dim, symbol in zip(here.shape or (), there.shape or (), strict=False):
            found = source.range_of(dim)
            if isinstance(symbol, str) and found is not None:
                known = bounds.get(symbol)
                if known is not None and known != found:
                    # One symbol for two dimensions: the wider range; the border still checks each by the source's.
                    found = Range(min(known.min, found.min), found.opt, max(known.max, found.max))
                bounds[symbol] = found
    return bounds


def owner_of(format: Format, registry: Registry) -> list[str]:
    """The distribution that brings a format, its version and its SDK's: part of every key."""
    for plugin in registry.plugins:
        if format.name in plugin.formats:
            return [plugin.distribution, plugin.version, plugin.sources, *format.versions()]
    raise ConfigError(f"no plugin brings the format {format.name}")


def _asked(format: Format, place: Path, question: Callable[[], T]) -> T:
    """A format's answer about files; whatever a plugin raises there becomes a `ModelError`."""
    try:
        return question()
    except PaddockError:
        raise
    except Exception as error:
        raise ModelError(f"cannot be looked up as {format.name}: {first_line(error)}", where=str(place)) from error


def _unknown(place: Path, registry: Registry) -> ModelError:
    endings = sorted({suffix for format in registry.formats.values() for suffix in format.suffixes})
    if place.exists():
        return ModelError(
            "is no model of a known format",
            where=str(place),
            candidates=[f"{f.name} ({', '.join(f.suffixes)})" for f in registry.formats.values()],
            remedy="Paddle models come from the plugin paddock-paddle; `paddock adapters` lists what is loaded",
        )
    beside = [p.name for p in place.parent.iterdir() if p.suffix in endings] if place.parent.is_dir() else []
    near = nearest(place.name, beside)
    return ModelError(
        "does not exist",
        where=str(place),
        candidates=sorted(beside)[:10],
        remedy=f"did you mean {near!r}?" if near else None,
    )


def _read_here(format: Format, files: Files) -> Mapping[str, Any]:
    # As plain data: what is kept is JSON, and a fresh reading must be no different from a kept one.
    graph: object = format.read(files)
    if not isinstance(graph, Graph):
        raise BuildFailed(f"read() returned a {type(graph).__name__}, not a Graph")
    data: Mapping[str, Any] = json.loads(json.dumps(asdict(graph)))
    return data


def _shapes_here(format: Format, model: Model, inputs: Mapping[str, tuple[int, ...]]) -> Mapping[str, list[int]]:
    # As plain data, like `_read_here`.
    found: object = format.shapes_at(model, inputs)
    values = model.graph.values
    right = isinstance(found, Mapping) and all(
        type(index) is int
        and 0 <= index < len(values)
        and isinstance(shape, tuple)
        and all(type(extent) is int and extent >= 0 for extent in shape)
        for index, shape in found.items()
    )
    if not isinstance(found, Mapping) or not right:
        raise ModelError(
            f"shapes_at() of the format {format.name} did not return shapes by the indices of the graph's values",
            where=str(next(iter(model.files.values()))),
            remedy="report this to the format plugin's author",
        )
    return {str(index): list(shape) for index, shape in found.items() if values[index].kind == "tensor"}


def _extract_here(format: Format, model: Model, segment: Segment, folder: Path) -> Files:
    return format.extract(model, segment, folder)


def _convert_here(format: Format, model: Model, target: str, folder: Path) -> tuple[Files, tuple[tuple[int, ...], ...]]:
    return format.convert(model, target, folder)
