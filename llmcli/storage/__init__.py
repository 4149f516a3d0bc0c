"""Checkpoints to models and back: safetensors, quantized weights, LoRA, fingerprints, slices for ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.storage.cache_file import may_replace as may_replace
    from llmcli.storage.checkpoint import Checkpoint as Checkpoint
    from llmcli.storage.directions import DIRECTION_SUFFIXES as DIRECTION_SUFFIXES
    from llmcli.storage.directions import Directions as Directions
    from llmcli.storage.directions import read_directions as read_directions
    from llmcli.storage.directions import write_directions as write_directions
    from llmcli.storage.gguf.export import GgufExport as GgufExport
    from llmcli.storage.quantize import Quantization as Quantization
    from llmcli.storage.quantize import quantization_of as quantization_of
    from llmcli.storage.quantized_checkpoint import copy_rest as copy_rest
    from llmcli.storage.quantized_checkpoint import save_quantized as save_quantized
    from llmcli.storage.tensors import weight_files as weight_files

__all__ = [
    "DIRECTION_SUFFIXES",
    "Checkpoint",
    "Directions",
    "GgufExport",
    "Quantization",
    "copy_rest",
    "may_replace",
    "quantization_of",
    "read_directions",
    "save_quantized",
    "weight_files",
    "write_directions",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "may_replace": "cache_file",
        "Checkpoint": "checkpoint",
        "DIRECTION_SUFFIXES": "directions",
        "Directions": "directions",
        "read_directions": "directions",
        "write_directions": "directions",
        "GgufExport": "gguf.export",
        "Quantization": "quantize",
        "quantization_of": "quantize",
        "copy_rest": "quantized_checkpoint",
        "save_quantized": "quantized_checkpoint",
        "weight_files": "tensors",
    },
)
