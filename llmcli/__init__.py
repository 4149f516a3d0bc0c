"""llmcli runs a language model on your own machine and shows how it works. Also a library: ``load`` and ``steps``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.steps import steps as steps

__all__ = ["__version__", "load", "steps"]
__version__ = "0.2.0"


def load(name: str, *, offline: bool = False, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Open a model by folder, shipped name or org/name of the hub: its transformer, tokenizer and stop tokens."""
    from llmcli.generation import loaded
    from llmcli.hub import find
    from llmcli.hub.cache import name_of

    folder = find(name, offline=offline)
    return loaded.load(folder, name=name_of(folder), device=device, dtype=dtype)


def __getattr__(name: str) -> object:
    # ``steps`` needs torch, which takes a second to import: not before somebody asks for it.
    if name == "steps":
        from llmcli.generation.steps import steps

        return steps
    raise AttributeError(f"module 'llmcli' has no attribute {name!r}")
