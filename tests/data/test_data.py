"""Data sets: the embedded subset, the IDX files of MNIST, and their download."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import struct
import sys
import urllib.error
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from drf_fast import data
from drf_fast.data import make_mnist_mini, mnist
from drf_fast.data.idx import read_idx
from drf_fast.errors import InputError

STEMS = {"train": "train", "test": "t10k"}


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, packed: bool, train: int = 13, test: int = 11) -> Path:
    """A made-up MNIST: random pixels, labels 0, 1, ..., 9, 0, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    for split, size in (("train", train), ("test", test)):
        arrays = {
            "images-idx3": random.integers(0, 256, (size, 28, 28), np.uint8),
            "labels-idx1": (np.arange(size) % 10).astype(np.uint8),
        }
        for kind, array in arrays.items():
            name, content = f"{STEMS[split]}-{kind}-ubyte", idx_bytes(array)
            path = folder / (name + ".gz" * packed)
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


# ---------------------------------------------------------------- the embedded subset


@pytest.mark.parametrize(
    ("split", "size", "histogram", "mean", "std", "fingerprint"),
    [
        (
            "train",
            10_000,
            [966, 1137, 991, 1056, 951, 913, 980, 1036, 997, 973],
            0.130275,
            0.307697,
            "5020b05e3d8306698994196f40f6e8e3b86a7b8a725f43ad7334645400d4eeaf",
        ),
        (
            "test",
            2_000,
            [189, 222, 212, 242, 196, 186, 158, 215, 193, 187],
            0.132893,
            0.310943,
            "1e186596f5823c3d65ebbb61ee91533dc45d73f5e3baec2b23a4b217b1a8903c",
        ),
    ],
)
def test_mnist_mini_is_the_stated_part_of_mnist(split, size, histogram, mean, std, fingerprint):
    mini = data.load("mnist-mini", split)
    assert isinstance(mini.images, torch.Tensor)
    assert mini.images.shape == (size, 1, 28, 28) and mini.images.dtype == torch.uint8
    assert mini.labels.dtype == torch.int64 and mini.labels.bincount().tolist() == histogram
    assert (mini.name, mini.split, mini.num_classes) == ("mnist-mini", split, 10)
    assert mini.class_names == tuple("0123456789")
    pixels = mini.images.double() / 255
    assert pixels.mean().item() == pytest.approx(mean, abs=1e-6)
    assert pixels.std(correction=0).item() == pytest.approx(std, abs=1e-6)
    assert mini.fingerprint == fingerprint
    content = mini.images.numpy().tobytes() + mini.labels.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest() == fingerprint


def test_mnist_mini_takes_both_groups_of_writers():
    # Even and odd training positions differ in their mean by 0.016; the whole set has 0.1307.
    picked = make_mnist_mini.indices("train", 60_000)
    assert len(picked) == 10_000 and picked[:6].tolist() == [0, 7, 12, 19, 24, 31]
    assert (picked % 2).sum() == 5_000 and picked.max() < 60_000
    assert make_mnist_mini.indices("test", 10_000).tolist() == list(range(0, 10_000, 5))
    assert make_mnist_mini.indices("train", 7).tolist() == [0]  # never beyond the end


def test_mnist_mini_is_small_and_has_its_licence_beside_it():
    folder = Path(data.__file__).parent
    assert (folder / "mnist_mini.npz").stat().st_size < 3_000_000
    notice = (folder / "mnist_mini.LICENSE").read_text()
    for word in ("LeCun", "Cortes", "Burges", "CC BY-SA 3.0", "What was changed"):
        assert word in notice


def test_the_script_applies_its_rule_and_writes_the_same_bytes_again(tmp_path):
    raw = write_mnist(tmp_path / "MNIST" / "raw", packed=True)
    for name in ("a.npz", "b.npz"):
        arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / name)]
        assert make_mnist_mini.main(arguments) == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    whole = read_idx(raw / "train-images-idx3-ubyte.gz", 3)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["train_images"], whole[[0, 7, 12]])
        assert archive["train_labels"].tolist() == [0, 7, 2]
        assert archive["test_labels"].tolist() == [0, 5, 0]


def test_the_script_names_missing_files(tmp_path, capsys):
    arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "mini.npz")]
    assert make_mnist_mini.main(arguments) == 2
    assert "train files of MNIST are missing" in capsys.readouterr().err
    assert not (tmp_path / "mini.npz").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or "ng" in zlib.ZLIB_RUNTIME_VERSION,
    reason="another zlib packs the same arrays into other bytes",
)
def test_the_embedded_file_is_what_the_script_packs():
    path = Path(data.__file__).parent / "mnist_mini.npz"
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert make_mnist_mini.pack(arrays) == path.read_bytes()


def test_a_damaged_embedded_file_asks_for_a_new_installation(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(mnist.resources, "files", lambda package: tmp_path)
    with pytest.raises(InputError, match=r"mnist_mini\.npz is missing or damaged.*install"):
        data.load("mnist-mini", "test")
    (tmp_path / "data" / "mnist_mini.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match=r"mnist_mini\.npz is missing or damaged.*install"):
        data.load("mnist-mini", "test")


def test_a_pickle_in_the_archive_is_refused(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"any": "object"}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "data" / "mnist_mini.npz", "w") as archive:
        archive.writestr("test_images.npy", buffer.getvalue())
    monkeypatch.setattr(mnist.resources, "files", lambda package: tmp_path)
    with pytest.raises(InputError, match="allow_pickle=False"):
        data.load("mnist-mini", "test")


# ---------------------------------------------------------------- MNIST from files


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "unpacked"])
@pytest.mark.parametrize("below", ["MNIST/raw", "MNIST", "raw", "."])
def test_mnist_is_found_wherever_the_folder_begins(tmp_path, below, packed):
    write_mnist(tmp_path / below, packed=packed)
    for split, size in (("train", 13), ("test", 11)):
        loaded = data.load("mnist", split, data_dir=tmp_path, download=False)
        assert loaded.images.shape == (size, 1, 28, 28)
        assert loaded.labels.tolist() == [i % 10 for i in range(size)]


def test_the_same_pictures_have_one_fingerprint_in_any_container(tmp_path):
    a = write_mnist(tmp_path / "a", packed=True)
    b = write_mnist(tmp_path / "b" / "MNIST" / "raw", packed=False).parents[1]
    one, two = (data.load("mnist", "test", data_dir=x, download=False) for x in (a, b))
    assert one.fingerprint == two.fingerprint
    cut = data.load("mnist", "test", data_dir=a, download=False, limit=10)
    assert len(cut) == 10 and cut.fingerprint != one.fingerprint
    assert torch.equal(cut.images[:], one.images[:10])
    assert len(data.load("mnist", "test", data_dir=a, download=False, limit=999)) == 11


def test_the_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DRF_FAST_DATA", str(tmp_path))
    write_mnist(tmp_path / "FashionMNIST" / "raw", packed=True)
    fashion = data.load("fashion-mnist", "test", download=False)
    assert fashion.class_names[9] == "Ankle boot" and len(fashion) == 11
    monkeypatch.delenv("DRF_FAST_DATA")
    assert data.default_data_dir() == Path.home() / ".cache/drf_fast/data"


def test_float_images_are_the_bytes_over_255():
    mini = data.load("mnist-mini", "test", limit=20)
    ids = torch.tensor([3, 0, 19])
    images = mini.float_images(ids)
    assert images.dtype == torch.float32 and images.shape == (3, 1, 28, 28)
    exact = (mini.images[ids].numpy().astype(np.float64) / 255).astype(np.float32)
    assert np.array_equal(images.numpy(), exact)
    assert images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("emnist", "test"), "unknown data set 'emnist': expected one of mnist-mini, mnist"),
        (("mnist-mini", "valid"), "unknown split 'valid'"),
    ],
)
def test_unknown_names_list_the_known_ones(arguments, message):
    with pytest.raises(InputError, match=message):
        data.load(*arguments)


def test_a_limit_below_one_is_refused():
    with pytest.raises(InputError, match="at least 1 image, got 0"):
        data.load("mnist-mini", "test", limit=0)


def test_missing_files_say_where_they_were_sought(tmp_path):
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\[\.gz\]") as caught:
        data.load("mnist", "test", data_dir=tmp_path / "absent", download=False)
    assert str(tmp_path / "absent" / "MNIST" / "raw") in str(caught.value)
    assert "--data-dir" in str(caught.value) and "download" in str(caught.value)


def cut_raw(content: bytes) -> bytes:
    return content[:-1000]


def cut_gz(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_gz(content: bytes) -> bytes:
    """One wrong byte of the checksum at the end."""
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


@pytest.mark.parametrize(
    ("packed", "damage", "message"),
    [
        (False, cut_raw, "is truncated: its header promises 8624 bytes of data, got 7624"),
        (False, lambda content: content + b"x", "is damaged: its header promises 8624 bytes"),
        (False, lambda content: b"<html>404</html>", "expected it to begin with 00000803"),
        (False, lambda content: b"", "got an empty file"),
        (False, lambda content: content[:6], "expected it to begin with 00000803"),
        (True, cut_gz, "is damaged: expected a complete gzip file"),
        (True, flip_gz, "is damaged: expected a complete gzip file"),
        (True, lambda content: b"<html>404</html>", "is damaged: expected a complete gzip file"),
        (True, lambda content: b"", "expected"),
    ],
)
def test_damaged_files_are_named(tmp_path, packed, damage, message):
    write_mnist(tmp_path, packed=packed)
    path = tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * packed)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        data.load("mnist", "test", data_dir=tmp_path, download=False)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("t10k-labels-idx1-ubyte", np.zeros(5, np.uint8), "5 labels for 11 images"),
        ("t10k-labels-idx1-ubyte", np.full(11, 10, np.uint8), "labels from 0 to 9, got 10"),
        ("t10k-images-idx3-ubyte", np.zeros((11, 32, 32), np.uint8), "got an array of 11 x 32"),
        ("t10k-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8), "got an array of 0 x 28"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, name, array, message):
    write_mnist(tmp_path, packed=False)
    (tmp_path / name).write_bytes(idx_bytes(array))
    with pytest.raises(InputError, match=message) as caught:
        data.load("mnist", "test", data_dir=tmp_path, download=False)
    assert str(tmp_path / name) in str(caught.value)


def test_mnist_is_not_taken_for_fashion_mnist(tmp_path, monkeypatch):
    write_mnist(tmp_path, packed=True)
    found = data.load("mnist", "test", data_dir=tmp_path, download=False).fingerprint
    from drf_fast.data import registry

    monkeypatch.setitem(registry._SOURCES["mnist"].published, "test", found)
    with pytest.raises(InputError, match="holds mnist: expected fashion-mnist"):
        data.load("fashion-mnist", "test", data_dir=tmp_path, download=False)


def test_other_images_of_mnists_size_are_warned_of(tmp_path, monkeypatch, capsys):
    from drf_fast.data import registry

    write_mnist(tmp_path, packed=True)
    data.load("mnist", "test", data_dir=tmp_path, download=False)
    assert capsys.readouterr().err == ""  # a part, or made-up images
    monkeypatch.setitem(registry._MNIST_SIZES, "test", 11)
    registry._warn_of_others.cache_clear()
    for _ in range(2):
        data.load("mnist", "test", data_dir=tmp_path, download=False)
    assert capsys.readouterr().err.count("are not the published ones of mnist; files of other") == 1


# ---------------------------------------------------------------- download


def fake_torchvision(monkeypatch, behaviour):
    """torchvision's class, replaced by ``behaviour(scratch folder)``."""
    from torchvision import datasets

    monkeypatch.setattr(datasets, "MNIST", lambda root, download: behaviour(Path(root)))


def test_a_download_lands_in_the_layout_of_torchvision(tmp_path, monkeypatch, capsys):
    def serve(root: Path) -> None:
        print("Downloading")
        write_mnist(root / "MNIST" / "raw", packed=True)
        write_mnist(root / "MNIST" / "raw", packed=False)

    fake_torchvision(monkeypatch, serve)
    target = tmp_path / "new" / "folder"
    assert len(data.load("mnist", "test", data_dir=target)) == 11
    assert len(list((target / "MNIST" / "raw").glob("*.gz"))) == 4
    assert [path.name for path in target.iterdir()] == ["MNIST"]  # nothing left over
    captured = capsys.readouterr()
    assert captured.out == "" and "Downloading" in captured.err


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("Name or service not known"),
        RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried ..."),
        ConnectionResetError("reset by peer"),
        TimeoutError("timed out"),
    ],
)
def test_no_network_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, failure):
    def fail(root: Path) -> None:
        (root / "half").write_text("a part")
        raise failure

    fake_torchvision(monkeypatch, fail)
    with pytest.raises(InputError, match=r"cannot download MNIST.*--data-dir") as caught:
        data.load("mnist", "train", data_dir=tmp_path)
    assert "\n" not in str(caught.value) and "mnist-mini" in str(caught.value)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_full_disk_during_the_download_stays_an_oserror(tmp_path, monkeypatch):
    def fill(root: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fake_torchvision(monkeypatch, fill)
    with pytest.raises(OSError, match="No space left") as caught:
        data.load("mnist", "train", data_dir=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_without_torchvision_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match="pip install torchvision"):
        data.load("mnist", "train", data_dir=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot store MNIST in .*expected a writable folder"):
        data.load("mnist", "train", data_dir=tmp_path / "file" / "below")


@pytest.mark.slow
def test_loading_the_embedded_set_does_not_import_torchvision():
    import subprocess

    code = (
        "import sys; from drf_fast import data; data.load('mnist-mini', 'test'); "
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
