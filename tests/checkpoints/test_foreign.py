"""Checkpoints of the published repositories, written here as they write them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drf_fast import models
from drf_fast.checkpoints import first_layer
from drf_fast.checkpoints.ours import load_any as load
from drf_fast.errors import InputError

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
STD = torch.tensor([0.2023, 0.1994, 0.2010]).view(1, 3, 1, 1)

Weights = dict[str, torch.Tensor]


# ---- the published networks, written out by the names of their weights


def published_resnet(depth: int, num_classes: int = 10, seed: int = 0) -> Weights:
    """Random weights under the names of cifar_resnet in the 2019 repository, in its order."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}

    def conv(name: str, out: int, into: int, size: int) -> None:
        shape = (out, into, size, size)
        spread = (2 / (into * size * size)) ** 0.5
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * spread

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"] = 0.5 + 0.5 * torch.rand(width, generator=generator)
        weights[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)
        weights[f"{name}.running_mean"] = 0.1 * torch.randn(width, generator=generator)
        weights[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=generator)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(12345)

    conv("conv1", 16, 3, 3)
    norm("bn1", 16)
    into = 16
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for i in range((depth - 2) // 6):
            name = f"layer{stage}.{i}"
            conv(f"{name}.conv1", width, into, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3)
            norm(f"{name}.bn2", width)
            if into != width:
                conv(f"{name}.downsample.0", width, into, 1)
                norm(f"{name}.downsample.1", width)
            into = width
    weights["fc.weight"] = torch.randn((num_classes, 64), generator=generator)
    weights["fc.bias"] = torch.randn(num_classes, generator=generator)
    return weights


def resnet_by_hand(w: Weights, x: torch.Tensor) -> torch.Tensor:
    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.batch_norm(
            x,
            w[f"{name}.running_mean"],
            w[f"{name}.running_var"],
            w[f"{name}.weight"],
            w[f"{name}.bias"],
        )

    x = F.relu(norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3):
        i = 0
        while f"layer{stage}.{i}.conv1.weight" in w:
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            out = F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.relu(norm(out, f"{name}.bn1"))
            out = norm(F.conv2d(out, w[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if f"{name}.downsample.0.weight" in w:
                x = F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{name}.downsample.1")
            x = F.relu(out + x)
            i += 1
    return F.linear(F.avg_pool2d(x, 8).flatten(1), w["fc.weight"], w["fc.bias"])


def published_lenet(seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "conv1": (20, 1, 5, 5),
        "conv2": (50, 20, 5, 5),
        "fc1": (500, 800),
        "fc2": (10, 500),
    }
    weights: Weights = {}
    for name, shape in shapes.items():
        fan_in = shape[1] * (25 if len(shape) == 4 else 1)
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
        weights[f"{name}.bias"] = torch.randn(shape[0], generator=generator) / 10
    return weights


def lenet_by_hand(w: Weights, x: torch.Tensor) -> torch.Tensor:
    """With pooling after ReLU, as published; ours pools before, which is the same function."""
    x = F.max_pool2d(F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"])), 2, 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"])), 2, 2)
    x = F.relu(F.linear(x.flatten(1), w["fc1.weight"], w["fc1.bias"]))
    return F.linear(x, w["fc2.weight"], w["fc2.bias"])


def prefixed(prefix: str, weights: Weights) -> Weights:
    return OrderedDict((prefix + key, value) for key, value in weights.items())


def write(folder: Path, content: Any, **options: Any) -> Path:
    torch.save(content, folder / "published.pth.tar", **options)
    return folder / "published.pth.tar"


def checkpoint(state: Weights, arch: str = "cifar_resnet20") -> dict[str, Any]:
    """What the training scripts of the 2019 repository and its successors save."""
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    return {"epoch": 90, "arch": arch, "state_dict": state, "optimizer": optimizer.state_dict()}


def network_of(saved: dict[str, Any]) -> nn.Module:
    shape = tuple(saved["image_shape"])
    network = models.build_for(saved["model"], saved["arch"], saved["num_classes"], shape)
    network.load_state_dict(saved["model"])
    return network.eval()


@torch.no_grad()
def logits(saved: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    return network_of(saved)(x)


def assert_equal_logits(saved: dict[str, Any], x: torch.Tensor, expected: torch.Tensor) -> None:
    # Not bit by bit: layouts differ, and with them the order of sums in a convolution.
    torch.testing.assert_close(logits(saved, x), expected, rtol=1e-4, atol=1e-4)
    assert (expected[0] - expected[1]).norm() > 0.1  # the images matter, by more than that


IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
IMAGES *= torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1, 1)


# ---- what loads


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("depth", [20, 56, 110])
def test_a_checkpoint_of_the_2019_repository(tmp_path, depth, legacy):
    weights = published_resnet(depth)
    content = checkpoint(prefixed("1.", weights), f"cifar_resnet{depth}")
    path = write(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    saved = load(path)
    assert (saved["arch"], saved["num_classes"]) == (f"resnet{depth}", 10)
    assert saved["image_shape"] == [3, 32, 32]
    assert saved["config"] == {
        "sigma": None,
        "data": None,
        "method_label": "foreign",
        "normalize": "cifar10",
        "arch_in_file": f"cifar_resnet{depth}",
        "epoch": 90,
    }
    assert saved["notes"] == []
    assert "assumed --normalize cifar10" in saved["assumed"]
    assert len(saved["sha256"]) == 64
    assert_equal_logits(saved, IMAGES, resnet_by_hand(weights, (IMAGES - MEAN) / STD))


def test_a_checkpoint_of_smoothing_adversarial_subtracts_the_mean_only(tmp_path):
    weights = published_resnet(20)
    path = write(tmp_path, checkpoint(prefixed("1.", weights)))
    saved = load(path, normalize="cifar10-center")
    assert saved["config"]["normalize"] == "cifar10-center" and saved["assumed"] is None
    assert_equal_logits(saved, IMAGES, resnet_by_hand(weights, IMAGES - MEAN))


def test_a_checkpoint_of_macer_has_no_first_layer(tmp_path):
    weights = published_resnet(20)
    saved = load(write(tmp_path, {"net": weights, "epoch": 440}))
    assert saved["arch"] == "resnet20" and saved["config"]["normalize"] == "none"
    assert saved["config"]["arch_in_file"] is None and saved["config"]["epoch"] == 440
    assert "no first layer: assumed --normalize none" in saved["assumed"]
    assert_equal_logits(saved, IMAGES, resnet_by_hand(weights, IMAGES))


@pytest.mark.parametrize("prefix", ["1.", "", "module.1.", "module."])
def test_the_lenet_of_consistency_and_smoothmix_and_macer(tmp_path, prefix):
    weights, x = published_lenet(), torch.rand(4, 1, 28, 28)
    saved = load(write(tmp_path, checkpoint(prefixed(prefix, weights), "lenet")))
    assert saved["arch"] == "lenet" and saved["image_shape"] == [1, 28, 28]
    assert saved["config"]["normalize"] == "none"
    assert saved["assumed"] is None and saved["notes"] == []
    assert_equal_logits(saved, x, lenet_by_hand(weights, x))


@pytest.mark.parametrize("prefix", ["1.module.", "module.1.", "1._orig_mod.", "module.module.1."])
def test_names_that_wrappers_leave_at_any_level(tmp_path, prefix):
    weights = published_resnet(20)
    saved = load(write(tmp_path, checkpoint(prefixed(prefix, weights))))
    assert_equal_logits(saved, IMAGES, resnet_by_hand(weights, (IMAGES - MEAN) / STD))


@pytest.mark.parametrize("holder", [None, "state_dict", "net", "model_state_dict", "model"])
def test_a_plain_state_dict_alone_or_under_a_key_is_recognised(tmp_path, holder):
    weights = published_resnet(56, num_classes=100)
    saved = load(write(tmp_path, weights if holder is None else {holder: weights}))
    assert (saved["arch"], saved["num_classes"]) == ("resnet56", 100)
    assert_equal_logits(saved, IMAGES, resnet_by_hand(weights, IMAGES))


def test_the_order_of_the_names_does_not_matter(tmp_path):
    weights = published_resnet(20, num_classes=7)
    saved = load(write(tmp_path, dict(sorted(weights.items()))))
    assert (saved["arch"], saved["num_classes"]) == ("resnet20", 7)


def test_resnet50_under_data_parallel(tmp_path):
    from torchvision.models import resnet

    torch.manual_seed(0)
    by_hand = nn.Sequential(nn.Identity(), nn.DataParallel(resnet.resnet50())).eval()
    saved = load(write(tmp_path, checkpoint(dict(by_hand.state_dict()), "resnet50")))
    assert (saved["arch"], saved["num_classes"]) == ("resnet50", 1000)
    assert saved["image_shape"] == [3, 224, 224]
    assert saved["config"]["normalize"] == "imagenet"
    x = torch.rand(2, 3, 64, 64)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = by_hand[1]((x - mean) / std)
    torch.testing.assert_close(logits(saved, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", [("mean", "std"), ("means", "sds")])
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1), (3, 1, 1)])
def test_a_first_layer_with_its_constants(tmp_path, names, shape):
    weights = published_resnet(20)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    first = {f"0.{names[0]}": mean.view(shape), f"0.{names[1]}": std.view(shape)}
    path = write(tmp_path, checkpoint({**first, **prefixed("1.", weights)}))
    saved = load(path)
    assert saved["config"]["normalize"] == "file" and saved["assumed"] is None
    x = (IMAGES - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert_equal_logits(saved, IMAGES, resnet_by_hand(weights, x))
    with pytest.raises(InputError, match=r"mean 0.1, 0.2, 0.3 .*got --normalize cifar10"):
        load(path, normalize="cifar10")


def test_constants_in_the_file_and_their_name_may_both_be_given(tmp_path):
    network = models.build("resnet20", 10, (3, 32, 32), "cifar10")
    path = write(tmp_path, network.state_dict())
    assert load(path, normalize="cifar10")["config"]["normalize"] == "file"


@pytest.mark.parametrize(
    "dtype, note",
    [
        (torch.bfloat16, "torch.bfloat16: read as float32, which is exact"),
        (torch.float16, "torch.float16: read as float32, which is exact"),
        (torch.float64, "torch.float64: rounded to float32"),
    ],
)
def test_weights_of_another_precision_are_converted_and_noted(tmp_path, dtype, note):
    weights = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in published_resnet(20).items()
    }
    saved = load(write(tmp_path, checkpoint(weights)))
    assert len(saved["notes"]) == 1 and note in saved["notes"][0]
    for key, value in saved["model"].items():
        if not key.endswith("num_batches_tracked"):
            assert value.dtype == torch.float32
            assert torch.equal(value, weights[key].float())


def test_checkpoints_of_old_torch_lack_the_counters(tmp_path):
    weights = {k: v for k, v in published_resnet(20).items() if "num_batches" not in k}
    saved = load(write(tmp_path, checkpoint(weights)))
    assert_equal_logits(saved, IMAGES, resnet_by_hand(weights, IMAGES))


def test_a_named_architecture(tmp_path):
    path = write(tmp_path, checkpoint(published_resnet(20), "my_resnet"))
    assert load(path)["arch"] == "resnet20"  # a name that we do not know, weights that fit
    for name in ("resnet20", "cifar_resnet20"):
        saved = load(path, name)
        assert saved["arch"] == "resnet20" and saved["image_shape"] == [3, 32, 32]


def test_loading_draws_no_random_numbers(tmp_path):
    path = write(tmp_path, published_resnet(20))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    load(path)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- the first layer that the file does not tell


def natural(count: int, seed: int, sigma: float) -> torch.Tensor:
    """Smooth images of about the mean and spread of photographs, with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=32, mode="bilinear")
    images = (0.47 + 0.3 * smooth).clamp(0, 1)
    return images + sigma * torch.randn(images.shape, generator=generator)


@pytest.mark.parametrize(
    "sigma",
    [pytest.param(0.12, marks=pytest.mark.slow), 0.5, pytest.param(1.0, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("truth", ["none", "cifar10", "cifar10-center"])
def test_the_first_layer_is_found_from_the_statistics_of_training(tmp_path, truth, sigma):
    torch.manual_seed(1)
    network = models.build("resnet20", 10, (3, 32, 32), truth).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics settle as in training, in a few steps
    with torch.no_grad():
        for step in range(6):
            network(natural(32, step, sigma))
    state = network.state_dict() if truth != "none" else prefixed("1.", network.state_dict())
    state = {key: value for key, value in state.items() if not key.startswith("0.")}
    saved = load(write(tmp_path, checkpoint(state)))
    assert saved["config"]["normalize"] == "cifar10"
    rows = natural(64, 1000, sigma)
    picked = first_layer.pick(saved, rows)
    assert picked["config"]["normalize"] == truth
    assert f"--normalize {truth}: it fits the statistics" in picked["assumed"]
    assert_equal_logits(picked, rows, network.eval()(rows).detach())
    assert "none fits well" not in picked["assumed"]
    assert "none fits well" in first_layer.pick(saved, 255 * rows)["assumed"]
    assert saved["config"]["normalize"] == "cifar10"  # untouched


def test_nothing_is_picked_where_nothing_was_assumed(tmp_path):
    path = write(tmp_path, checkpoint(prefixed("1.", published_resnet(20))))
    for saved in (
        load(path, normalize="cifar10"),
        load(write(tmp_path, published_lenet())),
    ):
        assert first_layer.pick(saved, torch.rand(2, *saved["image_shape"])) is saved


def test_certify_takes_a_published_checkpoint_and_asks_for_what_it_lacks(tmp_path, capsys):
    from drf_fast.commands.cli import main

    torch.manual_seed(0)
    network = models.build("lenet", 10, (1, 28, 28))
    path = tmp_path / "published.pth.tar"
    torch.save({"epoch": 3, "arch": "lenet", "state_dict": network.state_dict()}, path)
    flags = ["--n", "50", "--max-images", "2", "--device", "cpu", "--batch-size", "50"]
    assert main(["certify", str(path), *flags]) == 2
    error = capsys.readouterr().err
    assert "--sigma and --data" in error and len(error.strip().splitlines()) == 1
    out = tmp_path / "log.tsv"
    words = ["certify", str(path), *flags, "--sigma", "0.5", "--data", "mnist-mini"]
    assert main([*words, "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 3


def test_the_first_layer_is_told_without_the_layers_behind_it():
    class Never(torch.nn.Module):
        def forward(self, x):
            raise AssertionError("the rest of the network ran")

    norm = torch.nn.BatchNorm2d(3)
    rows = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(norm, Never())
    assert first_layer._misfit(network, rows) < 0.2 < first_layer._misfit(network, 3 * rows + 1)
    assert not norm._forward_pre_hooks
