"""``drf-fast predict``: PREDICT over the images of a data set, one line each."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from drf_fast.certification import loading
from drf_fast.certification.classifier import SmoothedClassifier
from drf_fast.certification.log import sidecar
from drf_fast.certification.log.rows import PREDICT_COLUMNS
from drf_fast.certification.log.writer import check_path, refuse_other_files
from drf_fast.certification.plan import warning_of_alpha
from drf_fast.certification.stopping import reduced_alpha
from drf_fast.config.certification import check_settings
from drf_fast.config.options import PredictConfig
from drf_fast.errors import InputError
from drf_fast.runtime import machine
from drf_fast.runtime.files import write_atomic, write_json
from drf_fast.runtime.progress import Tracker, say
from drf_fast.runtime.text import number_of


@machine.same_threads()
def run(config: PredictConfig) -> int:
    """The command: lines on stdout or into ``--out``, totals on stderr, or on stdout as JSON.

    Returns:
        0, the exit status.

    Raises:
        InputError: a bad checkpoint, data set, setting or output.
    """
    check_settings(config)
    if config.json and config.out is None:
        raise InputError("--json prints the totals on stdout: expected --out FILE for the lines")
    if config.out is not None:
        _check_out(config.out, config.force)
    loaded = loading.load(config)
    images = loaded.images
    try:
        reduced_alpha(config.alpha, config.n, loaded.distance)
    except ValueError as error:
        raise InputError(f"--sound: {error}") from error
    _warn(config)
    lines = ["\t".join(PREDICT_COLUMNS)]
    right = abstained = 0
    if config.out is None:
        print(lines[0])
    with Tracker("predict", len(loaded.indices)) as tracker:
        started = time.perf_counter()
        for index in loaded.indices:
            x = images.float_images([index])[0].to(loaded.device)
            predicted = loaded.classifier.predict(
                x, config.n, config.alpha, loaded.batch_size, image_id=index
            )
            label = int(images.labels[index])
            right += predicted == label
            abstained += predicted == SmoothedClassifier.ABSTAIN
            lines.append(f"{index}\t{label}\t{predicted}\t{int(predicted == label)}")
            if config.out is None:
                print(lines[-1], flush=True)
            done, seconds = len(lines) - 1, time.perf_counter() - started
            tracker.advance(
                note=f"{100 * right / done:.1f} % right, {100 * abstained / done:.1f} % abstained, "
                f"{config.n * done / seconds:,.0f} samples/s"
            )
    if config.out is not None:
        write_json(sidecar(config.out), _description(config, loaded))
        write_atomic(config.out, "\n".join(lines) + "\n")
    count = len(loaded.indices)
    if config.json:
        totals = {"images": count, "correct": right / count, "abstained": abstained / count}
        json.dump({**totals, "n": config.n, "alpha": config.alpha}, sys.stdout, indent=1)
        print()
    say(
        f"{number_of(count, 'image')}: {100 * right / count:.1f} % right, "
        f"{100 * abstained / count:.1f} % abstained (n {config.n:,}, alpha {config.alpha:g})"
    )
    return 0


def _check_out(out: Path, force: bool) -> None:
    check_path(out)
    for path in (out, sidecar(out)):
        if path.exists() and not force:
            raise InputError(f"{path} exists: replace it with --force, or choose another --out")
    refuse_other_files(out)


def _warn(config: PredictConfig) -> None:
    """Warn of an odd alpha, and if even n equal votes cannot reach it: their p-value for a fair
    coin is 2^(1-n)."""
    of_alpha = warning_of_alpha(config.alpha)
    if of_alpha is not None:
        say(f"warning: {of_alpha}")
    if 2.0 ** (1 - config.n) > config.alpha:
        needed = 1 + math.ceil(-math.log2(config.alpha))
        say(
            f"warning: with n {config.n} and alpha {config.alpha:g} every image must abstain; "
            f"{needed:,} samples can predict something"
        )


def _description(config: PredictConfig, loaded: loading.Loaded) -> dict[str, Any]:
    """The configuration of the log, with the keys of certify."""
    return {
        **loaded.source.identity,
        "n": config.n,
        "alpha": config.alpha,
        **({"sound": loaded.sound} if loaded.sound else {}),
        "seed": config.seed,
        "skip": config.skip,
        "indices_total": len(loaded.indices),
        **loaded.computation,
    }
