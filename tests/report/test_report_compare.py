"""The paired comparison of methods: its bootstrap against what is known of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_logs import run

from drf_fast.certification.log import read_log
from drf_fast.errors import InputError
from drf_fast.report import summarize
from drf_fast.report.compare import RESAMPLES, compare, resample, statistics

PEERS = Path(__file__).parents[1] / "golden" / "peer_logs"


def groups_of(*paths: Path):
    return [entry.group for entry in summarize([read_log(path) for path in paths]).groups]


def peers(method: str) -> list[Path]:
    return sorted(PEERS.glob(f"{method}*.tsv"))


def field(path: Path, radii, shift: float = 0.0, backward: bool = False) -> Path:
    """A published log: radius 0 is an abstention, a negative one a wrong class."""
    lines = []
    for idx, radius in enumerate(radii):
        predict = -1 if radius == 0 else 3 if radius > 0 else 4
        right = int(predict == 3)
        size = 0.0 if predict == -1 else abs(radius) + shift * right
        lines.append(f"{idx}\t3\t{predict}\t{size!r}\t{right}\t0:00:01")
    text = "\n".join(lines[::-1] if backward else lines)
    path.write_text(f"idx\tlabel\tpredict\tradius\tcorrect\ttime\n{text}\n")
    return path


def test_the_statistics_average_to_the_report(tmp_path):
    summary = summarize([read_log(path) for path in (*peers("gaussian"), *peers("smoothadv"))])
    for entry in summary.groups:
        values = statistics(entry.group, summary.radii)
        assert values.shape == (2, 500, 2 + len(summary.radii))
        expected = [entry.acr_mean, *entry.certified, entry.abstained]
        assert values.mean(axis=(0, 1)) == pytest.approx(expected)


def test_images_are_paired_whatever_their_order(tmp_path):
    radii = np.random.default_rng(1).choice([0.0, -0.5, 0.25, 0.75, 1.0], 60).tolist()
    one = field(tmp_path / "a_sigma0.50.tsv", radii)
    other = field(tmp_path / "b_sigma0.50.tsv", radii, shift=0.125, backward=True)
    first, second = groups_of(one, other)
    found = compare(first, second, (0.0, 0.3))
    right = np.mean(np.asarray(radii) > 0)
    # Where all that differs is a shift of each right prediction, accuracy at 0 differs nowhere.
    assert found.difference[0] == pytest.approx(0.125 * right)
    assert found.difference[1] == found.lower[1] == found.upper[1] == 0
    assert found.difference[3] == found.lower[3] == found.upper[3] == 0  # abstention
    # The paired difference is 0.125 times a share of 60 images, whose deviation is known.
    width = 2 * 1.96 * 0.125 * np.sqrt(right * (1 - right) / 60)
    assert found.upper[0] - found.lower[0] == pytest.approx(width, rel=0.08)


def test_one_seed_each_gives_the_interval_of_a_mean_of_differences():
    generator = np.random.default_rng(2)
    shared = generator.normal(size=(1, 400, 1))
    first, second = shared + 0.1, shared + generator.normal(0.3, 0.5, size=(1, 400, 1))
    drawn = resample(first, second, np.random.default_rng(0))
    gaps = (second - first).ravel()
    assert drawn.shape == (RESAMPLES, 1)
    assert drawn.mean() == pytest.approx(gaps.mean(), abs=4 * 0.025 / 100)
    assert drawn.std() == pytest.approx(gaps.std() / 20, rel=0.03)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_deviation_over_seeds_is_that_of_their_mean(seeds):
    # Without differences between images, only the seeds of both methods vary.
    generator = np.random.default_rng(seeds)
    first, second = (generator.normal(size=(count, 1, 1)) for count in (seeds, 4))
    wide, other = (np.repeat(values, 50, axis=1) for values in (first, second))
    drawn = resample(wide, other, np.random.default_rng(0))
    expected = np.sqrt(first.var(ddof=1) / seeds + second.var(ddof=1) / 4)
    assert drawn.std() == pytest.approx(expected, rel=0.03)


def test_the_interval_covers_the_truth_where_images_and_seeds_vary():
    generator, drawing = np.random.default_rng(3), np.random.default_rng(7)
    covered, widths = 0, []
    for _ in range(60):
        images = generator.normal(size=(1, 100, 1))  # common to both, so paired away
        groups = []
        for truth in (0.0, 0.2):
            seed = generator.normal(0, 0.15, size=(5, 1, 1))
            taste = generator.normal(0, 0.3, size=(1, 100, 1))  # of the method for an image
            groups.append(images + truth + seed + taste + generator.normal(0, 0.2, (5, 100, 1)))
        lower, upper = np.quantile(resample(groups[0], groups[1], drawing), [0.025, 0.975])
        covered += lower <= 0.2 <= upper
        widths.append(upper - lower)
    # Right ones cover in 94 % of cases and are 0.40 wide; resampling images alone covers in 55 %,
    # and each method's images on their own make them 0.68 wide.
    assert covered >= 50 and np.mean(widths) < 0.5


def test_each_further_method_is_compared_with_the_first(tmp_path, capsys):
    radii = np.random.default_rng(5).choice([0.0, 0.25, 0.75], 40).tolist()
    paths = [
        field(tmp_path / f"{name}_sigma0.50.tsv", radii, shift=shift)
        for name, shift in (("a", 0.0), ("b", 0.25), ("c", 0.5))
    ]
    assert run(paths, compare=True) == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[1] for line in out.splitlines() if line.startswith("  minus a")] == [
        "minus a",
        "minus a",
    ]
    assert out.count("minus, lower 95 %") == out.count("minus, upper 95 %") == 2
    assert "(10,000 resamples), over images alone for a method with one seed" in out
    assert run(paths, compare=True, format="json") == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert groups[0]["comparison"] is None and groups[2]["comparison"]["minus"] == "a"
    for group, shift in zip(groups[1:], (0.25, 0.5), strict=True):
        found = group["comparison"]
        assert found["difference"]["acr"] == pytest.approx(group["acr"] - groups[0]["acr"])
        assert found["lower"]["acr"] < found["difference"]["acr"] < found["upper"]["acr"] <= shift


def test_published_logs_tell_smoothadv_from_gaussian():
    first, second = groups_of(*peers("gaussian"), *peers("smoothadv"))
    found, again = (compare(first, second, (0.0, 1.5)) for _ in range(2))
    assert 0.05 < found.lower[0] < found.difference[0] < found.upper[0] < 0.25
    assert np.array_equal(found.lower, again.lower) and np.array_equal(found.upper, again.upper)
    other_way = compare(second, first, (0.0, 1.5))
    assert other_way.difference == pytest.approx(-found.difference)
    assert other_way.lower == pytest.approx(-found.upper, abs=0.02 * np.abs(found.upper).max())


def test_the_caption_says_that_few_seeds_are_few(capsys):
    assert run([*peers("gaussian"), *peers("smoothadv")], compare=True) == 0
    assert (
        "(10,000 resamples), too narrow with so few seeds; compared with" in capsys.readouterr().out
    )


def test_one_method_has_nothing_to_be_compared_with():
    with pytest.raises(InputError, match=r"expected logs of two methods or more.*\(gaussian\)"):
        run(peers("gaussian"), compare=True)
