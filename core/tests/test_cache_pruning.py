"""Pruning: what was used longest ago goes first, what is in use stays, and nothing but the store's own is removed."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import pytest
from paddock import cache, model
from paddock.cache import Store
from paddock.cache_entries import MANIFEST, MARK, Found, entries
from paddock.cache_locks import exclusive
from paddock.cache_pruning import bound_of, clear, examine, prune, remove, trim
from paddock.errors import UsageError
from test_cache import make_a, only_json, started

DAY = 24 * 3600
USING = """
import sys, time
from pathlib import Path
sys.path[:] = eval(sys.argv[1])
from paddock.cache import Store
store = Store(Path(sys.argv[2]))
store.folder("things", "used", lambda folder: None)
(store.root / "started").touch()
time.sleep(600)
"""
"""A process that has an entry in use until it is killed."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Store(tmp_path / "store")
    return tmp_path / "store"


def big(folder: Path) -> None:
    (folder / "a.txt").write_text("content")
    (folder / "big.bin").write_bytes(bytes(100_000))


def used(place: Path, days: float) -> Path:
    """An entry whose last use is as many days ago."""
    file = place / MANIFEST if place.is_dir() else place
    then = time.time() - days * DAY
    os.utime(file, (then, then))
    return place


def made(root: Path, key: str, days: float, build: Callable[[Path], None] = big) -> Path:
    """A folder entry of a process that has ended, last used as many days ago."""
    return used(Store(root).folder("things", key, build), days)


def names(found: list[tuple[Found, str]]) -> set[str]:
    return {each.place.name for each, _ in found}


def allowed(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setenv("PADDOCK_CACHE_SIZE", str(size))


def test_what_was_used_longest_ago_goes_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, older, recent = (made(root, key, days) for key, days in (("a", 2), ("b", 3), ("c", 1)))
    Store(root).put("data", "k", "x" * 100_000)
    oldest = used(only_json(Store(root), "data"), 4)
    own = Store(root).private("adapters", "k")
    (own / "blob").write_bytes(bytes(100_000))
    used(own.parent, 5)
    for size, left in (
        (10**6, [old, older, recent, oldest, own.parent]),
        (450_000, [old, older, recent, oldest]),
        (350_000, [old, older, recent]),
        (250_000, [old, recent]),
        (1, []),
    ):
        allowed(monkeypatch, size)
        done = trim(root)
        assert done is not None and {found.place for found in done.left} == set(left)
        assert {found.place for found in entries(root)} == set(left)
        assert sum(found.size for found in done.left) <= size
    assert [path.name for path in (root / "things").iterdir()] == [], "no lock files are left either"


def test_a_use_keeps_an_entry(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = made(root, "a", 3), made(root, "b", 2)
    Store(root).folder("things", "a", big)
    allowed(monkeypatch, 150_000)
    trim(root)
    assert first.exists() and not second.exists()


def test_the_store_is_trimmed_when_an_entry_is_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = made(root, "a", 3), made(root, "b", 2)
    allowed(monkeypatch, 250_000)
    third = Store(root).folder("things", "c", big)
    assert not first.exists() and second.exists() and third.exists()


def test_what_was_used_within_the_hour_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = made(root, "a", 0.5 / 24)
    allowed(monkeypatch, 1)
    trim(root)
    prune(root, cache.current_sources(), 1)
    assert place.exists()
    used(place, 1.1 / 24)
    trim(root)
    assert not place.exists()


def test_what_is_in_use_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(root)
    place, own = store.folder("things", "a", big), store.private("adapters", "a")
    used(place, 9), used(own.parent, 9)
    (place / "a.txt").touch()
    allowed(monkeypatch, 1)
    everything = {place.name, own.parent.name}
    for done in (trim(root), prune(root, "of other code", 1), clear(root)):
        assert done is not None and not done.removed and names(done.kept) == everything
    assert place.exists() and own.exists()
    del store
    gc.collect()
    done = clear(root)
    assert names(done.removed) == everything and not done.kept and not entries(root)


def test_an_entry_just_made_is_in_use(root: Path) -> None:
    store = Store(root)
    place = store.folder("things", "a", make_a)
    assert names(clear(root).kept) == {place.name}
    # A store that found it there uses it too.
    other = Store(root)
    assert other.folder("things", "a", make_a) == place
    del store
    gc.collect()
    assert names(clear(root).kept) == {place.name}


def test_a_process_that_was_killed_uses_nothing(root: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", USING, repr(sys.path), str(root)])
    try:
        started(root)
        assert clear(root).kept
    finally:
        child.kill()
        child.wait()
    assert clear(root).removed and not entries(root)


def test_damage_goes_whatever_is_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = made(root, "a", 1)
    # A disk that loses a bit changes no times either.
    monkeypatch.setattr(model, "_identity", lambda stat: (stat.st_ino, 0, 0))
    remembered = model.file_digest(place / "big.bin")
    Store(root).put("data", "k", [1, 2, 3])
    data = only_json(Store(root), "data")
    with open(place / "big.bin", "r+b") as file:
        file.seek(50_000)
        file.write(b"\1")
    assert model.file_digest(place / "big.bin") == remembered
    data.write_bytes(data.read_bytes().replace(b"[1, 2, 3]", b"[1, 2, 4]"))
    whole = made(root, "b", 1)
    problems = {found.place: examine(found)[1] for found in entries(root)}
    assert problems == {place: "big.bin was altered", data: "its data was altered", whole: None}
    done = prune(root, cache.current_sources())
    assert {(found.place, why) for found, why in done.removed} == {(p, why) for p, why in problems.items() if why}
    assert [found.place for found in done.left] == [whole]


def test_what_belongs_elsewhere_is_damage(root: Path) -> None:
    place = made(root, "a", 1)
    Store(root).put("data", "k", 1)
    data = only_json(Store(root), "data")
    strange = [place.with_name("0" * 40), root / "others" / place.name, data.with_name("0" * 40 + ".json")]
    strange[1].parent.mkdir()
    for path in strange:
        (shutil.copytree if path.suffix == "" else shutil.copy)(place if path.suffix == "" else data, path)
    empty = root / "others" / ("1" * 40)
    empty.mkdir()
    found = {each.place: examine(each)[1] for each in entries(root)}
    assert found == {
        place: None, data: None, empty: "it has no manifest", **dict.fromkeys(strange, "it belongs to another place"),
    }  # fmt: skip
    prune(root, cache.current_sources())
    assert {each.place for each in entries(root)} == {place, data}


def test_what_other_code_made_goes_unless_it_was_used_lately(root: Path) -> None:
    old, recent = made(root, "a", 1), made(root, "b", 0)
    done = prune(root, "of other code")
    assert names(done.removed) == {old.name} and names(done.kept) == {recent.name}
    assert "made by other code" in done.removed[0][1]


def test_an_entry_that_was_just_made_anew_is_not_damaged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = made(root, "a", 1)
    (found,) = entries(root)
    clear(root)
    assert examine(found) == (None, None)
    original, reads = hashlib.file_digest, []

    def while_it_is_replaced(*arguments: Any) -> Any:
        reads.append(1)
        return original(*arguments) if len(reads) > 1 else hashlib.sha256(b"half old, half new")

    made(root, "a", 1)
    monkeypatch.setattr(hashlib, "file_digest", while_it_is_replaced)
    assert examine(found)[1] is None and len(reads) > 1 and place.exists()


def test_one_process_prunes_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = made(root, "a", 1)
    allowed(monkeypatch, 1)
    with exclusive(root / MARK):
        assert trim(root) is None and place.exists()
    assert trim(root) is not None and not place.exists()


class Usage(NamedTuple):
    free: int


def test_the_bound(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, held, bound in ((0, 0, 0), (100, 50, 15), (10**15, 0, 20 * 2**30)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(free))
        assert bound_of(root, held) == bound
    monkeypatch.setenv("PADDOCK_CACHE_SIZE", "1.5 GiB")
    assert bound_of(root, 0) == 3 * 2**29


def test_a_folder_that_held_something_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "thesis.txt").write_text("thesis")
    place = used(Store(tmp_path).folder("things", "k", big), 9)
    gc.collect()
    with pytest.raises(UsageError, match="not marked") as caught:
        clear(tmp_path)
    assert "PADDOCK_CACHE" in (caught.value.remedy or "")
    with pytest.raises(UsageError, match="not marked"):
        prune(tmp_path, "of other code")
    assert caplog.records == []
    allowed(monkeypatch, 1)
    Store(tmp_path).folder("things", "l", make_a)
    assert "is not pruned" in caplog.text and place.exists()
    assert not (tmp_path / MARK).exists(), "nor is it marked by having been used"
    (tmp_path / MARK).symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(UsageError, match="not marked"):
        clear(tmp_path)


@pytest.mark.parametrize("name", ["", "thesis.txt", "things/thesis.txt", "things/" + "0" * 40])
def test_a_store_from_before_there_were_marks(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made(root, "a", 1)
    Store(root).put("data", "k", 1)
    (root / MARK).unlink()
    if name:
        (root / name).touch()
    Store(root)
    assert not (root / MARK).exists(), "it can be anywhere"
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(root))
    Store(root)
    assert (root / MARK).exists() == (name == "")


def test_only_the_store_s_own_is_removed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / ("0" * 40)).mkdir(parents=True)
    (outside / ("0" * 40) / "precious").touch()
    (outside / ("1" * 40 + ".json")).touch()
    place = made(root, "a", 1)
    (root / "linked").symlink_to(outside)
    (root / "things" / ("2" * 40)).symlink_to(outside)
    (root / "things" / ("3" * 40 + ".json")).symlink_to(outside / ("1" * 40 + ".json"))
    (place / "to-the-outside").symlink_to(outside)
    foreign = [root / "notes.txt", root / "things" / "notes.txt", root / "things" / "0123", root / ".hidden" / "x"]
    foreign[2].mkdir()
    foreign[3].parent.mkdir()
    for path in (foreign[0], foreign[1], foreign[2] / "inner", foreign[3]):
        path.touch()
    before = sorted(outside.rglob("*"))
    prune(root, "of other code", 1)
    clear(root)
    assert not place.exists()
    assert sorted(outside.rglob("*")) == before and all(path.exists() for path in foreign)
    assert (root / "linked").is_symlink() and (root / "things" / ("2" * 40)).is_symlink()


def test_what_ended_processes_left_behind_goes(root: Path) -> None:
    folder = root / "things"
    folder.mkdir()
    name, busy = "0" * 40, "1" * 40
    dead = [folder / f".making-{name}-abc_1", folder / f".dropped-{busy}-0a"]
    alive = [folder / f".making-{busy}-abc_2", folder / ".writing-young"]
    for path in (*dead, alive[0]):
        path.mkdir()
        (path / "half").touch()
    dead += [folder / ".writing-old", folder / f"{name}.lock"]
    for path in (*dead[2:], alive[1]):
        path.touch()
    os.utime(dead[2], (0, 0))
    with exclusive(folder / f"{busy}.lock"):
        prune(root, "")
        assert sorted(folder.iterdir()) == sorted([*alive, folder / f"{busy}.lock"])
    clear(root)
    assert sorted(folder.iterdir()) == [alive[1]]


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    lock, inside, most = tmp_path / "x.lock", [0], [0]

    def work() -> None:
        for _ in range(50):
            with exclusive(lock):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1
                lock.unlink()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_pruning_amid_building_and_using(root: Path) -> None:
    """Whatever is removed meanwhile, a folder that was handed out is there and whole."""
    stop, failures = threading.Event(), []

    def use(number: int) -> None:
        try:
            for _ in range(30):
                store = Store(root)
                place = store.folder("things", number % 2, make_a)
                store.put("data", number, number)
                if (place / "a.txt").read_text() != "content":
                    failures.append("not whole")
                del store
        except Exception as error:  # Whatever it is, the test fails by it.
            failures.append(repr(error))

    def clean() -> None:
        while not stop.is_set():
            clear(root)

    users = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    cleaner = threading.Thread(target=clean)
    for thread in (*users, cleaner):
        thread.start()
    for thread in users:
        thread.join()
    stop.set()
    cleaner.join()
    assert failures == []


def test_what_is_gone_already_is_not_removed_twice(root: Path) -> None:
    made(root, "a", 1)
    Store(root).put("data", "k", 1)
    found = entries(root)
    assert [remove(each) for each in found] == [True, True]
    assert [remove(each) for each in found] == [False, False]
