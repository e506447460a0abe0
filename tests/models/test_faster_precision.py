"""faster in bfloat16: asked for or measured, left out where a network cannot take it."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

import drf_fast

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Takes its time in one of the two precisions; its logits are of the dtype it runs in."""

    def __init__(self, slow: str | None = None, refuses: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 4)
        self.slow, self.refuses = slow, refuses

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.linear(x.flatten(1))
        half = logits.dtype == torch.bfloat16
        if half and self.refuses:
            raise RuntimeError("not implemented for 'BFloat16'")
        if self.slow == ("bf16" if half else "fp32"):
            time.sleep(0.004)
        return logits


@pytest.mark.parametrize(
    "asked, slow, half",
    [
        ("fastest", "fp32", True),
        ("fastest", "bf16", False),
        ("bf16", "bf16", True),
        ("fp32", "fp32", False),
    ],
)
def test_the_fastest_of_what_was_asked_for_is_taken(clock, asked, slow, half):
    model = Network(slow)
    found = drf_fast.faster(model, X, precision=asked)
    assert getattr(found, "bf16", False) is half
    x = X.clone().requires_grad_()
    logits = found(x)
    logits.square().sum().backward()
    for tensor in (logits, x.grad, model.linear.weight.grad):
        assert tensor is not None and tensor.dtype == torch.float32
    rounded = logits.bfloat16().float()
    assert torch.equal(logits, rounded) is half  # the numbers of bfloat16, or more digits
    assert torch.allclose(logits, model(X), atol=2e-2)
    again = copy.deepcopy(found)
    assert torch.equal(again(X), logits)


def test_bf16_that_a_network_cannot_take_is_left_out_and_said(capsys):
    model = Network(refuses=True)
    found = drf_fast.faster(model, X, precision="bf16")
    assert torch.equal(found(X), model(X))
    said = capsys.readouterr().err
    assert said.count("contiguous bf16 images and is run without") == 1 and "BFloat16" in said


def test_another_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of 'fp32', 'bf16', 'fastest'"):
        drf_fast.faster(Network(), X, precision="fp16")
