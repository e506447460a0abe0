"""``drf-fast gap``: the confidence gap of networks under noise."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from drf_fast import models, noisy_repeat
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands import gap
from drf_fast.commands.cli import main

SETTINGS = ["--max-images", "30", "--device", "cpu"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three untrained networks: two seeds of a method, and another method."""
    folder = tmp_path_factory.mktemp("gap")
    paths = []
    for seed, method in enumerate(["smoothadv", "smoothadv", "smoothadv+drf"]):
        torch.manual_seed(seed)
        network = models.build("lenet", 10, (1, 28, 28))
        path = folder / f"{seed}.pt"
        config = {"sigma": 0.5, "data": "mnist-mini", "method_label": method, "data_dir": None}
        checkpoint.save(
            path,
            {
                "model": network.state_dict(),
                "arch": "lenet",
                "num_classes": 10,
                "image_shape": [1, 28, 28],
                "config": config,
            },
        )
        paths.append(path)
    return paths


def test_the_gap_is_that_of_the_log_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 7, generator=generator) * 5
    target = torch.randint(7, (200,), generator=generator)
    log_f = torch.log_softmax(logits.double(), 1)
    for row, found in enumerate(gap.confidence_gap(logits, target).tolist()):
        y = int(target[row])
        others = [float(log_f[row, c]) for c in range(7) if c != y]
        assert found == pytest.approx(float(log_f[row, y]) - max(others), abs=1e-12)


def test_the_gap_survives_logits_whose_probabilities_underflow():
    logits = torch.tensor([[0.0, 5000.0, -5000.0], [0.0, -math.inf, -math.inf]])
    assert gap.confidence_gap(logits, torch.tensor([2, 0])).tolist() == [-10000.0, math.inf]


def test_which_copies_count():
    gaps = np.array([[1.0, -1.0, 2.0], [-1.0, 3.0, -2.0]])
    assert gaps[gap.chosen(gaps, "copy")].tolist() == [1.0, 2.0, 3.0]
    assert gaps[gap.chosen(gaps, "vote")].tolist() == [1.0, -1.0, 2.0]
    assert gap.chosen(gaps, "all").all()


def test_the_command_measures_the_noise_of_the_prediction_stream(networks, capsys):
    words = ["gap", str(networks[0]), *SETTINGS, "--num-samples", "3", "--over", "all", "--json"]
    assert main([*words, "--seed", "5"]) == 0
    numbers = json.loads(capsys.readouterr().out)["methods"][0]
    saved = checkpoint.load(networks[0])
    network = checkpoint.build_model(saved, networks[0]).eval()
    from drf_fast import data

    images = data.load("mnist-mini", "test")
    ids = torch.arange(30)
    x = images.float_images(ids)
    noisy = noisy_repeat(x, 0.5, 3, seed=5, image_ids=ids, stream="prediction")
    with torch.no_grad():
        log_f = torch.log_softmax(network(noisy).double(), 1)
    y = images.labels[ids].repeat_interleave(3)
    own = log_f[torch.arange(90), y]
    log_f[torch.arange(90), y] = -torch.inf
    expected = (own - log_f.amax(1)).numpy()
    assert numbers["gaps"] == numbers["copies"] == 90
    assert numbers["mean"] == pytest.approx(expected.mean(), abs=1e-5)
    assert numbers["std"] == pytest.approx(expected.std(ddof=1), abs=1e-5)
    assert numbers["accuracy_under_noise"] == pytest.approx((expected > 0).mean())
    assert numbers["share_below"]["0"] == pytest.approx((expected < 0).mean())
    assert numbers["quantiles"]["0.5"] == pytest.approx(np.sort(expected)[44], abs=1e-5)


def test_seeds_are_joined_and_methods_are_drawn(networks, tmp_path, capsys):
    plot = tmp_path / "gap.png"
    words = ["gap", *map(str, networks), *SETTINGS, "--over", "all", "--plot", str(plot)]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["smoothadv,", "smoothadv+drf,"]
    assert "30 images of mnist-mini (test)" in lines[-1]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_figure_has_the_median_of_the_table(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text as text
    gaps = gap.Gaps("m", (Path("a"),), np.array([1.0, 2.0, 4.0, 9.0]), 4, 4, "d", 4)
    gap.draw([gaps], tmp_path / "g.svg", "caption")
    assert gaps.as_dict()["quantiles"]["0.5"] == 2.0
    assert "m: mean 4.00, median 2.00" in (tmp_path / "g.svg").read_text()


def test_gaps_that_do_not_spread_are_drawn_too(tmp_path):
    gaps = gap.Gaps("m", (Path("a"),), np.array([1.0, 1.0, np.inf]), 3, 3, "d", 3)
    gap.draw([gaps], tmp_path / "g.png", "caption")
    assert (tmp_path / "g.png").stat().st_size > 1000
    assert gaps.as_dict()["infinite"] == 1 and gaps.as_dict()["quantiles"]["0.99"] == 1.0


@pytest.mark.parametrize(
    ("flags", "message", "status"),
    [
        (["missing.pt"], "missing.pt", 2),
        (["0.pt", "--num-samples", "0"], "--num-samples must lie between 1", 2),
        (["0.pt", "--plot", "a.bmp"], "ends in .png", 2),
        (["0.pt", "0.pt"], "the same network", 2),
        (["0.pt", "--sigma", "-1"], "--sigma", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_sentence(networks, monkeypatch, capsys, flags, message, status):
    monkeypatch.chdir(networks[0].parent)
    assert main(["gap", *flags, *SETTINGS]) == status
    assert message in capsys.readouterr().err


def test_networks_of_other_images_are_not_mixed(networks, tmp_path, capsys):
    pixels, labels = np.zeros((3, 28, 28), np.uint8), np.arange(3, dtype=np.uint8)
    for name, values in (("images-idx3", pixels), ("labels-idx1", labels)):
        header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
        (tmp_path / f"t10k-{name}-ubyte").write_bytes(header + values.tobytes())
    saved = checkpoint.load(networks[1])
    saved["config"].update(data="mnist", data_dir=str(tmp_path))
    checkpoint.save(tmp_path / "b.pt", saved)
    words = ["gap", str(networks[0]), str(tmp_path / "b.pt"), *SETTINGS, "--over", "all"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "other images" in said and "got mnist-mini (test) and mnist (test)" in said
    assert main([*words, "--data", "mnist-mini"]) == 0


def test_a_network_that_is_never_right_is_a_failure(networks, tmp_path, capsys):
    saved = checkpoint.load(networks[0])
    saved["model"]["fc2.bias"][:] = torch.tensor([*[0.0] * 9, 1e6])  # always class 9
    path = tmp_path / "nine.pt"
    checkpoint.save(path, {k: v for k, v in saved.items() if k not in ("sha256", "format")})
    words = ["gap", str(path), "--max-images", "1", "--device", "cpu"]
    assert main(words) == 1
    assert "no gap to show" in capsys.readouterr().err
