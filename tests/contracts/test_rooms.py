"""The rooms have an order, and a size: nobody imports upwards or around, and nothing grows out of sight."""

import ast
import re
from pathlib import Path

import pytest
from import_graph import imports_of

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "segforge"
MODULES = sorted(
    "segforge." + ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
    for path in SOURCE.rglob("*.py")
    if path != SOURCE / "__init__.py"
)
FILES = [*SOURCE.rglob("*.py"), *(ROOT / "stages").glob("*.py")]


def order() -> dict[str, int]:
    """The rank of each room, as CONTRIBUTING.md lists them from the ground up; rooms of one line have one rank."""
    block = re.search(r"```rooms\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert block
    return {room: rank for rank, line in enumerate(block[1].splitlines()) for room in line.split()}


ORDER = order()


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_room_is_in_the_order_and_nothing_else() -> None:
    assert {room_of(module) for module in MODULES} == set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_room_and_from_those_below(module: str) -> None:
    own = room_of(module)
    named = {name for name in imports_of(ROOT, module, types_too=True) if name != "segforge"}
    up = [name for name in named if room_of(name) != own and ORDER[room_of(name)] > ORDER[own]]
    assert not up, f"{own} stands below {', '.join(sorted(up))}"
    beside = [name for name in named if room_of(name) != own and ORDER[room_of(name)] == ORDER[own]]
    assert not beside or own in ("errors", "files", "layout", "terminal", "process", "passport")


def test_there_are_no_circles() -> None:
    graph = {module: imports_of(ROOT, module, types_too=False) - {"segforge"} for module in MODULES}
    done: set[str] = set()
    while left := {m for m in graph if m not in done and graph[m] & set(graph) <= done}:
        done |= left
    assert not set(graph) - done


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_can_be_read_at_a_sitting(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno >= 60
    }
    assert not long
