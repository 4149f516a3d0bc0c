"""A KV cache as a safetensors file, bound to the model that filled it and to the tokens that were read.

``keys.N`` and ``values.N`` are those of layer N, [K, held, D], of the last positions where a window moved on; ``ids``
are the tokens [length] and ``span`` [1] says how positions were turned (see ``rope.span``). The metadata tell the
``model``'s fingerprint, the ``version`` of this form, and a ``digest`` of all tensors. By that any damage is
found, also where a power failure left half a file: so nobody waits until it is safe on the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing
from llmcli.files.safetensors import WHOLE_NUMBERS, TensorFile, write_tensors
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from llmcli.storage.fingerprint import digest

Fault = Literal["damaged", "version", "dtype", "model"]

FORMAT = "llmcli prompt cache"
VERSION = "1"  # to be raised when what a file or a cache holds changes its meaning
BEGINNING = f'{{"__metadata__":{{"format":"{FORMAT}"'.encode()  # behind the 8 bytes of the header's length


class Unusable(Exception):
    """A file that cannot be gone on from, and why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def may_replace(path: Path) -> bool:
    """Whether nothing is lost with this file: it is empty or begins as ``write_cache`` begins. Errors: OSError."""
    with path.open("rb") as file:
        start = file.read(8 + len(BEGINNING))
    return not start or start[8:] == BEGINNING


def write_cache(path: Path, ids: Sequence[int], cache: KVCache, model: str) -> None:
    """Write what ``cache`` holds of ``ids``; it may hold more. ``model`` is the fingerprint. Errors: OSError.

    The file appears whole or not at all.
    """
    tensors = {"ids": torch.tensor(ids), "span": torch.tensor([cache.span])}
    for layer in range(cache.layers):
        first, keys, values = cache.held(layer)
        for name, part in (("keys", keys), ("values", values)):
            tensors[f"{name}.{layer}"] = part[0, :, : len(ids) - first]
    metadata = {"format": FORMAT, "version": VERSION, "model": model, "digest": digest(tensors)}
    with replacing(path) as temporary:
        write_tensors(temporary, tensors, metadata)


def read_cache(path: Path, model: Transformer, fingerprint: str) -> tuple[list[int], KVCache]:
    """The ids that a file holds, and the cache behind them, on the model's device. Errors: Unusable."""
    try:
        file = TensorFile(path, WHOLE_NUMBERS)
        told = file.metadata
        if told.get("version") != VERSION:
            raise Unusable("version")
        tensors = {name: file.viewed(entry) for name, entry in file.entries.items()}
    except LlmcliError as error:
        raise Unusable("damaged") from error
    if told.get("digest") != digest(tensors):
        raise Unusable("damaged")
    if told.get("model") != fingerprint:
        raise Unusable("model" if tensors["keys.0"].dtype == model.dtype else "dtype")
    # Only what wrote the digest wrote the tensors, for this very model: names and shapes are as they must be.
    ids: list[int] = tensors["ids"].tolist()
    cache = model.new_cache()
    cache.restore(len(ids), int(tensors["span"]), (_layer(tensors, layer) for layer in range(cache.layers)))
    return ids, cache


def _layer(tensors: dict[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values, [1, K, held, D]."""
    return tensors[f"keys.{layer}"].unsqueeze(0), tensors[f"values.{layer}"].unsqueeze(0)
