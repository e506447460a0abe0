"""``drf_fast.cli.main``, where it lay before ``drf_fast.commands.cli``."""

from __future__ import annotations

from drf_fast.commands.cli import main

__all__ = ["main"]
