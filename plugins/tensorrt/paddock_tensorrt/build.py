"""From an ONNX model to a serialised engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddock.errors import BuildFailed, MemoryRefused, Unsupported
from paddock.planning.memory import readable

from paddock_tensorrt.operators import parser_errors
from paddock_tensorrt.profiles import Profile
from paddock_tensorrt.progress import Bar, monitor
from paddock_tensorrt.sdk import Said, content, is_no_memory, made, trt


@dataclass(frozen=True)
class Request:
    """What to build.

    `content` is the model, its external data beside `path`; `workspace` bounds the scratch of any one layer, in bytes;
    `timing` is the file in which timings of kernels are kept for later builds on the same device; `readers` are the
    nodes that read each input, by its name.
    """

    content: bytes
    path: Path
    profiles: tuple[Profile, ...]
    tf32: bool = False
    optimization_level: int | None = None
    workspace: int | None = None
    timing: Path | None = None
    readers: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Settled:
    """What the build took for the settings that were asked for, as TensorRT gives them back."""

    tf32: bool
    optimization_level: int
    workspace: int
    timings: str = ""
    """Why kernels had to be timed anew although timings were kept; "" where they did not."""
    layers: int = 0


@dataclass
class Network:
    """A builder with its network, strongly typed, and the parser that fills it."""

    heard: Said
    builder: trt.Builder = field(init=False)
    network: trt.INetworkDefinition = field(init=False)
    parser: trt.OnnxParser = field(init=False)

    def __post_init__(self) -> None:
        logger = self.heard.logger
        self.builder = made("builder", lambda: trt.Builder(logger), self.heard)
        # 11 knows no other networks, and takes the flag without effect.
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = made("network", lambda: self.builder.create_network(typed), self.heard)
        self.parser = made("ONNX parser", lambda: trt.OnnxParser(self.network, logger), self.heard)


def build(request: Request, heard: Said, tell: Callable[[str], None]) -> tuple[bytes, Settled]:
    """The engine for the device of this thread, and what was settled.

    Raises:
        Unsupported: The parser does not take the model, with the nodes that it names; or numbers that are fed decide
            shapes, with the nodes that read them.
        BuildFailed: A profile does not fit, or TensorRT finds no way to run the network.
        MemoryRefused: The device has not the memory that building takes.
    """
    made_of = Network(heard)
    builder, network = made_of.builder, made_of.network
    if not made_of.parser.parse(request.content, str(request.path)):
        errors = parser_errors(made_of.parser)
        nodes = sorted({node for node, _ in errors if node >= 0})
        raise Unsupported(nodes, errors[0][1] if errors else heard.why("the parser does not say why"))
    config = made("builder configuration", builder.create_builder_config, heard)
    _configure(config, request)
    for profile in request.profiles:
        if config.add_optimization_profile(_stated(builder, network, profile, heard)) < 0:
            raise BuildFailed(f"TensorRT refuses the profile {profile}: {heard.why()}")
    _check_inputs(network, request.readers)
    timings = _kept_timings(config, request.timing, heard)
    bar = Bar(tell)
    config.progress_monitor = monitor(bar)
    serialized = builder.build_serialized_network(network, config)
    if bar.failed is not None:
        raise bar.failed
    if serialized is None:
        raise _not_built(heard.why(), request.workspace)
    heard.forget()
    if request.timing is not None:
        _keep_timings(config, request.timing)
    settled = Settled(
        tf32=config.get_flag(trt.BuilderFlag.TF32),
        optimization_level=config.builder_optimization_level,
        workspace=config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        timings=timings,
        layers=network.num_layers,
    )
    return content(serialized), settled


def _configure(config: trt.IBuilderConfig, request: Request) -> None:
    # On by default: products of float32 would then have 10 bits of mantissa.
    if request.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector tells names alone
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)


def _stated(
    builder: trt.Builder, network: trt.INetworkDefinition, profile: Profile, heard: Said
) -> trt.IOptimizationProfile:
    """The profile as TensorRT's; raises `BuildFailed` where the network has no such input, or it is refused."""
    made_of = made("optimisation profile", builder.create_optimization_profile, heard)
    known = {network.get_input(index).name for index in range(network.num_inputs)}
    for name, least, best, most in profile.inputs:
        if name not in known:
            raise BuildFailed(
                f"the profile is for the input {name!r}, which TensorRT's network has not", candidates=sorted(known)
            )
        try:
            made_of.set_shape(name, trt.Dims(least), trt.Dims(best), trt.Dims(most))
        except (RuntimeError, ValueError) as error:
            raise BuildFailed(f"TensorRT refuses the profile {profile}: {heard.why(str(error))}") from error
    return made_of


def _not_built(why: str, workspace: int | None) -> BuildFailed | MemoryRefused:
    if is_no_memory(why):
        return MemoryRefused(
            f"TensorRT has not the memory to build: {why}",
            remedy="free memory of the device, lower options.workspace_mib, or the shapes' largest extents",
        )
    # "Could not find any implementation" is, more often than not, too little workspace for each that there is.
    bound = "" if workspace is None else f"; the scratch of a layer was bounded to {readable(workspace)}"
    return BuildFailed(
        f"TensorRT finds no way to run the network: {why}{bound}",
        remedy="raise options.workspace_mib, or memory.limit, a part of which it is by default" if bound else None,
    )


def _check_inputs(network: trt.INetworkDefinition, readers: Mapping[str, Sequence[int]]) -> None:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise Unsupported(
                readers.get(tensor.name, ()),
                f"the numbers of the input {tensor.name!r} decide shapes: TensorRT would need a profile of its values, "
                "and a config states none; make it a constant of the model, or run what reads it on another adapter",
            )


def _kept_timings(config: trt.IBuilderConfig, path: Path | None, heard: Said) -> str:
    """Has the build take the timings kept in a file, and keep new ones; why they cannot be taken, else ""."""
    kept = b""
    if path is not None:
        try:
            kept = path.read_bytes()
        except OSError:
            kept = b""  # none yet
    cache = config.create_timing_cache(kept)
    if cache is not None and config.set_timing_cache(cache, False):
        return ""
    why = heard.why()
    cache = config.create_timing_cache(b"")
    if cache is not None:
        config.set_timing_cache(cache, False)
    return f"kept timings of kernels are not taken: {why}" if kept else ""


def _keep_timings(config: trt.IBuilderConfig, path: Path) -> None:
    """Writes the timings beside and moves them: whoever reads meanwhile gets the old ones whole."""
    cache = config.get_timing_cache()
    serialized = None if cache is None else cache.serialize()
    if serialized is None:
        return
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_bytes(content(serialized))
    beside.replace(path)


def told(profiles: Sequence[Profile]) -> list[str]:
    """The profiles in words, one a line; that there is none, where all shapes are fixed."""
    if not profiles:
        return ["all shapes are fixed: no optimisation profile"]
    return [f"optimisation profile {number}: {profile}" for number, profile in enumerate(profiles)]


def content_of(proto: Any) -> bytes:
    """A model as the parser takes it; raises `BuildFailed` where it is too large for one message."""
    try:
        return bytes(proto.SerializeToString())
    except ValueError as error:
        raise BuildFailed(
            f"the model is too large to be handed over: {error}", remedy="save its weights as external data"
        ) from error
