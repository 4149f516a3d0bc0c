"""The examples in docs/examples run from beginning to end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
# A part of each script's output that is the same on every machine.
PRINTED = {
    "sampling.py": "temperature 0.0",
    "lens.py": "which leads from layer",
    "training.py": "The fox lives in the forest.",
}


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("script", PRINTED)
def test_a_script_runs(script: str) -> None:
    command = [sys.executable, str(EXAMPLES / script)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})
    assert result.returncode == 0, result.stderr
    assert PRINTED[script] in result.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_runs_and_shows_tables(path: Path) -> None:
    """The notebook is stored without outputs, so that it does not change when a table looks different."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in cells if cell.outputs or cell.execution_count]
    NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "display_data"]  # each table is shown once
    tables = [output for output in outputs if "<pre" in output.get("data", {}).get("text/html", "")]
    assert len(tables) == 4
