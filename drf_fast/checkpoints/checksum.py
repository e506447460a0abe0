"""A checksum of the content of a checkpoint: ``torch.load`` does not detect a flipped bit."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def content_sha256(content: Any) -> str:
    """SHA-256 of a tree of dicts, lists, tuples, tensors and plain values, types included.

    It depends on the values only, not on how a file stores them: saving and loading preserves it.
    """
    digest = hashlib.sha256()
    _add(digest, content)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"tensor {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        digest.update(f"dict {len(value)};".encode())
        for key, item in value.items():
            _add(digest, key)
            _add(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{'list' if isinstance(value, list) else 'tuple'} {len(value)};".encode())
        for item in value:
            _add(digest, item)
    else:
        # Prefixed by its length, so that different trees never give the same bytes.
        text = repr(value).encode("utf-8", "surrogatepass")
        digest.update(f"{type(value).__name__} {len(text)};".encode() + text)
