"""Hostile tries in one process: wrong flags, damaged files, a hostile environment.

A try is a fault if it ends in a traceback, takes too long, fails with another word than one
sentence, or accepts what must be refused. For the long form:

    python tests/hostile/tries.py --seconds 420 --seed 23
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import random
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ends import Hang, call, command, fault
from places import Place, certificates, mutated, place

from drf_fast import data
from drf_fast.certification.log import read_log
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.checkpoints.checksum import content_sha256
from drf_fast.config import look, options, tags

HANG = 60  # seconds of one try; the slowest takes less than one on an idle core
CONFIGS: dict[str, type] = {
    name: getattr(module, f"{name.title()}Config")
    for name in (
        "train",
        "certify",
        "predict",
        "attack",
        "report",
        "sweep",
        "gap",
        "show",
        "doctor",
    )
    for module in (options, look)
    if hasattr(module, f"{name.title()}Config")
}
VALUES = [
    "", " ", "0", "-0", "1", "-1", "2", "3.5", "0.5", "nan", "inf", "-inf", "1e308", "1e-320",
    "1e999", "4294967296", "-9223372036854775809", "18446744073709551616", "1" * 400, "None",
    "auto", "True", "é", "n\udcff", "a\nb", "-", "--", "=", ",", "1,2", "1,,2", "0.25,0.5", "[1,2]",
    "{}", "*", "[", "../x", "/dev/null", "/proc/nothing", "ro/x", "x" * 300, "none", "cifar10",
    "lenet", "os:getcwd", "prox", "epoch", "image", "fixed", "anytime", "1/2", "3/2", "0/0", "bf16",
    "cpu", "10min", "1e2",
]  # fmt: skip
TOML = [
    "1", "-1", "0.5", "nan", "1e400", '"a"', '""', "true", "[]", "[1, 2]", "{a = 1}", "1979-05-27",
    "9" * 40, "[" * 50,
]  # fmt: skip
ENTRIES = [
    None, True, -1, 0, 5, 2**63, 2**70, 0.5, 1e308, math.nan, "", "x", [], [3], {}, {"a": 1},
    torch.tensor(1.0), torch.tensor(math.nan), torch.ones(3), torch.zeros(0), torch.eye(2).int(),
]  # fmt: skip
# Real work of any size, and self-tests of minutes, are no fault: these are not set, or not high.
LONG = {"self_test", "compile"}
COUNTS = {
    "epochs", "n", "n0", "steps", "num_samples", "restarts", "ddn_steps", "max_images",
    "batch_size", "max_steps", "skip", "train_images", "images", "certify_images", "certify_n",
}  # fmt: skip


# ---- the classes: each returns the words of the try, and what is wrong, if anything


def flags(place: Place, rng: random.Random) -> tuple[str, str | None]:
    """Any command with one to three of its flags set to anything."""
    name = rng.choice(list(CONFIGS))
    words = [name]
    real = rng.random() < 0.2
    split = str.split
    training = ["--data", "mnist", "--data-dir", "none"]  # without images it ends before it begins
    if real:
        training = split("--max-steps 1 --train-images 16 --batch-size 4 --steps 1 --threads 1")
        training += split("--certify-images 0 --device cpu --out t --force")
    base = {
        "train": training,
        "certify": split("run --max-images 1 --n 50 --batch-size 64 --out o.tsv --force"),
        "predict": split("run --max-images 1 --n 50 --batch-size 64"),
        "attack": split(
            "run --max-images 1 --n 20 --steps 1 --restarts 1 --num-samples 2 --ddn-steps 1 "
            "--out k.tsv --force"
        ),
        "report": ["c.tsv"],
        "doctor": [],
        "sweep": split("--plan --data mnist --data-dir none --out s"),
        "gap": split("run --max-images 2"),
        "show": split("run --images 1 --num-samples 2 --steps 1 --n 20 --out z.png --force"),
    }
    words += base[name]
    fields = list(tags.of(CONFIGS[name]))
    for field in rng.sample(fields, min(len(fields), rng.choice((1, 1, 2, 3)))):
        flag = "--" + field.replace("_", "-")
        value = rng.choice(VALUES)
        if real and field == "out" and value in ("", "../x"):
            continue
        if field in LONG or (field in COUNTS and value.isdecimal() and float(value) > 3):
            continue
        words.append(flag)
        words += [value] if rng.random() < 0.9 else []
    if rng.random() < 0.1:
        words.append(rng.choice(VALUES))
    return repr(words), fault(command(words))


def checkpoints(place: Place, rng: random.Random) -> tuple[str, str | None]:
    """A damaged checkpoint loads only if all that it says is what was saved."""
    path = place.folder / "m.pt"
    path.write_bytes(mutated(place.checkpoint, rng))
    outcome = call(lambda: checkpoint.load_any(path))
    wrong = fault(outcome)
    if wrong is None and outcome.status == 0:
        loaded = checkpoint.load_any(path)
        same = content_sha256({k: v for k, v in loaded.items() if k != "sha256"})
        wrong = None if same == place.content else "silent: another content was loaded"
    return _kept(path, wrong), wrong


def states(place: Place, rng: random.Random) -> tuple[str, str | None]:
    """A checkpoint that says something else, with a checksum that fits, resumes or is refused."""
    saved = checkpoint.load(place.run / "checkpoint.pt")
    owner, key = rng.choice(entries(saved))
    value = rng.choice(ENTRIES)
    what = f"{key!r}: {owner[key]!r:.60} -> {value!r:.60}"
    owner[key] = value
    folder = place.folder / "state"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(place.settings)
    try:
        checkpoint.save(folder / "checkpoint.pt", saved)
    except TypeError:  # a value that no checkpoint can hold
        return what, None
    words = ["train", "--resume", "--out", str(folder), *place.training, "--max-steps", "3"]
    return what, fault(command([*words, "--certify-images", "0"]))


def entries(value: Any) -> list[tuple[Any, Any]]:
    """(owner, key) of everything inside nested dicts and lists."""
    pairs = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list)
        else ()
    )  # fmt: skip
    return [found for key, part in pairs for found in [(value, key), *entries(part)]]


def logs(place: Place, rng: random.Random) -> tuple[str, str | None]:
    """A damaged log is refused, or holds no certificate that the true one does not hold."""
    (place.folder / "m.json").write_bytes(place.sidecar)
    path = place.folder / "m.tsv"
    path.write_bytes(mutated(place.log, rng))
    outcome = command(["report", str(path), "--format", rng.choice(("csv", "json", "table"))])
    wrong = fault(outcome)
    if wrong is None and outcome.status == 0:
        found = read_log(path)
        if found.count is not None and certificates(found) - place.certificates:
            wrong = "silent: another certificate was accepted"
    return _kept(path, wrong), wrong


def sidecars(place: Place, rng: random.Random) -> tuple[str, str | None]:
    """A damaged sidecar is refused, or says what the certificates were computed with."""
    (place.folder / "m.tsv").write_bytes(place.log)
    path = place.folder / "m.json"
    path.write_bytes(mutated(place.sidecar, rng))
    outcome = command(["report", str(place.folder / "m.tsv")])
    wrong = fault(outcome)
    if wrong is None and outcome.status == 0:
        true, now = json.loads(place.sidecar), read_log(place.folder / "m.tsv").config or {}
        for key in ("sigma", "alpha", "n", "budget"):
            if key in now and now[key] != true[key]:
                wrong = f"silent: {key} {now[key]!r} was accepted"
    return _kept(path, wrong), wrong


def settings(place: Place, rng: random.Random) -> tuple[str, str | None]:
    """A damaged config.json of a run to be resumed, and a damaged TOML file."""
    if rng.random() < 0.5:
        folder = place.folder / "resumed"
        folder.mkdir(exist_ok=True)
        path = folder / "config.json"
        path.write_bytes(mutated(place.settings, rng))
        words = ["train", "--resume", "--out", str(folder), "--data", "mnist", "--data-dir", "none"]
    else:
        path = place.folder / "m.toml"
        lines = []
        for field in rng.sample(list(tags.of(options.TrainConfig)), rng.randrange(1, 5)):
            value = rng.choice(TOML)
            lines.append(f"{field.replace('_', rng.choice('-_'))} = {value}\n")
        path.write_bytes("".join(lines).encode())
        if rng.random() < 0.3:
            path.write_bytes(mutated(path.read_bytes(), rng))
        words = ["train", "--config", str(path), "--data", "mnist", "--data-dir", "none"]
    wrong = fault(command(words))
    return _kept(path, wrong), wrong


def idx_files(place: Place, rng: random.Random) -> tuple[str, str | None]:
    """Damaged files of MNIST, packed or not."""
    folder = place.folder / "idx" / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    hurt = rng.choice(list(place.idx))
    for name, content in place.idx.items():
        before = rng.random() < 0.5
        content = mutated(content, rng) if name == hurt and before else content
        packed = gzip.compress(content, 1)
        (folder / f"{name}.gz").write_bytes(
            mutated(packed, rng) if name == hurt and not before else packed
        )
    wrong = fault(call(lambda: data.load("mnist", "train", data_dir=place.folder / "idx")))
    return _kept(folder / f"{hurt}.gz", wrong), wrong


def pictures(place: Place, rng: random.Random) -> tuple[str, str | None]:
    """A damaged PNG in a folder of classes."""
    path = place.folder / "images" / "train" / "a" / "0.png"
    path.write_bytes(mutated(place.png, rng))

    def read() -> None:
        images = data.load("imagefolder", "train", data_dir=place.folder / "images")
        images.float_images([0, 1])

    wrong = fault(call(read))
    return _kept(path, wrong), wrong


def arrays(place: Place, rng: random.Random) -> tuple[str, str | None]:
    """A damaged .npz file: the archive, or an array in it, of which it has the checksum."""
    path = place.folder / "a.npz"
    content = place.npz if rng.random() < 0.5 else _with_damaged_member(place.npz, rng)
    path.write_bytes(mutated(content, rng) if content is place.npz else content)
    wrong = fault(call(lambda: data.load("npz", "train", data_dir=path)))
    return _kept(path, wrong), wrong


def _with_damaged_member(npz: bytes, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(npz)) as whole, zipfile.ZipFile(buffer, "w") as damaged:
        hurt = rng.choice(whole.namelist())
        for name in whole.namelist():
            member = whole.read(name)
            damaged.writestr(name, mutated(member, rng) if name == hurt else member)
    return buffer.getvalue()


CLASSES: dict[str, Callable[[Place, random.Random], tuple[str, str | None]]] = {
    "flags": flags,
    "checkpoint": checkpoints,
    "state": states,
    "log": logs,
    "sidecar": sidecars,
    "settings": settings,
    "idx": idx_files,
    "png": pictures,
    "npz": arrays,
}


def _kept(path: Path, wrong: str | None) -> str:
    """Where the file of a fault can be looked at."""
    if wrong is None:
        return str(path)
    copy = Path(tempfile.mkdtemp(prefix="hostile-")) / path.name
    copy.write_bytes(path.read_bytes())
    return str(copy)


def _alarm(number: int, frame: object) -> None:
    raise Hang


def run(
    at: Place, kind: str, seed: int, tries: int, until: float
) -> tuple[int, list[tuple[int, str, str]]]:
    """Up to ``tries`` of one class; the number made, and (number, try, fault) of each fault."""
    faults = []
    made = 0
    before = signal.signal(signal.SIGALRM, _alarm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for number in range(tries):
                if time.monotonic() > until:
                    break
                rng = random.Random(f"{kind} {seed} {number}")
                signal.alarm(HANG)
                try:
                    what, wrong = CLASSES[kind](at, rng)
                except Hang:
                    what, wrong = "?", f"hang: more than {HANG} s"
                finally:
                    signal.alarm(0)
                made += 1
                if wrong is not None:
                    faults.append((number, what, wrong))
        finally:
            signal.signal(signal.SIGALRM, before)
    return made, faults


def report(kind: str, made: int, faults: list[tuple[int, str, str]], seconds: float) -> str:
    """The line of a class."""
    return f"{kind:12} {made:7,} tries {len(faults):4} faults {seconds:7.1f} s"


def _long(arguments: argparse.Namespace) -> int:
    end = time.monotonic() + arguments.seconds
    chosen = arguments.only or list(CLASSES)
    total = failed = 0
    with place() as at:
        for done, kind in enumerate(chosen):
            began = time.monotonic()
            until = began + (end - began) / (len(chosen) - done)
            made, faults = run(at, kind, arguments.seed, arguments.tries, until)
            total, failed = total + made, failed + len(faults)
            print(report(kind, made, faults, time.monotonic() - began), flush=True)
            for number, what, wrong in faults[: arguments.show]:
                print(f"  {number}: {what[:300]}\n      {wrong}", flush=True)
    print(f"{'all':12} {total:7,} tries {failed:4} faults")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tries", type=int, default=10**6, help="of each class, at most")
    parser.add_argument("--show", type=int, default=8, help="faults of each class")
    parser.add_argument("--only", nargs="*", choices=list(CLASSES))
    sys.exit(_long(parser.parse_args()))
