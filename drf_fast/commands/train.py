"""``drf-fast train``: train, certify some test images, print and draw the results."""

from __future__ import annotations

import json
from pathlib import Path

from drf_fast import data
from drf_fast.certification.log.sidecar import read_config
from drf_fast.commands import certify, page, report
from drf_fast.config import run_files
from drf_fast.config.options import CertifyConfig, TrainConfig
from drf_fast.config.training import run_folder
from drf_fast.config.values import names_code
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
    return 0 if log is None else report.run([log], plot=folder / run_files.CURVE, force=True)


def _certify(config: TrainConfig, folder: Path) -> Path:
    """Certify some test images into the run folder.

    A log of another network, of other images or with another n is replaced.
    """
    out = folder / run_files.CERTIFICATES
    test_images = len(data.load(config.data, "test", data_dir=config.data_dir))
    skip = max(1, test_images // config.certify_images)
    wanted = {
        "n": config.certify_n,
        "skip": skip,
        "max_images": config.certify_images,
    }
    same = config.resume and certify.is_of_network(out, folder / run_files.CHECKPOINT)
    same = same and wanted.items() <= read_config(out).items()
    same = processes.broadcast(same)
    log = certify.certify(
        CertifyConfig(
            checkpoint=folder / run_files.CHECKPOINT,
            data_dir=config.data_dir,  # the images may have moved since the checkpoint was written
            arch=config.arch if names_code(config.arch) else None,
            n=config.certify_n,
            skip=skip,
            max_images=config.certify_images,
            precision="auto" if config.precision == "fp32" else config.precision,
            device=config.device,
            threads=config.threads,
            compile=config.compile,
            timeout=config.timeout,
            out=out,
            resume=same,
            force=not same,
        )
    )
    assert log is not None  # no --plan here
    return log
