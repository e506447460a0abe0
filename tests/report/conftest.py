"""Shared by the tests of the report: a run, its page, and logs whose radii are made up."""

from __future__ import annotations

import json

import linear
import pytest

from drf_fast.certification.log import reader
from drf_fast.commands.cli import main

COMMON = ("--arch", "linear:Linear", "--device", "cpu", "--n", "200")
# What a page must not take for a tag, an attribute or the end of a script.
NASTY_NAME = "<b onload>\"'&</script>"


@pytest.fixture(scope="session")
def page_run(tmp_path_factory):
    """A run folder with certificates, an attack and training curves."""
    folder = tmp_path_factory.mktemp("run")
    linear.saved(folder)
    out = ("--out", str(folder / "certificates.tsv"))
    assert main(["certify", str(folder), *COMMON, "--skip", "60", "--max-images", "30", *out]) == 0
    search = ("--epsilons", "0.5,1.5", "--num-samples", "4", "--steps", "3", "--max-images", "10")
    assert main(["attack", str(folder), *COMMON, *search]) == 0
    rows = [{"epoch": e, "loss": 1 / e, "distance": 1.0, "lambda": 0.1 * e} for e in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def written_page(page_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    named = f"{NASTY_NAME}={page_run / 'certificates.tsv'}"
    assert main(["report", named, str(page_run / "attack-s0.5-n200.tsv"), "--html", str(path)]) == 0
    return path


@pytest.fixture
def radii_by_hand(monkeypatch) -> None:
    """Let logs pass though no count gives their radii: the figures can be checked."""
    monkeypatch.setattr(reader, "refuse_other_certificates", lambda *log: None)
