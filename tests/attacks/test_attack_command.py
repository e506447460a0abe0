"""drf-fast attack: its log, how it goes on, and a wrong certificate that it must catch."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attacking import COMMON, attack, without_times
from torch import nn

from drf_fast import functional, models
from drf_fast.attacks.engine import Work
from drf_fast.attacks.log import COLUMNS, AttackRow, format_row, parse, read_attacked
from drf_fast.attacks.search import Search, scaled_to
from drf_fast.attacks.verdict import broken
from drf_fast.certification import loading
from drf_fast.certification.log import read_log
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.attack import prepare
from drf_fast.commands.cli import main
from drf_fast.config.look import AttackConfig
from drf_fast.errors import InputError
from drf_fast.runtime import machine


def test_a_line_an_image_and_epsilon_and_no_certificate_breaks(run, capsys):
    assert attack(run, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    log = read_attacked(run / "attack-s0.5-n300.tsv")
    assert log.epsilons == (0.2, 0.8) and log.images == tuple(range(0, 960, 40))  # as certified
    assert len(log.rows) == 48 and shown["broken_certificates"] == []
    small, large = shown["epsilons"]
    for one in (small, large):  # certified below, attack above, whatever abstains between
        assert one["images"] == 24 and one["certified"] <= one["correct"] + one["undecided"]
    # The network is weak: the larger strength must cost something, or nothing was attacked.
    assert large["correct"] < small["correct"] and {row.attack for row in log.rows} > {"pgd"}
    for row in log.rows:
        assert 0 < row.distance <= row.epsilon * (1 + 1e-6)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_log(run, tmp_path):
    assert attack(run) == 0
    path = run / "attack-s0.5-n300.tsv"
    whole = without_times(path)
    content = path.read_bytes()
    for kept in (40, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:kept])
        assert attack(run, "--resume") == 0
        assert without_times(path) == whole, kept
    with pytest.raises(InputError, match="torn"):
        path.write_bytes(content[:-3])
        read_attacked(path)


def test_a_first_image_that_was_not_finished_is_attacked_again(run, capsys):
    flags = ("--max-images", "2", "--resume")
    assert attack(run, *flags) == 0
    path = run / "attack-s0.5-n300.tsv"
    whole = without_times(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert attack(run, *flags) == 0
    assert without_times(path) == whole and len(whole) == 5
    assert "done before" not in capsys.readouterr().err
    assert attack(run, *flags) == 0  # nothing is left
    assert "attacking 2 images (2 of them done before) of" in capsys.readouterr().err


def test_a_shard_without_images_is_an_empty_log(run, capsys):
    assert attack(run, "--shard", "1/2") == 0  # 24 images are one group
    assert attack(run, "--shard", "2/2") == 0
    shown = capsys.readouterr()
    assert "attacking 0 images" in shown.err
    path = run / "attack-s0.5-n300-shard-2-of-2.tsv"
    assert read_attacked(path).rows == ()
    assert attack(run, "--shard", "2/2", "--resume") == 0
    assert main(["report", str(run), "--no-paper"]) == 0
    shown = capsys.readouterr()
    assert "under attack" in shown.out and "left out" not in shown.err
    settings = json.loads(path.with_suffix(".json").read_text())
    del settings["shard"]
    path.with_suffix(".json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="holds no attack"):
        read_attacked(path)


def test_other_settings_do_not_resume_it_and_nothing_is_replaced_unasked(run, capsys):
    assert attack(run) == 0
    assert attack(run) == 2 and "exists: expected a new file" in capsys.readouterr().err
    assert attack(run, "--resume", "--steps", "5") == 2
    assert "another steps (4 there, 5 now)" in capsys.readouterr().err


@pytest.mark.slow
def test_shards_are_the_whole(run, tmp_path, monkeypatch):
    monkeypatch.setattr("drf_fast.attacks.engine._MOST_ROWS", 24)  # groups of three images
    assert attack(run) == 0
    whole = without_times(run / "attack-s0.5-n300.tsv")
    parts = []
    for shard in ("1/3", "2/3", "3/3"):
        assert attack(run, "--shard", shard) == 0
        parts += without_times(run / f"attack-s0.5-n300-shard-{shard[0]}-of-3.tsv")[1:]
    assert sorted(parts) == sorted(whole[1:]) and len(parts) == 48


def test_the_judge_draws_noise_that_no_search_and_no_certificate_draws(run, monkeypatch):
    drawn: dict[str, set] = {}
    original = functional.schemas.noisy_repeat

    def noted(x, sigma, key, *others):
        drawn.setdefault(others[-1], set()).add(int(key))
        return original(x, sigma, key, *others)

    monkeypatch.setattr(functional.schemas, "noisy_repeat", noted)
    assert attack(run, "--restarts", "3") == 0
    (judge,) = drawn["prediction"]
    assert drawn["train"] and judge not in drawn["train"]  # gradients: of other keys altogether
    assert drawn["estimation"] == {judge} and 0 not in {judge, *drawn["train"]}  # 0: certify's
    assert len(drawn["train"]) >= 4  # three restarts and DDN


def test_the_distance_is_rounded_up_and_read_back(tmp_path):
    row = AttackRow(3, 7, 0.1, 7, -1, 0.0999999999991, "ddn", 1.5)
    line = format_row(row)
    assert line.split("\t")[6] == "0.100000000000" and not row.correct and row.undecided
    text = "\t".join(COLUMNS) + "\n" + line
    (read,) = parse(tmp_path / "x", text)
    assert read.distance >= row.distance and read.attack == "ddn"
    for old, new, said in (
        ("ddn", "cw", "expected attack to be one of"),
        ("\t0\t0.1000", "\t1\t0.1000", "expected correct to be 0"),
        ("0.100000000000", "0.200000000000", "expected a distance from 0 to epsilon"),
        ("3\t7", "x\t7", "expected an integer"),
    ):
        with pytest.raises(InputError, match=said):
            parse(tmp_path / "x", text.replace(old, new))


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 224, 224)])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_a_tiny_strength_is_read_back_though_rounding_exceeds_it(tmp_path, shape, epsilon):
    generator = torch.Generator().manual_seed(0)
    x, direction = (torch.rand(20, *shape, generator=generator) for _ in range(2))
    moved = scaled_to(x, direction - 0.5, epsilon)
    distance = (moved.double() - x.double()).flatten(1).norm(dim=1)
    assert bool((distance > epsilon * (1 + 1e-5)).any())
    rows = [
        AttackRow(idx, 7, epsilon, 7, 7, float(d), "ddn", 0.0) for idx, d in enumerate(distance)
    ]
    text = "\n".join(["\t".join(COLUMNS), *map(format_row, rows)])
    assert len(parse(tmp_path / "x", text)) == 20


def test_only_what_lies_inside_the_radius_and_has_another_class_breaks_a_certificate(run):
    log = read_log(run / "certificates.tsv")
    at = int((log.radius > 0.05).argmax())
    idx, label, radius = int(log.idx[at]), int(log.predict[at]), float(log.radius[at])
    other = (label + 1) % 10

    def rows(predict, distance):
        return [AttackRow(idx, label, radius + 1, label, predict, distance, "pgd", 0.0)]

    assert len(broken(rows(other, radius), log)) == 1
    assert broken(rows(other, radius * (1 + 1e-9)), log) == []
    assert broken(rows(-1, 0.0), log) == broken(rows(label, 0.0), log) == []


def test_bad_words(run, capsys, monkeypatch):
    for words, said in (
        (("--epsilons", "0.1,x"), "--epsilons must be different numbers above 0"),
        (("--epsilons", "0.1,0.1"), "--epsilons must be different numbers above 0"),
        (("--ddn-steps", "-1"), "--ddn-steps must lie between 0"),
        (("--certificates", str(run / "none.tsv")), "cannot read"),
        (
            ("--sigma", "0.4", "--certificates", str(run / "certificates.tsv")),
            "the images that are attacked, got others: sigma (0.5 there, 0.4 here); pass",
        ),
        (
            ("--split", "train", "--certificates", str(run / "certificates.tsv")),
            "the images that are attacked, got others: fingerprint (",
        ),
        (("--force", "--resume"), "pass one of them"),
        (("--sound",), "adversarial images lie between the levels; leave it out"),
    ):
        assert attack(run, *words) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert attack(run) == 2 and "--shard i/k" in capsys.readouterr().err


def test_a_lack_of_memory_names_the_rows_of_a_gradient(run, capsys, monkeypatch):
    def large(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("drf_fast.attacks.search.attack", large)
    assert attack(run, "--num-samples", "3000", "--max-images", "1") == 1
    said = capsys.readouterr().err
    assert "memory for a pass of 3,000 rows (1, 28, 28)" in said and "lower --num-samples" in said


def test_a_lack_of_memory_names_what_lowers_the_rows(run, capsys, monkeypatch):
    """More noisy copies or fewer: a group of many images always has about --batch-size rows."""
    rows = []

    def large(model, x, *arguments, num_samples, **options):
        rows.append(len(x) * num_samples)
        raise MemoryError

    monkeypatch.setattr("drf_fast.attacks.search.attack", large)
    words = [*COMMON[:-1], "100", "--n", "300", "--max-images", "24"]
    for copies in ("8", "50"):
        assert main(["attack", str(run), *words, "--force", "--num-samples", copies]) == 1
        said = capsys.readouterr().err
        assert f"pass of {rows[-1]} rows" in said and f"lower --batch-size below {rows[-1]}" in said
    assert rows == [96, 100]


def test_large_images_are_attacked_a_few_at_a_time():
    """111 rows of 3 x 224 x 224 in a pass, whatever the batch; shards are what they were."""
    search = Search(num_samples=32, steps=1, restarts=1, ddn_steps=0, key=0)
    unused: Any = {key: None for key in ("classifier", "model", "device", "n", "alpha")}
    large: Any = SimpleNamespace(image_shape=(3, 224, 224))
    work = Work(
        **unused, images=large, indices=tuple(range(70)), search=search, epsilons=(1.0,),
        batch_size=2048,
    )  # fmt: skip
    as_usual: Any = SimpleNamespace(image_shape=(3, 32, 32))
    small = dataclasses.replace(work, images=as_usual)
    for part in range(1, 4):
        groups = dataclasses.replace(work, shard=(part, 3)).groups()
        assert max(map(len, groups)) == 3
        (whole,) = dataclasses.replace(small, shard=(part, 3)).groups()
        assert whole == tuple(index for group in groups for index in group)
    few = dataclasses.replace(small, batch_size=20).groups()
    assert few == [(index,) for index in range(70)]  # the copies of one image stay together


@pytest.mark.parametrize("steps", ["0", "5"])
def test_a_network_without_gradient_is_one_sentence(run, capsys, steps):
    words = ("--arch", "linear:WithoutGradient", "--device", "cpu", "--ddn-steps", steps)
    assert main(["attack", str(run), *words]) == 2
    assert "a network that passes it on, got one whose code leaves it" in capsys.readouterr().err
    show = ("--arch", "linear:WithoutGradient", "--device", "cpu", "--certificates")
    assert main(["show", str(run), *show, str(run / "certificates.tsv")]) == 2


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_are_computed_in_the_memory_format_of_the_log(tmp_path, monkeypatch, layout):
    """Whichever seems faster at this start: adversarial images of the two differ in their bits."""
    network = models.build("lenet", 10, (1, 28, 28))
    content = {"model": network.state_dict(), "arch": "lenet", "num_classes": 10}
    config = {"sigma": 0.5, "data": "mnist-mini", "method_label": "drawn", "lr": 0.1}
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {**content, "image_shape": [1, 28, 28], "config": config})

    def is_last(form: nn.Module) -> bool:
        return getattr(form, "last", False)

    asked = layout == "channels_last"
    monkeypatch.setattr(machine, "seconds", lambda form, example: float(is_last(form) == asked))
    config = AttackConfig(
        checkpoint=path, n=100, device="cpu", batch_size=64, memory_format=layout, max_images=2
    )
    loaded, work = prepare(config, loading.source(config), None)
    assert loaded.classifier.choices["memory_format"] == layout and is_last(work.model) == asked
