"""``drf-fast show``: test images as the smoothed classifier sees them, and noise levels."""

from __future__ import annotations

from pathlib import Path

import torch

from drf_fast import data
from drf_fast.attacks import gallery
from drf_fast.attacks.gallery import Card
from drf_fast.attacks.log import AttackRow, is_attack_log, read_attacked
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands import attack
from drf_fast.config import tags
from drf_fast.config.look import AttackConfig, ShowConfig, numbers
from drf_fast.config.tags import Range
from drf_fast.config.training import check_sigma
from drf_fast.errors import InputError
from drf_fast.functional import noisy_repeat
from drf_fast.report.gallery import draw_cards, draw_noise
from drf_fast.report.style import check_path
from drf_fast.runtime.progress import say


def run(config: ShowConfig) -> int:
    """The command: one picture.

    Returns:
        0, the exit status.

    Raises:
        InputError: neither or both of a run and --noise, or what ``attack`` refuses.
    """
    if (config.run is None) == (config.noise is None):
        raise InputError(
            "show needs something to look at: expected either RUN or --noise DATA, got "
            f"{'neither' if config.run is None else 'both'}; pass one of them"
        )
    for name in tags.having(ShowConfig, Range.COUNT):
        if not 1 <= getattr(config, name) < 2**32:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} must be 1 or more, got {getattr(config, name)}")
    if not -(2**63) <= config.seed < 2**63:
        raise InputError(f"--seed must fit 64 bits, got {config.seed}")
    out = config.out or _default_out(config)
    check_path(out, config.force)
    if config.run is None:
        _noise(config, out)
    else:
        found = cards_of(config)
        name = checkpoint.locate(config.run).parent.name
        draw_cards(found, f"{name}: attacked within ε = {_strengths(found)}", out)
    say(f"wrote {out}")
    return 0


def cards_of(config: ShowConfig) -> list[Card]:
    """The images of a run that ``config`` asks for, attacked and voted on."""
    assert config.run is not None
    sigma = None if config.sigma is None else numbers(config.sigma, "sigma", "0.5")[0]
    settings = AttackConfig(
        checkpoint=config.run,
        n=config.n,
        num_samples=config.num_samples,
        steps=config.steps,
        restarts=1,
        ddn_steps=config.steps,
        certificates=config.certificates,
        data_dir=config.data_dir,
        sigma=sigma,
        arch=config.arch,
        normalize=config.normalize,
        device=config.device,
        seed=config.seed,
        max_images=None,
        skip=1,
    )
    path = checkpoint.locate(config.run)
    saved = checkpoint.load_any(path, config.arch, config.normalize)
    certificates = attack.certificates_of(settings, saved)
    if certificates is None:
        raise InputError(
            f"{path} has no certificates beside it: expected a log of this network at this sigma, "
            "got none; run 'drf-fast certify' first, or name one with --certificates"
        )
    _, work = attack.prepare(settings, saved, certificates)
    epsilon = 2 * work.classifier.sigma if config.epsilon is None else config.epsilon
    if not 0 < epsilon < 1e6:
        raise InputError(f"--epsilon must be above 0, in pixel units, got {epsilon}")
    rows = _attacked(path.parent, saved["sha256"]) if config.sort == "broken" else []
    chosen = gallery.choose(certificates, config.sort, config.images, epsilon, rows)
    return gallery.cards(work, certificates, chosen)


def _attacked(folder: Path, sha256: str) -> list[AttackRow]:
    """What the attack logs beside a checkpoint say of it."""
    logs = [read_attacked(path) for path in sorted(folder.glob("*.tsv")) if is_attack_log(path)]
    own = [log for log in logs if log.config.get("checkpoint_sha256") == sha256]
    return [row for log in own for row in log.rows]


def _noise(config: ShowConfig, out: Path) -> None:
    assert config.noise is not None
    sigmas = numbers(config.sigma or "0.25,0.5,1", "sigma")
    for sigma in sigmas:
        check_sigma(sigma)
    images = data.load(config.noise, config.split, data_dir=config.data_dir)
    indices = range(0, len(images), max(1, len(images) // config.images))[: config.images]
    x = images.float_images(list(indices))
    kind = {"seed": config.seed, "image_ids": torch.tensor(list(indices))}
    # The same normals at every level: only the level differs from column to column.
    columns = [x, *(noisy_repeat(x, sigma, 1, **kind) for sigma in sigmas)]
    pictures = torch.stack(columns, dim=1).numpy()
    draw_noise(pictures, (0.0, *sigmas), f"{images.name} ({images.split}) under noise", out)


def _strengths(cards: list[Card]) -> str:
    epsilons = sorted({card.epsilon for card in cards})
    ends = dict.fromkeys((epsilons[0], epsilons[-1]))
    return " to ".join(f"{epsilon:g}" for epsilon in ends)


def _default_out(config: ShowConfig) -> Path:
    if config.run is None:
        return Path("noise.png")
    return checkpoint.locate(config.run).parent / "images.png"
