"""From a model's name to its folder or GGUF file.

A name is a path, that of a model that ships with llmcli, of another program's model, or of one on the Hugging Face Hub.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from llmcli.errors import LlmcliError, did_you_mean
from llmcli.hub import cache, programs
from llmcli.hub.cache import LocalModel, Progress
from llmcli.hub.local import gguf_files_beside as gguf_files_beside
from llmcli.hub.local import is_model_path as is_model_path
from llmcli.hub.local import local_model as local_model
from llmcli.hub.local import shipped as shipped
from llmcli.hub.names import HubName, parse
from llmcli.hub.notes import Note, ignore, note_choice

# The hub's first models, whose short names still circulate.
FIRST_MODELS = (*(f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")), "distilbert/distilgpt2")
_PATH = re.compile(r"[./~\\]|[A-Za-z]:[/\\]|.*[/\\]$|[^/]*/[^/]*/")
_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+(?::[\w.-]+)?)"
    r"(?:/(?:blob|resolve)/[^/?]+(/[^?]+\.gguf))?",
    re.IGNORECASE,
)


def default_model() -> str:
    """Return the name of the shipped model that is used if none is named. Raises LlmcliError if none is shipped."""
    names = list(shipped())
    if not names:
        raise LlmcliError("this installation includes no model", kind="no-shipped-model")
    return names[0]


def find(name: str, *, offline: bool = False, progress: Progress | None = None, note: Note = ignore) -> Path:
    """The folder or GGUF file of the model ``name``, which is downloaded from the hub if necessary, unless ``offline``.

    ``progress`` receives the bytes on disk and the bytes of the whole model; ``note`` receives what the user should
    know about the choice. Raises LlmcliError if there is no such model, if it is not on disk and ``offline``, or if the
    download fails.
    """
    offline = is_offline(offline)
    path = find_here(name, note, offline=offline)
    if path is None:
        hub_name = parse_hub_name(name, offline=offline)
        if offline:
            raise LlmcliError(
                f"{name} is not completely on disk, and nothing is downloaded while offline",
                f"run `llmcli pull {name}` while online, without HF_HUB_OFFLINE",
            )
        path = download(hub_name, progress, note)
    cache.mark_used(path)
    return path


def find_here(name: str, note: Note = ignore, *, offline: bool = False) -> Path | None:
    """The folder or GGUF file of a model that needs no download; None if there is none.

    While ``offline``, a GGUF file is the model that a repo's name means even if the repo may have safetensors.
    """
    path = local_model(name) or programs.find(name, note)
    hub_name = parse(name)
    if path is not None or hub_name is None:
        return path
    for known in _names_on_disk(hub_name):
        path = cache.complete_model(known, any_gguf=offline)
        if path is not None:
            if path.is_file() and hub_name.gguf is None:
                folder = cache.snapshot_of(path) or path.parent
                note_choice(hub_name, path.relative_to(folder).as_posix(), cache.gguf_files(folder), note)
            return path
    return None


def _names_on_disk(name: HubName) -> list[HubName]:
    """The names under which a model may be in the cache: one of the hub's first models has two."""
    full = next((model for model in FIRST_MODELS if model.rpartition("/")[2] == name.repo), None)
    return [name] if full is None else [name, HubName(full, name.revision, name.gguf)]


def name_of(path: Path) -> str:
    """The name of the model in a folder or a GGUF file: as another program or the hub names it, or the path's."""
    return programs.name_of(path) or cache.name_of(path)


def size_of(path: Path) -> int:
    """The bytes of the model in a folder or a GGUF file."""
    return LocalModel(name_of(path), path, "").bytes


def parse_hub_name(name: str, *, offline: bool = False) -> HubName:
    """Parse the name of a model on the hub. Raises LlmcliError if the hub cannot have such a model.

    Only the hub's first models have names without an organization. A name that resembles a known one is mistyped, and
    causes no request; while ``offline``, any unknown one is.
    """
    program = programs.program_of(name)
    if program is not None:
        raise LlmcliError(f"{name} is a model of {program.where}, not of the Hugging Face Hub", "open it without pull")
    hub_name = parse(name)
    short = hub_name is not None and "/" not in hub_name.repo and not _is_first(hub_name)
    if hub_name is None or (short and (offline or _similar(name, closely=True))):
        raise _unknown(name)
    return next((known for known in _names_on_disk(hub_name) if cache.repo_folder(known.repo).is_dir()), hub_name)


def _unknown(name: str) -> LlmcliError:
    """The error for a name that is neither on disk nor one of the hub."""
    kind = "folder" if _PATH.match(name) and not _ADDRESS.match(name) else "model"
    if name.lower().endswith(".gguf") and not _ADDRESS.match(name):
        kind = "file"
    return LlmcliError(
        f"there is no {kind} {name if len(name) <= 200 else f'{name[:200]}…'}",
        _similar(name)
        or f"give a folder, a GGUF file, org/name[@revision] of the Hugging Face Hub, or one of: "
        f"{', '.join(shipped()) or 'none shipped'}",
    )


def _is_first(name: HubName) -> bool:
    """Whether a name without an organization is that of a known model, or of one in the cache."""
    return len(_names_on_disk(name)) > 1 or cache.repo_folder(name.repo).is_dir()


def _similar(name: str, *, closely: bool = False) -> str:
    """A hint with the models whose name, or its part after the organization, resembles ``name``; "" if none does.

    Unless ``closely``, it may also be a part of the model's name.
    """
    address = _ADDRESS.match(name)
    if address:
        return f"did you mean {address[1]}{address[2] or ''}?"
    if name.lower().endswith(".gguf"):
        return did_you_mean(name, gguf_files_beside(name))
    word = re.split("[@:]", name)[0].lower()
    known = [*(model.name for model in on_disk()), *FIRST_MODELS]
    full = {short.lower(): model for model in known for short in (model, model.rpartition("/")[2])}
    similar = get_close_matches(word, full, n=2, cutoff=0.8) or [
        short for short in full if len(word) > 2 and word in short and not closely
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
    cached = sorted(cache.models(), key=lambda model: model.name.lower())
    return [*own, *cached, *programs.models()]


def download(name: HubName, progress: Progress | None = None, note: Note = ignore) -> Path:
    """Download the model's current version from the hub, except for files that are on disk.

    Returns its folder or its GGUF file.
    """
    from llmcli.hub.downloads import download_model

    return download_model(name, progress, note)
