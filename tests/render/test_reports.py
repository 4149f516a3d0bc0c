"""Every view's report finds the function that draws it."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest

import llmcli
from llmcli import render
from llmcli.render.reports import DRAWN_BY

PACKAGE = Path(llmcli.__file__).parent


def reports() -> set[str]:
    """The classes of explain/ and endpoint/ that carry a check."""
    found = set()
    for path in [*PACKAGE.glob("explain/**/*.py"), *PACKAGE.glob("endpoint/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                fields = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
                if "check" in fields:
                    found.add(node.name)
    return found


def test_every_report_with_a_check_is_drawn() -> None:
    assert set(DRAWN_BY) == reports()


@pytest.mark.parametrize("name", sorted(set(DRAWN_BY.values())))
def test_every_function_is_one_of_the_package(name: str) -> None:
    assert callable(getattr(render, name))


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="str is not a report"):
        render.print_report("lens", io.StringIO())
    with pytest.raises(TypeError, match="int is not a report"):
        render.html(3)
