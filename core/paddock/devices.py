"""The device that a config gets: one that is here or, for a plan that is only looked at, one that is assumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddock.config import HardwareConfig
from paddock.errors import ConfigError, NotAvailable
from paddock.plan import Answer, Precision, Verdict
from paddock.spi import Adapter, Device, Devices

_HOST = "cpu"
"""The hardware whose memory is the host's."""


def devices_from(data: Mapping[str, Any]) -> Devices:
    """What was kept of a probe, as JSON data: it was checked before. Raises what foreign data makes Python raise."""
    found = tuple(
        Device(
            each["index"],
            each["name"],
            {Precision(precision): _verdict(told) for precision, told in each["precisions"].items()},
            each["memory"],
            each["memory_kind"],
        )
        for each in data["devices"]
    )
    return Devices(_verdict(data["verdict"]), found, data["facts"], data.get("remedy", ""))


def _verdict(told: Mapping[str, Any]) -> Verdict:
    return Verdict(Answer(told["answer"]), told["reason"], told["source"])


def pick_device(name: str, devices: Devices, config: HardwareConfig) -> Device:
    """The config's device among those here; `NotAvailable` where it is not, or does not compute in the precision."""
    known = {device.index: device for device in devices.devices}
    for index in config.devices:
        if index not in known:
            raise NotAvailable(
                f"{name} has no device {index} here",
                where="$.devices",
                candidates=[f"{d.index} ({d.name})" for d in devices.devices],
            )
    if len(config.devices) > 1:
        raise _several()
    device = known[config.devices[0]]
    verdict = device.precisions.get(config.precision, Verdict.no("the device does not list it"))
    if not verdict.usable:
        raise NotAvailable(
            f"{name} does not compute in {config.precision} on {device.name}: {verdict.reason}",
            where="$.precision",
            candidates=sorted(p for p, v in device.precisions.items() if v.usable),
            remedy="choose one of these, or another backend",
        )
    return device


def assumed_device(adapter: type[Adapter], config: HardwareConfig) -> Device:
    """A device that does what the adapter declares, of unknown memory: nothing runs on it."""
    if len(config.devices) > 1:
        raise _several()
    declared = Verdict.provisional("the device is not here", "the adapter's declaration")
    precisions = dict.fromkeys(sorted(adapter.precisions), declared)
    return Device(config.devices[0], "a device that is not here", precisions, None, memory_kind(adapter.hardware))


def memory_kind(hardware: str) -> str:
    """Whose memory a device of this hardware works in, as far as its name tells: see `Device`."""
    return "host" if hardware == _HOST else hardware


def _several() -> ConfigError:
    return ConfigError(
        "several devices for one deployment are not available in this version",
        where="$.devices",
        remedy="make one deployment for each device",
    )
