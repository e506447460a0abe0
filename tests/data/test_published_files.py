"""CIFAR-100, the pickled CIFARs and SVHN: made-up files of the published form, under their MD5s."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from drf_fast import data
from drf_fast.data import cifar, pickled, svhn
from drf_fast.errors import InputError

COUNT = 5


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (COUNT, 3072), np.uint8)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def string(text: bytes) -> bytes:
    """A string as Python 2 pickled it."""
    return b"U" + bytes([len(text)]) + text


def python2_pickle(images: np.ndarray, labels: list[int], key: bytes, fortran: bool) -> bytes:
    """What ``cPickle.dump(batch, file, 2)`` of Python 2 with NumPy wrote, opcode by opcode."""
    raw = images.tobytes(order="F" if fortran else "C")
    shape = b"M" + struct.pack("<H", len(images)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    kind = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b")
    array += b"\x87R(K\x01" + shape + kind + (b"\x88" if fortran else b"\x89")
    array += b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    batch = b"}(" + string(b"batch_label") + string(b"testing batch 1 of 1")
    batch += string(key) + numbers + string(b"data") + array + b"u"
    return b"\x80\x02" + batch + b"."


@pytest.mark.parametrize("fortran", [False, True])
def test_a_pickle_of_numpy_is_read_by_stand_ins(fortran):
    content = python2_pickle(pixels(0), [3, 1, 4, 1, 5], b"labels", fortran)
    expected = pickle.loads(content, encoding="bytes")  # ours, so it may be unpickled
    assert np.array_equal(expected[b"data"], pixels(0))
    images, labels = pickled.read(content, md5(content), Path("x"), b"labels")
    assert np.array_equal(images.reshape(COUNT, 3072), pixels(0))
    assert labels.tolist() == [3, 1, 4, 1, 5] and images.shape == (COUNT, 3, 32, 32)


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.mkdir, (self.path,))


def test_nothing_is_run_not_even_with_the_right_checksum(tmp_path):
    content = pickle.dumps({b"data": Exploit(tmp_path / "exploited"), b"labels": []}, 2)
    with pytest.raises(InputError, match="read only if it is the published file"):
        pickled.read(content, md5(b"other"), Path("x"), b"labels")
    with pytest.raises(InputError, match="cannot read x: .*got UnpicklingError"):
        pickled.read(content, md5(content), Path("x"), b"labels")
    assert not (tmp_path / "exploited").exists()


def write_pickled(name: str, folder: Path, monkeypatch) -> dict[str, bytes]:
    """The pickled version, made the published one."""
    kind = cifar.KINDS[name]
    files = {}
    for number, file in enumerate(kind.python_md5):
        labels = [(number + i) % kind.classes for i in range(COUNT)]
        files[file] = python2_pickle(pixels(number), labels, kind.python_labels, False)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    md5s = {file: md5(content) for file, content in files.items()}
    monkeypatch.setitem(cifar.KINDS, name, dataclasses.replace(kind, python_md5=md5s))
    return files


def load(name: str, folder: Path, split: str = "test") -> data.Dataset:
    return data.load(name, split, data_dir=folder, download=False)


def flat(found: data.Dataset) -> np.ndarray:
    assert isinstance(found.images, torch.Tensor)
    return found.images.numpy().reshape(-1, 3072)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("inside", [True, False])
def test_what_torchvision_downloads_is_read(name, inside, tmp_path, monkeypatch):
    kind = cifar.KINDS[name]
    files = write_pickled(name, tmp_path / (kind.python.folder if inside else "."), monkeypatch)
    train, test = load(name, tmp_path, "train"), load(name, tmp_path)
    batches = len(files) - 1
    assert train.images.shape == (COUNT * batches, 3, 32, 32) and len(test) == COUNT
    whole = np.concatenate([pixels(number) for number in range(batches)])
    assert np.array_equal(flat(train), whole)
    assert test.labels.tolist() == [(batches + i) % kind.classes for i in range(COUNT)]
    assert test.num_classes == kind.classes == len(test.class_names)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_other_bytes_are_refused(name, tmp_path, monkeypatch):
    folder = tmp_path / cifar.KINDS[name].python.folder
    files = write_pickled(name, folder, monkeypatch)
    last = [*files][-1]
    (folder / last).write_bytes(files[last][:-1] + b" .")
    with pytest.raises(
        InputError, match="is pickled, and read only if .*expected the MD5"
    ) as caught:
        load(name, tmp_path)
    assert str(folder / last) in str(caught.value) and "\n" not in str(caught.value)
    load(name, tmp_path, "train")


@pytest.mark.parametrize("version", ["binary", "python"])
def test_an_archive_of_cifar100_is_read_as_it_is(version, tmp_path, monkeypatch):
    write_pickled("cifar100", tmp_path / "files", monkeypatch)
    write_binary(tmp_path / "files", monkeypatch)
    kind = cifar.KINDS["cifar100"]
    archive = getattr(kind, version)
    with tarfile.open(tmp_path / archive.archive, "w:gz") as tar:
        for names in archive.files.values():
            for file in names:
                tar.add(tmp_path / "files" / file, f"{archive.folder}/{file}")
    with pytest.raises(InputError, match="expected the MD5 .*delete it and fetch it again"):
        load("cifar100", tmp_path)
    found = md5((tmp_path / archive.archive).read_bytes())
    changed = {version: dataclasses.replace(archive, md5=found)}
    monkeypatch.setitem(cifar.KINDS, "cifar100", dataclasses.replace(kind, **changed))
    for split, number in (("train", 0), ("test", 1)):
        found = load("cifar100", tmp_path, split)
        assert np.array_equal(flat(found), pixels(number))


def write_binary(folder: Path, monkeypatch) -> None:
    """train.bin and test.bin of CIFAR-100: a coarse label, a fine one, the planes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(("train.bin", "test.bin")):
        labels = np.array([[19, 98 + i % 2] for i in range(COUNT)], np.uint8)
        (folder / file).write_bytes(np.concatenate([labels, pixels(number)], 1).tobytes())
    kind = cifar.KINDS["cifar100"]
    short = dataclasses.replace(kind, records={"train": COUNT, "test": COUNT})
    monkeypatch.setitem(cifar.KINDS, "cifar100", short)


def test_the_fine_label_is_the_class(tmp_path, monkeypatch):
    write_binary(tmp_path / "cifar-100-binary", monkeypatch)
    found = load("cifar100", tmp_path)
    assert found.labels.tolist() == [98, 99, 98, 99, 98]
    assert found.class_names[98:] == ("woman", "worm") and found.num_classes == 100
    assert np.array_equal(flat(found), pixels(1))
    (tmp_path / "cifar-100-binary" / "test.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected 5 records of 3074 bytes"):
        load("cifar100", tmp_path)


def test_missing_files_name_both_versions(tmp_path):
    with pytest.raises(InputError, match=r"cifar-100-binary\.tar\.gz .*cifar-100-python") as caught:
        load("cifar100", tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def write_svhn(path: Path, monkeypatch, **changes) -> np.ndarray:
    x = np.random.default_rng(3).integers(0, 256, (32, 32, 3, COUNT), np.uint8)
    content = {"X": x, "y": np.array([[1], [10], [3], [9], [10]], np.uint8), **changes}
    savemat(path, content, do_compression=True)
    for split in ("train", "test"):
        monkeypatch.setitem(svhn.MD5, split, md5(path.read_bytes()))
    return x


@pytest.mark.parametrize("below", [".", "svhn"])
def test_svhn_is_read_through_scipy(below, tmp_path, monkeypatch):
    (tmp_path / below).mkdir(exist_ok=True)
    x = write_svhn(tmp_path / below / "test_32x32.mat", monkeypatch)
    found = load("svhn", tmp_path)
    assert found.labels.tolist() == [1, 0, 3, 9, 0] and found.num_classes == 10
    for i, channel, row, column in ((0, 0, 0, 1), (4, 2, 31, 7), (2, 1, 5, 30)):
        assert found.images[i, channel, row, column] == x[row, column, channel, i]
    assert isinstance(found.images, torch.Tensor)
    found.images[0].fill_(0)  # no view of a read-only buffer


def test_svhn_is_refused_where_it_is_not_the_published_file(tmp_path, monkeypatch):
    path = tmp_path / "test_32x32.mat"
    with pytest.raises(InputError, match=r"expected test_32x32\.mat in .*--data-dir"):
        load("svhn", tmp_path)
    write_svhn(path, monkeypatch)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged or another file: expected the MD5"):
        load("svhn", tmp_path)
    write_svhn(path, monkeypatch, X=np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match=r"expected images X \(32, 32, 3, N\)"):
        load("svhn", tmp_path)
    for split in ("train", "test"):
        monkeypatch.setitem(svhn.MD5, split, md5(b"no mat file"))
    path.write_bytes(b"no mat file")
    with pytest.raises(InputError, match=r"cannot read .*expected images X"):
        load("svhn", tmp_path)


def test_a_download_of_svhn_is_checked_and_kept(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    asked = []

    def serve(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((url, md5))
        write_svhn(Path(root, filename), monkeypatch)

    monkeypatch.setattr(utils, "download_url", serve)
    wanted = svhn.MD5["test"]
    assert len(data.load("svhn", "test", data_dir=tmp_path)) == COUNT
    assert asked == [("http://ufldl.stanford.edu/housenumbers/test_32x32.mat", wanted)]
    assert [path.name for path in (tmp_path / "svhn").iterdir()] == ["test_32x32.mat"]


def test_the_checksums_are_those_of_torchvision():
    from torchvision import datasets

    for name, source in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        kind = cifar.KINDS[name]
        published = source.train_list + source.test_list
        assert [*map(list, kind.python_md5.items())] == published
        assert (kind.python.archive, kind.python.md5) == (source.filename, source.tgz_md5)
        assert kind.python.folder == source.base_folder
    for split, checksum in svhn.MD5.items():
        assert datasets.SVHN.split_list[split][1:] == [f"{split}_32x32.mat", checksum]
