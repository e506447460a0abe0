"""Tables and figures of certification logs: ACR, certified accuracy, abstention."""

from __future__ import annotations

from drf_fast.report.summary import summarize

__all__ = ["summarize"]
