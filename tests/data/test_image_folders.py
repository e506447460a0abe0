"""Class folders: layouts, names, labels, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from class_folders import CLASSES, load, make_grey, picture, write_classes
from PIL import Image

from drf_fast import data
from drf_fast.data import folders
from drf_fast.errors import InputError


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
