"""``drf-fast doctor --self-test``: every operation on all devices, compared with the reference.

Each backend runs small cases of awkward sizes. Expected are the results of the reference backend in
float64 on the CPU; the normals of the noise, and votes, have to agree in every bit. The noise of
the reference itself is compared with a digest, which is the same on all machines.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import drf_fast
from drf_fast.backends import dispatch
from drf_fast.balls import FORMS
from drf_fast.ops import schemas
from drf_fast.ops.level_checks import DTYPES as LEVEL_DTYPES
from drf_fast.runtime import tf32
from drf_fast.runtime.randomness import STREAMS
from drf_fast.runtime.tensors import FLOATS

# SHA-256 of the float32 normals (little-endian) that ``_published_noise`` draws.
NOISE_DIGEST = "7ab8fe36fdd5f5e6a5e2f7fb6eea503e428fe220d76d8ccf81ad90da3e4af0f4"
EXACT = 0.0


@dataclass(frozen=True)
class Check:
    """One operation on one backend of one device.

    Attributes:
        error: the largest error, relative to the largest expected value; where bits have to agree,
            the number of values that differ; None if the operation failed.
        limit: the largest error that passes.
        seconds: duration of the check.
        problem: the exception, if there was one.
    """

    device: str
    backend: str
    operation: str
    error: float | None
    limit: float
    seconds: float
    problem: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.limit


def served_by(operation: str, device_type: str) -> str:
    """The kind of implementation that runs ``operation`` now: "native", "triton", "reference"."""
    module = dispatch.implementation(operation, device_type).__module__
    kinds = {"backends.native": "native", "kernels": "triton", "backends.triton": "triton"}
    kinds["backends.reference"] = "reference"
    return next((kind for word, kind in kinds.items() if word in module), module)


# ---------------------------------------------------------------------------------- the operations


def _random(seed: int, *shape: int) -> Tensor:
    """Normals in float32, so that the float64 reference gets exactly the same inputs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _noise(x: Tensor, stream: str) -> Tensor:
    ids = torch.tensor([7, 0, 2**32 - 1], device=x.device)[: x.shape[0]]
    return drf_fast.noisy_repeat(
        x, 0.5, 3, seed=-12345678901234567, image_ids=ids, sample_offset=9, stream=stream
    )


def _noisy_repeat(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    for index, (shape, stream) in enumerate(
        zip([(3, 1, 28, 28), (2, 3, 5, 7), (1, 33), (3, 2, 16, 16)], STREAMS, strict=True)
    ):
        for kind in FLOATS:
            x = _random(index, *shape).to(device, kind)
            yield _noise(x, stream)
            if x.dim() == 4:
                yield _noise(x.contiguous(memory_format=torch.channels_last), stream)


def _noisy_repeat_backward(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    for shape in ((2, 3, 5, 7), (3, 1, 28, 28)):
        x = torch.zeros(shape, device=device, dtype=dtype, requires_grad=True)
        weight = _random(1, 3 * shape[0], *shape[1:]).to(device, dtype)
        yield torch.autograd.grad((_noise(x, "train") * weight).sum(), x)[0]


def _noisy_levels(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    ids = torch.tensor([7, 2**32 - 1], device=device)
    for index, (shape, sigma) in enumerate([((2, 1, 28, 28), 0.5), ((2, 3, 5, 7), 2.0)]):
        u = (_random(index, *shape).sigmoid() * 255).to(device, torch.uint8)
        for images in (u, u.contiguous(memory_format=torch.channels_last)):
            for kind in LEVEL_DTYPES:
                yield drf_fast.noisy_levels(
                    images,
                    sigma,
                    3,
                    seed=-12345678901234567,
                    image_ids=ids,
                    sample_offset=9,
                    stream="estimation",
                    dtype=kind,
                )


Loss = Callable[..., Tensor]


def _loss(loss: Loss, temperature: float) -> Callable[..., Iterator[Tensor]]:
    def run(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
        for index, (batch, m, classes) in enumerate([(5, 3, 10), (2, 16, 1000), (3, 1, 2)]):
            logits = _random(index, batch, m, classes) * temperature
            target = torch.softmax(16 * logits.double(), 2).mean(1).argmax(1)
            target[0] = 1  # right for most images, wrong for one
            for sample_dim in (0, 1):
                rows = logits if sample_dim else logits.transpose(0, 1)
                leaf = rows.to(device, dtype, copy=True).requires_grad_()
                value = loss(leaf, target.to(device), sample_dim=sample_dim)
                yield value.detach()
                yield torch.autograd.grad(value, leaf)[0]

    return run


def _consistency_loss(logits: Tensor, target: Tensor, sample_dim: int) -> Tensor:
    return drf_fast.consistency_loss(logits, target, lam=2.0, sample_dim=sample_dim)


def _macer_loss(logits: Tensor, target: Tensor, sample_dim: int) -> Tensor:
    return drf_fast.macer_loss(logits, target, sigma=0.5, lam=4.0, sample_dim=sample_dim)


def _adversary_step(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    ids = torch.tensor([4, 2**32 - 1], device=device)
    balls = [drf_fast.SoftBall(0.5, lambda0=0.6, form=form) for form in FORMS]
    for ball in (None, drf_fast.HardBall(0.5), *balls):
        for grad_norm in schemas.GRAD_NORMS:
            for shape in ((2, 3, 5, 7), (2, 1, 28, 28)):
                x = _random(1, *shape).sigmoid().to(device, dtype)
                moved = (_random(2, *shape) * 0.1).to(device, dtype)
                grad = _random(3, 3 * shape[0], *shape[1:]).to(device, dtype)
                yield from drf_fast.adversary_step(
                    grad,
                    x,
                    (x + moved).clamp(0, 1),
                    step_size=0.3,
                    ball=ball,
                    grad_norm=grad_norm,
                    sigma=0.25,
                    seed=5,
                    image_ids=ids,
                )


def _pooled(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Pooled images and the indices of their maxima, for two shapes."""
    for index, shape in enumerate([(2, 3, 8, 6), (3, 20, 4, 4)]):
        x = _random(index, *shape).to(device, dtype)
        yield schemas.max_pool_relu(x.contiguous(memory_format=torch.channels_last), True)


def _max_pool_relu(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    for out, _ in _pooled(device, dtype):
        yield out


def _max_pool_relu_backward(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    for index, (out, places) in enumerate(_pooled(device, dtype)):
        grad = _random(index, *out.shape).to(device, dtype)
        grad = grad.contiguous(memory_format=torch.channels_last)
        yield schemas.max_pool_relu_backward(grad, places)


def _pooled_image_gradient(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    for index, (out, places) in enumerate(_pooled(device, dtype)):
        grad = _random(index, *out.shape).to(device, dtype)
        grad = grad.contiguous(memory_format=torch.channels_last)
        weight = _random(9, out.shape[1], 1, 3, 3).to(device, dtype)
        yield schemas.pooled_image_gradient(grad, places, weight)


def _vote(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    for classes in (2, 10, 1000):
        logits = (_random(classes, 300, classes) * 2).round()  # many ties
        logits[7, 1] = torch.nan
        counts = torch.full((3, classes), 5, dtype=torch.int64, device=device)
        yield drf_fast.vote(logits.to(device), counts)


def _counts(device: torch.device) -> tuple[Tensor, Tensor]:
    trials = torch.tensor([1, 2, 100, 1000, 100_000, 10**9])
    successes = [torch.zeros_like(trials), trials, trials // 2 + 1, (trials * 0.99).long()]
    return torch.stack(successes).to(device), trials.expand(4, -1).to(device)


def _clopper_pearson_lower(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    for alpha in (0.001, 0.5, 1e-9):
        yield drf_fast.clopper_pearson_lower(*_counts(device), alpha)


def _certified_radius(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    for alpha in (0.001, 0.5, 1e-9):
        yield drf_fast.certified_radius(*_counts(device), sigma=0.5, alpha=alpha)


# Operation -> a generator of its results on a device in a dtype, and the error that passes.
CASES: dict[str, tuple[Callable[[torch.device, torch.dtype], Iterator[Tensor]], float]] = {
    "noisy_repeat": (_noisy_repeat, EXACT),
    "noisy_repeat_backward": (_noisy_repeat_backward, 1e-6),
    "noisy_levels": (_noisy_levels, EXACT),
    "smooth_ce": (_loss(drf_fast.smooth_ce, 1.0), 1e-6),
    "consistency_loss": (_loss(_consistency_loss, 1.0), 1e-6),
    "macer_loss": (_loss(_macer_loss, 0.1), 1e-6),
    "adversary_step": (_adversary_step, 1e-6),
    "max_pool_relu": (_max_pool_relu, 1e-6),
    "max_pool_relu_backward": (_max_pool_relu_backward, 1e-6),
    "pooled_image_gradient": (_pooled_image_gradient, 1e-6),
    "vote": (_vote, EXACT),
    "clopper_pearson_lower": (_clopper_pearson_lower, 1e-12),
    "certified_radius": (_certified_radius, 1e-9),
}


# --------------------------------------------------------------------------------------- comparing


def _expected(operation: str) -> list[Tensor]:
    with dispatch.use("reference"):
        return list(CASES[operation][0](torch.device("cpu"), torch.float64))


def _error(found: list[Tensor], truth: list[Tensor], limit: float) -> float:
    worst = 0.0
    for got, true in zip(found, truth, strict=True):
        got = got.detach().cpu()
        if got.shape != true.shape:
            raise ValueError(f"expected shape {tuple(true.shape)}, got {tuple(got.shape)}")
        if limit == EXACT:
            worst += float((got != true).sum())
            continue
        error = float((got.double() - true).abs().max() / true.abs().max())
        if not math.isfinite(error):
            raise ValueError("expected finite numbers, got NaN or infinity")
        worst = max(worst, error)
    return worst


def _timed(place: tuple[str, str, str], limit: float, measure: Callable[[], float]) -> Check:
    start = time.perf_counter()
    error = problem = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the table shows which backend has run
            error = measure()
    except Exception as failure:  # any error becomes a row of the table
        problem = f"{type(failure).__name__}: {failure}"
    return Check(*place, error, limit, time.perf_counter() - start, problem)


def _published_noise() -> float:
    """0.0 if the reference's normals have the digest that they have on every machine, else 1.0."""
    with dispatch.use("reference"):
        ids = torch.tensor([0, 2**32 - 1])
        zeros = torch.zeros(2, 100)
        noise = drf_fast.noisy_repeat(zeros, 1.0, 3, seed=0x0123456789ABCDEF, image_ids=ids)
    digest = hashlib.sha256(noise.numpy().astype("<f4").tobytes()).hexdigest()
    return float(digest != NOISE_DIGEST)


def _devices_and_backends() -> Iterator[tuple[torch.device, str]]:
    """All devices with the backends that are available on them."""
    from drf_fast.backends import triton
    from drf_fast.backends.native import library

    cpu = torch.device("cpu")
    yield cpu, "reference"
    if library.available():
        yield cpu, "native"
    if triton.why_not("cpu") is None:  # Triton's interpreter
        yield cpu, "triton"
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        # By name, so that a kernel that cannot run fails here instead of falling back.
        yield torch.device("cuda", index), "auto" if triton.why_not("cuda") else "triton"


def run() -> list[Check]:
    """Check every operation on every backend of every device; seconds, and no file is written."""
    checks = [_timed(("cpu", "reference", "normals"), EXACT, _published_noise)]
    truths: dict[str, list[Tensor]] = {}
    for device, backend in _devices_and_backends():
        for operation, (case, limit) in CASES.items():

            def measure(operation=operation, case=case, device=device, limit=limit) -> float:
                if operation not in truths:
                    truths[operation] = _expected(operation)
                with tf32.switched(device, False):  # torch allows it for convolutions
                    return _error(list(case(device, torch.float32)), truths[operation], limit)

            with dispatch.use(backend):
                try:
                    kind = served_by(operation, device.type)
                except Exception:  # the check itself reports it
                    kind = backend
                checks.append(_timed((str(device), kind, operation), limit, measure))
    return checks


# ----------------------------------------------------------------------------------------- showing


def _notes() -> Iterator[str]:
    """What could not be tested here, and why."""
    from drf_fast.backends import triton
    from drf_fast.backends.native import library

    if not library.available():
        yield f"the C++ core was not tested: {library.why_not()}"
    if not torch.cuda.is_available():
        yield "no GPU was tested: torch sees none"
    else:
        for reason in (triton.why_not("cuda"), library.cuda_why_not()):
            if reason is not None:
                yield f"GPUs were tested on the reference backend where {reason}"


def as_json(checks: list[Check]) -> dict[str, Any]:
    """Everything that ``render`` shows, as plain JSON types."""
    return {
        "passed": all(check.passed for check in checks),
        "checks": [{**asdict(check), "passed": check.passed} for check in checks],
        "notes": list(_notes()),
    }


def render(checks: list[Check]) -> str:
    """The checks as a table of plain text, a verdict first."""
    passed = sum(check.passed for check in checks)
    seconds = sum(check.seconds for check in checks)
    wide = max((len(check.operation) for check in checks), default=0)
    lines = [
        f"self-test of drf_fast {drf_fast.__version__}: {passed} of {len(checks)} checks passed "
        f"in {seconds:.1f} s",
        "",
        f"{'device':<8}  {'backend':<9}  {'operation':<{wide}}  {'error':>8}  {'limit':>8}  result",
    ]
    for check in checks:
        error = "failed" if check.error is None else f"{check.error:.1e}"
        lines.append(
            f"{check.device:<8}  {check.backend:<9}  {check.operation:<{wide}}  {error:>8}  "
            f"{check.limit:>8.1e}  {'pass' if check.passed else 'FAIL'}"
        )
        if check.problem is not None:
            lines.append(f"    {check.problem}")
    lines += ["", *_notes()]
    if passed < len(checks):
        lines.append(
            "do not trust results of what failed: use another backend (DRF_FAST_BACKEND), and "
            "report this table with the output of 'drf-fast doctor'"
        )
    return "\n".join(lines).rstrip() + "\n"
