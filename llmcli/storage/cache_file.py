"""Prompt cache files: a KV cache as safetensors, with the tokens it holds and the fingerprint of its model.

``keys.N`` and ``values.N`` are those of layer N, [K, held, D], only the last positions if the layer has a window.
``state.N.M`` is part M of the state of a recurrent layer N.
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
from llmcli.model.config import ModelConfig
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

    Of a model with recurrent layers, it is the longest part without the last token whose state the cache still has:
    the last token is always read again. The file is written completely or not at all. Raises LlmcliError if it cannot
    be written.
    """
    if cache.recurrent:
        cache = cache.copy()
        cache.truncate(len(ids) - 1)
        ids = ids[: cache.length]
    tensors = {"ids": torch.tensor(ids, dtype=torch.int64), "span": torch.tensor([cache.span])}
    for layer in cache.attending:
        first, keys, values = cache.held(layer)
        for name, part in (("keys", keys), ("values", values)):
            tensors[f"{name}.{layer}"] = part[0, :, : len(ids) - first]
    for layer in cache.recurrent:
        for number, part in enumerate(cache.state(layer) or ()):
            tensors[f"state.{layer}.{number}"] = part[0]
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
    held = {
        layer: (tensors[f"keys.{layer}"].unsqueeze(0), tensors[f"values.{layer}"].unsqueeze(0))
        for layer in cache.attending
    }
    states = {
        layer: tuple(tensors[name].unsqueeze(0).to(model.device) for name in _state(model.config, layer))
        for layer in (cache.recurrent if ids else ())
    }
    cache.restore(len(ids), int(tensors["span"]), held, states)
    return ids, cache


def _state(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the parts of a recurrent layer's state."""
    shapes = () if config.mixer is None else config.mixer.state_shapes
    return {f"state.{layer}.{number}": shape for number, shape in enumerate(shapes)}


def _fits(tensors: Mapping[str, Tensor], model: Transformer, cache: KVCache) -> bool:
    """Whether the tensors have the names, dtypes and shapes that ``write_cache`` gives them, and finite values."""
    ids, span = tensors.get("ids"), tensors.get("span")
    if ids is None or span is None:
        return False
    if (ids.dtype, ids.dim(), span.dtype, span.shape) != (torch.int64, 1, torch.int64, (1,)):
        return False
    names = {"ids", "span", *(f"{part}.{layer}" for layer in cache.attending for part in ("keys", "values"))}
    states: dict[str, tuple[int, ...]] = {}
    for layer in cache.recurrent if len(ids) else ():
        states |= _state(model.config, layer)
    if tensors.keys() != names | states.keys():
        return False
    for name, shape in states.items():
        part = tensors[name]
        if part.shape != shape or part.dtype != torch.float32 or not is_finite(part):
            return False
    return all(_layer_fits(tensors, model.config, cache, layer) for layer in cache.attending)


def _layer_fits(tensors: Mapping[str, Tensor], config: ModelConfig, cache: KVCache, layer: int) -> bool:
    """The part of ``_fits`` that is about the keys and values of one layer."""
    count = len(tensors["ids"])
    keys, values = tensors[f"keys.{layer}"], tensors[f"values.{layer}"]
    windowed = config.layer_type(layer) == "sliding_attention"
    least = min(count, (config.sliding_window or 0) - 1) if windowed else count
    if keys.dim() != 3 or not least <= keys.shape[1] <= count:
        return False
    heads, *widths = config.cached(layer)
    if any(held.shape != (heads, keys.shape[1], width) for held, width in zip((keys, values), widths, strict=True)):
        return False
    if {keys.dtype, values.dtype} != {cache.dtype}:
        return False
    return is_finite(keys) and is_finite(values)  # attention kernels would turn rows of NaN into zeros
