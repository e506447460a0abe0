"""Sound certificates: classifiers that refute ordinary noise only, bounds, the row test, logs.

The malicious classifiers look at what real noise could not show: floats that only some images
reach. Ordinary certificates of them are wrong, which is shown here too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch

import drf_fast
from drf_fast.backends.reference.levels import level_table
from drf_fast.backends.reference.noise import cos_sin_turns, groups_per_image
from drf_fast.certification import stopping, votes
from drf_fast.certification.log import read_log
from drf_fast.certification.network import RunNetwork
from drf_fast.certification.noise import LevelNoise, check_rows, rows_to_test
from drf_fast.certification.stopping import Decide, certificate
from drf_fast.commands import cli

SIGMA, ALPHA = 0.5, 0.001
ABSTAIN = drf_fast.SmoothedClassifier.ABSTAIN


def classifier(base: Any, sound: bool, **options: Any) -> drf_fast.SmoothedClassifier:
    return drf_fast.SmoothedClassifier(base, 2, SIGMA, sound=sound, **options)


def two_classes(first: torch.Tensor) -> torch.Tensor:
    return torch.stack([first.float(), (~first).float()], dim=1)


# ------------------------------------------------------------------- classifiers that see the noise


def on_the_lattice(rows: torch.Tensor) -> torch.Tensor:
    """Class 0 where pixels 0 and G, divided by sigma, are r cos, r sin of an angle of 24 bits."""
    flat = rows.flatten(1)
    a, b = flat[:, 0] / SIGMA, flat[:, groups_per_image(flat.shape[1])] / SIGMA  # exact: 1/2
    turns = torch.atan2(b.double(), a.double()) / (2 * math.pi) * 2**24
    found = torch.zeros_like(a, dtype=torch.bool)
    for turn in (-1, 0, 1):
        cosine, sine = cos_sin_turns((turns.round().long() + turn) % 2**24 << 8)
        radius = (torch.hypot(a.double(), b.double())).float().view(torch.int32)
        for ulp in range(-4, 5):
            r = (radius + ulp).view(torch.float32)
            found |= (r * cosine == a) & (r * sine == b)
    return two_classes(found)


def of_coarse_pixels(rows: torch.Tensor) -> torch.Tensor:
    """Class 0 where the first two pixels are multiples of 2^-24, as all that 1 + noise reaches."""
    scaled = rows.flatten(1)[:, :2].double() * 2**24
    return two_classes((scaled == scaled.round()).all(1))


def reachable(rows: torch.Tensor) -> torch.Tensor:
    """Class 0 where some float n makes each pixel fl(128/255 + n) (Voracek, Hein 2023)."""
    y, a = rows.flatten(1), torch.tensor(128 / 255)
    near = (y - a).float()
    found = torch.zeros_like(y, dtype=torch.bool)
    for n in (near, near.nextafter(torch.tensor(9.0)), near.nextafter(torch.tensor(-9.0))):
        found |= a + n == y
    return two_classes(found.all(1))


def reachable_images() -> tuple[torch.Tensor, torch.Tensor]:
    """A grey image, and the same with all pixels one level down: 28/255 away."""
    return torch.full((1, 28, 28), 128 / 255), torch.full((1, 28, 28), 127 / 255)


def lattice_images() -> tuple[torch.Tensor, torch.Tensor]:
    """A black image, and the same with ONE pixel one level up."""
    x = torch.zeros(1, 28, 28)
    moved = x.clone()
    moved[0, 0, 0] = 1 / 255
    return x, moved


def coarse_images() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.zeros(1, 1, 8)
    x[0, 0, :2] = 1.0
    return x, torch.zeros(1, 1, 8)


CASES = {
    "lattice": (on_the_lattice, lattice_images),
    "reachability": (reachable, reachable_images),
    "granularity": (of_coarse_pixels, coarse_images),
}


@pytest.mark.parametrize("name", CASES)
def test_ordinary_noise_certifies_a_malicious_classifier_wrongly(name):
    base, images = CASES[name]
    x, moved = images()
    smoothed = classifier(base, sound=False)
    label, radius = smoothed.certify(x, 100, 10_000, ALPHA, 2000)
    assert label == 0 and radius > 1.5 > float((x - moved).norm())
    assert smoothed.predict(moved, 10_000, ALPHA, 2000) == 1  # inside the certified ball


@pytest.mark.parametrize("name", CASES)
def test_sound_noise_does_not(name):
    base, images = CASES[name]
    x, moved = images()
    smoothed = classifier(base, sound=True)
    n = 2000
    for first, second in ((x, moved), (moved, x)):
        label, radius = smoothed.certify(first, 100, n, ALPHA, 2000)
        inside = radius > float((x - moved).norm())
        other = smoothed.predict(second, n, ALPHA, 2000)
        assert not inside or other in (label, ABSTAIN)
    if name == "lattice":  # and what it certifies is the same for both
        assert smoothed.predict(x, n, ALPHA, 2000) == smoothed.predict(moved, n, ALPHA, 2000)


def above(rows: torch.Tensor) -> torch.Tensor:
    """Half-spaces between the levels 99 and 100: rounding to levels does not move their border."""
    return two_classes(rows.flatten(1)[:, 0] * 255 > 99.5)


def wrong_share(sound: bool, images: int, level: int) -> float:
    n, alpha = 200, 0.05
    u = torch.full((images, 1, 1, 1), level, dtype=torch.uint8)
    smoothed = classifier(above, sound, seed=3)
    x = u if sound else u.float() / 255
    result = smoothed.certify_batch(x, 1, n, alpha, 8000, image_ids=torch.arange(images))
    true = (level - 99.5) / 255
    # Which class was selected does not matter: 1 is above its true radius as soon as it has one.
    return float(
        ((result.label == 0) & (result.radius > true) | (result.label == 1)).double().mean()
    )


@pytest.mark.parametrize("sound", [True, False])
def test_certificates_of_a_half_space_are_wrong_as_often_as_alpha_allows(sound):
    share = wrong_share(sound, 3000, 160)
    assert 0.02 < share < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3000)


@pytest.mark.slow
@pytest.mark.parametrize("sound", [True, False])
def test_certificates_are_wrong_as_often_as_alpha_allows_in_20000_runs(sound):
    for level in (110, 160, 250):
        assert 0.01 < wrong_share(sound, 20_000, level) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20_000)


# -------------------------------------------------------------------------------------- the bounds


@pytest.mark.parametrize("budget", ["fixed", "anytime"])
@pytest.mark.parametrize("count, n", [(100, 100), (10**5, 10**5), (51_000, 10**5), (10**9, 10**9)])
def test_bounds_are_lowered_by_the_distance_and_never_less(budget, count, n):
    distance = 784 * level_table(SIGMA).distance
    terms: dict[str, Any] = {"sigma": SIGMA, "alpha": ALPHA, "budget": budget}
    plain = certificate(count, n, n, **terms)
    sound = certificate(count, n, n, distance=distance, **terms)
    with mpmath.workdps(50):
        if budget == "fixed" and count == n:
            exact = mpmath.mpf(ALPHA) ** (mpmath.mpf(1) / n) - mpmath.mpf(distance)
            radius = -mpmath.mpf(SIGMA) * mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * exact)
            assert mpmath.mpf(sound.p_lower) <= exact
            assert mpmath.mpf(sound.radius) <= radius
            assert mpmath.mpf(sound.radius) > radius * (1 - mpmath.mpf(10) ** -7)
        lost = mpmath.mpf(plain.p_lower) - mpmath.mpf(sound.p_lower)
        assert mpmath.mpf(distance) * (1 - mpmath.mpf(10) ** -9) < lost + mpmath.mpf(2) ** -52
        assert lost < mpmath.mpf(distance) + mpmath.mpf(2) ** -51
    assert sound.radius < plain.radius


def test_a_large_distance_leaves_nothing():
    assert certificate(100, 100, 100, sigma=1, alpha=0.01, budget="fixed", distance=0.6).radius == 0
    proof = certificate(0, 100, 100, sigma=1, alpha=0.01, budget="anytime", distance=0.1)
    assert proof == (0.0, 0.0)


def test_a_yes_of_decide_proves_what_was_asked():
    distance = 1e-4  # large, so that forgetting it would show
    rule = Decide(n=100_000, sigma=SIGMA, alpha=ALPHA, radius=1.0, distance=distance)
    yes = next(t for t in range(100, 100_000, 10) if rule.stops(t, t))
    assert rule.final(yes, yes).radius >= 1.0
    plain = Decide(n=100_000, sigma=SIGMA, alpha=ALPHA, radius=1.0)
    first = next(t for t in range(100, 100_000) if plain.stops(t, t))
    late = Decide(n=100_000, sigma=SIGMA, alpha=ALPHA, radius=1.0, distance=0.02)
    assert not late.stops(first, first)


def test_predict_takes_the_distance_of_all_samples_off_alpha():
    assert stopping.spared(0.01, 1000, 0.0) == 0.01
    left = stopping.spared(0.01, 1000, 1e-6)
    assert left <= 0.01 - 1e-3 < left + 1e-12
    with pytest.raises(ValueError, match="raise alpha or lower n"):
        stopping.spared(1e-3, 10**6, 1e-9)


# ------------------------------------------------------------------------------ images and rows


def test_bytes_and_their_floats_have_one_certificate():
    u = torch.full((3, 1, 2, 4), 180, dtype=torch.uint8)
    smoothed = classifier(above, sound=True)
    results = [smoothed.certify_batch(x, 10, 500, ALPHA, 64) for x in (u, u.float() / 255)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert bool((results[0].label == 0).all()) and bool((results[0].radius > 0).all())


@pytest.mark.parametrize("value", [0.5, 1.1, -1 / 255, math.nan, 100 / 255 * (1 + 2e-7)])
def test_images_between_levels_are_refused(value):
    x = torch.zeros(1, 2, 4)
    x[0, 0, 1] = value
    with pytest.raises(ValueError, match="8-bit images"):
        classifier(above, sound=True).certify(x, 10, 100, ALPHA, 32)


def test_a_network_whose_rows_see_each_other_is_refused_before_it_votes():
    def of_neighbours(rows: torch.Tensor) -> torch.Tensor:
        return two_classes(rows.flatten(1)[:, 0] > 0) + rows.mean()

    for size in (1, 64, 300):
        x = torch.zeros(1, 2, 4)
        if size == 1:
            classifier(of_neighbours, sound=True).certify(x, 5, 10, ALPHA, 1)
            continue
        with pytest.raises(ValueError, match="function of one row.*rows in another place"):
            classifier(of_neighbours, sound=True).certify(x, 5, 10, ALPHA, size)


def test_a_network_that_changes_its_mind_is_refused():
    calls = []

    def moody(rows: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return two_classes(rows.flatten(1)[:, 0] > 0) + len(calls)

    with pytest.raises(ValueError, match="in the same batch again"):
        check_rows(moody, torch.randn(rows_to_test(256), 4), 256)


class Mixing(torch.nn.Module):
    """Whose rows see each other as soon as ``mix`` is not 0."""

    def __init__(self, fusible: bool) -> None:
        super().__init__()
        self.mix = torch.nn.Parameter(torch.zeros(()))
        self.fusible = fusible
        if fusible:  # certified as a copy, folded
            self.body = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.body(x) if self.fusible else x
        return two_classes(rows.flatten(1)[:, 0] > 0.5) + self.mix * rows.mean()


@pytest.mark.parametrize("fusible", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_are_tested_again_when_weights_have_changed(fusible, precision):
    base = Mixing(fusible)
    smoothed = classifier(base, sound=True, precision=precision)
    u = torch.full((1, 4, 4), 180, dtype=torch.uint8)
    assert smoothed.certify(u, 5, 100, ALPHA, 64) == smoothed.certify(u, 5, 100, ALPHA, 64)
    with torch.no_grad():
        base.mix.add_(1)
    with pytest.raises(ValueError, match="function of one row"):
        smoothed.certify(u, 5, 100, ALPHA, 64)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_network_is_tested_as_it_votes(monkeypatch, precision, layout):
    seen: list[tuple[str, torch.dtype, bool]] = []
    plain, tested = RunNetwork.__call__, []

    def watched(self: RunNetwork, rows: torch.Tensor) -> torch.Tensor:
        last = rows.is_contiguous(memory_format=torch.channels_last)
        seen.append((str(self.form), rows.dtype, last))
        return plain(self, rows)

    monkeypatch.setattr(RunNetwork, "__call__", watched)
    monkeypatch.setattr(
        votes, "check_rows", lambda *a: (check_rows(*a), tested.extend(seen), seen.clear())[0]
    )
    base = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    smoothed = classifier(base, sound=True, precision=precision, memory_format=layout)
    smoothed.certify(torch.full((3, 8, 8), 99, dtype=torch.uint8), 64, 128, ALPHA, 64)
    assert len(tested) > 8 and len(seen) == 2
    assert len({*tested, *seen}) == 1  # the form, the dtype and the layout of the votes
    assert seen[0][1:] == (
        torch.bfloat16 if precision == "bf16" else torch.float32,
        layout == "channels_last",
    )


def test_zeros_behind_the_rows_are_told_from_rows():
    def of_any_zero(rows: torch.Tensor) -> torch.Tensor:
        return two_classes(rows[:, 0] > 0) + (rows == 0).all(1).any().float()

    with pytest.raises(ValueError, match="filled up with zeros"):
        check_rows(of_any_zero, torch.randn(rows_to_test(200), 4), 200)


def test_every_forward_pass_that_proves_something_has_the_same_number_of_rows():
    sizes = []

    def counting(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return above(rows)

    smoothed = classifier(counting, sound=True)
    u = torch.full((5, 1, 2, 4), 180, dtype=torch.uint8)
    smoothed.certify_batch(u, 10, 500, ALPHA, 64)
    assert sizes[0] == 50 and set(sizes[1:]) == {64}  # the first selects classes
    smoothed.predict(u[0], 100, ALPHA, 64)
    assert set(sizes[1:]) == {64}


def test_levels_are_given_to_the_network_as_float32_of_255ths():
    noise = LevelNoise(SIGMA, 0)
    u = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    ids, stream = torch.tensor([0]), "estimation"
    rows = noise.copies(noise.images(u), 3, ids, 0, stream, torch.float32)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, (rows * 255).round() / 255)
    assert torch.equal(noise.images(u.float() / 255), u)
    half = noise.copies(u, 3, ids, 0, stream, torch.bfloat16)
    assert torch.equal(half, rows.bfloat16())
    assert torch.equal(noise.copies(u, 3, ids, 0, stream, torch.float64), rows)


# ---------------------------------------------------------------------------------------- the logs


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("sound")
    run = folder / "run"
    train = ["train", "--out", run, "--max-steps", "20", "--train-images", "640"]
    train += ["--certify-images", "0", "--method", "gaussian", "--seed", "1"]
    assert cli.main([*map(str, train)]) == 0
    found = {}
    for sound in (True, False):
        found[sound] = folder / f"{sound}.tsv"
        flags = ["--sound" if sound else "--no-sound", "--out", found[sound]]
        flags += ["--n", "200", "--max-images", "6", "--batch-size", "128"]
        assert cli.main([*map(str, ["certify", run, *flags])]) == 0
    return found


def test_a_log_says_what_it_rests_on(logs):
    settings = json.loads(logs[True].with_suffix(".json").read_text())["sound"]
    assert settings["s"] == 127.5 and settings["tau"] == level_table(0.5).distance
    assert settings["pixels"] == 784 and settings["rows_tested"] >= 256
    assert "Philox" in settings["assumes"]
    assert "sound" not in json.loads(logs[False].with_suffix(".json").read_text())


def test_report_shows_sound_logs_and_never_mixes_them(logs, capsys):
    assert cli.main(["report", str(logs[True])]) == 0
    assert "sound in floating point" in capsys.readouterr().out
    assert cli.main(["report", str(logs[False])]) == 0
    assert "sound" not in capsys.readouterr().out
    assert cli.main(["report", str(logs[True]), str(logs[False])]) == 2
    assert "certified with --sound" in capsys.readouterr().err


def test_report_recomputes_sound_certificates(logs, tmp_path, capsys):
    settings = json.loads(logs[True].with_suffix(".json").read_text())
    settings["sound"]["tau"] = 1e-5
    (tmp_path / "a.tsv").write_text(logs[True].read_text())
    (tmp_path / "a.json").write_text(json.dumps(settings))
    assert cli.main(["report", str(tmp_path / "a.tsv")]) == 2
    assert "is not what its count certifies" in capsys.readouterr().err


def test_sound_certification_refuses_a_sigma_without_a_table(logs, capsys):
    run = logs[True].parent / "run"
    assert cli.main(["certify", str(run), "--sound", "--sigma", "20", "--out", "x.tsv"]) == 2
    assert "--sound: noise in whole levels needs 0 < sigma <= 16" in capsys.readouterr().err


@pytest.mark.parametrize("radius", ["0.1", None])
def test_the_anytime_budget_is_sound_too(logs, tmp_path, radius):
    out = tmp_path / "a.tsv"
    rule = ["--radius", radius] if radius else ["--tolerance", "0.1"]
    flags = ["--sound", "--n", "2000", "--budget", "anytime", *rule, "--max-images", "4"]
    run = [str(logs[True].parent / "run"), "--out", str(out), "--batch-size", "64"]
    assert cli.main(["certify", *run, *flags]) == 0
    settings = json.loads(out.with_suffix(".json").read_text())
    terms: dict[str, Any] = {"sigma": SIGMA, "alpha": ALPHA, "budget": "anytime"}
    terms["distance"] = 784 * settings["sound"]["tau"]
    log = read_log(out)
    assert log.count is not None and log.n is not None and log.p_lower is not None
    for count, drawn, p_lower in zip(log.count, log.n, log.p_lower, strict=True):
        proof = certificate(int(count), int(drawn), 2000, **terms)
        assert p_lower <= proof.p_lower < p_lower + 1e-11
    assert cli.main(["report", str(out)]) == 0


def test_a_sound_log_goes_on_as_a_sound_log_only(logs, tmp_path, capsys):
    run, out = str(logs[True].parent / "run"), tmp_path / "a.tsv"
    flags = ["certify", run, "--out", str(out), "--n", "200", "--batch-size", "128"]
    whole = logs[True].read_text().splitlines()
    out.write_text("\n".join(whole[:4]) + "\n")
    out.with_suffix(".json").write_text(logs[True].with_suffix(".json").read_text())
    flags += ["--max-images", "6", "--resume"]
    assert cli.main(flags) == 2
    assert "sound" in capsys.readouterr().err
    assert cli.main([*flags, "--sound"]) == 0
    again = out.read_text().splitlines()

    def but_time(lines):
        return [[cell for at, cell in enumerate(line.split("\t")) if at != 5] for line in lines]

    assert but_time(again) == but_time(whole)


@pytest.mark.slow
def test_predict_records_what_it_rests_on(logs, tmp_path, capsys):
    run, out = str(logs[True].parent / "run"), tmp_path / "p.tsv"
    flags = ["predict", run, "--sound", "--n", "100", "--max-images", "3", "--out", str(out)]
    assert cli.main([*flags, "--precision", "bf16"]) == 0
    settings = json.loads(out.with_suffix(".json").read_text())["sound"]
    assert settings["tau"] == level_table(0.5).distance and settings["rows_tested"] >= 256
    assert cli.main([*flags, "--force", "--alpha", "1e-12"]) == 2
    assert "--sound: alpha must be above" in capsys.readouterr().err
