"""Errors of the library have a kind instead of a hint that names options; each kind has a hint in HINTS."""

from __future__ import annotations

import ast
from pathlib import Path

import llmcli
from llmcli.commands.shell.hints import HINTS, hint_of
from llmcli.errors import LlmcliError
from llmcli.generation.filters import FILTERS


def kinds_in_use() -> set[str]:
    """Return every literal ``kind`` that the source passes to an error, and the kinds that filters declare."""
    found = {filter.option.zero for filter in FILTERS.values()} - {""}
    for path in Path(llmcli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and "rror" in node.func.id:
                found |= {k.value.value for k in node.keywords if k.arg == "kind" and isinstance(k.value, ast.Constant)}
    return {str(kind) for kind in found}


def literals() -> set[str]:
    """Return the string literals of the library, where a kind may also be chosen from several."""
    package = Path(llmcli.__file__).parent
    paths = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] != "commands"]
    nodes = (node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_kind_of_error_has_a_hint_and_every_hint_a_kind() -> None:
    assert kinds_in_use() <= set(HINTS)
    assert set(HINTS) <= kinds_in_use() | literals()
    assert all(HINTS.values())


def test_an_errors_own_hint_comes_first() -> None:
    kind = next(iter(HINTS))
    assert hint_of(LlmcliError("wrong", kind=kind)) == HINTS[kind]
    assert hint_of(LlmcliError("wrong", "do this", kind=kind)) == "do this"
    assert hint_of(LlmcliError("wrong")) == ""
