"""Operations that the C++ core runs on CPU tensors; none where it is not built."""

from __future__ import annotations

from drf_fast import _native
from drf_fast._native import certified_radius, clopper_pearson_lower, vote

__all__ = ["OPERATIONS", "certified_radius", "clopper_pearson_lower", "vote"]

# Operation -> kind of its implementation, as far as this installation can run it.
OPERATIONS: dict[str, str] = (
    dict.fromkeys(("vote", "clopper_pearson_lower", "certified_radius"), "native")
    if _native.available()
    else {}
)
