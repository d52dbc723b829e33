"""Which plugins load: those that are allowed, by name and by the digest of their files, and that end no process."""

from __future__ import annotations

import importlib
import importlib.machinery
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from paddock import registry as registry_module
from paddock.admission import Found, tried
from paddock.cache import Store
from paddock.errors import NotAvailable, UsageError
from paddock.plugin_files import digest, located
from paddock.registry import Registry
from paddock_shop import ADAPTERS, HEAD, NUMBERS, Shop, plugin

ABORT = "import os\nos.abort()"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """As that of test_registry: nothing is tried in a child."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PADDOCK_ALLOW", raising=False)
    monkeypatch.setattr(registry_module, "tried", lambda *found: {})
    return Shop(tmp_path)


@pytest.fixture
def trying(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop whose plugins are imported in a child first."""
    monkeypatch.setattr(registry_module, "tried", tried)
    return shop


def reason(registry: Registry, distribution: str) -> str:
    verdict = plugin(registry, distribution).verdict
    assert not verdict.usable
    return verdict.reason


# What is allowed


@pytest.mark.parametrize("allowed", ["plugin-one", "Plugin_One", " plugin.one , ", "plugin-one,plugin-three"])
def test_paddock_allow_restricts_what_is_imported(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, allowed: str
) -> None:
    shop.adapter("plugin-one", "one")
    mark = tmp_path / "imported"
    shop.adapter("plugin-two", "two", before=f"Path({str(mark)!r}).touch()")
    monkeypatch.setenv("PADDOCK_ALLOW", allowed)
    registry = shop.discover()
    assert registry.names() == ["cpu/one"]
    assert not mark.exists()
    assert reason(registry, "plugin-two") == "not among PADDOCK_ALLOW"
    monkeypatch.setenv("PADDOCK_ALLOW", "")
    assert shop.discover().names() == []
    monkeypatch.delenv("PADDOCK_ALLOW")
    assert shop.discover().names() == ["cpu/one", "cpu/two"]
    assert mark.exists()


def test_paddock_allow_by_digest(shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mark = tmp_path / "imported"
    shop.adapter("plugin-one", "one", before=f"Path({str(mark)!r}).touch()")
    monkeypatch.setenv("PADDOCK_ALLOW", "plugin-one@" + "0" * 12)
    found = plugin(shop.discover(), "plugin-one")
    assert "PADDOCK_ALLOW has 000000000000" in found.verdict.reason and found.digest[:12] in found.verdict.reason
    assert not mark.exists()
    for length in (8, 64):
        monkeypatch.setenv("PADDOCK_ALLOW", f"plugin-one@{found.digest[:length]}")
        assert shop.discover().names() == ["cpu/one"]
    Path(found.origin).write_text(Path(found.origin).read_text() + "\n")
    assert not plugin(shop.discover(), "plugin-one").verdict.usable


def test_a_plugin_without_files_cannot_be_pinned(shop: Shop) -> None:
    shop.metadata("gone", {"plugin": "shop_no_module"})
    assert "its files cannot be read" in reason(shop.discover(only=["gone@" + "0" * 8]), "gone")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("one@", "8 to 64 lower-case hex digits"),
        ("one@12345", "8 to 64 lower-case hex digits"),
        ("one@1234567F", "8 to 64 lower-case hex digits"),
        ("one@" + "0" * 65, "8 to 64 lower-case hex digits"),
        ("one two", "names no distribution"),
        ("one==1.0", "names no distribution"),
        ("@" + "0" * 8, "names no distribution"),
        ("-one", "names no distribution"),
        ("Good@00000000", "contradicts"),
    ],
)
def test_what_is_allowed_has_to_be_a_distribution(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, entry: str, said: str
) -> None:
    monkeypatch.setenv("PADDOCK_ALLOW", f"good,good,{entry}")
    with pytest.raises(UsageError) as caught:
        shop.discover()
    assert repr(entry) in caught.value.problem and said in caught.value.problem
    assert caught.value.where == "PADDOCK_ALLOW"


def test_names_that_no_plugin_has_are_told(shop: Shop) -> None:
    shop.adapter("good-one", "good")
    shop.adapter("other", "other")
    registry = shop.discover(only=["gud-one", "other", "zzz"])
    assert registry.unknown == (
        "PADDOCK_ALLOW names gud-one, and no such plugin is installed: did you mean 'good-one'?",
        "PADDOCK_ALLOW names zzz, and no such plugin is installed",
    )
    with pytest.raises(NotAvailable, match="names gud-one, and no such plugin is installed"):
        registry.get("cpu/good")
    assert shop.discover(only=["good-one", "other"]).unknown == () == shop.discover().unknown


def test_what_a_plugin_requires_has_to_be_allowed_too(shop: Shop) -> None:
    shop.adapter("base-one", "base")
    shop.adapter("middle", "middle", requires=["numpy", "Base_One==1.0", "no-such-thing"])
    shop.adapter("top", "top", requires=["middle[sdk]>=0.5"])
    shop.adapter(
        "extra", "extra", requires=['base-one; extra == "sdk"', 'base-one; sys_platform == "nowhere"', "extra[sdk]"]
    )
    registry = shop.discover(only=["middle", "top", "extra"])
    assert registry.names() == ["cpu/extra"]
    wanted = "it requires base-one, which is not allowed: not among PADDOCK_ALLOW"
    assert reason(registry, "middle") == wanted
    assert reason(registry, "top") == f"it requires middle, which is not allowed: {wanted}"
    pinned = shop.discover(only=["middle", "base-one@00000000"])
    assert pinned.names() == [] and "PADDOCK_ALLOW has 00000000" in reason(pinned, "middle")
    assert shop.discover(only=["middle", "base-one"]).names() == ["cpu/base", "cpu/middle"]


def test_what_is_installed_and_not_loaded_is_not_to_be_installed(shop: Shop) -> None:
    shop.distribution("paddock-ascend", "import no_such_sdk_anywhere")
    for only, said, remedy in (
        ([], "not among PADDOCK_ALLOW", "name it in PADDOCK_ALLOW"),
        (None, "no_such_sdk_anywhere", "mend that"),
    ):
        with pytest.raises(NotAvailable) as caught:
            shop.discover(only).get("npu/ascend")
        assert "paddock-ascend, which is installed as 1.0 and not loaded" in caught.value.problem
        assert said in caught.value.problem
        assert remedy in str(caught.value.remedy) and "pip" not in str(caught.value.remedy)


def test_plugins_without_a_name_are_told_apart(shop: Shop) -> None:
    for name in ("-alf-gone", "-lso-gone"):
        module = f"shop_{next(NUMBERS)}"
        backend = name[1:4]
        (shop.folder / f"{module}.py").write_text(f"{HEAD}\nclass A(Base):\n    backend = {backend!r}\n{ADAPTERS}")
        shop.metadata(name, {"plugin": module}, known=False)
    registry = shop.discover()
    assert registry.names() == ["cpu/alf", "cpu/lso"]
    assert registry.get("cpu/alf").distribution != registry.get("cpu/lso").distribution


# Tried in a child


@pytest.mark.parametrize(
    ("source", "said"), [(ABORT, "crashed with SIGABRT"), ("import os\nos._exit(3)", "ended with status 3")]
)
def test_a_plugin_that_ends_who_imports_it_is_a_verdict_that_is_kept(
    trying: Shop, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    trying.adapter("good-plugin", "good")
    trying.distribution("bad-plugin", source)
    registry = trying.discover()
    assert registry.names() == ["cpu/good"]
    first = reason(registry, "bad-plugin")
    assert said in first and "`paddock plugins --fresh` tries again" in first
    monkeypatch.setattr("paddock.child.Child.call", lambda *a, **k: "asked again")
    assert reason(trying.discover(), "bad-plugin") == first
    assert reason(trying.discover(fresh=True), "bad-plugin") == "failed to import: asked again"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import time\ntime.sleep(60)", "did not answer within 3 s"),
        ("import os\nos.kill(os.getpid(), 9)", "crashed with SIGKILL"),
    ],
)
def test_what_may_be_the_hosts_doing_is_told_and_tried_again(
    trying: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, source: str, said: str
) -> None:
    trying.adapter("good-plugin", "good")
    trying.discover()  # with all the patience that a busy machine needs
    if "sleep" in source:
        monkeypatch.setattr("paddock.admission.SECONDS", 3.0)
    trying.distribution("bad-plugin", source)
    with caplog.at_level(logging.WARNING):
        registry = trying.discover()
    assert registry.names() == ["cpu/good"]
    assert said in reason(registry, "bad-plugin") and "bad-plugin is not loaded" in caplog.text
    monkeypatch.setattr("paddock.child.Child.call", lambda *a, **k: "asked again")
    assert "asked again" in reason(trying.discover(), "bad-plugin")


def test_that_no_process_could_be_started_is_not_kept(trying: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    trying.adapter("one", "one")
    trying.adapter("two", "two")
    with monkeypatch.context() as without:
        without.setattr(tempfile, "tempdir", str(trying.folder / "none"))
        registry = trying.discover()
    for name in ("one", "two"):
        assert "the process could not be started" in reason(registry, name)
    assert trying.discover().names() == ["cpu/one", "cpu/two"]


def test_nothing_is_kept_of_what_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, found = Store(tmp_path / "store"), Found("nowhere", "1.0", "antigravity_of_nobody", None, "")
    told = []
    for said in ("", "asked again"):
        monkeypatch.setattr("paddock.child.Child.call", lambda *a, said=said, **k: said)
        told.append(tried([found], store)[found].usable)
    assert told == [True, False]


def test_what_only_lacks_something_is_tried_again(trying: Shop) -> None:
    lacking = f"shop_lacking_{next(NUMBERS)}"
    trying.adapter("needy", "needy", before=f"import {lacking}")
    assert lacking in reason(trying.discover(), "needy")
    (trying.folder / f"{lacking}.py").write_text("")
    importlib.invalidate_caches()
    assert trying.discover().names() == ["cpu/needy"]


@pytest.mark.long
def test_a_crash_after_the_import_is_told_of_who_crashes(trying: Shop) -> None:
    late = "import threading; threading.Timer(0.3, os.abort).start()\nprint('words of the first')"
    trying.adapter("a-late", "late", before=late)
    trying.adapter("b-slow", "slow", before="time.sleep(1.5)")
    trying.distribution("c-bad", ABORT)
    registry = trying.discover()
    assert registry.names() == ["cpu/slow"]
    assert "SIGABRT" in reason(registry, "a-late") and "words of the first" in reason(registry, "a-late")
    assert "SIGABRT" in reason(registry, "c-bad") and "words of the first" not in reason(registry, "c-bad")


def test_a_verdict_does_not_hold_for_another_native_library(trying: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    package = f"shop_{next(NUMBERS)}"
    folder = trying.folder / package
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "native.so").write_text("good")
    library = "if Path(__file__).with_name('native.so').read_text() == 'evil': os.abort()"
    (folder / "plugin.py").write_text(f"{HEAD}\n{library}\nclass A(Base):\n    backend = 'a'\n{ADAPTERS}")
    trying.metadata("native", {"plugin": f"{package}.plugin"})
    found = plugin(trying.discover(), "native")
    assert found.verdict.usable
    (folder / "native.so").write_text("evil")
    monkeypatch.delitem(sys.modules, f"{package}.plugin")  # as if it were another process
    assert "SIGABRT" in reason(trying.discover(), "native")
    assert "PADDOCK_ALLOW has" in reason(trying.discover(only=[f"native@{found.digest}"]), "native")


# What a digest is over

EXTENSION = importlib.machinery.EXTENSION_SUFFIXES[0]
CHANGES: dict[str, tuple[str, bool]] = {
    "the module": ("outer/sub/plugin.py", True),
    "a parent package": ("outer/__init__.py", True),
    "a module beside the parent": ("outer/other.py", True),
    "a native library": ("outer/lib/libnative.so.1", True),
    "an extension module": (f"outer/sub/fast{EXTENSION}", True),
    "one that goes before the source": (f"outer/sub/plugin{EXTENSION}", True),
    "bytecode without a source": ("outer/sub/more.pyc", True),
    "a linked folder": ("elsewhere/deep.py", True),
    "a linked file": ("elsewhere/single.so", True),
    "what is kept of an import": ("outer/__pycache__/other.cpython-311.pyc", False),
    "what is beside the package": ("beside.py", False),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A package in which files can be changed: the digest of an entry point in it."""
    name = f"shop_{next(NUMBERS)}"
    outer = tmp_path / "site" / name
    (outer / "sub").mkdir(parents=True)
    for made in ("__init__.py", "other.py", "sub/__init__.py", "sub/plugin.py"):
        (outer / made).write_text("# as it was\n")
    elsewhere = tmp_path / "site" / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "single.so").touch()
    (outer / "linked").symlink_to(elsewhere)
    (outer / "single.so").symlink_to(elsewhere / "single.so")
    (elsewhere / "back").symlink_to(outer)
    (outer / "up").symlink_to("..")
    (outer / "lock").symlink_to("nowhere")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    store = Store(tmp_path / "store")

    def changed(file: str) -> str:
        if file:
            path = tmp_path / "site" / file.replace("outer", name)
            path.parent.mkdir(exist_ok=True)
            path.write_text("# altered\n")
        importlib.invalidate_caches()
        return digest(located(f"{name}.sub.plugin:thing")[1], store)

    return changed


@pytest.mark.parametrize("change", CHANGES)
def test_a_digest_is_over_what_python_would_import(package: Callable[[str], str], change: str) -> None:
    file, told = CHANGES[change]
    before = package("")
    assert len(before) == 64 and package("") == before
    assert (package(file) != before) is told


def test_a_digest_tells_where_files_end(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    found = set()
    for number, files in enumerate(({"a": b"1\0b\x002"}, {"a": b"1", "b": b"2"}, {"a": b"", "b": b"12"}, {"a": b"12"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        found.add(digest([folder], store))
    assert len(found) == 4


def test_large_files_count_as_well(tmp_path: Path) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "package"
    folder.mkdir()
    found = set()
    for last in (b"a", b"b"):
        (folder / "libnative.so").write_bytes(bytes(1 << 21) + last)
        found.add(digest([folder], store))
    assert len(found) == 2 and "" not in found


def test_where_a_plugin_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    number = next(NUMBERS)
    alone, native, spaced, whole, zipped = (f"shop_{kind}_{number}" for kind in ("a", "n", "s", "w", "z"))
    for file in (
        f"{alone}.py", f"{native}{EXTENSION}", f"{spaced}/inner/__init__.py", f"{spaced}/inner/plugin.py",
        f"{spaced}/plain/plugin.py", f"{whole}/__init__.py", f"{whole}/deep/plugin{EXTENSION}", f"{zipped}/__init__.py",
        f"{zipped}/plugin.py",
    ):  # fmt: skip
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, zipped)
    shutil.rmtree(tmp_path / zipped)
    monkeypatch.syspath_prepend(archive)
    for value, origin, places in (
        (alone, f"{alone}.py", [f"{alone}.py"]),
        (native, f"{native}{EXTENSION}", [f"{native}{EXTENSION}"]),
        (f"{spaced}.inner.plugin", f"{spaced}/inner/plugin.py", [f"{spaced}/inner"]),
        (f"{spaced}.plain.plugin", f"{spaced}/plain/plugin.py", [f"{spaced}/plain"]),
        (whole, f"{whole}/__init__.py", [whole]),
        (f"{whole}.deep.plugin", f"{whole}/deep/plugin{EXTENSION}", [whole]),
        (f"{zipped}.plugin", f"packed.zip/{zipped}/plugin.py", [f"packed.zip/{zipped}"]),
    ):
        assert located(value) == (tmp_path / origin, tuple(tmp_path / place for place in places)), value
        assert len(digest(located(value)[1], Store(tmp_path / "store"))) == 64, value
    for value in (f"{spaced}", f"{whole}.none", f"{alone}.none", "shop_none.plugin", "", "sys", "a..b"):
        assert located(value) == (None, ()), value
    assert digest((), Store(tmp_path / "store")) == "" == digest([tmp_path / "none"], Store(tmp_path / "store"))
    assert not [name for name in sys.modules if name.startswith(f"shop_w_{number}")]  # nothing was imported
