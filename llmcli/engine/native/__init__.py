"""Decoding on a CPU in C: one call computes a step of up to 16 tokens, of one text or of several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.engine.native.engine import NativeProducts as NativeProducts
    from llmcli.engine.native.engine import native_products as native_products
    from llmcli.engine.native.library import variant as variant
    from llmcli.engine.native.matrices import MAX_ROWS as MAX_ROWS
    from llmcli.engine.native.step import NativeStep as NativeStep
    from llmcli.engine.native.step import native_step as native_step

__all__ = [
    "MAX_ROWS",
    "NativeProducts",
    "NativeStep",
    "native_products",
    "native_step",
    "variant",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "MAX_ROWS": "matrices",
        "NativeProducts": "engine",
        "NativeStep": "step",
        "native_products": "engine",
        "native_step": "step",
        "variant": "library",
    },
)
