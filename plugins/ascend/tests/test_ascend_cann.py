"""What is told of CANN, its driver and Paddle's library, from files laid out as their documentation has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddock.plan import Answer
from paddock_ascend import cann, simulator
from paddock_ascend.adapters import VISIBLE, NpuAscend


class Host:
    """A folder that stands for a host with an Ascend."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in (*cann.VARIABLES, simulator.ROOT):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(cann, "DEVICES", folder / "dev")
        monkeypatch.setattr(cann, "PLACES", (folder / "latest", folder / "cann"))
        monkeypatch.setattr(cann, "DRIVER", folder / "driver.info")
        monkeypatch.setattr(cann, "FIRMWARE", folder / "firmware.info")

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def whole(self, built_for: str = "8.0.0", toolkit: str = "8.0.RC2") -> None:
        self.write("dev/davinci0", "")
        self.write("dev/davinci_manager", "")
        self.write("latest/aarch64-linux/ascend_toolkit_install.info", f"package_name=Ascend-cann\nversion={toolkit}\n")
        self.write("driver.info", "Version=23.0.3\nascendhal_version=7.35.19\n")
        self.write("firmware.info", "Version=7.1.0.5.220\n")
        self.write("package/npu/__init__.py", f"commit = 'abc'\ncann = '{built_for}'\n" if built_for else "")

    def found(self) -> cann.Found:
        return cann.find(self.folder / "package")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_versions_that_fit_are_a_yes(host: Host) -> None:
    host.whole()
    found = host.found()
    assert found.versions() == {"CANN": "8.0.RC2", "Ascend driver": "23.0.3", "Ascend firmware": "7.1.0.5.220"}
    assert found.built_for == "8.0.0" and found.devices == ("davinci0",)
    assert cann.judge(found).answer is Answer.YES


def test_a_library_for_another_cann_is_refused_before_it_is_loaded(host: Host) -> None:
    host.whole(built_for="7.0.1")
    verdict = cann.judge(host.found())
    assert verdict.answer is Answer.NO and "7.0.1" in verdict.reason and "8.0.RC2" in verdict.reason


def test_a_library_that_does_not_say_its_cann_is_provisional(host: Host) -> None:
    host.whole(built_for="")
    assert cann.judge(host.found()).answer is Answer.PROVISIONAL


def test_what_is_missing_is_named(host: Host) -> None:
    assert "no Ascend NPU" in cann.judge(host.found()).reason
    host.write("dev/davinci0", "")
    verdict = cann.judge(host.found())
    assert "CANN is not installed" in verdict.reason and str(host.folder / "cann") in verdict.reason


def test_where_the_environment_says_goes_before_the_usual_places(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.whole()
    host.write("mine/ascend_toolkit_install.info", "version=8.5.0\n")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(host.folder / "mine"))
    assert host.found().toolkit == "8.5.0"


@given(content=st.binary(max_size=300))
def test_no_content_of_a_file_is_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("info") / "version.info"
    path.write_bytes(content)
    assert isinstance(cann._version(path, "Version"), str)


def test_a_huge_file_and_a_folder_are_no_version(tmp_path: Path) -> None:
    path = tmp_path / "version.info"
    path.write_text("Version=1.0\n" + " " * cann._LARGEST)
    assert cann._version(path, "Version") == "" == cann._version(tmp_path, "Version")


@pytest.mark.parametrize("shown", ["a", "0-3", " 1 , 0", "1,", "-1", "0,x", "\u0661"])
def test_a_list_of_devices_that_is_none_is_named(host: Host, monkeypatch: pytest.MonkeyPatch, shown: str) -> None:
    pytest.importorskip("paddle")
    host.whole()
    monkeypatch.setenv(VISIBLE, shown)
    probe = NpuAscend.probe()
    assert not probe.verdict.usable and f"{VISIBLE}={shown!r}" in probe.verdict.reason
    assert VISIBLE in probe.remedy and "CANN" not in probe.verdict.reason


@pytest.mark.parametrize("shown", ["", "0", "3,1"])
def test_a_list_of_devices_is_none_of_the_sdks_business(
    monkeypatch: pytest.MonkeyPatch, host: Host, shown: str
) -> None:
    host.whole()
    before = NpuAscend.probe_sdk()
    monkeypatch.setenv(VISIBLE, shown)
    assert NpuAscend.probe_sdk() == before


@pytest.mark.parametrize(("name", "lacks"), [("nowhere", "is no folder"), (".", "no library")])
def test_a_root_without_a_library_is_named(host: Host, monkeypatch: pytest.MonkeyPatch, name: str, lacks: str) -> None:
    """Even where there is no Ascend either: who sets it means another device, or the simulated one."""
    pytest.importorskip("paddle")
    monkeypatch.setenv(simulator.ROOT, str(host.folder / name))
    probe = NpuAscend.probe()
    assert f"{simulator.ROOT}={host.folder / name}" in probe.verdict.reason and lacks in probe.verdict.reason
    assert simulator.ROOT in probe.remedy


def test_probing_reads_files_and_imports_nothing(host: Host) -> None:
    pytest.importorskip("paddle")
    host.whole()
    probe = NpuAscend.probe()
    assert not probe.verdict.usable and "paddle-custom-npu" in probe.remedy  # Paddle has no library of a device here
    assert probe.versions["CANN"] == "8.0.RC2"
    code = (
        "import sys; from paddock_ascend.plugin import paddock_adapters; (a,) = paddock_adapters()\n"
        "print(a.probe().verdict.answer, sorted({'paddle', 'ctypes'} & set(sys.modules) - before))"
    ).replace("import sys;", "import ctypes, sys; before = {'ctypes'};")
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "no []\n"
