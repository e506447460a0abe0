"""Builds the compiled parts of drf_fast with ninja, and installs without them where that fails.

``drf_fast._C`` is the C++ core, ``drf_fast._CUDA`` the CUDA one (only where nvcc is found). Neither
uses torch's headers, so no torch is needed here and one build serves any version of it. What was
built, or why it was not, is recorded in ``drf_fast/_build.json``, which ``drf-fast doctor`` reads.

Environment:
    DRF_FAST_BUILD_EXT: auto (default) falls back to pure Python with a warning, 0 builds nothing,
        1 makes a part that cannot be built an error.
    DRF_FAST_CUDA_ARCHS: compute capabilities to build for, such as "80;90"; "none" skips CUDA.
    DRF_FAST_WERROR: 1 makes compiler warnings errors (for development).
    CXX, CXXFLAGS, CUDA_HOME: the compiler, further flags for it, the CUDA toolkit.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
RECORD = "_build.json"
OLDEST_SETUPTOOLS = 77  # the first that reads the licence in pyproject.toml
MODES = ("auto", "0", "1")
# Machine code for X.0 also runs on X.1 and later of the same major version, so one entry for each
# major version would do; 86 and 89 are added because they are common and gain from their own code.
CUDA_ARCHS = (75, 80, 86, 89, 90, 100, 110, 120)


class BuildError(Exception):
    """A part cannot be built: one sentence why, and what the compiler said."""

    def __init__(self, sentence: str, output: str = "") -> None:
        super().__init__(sentence)
        self.output = output.strip()


class NotWantedError(BuildError):
    """A part that this machine has no use for, so that leaving it out is no failure."""


class Host(NamedTuple):
    """The C++ compiler and what it accepts."""

    compiler: list[str]
    msvc: bool
    openmp: list[str]


class Rule(NamedTuple):
    """One ninja rule: its command, and the format of its header dependencies ("gcc" or "msvc")."""

    command: str
    deps: str | None = None


def build_mode(env: Mapping[str, str] = os.environ) -> str:
    """The value of DRF_FAST_BUILD_EXT, checked."""
    mode = env.get("DRF_FAST_BUILD_EXT", "auto")
    if mode not in MODES:
        raise CompileError(
            f"DRF_FAST_BUILD_EXT: expected one of {', '.join(MODES)}, got {mode!r}; unset it"
        )
    return mode


def call(command: Sequence[str | Path], cwd: str | Path | None = None) -> tuple[bool, str]:
    """Run a command; whether it succeeded, and all that it printed."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
        )
    except OSError as error:
        return False, str(error)
    output = done.stdout.strip() or f"{command[0]} ended with status {done.returncode}"
    return done.returncode == 0, output


def try_link(compiler: Sequence[str], flags: Sequence[str], code: str) -> tuple[bool, str]:
    """Whether the compiler makes a program of ``code`` with these flags, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.cpp").write_text(code)
        ok, output = call([*compiler, "probe.cpp", *flags], cwd=folder)
        made = any(Path(folder, name).exists() for name in ("a.out", "a.exe", "probe.exe"))
    return ok and made, output


def find_host(env: Mapping[str, str] = os.environ) -> Host:
    """The C++ compiler: CXX, or the first usual name on PATH, tried on a small program.

    Raises:
        BuildError: there is none, or it cannot compile.
    """
    names = ("cl",) if os.name == "nt" else ("c++", "g++", "clang++")
    compiler = shlex.split(env.get("CXX", "")) or [name for name in names if shutil.which(name)][:1]
    install = "install one (Debian: apt install g++; macOS: xcode-select --install) and reinstall"
    if not compiler:
        raise BuildError(
            f"expected a C++ compiler (CXX, or {' or '.join(names)} on PATH), found none; {install}"
        )
    msvc = Path(compiler[0]).stem.lower() in ("cl", "clang-cl")
    ok, output = try_link(compiler, [], "#include <vector>\nint main() { return 0; }\n")
    if not ok:
        raise BuildError(
            "expected a C++ compiler that can compile a small program, got "
            f"'{shlex.join(compiler)}', which cannot; set CXX to a working one, or {install}",
            output,
        )
    openmp = ["/openmp"] if msvc else ["-fopenmp"]
    code = "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n"
    return Host(compiler, msvc, openmp if try_link(compiler, openmp, code)[0] else [])


def build_tool(name: str) -> Any:
    """Import a package that the build requires.

    Raises:
        BuildError: it is missing, as happens without build isolation.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BuildError(
            f"expected the package {name.partition('.')[0]} for the build, found none; pip install "
            "it, or drop --no-build-isolation"
        ) from error


def host_flags(host: Host, env: Mapping[str, str] = os.environ) -> tuple[list[str], list[str]]:
    """Flags to compile and to link a C++ source of ours.

    Results must not depend on how a compiler optimises: no contraction into FMA and no -ffast-math,
    also not from CXXFLAGS; instruction sets are chosen at run time.
    """
    python = sysconfig.get_paths()["include"]
    if not Path(python, "Python.h").exists():
        raise BuildError(
            f"expected the headers of Python {sys.version_info[0]}.{sys.version_info[1]} in "
            f"{python}, found no Python.h; install them (Debian: apt install python3-dev)"
        )
    headers = [python, build_tool("pybind11").get_include()]
    strict = env.get("DRF_FAST_WERROR") == "1"
    if host.msvc:
        compile_ = ["/nologo", "/O2", "/std:c++17", "/EHsc", "/MD", "/utf-8", "/W3"]
        exact = ["/fp:precise"]
        compile_ += [f"/I{folder}" for folder in (ROOT / "csrc", *headers)] + host.openmp
        compile_ += ["/WX"] if strict else []
        link = [f"/LIBPATH:{Path(sys.base_prefix, 'libs')}"]
    else:
        compile_ = ["-O3", "-std=c++17", "-fPIC"]
        compile_ += [] if host.openmp else ["-Wno-unknown-pragmas"]
        # No code reads floating-point exception flags; without the last GCC does not vectorise.
        exact = ["-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
        compile_ += ["-fvisibility=hidden", "-Wall", "-Wextra", *host.openmp]
        compile_ += ["-Werror"] if strict else []
        compile_ += [f"-I{ROOT / 'csrc'}", *(f"-isystem{folder}" for folder in headers)]
        mac = sys.platform == "darwin"
        link = ["-bundle", "-undefined", "dynamic_lookup"] if mac else ["-shared", "-Wl,-s"]
        link += host.openmp
    return compile_ + shlex.split(env.get("CXXFLAGS", "")) + exact, link


def find_nvcc(env: Mapping[str, str] = os.environ) -> Path | None:
    """nvcc of CUDA_HOME, else of PATH, else of /usr/local/cuda; None where there is none.

    Raises:
        BuildError: CUDA_HOME names a folder without nvcc.
    """
    home = env.get("CUDA_HOME") or env.get("CUDA_PATH")
    name = "nvcc.exe" if os.name == "nt" else "nvcc"
    if home:
        nvcc = Path(home, "bin", name)
        if not nvcc.exists():
            raise BuildError(
                f"CUDA_HOME: expected a CUDA toolkit, got {home} without bin/{name}; correct it, "
                "or unset it"
            )
        return nvcc
    found = shutil.which("nvcc", path=env.get("PATH")) or f"/usr/local/cuda/bin/{name}"
    return Path(found) if Path(found).exists() else None


def cuda_archs(listing: str, wanted: str | None = None) -> list[int]:
    """The architectures to build for, ascending: ``wanted``, or those of ours that nvcc supports.

    Args:
        listing: what ``nvcc --list-gpu-code`` printed.
        wanted: DRF_FAST_CUDA_ARCHS, such as "80;90".
    """
    supported = {int(number) for number in re.findall(r"^sm_(\d+)$", listing, re.MULTILINE)}
    if wanted is None:
        archs = sorted(supported.intersection(CUDA_ARCHS))
    else:
        words = [word.replace(".", "") for word in re.split(r"[;,\s]+", wanted) if word]
        bad = [word for word in words if not word.isdigit() or int(word) not in supported]
        if bad or not words:
            raise BuildError(
                f"DRF_FAST_CUDA_ARCHS: expected numbers that nvcc supports ({sorted(supported)}), "
                f"got {wanted!r}; correct it, or unset it"
            )
        archs = sorted({int(word) for word in words})
    if not archs:
        raise BuildError(
            f"expected an nvcc that knows one of sm_{CUDA_ARCHS[0]} to sm_{CUDA_ARCHS[-1]}, got "
            f"one for {sorted(supported)}; install a current CUDA toolkit"
        )
    return archs


def cuda_flags(host: Host, archs: Sequence[int], env: Mapping[str, str]) -> list[str]:
    """Flags of nvcc: machine code for each architecture, and PTX of the newest for later ones."""
    flags = ["-O3", "-std=c++17", "--fmad=false", "--cudart=static", f"-I{ROOT / 'csrc'}"]
    flags += ["--threads=0", "-Wno-deprecated-gpu-targets"]
    flags += ["-Werror=all-warnings"] if env.get("DRF_FAST_WERROR") == "1" else []
    flags += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    if host.msvc:
        return [*flags, "-Xcompiler=/MD"]
    if len(host.compiler) == 1:
        flags.append(f"-ccbin={host.compiler[0]}")
    return [*flags, "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra"]


def shell(words: Sequence[str | Path]) -> str:
    """Words as one command line of a ninja file."""
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join([str(word) for word in words]).replace("$", "$$")


def ninja_file(rules: Mapping[str, Rule], sources: Sequence[Path], output: Path) -> str:
    """The build.ninja that compiles each source by the rule of its suffix and links them."""
    ninja_syntax = build_tool("ninja.ninja_syntax")
    text = io.StringIO()
    writer = ninja_syntax.Writer(text)
    for name, rule in rules.items():
        depfile = "$out.d" if rule.deps == "gcc" else None
        writer.rule(name, rule.command, depfile=depfile, deps=rule.deps)
    objects = [f"{index}_{source.stem}.o" for index, source in enumerate(sources)]
    for made, source in zip(objects, sources, strict=True):
        writer.build(made, source.suffix[1:], str(source).replace("$", "$$"))
    writer.build(str(output).replace("$", "$$"), "link", objects)
    return text.getvalue()


def run_ninja(folder: Path, text: str) -> None:
    """Write build.ninja into ``folder`` and run it there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(text)
    ok, output = call([sys.executable, "-m", "ninja", "-C", folder])
    print(output, flush=True)
    if not ok:
        errors = [line.strip() for line in output.splitlines() if re.search(r"\berror\b.*:", line)]
        raise BuildError(
            "expected the sources of drf_fast to compile, got "
            f"'{errors[0] if errors else 'no message'}'; report it with the compiler's version, or "
            "set CXX to another compiler",
            output,
        )


def host_rules(host: Host, compile_: Sequence[str], link: Sequence[str]) -> dict[str, Rule]:
    """The rules to compile a .cpp and to link an extension with the C++ compiler."""
    if host.msvc:
        compiling = Rule(
            f"{shell([*host.compiler, *compile_])} /showIncludes /c $in /Fo$out", "msvc"
        )
        linking = f"{shell(host.compiler)} /nologo /LD $in /Fe$out /link {shell(link)}"
    else:
        command = f"{shell([*host.compiler, *compile_])} -MMD -MF $out.d -c $in -o $out"
        compiling = Rule(command, "gcc")
        linking = f"{shell(host.compiler)} $in -o $out {shell(link)}"
    return {"cpp": compiling, "link": Rule(linking)}


def build_cpu(folder: Path, output: Path, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Build drf_fast._C; returns how (compiler and flags)."""
    host = find_host(env)
    compile_, link = host_flags(host, env)
    shown = shlex.join(flag for flag in compile_ if not flag.startswith(("-I", "-isystem", "/I")))
    sources = [ROOT / "csrc" / "bindings.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    run_ninja(folder, ninja_file(host_rules(host, compile_, link), sources, output))
    return {"compiler": shlex.join(host.compiler), "flags": shown}


def build_cuda(folder: Path, output: Path, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Build drf_fast._CUDA, kernels by nvcc, bindings by the C++ compiler; returns how."""
    # With "none" a CUDA_HOME that leads nowhere is no error.
    nvcc = None if env.get("DRF_FAST_CUDA_ARCHS") == "none" else find_nvcc(env)
    if nvcc is None:
        raise NotWantedError("no CUDA toolkit (nvcc), or DRF_FAST_CUDA_ARCHS=none, at installation")
    ok, listing = call([nvcc, "--list-gpu-code"])
    if not ok:
        raise BuildError(f"expected a working nvcc, got {nvcc}, which fails", listing)
    host = find_host(env)
    archs = cuda_archs(listing, env.get("DRF_FAST_CUDA_ARCHS"))
    flags = cuda_flags(host, archs, env)
    compile_, _ = host_flags(host, env)
    rules = host_rules(host, compile_, [])
    rules["cu"] = Rule(f"{shell([nvcc, *flags])} -MMD -MF $out.d -c $in -o $out", "gcc")
    # Hides the symbols of the static CUDA runtime: torch loads its own into the same process.
    hidden = ["-Xlinker=--exclude-libs,ALL,-s"] if sys.platform.startswith("linux") else []
    link = [nvcc, "-shared", "--cudart=static", *(f for f in flags if f.startswith("-ccbin"))]
    rules["link"] = Rule(f"{shell([*link, *hidden])} $in -o $out")
    sources = sorted(p for p in (ROOT / "csrc" / "cuda").iterdir() if p.suffix in (".cpp", ".cu"))
    run_ninja(folder, ninja_file(rules, sources, output))
    return {"compiler": str(nvcc), "flags": " ".join(f"sm_{arch}" for arch in archs) + " and PTX"}


PARTS = {"drf_fast._C": build_cpu, "drf_fast._CUDA": build_cuda}


class BuildExt(build_ext):
    """Runs ninja instead of setuptools' own compiler classes and records the outcome."""

    def run(self) -> None:
        mode = build_mode()
        package = Path(self.build_lib, "drf_fast").resolve()
        package.mkdir(parents=True, exist_ok=True)
        parts = {name: self.build_part(name, package, mode) for name in PARTS}
        record = {"version": self.distribution.get_version(), "parts": parts}
        (package / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if self.inplace:
            self.copy_to_source(package)

    def build_part(self, name: str, package: Path, mode: str) -> dict[str, object]:
        """Build one part; {"built": whether, "reason": why not, ...}."""
        output = package / Path(self.get_ext_filename(name)).name
        output.unlink(missing_ok=True)  # an earlier build must not pass for this one
        if mode == "0":
            return {"built": False, "reason": "DRF_FAST_BUILD_EXT=0 at installation"}
        try:
            folder = Path(self.build_temp, name).resolve()
            return {"built": True, "reason": None, **PARTS[name](folder, output)}
        except NotWantedError as error:
            return {"built": False, "reason": str(error)}
        except BuildError as error:
            if mode == "1":
                raise CompileError(
                    f"DRF_FAST_BUILD_EXT=1 and {name} was not built: {error}\n{error.output}"
                ) from error
            self.warn(f"{name} was not built, drf_fast works without it, slower: {error}")
            return {"built": False, "reason": str(error), "output": error.output[-2000:]}

    def copy_to_source(self, package: Path) -> None:
        """For an editable install: copy what was built to the sources, delete what was not."""
        target = ROOT / "drf_fast"
        for name in (*(Path(self.get_ext_filename(part)).name for part in PARTS), RECORD):
            (target / name).unlink(missing_ok=True)
            if (package / name).exists():
                shutil.copy2(package / name, target / name)

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib, "drf_fast")
        names = [Path(self.get_ext_filename(part)).name for part in PARTS]
        return [str(package / name) for name in (*names, RECORD) if (package / name).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        made = self.get_outputs() if self.inplace else []
        return {path: str(ROOT / "drf_fast" / Path(path).name) for path in made}

    def get_source_files(self) -> list[str]:
        return []  # MANIFEST.in takes the whole of csrc


def refuse_old_setuptools(version: str = setuptools.__version__) -> None:
    """Exit with one sentence if setuptools cannot read our pyproject.toml (no build isolation)."""
    if int(version.partition(".")[0]) < OLDEST_SETUPTOOLS:
        raise SystemExit(
            f"drf_fast needs setuptools>={OLDEST_SETUPTOOLS} to build, got {version}: pip install "
            f"'setuptools>={OLDEST_SETUPTOOLS}' first, or leave out --no-build-isolation"
        )


if __name__ == "__main__":
    refuse_old_setuptools()
    setup(
        packages=[*find_packages(str(ROOT), include=["drf_fast*"]), "drf_fast.kernels"],
        package_dir={"drf_fast.kernels": "kernels"},
        ext_modules=[Extension(name, sources=[]) for name in PARTS],
        cmdclass={"build_ext": BuildExt},
    )
