"""Table 1 of the DRF paper (Wang, Zhou, Liu, AAAI 2024), for comparison with measured rows."""

from __future__ import annotations

import csv
import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

import numpy as np

from drf_fast.certification.log import Log
from drf_fast.report.groups import Group

IMAGES, N, ALPHA = 10_000, 100_000, 0.001
# SHA-256 of the labels of the MNIST test set, one byte each: a log carries its labels, so this
# tells the data set whatever the file is called.
_MNIST_TEST_LABELS = "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5"


@dataclass(frozen=True)
class PaperRow:
    """ACR and certified accuracy in % by radius, as printed."""

    acr: float
    certified: dict[float, float]


def paper_row(group: Group, compare: bool | None) -> PaperRow | None:
    """The row for a group, None if there is none; ``compare=None``: only for comparable logs."""
    if compare is False or group.sigma is None:
        return None
    if compare is None and not _is_comparable(group):
        return None
    return table().get((group.sigma, group.method))


@functools.cache
def table() -> dict[tuple[float, str], PaperRow]:
    """All 24 rows by sigma and method, in the order of the paper."""
    text = (resources.files("drf_fast.report") / "table1_mnist.csv").read_text("utf-8")
    return {
        (float(row["sigma"]), row["method"]): PaperRow(
            acr=float(row["acr"]),
            certified={float(k[1:]): float(v) for k, v in row.items() if k[1:2].isdigit()},
        )
        for row in csv.DictReader(text.splitlines())
    }


def _is_comparable(group: Group) -> bool:
    budget, n, alpha = (group.setting(key) for key in ("budget", "n", "alpha"))
    same = budget in (None, "fixed") and n in (None, N) and alpha in (None, ALPHA)
    training = group.setting("training")
    trained = training.get("sigma") if isinstance(training, dict) else None
    return same and trained in (None, group.sigma) and _is_mnist_test(group.logs[0])


def _is_mnist_test(log: Log) -> bool:
    if not np.array_equal(np.sort(log.idx), np.arange(IMAGES)) or log.label.max() > 255:
        return False
    labels = log.label[np.argsort(log.idx)].astype(np.uint8)
    return hashlib.sha256(labels.data).hexdigest() == _MNIST_TEST_LABELS
