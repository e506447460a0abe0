"""``drf-fast show``: test images as the smoothed classifier sees them, and noise levels."""

from __future__ import annotations

from pathlib import Path

import torch

from drf_fast import data
from drf_fast.attacks import gallery
from drf_fast.attacks.gallery import Card
from drf_fast.certification import loading
from drf_fast.certification.loading import Source
from drf_fast.commands import attack, beside
from drf_fast.config.look import AttackConfig, ShowConfig, numbers
from drf_fast.config.ranges import check_ranges
from drf_fast.config.training import check_epsilon, check_sigma
from drf_fast.errors import InputError
from drf_fast.functional import noisy_repeat
from drf_fast.report.gallery import draw_cards, draw_noise
from drf_fast.report.style import check_path
from drf_fast.runtime import machine
from drf_fast.runtime.progress import say


@machine.same_threads()
def run(config: ShowConfig) -> int:
    """The command: draws one figure.

    Returns:
        0, the exit status.

    Raises:
        InputError: neither or both of a network and --noise, or as ``drf-fast attack``.
    """
    network = config.run is not None or config.arch is not None
    if network == (config.noise is not None):
        raise InputError(
            "show needs something to look at: expected either a network (RUN, or --arch "
            "package.module:factory of one that comes with its weights) or --noise DATA, got "
            f"{'both' if network else 'neither'}; pass one of them"
        )
    check_ranges(config)
    source = None if config.noise is not None else loading.source(_as_attack(config))
    default = Path("noise.png") if source is None else source.default_path("images.png")
    out = config.out or default
    check_path(out, config.force)
    if source is None:
        _noise(config, out)
    else:
        found = cards_of(config, source)
        name = source.saved["arch"] if source.path is None else source.path.parent.name
        draw_cards(found, f"{name}: attacked within ε = {_strengths(found)}", out)
    say(f"wrote {out}")
    return 0


def _as_attack(config: ShowConfig) -> AttackConfig:
    sigma = None
    if config.sigma is not None:
        sigma, *others = numbers(config.sigma, "sigma", "0.5")
        if others:
            raise InputError(
                f"--sigma must be one noise level for a network, 0.5 for example, got "
                f"{config.sigma!r}; several are for --noise DATA"
            )
    return AttackConfig(
        checkpoint=config.run,
        n=config.n,
        num_samples=config.num_samples,
        steps=config.steps,
        restarts=1,
        ddn_steps=config.steps,
        certificates=config.certificates,
        data=config.data,
        data_dir=config.data_dir,
        split=config.split,
        sigma=sigma,
        arch=config.arch,
        normalize=config.normalize,
        device=config.device,
        threads=config.threads,
        seed=config.seed,
        max_images=None,
        skip=1,
    )


def cards_of(config: ShowConfig, source: Source | None = None) -> list[Card]:
    """The images that ``config`` selects, with adversarial images and votes.

    Args:
        config: the settings.
        source: the network and its images, if they were read already.

    Raises:
        InputError: no certificates, or as ``drf-fast attack``.
    """
    settings = _as_attack(config)
    source = source or loading.source(settings)
    certificates = beside.certificates_of(settings.certificates, source)
    if certificates is None or len(certificates) == 0:
        raise InputError(
            f"{source.path or config.arch} has no certificates beside it: expected a log of this "
            "network at this sigma, got none; run 'drf-fast certify' first, or name one with "
            "--certificates"
        )
    _, work = attack.prepare(settings, source, certificates)
    epsilon = 2 * work.classifier.sigma if config.epsilon is None else config.epsilon
    if config.epsilon is not None:
        check_epsilon(epsilon, work.images.image_shape)
    rows = beside.attacked(source) if config.sort == "broken" else []
    chosen = gallery.choose(certificates, config.sort, config.images, epsilon, rows)
    return gallery.cards(work, certificates, chosen)


def _noise(config: ShowConfig, out: Path) -> None:
    assert config.noise is not None
    sigmas = numbers(config.sigma or "0.25,0.5,1", "sigma")
    for sigma in sigmas:
        check_sigma(sigma)
    if config.threads != "auto":
        machine.set_threads(config.threads)
    images = data.load(config.noise, config.split, data_dir=config.data_dir)
    indices = range(0, len(images), max(1, len(images) // config.images))[: config.images]
    x = images.float_images(list(indices))
    kind = {"seed": config.seed, "image_ids": torch.tensor(list(indices))}
    # The same normals at every level, so that columns differ only in the level.
    columns = [x, *(noisy_repeat(x, sigma, 1, **kind) for sigma in sigmas)]
    pictures = torch.stack(columns, dim=1).numpy()
    draw_noise(pictures, (0.0, *sigmas), f"{images.name} ({images.split}) under noise", out)


def _strengths(cards: list[Card]) -> str:
    epsilons = sorted({card.epsilon for card in cards})
    ends = dict.fromkeys((epsilons[0], epsilons[-1]))
    return " to ".join(f"{epsilon:g}" for epsilon in ends)
