"""The rooms of the package: which imports which, and what stands at the top."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import keras_net2net as n2n

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[1]
PACKAGE = Path(n2n.__file__).parent
FILES = {str(file.relative_to(PACKAGE)): file for file in sorted(PACKAGE.rglob("*.py"))}
BY_TABLE: set[str] = set()  # longer functions that are tables of cases or arguments
WITH_EXTRAS = ["demo/main.py"]  # imports what draws once it knows that the extras are there


def functions_in(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def lines_of(function: ast.FunctionDef) -> int:
    """The lines of a function without its docstring."""
    docstring = 0
    if ast.get_docstring(function) is not None:
        docstring = function.body[0].end_lineno - function.body[0].lineno + 1
    return function.end_lineno - function.lineno + 1 - docstring


def test_imports_go_down_only_and_in_no_circles(capsys):
    use_cases = pytest.importorskip("importlinter.application.use_cases")
    pytest.importorskip("importlinter.configuration").configure()
    kept = use_cases.lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None)
    assert kept, capsys.readouterr().out


def test_there_are_thirteen_entries_at_the_top():
    entries = {Path(name).parts[0] for name in FILES}
    assert len(entries) <= 13


@pytest.mark.parametrize("name", [name for name in FILES if name not in WITH_EXTRAS])
def test_no_import_stands_in_a_function_to_hide_a_circle(name):
    hidden = [
        node
        for function in functions_in(ast.parse(FILES[name].read_text()))
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_net2net")
    ]
    assert hidden == []


@pytest.mark.parametrize("name", FILES)
def test_no_function_is_longer_than_fifty_lines(name):
    tree = ast.parse(FILES[name].read_text())
    long = {function.name for function in functions_in(tree) if lines_of(function) > 50}
    assert long <= BY_TABLE
