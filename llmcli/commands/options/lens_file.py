"""``--tuned`` and ``--jacobian``: fitted lenses, and the files where they are saved."""

from __future__ import annotations

import os
from pathlib import Path

from llmcli import explain, generation
from llmcli.commands.shell.config_file import config_folder
from llmcli.errors import LlmcliError, usage_error

KINDS: tuple[explain.LensKind, ...] = ("tuned", "jacobian")


def chosen_kind(tuned: bool, jacobian: bool) -> explain.LensKind | None:
    """Return the lens that the flags choose, or None for the plain one. Raises LlmcliError if both are set."""
    if tuned and jacobian:
        raise usage_error("--tuned and --jacobian cannot be combined", "give one of them")
    return "tuned" if tuned else "jacobian" if jacobian else None


def saved_lens(loaded: generation.LoadedModel, kind: explain.LensKind) -> explain.FittedLens:
    """Read the lens that fit-lens saved. Raises LlmcliError if there is none, or it is another model's."""
    for path in (_beside(loaded, kind), _elsewhere(loaded, kind)):
        if path.is_file():
            return explain.read_lens(path, loaded.model)
    raise LlmcliError(f"no {kind} lens has been fitted to {loaded.name}", f"run llmcli fit-lens {kind} TEXTFILE")


def save_lens(loaded: generation.LoadedModel, lens: explain.FittedLens) -> Path:
    """Write the lens beside the model, or if that is not possible into llmcli's folder; return the path."""
    beside = _beside(loaded, lens.kind)
    writable = os.access(beside.parent if beside.parent.exists() else beside.parent.parent, os.W_OK)
    path = beside if writable else _elsewhere(loaded, lens.kind)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlmcliError(f"{path.parent}: cannot be made: {error.strerror or error}", "check its owner") from error
    explain.write_lens(path, lens, loaded.model)
    return path


def _beside(loaded: generation.LoadedModel, kind: explain.LensKind) -> Path:
    place = loaded.adapter or loaded.folder
    folder = place / "lenses" if place.is_dir() else place.with_name(f"{place.name}.lenses")
    return folder / f"{kind}.safetensors"


def _elsewhere(loaded: generation.LoadedModel, kind: explain.LensKind) -> Path:
    from llmcli.storage.fingerprint import fingerprint

    return config_folder() / "lenses" / f"{fingerprint(loaded.model)}-{kind}.safetensors"
