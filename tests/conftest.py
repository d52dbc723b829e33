"""Fixtures for what crosses distributions: a cache and the example models, shared by all workers of one run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from filelock import FileLock
from paddock.child import Child, Children
from paddock.registry import Registry

from examples.export import EXPORTS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole run, whichever worker asks."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def cache(shared: Path) -> Iterator[Path]:
    """PADDOCK_CACHE for this run; the user's own is left alone."""
    place = shared / "paddock-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDOCK_CACHE", str(place))
        yield place


@pytest.fixture(scope="session")
def models(shared: Path) -> Mapping[str, Path]:
    """The example models by name, exported once; in a child, since exporting changes paddle's global state."""
    folder = shared / "models"
    with FileLock(str(shared / "models.lock")):
        if not folder.exists():
            with Child("exporting the examples") as child:
                for export in EXPORTS.values():
                    child.call(export, folder)
    return {name: folder / f"{name}.json" for name in EXPORTS}


@pytest.fixture(scope="module")
def registry(cache: Path) -> Registry:
    """The plugins installed here."""
    return Registry.discover()


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    """Child processes kept for a module's tests, so that each SDK is imported once."""
    with Children() as kept:
        yield kept
