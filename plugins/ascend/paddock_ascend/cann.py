"""Which CANN and driver are here, and which ones Paddle's library was built for: from files only, nothing is loaded.

A library of Paddle's that does not fit CANN ends `import paddle` with a crash, so this is asked before anything else.

Sources: CANN's installation guide (`ascend_toolkit_install.info` and `ascend_install.info` hold lines `version=8.0.0`;
`set_env.sh` sets ASCEND_TOOLKIT_HOME and ASCEND_HOME_PATH), the driver's `version.info` (`Version=23.0.3`), and
PaddleCustomDevice's README (`paddle_custom_device.npu.version()` prints `cann: 8.0.0`). None of it has met an Ascend.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from paddock.plan import Verdict

SOURCE = "CANN's and Paddle's files"

DEVICES = Path("/dev")
PLACES = (Path("/usr/local/Ascend/ascend-toolkit/latest"), Path("/usr/local/Ascend/cann"))
DRIVER = Path("/usr/local/Ascend/driver/version.info")
FIRMWARE = Path("/usr/local/Ascend/firmware/version.info")
VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")

_LARGEST = 1 << 20
"""Bytes of a file that is read for a version; a larger one is something else."""


@dataclass(frozen=True)
class Found:
    """Versions as their files state them; "" for what is not there or says nothing."""

    toolkit: str = ""
    driver: str = ""
    firmware: str = ""
    built_for: str = ""
    """The CANN that Paddle's library was built for."""
    devices: tuple[str, ...] = ()
    """The device files (`davinci0`), which the driver makes."""

    def versions(self) -> dict[str, str]:
        """What is known, by the name that reports show."""
        named = {"CANN": self.toolkit, "Ascend driver": self.driver, "Ascend firmware": self.firmware}
        return {name: version for name, version in named.items() if version}


def find(package: Path | None) -> Found:
    """What is installed here; `package` is the folder of Paddle's library for Ascend (`paddle_custom_device`)."""
    return Found(
        toolkit=_first(_version(file, "version") for file in _toolkit_files()),
        driver=_version(DRIVER, "Version"),
        firmware=_version(FIRMWARE, "Version"),
        built_for=_first(_version(file, "cann") for file in _package_files(package)),
        devices=tuple(sorted(path.name for path in DEVICES.glob("davinci[0-9]*"))),
    )


def judge(found: Found) -> Verdict:
    """Whether these fit each other: a device, its driver, a CANN, and a library of Paddle's built for this CANN."""
    if not found.devices:
        return Verdict.no("there is no Ascend NPU here (no /dev/davinci0)", SOURCE)
    if not found.toolkit:
        places = ", ".join((*VARIABLES, *map(str, PLACES)))
        return Verdict.no(f"CANN is not installed (looked at {places})", SOURCE)
    if found.built_for and _series(found.built_for) != _series(found.toolkit):
        return Verdict.no(
            f"Paddle's library was built for CANN {found.built_for}, and {found.toolkit} is installed: "
            "importing Paddle would crash",
            SOURCE,
        )
    if not found.built_for:
        return Verdict.provisional("the CANN that Paddle's library was built for is not stated", SOURCE)
    return Verdict.yes(f"CANN {found.toolkit}, driver {found.driver or 'of unknown version'}", SOURCE)


def _series(version: str) -> tuple[str, ...]:
    """Major and minor version: `8.0.RC2` and `8.0.0` are one series."""
    return tuple(version.split(".")[:2])


def _toolkit_files() -> Iterable[Path]:
    for place in (*(Path(os.environ[name]) for name in VARIABLES if os.environ.get(name)), *PLACES):
        yield from sorted(place.glob("*-linux/ascend_toolkit_install.info"))
        yield place / "ascend_toolkit_install.info"


def _package_files(package: Path | None) -> Iterable[Path]:
    if package is not None:
        yield from sorted(package.glob("npu/*.py"))


def _first(versions: Iterable[str]) -> str:
    return next((version for version in versions if version), "")


def _version(path: Path, name: str) -> str:
    """What a line `NAME = version` says, in any quotes; "" where there is none, or no such file."""
    try:
        if path.stat().st_size > _LARGEST:
            return ""
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    match = re.search(rf"^\s*(?:\w*_)?{name}\s*[=:]\s*['\"]?([0-9][\w.+-]*)", text, re.MULTILINE)
    return match[1] if match else ""
