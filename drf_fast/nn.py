"""Loss modules, and the smoothed classifier with CERTIFY and PREDICT."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from drf_fast import _checks as check
from drf_fast import functional
from drf_fast._modules import frozen

_BATCH_SIZES = {"cpu": (64, 128, 256, 512), "cuda": (512, 1024, 2048, 4096)}


class SmoothCELoss(nn.Module):
    """``functional.smooth_ce`` as a module; arguments as there."""

    def __init__(
        self, num_samples: int | None = None, *, sample_dim: int = 1, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.num_samples, self.sample_dim, self.reduction = num_samples, sample_dim, reduction

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.smooth_ce(
            logits,
            target,
            self.num_samples,
            sample_dim=self.sample_dim,
            reduction=self.reduction,
        )


class ConsistencyLoss(nn.Module):
    """``functional.consistency_loss`` as a module; arguments as there."""

    def __init__(
        self,
        num_samples: int | None = None,
        *,
        lam: float,
        eta: float = 0.5,
        sample_dim: int = 1,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.num_samples, self.sample_dim, self.reduction = num_samples, sample_dim, reduction
        self.lam, self.eta = lam, eta

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.consistency_loss(
            logits,
            target,
            self.num_samples,
            lam=self.lam,
            eta=self.eta,
            sample_dim=self.sample_dim,
            reduction=self.reduction,
        )


class MacerLoss(nn.Module):
    """``functional.macer_loss`` as a module; arguments as there."""

    def __init__(
        self,
        num_samples: int | None = None,
        *,
        sigma: float,
        lam: float,
        gamma: float = 8.0,
        beta: float = 16.0,
        sample_dim: int = 1,
    ) -> None:
        super().__init__()
        self.num_samples, self.sample_dim = num_samples, sample_dim
        self.sigma, self.lam, self.gamma, self.beta = sigma, lam, gamma, beta

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.macer_loss(
            logits,
            target,
            self.num_samples,
            sigma=self.sigma,
            lam=self.lam,
            gamma=self.gamma,
            beta=self.beta,
            sample_dim=self.sample_dim,
        )


class CertifyResult(NamedTuple):
    """What CERTIFY proved for each of B images.

    Attributes:
        label: (B,) int64, the class, or -1 where it abstains.
        radius: (B,) float64, certified L2 radius in pixel units, 0 where it abstains.
        count: (B,) int64, votes of the chosen class among the n estimation samples.
        p_lower: (B,) float64, lower bound of that class's probability under noise.
    """

    label: torch.Tensor
    radius: torch.Tensor
    count: torch.Tensor
    p_lower: torch.Tensor


class SmoothedClassifier:
    """g(x) = the class that ``base`` predicts most often for x + N(0, sigma^2 I).

    The certificate is of ``base`` exactly as it is run here: eval mode, this precision.

    Args:
        base: network (N, ...) -> (N, K), taking images with noise; normalisation belongs inside.
        num_classes: K, at least 2.
        sigma: noise level in pixel units, above 0.
        precision: "fp32", or "bf16": the forward pass under bfloat16 autocast.
        compile: run ``base`` through ``torch.compile``.
        seed: names the noise together with the image id, so certificates can be reproduced.

    Raises:
        TypeError, ValueError: bad arguments.

    Reference:
        Cohen, Rosenfeld, Kolter 2019, section 3.2.
    """

    ABSTAIN = -1

    def __init__(
        self,
        base: Callable[[torch.Tensor], torch.Tensor],
        num_classes: int,
        sigma: float,
        *,
        precision: str = "fp32",
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        if not callable(base):
            raise TypeError(f"base must be a network, a callable, got {type(base).__name__}")
        self.base = base
        self.num_classes = check.count(num_classes, "num_classes", minimum=2)
        self.sigma = float(check.scalar(sigma, "sigma", positive=True))
        self.precision = check.choice(precision, "precision", ("fp32", "bf16"))
        self.seed = seed
        check.signed_key(seed)
        self._forward = torch.compile(base) if compile else base
        self._best_batch: dict[tuple[object, ...], int] = {}

    def certify(
        self,
        x: torch.Tensor,
        n0: int,
        n: int,
        alpha: float,
        batch_size: int | None = None,
        *,
        image_id: int = 0,
    ) -> tuple[int, float]:
        """CERTIFY one image (C, H, W): the class and its radius, or (ABSTAIN, 0.0).

        Args:
            x: one image in pixel units.
            n0: samples that choose the class.
            n: fresh samples that bound its probability.
            alpha: probability that the statement is wrong.
            batch_size: rows of a forward pass; None measures the best one once.
            image_id: names this image's noise; give every image its own.

        Raises:
            TypeError, ValueError: bad arguments, or a network of another width.
        """
        result = self.certify_batch(
            check.is_tensor(x, "x").unsqueeze(0),
            n0,
            n,
            alpha,
            batch_size,
            image_ids=torch.tensor([image_id], device=x.device),
        )
        return int(result.label[0]), float(result.radius[0])

    def certify_batch(
        self,
        x: torch.Tensor,
        n0: int,
        n: int,
        alpha: float,
        batch_size: int | None = None,
        *,
        image_ids: torch.Tensor | None = None,
    ) -> CertifyResult:
        """CERTIFY B images (B, C, H, W); arguments as ``certify``, results on the CPU.

        ``image_ids`` (B,) int64 name the noise of each image; None is 0..B-1, which is right for
        one call only: two calls would reuse the noise, so pass data set indices.
        """
        check.count(n0, "n0")
        check.count(n, "n")
        check.probability(alpha)
        selected = self._counts(x, n0, "selection", batch_size, image_ids)
        choice = selected.argmax(1)  # ties to the lowest class
        estimated = self._counts(x, n, "estimation", batch_size, image_ids)
        count = estimated.gather(1, choice.unsqueeze(1)).squeeze(1).cpu()
        p_lower = functional.clopper_pearson_lower(count, n, alpha)
        radius = functional.certified_radius(count, n, sigma=self.sigma, alpha=alpha)
        label = torch.where(p_lower > 0.5, choice.cpu(), self.ABSTAIN)
        return CertifyResult(label, radius, count, p_lower)

    def predict(
        self,
        x: torch.Tensor,
        n: int,
        alpha: float,
        batch_size: int | None = None,
        *,
        image_id: int = 0,
    ) -> int:
        """PREDICT one image (C, H, W): g(x) with error probability alpha, or ABSTAIN.

        The two-sided binomial test of the two largest counts at p = 1/2. It rejects where the
        one-sided Clopper-Pearson bound at alpha/2 is above 1/2, which is how it is computed.

        Raises:
            TypeError, ValueError: bad arguments, or a network of another width.

        Reference:
            Cohen, Rosenfeld, Kolter 2019, PREDICT; Hung, Fithian 2019.
        """
        check.count(n, "n")
        check.probability(alpha)
        ids = torch.tensor([image_id], device=check.is_tensor(x, "x").device)
        counts = self._counts(x.unsqueeze(0), n, "prediction", batch_size, ids)[0].cpu()
        top, classes = counts.topk(2)
        if int(top.sum()) == 0:
            return self.ABSTAIN
        bound = functional.clopper_pearson_lower(int(top[0]), int(top.sum()), alpha / 2)
        return int(classes[0]) if float(bound) > 0.5 else self.ABSTAIN

    def _counts(
        self,
        x: torch.Tensor,
        num: int,
        stream: str,
        batch_size: int | None,
        image_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """Votes of ``num`` noisy copies of each image: int64 (B, K) on the device of x."""
        check.images(x)
        if image_ids is None:
            image_ids = torch.arange(x.shape[0], device=x.device)
        check.noise_source(self.seed, image_ids, x.shape[0], x.device)
        size = self.batch_size(x) if batch_size is None else check.count(batch_size, "batch_size")
        with frozen(self.base):
            return self._counts_frozen(x, num, stream, size, image_ids)

    def _counts_frozen(
        self,
        x: torch.Tensor,
        num: int,
        stream: str,
        size: int,
        image_ids: torch.Tensor,
    ) -> torch.Tensor:
        counts = torch.zeros((x.shape[0], self.num_classes), dtype=torch.int64, device=x.device)
        together = max(1, size // num)  # images of a forward pass
        for first in range(0, x.shape[0], together):
            part = slice(first, first + together)
            for offset in range(0, num, size):
                noisy = functional.noisy_repeat(
                    x[part],
                    self.sigma,
                    min(size, num - offset),
                    seed=self.seed,
                    image_ids=image_ids[part],
                    sample_offset=offset,
                    stream=stream,
                )
                functional.vote(self._logits(noisy), counts[part])
        return counts

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        autocast = torch.autocast(
            rows.device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        with torch.no_grad(), autocast:
            logits = self._forward(rows)
        if not isinstance(logits, torch.Tensor):
            raise TypeError(
                f"the network must return a tensor of logits, got {type(logits).__name__}"
            )
        if logits.dim() != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the network must return ({rows.shape[0]}, {self.num_classes}) logits, got shape "
                f"{tuple(logits.shape)}; check num_classes"
            )
        return logits

    def batch_size(self, x: torch.Tensor) -> int:
        """The rows of a forward pass with the highest rate, measured once for a kind of input."""
        key = (tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._best_batch:
            sizes = _BATCH_SIZES.get(x.device.type, _BATCH_SIZES["cuda"])
            with frozen(self.base):
                self._best_batch[key] = max(sizes, key=lambda size: self._rate(x, size))
        return self._best_batch[key]

    def _rate(self, x: torch.Tensor, size: int) -> float:
        """Rows per second of the forward pass at a batch of ``size``: the best of three."""
        rows = torch.zeros_like(x[:1]).expand(size, *x.shape[1:]).contiguous()
        best = float("inf")
        for repeat in range(4):
            start = time.perf_counter()
            self._logits(rows)
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            if repeat:  # the first one warms up
                best = min(best, time.perf_counter() - start)
        return size / best
