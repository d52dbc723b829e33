"""Discovery, probing and resolution, with small distributions made for each test and installed in a folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paddock import registry as registry_module
from paddock import show
from paddock.child import call_in_child
from paddock.config import HardwareConfig
from paddock.errors import ConfigError, NotAvailable, PaddockError
from paddock.spi import SPI_VERSION, Event
from paddock_shop import ADAPTERS, HEAD, Shop, plugin
from rich.console import Console


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PADDOCK_ALLOW", raising=False)
    monkeypatch.setattr(registry_module, "tried", lambda *found: {})  # half a second for each plugin that is new
    return Shop(tmp_path)


def config(backend: str, **more: Any) -> HardwareConfig:
    return HardwareConfig.load({"hardware": "cpu", "backend": backend, **more})


def test_a_good_plugin_is_found(shop: Shop) -> None:
    shop.adapter("good-plugin", "good")
    registry = shop.discover()
    assert registry.names() == ["cpu/good"]
    assert plugin(registry, "good-plugin").adapters == ("cpu/good",)
    assert plugin(registry, "good-plugin").verdict.usable
    assert plugin(registry, "paddock").formats == ("onnx",)
    resolved = registry.resolve(config("good"))
    assert (resolved.name, resolved.skipped) == ("cpu/good", ())
    assert resolved.versions["good-plugin"].startswith("1.0+")


FORMAT = """
class F(Format):
    spi_version = 1
    def locate(self, path): ...
    def read(self, files): ...
"""
FORMATS = "@hookimpl\ndef paddock_formats(): return [F()]\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no licence\\nsecond line')", "failed to import: RuntimeError: no licence second line"),
        ("import sys; sys.exit('bye')", "failed to import: SystemExit: bye"),
        ("import no_such_sdk_anywhere", "failed to import: ModuleNotFoundError"),
        ("def broken(:", "failed to import: SyntaxError"),
        ("", "registers nothing"),
        (HEAD + "def paddock_adapters(): return [Base]", "registers nothing"),  # not marked as a hook
        (HEAD + "def paddock_observe(event): ...", "registers nothing"),
        (HEAD + "@hookimpl\ndef paddock_adapters(): return [42]", "42 is no Adapter class"),
        (HEAD + "@hookimpl\ndef paddock_adapters(): return 42", "not iterable"),
        (HEAD + "@hookimpl\ndef paddock_adapters(): return 'cpu'", "'c' is no Adapter class"),
        (HEAD + "@hookimpl\ndef paddock_adapters(): return None", "registers nothing"),
        (HEAD + "@hookimpl\ndef paddock_adapters(): raise OSError('no device')", "OSError: no device"),
        (HEAD + "@hookimpl\ndef paddock_adapters(): sys.exit(4)", "SystemExit: 4"),
        (HEAD + "@hookimpl\ndef paddock_adapters(wrong): return []", "wrong"),
        (HEAD + "@hookimpl\ndef paddock_adaptors(): return []", "paddock_adaptors"),
        (HEAD + "class A(Base):\n  backend='a'\n" + ADAPTERS + "@hookimpl\ndef paddock_obsrve(event): ...", "obsrve"),
        (HEAD + "class A(Base): ...\n" + ADAPTERS, "A does not declare backend"),
        (HEAD + "class A(Base):\n  backend = 7\n" + ADAPTERS, "non-empty strings"),
        (HEAD + "class A(Base):\n  backend = ''\n" + ADAPTERS, "non-empty strings"),
        (HEAD + "class A(Base):\n  backend = 'a'; formats = ('onnx')\n" + ADAPTERS, "formats is a tuple of strings"),
        (HEAD + "class A(Base):\n  backend = 'a'; aliases = 'alias'\n" + ADAPTERS, "aliases is a tuple of strings"),
        (HEAD + "class A(Base):\n  backend = 'a'; precisions = {'fp32'}\n" + ADAPTERS, "precisions holds"),
        (HEAD + "class A(Base):\n  backend = 'a'; Options = dict\n" + ADAPTERS, "Options is a pydantic model"),
        (HEAD + "class A(Base):\n  backend = 'a'; concurrency = 'serial'\n" + ADAPTERS, "concurrency is"),
        (HEAD + "class A(Base):\n  backend = 'a'; references = {'onnx': 0}\n" + ADAPTERS, "references holds"),
        (HEAD + "class A(Base):\n  backend = 'a'; contends = 'no'\n" + ADAPTERS, "contends is True or False"),
        (
            HEAD + "class A(Base):\n  backend = 'a'; tunables = {'options.x': 'on'}\n" + ADAPTERS,
            "tunables holds a tuple",
        ),
        (HEAD + "class A(Base):\n  backend = 'a'; tunables = {'options.x': (1,)}\n" + ADAPTERS, "none of its options"),
        (HEAD + "class A(Base):\n  backend = 'a'; savers = {'threads': (1,)}\n" + ADAPTERS, "savers names threads"),
        (HEAD + "class A(Base):\n  backend = 'a'; spi_version = '1'\n" + ADAPTERS, "does not declare spi_version"),
        (HEAD + "class A(Base):\n  backend = 'a'; spi_version = 99\n" + ADAPTERS, "upgrade paddock"),
        (
            HEAD + "class A(Adapter):\n  hardware='cpu'; backend='a'; spi_version=1; formats=('onnx',); "
            "precisions=frozenset()\n@hookimpl\ndef paddock_adapters(): return [A]",
            "does not write compile, load, select_operators",
        ),
        (HEAD + FORMAT + FORMATS, "name is a non-empty string"),
        (HEAD + FORMAT + "F.name = 'f'; F.suffixes = '.f'\n" + FORMATS, "suffixes is a tuple of strings"),
        (HEAD + FORMAT + "F.name = 'onnx'; F.suffixes = ('.x',)\n" + FORMATS, "onnx is already brought by paddock"),
        (HEAD + FORMAT + "F.name = 'f'; F.suffixes = (); F.spi_version = 99\n" + FORMATS, "upgrade paddock"),
        (HEAD + "@hookimpl\ndef paddock_formats(): return ['onnx']", "'onnx' is no Format"),
    ],
)
def test_a_bad_plugin_is_listed_with_its_reason_and_disturbs_nothing(shop: Shop, source: str, reason: str) -> None:
    shop.adapter("a-good-plugin", "first")
    shop.distribution("bad-plugin", source)
    shop.adapter("good-plugin", "good")
    registry = shop.discover()
    bad = plugin(registry, "bad-plugin")
    assert not bad.verdict.usable
    assert reason in bad.verdict.reason
    assert "\n" not in bad.verdict.reason
    assert (bad.adapters, bad.formats) == ((), ())
    assert registry.names() == ["cpu/first", "cpu/good"]
    assert list(registry.formats) == ["onnx"]
    registry.observe(Event("plan", "d"))
    assert registry.observer_failures == []
    with pytest.raises(NotAvailable) as caught:
        registry.get("cpu/nothing-like-it")
    assert "bad-plugin" in caught.value.problem and reason in caught.value.problem


def test_a_newer_contract_is_a_verdict_that_names_both_versions(shop: Shop) -> None:
    shop.adapter("newer", "newer", f"spi_version = {SPI_VERSION + 1}")
    reason = plugin(shop.discover(), "newer").verdict.reason
    assert f"version {SPI_VERSION + 1}" in reason and f"has {SPI_VERSION}" in reason


@pytest.mark.parametrize("value", ["shop_no_module", "json:no_attribute", "os:sep", "json:loads"])
def test_entry_points_that_lead_to_no_plugin(shop: Shop, value: str) -> None:
    shop.metadata("bad", {"plugin": value})
    shop.adapter("good", "good")
    registry = shop.discover()
    assert not plugin(registry, "bad").verdict.usable
    assert registry.names() == ["cpu/good"]


def test_what_an_interrupted_uninstall_leaves_is_listed(shop: Shop) -> None:
    shop.metadata("-alf-gone", {"plugin": "shop_no_module"}, known=False)
    shop.adapter("good", "good")
    registry = shop.discover()
    assert registry.names() == ["cpu/good"]
    assert [p.verdict.usable for p in registry.plugins] == [True, False, True]


def test_two_distributions_with_one_entry_point_name_both_load(shop: Shop) -> None:
    shop.adapter("one", "one", point="same")
    shop.adapter("two", "two", point="same")
    assert shop.discover().names() == ["cpu/one", "cpu/two"]


def test_a_module_named_twice_is_rejected_once_and_still_observes(shop: Shop, tmp_path: Path) -> None:
    log = tmp_path / "log"
    observer = f"\n@hookimpl\ndef paddock_observe(event): Path({str(log)!r}).write_text(event.kind)\n"
    module = shop.distribution("one", HEAD + observer)
    shop.metadata("two", {"plugin": module})
    registry = shop.discover()
    assert plugin(registry, "one").verdict.usable
    assert "already registered" in plugin(registry, "two").verdict.reason
    registry.observe(Event("plan", "d"))
    assert log.read_text() == "plan"


def test_two_adapters_for_one_name_is_an_error_that_names_both(shop: Shop) -> None:
    shop.adapter("vendor-one", "same")
    shop.adapter("vendor-two", "same")
    shop.adapter("good", "good")
    registry = shop.discover()
    with pytest.raises(ConfigError) as caught:
        registry.resolve(config("same"))
    assert caught.value.candidates == ("vendor-one 1.0", "vendor-two 1.0")
    assert registry.resolve(config("good")).name == "cpu/good"
    assert shop.discover(only=["vendor-two"]).get("cpu/same").distribution == "vendor-two"


def test_aliases(shop: Shop) -> None:
    shop.adapter("p", "mkldnn", 'aliases = ("onednn",)')
    registry = shop.discover()
    assert registry.canonical("cpu/onednn") == "cpu/mkldnn"
    assert registry.resolve(config("onednn")).name == "cpu/mkldnn"
    assert registry.canonical("gpu/onednn") == "gpu/onednn"
    assert registry.canonical("cpu/dnn") == "cpu/dnn"
    for alias, distribution in (("npu/cann", "paddock-ascend"), ("gpu/trt", "paddock-tensorrt")):
        with pytest.raises(NotAvailable) as caught:
            registry.get(alias)
        assert distribution in caught.value.problem
        assert f"pip install {distribution}" in (caught.value.remedy or "")
    with pytest.raises(NotAvailable, match="npu/ascend"):
        registry.get("npu/cann")


def test_a_real_name_goes_before_an_alias(shop: Shop) -> None:
    shop.adapter("a-squatter", "other", 'aliases = ("real",)')
    shop.adapter("real-plugin", "real")
    assert shop.discover().get("cpu/real").distribution == "real-plugin"


def test_an_alias_of_two_adapters_is_an_error_that_names_both(shop: Shop) -> None:
    shop.adapter("one", "one", 'aliases = ("fast",)')
    shop.adapter("two", "two", 'aliases = ("fast",)')
    with pytest.raises(ConfigError) as caught:
        shop.discover().get("cpu/fast")
    assert caught.value.candidates == ("cpu/one", "cpu/two")


def test_a_misspelt_name_gets_a_suggestion(shop: Shop) -> None:
    shop.adapter("p", "wonderful")
    with pytest.raises(NotAvailable) as caught:
        shop.discover().resolve(config("wonderfull"))
    assert caught.value.remedy == "did you mean 'cpu/wonderful'?"
    assert caught.value.candidates == ("cpu/wonderful",)
    with pytest.raises(NotAvailable) as far:
        shop.discover().resolve(config("zzz"))
    assert "paddock adapters" in (far.value.remedy or "")


ABSENT = (
    "@classmethod\ndef probe(cls): return Probe(Verdict.no('its SDK is not installed', 'm'), remedy='pip install it')"
)


def test_candidates_in_their_order_and_why_others_were_passed_over(shop: Shop) -> None:
    shop.adapter("absent", "absent", ABSENT)
    shop.adapter("one", "one")
    shop.adapter("two", "two")
    registry = shop.discover()
    found = registry.resolve(config("absent", candidates=["npu/ascend", "cpu/two", "cpu/one"]))
    assert found.name == "cpu/two"
    assert [name for name, _ in found.skipped] == ["cpu/absent", "npu/ascend"]
    assert "its SDK is not installed" in found.skipped[0][1]
    assert "paddock-ascend" in found.skipped[1][1]
    assert registry.resolve(config("one", candidates=["cpu/two"])).skipped == ()
    with pytest.raises(NotAvailable) as alone:
        registry.resolve(config("absent"))
    assert alone.value.remedy == "pip install it"
    with pytest.raises(NotAvailable) as caught:
        registry.resolve(config("absent", candidates=["npu/ascend"]))
    assert [line.partition(":")[0] for line in caught.value.candidates] == ["cpu/absent", "npu/ascend"]


LOST = """
@classmethod
def probe_device(cls):
    from paddock.errors import NotAvailable
    raise NotAvailable("the driver does not start", remedy="restart the host")
"""


def test_what_to_do_about_a_device_that_does_not_answer_is_what_it_says(shop: Shop) -> None:
    """Not a pointer to where the same is told again."""
    shop.adapter("lost", "lost", LOST)
    registry = shop.discover()
    with pytest.raises(NotAvailable, match="the driver does not start") as refused:
        registry.resolve(config("lost"))
    assert refused.value.remedy == "restart the host"
    shown = io.StringIO()
    show.show_adapters(Console(file=shown, width=300), registry.survey(), ())
    assert "the driver does not start; restart the host" in shown.getvalue()


OPTIONS = """
class O(BaseModel):
    model_config = ConfigDict(extra="forbid")
    level: int = 1
    layout: str = "nchw"
"""
DEVICES = """Options = O
precisions = frozenset({Precision.FP32, Precision.BF16, Precision.FP16})
@classmethod
def probe_device(cls):
    here = {Precision.FP32: Verdict.yes(), Precision.BF16: Verdict.no("the CPU has no bf16", "cpuid")}
    return Devices(Verdict.yes(), (Device(0, "zero", here), Device(3, "three", here)), {"driver": [1, 2]})
"""


def test_devices_precisions_and_options(shop: Shop) -> None:
    shop.adapter("p", "p", DEVICES, before=OPTIONS)
    registry = shop.discover()
    assert registry.resolve(config("p", devices=[3])).device.name == "three"
    refusals: list[tuple[dict[str, Any], type[PaddockError], str, str, tuple[str, ...]]] = [
        ({"devices": [1]}, NotAvailable, "no device 1", "$.devices", ("0 (zero)", "3 (three)")),
        ({"devices": [0, 3]}, ConfigError, "several devices", "$.devices", ()),
        ({"precision": "int8"}, NotAvailable, "does not compute in int8", "$.precision", ("bf16", "fp16", "fp32")),
        ({"precision": "bf16"}, NotAvailable, "the CPU has no bf16", "$.precision", ("fp32",)),
        ({"precision": "fp16"}, NotAvailable, "does not list it", "$.precision", ("fp32",)),
        ({"options": {"levle": 1}}, ConfigError, "no such option", "$.options.levle", ("layout", "level")),
        ({"options": {"level": "x"}}, ConfigError, "integer", "$.options.level", ("layout", "level")),
    ]
    for change, kind, problem, where, candidates in refusals:
        with pytest.raises(kind) as caught:
            registry.resolve(config("p", **change))
        assert problem in caught.value.problem
        assert (caught.value.where, caught.value.candidates) == (where, candidates)
    assert registry.resolve(config("p", options={"level": 2})).config.options.model_dump()["level"] == 2
    with pytest.raises(ConfigError) as caught:
        registry.resolve(config("p", options={"levle": 1}))
    assert caught.value.remedy == "did you mean 'level'?"


def test_an_adapter_without_options_says_so(shop: Shop) -> None:
    shop.adapter("p", "p")
    with pytest.raises(ConfigError) as caught:
        shop.discover().resolve(config("p", options={"x": 1}))
    assert caught.value.candidates == ("(it has no options)",)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise LookupError('no registry')", "LookupError: no registry"),
        ("sys.exit(1)", "SystemExit"),
        ("return None", "returned no Probe"),
        ("return Probe(True)", "returned no Probe"),
        ("return Probe(Verdict.yes(), versions='1.0')", "versions"),
    ],
)
def test_a_probe_that_misbehaves_is_a_verdict(shop: Shop, body: str, reason: str) -> None:
    shop.adapter("bad", "bad", f"@classmethod\ndef probe(cls):\n    {body}\nreferences = {{'onnx': ReferenceRole(0)}}")
    registry = shop.discover()
    ((_, probe, devices),) = registry.survey().values()
    assert not probe.verdict.usable and not devices.verdict.usable
    assert reason in probe.verdict.reason
    assert registry.references("onnx") == []
    with pytest.raises(NotAvailable) as caught:
        registry.resolve(config("bad"))
    assert reason in caught.value.problem


def soon(label: str, function: Callable[..., Any], *args: Any, seconds: float) -> Any:
    """`call_in_child` with less patience for the one that hangs."""
    return call_in_child(label, function, *args, seconds=3 if label.endswith("/hang") else seconds)


def test_device_probes_that_misbehave_are_verdicts(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "call_in_child", soon)
    bodies = {
        "segfault": ("ctypes.string_at(0)", "SIGSEGV"),
        "hang": ("time.sleep(600)", "did not answer within"),
        "raise": ("raise LookupError('no driver')", "LookupError: no driver"),
        "none": ("return None", "returned no Devices"),
        "verdict": ("return Devices(True)", "returned no Devices"),
        "devices": ("return Devices(Verdict.yes(), (1, 2))", "returned no Devices"),
        "facts": ("return Devices(Verdict.yes(), (), {'handle': object()})", "returned no Devices"),
    }
    classes = "".join(
        f"class C{name}(Base):\n  backend = '{name}'\n  @classmethod\n  def probe_device(cls):\n    {body}\n"
        for name, (body, _) in bodies.items()
    )
    shop.distribution("bad", HEAD + classes + ADAPTERS)
    shop.adapter("good", "good")
    registry = shop.discover()
    found = {registered.adapter.backend: devices for registered, _, devices in registry.survey().values()}
    assert found.pop("good").verdict.usable
    assert found.keys() == bodies.keys()
    for name, (_, reason) in bodies.items():
        assert not found[name].verdict.usable
        assert reason in found[name].verdict.reason, name


def test_device_answers_are_remembered_until_fresh(shop: Shop, tmp_path: Path) -> None:
    log, version = tmp_path / "log", tmp_path / "version"
    version.write_text("1")
    shop.adapter(
        "p",
        "p",
        "@classmethod\n"
        f"def probe(cls): return Probe(Verdict.yes(), {{'sdk': Path({str(version)!r}).read_text()}})\n"
        "@classmethod\n"
        "def probe_device(cls):\n"
        f"    print('noise'); open({str(log)!r}, 'a').write('asked ')\n"
        "    return Devices(Verdict.yes(), (Device(0, 'd', {Precision.FP32: Verdict.yes('r', 's')}, 5),), {'f': [1]})",
    )
    first = shop.discover().survey()["cpu/p (p)"][2]
    again = shop.discover().survey()["cpu/p (p)"][2]
    assert first == again
    assert first.devices[0].memory == 5 and first.facts == {"f": [1]}
    assert log.read_text() == "asked "
    shop.discover().survey(fresh=True)
    assert log.read_text() == "asked asked "
    version.write_text("2")  # another version of the SDK may see other devices
    shop.discover().survey()
    assert log.read_text() == "asked asked asked "
    for entry in (shop.store.root / "probes").glob("*.json"):
        entry.write_text(json.dumps({"digest": "wrong", "data": {}}))
    assert shop.discover().survey()["cpu/p (p)"][2] == first


def test_a_failed_device_probe_is_asked_again(shop: Shop, tmp_path: Path) -> None:
    mark = tmp_path / "mended"
    shop.adapter(
        "p",
        "p",
        "@classmethod\n"
        "def probe_device(cls):\n"
        f"    if not Path({str(mark)!r}).exists(): os._exit(5)\n"
        "    return super().probe_device()",
    )
    with pytest.raises(NotAvailable, match="ended with status 5"):
        shop.discover().resolve(config("p"))
    mark.touch()
    assert shop.discover().resolve(config("p")).name == "cpu/p"


def test_references_by_rank_and_only_where_usable(shop: Shop) -> None:
    for name, rank in (("slow", 2), ("plain", 0), ("also", 0)):
        shop.adapter(name, name, f"references = {{'onnx': ReferenceRole({rank})}}")
    shop.adapter("absent", "absent", ABSENT + "\nreferences = {'onnx': ReferenceRole(0)}")
    shop.adapter("none", "none")
    registry = shop.discover()
    assert [entry.adapter.backend for entry in registry.references("onnx")] == ["also", "plain", "slow"]
    assert registry.references("other") == []


def test_observers_that_raise_are_recorded_and_the_others_are_told(shop: Shop, tmp_path: Path) -> None:
    told, also = tmp_path / "told", tmp_path / "also"
    shop.distribution("a-bad", HEAD + "@hookimpl\ndef paddock_observe(event): raise LookupError(event.kind)")
    shop.distribution("b", HEAD + f"@hookimpl\ndef paddock_observe(): Path({str(told)!r}).touch()")
    shop.distribution("c", HEAD + f"@hookimpl\ndef paddock_observe(event): Path({str(also)!r}).write_text(event.kind)")
    shop.distribution("d-bad", HEAD + "@hookimpl\ndef paddock_observe(event): raise OSError('full')")
    registry = shop.discover()
    assert all(p.verdict.usable for p in registry.plugins)
    registry.observe(Event("plan", "deployment 1"))
    assert told.exists() and also.read_text() == "plan"
    assert sorted(registry.observer_failures) == ["a-bad:plugin: LookupError: plan", "d-bad:plugin: OSError: full"]


def test_a_reference_that_paddock_knows_comes_alone(shop: Shop) -> None:
    """By name and distribution: a vendor's, whatever its rank and whatever name it takes, judges nobody."""
    shop.adapter("acme", "acme-reference", "references = {'onnx': ReferenceRole(-1), 'acme': ReferenceRole(5)}")
    assert [entry.distribution for entry in shop.discover().references("onnx")] == ["acme"], "there is no other"
    shop.adapter("acme-too", "onnxruntime", "references = {'onnx': ReferenceRole(-2)}")
    assert [entry.distribution for entry in shop.discover().references("onnx")] == ["acme-too", "acme"]
    shop.adapter("paddock-reference", "reference", "references = {'onnx': ReferenceRole(9), 'acme': ReferenceRole(0)}")
    registry = shop.discover()
    assert [entry.distribution for entry in registry.references("onnx")] == ["paddock-reference"]
    # Nor is a known one trusted with formats that Paddock does not know it for.
    assert [entry.distribution for entry in registry.references("acme")] == ["paddock-reference", "acme"]


def test_a_known_reference_that_cannot_run_leaves_the_others(shop: Shop) -> None:
    shop.adapter("acme", "acme-reference", "references = {'onnx': ReferenceRole(3)}")
    shop.adapter("paddock-reference", "reference", ABSENT + "\nreferences = {'onnx': ReferenceRole(0)}")
    assert [entry.distribution for entry in shop.discover().references("onnx")] == ["acme"]
