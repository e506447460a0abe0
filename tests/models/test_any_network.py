"""Networks as people write them: faster, trained, certified and predicted."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from networks import NETWORKS, SHAPE, K, make

import drf_fast
from drf_fast.models.faster import Faster, _fastest
from drf_fast.runtime.logits import logits_of

ALL = pytest.mark.parametrize("name", NETWORKS)


def images(name: str, count: int = 8) -> torch.Tensor:
    x = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    return x.double() if name == "float64" else x


@ALL
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [False, True])
def test_faster_has_the_same_values_gradients_and_state_dict(name, layout, training):
    plain, model, x = make(name), make(name), images(name)
    parameters = list(map(id, model.parameters()))
    if layout == "channels_last" and name == "compiled":
        with pytest.raises(ValueError, match="view"):
            _fastest(model, x, layout)
        assert all(p.is_contiguous() for p in model.parameters())
        return
    fast, chosen, _ = _fastest(model, x, layout)
    assert chosen == layout and [id(p) for p in fast.parameters()] == parameters
    assert fast.training and list(fast.state_dict()) == list(plain.state_dict())
    if training and "dropout" in name:  # masks are drawn in the order of memory
        assert not torch.equal(fast(x), fast(x))
        return
    found = []
    for network in (plain, fast):
        network.train(training)
        x = images(name).requires_grad_()
        logits = logits_of(network(x))
        grads = torch.autograd.grad(logits.square().sum(), [x, *network.parameters()])
        found.append([logits.detach(), *grads, *network.buffers()])
    for expected, got in zip(*found, strict=True):
        # Sums over images and pixels round as their largest terms do.
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale)


def test_the_published_convolutions_go_through_the_fused_operations():
    for name in ("view", "functional dropout", "flatten", "batch norm"):
        fast = _fastest(make(name), images(name), "channels_last")[0]
        assert isinstance(fast, Faster)
        code = fast.fused(images(name).contiguous(memory_format=torch.channels_last))
        assert code is not None and "pool_relu" in " ".join(code.__code__.co_names), name


def test_a_changed_attribute_or_a_hook_is_not_traced_over():
    network = make("functional dropout").eval()
    fast: Any = _fastest(network, images("view"), "channels_last")[0]
    assert torch.equal(fast(images("view")), fast(images("view")))
    fast.train()
    assert not torch.equal(fast(images("view")), fast(images("view")))
    seen: list[int] = []
    fast.c1.register_forward_hook(lambda *values: seen.append(1))
    fast(images("view"))
    assert seen == [1]


def test_an_optimizer_made_before_and_a_copy_go_on_working():
    network = make("view")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    fast = _fastest(network, images("view"), "channels_last")[0]
    other = copy.deepcopy(fast)
    before = fast(images("view")).detach()
    fast(images("view")).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(fast(images("view")), before)
    torch.testing.assert_close(other(images("view")).detach(), before)


@ALL
def test_trained_certified_and_predicted(name):
    network, x = make(name), images(name)
    network = drf_fast.faster(network, x)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    target = torch.arange(8) % K
    before = [p.detach().clone() for p in network.parameters()]
    for _ in range(5):
        adv = drf_fast.attack(
            network, x, target, sigma=0.25, num_samples=2, steps=2, ball=drf_fast.HardBall(0.5)
        )
        optimizer.zero_grad()
        drf_fast.smooth_ce(logits_of(network(adv.noisy)), target, num_samples=2).backward()
        optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    smoothed = drf_fast.SmoothedClassifier(network, K, 0.25)
    result = smoothed.certify_batch(x.float(), 20, 100, 0.01, 64)
    assert result.label.shape == (8,) and bool(result.radius.isfinite().all())
    assert smoothed.predict(x[0].float(), 50, 0.01, 64) in (-1, 0, 1, 2)
    assert network.training


@ALL
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_users_module_is_untouched_and_the_votes_are_its_own(name, precision):
    network, x = make(name), images(name).float()
    before = [(t.clone(), t.stride(), t._version) for t in network.state_dict().values()]
    modes = [m.training for m in network.modules()]
    smoothed = drf_fast.SmoothedClassifier(network, K, 0.25, precision=precision)
    result = smoothed.certify_batch(x, 20, 200, 0.01, 64)
    after = list(network.state_dict().values())
    for (value, stride, version), tensor in zip(before, after, strict=True):
        assert torch.equal(value, tensor) and stride == tensor.stride()
        assert version == tensor._version
    assert modes == [m.training for m in network.modules()]
    network.eval()
    noisy = drf_fast.noisy_repeat(
        x, 0.25, 20, seed=0, image_ids=torch.arange(8), stream="selection"
    )
    if name == "float64":
        noisy = noisy.double()
    with torch.no_grad():
        votes = logits_of(network(noisy)).argmax(1).view(8, 20)
    counts = torch.stack([(votes == k).sum(1) for k in range(K)], 1)
    chosen = smoothed.select(x, 20, 64)
    slack = 0 if precision == "fp32" else 6  # votes that rounding to bfloat16 may move
    best = counts.gather(1, chosen[:, None])[:, 0]
    assert bool((counts.max(1).values - best <= slack).all())
    assert result.count.shape == (8,)
    again = drf_fast.SmoothedClassifier(network, K, 0.25, **smoothed.choices)
    assert torch.equal(again.certify_batch(x, 20, 200, 0.01, 64).count, result.count)


def test_a_plain_function_is_certified():
    network = make("view").eval()
    smoothed = drf_fast.SmoothedClassifier(lambda x: (network(x), None), K, 0.25)
    expected = drf_fast.SmoothedClassifier(network, K, 0.25, memory_format="contiguous")
    got, want = (s.certify_batch(images("view"), 20, 200, 0.01, 64) for s in (smoothed, expected))
    assert torch.equal(got.count, want.count)


def test_what_a_network_cannot_take_is_left_out_said_once_and_recorded(capsys):
    smoothed = drf_fast.SmoothedClassifier(make("untraceable view"), K, 0.25)
    for _ in range(2):
        smoothed.certify_batch(images("view"), 20, 100, 0.01, 64)
    assert smoothed.choices["memory_format"] == "contiguous"
    assert "view" in smoothed.left_out["channels_last fp32"]
    assert capsys.readouterr().err.count("channels_last") == 1


@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.rand(2, *SHAPE), ValueError, r"one image .*\(2, 1, 12, 12\); pass x\[0\]"),
        (torch.zeros(SHAPE, dtype=torch.uint8), TypeError, r"x\.float\(\) / 255"),
        ([[0.5]], TypeError, "must be a torch.Tensor, got list"),
    ],
)
def test_what_is_no_image_gets_one_sentence(x, error, message):
    smoothed = drf_fast.SmoothedClassifier(make("view"), K, 0.25)
    for call in (lambda: smoothed.certify(x, 5, 10, 0.01), lambda: smoothed.predict(x, 5, 0.01)):
        with pytest.raises(error, match=message):
            call()


def test_images_with_one_meaning_work_and_pixels_up_to_255_are_warned_of():
    smoothed = drf_fast.SmoothedClassifier(make("view"), K, 0.25, memory_format="contiguous")
    x = images("view")[0].half()
    expected = smoothed.certify(x.float(), 20, 100, 0.01, 64)
    kinds: list[Any] = [x, x.double(), x.float().numpy()]
    for same in kinds:
        assert smoothed.certify(same, 20, 100, 0.01, 64) == expected
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        smoothed.certify(255 * images("view")[0], 20, 100, 0.01, 64)
        smoothed.predict_batch(255 * images("view"), 20, 0.01, 64)
    assert ["divide by 255" in str(warning.message) for warning in said] == [True]
    assert said[0].filename == __file__


def test_predict_batch_is_predict():
    smoothed, x = drf_fast.SmoothedClassifier(make("view"), K, 0.25), images("view")
    batch = smoothed.predict_batch(x, 60, 0.1, 64).tolist()
    assert batch == [smoothed.predict(x[b], 60, 0.1, 64, image_id=b) for b in range(8)]
