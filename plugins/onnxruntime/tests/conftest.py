"""Helper modules that child processes can import too."""

from __future__ import annotations

import sys
from pathlib import Path

# Children get the parent's sys.path, so what stands here is found there by the same name.
sys.path.insert(0, str(Path(__file__).parent))
