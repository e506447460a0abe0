"""Certificates as an HTML table, for notebooks."""

from __future__ import annotations

import torch

from drf_fast.runtime.text import rounded_down

_MOST_ROWS = 50
_BAR = 8.0  # em


def as_html(
    labels: torch.Tensor, radii: torch.Tensor, counts: torch.Tensor, bounds: torch.Tensor
) -> str:
    """One row per image, at most 50: class, radius with a bar, votes, p_lower; rounded down."""
    largest = max([float(radii.max()) if len(radii) else 0.0, 1e-12])
    rows = []
    for i in range(min(len(labels), _MOST_ROWS)):
        label, radius = int(labels[i]), float(radii[i])
        prediction = "abstains" if label == -1 else str(label)
        bar = f"<meter min='0' max='{largest:.6g}' value='{radius:.6g}' style='width:{_BAR}em'>"
        shown, p_lower = rounded_down(radius, 3), rounded_down(float(bounds[i]), 5)
        rows.append(
            f"<tr><td>{i}</td><td>{prediction}</td><td>{shown}</td><td>{bar}</meter></td>"
            f"<td>{int(counts[i]):,}</td><td>{p_lower}</td></tr>"
        )
    left = len(labels) - len(rows)
    more = f"<tr><td colspan='6'>and {left:,} more</td></tr>" if left else ""
    certified = int((labels != -1).sum())
    head = "".join(f"<th>{name}</th>" for name in ("", "class", "radius", "", "votes", "p_lower"))
    return (
        f"<p>{certified} of {len(labels)} images certified; mean radius "
        f"{float(radii.mean()) if len(radii) else 0.0:.3f}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}{more}</tbody></table>"
    )
