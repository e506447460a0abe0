"""How the work of a certification is divided or interrupted never shows in its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from drf_fast import SmoothedClassifier, data, models
from drf_fast.certification import engine
from drf_fast.certification.log import CertificationLog, read_log, sidecar
from drf_fast.certification.log.parts import collect, part_path, parts_of
from drf_fast.certification.network import Form, RunNetwork
from drf_fast.certification.stopping import Fixed
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main

# 20 samples choose, 64 rows a pass: groups of three images.
FLAGS = [
    "--n0", "20", "--n", "150", "--skip", "97", "--batch-size", "64", "--device", "cpu",
    "--memory-format", "contiguous",
]  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was not trained, only balanced: votes are split, and images differ."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "checkpoint.pt"
    model = models.build("lenet", 10, (1, 28, 28))
    images = data.load("mnist-mini", "test").float_images(list(range(64)))
    with torch.no_grad():
        model.get_parameter("fc2.bias").sub_(model(images).mean(0))
    config = {"sigma": 0.25, "data": "mnist-mini", "method_label": "none", "seed": 0}
    checkpoint.save(
        path,
        {
            "model": model.state_dict(),
            "arch": "lenet",
            "num_classes": 10,
            "image_shape": [1, 28, 28],
            "config": config,
        },
    )
    return path


def certify(network: Path, out: Path, *flags: str) -> int:
    return main(["certify", str(network), "--out", str(out), *FLAGS, *flags])


def without_time(path: Path) -> list[list[str]]:
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [row[:5] + row[6:] for row in rows]


@pytest.fixture(scope="module")
def expected(network: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    out = tmp_path_factory.mktemp("whole") / "log.tsv"
    assert certify(network, out) == 0
    rows = without_time(out)
    assert len(rows) == 22 and len({row[5] for row in rows[1:]}) > 3  # counts differ
    return rows


def test_shards_together_are_the_whole_log(network, expected, tmp_path):
    outs = [tmp_path / f"part{i}.tsv" for i in (1, 2, 3)]
    for i, out in enumerate(outs, start=1):
        assert certify(network, out, "--shard", f"{i}/3") == 0
    rows = [row for out in outs for row in without_time(out)[1:]]
    assert sorted(rows, key=lambda row: int(row[0])) == expected[1:]
    assert len({len(without_time(out)) for out in outs}) <= 2  # the work is shared


@pytest.mark.parametrize("shard, recorded", [((), "bf16"), (("--shard", "1/2"), "fp32")])
def test_a_shard_measures_no_arithmetic_of_its_own(network, tmp_path, monkeypatch, shard, recorded):
    def seconds(self: object, network: object, form: Form, *rest: object) -> float:
        return {"fp32": 2.0, "bf16": 1.0}[form.precision]

    monkeypatch.setattr(RunNetwork, "_seconds", seconds)
    out = tmp_path / "log.tsv"
    assert certify(network, out, "--precision", "fastest", "--max-images", "2", *shard) == 0
    assert json.loads(sidecar(out).read_text())["precision"] == recorded


@pytest.mark.slow
def test_two_processes_write_the_log_of_one(network, expected, tmp_path):
    out = tmp_path / "log.tsv"
    words = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        "-m", "--", "drf_fast", "certify", str(network), "--out", str(out), *FLAGS,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert without_time(out) == expected
    assert not parts_of(out)
    assert done.stdout.count("ACR") == 1 + done.stdout.count("ACR and")  # one report


@pytest.mark.slow
def test_rows_of_an_interrupted_run_of_several_processes_are_kept(network, expected, tmp_path):
    out = tmp_path / "log.tsv"
    assert certify(network, out) == 0
    lines = out.read_text().splitlines(keepends=True)
    # As two processes leave it: part 0 torn in its last line, the log itself with a header only.
    out.write_text(lines[0])
    part_path(out, 0).write_text(lines[0] + "".join(lines[1:4]) + lines[7][:-9])
    part_path(out, 1).write_text(lines[0] + "".join(lines[4:7]))
    kept = lines[1:7]
    assert certify(network, out, "--resume") == 0
    assert out.read_text().splitlines(keepends=True)[1:7] == kept
    assert without_time(out) == expected and not parts_of(out)


@pytest.mark.slow
def test_kills_and_resumes_give_the_uninterrupted_log(network, expected, tmp_path):
    out = tmp_path / "log.tsv"
    words = [sys.executable, "-m", "drf_fast", "certify", str(network), "--out", str(out), *FLAGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kills = 0
    for kill in range(10):
        process = subprocess.Popen(
            [*words, "--resume"], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        wanted = 1 + 2 * (kill + 1)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if out.exists() and out.read_text().count("\n") >= wanted:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        unfinished = out.read_text().count("\n") < 1 + len(expected)
        kills += process.returncode == -signal.SIGKILL and unfinished
    assert kills >= 3, "the runs ended before they were killed"
    assert main([*words[3:], "--resume"]) == 0
    assert without_time(out) == expected


class Pixels(torch.nn.Module):
    """Ten pixels as logits: rows do not know each other, whatever the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, 380:390]


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 500])  # an image's samples share their batch, or fill several
def test_the_batch_size_does_not_show_where_rows_are_independent(n, tmp_path):
    images = data.load("mnist-mini", "test")
    logs = []
    for batch_size in (1, 7, 64, 250, 1000):
        work = engine.Work(
            classifier=SmoothedClassifier(Pixels(), 10, 0.25),
            images=images,
            indices=tuple(range(0, 2000, 97)),
            device=torch.device("cpu"),
            n0=20,
            rule=Fixed(n=n, sigma=0.25, alpha=0.1),
            batch_size=batch_size,
        )
        out = tmp_path / f"{batch_size}.tsv"
        with CertificationLog.create(out, {}) as log:
            engine.run(work, log)
        logs.append(without_time(out))
    assert all(log == logs[0] for log in logs[1:])
    assert len(logs[0]) == 22 and len({row[5] for row in logs[0][1:]}) > 5  # counts differ


PEAK = """
import resource, sys
from drf_fast.commands.cli import main
status = main(sys.argv[1:])
print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


@pytest.mark.slow
def test_memory_grows_neither_with_the_images_nor_with_n(network, tmp_path):
    def peak(images: int, n: int) -> int:
        words = [
            "certify", str(network), "--out", str(tmp_path / f"{images}-{n}.tsv"), *FLAGS,
            "--skip", "1", "--max-images", str(images), "--n", str(n),
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *words], capture_output=True, text=True, timeout=240
        )
        status, size = done.stderr.split()[-2:]
        assert (done.returncode, status) == (0, "0"), done.stderr
        return int(size)

    small = peak(10, 200)
    assert peak(100, 200) < 1.1 * small
    assert peak(10, 5_000) < 1.1 * small


def test_an_image_that_is_left_is_computed_as_in_its_whole_group(network, expected, tmp_path):
    out = tmp_path / "log.tsv"
    assert certify(network, out) == 0
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:2] + lines[3:]))  # without the second image
    assert certify(network, out, "--resume") == 0
    assert without_time(out) == expected


def test_collect_leaves_a_log_in_order_alone(network, tmp_path):
    out = tmp_path / "log.tsv"
    assert certify(network, out) == 0
    before = out.stat()
    collect(out)
    assert out.stat().st_ino == before.st_ino


def test_skipping_wrong_images_changes_no_certified_accuracy(network, expected, tmp_path):
    out = tmp_path / "log.tsv"
    assert certify(network, out, "--skip-wrong") == 0
    log, skipped = read_log(out), 0
    for row, whole in zip(without_time(out)[1:], expected[1:], strict=True):
        if row[6] == "0":  # n
            skipped += 1
            assert row[2] != row[1] and float(row[3]) == 0.0
            assert whole[2] in ("-1", row[2])
        else:
            assert row == whole
    assert 0 < skipped < len(log)


@pytest.mark.slow
def test_an_anytime_run_stops_early_and_its_rows_hold(network, tmp_path, capsys):
    out = tmp_path / "log.tsv"
    flags = ("--n", "2000", "--budget", "anytime", "--radius", "0.05")
    assert certify(network, out, *flags) == 0
    log = read_log(out)
    assert log.n is not None and log.n.min() < 2000
    assert main(["report", str(out)]) == 0  # which recomputes every radius from its count
    assert "anytime" in sidecar(out).read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--shard", "4/3"), "i/k"),
        (("--shard", "first"), "i/k"),
        (("--radius", "0.5"), "--budget anytime"),
        (("--budget", "anytime"), "--radius R"),
        (("--budget", "anytime", "--radius", "1", "--tolerance", "1"), "got 2"),
        (("--budget", "anytime", "--radius", "-1"), "above 0"),
        (("--budget", "anytime", "--tolerance", "nan"), "above 0"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_no_file(network, tmp_path, capsys, flags, says):
    out = tmp_path / "log.tsv"
    assert certify(network, out, *flags) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_plan_writes_nothing_and_names_its_costs(network, tmp_path, capsys):
    out = tmp_path / "log.tsv"
    assert certify(network, out, "--plan") == 0
    told = capsys.readouterr().err
    assert "21 images" in told and "rows/s" in told and "largest radius" in told
    assert not list(tmp_path.iterdir())


def test_a_network_at_chance_is_announced(network, tmp_path, capsys):
    assert certify(network, tmp_path / "log.tsv", "--plan", "--skip", "8") == 0
    assert "chance is 10.0 %" in capsys.readouterr().err


def test_predict_prints_a_line_an_image_and_totals(network, tmp_path, capsys):
    words = ["predict", str(network), *FLAGS[2:], "--max-images", "5", "--n", "64"]
    assert main(words) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split("\t") == ["idx", "label", "predict", "correct"]
    assert [int(line.split("\t")[0]) for line in lines[1:]] == [0, 97, 194, 291, 388]
    assert "5 images" in captured.err
    out = tmp_path / "predictions.tsv"
    assert main([*words, "--out", str(out)]) == 0
    assert out.read_text().splitlines() == lines
    capsys.readouterr()
    assert main([*words, "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
