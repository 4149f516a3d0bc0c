"""Lazy package faces: they import nothing heavy, and their lists of names agree."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmcli
from llmcli import lazy

PACKAGE = Path(llmcli.__file__).parent
FACES = [
    path
    for path in sorted(PACKAGE.rglob("__init__.py"))
    if path.parent != PACKAGE and "lazy.exports(" in path.read_text(encoding="utf-8")
]


def package_of(path: Path) -> str:
    return ".".join(path.parent.relative_to(PACKAGE.parent).parts)


def imports_for_type_checkers(path: Path) -> Iterator[tuple[str, str]]:
    """The names that a face imports under TYPE_CHECKING, each with its module relative to the package."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                assert statement.module is not None
                for alias in statement.names:
                    assert alias.asname == alias.name, f"{path}: write `import {alias.name} as {alias.name}`"
                    yield alias.name, statement.module.removeprefix(package_of(path) + ".")


def lazy_modules(path: Path) -> dict[str, str]:
    """The names that a face passes to ``lazy.exports``, with their modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy.exports":
            found: dict[str, str] = ast.literal_eval(node.args[1])
            return found
    raise AssertionError(f"{path} does not call lazy.exports")


@pytest.mark.parametrize("path", FACES, ids=package_of)
def test_the_lists_of_a_face_agree(path: Path) -> None:
    face = importlib.import_module(package_of(path))
    assert dict(imports_for_type_checkers(path)) == lazy_modules(path)
    assert sorted(face.__all__) == sorted(lazy_modules(path))
    assert set(face.__all__) <= set(dir(face))


@pytest.mark.parametrize("path", FACES, ids=package_of)
def test_every_name_of_a_face_resolves(path: Path) -> None:
    face = importlib.import_module(package_of(path))
    for name, module in lazy_modules(path).items():
        assert getattr(face, name) is getattr(importlib.import_module(f"{face.__name__}.{module}"), name)


@pytest.mark.parametrize("path", FACES, ids=package_of)
def test_no_name_is_a_submodule_that_would_shadow_it(path: Path) -> None:
    submodules = {file.stem for file in path.parent.glob("*.py")} | {folder.name for folder in path.parent.glob("*/")}
    assert not submodules & set(lazy_modules(path))


def test_faces_import_nothing_heavy() -> None:
    names = ", ".join(map(package_of, FACES))
    heavy = ["torch", "numpy", "rich", "tokenizers", "safetensors", "transformers", "httpx2", "huggingface_hub"]
    code = f"import sys, {names}; print(*set(sys.modules).intersection({heavy}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == []


def test_unknown_names_are_attribute_errors() -> None:
    get_attribute, list_names = lazy.exports("llmcli.explain", {"Check": "check"})
    with pytest.raises(AttributeError, match=r"module 'llmcli.explain' has no attribute 'missing'"):
        get_attribute("missing")
    assert "Check" in list_names()


def test_submodules_need_no_import() -> None:
    get_attribute, list_names = lazy.exports("llmcli", {}, submodules=("explain",))
    assert get_attribute("explain") is importlib.import_module("llmcli.explain")
    assert "explain" in list_names()
