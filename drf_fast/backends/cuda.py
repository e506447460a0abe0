"""Operations that the CUDA core runs on CUDA tensors; none where it is not built or not usable.

The other operations have kernels in Triton: ``backends/kernels.py``.
"""

from __future__ import annotations

import functools
from typing import Any

from drf_fast import _native
from drf_fast._native.counting import cuda_certified_radius as certified_radius
from drf_fast._native.counting import cuda_clopper_pearson_lower as clopper_pearson_lower
from drf_fast._native.counting import cuda_vote as vote
from drf_fast.backends import kernels

__all__ = ["OPERATIONS", "certified_radius", "clopper_pearson_lower", "vote"]

_IMPLEMENTED = ("vote", "clopper_pearson_lower", "certified_radius")

# Operation -> kind of its implementation, as far as this installation can run it.
OPERATIONS: dict[str, str]


@functools.cache
def _operations() -> dict[str, str]:
    reason = _native.cuda_why_not()
    if reason is None:
        return dict.fromkeys(_IMPLEMENTED, "native")
    # Reached only with CUDA tensors in hand, and once.
    kernels.warn_once(f"{', '.join(_IMPLEMENTED)}: {reason}")
    return {}


def __getattr__(name: str) -> Any:
    # Asking the driver starts CUDA in this process, which a CPU run that forks must not suffer;
    # so OPERATIONS is settled when the first CUDA tensor asks for it, not at import.
    if name == "OPERATIONS":
        return _operations()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
