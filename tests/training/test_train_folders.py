"""Training on folders of images: the normalising layer, crops and flips, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from drf_fast import data, models
from drf_fast.certification import loading
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.config.options import CertifyConfig
from drf_fast.data import image_folders
from drf_fast.errors import InputError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of coloured 16 x 16 images, told apart by their colour."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 24), ("test", 6)):
        for name, base in (("blue", (30, 40, 200)), ("red", (200, 40, 30))):
            (folder / split / name).mkdir(parents=True)
            for at in range(count):
                colour = tuple(value + 2 * at for value in base)
                Image.new("RGB", (16, 16), colour).save(folder / split / name / f"{at}.png")
    return folder


def run_on(pictures: Path, out: Path, *flags: str) -> dict[str, Any]:
    words = ["train", "--data", "imagefolder", "--data-dir", str(pictures), "--arch", "resnet20",
             "--out", str(out), "--method", "gaussian", "--batch-size", "16", "--epochs", "2",
             "--sigma", "0.1", "--device", "cpu", "--memory-format", "contiguous"]  # fmt: skip
    assert main([*words, "--certify-images", "0", *flags]) == 0
    return checkpoint.load(out / "checkpoint.pt")


@pytest.mark.slow
def test_the_first_layer_is_trained_with_recorded_and_certified(pictures, tmp_path, capsys):
    plain = run_on(pictures, tmp_path / "a")
    assert plain["config"]["normalize"] == "none" and "conv1.weight" in plain["model"]
    assert plain["class_names"] == ["blue", "red"]
    saved = run_on(pictures, tmp_path / "b", "--normalize", "cifar10")
    assert saved["config"]["normalize"] == "cifar10"
    assert torch.equal(saved["model"]["0.std"], torch.tensor([0.2023, 0.1994, 0.2010]))
    assert json.loads((tmp_path / "b" / "config.json").read_text())["normalize"] == "cifar10"
    given = run_on(pictures, tmp_path / "c", "--normalize", "0.5/0.25,0.3,0.2", "--max-steps", "1")
    assert given["config"]["normalize"] == "0.5/0.25,0.3,0.2"
    assert torch.equal(given["model"]["0.std"], torch.tensor([0.25, 0.3, 0.2]))
    resumed = run_on(pictures, tmp_path / "c", "--resume")  # "auto" takes what was recorded
    assert resumed["config"]["normalize"] == "0.5/0.25,0.3,0.2" and resumed["epoch"] == 2
    words = ["certify", str(tmp_path / "b"), "--n", "100", "--n0", "10", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "log.tsv")]) == 0
    log = json.loads((tmp_path / "log.json").read_text())
    assert (log["data"], log["training"]["normalize"]) == ("imagefolder", "cifar10")
    assert len((tmp_path / "log.tsv").read_text().splitlines()) == 13
    assert main(["predict", str(tmp_path / "b"), "--n", "20", "--device", "cpu"]) == 0


def certified_with(folder: Path, trained: list[str] | None, here: tuple[str, str]) -> None:
    """Read a network of 2 x 2 pixels that was trained on other classes than it is certified on."""
    for name in here:
        (folder / "test" / name).mkdir(parents=True)
        Image.new("RGB", (2, 2), (10, 20, 30)).save(folder / "test" / name / "0.png")
    network = models.build("lenet", 2, (3, 28, 28))
    config = {"sigma": 0.5, "data": "imagefolder", "method_label": "x", "normalize": "none"}
    content = {"model": network.state_dict(), "arch": "lenet", "num_classes": 2, "config": config}
    named = {} if trained is None else {"class_names": trained}
    checkpoint.save(folder / "checkpoint.pt", content | {"image_shape": [3, 2, 2]} | named)
    loading.source(CertifyConfig(checkpoint=folder / "checkpoint.pt", data_dir=folder))


@pytest.mark.parametrize("trained", [None, ["dog", "wolf"]])  # None: of an older version
def test_the_classes_of_the_training_are_certified(tmp_path, capsys, trained):
    certified_with(tmp_path, trained, ("dog", "wolf"))
    assert "classes" not in capsys.readouterr().err


def test_a_class_at_another_number_than_in_the_training_is_refused(tmp_path):
    message = r"got 'dog' for 'cat', 'wolf' for 'dog', so that 'dog' is class 0 and was 1; pass a"
    with pytest.raises(InputError, match=message):
        certified_with(tmp_path, ["cat", "dog"], ("dog", "wolf"))


def test_other_names_of_classes_are_said(tmp_path, capsys):
    certified_with(tmp_path, ["cat", "dog"], ("cats", "dog"))
    assert "names than in the training: 'cats' for 'cat'; are" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["cat"], "cd", [1, 2], None])
def test_names_of_classes_that_cannot_be_end_in_a_sentence(tmp_path, names):
    certified_with(tmp_path, None, ("cat", "dog"))
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {**checkpoint.load(path), "class_names": names})
    with pytest.raises(InputError, match="is damaged: .* whose class_names cannot be used"):
        checkpoint.load(path)


@pytest.mark.slow
def test_the_page_finds_the_images_by_the_settings_of_the_run(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    run_on(pictures, run, "--epochs", "1")
    few = ["--max-images", "2", "--n", "32", "--n0", "4", "--batch-size", "32"]
    few += ["--memory-format", "contiguous", "--device", "cpu"]
    assert main(["certify", str(run), *few]) == 0
    assert main(["report", str(run), "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("<li data-state=") == 2
    (run / "config.json").unlink()  # the log says it, too
    assert main(["report", str(run), "--force", "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("<li data-state=") == 2
    (sidecar,) = run.glob("certify-*.json")
    settings = json.loads(sidecar.read_text())
    del settings["environment"]["data_dir"]
    sidecar.write_text(json.dumps(settings))
    capsys.readouterr()
    assert main(["report", str(run), "--force", "--html", str(tmp_path / "page.html")]) == 0
    assert "says where its imagefolder lies" in capsys.readouterr().err
    assert 'id="gallery"' not in (tmp_path / "page.html").read_text()


def grey_digits(folder: Path, mode: str = "L") -> Path:
    """The first test images of mnist-mini as PNGs, in folders of their classes."""
    digits = data.load("mnist-mini", "test", limit=40)
    for at, (image, label) in enumerate(zip(digits.images[:], digits.labels.tolist(), strict=True)):
        for split in ("train", "test"):
            path = folder / split / str(label) / f"{at:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).convert(mode).save(path)
    return folder


def test_a_network_of_one_channel_certifies_grey_pngs(tmp_path, capsys):
    torch.manual_seed(0)
    content = {
        "model": models.build("lenet", 10, (1, 28, 28)).state_dict(),
        "arch": "lenet",
        "num_classes": 10,
        "image_shape": [1, 28, 28],
        "config": {"sigma": 0.5, "data": "mnist-mini", "method_label": "smoothadv"},
    }
    checkpoint.save(tmp_path / "checkpoint.pt", content)
    rows = []
    for mode in ("L", "RGB"):  # grey values that are stored as colours are the same images
        folder, out = grey_digits(tmp_path / mode, mode), tmp_path / f"{mode}.tsv"
        words = ["certify", str(tmp_path), "--data", "imagefolder", "--data-dir", str(folder)]
        words += ["--n", "64", "--n0", "8", "--max-images", "3", "--device", "cpu"]
        words += ["--batch-size", "32", "--memory-format", "contiguous", "--precision", "fp32"]
        assert main([*words, "--out", str(out)]) == 0
        assert json.loads(out.with_suffix(".json").read_text())["environment"]["channels"] == 1
        lines = [line.split("\t") for line in out.read_text().splitlines()]
        rows.append([line[:5] + line[6:] for line in lines])  # but for the time
    assert rows[0] == rows[1] and len(rows[0]) == 4


@pytest.mark.slow
def test_a_run_of_three_equal_channels_goes_on_with_them(tmp_path, monkeypatch, capsys):
    folder, run = grey_digits(tmp_path / "digits"), tmp_path / "run"
    with monkeypatch.context() as then:
        then.setattr(image_folders, "is_grey", lambda path: False)  # as before they were told
        run_on(folder, run, "--epochs", "2", "--max-steps", "2")
    saved = run_on(folder, run, "--resume", "--epochs", "2")
    assert saved["image_shape"] == [3, 28, 28] and saved["epoch"] == 2
    assert "sqrt(3) times that in grey values" in capsys.readouterr().err
    few = ["--max-images", "2", "--n", "32", "--n0", "4", "--batch-size", "32"]
    few += ["--memory-format", "contiguous", "--device", "cpu"]
    assert main(["certify", str(run), *few]) == 0
    (sidecar,) = run.glob("certify-*.json")
    settings = json.loads(sidecar.read_text())
    assert settings["environment"].pop("channels") == 3  # a log of then does not have it
    sidecar.write_text(json.dumps(settings))
    assert main(["report", str(run), "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("<li data-state=") == 2
    assert run_on(folder, tmp_path / "new", "--epochs", "1")["image_shape"] == [1, 28, 28]


@pytest.mark.slow
def test_cropped_images_are_the_same_after_a_break(pictures, tmp_path):
    flags = ["--augment", "crop-flip"]
    whole = run_on(pictures, tmp_path / "d", *flags)
    run_on(pictures, tmp_path / "e", *flags, "--max-steps", "4")
    resumed = run_on(pictures, tmp_path / "e", "--resume")
    plain = run_on(pictures, tmp_path / "f")
    weights = [saved["model"]["conv1.weight"] for saved in (whole, resumed, plain)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.slow
def test_a_finished_run_is_certified_where_its_images_are_now(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "before")
    run_on(tmp_path / "before", tmp_path / "run", "--epochs", "1")
    (tmp_path / "before").rename(tmp_path / "after")
    words = ["train", "--out", str(tmp_path / "run"), "--resume", "--certify-images", "2"]
    words += ["--certify-n", "32", "--data-dir", str(tmp_path / "after")]
    assert main(words) == 0
    assert len((tmp_path / "run" / "certificates.tsv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--normalize", "0.5,0.5,0.5"], "--normalize must be one of none, cifar10"),
        (["--normalize", "mnist"], "--normalize mnist is for images of 1 channel, got 3"),
        (["--arch", "lenet"], "lenet takes 28x28 images, got images of shape (3, 16, 16)"),
        (["--arch", "resnet50"], "at least 32x32, got images of shape (3, 16, 16)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(pictures, tmp_path, capsys, flags, message):
    words = ["train", "--data", "imagefolder", "--data-dir", str(pictures), "--arch", "resnet20"]
    assert main([*words, "--out", str(tmp_path / "r"), *flags]) == 2
    captured = capsys.readouterr().err
    assert message in captured and not (tmp_path / "r").exists()


def test_splits_of_other_sizes_are_refused(pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "p")
    for path in (tmp_path / "p" / "test").rglob("*.png"):
        Image.open(path).resize((20, 16)).save(path)
    words = ["train", "--data", "imagefolder", "--data-dir", str(tmp_path / "p")]
    assert main([*words, "--arch", "resnet20", "--out", str(tmp_path / "r")]) == 2
    assert "test images of shape (3, 16, 20): expected one shape" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_image_stops_a_run_with_one_sentence(pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "p")
    (tmp_path / "p" / "train" / "red" / "3.png").write_bytes(b"\x89PNG")
    for name in ("imagefolder", "imagenet"):
        words = ["train", "--data", name, "--data-dir", str(tmp_path / "p"), "--batch-size", "4"]
        words += ["--method", "gaussian", "--arch", "resnet20", "--normalize", "none"]
        words += ["--num-samples", "1", "--epochs", "1", "--device", "cpu"]
        assert main([*words, "--out", str(tmp_path / name), "--memory-format", "contiguous"]) == 2
        message = capsys.readouterr().err
        assert str(tmp_path / "p" / "train" / "red" / "3.png") in message
        assert "Traceback" not in message
