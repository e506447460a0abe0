"""The pooling of LeNet: values and gradients of torch, bit for bit, and the image's by its own way.

float64 and other layouts take torch's own way, which is what the rest is compared with.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.utils.prune
from torch import nn
from torch.nn import functional as F

import drf_fast
from drf_fast.backends.native import library
from drf_fast.backends.native import pooling as native
from drf_fast.backends.reference import pooling as reference
from drf_fast.models import LeNet
from drf_fast.ops.pooling import conv_pool_relu, max_pool_relu

needs_native = pytest.mark.skipif(not library.available(), reason="needs the C++ core")
LAST = torch.channels_last
ISAS = ["avx512", "avx2", "baseline"]
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(2, 20, 24, 24), (3, 1, 2, 2), (1, 3, 6, 10), (5, 50, 8, 8), (2, 17, 4, 2)]


@pytest.fixture(params=ISAS)
def isa(request, instruction_sets):
    if request.param not in instruction_sets:
        pytest.skip(f"needs a processor with {request.param}")
    library.load().use_isa(request.param)
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def awkward(shape, dtype, seed=0):
    """Ties, zeros of both signs, windows below 0, infinities and NaN."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x = torch.where(torch.rand(shape, generator=generator) < 0.5, x.round(), x)
    for value in (-0.0, float("inf"), -float("inf"), float("nan")):
        x[torch.rand(shape, generator=generator) < 0.03] = value
    return x.to(dtype).contiguous(memory_format=LAST)


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(123.0), b.nan_to_num(123.0))


def plain(x):
    return F.relu(F.max_pool2d(x, 2))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_torchs(shape, dtype, isa, threads):
    for seed in range(3):
        x = awkward(shape, dtype, seed)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = max_pool_relu(ours), plain(theirs)
        assert "_MaxPoolReLU" in type(y.grad_fn).__name__
        assert y.is_contiguous(memory_format=LAST) and same(y, expected)
        weights = torch.randn_like(expected, memory_format=torch.contiguous_format)
        (got,) = torch.autograd.grad(y, ours, weights)
        assert same(got, torch.autograd.grad(expected, theirs, weights)[0])
        with torch.no_grad():
            assert same(max_pool_relu(ours), expected)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_native_operations_are_the_reference(shape, dtype, isa):
    x = awkward(shape, dtype)
    for indexed in (True, False):
        for got, expected in zip(
            native.max_pool_relu(x, indexed), reference.max_pool_relu(x, indexed), strict=True
        ):
            assert got.stride() == expected.stride() and same(got, expected)
    out, index = native.max_pool_relu(x, True)
    grad = torch.randn(out.shape).to(dtype)
    got, expected = (module.max_pool_relu_backward(grad, index) for module in (native, reference))
    assert got.stride() == expected.stride() and same(got, expected)
    weight = torch.randn(shape[1], 1, 5, 5).to(dtype)
    got = native.pooled_image_gradient(grad, index, weight)
    exact = reference.pooled_image_gradient(grad.double(), index, weight.double())
    scale = reference.pooled_image_gradient(grad.abs().double(), index, weight.abs().double())
    assert got.dtype == dtype and got.shape == exact.shape
    assert bool(((got.double() - exact).abs() <= (torch.finfo(dtype).eps + 4e-7) * scale).all())


def test_the_reference_is_torchs_in_float64():
    x = awkward((2, 3, 6, 4), torch.float64)
    leaf = x.clone().requires_grad_()
    expected = plain(leaf)
    out, index = reference.max_pool_relu(x, True)
    assert same(out, expected.detach())
    weights = torch.randn_like(expected)
    (grad,) = torch.autograd.grad(expected, leaf, weights)
    assert same(reference.max_pool_relu_backward(weights, index), grad)
    conv = nn.Conv2d(1, 3, 3, bias=False).double()
    image = torch.randn(2, 1, 8, 6).double().requires_grad_()
    y = conv(image)
    (grad,) = torch.autograd.grad(plain(y), image, weights)
    index = reference.max_pool_relu(y.detach(), True)[1]
    got = reference.pooled_image_gradient(weights, index, conv.weight.detach())
    assert torch.allclose(got, grad, rtol=1e-12, atol=1e-12)


def places(y):
    return native.max_pool_relu(y.contiguous(memory_format=LAST), indexed=True)[1]


def convolution(channels, k, dtype):
    torch.manual_seed(1)
    return nn.Conv2d(1, channels, k).to(dtype)


@needs_native
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels, k, size", [(20, 5, (28, 28)), (3, 3, (6, 8)), (1, 7, (8, 14))])
def test_the_gradient_for_images(channels, k, size, dtype, layout, isa, threads):
    conv = convolution(channels, k, dtype).to(memory_format=layout)
    x = torch.rand(5, 1, *size).to(dtype).requires_grad_()
    y = conv_pool_relu(conv, x)
    assert "_ConvPoolReLU" in type(y.grad_fn).__name__
    weights = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, x, weights)
    # The same winners, then float64: sums of C k^2 / 4 terms and one rounding.
    index = places(conv(x))
    unpooled = native.max_pool_relu_backward(weights, index).double()
    exact = F.conv_transpose2d(unpooled, conv.weight.double())
    scale = F.conv_transpose2d(unpooled.abs(), conv.weight.double().abs())
    assert got.dtype == dtype and got.shape == x.shape
    assert bool(((got.double() - exact).abs() <= (torch.finfo(dtype).eps + 4e-7) * scale).all())


@needs_native
@pytest.mark.parametrize("channels, k", [(20, 5), (3, 3), (1, 7)])
def test_a_gradient_that_relu_stops_may_be_infinite(channels, k, isa):
    """As that of a square root at 0."""
    x = torch.randn(2, 1, k + 7, k + 7, requires_grad=True)
    y = conv_pool_relu(convolution(channels, k, torch.float32), x)
    assert "_ConvPoolReLU" in type(y.grad_fn).__name__
    stopped = y == 0
    assert 0 < int(stopped.sum()) < stopped.numel()
    grads = [torch.ones_like(y).masked_fill(stopped, value) for value in (0.0, torch.inf)]
    expected, got = (torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in grads)
    assert bool(expected.any()) and torch.equal(got, expected)


@needs_native
def test_its_bits_depend_on_neither_threads_nor_instructions(instruction_sets):
    conv = convolution(20, 5, torch.float32)
    x = torch.rand(64, 1, 28, 28)
    index = places(conv(x))
    grad = torch.randn(64, 20, 12, 12)
    found, before = [], torch.get_num_threads()
    for isa in instruction_sets:
        library.load().use_isa(isa)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(native.pooled_image_gradient(grad, index, conv.weight.detach()))
    torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


WITHOUT_MEMORY = """
import re, resource, torch
from drf_fast.backends.native import pooling

torch.set_num_threads(1)
grad, weight = torch.ones(1, 1, 2000, 2000), torch.ones(1, 1, 3, 3)
index = torch.zeros(grad.shape, dtype=torch.uint8)
pooling.pooled_image_gradient(grad[..., :2, :2], index[..., :2, :2].contiguous(), weight)
size = 1024 * int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_AS, (size + 96 * 2**20,) * 2)
try:
    pooling.pooled_image_gradient(grad, index, weight)
except MemoryError:
    print("refused")
"""


@pytest.mark.slow
@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_for_the_result_but_not_for_the_sums_is_an_error_in_python():
    """Each takes 64 MB, of 96. An exception that left a parallel region would end the process."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


class PlainLeNet(LeNet):
    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def outcomes(model, x, weights, half=False):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(x)
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [logits, *torch.autograd.grad(logits, leaves, weights.to(logits.dtype))]


@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("half", [False, True])
def test_lenet_is_the_plain_lenet(layout, frozen, half):
    torch.manual_seed(2)
    ours, theirs = LeNet().to(memory_format=layout), PlainLeNet().to(memory_format=layout)
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        model.requires_grad_(not frozen)
    x, weights = torch.rand(9, 1, 28, 28), torch.randn(9, 10)
    for got, expected in zip(
        outcomes(ours, x, weights, half), outcomes(theirs, x, weights, half), strict=True
    ):
        assert got.dtype == expected.dtype
        limit = 0.02 if half else 1e-5
        assert float((got - expected).detach().norm()) <= limit * float(expected.detach().norm())


def test_what_is_not_ours_is_torchs():
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    model = LeNet()
    with drf_fast.use_backend("reference"):
        assert "MaxPoolReLU" not in type(max_pool_relu(x).grad_fn).__name__
        expected = model(x)
    assert torch.allclose(model(x), expected, rtol=1e-5, atol=1e-6)
    assert max_pool_relu(torch.rand(1, 2, 5, 7)).shape == (1, 2, 2, 3)  # odd sizes
    assert max_pool_relu(x.double()).dtype == torch.float64
    total = torch.func.grad(lambda images: model(images).square().sum())(x.detach())
    (own,) = torch.autograd.grad(model(x).square().sum(), x)
    assert torch.allclose(total, own, rtol=1e-4, atol=1e-6)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_has_torchs_dtypes(dtype):
    conv, x = convolution(3, 3, dtype), torch.rand(2, 1, 6, 8, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = conv_pool_relu(conv, x), plain(conv(x))
    assert got.dtype == expected.dtype and torch.equal(got, expected)


@needs_native
@pytest.mark.parametrize("head", [True, False], ids=["trained head", "frozen head"])
def test_second_derivatives_are_torchs(head):
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    model = LeNet()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(head or name.startswith("conv"))

    model.conv1.weight.register_hook(lambda grad: 0.5 * grad)

    def with_a_penalty_on_the_gradient() -> list[torch.Tensor]:
        out = model(x)
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        inputs = [x, *(p for p in model.parameters() if p.requires_grad)]
        return list(torch.autograd.grad(out.sum() + grad.square().sum(), inputs))

    with drf_fast.use_backend("reference"):
        expected = with_a_penalty_on_the_gradient()
    assert "MaxPoolReLU" in type(max_pool_relu(x).grad_fn).__name__
    for got, plain in zip(with_a_penalty_on_the_gradient(), expected, strict=True):
        assert float(plain.abs().max()) > 0
        assert float((got - plain).abs().max()) <= 1e-4 * float(plain.abs().max())


@needs_native
@pytest.mark.parametrize(
    "call",
    [
        lambda: native.max_pool_relu(torch.rand(1, 2, 3, 4), True),
        lambda: native.max_pool_relu(torch.rand(1, 2, 4, 4), True),  # another order
        lambda: native.max_pool_relu(torch.rand(1, 1, 4, 4).double(), True),
        lambda: native.max_pool_relu_backward(torch.rand(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)),
        lambda: native.max_pool_relu_backward(
            torch.rand(1, 1, 2, 3), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
        ),
        lambda: native.pooled_image_gradient(
            torch.rand(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).byte(), torch.rand(1, 1, 4, 4)
        ),
        lambda: native.pooled_image_gradient(
            torch.rand(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).byte(), torch.rand(2, 1, 3, 3)
        ),
    ],
)
def test_the_native_calls_refuse_what_would_be_unsafe(call):
    with pytest.raises(ValueError, match="expected .* got .*"):
        call()


@needs_native
def test_an_index_of_no_window_reads_no_memory_of_others():
    grad = torch.rand(1, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    nowhere = torch.full_like(grad, 4, dtype=torch.uint8)
    weight = torch.rand(2, 1, 3, 3)
    got = native.pooled_image_gradient(grad, torch.full_like(nowhere, 255), weight)
    assert torch.equal(got, native.pooled_image_gradient(grad, nowhere, weight))


def test_a_batch_of_no_images_is_torchs():
    x = torch.zeros(0, 1, 8, 8, requires_grad=True)
    y = conv_pool_relu(nn.Conv2d(1, 4, 5), x)
    y.sum().backward()
    assert y.shape == (0, 4, 2, 2) and x.grad is not None and x.grad.shape == x.shape


class Standardized(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def _hooked(conv):
    conv.register_forward_hook(lambda module, args, output: output + 1)
    return conv


def _pruned(conv):
    torch.nn.utils.prune.random_unstructured(conv, "weight", 0.5)  # a hook makes the weight
    with torch.no_grad():
        conv.weight_orig.add_(1)
    return conv


def _replaced(conv):
    conv.forward = lambda x: 2 * F.conv2d(x, conv.weight, conv.bias)
    return conv


@pytest.mark.parametrize(
    "make",
    [
        lambda: Standardized(1, 20, 5),
        lambda: _hooked(nn.Conv2d(1, 20, 5)),
        lambda: _pruned(nn.Conv2d(1, 20, 5)),
        lambda: _replaced(nn.Conv2d(1, 20, 5)),
    ],
    ids=["another class", "a hook", "pruned", "another forward"],
)
def test_a_convolution_that_is_more_than_one_is_called(make):
    conv, x = make(), torch.rand(2, 1, 12, 12, requires_grad=True)
    assert torch.allclose(conv_pool_relu(conv, x), plain(conv(x)), atol=1e-5)


def test_a_hook_of_all_modules_sees_the_convolution():
    network, seen = LeNet(), []
    hook = nn.modules.module.register_module_forward_hook(lambda *call: seen.append(call[0]))
    with hook:
        network(torch.rand(2, 1, 28, 28, requires_grad=True))
    assert network.conv1 in seen


def test_tangents_go_through():
    network, x = LeNet().requires_grad_(False).to(memory_format=LAST), torch.rand(2, 1, 28, 28)
    with fwAD.dual_level():
        tangent = fwAD.unpack_dual(network(fwAD.make_dual(x, torch.ones_like(x)))).tangent
    assert tangent is not None
    difference = (network.double()(x.double() + 1e-6) - network(x.double())) / 1e-6
    assert torch.allclose(tangent.double(), difference, rtol=1e-3, atol=1e-4)


def test_a_jacobian_may_be_one_batch_of_gradients():
    x = torch.rand(2, 1, 28, 28)
    for network in (LeNet(), LeNet().requires_grad_(False).to(memory_format=LAST)):
        rows = torch.autograd.functional.jacobian(network, x)
        batch = torch.autograd.functional.jacobian(network, x, vectorize=True)
        assert torch.allclose(batch, rows, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_jit_trace_records_torchs_operations():
    network, x = LeNet().to(memory_format=LAST).eval(), torch.rand(2, 1, 28, 28)
    traced = torch.jit.trace(network, x)
    graph = str(traced.inlined_graph)  # pyright: ignore[reportAttributeAccessIssue]
    assert "drf_fast::" not in graph and "PythonOp" not in graph and "max_pool2d" in graph
    assert torch.allclose(traced(x), network(x), atol=1e-5)  # pyright: ignore[reportCallIssue]
