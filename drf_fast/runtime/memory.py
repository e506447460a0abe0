"""Whether it was memory that an operation lacked."""

from __future__ import annotations

# The last one is cuBLAS's and cuDNN's: a status.
_WORDS = ("allocate memory", "out of memory", "bad alloc", "bad_alloc", "_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Of the host or of a GPU; torch raises RuntimeError for both."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
