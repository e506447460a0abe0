"""Recognising errors of memory."""

from __future__ import annotations

# The last one ends the status that cuBLAS and cuDNN report.
_WORDS = ("allocate memory", "out of memory", "bad alloc", "bad_alloc", "_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or a GPU was out of memory; torch raises RuntimeError for both."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
