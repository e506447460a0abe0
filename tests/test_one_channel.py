"""The convolution over one-channel images: outputs and gradients against float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from drf_fast.models.one_channel import OneChannelConv2d, gradient_for_images

SHAPES = [(3, 20, 5, 28, 28), (1, 1, 1, 1, 1), (2, 7, 3, 9, 31), (4, 5, 5, 5, 5), (2, 3, 4, 30, 13)]


def tensors(shape, dtype):
    count, channels, kernel, height, width = shape
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, 1, kernel, kernel, generator=generator, dtype=torch.float64)
    size = (count, channels, height - kernel + 1, width - kernel + 1)
    grad = torch.randn(size, generator=generator, dtype=torch.float64)
    return grad.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.float64, 2**-52), (torch.float32, 2**-23), (torch.bfloat16, 2**-8)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_for_images(shape, dtype, eps, layout):
    grad, weight = tensors(shape, dtype)
    grad = grad.to(memory_format=layout)
    got = gradient_for_images(grad, weight)
    assert got.dtype == dtype
    exact = F.conv_transpose2d(grad.double(), weight.double())
    scale = F.conv_transpose2d(grad.double().abs(), weight.double().abs())
    assert got.shape == exact.shape
    # Sums of C terms in float32 at least, rounded k times for the kernel's rows, and once more.
    assert ((got.double() - exact).abs() <= 4 * eps * scale + 1e-30).all()


def both(precision):
    ours: torch.nn.Conv2d = OneChannelConv2d(20, 5)
    theirs = torch.nn.Conv2d(1, 20, 5)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = layer(x)
        torch.autograd.backward(y, torch.ones_like(y) * 0.5 + y.detach())
        assert layer.bias is not None
        results.append((y, x.grad, layer.weight.grad, layer.bias.grad))
    return results


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_the_layer_is_the_ordinary_one(precision, within):
    ours, theirs = both(precision)
    assert torch.equal(ours[0], theirs[0]) and ours[0].dtype == theirs[0].dtype
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.allclose(a, b, rtol=within, atol=within * float(b.abs().max()))


def test_derivatives_of_all_inputs_and_second_ones():
    layer = OneChannelConv2d(3, 3).double()
    x = torch.rand(2, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    assert layer.bias is not None
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, x),
        (x, layer.weight, layer.bias),
    )
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_torch_func_differentiates_it():
    layer = OneChannelConv2d(3, 3)
    x = torch.rand(2, 1, 6, 7)
    got = torch.func.grad(lambda x: layer(x).square().sum())(x)
    wanted = torch.func.grad(lambda x: F.conv2d(x, layer.weight, layer.bias).square().sum())(x)
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-6)
