"""START HERE: every public operation, checked and documented, one short function each.

An operation has the same name in every layer: ``functional.smooth_ce`` -> ``autograd.SmoothCE`` ->
``schemas.smooth_ce`` -> ``backends/*``.

Published code has the m noisy rows of an image in two orders. The losses take both:
``sample_dim=1`` (default), the rows of an image are consecutive (``repeat_interleave``);
``sample_dim=0``, sample-major (``torch.cat`` over m noisy batches). All other operations take and
return consecutive rows.

What may change from step to step (sigma, lam, step size, seed ...) is a number or a 0-dim tensor;
only the sigma of ``noisy_levels``, of which a table is made, is always a number.
Under ``torch.compile`` a tensor that changes never causes recompilation; a number does once, at its
first change (never with ``dynamic=True``), but a seed of 2^63 or more each time. A CUDA graph needs
tensors on its device, see examples/cuda_graph.py.
Inputs of half precision are taken and gradients returned in the caller's dtype; arithmetic is
float32, float64 for float64 input. Each operation can be differentiated once.
"""

from __future__ import annotations

import torch

from drf_fast.balls import HardBall, SoftBall, ball_arguments
from drf_fast.levels import noisy_levels as noisy_levels
from drf_fast.ops import autograd, noise_checks, schemas
from drf_fast.ops import checks as check
from drf_fast.ops.checks import Scalar
from drf_fast.runtime.randomness import STREAMS


def noise_key(seed: int, step: int) -> int:
    """The 64-bit seed of one training step: no two steps of one seed share noise.

    Steele, Lea, Flood 2014 (SplitMix64): the finalizer is a bijection of 64 bits, applied to
    ``finalizer(seed) + step * odd constant``. So for one seed all 2^64 steps have different keys;
    steps of two seeds share one by chance only, 2^-64 for each pair. No key is special: that of
    (0, 0) is 0.

    Args:
        seed: seed of the run, -2^63 <= seed < 2^64.
        step: 0, 1, 2 ... below 2^64.

    Returns:
        An int in [-2^63, 2^63), the 64 bits read as an int64: to be passed as ``seed``, or to
        ``torch.tensor``.

    Raises:
        TypeError, ValueError: not an int, or out of range.
    """
    base = _mix(noise_checks.signed_key(seed) % 2**64)
    step = check.count(step, "step", 0, 2**64 - 1)
    return noise_checks.signed_key(_mix((base + step * 0x9E3779B97F4A7C15) % 2**64))


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def noisy_repeat(
    x: torch.Tensor,
    sigma: Scalar,
    num_samples: int,
    *,
    seed: int | torch.Tensor | None = None,
    image_ids: torch.Tensor | None = None,
    sample_offset: int | torch.Tensor = 0,
    stream: str = "train",
) -> torch.Tensor:
    """m noisy copies of each image: row b*m + i is x_b + sigma * z, z ~ N(0, I).

    The noise is a function of (seed, stream, image id, sample_offset + i, pixel) alone: the same
    in any batch, order, process count and on any device, bit for bit.

    Args:
        x: (B, ...) images, floating; pixel units. The output has their dtype, and is contiguous or
            channels_last as they are.
        sigma: standard deviation in pixel units, above 0.
        num_samples: m, at least 1.
        seed: the 64-bit key. None draws a fresh one from torch's default generator.
        image_ids: (B,) int64 in [0, 2^32), the identity of each image, required with a seed.
        sample_offset: index of the first sample.
        stream: "train", "selection", "estimation" or "prediction": streams never share noise.

    Returns:
        (B*m, ...), image-major. The gradient with respect to x is the sum over the m copies.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or range; a seed without image_ids.

    Reference:
        Cohen, Rosenfeld, Kolter 2019, eq. 1; generator: Salmon et al. 2011.
    """
    check.untransformed("noisy_repeat")
    check.images(x)
    sigma = check.scalar(sigma, "sigma", positive=True)
    num_samples = check.count(num_samples, "num_samples")
    check.choice(stream, "stream", STREAMS)
    key, ids = noise_checks.noise_source(seed, image_ids, x.shape[0], x.device)
    offset = noise_checks.first_sample(sample_offset, num_samples, x.device)
    return autograd.noisy_repeat(x, sigma, key, ids, offset, num_samples, stream)


def smooth_ce(
    logits: torch.Tensor,
    target: torch.Tensor,
    num_samples: int | None = None,
    *,
    sample_dim: int = 1,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy of the soft-smoothed classifier: -log((1/m) sum_i softmax(logits_i)[y]).

    Computed in log space, so no clamp is needed and the gradient survives when every probability
    underflows. Where a logit of -inf makes all of them exactly 0 the loss is +inf and its
    gradient weighs the samples alike.

    Args:
        logits: (B*m, K) with ``num_samples``, or (B, m, K); with ``sample_dim=0`` (m, B, K).
        target: (B,) int64 labels in 0..K-1, one for each image.
        num_samples: m, for 2-D logits.
        sample_dim: 1, rows of an image consecutive; 0, sample-major.
        reduction: "mean" or "sum" over the images, or "none".

    Returns:
        The loss, 0-dim, or (B,) for "none"; float32, float64 for float64 logits.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; on the CPU also labels out of range
            and rows of logits with NaN, +inf or -inf only. On a GPU, where reading values would
            synchronise, these make the loss NaN unless DRF_FAST_DEBUG=1.

    Reference:
        Salman et al. 2019, section 3.2; Wang, Zhou, Liu 2024, eq. 7 and 8.
    """
    check.untransformed("smooth_ce")
    samples = check.logits_and_target(logits, target, num_samples, sample_dim)
    check.choice(reduction, "reduction", schemas.REDUCTIONS)
    return autograd.loss(autograd.SmoothCE, logits, target, samples, sample_dim, reduction)


def consistency_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    num_samples: int | None = None,
    *,
    lam: Scalar,
    eta: Scalar = 0.5,
    sample_dim: int = 1,
    reduction: str = "mean",
) -> torch.Tensor:
    """mean_i CE(F_i, y) + lam * mean_i KL(Fbar || F_i) + eta * H(Fbar), Fbar = mean_i F_i.

    F_i are the softmax probabilities of sample i; Fbar is not detached. With lam = eta = 0 it is
    the mean cross-entropy of the samples. A class that is impossible (a logit of -inf) in some
    samples but not in all makes the loss +inf.

    Args:
        logits, target, num_samples, sample_dim, reduction: as in ``smooth_ce``.
        lam: weight of the KL term, 0 or more.
        eta: weight of the entropy, 0 or more.

    Returns:
        The loss, 0-dim, or (B,) for "none"; float32, float64 for float64 logits.

    Raises:
        TypeError, ValueError: as ``smooth_ce``; lam or eta negative or not finite.

    Reference:
        Jeong, Shin 2020, eq. 9 to 11; Wang, Zhou, Liu 2024, eq. 11.
    """
    check.untransformed("consistency_loss")
    samples = check.logits_and_target(logits, target, num_samples, sample_dim)
    check.choice(reduction, "reduction", schemas.REDUCTIONS)
    lam = check.scalar(lam, "lam", nonnegative=True)
    eta = check.scalar(eta, "eta", nonnegative=True)
    return autograd.loss(
        autograd.ConsistencyLoss, logits, target, samples, sample_dim, lam, eta, reduction
    )


def macer_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    num_samples: int | None = None,
    *,
    sigma: Scalar,
    lam: Scalar,
    gamma: Scalar = 8.0,
    beta: Scalar = 16.0,
    sample_dim: int = 1,
) -> torch.Tensor:
    """Mean over the batch of -log(Fbar^y + 1e-10) + lam (sigma/2) (gamma - xi).

    xi = Phi^-1(p1) - Phi^-1(p2), with p1 >= p2 the largest entries of the mean over samples of
    softmax(beta * logits). The second term counts only where p1 belongs to the label and xi is
    finite and at most gamma.

    Args:
        logits, target, num_samples, sample_dim: as in ``smooth_ce``.
        sigma: noise level in pixel units, above 0.
        lam: weight of the robustness term, 0 or more.
        gamma: width of the hinge, in units of sigma.
        beta: inverse temperature, above 0.

    Returns:
        The loss, 0-dim; float32, float64 for float64 logits.

    Raises:
        TypeError, ValueError: as ``smooth_ce``; a parameter out of range.

    Reference:
        Zhai et al. 2020, eq. 9 and algorithm 1.
    """
    check.untransformed("macer_loss")
    samples = check.logits_and_target(logits, target, num_samples, sample_dim)
    sigma = check.scalar(sigma, "sigma", positive=True)
    lam = check.scalar(lam, "lam", nonnegative=True)
    gamma = check.scalar(gamma, "gamma", nonnegative=True)
    beta = check.scalar(beta, "beta", positive=True)
    return autograd.loss(
        autograd.MacerLoss, logits, target, samples, sample_dim, sigma, lam, gamma, beta
    )


def adversary_step(
    grad: torch.Tensor,
    x: torch.Tensor,
    x_adv: torch.Tensor,
    *,
    step_size: Scalar,
    ball: HardBall | SoftBall | None,
    grad_norm: str = "image",
    clamp: tuple[float, float] | None = (0, 1),
    sigma: Scalar,
    seed: int | torch.Tensor,
    image_ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One ascent step of the smoothed adversary, and the noisy batch for the next forward pass.

    Everything between two passes of the network, in this order: g = sum over the m copies of
    ``grad``; x_adv + step_size * g/||g||; ball and clamp (the clamp first, where the ball shrinks
    towards x: with HardBall, None and the form "excess"); distance; noise.

    Args:
        grad: (B*m, ...) gradient of the loss, summed over the batch, at the noisy copies.
        x: (B, ...) clean images, inside ``clamp``.
        x_adv: (B, ...) current adversarial images.
        step_size: alpha, in pixel units (L2), 0 or more.
        ball: HardBall, SoftBall, or None for unbounded ascent.
        grad_norm: "image", each image's gradient divided by its own norm; "batch", by the mean
            norm of the batch; "none". A zero gradient stays zero.
        clamp: the box of valid images, or None.
        sigma, seed, image_ids: determine the noise as in ``noisy_repeat`` (stream "train"); pass
            the same in every step of an attack. None is refused: it would be new noise each time.

    Returns:
        x_adv (B, ...), noisy (B*m, ...), distance (B,) = ||x_adv - x||_2.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or range.

    Reference:
        Salman et al. 2019; Wang, Zhou, Liu 2024, algorithm 1, lines 5 to 7.
    """
    check.untransformed("adversary_step")
    check.images_of_step(grad, x, x_adv)
    check.choice(grad_norm, "grad_norm", schemas.GRAD_NORMS)
    step_size = check.scalar(step_size, "step_size", nonnegative=True)
    sigma = check.scalar(sigma, "sigma", positive=True)
    form, epsilon, lam = ball_arguments(ball, step_size)
    key, ids = noise_checks.shared_source(seed, image_ids, x.shape[0], x.device)
    return schemas.adversary_step(
        grad.detach(),
        x.detach(),
        x_adv.detach(),
        step_size,
        epsilon,
        lam,
        sigma,
        key,
        ids,
        form,
        grad_norm,
        check.box(clamp),
    )


def vote(logits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Add the votes of the rows to the counts of their image, in place.

    A row votes for its largest logit, ties go to the lowest class. A row with a NaN votes for no
    class, which is conservative since n stays the same. No host synchronisation.

    Args:
        logits: (B*r, K) floating, the r rows of an image consecutive.
        counts: (B, K) int64, contiguous; changed in place.

    Returns:
        counts.

    Raises:
        TypeError, ValueError: wrong dtype, shape, layout or device.

    Reference:
        Cohen, Rosenfeld, Kolter 2019, SampleUnderNoise.
    """
    check.untransformed("vote")
    check.floating(logits, "logits")
    if check.is_tensor(counts, "counts").dtype != torch.int64:
        raise TypeError(f"counts must be int64, got {counts.dtype}; use counts.long()")
    if not counts.is_contiguous():
        raise ValueError(
            f"counts must be contiguous, got strides {counts.stride()} of shape "
            f"{tuple(counts.shape)}"
        )
    rows, images = logits.shape, counts.shape
    if (
        len(rows) != 2
        or len(images) != 2
        or rows[1] != images[1]
        or images[0] == 0
        or images[1] < 2
        or rows[0] % images[0]
    ):
        raise ValueError(
            "vote needs logits (B*r, K) and counts (B, K) with K at least 2, got "
            f"{tuple(logits.shape)} and {tuple(counts.shape)}"
        )
    check.same_device(logits.device, counts=counts)
    schemas.vote(logits.detach() if logits.requires_grad else logits, counts)
    return counts


def clopper_pearson_lower(
    successes: int | torch.Tensor, trials: int | torch.Tensor, alpha: Scalar
) -> torch.Tensor:
    """The one-sided Clopper-Pearson lower bound, never above its exact value.

    The p with P(Bin(trials, p) >= successes) = alpha; 0 for 0 successes, alpha^(1/n) for n of n.

    Args:
        successes: ints or int64 tensor, 0 <= successes <= trials.
        trials: int or int64 tensor, broadcast against successes, 1 to 2^53.
        alpha: error probability in (0, 1), one-sided; the double is taken as exact.

    Returns:
        float64 of the broadcast shape, below the true bound; for alpha from 1e-12 to 1 - 1e-12,
        where this is proved, by at most 1e-12 (1-p) + 2 ulp.

    Raises:
        TypeError, ValueError: counts outside 0..trials, alpha outside (0, 1). On a GPU, where
            reading values would synchronise, the CUDA core returns 0 for these, which is a lower
            bound of any probability, unless DRF_FAST_DEBUG=1.

    Reference:
        Clopper, Pearson 1934; Cohen, Rosenfeld, Kolter 2019, LowerConfBound.
    """
    check.untransformed("clopper_pearson_lower")
    successes, trials = check.counts(successes, trials)
    return schemas.clopper_pearson_lower(successes, trials, check.probability(alpha))


def certified_radius(
    successes: int | torch.Tensor, trials: int | torch.Tensor, *, sigma: Scalar, alpha: Scalar
) -> torch.Tensor:
    """L2 radius R = sigma * Phi^-1(p_lower), from the counts.

    Never above its exact value, which is proved for alpha from 1e-12 to 1/2. Computed from
    1 - p_lower, which does not lose digits where p_lower is near 1.

    Args:
        successes, trials, alpha: as in ``clopper_pearson_lower``.
        sigma: noise level in pixel units, above 0; the radius has the same units.

    Returns:
        float64 of the broadcast shape; 0 where p_lower <= 1/2 (CERTIFY abstains there).

    Raises:
        TypeError, ValueError: as ``clopper_pearson_lower``, on a GPU too; sigma not above 0.

    Reference:
        Cohen, Rosenfeld, Kolter 2019, theorem 1 and CERTIFY; Wang, Zhou, Liu 2024, eq. 6.
    """
    check.untransformed("certified_radius")
    successes, trials = check.counts(successes, trials)
    sigma = check.scalar(sigma, "sigma", positive=True)
    return schemas.certified_radius(successes, trials, sigma, check.probability(alpha))
