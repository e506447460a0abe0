"""What SmoothedClassifier asks of a network: that a row's logits are its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_classifier import SEED, K, classifier, differences, images
from torch import nn

OPERATIONS = ("noisy_repeat", "vote", "clopper_pearson_lower", "certified_radius")


class Normed(nn.Module):
    """Batch norm: in training mode a row's logits depend on the rows beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, K)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(rows.flatten(1)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_callable_that_is_no_module_must_be_in_eval_mode(backend, precision):
    torch.manual_seed(1)
    module = Normed()
    for layers in (module, nn.Sequential(module, nn.Dropout(0.5))):
        for call in (
            lambda smoothed: smoothed.certify_batch(images(), 20, 200, 0.01, 64),
            lambda smoothed: smoothed.certify(images()[0], 20, 200, 0.01, 2),
            lambda smoothed: smoothed.predict(images()[0], 20, 0.01, 64),
        ):
            smoothed = classifier(lambda rows, f=layers: f(rows), precision=precision)
            for _ in range(2):
                with pytest.raises(ValueError, match="only of a network in eval mode: expected"):
                    call(smoothed)
    # The module itself is put into eval mode, and a callable may have done so before.
    module.train()
    expected = classifier(module).certify_batch(images(), 20, 200, 0.01, 64)
    found = classifier(lambda rows: module(rows), seed=SEED)
    module.eval()
    for size in (64, 10):
        got = found.certify_batch(images(), 20, 200, 0.01, size)
        assert torch.equal(got.count, expected.count)


def test_a_module_that_eval_does_not_reach_is_refused():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Normed()]  # no ModuleList

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.layers[0](rows)

    without_statistics = Normed()
    without_statistics.norm = nn.BatchNorm1d(8, track_running_stats=False)
    for module in (Hidden(), without_statistics):
        with pytest.raises(ValueError, match="leave out layers that use statistics of the batch"):
            classifier(module).certify_batch(images(), 20, 200, 0.01, 64)


def test_a_callable_is_tested_at_each_call_and_torchs_generator_stays():
    calls = []

    def network(rows: torch.Tensor) -> torch.Tensor:
        calls.append(len(rows))
        return differences(rows + torch.randn_like(rows))  # as a denoiser by diffusion

    smoothed = classifier(network)
    smoothed.certify(images()[0], 20, 200, 0.01, 1)  # rows alone: nothing to test
    assert set(calls) == {1}
    calls.clear()
    torch.manual_seed(2)
    first = smoothed.certify_batch(images(), 20, 200, 0.01, 20)
    assert len(calls) == 6 * 11 + 19 + 3  # for the first stream and, with fewer passes, the second
    torch.manual_seed(2)
    again = smoothed.certify_batch(images(), 20, 200, 0.01, 20)
    assert torch.equal(first.count, again.count) and len(calls) == 2 * 6 * 11 + 19 + 3 + 3


def test_a_module_is_tested_once():
    torch.manual_seed(1)
    calls, module = [], Normed()
    module.register_forward_hook(lambda *_: calls.append(0))
    smoothed = classifier(module, compile=False, memory_format="contiguous")
    smoothed.certify_batch(images(), 20, 200, 0.01, 20)
    first = len(calls)
    smoothed.certify_batch(images(), 20, 200, 0.01, 20)
    assert len(calls) - first == 6 * 11 < first - 4


@pytest.mark.parametrize("sound", [False, True])
def test_a_callable_whose_module_is_trained_on_is_refused_then(sound):
    torch.manual_seed(1)
    module = Normed().eval()
    smoothed = classifier(lambda rows: module(rows), sound=sound)
    x = (255 * images().clamp(0, 1)).to(torch.uint8) if sound else images()
    smoothed.certify_batch(x, 20, 200, 0.01, 64)
    module.train()
    with pytest.raises(ValueError, match="only of a network in eval mode: expected"):
        smoothed.certify_batch(x, 20, 200, 0.01, 64)


@pytest.mark.parametrize("source", ["torch", "torch, a coin", "numpy", "torch, for every image"])
def test_rows_of_a_pass_must_not_share_a_random_number(source):
    """Else the votes of a pass are one sample."""
    drawn = np.random.default_rng(0)

    def network(rows: torch.Tensor) -> torch.Tensor:
        number = torch.randn(len(rows) if "every" in source else 1, 1)
        if "coin" in source:
            number = (number > 0).float()
        if source == "numpy":
            number = torch.tensor(drawn.standard_normal((1, 1)), dtype=torch.float32)
        return differences(rows) + number * torch.tensor([1.0] + [0.0] * (K - 1))

    if "every" in source:
        assert classifier(network).certify_batch(images(), 20, 200, 0.01, 50).count.shape == (6,)
        return
    with pytest.raises(ValueError, match="that changes for every row or never"):
        classifier(network).certify_batch(images(), 20, 200, 0.01, 50)


@pytest.mark.parametrize("seen", ["first", "last"])
def test_rows_may_see_neither_those_before_nor_those_behind_them(seen):
    def network(rows: torch.Tensor) -> torch.Tensor:
        others = rows.flatten(1).sum(1)
        return differences(rows) + (others.cumsum(0) if seen == "first" else
                                    others.flip(0).cumsum(0).flip(0))[:, None]  # fmt: skip

    with pytest.raises(ValueError, match="beside any other rows"):
        classifier(network).certify_batch(images(), 20, 200, 0.01, 50)


def test_a_callable_that_changes_without_a_cause_is_not_judged(capsys):
    drawn = np.random.default_rng(0)

    def network(rows: torch.Tensor) -> torch.Tensor:
        noise = drawn.standard_normal(tuple(rows.shape)).astype(np.float32)
        return differences(rows + torch.from_numpy(noise))

    smoothed = classifier(network)
    for _ in range(2):
        assert smoothed.certify_batch(images(), 20, 200, 0.01, 50).count.shape == (6,)
    assert "random numbers" in smoothed.left_out["row test"]
    assert capsys.readouterr().err.count("was not tested: it draws random numbers") == 1


@pytest.mark.parametrize("masked_classes", [[2], [1, 2]])
@pytest.mark.parametrize("mask", [-math.inf, -1e4, -1e9, torch.finfo(torch.float32).min])
def test_logits_of_masked_classes_do_not_hide_that_rows_see_each_other(mask, masked_classes):
    def masked(rows: torch.Tensor) -> torch.Tensor:
        logits = differences(rows) + rows.mean()
        logits[:, masked_classes] = mask
        return logits

    with pytest.raises(ValueError, match="in eval mode"):
        classifier(masked).certify_batch(images(), 20, 200, 0.01, 50)


@pytest.mark.parametrize("kind", [TypeError, RuntimeError])
@pytest.mark.parametrize("size", [40, 512])
def test_a_callable_of_one_batch_size_is_tested_with_it(size, kind):
    """As a compiled program of another framework; n0 and n are multiples of the size."""
    sizes = set()

    def network(rows: torch.Tensor) -> torch.Tensor:
        if len(rows) != size:
            raise kind(f"a batch must have {size} images")
        sizes.add(len(rows))
        return differences(rows)

    smoothed = classifier(network, batch_size=size)
    for _ in range(2):
        counted = smoothed.certify_batch(images()[:2], size, 2 * size, 0.01, size)
        assert counted.count.shape == (2,)
    assert sizes == {size}
