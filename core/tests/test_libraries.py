"""Shared libraries are found where the loader would find them, and none is loaded."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paddock import libraries
from paddock.libraries import file_version, find_driver, find_library, package_folders


@pytest.fixture(autouse=True)
def _anew() -> None:
    libraries._library_path.cache_clear()
    libraries._cached.cache_clear()


def test_the_c_library_is_where_the_loader_has_it() -> None:
    name = ctypes.util.find_library("c")
    assert name is not None
    found = find_library(name)
    assert found is not None and found.is_file()
    mapped = Path("/proc/self/maps").read_text()
    assert str(found) in mapped, "this process has loaded another one"


def test_what_is_nowhere_is_none() -> None:
    assert find_library("libpaddock-has-no-such.so.1") is None


def test_a_folder_of_the_callers_is_looked_through_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "libx.so.1.2.3").touch()
    (tmp_path / "libx.so.1").symlink_to("libx.so.1.2.3")
    found = find_library("libx.so.1", [tmp_path / "none", tmp_path])
    assert found == tmp_path / "libx.so.1.2.3"
    assert file_version(found) == "1.2.3"
    assert file_version(Path("libx.so")) == ""


def test_the_users_own_path_goes_before_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "wheel"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "libx.so.1").touch()
    assert find_library("libx.so.1", [tmp_path / "wheel"]) == tmp_path / "wheel" / "libx.so.1"
    libraries._library_path.cache_clear()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'absent'}:{tmp_path / 'mine'}")
    assert find_library("libx.so.1", [tmp_path / "wheel"]) == tmp_path / "mine" / "libx.so.1"


def test_the_loaders_cache_is_read_first_come_first_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libx.so.1").touch()
    cache = tmp_path / "cache"
    entries = ["libx.so.1", str(tmp_path / "libx.so.1"), "/elsewhere/libx.so.1", "/plain/file", "glibc-ld.so.cache1.1"]
    cache.write_bytes(b"\0".join(os.fsencode(entry) for entry in entries))
    monkeypatch.setattr(libraries, "_CACHE", cache)
    assert find_library("libx.so.1") == tmp_path / "libx.so.1"


def test_folders_of_wheels_are_found_where_python_imports_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vendor" / "lib").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "absent"), "", str(tmp_path), str(tmp_path)])
    assert package_folders("vendor", "lib") == (tmp_path / "vendor" / "lib",)


def test_nothing_is_loaded(tmp_path: Path) -> None:
    code = "from paddock.libraries import find_library as f; before = open('/proc/self/maps').read(); "
    code += "print(f('libresolv.so.2') is not None, 'libresolv' in open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


MODULES = {
    "vendor": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Jun  6 22:20:39 UTC 2023\nGCC version: 12.2.0\n",
    "open": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (a@b)\nGCC version: 12.2.0\n",
    "open, aarch64": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  {}  Release Build\n",
}
"""What /proc/driver/nvidia/version says, by whose kernel module it is."""


def driver(place: Path, monkeypatch: pytest.MonkeyPatch, library: str, said: str | None) -> libraries.Driver | None:
    """What is found where the library's file has this name and the kernel's module says this."""
    (place / "libdrive.so.1").unlink(missing_ok=True)
    (place / library).touch()
    if library != "libdrive.so.1":
        (place / "libdrive.so.1").symlink_to(library)
    (place / "chip").mkdir(exist_ok=True)
    (place / "chip" / "version").unlink(missing_ok=True)
    if said is not None:
        (place / "chip" / "version").write_text(said)
    monkeypatch.setattr(libraries, "_DRIVERS", place)
    libraries._library_path.cache_clear()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(place))
    return find_driver("chip", "libdrive.so.1")


@pytest.mark.parametrize("flavour", MODULES)
def test_a_drivers_version_is_the_kernel_modules_whosever_that_is(
    flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = driver(tmp_path, monkeypatch, "libdrive.so.580.65.06", MODULES[flavour].format("580.65.06"))
    assert found is not None
    assert (found.version, found.branch) == ("580.65.06", 580)


@pytest.mark.parametrize(
    ("library", "module", "version", "branch"),
    [
        ("libdrive.so.580.65.06", "535.54.03", "535.54.03", 580),  # a newer library put over an older driver
        ("libdrive.so.580.65.06", None, "580.65.06", 580),
        ("libdrive.so.1", "535.54.03", "535.54.03", 535),
        ("libdrive.so.1.1", None, "", 0),  # the version of its interface, as Windows' subsystem for Linux calls it
        ("libdrive.so.1", None, "", 0),
        ("libdrive.so.580.65.06", "TempVersion", "580.65.06", 580),
    ],
)
def test_a_driver_is_as_new_as_its_library(
    library: str, module: str | None, version: str, branch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = None if module is None else MODULES["open, aarch64"].format(module)
    found = driver(tmp_path, monkeypatch, library, said)
    assert found == libraries.Driver(tmp_path / library, version, branch)


def test_without_its_library_there_is_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert driver(tmp_path, monkeypatch, "libdrive.so.1", MODULES["open"].format("580.1.1")) is not None
    (tmp_path / "libdrive.so.1").unlink()
    assert find_driver("chip", "libdrive.so.1") is None
