"""`paddock cache`: what it tells of a store, and that it removes only what it was asked to."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from paddock import cache_cli
from paddock.cache import Store
from paddock.cache_cli import told
from paddock.cache_entries import MANIFEST, entries
from paddock.errors import UsageError
from rich.console import Console
from test_cache import make_a, only_json


@dataclass
class Screen:
    """A terminal that keeps what it is given."""

    out: Console = field(default_factory=lambda: Console(file=io.StringIO(), width=200))
    data: Any = None

    def document(self, data: Any) -> None:
        self.data = json.loads(json.dumps(data))

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        yield lambda message: None

    @property
    def text(self) -> str:
        assert isinstance(self.out.file, io.StringIO)
        return self.out.file.getvalue()


def run(*arguments: str, code: int = 0) -> Screen:
    """Runs a command in this process; what the user interrupts and errors come through as they are."""
    screen = Screen()
    try:
        ended = cache_cli.app(list(arguments), prog_name="paddock cache", standalone_mode=False, obj=screen)
    except typer.Exit as left:
        ended = left.exit_code
    assert (ended or 0) == code
    return screen


def show(*arguments: str, code: int = 0) -> Any:
    """The JSON document of a command."""
    return run(*arguments, "--json", code=code).data


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PADDOCK_CACHE", str(tmp_path / "store"))
    return Store()


@pytest.fixture
def place(store: Store) -> Path:
    """A folder last used a day ago by nobody who is left, beside two data entries."""
    Store().put("graphs", ["f" * 64, {"sdk": "1.2"}], {"nodes": 3})
    Store().put("shapes", "k", 1)
    place = Store().folder("things", ["[bold]m[/bold]", None, "fp16"], make_a)
    _used(place / MANIFEST, 24)
    return place


def _used(file: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(file, (then, then))


def kinds(listed: Sequence[dict[str, Any]]) -> list[str]:
    return [entry["kind"] for entry in listed]


def test_list(place: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_CACHE_SIZE", "1MiB")
    found = show("list")
    assert kinds(found["entries"]) == ["things", "graphs", "shapes"], "the one used last at the end"
    things, graphs, _ = found["entries"]
    assert things["key"] == ["[bold]m[/bold]", None, "fp16"] and things["form"] == "folder"
    assert things["problem"] is None and things["made"] > things["used"]
    assert graphs["paddock"] and graphs["sources"] and graphs["form"] == "data"
    assert found["bytes"] == sum(entry["bytes"] for entry in found["entries"])
    assert found["cache"] == str(store.root) and found["bound"] == 2**20
    assert kinds(show("list", "--kind", "graphs")["entries"]) == ["graphs"]
    text = run("list").text
    assert "[bold]m[/bold] fp16" in text and "ffffffff sdk 1.2" in text
    assert "3 entries" in text and "1.0 MiB allowed" in text and str(store.root) in text
    assert "1 entries" in (text := run("list", "--kind", "graphs").text) and "in all" in text


def test_list_shows_what_cannot_be_used(place: Path) -> None:
    (place / MANIFEST).unlink()
    (entry,) = show("list", "--kind", "things")["entries"]
    assert entry["problem"] == "it has no manifest" and "key" not in entry
    assert "cannot be used: it has no manifest" in run("list").text


def test_an_empty_cache(store: Store) -> None:
    assert show("list")["entries"] == [] and show("verify")["damaged"] == []
    assert show("prune")["removed"] == [] and show("clear", "--yes")["removed"] == []
    assert "0 entries" in run("list").text


def test_verify(place: Path, store: Store) -> None:
    store.private("adapters", "k")
    found = show("verify")
    assert (found["checked"], found["unchecked"], found["damaged"]) == (3, 1, [])
    assert "3 entries are whole, 0 damaged; 1 " in run("verify").text
    (place / "a.txt").write_text("contemt")
    found = show("verify", code=1)
    assert [(entry["name"], entry["problem"]) for entry in found["damaged"]] == [(place.name, "a.txt was altered")]
    text = run("verify", code=1).text
    assert f"things/{place.name}" in text and "a.txt was altered" in text and "2 entries are whole, 1 damaged" in text
    assert place.exists(), "it changes nothing"


def test_prune(place: Path, store: Store) -> None:
    only_json(store, "graphs").write_text("{")
    found = show("prune")
    assert kinds(found["removed"]) == ["graphs"] and found["kept"] == [] and found["freed"] == 1
    found = show("prune", "--size", "1B")
    assert kinds(found["removed"]) == ["things"] and not place.exists()
    assert found["removed"][0]["why"] == "beyond the bound"
    (left,) = entries(store.root)
    assert left.kind == "shapes" and found["bytes"] == left.size, "used within the hour"
    assert "0 B freed" in run("prune", "--size", "1B").text
    with pytest.raises(UsageError) as caught:
        run("prune", "--size", "small")
    assert caught.value.where == "--size"


def test_prune_says_what_stays(place: Path, store: Store) -> None:
    store.folder("things", ["[bold]m[/bold]", None, "fp16"], make_a)
    _used(place / MANIFEST, 24)
    text = run("prune", "--size", "1B").text
    assert "stays: in use" in text and "things" in text and place.exists()


def test_clear_removes_what_it_was_asked_to(place: Path, store: Store) -> None:
    found = show("clear", "--kind", "graphs", "--yes")
    assert kinds(found["removed"]) == ["graphs"] and len(entries(store.root)) == 2
    text = run("clear", "--yes").text
    assert "shapes" in text and "things" in text and not entries(store.root)


def test_clear_asks_first(place: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["clear"], ["clear", "--json"]):
        with pytest.raises(UsageError) as caught:
            run(*arguments)
        assert caught.value.remedy == "--yes"
    terminal = io.StringIO("n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(UsageError):  # A question would spoil the document.
        run("clear", "--json")
    with pytest.raises(typer.Abort):
        run("clear")
    assert len(entries(store.root)) == 3
    terminal.seek(0)
    terminal.write("y\n")
    terminal.seek(0)
    run("clear")
    assert entries(store.root) == []


@pytest.mark.parametrize("command", ["list", "clear"])
def test_a_kind_that_is_not_there_lists_those_that_are(place: Path, command: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(command, "--kind", "graph")
    assert caught.value.candidates == ("graphs", "shapes", "things")


def test_a_folder_that_is_not_a_store_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.txt").touch()
    monkeypatch.setenv("PADDOCK_CACHE", str(tmp_path))
    Store().put("data", "k", 1)
    assert len(show("list")["entries"]) == 1
    for command in (["prune"], ["clear"], ["clear", "--yes"]):
        with pytest.raises(UsageError, match="not marked"):
            run(*command)
    assert len(show("list")["entries"]) == 1


def test_told() -> None:
    assert (
        told(["a" * 40, None, {"sdk": "1", "of": []}, 3, False, "two\nlines"]) == "aaaaaaaa sdk 1 of 3 False two lines"
    )
    assert told({"shortened": "x" * 500}) == "x" * 77 + "..."
    assert told([]) == ""


def test_the_command_line_reaches_it(place: Path, store: Store) -> None:
    (place / "a.txt").write_text("contemt")
    done = subprocess.run(
        [sys.executable, "-m", "paddock.cli", "cache", "verify", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr == ""
    assert kinds(json.loads(done.stdout)["damaged"]) == ["things"]
