"""What to do about labels in another form than one whole number an image."""

from __future__ import annotations


def how_to_pass(shape: tuple[int, ...], batch: int, classes: int | None, name: str) -> str | None:
    """What to do about labels of this shape where (batch,) is needed; None if they look unknown."""
    if len(shape) == 2 and shape[1] > 1 and shape == (batch, classes or shape[1]):
        return f"of one-hot labels pass {name}.argmax(1); soft labels are not supported"
    return f"pass {name}.squeeze(1)" if shape == (batch, 1) else None
