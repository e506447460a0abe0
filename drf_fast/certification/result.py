"""The result of CERTIFY."""

from __future__ import annotations

from typing import NamedTuple

import torch

from drf_fast.certification.notebook import as_html


class CertifyResult(NamedTuple):
    """The certificates of B images.

    Attributes:
        label: (B,) int64, the class, or -1 where it abstains.
        radius: (B,) float64, certified L2 radius in pixel units, 0 where it abstains.
        count: (B,) int64, votes of the chosen class among the n estimation samples.
        p_lower: (B,) float64, lower bound of that class's probability under noise.
    """

    label: torch.Tensor
    radius: torch.Tensor
    count: torch.Tensor
    p_lower: torch.Tensor

    def _repr_html_(self) -> str:
        """A table in a notebook."""
        return as_html(self.label, self.radius, self.count, self.p_lower)
