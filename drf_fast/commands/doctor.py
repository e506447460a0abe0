"""``drf-fast doctor``: what this installation has, what it lacks, and how to get it.

It must not fail because of what it examines: each part is collected separately, and for one that
fails the error is shown instead.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json as json_module
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drf_fast

_OPTIONAL = ("triton",)
_WITHOUT_METADATA = ("torch", "torchvision", "numpy", "scipy", "tyro", "rich")
_REQUIREMENT = re.compile(r"[\w.-]+")
_OLDER_PYTHON = "python_version <"  # in a requirement that this Python's own library fulfils
_VARIABLES = re.compile(r"(DRF_FAST|TRITON|OMP|KMP|MKL|CUDA)_|(CUDA_HOME|CXX)$")
_ISA_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_bf16"),
    *("avx512_vnni", "amx_bf16", "neon", "asimd", "sve", "sve2", "bf16"),
)
_KERNELS = "Triton kernels"  # their entry among the extensions
Report = dict[str, Any]


# ------------------------------------------------------------------------------------ collecting


def _guarded(read: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except Exception as error:
        return f"error: {type(error).__name__}: {error}"


def _required() -> list[str]:
    """The packages that drf_fast's metadata requires on this Python."""
    try:
        listed = importlib.metadata.requires("drf-fast") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        return list(_WITHOUT_METADATA)
    skipped = ("extra ==", *([_OLDER_PYTHON] if sys.version_info >= (3, 11) else []))
    return [
        found[0]
        for requirement in listed
        if not any(word in requirement for word in skipped)
        and (found := _REQUIREMENT.match(requirement))
    ]


def _versions() -> dict[str, str]:
    versions = {"drf_fast": drf_fast.__version__, "python": platform.python_version()}
    for package in (*_required(), *_OPTIONAL):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _missing(versions: dict[str, str]) -> list[str]:
    return [package for package in _required() if versions[package] == "not installed"]


def _cpu() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), []
    with contextlib.suppress(OSError):  # Linux only; elsewhere the name from ``platform`` is used
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        fields = dict(re.findall(r"^([^:\n]*?)\s*:\s*(.*)$", text, re.MULTILINE))
        model = fields.get("model name", model)
        flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "model": model,
        "cores": os.cpu_count(),
        "isa": [flag for flag in _ISA_FLAGS if flag in flags],
    }


def _threads() -> dict[str, Any]:
    import torch

    from drf_fast.backends.native import library

    threads: dict[str, Any] = {"torch": torch.get_num_threads()}
    if not library.available():
        return threads
    threads["native OpenMP"] = library.load().build_info().get("openmp", "unknown")
    with contextlib.suppress(OSError):
        loaded = set(
            re.findall(r"/\S*lib(?:g|i)?omp\S*\.so\S*", Path("/proc/self/maps").read_text())
        )
        threads["OpenMP runtimes loaded"] = sorted(loaded)
        if len(loaded) > 1:
            threads["advice"] = (
                "two OpenMP runtimes share the cores: results are right, but slower; reinstall "
                "drf_fast with a compiler that uses the OpenMP runtime of your torch"
            )
    return threads


def _extensions() -> dict[str, Any]:
    from drf_fast.backends import triton
    from drf_fast.backends.native import library

    parts = library.build_record().get("parts", {})
    found = {}
    for name, why_not in (("_C", library.why_not), ("_CUDA", library.cuda_why_not)):
        record = parts.get(f"drf_fast.{name}", {})
        reason = why_not()
        found[f"drf_fast.{name}"] = {
            "usable": reason is None,
            "built": bool(record.get("built")),
            "why not": reason,
            "compiler": record.get("compiler"),
            "flags": record.get("flags"),
            "compiler output": record.get("output"),
        }
    if library.available():
        found["drf_fast._C"]["build"] = library.load().build_info()
    # Guarded on its own: a broken Triton must not hide the other two.
    reason = _guarded(lambda: triton.why_not("cuda"))
    found[_KERNELS] = {"usable": reason is None, "why not": reason}
    return found


def _operations() -> dict[str, dict[str, str]]:
    from drf_fast.backends.reference import operations as reference
    from drf_fast.commands.self_test import served_by

    return {
        operation: {
            device: _guarded(lambda o=operation, d=device: served_by(o, d))
            for device in ("cpu", "cuda")
        }
        for operation in reference.__all__
    }


def _cuda() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"torch built for": torch.version.cuda or "no CUDA", "devices": []}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            found["devices"].append(
                f"{device.name}, sm_{device.major}{device.minor}, "
                f"{device.total_memory / 2**30:.0f} GiB"
            )
    return found


def _works() -> bool:
    """Whether a minimal certificate can be computed: with torch, an operation and its backend."""
    import torch

    bound = drf_fast.clopper_pearson_lower(torch.tensor([99]), torch.tensor([100]), 0.001)
    return 0.9 < float(bound[0]) < 0.99


def collect() -> Report:
    """Everything that ``drf-fast doctor`` shows, as plain JSON types.

    Returns:
        One entry per section. ``usable``: whether an operation ran and gave a plausible result; a
        section that could not be read is a string that starts with "error:".
    """
    works, versions = _guarded(_works), _guarded(_versions)
    return {
        "usable": works is True,
        "problem": works if isinstance(works, str) else None,
        "missing": _guarded(lambda: _missing(versions)),
        "versions": versions,
        "platform": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "python": sys.executable,
            "package": str(Path(__file__).parents[1]),
        },
        "cpu": _guarded(_cpu),
        "threads": _guarded(_threads),
        "extensions": _guarded(_extensions),
        "operations": _guarded(_operations),
        "cuda": _guarded(_cuda),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if _VARIABLES.match(name)
        },
    }


# --------------------------------------------------------------------------------------- showing


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return str(value)


def _sections(report: Report) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each section as (title, rows), without absent entries."""
    for title, content in report.items():
        if title in ("usable", "problem", "missing"):
            continue
        if not isinstance(content, dict):
            yield title, [("", _shown(content))]
        elif title == "extensions":
            for name, part in content.items():
                rows = [(key, _shown(value)) for key, value in part.items() if value is not None]
                yield name, rows
        else:
            yield title, [(key, _shown(value)) for key, value in content.items()] or [("", "none")]


def _has_gpu(report: Report) -> bool:
    return isinstance(report["cuda"], dict) and bool(report["cuda"]["devices"])


def _verdict(report: Report) -> str:
    if not report["usable"]:
        return f"not usable: {report['problem'] or 'a bound came out wrong'}; reinstall drf_fast"
    extensions, missing = report["extensions"], report["missing"]
    parts = extensions if isinstance(extensions, dict) else {}
    core, kernels = parts.get("drf_fast._C", {}), parts.get(_KERNELS, {})
    found = "usable, with the C++ core"
    if not core.get("usable"):
        found = f"usable on the reference backend, slower: {core.get('why not') or extensions}"
    if _has_gpu(report) and kernels.get("why not"):
        found += f"; on the GPU without Triton's kernels, slower: {kernels['why not']}"
    if missing and isinstance(missing, list):
        found += f"; required packages are missing: pip install {' '.join(missing)}"
    return found


def render(report: Report) -> str:
    """The report as plain text: a verdict, then the sections."""
    lines = [f"drf_fast is {_verdict(report)}"]
    for title, rows in _sections(report):
        width = max(len(key) for key, _ in rows)
        lines += ["", title]
        for key, value in rows:
            text = value.replace("\n", "\n" + " " * (width + 4))
            lines.append(f"  {key:<{width}}  {text}")
    return "\n".join(lines) + "\n"


def _render_rich(report: Report) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), force_terminal=True)
    color = "green" if report["usable"] else "red"
    console.print(Text(f"drf_fast is {_verdict(report)}", style=f"bold {color}"))
    for title, rows in _sections(report):
        table = Table(title=title, title_justify="left", show_header=False, min_width=60)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in rows:
            table.add_row(Text(key), Text(value))
        console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def _run_self_test(json: bool) -> int:
    try:
        from drf_fast.commands import self_test

        checks = self_test.run()
    except Exception as error:  # no torch, or a backend that does not exist
        sys.stdout.write(f"drf_fast is not usable: {type(error).__name__}: {error}\n")
        return 1
    if json:
        sys.stdout.write(json_module.dumps(self_test.as_json(checks), indent=2) + "\n")
    else:
        sys.stdout.write(self_test.render(checks))
    return 0 if all(check.passed for check in checks) else 1


def run(json: bool = False, self_test: bool = False) -> int:
    """Print the report: tables on a terminal, plain text elsewhere, JSON when asked.

    Args:
        json: print as JSON.
        self_test: instead, run every operation on all devices and print the comparison.

    Returns:
        0 if drf_fast is usable, even if only with the fallback, and no check of the self-test
        failed; else 1.
    """
    if self_test:
        return _run_self_test(json)
    report = collect()
    if json:
        text = json_module.dumps(report, indent=2, default=str) + "\n"
    elif sys.stdout.isatty():
        text = _render_rich(report)
    else:
        text = render(report)
    sys.stdout.write(text)
    return 0 if report["usable"] else 1
