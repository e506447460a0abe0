"""The smoothed classifier, with CERTIFY and PREDICT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from drf_fast import functional
from drf_fast.certification import inputs
from drf_fast.certification.inputs import ImageIds
from drf_fast.certification.network import PRECISIONS, RunNetwork
from drf_fast.certification.noise import GaussianNoise, LevelNoise, RowTest
from drf_fast.certification.result import CertifyResult
from drf_fast.certification.stopping import certificate, reduced_alpha
from drf_fast.certification.votes import NoisyVotes
from drf_fast.ops import checks as check
from drf_fast.ops import noise_checks
from drf_fast.runtime import machine

# What noise and network are made with: changed afterwards, they would be another's certificates.
_FIXED = frozenset({"base", "num_classes", "sigma", "drawn_sigma", "precision", "sound", "seed"})


class SmoothedClassifier:
    """g(x) = the class that ``base`` predicts most often for x + N(0, sigma^2 I).

    Certificates hold for ``base`` as it is run here: in eval mode, in the form that ``choices``
    names, with batch normalisation folded into convolutions. That is a copy: ``base`` is never
    changed, and changes of its parameters or buffers between calls take effect.

    A callable that is no module runs as it is, so it must itself be in eval mode. At first use a
    network is refused if a row's logits depend on the other rows by more than rounding.

    Args:
        base: network (N, ...) -> (N, K), taking images with noise; normalisation belongs inside.
        num_classes: K, at least 2.
        sigma: noise level in pixel units, above 0.
        precision: "fp32"; "tf32", on a GPU: products of float32 with 11 significant bits of each
            factor; "bf16": parameters, buffers and input in bfloat16 (for a callable that is no
            module, bfloat16 autocast); "auto" measures fp32 and, where available, tf32, and
            "fastest" all three. Each of them is one function of the image, as a certificate needs,
            and the certificate is of that function.
        compile: run ``base`` through ``torch.compile``, its weights frozen into the code.
        memory_format: "contiguous", "channels_last", or None: the faster one, measured once.
        batch_size: rows of a forward pass where a call gives none; None: the best one, measured.
        sound: noise of whole levels (``functional.noisy_levels``), and bounds lowered by its
            distance from Gaussian noise: certificates hold for the program as it runs, not only in
            exact arithmetic. Images must be uint8 or exactly float32(u)/255, sigma at most 16; all
            forward passes for a bound have ``batch_size`` rows, and before the first it is tested
            that a row's logits do not depend on the other rows.
        seed: determines the noise together with the image id, so certificates are reproducible.

    Attributes:
        drawn_sigma: the noise level of which radii are multiples: min(sigma, float32(sigma)), as it
            is drawn; sigma itself if ``sound``.

    Raises:
        TypeError, ValueError: bad arguments.

    Reference:
        Cohen, Rosenfeld, Kolter 2019, section 3.2.
    """

    ABSTAIN = -1

    def __init__(
        self,
        base: Callable[[torch.Tensor], Any],
        num_classes: int,
        sigma: float,
        *,
        precision: str = "auto",
        compile: bool = False,
        memory_format: str | None = None,
        batch_size: int | None = None,
        sound: bool = False,
        seed: int = 0,
    ) -> None:
        if not callable(base):
            raise TypeError(f"base must be a network, a callable, got {type(base).__name__}")
        self.base = base
        self.num_classes = check.count(num_classes, "num_classes", minimum=2)
        self.sigma = float(check.scalar(sigma, "sigma", positive=True))
        if memory_format is not None:
            check.choice(memory_format, "memory_format", tuple(machine.MEMORY_FORMATS))
        self._batch_size = None if batch_size is None else check.count(batch_size, "batch_size")
        self._last_batch_size = self._batch_size  # given or measured
        self.precision = check.choice(precision, "precision", PRECISIONS)
        noise_checks.signed_key(seed)
        self.seed = int(seed)
        network = RunNetwork(
            base, precision=precision, compile=compile, memory_format=memory_format
        )
        self.sound = sound
        self._noise = (LevelNoise if sound else GaussianNoise)(self.sigma, seed)
        self.drawn_sigma = self._noise.drawn_sigma
        self._votes = NoisyVotes(network, num_classes, self._noise)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to change what the certificates are of."""
        if name in _FIXED and name in self.__dict__:
            raise AttributeError(
                f"{name} of a SmoothedClassifier cannot change, got {check.brief(value)}; make a "
                "new SmoothedClassifier with it"
            )
        super().__setattr__(name, value)

    def certify(
        self,
        x: torch.Tensor | np.ndarray,
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
            image_id: determines this image's noise; must differ between images.

        Raises:
            TypeError, ValueError: bad arguments, a network of another width, or one whose rows
                depend on each other; ``sound``: images that are not of whole levels.
        """
        x = inputs.one_image(x)
        result = self.certify_batch(
            x.unsqueeze(0),
            n0,
            n,
            alpha,
            batch_size,
            image_ids=inputs.one_id(image_id, x.device),
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
        image_ids: ImageIds | None = None,
    ) -> CertifyResult:
        """CERTIFY B images (B, C, H, W); arguments as ``certify``, results on the CPU.

        ``image_ids`` (B,), a tensor, array or list of whole numbers, determine the noise of each
        image; None is 0..B-1, which is right for a single call only: a second call would reuse the
        noise, so pass data set indices.
        """
        check.count(n0, "n0")
        check.count(n, "n")
        alpha = float(check.probability(alpha))
        x = self._noise.images(x)
        choice = self.select(x, n0, batch_size, image_ids=image_ids)
        count, _ = self.estimate(x, choice, n, batch_size, image_ids=image_ids)
        p_lower, radius = self._bounds(count, n, alpha, self.distance(x))
        label = torch.where(p_lower > 0.5, choice.cpu(), self.ABSTAIN)
        return CertifyResult(label, radius, count, p_lower)

    def _bounds(
        self, count: torch.Tensor, n: int, alpha: float, distance: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds and radii (B,) of the counts (B,)."""
        sigma = self.drawn_sigma
        if distance == 0.0:
            p_lower = functional.clopper_pearson_lower(count, n, alpha)
            return p_lower, functional.certified_radius(count, n, sigma=sigma, alpha=alpha)
        distinct, inverse = count.unique(return_inverse=True)
        proofs = [
            certificate(k, n, n, sigma=sigma, alpha=alpha, budget="fixed", distance=distance)
            for k in distinct.tolist()
        ]
        bounds, radii = torch.tensor(proofs, dtype=torch.float64, device="cpu")[inverse].unbind(1)
        return bounds, radii

    def select(
        self,
        x: torch.Tensor,
        n0: int,
        batch_size: int | None = None,
        *,
        image_ids: ImageIds | None = None,
    ) -> torch.Tensor:
        """The first half of CERTIFY: the class counted most often among n0 samples of each image.

        Returns:
            (B,) int64 on the device of x; ties go to the lowest class.
        """
        check.count(n0, "n0")
        return self._counts(x, n0, "selection", batch_size, image_ids)[0].argmax(1)

    def estimate(
        self,
        x: torch.Tensor,
        choice: torch.Tensor,
        n: int,
        batch_size: int | None = None,
        *,
        image_ids: ImageIds | None = None,
        stops: Callable[[int, int], bool] | None = None,
    ) -> tuple[torch.Tensor, int]:
        """The second half: votes for the class chosen among n fresh samples of each image.

        Args:
            x, n, batch_size, image_ids: as in ``certify_batch``.
            choice: (B,) int64 classes, from ``select``.
            stops: called with the votes and the samples so far after each forward pass; True ends
                the sampling. For one image, and valid only with an anytime bound.

        Returns:
            (B,) int64 counts on the CPU, and the number of samples drawn of each image.
        """
        check.count(n, "n")
        if stops is not None and x.shape[0] != 1:
            raise ValueError(f"stops needs one image, got {x.shape[0]}")
        chosen = 0 if stops is None else int(choice[0])  # once: each look waits for one number
        stop = None if stops is None else lambda k, t: stops(int(k[0, chosen]), t)
        counts, drawn = self._counts(x, n, "estimation", batch_size, image_ids, stop)
        return counts.gather(1, choice.unsqueeze(1)).squeeze(1).cpu(), drawn

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
        one-sided Clopper-Pearson bound at alpha/2 is above 1/2, which is how it is computed. With
        ``sound`` n D tau is subtracted from alpha, the distance of n samples from Gaussian ones.

        Raises:
            TypeError, ValueError: bad arguments, a network of another width, or one whose rows
                depend on each other.

        Reference:
            Cohen, Rosenfeld, Kolter 2019, PREDICT; Hung, Fithian 2019.
        """
        check.count(n, "n")
        x = inputs.one_image(x)
        ids = inputs.one_id(image_id, x.device)
        return int(self.predict_batch(x.unsqueeze(0), n, alpha, batch_size, image_ids=ids)[0])

    def predict_batch(
        self,
        x: torch.Tensor,
        n: int,
        alpha: float,
        batch_size: int | None = None,
        *,
        image_ids: ImageIds | None = None,
    ) -> torch.Tensor:
        """PREDICT B images (B, C, H, W): (B,) int64 classes on the CPU, ABSTAIN where undecided.

        Each image has error probability alpha; ``image_ids`` as in ``certify_batch``.

        Raises:
            TypeError, ValueError: bad arguments, a network of another width, or one whose rows
                depend on each other.
        """
        check.count(n, "n")
        alpha = float(check.probability(alpha))
        x = self._noise.images(x)
        level = reduced_alpha(alpha, n, self.distance(x)) / 2
        counts = self._counts(x, n, "prediction", batch_size, image_ids)[0].cpu()
        top, classes = counts.topk(2, dim=1)
        labels = torch.full((len(counts),), self.ABSTAIN, dtype=torch.int64, device="cpu")
        for b, (first, second) in enumerate(top.tolist()):
            if first + second > 0:
                bound = functional.clopper_pearson_lower(first, first + second, level)
                if float(bound) > 0.5:
                    labels[b] = classes[b, 0]
        return labels

    def votes(
        self,
        x: torch.Tensor,
        n: int,
        batch_size: int | None = None,
        *,
        image_ids: ImageIds | None = None,
    ) -> torch.Tensor:
        """The votes of PREDICT's n samples: (B, K) int64 on the CPU.

        Arguments as ``predict_batch``. For inspection: a bound for a class that was chosen by these
        votes needs fresh samples.

        Raises:
            TypeError, ValueError: bad arguments, a network of another width, or one whose rows
                depend on each other.
        """
        return self._counts(x, check.count(n, "n"), "prediction", batch_size, image_ids)[0].cpu()

    def _counts(
        self,
        x: torch.Tensor,
        num: int,
        stream: str,
        batch_size: int | None,
        image_ids: ImageIds | None,
        stop: Callable[[torch.Tensor, int], bool] | None = None,
    ) -> tuple[torch.Tensor, int]:
        """``NoisyVotes.counts`` with checked arguments."""
        x = self._noise.images(x)
        if image_ids is None:
            image_ids = torch.arange(x.shape[0], device=x.device)
        image_ids = inputs.ids(image_ids, x.device)
        noise_checks.noise_source(self.seed, image_ids, x.shape[0], x.device)
        size = self._resolve_batch_size(x) if batch_size is None else batch_size
        check.count(size, "batch_size")
        return self._votes.counts(x, num, stream, size, image_ids, stop)

    @property
    def choices(self) -> dict[str, Any]:
        """How the network is run: ``SmoothedClassifier(base, K, sigma, **other.choices)`` repeats.

        precision, compile and memory_format, measured with the first images, and batch_size,
        measured at the first call that gives none; before that the requested values. Forms in which
        the network failed are in ``left_out``, with the reason.
        """
        return {**self._votes.network.choices, "batch_size": self._last_batch_size}

    def measure(self, x: torch.Tensor) -> dict[str, Any]:
        """Choose how to run the network on images like x (B, C, H, W), once; the ``choices``."""
        self._votes.prepare(self._noise.images(x))
        return self.choices

    def repeat(self, recorded: Mapping[str, Any]) -> int | None:
        """Use the ``choices`` of an earlier run instead of measuring; what was given here stays.

        Returns:
            The recorded batch size; None if there is none, or if this classifier was given one.
        """
        self._votes.network.repeat(recorded)
        size = recorded.get("batch_size")
        return size if self._batch_size is None and type(size) is int and size > 0 else None

    @property
    def left_out(self) -> dict[str, str]:
        """Forms in which the network failed, by name, and the error."""
        reason = self._votes.passes.reason
        graph = {} if reason is None else {"cuda_graph": reason}
        return {**self._votes.network.left_out, **graph}

    def batch_size(self, x: torch.Tensor) -> int:
        """The fastest number of rows of a forward pass, measured once per shape and device."""
        return self._resolve_batch_size(self._noise.images(x))

    def _resolve_batch_size(self, x: torch.Tensor) -> int:
        """The batch size that was given, or the best one for such images."""
        if self._batch_size is None:
            self._last_batch_size = self._votes.batch_size(x)
            return self._last_batch_size
        return self._batch_size

    def rate(self, x: torch.Tensor, batch_size: int) -> float:
        """Rows per second of forward passes of ``batch_size`` rows of images like x (B, ...)."""
        x = self._noise.images(x)
        with machine.memory_for(batch_size, tuple(x.shape[1:]), "--batch-size"):
            return self._votes.rate(x, batch_size)

    def distance(self, x: torch.Tensor) -> float:
        """By how much bounds for images like x (B, ...) are lowered: D tau, 0 unless sound."""
        return self._noise.distance(x[0].numel())

    def row_test(self, x: torch.Tensor, batch_size: int) -> RowTest:
        """Test that rows of images like x (B, ...) are independent; ``certify`` calls it itself.

        Raises:
            ValueError: they are not, so that no certificate can be sound.
        """
        return self._votes.row_test(self._noise.images(x), batch_size)
