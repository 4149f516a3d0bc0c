"""The build hook: compiles the engine in ``llmcli/engine/native/src`` into a library next to it.

The compiler is ``$CC`` if it is set, otherwise the one that the package ziglang brings. Some files are compiled
once per kind of processor; the library chooses when it is loaded. If nothing can be compiled, llmcli is
installed without the library and runs every step with torch.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path(__file__).parent / "llmcli" / "engine" / "native"
SOURCE = NATIVE / "src"
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
PORTABLE: dict[str, tuple[str, ...]] = {"portable": ()}
# For each kind of processor: the names of its variants, and the flags that each is compiled with.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512": (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        "avx2": AVX2,
        **PORTABLE,
    },
    "aarch64": PORTABLE,
}
VARIED = ("step.c", "distribution.c")  # compiled once for each variant
COMMON = ("engine.c", "pool.c", "processor.c")
SUFFIX = {"windows": ".dll", "macos": ".dylib"}  # ".so" elsewhere


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the library to the wheel, which then is for this platform only."""

    def dependencies(self) -> list[str]:
        return [] if os.environ.get("CC") else ["ziglang>=0.13"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        system = {"win32": "windows", "darwin": "macos"}.get(sys.platform, "linux")
        library = NATIVE / f"llmcli_native{SUFFIX.get(system, '.so')}"
        try:
            compile_library(library, compiler(), machine())
        except (OSError, subprocess.CalledProcessError) as error:
            library.unlink(missing_ok=True)
            self.app.display_warning(f"the native engine could not be compiled, so torch will run every step: {error}")
            return
        build_data["artifacts"].append(str(library.relative_to(self.root).as_posix()))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compiler() -> list[str]:
    """The command that compiles C."""
    return shlex.split(os.environ.get("CC", "")) or [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"]


def machine() -> str:
    """The kind of processor, as ``VARIANTS`` names it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def compile_library(library: Path, command: list[str], processor: str, extra: tuple[str, ...] = ()) -> None:
    """Compile the engine for ``processor`` with the compiler ``command`` into ``library``.

    Raises OSError or CalledProcessError if the compiler is missing or fails.
    """
    windows = library.suffix == ".dll"
    with tempfile.TemporaryDirectory() as folder:
        variants = VARIANTS.get(processor, PORTABLE)
        objects = compile_objects(Path(folder), command, variants, (*([] if windows else ["-fPIC"]), *extra))
        made = Path(folder, library.name)
        libraries = [] if windows else ["-lm", "-lpthread"]
        run([*command, *extra, "-shared", "-s", *objects, *libraries, "-o", str(made)])
        with tempfile.NamedTemporaryFile(dir=library.parent, delete=False) as file:
            file.write(made.read_bytes())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(library)


def compile_objects(
    folder: Path,
    command: list[str],
    variants: dict[str, tuple[str, ...]],
    extra: tuple[str, ...],
    source: Path = SOURCE,
) -> list[str]:
    """Compile each file of ``source``, some of them once for each variant; return the object files in ``folder``."""
    jobs = [
        (name, f"{name}.{variant}", (f"-DVARIANT={variant}", *flags))
        for name in VARIED
        for variant, flags in variants.items()
    ]
    jobs += [(name, name, (f"-DSOURCES={fingerprint(source)}u",)) for name in COMMON]

    def compiled(job: tuple[str, str, tuple[str, ...]]) -> str:
        name, made, flags = job
        made = str(folder / f"{made}.o")
        run([*command, *FLAGS, *extra, *flags, "-c", str(source / name), "-o", made])
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, jobs))


def fingerprint(source: Path = SOURCE) -> int:
    """A number that identifies the sources: ``library.py`` compares it, since a library may be older than they are."""
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(source.iterdir())))


def run(command: list[str]) -> None:
    subprocess.run(command, check=True)
