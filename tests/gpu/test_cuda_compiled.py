"""csrc/cuda compiled by nvcc: no warning, no local memory, few registers, exact arithmetic."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.proofs

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# Kernel -> its instances, and the most registers of a thread. A multiprocessor has 65,536: enough
# for the 8 blocks of 64 threads that a bound requires, and for 5 blocks of 256 threads of vote.
KERNELS = {
    "vote": (8, 51),
    "clopper_pearson_lower": (1, 128),
    "certified_radius": (1, 128),
}
BOUNDS = ("clopper_pearson_lower", "certified_radius")


class Usage(NamedTuple):
    stack: int
    spilled: int
    registers: int


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py as a module; it builds only as the main program."""
    spec = importlib.util.spec_from_file_location("drf_fast_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nvcc(build: ModuleType) -> list[str | Path]:
    """nvcc with the flags of setup.py for all architectures that it knows, warnings as errors."""
    found = build.find_nvcc()
    if found is None:
        pytest.skip("needs nvcc (CUDA_HOME, PATH or /usr/local/cuda), found none")
    listing = compile_([found], "--list-gpu-code")
    archs = build.cuda_archs(listing)
    flags = build.cuda_flags(build.find_host(), archs, {"DRF_FAST_WERROR": "1"})
    # One architecture after another, so that the output of ptxas is not interleaved.
    return [found, *(flag for flag in flags if not flag.startswith("--threads"))]


def compile_(nvcc: list[str | Path], *words: str | Path) -> str:
    """Run nvcc; its output."""
    done = subprocess.run([*nvcc, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def usages(printed: str) -> dict[tuple[str, str], Usage]:
    """(kernel, architecture) -> its resources, from ``-Xptxas -v``."""
    pattern = re.compile(
        r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>sm_\d+)'"
        r".*?(?P<stack>\d+) bytes stack frame, (?P<stored>\d+) bytes spill stores, "
        r"(?P<loaded>\d+) bytes spill loads"
        r".*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    return {
        (found["kernel"], found["arch"]): Usage(
            int(found["stack"]),
            int(found["stored"]) + int(found["loaded"]),
            int(found["registers"]),
        )
        for found in pattern.finditer(printed)
    }


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_architecture_compiles_lean_and_without_a_warning(nvcc, tmp_path, source) -> None:
    printed = compile_(nvcc, "-Xptxas=-v", "-c", source, "-o", tmp_path / "out.o")
    assert "warning" not in printed, printed
    archs = re.findall(r"code=(sm_\d+)", " ".join(map(str, nvcc)))
    instances, most = KERNELS.get(source.stem, (0, 0))
    found = usages(printed)
    assert len(found) == instances * len(archs), printed
    for (kernel, arch), usage in found.items():
        assert arch in archs
        assert usage.stack == usage.spilled == 0, (kernel, arch, usage)
        assert 0 < usage.registers <= most, (kernel, arch, usage)


@pytest.mark.parametrize("name", BOUNDS)
def test_the_bounds_are_computed_as_written(nvcc, tmp_path, name) -> None:
    """Each operation rounded to nearest, none contracted: hence the bits of the CPU.

    ptxas may contract only operations without a rounding mode.
    """
    words = [word for word in nvcc if not str(word).startswith("-gencode")]
    output = tmp_path / "out.ptx"
    source = ROOT / "csrc" / "cuda" / f"{name}.cu"
    compile_(words, "-ptx", "-arch=compute_80", source, "-o", output)
    text = output.read_text()
    operations = re.findall(r"^\s+(?:@!?%\w+ )?([a-z][\w.]*\.f(?:32|64)[\w.]*)", text, re.MULTILINE)
    moved = r"(ld|st|mov|selp|abs|neg|min|max|setp)\..*|cvt\.(rn\.f64\.s64|rzi\.s32\.f64)"
    exact = rf"{moved}|(add|sub|mul|div|rcp|sqrt)\.rn\.f64"
    assert {"mul.rn.f64", "div.rn.f64", "sqrt.rn.f64"} <= set(operations)
    assert [word for word in operations if not re.fullmatch(exact, word)] == []


def test_a_planted_array_is_seen_as_local_memory(nvcc, tmp_path) -> None:
    """``usages`` finds local memory in the output of ptxas."""
    source = tmp_path / "array.cu"
    source.write_text(
        "__global__ void array(const int* from, int* to) {\n"
        "  int all[100];\n"
        "  for (int i = 0; i < 100; ++i) all[from[i]] = i;\n"
        "  for (int i = 0; i < 100; ++i) to[i] = all[from[i + 1]];\n"
        "}\n"
    )
    found = usages(compile_(nvcc, "-Xptxas=-v", "-c", source, "-o", tmp_path / "out.o"))
    assert len(found) >= 1 and all(usage.stack >= 400 for usage in found.values())
