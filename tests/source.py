"""The three packages' source files, for the tests of the house rules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "minigpt_edge": ROOT / "minigpt_edge",
    "minigpt_edge_export": ROOT / "export" / "minigpt_edge_export",
    "minigpt_edge_runtime": ROOT / "runtime" / "minigpt_edge_runtime",
}


def sources(package: str) -> list[Path]:
    """The package's Python files, sorted."""
    return sorted(PACKAGES[package].rglob("*.py"))


def module_name(path: Path, package: str) -> str:
    """The dotted name under which a package's file is imported."""
    parts = [package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str = "", is_package: bool = False) -> Iterator[tuple[str, ast.stmt]]:
    """Every imported dotted name with its statement; relative imports are resolved against `module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".") if is_package else module.split(".")[:-1]
            near = base[: len(base) - node.level + 1] if node.level else []
            yield ".".join([*near, *([node.module] if node.module else [])]), node


def at_import_time(tree: ast.Module) -> set[ast.stmt]:
    """The statements that run when the module is imported: not in functions, not under `if TYPE_CHECKING`."""
    found: set[ast.stmt] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    visit(other)
                continue
            if isinstance(child, ast.stmt):
                found.add(child)
            visit(child)

    visit(tree)
    return found


def imported_modules(path: Path, module: str) -> Iterator[str]:
    """Our modules that a file imports, imports in functions included, those for type checkers apart."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    for name, statement in imports(tree, module, path.name == "__init__.py"):
        if id(statement) in typing_only or name.partition(".")[0] not in PACKAGES:
            continue
        if not isinstance(statement, ast.ImportFrom):
            yield name
            continue
        for alias in statement.names:
            inner = f"{name}.{alias.name}"
            yield inner if _exists(inner) else name


def _exists(module: str) -> bool:
    package, _, rest = module.partition(".")
    place = PACKAGES[package] / rest.replace(".", "/")
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
