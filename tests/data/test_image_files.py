"""Image files of class folders: those that stay in their files, damaged and deep ones."""

from __future__ import annotations

import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_folders import load, picture, write_classes
from PIL import Image

from drf_fast import data
from drf_fast.data import image_files, image_folders
from drf_fast.data.image_files import ImageFiles
from drf_fast.errors import InputError


def test_large_sets_stay_in_their_files_and_look_the_same(split_folder, monkeypatch):
    inside = load(split_folder)
    monkeypatch.setattr(image_folders, "_MAX_BYTES_IN_MEMORY", 100)
    outside = load(split_folder)
    assert isinstance(inside.images, torch.Tensor) and isinstance(outside.images, ImageFiles)
    assert outside.images.shape == inside.images.shape and len(outside) == 18
    mask = torch.zeros(18, dtype=torch.bool)
    mask[[4, 9]] = True
    for index in (3, slice(2, 9, 3), [5, 5, 0], torch.tensor([17, 1]), slice(0, 0), [], mask, -1):
        assert torch.equal(outside.images[index], inside.images[index])
    assert torch.equal(outside.float_images([4, 2]), inside.float_images([4, 2]))
    for option in ("none", "crop-flip"):
        settings = {"shuffle_seed": 3, "epoch": 1, "augment": option, "start": 1}
        pairs = zip(
            data.batches(outside, 4, **settings), data.batches(inside, 4, **settings), strict=True
        )
        for ours, theirs in pairs:
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_fingerprint_of_files_is_of_names_lengths_and_labels(split_folder, monkeypatch):
    monkeypatch.setattr(image_folders, "_MAX_BYTES_IN_MEMORY", 0)
    before = load(split_folder).fingerprint
    assert load(split_folder).fingerprint == before
    path = split_folder / "train" / "bee" / "003.png"
    path.rename(path.with_name("0035.png"))
    renamed = load(split_folder).fingerprint
    path.with_name("0035.png").write_bytes(b"another length")
    assert len({before, renamed, load(split_folder).fingerprint}) == 3


def test_imagenet_is_resized_and_cropped_as_published(tmp_path):
    from torchvision import transforms

    write_classes(tmp_path / "val", 2, size=(270, 400))
    sizes = [(500, 375), (375, 501), (256, 300), (257, 256), (20, 31), (1000, 333)]
    for at, size in enumerate(sizes):
        picture(at, size).save(tmp_path / "val" / "bee" / f"x{at}.png")
    published = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    test = load(tmp_path, "test", "imagenet")
    assert isinstance(test.images, ImageFiles) and test.image_shape == (3, 224, 224)
    assert len(test) == 12
    files = [f"00{at}.png" for at in range(2)] + [f"x{at}.png" for at in range(len(sizes))]
    for index, file in enumerate(files):
        with Image.open(tmp_path / "val" / "bee" / file) as image:
            expected = np.array(published(image)).transpose(2, 0, 1)
        assert np.array_equal(test.images[2 + index].numpy(), expected)


def test_training_on_imagenet_sees_random_parts_reproducibly(tmp_path):
    write_classes(tmp_path / "train", 4, size=(60, 50))
    train = load(tmp_path, "train", "imagenet")

    def epoch(**options) -> dict[int, torch.Tensor]:
        settings = {"shuffle_seed": 0, "epoch": 0, "augment": "crop-flip"} | options
        found = data.batches(train, settings.pop("size", 5), **settings)
        return {i: x for images, _, ids in found for i, x in zip(ids.tolist(), images, strict=True)}

    whole = epoch()
    assert len(whole) == 12 and whole[0].shape == (3, 224, 224)
    other_size = epoch(size=3)
    assert all(torch.equal(whole[i], other_size[i]) for i in whole)
    later = epoch(start=1)
    assert len(later) == 7 and all(torch.equal(whole[i], later[i]) for i in later)
    next_epoch = epoch(epoch=1)
    assert all(not torch.equal(whole[i], next_epoch[i]) for i in whole)
    assert all(not torch.equal(whole[i], train.float_images([i])[0]) for i in whole)


def test_no_more_than_two_batches_are_read_ahead(split_folder, monkeypatch):
    monkeypatch.setattr(image_folders, "_MAX_BYTES_IN_MEMORY", 0)
    train, read, lock = load(split_folder), [], threading.Lock()
    original = image_files.decode

    def counted(path: Path, channels: int) -> Image.Image:
        with lock:
            read.append(path)
        return original(path, channels)

    monkeypatch.setattr(image_files, "decode", counted)
    stream: Any = data.batches(train, 2, shuffle_seed=0, epoch=0)
    for step in range(1, 4):
        next(stream)
        assert 2 * step <= len(read) <= 2 * (step + 2)
    before = threading.active_count()
    stream.close()  # the caller has seen enough
    assert threading.active_count() <= before and len(read) <= 10
    assert not any(thread.name.startswith("images") for thread in threading.enumerate())


def broken(folder: Path, content: bytes) -> Path:
    path = folder / "train" / "bee" / "004.png"
    path.write_bytes(content)
    return path


def whole_png() -> bytes:
    import io

    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", whole_png()[:120], whole_png()[:50], whole_png()[:-40]],
    ids=["empty", "html", "cut", "cut early", "cut late"],
)
def test_a_damaged_image_is_named(split_folder, monkeypatch, content, lazily):
    path = broken(split_folder, content)
    if lazily:
        monkeypatch.setattr(image_folders, "_MAX_BYTES_IN_MEMORY", 0)
    with pytest.raises(InputError, match="cannot read the image .*restore or remove") as caught:
        for _ in data.batches(load(split_folder), 4, shuffle_seed=0, epoch=0):
            pass
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).count(str(path)) == 1


def test_an_image_of_another_size_is_named(split_folder):
    path = split_folder / "train" / "cat" / "002.png"
    picture(3, (10, 9)).save(path)
    with pytest.raises(InputError, match="is 10 x 9 pixels: expected .* 10 x 8") as caught:
        load(split_folder)
    assert str(path) in str(caught.value) and "--data imagenet" in str(caught.value)


def test_an_image_of_16_bits_is_refused(split_folder):
    path = split_folder / "train" / "ant" / "001.png"
    Image.fromarray(np.full((8, 10), 40_000, np.uint16)).save(path)
    expected = r"more than 8 bits a channel \(mode 'I;16'\): expected 8; convert it to 8 bits"
    with pytest.raises(InputError, match=expected) as caught:
        load(split_folder)
    assert str(path) in str(caught.value)


def deep_png(colour_type: int, channels: int) -> bytes:
    """A PNG of 10 x 8 pixels with 16 bits a channel, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", 10, 8, 16, colour_type, 0, 0, 0)
    rows = (b"\0" + bytes(range(20 * channels))) * 8
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def planar_tiff(bits: int) -> bytes:
    """A TIFF of 10 x 8 pixels, one plane a colour, which Pillow cannot write."""
    plane, after = 80 * bits // 8, 8 + 2 + 9 * 12 + 4
    bits_at, places_at, lengths_at = after, after + 6, after + 18
    fields = [
        (256, 3, 1, 10), (257, 3, 1, 8), (258, 3, 3, bits_at), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 3, places_at), (277, 3, 1, 3), (279, 4, 3, lengths_at), (284, 3, 1, 2),
    ]  # fmt: skip
    directory = struct.pack("<H", 9) + b"".join(struct.pack("<HHII", *field) for field in fields)
    places = [after + 30 + plane * number for number in range(3)]
    values = struct.pack("<3H6I", *[bits] * 3, *places, *[plane] * 3)
    return b"II*\0\x08\0\0\0" + directory + bytes(4) + values + bytes(range(240)) * (bits // 8)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("planes.tif", planar_tiff(16)),
        ("rgb.png", deep_png(2, 3)),
        ("grey_alpha.png", deep_png(4, 2)),
        ("rgba.png", deep_png(6, 4)),
        ("rgb.ppm", b"P6 10 8 65535\n" + bytes(480)),
        ("plain.ppm", b"P3 10 8 1023\n" + b"1 " * 240),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_16_bits_that_the_decoder_would_cut_are_refused(split_folder, name, content):
    path = split_folder / "train" / "ant" / name
    path.write_bytes(content)
    Image.open(path).convert("RGB")  # silently
    with pytest.raises(InputError, match=r"more than 8 bits a channel \(mode 'RGB") as caught:
        load(split_folder)
    assert str(path) in str(caught.value)


def test_8_bits_and_fewer_are_no_16(split_folder):
    (split_folder / "train" / "ant" / "x.ppm").write_bytes(b"P6 10 8 15\n" + bytes([15] * 240))
    picture(4).save(split_folder / "train" / "ant" / "y.tiff")
    picture(4).quantize(4).save(split_folder / "train" / "ant" / "z.png", bits=2)
    (split_folder / "train" / "ant" / "zz.pgm").write_bytes(b"P1 10 8\n" + b"1 " * 80)
    picture(4).save(split_folder / "train" / "ant" / "zzz.webp")
    header = (
        struct.pack("<IHHI", 226, 0, 0, 66)
        + struct.pack("<IiiHHIIiiII", 40, 10, 8, 1, 16, 3, 160, 0, 0, 0, 0)
        + struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    )  # 5, 6 and 5 bits a channel
    (split_folder / "train" / "ant" / "zzzz.bmp").write_bytes(b"BM" + header + bytes(160))
    (split_folder / "train" / "ant" / "zzzzz.tif").write_bytes(planar_tiff(8))
    train = load(split_folder)
    assert torch.equal(train.images[12].flatten(), torch.arange(240, dtype=torch.uint8))
    assert len(train) == 25 and bool((train.images[6] == 255).all())
    assert bool((train.images[9] == 0).all())


def test_an_image_that_has_gone_is_named(split_folder, monkeypatch):
    monkeypatch.setattr(image_folders, "_MAX_BYTES_IN_MEMORY", 0)
    train = load(split_folder)
    path = split_folder / "train" / "ant" / "001.png"
    path.unlink()
    with pytest.raises(InputError, match="got 'No such file or directory'") as caught:
        train.float_images([0, 1])
    assert str(path) in str(caught.value)
