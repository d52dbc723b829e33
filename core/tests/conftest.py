"""For all of the core's tests: a cache of their own, and helper modules that child processes can import too."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Children get the parent's sys.path, so what stands here is found there by the same name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("PADDOCK_CACHE")
    os.environ["PADDOCK_CACHE"] = str(tmp_path_factory.mktemp("paddock-cache"))
    yield
    if before is None:
        del os.environ["PADDOCK_CACHE"]
    else:
        os.environ["PADDOCK_CACHE"] = before
