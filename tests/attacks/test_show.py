"""drf-fast show: which images it takes, what it says of them, and its pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil

import linear
import numpy as np
import pytest
import torch

import drf_fast
from drf_fast import data
from drf_fast.attacks import engine
from drf_fast.attacks.gallery import Card, choose
from drf_fast.attacks.log import AttackRow
from drf_fast.certification.log import read_log
from drf_fast.commands import show
from drf_fast.commands.cli import main
from drf_fast.config.look import ShowConfig
from drf_fast.errors import InputError
from drf_fast.report.gallery import draw_cards, scaled


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    linear.saved(folder)
    flags = ("--arch", "linear:Linear", "--device", "cpu", "--n", "200", "--skip", "90")
    out = ("--out", str(folder / "certificates.tsv"))
    assert main(["certify", str(folder), *flags, "--max-images", "20", *out]) == 0
    return folder


@pytest.fixture
def run(certified, tmp_path):
    shutil.copytree(certified, tmp_path / "run")
    return tmp_path / "run"


def test_which_images(run):
    log = read_log(run / "certificates.tsv")
    radius = dict(zip(log.idx.tolist(), np.where(log.correct, log.radius, -1), strict=True))
    chosen = [idx for idx, _ in choose(log, "radius", 5, 0.5)]
    shown = [radius[idx] for idx in chosen]
    assert shown == sorted(shown) and len(set(chosen)) == 5
    assert shown[0] == min(radius.values()) and shown[-1] == max(radius.values())
    assert [idx for idx, _ in choose(log, "idx", 3, 0.5)] == sorted(radius)[:3]
    abstained = set(log.idx[log.predict == -1].tolist())
    assert abstained and {i for i, _ in choose(log, "abstain", len(abstained), 1.0)} == abstained
    rows = [
        AttackRow(*(0, 1, epsilon, 1, predict, epsilon, "pgd", 0.0))
        for epsilon, predict in ((0.9, 3), (0.6, 2), (0.3, -1))
    ]
    assert choose(log, "broken", 9, 0.5, rows) == [(0, 0.6)]
    other = dataclasses.replace(rows[0], idx=1)  # attacked with another --skip
    assert choose(log, "broken", 9, 0.5, [other, *rows]) == [(0, 0.6)]
    with pytest.raises(InputError, match="got none in the attacks .*larger --epsilons"):
        choose(log, "broken", 9, 0.5, rows[2:])
    with pytest.raises(InputError, match="run 'drf-fast attack' first"):
        choose(log, "broken", 9, 0.5, [])


def test_what_a_card_says(run):
    config = ShowConfig(
        run=run, arch="linear:Linear", device="cpu", images=4, n=150, steps=3, num_samples=4
    )
    cards = show.cards_of(config)
    log = read_log(run / "certificates.tsv")
    images = data.load("mnist-mini", "test")
    judge = drf_fast.SmoothedClassifier(linear.fitted(), 10, 0.5)
    for card in cards:
        at = log.idx.tolist().index(card.idx)
        assert (card.predict, card.radius) == (log.predict[at], log.radius[at])
        assert card.label == images.labels[card.idx]
        clean = images.float_images([card.idx])[0]
        assert np.array_equal(card.clean, clean.numpy())
        noise = card.noisy - card.clean  # of 784 normals
        assert abs(noise.std() - 0.5) < 0.06 and not np.array_equal(card.noisy, card.adversarial)
        moved = np.linalg.norm(card.adversarial.astype(np.float64) - card.clean)
        assert card.distance == pytest.approx(moved) and moved <= 1.0 * (1 + 1e-6)
        for votes, picture in ((card.votes, card.clean), (card.attacked_votes, card.adversarial)):
            assert votes.sum() == pytest.approx(1)
            x = torch.from_numpy(picture)[None]
            other = judge.votes(x, 2000, 200, image_ids=torch.tensor([5])).numpy()[0] / 2000
            assert np.abs(votes - other).max() < 0.2  # other noise: five standard deviations


def test_the_label_is_no_change_of_an_abstention():
    picture = np.zeros((1, 2, 2))

    def broken(predict: int, attacked: int) -> bool:
        return Card(0, 2, predict, 0.0, picture, picture, picture, 0.5, 0.4, attacked, picture,
                    picture, ()).broken  # fmt: skip

    assert [broken(-1, attacked) for attacked in (-1, 2, 3)] == [False, False, True]
    assert [broken(3, attacked) for attacked in (-1, 2, 3)] == [False, True, False]


def test_scaled_fills_the_range_around_grey():
    shown, factor = scaled(np.array([[0.0, 0.2], [-0.1, 0.0]]))
    assert factor == 2.5 and shown.tolist() == [[0.5, 1.0], [0.25, 0.5]]
    assert scaled(np.zeros((1, 2)))[0].tolist() == [[0.5, 0.5]]


def test_the_command_writes_each_format_and_replaces_nothing_unasked(run, capsys):
    words = ("show", str(run), "--arch", "linear:Linear", "--images", "2", "--n", "50",
             "--steps", "2", "--num-samples", "2", "--device", "cpu")  # fmt: skip
    assert main([*words]) == 0
    assert (run / "images.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words]) == 2 and "exists" in capsys.readouterr().err
    assert main([*words, "--out", str(run / "a.svg"), "--sort", "abstain"]) == 0
    assert "<svg" in (run / "a.svg").read_text()
    assert main([*words, "--sort", "broken", "--force"]) == 2
    assert "run 'drf-fast attack' first" in capsys.readouterr().err
    (run / "certificates.tsv").unlink()
    assert main([*words, "--force"]) == 2
    assert "run 'drf-fast certify' first" in capsys.readouterr().err


def test_names_that_look_like_formulas_are_shown_as_they_are(tmp_path):
    """Class folders and run folders may have any name."""
    picture, votes = np.zeros((1, 4, 4), np.float32), np.array([0.75, 0.25])
    card = Card(
        idx=0, label=0, predict=0, radius=0.1, clean=picture, noisy=picture, adversarial=picture,
        epsilon=0.5, distance=0.1, attacked=1, votes=votes, attacked_votes=votes,
        names=("a$x^$", r"\frac$_$"),
    )  # fmt: skip
    draw_cards([card], "run-$x^$: attacked", tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in (*card.names, "run-$x^$: attacked"))


def test_noise_levels_and_bad_words(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["show", "--noise", "mnist-mini", "--sigma", "0.25,1", "--images", "3"]) == 0
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")
    for words, said in (
        ((), "--noise DATA, got neither"),
        (("runs", "--noise", "mnist"), "got both"),
        (("runs", "--sigma", "0.25,1"), "must be one noise level for a network"),
        (("--noise", "mnist-mini", "--sigma", "a", "--force"), "--sigma must be different numbers"),
        (("--noise", "mnist-mini", "--images", "0", "--force"), "--images must lie between 1"),
        (("--noise", "mnist-mini", "--threads", "0", "--force"), "--threads must lie between 1"),
        (("--noise", "mnist-mini", "--out", "x.gif"), "ends in .png, .pdf, .svg"),
        (("--noise", "mnist-mini", "--epsilon", "0"), "--epsilon must be a finite number above 0"),
    ):
        assert main(["show", *words]) == 2
        assert said in capsys.readouterr().err


def test_it_computes_with_the_threads_asked_for(run, tmp_path, monkeypatch):
    before, seen = torch.get_num_threads(), []

    def look(*args) -> None:
        seen.append(torch.get_num_threads())

    monkeypatch.setattr(show, "draw_noise", look)
    monkeypatch.setattr(show, "draw_cards", look)
    few = ("--images", "1", "--threads", str(before + 1), "--out", str(tmp_path / "a.png"))
    network = (str(run), "--arch", "linear:Linear", "--n", "20", "--steps", "1")
    for words in (("--noise", "mnist-mini"), (*network, "--device", "cpu")):
        assert main(["show", *words, *few]) == 0
        assert seen.pop() == before + 1 and torch.get_num_threads() == before


def test_the_attack_log_says_which_are_broken(run, capsys):
    words = ("--arch", "linear:Linear", "--device", "cpu", "--n", "200", "--num-samples", "8")
    assert main(["attack", str(run), *words, "--epsilons", "1.5", "--steps", "5"]) == 0
    capsys.readouterr()
    config = ShowConfig(run=run, arch="linear:Linear", device="cpu", sort="broken", n=200, images=3)
    cards = show.cards_of(config)
    assert cards and all(card.epsilon == 1.5 and card.broken for card in cards)
    # One that is still written is passed by, with a word.
    content = (run / "attack-s0.5-n200.tsv").read_text()
    (run / "attack-s0.5-n300.tsv").write_text(content[:-4])
    assert len(show.cards_of(config)) == len(cards)
    assert "left out" in capsys.readouterr().err
    (run / "attack-s0.5-n300.tsv").unlink()
    # Logs of other networks, images or noise levels say nothing of this one.
    path = run / "attack-s0.5-n200.json"
    described = json.loads(path.read_text())
    for key in ("checkpoint_sha256", "fingerprint", "sigma"):
        path.write_text(json.dumps({**described, key: "0"}))
        with pytest.raises(InputError, match="got none"):
            show.cards_of(config)
    path.write_text(json.dumps({**described, "arch": "linear:Other"}))
    with pytest.raises(InputError, match="got none"):
        show.cards_of(config)


def test_a_shard_without_images_is_nothing_to_show(run):
    flags = ("--arch", "linear:Linear", "--device", "cpu", "--n", "200", "--max-images", "2")
    out = ("--out", str(run / "certificates.tsv"), "--force")
    assert main(["certify", str(run), *flags, "--shard", "2/2", *out]) == 0
    assert len(read_log(run / "certificates.tsv")) == 0
    for named in (None, run / "certificates.tsv"):
        config = ShowConfig(run=run, arch="linear:Linear", device="cpu", certificates=named)
        with pytest.raises(InputError, match="run 'drf-fast certify' first"):
            show.cards_of(config)


def test_many_images_are_attacked_in_parts(run, monkeypatch):
    config = ShowConfig(
        run=run, arch="linear:Linear", device="cpu", images=6, n=50, steps=1, num_samples=4
    )
    whole = show.cards_of(config)
    sizes = []
    plain = engine.adversarial
    monkeypatch.setattr(
        engine, "adversarial", lambda work, group: (sizes.append(len(group)), plain(work, group))[1]
    )
    monkeypatch.setattr(engine, "_MOST_ROWS", 16)
    parts = show.cards_of(config)
    assert sizes == [4, 2] and [card.idx for card in parts] == [card.idx for card in whole]
    for one, other in zip(parts, whole, strict=True):
        assert np.abs(one.adversarial - other.adversarial).max() < 1e-5
