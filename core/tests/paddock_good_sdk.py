"""In the place of a module of an SDK's, which sets a default in the environment when it is imported."""

from __future__ import annotations

import os

HOME = os.environ.setdefault("ACME_HOME", "/opt/acme")
