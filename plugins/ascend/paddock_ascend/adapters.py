"""`npu/ascend`: Huawei Ascend through Paddle's custom device `npu`, or the simulated NPU where that stands in for it.

What has run only on the simulator, and what has not run at all, stands in this distribution's README.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from paddock.errors import NotAvailable, StrictnessError
from paddock.model import Model
from paddock.plan import Precision, PrecisionPlan, Verdict
from paddock.spi import Footprint, Probe
from paddock_paddle import custom, sdk
from paddock_paddle.custom import CustomDeviceAdapter
from pydantic import BaseModel, ConfigDict

from paddock_ascend import cann, simulator

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
_LIST = re.compile(r"[0-9]+(,[0-9]+)*")

INSTALL = (
    "install the Ascend driver and CANN, then paddle-custom-npu of the version of paddlepaddle from Paddle's own "
    "package index; to try without an Ascend: export CUSTOM_DEVICE_ROOT=$(python -m paddock_ascend.simulator)"
)


_SIMULATED = Footprint(process=0, session=1 << 20, kept=1.01, loading=0.0, intermediates=3.3)
"""Of the simulated NPU's memory, where all there is are the tensors that Paddle allocates: weights once (1.00 times),
and 1.8 (ResNet-50) to 2.7 times (the decoder) the best layout of the intermediates, at batch 1 to 8 (Paddle 3.3.1)."""


class AscendOptions(BaseModel):
    """The options of `npu/ascend`: flags of Paddle's library for it. They hold for a whole process; see the README."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jit_compile: bool | None = None
    """FLAGS_npu_jit_compile: compile operators for the shapes they meet, instead of taking binaries. Left out, it is as
    the library has it."""
    storage_format: bool | None = None
    """FLAGS_npu_storage_format: convolutions and norms in the NPU's private layout. Left out, as the library has it."""

    def flags(self) -> dict[str, bool]:
        """What is asked for, by the option's name."""
        return {name: value for name, value in self if value is not None}


class NpuAscend(CustomDeviceAdapter):
    """An Ascend NPU, in fp32; it runs what Paddle's library has a kernel for."""

    hardware: ClassVar[str] = "npu"
    backend: ClassVar[str] = "ascend"
    aliases: ClassVar[tuple[str, ...]] = ("cann",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.FP16})
    Options: ClassVar[type[BaseModel]] = AscendOptions
    device_type: ClassVar[str] = "npu"
    distributions: ClassVar[tuple[str, ...]] = ("paddle-custom-npu",)
    environment: ClassVar[tuple[str, ...]] = (VISIBLE, *simulator.SETTINGS)

    @classmethod
    def probe_sdk(cls) -> Probe:
        """CANN, its driver, and whether Paddle's library fits them; or the simulated NPU that stands in.

        A list of devices that is none is refused: CANN would leave out what follows its first error, and say nothing.
        """
        shown = os.environ.get(VISIBLE)
        if shown and not _LIST.fullmatch(shown):
            reason = f"{VISIBLE}={shown!r} is no list of device numbers"
            return Probe(Verdict.no(reason, VISIBLE), {}, f"{VISIBLE}=0,1,2 (no spaces, no ranges), or unset it")
        simulated = simulator.here()
        if simulated is not None:
            versions = {simulator.NAME: simulated.digest}
            return Probe(Verdict.yes(f"{simulator.NAME}: no Ascend is involved", custom.ROOT), versions)
        place = custom.folder()
        found = cann.find(place)
        return Probe(cann.judge(found), found.versions(), INSTALL)

    @classmethod
    def describe(cls, index: int) -> tuple[str, int | None]:
        """Its name, with the number that it has where VISIBLE hides or reorders devices."""
        shown = os.environ.get(VISIBLE, "").split(",")
        name = simulator.NAME if simulator.here() is not None else "Ascend NPU"
        if index < len(shown) and shown[index]:
            name += f" (number {shown[index]} of the host)"
        return name, cls._memory(index)

    @classmethod
    def _memory(cls, index: int) -> int | None:
        if simulator.here() is None:
            return None  # nothing of Paddle's tells it, and no Ascend was here to ask
        return int(os.environ.get("PADDOCK_SIMULATOR_MEMORY") or simulator.MEMORY)

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint | None:
        """What was measured of the simulated NPU, as a bound; None for an Ascend, whose workspaces nobody saw."""
        return None if simulator.here() is None else _SIMULATED

    def configure(self, config: Any, facts: Mapping[str, Any]) -> None:
        """The device, and the flags that the options ask for."""
        super().configure(config, facts)
        assert isinstance(self.config.options, AscendOptions)
        _claim(self.config.options.flags())

    def read_back(self, config: Any) -> Mapping[str, Any]:
        """Beside what Paddle's configuration tells: the flags as they are."""
        assert isinstance(self.config.options, AscendOptions)
        asked = self.config.options.flags()
        found = sdk.import_quietly("paddle").get_flags([_flag(name) for name in asked]) if asked else {}
        return {**super().read_back(config), **{f"options.{name}": bool(found[_flag(name)]) for name in asked}}


_claimed: dict[str, bool] | None = None
"""The flags with which the first session of this process was loaded."""


def _claim(flags: dict[str, bool]) -> None:
    """Sets the flags for this process; raises where they cannot be had, or other sessions rest on others."""
    global _claimed
    if flags and simulator.here() is not None:
        raise StrictnessError(
            f"the {simulator.NAME} knows no such flags", where=f"$.options.{next(iter(flags))}", remedy="leave them out"
        )
    if _claimed is not None and _claimed != flags:
        raise NotAvailable(
            "its flags hold for a whole process, in which another deployment was loaded with others",
            where="$.options",
            candidates=[str(_claimed)],
            remedy="give both deployments the same options, or deploy them in processes of their own",
        )
    paddle = sdk.import_quietly("paddle")
    for name, value in flags.items():
        try:
            paddle.set_flags({_flag(name): value})
        except ValueError as error:
            raise StrictnessError(
                f"Paddle's library has no {_flag(name)}: {sdk.short(error)}",
                where=f"$.options.{name}",
                remedy="leave it out",
            ) from error
    _claimed = flags


def _flag(option: str) -> str:
    return f"FLAGS_npu_{option}"
