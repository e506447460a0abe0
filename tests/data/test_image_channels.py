"""Class folders: how many channels their images have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from class_folders import CLASSES, load, make_grey, picture
from PIL import Image

from drf_fast import data
from drf_fast.data import folders, image_folders
from drf_fast.data.image_files import ImageFiles
from drf_fast.errors import InputError


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_kinds_of_pixels_become_rgb(split_folder, mode):
    path = split_folder / "train" / "ant" / ("000.tif" if mode == "CMYK" else "000.png")
    (split_folder / "train" / "ant" / "000.png").unlink()
    picture(5).convert(mode).save(path)
    expected = np.array(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(torch.as_tensor(load(split_folder).images[0]).numpy(), expected)


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
