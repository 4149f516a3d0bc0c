"""Builds ``native/check.c`` together with the engine's sources, and checks what the tests have no time or tools for.

``python -m tests.engine.native_program WHAT`` with WHAT:

- ``sanitized MODELS``: so many random models, with every variant, under the address and undefined behavior sanitizers
- ``aarch64 MODELS``: the same for ARM processors, without sanitizers, under qemu-aarch64
- ``libraries``: the library for every other system is compiled

The last two need the package ziglang.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import hatch_build

CHECK = Path(__file__).parent / "native"
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ALL = 3  # variants
LIBRARIES = {"x86_64-windows-gnu": ".dll", "x86_64-macos": ".dylib", "aarch64-macos": ".dylib"}


def compiler() -> list[str]:
    """A C compiler on this machine, or nothing."""
    found = shlex.split(os.environ.get("CC", "")) or [shutil.which("gcc") or shutil.which("clang") or ""]
    return found if found[0] else []


def zig(target: str) -> list[str]:
    return [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline", "-target", target]


def build(
    program: Path,
    command: list[str],
    variants: dict[str, tuple[str, ...]],
    *extra: str,
    source: Path = hatch_build.SOURCE,
) -> Path:
    """Compile the check with the given variants of the engine in ``source`` into ``program``, and return it."""
    with tempfile.TemporaryDirectory() as folder:
        objects = hatch_build.compile_objects(Path(folder), command, variants, extra, source)
        flags = ["-std=gnu11", "-I", str(source), *extra]
        hatch_build.run([*command, *flags, str(CHECK / "check.c"), *objects, "-lm", "-lpthread", "-o", str(program)])
    return program


def build_single(program: Path, command: list[str], *extra: str, source: Path) -> Path:
    """As ``build``, with the portable variant on every processor."""
    others = [
        f"-D{name}_{variant}={name}_portable"
        for name in ("step", "distribution")
        for variant in hatch_build.VARIANTS["x86_64"]
        if variant != "portable"
    ]
    return build(program, command, hatch_build.PORTABLE, *others, *extra, source=source)


def run(*command: str | Path, models: int, variants: int, first: int = 1) -> subprocess.CompletedProcess[str]:
    """Check the models of ``models`` seeds."""
    arguments = [*map(str, command), str(first), str(models), str(variants)]
    return subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def main(what: str, models: int = 0) -> int:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "check")
        if what == "libraries":
            for target, suffix in LIBRARIES.items():
                library = Path(folder, f"{target}{suffix}")
                hatch_build.compile_library(library, zig(target), target.partition("-")[0])
                print(f"{library.name}: {library.stat().st_size} bytes")
            return 0
        if what == "aarch64":
            build(program, zig("aarch64-linux-musl"), hatch_build.VARIANTS["aarch64"], "-static")
            done = run("qemu-aarch64", program, models=models, variants=ALL)
        else:
            build(program, compiler(), hatch_build.VARIANTS[hatch_build.machine()], *SANITIZERS)
            done = run(program, models=models, variants=ALL)
    print(done.stdout, end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
