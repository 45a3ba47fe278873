"""Who imports whom in a copy of the project, read from the source: nothing is run."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

# Registries import the one module that they are asked for by name: which it is, the catalogue says.
NAMED = {
    "segforge.architectures": "family",
    "segforge.datasets": "format",
    "segforge.tasks": "task",
    "segforge.runtimes": "runtime",
}


def module_file(root: Path, module: str) -> Path | None:
    """The file of a module of this project; None for anything else."""
    path = root / ("src" if module.startswith("segforge") else "") / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imports_of(root: Path, module: str, *, types_too: bool = False) -> set[str]:
    """The modules of this project that `module` imports, wherever in its file.

    What stands under TYPE_CHECKING is never run, and counts with `types_too` only.
    """
    file = module_file(root, module)
    assert file, module
    found: set[str] = set()
    for node in _nodes(ast.parse(file.read_text()), types_too):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if module_file(root, name) else node.module for name in inner]
        found.update(names)
    own = {name for name in found if name.split(".")[0] in ("segforge", "stages") and module_file(root, name)}
    return own - {module}


def _nodes(tree: ast.AST, types_too: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types_too:
            continue
        yield node
        yield from _nodes(node, types_too)


def _within(root: Path, module: str) -> set[str]:
    """The modules of a package that a registry chooses: it imports its own by name, as a task does its metrics."""
    folder = root / "src" / module.replace(".", "/")
    return {f"{module}.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"}


def closure(root: Path, start: str, named: Mapping[str, str]) -> dict[str, str]:
    """Every module that `start` comes to import, with the one that it came by.

    `named` fills in what a registry chooses. A package's own file is run with any module of it.
    """
    came: dict[str, str] = {}
    todo = [(start, "")]
    while todo:
        module, by = todo.pop()
        if module in came:
            continue
        came[module] = by
        found = imports_of(root, module)
        for registry in NAMED.keys() & found & {name for name in NAMED if NAMED[name] in named}:
            for name in named[NAMED[registry]].split():
                found |= {f"{registry}.{name}", *_within(root, f"{registry}.{name}")}
        found |= {".".join(name.split(".")[:i]) for name in found for i in range(1, name.count(".") + 1)}
        todo += [(name, module) for name in sorted(found) if module_file(root, name)]
    return came
