"""The scripts in examples/ run, stay short, and do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "examples"
SHORT = (
    "smooth_ce_loop",
    "drf_own_network",
    "certify_torchvision",
    "denoised_smoothing",
    "diffusion_denoiser",
)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_and_named_on_its_page():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {*SHORT, "cuda_graph"}  # which test_cuda_graph_on_meta.py runs
    page = (FOLDER.parent / "docs" / "drop-in.md").read_text()
    assert all(f"examples/{name}.py" in page for name in names)


@pytest.mark.parametrize("name", SHORT)
def test_an_example_is_short(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.slow
def test_the_loop_learns(capsys):
    assert example("smooth_ce_loop").main(images=1500) > 0.3  # chance is 0.1
    assert "epoch 2: loss" in capsys.readouterr().out


@pytest.mark.slow
def test_drf_prices_the_distance(capsys):
    distance, price = example("drf_own_network").main(images=640, epochs=1)
    assert 0 < distance < 2 and 0 < price < 2 and price != 0.5
    assert "epoch 1: distance" in capsys.readouterr().out


@pytest.mark.slow
def test_a_torchvision_network_is_certified(capsys):
    results = example("certify_torchvision").main(images=128, certified=2, n=100)
    assert len(results) == 2
    for label, found, radius in results:
        assert 0 <= label <= 9 and -1 <= found <= 9
        assert (radius == 0) == (found == -1)
        assert radius < 0.76  # sigma * Phi^-1(0.001 ** (1 / 100)) is the largest at n = 100
    assert capsys.readouterr().out.count("certified as") == 2


@pytest.mark.slow
def test_a_denoiser_makes_a_classifier_certifiable(capsys):
    without, behind = example("denoised_smoothing").main(images=2000, certified=20, n=200)
    assert 0 < without < behind < 1.4  # 0.75 Phi^-1(0.001 ** (1 / 200)) is the largest
    assert "behind the denoiser" in capsys.readouterr().out


@pytest.mark.parametrize("sigma", [0.12, 0.25, 0.5, 1.0])
def test_a_diffusion_model_gets_the_noise_of_its_step(sigma):
    torch.manual_seed(0)
    abar = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)  # as in DDPM
    clean, noise = torch.rand(16, 3, 32, 32), torch.randn(16, 3, 32, 32)
    seen = []

    class Unet(nn.Module):
        def forward(self, x_t, t):
            seen.append((x_t, abar[t]))
            return SimpleNamespace(sample=noise)

    network = example("diffusion_denoiser").Denoised(Unet(), abar, nn.Identity(), sigma)
    denoised = network(clean + sigma * noise)
    ((x_t, found),) = seen
    added = x_t - found.sqrt() * (2 * clean - 1)
    assert float(added.std()) == pytest.approx(float((1 - found).sqrt()), rel=0.02)
    assert float((denoised - clean).abs().max()) < 0.05
