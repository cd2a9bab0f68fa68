"""The layout: no import circles between files or folders, few files at a package's top, few arguments."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from source import PACKAGES, ROOT, imported_modules, sources

TOP_FILES = 8  # Python files directly in a package
ARGUMENTS = 6  # of a function or of a class's constructor, self apart

Graph = Mapping[str, Iterable[str]]


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of two nodes or more, each sorted."""
    order: list[str] = []
    seen: set[str] = set()
    back: dict[str, set[str]] = {}
    for node, targets in graph.items():
        for target in targets:
            back.setdefault(target, set()).add(node)

    def reach(start: str, edges: Graph, out: list[str]) -> None:
        stack = [(start, iter(sorted(edges.get(start, ()))))]
        seen.add(start)
        while stack:
            node, targets = stack[-1]
            new = next((target for target in targets if target not in seen), None)
            if new is None:
                out.append(stack.pop()[0])
            else:
                seen.add(new)
                stack.append((new, iter(sorted(edges.get(new, ())))))

    for node in sorted({*graph, *back}):
        if node not in seen:
            reach(node, graph, order)
    seen.clear()
    found = []
    for node in reversed(order):
        if node not in seen:
            component: list[str] = []
            reach(node, back, component)
            if len(component) > 1:
                found.append(sorted(component))
    return sorted(found)


def file_graph() -> dict[str, set[str]]:
    """Every module with our modules that it imports, in functions too; a package is its __init__.py."""
    return {module: set(imported_modules(path, module)) for module, path in _modules().items()}


def folder_graph() -> dict[str, set[str]]:
    """The same between folders: a module stands for the folder directly under its package that holds it."""
    graph: dict[str, set[str]] = {}
    for module, targets in file_graph().items():
        home = _folder(module)
        graph.setdefault(home, set()).update(_folder(target) for target in targets)
    return {home: targets - {home} for home, targets in graph.items()}


def _modules() -> dict[str, Path]:
    from source import module_name

    return {module_name(path, package): path for package in PACKAGES for path in sources(package)}


def _folder(module: str) -> str:
    """minigpt_edge.prune.methods.wanda -> minigpt_edge.prune; a file at the top is itself."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["b"], "b": ["a"]}, [["a", "b"]]),
        ({"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": ["e"], "e": ["d"]}, [["b", "c"], ["d", "e"]]),
    ],
)
def test_circles_are_seen(graph: Graph, found: list[list[str]]) -> None:
    assert circles(graph) == found


def test_no_import_circle_between_files() -> None:
    graph = file_graph()
    assert sum(map(len, graph.values())) > 300  # the scan sees imports
    assert circles(graph) == []


def test_no_import_circle_between_folders() -> None:
    assert circles(folder_graph()) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_few_files_lie_at_the_top(package: str) -> None:
    files = sorted(path.name for path in PACKAGES[package].glob("*.py"))
    assert len(files) <= TOP_FILES, files


def arguments(path: Path) -> dict[str, int]:
    """Functions with more than ARGUMENTS arguments."""
    many = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given = node.args
        names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        if count > ARGUMENTS:
            many[f"{path.relative_to(ROOT)}: {node.name}"] = count
    return many


def test_functions_take_few_arguments() -> None:
    assert {
        k: n for package in PACKAGES for path in sources(package) for k, n in arguments(path).items()
    } == {}
