"""``python -m drf_fast`` is ``drf-fast``."""

from __future__ import annotations

import sys

from drf_fast.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
