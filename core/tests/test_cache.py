"""The store: one builder among many processes, and nothing damaged, foreign or older is ever used."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import pickle
import shutil
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
from paddock import cache, cache_entries
from paddock.cache import Store, cache_root
from paddock.cache_entries import MANIFEST, About, Damaged, Seat
from paddock.errors import BuildFailed, ModelError, UsageError
from paddock.model import file_digest

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


def built_already(folder: Path) -> None:
    pytest.fail("it is built already")


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
        lambda content: content[:-1],
        lambda content: content + b"\n",
        lambda content: content.replace(b"42", b"43"),
        lambda content: content.replace(b'"size"', b'"mine"'),
        lambda content: b"\xff\xfe" + content,
        lambda content: b"[1, 2]",
        lambda content: b"{}",
        lambda content: b"null",
        lambda content: b'{"digest": null, "data": 42}',
        lambda content: b"[" * 100_000,
    ],
    ids=[
        "empty",
        "half",
        "cut",
        "longer",
        "altered",
        "renamed",
        "no-text",
        "list",
        "no-keys",
        "null",
        "no-digest",
        "deep",
    ],
)
def test_damaged_data_is_computed_anew(
    store: Store, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    store.put("data", "key", {"answer": 42})
    entry = only_json(store, "data")
    entry.write_bytes(damage(entry.read_bytes()))
    assert store.get("data", "key") is None
    assert f"data/{entry.name} is made anew: " in caplog.text
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
    place = store.folder("things", {"k": 1}, built_already)
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


def _linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def _manifest(place: Path, **changes: Any) -> bytes:
    """The entry's manifest with changes, and a digest that fits them."""
    told = json.loads((place / MANIFEST).read_bytes())
    del told["digest"]
    return About(**{**told, **changes}).sealed()


def _replaced_by_a_file(place: Path) -> None:
    shutil.rmtree(place)
    place.write_text("a file")


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
        lambda place: _linked(place / "a.txt"),
        lambda place: _linked(place / "manifest.json"),
        lambda place: (place / "more.txt").touch(),
        lambda place: (place / "manifest.json").write_bytes(_manifest(place, layout=1)),
        lambda place: (place / "manifest.json").write_bytes(_manifest(place, content=["a.txt"])),
        lambda place: (place / "manifest.json").write_bytes(_manifest(place, content={})),
        lambda place: (place / "manifest.json").write_bytes(_manifest(place, form="private")),
        lambda place: (place / "manifest.json").write_bytes(_manifest(place, kind="others")),
        lambda place: place.chmod(0o770),
        lambda place: _replaced_by_a_file(place),
    ],
    ids=[
        "grown", "altered", "emptied", "file-gone", "manifest-gone", "broken", "list", "no-digest", "link",
        "manifest-link", "more", "older", "list-of-files", "no-files", "other-form", "other-kind", "open", "file",
    ],
)  # fmt: skip
def test_a_damaged_folder_is_built_anew(
    store: Store, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    place = store.folder("things", "k", make_a)
    damage(place)
    assert caplog.records == []
    assert store.folder("things", "k", make_a) == place
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING and f"things/{place.name} is made anew: " in warning.getMessage()
    assert (place / "a.txt").read_text() == "content"
    builds = []
    store.folder("things", "k", lambda folder: builds.append(folder))
    assert builds == [] and len(caplog.records) == 1


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


def test_any_flipped_bit_of_data_is_harmless(store: Store) -> None:
    store.put("data", "key", {"answer": [42, "ü", 1.5]})
    entry = only_json(store, "data")
    content = entry.read_bytes()
    for position in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        entry.write_bytes(flipped)
        # Of the time it was made, the last digit can say the same as another.
        assert store.get("data", "key") in (None, {"answer": [42, "ü", 1.5]}), bytes(flipped)
    # All of the data's own bytes matter.
    flipped = bytearray(content)
    flipped[content.index(b"42", content.index(b'"data": {"'))] ^= 1
    entry.write_bytes(flipped)
    assert store.get("data", "key") is None


def test_any_flipped_bit_of_a_folder_is_harmless(store: Store) -> None:
    place = store.folder("things", "k", make_a)
    about = cache_entries.told_by(place)
    for name in ("a.txt", MANIFEST):
        content = (place / name).read_bytes()
        for position in range(0, len(content), 3):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            (place / name).write_bytes(flipped)
            try:
                found = cache_entries.told_by(place)
                cache_entries.check_folder(place, found, file_digest)
                assert found == about
            except Damaged:
                continue
        (place / name).write_bytes(content)
    (place / "a.txt").write_text("contemt")
    store.folder("things", "k", make_a)
    assert (place / "a.txt").read_text() == "content"


def test_what_is_not_there_is_missed_in_silence(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.get("data", "key")
    store.folder("things", "k", make_a)
    store.private("adapters", "k")
    assert caplog.records == [] and not (store.root / "data").exists()


def test_what_was_copied_from_another_key_is_not_used(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.put("data", "theirs", 1)
    theirs = only_json(store, "data")
    store.put("data", "ours", 2)
    (ours,) = set((store.root / "data").glob("*.json")) - {theirs}
    ours.write_bytes(theirs.read_bytes())
    assert store.get("data", "ours") is None and store.get("data", "theirs") == 1

    def make_theirs(folder: Path) -> None:
        (folder / "a.txt").write_text("theirs")

    theirs = store.folder("things", "theirs", make_theirs)
    ours = store.folder("things", "ours", make_a)
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    assert (store.folder("things", "ours", make_a) / "a.txt").read_text() == "content"

    theirs = store.private("adapters", "theirs")
    (theirs / "blob").touch()
    ours = store.private("adapters", "ours")
    shutil.rmtree(ours.parent)
    shutil.copytree(theirs.parent, ours.parent)
    assert list(store.private("adapters", "ours").iterdir()) == []
    assert [record.getMessage().endswith("it was made for something else") for record in caplog.records] == [True] * 3


KEY = {"model": "m", "plan": ["p", {"precision": "fp16"}], "versions": {"sdk": "1"}, "driver": None, "batch": 1}


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "n"},
        {"plan": ["p", {"precision": "fp32"}]},
        {"plan": ["p", {"precision": "fp16", "more": 1}]},
        {"versions": {"sdk": "1.0"}},
        {"driver": "550"},
        {"driver": ""},
        {"batch": "1"},
        {"batch": 1.0},
        {"batch": True},
    ],
    ids=str,
)
def test_each_factor_of_a_key_matters_alone(store: Store, changed: dict[str, Any]) -> None:
    store.put("data", KEY, "kept")
    place, own = store.folder("things", KEY, make_a), store.private("adapters", KEY)
    other = {**KEY, **changed}
    assert store.get("data", KEY) == "kept" and store.get("data", other) is None
    assert store.folder("things", KEY, built_already) == place != store.folder("things", other, make_a)
    assert store.private("adapters", KEY) == own != store.private("adapters", other)


@pytest.mark.parametrize("factor", ["code", "layout", "kind", "form"])
def test_each_factor_beside_the_key_matters_alone(store: Store, factor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("data", KEY, "kept")
    place = store.folder("things", KEY, make_a)
    kinds = ("data", "things")
    if factor == "code":
        monkeypatch.setattr(cache, "source_digest", lambda folder: "of other code")
    elif factor == "layout":
        monkeypatch.setattr(cache_entries, "LAYOUT", cache_entries.LAYOUT + 1)
    elif factor == "kind":
        kinds = ("other-data", "other-things")
    else:
        assert store.private("things", KEY).parent != place
        return
    assert store.get(kinds[0], KEY) is None
    assert store.folder(kinds[1], KEY, make_a).name != place.name


def test_code_that_changed_is_other_code(tmp_path: Path) -> None:
    def digest_of(name: str, text: str) -> str:
        cache.source_digest.cache_clear()
        (tmp_path / name).write_text(text)
        return cache.source_digest(tmp_path)

    (tmp_path / "__pycache__").mkdir()
    named = [("a.py", "x"), ("a.py", "y"), ("b.py", ""), ("c.json", ""), ("c.json", "{}")]
    seen = [digest_of(name, text) for name, text in named]
    assert len(set(seen)) == 5, "data beside code as well: what is known to be wrong stands in such a file"
    assert {digest_of("__pycache__/a.pyc", "x"), digest_of("built.so", "x")} == {seen[-1]}


def test_an_entry_tells_what_produced_it(store: Store) -> None:
    before = time.time()
    place = store.folder("things", ["m", {"precision": "fp16"}], make_a)
    store.put("data", ["x" * 10_000], [1, 2])
    own = store.private("adapters", "k")
    folder, private = cache_entries.told_by(place), cache_entries.told_by(own.parent)
    data, body = cache_entries.unpack(only_json(store, "data").read_bytes())
    for about, form, kind in ((folder, "folder", "things"), (private, "private", "adapters"), (data, "data", "data")):
        assert (about.form, about.kind) == (form, kind)
        assert before <= about.made <= time.time()
        assert about.sources == cache.current_sources() and about.paddock
    assert folder.key == ["m", {"precision": "fp16"}] and folder.size == 7 and set(folder.content) == {"a.txt"}
    assert len(json.dumps(data.key)) < 5000 and data.key["shortened"].startswith('["xxx')
    assert data.size == len(body) and json.loads(only_json(store, "data").read_bytes())["data"] == [1, 2]


def test_a_private_folder_that_was_damaged_is_made_anew(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    own = store.private("adapters", "k")
    (own / "blob").touch()
    (own.parent / MANIFEST).write_text("{")
    assert store.private("adapters", "k") == own and list(own.iterdir()) == []
    assert len(caplog.records) == 1


def test_a_full_disk_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("data", "key", "before")
    kept = store.folder("things", "kept", make_a)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill_up(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        full(0)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for action in (
            lambda: store.put("data", "key", "after"),
            lambda: store.put("data", "other", "after"),
            lambda: store.folder("things", "k", make_a),
            lambda: store.private("adapters", "k"),
        ):
            with pytest.raises(UsageError, match="No space left") as caught:
                action()
            assert "paddock cache prune" in (caught.value.remedy or "")
    with pytest.raises(UsageError, match="No space left"):
        store.folder("things", "k", fill_up)
    assert leftovers(store.root) == [] and not list(store.root.rglob("half.txt"))
    assert store.get("data", "key") == "before" and store.get("data", "other") is None
    assert store.folder("things", "kept", built_already) == kept
    assert (store.folder("things", "k", make_a) / "a.txt").read_text() == "content"


def test_what_is_no_file_cannot_be_kept(store: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside")
    with pytest.raises(BuildFailed, match=r"link\.txt is neither"):
        store.folder("things", "k", lambda folder: (folder / "link.txt").symlink_to(tmp_path / "outside"))
    assert leftovers(store.root) == [] and (tmp_path / "outside").read_text() == "outside"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o702])
def test_a_root_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.joinpath("open").mkdir()
    tmp_path.joinpath("open").chmod(mode)
    with pytest.raises(UsageError, match="others may write to it") as caught:
        Store(tmp_path / "open")
    assert "chmod go-w" in (caught.value.remedy or "")
    tmp_path.joinpath("open").chmod(mode & ~0o022)
    Store(tmp_path / "open").put("data", "key", 1)


def test_a_root_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        Store(tmp_path)


def test_a_use_is_written_down_once_an_hour(store: Store) -> None:
    store.put("data", "key", 1)
    place, own = store.folder("things", "k", make_a), store.private("adapters", "k")
    files = [only_json(store, "data"), place / MANIFEST, own.parent / MANIFEST]

    def use() -> list[float]:
        Store(store.root).get("data", "key")
        Store(store.root).folder("things", "k", built_already)
        Store(store.root).private("adapters", "k")
        return [file.stat().st_mtime for file in files]

    for ago, written in ((3000, False), (4000, True)):
        then = time.time() - ago
        for file in files:
            os.utime(file, (then, then))
        assert [used > then + 1 for used in use()] == [written] * 3


def test_a_store_can_be_sent_to_another_process(store: Store) -> None:
    store.folder("things", "k", make_a)
    assert pickle.loads(pickle.dumps(store)).folder("things", "k", built_already).exists()


def test_a_bound_that_is_no_size_is_refused_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("much", "-1", "0", "1.5.5GiB"):
        monkeypatch.setenv("PADDOCK_CACHE_SIZE", wrong)
        with pytest.raises(UsageError) as caught:
            Store(store.root)
        assert caught.value.where == "PADDOCK_CACHE_SIZE" and "8GiB" in (caught.value.remedy or "")


def test_a_seat_is_a_place_in_the_folder_of_its_kind(tmp_path: Path) -> None:
    seat = Seat(tmp_path, "data", "things", "s", "k")
    assert seat.place == tmp_path / "things" / f"{seat.entry[:40]}.json" and len(seat.entry) == 64


def test_digests_are_remembered_by_what_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    first = file_digest(path)
    reads: list[int] = []
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text("two")
    os.utime(path, ns=times)
    assert file_digest(path) != first, "young, of the same size, the time set back"

    def read(*arguments: Any) -> Any:
        reads.append(1)
        return original(*arguments)

    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", read)
    file_digest(path), file_digest(path)
    assert len(reads) == 2, "a young file is read each time"
    settled = -(10**12)
    second = file_digest(path, settled=settled)
    assert file_digest(path) == second and len(reads) == 3
    path.write_text("six")
    os.utime(path, ns=times)
    assert file_digest(path) != second and len(reads) == 4
    with pytest.raises(ModelError, match="cannot be read"):
        file_digest(tmp_path / "none")
