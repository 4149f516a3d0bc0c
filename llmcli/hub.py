"""A model's name -> a folder on disk: a path, or one of the models that ship with llmcli."""

from __future__ import annotations

from pathlib import Path

from llmcli.errors import LlmcliError

_PACKAGE = Path(__file__).parent
# Installed, the shipped models lie inside the package; in a clone, beside it.
SHIPPED_FOLDERS = (_PACKAGE / "weights", _PACKAGE.parent / "weights")


def shipped() -> dict[str, Path]:
    """The models that came with llmcli, by name."""
    return {
        folder.name: folder
        for weights in reversed(SHIPPED_FOLDERS)
        if weights.is_dir()
        for folder in sorted(weights.iterdir())
        if (folder / "config.json").is_file()
    }


def default_model() -> str:
    """The name of the model that runs when none is asked for. Errors: none was shipped."""
    names = list(shipped())
    if not names:
        raise LlmcliError("no model came with this installation", "name one: -m FOLDER")
    return names[0]


def find(name: str) -> Path:
    """The folder of the model ``name``. Errors: neither a folder nor a shipped model."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if name in shipped():
        return shipped()[name]
    if path.exists():
        raise LlmcliError(f"{name} is a file, not a model folder", "give the folder that holds config.json")
    raise LlmcliError(
        f"there is no model {name}", f"give a folder, or one of: {', '.join(shipped()) or 'none shipped'}"
    )
