"""Who may import whom: arrows point down the table, never up, and no module is long."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "drf_fast"
MOST_LINES = 400

# Room -> the rooms that it may import besides itself, all of them further down. "face" are the
# modules that lie beside the folders: functional, adversary, balls, nn.
BELOW = {"errors", "version", "runtime", "config"}
ALLOWED: dict[str, set[str]] = {
    "commands": BELOW
    | {
        "report",
        "attacks",
        "training",
        "certification",
        "checkpoints",
        "models",
        "data",
        "face",
        "ops",
    }
    | {"backends", "top"},  # drf_fast itself, as a user has it: what they test is the public API
    "report": BELOW | {"attacks", "certification", "face"},
    "attacks": BELOW | {"certification", "data", "face"},
    "training": BELOW
    | {"certification", "checkpoints", "models", "data", "face", "ops", "backends"},
    "certification": BELOW | {"checkpoints", "models", "data", "face", "ops", "backends"},
    "checkpoints": BELOW | {"models", "data", "face"},
    "models": BELOW | {"face", "ops"},
    "data": BELOW | {"face"},
    "face": BELOW | {"ops"},
    "ops": BELOW | {"backends"},
    "backends": BELOW | {"kernels"},
    "kernels": BELOW,
    "config": {"errors", "version", "runtime"},
    "runtime": {"errors", "version"},
    "errors": set(),
    "version": set(),
}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the package and of the kernels that are installed into it."""
    found = {}
    for folder, package in ((PACKAGE, "drf_fast"), (ROOT / "kernels", "drf_fast.kernels")):
        for path in folder.rglob("*.py"):
            if folder is PACKAGE and path.relative_to(PACKAGE).parts[0] == "kernels":
                continue  # what an in-place build may have left there
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "top"
    if parts[1] in ALLOWED:
        return parts[1]
    return "top" if parts[1] == "__main__" else "face"


def imported(module: str) -> set[str]:
    """The modules of drf_fast that ``module`` names in an import, wherever in it that stands."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name.startswith("drf_fast") and name not in MODULES:
                name = name.rpartition(".")[0]  # a name inside a module
            if name.startswith("drf_fast"):
                found.add(name)
    return found - {module}


IMPORTS = {module: imported(module) for module in MODULES}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_from_its_room_and_from_rooms_below(module):
    here = room(module)
    if here == "top":
        return
    for other in IMPORTS[module]:
        there = room(other)
        assert there == here or there in ALLOWED[here], (
            f"{module} ({here}) imports {other} ({there}): {here} may import "
            f"{', '.join(sorted(ALLOWED[here])) or 'nothing'}"
        )


def test_the_table_has_every_room_and_points_downwards():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders | {"kernels"} == set(ALLOWED) - {"face", "errors", "version"}
    list(TopologicalSorter(ALLOWED).static_order())  # raises where there is a circle


def test_no_circle_of_modules():
    graph = {module: names for module, names in IMPORTS.items() if room(module) != "top"}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' <- '.join(error.args[1])}")


def test_few_lines_a_module():
    long = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_the_reader_of_imports_sees_them():
    assert "drf_fast.ops.schemas" in IMPORTS["drf_fast.functional"]
    assert "drf_fast.kernels.scalars" in IMPORTS["drf_fast.backends.graphs"]  # inside a function
    assert room("drf_fast.balls") == "face" and room("drf_fast.ops.checks") == "ops"
