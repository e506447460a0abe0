"""The smoothed adversary and its balls: HardBall is SmoothAdv, SoftBall is DRF.

DRF is not another loss but another adversary, which any loss can use: instead of projecting on a
ball of radius epsilon it prices the distance by a dual variable lambda, which training adapts until
the mean distance is epsilon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.distributed
from torch import nn

from drf_fast import _checks as check
from drf_fast import autograd, functional, ops
from drf_fast._checks import Scalar
from drf_fast._modules import frozen

FORMS = ("prox", "excess", "shrink")


class HardBall:
    """Projection on ||x_adv - x||_2 <= epsilon (Salman et al. 2019).

    Args:
        epsilon: radius in pixel units, above 0; may be assigned anew, for a warm-up.

    Raises:
        TypeError, ValueError: epsilon is no number above 0.
    """

    form = "hard"
    lam = None

    def __init__(self, epsilon: Scalar) -> None:
        check.scalar(epsilon, "epsilon", positive=True)
        self.epsilon = epsilon

    def __repr__(self) -> str:
        return f"HardBall(epsilon={self.epsilon})"


class SoftBall:
    """DRF's soft constraint: distance is priced by lambda >= 0 (Wang, Zhou, Liu 2024, alg. 1).

    With d = x_adv - x after an ascent step of size alpha, line 6 of the algorithm is read as

    * ``excess`` (default): d - min(lambda, 1) * max(0, 1 - epsilon / ||d||) * d; lambda = 0 is
      unconstrained, lambda = 1 is HardBall bit for bit, for which d is clamped before as well as
      after (the form of Bui et al. 2022).
    * ``prox``: d * max(0, 1 - alpha lambda / ||d||), the proximal step of alpha lambda ||d||;
      lambda >= 1 means no perturbation when gradients are normalised per image.
    * ``shrink``: (1 - min(lambda, 1)) * d.

    The defaults are the reading that shows most of the paper's claims (docs/results.md); there the
    paper's lambda0 = 1 is the hard ball, and 0.5 is where DRF differs from it.

    Line 14 is lambda <- max(0, lambda - lambda_lr * (epsilon - Delta)), Delta being the mean
    distance of the last ``kappa`` adversarial examples, over all processes.

    Args:
        epsilon: the mean distance that lambda steers to, in pixel units, above 0.
        lambda0: lambda at the start, 0 or more.
        lambda_lr: zeta, above 0.
        kappa: number of examples in Delta.
        form: "excess", "prox" or "shrink".
        lambda_every: "epoch", then ``end_epoch`` changes lambda, or the number of ``update`` calls
            between changes.

    Attributes:
        lam: lambda, 0-dim float64 on the device of the distances.

    Raises:
        TypeError, ValueError: a parameter of the wrong type or out of range.
    """

    def __init__(
        self,
        epsilon: Scalar,
        lambda0: float = 0.5,
        lambda_lr: float = 0.02,
        kappa: int = 100,
        form: str = "excess",
        lambda_every: int | str = "epoch",
    ) -> None:
        check.scalar(epsilon, "epsilon", positive=True)
        self.epsilon = epsilon
        self.lam = check.scalar(lambda0, "lambda0", nonnegative=True).clone()
        self.lambda_lr = float(check.scalar(lambda_lr, "lambda_lr", positive=True))
        self.kappa = check.count(kappa, "kappa")
        self.form = check.choice(form, "form", FORMS)
        if isinstance(lambda_every, str) and lambda_every != "epoch":
            raise ValueError(
                f"lambda_every must be a number of updates or 'epoch', got {lambda_every!r:.60}"
            )
        self.lambda_every = (
            lambda_every
            if isinstance(lambda_every, str)
            else check.count(lambda_every, "lambda_every")
        )
        self._updates = 0
        # The last kappa distances, oldest first; NaN where there is none yet.
        self._window = torch.full((self.kappa,), torch.nan, dtype=torch.float64)

    def update(self, distance: torch.Tensor) -> None:
        """Take the distances (B,) of one batch into Delta; change lambda when it is due.

        Never synchronises with the device. A NaN distance is left out. In a distributed job every
        process has to call it.

        Raises:
            TypeError, ValueError: distance is no (B,) floating tensor.
        """
        check.floating(distance, "distance")
        if distance.dim() != 1 or distance.shape[0] == 0:
            raise ValueError(f"distance must be (B,), B >= 1, got shape {tuple(distance.shape)}")
        self._move(distance.device)
        recent = distance.detach().to(torch.float64)[-self.kappa :]
        self._window.copy_(torch.cat([self._window[recent.shape[0] :], recent]))
        self._updates += 1
        if isinstance(self.lambda_every, int) and self._updates % self.lambda_every == 0:
            self._change_lambda()

    def end_epoch(self) -> None:
        """Change lambda if ``lambda_every`` is "epoch"; else nothing."""
        if self.lambda_every == "epoch" and self._updates:
            self._change_lambda()

    def _change_lambda(self) -> None:
        known = ~self._window.isnan()
        total = torch.stack([self._window.nansum(), known.sum().double()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        # Not as_tensor: under a default device that would move a tensor of another device.
        epsilon = self.epsilon
        if isinstance(epsilon, torch.Tensor):
            epsilon = epsilon.to(self.lam.device, torch.float64)
        excess = total[0] / total[1] - epsilon
        excess = torch.where(total[1] > 0, excess, 0.0)  # every distance was NaN: nothing is known
        changed = (self.lam + self.lambda_lr * excess).clamp(min=0.0)
        # Through a view: what is written to a 0-dim tensor itself, torch 2.13 loses when compiled.
        self.lam.view(1).copy_(changed.view(1))

    def _move(self, device: torch.device) -> None:
        if self.lam.device != device:
            self.lam = self.lam.to(device)
            self._window = self._window.to(device)

    def state_dict(self) -> dict[str, Any]:
        """lambda, the window of distances and the count of updates, for a checkpoint."""
        # Copies: update changes lambda and the window in place.
        return {
            "lam": self.lam.clone(),
            "window": self._window.clone(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``.

        Raises:
            ValueError: the state belongs to another kappa, lacks an entry or holds impossible
                values.
        """
        lam, window, updates = (state.get(name) for name in ("lam", "window", "updates"))
        if not (
            _is_float64(lam, ())
            and bool(lam.isfinite() & (lam >= 0))
            and _is_float64(window, (self.kappa,))
            and isinstance(updates, int)
            and updates >= 0
        ):
            raise ValueError(
                f"expected the state of a SoftBall with kappa={self.kappa}, got lam={lam!r:.60}, a "
                f"window of shape {getattr(window, 'shape', None)} and updates={updates!r:.60}; "
                "create the ball with the parameters it was saved with"
            )
        self.lam = lam.clone()
        self._window = window.clone()
        self._updates = updates

    def __repr__(self) -> str:
        return (
            f"SoftBall(epsilon={self.epsilon}, lam={float(self.lam):.4g}, "
            f"lambda_lr={self.lambda_lr}, kappa={self.kappa}, form={self.form!r}, "
            f"lambda_every={self.lambda_every!r})"
        )


def _is_float64(value: Any, shape: tuple[int, ...]) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64 and value.shape == shape


@dataclass(frozen=True)
class AttackResult:
    """What ``attack`` found.

    Attributes:
        x: (B, ...) adversarial images.
        noisy: (B*m, ...) their noisy copies, image-major, the training batch.
        distance: (B,) ||x - clean||_2, for ``SoftBall.update``.
    """

    x: torch.Tensor
    noisy: torch.Tensor
    distance: torch.Tensor


def attack(
    model: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    target: torch.Tensor,
    *,
    sigma: Scalar,
    num_samples: int,
    steps: int,
    ball: HardBall | SoftBall | None,
    step_size: Scalar | None = None,
    grad_norm: str = "image",
    clamp: tuple[float, float] | None = (0, 1),
    seed: int | torch.Tensor | None = None,
    image_ids: torch.Tensor | None = None,
) -> AttackResult:
    """Ascend ``smooth_ce`` of the noisy copies from x, under one fixed draw of the noise.

    Each of the T steps is one forward and backward pass of the network, in eval mode and with
    frozen parameters, and two operations of ours; the last one already writes the training batch.
    ``torch.compile(fullgraph=True)`` makes one graph of it, with no option of Dynamo to be set.

    Args:
        model: network (B*m, ...) -> (B*m, K). Of a DistributedDataParallel pass ``model.module``.
        x: (B, ...) clean images inside ``clamp``.
        target: (B,) int64 labels.
        sigma: noise level in pixel units.
        num_samples: m, noise samples of an image, the same in every step.
        steps: T, at least 1.
        ball: HardBall (SmoothAdv), SoftBall (DRF), or None: unbounded (SmoothMix).
        step_size: alpha in pixel units; None is 2 epsilon / T, or 1 without a ball.
        grad_norm, clamp: as in ``adversary_step``.
        seed, image_ids: name the noise as in ``noisy_repeat``.

    Returns:
        AttackResult with detached x, noisy, distance.

    Raises:
        TypeError, ValueError: bad arguments; x outside ``clamp`` (values are read on the CPU only).

    Reference:
        Salman et al. 2019, eq. 6; Wang, Zhou, Liu 2024, algorithm 1.
    """
    check.untransformed("attack")
    if torch.jit.is_tracing() or check.exporting():  # type: ignore[reportPrivateImportUsage]
        raise RuntimeError(
            "attack cannot be recorded by torch.jit.trace or torch.export, which keep no gradient "
            "that is taken inside; record the network alone, or use torch.compile"
        )
    check.images(x)
    check.count(steps, "steps")
    wrapped = getattr(model, "_orig_mod", model)  # what torch.compile was given
    if isinstance(wrapped, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ValueError(
            f"attack got a {type(wrapped).__name__}, whose hooks must not run during an attack; "
            "pass model.module"
        )
    check.ball(ball)
    check.choice(grad_norm, "grad_norm", ops.GRAD_NORMS)
    box = check.box(clamp)
    if box is not None and x.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (float(value) for value in torch.aminmax(x.detach()))
        if not (box[0] <= low and high <= box[1]):
            raise ValueError(
                f"images must lie inside clamp={clamp}, got values from {low:.6g} to {high:.6g}; "
                "scale them (x / 255) and normalise inside the model, or pass another clamp"
            )
    if step_size is None:
        step_size = 1.0 if ball is None else 2.0 * ball.epsilon / steps
    # As tensors from here on, so that the steps have less to check.
    step_size = check.scalar(step_size, "step_size", nonnegative=True)
    sigma = check.scalar(sigma, "sigma", positive=True)
    key, ids = check.noise_source(seed, image_ids, x.shape[0], x.device)
    form, epsilon, lam = functional.ball_arguments(ball, step_size)

    x = x_adv = x.detach()
    noisy = functional.noisy_repeat(x, sigma, num_samples, seed=key, image_ids=ids)
    distance = x_adv.new_zeros(x.shape[0])

    with frozen(model):
        for _ in range(steps):
            # The raw operation: what adversary_step checks has been checked, once for all steps.
            x_adv, noisy, distance = ops.adversary_step(
                _gradient(model, noisy, target, num_samples),
                x,
                x_adv,
                step_size,
                epsilon,
                lam,
                sigma,
                key,
                ids,
                form,
                grad_norm,
                box,
            )
    return AttackResult(x_adv, noisy, distance)


def _gradient(
    model: Callable[[torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    target: torch.Tensor,
    num_samples: int,
) -> torch.Tensor:
    """The gradient of the sum of ``smooth_ce`` at the noisy copies; in compiled code too."""
    if torch.compiler.is_dynamo_compiling():

        def total(rows: torch.Tensor) -> torch.Tensor:
            return functional.smooth_ce(model(rows), target, num_samples, reduction="sum")

        # torch.compile captures this one whole, and torch.autograd.grad in recent versions only,
        # on request. Without no_grad the result would have a graph to the parameters.
        with torch.no_grad():
            return torch.func.grad(total)(noisy)
    with torch.enable_grad():
        logits = model(noisy.requires_grad_())
    check.logits_and_target(logits, target, num_samples, 1)
    # Nobody asks for the loss: no sum of it, and no autograd.Function for its gradient.
    images = autograd.images_first(logits.detach(), num_samples, 1)
    _, slope = ops.smooth_ce(images, target, "none", True)
    return torch.autograd.grad(logits, noisy, slope.reshape(logits.shape))[0]
