"""What earlier commands left beside a network: logs of its certificates and of attacks on it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from drf_fast.attacks.log import AttackRow, differences, is_attack_log, read_attacked
from drf_fast.certification.loading import Source
from drf_fast.certification.log import Log, read_log
from drf_fast.errors import InputError
from drf_fast.report.shards import fullest, join_shards
from drf_fast.report.sources import logs_in
from drf_fast.runtime.progress import say


def certificates_of(named: Path | None, source: Source) -> Log | None:
    """The certificates to compare with: the log named, or the fullest one beside the checkpoint.

    Shards found there count as one log.

    Raises:
        InputError: certificates of another network, of other images, or at another sigma.
    """

    def of_another(log: Log) -> str:
        """What tells the log from certificates of this network; nothing where it is one."""
        if log.predictions:
            return "predictions"
        return ", ".join(differences(log.config or {}, source.identity))

    if named is not None:
        log = read_log(named)
        if other := of_another(log):
            raise InputError(
                f"{log.path}: expected certificates of the network and the images that are "
                f"attacked, got others: {other}; pass its own, or certify it first"
            )
        return log
    paths = _named_after(source, "certify")
    if source.path is not None:
        paths = logs_in(source.path.parent)
    found: list[Log] = []
    for path in paths:
        with contextlib.suppress(InputError):  # the user has not named it
            found.append(read_log(path))
    found = [log for log in found if len(log) > 0 and not of_another(log)]
    with contextlib.suppress(InputError):  # of several runs, or with a shard twice
        found = join_shards(found)
    return fullest(found) if found else None


def attacked(source: Source) -> list[AttackRow]:
    """The rows of the attack logs beside a network that are of it, its images and its sigma."""
    paths = _named_after(source, "attack")
    if source.path is not None:
        paths = sorted(source.path.parent.glob("*.tsv"))
    logs = []
    for path in filter(is_attack_log, paths):
        try:
            logs.append(read_attacked(path))
        except InputError as error:  # the user has not named it, and it may still be written
            say(f"left out: {error}")
    own = [log for log in logs if not differences(log.config, source.identity)]
    return [row for log in own for row in log.rows]


def _named_after(source: Source, command: str) -> list[Path]:
    """Logs of a network without a checkpoint: the folder is the user's, and may hold anything."""
    first = source.default_path(f"{command}-*.tsv")
    return sorted(first.parent.glob(first.name))
