"""The store: one builder among many processes, and nothing damaged is ever used."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddock_calls as calls
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock.cache import Store, cache_root
from paddock.errors import UsageError

CODE = "import sys; sys.path[:] = eval(sys.argv[1]); import paddock_calls; print(paddock_calls.{}(sys.argv[2]))"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def start(function: Callable[..., Any], root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE.format(function.__name__), repr(sys.path), str(root)],
        stdout=subprocess.PIPE,
        text=True,
    )


def started(root: Path) -> None:
    for _ in range(600):
        if (root / "started").exists():
            return
        time.sleep(0.05)
    pytest.fail("the other process does not start")


def only_json(store: Store, kind: str) -> Path:
    (found,) = (store.root / kind).glob("*.json")
    return found


def make_a(folder: Path) -> None:
    (folder / "a.txt").write_text("content")


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob(".*") if path.name.startswith((".making-", ".writing-"))]


def test_data_is_kept_by_kind_and_key(store: Store) -> None:
    assert store.get("data", {"k": [1]}) is None
    store.put("data", {"k": [1], "l": 2}, {"answer": [42, None, "ü"]})
    again = Store(store.root)
    assert again.get("data", {"l": 2, "k": [1]}) == {"answer": [42, None, "ü"]}
    assert again.get("data", {"k": [1], "l": 3}) is None
    assert again.get("other", {"k": [1], "l": 2}) is None
    assert leftovers(store.root) == []


@settings(max_examples=25, deadline=None)
@given(JSON)
def test_any_json_data_comes_back(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "any-json")
    store.put("data", "key", data)
    assert store.get("data", "key") == data


@pytest.mark.parametrize("falsy", [0, False, "", [], {}])
def test_remembered_computes_once(store: Store, falsy: Any) -> None:
    calls = []

    def compute() -> Any:
        calls.append(1)
        return falsy

    assert [store.remembered("data", "key", compute) for _ in range(3)] == [falsy] * 3
    assert len(calls) == 1


def test_what_cannot_be_computed_is_not_remembered(store: Store) -> None:
    def fail() -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.remembered("data", "key", fail)
    assert store.remembered("data", "key", lambda: 1) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"42", b"43"),
        lambda content: b"\xff\xfe" + content,
        lambda content: b"[1, 2]",
        lambda content: b"{}",
        lambda content: b"null",
        lambda content: b'{"digest": null, "data": 42}',
        lambda content: b"[" * 100_000,
    ],
    ids=["empty", "half", "altered", "no-text", "list", "no-keys", "null", "no-digest", "deep"],
)
def test_damaged_data_is_computed_anew(store: Store, damage: Callable[[bytes], bytes]) -> None:
    store.put("data", "key", {"answer": 42})
    entry = only_json(store, "data")
    entry.write_bytes(damage(entry.read_bytes()))
    assert store.get("data", "key") is None
    assert store.remembered("data", "key", lambda: {"answer": 44}) == {"answer": 44}
    assert store.get("data", "key") == {"answer": 44}


def test_kill_during_a_write_leaves_whole_data_or_none(store: Store) -> None:
    writer = start(calls.write_for_ever, store.root)
    try:
        started(store.root)
        seen = 0
        for _ in range(200):
            entry = store.get("data", "key")
            if entry is not None:
                assert len(entry["filler"]) == 200_000
                seen += 1
            elif seen:
                pytest.fail("a whole entry was there before, and is not any more")
            time.sleep(0.001)
        assert seen
    finally:
        writer.kill()
        writer.communicate()
    assert len(store.get("data", "key")["filler"]) == 200_000  # type: ignore[index]


def test_ten_processes_build_an_entry_once(store: Store) -> None:
    out, _ = start(calls.build_in_ten_processes, store.root).communicate(timeout=60)
    assert out.strip() == ",".join(["0"] * 10)
    place = store.folder("things", {"k": 1}, lambda folder: pytest.fail("it is built already"))
    assert (place / "sub" / "b.bin").read_bytes() == bytes(1000)
    assert len((place.parent / "builds.txt").read_text().split()) == 1
    assert leftovers(store.root) == []


def test_many_threads_build_an_entry_once(store: Store) -> None:
    places: list[Path] = []
    threads = [
        threading.Thread(target=lambda: places.append(store.folder("things", "k", calls.fill))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(places) == 8 and len(set(places)) == 1
    assert len((places[0].parent / "builds.txt").read_text().split()) == 1


def test_a_builder_that_was_killed_blocks_nobody(store: Store) -> None:
    builder = start(calls.build_and_hang, store.root)
    try:
        started(store.root)
    finally:
        builder.kill()
        builder.communicate()
    place = store.folder("things", {"k": 1}, make_a)
    assert sorted(path.name for path in place.iterdir()) == ["a.txt", "manifest.json"]


def test_a_builder_that_fails_leaves_nothing(store: Store) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.folder("things", "k", fail)
    assert leftovers(store.root) == []
    assert not list(store.root.rglob("half.txt"))
    assert (store.folder("things", "k", make_a) / "a.txt").read_text() == "content"


def _grow(path: Path) -> None:
    path.write_text(path.read_text() + "!")


def _same_size(path: Path) -> None:
    path.write_text("tampered"[:7])


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: _grow(place / "a.txt"),
        lambda place: _same_size(place / "a.txt"),
        lambda place: (place / "a.txt").write_text(""),
        lambda place: (place / "a.txt").unlink(),
        lambda place: (place / "manifest.json").unlink(),
        lambda place: (place / "manifest.json").write_text("{"),
        lambda place: (place / "manifest.json").write_text("[]"),
        lambda place: (place / "manifest.json").write_text('{"a.txt": 1}'),
    ],
    ids=["grown", "altered", "emptied", "file-gone", "manifest-gone", "broken", "list", "no-digest"],
)
def test_a_damaged_folder_is_built_anew(store: Store, damage: Callable[[Path], Any]) -> None:
    place = store.folder("things", "k", make_a)
    damage(place)
    assert store.folder("things", "k", make_a) == place
    assert (place / "a.txt").read_text() == "content"
    builds = []
    store.folder("things", "k", lambda folder: builds.append(folder))
    assert builds == []


def test_private_folder_is_one_for_each_key(store: Store) -> None:
    one = store.private("adapters", ["a", 1])
    (one / "kept").touch()
    assert store.private("adapters", ["a", 1]) == one and (one / "kept").exists()
    assert store.private("adapters", ["a", 2]) != one


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_root_that_cannot_be_made(tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError) as caught:
        Store(file / below)
    assert str(file) in str(caught.value) and "PADDOCK_CACHE" in (caught.value.remedy or "")
    monkeypatch.setenv("PADDOCK_CACHE", str(file / below))
    with pytest.raises(UsageError):
        Store()


def test_a_kind_that_cannot_be_made(store: Store) -> None:
    (store.root / "data").write_text("a file where a folder should be")
    for action in (
        lambda: store.put("data", "key", 1),
        lambda: store.folder("data", "key", make_a),
        lambda: store.private("data", "key"),
    ):
        with pytest.raises(UsageError, match="PADDOCK_CACHE"):
            action()
    assert store.get("data", "key") is None


def test_the_root_is_private_and_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"
    assert os.stat(Store().root).st_mode & 0o077 == 0
    monkeypatch.setenv("PADDOCK_CACHE", "")
    assert cache_root().name == "paddock"
