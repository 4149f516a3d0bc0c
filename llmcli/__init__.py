"""llmcli runs a language model on your own machine and shows how it works. Also a library: ``load`` and ``steps``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli import explain as explain
    from llmcli import render as render
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.steps import steps as steps

__all__ = ["__version__", "explain", "load", "render", "steps"]
__version__ = "0.2.0"


def load(name: str, *, offline: bool = False, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Open a model by folder, shipped name or org/name of the hub: its transformer, tokenizer and stop tokens."""
    from llmcli import render
    from llmcli.explain.report import Report
    from llmcli.generation import loaded
    from llmcli.hub import find
    from llmcli.hub.cache import name_of

    Report.to_html = lambda report: render.html(report)  # what notebooks show; imports Rich when called
    folder = find(name, offline=offline)
    return loaded.load(folder, name=name_of(folder), device=device, dtype=dtype)


__getattr__, __dir__ = lazy.exports(__name__, {"steps": "generation.steps"}, submodules=("explain", "render"))
