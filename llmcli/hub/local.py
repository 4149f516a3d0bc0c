"""Models that ship with llmcli, and models by their paths: what a path leads to, and why it may not be a model."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from llmcli.errors import LlmcliError
from llmcli.files.formats import other_weights, other_weights_hint, stand_in
from llmcli.files.gguf import first_part, is_gguf
from llmcli.files.names import ADAPTER_WEIGHTS, CONFIG, INDEX, WEIGHTS, weights_among
from llmcli.hub.gguf_names import MOST_NAMED, models_among

_PACKAGE = Path(__file__).parents[1]
# The shipped models are inside an installed package, and next to it in a clone.
SHIPPED_FOLDERS = (_PACKAGE / "weights", _PACKAGE.parent / "weights")


def shipped() -> dict[str, Path]:
    """The folders of the models that ship with llmcli, by name."""
    return {
        folder.name: folder
        for weights in reversed(SHIPPED_FOLDERS)
        if weights.is_dir()
        for folder in sorted(weights.iterdir())
        if (folder / CONFIG).is_file()
    }


def local_model(name: str) -> Path | None:
    """The folder or GGUF file at the path ``name``, or a shipped model's folder; None if there is neither.

    The path may be that of weights in the folder, of a folder with one GGUF file, or of any file of a split GGUF model.
    Raises LlmcliError if it is the path of anything else.
    """
    if not name.strip():
        raise LlmcliError("the model's name is empty", "give a folder, or a name that `llmcli models` lists")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return _in_folder(path.resolve())
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, or an invalid character
        return None
    if name in shipped():
        return shipped()[name]
    return _of_file(path.parent.resolve() / path.name) if exists else None  # a link keeps its name: blobs have none


def is_model_path(name: str) -> bool:
    """Whether ``name`` is the path of a GGUF file or of a folder with a config.json. "", "." and ".." are not."""
    try:
        path = Path(name)
        return bool(name.strip(" .")) and (is_gguf(path) or (path / CONFIG).is_file())
    except (OSError, ValueError):  # too long, or an invalid character
        return False


def gguf_files_beside(path: str) -> list[str]:
    """The paths of the GGUF files in the folder of ``path``, which may be unfinished, written as it is."""
    start = path[: max(path.rfind("/"), path.rfind(os.sep)) + 1]
    with suppress(OSError, RuntimeError, ValueError):
        folder = Path(start or ".").expanduser()
        return sorted(start + found.name for found in folder.iterdir() if found.suffix.lower() == ".gguf")
    return []


def _in_folder(folder: Path) -> Path:
    """The folder, or the only GGUF file in it. Raises LlmcliError if it has no weights that llmcli can read."""
    names = {path.name for path in folder.iterdir()}
    if weights_among(names) is not None or ADAPTER_WEIGHTS in names:
        return folder
    # One folder deeper, some repos have a folder for each quantization.
    found = list(models_among(_gguf_files(folder, "*")))
    found = found or ([] if CONFIG in names else list(models_among(_gguf_files(folder, "*/*"))))
    if len(found) == 1:
        return folder / found[0]
    if found:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise LlmcliError(
            f"{folder} has {len(found)} GGUF files: {', '.join(found[:MOST_NAMED])}{more}",
            f"name one of them, such as {folder / found[0]}",
        )
    if other_weights(names) and not names & {CONFIG, "tokenizer.json"}:
        problem = f"{folder}: the weights are {other_weights(names)}, and llmcli reads only safetensors and GGUF files"
        raise LlmcliError(problem, other_weights_hint(names))
    return folder


def _gguf_files(folder: Path, pattern: str) -> list[str]:
    """The names of the GGUF files in a folder that a pattern matches."""
    found = (path for path in folder.glob(pattern) if path.suffix.lower() == ".gguf" and path.is_file())
    return [path.relative_to(folder).as_posix() for path in found]


def _of_file(path: Path) -> Path:
    """The model that a file is, or is part of. Raises LlmcliError, which says what else the file is."""
    if not path.is_file():
        raise LlmcliError(f"{path}: not a regular file", "give a model folder or a GGUF file")
    if path.name in (WEIGHTS, INDEX, ADAPTER_WEIGHTS) or (
        path.suffix == ".safetensors" and any((path.parent / name).is_file() for name in (INDEX, CONFIG))
    ):
        return path.parent
    if path.suffix.lower() == ".gguf" or is_gguf(path):
        return first_part(path)
    if other_weights([path.name]):
        problem = (
            f"{path}: the weights are {other_weights([path.name])}, and llmcli reads only safetensors and GGUF files"
        )
        raise LlmcliError(problem, other_weights_hint([path.name]))
    raise stand_in(path) or LlmcliError(
        f"{path} is neither a model folder nor a GGUF file", "give the folder that contains config.json"
    )
