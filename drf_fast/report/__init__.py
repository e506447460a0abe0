"""Certification logs in one table and one picture: ACR, certified accuracy, abstention."""

from __future__ import annotations

from drf_fast.report.run import FORMATS, as_json, run
from drf_fast.report.summary import GroupSummary, Summary, summarize

__all__ = ["FORMATS", "GroupSummary", "Summary", "as_json", "run", "summarize"]
