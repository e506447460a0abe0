"""``drf-fast certify``: CERTIFY over the images of a data set, one log line each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from drf_fast import data
from drf_fast.certification import engine, loading, plan, stopping
from drf_fast.certification.loading import Loaded
from drf_fast.certification.log import CertificationLog, sidecar
from drf_fast.certification.log.parts import collect, finished_images
from drf_fast.certification.log.sidecar import ENVIRONMENT, read_config
from drf_fast.certification.log.writer import check_path, refuse_existing
from drf_fast.certification.stopping import Rule
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.config import run_files
from drf_fast.config.certification import check_settings, shard_of
from drf_fast.config.options import CertifyConfig, TrainConfig
from drf_fast.errors import InputError
from drf_fast.runtime import machine, processes
from drf_fast.runtime.files import absolute, read_json
from drf_fast.runtime.progress import say


@machine.same_threads()
def certify(config: CertifyConfig) -> Path | None:
    """Certify with the settings in ``config``; return the path of the log, None after ``--plan``.

    Raises:
        InputError: a bad checkpoint, data set, setting or output, or a log of another run.
    """
    processes.check_environment()
    check_settings(config)
    shard = shard_of(config)
    source = loading.source(config)
    out = config.out or source.default_path(_default_name(config, source.sigma))
    config = dataclasses.replace(config, out=out)
    if processes.rank() == 0 and not config.plan:  # before anything is compiled or measured
        check_path(out)
        if not (config.resume or config.force):
            refuse_existing(out)
    config = loading.with_recorded_choices(config, out)
    loaded = loading.load(config, source)
    work = engine.Work(
        classifier=loaded.classifier,
        images=loaded.images,
        indices=loaded.indices,
        device=loaded.device,
        n0=config.n0,
        rule=rule_of(config, loaded.classifier.drawn_sigma, loaded.distance),
        batch_size=loaded.batch_size,
        skip_wrong=config.skip_wrong,
        shard=shard,
    )
    if processes.rank() == 0:
        planned = plan.make(work, finished_images(out) if config.resume else frozenset())
        plan.show(planned, work)
        if config.plan and config.json:
            print(json.dumps(planned.as_dict(), indent=1))
    processes.wait_for_all()  # for process 0, which has measured
    if config.plan:
        processes.barrier()
        processes.finish()
        return None
    description = _description(config, loaded, work)
    if source.data_dir is not None:  # where ``report`` finds images for its page
        channels = source.images.image_shape[0]
        place = {"data_dir": absolute(source.data_dir), "channels": channels}
        description[ENVIRONMENT] = {**description[ENVIRONMENT], **place}
    with _open_log(config, out, description) as log:
        engine.run(work, log, processes.rank(), processes.count())
        if processes.rank() > 0:
            log.close()  # on the disk before process 0 reads it, from another machine perhaps
        processes.wait_for_all()
        if processes.rank() == 0:  # while no other job may write to the log
            collect(out)
            say(f"log: {out}")
    processes.barrier()
    processes.finish()
    return out


def _open_log(config: CertifyConfig, out: Path, description: dict[str, Any]) -> CertificationLog:
    """The log, or this process's part of it; process 0 creates and merges the log itself."""

    def of_first() -> CertificationLog:
        if config.resume:
            return CertificationLog.resume(out, description)
        return CertificationLog.create(out, description, force=config.force)

    if processes.count() == 1:
        return of_first()
    shared = {key: value for key, value in description.items() if key != ENVIRONMENT}
    processes.refuse_differences(shared, "certify with another network, images or settings")
    whole, done = None, None
    problem = ""
    if processes.rank() == 0:
        try:
            whole = of_first()
            done = whole.done
        except InputError as error:
            problem = str(error)
    problem, done = processes.broadcast((problem, done))
    if problem:
        raise InputError(problem)
    return CertificationLog.part(out, processes.rank(), done, guard=whole)


def test_images(trained: TrainConfig, folder: Path) -> int:
    """The size of the test set of the training run in ``folder``."""
    channels = read_json(folder / run_files.SETTINGS).get("channels", 3)
    return len(data.load(trained.data, "test", data_dir=trained.data_dir, channels=channels))


def is_of_network(out: Path, network: Path) -> bool:
    """Whether there is a log at ``out``, and of the network in this checkpoint.

    Raises:
        InputError: its settings cannot be read.
    """
    if not sidecar(out).exists():
        return False
    return read_config(out).get("checkpoint_sha256") == checkpoint.sha256(network)


def rule_of(config: CertifyConfig, sigma: float, distance: float = 0.0) -> Rule:
    """The stopping rule."""
    asked = [name for name in ("radius", "tolerance") if getattr(config, name) is not None]
    if config.budget == "fixed":
        if asked:
            raise InputError(f"--{asked[0]} stops early: expected --budget anytime with it")
        return stopping.rule(config.n, sigma, config.alpha, distance)
    if len(asked) != 1:
        raise InputError(
            "--budget anytime needs to know when to stop: expected one of --radius R (decide "
            f"whether the certified radius is at least R) and --tolerance T, got {len(asked)}"
        )
    value: float = getattr(config, asked[0])
    if not 0 < value < 1e6:
        raise InputError(f"--{asked[0]} must be above 0, in pixel units, got {value}")
    try:
        return stopping.rule(
            config.n, sigma, config.alpha, distance, config.radius, config.tolerance
        )
    except ValueError as error:  # a radius larger than n samples can prove
        raise InputError(f"--{asked[0]}: {error}") from error


def _description(config: CertifyConfig, loaded: Loaded, work: engine.Work) -> dict[str, Any]:
    """The configuration of the log; on resume all of it but the environment must agree."""
    optional = {"shard": config.shard, "sound": loaded.sound}
    return {
        **loaded.source.identity,
        **work.settings(),
        **{key: value for key, value in optional.items() if value is not None},
        "skip": config.skip,
        "max_images": config.max_images,
        "indices_total": len(loaded.indices),
    }


def _default_name(config: CertifyConfig, sigma: float) -> str:
    name = f"certify-s{sigma:g}-n{config.n}"
    if config.radius is not None:
        name += f"-r{config.radius:g}"
    if config.tolerance is not None:
        name += f"-t{config.tolerance:g}"
    if config.sound:
        name += "-sound"
    if config.shard is not None:
        name += shard_of(config).suffix
    return f"{name}.tsv"
