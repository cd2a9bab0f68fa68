"""Files and functions stay small, nothing runs code that came as data, and the README's commands exist."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from source import PACKAGES, ROOT, sources

FILE_LINES = 400
FUNCTION_LINES = 60
# "path: function" -> why it is better long. Empty is best.
LONG_FUNCTIONS: dict[str, str] = {}

# Calls and arguments by which a file that a user downloaded could run code.
FORBIDDEN = {
    r"trust_remote_code\s*=\s*True": "a model's own code is never run",
    r"^\s*(import|from)\s+(pickle|dill|cloudpickle|joblib)\b": "a pickle runs code when it is read",
    r"\b(pickle|dill|joblib)\.loads?\(": "a pickle runs code when it is read",
    r"\btorch\.load\((?!.*weights_only=True)": "torch.load reads pickles; use safetensors",
    r"allow_pickle\s*=\s*True": "a pickle runs code when it is read",
    r"\byaml\.(load|unsafe_load|full_load)\((?!.*Safe)": "use a safe YAML loader",
    r"(?<![\w.])(?<!def )(eval|exec)\(": "text is not code",
    r"\bos\.system\(|shell\s*=\s*True": "no shell between us and a program's arguments",
}

ALL = [path for package in PACKAGES for path in sources(package)]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body and body[-1].end_lineno else 0


def long_functions(path: Path) -> dict[str, int]:
    """Functions whose code is over the budget, with their lines."""
    tree = ast.parse(path.read_text())
    name = path.relative_to(ROOT)
    return {f"{name}: {f.name}": body_lines(f) for f in functions(tree) if body_lines(f) > FUNCTION_LINES}


def forbidden(text: str) -> list[str]:
    """Lines that use something forbidden, with the reason."""
    lines = text.splitlines()
    return [
        f"{number}: {line.strip()} ({reason})"
        for pattern, reason in FORBIDDEN.items()
        for number, line in enumerate(lines, 1)
        if re.search(pattern, line)
    ]


def test_files_are_small() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ALL}
    assert {name: count for name, count in lines.items() if count > FILE_LINES} == {}


def test_functions_are_small() -> None:
    found = {name: count for path in ALL for name, count in long_functions(path).items()}
    assert {name: count for name, count in found.items() if name not in LONG_FUNCTIONS} == {}
    assert set(LONG_FUNCTIONS) <= set(found), "take out of the list what has become short"


def test_nothing_runs_code_that_came_as_data() -> None:
    found = {str(path.relative_to(ROOT)): forbidden(path.read_text()) for path in ALL}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("AutoModel.from_pretrained(path, trust_remote_code=True)", True),
        ("AutoModel.from_pretrained(path, trust_remote_code=False)", False),
        ("weights = torch.load(path)", True),
        ("weights = torch.load(path, weights_only=True)", False),
        ("import pickle", True),
        ("yaml.load(text)", True),
        ("yaml.load(text, Loader=yaml.CSafeLoader)", False),
        ("model.eval()", False),
        ("eval(text)", True),
        ("engine.eval([1])", False),
    ],
)
def test_the_scan_sees_what_it_has_to(line: str, bad: bool) -> None:
    assert bool(forbidden(line)) is bad


def shell_lines(document: Path) -> Iterator[str]:
    """The command lines of a Markdown file: its code blocks, continued lines joined, and its code spans."""
    text = document.read_text().replace("\\\n", " ")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language in ("", "sh", "console", "bash"):
            yield from (line.removeprefix("$ ").strip() for line in block.splitlines())
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (span.strip() for span in re.findall(r"`([^`\n]+)`", without_blocks))
    yield from (line.strip() for line in re.findall(r"^    (\S.*)$", without_blocks, re.MULTILINE))


def commands(document: Path, program: str) -> list[list[str]]:
    """Words after `program` of every command line that runs it; a comment at the end is dropped."""
    found = [
        re.match(rf"(?:[\w./-]*/)?{program}(\s+[^#|&;]*)?(?:[#|&;].*)?$", line)
        for line in shell_lines(document)
    ]
    return [(match[1] or "").split() for match in found if match]


def problem(main: click.Command, words: list[str]) -> str | None:
    """What a command line names that the program does not have; None if all of it exists."""
    command, context = main, click.Context(main, info_name="program")
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        verb, *words = words
        inner = command.get_command(context, verb)
        if inner is None:
            return f"no command {verb!r}"
        command, context = inner, click.Context(inner, info_name=verb, parent=context)
    known = {
        option
        for parameter in command.get_params(context)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in words:
        option = word.split("=")[0].strip("[],.")
        if re.fullmatch(r"--?[a-z][a-z0-9-]*", option) and option not in known:
            return f"{command.name} has no option {option!r}"
    return None


DOCUMENTS = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "runtime" / "README.md")
    if path.exists()
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_commands_in_the_documents_exist(document: Path) -> None:
    from minigpt_edge.cli import cli as edge
    from minigpt_edge_runtime.cli import cli as runtime

    wrong = []
    for program, main in (("minigpt-edge", edge), ("minigpt-edge-runtime", runtime)):
        for words in commands(document, program):
            if trouble := problem(main, words):
                wrong.append(f"{program} {' '.join(words)}: {trouble}")
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "trouble"),
    [
        ("run BUNDLE --json", None),
        ("run BUNDLE --no-such-option", "run has no option '--no-such-option'"),
        ("fly --json", "no command 'fly'"),
        ("--version", None),
    ],
)
def test_a_wrong_command_is_noticed(line: str, trouble: str | None) -> None:
    from minigpt_edge_runtime.cli import cli

    assert problem(cli, line.split()) == trouble


def make_targets() -> set[str]:
    """The targets that `make` lists."""
    listed = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^  make (\S+)", listed, re.MULTILINE))


def test_make_targets_in_the_documents_exist() -> None:
    targets = make_targets()
    assert {"setup", "demo", "test", "lint", "type", "clean"} <= targets
    named = {
        word
        for path in DOCUMENTS
        for words in commands(path, "make")
        for word in words
        if re.fullmatch(r"[a-z-]+", word)
    }
    assert {"setup", "test", "test-fast"} <= named
    assert named <= targets


def test_readme_links_lead_somewhere() -> None:
    for document in [*DOCUMENTS, *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if not re.match(r"https?://", target):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
