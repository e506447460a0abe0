"""The certification log: one line per image, and a sidecar with the configuration.

``FILE.tsv`` is tab-separated. Its first six columns are those of the logs that Cohen, Rosenfeld and
Kolter (2019) and their successors publish, so existing tools read it; three of ours follow:

    idx label predict radius correct time count n p_lower

``radius`` (L2, in pixel units) and ``p_lower`` have 12 decimals and are rounded *down*: a printed
certificate never claims more than the computed one. ``predict`` is -1 where the classifier
abstains. ``FILE.json`` holds the configuration; its key ``environment`` (versions, threads, what
was measured) is recorded but not compared when a log is resumed; a resumed run adds its own, where
it differs, to ``environments_resumed``.
"""

from __future__ import annotations

from drf_fast.certification.log.reader import Log, is_log, read_log
from drf_fast.certification.log.rows import COLUMNS, FIELD_COLUMNS, Row, format_row
from drf_fast.certification.log.sidecar import bare_name, sidecar
from drf_fast.certification.log.writer import CertificationLog

__all__ = [
    "COLUMNS",
    "FIELD_COLUMNS",
    "CertificationLog",
    "Log",
    "Row",
    "bare_name",
    "format_row",
    "is_log",
    "read_log",
    "sidecar",
]
