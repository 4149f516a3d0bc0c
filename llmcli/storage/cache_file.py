"""Prompt cache files: a KV cache as safetensors, with the tokens it holds and the fingerprint of its model.

``keys.N`` and ``values.N`` are those of layer N, [K, held, D], only the last positions if the layer has a window.
``ids`` [length] are the tokens; ``span`` [1] says by which angles the keys were rotated (see ``positions.span``). The
metadata has the ``model``'s fingerprint, the ``version`` of this format and a ``digest`` of all tensors. The digest
detects any damage, including a file truncated by a power failure, so writing need not wait for the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing
from llmcli.files.safetensors import INTEGERS, TensorFile, write_tensors
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from llmcli.storage.fingerprint import digest
from llmcli.storage.finite import is_finite

Fault = Literal["damaged", "version", "dtype", "model"]

FORMAT = "llmcli prompt cache"
VERSION = "1"  # to be changed whenever the meaning of a file's contents changes
MAGIC = f'{{"__metadata__":{{"format":"{FORMAT}"'.encode()  # after the 8 bytes of the header's length


class Unusable(Exception):
    """Raised for a file that cannot be resumed from; ``fault`` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def may_replace(path: Path) -> bool:
    """Whether overwriting the file loses nothing: it is empty, or ``write_cache`` wrote it. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(8 + len(MAGIC))
    return not start or start[8:] == MAGIC


def write_cache(path: Path, ids: Sequence[int], cache: KVCache, model: str) -> None:
    """Write the part of ``cache`` that holds ``ids``; ``model`` is the fingerprint.

    The file is written completely or not at all. Raises LlmcliError if it cannot be written.
    """
    tensors = {"ids": torch.tensor(ids), "span": torch.tensor([cache.span])}
    for layer in range(cache.layers):
        first, keys, values = cache.held(layer)
        for name, part in (("keys", keys), ("values", values)):
            tensors[f"{name}.{layer}"] = part[0, :, : len(ids) - first]
    metadata = {"format": FORMAT, "version": VERSION, "model": model, "digest": digest(tensors)}
    with replacing(path, durable=False) as file:
        write_tensors(file, tensors, metadata)


def read_cache(path: Path, model: Transformer, fingerprint: str) -> tuple[list[int], KVCache]:
    """Read the ids in a file, and the cache that holds them, on the model's device. Raises ``Unusable``."""
    try:
        file = TensorFile(path, INTEGERS)
        metadata = file.metadata
        if metadata.get("version") != VERSION:
            raise Unusable("version")
        tensors = {name: file.viewed(entry) for name, entry in file.entries.items()}
    except LlmcliError as error:
        raise Unusable("damaged") from error
    if metadata.get("digest") != digest(tensors):
        raise Unusable("damaged")
    if metadata.get("model") != fingerprint:
        dtypes = {tensor.dtype for name, tensor in tensors.items() if name.startswith("keys.")}
        raise Unusable("model" if dtypes == {model.new_cache().dtype} else "dtype")
    cache = model.new_cache()
    if not _fits(tensors, model, cache):  # a digest detects damage, but anybody can compute one
        raise Unusable("damaged")
    ids: list[int] = tensors["ids"].tolist()
    cache.restore(len(ids), int(tensors["span"]), (_layer(tensors, layer) for layer in range(cache.layers)))
    return ids, cache


def _fits(tensors: Mapping[str, Tensor], model: Transformer, cache: KVCache) -> bool:
    """Whether the tensors have the names, dtypes and shapes that ``write_cache`` gives them, and finite values."""
    names = {"ids", "span", *(f"{part}.{layer}" for layer in range(cache.layers) for part in ("keys", "values"))}
    if tensors.keys() != names:
        return False
    ids, span = tensors["ids"], tensors["span"]
    if (ids.dtype, ids.dim(), span.dtype, span.shape) != (torch.int64, 1, torch.int64, (1,)):
        return False
    for layer in range(cache.layers):
        keys, values, (_, empty, _) = tensors[f"keys.{layer}"], tensors[f"values.{layer}"], cache.held(layer)
        windowed = model.config.layer_type(layer) == "sliding_attention"
        least = min(len(ids), (model.config.sliding_window or 0) - 1) if windowed else len(ids)
        if keys.dim() != 3 or keys.shape != values.shape or keys.shape[::2] != empty.shape[1::2]:
            return False
        if not least <= keys.shape[1] <= len(ids) or {keys.dtype, values.dtype} != {cache.dtype}:
            return False
        if not (is_finite(keys) and is_finite(values)):  # attention kernels would turn rows of NaN into zeros
            return False
    return True


def _layer(tensors: dict[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer, [1, K, held, D]."""
    return tensors[f"keys.{layer}"].unsqueeze(0), tensors[f"values.{layer}"].unsqueeze(0)
