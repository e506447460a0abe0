"""Architectures: sizes, names, the forward and backward passes, and the normalising first layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drf_fast import models
from drf_fast.errors import InputError
from drf_fast.models import normalize
from drf_fast.models.normalize import Normalize

CIFAR = (3, 32, 32)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def seeded(arch: str, shape: tuple[int, ...], normalize: str = "none") -> nn.Module:
    """A network with batch norms that are not the identity, in eval mode."""
    torch.manual_seed(0)
    network = models.build(arch, 10, shape, normalize)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


@pytest.mark.parametrize(
    "arch, shape, num_classes, count",
    [
        ("lenet", (1, 28, 28), 10, 431_080),
        ("resnet20", CIFAR, 10, 272_474),
        ("resnet56", CIFAR, 10, 855_770),
        ("resnet110", CIFAR, 10, 1_730_714),
        ("resnet50", (3, 224, 224), 1000, 25_557_032),
    ],
)
def test_parameter_counts_are_the_published_ones(arch, shape, num_classes, count):
    assert parameters(models.build(arch, num_classes, shape)) == count


def test_every_architecture_is_counted_above():
    assert models.NAMES == ("lenet", "resnet20", "resnet56", "resnet110", "resnet50")


@pytest.mark.parametrize(
    "arch, shape",
    [
        ("lenet", (1, 28, 28)),
        ("lenet", (3, 28, 28)),
        ("resnet20", CIFAR),
        ("resnet20", (1, 28, 28)),
        ("resnet20", (3, 64, 48)),
        ("resnet20", (3, 8, 8)),
        ("resnet56", CIFAR),
        ("resnet110", CIFAR),
        ("resnet50", (3, 224, 224)),
        ("resnet50", (3, 64, 64)),
    ],
)
def test_a_batch_of_images_gives_finite_logits_of_each_class(arch, shape):
    network = models.build(arch, 7, shape).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, *shape))
    assert logits.shape == (2, 7) and logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


def test_the_usual_shape_is_one_that_the_architecture_takes():
    for arch in models.NAMES:
        models.check_shape(arch, models.usual_shape(arch, 3))
    assert models.usual_shape("lenet", 1) == (1, 28, 28)
    assert models.usual_shape("resnet110", 3) == (3, 32, 32)
    assert models.usual_shape("resnet50", 3) == (3, 224, 224)


def test_initialisation_is_that_of_he_et_al_and_seeded():
    torch.manual_seed(3)
    one = models.build("resnet20", 10, CIFAR)
    torch.manual_seed(3)
    other = models.build("resnet20", 10, CIFAR)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    weight = dict(one.named_parameters())["layer3.1.conv2.weight"]
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.03)  # 36,864 values


def batch_norm(x, w, name):
    return F.batch_norm(x, None, None, w[f"{name}.weight"], w[f"{name}.bias"], training=True)


def block_by_hand(x, w, name, stride):
    out = F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1)
    out = torch.relu(batch_norm(out, w, f"{name}.bn1"))
    out = batch_norm(F.conv2d(out, w[f"{name}.conv2.weight"], padding=1), w, f"{name}.bn2")
    if f"{name}.downsample.0.weight" in w:
        x = F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride)
        x = batch_norm(x, w, f"{name}.downsample.1")
    return torch.relu(out + x)


def test_gradients_in_training_are_those_of_the_network_written_out():
    # The blocks overwrite what they can; a value that the backward needed would show here.
    torch.manual_seed(0)
    network = models.build("resnet20", 10, CIFAR).double().train()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    weights = dict(network.named_parameters())
    names = [name for name in weights if name.endswith("weight")]
    inputs = [x, *(weights[name] for name in names)]
    target = torch.arange(4)
    ours = F.cross_entropy(network(x), target)
    out = torch.relu(batch_norm(F.conv2d(x, weights["conv1.weight"], padding=1), weights, "bn1"))
    for stage in (1, 2, 3):
        for i in range(3):
            stride = 2 if stage > 1 and i == 0 else 1
            out = block_by_hand(out, weights, f"layer{stage}.{i}", stride)
    logits = F.linear(out.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])
    by_hand = F.cross_entropy(logits, target)
    torch.testing.assert_close(ours, by_hand, rtol=1e-12, atol=0)
    for name, a, b in zip(
        ["x", *names],
        torch.autograd.grad(ours, inputs),
        torch.autograd.grad(by_hand, inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12, msg=name)


@pytest.mark.parametrize("normalize", ["none", "cifar10"])
@pytest.mark.parametrize("arch", ["resnet20", "resnet110"])
def test_channels_last_gives_the_same_logits(arch, normalize):
    network, x = seeded(arch, CIFAR, normalize), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        got = network(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", ["lenet", "resnet20", "resnet56"])
@pytest.mark.parametrize("whole", [True, False], ids=["bfloat16 weights", "autocast"])
def test_bf16_forward_is_near_that_of_fp32(arch, whole):
    shape = models.usual_shape(arch, 3)
    network, x = seeded(arch, shape, "cifar10"), torch.rand(4, *shape)
    with torch.no_grad():
        expected = network(x)
        if whole:
            got = network.to(torch.bfloat16)(x.to(torch.bfloat16))
        else:
            with torch.autocast("cpu", torch.bfloat16):
                got = network(x.to(torch.bfloat16))  # noisy_repeat writes rows in bfloat16
    assert got.dtype == torch.bfloat16
    error = (got.float() - expected).norm() / expected.norm()
    assert 0 < error < 0.05


# ---- the normalising first layer


def test_normalisation_is_that_of_the_published_layer():
    x = torch.rand(2, 3, 5, 4)
    mean = torch.tensor([0.4914, 0.4822, 0.4465])
    std = torch.tensor([0.2023, 0.1994, 0.2010])
    layer = normalize.normalize_layer("cifar10", 3)
    assert layer is not None
    expected = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert torch.equal(layer(x), expected)
    center = normalize.normalize_layer("cifar10-center", 3)
    assert center is not None and torch.equal(center(x), x - mean.view(1, 3, 1, 1))
    imagenet = normalize.normalize_layer("imagenet", 3)
    assert imagenet is not None
    torch.testing.assert_close(imagenet.mean, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(imagenet.std, torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize(
    ("text", "channels", "mean", "std"),
    [
        ("0.5/0.25", 3, [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]),
        ("0.5,0.4,0.3/0.25", 3, [0.5, 0.4, 0.3], [0.25, 0.25, 0.25]),
        ("0.1/1, 2e0,3", 3, [0.1, 0.1, 0.1], [1.0, 2.0, 3.0]),
        ("0.1307/0.3081", 1, [0.1307], [0.3081]),
        ("mnist", 1, [0.1307], [0.3081]),
    ],
)
def test_normalisation_by_numbers(text, channels, mean, std):
    layer = normalize.normalize_layer(text, channels)
    assert layer is not None
    assert torch.equal(layer.mean, torch.tensor(mean))
    assert torch.equal(layer.std, torch.tensor(std))
    again = normalize.normalize_layer(normalize.value_of(layer), channels)
    assert again is not None and torch.equal(again.mean, layer.mean)
    assert torch.equal(again.std, layer.std)


def test_every_layer_has_a_value_of_the_flag():
    for name in normalize.NAMES:
        assert (
            normalize.value_of(normalize.normalize_layer(name, 1 if name == "mnist" else 3)) == name
        )
    assert normalize.value_of(normalize.normalize_layer("0/1", 3)) == "none"
    assert normalize.value_of(normalize.normalize_layer("0.1307/0.3081", 1)) == "mnist"


def test_normalisation_keeps_the_memory_format():
    layer = Normalize([0.5] * 3, [0.2] * 3)
    x = torch.rand(2, 3, 5, 4).to(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    assert layer(x.contiguous()).is_contiguous()


def test_a_data_set_has_its_published_normalisation():
    assert normalize.for_data("cifar10", 3) == "cifar10"
    assert normalize.for_data("imagenet", 3) == "imagenet"
    assert normalize.for_data("imagenet", 1) == "none"
    for data in ("mnist", "mnist-mini", "fashion-mnist", "imagefolder"):
        assert normalize.for_data(data, 1) == normalize.for_data(data, 3) == "none"


def test_a_state_dict_rebuilds_its_network_with_the_first_layer():
    network = seeded("resnet20", CIFAR, "cifar10")
    state, x = network.state_dict(), torch.rand(2, 3, 32, 32)
    assert {"0.mean", "0.std", "1.conv1.weight"} <= set(state)
    rebuilt = models.build_for(state, "resnet20", 10, CIFAR)
    rebuilt.load_state_dict(state)
    assert torch.equal(rebuilt.eval()(x), network(x))
    plain = seeded("resnet20", CIFAR)
    assert not isinstance(plain, nn.Sequential)
    rebuilt = models.build_for(plain.state_dict(), "resnet20", 10, CIFAR)
    rebuilt.load_state_dict(plain.state_dict())
    assert torch.equal(rebuilt.eval()(x), plain(x))


def test_the_constants_are_not_trained():
    network = models.build("resnet20", 10, CIFAR, "cifar10")
    assert parameters(network) == 272_474


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("vgg", 10, CIFAR), "--arch must be one of lenet, resnet20, .*got 'vgg'"),
        (("lenet", 10, CIFAR), r"got images of shape \(3, 32, 32\); choose --arch resnet20, "),
        (("resnet20", 10, (3, 4, 32)), r"at least 8x8, got images of shape \(3, 4, 32\)"),
        (("resnet20", 10, (32, 32)), r"at least 8x8, got images of shape \(32, 32\)"),
        (("resnet50", 10, (1, 224, 224)), r"of 3 channels, .*got images of shape \(1, 224, 224\)"),
        (("resnet50", 10, (3, 28, 28)), r"at least 32x32, got images of shape \(3, 28, 28\)"),
        (("resnet20", 10, CIFAR, "svhn"), "--normalize must be one of none, .*got 'svhn'"),
        (
            ("resnet20", 10, CIFAR, "0.5,0.5/0.25"),
            "0.5,0.5/0.25 is for images of 2 channels, got 3",
        ),
        (("resnet20", 10, CIFAR, "0.5/0.25,0.2"), "0.5/0.25,0.2 is for images of 2 channels, got"),
        *(
            (("resnet20", 10, CIFAR, text), f"or MEAN/STD in numbers, .* got '{text}'")
            for text in ("0.5", "0.5/", "/", "0.5/0", "0.5/-1", "nan/1", "0.5/1e-60", "1/2/3", "")
        ),
        (("resnet20", 10, (1, 32, 32), "cifar10"), "cifar10 is for images of 3 channels, got 1"),
    ],
    ids=lambda value: str(value[:1]) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_built_is_refused(arguments, expected):
    with pytest.raises(InputError, match=expected) as caught:
        models.build(*arguments)
    assert "\n" not in str(caught.value)
