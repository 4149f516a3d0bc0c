"""A model's name -> a folder on disk: a path, a model that ships with llmcli, or one of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path

from llmcli.errors import LlmcliError
from llmcli.files.names import CONFIG, INDEX, WEIGHTS
from llmcli.hub import cache
from llmcli.hub.cache import OnDisk, Progress
from llmcli.hub.names import HubName, parse

_PACKAGE = Path(__file__).parents[1]
# Installed, the shipped models lie inside the package; in a clone, beside it.
SHIPPED_FOLDERS = (_PACKAGE / "weights", _PACKAGE.parent / "weights")


def shipped() -> dict[str, Path]:
    """The models that came with llmcli, by name."""
    return {
        folder.name: folder
        for weights in reversed(SHIPPED_FOLDERS)
        if weights.is_dir()
        for folder in sorted(weights.iterdir())
        if (folder / CONFIG).is_file()
    }


def default_model() -> str:
    """The name of the model that runs when none is asked for. Errors: none was shipped."""
    names = list(shipped())
    if not names:
        raise LlmcliError("this installation includes no model", kind="no-shipped-model")
    return names[0]


def find(name: str, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The folder of the model ``name``; one of the hub that is not on disk is downloaded, unless ``offline``.

    ``progress`` is told the bytes that are there and the bytes of the whole model.
    Errors: no such model; it would have to be downloaded; whatever goes wrong with that.
    """
    folder = find_here(name)
    if folder is None:
        hub_name = of_the_hub(name)
        if is_offline(offline):
            raise LlmcliError(
                f"{name} is not complete on disk, and offline nothing is downloaded",
                f"run `llmcli pull {name}` while online, without HF_HUB_OFFLINE",
            )
        folder = download(hub_name, progress)
    cache.mark_used(folder)
    return folder


def find_here(name: str) -> Path | None:
    """The folder of the model ``name`` where it needs no download: a local folder, shipped, or all in the cache."""
    folder = local_folder(name)
    if folder is None and (hub_name := parse(name)):
        folder = cache.complete_snapshot(hub_name)
    return folder


def local_folder(name: str) -> Path | None:
    """The folder that ``name`` is the path of, itself or by its weights, or that of a shipped model.

    Errors: a file that is no model.
    """
    if not name.strip():
        raise LlmcliError("the model's name is empty", "give a folder, or a name of `llmcli models`")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path.resolve()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):  # too long; no such user; a character that no path has
        return None
    if name in shipped():
        return shipped()[name]
    if exists and path.name in (WEIGHTS, INDEX):
        return path.parent.resolve()
    if exists:
        raise LlmcliError(f"{name} is a file, not a model folder", "give the folder that holds config.json")
    return None


def of_the_hub(name: str) -> HubName:
    """``name`` taken apart. Errors: no model of the hub can have it."""
    hub_name = parse(name)
    # A name without an organisation is one of the hub's first models; a mistyped one should ask nobody.
    if hub_name is None or ("/" not in hub_name.repo and not cache.repo_folder(hub_name.repo).is_dir()):
        shown = name if len(name) <= 200 else f"{name[:200]}…"
        raise LlmcliError(
            f"there is no model {shown}",
            f"give a folder, org/name[@revision] of the Hugging Face Hub, or one of: "
            f"{', '.join(shipped()) or 'none shipped'}",
        )
    return hub_name


def is_offline(asked: bool) -> bool:
    """Whether the network is barred, by the user or by the variables that huggingface_hub knows."""
    variable = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return asked or variable.upper() in ("1", "ON", "YES", "TRUE")


def on_disk() -> list[OnDisk]:
    """The models that can run without a download, and those of the cache that a download left incomplete."""
    own = [OnDisk(name, folder, "shipped") for name, folder in sorted(shipped().items())]
    return own + sorted(cache.models(), key=lambda model: model.name.lower())


def download(name: HubName, progress: Progress | None = None) -> Path:
    """The folder of the model ``name`` as the hub has it now; what is on disk already is not fetched again."""
    from llmcli.hub.fetch import fetch

    return fetch(name, progress)
