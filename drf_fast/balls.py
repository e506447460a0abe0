"""The adversary's constraint: HardBall is SmoothAdv, SoftBall is DRF.

DRF is not another loss but another adversary, which any loss can use: instead of projecting on a
ball of radius epsilon it prices the distance by a dual variable lambda, which training adapts until
the mean distance is epsilon.
"""

from __future__ import annotations

from typing import Any, TypeGuard, get_args

import torch
import torch.distributed

from drf_fast.config import reading
from drf_fast.ops import checks as check
from drf_fast.ops.checks import Scalar
from drf_fast.runtime import processes

FORMS = get_args(reading.Form)

BALLS = ("hard", *FORMS)


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

    Line 6 of the algorithm subtracts from x_adv the number lambda ||x_adv - x||, which is no image;
    Eq. 14 is a gradient step on the loss minus lambda ||x_adv - x||. With d = x_adv - x after an
    ascent step of size alpha, line 6 is read as

    * ``prox`` (default): d * max(0, 1 - alpha lambda / ||d||), the exact proximal step of
      alpha lambda ||d|| (eq. 14); lambda >= 1 means no perturbation when gradients are normalised
      per image.
    * ``shrink``: (1 - min(lambda, 1)) * d, line 6 with a difference instead of its norm.
    * ``excess``: d - min(lambda, 1) * max(0, 1 - epsilon / ||d||) * d, with d clamped before as
      well as after; lambda = 0 is unconstrained, lambda = 1 is HardBall (bit for bit on the CPU).
    * ``udr``: d - (lambda alpha / tau) * max(0, 1 - epsilon / ||d||) * d, without a cap: beyond
      lambda alpha / tau = 1 the far side of the ball, and of x. The soft ball of Bui et al. 2022
      with the L2 norm; theirs is tau = alpha, lambda_every = 10, lambda0 = 1.

    Line 14 is lambda <- max(0, lambda - lambda_lr * (epsilon - Delta)), Delta being the mean
    distance of the last ``kappa`` adversarial examples, over all processes. Changed at every
    update, lambda brings the mean distance to epsilon and forgets lambda0: from 1 it takes some
    2 / (lambda_lr * epsilon) updates if gradients are normalised per image. Changed once an epoch
    it does neither (docs/results.md has the rule that chose the default).

    Args:
        epsilon: the mean distance that lambda steers to, in pixel units, above 0.
        lambda0: lambda at the start, 0 or more.
        lambda_lr: learning rate of lambda, zeta in the paper, above 0.
        kappa: number of examples in Delta.
        form: "prox", "shrink", "excess" or "udr".
        lambda_every: the number of ``update`` calls between changes of lambda, or "epoch", then
            ``end_epoch`` changes it.
        tau: of "udr", in pixel units, above 0; None is the step size alpha.

    Attributes:
        lam: lambda, 0-dim float64 on the device of the distances.

    Raises:
        TypeError, ValueError: a parameter of the wrong type or out of range.
    """

    def __init__(
        self,
        epsilon: Scalar,
        lambda0: float = reading.LAMBDA0,
        lambda_lr: float = 0.02,
        kappa: int = 100,
        form: str = reading.FORM,
        lambda_every: int | str = reading.LAMBDA_EVERY,
        tau: float | None = None,
    ) -> None:
        check.scalar(epsilon, "epsilon", positive=True)
        self.epsilon = epsilon
        with torch.inference_mode(False):  # update writes to it, wherever the ball was made
            self._lam = check.scalar(lambda0, "lambda0", nonnegative=True).clone()
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
        self.tau = None if tau is None else float(check.scalar(tau, "tau", positive=True))
        if tau is not None and form != "udr":
            raise ValueError(f"tau belongs to form 'udr', got tau={tau!r:.60} with form={form!r}")
        self._updates = 0
        # The last kappa distances, oldest first; NaN where there is none yet.
        with torch.inference_mode(False):
            self._window = torch.full((self.kappa,), torch.nan, dtype=torch.float64, device="cpu")

    @property
    def lam(self) -> torch.Tensor:
        """lambda, 0-dim float64; a number or tensor that is assigned is copied into it."""
        return self._lam

    @lam.setter
    def lam(self, value: Scalar) -> None:
        new = check.scalar(value, "lam", nonnegative=True)
        if isinstance(value, torch.Tensor) and value.device != self._lam.device:
            with torch.inference_mode(False):
                self._lam = new.clone()
            return
        # In place, which a captured CUDA graph sees; and through a view: compiled code of
        # torch 2.13 loses writes to a 0-dim tensor itself.
        self._lam.view(1).copy_(new.view(1))

    def update(self, distance: torch.Tensor) -> None:
        """Include the distances (B,) of one batch in Delta; change lambda when it is due.

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
        """Change lambda if ``lambda_every`` is "epoch"; else do nothing."""
        if self.lambda_every == "epoch" and self._updates:
            self._change_lambda()

    def _change_lambda(self) -> None:
        known = ~self._window.isnan()
        total = torch.stack([self._window.nansum(), known.sum().double()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            with processes.collective():
                torch.distributed.all_reduce(total)
        # Not as_tensor, which would move the tensor to torch's default device.
        epsilon = self.epsilon
        if isinstance(epsilon, torch.Tensor):
            epsilon = epsilon.to(self.lam.device, torch.float64)
        excess = total[0] / total[1] - epsilon
        excess = torch.where(total[1] > 0, excess, 0.0)  # every distance was NaN: keep lambda
        self.lam = (self.lam + self.lambda_lr * excess).clamp(min=0.0)

    def _move(self, device: torch.device) -> None:
        if not self._lam.device == self._window.device == device:
            with torch.inference_mode(False):
                self._lam, self._window = self._lam.to(device), self._window.to(device)

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
        names = ("lam", "window", "updates")
        values = state if isinstance(state, dict) else {}
        lam, window, updates = (values.get(name) for name in names)
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
        self.lam = lam
        self._window.copy_(window)
        self._updates = updates

    def __repr__(self) -> str:
        return (
            f"SoftBall(epsilon={self.epsilon}, lam={float(self.lam):.4g}, "
            f"lambda_lr={self.lambda_lr}, kappa={self.kappa}, form={self.form!r}, "
            f"lambda_every={self.lambda_every!r}"
            f"{'' if self.tau is None else f', tau={self.tau}'})"
        )


def _is_float64(value: Any, shape: tuple[int, ...]) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64 and value.shape == shape


def check_ball(value: Any) -> None:
    """Check that ``value`` is None or has the attributes of a HardBall or SoftBall, in range."""
    if value is None:
        return
    if not all(hasattr(value, name) for name in ("form", "epsilon", "lam")):
        raise TypeError(f"ball must be a HardBall, a SoftBall or None, got {type(value).__name__}")
    check.choice(value.form, "form of the ball", BALLS)
    if value.lam is not None:
        # Refuses NaN too, which lambda would be if every distance had been NaN.
        check.scalar(value.lam, "lam of the ball", nonnegative=True)


def ball_arguments(
    ball: HardBall | SoftBall | None, step_size: torch.Tensor
) -> tuple[str, torch.Tensor, torch.Tensor]:
    """(form, epsilon, price) of a ball as ``schemas.adversary_step`` takes them.

    The price is lambda, or lambda alpha / tau for form "udr".
    """
    check_ball(ball)
    if ball is None:
        return "none", step_size, step_size  # epsilon and lambda are unused
    epsilon = check.scalar(ball.epsilon, "epsilon", nonnegative=True)
    if ball.lam is None:
        return ball.form, epsilon, epsilon  # the hard ball has no price
    tau = getattr(ball, "tau", None)
    if ball.form != "udr" or tau is None:
        return ball.form, epsilon, ball.lam
    # Not moved to lambda's device, which a CUDA graph could not capture: 0-dim tensors need not be.
    return ball.form, epsilon, ball.lam * step_size / tau
