"""Models that other programs keep on this disk: ollama, llama.cpp and LM Studio.

Their names begin with the program's, such as "lmstudio:file.gguf". Only names that are found on the disk
are opened, so none leads out of a program's folder; folders are searched to a fixed depth, so links cannot form a loop.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from llmcli.errors import LlmcliError, did_you_mean
from llmcli.files.gguf import part_names
from llmcli.files.json import read_json
from llmcli.files.reading import read_file
from llmcli.hub import cache, ollama
from llmcli.hub.cache import LocalModel
from llmcli.hub.files import is_complete
from llmcli.hub.gguf_names import label_of, models_among
from llmcli.hub.notes import Note, ignore

MAX_POINTER = 2**12  # bytes of a path

_CACHED = re.compile(
    r"models--(.+?)--(.+?)/snapshots/[^/]+/"
)  # llama.cpp keeps newer downloads as the hub's cache does


@dataclass(frozen=True)
class Program:
    """A program with models in ``folders`` of its own; ``removal`` is how to remove one of them."""

    prefix: str
    where: str
    folders: Callable[[], list[Path]]
    models: Callable[[], Iterator[LocalModel]]
    removal: str


def _llama_cpp() -> Iterator[LocalModel]:
    """The models in llama.cpp's cache."""
    for folder in _llama_cpp_folders():
        hub = [] if folder == cache.cache_folder() else ["models--*/snapshots/*/*", "models--*/snapshots/*/*/*"]
        yield from _gguf_models(LLAMA_CPP, folder, ["*", *hub])


def _llama_cpp_folders() -> list[Path]:
    """llama.cpp's cache: LLAMA_CACHE, or the platform's folder for caches."""
    if sys.platform == "win32":
        usual = os.path.join(os.environ.get("LOCALAPPDATA") or "~/AppData/Local", "llama.cpp")  # noqa: PTH118
    elif sys.platform == "darwin":
        usual = "~/Library/Caches/llama.cpp"
    else:
        usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "llama.cpp")  # noqa: PTH118
    return [Path(os.environ.get("LLAMA_CACHE") or usual).expanduser().resolve()]


def _lm_studio() -> Iterator[LocalModel]:
    """The models in LM Studio's folders, publisher/name/file.gguf or publisher/name with safetensors.

    A model is named by its file alone, if no other file has that name.
    """
    found: list[LocalModel] = []
    for folder in _lm_studio_folders():
        found += _gguf_models(LM_STUDIO, folder, ["*/*/*", "*/*/*/*"])
        for config in sorted(folder.glob("*/*/config.json")):
            if is_complete(config.parent, without_tokenizer=True):
                name = f"{LM_STUDIO.prefix}{config.parent.relative_to(folder).as_posix()}"
                found.append(LocalModel(name, config.parent, LM_STUDIO.where))
    count = Counter(model.folder.name for model in found)
    for model in found:
        short = f"{LM_STUDIO.prefix}{model.folder.name}"
        yield replace(model, name=short) if count[model.folder.name] == 1 else model


def _lm_studio_folders() -> list[Path]:
    """The folders where LM Studio keeps models: of its current home, of older ones, and one chosen in its settings."""
    user = Path("~").expanduser()
    homes = [user / ".lmstudio", user / ".cache" / "lm-studio"]
    with suppress(OSError, ValueError, LlmcliError):
        pointed = read_file(user / ".lmstudio-home-pointer", MAX_POINTER).decode().strip()
        homes = [Path(pointed), *homes] if pointed else homes
    folders = []
    for home in homes:
        with suppress(LlmcliError):
            chosen = read_json(home / "settings.json").get("downloadsFolder")
            folders += [Path(chosen)] if isinstance(chosen, str) and chosen else []
        folders.append(home / "models")
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def _gguf_models(program: Program, folder: Path, patterns: Iterable[str]) -> Iterator[LocalModel]:
    """The complete GGUF models in a folder."""
    found = (path for pattern in patterns for path in folder.glob(pattern))
    names = {path.relative_to(folder).as_posix() for path in found if path.suffix.lower() == ".gguf" and path.is_file()}
    for first, parts in models_among(names).items():
        if parts == part_names(first):
            name = program.prefix + _CACHED.sub(r"\1/\2/", first)
            yield LocalModel(name, folder / first, program.where, label=label_of(first))


OLLAMA = Program(ollama.PREFIX, ollama.WHERE, ollama.folders, ollama.models, "remove it with `ollama rm`")
LLAMA_CPP = Program("llama.cpp:", "llama.cpp", _llama_cpp_folders, _llama_cpp, "delete the file yourself")
LM_STUDIO = Program("lmstudio:", "LM Studio", _lm_studio_folders, _lm_studio, "remove it in LM Studio")
PROGRAMS = (OLLAMA, LLAMA_CPP, LM_STUDIO)


def program_of(name: str) -> Program | None:
    """The program that a model's name begins with; None if it begins with none."""
    return next((program for program in PROGRAMS if name.lower().startswith(program.prefix)), None)


def find(name: str, note: Note = ignore) -> Path | None:
    """The folder or the GGUF file of another program's model; None if the name does not begin with a program.

    Raises LlmcliError if the program has no such model.
    """
    program = program_of(name)
    if program is OLLAMA:
        return ollama.find(name, note)
    if program is None:
        return None
    found: dict[str, Path] = {}
    for model in _listed(program):
        for root in program.folders():  # a model is found by its path in the program's folder, too
            if model.folder.is_relative_to(root):
                found[program.prefix + model.folder.relative_to(root).as_posix()] = model.folder
        found[model.name] = model.folder
    if name not in found:
        raise LlmcliError(
            f"there is no model {name} in the folder of {program.where}",
            did_you_mean(name, list(found)) or "`llmcli models` lists the models that are there",
        )
    return found[name]


def models() -> Iterator[LocalModel]:
    """The models of all programs, each once."""
    for program in PROGRAMS:
        yield from _listed(program)


def keeper_of(path: Path) -> Program | None:
    """The program in whose folder a path is; None if it is in none."""
    return next((one for one in PROGRAMS if any(path.is_relative_to(folder) for folder in one.folders())), None)


def name_of(path: Path) -> str | None:
    """The name of a program's model by its folder or GGUF file; None if it is none."""
    program = keeper_of(path)
    models = () if program is None else _listed(program)
    return next((model.name for model in models if model.folder == path), None)


def _listed(program: Program) -> Iterator[LocalModel]:
    """The models of a program, each name once: a folder may be searched twice."""
    seen = set()
    with suppress(OSError):  # a folder that cannot be read
        for model in program.models():
            if model.name not in seen:
                seen.add(model.name)
                yield model
