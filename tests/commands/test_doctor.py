"""drf-fast doctor: it tells what is there, and survives whatever is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch

import drf_fast.commands.self_test
from drf_fast.backends import dispatch, triton
from drf_fast.backends.native import cpu, library
from drf_fast.backends.reference import operations as reference
from drf_fast.commands import doctor
from drf_fast.runtime import tf32

SECTIONS = ["versions", "platform", "cpu", "threads", "extensions", "operations", "cuda"]


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return doctor.collect()


def test_every_section_is_read_on_this_machine(report):
    assert list(report) == ["usable", "problem", "missing", *SECTIONS, "environment"]
    for section in SECTIONS:
        assert isinstance(report[section], dict), report[section]
    assert report["usable"] is True and report["problem"] is None and report["missing"] == []


def test_each_operation_names_the_backend_that_serves_it(report):
    assert sorted(report["operations"]) == sorted(reference.__all__)
    native = "native" if library.available() else "reference"
    assert {served["cpu"] for served in report["operations"].values()} == {native}
    with dispatch.use("reference"):
        served = doctor.collect()["operations"].values()
    assert {devices["cpu"] for devices in served} == {"reference"}


def test_an_extension_is_usable_or_says_why_not(report):
    for part in report["extensions"].values():
        assert part["usable"] is (part["why not"] is None)


WHY_NOT = "the kernels need triton 3.2 or newer, got 3.1; install a newer torch"


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("reason", [WHY_NOT, None])
def test_it_says_why_triton_is_not_used_and_in_the_verdict_where_there_is_a_gpu(
    monkeypatch, capsys, gpu, reason
):
    monkeypatch.setattr(triton, "why_not", lambda device: reason if device == "cuda" else "cpu")
    devices = ["H200, sm_90, 139 GiB"] if gpu else []
    monkeypatch.setattr(doctor, "_cuda", lambda: {"torch built for": "13.0", "devices": devices})
    monkeypatch.setattr(doctor, "_operations", dict)
    part = doctor.collect()["extensions"]["Triton kernels"]
    assert part == {"usable": reason is None, "why not": reason}
    assert doctor.run() == 0
    verdict, _, text = capsys.readouterr().out.partition("\n")
    assert ("on the GPU without Triton's kernels" in verdict) == (gpu and reason is not None)
    assert (f"slower: {WHY_NOT}" in verdict) == (gpu and reason is not None)
    section = text.partition("\nTriton kernels\n")[2].partition("\n\n")[0]
    assert re.search(rf"^  usable +{'no' if reason else 'yes'}$", section, re.MULTILINE)
    assert (WHY_NOT in section) == (reason is not None)


def test_a_triton_that_cannot_be_asked_hides_no_other_part(monkeypatch, capsys):
    def broken(device: str) -> str:
        raise OSError("libtriton.so: file too short")

    monkeypatch.setattr(triton, "why_not", broken)
    monkeypatch.setattr(doctor, "_operations", dict)
    assert doctor.run() == 0
    text = capsys.readouterr().out
    assert "why not  error: OSError: libtriton.so: file too short" in text
    assert "\ndrf_fast._C\n" in text and "\ndrf_fast._CUDA\n" in text


def test_json_is_json_and_holds_the_whole_report(capsys):
    assert doctor.run(json=True) == 0
    assert list(json.loads(capsys.readouterr().out))[:4] == [
        "usable",
        "problem",
        "missing",
        "versions",
    ]


def test_without_a_terminal_the_text_is_plain(capsys):
    assert doctor.run() == 0
    text = capsys.readouterr().out
    assert text.startswith("drf_fast is usable") and text.isprintable() is False
    assert "\x1b" not in text and "\n  torch " in text
    assert all(f"\n{section}\n" in text for section in SECTIONS if section != "extensions")


def test_packages_that_are_missing_are_named_with_the_way_to_get_them(monkeypatch, capsys):
    listed = [
        "torch>=2",
        "no-such-one>=1",
        'for-older; python_version < "3.0"',
        'x; extra == "dev"',
    ]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: listed)
    assert doctor.run() == 0
    text = capsys.readouterr().out
    assert text.partition("\n")[0].endswith(
        "; required packages are missing: pip install no-such-one"
    )
    assert re.search(r"^  no-such-one +not installed$", text, re.MULTILINE)


def test_on_a_terminal_there_are_tables(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert doctor.run() == 0
    assert "\x1b[" in capsys.readouterr().out


@pytest.mark.parametrize("section", ["_versions", "_cpu", "_threads", "_extensions", "_cuda"])
def test_a_section_that_cannot_be_read_shows_its_error_and_no_more(monkeypatch, capsys, section):
    def broken() -> None:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(doctor, section, broken)
    assert doctor.run() == 0
    assert "error: OSError: the disk is on fire" in capsys.readouterr().out


def test_two_openmp_runtimes_are_reported_with_advice(monkeypatch):
    maps = "7f r-xp 0 08:01 1 /a/libgomp.so.1\n7f r-xp 0 08:01 2 /b/libgomp-2.so.1.0.0\n"
    monkeypatch.setattr(library, "available", lambda: True)
    monkeypatch.setattr(library, "load", lambda: type("M", (), {"build_info": lambda: {}}))
    monkeypatch.setattr(doctor.Path, "read_text", lambda self, **kw: maps)
    threads = doctor._threads()
    assert threads["OpenMP runtimes loaded"] == ["/a/libgomp.so.1", "/b/libgomp-2.so.1.0.0"]
    assert "two OpenMP runtimes" in threads["advice"]


def doctor_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport sys; from drf_fast.commands import doctor\nsys.exit(doctor.run())",
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_torch_it_says_so_and_exits_1():
    done = doctor_process("import sys; sys.modules['torch'] = None")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("drf_fast is not usable: error: ModuleNotFoundError")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_wrong_backend_variable_is_shown_and_exits_1():
    done = doctor_process("", DRF_FAST_BACKEND="fastest")
    assert done.returncode == 1, done.stderr
    assert "DRF_FAST_BACKEND names an unknown backend" in done.stdout
    assert re.search(r"^  DRF_FAST_BACKEND +fastest$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_the_fallback_is_usable_and_says_what_is_missing():
    done = doctor_process(
        "from drf_fast.backends.native import library\n"
        "library._load = lambda name: (None, f'{name} was eaten; feed the cat')"
    )
    assert done.returncode == 0, done.stderr
    verdict = "drf_fast is usable on the reference backend, slower: _C was eaten; feed the cat"
    assert done.stdout.startswith(verdict)


# ---------------------------------------------------------------------------------- the self-test

CPU_BACKENDS = ["reference", "native"] if library.available() else ["reference"]


def self_test(capsys, **options: bool) -> tuple[int, str]:
    status = doctor.run(self_test=True, **options)
    return status, capsys.readouterr().out


@pytest.mark.slow
def test_the_self_test_passes_and_checks_every_operation_on_every_backend(capsys):
    status, text = self_test(capsys, json=True)
    found = json.loads(text)
    assert status == 0 and found["passed"] is True
    cpu = [check for check in found["checks"] if check["device"] == "cpu"]
    assert sorted((c["backend"], c["operation"]) for c in cpu) == sorted(
        [("reference", "normals")]
        + [(backend, name) for backend in CPU_BACKENDS for name in reference.__all__]
    )
    for check in found["checks"]:
        assert check["passed"] and check["problem"] is None
        assert 0 <= check["error"] <= check["limit"] <= 1e-6
    exact = {check["operation"] for check in found["checks"] if check["limit"] == 0}
    assert exact == {"normals", "noisy_levels", "noisy_repeat", "vote"}
    assert sum(check["seconds"] for check in found["checks"]) < 60


def test_its_table_has_a_row_a_check(capsys):
    status, text = self_test(capsys)
    total = 1 + len(CPU_BACKENDS) * len(reference.__all__)
    assert status == 0
    assert re.match(rf"self-test of drf_fast \S+: {total} of {total} checks passed in ", text)
    assert text.count("  pass\n") == total and "FAIL" not in text
    rows = [line for line in text.splitlines() if line.endswith(("  result", "  pass"))]
    assert len({line.rindex("  ") for line in rows}) == 1  # one column
    assert ("no GPU was tested" in text) is not torch.cuda.is_available()


def slightly_wrong(name: str):
    """The reference's ``name``, its first result off by a little: a factor, or one bit."""
    right = getattr(reference, name)

    def wrong(*arguments):
        if name == "vote":
            right(*arguments)
            arguments[1].view(-1)[-1] += 1
            return None
        result = right(*arguments)
        first = result[0] if isinstance(result, tuple) else result
        if name == "noisy_repeat":
            bits = torch.int64 if first.element_size() == 8 else torch.int32
            if first.element_size() > 2:
                first.reshape(-1)[-1:].view(bits).bitwise_xor_(1)
        else:
            first.mul_(1 + 1e-5 if name != "clopper_pearson_lower" else 1 - 1e-10)
        return result

    wrong.__module__ = reference.__name__
    return wrong


@pytest.fixture
def only_native_is_wrong(monkeypatch):
    """Put a wrong operation in the place of the fastest one that runs on the CPU."""
    if not library.available():
        pytest.skip(f"needs the C++ core: {library.why_not()}")

    def inject(name: str, function) -> None:
        monkeypatch.setattr(cpu, name, function)
        monkeypatch.setattr(dispatch, "_cache", {})  # which knows the right one from before

    return inject


@pytest.mark.parametrize("name", reference.__all__)
def test_a_small_error_of_one_operation_fails_its_check_alone(capsys, only_native_is_wrong, name):
    only_native_is_wrong(name, slightly_wrong(name))
    status, text = self_test(capsys, json=True)
    assert status == 1
    failed = [check for check in json.loads(text)["checks"] if not check["passed"]]
    # The adversary's step draws its own noise: no other check sees this operation.
    assert [check["operation"] for check in failed] == [name]
    assert failed[0]["error"] > failed[0]["limit"] and failed[0]["problem"] is None


def test_an_operation_that_raises_or_returns_nan_is_a_row_too(capsys, only_native_is_wrong):
    def broken(*arguments):
        raise OSError("the disk is on fire")

    only_native_is_wrong("vote", broken)
    only_native_is_wrong(
        "certified_radius", lambda k, *_: torch.full_like(k, torch.nan, dtype=torch.float64)
    )
    status, text = self_test(capsys)
    assert status == 1
    assert re.search(r"vote +failed +0.0e\+00  FAIL\n    OSError: the disk is on fire\n", text)
    assert "expected finite numbers, got NaN or infinity" in text
    assert text.count("FAIL") == 2 and "do not trust results of what failed" in text


def test_noise_of_another_generator_is_found_though_all_backends_agree(monkeypatch, capsys):
    monkeypatch.setattr(drf_fast.commands.self_test, "NOISE_DIGEST", "0" * 64)
    status, text = self_test(capsys)
    assert status == 1 and re.search(r"normals +1.0e\+00 +0.0e\+00  FAIL", text)


@pytest.mark.slow
def test_the_command_takes_the_flag():
    done = subprocess.run(
        [sys.executable, "-m", "drf_fast", "doctor", "--self-test"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("self-test of drf_fast")


def test_the_self_test_without_torch_says_so(monkeypatch):
    done = doctor_process(
        "import sys; sys.modules['torch'] = None\n"
        "from drf_fast.commands import doctor; sys.exit(doctor.run(self_test=True))"
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("drf_fast is not usable: ModuleNotFoundError")
    assert "Traceback" not in done.stderr


def test_the_self_test_computes_products_in_float32(monkeypatch):
    """TF32, which torch allows for convolutions on a GPU, has 11 bits of each factor."""
    seen = []

    def case(device, dtype):
        seen.append((dtype, torch.backends.cudnn.allow_tf32))
        yield torch.ones(1)

    module = drf_fast.commands.self_test
    monkeypatch.setattr(tf32, "_DEVICES", ("cpu",))
    monkeypatch.setattr(module, "CASES", {"vote": (case, 1e-6)})
    monkeypatch.setattr(
        module, "_devices_and_backends", lambda: [(torch.device("cpu"), "reference")]
    )
    before = torch.backends.cudnn.allow_tf32
    assert all(check.passed for check in module.run())
    assert (torch.float32, False) in seen and torch.backends.cudnn.allow_tf32 == before


@pytest.mark.gpu
def test_the_self_test_passes_on_every_gpu(capsys):
    status, text = self_test(capsys, json=True)
    found = json.loads(text)
    assert status == 0, found
    tested = {check["device"] for check in found["checks"]}
    assert tested == {"cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))}
