"""What a notebook shows of certificates."""

from __future__ import annotations

import re

import torch

import drf_fast


def result(label, radius, count, p_lower) -> drf_fast.CertifyResult:
    whole = torch.tensor
    float64 = torch.float64
    return drf_fast.CertifyResult(
        whole(label), whole(radius, dtype=float64), whole(count), whole(p_lower, dtype=float64)
    )


def test_a_row_an_image():
    html = result([7, -1], [1.25, 0.0], [990, 400], [0.99999999, 0.3])._repr_html_()
    rows = re.findall(r"<tr><td>(.*?)</tr>", html)
    assert len(rows) == 2 and "<p>1 of 2 images certified; mean radius 0.625</p>" in html
    assert (
        "0</td><td>7</td><td>1.250</td>" in rows[0] and "<td>0.99999</td>" in rows[0]
    )  # rounded down
    assert "<td>abstains</td>" in rows[1] and "<td>400</td>" in rows[1]


def test_many_rows_are_cut_and_none_are_fine():
    many = result([1] * 70, [0.5] * 70, [9] * 70, [0.9] * 70)._repr_html_()
    assert many.count("<meter") == 50 and "and 20 more" in many
    none = drf_fast.CertifyResult(*(torch.zeros(0) for _ in range(4)))._repr_html_()
    assert "0 of 0 images certified" in none


def test_a_radius_is_rounded_down():
    html = result([7], [1.9999], [990], [0.99])._repr_html_()
    assert "<td>1.999</td>" in html and "2.000</td>" not in html
