"""Each guarantee of the README names the test that keeps it, and the test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TITLE = "## What is guaranteed, and where it ends"
LINK = re.compile(r"\]\(([^)#]+)#([^)]+)\)")


def guarantees() -> list[tuple[str, str, str]]:
    """The rows of the table: (guarantee, window, kept by)."""
    section = (ROOT / "README.md").read_text().split(TITLE)[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [(row[0].strip(), row[1].strip(), row[2].strip()) for row in rows[2:]]


def test_there_are_guarantees() -> None:
    """A table that this file could not read would pass every test below."""
    assert len(guarantees()) > 10


@pytest.mark.parametrize("row", guarantees(), ids=lambda row: row[0][:50])
def test_a_guarantee_names_a_test_that_is_there(row: tuple[str, str, str]) -> None:
    """Whoever doubts it can run it; a test that is renamed or deleted takes its guarantee along."""
    guarantee, window, kept_by = row
    named = LINK.findall(kept_by)
    assert window, f"{guarantee} has no window: say where it ends, or none"
    assert len(named) == kept_by.count("](") > 0, f"{guarantee} names a file without a test in it"
    for file, test in named:
        functions = [node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if _is_function(node)]
        assert test in functions, f"{file} has no {test}"


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef)
