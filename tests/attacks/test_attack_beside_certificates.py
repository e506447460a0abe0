"""drf-fast attack and report: which certificates an attack is compared with, and what is said."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from attacking import COMMON, N, attack

from drf_fast import functional
from drf_fast.attacks.log import Attacked, AttackRow, read_attacked
from drf_fast.certification.log import read_log
from drf_fast.certification.log.rows import round_down
from drf_fast.commands.cli import main
from drf_fast.report import sources
from drf_fast.report.attacks import curves_of
from drf_fast.report.groups import restricted_to
from drf_fast.report.summary import summarize

NETWORK = ("checkpoint_sha256", "fingerprint", "sigma")  # what an attack log and certificates share


def test_a_wrong_certificate_is_caught(run, capsys):
    """All n votes for an image whose class an attack does change."""
    assert attack(run) == 0
    row = next(row for row in read_attacked(run / "attack-s0.5-n300.tsv").rows
               if row.predict not in (-1, row.clean) and row.clean == row.label)  # fmt: skip
    p_lower = float(functional.clopper_pearson_lower(N, N, 0.001))
    radius = float(functional.certified_radius(N, N, sigma=0.5, alpha=0.001))
    path = run / "certificates.tsv"
    lines = path.read_text().splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith(f"{row.idx}\t"))
    fields = lines[at].split("\t")
    fields[2:5] = [str(row.clean), round_down(radius), str(int(row.clean == row.label))]
    fields[6:9] = [str(N), str(N), round_down(p_lower)]
    lines[at] = "\t".join(fields)
    path.write_text("\n".join(lines) + "\n")
    assert read_log(path).radius[at - 1] > row.distance  # the log itself has nothing against it
    capsys.readouterr()
    assert attack(run, "--resume") == 1
    said = capsys.readouterr().err
    assert f"BROKEN CERTIFICATE: image {row.idx} is certified class {row.clean} within" in said
    assert said.count("BROKEN") == 1 and "the logs differ in precision or --compile" in said
    assert main(["report", str(run), "--no-paper"]) == 0
    assert f"BROKEN CERTIFICATE in {path}: image {row.idx}" in capsys.readouterr().err


def test_the_certificates_compared_with_are_named(run, capsys):
    path, log = run / "certificates.tsv", run / "attack-s0.5-n300.json"
    few = ("--max-images", "2")

    def recorded() -> list[str] | None:
        return json.loads(log.read_text())["certificates"]

    assert attack(run, *few, "--json") == 0
    shown = capsys.readouterr()
    assert f"certificates: {path} (24 images, n = {N})" in shown.err.splitlines()
    assert json.loads(shown.out)["certificates"] == recorded() == ["certificates.tsv"]
    for suffix in (".tsv", ".json"):
        path.with_suffix(suffix).rename(run / f"renamed{suffix}")
    assert attack(run, *few, "--resume") == 0  # with what there is now
    assert f"certificates: {run / 'renamed.tsv'} (24 images" in capsys.readouterr().err
    assert recorded() == ["renamed.tsv"]
    older = {key: value for key, value in json.loads(log.read_text()).items()
             if key != "certificates"}  # fmt: skip
    log.write_text(json.dumps(older))  # as an older version wrote it
    (run / "renamed.tsv").unlink()
    assert attack(run, "--resume", "--skip", "40", *few, "--json") == 0
    shown = capsys.readouterr()
    assert "certificates:" not in shown.err and recorded() is None
    assert json.loads(shown.out)["certificates"] is None


def test_the_same_weights_as_another_network_are_another_network(run, capsys):
    """An architecture or first layer that is not recorded says nothing."""
    assert attack(run) == 0
    certificates, again = run / "certificates.tsv", ("--resume", "--skip", "40")
    described = json.loads(certificates.with_suffix(".json").read_text())
    first = described["training"]["normalize"]
    assert (described["arch"], first) == ("linear:Linear", "none")
    capsys.readouterr()

    def change(**changed) -> None:
        certificates.with_suffix(".json").write_text(json.dumps({**described, **changed}))

    def left_out() -> bool:
        assert main(["report", str(run), "--no-paper"]) == 0
        return "that no log here certifies: left out" in capsys.readouterr().err

    for changed, said in (
        ({"arch": "linear:Other"}, "arch (linear:Other there, linear:Linear here)"),
        (
            {"training": {**described["training"], "normalize": "cifar10"}},
            "normalize (cifar10 there, none here)",
        ),
    ):
        change(**changed)
        assert left_out()
        assert attack(run, *again) == 0
        assert "no certificates of this network" in capsys.readouterr().err
        assert attack(run, *again, "--certificates", str(certificates)) == 2
        assert f"got others: {said}; pass" in capsys.readouterr().err
    # As an older version records it, and certify_dataset.
    for changed in ({"arch": None}, {"training": {}, "arch": "Linear"}):
        change(**changed)
        assert not left_out()
        assert attack(run, *again) == 0
        assert "no certificates" not in capsys.readouterr().err


def test_the_judge_computes_in_the_precision_of_the_certificates(run):
    flags = ("--n", "60", "--skip", "40", "--max-images", "3", "--precision", "bf16")
    out = ("--out", str(run / "certificates.tsv"), "--force")
    assert main(["certify", str(run), *COMMON, *flags, *out]) == 0
    log = run / "attack-s0.5-n300.json"

    def precision() -> str:
        return json.loads(log.read_text())["precision"]

    assert attack(run, "--max-images", "2") == 0 and precision() == "bf16"
    assert attack(run, "--max-images", "2", "--resume") == 0
    assert attack(run, "--max-images", "2", "--force", "--precision", "fp32") == 0
    assert precision() == "fp32"
    assert attack(run, "--max-images", "2", "--resume") == 0  # as it was begun
    settings = json.loads((run / "certificates.json").read_text())
    settings["precision"] = "bf16 autocast"  # of a network that cannot be converted; bf16 finds it
    (run / "certificates.json").write_text(json.dumps(settings))
    assert attack(run, "--max-images", "2", "--force") == 0 and precision() == "bf16"


def test_a_class_lost_within_one_epsilon_is_lost_within_larger_ones_of_other_logs(run):
    log = read_log(run / "certificates.tsv")
    config = {key: (log.config or {})[key] for key in NETWORK}

    def attacked(epsilon: float, *right: bool) -> Attacked:
        rows = []
        for idx, label, keeps in zip(log.idx.tolist(), log.label.tolist(), right, strict=False):
            predict = label if keeps else (label + 1) % 10
            rows.append(AttackRow(idx, label, epsilon, label, predict, epsilon, "pgd", 0.0))
        return Attacked(run / f"{epsilon}.tsv", config, tuple(rows))

    logs = [attacked(0.8, True, True, False), attacked(0.2, False, True, True)]
    (curve,), _ = curves_of(summarize([log], paper=False), logs)
    assert curve.epsilon.tolist() == [0, 0.2, 0.8]
    assert curve.correct.tolist() == pytest.approx([100, 200 / 3, 100 / 3])


def test_the_shards_of_the_certificates_count_as_one_log(run, capsys):
    for suffix in (".tsv", ".json"):
        (run / f"certificates{suffix}").unlink()
    for shard in ("1/2", "2/2"):
        flags = ("--n", "300", "--skip", "40", "--max-images", "24", "--shard", shard)
        assert main(["certify", str(run), *COMMON, *flags]) == 0
    logs = sorted(run.glob("certify-*.tsv"))
    assert all(0 < len(read_log(path)) < 24 for path in logs)
    capsys.readouterr()

    def certified() -> list[float | None]:
        shown = json.loads(capsys.readouterr().out)
        return [one["certified"] for one in shown["epsilons"]]

    assert attack(run, "--json") == 0
    assert None not in certified()
    # A shard twice cannot be joined: the logs are taken as they are.
    for suffix in (".tsv", ".json"):
        shutil.copy(logs[0].with_suffix(suffix), run / f"copy{suffix}")
    assert attack(run, "--resume", "--json") == 0
    assert certified() == [None, None]


def test_only_files_beside_the_checkpoint_are_opened(run, capsys, monkeypatch):
    """A checkpoint may lie in the folder of a data set."""
    opened = []
    plain = sources.is_log
    monkeypatch.setattr(sources, "is_log", lambda path: (opened.append(path.name), plain(path))[1])
    (run / "images").mkdir()
    for name in ("images/0", "0.JPEG"):
        (run / name).write_bytes(b"x")
    assert attack(run, "--max-images", "1") == 0
    assert "no certificates" not in capsys.readouterr().err
    assert "certificates.tsv" in opened and not {"0", "0.JPEG"} & set(opened)


def test_attacked_images_without_a_certificate_are_left_out(run, tmp_path, capsys):
    assert attack(run) == 0
    log = read_log(run / "certificates.tsv")
    config = json.loads((run / "attack-s0.5-n300.json").read_text())
    known = sorted(log.idx.tolist())[:3]
    labels = dict(zip(log.idx.tolist(), log.label.tolist(), strict=True))

    def attacked(*indices: int) -> Attacked:
        rows = (
            AttackRow(i, labels[i], 0.01, labels[i], labels[i], 0.01, "pgd", 0.0) if i in labels
            else AttackRow(i, 0, 0.01, 0, 1, 0.01, "pgd", 0.0)
            for i in indices
        )  # fmt: skip
        return Attacked(run / "a.tsv", config, tuple(rows))

    summary = summarize([log], paper=False)
    (expected,), said = curves_of(summary, [attacked(*known)])
    assert said == [] and expected.images == 3 and expected.certified[0] > 0
    (curve,), said = curves_of(summary, [attacked(*known, 1, 2)])
    assert said == [f"2 attacked images without a certificate in {log.path}: left out"]
    assert curve.images == 3 and curve.correct.tolist() == [100, 100]
    assert curve.certified.tolist() == expected.certified.tolist()
    curves, said = curves_of(summary, [attacked(1)])
    assert curves == () and said == [
        f"1 attacked image without a certificate in {log.path}: left out"
    ]
    other = dataclasses.replace(
        restricted_to(log, known[:2]),
        path=run / "other.tsv",
        config={**(log.config or {}), "checkpoint_sha256": "other"},
        name="other",
    )
    summary = summarize([log, other], paper=False, common=True)
    (curve,), said = curves_of(summary, [attacked(*known)])
    assert said == [f"1 attacked image not common to all logs, in {log.path}: left out"]
    assert curve.images == summary.images == 2
    # A figure of them all alone has no curve of attacks.
    assert attack(run, "--force", "--skip", "7", "--max-images", "1") == 0
    path = run / "attack-s0.5-n300.tsv"
    path.write_text(path.read_text().replace("\n0\t", "\n1\t"))
    capsys.readouterr()
    assert main(["report", str(run), "--plot", str(tmp_path / "a.svg")]) == 0
    assert "1 attacked image without a certificate in" in capsys.readouterr().err


def test_predictions_certify_nothing_to_compare_with(run, tmp_path, capsys):
    assert attack(run, "--max-images", "2") == 0
    predicted = str(tmp_path / "p.tsv")
    flags = ("--n", "60", "--skip", "40", "--max-images", "3", "--out", predicted)
    assert main(["predict", str(run), *COMMON, *flags]) == 0
    capsys.readouterr()
    assert main(["report", predicted, str(run / "attack-s0.5-n300.tsv")]) == 0
    shown = capsys.readouterr()
    assert "certified" not in shown.out and "under attack" not in shown.out
    assert "compared with certificates, not with predictions: left out" in shown.err


def test_no_more_images_are_attacked_than_were_certified(run, capsys):
    flags = ("--n", "60", "--skip", "40", "--max-images", "3")
    out = ("--out", str(run / "certificates.tsv"), "--force")
    assert main(["certify", str(run), *COMMON, *flags, *out]) == 0
    capsys.readouterr()
    assert attack(run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["epsilons"][0]["certified"] is not None
    assert read_attacked(run / "attack-s0.5-n300.tsv").images == (0, 40, 80)
    assert attack(run, "--force", "--skip", "40", "--max-images", "4") == 0  # the user says which
    assert len(read_attacked(run / "attack-s0.5-n300.tsv").images) == 4


def test_report_draws_both_and_shows_both(run, tmp_path, capsys):
    assert attack(run) == 0
    capsys.readouterr()
    assert main(["report", str(run), "--plot", str(tmp_path / "a.svg")]) == 0
    shown = capsys.readouterr()
    assert "under attack" in shown.out and "skipped" not in shown.err
    svg = (tmp_path / "a.svg").read_text()
    assert "BROKEN" not in shown.err and "<svg" in svg
    assert main(["report", str(run), "--format", "json"]) == 0
    (curve,) = json.loads(capsys.readouterr().out)["attacks"]
    rows = read_attacked(run / "attack-s0.5-n300.tsv").rows
    for at, epsilon in enumerate(curve["epsilon"]):
        here = [row for row in rows if row.epsilon == epsilon] if epsilon else rows[::2]
        kept = sum(row.correct if epsilon else row.clean == row.label for row in here)
        assert curve["correct"][at] == pytest.approx(100 * kept / 24)
        assert curve["lower"][at] <= curve["correct"][at] <= curve["upper"][at]
        assert curve["certified"][at] <= curve["correct"][at] + curve["undecided"][at]
    assert main(["report", str(run), "--format", "csv"]) == 0
    assert "--format csv has no columns for the attacks: left out" in capsys.readouterr().err
    # Without the certificates there is nothing to draw it beside: images of another split have the
    # same numbers, and are others.
    config = json.loads((run / "attack-s0.5-n300.json").read_text())
    for key in NETWORK:
        (run / "attack-s0.5-n300.json").write_text(json.dumps({**config, key: "0" * 64}))
        assert main(["report", str(run)]) == 0
        shown = capsys.readouterr()
        assert "under attack" not in shown.out and "left out" in shown.err
