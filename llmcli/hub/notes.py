"""What the search for a model reports besides its folder, as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmcli.hub.gguf_names import listed, models_among, name_among
from llmcli.hub.names import HubName

Note = Callable[[str], None]


def ignore(text: str) -> None:
    """Report nothing."""


def note_choice(name: HubName, chosen: str, names: Iterable[str], note: Note) -> None:
    """Report which GGUF file was chosen, if there are several."""
    found = models_among(names)
    if len(found) > 1:
        others = listed(file for file in found if file != chosen)
        note(f"{name}: using {name_among(chosen, found)}; for another file, add a colon and one of: {others}")
