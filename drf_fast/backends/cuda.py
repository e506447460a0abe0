"""Operations that the CUDA core runs on CUDA tensors; none where it is not built or not usable."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from drf_fast import _native
from drf_fast._native.counting import cuda_vote as vote

__all__ = ["OPERATIONS", "vote"]

# Operation -> kind of its implementation, as far as this installation can run it.
OPERATIONS: dict[str, str]


@functools.cache
def _operations() -> dict[str, str]:
    reason = _native.cuda_why_not()
    if reason is None:
        return {"vote": "native"}
    # Reached only with CUDA tensors in hand, and once: the speed that is lost should be known.
    warnings.warn(
        f"CUDA tensors run on the reference backend: {reason}", RuntimeWarning, stacklevel=2
    )
    return {}


def __getattr__(name: str) -> Any:
    # Asking the driver starts CUDA in this process, which a CPU run that forks must not suffer;
    # so OPERATIONS is settled when the first CUDA tensor asks for it, not at import.
    if name == "OPERATIONS":
        return _operations()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
