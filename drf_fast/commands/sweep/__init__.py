"""``drf-fast sweep``: train and certify a grid of settings; one table, and the paper's Fig. 3."""

from __future__ import annotations

from drf_fast.commands.sweep.run import run

__all__ = ["run"]
