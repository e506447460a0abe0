"""Where hostile tries are made: a small run, a log and data sets, and copies of them, damaged."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import random
import tempfile
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from ends import command
from PIL import Image

from drf_fast.certification.log import read_log
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.checkpoints.checksum import content_sha256


class Place:
    """A folder with one small run and one log, data sets, and copies of them to be damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        self.training = ["--train-images", "64", "--batch-size", "16", "--steps", "1"]
        self.training += ["--device", "cpu", "--memory-format", "contiguous", "--threads", "1"]
        words = ["train", "--out", str(self.run), *self.training, "--max-steps", "2"]
        self._made([*words, "--certify-images", "4", "--certify-n", "200"])
        words = [
            "certify",
            str(self.run),
            "--n",
            "200",
            "--n0",
            "16",
            "--skip",
            "400",
            "--batch-size",
        ]
        self._made([*words, "64", "--memory-format", "contiguous", "--out", str(folder / "c.tsv")])
        self.checkpoint = (self.run / "checkpoint.pt").read_bytes()
        content = checkpoint.load(self.run / "checkpoint.pt")
        self.content = content_sha256({k: v for k, v in content.items() if k != "sha256"})
        self.log = (folder / "c.tsv").read_bytes()
        self.sidecar = (folder / "c.json").read_bytes()
        self.settings = (self.run / "config.json").read_bytes()
        rows = read_log(folder / "c.tsv")
        self.certificates = certificates(rows)
        rng = np.random.default_rng(0)
        self.idx = {
            "train-images-idx3-ubyte": b"\0\0\x08\x03" + np.array([60000, 28, 28], ">i4").tobytes(),
            "train-labels-idx1-ubyte": b"\0\0\x08\x01" + np.array([60000], ">i4").tobytes(),
        }
        small = np.array([3, 28, 28], ">i4").tobytes() + rng.bytes(3 * 784)
        self.idx["train-images-idx3-ubyte"] = b"\0\0\x08\x03" + small
        self.idx["train-labels-idx1-ubyte"] = (
            b"\0\0\x08\x01" + np.array([3], ">i4").tobytes() + b"\1\2\3"
        )
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "png")
        self.png = buffer.getvalue()
        buffer = io.BytesIO()
        labels = np.arange(3)
        arrays = {"x_train": np.zeros((3, 8, 8), np.uint8), "y_train": labels, "y_test": labels}
        np.savez(buffer, **arrays)
        self.npz = buffer.getvalue()
        for split, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
            (folder / "images" / split / name).mkdir(parents=True)
            (folder / "images" / split / name / "0.png").write_bytes(self.png)

    def _made(self, words: list[str]) -> None:
        outcome = command(words)
        if outcome.status != 0:
            raise RuntimeError(f"{words}: {outcome.error}")


def certificates(log: Any) -> collections.Counter[tuple[Any, ...]]:
    """What a log says of each image. A radius may differ in the decimals behind the last one that
    is written, which the audit allows for."""
    rows = zip(log.label, log.predict, log.radius, log.correct, strict=True)
    return collections.Counter((bool(c), round(float(r), 9), int(p) == -1) for _, p, r, c in rows)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """``content`` with something flipped, cut, doubled, filled or put in."""
    raw = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = (
            rng.randrange(len(raw) + 1)
            if rng.random() < 0.8
            else rng.randrange(min(64, len(raw)) + 1)
        )
        end = min(len(raw), at + rng.choice((1, 2, 8, 100, len(raw))))
        kind = rng.randrange(6)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del raw[at:end]
        elif kind == 2:
            raw[at:at] = raw[at:end]
        elif kind == 3:
            raw[at:end] = bytes(end - at)
        elif kind == 4:
            raw[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            words = (
                b"nan",
                b"-1",
                b"1e999",
                b"null",
                b"[]",
                b"{}",
                b'"',
                b"\t",
                b"\n",
                b"9" * 30,
                b"\xff",
            )
            raw[at : at + rng.choice((0, 1, 3))] = rng.choice(words)
    return bytes(raw)


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """A ``Place``, with its folder as working folder; neither network nor other processes."""
    before, threads = Path.cwd(), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        torch.set_num_threads(1)
        try:
            with mock.patch("urllib.request.urlopen", side_effect=urllib.error.URLError("offline")):
                yield Place(Path(folder))
        finally:
            torch.set_num_threads(threads)
            os.chdir(before)
