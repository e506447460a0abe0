"""setup.py: what it decides, what it records, and that it never leaves a user without drf_fast."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from drf_fast.backends.native import library

ROOT = Path(__file__).resolve().parents[2]
BROKEN = "false"  # the command that always fails stands for a compiler that does not work
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
LISTING = "\n".join(f"sm_{arch}" for arch in (50, 75, 80, 86, 87, 89, 90, 100, 103, 120, 121))


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py as a module; it acts only when it is the main program."""
    spec = importlib.util.spec_from_file_location("drf_fast_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_ext(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``setup.py build_ext`` into ``folder``."""
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "-b", str(folder), "-t", str(folder / "temp")],
        cwd=ROOT,
        env={**os.environ, "DRF_FAST_WERROR": "0", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def record(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "drf_fast" / "_build.json").read_text())["parts"]


# ------------------------------------------------------------------------------- the three modes


@pytest.mark.slow
def test_auto_falls_back_with_one_warning_and_records_why(tmp_path):
    done = build_ext(tmp_path, CXX=BROKEN, DRF_FAST_BUILD_EXT="auto")
    assert done.returncode == 0, done.stderr
    part = record(tmp_path)["drf_fast._C"]
    assert part["built"] is False
    assert "expected a C++ compiler" in str(part["reason"]) and "'false'" in str(part["reason"])
    output = done.stdout + done.stderr
    assert output.count("drf_fast._C was not built, drf_fast works without it") == 1
    assert not list((tmp_path / "drf_fast").glob("_C*"))


@pytest.mark.slow
def test_strict_fails_with_a_sentence_and_what_the_compiler_said(tmp_path):
    done = build_ext(tmp_path, CXX=BROKEN, DRF_FAST_BUILD_EXT="1")
    assert done.returncode != 0
    assert "DRF_FAST_BUILD_EXT=1 and drf_fast._C was not built" in done.stderr
    assert "false ended with status 1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_zero_builds_nothing_and_removes_what_an_earlier_build_left(tmp_path):
    stale = tmp_path / "drf_fast" / f"_C{SUFFIX}"
    stale.parent.mkdir()
    stale.write_bytes(b"from an earlier build")
    done = build_ext(tmp_path, DRF_FAST_BUILD_EXT="0")
    assert done.returncode == 0, done.stderr
    assert not stale.exists()
    assert record(tmp_path)["drf_fast._C"]["reason"] == "DRF_FAST_BUILD_EXT=0 at installation"


def test_an_unknown_mode_is_an_error_that_names_the_known_ones(tmp_path):
    done = build_ext(tmp_path, DRF_FAST_BUILD_EXT="yes")
    assert done.returncode != 0
    assert "DRF_FAST_BUILD_EXT: expected one of auto, 0, 1, got 'yes'" in done.stderr


@pytest.mark.slow
def test_setup_works_where_torch_cannot_be_imported(tmp_path):
    code = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------- the compilers


def test_no_compiler_at_all_is_a_build_error_that_says_what_to_install(build, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match=r"expected a C\+\+ compiler .* found none; install"):
        build.find_host({})


def test_results_do_not_depend_on_contraction_or_on_the_building_machine(build):
    for host in (build.Host(["c++"], False, ["-fopenmp"]), build.Host(["cl"], True, [])):
        flags, _ = build.host_flags(host, {})
        assert "-march=native" not in flags and "-ffast-math" not in flags
        assert "-ffp-contract=off" in flags or "/fp:precise" in flags


@pytest.fixture(scope="module")
def host(build):
    """GCC or Clang."""
    try:
        found = build.find_host()
    except build.BuildError as error:
        pytest.skip(str(error))
    if found.msvc:
        pytest.skip("flags of GCC and Clang")
    return found


@pytest.mark.parametrize(
    "loose", ["-Ofast", "-ffast-math -ffp-contract=fast", "-ffinite-math-only"]
)
def test_cxxflags_cannot_loosen_the_arithmetic(build, host, tmp_path, loose):
    flags, _ = build.host_flags(host, {"CXXFLAGS": f"-g {loose}"})
    (tmp_path / "probe.cpp").write_text('#include "common/portable.h"\n')
    ok, defined = build.call([*host.compiler, *flags, "-dM", "-E", tmp_path / "probe.cpp"])
    assert ok, defined
    assert "-g" in flags and "__FAST_MATH__" not in defined
    assert "__FINITE_MATH_ONLY__ 1" not in defined


def test_sources_refuse_loose_arithmetic(build, host, tmp_path):
    (tmp_path / "probe.cpp").write_text('#include "common/portable.h"\n')
    words = [*host.compiler, f"-I{ROOT / 'csrc'}", "-ffast-math", "-E", tmp_path / "probe.cpp"]
    ok, output = build.call(words)
    assert not ok and "expected IEEE arithmetic, got -ffast-math" in output


def test_only_compilers_that_keep_to_the_arithmetic_see_openmps_simd():
    """MSVC refuses it under /openmp, and takes it with /fp:fast under /openmp:experimental."""
    sources = [
        path for path in (ROOT / "csrc").rglob("*.*") if "omp simd" in path.read_text("utf-8")
    ]
    assert sources == [ROOT / "csrc" / "common" / "portable.h"]
    assert "openmp:experimental" not in (ROOT / "setup.py").read_text()


def test_werror_and_cxxflags_reach_the_compiler(build):
    host = build.Host(["c++"], False, [])
    flags, _ = build.host_flags(host, {"DRF_FAST_WERROR": "1", "CXXFLAGS": "-g '-DA=b c'"})
    assert "-Werror" in flags and flags[flags.index("-g") + 1] == "-DA=b c"
    assert "-Werror" not in build.host_flags(host, {})[0]


def test_a_toolkit_folder_without_nvcc_is_named(build, tmp_path):
    with pytest.raises(build.BuildError, match="CUDA_HOME: expected a CUDA toolkit, got"):
        build.find_nvcc({"CUDA_HOME": str(tmp_path)})


def test_a_build_without_cuda_does_not_look_at_the_toolkit(build, tmp_path):
    environment = {"CUDA_HOME": str(tmp_path / "gone"), "DRF_FAST_CUDA_ARCHS": "none"}
    with pytest.raises(build.NotWantedError):
        build.build_cuda(tmp_path, tmp_path / "out", environment)


def test_cuda_home_wins_over_path(build, tmp_path):
    nvcc = tmp_path / "bin" / ("nvcc.exe" if os.name == "nt" else "nvcc")
    nvcc.parent.mkdir()
    nvcc.touch()
    assert build.find_nvcc({"CUDA_HOME": str(tmp_path), "PATH": os.environ["PATH"]}) == nvcc


def test_cuda_architectures_are_ours_as_far_as_nvcc_has_them(build):
    assert build.cuda_archs(LISTING) == [75, 80, 86, 89, 90, 100, 120]
    assert build.cuda_archs("sm_70\nsm_75\nsm_80") == [75, 80]
    assert build.cuda_archs(LISTING, "9.0; 80") == [80, 90]


@pytest.mark.parametrize("wanted", ["", "70", "80;native", "sm_80"])
def test_a_wrong_architecture_list_is_refused_with_what_is_supported(build, wanted):
    with pytest.raises(build.BuildError, match=r"DRF_FAST_CUDA_ARCHS: expected .*\b121\b.* got"):
        build.cuda_archs(LISTING, wanted)


def test_an_nvcc_of_another_age_is_refused(build):
    with pytest.raises(build.BuildError, match="install a current CUDA toolkit"):
        build.cuda_archs("sm_35\nsm_50")


def test_cuda_code_has_each_architecture_and_ptx_of_the_newest_only(build):
    flags = build.cuda_flags(build.Host(["c++"], False, []), [80, 90], {})
    assert [flag for flag in flags if flag.startswith("-gencode")] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert "--fmad=false" in flags and "--cudart=static" in flags


@pytest.mark.slow
def test_paths_with_spaces_and_dollars_survive_ninja(build, tmp_path):
    folder = tmp_path / "a b$c"
    folder.mkdir()
    rules = {"cpp": build.Rule("cp $in $out"), "link": build.Rule("cat $in > $out")}
    source = folder / "sour ce.cpp"
    source.write_text("content")
    build.run_ninja(folder, build.ninja_file(rules, [source], folder / "out put"))
    assert (folder / "out put").read_text() == "content"


@pytest.mark.slow
def test_a_compile_error_is_quoted_in_the_sentence(build, tmp_path):
    source = tmp_path / "x.cpp"
    source.write_text("x.cpp:1: error: that is no C++")
    rules = {"cpp": build.Rule("cat $in && false"), "link": build.Rule("cat $in > $out")}
    with pytest.raises(build.BuildError, match="got 'x.cpp:1: error: that is no C"):
        build.run_ninja(tmp_path, build.ninja_file(rules, [source], tmp_path / "out"))


# ------------------------------------------------------------------- what the package says of it


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A package folder of our own for _native to look into."""
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    library.build_record.cache_clear()
    yield tmp_path
    library.build_record.cache_clear()


def test_a_recorded_reason_is_the_reason_given(folder):
    parts = {"drf_fast._C": {"built": False, "reason": "the cat ate it; feed the cat"}}
    (folder / "_build.json").write_text(json.dumps({"version": "1", "parts": parts}))
    assert library._why_missing("_C") == ("drf_fast._C was not built: the cat ate it; feed the cat")


def test_a_source_tree_is_told_to_install(folder):
    assert "run 'pip install -e .' in it" in library._why_missing("_C")


def test_a_damaged_record_is_no_crash(folder):
    (folder / "_build.json").write_text("{")
    assert library.build_record() == {}


def test_an_extension_of_another_python_is_named(folder):
    (folder / "_C.cpython-27-x.so").touch()
    message = library._why_missing("_C")
    assert f"expected _C{SUFFIX}, got _C.cpython-27-x.so; reinstall" in message


def test_an_extension_that_does_not_load_is_explained(monkeypatch):
    def broken(name: str) -> ModuleType:
        raise ImportError("undefined symbol: whatever")

    monkeypatch.setattr(library.importlib, "import_module", broken)
    module, reason = library._load.__wrapped__("_C")
    assert module is None
    assert reason is not None and "undefined symbol: whatever" in reason and "reinstall" in reason


def test_an_extension_of_another_version_is_refused(folder, monkeypatch):
    old = ModuleType("_C")
    monkeypatch.setattr(library.importlib, "import_module", lambda name: old)
    (folder / "_build.json").write_text(json.dumps({"version": "0.0.1", "parts": {}}))
    module, reason = library._load.__wrapped__("_C")
    assert module is None
    assert reason is not None
    assert f"got 0.0.1 without {', '.join(library._FUNCTIONS['_C'])}; reinstall" in reason


def test_a_missing_core_raises_with_the_reason_and_the_way_on(monkeypatch):
    monkeypatch.setattr(library, "_load", lambda name: (None, "it was not built"))
    with pytest.raises(RuntimeError, match="it was not built; DRF_FAST_BACKEND=auto works"):
        library.load()


@pytest.mark.parametrize("version", ["65.5.0", "76.1"])
def test_a_setuptools_that_cannot_read_the_licence_is_named(build, version):
    with pytest.raises(SystemExit, match=rf"needs setuptools>=77 to build, got {version}: pip "):
        build.refuse_old_setuptools(version)
    build.refuse_old_setuptools("77.0.3")
