"""Commands on a network of the user's own: with a checkpoint of any origin, or without one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import drf_fast
from drf_fast import data, models
from drf_fast.attacks.log import AttackRow, format_row
from drf_fast.checkpoints import first_layer, fitting, given
from drf_fast.commands.cli import main
from drf_fast.errors import InputError
from drf_fast.models import Normalize
from drf_fast.models.normalize import normalize_layer

MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d({channels}, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.fc = nn.LazyLinear(num_classes)
        self.register_buffer("order", torch.tensor([3, 1, 2]))

    def forward(self, x):
        return {{"logits": self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))}}


def make(num_classes):
    return Net(num_classes)


def pretrained(num_classes):
    torch.manual_seed(5)
    net = Net(num_classes)
    net(torch.zeros(2, {channels}, 28, 28))
    return net.double()


def of_the_batch(num_classes):
    torch.manual_seed(5)
    net = Net(num_classes)
    net.norm = nn.BatchNorm2d(4, track_running_stats=False)
    net(torch.zeros(2, {channels}, 28, 28))
    return net


def compiled(num_classes):
    return torch.compile(Net(num_classes), backend="eager")
"""
SETTINGS = ["--data", "mnist-mini", "--sigma", "0.5", "--max-images", "3", "--device", "cpu"]
FEW = ["--n", "60", "--batch-size", "64"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch) -> str:
    """A module of such factories for grey images in the current folder."""
    return write_module(tmp_path, monkeypatch, channels=1)


def write_module(folder: Path, monkeypatch, channels: int) -> str:
    name = f"given_{folder.name}_{channels}".replace("-", "_")
    (folder / f"{name}.py").write_text(MODULE.format(channels=channels))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return name


def network(module: str, channels: int = 1) -> nn.Module:
    """A network of that module with weights of its own."""
    torch.manual_seed(9)
    made: Any = models.build(f"{module}:make", 10, (channels, 28, 28))
    made.norm.running_mean.uniform_(-1, 1)
    return made.eval()


def with_prefix(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "_orig_mod.", "encoder.net.", "1.", "module.backbone."]
)
@pytest.mark.parametrize("factory", ["make", "compiled"])
def test_names_that_fit_the_network_load(module, tmp_path, prefix, factory):
    net = network(module)
    state = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
    torch.save({"epoch": 3, "state_dict": with_prefix(prefix, state)}, "a.ckpt")
    saved = given.read(Path("a.ckpt"), f"{module}:{factory}", None)
    found, saved = given.network(saved, Path("a.ckpt"), 10, (1, 28, 28))
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(found.eval()(x)["logits"], net(x)["logits"])
    assert saved["config"]["normalize"] == "none" and saved["sha256"]


@pytest.mark.parametrize("asked", [None, "cifar10"])
@pytest.mark.parametrize("constants", [True, False])
def test_a_first_layer_in_the_file_comes_before_the_network(
    tmp_path, monkeypatch, asked, constants
):
    module = write_module(tmp_path, monkeypatch, channels=3)
    net = network(module, 3)
    layer = Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    state = with_prefix("1.", net.state_dict())
    if constants:
        state |= with_prefix("0.", layer.state_dict())
    torch.save(state, "a.pt")
    saved = given.read(Path("a.pt"), f"{module}:make", asked)
    found, saved = given.network(saved, Path("a.pt"), 10, (3, 28, 28))
    x = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        got = found.eval()(x)["logits"]
        torch.testing.assert_close(got, net(layer(x))["logits"])
    assumed = [note for note in saved["notes"] if "assumed --normalize cifar10" in note]
    assert len(assumed) == (asked is None and not constants)


def test_normalize_comes_before_a_network_without_its_own(tmp_path, monkeypatch):
    module = write_module(tmp_path, monkeypatch, channels=3)
    net = network(module, 3)
    torch.save(net.state_dict(), "a.pt")
    saved = given.read(Path("a.pt"), f"{module}:make", "imagenet")
    found, saved = given.network(saved, Path("a.pt"), 10, (3, 28, 28))
    layer = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(x)["logits"], net(layer(x))["logits"])
    assert saved["config"]["normalize"] == "imagenet"


def trained_behind(layer: str | None, kind: type[nn.Module] = nn.BatchNorm2d) -> Any:
    """A network whose statistics are those of noisy images behind this layer, and these rows."""
    torch.manual_seed(0)
    rows = torch.rand(64, 1, 1, 1) + 0.3 * torch.randn(64, 3, 8, 8)
    before = normalize_layer(layer or "none", 3) or nn.Identity()
    net = nn.Sequential(nn.Conv2d(3, 8, 3), kind(8), nn.Flatten(), nn.Linear(288, 10))
    for _ in range(50):
        net(before(rows))
    return net, rows


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: torch.compile(net).double()])
@pytest.mark.parametrize("layer", ["cifar10", "cifar10-center"])
def test_a_first_layer_that_its_statistics_ask_for_is_said(layer, wrap):
    net, rows = trained_behind(layer)
    net[1].train()
    said = first_layer.advice(wrap(net), (3, 8, 8), lambda: rows)
    assert f"but --normalize {layer} fits the statistics of its first batch" in str(said)
    assert net[1].training and net[0].weight.requires_grad  # left as it was


def test_nothing_is_said_where_no_first_layer_fits_or_channels_are_others():
    net, rows = trained_behind(None)
    assert first_layer.advice(net, (3, 8, 8), lambda: rows) is None
    assert first_layer.advice(net, (1, 8, 8), lambda: rows[:, :1]) is None


def test_no_large_network_in_front_of_the_statistics_is_run_for_them():
    net, _ = trained_behind("cifar10")
    denoiser = nn.Sequential(nn.Conv2d(3, 600, 3, padding=1), nn.Conv2d(600, 3, 31, padding=15))
    said = first_layer.advice(nn.Sequential(denoiser, net), (3, 8, 8), lambda: pytest.fail("rows"))
    assert "no normalising layer is put before the network" in str(said)


def test_without_statistics_it_is_said_that_there_is_no_first_layer(tmp_path, monkeypatch, capsys):
    net, rows = trained_behind("cifar10", kind=nn.InstanceNorm2d)
    note = "no normalising layer is put before the network; if it was trained behind one"
    for given_net in (net, nn.Linear(7, 2)):  # and one that does not take such images
        assert note in str(first_layer.advice(given_net, (3, 8, 8), lambda: rows))
    module = write_module(tmp_path, monkeypatch, channels=3)
    levels = (rows.clamp(0, 1) * 255).to(torch.uint8).repeat(1, 1, 4, 4)[..., :28, :28]
    labels, names = torch.arange(64) % 10, tuple("0123456789")
    images = data.Dataset(levels, labels, 10, "cifar10", "test", names, "x")
    monkeypatch.setattr(data, "load", lambda *_, **__: images)
    words = ["predict", "--arch", f"{module}:pretrained", *SETTINGS, "--n", "2"]
    for more, said in (([], True), (["--normalize", "none"], False)):
        assert main([*words, *more]) == 0
        assert ("no normalising layer is put before" in capsys.readouterr().err) == said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.bias"), "do not fit --arch .*:make: missing fc.bias; pass the checkp"),
        (lambda s: s.pop("order"), r"missing order; if .*persistent=False.*pass --normalize"),
        (lambda s: s.pop("norm.running_var"), "missing norm.running_var; pass the checkpoint"),
        (lambda s: [s.pop("order"), s.pop("fc.bias")], "missing order, fc.bias; pass the check"),
        (lambda s: s.update(extra=torch.zeros(2)), "unexpected extra"),
        (lambda s: s.update({"fc.bias": torch.zeros(7)}), r"wrong shape fc.bias \(10,\), got \(7"),
        (lambda s: s.update(order=torch.zeros(3)), r"order \(3,\) of integers, got \(3,\)"),
        (
            lambda s: s.update({key: s[key][:7].clone() for key in s if "fc." in key}),
            r"expected 10 classes, as many as the data set has, got 7 in fc.weight, fc.bias; pass",
        ),
        (lambda s: s["fc.bias"].fill_(torch.nan), "cannot use fc.bias .*finite weights, got NaN"),
        (lambda s: s.update({"fc.bias": torch.zeros(1).expand(10)}), "fewer that its strides"),
    ],
)
def test_weights_that_do_not_fit_name_their_keys(module, change, message):
    state = network(module).state_dict()
    change(state)
    if "fewer" in message:  # torch.save keeps the strides
        assert state["fc.bias"].untyped_storage().nbytes() == 4
    torch.save({"net": state}, "a.pt")
    saved = given.read(Path("a.pt"), f"{module}:make", None)
    with pytest.raises(InputError, match=message) as caught:
        given.network(saved, Path("a.pt"), 10, (1, 28, 28))
    assert "\n" not in str(caught.value)


def test_two_layers_called_0_and_1_are_no_first_layer(module, tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    fit = fitting.load_into(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), net.state_dict(), tmp_path, "it", 2
    )
    assert not fit.has_layer and list(fit.weights) == list(net.state_dict())


def test_certify_predict_and_gap_take_a_checkpoint_of_any_origin(module, capsys):
    net = network(module)
    torch.save({"model": net.state_dict(), "acc": 0.5}, "a.pt")
    words = ["a.pt", "--arch", f"{module}:make", *SETTINGS]
    assert main(["certify", *words, *FEW, "--n0", "20", "--out", "log.tsv"]) == 0
    rows = [line.split("\t") for line in Path("log.tsv").read_text().splitlines()[1:]]
    smoothed = drf_fast.SmoothedClassifier(net, 10, 0.5)
    images = data.load("mnist-mini", "test").float_images([0, 1, 2])
    expected = smoothed.certify_batch(images, 20, 60, 0.001, 64)
    assert [int(row[2]) for row in rows] == expected.label.tolist()
    assert [int(row[6]) for row in rows] == expected.count.tolist()
    recorded = json.loads(Path("log.json").read_text())
    assert recorded["arch"] == f"{module}:make" and recorded["method"] == "foreign"
    capsys.readouterr()
    assert main(["predict", *words, *FEW]) == 0
    predicted = [int(line.split("\t")[2]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert predicted == smoothed.predict_batch(images, 60, 0.001, 64).tolist()
    assert main(["gap", *words, "--json", "--over", "all"]) == 0
    method = json.loads(capsys.readouterr().out)["methods"][0]
    assert method["checkpoints"] == ["a.pt"] and method["gaps"] == 3


def test_logs_of_two_checkpoints_of_one_folder_are_named_after_them(module, capsys):
    words = ["--arch", f"{module}:make", *SETTINGS, *FEW, "--n0", "20"]
    for name in ("best", "last"):
        torch.save(network(module).state_dict(), f"{name}.pt")
        assert main(["certify", f"{name}.pt", *words]) == 0
        assert len(Path(f"{name}-certify-s0.5-n60.tsv").read_text().splitlines()) == 4
    capsys.readouterr()
    attack = ["--arch", f"{module}:make", *SETTINGS, *FEW, *ATTACK, "--epsilons", "0.5"]
    assert main(["attack", "last.pt", *attack]) == 0
    assert "no certificates" not in capsys.readouterr().err  # found by the network's content
    assert Path("last-attack-s0.5-n60.tsv").exists()


def test_a_network_with_its_weights_needs_no_checkpoint(module, capsys):
    words = ["--arch", f"{module}:pretrained", *SETTINGS]
    assert main(["certify", *words, *FEW, "--n0", "20"]) == 0
    log = Path(f"{module}.pretrained-certify-s0.5-n60.tsv")
    first = log.read_text()
    assert len(first.splitlines()) == 4
    recorded = json.loads(log.with_suffix(".json").read_text())
    assert recorded["method"] == f"{module}:pretrained" and len(recorded["checkpoint_sha256"]) == 64
    assert main(["certify", *words, *FEW, "--n0", "20", "--resume"]) == 0  # the same network again
    assert log.read_text() == first
    assert main(["predict", *words, *FEW]) == 0
    capsys.readouterr()
    assert main(["gap", *words, "--json", "--over", "all"]) == 0
    method = json.loads(capsys.readouterr().out)["methods"][0]
    assert method["name"] == f"{module}:pretrained, σ = 0.5" and method["gaps"] == 3


ATTACK = ["--num-samples", "2", "--steps", "2", "--ddn-steps", "2", "--restarts", "1"]
SHOW = ["--data", "mnist-mini", "--sigma", "0.5", "--device", "cpu", "--images", "2", "--n", "50",
        "--num-samples", "2", "--steps", "2"]  # fmt: skip


def test_attack_and_show_need_no_checkpoint_either(module, capsys):
    arch = ["--arch", f"{module}:pretrained"]
    attack = ["attack", *arch, *SETTINGS, *FEW, *ATTACK, "--epsilons", "0.5"]
    assert main(attack) == 0
    assert "no certificates of this network to compare with" in capsys.readouterr().err
    assert main(["show", *arch, *SHOW]) == 2
    assert f"{module}:pretrained has no certificates beside it" in capsys.readouterr().err
    # Without --skip both take that of the certificates, which they find by the network's content.
    assert main(["certify", *arch, *SETTINGS, *FEW, "--n0", "20", "--skip", "7"]) == 0
    capsys.readouterr()
    assert main([*attack, "--force", "--json"]) == 0
    shown = capsys.readouterr()
    assert "no certificates" not in shown.err
    assert json.loads(shown.out)["epsilons"][0]["certified"] is not None
    log = Path(f"{module}.pretrained-attack-s0.5-n60.tsv")
    rows = [line.split("\t") for line in log.read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == ["0", "7", "14"]
    recorded = json.loads(log.with_suffix(".json").read_text())
    certified = json.loads(Path(f"{module}.pretrained-certify-s0.5-n60.json").read_text())
    for key in ("checkpoint_sha256", "fingerprint", "arch", "method"):
        assert recorded[key] == certified[key]
    assert main([*attack, "--resume"]) == 0  # the same network again
    assert main(["show", *arch, *SHOW]) == 0
    assert Path(f"{module}.pretrained-images.png").read_bytes().startswith(b"\x89PNG")
    label = int(rows[0][1])
    changed = AttackRow(0, label, 0.5, label, (label + 1) % 10, 0.4, "pgd", 1.0)
    header, _, *others = log.read_text().splitlines()
    log.write_text("\n".join([header, format_row(changed), *others]) + "\n")
    assert main(["show", *arch, *SHOW, "--sort", "broken", "--force"]) == 0


def test_attack_and_show_take_a_checkpoint_of_any_origin(module, capsys):
    torch.save({"model": network(module).state_dict(), "acc": 0.5}, "a.pt")
    words = ["a.pt", "--arch", f"{module}:make"]
    few = ["--n0", "20", "--out", "certificates.tsv"]
    assert main(["certify", *words, *SETTINGS, *FEW, *few]) == 0
    assert main(["attack", *words, *SETTINGS, *FEW, *ATTACK]) == 0
    assert "no certificates" not in capsys.readouterr().err
    assert Path("a-attack-s0.5-n60.tsv").read_text().count("\n") == 10
    assert main(["show", *words, *SHOW]) == 0
    assert Path("a-images.png").exists()


@pytest.mark.parametrize("command", ["certify", "predict", "gap", "attack", "show"])
def test_what_is_missing_is_said_in_one_sentence(module, command, capsys):
    missing = "no network given: expected a run folder or a checkpoint"
    if command == "show":
        missing = "show needs something to look at: expected either a network"
    assert main([command]) == 2
    assert missing in capsys.readouterr().err
    assert main([command, "--arch", "lenet"]) == 2
    assert "--arch lenet alone, whose weights are random" in capsys.readouterr().err
    assert main([command, "--arch", f"{module}:make"]) == 2
    assert "expected --sigma and --data, got neither; pass both" in capsys.readouterr().err
    settings = SHOW if command == "show" else SETTINGS
    assert main([command, "--arch", f"{module}:make", *settings]) == 2
    said = capsys.readouterr().err
    assert "got other ones at each call, drawn at random; pass the checkpoint" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("integers", [True, False])
def test_the_command_that_a_refused_checkpoint_suggests_works(module, integers, capsys):
    state = network(module).state_dict()
    if not integers:
        del state["order"]
        source = MODULE.format(channels=1).replace(", torch.tensor([3, 1, 2])", ", None")
        Path(f"{module}.py").write_text(source)
        sys.modules.pop(module)
    torch.save(state, "a.pt")
    assert main(["predict", "a.pt", *SETTINGS, *FEW]) == 2
    flag = re.findall(r"with (--arch) package.module:factory$", capsys.readouterr().err.strip())[0]
    assert main(["predict", "a.pt", *SETTINGS, *FEW, flag, f"{module}:make"]) == 0


@pytest.mark.parametrize("command", ["certify", "predict"])
def test_a_network_whose_rows_depend_on_each_other_is_refused_before_a_log_is_begun(
    module, tmp_path, capsys, command
):
    words = ["--arch", f"{module}:of_the_batch", *SETTINGS, *FEW, "--out", str(tmp_path / "c.tsv")]
    assert main([command, *words]) == 2
    assert "independent samples only of a network in eval mode" in capsys.readouterr().err
    assert not [*tmp_path.glob("c.*")]


def test_a_mask_may_hold_infinity_and_a_weight_or_a_statistic_may_not():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
            self.register_buffer("running_mean", torch.zeros(2))

    state = Masked().state_dict()
    path = Path("w.pt")
    assert torch.equal(
        fitting.load_into(Masked(), state, path, "it", 2).weights["mask"], state["mask"]
    )
    for key, value in (("mask", torch.nan), ("weight", torch.inf), ("running_mean", torch.inf)):
        wrong = {**state, key: torch.full_like(state[key], value)}
        with pytest.raises(InputError, match=f"cannot use {key} in w.pt: expected finite weights"):
            fitting.load_into(Masked(), wrong, path, "it", 2)
