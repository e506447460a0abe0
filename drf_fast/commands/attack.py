"""``drf-fast attack``: PGD and DDN against the smoothed classifier, compared with certificates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from torch import nn

from drf_fast.attacks import engine
from drf_fast.attacks.log import AttackLog, read_attacked
from drf_fast.attacks.search import Search
from drf_fast.attacks.verdict import Broken, Standing, broken, standings
from drf_fast.certification import loading
from drf_fast.certification.loading import Loaded, Source
from drf_fast.certification.log import Log
from drf_fast.certification.network import as_requested
from drf_fast.certification.plan import warning_of_alpha
from drf_fast.commands import beside
from drf_fast.config.certification import check_settings, shard_of
from drf_fast.config.choices import Arithmetic
from drf_fast.config.look import AttackConfig, numbers
from drf_fast.config.training import check_epsilon
from drf_fast.errors import InputError
from drf_fast.functional import noise_key
from drf_fast.models.faster import place
from drf_fast.runtime import processes
from drf_fast.runtime.frozen import frozen
from drf_fast.runtime.logits import logits_of
from drf_fast.runtime.progress import say
from drf_fast.runtime.randomness import ATTACK
from drf_fast.runtime.text import number_of


def run(config: AttackConfig) -> int:
    """The command: writes the log, prints a table of accuracies and each broken certificate.

    Returns:
        The exit status: 0, or 1 if an attack contradicts a certificate.

    Raises:
        InputError: a bad checkpoint, data set, setting or output, or a log of another run.
    """
    check_settings(config)
    if processes.count() > 1:
        raise InputError(
            f"attack runs in one process: expected no torchrun, got {processes.count()} processes; "
            "divide the images with --shard i/k"
        )
    if config.sound:
        raise InputError(
            "--sound is of 8-bit images: expected attack without it, since adversarial images lie "
            "between the levels; leave it out, also to attack a network with sound certificates"
        )
    source = loading.source(config)
    certificates = beside.certificates_of(config.certificates, source)
    if certificates is None:
        say("no certificates of this network to compare with; run 'drf-fast certify' first")
    else:
        n = (certificates.config or {}).get("n", "unknown")
        images = number_of(len(certificates), "image")
        say(f"certificates: {', '.join(map(str, _files_of(certificates)))} ({images}, n = {n})")
    of_alpha = warning_of_alpha(config.alpha)
    if of_alpha is not None:
        say(f"warning: {of_alpha}")
    out = config.out or source.default_path(_default_name(config, source.sigma))
    loaded, work = prepare(loading.with_recorded_choices(config, out), source, certificates)
    description = _description(config, loaded, work, certificates)
    if config.resume:
        log = AttackLog.resume(out, description)
    else:
        log = AttackLog.create(out, description, force=config.force)
    images = number_of(sum(map(len, work.groups())), "image")
    before = f" ({len(log.done):,} of them done before)" if log.done else ""
    say(
        f"attacking {images}{before} of {work.images.name} at sigma {work.classifier.sigma:g}: "
        f"PGD (steps {config.steps}, starts {config.restarts})"
        + (f", DDN (steps {config.ddn_steps})" if config.ddn_steps else "")
        + f", m {config.num_samples}; PREDICT with n {config.n:,}"
    )
    with log:
        engine.run(work, log)
    say(f"log: {out}")
    rows = read_attacked(out).rows
    fallen = [] if certificates is None else broken(rows, certificates)
    _show(standings(rows, certificates), fallen, config.json, _names_of(certificates))
    return 1 if fallen else 0


def prepare(
    config: AttackConfig, source: Source, certificates: Log | None
) -> tuple[Loaded, engine.Work]:
    """The network, the images and the search, as ``config`` sets them.

    Where it leaves them open, images and precision are those of the certificates, which hold for
    the network in this precision. All noise, of the search and of its evaluation, is under a key
    reserved for attacks.
    """
    key = noise_key(config.seed, ATTACK)
    recorded = {} if certificates is None else certificates.config or {}
    skip, most = config.skip, config.max_images
    if skip is None:
        skip, total = (recorded.get(name) for name in ("skip", "indices_total"))
        skip = skip if isinstance(skip, int) and skip > 0 else 1
        if isinstance(total, int) and total > 0:
            most = total if most is None else min(most, total)
    precision = as_requested(recorded.get("precision"))
    if config.precision == "auto" and precision in get_args(Arithmetic):
        config = dataclasses.replace(config, precision=precision)
    loaded = loading.load(dataclasses.replace(config, skip=skip, max_images=most, seed=key), source)
    sigma = loaded.classifier.sigma
    epsilons = (sigma, 2 * sigma, 3 * sigma)
    if config.epsilons is not None:
        epsilons = numbers(config.epsilons, "epsilons")
        check_epsilon(max(epsilons), loaded.images.image_shape, "--epsilons")
    work = engine.Work(
        classifier=loaded.classifier,
        model=_with_gradient(loaded, config.num_samples),
        images=loaded.images,
        indices=loaded.indices,
        device=loaded.device,
        search=Search(
            config.num_samples, config.steps, config.restarts, config.ddn_steps, key
        ),
        epsilons=epsilons,
        n=config.n,
        alpha=config.alpha,
        batch_size=loaded.batch_size,
        shard=shard_of(config),
    )  # fmt: skip
    return loaded, work


def _with_gradient(loaded: Loaded, num_samples: int) -> nn.Module:
    """The network through which gradients are computed, in the memory format of the log.

    Raises:
        InputError: it passes no gradient to the images.
        RunError: out of memory for the noisy copies of one image.
    """
    shape, rows = loaded.images.image_shape, min(256, num_samples)
    base: Any = loaded.classifier.base  # a module, as every network that is loaded
    layout = loaded.classifier.choices["memory_format"]
    network = place(
        base, loaded.device, layout, "fp32", shape, rows, remedy="--num-samples"
    ).network
    images = loaded.images.float_images(list(loaded.indices[:1])).to(loaded.device)
    with frozen(network):
        logits = logits_of(network(images.requires_grad_()))
    if not logits.requires_grad:
        raise InputError(
            "the attack follows the gradient of the logits to the images: expected a network that "
            "passes it on, got one whose code leaves it out (no_grad, inference_mode or detach); "
            "remove that, or leave the network to certify"
        )
    return network


def _files_of(certificates: Log) -> list[Path]:
    return list(certificates.parts.values()) or [certificates.path]


def _names_of(certificates: Log | None) -> list[str] | None:
    """The names of the log, or of its shards, as recorded."""
    return None if certificates is None else [path.name for path in _files_of(certificates)]


def _show(
    standings: Sequence[Standing],
    fallen: Sequence[Broken],
    as_json: bool,
    certificates: list[str] | None,
) -> None:
    if as_json:
        listed = {"epsilons": standings, "broken_certificates": fallen}
        plain = {key: [dataclasses.asdict(one) for one in all] for key, all in listed.items()}
        print(json.dumps({"certificates": certificates, **plain}, indent=1))
    else:
        print("epsilon  images  certified %  under attack %  undecided %  mean distance")
        for one in standings:
            certified = "-" if one.certified is None else f"{one.certified:.1f}"
            print(
                f"{one.epsilon:<7g}  {one.images:>6}  {certified:>11}  {one.correct:>14.1f}  "
                f"{one.undecided:>11.1f}  {one.distance:>13.3f}"
            )
    for one in fallen:
        say(f"BROKEN CERTIFICATE: {one}")
    if fallen:
        say(
            f"{len(fallen)} certificates are contradicted: each certificate and each judgement is "
            "wrong with probability alpha at most; where that cannot be it, the logs differ in "
            "precision or --compile, the certificates are --sound, of the network behind a "
            "rounding to 8-bit levels, one of the logs is not of this network, or certification "
            "has an error"
        )


def _description(
    config: AttackConfig, loaded: Loaded, work: engine.Work, certificates: Log | None
) -> dict[str, Any]:
    """The configuration of the log.

    On resume all of it but the environment and the certificates must agree.
    """
    shard = {} if config.shard is None else {"shard": config.shard}
    computation = loaded.computation
    if not computation["compile"]:  # logs of older versions lack the key
        del computation["compile"]
    return {
        **loaded.source.identity,
        "n": config.n,
        "alpha": config.alpha,
        "epsilons": list(work.epsilons),
        "num_samples": config.num_samples,
        "steps": config.steps,
        "restarts": config.restarts,
        "ddn_steps": config.ddn_steps,
        **shard,
        "seed": config.seed,
        "max_images": config.max_images,
        "indices": [loaded.indices[0], loaded.indices[-1], len(loaded.indices)],
        **computation,
        "certificates": _names_of(certificates),
    }


def _default_name(config: AttackConfig, sigma: float) -> str:
    part = "" if config.shard is None else shard_of(config).suffix
    return f"attack-s{sigma:g}-n{config.n}{part}.tsv"
