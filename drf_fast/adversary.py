"""``attack``: gradient ascent on ``smooth_ce`` from each image, within one of ``balls``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from drf_fast import functional
from drf_fast.balls import HardBall, SoftBall, ball_arguments, check_ball
from drf_fast.ops import autograd, noise_checks, schemas
from drf_fast.ops import checks as check
from drf_fast.ops.checks import Scalar
from drf_fast.runtime import units
from drf_fast.runtime.frozen import frozen
from drf_fast.runtime.logits import logits_of
from drf_fast.runtime.tensors import per_image
from drf_fast.runtime.values import may_read


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
    start: torch.Tensor | None = None,
) -> AttackResult:
    """Gradient ascent on ``smooth_ce`` of the noisy copies from x, under one fixed draw of noise.

    Each of the T steps is one forward and backward pass of the network, in eval mode and with
    frozen parameters, and two operations of ours; the last one already writes the training batch.
    ``torch.compile(fullgraph=True)`` captures it in one graph, without any option of Dynamo.

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
        start: images like x where the ascent begins, a random start for example; None is x.

    Returns:
        AttackResult with detached x, noisy, distance.

    Raises:
        TypeError, ValueError: bad arguments; x outside ``clamp`` (on a GPU, where reading values
            would synchronise, with DRF_FAST_DEBUG=1 only).

    Reference:
        Salman et al. 2019, eq. 6; Wang, Zhou, Liu 2024, algorithm 1.
    """
    check.untransformed("attack")
    if torch.jit.is_tracing() or check.exporting():  # type: ignore[reportPrivateImportUsage]
        raise RuntimeError(
            "attack cannot be recorded by torch.jit.trace or torch.export, which keep no gradient "
            "that is taken inside; record the network alone, or use torch.compile"
        )
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        with torch.inference_mode(False):  # gradients cannot be taken in it
            return attack(
                model, x, target, sigma=sigma, num_samples=num_samples, steps=steps, ball=ball,
                step_size=step_size, grad_norm=grad_norm, clamp=clamp, seed=seed,
                image_ids=image_ids, start=start,
            )  # fmt: skip
    check.images(x)
    check.labels(target, x.shape[0], check.count(num_samples, "num_samples"))
    check.same_device(x.device, target=target)
    check.count(steps, "steps")
    _refuse_wrapped(model)
    check_ball(ball)
    check.choice(grad_norm, "grad_norm", schemas.GRAD_NORMS)
    box = check.box(clamp)
    if box is not None and may_read(x.device):
        low, high = (float(value) for value in torch.aminmax(x.detach()))
        # Rounding is allowed for: a black pixel normalised and denormalised again is -3e-8.
        tolerance = 1e-5 * (box[1] - box[0])
        if not (box[0] - tolerance <= low and high <= box[1] + tolerance):
            raise ValueError(
                f"images must lie inside clamp={clamp}, got values from {low!r} to {high!r}; "
                "scale them (x / 255) and normalise inside the model, or pass another clamp"
            )
        if not (box[0] <= low and high <= box[1]):
            x = x.clamp(*box)
    if step_size is None:
        step_size = 1.0 if ball is None else 2.0 * ball.epsilon / steps
    # Tensors from here on, which cost less to check in every step.
    step_size = check.scalar(step_size, "step_size", nonnegative=True)
    sigma = check.scalar(sigma, "sigma", positive=True)
    if box is not None and not torch.compiler.is_compiling():
        _warn_of_other_units(sigma, None if ball is None else ball.epsilon, box, x[0].numel())
    key, ids = noise_checks.noise_source(seed, image_ids, x.shape[0], x.device)
    form, epsilon, lam = ball_arguments(ball, step_size)

    x = x.detach()
    x_adv = x if start is None else _check_start(start, x)
    noisy = functional.noisy_repeat(x_adv, sigma, num_samples, seed=key, image_ids=ids)
    distance = x_adv.new_zeros(x.shape[0])

    with frozen(model):
        for _ in range(steps):
            # The raw operation: the checks of adversary_step were made above, once for all steps.
            x_adv, noisy, distance = schemas.adversary_step(
                _gradient(model, noisy, target, num_samples, grad_norm),
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


def _refuse_wrapped(model: Any) -> None:
    """Refuse a network behind a wrapper, at any depth, whose hooks an attack would run."""
    wrapped = getattr(model, "_orig_mod", model)  # the module that torch.compile has wrapped
    if isinstance(wrapped, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ValueError(
            f"attack got a {type(wrapped).__name__}, whose hooks must not run during an attack; "
            "pass model.module"
        )
    if torch.compiler.is_compiling() or not isinstance(model, nn.Module):
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"attack got a network with a DistributedDataParallel inside ({name}), whose hooks "
                "must not run during an attack; pass the same network around its module"
            )


def _warn_of_other_units(
    sigma: torch.Tensor, epsilon: Scalar | None, box: list[float], pixels: int
) -> None:
    """Warn of numbers that the range of the images makes unlikely, where they can be read."""
    width = box[1] - box[0]
    if sigma.device.type == "cpu":
        units.warn_of_sigma(float(sigma), width)
    of_gpu = isinstance(epsilon, torch.Tensor) and epsilon.device.type != "cpu"
    if epsilon is not None and not of_gpu:
        units.warn_of_epsilon(float(epsilon), width, pixels)


def _is_float16_autocast(device: torch.device) -> bool:
    kind = device.type
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return enabled and torch.get_autocast_dtype(kind) == torch.float16


def _check_start(start: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The images to start from, detached; they must have the shape, dtype and device of x."""
    start = check.images(start, "start")
    if start.shape != x.shape or start.dtype != x.dtype or start.device != x.device:
        raise ValueError(
            f"start must be images like x, {tuple(x.shape)} {x.dtype} on {x.device}, got "
            f"{tuple(start.shape)} {start.dtype} on {start.device}; make it from x"
        )
    return start.detach()


def _gradient(
    model: Callable[[torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    target: torch.Tensor,
    num_samples: int,
    grad_norm: str,
) -> torch.Tensor:
    """The gradient of the sum of ``smooth_ce`` at the noisy copies; in compiled code too."""
    if torch.compiler.is_dynamo_compiling():

        def total(rows: torch.Tensor) -> torch.Tensor:
            logits = logits_of(model(rows))
            return functional.smooth_ce(logits, target, num_samples, reduction="sum")

        # torch.compile captures torch.func.grad, but torch.autograd.grad only in recent versions
        # and on request. Without no_grad the result would have a graph to the parameters.
        with torch.no_grad():
            return torch.func.grad(total)(noisy)
    with torch.enable_grad():
        logits = logits_of(model(noisy.requires_grad_()))
    check.logits_and_target(logits, target, num_samples, 1)
    if not logits.requires_grad:
        raise ValueError(
            "an attack needs the gradient of the network, got logits that do not depend on the "
            "images; leave torch.no_grad and detach out of the network's forward"
        )
    # The loss itself is not needed: its gradient for the logits comes from the raw operation,
    # without a sum over images and without an autograd.Function.
    images = autograd.images_first(logits.detach(), num_samples, 1)
    if not (torch.float16 in (logits.dtype, noisy.dtype) or _is_float16_autocast(noisy.device)):
        _, grad_logits = schemas.smooth_ce(images, target, "none", True)
        return torch.autograd.grad(logits, noisy, grad_logits.reshape(logits.shape))[0]
    # Small entries would become 0 in float16, here or in the network, so each image's gradient is
    # scaled to about 1, by a power of two, as a gradient scaler does for a training step.
    _, grad_logits = schemas.smooth_ce(images.float(), target, "none", True)
    largest = grad_logits.flatten(1).abs().amax(1).clamp(min=2.0**-100)
    scale = torch.exp2(-torch.floor(torch.log2(largest)))
    scaled = (grad_logits * scale[:, None, None]).reshape(logits.shape).to(logits.dtype)
    grad = torch.autograd.grad(logits, noisy, scaled)[0]
    if noisy.dtype == torch.float16 and grad_norm == "image":
        return grad  # which the step divides by its norm
    rows = per_image(scale.repeat_interleave(num_samples), grad)
    return (grad.float() / rows).to(grad.dtype)
