"""The compiled engine's C code on random models, under the address sanitizer.

``native/check.c`` compares it with the formulas in double, and with itself, bit for bit. That the check can fail shows
in copies of the sources with a fault. With the sanitizer of undefined behavior it takes minutes to compile: see
``native_program.py``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("hatchling")  # hatch_build.py needs it

import hatch_build
from tests.engine.native_program import build_single, compiler, run

SANITIZED = ("-O1", "-fsanitize=address")
FIRST, MODELS = 25, 8  # the last one reads a long text


@pytest.fixture(scope="module", autouse=True)
def _compiler(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("compiler")
    folder.joinpath("empty.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
    command = [*compiler(), *SANITIZED, str(folder / "empty.c"), "-o", str(folder / "empty")]
    try:
        subprocess.run(command, check=True, capture_output=True)
        subprocess.run([folder / "empty"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a C compiler with sanitizers")


def test_random_models(tmp_path: Path) -> None:
    program = build_single(tmp_path / "check", compiler(), *SANITIZED, source=hatch_build.SOURCE)
    done = run(program, first=FIRST, models=MODELS, variants=1)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "right", "wrong", "flags"),
    [
        ("model.h", "- l->window + 1", "- l->window", ["-O1"]),
        ("engine.c", "group * CHUNK", "group * CHUNK / 8", SANITIZED),
    ],
    ids=["a window too wide", "too little memory"],
)
def test_faults_are_found(tmp_path: Path, file: str, right: str, wrong: str, flags: list[str]) -> None:
    source = tmp_path / "src"
    shutil.copytree(hatch_build.SOURCE, source)
    text = (source / file).read_text(encoding="utf-8")
    assert text.count(right) == 1
    (source / file).write_text(text.replace(right, wrong), encoding="utf-8")
    program = build_single(tmp_path / "check", compiler(), *flags, source=source)
    assert run(program, first=FIRST, models=MODELS - 1, variants=1).returncode != 0
