"""Certification logs in one table and one picture: ACR, certified accuracy, abstention."""

from __future__ import annotations

from drf_fast.report.summary import GroupSummary, Summary, summarize

__all__ = ["GroupSummary", "Summary", "summarize"]
