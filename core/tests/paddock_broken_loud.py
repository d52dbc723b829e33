"""One more adapter for the conformance kit to find out: its module prints while it is imported."""

from __future__ import annotations

import sys
from typing import ClassVar

from paddock_broken import GoodAdapter

sys.stdout.write("Acme SDK 1.0, all rights reserved\n")


class LoudWhenImported(GoodAdapter):
    """Says so on stdout."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.imports_no_sdk",)
