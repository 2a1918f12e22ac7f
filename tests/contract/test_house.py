"""The house can be looked over: names that mean one thing, rooms, files and functions of a size to read, and no circle."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("eamsim", "reference", "cost_model")
MODULES, LINES, FUNCTION_LINES = 15, 400, 40
TABLES = {"tests/fuzz/writing.py: commands"}
"""One literal each, in whatever lines it takes."""


def modules(*rooms: str) -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for room in rooms for path in (ROOT / room).rglob("*.py")}


def test_every_public_class_has_a_name_of_its_own():
    places = defaultdict(list)
    for path, text in modules(*ROOMS).items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path)
    assert len(places) > 100
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_room_has_more_modules_than_one_can_look_over():
    folders = {Path(path).parent for path in modules(*ROOMS)}
    counted = {folder: len([path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]) for folder in folders}
    assert {folder: count for folder, count in counted.items() if count > MODULES} == {}


def test_no_file_is_longer_than_one_reads_at_a_time():
    lines = {path: text.count("\n") for path, text in modules(*ROOMS, "tests").items()}
    assert {path: count for path, count in lines.items() if count > LINES} == {}


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without the parameters, which of a command are its table of options, and the docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1


def test_no_function_is_longer_than_one_reads_at_a_glance():
    found = {}
    for path, text in modules(*ROOMS, "tests").items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[f"{path}: {node.name}"] = body_lines(node)
    assert {name for name, count in found.items() if count > FUNCTION_LINES} == TABLES


def test_no_module_knows_itself_through_others():
    grimp = pytest.importorskip("grimp", reason="comes with import-linter, of the extra 'test'")
    graph = grimp.build_graph(*ROOMS, exclude_type_checking_imports=True, cache_dir=None)
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, arrows.values())) > 500
    TopologicalSorter(arrows).prepare()  # CycleError names a circle
