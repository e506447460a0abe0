"""Class folders of image files: layouts, decoding, images that stay in their files, refusals."""

from __future__ import annotations

import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drf_fast import data
from drf_fast.data import folders, image_files, image_folders
from drf_fast.data.image_files import ImageFiles
from drf_fast.errors import InputError

CLASSES = ("ant", "bee", "cat")


def picture(seed: int, size: tuple[int, int] = (10, 8)) -> Image.Image:
    """Random pixels, (width, height)."""
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8))


def write_classes(root: Path, per_class: int, seed: int = 0, **options) -> None:
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for at in range(per_class):
            file = root / name / f"{at:03d}.png"
            picture(seed + 100 * number + at, **options).save(file)


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    write_classes(tmp_path / "train", 6)
    write_classes(tmp_path / "test", 2, seed=1000)
    return tmp_path


def load(folder: Path, split: str = "train", name: str = "imagefolder", **options) -> data.Dataset:
    return data.load(name, split, data_dir=folder, **options)


def test_a_folder_has_the_images_and_labels_that_torchvision_sees(split_folder):
    from torchvision.datasets import ImageFolder

    (split_folder / "train" / "bee" / "deeper").mkdir()
    picture(77).save(split_folder / "train" / "bee" / "deeper" / "x.JPG", format="JPEG")
    (split_folder / "train" / "bee" / "deeper-still").mkdir()
    picture(78).save(split_folder / "train" / "bee" / "deeper-still" / "y.webp")
    (split_folder / "train" / "bee" / "notes.txt").write_text("no image")
    for split in ("train", "test"):
        ours, theirs = load(split_folder, split), ImageFolder(str(split_folder / split))
        assert len(ours) == len(theirs) and ours.class_names == tuple(theirs.classes) == CLASSES
        assert isinstance(ours.images, torch.Tensor) and ours.images.dtype == torch.uint8
        for index in range(len(theirs)):
            image, label = theirs[index]
            assert np.array_equal(ours.images[index].permute(1, 2, 0).numpy(), np.array(image))
            assert ours.labels[index] == label
    assert load(split_folder).images.shape == (20, 3, 8, 10)
    assert load(split_folder).image_shape == (3, 8, 10)


def test_hidden_files_are_no_images(split_folder):
    before = load(split_folder).fingerprint
    (split_folder / "train" / "ant" / "._000.png").write_text("left by another system")
    (split_folder / "train" / ".cache").mkdir()
    (split_folder / "train" / "ant" / ".thumbs").mkdir()
    picture(1).save(split_folder / "train" / "ant" / ".thumbs" / "a.png")
    assert load(split_folder).fingerprint == before


def test_class_folders_alone_are_divided_always_the_same_way(tmp_path, capsys):
    write_classes(tmp_path, 11)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert "every 5th image" in capsys.readouterr().err
    assert test.labels.bincount().tolist() == [3, 3, 3] and len(train) == 24
    assert train.class_names == test.class_names == CLASSES
    expected = [f"{name}/{at:03d}.png" for name in CLASSES for at in (0, 5, 10)]
    assert folders.list_split(tmp_path, "test", ("test",)).names == tuple(expected)
    both = torch.cat([train.images[:], test.images[:]])
    assert len(both.flatten(1).unique(dim=0)) == 33  # each image in one of them


def test_val_stands_for_test_and_may_come_alone(tmp_path):
    write_classes(tmp_path / "val", 2)
    assert load(tmp_path, "test").class_names == CLASSES
    with pytest.raises(InputError, match="has no train images: .* got only val/; add"):
        load(tmp_path)
    write_classes(tmp_path / "test", 3)
    assert len(load(tmp_path, "test")) == 9
    assert len(load(tmp_path, "test", "imagenet")) == 6  # its test images have no labels


def test_a_test_folder_without_labels_is_skipped(tmp_path, capsys):
    """As Tiny-ImageNet has them: classes in train/ and val/, and test/images/ beside them."""
    write_classes(tmp_path / "train", 3)
    write_classes(tmp_path / "val", 2, seed=50)
    (tmp_path / "test" / "images").mkdir(parents=True)
    picture(1).save(tmp_path / "test" / "images" / "test_0.png")
    assert len(load(tmp_path)) == 9 and load(tmp_path).class_names == CLASSES
    test = load(tmp_path, "test")
    assert len(test) == 6 and test.class_names == CLASSES
    said = capsys.readouterr().err
    assert said.count(f"unlabelled: the test images are those of {tmp_path / 'val'}") == 1


def test_training_images_alone_are_divided_where_the_sentence_says(tmp_path):
    write_classes(tmp_path / "train", 6)
    with pytest.raises(InputError, match="has no test images: .* got only train/; add") as caught:
        load(tmp_path, "test")
    assert f"or pass --data-dir {tmp_path / 'train'}: every 5th" in str(caught.value)
    assert len(load(tmp_path / "train", "test")) == 6
    (tmp_path / "test").mkdir()  # as Kaggle has them
    picture(1).save(tmp_path / "test" / "0.png")
    with pytest.raises(InputError, match="got test/ with no class folders, hence") as caught:
        load(tmp_path, "test")
    assert f"or pass --data-dir {tmp_path / 'train'}: every 5th" in str(caught.value)
    assert len(load(tmp_path)) == 18


def test_images_that_lie_unsorted_are_named(tmp_path):
    """As the archive of ImageNet's validation images has them."""
    (tmp_path / "val").mkdir()
    picture(1).save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(InputError, match="has no test images: .* sort its images into") as caught:
        load(tmp_path, "test", "imagenet")
    assert "got val/ with no class folders, hence without labels" in str(caught.value)
    with pytest.raises(InputError, match="0 class folders: .* got images beside them; move each"):
        load(tmp_path / "val", "test", "imagenet")
    (tmp_path / "val").rename(tmp_path / "train")
    with pytest.raises(InputError, match="train has 0 class folders: .* got images beside them"):
        load(tmp_path)


def test_a_part_of_the_test_images_has_the_labels_of_all(split_folder, capsys):
    for file in (split_folder / "test" / "ant").iterdir():
        file.unlink()
    for file in (split_folder / "test" / "bee").iterdir():
        file.unlink()
    (split_folder / "test" / "bee").rmdir()
    test = load(split_folder, "test")
    assert test.class_names == CLASSES and test.labels.tolist() == [2, 2]
    said = capsys.readouterr().err
    assert f"{split_folder / 'test'} has no images of 2 of its 3 classes, such as 'ant'" in said
    assert load(split_folder).class_names == CLASSES
    (split_folder / "train").rename(split_folder / "elsewhere")  # then the folders tell the classes
    (split_folder / "test" / "bee").mkdir()
    assert load(split_folder, "test").labels.tolist() == [2, 2]
    for file in (split_folder / "test" / "cat").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="the class folders in .*test hold no images"):
        load(split_folder, "test")


@pytest.mark.parametrize(
    ("names", "said"), [(("0", "1", "2"), False), (("1", "2"), False), (("0", "2", "10"), True)]
)
def test_numbers_in_the_order_of_text_are_told(tmp_path, capsys, names, said):
    for name in names:
        pictures(tmp_path / "train" / name)
    assert load(tmp_path).class_names == tuple(sorted(names))
    sentence = "'2' is class 2, and would be class 1 by its number"
    assert (sentence in capsys.readouterr().err) is said


def test_a_sentence_is_said_once_however_the_folder_is_spelled(tmp_path, capsys, monkeypatch):
    for name in ("0", "2", "10"):
        pictures(tmp_path / "unsplit" / name, 5)
        for split in ("train", "test"):
            pictures(tmp_path / "grey" / split / name)
    make_grey(tmp_path / "grey")
    for file in (tmp_path / "grey" / "test" / "2").iterdir():
        file.unlink()
    monkeypatch.chdir(tmp_path)
    for folder in ("unsplit", "./unsplit", tmp_path / "unsplit", "grey", tmp_path / "grey"):
        for split in ("train", "test"):
            load(Path(folder), split)
    said = capsys.readouterr().err
    for folder, sentence in (
        ("unsplit", "every 5th image"), ("unsplit", "in the order of their names as text"),
        ("grey", "in the order of their names as text"), ("grey", "has no images of 1 of its 3"),
        ("grey", "read with one channel"),
    ):  # fmt: skip
        found = [line for line in said.splitlines() if sentence in line and folder in line]
        assert len(found) == 1 and str(tmp_path / folder) in found[0]


def test_a_limit_takes_evenly_spaced_images(split_folder):
    limited = load(split_folder, limit=6)
    whole = load(split_folder)
    assert limited.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(limited.images[:], whole.images[[0, 3, 6, 9, 12, 15]])
    assert limited.fingerprint != whole.fingerprint
    assert len(load(split_folder, limit=999)) == 18


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_kinds_of_pixels_become_rgb(split_folder, mode):
    path = split_folder / "train" / "ant" / ("000.tif" if mode == "CMYK" else "000.png")
    (split_folder / "train" / "ant" / "000.png").unlink()
    picture(5).convert(mode).save(path)
    expected = np.array(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(torch.as_tensor(load(split_folder).images[0]).numpy(), expected)


def make_grey(folder: Path, mode: str = "L") -> None:
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").convert(mode).save(path)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_images_have_one_channel_and_a_sentence_says_so(split_folder, capsys, mode):
    make_grey(split_folder, mode)
    train, test = load(split_folder), load(split_folder, "test")
    assert train.image_shape == test.image_shape == (1, 8, 10)
    path = split_folder / "train" / "ant" / "000.png"
    expected = np.array(Image.open(path).convert("L"))
    assert np.array_equal(torch.as_tensor(train.images[0, 0]).numpy(), expected)
    said = capsys.readouterr().err
    assert said.count(f"the images in {split_folder} are grey and read with one channel") == 1


def test_one_file_with_colours_makes_three_channels(split_folder, capsys):
    make_grey(split_folder)
    picture(1).save(split_folder / "train" / "cat" / "005.png")
    for split in ("train", "test"):  # the training images decide
        assert load(split_folder, split).image_shape == (3, 8, 10)
    assert "read with one channel" not in capsys.readouterr().err


@pytest.mark.parametrize("train", ["absent", "empty", "flat", "empty classes"])
def test_test_images_alone_tell_their_channels(split_folder, train):
    """As of a set whose training images lie elsewhere: a network is certified on the others."""
    for name in CLASSES:
        for file in (split_folder / "train" / name).iterdir():
            file.unlink()
        if train != "empty classes":
            (split_folder / "train" / name).rmdir()
    if train == "absent":
        (split_folder / "train").rmdir()
    if train == "flat":
        picture(1).convert("L").save(split_folder / "train" / "0.png")
    assert load(split_folder, "test").image_shape == (3, 8, 10)
    make_grey(split_folder / "test")
    of_grey = 3 if train == "empty classes" else 1
    assert load(split_folder, "test").image_shape == (of_grey, 8, 10)


def test_three_channels_of_grey_images_are_those_of_before_and_a_sentence(split_folder, capsys):
    make_grey(split_folder)
    three, one = load(split_folder, channels=3), load(split_folder)
    assert three.image_shape == (3, 8, 10) and three.fingerprint != one.fingerprint
    assert torch.equal(three.images[:], one.images[:].expand(-1, 3, -1, -1))
    assert "sqrt(3) times that in grey values" in capsys.readouterr().err


@pytest.mark.parametrize("name", folders.NAMES)
def test_grey_test_images_beside_colours_are_told(split_folder, capsys, name):
    make_grey(split_folder / "test")
    assert [load(split_folder, s, name).image_shape[0] for s in ("train", "test")] == [3, 3]
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "sqrt(3)" in line]
    assert f"the test images in {split_folder} are grey but read with three" in said
    assert said.endswith("times that in grey values")  # and no remedy: the network needs three
    make_grey(split_folder / "train")
    folders.say_once.cache_clear()
    for split, what in (("test", "test"), ("train", "training")):  # as a network of three does
        load(split_folder, split, name, channels=3)
        said = capsys.readouterr().err
        assert f"the {what} images in {split_folder} are grey" in said
        assert "grey values (files with one channel are read with one, but by" in said


def test_colours_that_are_grey_are_read_by_a_network_of_one_channel(split_folder, capsys):
    make_grey(split_folder)
    one = load(split_folder).images[:]
    make_grey(split_folder, "RGB")
    assert load(split_folder).image_shape == (3, 8, 10)
    assert "read with three equal channels" in capsys.readouterr().err
    assert torch.equal(load(split_folder, channels=1).images[:], one)
    path = split_folder / "train" / "bee" / "003.png"
    picture(1).save(path)
    with pytest.raises(InputError, match="has colours: expected a grey image.* convert") as caught:
        load(split_folder, channels=1)
    assert str(path) in str(caught.value)


def test_grey_images_that_stay_in_their_files(split_folder, monkeypatch):
    make_grey(split_folder)
    inside = load(split_folder)
    monkeypatch.setattr(image_folders, "_MAX_BYTES_IN_MEMORY", 100)
    outside, three = load(split_folder), load(split_folder, channels=3)
    assert isinstance(outside.images, ImageFiles) and outside.images.shape == (18, 1, 8, 10)
    assert torch.equal(outside.images[:], inside.images[:])
    assert outside.fingerprint != three.fingerprint
    resized, wide = (load(split_folder, name="imagenet", channels=c) for c in (None, 3))
    assert resized.image_shape == (1, 224, 224) and wide.image_shape == (3, 224, 224)
    settings = {"shuffle_seed": 0, "epoch": 0, "augment": "crop-flip"}
    for (grey, _, _), (rgb, _, _) in zip(
        data.batches(resized, 5, **settings), data.batches(wide, 5, **settings), strict=True
    ):
        assert torch.equal(grey.expand(-1, 3, -1, -1), rgb)


# ---- images that stay in their files


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


# ---- refusals


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


def test_an_empty_class_is_named(split_folder):
    for file in (split_folder / "train" / "bee").iterdir():
        file.unlink()
    (split_folder / "train" / "bee" / "a.gif").write_text("")
    with pytest.raises(InputError, match=r"holds no images: expected files \.jpg") as caught:
        load(split_folder)
    assert str(split_folder / "train" / "bee") in str(caught.value)


def test_a_class_of_one_split_only_is_named(split_folder):
    (split_folder / "test" / "dog").mkdir()
    for split in ("train", "test"):
        with pytest.raises(InputError, match="the class 'dog' in .*test only"):
            load(split_folder, split)


def test_one_image_cannot_be_divided(tmp_path):
    write_classes(tmp_path, 1)
    with pytest.raises(InputError, match="holds one image: expected two or more"):
        load(tmp_path)


@pytest.mark.parametrize("name", folders.NAMES)
def test_a_missing_folder_is_named(tmp_path, name):
    with pytest.raises(InputError, match="--data-dir FOLDER with train/CLASS"):
        data.load(name, "train")
    with pytest.raises(InputError, match="expected a folder with train/ and .* got nothing there"):
        load(tmp_path / "absent", name=name)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="got a file; check --data-dir"):
        load(tmp_path / "file", name=name)
    with pytest.raises(InputError, match="has 0 class folders: expected two or more"):
        load(tmp_path, name=name)


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist", "fashion-mnist"])
def test_class_folders_instead_of_published_files_are_recognised(
    split_folder, tmp_path_factory, name, download
):
    unsplit = tmp_path_factory.mktemp("unsplit")
    write_classes(unsplit, 2)
    for folder, first in ((split_folder, "test/ant"), (unsplit, "ant")):
        before = sorted(folder.rglob("*"))
        with pytest.raises(InputError, match="use --data imagefolder for these") as caught:
            load(folder, name=name, download=download)
        assert f"{folder} holds class folders of image files, such as {first}" in str(caught.value)
        assert sorted(folder.rglob("*")) == before
    one = tmp_path_factory.mktemp("one")  # is no such folder
    (one / "train" / "pictures").mkdir(parents=True)
    picture(0).save(one / "train" / "pictures" / "0.png")
    with pytest.raises(InputError, match="missing: expected"):
        load(one, name=name, download=False)


# ---------------------------------------------------------------- names and links of others


def pictures(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    "names",
    [("Train", "Test"), ("training", "testing"), ("TRAIN", "Validation"), ("train", "valid")],
)
def test_usual_spellings_of_the_splits(tmp_path, names):
    for at, split in enumerate(names):
        for name in ("cat", "dog"):
            pictures(tmp_path / split / name, 2 + at)
    train, test = (data.load("imagefolder", s, data_dir=tmp_path) for s in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert (len(train), len(test)) == (4, 6)


def test_two_spellings_of_one_split_are_refused(tmp_path):
    for split in ("train", "Train", "test"):
        for name in ("cat", "dog"):
            pictures(tmp_path / split / name)
    with pytest.raises(InputError, match="has the folders (train and Train|Train and train)"):
        data.load("imagefolder", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("train_set", "test_set"),
        ("trainset", "testset"),
        ("my-train", "my-val"),
        ("train2", "val2"),
    ],
)
def test_classes_that_look_like_splits_are_refused(tmp_path, names):
    for name in names:
        pictures(tmp_path / name / "cat")
    with pytest.raises(InputError, match="look like splits and not like classes"):
        data.load("imagefolder", "train", data_dir=tmp_path)


def test_classes_with_such_letters_within_are_classes(tmp_path):
    for name in ("trains", "testament", "valley"):
        pictures(tmp_path / name, 5)
    assert len(data.load("imagefolder", "train", data_dir=tmp_path)) == 12


def test_linked_folders_are_followed_and_circles_are_not(tmp_path):
    for name in ("cat", "dog"):
        pictures(tmp_path / "elsewhere" / name)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            pictures(tmp_path / "set" / split / name, 1)
            (tmp_path / "set" / split / name / "more").symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "set" / "train" / "cat" / "again").symlink_to(tmp_path / "set" / "train" / "cat")
    assert len(data.load("imagefolder", "train", data_dir=tmp_path / "set")) == 8
