"""Data sets in memory: ``load`` reads one, ``batches`` walks through it."""

from __future__ import annotations

from drf_fast.data.dataset import Dataset, batches
from drf_fast.data.registry import NAMES, OWN, default_data_dir, load

__all__ = ["NAMES", "OWN", "Dataset", "batches", "default_data_dir", "load"]
