"""``drf-fast train``: train, certify some test images, print and draw the results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from drf_fast.certification.log.sidecar import read_config
from drf_fast.commands import certify, page, report
from drf_fast.config import run_files
from drf_fast.config.certification import certify_settings
from drf_fast.config.look import ReportConfig
from drf_fast.config.options import TrainConfig
from drf_fast.config.training import run_folder
from drf_fast.runtime import machine, processes
from drf_fast.training import dry_run, loop, teacher
from drf_fast.training.metrics import last_metrics
from drf_fast.training.prepare import prepare
from drf_fast.training.run import announce


def run(config: TrainConfig) -> int:
    """The command: train, certify some test images, print and draw the results.

    Raises:
        InputError, RunError: see ``train``.
    """
    processes.check_environment()
    if config.dry_run:
        with machine.same_threads():
            dry = prepare(config, run_folder(config))
            before = teacher.attach_placeholder(dry)
            dry_run.show(dry, loop.batches(dry), loop.accuracy_under_noise, before)
        processes.finish()
        return 0
    folder = loop.train(config)
    metrics = last_metrics(folder)
    if metrics and not config.json and processes.rank() == 0:
        accuracy = 100 * metrics["test_accuracy_under_noise"]
        print(f"accuracy under noise (one draw each, all test images): {accuracy:.2f} %")
    log = _certify(config, folder) if config.certify_images else None
    processes.finish()
    if processes.rank() > 0:
        return 0
    if log is not None:
        if config.json:  # else the report says it
            announce(f"curve: {folder / run_files.CURVE}")
        at = page.write_beside(folder, [log])
        if at is not None:
            announce(f"page: {at}")
    if config.json:
        shown = None if log is None else report.as_json([log], plot=folder / run_files.CURVE)
        print(json.dumps({"folder": str(folder), "metrics": metrics, "report": shown}, indent=2))
        return 0
    if log is None:
        return 0
    return report.run(ReportConfig((str(log),), plot=folder / run_files.CURVE, force=True))


def _certify(config: TrainConfig, folder: Path) -> Path:
    """Certify some test images into the run folder.

    A log of another network, of other images or with another n is replaced.
    """
    out, network = folder / run_files.CERTIFICATES, folder / run_files.CHECKPOINT
    settings = certify_settings(
        network,
        config,
        certify.test_images(config, folder),
        count=config.certify_images,
        n=config.certify_n,
        out=out,
    )
    wanted = {name: getattr(settings, name) for name in ("n", "skip", "max_images")}
    same = config.resume and certify.is_of_network(out, network)
    same = same and wanted.items() <= read_config(out).items()
    same = processes.broadcast(same)
    log = certify.certify(dataclasses.replace(settings, resume=same, force=not same))
    assert log is not None  # no --plan here
    return log
