"""The house: which room may use which, and how large a room may be."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mlx_convnextv2"
# From the ground up. A module may use its own floor and those below it.
FLOORS = (
    ("_version", "messages"),
    ("demo", "files", "images", "ops", "pages", "runtime"),
    ("model",),
    ("checkpoints",),
    ("collections", "conversion", "graphs", "heatmaps", "inference"),
    ("benchmarking", "evaluation", "serving", "training"),
    ("terminal",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
COMMANDS = len(FLOORS)  # what else lies in the package's root


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> set[str]:
    """The modules of the package that a module names, at its top or within a function."""
    file = MODULES[module]
    package = list(file.parent.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
            target = ".".join(part for part in base if part)
            for alias in node.names:
                inner = f"{target}.{alias.name}".lstrip(".")
                found.add(inner if inner in MODULES else target)
    return found - {module}


GRAPH = {module: imports(module) for module in MODULES if module != ""}  # the root's own __init__ is the front door


def floor(module: str) -> int:
    return FLOOR.get(module.split(".")[0], COMMANDS)


def test_no_arrow_leads_up():
    up = {(module, used) for module in GRAPH for used in GRAPH[module] if floor(used) > floor(module)}
    assert up == set()


def test_the_front_door_is_used_by_no_room():
    assert [module for module, used in GRAPH.items() if "" in used] == []


def test_there_is_no_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_every_folder_has_a_floor():
    folders = {file.parent.relative_to(PACKAGE).parts[0] for file in MODULES.values() if file.parent != PACKAGE}
    assert folders <= FLOOR.keys()


def test_files_are_short():
    lines = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in MODULES.items()}
    assert {module: count for module, count in lines.items() if count > 400} == {}
    assert median(lines.values()) < 120


def test_a_room_that_computes_brings_mlx_its_blas_first():
    # A library that comes after mlx.core is too late. Python runs a room's __init__ before any module in it.
    def names_mlx(file: Path) -> bool:
        body = ast.parse(file.read_text(encoding="utf-8")).body
        return any(isinstance(node, ast.Import) and node.names[0].name.startswith("mlx.") for node in body)

    rooms = {file.parent for file in MODULES.values() if names_mlx(file)}
    assert PACKAGE not in rooms
    late = [room.name for room in rooms if "mlx_blas.load()" not in (room / "__init__.py").read_text(encoding="utf-8")]
    assert late == []
