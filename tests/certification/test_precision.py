"""Arithmetic of the network under certification: given, or measured; recorded, and repeated.

There is no GPU here. The CPU stands in for one that has TF32: torch's switches for it belong to the
process and can be read, and the network takes its time where it is not run as a test wants it.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import drf_fast
from drf_fast.certification import loading
from drf_fast.config.choices import AskedArithmetic
from drf_fast.config.options import CertifyConfig
from drf_fast.runtime import tf32

K = 3


def switches() -> tuple[bool, bool]:
    return bool(torch.backends.cuda.matmul.allow_tf32), torch.backends.cudnn.allow_tf32


@pytest.fixture
def has_tf32(monkeypatch) -> None:
    monkeypatch.setattr(tf32, "_DEVICES", ("cpu",))
    monkeypatch.setattr(tf32, "why_not", lambda device: None)


class Network(nn.Module):
    """Fast in one precision; notes in which ones it runs."""

    def __init__(self, fast: str | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, K)
        self.fast, self.seen = fast, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        name = {(True, True): "tf32", (False, False): "fp32"}.get(switches(), "as torch has it")
        name = "bf16" if x.dtype == torch.bfloat16 else name
        NAMES.append(name)
        if name != self.fast:
            time.sleep(0.004)
        return self.linear(x.flatten(1))


NAMES: list[str] = []  # of a copy of the network, too


@pytest.fixture(autouse=True)
def forgotten(clock) -> None:
    NAMES.clear()


def images() -> torch.Tensor:
    return torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def smoothed(network: Any, **options: Any) -> drf_fast.SmoothedClassifier:
    options = {"memory_format": "contiguous", **options}
    return drf_fast.SmoothedClassifier(network, K, 0.5, **options)


def votes(classifier: drf_fast.SmoothedClassifier) -> torch.Tensor:
    return classifier.certify_batch(images(), 10, 60, 0.01, 30).count


@pytest.mark.parametrize(
    "asked, fast, chosen",
    [
        ("auto", "tf32", "tf32"),
        ("auto", "fp32", "fp32"),
        ("fastest", "tf32", "tf32"),
        ("fastest", "fp32", "fp32"),
        ("fastest", "bf16", "bf16"),
        ("tf32", "fp32", "tf32"),
        ("fp32", "tf32", "fp32"),
        ("bf16", "fp32", "bf16"),
    ],
)
def test_the_fastest_of_what_was_asked_for_runs_and_is_recorded(has_tf32, asked, fast, chosen):
    before = switches()
    classifier = smoothed(Network(fast), precision=asked)
    assert classifier.choices["precision"] == asked
    found = votes(classifier)
    assert classifier.choices["precision"] == chosen and classifier.left_out == {}
    tried = {"auto": {"fp32", "tf32"}, "fastest": {"fp32", "tf32", "bf16"}}.get(asked, {chosen})
    assert set(NAMES) <= tried | {"fp32"}  # what folding is compared in
    NAMES.clear()
    assert torch.equal(votes(classifier), found) and set(NAMES) == {chosen}
    again = smoothed(Network("none of them"), **{**classifier.choices, "batch_size": None})
    assert torch.equal(votes(again), found) and again.choices["precision"] == chosen
    assert switches() == before


def test_auto_is_fp32_where_there_is_no_tf32_and_measures_nothing(monkeypatch):
    classifier = smoothed(Network())
    monkeypatch.setattr(classifier._votes.network, "_seconds", None)  # not called
    votes(classifier)
    assert classifier.choices["precision"] == "fp32" and classifier.left_out == {}


def test_tf32_that_a_device_has_not_is_left_out_and_said(capsys):
    classifier = smoothed(Network(), precision="tf32")
    found = votes(classifier)
    assert classifier.choices["precision"] == "fp32"
    assert "compute capability 8.0" in classifier.left_out["contiguous tf32"]
    assert capsys.readouterr().err.count("cannot be run as contiguous tf32") == 1
    assert torch.equal(found, votes(smoothed(Network(), precision="fp32")))


def test_a_network_in_double_precision_has_no_tf32_to_choose(has_tf32):
    network = Network("tf32").double()
    classifier = smoothed(network)
    votes(classifier)
    assert classifier.choices["precision"] == "fp32" and "tf32" not in NAMES


def state() -> list[Any]:
    """All switches, as far as torch tells."""
    found: list[Any] = []
    for owner, name in tf32._switches():
        try:
            found.append(getattr(owner, name))
        except RuntimeError:
            found.append("old and new ones differ")
    return found


def legacy(matmul: bool, cudnn: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = cudnn  # type: ignore[attr-defined]


def new_alone() -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the old switches alone")
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize(
    "change",
    [lambda: None, lambda: legacy(True, False), lambda: legacy(False, False), new_alone],
    ids=["torch's own", "products", "none", "the new switch alone"],
)
def test_the_switches_of_the_process_are_put_back(has_tf32, change):
    with tf32.switched(torch.device("cpu"), False):  # and what this test changes
        change()
        before = state()
        for on in (False, True):
            with pytest.raises(KeyError), tf32.switched(torch.device("cpu"), on):
                assert switches() == (on, on)
                assert set(state()[2:]) <= {"tf32" if on else "ieee"}
                raise KeyError
            # What an old one was that torch did not tell is not known.
            told = [
                was in ("old and new ones differ", now)
                for was, now in zip(before, state(), strict=True)
            ]
            assert all(told) and state()[2:] == before[2:]


def test_a_log_records_what_was_chosen_and_resumes_with_it(has_tf32, tmp_path):
    out = tmp_path / "log.tsv"
    labels = torch.zeros(2, dtype=torch.int64)
    classifier = smoothed(Network("tf32"))
    options: dict[str, Any] = {"n0": 10, "n": 60, "out": out, "progress": False}
    drf_fast.certify_dataset(classifier, images(), labels, batch_size=30, **options)
    assert json.loads(out.with_suffix(".json").read_text())["precision"] == "tf32"
    cases: list[tuple[AskedArithmetic, str]]
    cases = [("auto", "tf32"), ("fastest", "tf32"), ("bf16", "bf16")]
    for asked, resumed in cases:
        config = CertifyConfig(checkpoint=Path("run"), precision=asked, out=out, resume=True)
        assert loading.with_recorded_choices(config, out).precision == resumed
    # Of a network whose weights cannot be converted; no flag names it, bf16 leads to it.
    settings = json.loads(out.with_suffix(".json").read_text())
    out.with_suffix(".json").write_text(json.dumps({**settings, "precision": "bf16 autocast"}))
    config = CertifyConfig(checkpoint=Path("run"), out=out, resume=True)
    assert loading.with_recorded_choices(config, out).precision == "bf16"


def test_threads_switch_tf32_one_after_the_other(has_tf32):
    before, cpu, order = switches(), torch.device("cpu"), []

    def other() -> None:
        with tf32.switched(cpu, False):
            order.append(("other", switches()))

    with tf32.switched(cpu, True):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)  # it waits
        with tf32.switched(cpu, True):  # as this thread itself need not
            order.append(("this", switches()))
    thread.join(60)
    assert order == [("this", (True, True)), ("other", (False, False))] and switches() == before
