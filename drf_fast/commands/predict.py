"""``drf-fast predict``: PREDICT over the images of a data set, one line each."""

from __future__ import annotations

import json
import sys

from drf_fast.certification import loading
from drf_fast.certification.classifier import SmoothedClassifier
from drf_fast.config.certification import check_settings
from drf_fast.config.options import PredictConfig
from drf_fast.errors import InputError
from drf_fast.runtime.files import write_atomic
from drf_fast.runtime.progress import Tracker, say

COLUMNS = ("idx", "label", "predict", "correct")


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
    if config.out is not None and config.out.exists() and not config.force:
        raise InputError(f"{config.out} exists: replace it with --force, or choose another --out")
    loaded = loading.load(config)
    images = loaded.images
    lines = ["\t".join(COLUMNS)]
    right = abstained = 0
    if config.out is None:
        print(lines[0])
    with Tracker("predict", len(loaded.indices)) as tracker:
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
            tracker.advance()
    if config.out is not None:
        write_atomic(config.out, "\n".join(lines) + "\n")
    count = len(loaded.indices)
    if config.json:
        totals = {"images": count, "correct": right / count, "abstained": abstained / count}
        json.dump({**totals, "n": config.n, "alpha": config.alpha}, sys.stdout, indent=1)
        print()
    say(
        f"{count} images: {100 * right / count:.1f} % right, {100 * abstained / count:.1f} % "
        f"abstained (n {config.n:,}, alpha {config.alpha:g})"
    )
    return 0
