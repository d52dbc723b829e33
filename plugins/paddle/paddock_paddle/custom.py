"""Paddle Inference on a custom device: the base for every vendor who enters Paddle by a library of their own.

A vendor's adapter names what the library registers, and reads the SDK's versions from files:

    class NpuAcme(CustomDeviceAdapter):
        hardware: ClassVar[str] = "npu"
        backend: ClassVar[str] = "acme"
        precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32})
        device_type: ClassVar[str] = "acme"
        distributions: ClassVar[tuple[str, ...]] = ("paddle-custom-acme",)
        environment: ClassVar[tuple[str, ...]] = ("ACME_VISIBLE_DEVICES",)

        @classmethod
        def probe_sdk(cls) -> Probe: ...

What Paddle does silently is made visible in three places. A node for which the device has no kernel, which Paddle would
run on the CPU, is refused with that reason, so that the config's fallback decides. `compile` makes a predictor once and
reads which kernels Paddle really placed on the CPU: nodes that were to run on the device are refused then, and so is a
model to which Paddle's passes add operations that compute there. And a session whose kernels lie elsewhere than when it
was compiled is not loaded.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from paddock.errors import BuildFailed, Exhausted, MemoryRefused, NotAvailable, PaddockError, RunFailed, Unsupported
from paddock.model import Model
from paddock.plan import Precision, Verdict
from paddock.spi import Arrays, Artifact, Context, Device, Devices, Observed, Probe, SegmentPlan, Selection, Session

from paddock_paddle import sdk
from paddock_paddle.adapters import PaddleAdapter
from paddock_paddle.predictor import PaddleSession

if TYPE_CHECKING:
    import numpy as np

    from paddock_paddle.placer import Placer

ROOT = "CUSTOM_DEVICE_ROOT"
BLACK_LIST = "CUSTOM_DEVICE_BLACK_LIST"

_NO_MEMORY = ("ResourceExhausted", "Out of memory", "CustomDevice error, the error code is : 2")
"""What Paddle says where an allocation on a device fails; 2 is C_FAILED of device_ext.h: the resource is exhausted."""

_PROGRAM = "the program that Paddle made"


class DeviceSession(PaddleSession):
    """A predictor on a custom device."""

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """As on the CPU; says so where the device's memory does not suffice, which Paddle tells by a number."""
        try:
            return super().run(feeds, outputs)
        except RunFailed as error:
            if _is_out_of_memory(error):
                raise Exhausted(
                    f"the device has not enough memory for this request: {error.problem}",
                    remedy="smaller requests (batch_size, shapes), or fewer instances on the device",
                ) from error
            raise

    def observed(self) -> Observed:
        """As on the CPU, but for the nodes: only the kernels on a device count, not those on the host."""
        return replace(super().observed(), nodes=self.realised.apart)


class CustomDeviceAdapter(PaddleAdapter):
    """Paddle Inference on one type of custom device.

    Every process that imports Paddle loads the libraries that are installed: a device's library shares its process with
    all of Paddle, and cannot be loaded later. What it reads from the environment it reads then, once.
    """

    session: ClassVar[type[PaddleSession]] = DeviceSession
    device_type: ClassVar[str]
    """What its library registers: an entry of `paddle.device.get_all_custom_device_type()`."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """The distributions that may bring the library, whose versions belong to every answer."""
    environment: ClassVar[tuple[str, ...]] = (BLACK_LIST,)

    @classmethod
    def probe_sdk(cls) -> Probe:
        """Whether the vendor's own SDK and driver are here and fit: from files, since loading may crash."""
        return Probe(Verdict.yes("nothing more is asked", "the adapter's declaration"))

    @classmethod
    def describe(cls, index: int) -> tuple[str, int | None]:
        """The name of a device and the bytes of its memory, where they are known; runs where Paddle is imported."""
        return f"{cls.device_type}:{index}", None

    @classmethod
    def probe(cls) -> Probe:
        """Whether Paddle, the SDK and a library that Paddle would load are here; imports and loads nothing."""
        paddle = super().probe()
        if not paddle.verdict.usable:
            return paddle
        found = cls.probe_sdk()
        versions = {**paddle.versions, **_versions(cls.distributions), **found.versions}
        named = os.environ.get(ROOT)
        if named and not libraries():
            lacks = "there is no library (*.so)" if Path(named).is_dir() else "is no folder"
            reason = f"{ROOT}={named}: {lacks}, and Paddle looks for devices nowhere else"
            return Probe(Verdict.no(reason, ROOT), versions, f"let {ROOT} name the folder of the library, or unset it")
        if found.verdict.usable and not libraries():
            place = folder()
            reason = f"Paddle has no library of a custom device: none in {place or 'paddle_custom_device'}"
            return Probe(Verdict.no(reason, ROOT), versions, found.remedy)
        return Probe(found.verdict, versions, found.remedy)

    @classmethod
    def probe_device(cls) -> Devices:
        """The devices that the library shows; imports Paddle, which loads it."""
        from paddock_paddle.kernels import registry  # like all of selection, not needed to serve what is kept

        paddle = sdk.import_quietly("paddle")
        source = "paddle.device.get_all_custom_device_type()"
        types = paddle.device.get_all_custom_device_type()
        if cls.device_type not in types:
            known = f"only {', '.join(types)}" if types else "none"
            return Devices(Verdict.no(f"no library registers the type {cls.device_type} ({known} there)", source))
        count = int(paddle.base.core.get_custom_device_count(cls.device_type))
        if not count:
            told = [f"{name}={os.environ[name]!r}" for name in cls.environment if name in os.environ]
            given = f" with {', '.join(told)} in the environment" if told else ""
            return Devices(Verdict.no(f"no device of the type {cls.device_type} is visible{given}", source))
        kernels = [dtypes[cls.device_type] for dtypes in registry().values() if cls.device_type in dtypes]
        precisions = {precision: _computes(precision, kernels) for precision in sorted(cls.precisions)}
        described = [cls.describe(index) for index in range(count)]
        devices = [Device(i, name, precisions, size, cls.hardware) for i, (name, size) in enumerate(described)]
        facts = {"paddlepaddle": str(paddle.version.full_version), "kernels": len(kernels)}
        return Devices(Verdict.yes("", source), tuple(devices), facts)

    def selector(self, model: Model) -> Placer:
        """The device's own kernels, and nothing that Paddle would leave to the CPU."""
        from paddock_paddle.placer import Placer

        return Placer(model.graph, backend=self.device_type)

    def select_operators(self, model: Model, context: Context) -> Selection:
        """A verdict for each node; where only the device is missing, what its library would have to tell is open."""
        from paddock_paddle.kernels import REGISTRY

        verdicts = super().select_operators(model, context).verdicts
        if self.device is None:
            unknown = Verdict.provisional("its kernels are told by its library, which is not here", REGISTRY)
            verdicts = tuple(unknown if v.source == REGISTRY and not v.usable else v for v in verdicts)
        return Selection(verdicts)

    def device_facts(self) -> Mapping[str, Any]:
        """Which device, by its index among those visible."""
        return {"device": self.index}

    @property
    def index(self) -> int:
        """The device's index among those visible."""
        return self.config.config.devices[0]

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """As for any device of Paddle's; then a predictor is made, to see where its kernels are.

        Raises:
            Unsupported: Paddle placed operations on the CPU that were to run on the device, or that its passes made;
                no nodes are named for those, since which ones they come of cannot be told.
        """
        artifact = super().compile(model, plan, context)
        session = self._session(artifact, context)
        realised = session.realised
        session.close()
        if not realised.kernels:
            raise BuildFailed("Paddle does not tell where it placed its kernels", where=_PROGRAM)
        hosted = realised.hosted(self.device_type)
        placer = self.selector(model)
        strayed, added = placer.strayed(hosted), placer.added(hosted, realised.begun)
        if strayed or added:
            names = [*sorted({model.graph.nodes[node].op for node in strayed})]
            names += [f"{name} (its passes add it to the model)" for name in added]
            raise Unsupported(strayed, f"Paddle would run them on the CPU: {', '.join(names)}")
        return replace(artifact, facts={**artifact.facts, "hosted": hosted})

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A predictor on the device; raises `BuildFailed` where its kernels lie elsewhere than when it was compiled."""
        session = self._session(artifact, context)
        found, known = session.realised.hosted(self.device_type), artifact.facts["hosted"]
        if found != known:
            session.close()
            new = sorted(set(found) - set(known)) or sorted(found)
            raise BuildFailed(
                f"Paddle would run {', '.join(new)} on the CPU, which it did not when the model was compiled",
                where=_PROGRAM,
            )
        return session

    def _session(self, artifact: Artifact, context: Context) -> PaddleSession:
        try:
            session = super().load(artifact, context)
        except BuildFailed as error:
            if _is_out_of_memory(error):
                raise MemoryRefused(
                    f"the device has not enough memory to load the model: {error.problem}",
                    remedy="free some of it, or use another device",
                ) from error
            raise
        assert isinstance(session, PaddleSession)
        return session

    def configure(self, config: Any, facts: Mapping[str, Any]) -> None:
        """The device; asked for first, since Paddle ends the process for one that is not there."""
        paddle = sdk.import_quietly("paddle")
        count = 0
        if self.device_type in paddle.device.get_all_custom_device_type():
            count = paddle.base.core.get_custom_device_count(self.device_type)
        if facts["device"] >= count:
            raise NotAvailable(
                f"Paddle has {count or 'no'} devices of the type {self.device_type} in this process, "
                f"and number {facts['device']} is asked for",
                remedy="what makes them visible has to be set before the process imports Paddle",
            )
        config.disable_mkldnn()
        config.enable_custom_device(self.device_type, facts["device"])


def folder() -> Path | None:
    """Where Paddle looks for libraries of custom devices in a process that is started now; None: nowhere."""
    if ROOT in os.environ:
        return Path(os.environ[ROOT]) if os.environ[ROOT] else None
    try:
        spec = importlib.util.find_spec("paddle")
    except ValueError:  # a module without a spec stands in its place
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parents[1] / "paddle_custom_device"


def libraries() -> Sequence[Path]:
    """The libraries that Paddle would load."""
    place = folder()
    return () if place is None else sorted(place.glob("*.so"))


def _is_out_of_memory(error: PaddockError) -> bool:
    return any(sign in error.problem for sign in _NO_MEMORY)


def _versions(distributions: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _computes(precision: Precision, kernels: Sequence[frozenset[str]]) -> Verdict:
    if precision is not Precision.FP32:
        return Verdict.no(
            "Paddle ignores without a word what enable_custom_device is told of a precision, for PIR programs",
            "measured with paddlepaddle 3.3.1",
        )
    from paddock_paddle.kernels import REGISTRY

    count = sum("float32" in dtypes for dtypes in kernels)
    if not count:
        return Verdict.no("the library has no kernel that takes float32", REGISTRY)
    return Verdict.yes(f"{count} of the library's kernels take float32", REGISTRY)
