"""How a network is run: recorded, repeated, and what it cannot take is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import drf_fast
from drf_fast.errors import InputError

K = 3


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, K))


def images() -> torch.Tensor:
    return torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_the_batch_size_is_measured_recorded_and_repeated(monkeypatch):
    smoothed = drf_fast.SmoothedClassifier(network(), K, 0.25)
    assert smoothed.choices["batch_size"] is None
    first = smoothed.certify_batch(images(), 20, 200, 0.01)
    chosen = smoothed.choices
    assert chosen["batch_size"] == smoothed.batch_size(images())
    again = drf_fast.SmoothedClassifier(network(), K, 0.25, **chosen)
    sizes: list[int] = []
    counts = again._votes.counts
    monkeypatch.setattr(
        again._votes, "counts", lambda *args: sizes.append(args[3]) or counts(*args)
    )
    second = again.certify_batch(images(), 20, 200, 0.01)
    assert torch.equal(first.count, second.count) and again.choices == chosen
    assert set(sizes) == {chosen["batch_size"]}
    again.predict(images()[0], 50, 0.01, 64)
    assert sizes[-1] == 64  # a call's own comes first


def test_a_batch_size_is_a_count():
    for wrong in (0, -1, 2.5):
        with pytest.raises((TypeError, ValueError), match="batch_size"):
            drf_fast.SmoothedClassifier(network(), K, 0.25, batch_size=wrong)  # type: ignore[arg-type]


class NoHalf(nn.Module):
    """Refuses bfloat16, as an operation without such a kernel does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x):
        out = self.inner(x)
        if out.dtype == torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")
        return out


def votes(smoothed: drf_fast.SmoothedClassifier) -> torch.Tensor:
    return smoothed.certify_batch(images(), 20, 200, 0.01, 64).count


def test_images_of_another_shape_are_named_in_one_sentence():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, K))
    smoothed = drf_fast.SmoothedClassifier(network, K, 0.25)
    for call in (
        lambda: smoothed.certify_batch(torch.rand(1, 8, 8), 8, 20, 0.01),  # one image
        lambda: smoothed.predict_batch(torch.rand(1, 8, 8), 20, 0.01),
        lambda: smoothed.certify(torch.rand(8, 8, 1), 8, 20, 0.01),
        lambda: smoothed.certify(torch.rand(3, 8, 8), 8, 20, 0.01),
    ):
        with pytest.raises(InputError, match=r"must take images of shape \(.*several as \(B, "):
            call()
    smoothed.certify(torch.rand(1, 8, 8), 8, 20, 0.01)  # it goes on
    assert smoothed.left_out == {}


def test_bf16_that_a_network_cannot_take_is_left_out(capsys, tmp_path):
    smoothed = drf_fast.SmoothedClassifier(
        NoHalf(), K, 0.25, precision="bf16", memory_format="contiguous"
    )
    found = votes(smoothed)
    votes(smoothed)
    expected = votes(drf_fast.SmoothedClassifier(NoHalf(), K, 0.25, memory_format="contiguous"))
    assert torch.equal(found, expected)
    assert smoothed.choices["precision"] == "fp32"
    assert "BFloat16" in smoothed.left_out["contiguous bf16"]
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "contiguous bf16 and" in line]) == 1
    assert not any("Traceback" in line for line in lines)
    out = tmp_path / "a.tsv"
    labels = torch.zeros(len(images()), dtype=torch.int64)
    drf_fast.certify_dataset(smoothed, images(), labels, n0=8, n=20, alpha=0.01, out=out)
    environment = json.loads(out.with_suffix(".json").read_text())["environment"]
    assert environment["left_out"] == smoothed.left_out


def test_code_that_inductor_cannot_compile_is_run_as_it_is(capsys, monkeypatch):
    def broken(*args: Any, **options: Any):
        def call(x):
            raise RuntimeError("C++ compile error")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    smoothed = drf_fast.SmoothedClassifier(
        network(), K, 0.25, compile=True, memory_format="contiguous"
    )
    found = votes(smoothed)
    votes(smoothed)
    monkeypatch.undo()
    expected = votes(drf_fast.SmoothedClassifier(network(), K, 0.25, memory_format="contiguous"))
    assert torch.equal(found, expected)
    assert smoothed.choices["compile"] is False
    assert "C++ compile error" in smoothed.left_out["compile"]
    said = capsys.readouterr().err
    assert said.count("cannot be run as compile") == 1 and "Traceback" not in said
