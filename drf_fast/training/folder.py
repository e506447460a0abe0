"""The output folder of a run: whose files it holds, and removing those of an earlier run."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from drf_fast.checkpoints import ours as checkpoint
from drf_fast.config import run_files
from drf_fast.errors import InputError
from drf_fast.runtime.files import read_json


def remove_run(folder: Path) -> None:
    """Remove the files of an earlier run, and nothing else; last what tells that it is ours."""
    shutil.rmtree(folder / run_files.EVENTS, ignore_errors=True)
    for name in sorted(run_files.OF_A_RUN, key=lambda name: name == run_files.SETTINGS):
        (folder / name).unlink(missing_ok=True)


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder with files of our names that another program has written.

    Raises:
        InputError: it holds some, and they are not those of a run.
    """
    names = [name for name in (*run_files.OF_A_RUN, run_files.EVENTS) if (folder / name).exists()]
    if names and not _is_run(folder, names):
        raise InputError(
            f"{folder} holds no run of drf_fast: expected a run folder or an empty one, got "
            f"{', '.join(names)} of another program; choose another --out"
        )


def _is_run(folder: Path, names: list[str]) -> bool:
    """Whether the files in the folder are those of a run, by its settings, else its checkpoint."""
    if run_files.SETTINGS in names:
        try:
            saved = read_json(folder / run_files.SETTINGS)
        except InputError:
            return True  # damaged: replacing such a run is what --force is for
        return not isinstance(saved, dict) or "method_label" in saved
    if run_files.CHECKPOINT in names:
        with contextlib.suppress(InputError):
            checkpoint.load(folder / run_files.CHECKPOINT)
            return True
    certify_writes = {run_files.CERTIFICATES, run_files.CERTIFICATES_SETTINGS}
    return set(names) <= certify_writes


def remove_temporary_files(folder: Path) -> None:
    """Remove temporary files that a killed process has left; see ``files.atomic_file``."""
    for name in run_files.OF_A_RUN:
        for path in folder.glob(f".{name}.*"):
            path.unlink(missing_ok=True)
