"""One more adapter for the kit to find out: its module imports a library, and prints past Python while it does."""

from __future__ import annotations

from typing import ClassVar

import hypothesis  # in the place of an SDK: neither Python's nor Paddock's
from paddock_broken import GoodAdapter


class ImportsAnSdk(GoodAdapter):
    """Its probe names none."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.imports_no_sdk",)
    sdk_version: ClassVar[str] = hypothesis.__version__
