"""What has run on what is stated for every adapter, in both places, and in words of one meaning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paddock.registry import Registry
from paddock.wellknown import well_known

ROOT = Path(__file__).resolve().parents[1]
STATES = ("run on real hardware", "on a simulator", "not yet run")


def rows(file: str) -> dict[str, str]:
    """By adapter the row, or rows, of tables that begin with its name."""
    found: dict[str, str] = {}
    for line in (ROOT / file).read_text().splitlines():
        first, _, rest = line.removeprefix("| ").partition(" | ")
        if line.startswith("| `"):
            for name in re.findall(r"`(\w+/\w+)`", first):
                found[name] = found.get(name, "") + rest
    return found


@pytest.mark.parametrize("file", ["README.md", "docs/measured.md"])
def test_every_adapter_has_its_state(file: str, registry: Registry) -> None:
    stated = rows(file)
    for name in {*registry.adapters, *well_known()}:
        told = stated.get(name, "").replace("simulated", "on a simulator").replace("simulation", "on a simulator")
        assert any(state in told for state in STATES), f"{file} does not say on what {name} has run"


def test_nobody_claims_a_gpu_that_was_not_there() -> None:
    for file in ("README.md", "docs/measured.md"):
        for name in ("gpu/cuda", "gpu/tensorrt"):
            assert "not yet run" in rows(file)[name], f"{file}: put the figures into docs/measured.md, with date, first"
