"""The definition of a sweep, from the command line or from the folder of an earlier one.

It is saved in ``sweep.json`` in the folder of the sweep: the grid, the seeds, the settings that all
runs share, those of certification, measured choices (so that a resumed run uses the same memory
format and batch size) and failed runs.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drf_fast.certification.log import read_log, sidecar
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.sweep import grid
from drf_fast.commands.sweep.grid import Grid, SweepRun
from drf_fast.config import arguments, run_files, tags, training
from drf_fast.config.certification import certify_settings, check_settings
from drf_fast.config.options import CertifyConfig, SweepConfig, TrainConfig
from drf_fast.config.ranges import check_ranges
from drf_fast.config.tags import Tag
from drf_fast.config.values import refuse_unnamed_code, to_dict, updated, without_code
from drf_fast.errors import InputError
from drf_fast.report.shards import missing
from drf_fast.runtime import processes
from drf_fast.runtime.files import is_empty, locked, new_folder, read_json, write_json

_FORMAT = "drf_fast sweep 1"
_CERTIFICATION = {
    "n": TrainConfig.certify_n,
    "n0": CertifyConfig.n0,
    "alpha": CertifyConfig.alpha,
    "certify_images": None,
    "skip": None,
}


@dataclass
class Sweep:
    """A sweep and its folder.

    Attributes:
        folder: of the sweep.
        grid: values by field.
        seeds: training seeds of each setting.
        bases: settings that the runs share, by recipe and sigma.
        certification: n, n0, alpha and the choice of images.
        runs: all runs, in order.
        measured: measured choices and times, by cost key; see ``cost.py``.
        failed: error messages by run.
        earlier: names of further runs that the sweep in the folder had.
    """

    folder: Path
    grid: Grid
    seeds: tuple[int, ...]
    bases: dict[str, TrainConfig]
    certification: dict[str, Any]
    runs: list[SweepRun]
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    earlier: tuple[str, ...] = ()

    def save(self) -> None:
        """Write ``sweep.json``."""
        content = {
            "format": _FORMAT,
            "vary": grid.plain(self.grid),
            "seeds": self.seeds,
            "bases": {recipe: to_dict(base) for recipe, base in self.bases.items()},
            "certification": self.certification,
            "runs": list(dict.fromkeys([*(run.name for run in self.runs), *self.earlier])),
            "measured": self.measured,
            "failed": self.failed,
        }
        write_json(self.folder / run_files.SWEEP, content)

    def log_of(self, run: SweepRun) -> Path:
        """The path of a run's certificates."""
        return self.folder / run.name / run_files.CERTIFICATES

    def certify_config(self, checkpoint: Path, config: TrainConfig, images: int) -> CertifyConfig:
        """The configuration for certifying the network of a run.

        Args:
            checkpoint: its checkpoint.
            config: how it was trained.
            images: size of the test set.
        """
        terms = dict(self.certification)
        count = terms.pop("certify_images")
        return certify_settings(checkpoint, config, images, count=count, **terms)


def make(config: SweepConfig, words: list[str]) -> Sweep:
    """The sweep of the command line, continued from its folder with ``--resume``.

    Raises:
        InputError: bad options, before anything is computed or written.
    """
    if processes.count() > 1:
        raise InputError(
            f"a sweep runs in one process, got {processes.count()}: start it without torchrun; "
            "sweeps of other values or seeds can run side by side in folders of their own"
        )
    training.check_resume(config, "sweep")
    if config.certify_images is not None and config.skip is not None:
        raise InputError(
            "--certify-images and --skip both choose the test images: pass one of them"
        )
    check_ranges(config)
    saved = _saved(config)
    values = _extended(_saved_grid(saved), grid.parse_vary(config.vary))
    flags = arguments.given(words)
    if config.seeds is not None and "seed" in flags:
        raise InputError("--seed and --seeds both name training seeds: pass one of them")
    if not values and config.seeds is None and saved is None:
        raise InputError(
            "nothing to sweep: expected --vary NAME=VALUE,VALUE or --seeds 0,1,2, got neither; for "
            "one run use 'drf-fast train'"
        )
    bases = _bases(config, words, values, saved)
    if config.seeds is not None:
        before = saved["seeds"] if saved and values.keys() == saved["vary"].keys() else []
        seeds = tuple(dict.fromkeys([*before, *grid.parse_seeds(config.seeds)]))
    else:
        seeds = tuple(saved["seeds"]) if saved else (next(iter(bases.values())).seed,)
    if "config" in flags:
        flags |= arguments.set_in_file(next(iter(bases.values())))
    runs = grid.expand(bases, values, seeds, flags)
    sweep = Sweep(
        folder=config.out or _default_folder(runs[0], values),
        grid=values,
        seeds=seeds,
        bases=bases,
        certification=_certification(config, saved),
        runs=runs,
        measured=saved["measured"] if saved else {},
        failed=saved["failed"] if saved else {},
        earlier=tuple(saved["runs"]) if saved else (),
    )
    check_settings(sweep.certify_config(Path(), runs[0].config, images=1))
    return sweep


def _default_folder(run: SweepRun, values: Grid) -> Path:
    names = [grid.flag(field) for field in values] or ["seeds"]
    label = training.method_label(run.config)
    return Path("runs", "-".join(["sweep", run.config.data, label, *names]))


def _saved(config: SweepConfig) -> dict[str, Any] | None:
    """The saved sweep in the folder, with ``--resume``; else None."""
    if not config.resume:
        return None
    if config.out is None:
        raise InputError("--resume needs to know which sweep: expected --out FOLDER with it")
    if not config.out.is_dir():
        return None
    path = config.out / run_files.SWEEP
    if not path.exists() and is_empty(config.out):
        return None
    return _check_saved(read_json(path), path)


def _check_saved(saved: Any, path: Path) -> dict[str, Any]:
    kinds: dict[str, type] = {
        "vary": dict, "seeds": list, "bases": dict, "certification": dict, "runs": list,
        "measured": dict, "failed": dict,
    }  # fmt: skip
    usable = (
        isinstance(saved, dict)
        and saved.get("format") == _FORMAT
        and all(isinstance(saved.get(key), kind) for key, kind in kinds.items())
        and all(isinstance(values, list) for values in saved["vary"].values())
        and all(isinstance(base, dict) for base in saved["bases"].values())
        and all(isinstance(entry, dict) for entry in saved["measured"].values())
        and saved["certification"].keys() == _CERTIFICATION.keys()
        and saved["seeds"]
        and all(type(seed) is int for seed in saved["seeds"])
        and all(isinstance(name, str) for name in saved["runs"])
    )
    if not usable:
        raise InputError(
            f"{path} does not describe a sweep: expected what 'drf-fast sweep' wrote there, got "
            "something else; restore the file or choose another --out"
        )
    return saved


def _saved_grid(saved: dict[str, Any] | None) -> Grid:
    if saved is None:
        return {}
    return {name: grid.check_values(name, values) for name, values in saved["vary"].items()}


def _extended(saved: Grid, asked: Grid) -> Grid:
    """The grid of the folder with the values asked for; another grid if it varies other fields."""
    if not asked or saved.keys() != asked.keys():
        return asked or saved
    return {name: tuple(dict.fromkeys([*saved[name], *asked[name]])) for name in saved}


def _bases(
    config: SweepConfig, words: list[str], values: Grid, saved: dict[str, Any] | None
) -> dict[str, TrainConfig]:
    """The shared settings from the words; on resume from folder and words, which must agree."""
    if saved is None or config.out is None:
        return grid.bases_of(words, values)
    source = str(config.out / run_files.SWEEP)
    then = {recipe: _settings_of(base, source) for recipe, base in saved["bases"].items()}
    bases = grid.bases_of(words, values, then)
    for recipe, base in bases.items():
        if recipe not in then:
            continue
        refuse_unnamed_code(saved["bases"][recipe].get("arch"), base.arch, source)
        training.refuse_other_settings(base, saved["bases"][recipe], "", config.out)
    return bases


def _settings_of(base: dict[str, Any], source: str) -> TrainConfig:
    """Settings of a file, without limits of one call, which ``train --resume`` forgets, too."""
    limits = tags.having(TrainConfig, Tag.RENEWED)
    known = {name: value for name, value in base.items() if name not in limits}
    return updated(TrainConfig(), without_code(known), source)


def _certification(config: SweepConfig, saved: dict[str, Any] | None) -> dict[str, Any]:
    asked = {name: getattr(config, name) for name in _CERTIFICATION}
    if saved is None:
        return {
            k: default if asked[k] is None else asked[k] for k, default in _CERTIFICATION.items()
        }
    then = saved["certification"]
    for name, value in asked.items():
        if value is not None and value != then[name]:
            raise InputError(
                f"cannot resume {config.out}: expected --{grid.flag(name)} {then[name]}, with "
                f"which it was started, got {value}; leave the flag out, or choose another --out"
            )
    return then


@contextlib.contextmanager
def opened(sweep: Sweep, config: SweepConfig) -> Iterator[None]:
    """Create the folder, and lock it against a second sweep.

    Raises:
        InputError: in use, not writable, or with ``--force`` not a sweep's.
    """
    new_folder(sweep.folder, force=config.force, resume=config.resume)
    with locked(sweep.folder):
        if config.force:
            _old_runs(sweep.folder)
        yield


def clear(folder: Path) -> None:
    """Remove the files of the sweep in the folder, and nothing else."""
    for run in _old_runs(folder):
        shutil.rmtree(run)
    for pattern in run_files.OF_A_SWEEP:
        for file in folder.glob(pattern):
            file.unlink()


def _old_runs(folder: Path) -> list[Path]:
    path = folder / run_files.SWEEP
    if not path.exists() and not is_empty(folder):
        raise InputError(
            f"{folder} holds no sweep: expected one to replace, got other files; choose another "
            "--out"
        )
    names = _check_saved(read_json(path), path)["runs"] if path.exists() else []
    runs = [folder / name for name in names if Path(name).name == name != ".."]
    return [run for run in runs if not run.is_symlink() and (run / run_files.SETTINGS).exists()]


def finished(sweep: Sweep, run: SweepRun) -> bool:
    """Whether the run's network is trained and all its images are certified."""
    path, network = sweep.log_of(run), sweep.folder / run.name / run_files.CHECKPOINT
    if not (path.exists() and sidecar(path).exists() and network.exists()):
        return False
    try:
        log = read_log(path)
        described = log.config or {}
        if missing(log) is not None or described.get("indices_total") is None:
            return False
        if described.get("checkpoint_sha256") != checkpoint.sha256(network):
            return False
        recorded = read_json(sweep.folder / run.name / run_files.SETTINGS)
    except InputError:
        return False  # running it again reports the error
    now = json.loads(json.dumps(to_dict(run.config)))
    then = described.get("training")
    terms = {key: sweep.certification[key] for key in ("n", "n0", "alpha")}
    alike = (
        isinstance(then, dict)
        and all(
            now[key] in (value, "auto")
            or (key == "precision" and training.was_left_out(recorded, now[key]))
            for key, value in training.trained(then).items()
            if key in now
        )
        and all(described.get(key) == value for key, value in terms.items())
    )
    return alike and _is_trained(network, run.config)


def _is_trained(network: Path, config: TrainConfig) -> bool:
    """Whether training has come to its end, or to the limit that holds now."""
    try:
        state = checkpoint.load(network)
    except InputError:
        return False
    epoch, step = state.get("epoch", config.epochs), state.get("step", 0)
    return epoch >= config.epochs or (config.max_steps is not None and step >= config.max_steps)
