"""What holds for all tests: Ctrl-C works; those that need a GPU are skipped without one, with what is missing."""

from __future__ import annotations

import signal
from functools import cache

import pytest


def pytest_configure() -> None:
    """Has Ctrl-C work where a shell that runs this in the background had it ignored: tests of it would never end."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked `gpu("hardware/backend")` where that adapter has no device."""
    for mark in item.iter_markers("gpu"):
        for adapter in mark.args:
            reason = _why_not(adapter)
            if reason:
                pytest.skip(f"{adapter}: {reason}")


@cache
def _why_not(adapter: str) -> str:
    """Why an adapter runs nothing here; "" where it does."""
    from paddock.errors import PaddockError
    from paddock.registry import Registry

    registry = Registry.discover()
    try:
        registered = registry.get(adapter)
    except PaddockError as error:
        return error.problem
    devices = registry.devices(registered, registry.probe(registered))
    return "" if devices.verdict.usable else devices.verdict.reason
