"""From a model's name to its folder: a path, a model that ships with llmcli, or a model of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from llmcli.errors import LlmcliError
from llmcli.files.formats import other_weights, other_weights_hint, stand_in
from llmcli.files.gguf import is_gguf
from llmcli.files.names import CONFIG, INDEX, WEIGHTS
from llmcli.hub import cache
from llmcli.hub.cache import LocalModel, Progress
from llmcli.hub.names import HubName, parse

_PACKAGE = Path(__file__).parents[1]
# The shipped models are inside an installed package, and next to it in a clone.
SHIPPED_FOLDERS = (_PACKAGE / "weights", _PACKAGE.parent / "weights")

# The hub's first models, whose short names still circulate.
FIRST_MODELS = (*(f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")), "distilbert/distilgpt2")
_PATH = re.compile(r"[./~\\]|[A-Za-z]:[/\\]|.*[/\\]$|[^/]*/[^/]*/")
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")


def shipped() -> dict[str, Path]:
    """The folders of the models that ship with llmcli, by name."""
    return {
        folder.name: folder
        for weights in reversed(SHIPPED_FOLDERS)
        if weights.is_dir()
        for folder in sorted(weights.iterdir())
        if (folder / CONFIG).is_file()
    }


def default_model() -> str:
    """Return the name of the shipped model that is used if none is named. Raises LlmcliError if none is shipped."""
    names = list(shipped())
    if not names:
        raise LlmcliError("this installation includes no model", kind="no-shipped-model")
    return names[0]


def find(name: str, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The folder of the model ``name``. A model of the hub is downloaded if it is not on disk, unless ``offline``.

    ``progress`` receives the bytes on disk and the bytes of the whole model. Raises LlmcliError if there is no such
    model, if it is not on disk and ``offline``, or if the download fails.
    """
    folder = find_here(name)
    if folder is None:
        hub_name = parse_hub_name(name)
        if is_offline(offline):
            raise LlmcliError(
                f"{name} is not completely on disk, and nothing is downloaded while offline",
                f"run `llmcli pull {name}` while online, without HF_HUB_OFFLINE",
            )
        folder = download(hub_name, progress)
    cache.mark_used(folder)
    return folder


def find_here(name: str) -> Path | None:
    """The folder of a model that needs no download: a local folder, a shipped model, or a complete one in the cache."""
    folder = local_folder(name)
    if folder is None and (hub_name := parse(name)):
        folder = cache.complete_snapshot(hub_name)
    return folder


def local_folder(name: str) -> Path | None:
    """The folder that ``name`` is the path of, or the path of its weights, or a shipped model's folder; else None.

    A GGUF file is its own folder.
    Raises LlmcliError if ``name`` is the path of any other file.
    """
    if not name.strip():
        raise LlmcliError("the model's name is empty", "give a folder, or a name that `llmcli models` lists")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return _model_folder(path.resolve())
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, or an invalid character
        return None
    if name in shipped():
        return shipped()[name]
    if exists and path.name in (WEIGHTS, INDEX):
        return path.parent.resolve()
    if exists and (path.suffix.lower() == ".gguf" or is_gguf(path)):
        return path.resolve()
    if exists:
        if other_weights([path.name]):
            raise _not_safetensors(path, [path.name])
        raise stand_in(path) or LlmcliError(
            f"{name} is neither a model folder nor a GGUF file", "give the folder that contains config.json"
        )
    return None


def _model_folder(folder: Path) -> Path:
    """The folder. Raises LlmcliError if it contains only weights that llmcli cannot read."""
    names = {path.name for path in folder.iterdir()}
    if other_weights(names) and not names & {CONFIG, "tokenizer.json"}:
        raise _not_safetensors(folder, names)
    return folder


def _not_safetensors(path: Path, names: Iterable[str]) -> LlmcliError:
    message = f"{path}: the weights are {other_weights(names)}, and llmcli reads only safetensors and GGUF files"
    return LlmcliError(message, other_weights_hint(names))


def parse_hub_name(name: str) -> HubName:
    """Parse the name of a model on the hub. Raises LlmcliError if the hub cannot have such a model."""
    hub_name = parse(name)
    # Only the hub's first models have names without an organization: a mistyped name should cause no request.
    if hub_name is None or ("/" not in hub_name.repo and not cache.repo_folder(hub_name.repo).is_dir()):
        shown = name if len(name) <= 200 else f"{name[:200]}…"
        kind = "folder" if _PATH.match(name) and not _ADDRESS.match(name) else "model"
        raise LlmcliError(
            f"there is no {kind} {shown}",
            _similar(name)
            or f"give a folder, org/name[@revision] of the Hugging Face Hub, or one of: "
            f"{', '.join(shipped()) or 'none shipped'}",
        )
    return hub_name


def _similar(name: str) -> str:
    """A hint with the models whose name, or its part after the organization, resembles ``name``; "" if none does."""
    address = _ADDRESS.match(name)
    if address:
        return f"did you mean {address[1]}?"
    word = name.partition("@")[0].lower()
    known = [*(model.name for model in on_disk()), *FIRST_MODELS]
    full = {short.lower(): model for model in known for short in (model, model.rpartition("/")[2])}
    similar = get_close_matches(word, full, n=2, cutoff=0.8) or [
        short for short in full if len(word) > 2 and word in short
    ]
    near = list(dict.fromkeys(full[short] for short in similar))[:2]
    return f"did you mean {' or '.join(near)}?" if near else ""


def is_offline(requested: bool) -> bool:
    """Whether downloads are forbidden, by the user or by the environment variables of huggingface_hub."""
    variable = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return requested or variable.upper() in ("1", "ON", "YES", "TRUE")


def on_disk() -> list[LocalModel]:
    """The models on disk, including those in the cache whose download is incomplete."""
    own = [LocalModel(name, folder, "shipped") for name, folder in sorted(shipped().items())]
    return own + sorted(cache.models(), key=lambda model: model.name.lower())


def download(name: HubName, progress: Progress | None = None) -> Path:
    """Download the model's current version from the hub, except for files that are on disk, and return its folder."""
    from llmcli.hub.downloads import download_model

    return download_model(name, progress)
