"""The command: runs one after the other, each resumable, then the table and the figures."""

from __future__ import annotations

import dataclasses
import json
import time

import torch

from drf_fast.commands import certify, page
from drf_fast.commands.sweep import cost, figures, plan, summary
from drf_fast.commands.sweep.grid import SweepRun
from drf_fast.commands.sweep.plan import Sweep
from drf_fast.config import run_files
from drf_fast.config.options import SweepConfig
from drf_fast.errors import InputError, RunError
from drf_fast.runtime.files import is_empty
from drf_fast.runtime.progress import say
from drf_fast.runtime.text import duration
from drf_fast.training import loop


def run(config: SweepConfig, words: list[str]) -> int:
    """Run the unfinished runs of the grid; print the table, draw the figures.

    Args:
        config: the options of the sweep.
        words: flags of ``train`` that hold for all runs.

    Returns:
        0, the exit status.

    Raises:
        InputError: bad options, before anything is computed.
        RunError: some runs failed; the others are finished and reported.
    """
    sweep = plan.make(config, words)
    if config.plan:
        _refuse_folder_in_use(sweep, config)
        cost.measure(sweep, download=False)
        _show_plan(sweep, config)
        return 0
    with plan.opened(sweep, config):
        if config.force:  # the old sweep is removed only after the new one has been checked
            cost.measure(sweep)
            plan.clear(sweep.folder)
        _run_all(sweep)
        done = [run for run in sweep.runs if plan.finished(sweep, run)]
        if done:
            result = summary.summarize(sweep, done)
            summary.write(result, sweep.folder)
            drawn = figures.draw_all(result, sweep.folder)
            print(summary.as_json(result) if config.json else summary.as_text(result))
            for path in drawn:
                say(f"figure: {path}")
            at = page.write_beside(sweep.folder, [log.path for s in result.settings
                                                  for log in s.group.logs])  # fmt: skip
            if at is not None:
                say(f"page: {at}")
            table = sweep.folder / run_files.SUMMARY_TABLE
            say(f"table: {table}, {run_files.RUNS} and {run_files.SUMMARY}")
    failed = {run.name: sweep.failed[run.name] for run in sweep.runs if run.name in sweep.failed}
    if failed:
        reasons = "; ".join(f"{name} ({message})" for name, message in failed.items())
        raise RunError(
            f"{len(failed)} of {len(sweep.runs)} runs failed: {reasons}; the others are reported, "
            "and the same command with --resume tries these again"
        )
    return 0


def _refuse_folder_in_use(sweep: Sweep, config: SweepConfig) -> None:
    """Refuse ``--plan``, too, for a folder in which the sweep could not start."""
    if sweep.folder.is_dir() and not is_empty(sweep.folder) and not (config.force or config.resume):
        raise InputError(
            f"{sweep.folder} already holds files: expected a new or empty output folder; plan with "
            "--resume, --force or another --out"
        )


def _show_plan(sweep: Sweep, config: SweepConfig) -> None:
    rows, total = [], 0.0
    for run in sweep.runs:
        done = config.resume and plan.finished(sweep, run)
        predicted = 0.0 if done else cost.seconds(sweep, run.config)
        total += predicted or 0.0
        rows.append({"run": run.name, "finished": done, "seconds": predicted})
    if config.json:
        print(json.dumps({"folder": str(sweep.folder), "runs": rows, "seconds": total}, indent=2))
        return
    for row in rows:
        left = "finished" if row["finished"] else _about(row["seconds"])
        print(f"{row['run']}  {left}")
    todo = sum(not row["finished"] for row in rows)
    print(f"{todo} of {len(rows)} runs to do, {_about(total)} in all, into {sweep.folder}")


def _about(seconds: float | None) -> str:
    return "time unknown" if seconds is None else f"about {duration(seconds)}"


def _run_all(sweep: Sweep) -> None:
    todo = [run for run in sweep.runs if not plan.finished(sweep, run)]
    finished_before = len(sweep.runs) - len(todo)
    if finished_before:
        say(f"{finished_before} of {len(sweep.runs)} runs are finished already")
    if not todo:
        return
    cost.measure(sweep)
    sweep.save()
    clock = Clock([cost.seconds(sweep, run.config) for run in todo])
    for number, run in enumerate(todo, start=1 + finished_before):
        say(f"run {number} of {len(sweep.runs)}: {run.label}; {clock.left()} left")
        sweep.failed.pop(run.name, None)
        try:
            _run_one(sweep, run)
        except Exception as error:  # a failed run does not stop the others
            sweep.failed[run.name] = " ".join(f"{error or type(error).__name__}".split())[:500]
            say(f"failed: {run.label}: {sweep.failed[run.name]}")
        sweep.save()
        clock.advance()
        if run.config.compile:  # else the compiler's cache for this network's code fills up
            torch.compiler.reset()


def _run_one(sweep: Sweep, run: SweepRun) -> None:
    folder = sweep.folder / run.name
    config = cost.with_measured(sweep, run.config)
    loop.train(dataclasses.replace(config, out=folder, resume=True))
    network = folder / run_files.CHECKPOINT
    terms = sweep.certify_config(network, config, certify.test_images(config, folder))
    found = sweep.measured.get(cost.cost_key(run.config))
    if found is not None:
        terms = dataclasses.replace(
            terms,
            memory_format=found["certify_memory_format"],
            batch_size=found["batch_size"],
        )
    out = sweep.log_of(run)
    same = certify.is_of_network(out, network)
    certify.certify(dataclasses.replace(terms, out=out, resume=same, force=not same))


class Clock:
    """Time left, from predictions scaled by the times of finished runs.

    Args:
        predicted: seconds of each run; ``None`` if unknown.
    """

    def __init__(self, predicted: list[float | None]) -> None:
        self._started = time.monotonic()
        self._predicted, self._done = predicted, 0

    def left(self) -> str:
        """The time left, as text."""
        done, todo = self._predicted[: self._done], self._predicted[self._done :]
        known = [p for p in (*done, *todo) if p is not None]
        if not known:
            if not self._done:
                return "time unknown"
            return _about((time.monotonic() - self._started) / self._done * len(todo))
        usual = sum(known) / len(known)
        ahead = sum(usual if p is None else p for p in todo)
        behind = sum(usual if p is None else p for p in done)
        factor = (time.monotonic() - self._started) / behind if behind else 1.0
        return _about(ahead * factor)

    def advance(self) -> None:
        """Count one finished run."""
        self._done += 1
