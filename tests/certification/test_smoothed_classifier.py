"""SmoothedClassifier: CERTIFY and PREDICT against a plain transcription of Cohen et al. 2019."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from small_classifier import SEED, SIGMA, K, as_module, classifier, differences, images
from torch import nn

import drf_fast
from drf_fast.certification import votes

OPERATIONS = ("noisy_repeat", "vote", "clopper_pearson_lower", "certified_radius")
ABSTAIN = drf_fast.SmoothedClassifier.ABSTAIN


def plain_counts(x: torch.Tensor, image_id: int, n: int, stream: str) -> list[int]:
    """SAMPLEUNDERNOISE: one noisy copy after the other."""
    counts = [0] * K
    for i in range(n):
        noisy = drf_fast.noisy_repeat(
            x.unsqueeze(0),
            SIGMA,
            1,
            seed=SEED,
            image_ids=torch.tensor([image_id]),
            sample_offset=i,
            stream=stream,
        )
        row = differences(noisy)[0].tolist()
        counts[row.index(max(row))] += 1
    return counts


def plain_certify(x: torch.Tensor, image_id: int, n0: int, n: int, alpha: float) -> dict[str, Any]:
    selected = plain_counts(x, image_id, n0, "selection")
    best = selected.index(max(selected))
    count = plain_counts(x, image_id, n, "estimation")[best]
    p = 0.0 if count == 0 else float(scipy.stats.beta.ppf(alpha, count, n - count + 1))
    if p <= 0.5:
        return {"label": ABSTAIN, "radius": 0.0, "count": count, "p_lower": p}
    radius = SIGMA * float(scipy.stats.norm.ppf(p))
    return {"label": best, "radius": radius, "count": count, "p_lower": p}


def plain_predict(x: torch.Tensor, image_id: int, n: int, alpha: float) -> int:
    counts = plain_counts(x, image_id, n, "prediction")
    order = sorted(range(K), key=lambda k: -counts[k])
    first, second = counts[order[0]], counts[order[1]]
    p_value = scipy.stats.binomtest(first, first + second, 0.5).pvalue
    return ABSTAIN if p_value > alpha else order[0]


def test_certify_batch_is_the_transcription(backend):
    x, ids = images(), torch.tensor([4, 0, 77, 2, 9, 2**32 - 1])
    result = classifier().certify_batch(x, 20, 200, 0.01, 64, image_ids=ids)
    expected = [plain_certify(x[b], int(ids[b]), 20, 200, 0.01) for b in range(len(x))]
    assert result.label.dtype == result.count.dtype == torch.int64
    assert result.radius.dtype == result.p_lower.dtype == torch.float64
    assert result.label.tolist() == [e["label"] for e in expected]
    assert result.count.tolist() == [e["count"] for e in expected]
    assert result.p_lower.tolist() == pytest.approx([e["p_lower"] for e in expected], rel=1e-10)
    assert result.radius.tolist() == pytest.approx([e["radius"] for e in expected], rel=1e-9)
    labels = set(result.label.tolist())
    assert {0, 1, ABSTAIN} <= labels  # the case holds both outcomes


def test_certify_is_its_row_of_certify_batch(backend):
    x, ids = images(), torch.tensor([4, 0, 77, 2, 9, 5])
    smoothed = classifier()
    result = smoothed.certify_batch(x, 20, 200, 0.01, 50, image_ids=ids)
    for b in range(len(x)):
        label, radius = smoothed.certify(x[b], 20, 200, 0.01, 64, image_id=int(ids[b]))
        assert isinstance(label, int) and isinstance(radius, float)
        assert (label, radius) == (int(result.label[b]), float(result.radius[b]))


@pytest.mark.parametrize("n, alpha", [(1, 0.5), (1, 0.999), (7, 0.1), (60, 0.01), (60, 0.3)])
def test_predict_is_the_transcription(backend, n, alpha):
    x = images()
    got = [classifier().predict(x[b], n, alpha, 16, image_id=b) for b in range(len(x))]
    assert got == [plain_predict(x[b], b, n, alpha) for b in range(len(x))]


def counting_network(first: int, second: int) -> Any:
    """Votes for class 0 in ``first`` rows, then for class 1 in ``second``, whatever the input."""
    state = {"row": 0}

    def network(rows: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(rows), K)
        for i in range(len(rows)):
            logits[i, 0 if state["row"] % (first + second) < first else 1] = 1.0
            state["row"] += 1
        return logits

    return network


def test_predict_decides_as_the_exact_binomial_test_for_all_small_counts(backend):
    x = torch.zeros(1, 2, 2)
    for alpha in (0.001, 0.05, 0.3):
        for n in range(1, 15):
            for first in range((n + 1) // 2, n + 1):
                base = counting_network(first, n - first)
                label = classifier(base).predict(x, n, alpha, n)
                p_value = scipy.stats.binomtest(first, n, 0.5).pvalue
                assert label == (0 if p_value <= alpha else ABSTAIN), (first, n, alpha)


def test_certify_abstains_at_one_half_and_reaches_the_bound_at_n_of_n(backend):
    x = torch.zeros(1, 2, 2)
    label, radius = classifier(counting_network(1, 0)).certify(x, 10, 1000, 0.001, 100)
    p = 0.001 ** (1 / 1000)
    assert label == 0 and radius == pytest.approx(SIGMA * scipy.stats.norm.ppf(p), rel=1e-9)
    assert classifier(counting_network(1, 1)).certify(x, 10, 1000, 0.001, 100) == (ABSTAIN, 0.0)


@pytest.mark.filterwarnings("ignore:images hold values")  # a line, on which p is known
def test_the_certificate_holds_where_the_true_probability_is_known(backend):
    # Phi(gap / (sigma sqrt 2)) is the probability of class 0; 300 bounds at alpha = 5 %.
    x = torch.full((300, 1, 2, 4), 0.5)
    x[:, 0, 0, :2] = torch.tensor([0.8, 0.2])
    x[:, 0, 0, 2:] = torch.tensor([-60.0, 60.0])
    base = lambda rows: differences(rows) + torch.tensor([0.0, 0.0, 1.5])  # noqa: E731
    result = classifier(base).certify_batch(x, 10, 100, 0.05, 512)
    true = float(scipy.stats.norm.cdf(0.6 / (SIGMA * math.sqrt(2))))
    wrong = int((result.p_lower > true).sum())
    assert wrong <= scipy.stats.binom.ppf(0.999, 300, 0.05)


@pytest.mark.parametrize(
    "batch_size", [pytest.param(1, marks=pytest.mark.slow), 7, 64, 199, 200, 1000, 5000]
)
def test_counts_do_not_depend_on_the_batch_size(backend, batch_size):
    x = images()
    expected = classifier().certify_batch(x, 20, 200, 0.01, 100)
    got = classifier().certify_batch(x, 20, 200, 0.01, batch_size)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_no_forward_pass_is_larger_than_the_batch_size_and_all_rows_are_seen(backend):
    rows = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        rows.append(len(batch))
        return differences(batch)

    smoothed = classifier(as_module(network))
    smoothed.certify_batch(images(), 20, 130, 0.01, 60)  # measures and tests the network, once
    rows.clear()
    smoothed.certify_batch(images(), 20, 130, 0.01, 60)
    assert max(rows) == 60 and sum(rows) == 6 * (20 + 130)


def test_a_measured_batch_size_changes_no_result_and_is_measured_once(backend):
    calls = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        return differences(batch)

    smoothed, x = classifier(as_module(network)), images()
    first = smoothed.certify_batch(x, 20, 200, 0.01)
    size, measured = smoothed.batch_size(x), len(calls)
    assert size in calls
    second = smoothed.certify_batch(x, 20, 200, 0.01)
    assert sum(calls[measured:]) == 6 * 220
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_batch_sizes_are_tried_as_far_as_large_images_allow(monkeypatch):
    tried: list[int] = []
    monkeypatch.setattr(
        votes.NoisyVotes, "rate", lambda self, x, size: tried.append(size) or float(size)
    )
    smoothed = classifier(differences)
    assert smoothed.batch_size(torch.zeros(1, 3, 1024, 1024)) == 64 and tried == [64]
    assert smoothed.batch_size(torch.zeros(1, 3, 600, 600)) == 128
    assert smoothed.batch_size(images()) == 512 == max(tried)


def test_selection_estimation_and_prediction_never_share_noise(backend):
    seen: list[torch.Tensor] = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        seen.extend(batch.flatten(1).clone())
        return differences(batch)

    smoothed, x = classifier(as_module(network)), images()
    smoothed.certify_batch(x, 30, 50, 0.01, 32)  # measures and tests the network, once
    seen.clear()
    smoothed.certify_batch(x, 30, 50, 0.01, 32)
    for b in range(len(x)):
        smoothed.predict(x[b], 40, 0.01, 32, image_id=b)
    rows = {tuple(row.tolist()) for row in seen}
    assert len(rows) == len(seen) == 6 * (30 + 50 + 40)


def test_the_seed_and_the_image_id_name_the_certificate(backend):
    x = images()[2]
    names = ((SEED, 0), (SEED, 1), (SEED + 1, 0))
    first, again = (
        [
            classifier(seed=seed)
            .certify_batch(x[None], 20, 2000, 0.01, 512, image_ids=torch.tensor([image]))
            .count.item()
            for seed, image in names
        ]
        for _ in range(2)
    )
    assert first == again and len(set(first)) == 3


def test_the_global_generator_is_left_alone(backend):
    before = torch.get_rng_state()
    classifier().certify_batch(images(), 20, 200, 0.01, 64)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_a_network_that_emits_nan_abstains(backend, share):
    def network(rows: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(rows), K)
        logits[:, 1] = 1.0
        logits[: round(share * len(rows)), 2] = math.nan
        return logits

    x = images()
    result = classifier(network).certify_batch(x, 20, 200, 0.01, 20)
    assert result.label.tolist() == [ABSTAIN] * 6 and not result.radius.any()
    assert result.count.tolist() == [round((1 - share) * 200)] * 6 or share == 1.0
    if share == 1.0:
        assert classifier(network).predict(x[0], 50, 0.01, 20) == ABSTAIN


def test_rows_of_nan_are_said_once(capsys):
    def network(rows: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(rows), K)
        logits[: len(rows) // 2, 2] = math.nan
        return logits

    broken = classifier(network)
    broken.predict(images()[0], 50, 0.01, 20)
    said = capsys.readouterr().err
    assert "warning: 25 of 50 rows had NaN logits and vote for no class: is the range of" in said
    broken.certify_batch(images(), 20, 200, 0.01, 20)
    classifier(lambda rows: torch.ones(len(rows), K)).certify_batch(images(), 20, 200, 0.01, 20)
    assert "NaN" not in capsys.readouterr().err


@pytest.mark.parametrize("width", [2, 4])
def test_a_network_of_another_width_is_named(backend, width):
    base = lambda rows: torch.zeros(len(rows), width)  # noqa: E731
    for call in (
        lambda: classifier(base).certify(images()[0], 5, 5, 0.01, 4),
        lambda: classifier(base).predict(images()[0], 5, 0.01, 4),
    ):
        with pytest.raises(ValueError, match=rf"must return \(4, 3\) logits.*\(4, {width}\)"):
            call()


@pytest.mark.parametrize(
    "rows_of_logits",
    [
        lambda logits: logits.repeat_interleave(2, 0),  # crops: samples would count twice
        lambda logits: logits[::2],  # averages: votes would be of the wrong images
        lambda logits: logits[:1],
    ],
)
def test_a_network_of_another_number_of_rows_is_refused(backend, rows_of_logits):
    smoothed = classifier(lambda rows: rows_of_logits(differences(rows)))
    with pytest.raises(ValueError, match=r"must return \(10, 3\) logits.*each image has one row"):
        smoothed.certify_batch(images(), 10, 100, 0.01, 128)


@pytest.mark.parametrize("name", ["base", "num_classes", "sigma", "precision", "sound", "seed"])
def test_what_certificates_are_of_cannot_change(name):
    smoothed = classifier()
    before = getattr(smoothed, name)
    with pytest.raises(AttributeError, match=f"{name} of a SmoothedClassifier cannot change, got"):
        setattr(smoothed, name, 2.0)
    assert getattr(smoothed, name) == before


RUNS: list[tuple[bool, bool, torch.dtype]] = []


class Tracked(nn.Module):
    """A linear network with dropout that records the mode it is run in."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, K)
        self.drop = nn.Dropout(0.9)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        logits = self.drop(self.head(rows.flatten(1)))
        RUNS.append((self.training, torch.is_grad_enabled(), logits.dtype))
        return logits


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_runs_in_eval_mode_without_gradients_in_its_precision(
    backend, precision, dtype
):
    torch.manual_seed(1)
    RUNS.clear()
    base = Tracked().train()
    result = classifier(base, precision=precision).certify_batch(images(), 20, 200, 0.01, 64)
    # The network is traced, too, to be looked at: what passes then is no tensor.
    kinds = {run for run in RUNS if isinstance(run[2], torch.dtype)}
    # In bfloat16 its form is first compared with float32; the counts below tell which one votes.
    assert (False, False, dtype) in kinds and {run[:2] for run in kinds} == {(False, False)}
    assert base.training and base.drop.training and base.head.weight.requires_grad
    counts = [
        int(
            (
                base.head(
                    drf_fast.noisy_repeat(
                        images()[b : b + 1],
                        SIGMA,
                        200,
                        seed=SEED,
                        image_ids=torch.tensor([b]),
                        stream="estimation",
                    ).flatten(1)
                ).argmax(1)
                == result.label[b]
            ).sum()
        )
        for b in range(6)
        if result.label[b] != ABSTAIN
    ]
    certified = result.count[result.label != ABSTAIN]
    assert np.abs(np.array(counts) - certified.numpy()).max() <= (0 if precision == "fp32" else 4)
