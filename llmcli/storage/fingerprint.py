"""A model's fingerprint: a short text that depends on every bit of its weights and every number of its config.

A cryptographic hash reads one or two gigabytes per second, a fraction of the memory bandwidth, so hashing the weights
would take as long as several decoding steps. Instead, the bits are summed as integers by rows and by columns, and the
sums are hashed: a changed word changes the sum of its row, and swapping two words changes the sums of their rows or
their columns. This detects accidental changes, not deliberate forgery.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from llmcli.model.transformer import Transformer

ROW = 2**12  # bytes per row
PIECE = 2**22  # bytes summed at a time: they stay in the processor's cache between the two sums
WORD = 8  # bytes per integer; sums wrap around


def fingerprint(model: Transformer) -> str:
    """64 hexadecimal digits that identify a model: any change gives others, and every device gives the same.

    They depend on the weights in memory, with adapters merged and quantization applied. A field of the config that has
    its default does not count, so that a version of llmcli with more fields gives the same fingerprints.
    """
    config = json.dumps(_chosen(model.config), default=sorted)  # sets have no order
    return hashlib.sha256((config + digest(model.state_dict())).encode()).hexdigest()


def _chosen(value: Any) -> Any:
    """The fields of a config, and of configs in it, that differ from their defaults."""
    if not is_dataclass(value):
        return value
    values = {field.name: (getattr(value, field.name), field.default) for field in fields(value)}
    return {name: _chosen(value) for name, (value, default) in values.items() if value != default}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """64 hexadecimal digits of the tensors' names, dtypes, shapes and bits, independent of their order."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        bits = tensor.detach().contiguous().view(-1).view(torch.uint8)
        whole = len(bits) // ROW * ROW
        columns = torch.zeros(ROW // WORD, dtype=torch.int64, device=bits.device)
        for piece in torch.split(bits[:whole], PIECE):
            # Mapped weights may start in the middle of a word.
            aligned = piece if piece.storage_offset() % WORD == 0 else piece.clone()
            words = aligned.view(torch.int64).view(-1, ROW // WORD)
            columns += words.sum(0)
            sha.update(_bytes(words.sum(1)))
        sha.update(_bytes(columns))
        sha.update(_bytes(bits[whole:]))
    return sha.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    array: bytes = tensor.cpu().numpy().tobytes()
    return array
