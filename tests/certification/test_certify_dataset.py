"""``drf_fast.certify_dataset``: the engine of the command, from Python."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from certified_pairs import COUNT, FEW, K, Pairs, images, labels, network, same, smoothed
from torch import nn
from torch.utils.data import TensorDataset

import drf_fast
from drf_fast import data
from drf_fast.certification import plan
from drf_fast.certification.log import read_log
from drf_fast.certification.network import RunNetwork
from drf_fast.certification.stopping import Decide
from drf_fast.certification.votes import NoisyVotes
from drf_fast.commands.cli import main
from drf_fast.runtime.level_table import level_table


@pytest.mark.parametrize("batch_size", [64, 1024])  # one image a pass, and several
def test_each_certificate_is_that_of_certify(batch_size):
    few = {**FEW, "batch_size": batch_size}
    found = drf_fast.certify_dataset(smoothed(), images(), labels(), **few)
    for index, x in enumerate(images()):
        expected = smoothed().certify(x, 20, 200, 0.01, 64, image_id=index)
        assert (int(found.predict[index]), float(found.radius[index])) == expected
    assert found.index.tolist() == list(range(COUNT)) and torch.equal(found.label, labels())
    right = [r for r, p, t in zip(found.radius, found.predict, labels(), strict=True) if p == t]
    assert found.acr == pytest.approx(sum(map(float, right)) / COUNT)
    assert found.acr > 0 and found.certified_accuracy() == len(right) / COUNT
    assert found.certified_accuracy(10.0) == 0


def test_every_kind_of_data_gives_the_same(tmp_path):
    chosen = [7, 1, 4]
    expected = drf_fast.certify_dataset(smoothed(), images(), labels(), indices=chosen, **FEW)
    assert expected.index.tolist() == chosen
    kinds: list[tuple[Any, Any]] = [
        (images().numpy(), labels().tolist()),
        (images(), labels().numpy()),
        (TensorDataset(images(), labels()), None),
        (TensorDataset(images()), labels()),
        (Pairs(), None),
    ]
    for pictures, classes in kinds:
        found = drf_fast.certify_dataset(smoothed(), pictures, classes, indices=chosen, **FEW)
        same(found, expected)
    pairs = Pairs()
    drf_fast.certify_dataset(smoothed(), pairs, indices=chosen, **FEW)
    assert set(pairs.read) == {0, *chosen}  # the others are never read


def test_levels_are_divided_by_255_and_sound_certificates_take_them():
    levels = (images() * 255).round().to(torch.uint8)
    expected = drf_fast.certify_dataset(smoothed(), levels.float() / 255, labels(), **FEW)
    same(drf_fast.certify_dataset(smoothed(), levels, labels(), **FEW), expected)
    found = drf_fast.certify_dataset(smoothed(sound=True), levels, labels(), **FEW)
    direct = smoothed(sound=True).certify_batch(levels, 20, 200, 0.01, 64)
    assert torch.equal(found.predict, direct.label) and torch.equal(found.radius, direct.radius)


@pytest.mark.parametrize("sigma", [0.12, 0.3, 0.7])  # float32 lies below, above and below
def test_no_radius_is_of_more_noise_than_was_drawn(tmp_path, sigma):
    log, few = tmp_path / "a.tsv", {**FEW, "batch_size": 64}
    drawn = min(sigma, float(np.float32(sigma)))
    assert (drawn < sigma) == (sigma != 0.3)
    classifier = drf_fast.SmoothedClassifier(network(), K, sigma)
    found = drf_fast.certify_dataset(classifier, images(), labels(), out=log, **few)
    radii = [
        drf_fast.certified_radius(count, 200, sigma=drawn, alpha=0.01) for count in found.count
    ]
    assert float(max(radii)) > 0.1
    torch.testing.assert_close(found.radius, torch.stack(radii), rtol=0, atol=1e-12)
    assert read_log(log).radius.tolist() == found.radius.tolist()
    assert json.loads(log.with_suffix(".json").read_text())["sigma"] == sigma
    one = classifier.certify(images()[0], 20, 200, 0.01, 64)
    assert one[1] == float(radii[0])


@pytest.mark.parametrize("share", [0.999999999, 1.00000001])
def test_a_radius_is_decided_by_the_noise_that_was_drawn(share):
    reach = Decide(n=200, sigma=0.12, alpha=0.01, radius=0.1).final(200, 200).radius
    asked = reach * share * float(np.float32(0.12)) / 0.12
    classifier = drf_fast.SmoothedClassifier(network(), K, 0.12)
    refused = pytest.raises(ValueError, match="radius must be at most")
    with refused if share > 1 else contextlib.nullcontext():
        drf_fast.certify_dataset(classifier, images(), labels(), radius=asked, **FEW)


def test_sound_noise_is_of_sigma_itself():
    assert smoothed(sound=True).drawn_sigma == 0.25
    assert drf_fast.SmoothedClassifier(network(), K, 0.12, sound=True).drawn_sigma == 0.12
    with pytest.raises(ValueError, match="sigma must be a noise level above 0 in float32"):
        drf_fast.SmoothedClassifier(network(), K, 1e-50)


def test_an_interrupted_log_goes_on_and_is_that_of_the_report(tmp_path, capsys):
    out = tmp_path / "log.tsv"

    class Interrupted(Pairs):
        def __getitem__(self, index: int):
            if index == 5:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    few = {**FEW, "n0": 60}  # a group of one image
    with pytest.raises(KeyboardInterrupt):
        drf_fast.certify_dataset(smoothed(), Interrupted(), indices=range(2, 8), out=out, **few)
    assert not out.exists()  # its fingerprint was not read to the end
    first = drf_fast.certify_dataset(smoothed(), Pairs(), indices=range(2, 8), out=out, **few)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:4]) + lines[4][:10])
    again = drf_fast.certify_dataset(
        smoothed(), Pairs(), indices=range(2, 8), out=out, resume=True, **few
    )
    same(again, first)
    columns = [line.split(b"\t")[:5] + line.split(b"\t")[6:] for line in whole.splitlines()]
    assert columns == [
        line.split(b"\t")[:5] + line.split(b"\t")[6:] for line in out.read_bytes().splitlines()
    ]  # all but the times
    memory = drf_fast.certify_dataset(smoothed(), images(), labels(), indices=range(2, 8), **few)
    same(memory, again, radii=1e-12)
    assert bool((again.radius <= memory.radius).all())
    assert len(read_log(out)) == 6
    assert main(["report", f"mine={out}", "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert f"{memory.acr:.6f}"[:6] in json.dumps(row)


def test_a_log_is_neither_lost_nor_mixed(tmp_path):
    out = tmp_path / "log.tsv"
    drf_fast.certify_dataset(smoothed(), images(), labels(), out=out, **FEW)
    with pytest.raises(ValueError, match=r"log\.tsv exists: .*resume=True, .*force=True"):
        drf_fast.certify_dataset(smoothed(), images(), labels(), out=out, **FEW)
    base = network()
    base.get_parameter("1.bias").data[0] += 1
    changed = drf_fast.SmoothedClassifier(base, K, 0.25)
    others: list[tuple[Any, Any, Any, dict[str, Any], str]] = [
        (changed, images(), labels(), {}, "checkpoint_sha256"),
        (smoothed(), images() / 2, labels(), {}, "fingerprint"),
        (smoothed(), images(), labels().flip(0), {}, "fingerprint"),
        (smoothed(seed=1), images(), labels(), {}, "seed"),
        (smoothed(), images(), labels(), {"n": 201}, "n "),
        (smoothed(), images(), labels(), {"indices": range(3)}, "indices_total"),
        (smoothed(), images(), labels(), {"indices": [1, 4]}, "indices"),
    ]
    for classifier, x, y, more, message in others:
        with pytest.raises(ValueError, match=f"cannot resume .*{message}"):
            drf_fast.certify_dataset(classifier, x, y, out=out, resume=True, **{**FEW, **more})
    drf_fast.certify_dataset(changed, images(), labels(), out=out, force=True, **FEW)


def test_budgets_stop_early_and_prove_what_they_may():
    full = drf_fast.certify_dataset(smoothed(), images(), labels(), **{**FEW, "n": 4000})
    early = drf_fast.certify_dataset(
        smoothed(), images(), labels(), radius=0.05, **{**FEW, "n": 4000}
    )
    assert bool((early.n <= 4000).all()) and int(early.n.min()) < 4000
    reached = early.radius >= 0.05
    assert torch.equal(reached, full.radius >= 0.05)
    stopped = reached & (early.n < 4000)
    assert stopped.any() and bool((early.predict[stopped] > 0).all())  # not for the first class
    close = drf_fast.certify_dataset(
        smoothed(), images(), labels(), tolerance=0.1, **{**FEW, "n": 4000}
    )
    assert int(close.n.min()) < 4000
    assert bool((close.radius >= full.radius - 0.15)[full.radius > 0.3].all())
    assert bool((full.n == 4000).all())
    skipped = drf_fast.certify_dataset(smoothed(), images(), labels(), skip_wrong=True, **FEW)
    plain = drf_fast.certify_dataset(smoothed(), images(), labels(), **FEW)
    assert skipped.acr == plain.acr and 0 in skipped.n.tolist()
    with pytest.raises(ValueError, match="two ways to stop"):
        drf_fast.certify_dataset(smoothed(), images(), labels(), radius=0.1, tolerance=0.1, **FEW)


def test_the_data_sets_of_drf_fast_are_taken_as_they_are():
    mini = data.load("mnist-mini", "test")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    classifier = drf_fast.SmoothedClassifier(base, 10, 0.5)
    found = drf_fast.certify_dataset(classifier, mini, indices=[3, 5], **FEW)
    expected = classifier.certify(mini.float_images([5])[0], 20, 200, 0.01, 64, image_id=5)
    assert (int(found.predict[1]), float(found.radius[1])) == expected
    assert found.label.tolist() == mini.labels[[3, 5]].tolist()
    with pytest.raises(ValueError, match="has 10 classes: expected the classifier's 4"):
        drf_fast.certify_dataset(smoothed(), mini, **FEW)
    with pytest.raises(ValueError, match="labels must be None"):
        drf_fast.certify_dataset(classifier, mini, mini.labels, indices=[3], **FEW)


def test_progress_says_cost_and_warns(capsys):
    drf_fast.certify_dataset(smoothed(), images() * 3, labels(), **{**FEW, "progress": True})
    said = capsys.readouterr().err
    assert "certifying 9 images of your data (test) at sigma 0.25" in said
    assert "warning: pixels lie between" in said and "the confidence" not in said
    assert "9/9 done" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drf_fast.certify_dataset(smoothed(), images(), labels(), **FEW)
    assert capsys.readouterr().err == ""


def test_a_confidence_in_place_of_alpha_is_said(capsys):
    few = {**FEW, "progress": True, "alpha": 0.99}
    drf_fast.certify_dataset(smoothed(), images(), labels(), **few)
    assert "alpha 0.99 is the probability of an error, not" in capsys.readouterr().err


def test_arrays_of_levels_are_read_as_tensors_are():
    levels = (images() * 255).round().to(torch.uint8)
    a = drf_fast.certify_dataset(smoothed(), np.asarray(levels), labels(), **FEW)
    same(a, drf_fast.certify_dataset(smoothed(), levels, labels(), **FEW))


def test_every_kth_image_is_seen_to_be_complete(tmp_path, capsys):
    out = tmp_path / "log.tsv"
    drf_fast.certify_dataset(smoothed(), images(), labels(), indices=range(0, 9, 3), out=out, **FEW)
    recorded = json.loads(out.with_suffix(".json").read_text())
    assert (recorded["skip"], recorded["indices_total"]) == (3, 3)
    assert main(["report", str(out)]) == 0
    said = capsys.readouterr()
    assert "lacks" not in said.err and ": 3 images of your data; n = " in said.out
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:3]))
    assert main(["report", str(out)]) == 0 and "lacks 1 of 3 images" in capsys.readouterr().err


def test_a_path_may_be_a_string(tmp_path):
    out = str(tmp_path / "log.tsv")
    drf_fast.certify_dataset(smoothed(), images(), labels(), out=out, method="mine", **FEW)
    assert json.loads(Path(out).with_suffix(".json").read_text())["method"] == "mine"


def test_a_resumed_log_keeps_the_measured_choices(tmp_path, monkeypatch):
    def convolutions() -> drf_fast.SmoothedClassifier:
        torch.manual_seed(2)
        base = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, K))
        return drf_fast.SmoothedClassifier(base, K, 0.25)

    few: Any = {**FEW, "batch_size": None, "out": tmp_path / "log.tsv"}
    fastest = {"layout": "channels_last", "size": 64}  # what a measurement finds

    def seconds(self: RunNetwork, network: Any, form: Any, *others: Any) -> float:
        return float(form.memory_format != fastest["layout"])

    monkeypatch.setattr(RunNetwork, "_seconds", seconds)
    monkeypatch.setattr(NoisyVotes, "rate", lambda self, x, size: float(size == fastest["size"]))
    first = drf_fast.certify_dataset(convolutions(), images(), labels(), **few)
    fastest.update(layout="contiguous", size=128)  # on a busier machine
    same(drf_fast.certify_dataset(convolutions(), images(), labels(), resume=True, **few), first)
    fixed = convolutions()
    fixed.measure(images()[:1])
    with pytest.raises(ValueError, match='memory_format .*"channels_last" there'):
        drf_fast.certify_dataset(fixed, images(), labels(), resume=True, **few)
    with pytest.raises(ValueError, match=r"batch_size \(64 there, 32 now\)"):
        drf_fast.certify_dataset(
            convolutions(), images(), labels(), resume=True, **{**few, "batch_size": 32}
        )


@pytest.mark.parametrize("sound", [False, True])
def test_the_default_device_of_torch_decides_nothing(tmp_path, sound):
    levels, classes, base = (images() * 255).round().to(torch.uint8), labels(), network()

    def results(name: str) -> list[Any]:
        classifier = drf_fast.SmoothedClassifier(base, K, 0.25, sound=sound)
        out = tmp_path / name
        found = drf_fast.certify_dataset(classifier, levels, classes, out=out, **FEW)
        return [*found, classifier.predict_batch(levels if sound else levels / 255, 50, 0.01, 64)]

    expected = results("a.tsv")
    level_table.cache_clear()
    torch.set_default_device("meta")  # as torch.set_default_device("cuda"), where CUDA is
    try:
        got = results("b.tsv")
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("done", [0, 4, 9])
@pytest.mark.parametrize("n0, n, batch_size", [(20, 40, 100), (20, 200, 64), (150, 30, 64)])
def test_the_plan_counts_the_forward_passes(monkeypatch, tmp_path, n0, n, batch_size, done):
    passes: list[int] = []
    plain = RunNetwork.__call__
    monkeypatch.setattr(
        RunNetwork, "__call__", lambda self, rows: (passes.append(1), plain(self, rows))[1]
    )
    planned: list[plan.Plan] = []
    monkeypatch.setattr(plan, "show", lambda made, work: (planned.append(made), passes.clear()))
    out = tmp_path / "log.tsv"
    terms: Any = {"n0": n0, "n": n, "alpha": 0.01, "batch_size": batch_size, "out": out}
    if done:  # an interrupted run
        drf_fast.certify_dataset(smoothed(), images(), labels(), **terms, progress=False)
        out.write_text("".join(out.read_text().splitlines(keepends=True)[: 1 + done]))
        passes.clear()
    drf_fast.certify_dataset(smoothed(), images(), labels(), **terms, resume=True)
    assert (planned[0].images, planned[0].done) == (9, done)
    tested = 19 if done < 9 else 0  # that votes are independent samples
    assert planned[0].forward_passes == len(passes) - tested


def test_numbers_of_numpy_are_recorded_as_numbers(tmp_path):
    few: Any = {**FEW, "n0": np.int64(20), "n": np.int32(200), "batch_size": np.int64(64)}
    numbers = smoothed(seed=np.int64(3)), images(), labels()
    found = drf_fast.certify_dataset(*numbers, out=tmp_path / "log.tsv", **few)
    same(found, drf_fast.certify_dataset(smoothed(seed=3), images(), labels(), **FEW), radii=1e-12)
    recorded = json.loads((tmp_path / "log.json").read_text())
    assert [recorded[key] for key in ("n0", "n", "seed", "batch_size")] == [20, 200, 3, 64]


def test_the_plan_names_a_number_of_samples_that_its_budget_can_certify_with(capsys):
    few: Any = {"n0": 5, "n": 10, "alpha": 0.001, "batch_size": 16}
    drf_fast.certify_dataset(smoothed(), images(), labels(), **few)
    assert "must abstain" not in capsys.readouterr().err  # 0.001^(1/10) is above 1/2
    drf_fast.certify_dataset(smoothed(), images(), labels(), tolerance=0.1, **few)
    assert "every image must abstain; 100 samples can" in capsys.readouterr().err


@pytest.mark.parametrize("alpha", [np.float32(0.25), torch.tensor(0.25)])
def test_an_alpha_of_numpy_or_torch_is_recorded_as_a_number(tmp_path, alpha):
    few = {**FEW, "alpha": alpha}
    drf_fast.certify_dataset(smoothed(), images(), labels(), out=tmp_path / "log.tsv", **few)
    assert json.loads((tmp_path / "log.json").read_text())["alpha"] == 0.25
