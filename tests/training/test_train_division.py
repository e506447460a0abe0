"""A step in parts, or divided between processes, is the step that one process takes at once.

This file is its own worker: torchrun starts it for the runs of several processes.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.runtime import processes

INSTRUMENTS = Path(__file__).parents[1] / "instruments"
# The last batch of an epoch is a single image: one of two processes then has none. The network has
# no maximum or ReLU: where rounding makes one switch sides its gradient jumps, and sums in another
# order would not agree.
FLAGS = [
    "--arch", "trained:smooth", "--lr", "0.1",
    "--train-images", "49", "--batch-size", "16", "--epochs", "4", "--steps", "2", "--epsilon",
    "0.5", "--lambda-lr", "0.1", "--kappa", "20", "--device", "cpu", "--memory-format",
    "contiguous", "--threads", "1", "--certify-images", "0",
]  # fmt: skip
CERTIFIED = ["--certify-images", "3", "--certify-n", "64"]


def train(folder: Path, *flags: str) -> int:
    return main(["train", "--out", str(folder), *FLAGS, *flags])


def state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "checkpoint.pt")


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open()]


def close(a: dict[str, Any], b: dict[str, Any], tolerance: float = 2e-5) -> None:
    """Weights and lambda of two checkpoints agree up to rounding in float32."""
    for name, weight in b["model"].items():
        difference = float((a["model"][name] - weight).abs().max())
        assert difference <= tolerance * float(weight.abs().max()), name
    if "ball" in b:
        assert float(a["ball"]["lam"]) == pytest.approx(float(b["ball"]["lam"]), abs=1e-5)


def moved(a: dict[str, Any], folder: Path) -> bool:
    """Whether training changed the weights by far more than ``close`` allows."""
    train(folder, "--max-steps", "1", "--lr", "1e-9")
    pairs = zip(a["model"].values(), state(folder)["model"].values(), strict=True)
    return all(float((weight - start).abs().max()) > 0.01 for weight, start in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(folder, *CERTIFIED) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["2", "3", "16"])
def test_an_accumulated_step_is_the_whole_step(whole, tmp_path, parts):
    assert train(tmp_path / "r", "--accumulate", parts) == 0
    got, expected = state(tmp_path / "r"), state(whole)
    assert got["step"] == expected["step"] == 16
    close(got, expected)
    assert moved(expected, tmp_path / "start")
    for a, b in zip(metrics(tmp_path / "r" / "metrics.jsonl"), metrics(whole / "metrics.jsonl"),
                    strict=True):  # fmt: skip
        for name in ("loss", "train_accuracy_under_noise", "distance", "lambda"):
            assert a[name] == pytest.approx(b[name], abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [["stability"], ["macer", "--macer-lam", "1"], ["smoothmix"], ["consistency"]]
)
def test_every_method_can_be_accumulated(tmp_path, method):
    plain = [word for word in FLAGS]
    if method[0] in ("stability", "macer"):
        for flag in ("--steps", "--epsilon", "--lambda-lr", "--kappa"):
            at = plain.index(flag)
            del plain[at : at + 2]
    for name, parts in (("a", "1"), ("b", "3")):
        words = ["train", "--out", str(tmp_path / name), *plain, "--method", *method]
        assert main([*words, "--max-steps", "4", "--accumulate", parts]) == 0
    close(state(tmp_path / "b"), state(tmp_path / "a"))


@pytest.mark.slow
def test_split_batches_are_smaller_batches(tmp_path):
    assert train(tmp_path / "a", "--split-batches", "--max-steps", "5") == 0
    assert train(tmp_path / "b", "--batch-size", "8", "--max-steps", "5") == 0
    a, b = state(tmp_path / "a")["model"], state(tmp_path / "b")["model"]
    assert all(torch.equal(a[name], b[name]) for name in b)


# --- several processes


def worker(words: list[str], folder: Path) -> int:
    """``drf-fast`` with each process's metrics kept beside it, and a process that may fail."""
    from drf_fast.errors import RunError
    from drf_fast.training import loop as command

    rank = os.environ["RANK"]
    record, step = command._epoch_metrics, command.one_step

    def recording(run: Any) -> dict[str, Any]:
        found = record(run)
        weights = math.fsum(float(p.detach().double().sum()) for p in run.model.parameters())
        with (folder / f"rank{rank}.jsonl").open("a") as file:
            file.write(json.dumps({**found, "weights": weights}) + "\n")
        return found

    def failing(run: Any, *arguments: Any) -> None:
        if run.step == 5 and rank == os.environ.get("FAILING_RANK"):
            raise RunError("this process was told to fail")
        step(run, *arguments)

    command._epoch_metrics, command.one_step = recording, failing
    status = main(words)
    (folder / f"threads{rank}").write_text(" ".join(threads()))
    return status


def threads() -> list[str]:
    """The names of the threads of this process, those of libraries included."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def torchrun(folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        __file__, str(folder), "train", "--out", str(folder / "run"), *FLAGS, *flags,
    ]  # fmt: skip
    folders = [str(INSTRUMENTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders), **variables}
    environment = {**os.environ, **variables}
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=200)


pytestmark_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="needs a torch with torch.distributed"
)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(folder, *CERTIFIED)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
@pytestmark_distributed
def test_two_processes_train_as_one(whole, two):
    folder, _ = two
    for a, b in zip(metrics(folder / "run" / "metrics.jsonl"), metrics(whole / "metrics.jsonl"),
                    strict=True):  # fmt: skip
        for name in ("loss", "train_accuracy_under_noise", "distance", "lambda"):
            assert a[name] == pytest.approx(b[name], abs=1e-4), name
        assert (a["epoch"], a["step"]) == (b["epoch"], b["step"])
    close(state(folder / "run"), state(whole))


@pytest.mark.slow
@pytestmark_distributed
def test_all_processes_hold_one_lambda_and_one_network(two):
    folder, _ = two
    first, second = (metrics(folder / f"rank{rank}.jsonl") for rank in (0, 1))
    assert len({row["lambda"] for row in first}) == 4
    for name in ("lambda", "loss", "distance", "weights", "test_accuracy_under_noise"):
        assert [row[name] for row in first] == [row[name] for row in second], name


@pytest.mark.slow
@pytestmark_distributed
def test_the_threads_of_the_group_end_before_python_does(two):
    for rank in (0, 1):
        names = (two[0] / f"threads{rank}").read_text()
        assert "python" in names and "gloo" not in names, names


@pytest.mark.slow
@pytestmark_distributed
def test_one_process_alone_writes_and_reports(whole, two):
    folder, stdout = two
    files = {path.name for path in (folder / "run").iterdir()}
    assert files == {path.name for path in whole.iterdir()}
    assert len(metrics(folder / "run" / "metrics.jsonl")) == 4
    assert stdout.count("accuracy under noise") == 1
    assert len((folder / "run" / "certificates.tsv").read_text().splitlines()) == 4


@pytest.mark.slow
@pytestmark_distributed
def test_several_processes_resume_to_the_same_bits(two, tmp_path):
    first = torchrun(tmp_path, "--max-steps", "6")
    assert first.returncode == 0, first.stderr
    assert state(tmp_path / "run")["batch"] == 2
    done = torchrun(tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    whole, parts = state(two[0] / "run"), state(tmp_path / "run")
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])
    assert torch.equal(whole["ball"]["lam"], parts["ball"]["lam"])
    timings = ("seconds", "images_per_second")
    for a, b in zip(metrics(two[0] / "run" / "metrics.jsonl"),
                    metrics(tmp_path / "run" / "metrics.jsonl"), strict=True):  # fmt: skip
        assert {k: a[k] for k in a if k not in timings} == {k: b[k] for k in b if k not in timings}


@pytest.mark.slow
@pytestmark_distributed
def test_all_processes_start_with_the_weights_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("drawn_anew.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make(num_classes):\n"
        "    network = nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))\n"
        "    generator = torch.Generator()\n"
        "    generator.seed()  # not torch's default generator\n"
        "    network[1].weight.data.uniform_(-0.1, 0.1, generator=generator)\n"
        "    return network\n"
    )
    done = torchrun(tmp_path, "--arch", "drawn_anew:make", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    first, second = (metrics(tmp_path / f"rank{rank}.jsonl") for rank in (0, 1))
    assert [row["weights"] for row in first] == [row["weights"] for row in second]


@pytest.mark.slow
@pytestmark_distributed
def test_an_error_in_one_process_ends_all(tmp_path):
    started = time.monotonic()
    done = torchrun(tmp_path, FAILING_RANK="1")
    assert done.returncode != 0 and time.monotonic() - started < 150
    assert "this process was told to fail" in done.stderr
    assert state(tmp_path / "run")["step"] == 4  # of the epoch before


@pytest.mark.parametrize("name", ["lr", "training images"])
def test_processes_with_other_settings_or_images_are_refused(tmp_path, capsys, monkeypatch, name):
    def broadcast(value: Any) -> Any:
        return {**value, name: "other"} if isinstance(value, dict) and name in value else value

    monkeypatch.setattr(processes, "broadcast", broadcast)
    assert train(tmp_path / "r") == 2
    assert f"than process 0: expected the same, got other {name};" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_normalising_by_the_batch_is_refused_in_several_processes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(processes, "_meeting", None)  # where it would go on in the next test
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in job.items():
        monkeypatch.setenv(name, str(value))
    assert train(tmp_path / "r", "--grad-norm", "batch") == 2
    assert "--grad-norm batch needs the whole batch" in capsys.readouterr().err


if __name__ == "__main__":
    sys.exit(worker(sys.argv[2:], Path(sys.argv[1])))
