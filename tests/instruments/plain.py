"""The mathematics of training, written plainly, image by image: what tests compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import drf_fast
from drf_fast.training.methods.common import Batch, MethodOptions
from drf_fast.training.methods.smoothmix import _mixing_weight

# ---------------------------------------------------------------------------------- the adversary


def step(
    gradients: torch.Tensor,
    x: torch.Tensor,
    x_adv: torch.Tensor,
    ball: Any,
    step_size: float,
    grad_norm: str = "image",
    clamp: tuple[float, float] | None = (0, 1),
) -> torch.Tensor:
    """One step of each image of x_adv along its gradient, within the ball around that of x."""
    norms = [float((g * g).sum().sqrt()) for g in gradients]
    low, high = clamp or (-math.inf, math.inf)
    form = "none" if ball is None else ball.form
    lam = float(ball.lam) if isinstance(ball, drf_fast.SoftBall) else 0.0
    epsilon = math.nan if ball is None else float(ball.epsilon)
    images = []
    for origin, present, gradient, norm in zip(x, x_adv, gradients, norms, strict=True):
        divisor = {"image": norm, "batch": sum(norms) / len(norms), "none": 1.0}[grad_norm]
        moved = present + (step_size * gradient / divisor if divisor > 0 else 0.0)
        if form in ("hard", "excess", "none"):
            moved = moved.clamp(low, high)
        d = moved - origin
        length = float((d * d).sum().sqrt())
        if form == "hard" and length > epsilon:
            d = d * (epsilon / length)
        elif form == "prox":
            d = d * max(0.0, 1 - step_size * lam / length) if length > 0 else d
        elif form == "excess" and length > 0:
            d = d - min(lam, 1.0) * max(0.0, 1 - epsilon / length) * d
        elif form == "shrink":
            d = (1 - min(lam, 1.0)) * d
        elif form == "udr" and length > 0:
            tau = getattr(ball, "tau", None) or step_size
            d = d - lam * step_size / tau * max(0.0, 1 - epsilon / length) * d
        images.append((origin + d).clamp(low, high))
    return torch.stack(images)


def ascend(
    net: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    target: torch.Tensor,
    copies: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    ball: Any,
    step_size: float,
    grad_norm: str = "image",
) -> torch.Tensor:
    """x after T steps up -log of the mean probability of its (B, m, ...) copies."""
    x_adv = x
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        rows = copies(leaf)
        probability = net(rows.flatten(0, 1)).softmax(1).unflatten(0, rows.shape[:2]).mean(1)
        loss = -probability[range(len(x)), target].log().sum()
        (gradients,) = torch.autograd.grad(loss, leaf)
        x_adv = step(gradients, x, x_adv, ball, step_size, grad_norm)
    return x_adv.detach()


# ------------------------------------------------------------------------------------- the losses


def noisy(x: torch.Tensor, batch: Batch, o: MethodOptions) -> torch.Tensor:
    """(B, m, ...) copies of x under the noise of the batch."""
    copies = drf_fast.noisy_repeat(x, o.sigma, o.num_samples, **batch.noise)
    return copies.unflatten(0, (len(x), o.num_samples))


def adversarial(net: Any, batch: Batch, o: MethodOptions, ball: Any) -> Batch:
    """The batch with adversarial images; the batch itself without a ball."""
    if ball is None:
        return batch

    def copies(x: torch.Tensor) -> torch.Tensor:
        return noisy(x, batch, o)

    size = 2 * float(ball.epsilon) / o.steps
    x = ascend(net, batch.x, batch.target, copies, o.steps, ball, size, o.grad_norm)
    return Batch(x, batch.target, batch.key, batch.image_ids, batch.smoothed)


def cross_entropy(logits: torch.Tensor, label: int) -> torch.Tensor:
    return torch.logsumexp(logits, 0) - logits[label]


def smoothadv(net: Any, batch: Batch, o: MethodOptions, ball: Any = None) -> torch.Tensor:
    """Mean cross-entropy of the copies; Gaussian training without a ball."""
    batch = adversarial(net, batch, o, ball)
    rows = [
        cross_entropy(row, y)
        for copies, y in zip(noisy(batch.x, batch, o), batch.target.tolist(), strict=True)
        for row in net(copies)
    ]
    return torch.stack(rows).mean()


def stability(net: Any, batch: Batch, o: MethodOptions, ball: Any = None) -> torch.Tensor:
    images = []
    for x, y, copies in zip(batch.x, batch.target.tolist(), noisy(batch.x, batch, o), strict=True):
        clean = net(x[None])[0]
        p = clean.exp() / clean.exp().sum()
        cross = [-(p * (row - torch.logsumexp(row, 0))).sum() for row in net(copies)]
        images.append(cross_entropy(clean, y) + o.stability_lam * torch.stack(cross).mean())
    return torch.stack(images).mean()


def macer(net: Any, batch: Batch, o: MethodOptions, ball: Any = None) -> torch.Tensor:
    images = []
    for copies, y in zip(noisy(batch.x, batch, o), batch.target.tolist(), strict=True):
        logits = net(copies)
        images.append(-torch.log(logits.softmax(1).mean(0)[y] + 1e-10))
        p, classes = (o.macer_beta * logits).softmax(1).mean(0).topk(2)
        if int(classes[0]) != y:
            continue
        xi = torch.special.ndtri(p[0]) - torch.special.ndtri(p[1])
        if math.isfinite(xi.item()) and abs(xi.item()) <= o.macer_gamma:
            images.append(o.macer_lam * o.sigma / 2 * (o.macer_gamma - xi))
    return torch.stack(images).sum() / len(batch.x)


def smoothmix(net: Any, batch: Batch, o: MethodOptions, ball: Any = None) -> torch.Tensor:
    """Without DRF: the ascent is unbounded."""

    def ascent(steps: int) -> torch.Tensor:
        def copies(x: torch.Tensor) -> torch.Tensor:
            return noisy(x, batch, o)

        return ascend(net, batch.x, batch.target, copies, steps, None, o.mix_alpha)

    far, near = ascent(o.steps), batch.x
    if o.mix_step:
        near = ascent(1)
        for b, x in enumerate(batch.x):
            shift = near[b] - x
            near[b] = x + shift * min(1.0, o.mix_radius / float(shift.norm()))
        near = near.clamp(0, 1)
    u = _mixing_weight(batch, o.num_samples).to(near.dtype)
    images = []
    for b, y in enumerate(batch.target.tolist()):
        logits = net(noisy(near, batch, o)[b])
        mean = logits.softmax(1).mean(0)
        mix = (1 - u[b]) * near + u[b] * far  # of all images; b's is used
        goal = (1 - u[b]) * mean + u[b] / len(mean)
        rows = []
        for row, mixed in zip(logits, net(noisy(mix, batch, o)[b]), strict=True):
            rows.append(cross_entropy(row, y))
            if int(mean.argmax()) == y:
                log_q = mixed - torch.logsumexp(mixed, 0)
                rows[-1] = rows[-1] + o.mix_eta * (goal * (goal.log() - log_q)).sum()
        images.append(torch.stack(rows).mean())
    return torch.stack(images).mean()


def consistency(net: Any, batch: Batch, o: MethodOptions, ball: Any = None) -> torch.Tensor:
    batch = adversarial(net, batch, o, ball)
    images = []
    for copies in noisy(batch.x, batch, o):
        p = net(copies).softmax(1)
        mean = p.mean(0)
        divergence = (mean * (mean.log() - p.log())).sum(1).mean()
        entropy = -(mean * mean.log()).sum()
        images.append(o.consistency_lam * divergence + o.consistency_eta * entropy)
    return smoothadv(net, batch, o) + torch.stack(images).mean()
