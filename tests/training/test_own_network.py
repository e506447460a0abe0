"""``--arch package.module:factory``: networks of the user's own, and that no file chooses code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from drf_fast import models
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.config.options import TrainConfig
from drf_fast.config.values import updated
from drf_fast.errors import InputError
from drf_fast.models import normalize, own

MODULE = """
import torch
from torch import nn

MARK = __file__ + ".imported"
open(MARK, "a").write("x")


class Small(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.LazyLinear(8), nn.Dropout(), nn.Linear(8, num_classes))


class Makers:
    @staticmethod
    def small(num_classes):
        return Small(num_classes)


class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5]))

    def forward(self, x):
        return x - self.mean


def shifted(num_classes):
    return nn.Sequential(Shift(), Small(num_classes))


def positional(count):
    return Small(count)


def no_network(num_classes):
    return "a network"


def wrong_output(num_classes):
    return Small(num_classes + 1)


def tuple_output(num_classes):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()


def probe(num_classes):
    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, num_classes)

        def forward(self, x):
            with torch.no_grad():
                h = self.features(x).relu().mean((2, 3))
            return self.last(h)
    return Probe()


def no_logits_in_training(num_classes):
    class Out(Small):
        def forward(self, x):
            logits = super().forward(x)
            return {"out": logits} if self.training else logits
    return Out(num_classes)


def wrong_input(num_classes):
    return nn.Conv2d(5, num_classes, 3)


instance = Small(10)
number = 7
"""
SHAPE = (1, 28, 28)


@pytest.fixture
def module(tmp_path: Path, monkeypatch) -> str:
    """The name of a module that lies in the current folder, new for each test."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return name


def imported(module: str) -> bool:
    return Path(f"{module}.py.imported").exists()


def forget(module: str) -> None:
    sys.modules.pop(module, None)
    Path(f"{module}.py.imported").unlink(missing_ok=True)


@pytest.mark.parametrize("factory", ["Small", "Makers.small", "shifted"])
def test_a_factory_is_found_in_the_current_folder(module, factory):
    network = models.build(f"{module}:{factory}", 10, SHAPE)
    assert imported(module)
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    assert network(torch.rand(3, *SHAPE)).shape == (3, 10)


def test_a_network_of_torchvision_is_one():
    network = models.build("torchvision.models:resnet18", 7, (3, 64, 64), "imagenet")
    assert isinstance(network, nn.Sequential) and len(network) == 2
    assert network.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_trying_the_network_changes_nothing(module):
    torch.manual_seed(0)
    network = models.build("torchvision.models:resnet18", 7, (3, 64, 64))
    after = torch.rand(1)
    torch.manual_seed(0)
    from torchvision.models import resnet18

    plain = resnet18(num_classes=7)
    assert torch.equal(torch.rand(1), after)
    for (name, one), other in zip(
        network.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("no_such_module_x:f", "expected a module no_such_module_x .*got none"),
        ("torchvision.absent:f", "expected a module torchvision.absent .*got none"),
        ("{m}:absent", r"expected 'absent' in .*\.py, got no such name"),
        ("{m}:Makers.absent", "expected 'absent' in Makers, got no such name"),
        ("{m}:number", "called with num_classes=K .*got a value of type int"),
        ("{m}:instance", "called with num_classes=K .*got an instance of Small"),
        ("{m}:positional", "got TypeError: positional.. got an unexpected keyword"),
        ("{m}:no_network", "returns an nn.Module, got a value of type str"),
        ("{m}:wrong_output", r"become logits \(2, 10\), got \(2, 11\)"),
        ("{m}:wrong_input", r"images \(2, 1, 28, 28\) to become .*got RuntimeError"),
        ("{m}:", "must be a name, or package.module:factory"),
        (":f", "must be a name, or package.module:factory"),
        ("a/b.py:f", "must be a name, or package.module:factory"),
        ("{m}:Small:x", "must be a name, or package.module:factory"),
    ],
)
def test_what_is_no_factory_is_refused_in_one_sentence(module, arch, message):
    with pytest.raises(InputError, match=message) as caught:
        models.build(arch.format(m=module), 10, SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "status", "said"), [("gaussian", 0, ""), ("smoothadv", 1, "gradient")]
)
def test_layers_on_a_frozen_network(module, tmp_path, capsys, method, status, said):
    words = [
        "--arch",
        f"{module}:probe",
        "--train-images",
        "64",
        "--method",
        method,
        "--epochs",
        "1",
    ]
    assert main(["train", *words, "--certify-images", "0", "--out", str(tmp_path / "r")]) == status
    assert said in capsys.readouterr().err


def test_a_network_without_logits_in_training_ends_in_a_sentence(module, tmp_path, capsys):
    words = ["--arch", f"{module}:no_logits_in_training", "--train-images", "64"]
    assert main(["train", *words, "--certify-images", "0", "--out", str(tmp_path / "r")]) == 1
    assert "training failed at step 0: the network must return logits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_dependency", "to be imported, got ModuleNotFoundError: No module named"),
        ("1 / 0", "to be imported, got ZeroDivisionError"),
        ("raise SystemExit('usage: ...')", "to be imported, got SystemExit: usage"),
        ("def (", "to be imported, got SyntaxError"),
    ],
)
def test_a_module_that_fails_is_told_from_a_missing_one(module, code, message):
    Path(f"{module}_broken.py").write_text(code)
    with pytest.raises(InputError, match=message):
        models.build(f"{module}_broken:f", 10, SHAPE)


# ---- on the command line, and nowhere else

SMALL = ["--train-images", "128", "--epochs", "1", "--method", "gaussian", "--device", "cpu",
         "--memory-format", "contiguous"]  # fmt: skip


def train(arch: str, *flags: str) -> int:
    return main(["train", "--out", "run", *SMALL, "--arch", arch, *flags])


def certify(*flags: str) -> int:
    words = ["certify", "run", "--n", "100", "--max-images", "2", "--out", "log.tsv", "--force"]
    return main([*words, "--device", "cpu", "--batch-size", "64", *flags])


@pytest.mark.slow
def test_a_run_is_trained_certified_and_predicted_with_it(module, capsys):
    arch = f"{module}:shifted"  # its first buffer is called 0.mean, as ours of a normalised network
    assert train(arch, "--certify-images", "2", "--certify-n", "100") == 0
    assert checkpoint.load(Path("run/checkpoint.pt"))["arch"] == arch
    assert certify("--arch", arch) == 0
    assert json.loads(Path("log.json").read_text())["arch"] == arch
    words = ["predict", "run", "--n", "64", "--max-images", "2", "--batch-size", "64"]
    assert main([*words, "--arch", arch]) == 0
    assert capsys.readouterr().out.count("\n") > 2


@pytest.mark.slow
def test_a_sweep_trains_certifies_and_resumes_it(module, capsys):
    arch = f"{module}:Small"
    words = ["sweep", *SMALL, "--n", "60", "--n0", "20", "--certify-images", "2", "--out", "s"]
    assert main([*words, "--seeds", "0", "--arch", arch]) == 0
    capsys.readouterr()
    assert main(["sweep", "--resume", "--out", "s", "--seeds", "0,1"]) == 2
    assert f"repeat --arch {arch}" in capsys.readouterr().err
    assert main(["sweep", "--resume", "--out", "s", "--seeds", "0,1", "--arch", arch]) == 0
    assert Path("s/seed=1/certificates.tsv").exists()


@pytest.mark.slow
def test_no_command_imports_what_a_checkpoint_names(module, capsys):
    arch = f"{module}:Small"
    assert train(arch, "--certify-images", "0") == 0
    forget(module)
    capsys.readouterr()
    assert certify() == 2
    message = capsys.readouterr().err
    assert f"repeat --arch {arch}" in message and message.count("\n") == 1
    assert main(["predict", "run", "--n", "10"]) == 2
    assert f"repeat --arch {arch}" in capsys.readouterr().err
    assert main(["certify", "run", "--n", "100"]) == 2  # also where the log's name comes from it
    saved = checkpoint.load(Path("run/checkpoint.pt"))
    with pytest.raises(InputError, match="may not import"):
        checkpoint.build_model(saved, Path("run/checkpoint.pt"))
    assert certify("--arch", "lenet") == 2  # a name of ours does not stand for the code
    assert not imported(module) and module not in sys.modules
    moved = f"{module}_moved"  # the same network in another module of the user's
    Path(f"{moved}.py").write_text(MODULE)
    assert certify("--arch", f"{moved}:Small") == 0
    assert not imported(module)


def test_no_command_imports_what_a_toml_file_or_a_run_names(module, tmp_path, capsys):
    arch = f"{module}:Small"
    Path("a.toml").write_text(f'arch = "{arch}"')
    assert main(["train", "--out", "r", "--config", "a.toml"]) == 2
    assert "which names code; pass it as --arch on the command line" in capsys.readouterr().err
    with pytest.raises(InputError, match="names code"):
        updated(TrainConfig(), {"arch": arch}, "a sweep")
    assert not imported(module) and not Path("r").exists()

    assert train(arch, "--certify-images", "0", "--max-steps", "1") == 0
    forget(module)
    words = ["train", "--out", "run", "--resume", "--certify-images", "0"]
    assert main(words) == 2
    assert f"repeat --arch {arch}" in capsys.readouterr().err
    assert main([*words, "--arch", f"{module}:shifted"]) == 2
    assert not imported(module)
    assert main([*words, "--arch", arch]) == 0
    assert checkpoint.load(Path("run/checkpoint.pt"))["step"] == 2


def test_a_checkpoint_of_ours_needs_no_code(module, capsys):
    assert train("lenet", "--certify-images", "0", "--max-steps", "1") == 0
    assert certify("--arch", f"{module}:Small") == 2
    assert "expected no --arch" in capsys.readouterr().err
    torch.save(models.build("lenet", 10, SHAPE).state_dict(), "weights.pt")
    words = ["certify", "weights.pt", "--sigma", "0.5", "--data", "mnist-mini"]
    assert main([*words, "--arch", f"{module}:Small"]) == 2
    assert f"weights.pt do not fit --arch {module}:Small: missing" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused(module, capsys):
    assert train(f"{module}:Small", "--certify-images", "0", "--max-steps", "1") == 0
    assert certify("--arch", f"{module}:shifted") == 2
    assert f"do not fit {module}:shifted" in capsys.readouterr().err


@pytest.mark.slow
def test_the_installed_command_sees_the_current_folder(module):
    words = ["train", "--out", "run", *SMALL, "--arch", f"{module}:Small", "--max-steps", "1"]
    words += ["--certify-images", "0"]
    code = "import sys; sys.path.remove(''); from drf_fast.commands.cli import main; "
    code += f"sys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_working_folder_does_not_stay_on_the_path(module):
    before = list(sys.path)
    assert isinstance(own.build(f"{module}:Small", 10, (1, 28, 28)), torch.nn.Module)
    with pytest.raises(InputError):
        own.build(f"{module}:nothing", 10, (1, 28, 28))
    assert sys.path == before


def test_own_networks_are_normalised_too(module):
    from PIL import Image

    for split in ("train", "test"):
        for name in ("blue", "red"):
            folder = Path("pictures", split, name)
            folder.mkdir(parents=True)
            for at in range(3):
                Image.new("RGB", (8, 8), name).save(folder / f"{at}.png")
    arch = ["--arch", f"{module}:Small"]
    words = ["train", "--out", "run", *SMALL, *arch, "--data", "imagefolder", "--data-dir"]
    assert main([*words, "pictures", "--normalize", "imagenet", "--certify-images", "0"]) == 0
    saved = checkpoint.load(Path("run/checkpoint.pt"))
    torch.testing.assert_close(saved["model"]["0.mean"], torch.tensor([0.485, 0.456, 0.406]))
    assert certify(*arch) == 0


def test_only_built_in_networks_are_normalised_by_default(module, monkeypatch):
    """One of the user's own normalises inside, if at all, as certify assumes."""
    monkeypatch.setattr(normalize, "for_data", lambda data, channels: "cifar10")
    words = ["train", "--out", "run", *SMALL, "--certify-images", "0"]
    assert main([*words, "--arch", "lenet"]) == 2  # these constants have three channels
    assert main([*words, "--arch", f"{module}:Small"]) == 0
    assert "0.mean" not in checkpoint.load(Path("run/checkpoint.pt"))["model"]
