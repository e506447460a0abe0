"""Bad logits, labels and counts: the exception, and that it says what was expected, what came."""

from __future__ import annotations

import math

import pytest
import torch
from good_calls import (
    LOGITS,
    TARGET,
    Case,
    assert_refused,
    ce,
    ints,
    vote,
    with_value,
)

import drf_fast

LOSSES: list[Case] = [
    ("label K", lambda: ce(target=ints(0, 4)), ValueError, r"0\.\.3 .*got 4 at index 1"),
    ("label -1", lambda: ce(target=ints(-1, 0)), ValueError, r"0\.\.3 .*got -1 at index 0"),
    ("NaN logits", lambda: ce(with_value(math.nan)), ValueError, "no NaN.*row for image 1"),
    ("+inf logits", lambda: ce(with_value(math.inf)), ValueError, r"no \+inf.*row for image 1"),
    ("rows", lambda: ce(LOGITS[:5]), ValueError, "the 5 rows .*multiple of num_samples=3"),
    ("no num_samples", lambda: ce(m=None), ValueError, r"\(6, 4\) need num_samples"),
    ("num_samples 0", lambda: ce(m=0), ValueError, r"num_samples must lie in 1.*got 0"),
    (
        "num_samples of 3-D",
        lambda: ce(LOGITS.reshape(2, 3, 4), m=2),
        ValueError,
        r"num_samples=2 contradicts logits of shape \(2, 3, 4\)",
    ),
    ("1-D", lambda: ce(LOGITS[0]), ValueError, r"\(B\*m, K\).*got shape \(4,\)"),
    ("4-D", lambda: ce(LOGITS[None, None]), ValueError, r"got shape \(1, 1, 6, 4\)"),
    ("sample_dim", lambda: ce(sample_dim=2), ValueError, "sample_dim must be 1 .* or 0 .*got 2"),
    ("empty", lambda: ce(LOGITS[:0], TARGET[:0]), ValueError, "must not be empty, got 0 images"),
    ("K=1", lambda: ce(LOGITS[:, :1]), ValueError, "at least 2 classes, got logits with K=1"),
    ("K=0", lambda: ce(LOGITS[:, :0]), ValueError, "at least 2 classes, got logits with K=0"),
    (
        "repeated labels",
        lambda: ce(target=TARGET.repeat(3)),
        ValueError,
        r"2 images \(6 rows of logits, 3 an image\), got shape \(6,\); labels are not repeated",
    ),
    *[
        (
            f"one-hot labels, {dtype}",
            lambda dtype=dtype: ce(target=torch.eye(4, dtype=dtype)[:2]),
            ValueError,
            r"shape \(2, 4\); of one-hot labels pass target\.argmax\(1\)",
        )
        for dtype in (torch.int64, torch.float32)
    ],
    ("labels in a column", lambda: ce(target=TARGET[:, None]), ValueError, r"target\.squeeze\(1\)"),
    ("another m", lambda: ce(m=2), ValueError, r"3 images .*got shape \(2,\); check num_samples"),
    ("float labels", lambda: ce(target=TARGET.float()), TypeError, "int64 labels, got torch.floa"),
    ("int32 labels", lambda: ce(target=TARGET.int()), TypeError, "int64 labels, got torch.int32"),
    (
        "list of labels",
        lambda: ce(target=[0, 1]),
        TypeError,
        "target must be a torch.Tensor, got l",
    ),
    ("integer logits", lambda: ce(LOGITS.long()), TypeError, "logits must be float32.*torch.int64"),
    ("devices", lambda: ce(target=TARGET.to("meta")), ValueError, "got target on meta .*on cpu"),
    ("reduction", lambda: ce(reduction="batchmean"), ValueError, "'none', 'mean', 'sum', got 'b"),
    (
        "NaN logits, consistency",
        lambda: drf_fast.consistency_loss(with_value(math.nan), TARGET, 3, lam=1.0),
        ValueError,
        "no NaN.*row for image 1",
    ),
    (
        "label K, consistency",
        lambda: drf_fast.consistency_loss(LOGITS, ints(4, 0), 3, lam=1.0),
        ValueError,
        r"0\.\.3 .*got 4 at index 0",
    ),
    (
        "NaN logits, macer",
        lambda: drf_fast.macer_loss(with_value(math.nan), TARGET, 3, sigma=0.5, lam=1.0),
        ValueError,
        "no NaN.*row for image 1",
    ),
    (
        "label K, macer",
        lambda: drf_fast.macer_loss(LOGITS, ints(4, 0), 3, sigma=0.5, lam=1.0),
        ValueError,
        r"0\.\.3 .*got 4 at index 0",
    ),
]

STATISTICS: list[Case] = [
    *[
        (f"{name} of {k} in {n} at {alpha}", lambda f=f, k=k, n=n, a=alpha: f(k, n, a), kind, text)
        for name, f in [
            ("bound", lambda k, n, a: drf_fast.clopper_pearson_lower(k, n, a)),
            ("radius", lambda k, n, a: drf_fast.certified_radius(k, n, sigma=0.5, alpha=a)),
        ]
        for k, n, alpha, kind, text in [
            (11, 10, 0.01, ValueError, "11.*10"),
            (-1, 10, 0.01, ValueError, "-1"),
            (0, 0, 0.01, ValueError, "trials.*0"),
            (ints(1, 12), ints(10, 10), 0.01, ValueError, "12.*10"),
            (5, 10, 0.0, ValueError, "alpha must be above 0, got 0"),
            (5, 10, 1.0, ValueError, "0 < alpha < 1, got 1"),
            (5, 10, math.nan, ValueError, "alpha must be finite, got nan"),
            (5.0, 10, 0.01, TypeError, "successes must be a torch.Tensor|int"),
            (torch.tensor(5.0), 10, 0.01, TypeError, "int64 tensor, got torch.float32"),
            (5, True, 0.01, TypeError, "trials"),
        ]
    ],
    (
        "shapes",
        lambda: drf_fast.clopper_pearson_lower(ints(1, 2), ints(5, 5, 5), 0.01),
        ValueError,
        r"successes and trials .*got \(2,\) and \(3,\)",
    ),
    (
        "sigma of a radius",
        lambda: drf_fast.certified_radius(5, 10, sigma=-1.0, alpha=0.01),
        ValueError,
        "sigma must be above 0, got -1",
    ),
    ("float counts", lambda: vote(counts=torch.zeros(2, 4)), TypeError, "int64.*got torch.float32"),
    (
        "strided counts",
        lambda: vote(counts=torch.zeros(4, 2, dtype=torch.int64).t()),
        ValueError,
        r"counts must be contiguous.*got strides \(1, 2\)",
    ),
    (
        "classes",
        lambda: vote(counts=torch.zeros(2, 5, dtype=torch.int64)),
        ValueError,
        r"logits \(B\*r, K\).*got \(6, 4\) and \(2, 5\)",
    ),
    ("vote rows", lambda: vote(LOGITS[:5]), ValueError, r"got \(5, 4\) and \(2, 4\)"),
    (
        "vote K=1",
        lambda: vote(LOGITS[:, :1], torch.zeros(2, 1, dtype=torch.int64)),
        ValueError,
        "K at least 2, got",
    ),
    (
        "vote devices",
        lambda: vote(counts=torch.zeros(2, 4, dtype=torch.int64, device="meta")),
        ValueError,
        "got counts on meta .*on cpu",
    ),
]

CASES = [*LOSSES, *STATISTICS]


@pytest.mark.parametrize(
    "call, kind, message", [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input_is_named_with_what_was_expected_and_what_came(call, kind, message):
    assert_refused(call, kind, message)
