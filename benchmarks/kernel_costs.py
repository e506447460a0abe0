"""Compute docs/kernels.md: what each kernel moves and computes, and how long an H100 should take.

    python benchmarks/kernel_costs.py > docs/kernels.md

It needs triton, nvcc and g++, but no GPU, and some minutes: bytes are counted in Triton's
interpreter (tests/instruments/phantom.py), in a process of its own; instructions and registers are
read in the machine code for sm_90 (tests/instruments/sass.py); kernel_model.py predicts the time;
benchmarks/cuda_costs.py does the same for CUDA C++. The eager formulation of
benchmarks/published.py is counted operation by operation on tensors without memory.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import published
import torch
from kernel_cases import Case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# How many programs of a launch the interpreter runs (primes, see phantom.sample): as many as handle
# so many numbers together.
SAMPLES, NUMBERS = (61, 31, 13, 7, 3), 2**20
BF16 = torch.bfloat16
CASES = (
    Case("noisy_repeat", (256, 4, 1, 28, 28)),
    Case("noisy_repeat", (256, 4, 3, 32, 32)),
    Case("noisy_repeat", (1, 1000, 3, 32, 32)),
    Case("noisy_repeat", (64, 4, 3, 224, 224)),
    Case("noisy_repeat", (64, 4, 3, 224, 224), BF16),
    Case("noisy_repeat", (64, 4, 3, 224, 224), BF16, "channels_last"),
    Case("noisy_repeat_backward", (256, 4, 1, 28, 28)),
    Case("noisy_repeat_backward", (256, 4, 3, 32, 32)),
    Case("noisy_repeat_backward", (64, 4, 3, 224, 224)),
    Case("smooth_ce", (256, 4, 10)),
    Case("smooth_ce", (256, 16, 10)),
    Case("smooth_ce", (256, 4, 100)),
    Case("smooth_ce", (256, 8, 1000)),
    Case("smooth_ce", (4096, 8, 1000)),
    Case("smooth_ce", (4096, 8, 1000), BF16),
    Case("smooth_ce", (256, 4, 100_000)),
    Case("consistency_loss", (256, 4, 10)),
    Case("consistency_loss", (256, 4, 100)),
    Case("consistency_loss", (4096, 8, 1000)),
    Case("consistency_loss", (256, 4, 100_000)),
    Case("macer_loss", (256, 16, 10)),
    Case("macer_loss", (256, 4, 100)),
    Case("macer_loss", (4096, 8, 1000)),
    Case("macer_loss", (256, 4, 100_000)),
    Case("adversary_step", (256, 4, 1, 28, 28)),
    Case("adversary_step", (256, 4, 3, 32, 32)),
    Case("adversary_step", (256, 4, 3, 32, 32), ball="excess", grad_norm="batch"),
    Case("adversary_step", (64, 4, 3, 224, 224)),
    Case("adversary_step", (64, 4, 3, 224, 224), BF16),
)
# A step needs the gradient alone, so nothing sums the losses: see ``drf_fast.attack``.
STEPS = (
    (
        Case("smooth_ce", (256, 4, 10), reduction="none"),
        Case("adversary_step", (256, 4, 1, 28, 28)),
    ),
    (
        Case("smooth_ce", (256, 4, 10), reduction="none"),
        Case("adversary_step", (256, 4, 3, 32, 32)),
    ),
    (
        Case("smooth_ce", (64, 4, 1000), reduction="none"),
        Case("adversary_step", (64, 4, 3, 224, 224)),
    ),
)


# ------------------------------------------------------------------------------ in the interpreter


def interpreted_traffic(case: Case) -> list[dict[str, Any]]:
    """Requested and moved bytes of each launch, from a sample of its programs."""
    import kernel_model
    import phantom

    found = []
    for launch in case.launches():
        tensors = [value for value in launch.arguments if isinstance(value, torch.Tensor)]
        each = max(tensor.numel() for tensor in tensors) / launch.programs
        most = next((count for count in SAMPLES if count * each <= NUMBERS), SAMPLES[-1])
        programs = phantom.sample(launch.programs, most)
        scale = launch.programs / len(programs)
        requested, moved, places = 0, 0, Counter()
        for program in programs:
            trace = phantom.run(launch, [program])
            requested += trace.bytes("load") + trace.bytes("store")
            moved += trace.moved_bytes()
            for access in trace.accesses:
                places[kernel_model.key(access.place)] += access.lanes * access.width
        whole = sum(span.stop - span.start for span in set(trace.spans))
        found.append(
            {
                "requested": round(requested * scale),
                # Programs that read the same bytes have them from the cache.
                "moved": min(round(moved * scale), whole),
                "of_place": {place: count / len(programs) for place, count in places.items()},
            }
        )
    return found


@functools.cache
def traffic() -> dict[str, list[dict[str, Any]]]:
    """``interpreted_traffic`` of all cases, from a process that interprets kernels."""
    result = subprocess.run(
        [sys.executable, __file__, "--traffic"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(result.stdout)


# ------------------------------------------------------------------------------------------ eager


class Count(TorchDispatchMode):
    """Operations that launch a kernel and what they read and write; one launch for each."""

    def __init__(self, launches: int = 0, bytes: int = 0) -> None:
        super().__init__()
        self.launches, self.bytes = launches, bytes

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        written = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        storages = {tensor.untyped_storage()._cdata for tensor in read}
        is_view = all(t.untyped_storage()._cdata in storages for t in written)
        mutates = function._schema.is_mutable
        name = function.overloadpacket.__name__
        allocates = name.startswith(("empty", "new_empty", "detach"))
        if written and not allocates and (mutates or not is_view):
            self.launches += 1
            if not name.endswith("_like"):
                self.bytes += sum(map(_bytes, read))
            self.bytes += sum(map(_bytes, written))
        return result


def _bytes(tensor: torch.Tensor) -> int:
    """What there is in memory: an expanded dimension is read once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= 1 if stride == 0 else length
    return size


def eager(function: Callable[[], Any]) -> Count:
    with Count() as count:
        function()
    return count


def eager_of(case: Case) -> Count | None:
    """The published formulation of a case, on tensors without memory."""
    batch, m, *rest = case.shape
    device = torch.device("meta")
    if case.operation == "noisy_repeat":
        x = torch.empty((batch, *rest), dtype=case.dtype, device=device)
        return eager(lambda: published.noisy_repeat(x, 0.5, m))
    if case.operation == "noisy_repeat_backward":
        grad = torch.empty((batch * m, *rest), dtype=case.dtype, device=device)
        return eager(lambda: grad.reshape(batch, m, *rest).sum(1))
    if case.operation == "adversary_step":
        return None
    loss = getattr(published, case.operation)
    weights = {"smooth_ce": (), "consistency_loss": (10.0, 0.5), "macer_loss": (0.5, 12.0, 8.0)}
    logits = torch.empty(batch * m, *rest, dtype=case.dtype, device=device, requires_grad=True)
    target = torch.empty(batch, dtype=torch.int64, device=device)
    return eager(
        lambda: torch.autograd.grad(loss(logits, target, m, *weights[case.operation]), logits)
    )


def eager_step(loss: Case, step: Case) -> Count:
    """On tensors with memory: the published attack asks for a value on the way."""
    batch, m, *rest = step.shape
    logits = torch.zeros(batch * m, loss.shape[2], requires_grad=True)
    target = torch.zeros(batch, dtype=torch.int64)
    grad, noise = torch.ones(batch * m, *rest), torch.zeros(batch * m, *rest)
    x, delta = torch.zeros(batch, *rest), torch.zeros(batch, *rest, requires_grad=True)
    ascent = torch.optim.SGD([delta], lr=0.5, maximize=True, foreach=False)

    def run() -> torch.Tensor:
        return published.pgd_step(logits, target, grad, x, delta, ascent, noise, 1.0)

    run()  # after which delta has the gradient that zero_grad clears
    return eager(run)


# ------------------------------------------------------------------------------------------ table


def costs_of(case: Case) -> list[Any]:
    import kernel_model

    counted = [kernel_model.Traffic(**entry) for entry in traffic()[str(case)]]
    return [
        kernel_model.cost(launch, entry)
        for launch, entry in zip(case.launches(), counted, strict=True)
    ]


def eager_time(count: Count) -> float:
    import kernel_model

    return count.launches * kernel_model.LATENCY + count.bytes / kernel_model.COPY


def shown(case: Case) -> str:
    text = " x ".join(map(str, case.shape))
    notes = [] if case.dtype == torch.float32 else [str(case.dtype)[6:]]
    if case.layout != "contiguous":
        notes.append(case.layout)
    if case.grad_norm != "image":
        notes.append(f"norm of the {case.grad_norm}")
    return ", ".join([text, *notes])


def row(
    name: str, shape: str, costs: list[Any], least: int, theirs: Count | None, beside: Count
) -> str:
    """``beside``: launches of torch that go with ours."""
    moved = sum(cost.moved for cost in costs)
    arithmetic = sum(cost.arithmetic for cost in costs)
    time = sum(cost.time for cost in costs) + eager_time(beside)
    largest = max(costs, key=lambda cost: cost.moved)
    bound = "launch"
    if max(largest.memory_time, largest.issue_time) > 5e-6:
        bound = "memory" if largest.memory_time >= largest.issue_time else "instructions"
    cells = [
        name,
        shape,
        f"{len(costs)} + {beside.launches}" if beside.launches else str(len(costs)),
        f"{least / 1e6:,.2f}",
        f"{moved / least:.2f}",
        f"{arithmetic / moved:.1f}",
        str(largest.registers),
        f"{largest.occupancy:.0%}",
        f"{time * 1e6:,.0f}",
        bound,
    ]
    if theirs is None:
        cells += ["", "", "", ""]
    else:
        cells += [
            str(theirs.launches),
            f"{theirs.bytes / least:.2f}",
            f"{eager_time(theirs) * 1e6:,.0f}",
            f"{eager_time(theirs) / time:.1f}",
        ]
    return "| " + " | ".join(cells) + " |"


HEAD = """\
| operation | shape | launches | least MB | moved / least | arithmetic / byte | registers \
| occupancy | µs | bound by | eager launches | eager moved / least | eager µs | ratio |
|---|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|"""


def autograd_beside(loss: Case) -> Count:
    """In a PGD step: the 1 that autograd starts from, and its product with our gradient."""
    return Count(launches=2, bytes=2 * math.prod(loss.shape) * loss.dtype.itemsize)


def eager_votes(rows: int, classes: int) -> Count:
    logits, counts = torch.zeros(rows, classes), torch.zeros(classes, dtype=torch.int64)
    return eager(lambda: published.vote(logits, counts))


def page() -> str:
    """docs/kernels.md."""
    import cuda_costs

    alone = Count()
    rows = [
        row(case.operation, shown(case), costs_of(case), case.minimum_bytes, eager_of(case), alone)
        for case in CASES
    ]
    counting = [
        row(
            call.operation,
            f"{call.rows} x {call.classes}" if call.classes else f"{call.rows} images",
            [cost],
            call.minimum_bytes,
            eager_votes(call.rows, call.classes) if call.classes else None,
            alone,
        )
        for call, cost in cuda_costs.costs()
    ]
    steps = [
        row(
            "PGD step",
            f"{shown(step)}, K = {loss.shape[2]}",
            costs_of(loss) + costs_of(step),
            loss.minimum_bytes + step.minimum_bytes,
            eager_step(loss, step),
            autograd_beside(loss),
        )
        for loss, step in STEPS
    ]
    parts = [TEXT, HEAD, *rows, STEP_TEXT, HEAD, *steps, COUNTING_TEXT, HEAD, *counting]
    lines = [part if part.startswith("|") else f"\n{part.strip()}\n" for part in parts]
    return "\n".join(lines).strip()


TEXT = """
# The kernels on an H100: counted and predicted

Computed by `python benchmarks/kernel_costs.py`, not measured: no GPU takes part. Shapes are images
(B, m, C, H, W) or logits (B, m, K), float32 where nothing else is said; a loss includes its whole
gradient.

* **least MB**: each large tensor read or written once. **moved / least**: bytes to and from memory
  against it. Triton's interpreter counts what programs ask for; what a program itself has read or
  written before is taken from the cache, if all programs that run at a time fit into 40 MB of it.
  Above 1.00 are logits and images (of more than 4096 values) too long for the registers of a
  program, which are read again; the norm of a batch, which needs all sums before the first step;
  and, in the smallest losses, labels and losses, of which there is one an image.
* **arithmetic / byte**: instructions of single threads that compute, counted in the machine code
  for sm_90 (loops by the number of their rounds), for each byte moved. An H100 issues 9.9 in the
  time of a byte at 3.0 TB/s.
* **registers** of a thread and **occupancy**, the share of the 64 warps that a multiprocessor can
  hold (65,536 registers, 228 KB shared memory), both of the launch that moves most.
* **µs**: 5 µs a launch, and the larger of two bounds: memory at 3.0 TB/s, what a copy reaches, and
  the busiest unit of the busiest multiprocessor at 1.755 GHz. Latencies and their hiding are not
  modelled: these are lower bounds of the time within a launch.
* **eager**: the formulation of `benchmarks/published.py`, forward and backward: one launch for each
  operation that is not a view, each reading its inputs and writing its outputs, by the same 5 µs
  and 3.0 TB/s and with no bound on its instructions. **ratio**: its time over ours.
"""

STEP_TEXT = """
## A PGD step

All of a step but the network: the gradient at the logits, then ascent, ball and the next noisy
batch. Of ours it is two launches, `smooth_ce` and `adversary_step`; a third, `noisy_repeat`, for
images of more than 4096 values. Beside them (+ 2) autograd launches the 1 that it starts from and
its product with our gradient. The eager step adds a noise tensor that it keeps; ours makes the same
noise again.
"""

COUNTING_TEXT = """
## Votes and bounds

CUDA C++, compiled by nvcc. The bytes are counted while the kernels' own source runs on the CPU
(`benchmarks/cuda_traffic.cpp`), the winner changing every 16 rows. How often the loops of a bound
run depends on its counts: arithmetic and time take each instruction once, a lower bound. Eager
bounds are SciPy's, on the host.
"""


def main() -> None:
    if sys.argv[1:] == ["--traffic"]:
        cases = {*CASES, *(case for step in STEPS for case in step)}
        json.dump({str(case): interpreted_traffic(case) for case in cases}, sys.stdout)
        return
    # Triton's cache keeps binaries whose line numbers may be those of an older source.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        print(page())


if __name__ == "__main__":
    main()
