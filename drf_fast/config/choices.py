"""The values of settings that are named, where several modules must agree; no torch here.

The names themselves are ``typing.get_args`` of a choice.
"""

from typing import Literal

Precision = Literal["fp32", "bf16"]  # of training
Arithmetic = Literal["fp32", "tf32", "bf16"]  # of certification, after the choice
AskedArithmetic = Literal["auto", "fastest", Arithmetic]
Device = Literal["auto", "cpu", "cuda"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]
Budget = Literal["fixed", "anytime"]
Format = Literal["table", "markdown", "latex", "csv", "json"]
Split = Literal["test", "train"]
Augment = Literal["none", "crop-flip"]
GradNorm = Literal["image", "batch", "none"]
