"""Flags and units that people bring from the published code."""

from __future__ import annotations

import pytest

from drf_fast.commands.cli import main


def said(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("command", "flag", "answer"),
    [
        ("certify", "--N", "write --n 7"),
        ("certify", "--N0", "write --n0 7"),
        ("certify", "--noise_sd", "write --sigma 7"),
        ("certify", "--batch", "write --batch-size 7"),
        ("certify", "--max", "--max M is --max-images M/K), got --max; write what you need\n"),
        ("certify", "--outfile", "write --out 7"),
        ("predict", "--N", "write --n 7"),
        ("predict", "--outfile", "write --out 7"),
        ("train", "--noise", "write --sigma 7"),
        ("train", "--noise-sd", "write --sigma 7"),
        ("train", "--batch", "write --batch-size 7"),
        ("train", "--lbd", "expected --consistency-lam with --method consistency, or --macer-lam"),
        ("train", "--num-noise-vec", "write --num-samples 7"),
        ("sweep", "--noise_sd", "write --sigma 7"),
        ("sweep", "--N", "write --n 7"),
    ],
)
def test_a_published_flag_is_answered_with_ours(capsys, command, flag, answer):
    place = ["x.pt"] if command in ("certify", "predict") else []
    for words in ([flag, "7"], [f"{flag}=7"]):
        assert answer in said(capsys, command, *place, *words)


def test_a_published_flag_without_its_value_is_answered(capsys):
    assert said(capsys, "certify", "x.pt", "--N").endswith("write --n\n")


@pytest.mark.parametrize(
    ("epsilon", "most"),
    [
        ("255", "less than 64"),
        ("64", "less than 64"),
        ("28.1", r"at most 28 (images of shape (1, 28, 28))"),
    ],
)
def test_a_strength_in_other_units_is_refused(capsys, tmp_path, epsilon, most):
    err = said(capsys, "train", "--epsilon", epsilon, "--out", str(tmp_path / "run"))
    assert f"expected {most}, got {epsilon}; published programs divide theirs by 256" in err
    assert f"--epsilon {float(epsilon) / 256:.4g}" in err
    assert not (tmp_path / "run").exists()
