"""The reference: token ids in, logits out, in plain PyTorch, for every family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.model.device import pick_device as pick_device
    from llmcli.model.device import use_threads as use_threads
    from llmcli.model.transformer import Transformer as Transformer

__all__ = [
    "Transformer",
    "pick_device",
    "use_threads",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "pick_device": "device",
        "use_threads": "device",
        "Transformer": "transformer",
    },
)
