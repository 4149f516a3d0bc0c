"""What a model is, in one short text: every bit of its weights and every number of its config decide it.

A cryptographic hash reads a gigabyte or two a second, a fraction of what memory gives, and reading weights is all
that a step costs. So the bits are first summed as whole numbers, by rows and by columns, and the sums hashed: a
changed word changes the sum of its row, two that change places those of their rows or of their columns. This finds
what happens to files and models, not what somebody makes up to deceive.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from llmcli.model.transformer import Transformer

ROW = 2**12  # bytes that are summed together
PIECE = 2**22  # bytes read at a time: what a processor's cache holds between one sum and the other
WORD = 8  # bytes of a whole number; sums wrap around


def fingerprint(model: Transformer) -> str:
    """64 hexadecimal digits that no two models share, nor one model before and after any change; on every device alike.

    It is that of the weights as they lie in memory, merged or rounded as they may be.
    """
    config = json.dumps(asdict(model.config), default=sorted)  # of sets: their order is their own
    return hashlib.sha256((config + digest(model.state_dict())).encode()).hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """64 hexadecimal digits for the tensors' names, dtypes, shapes and bits, in whatever order they come."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        bits = tensor.detach().contiguous().view(-1).view(torch.uint8)
        whole = len(bits) // ROW * ROW
        columns = torch.zeros(ROW // WORD, dtype=torch.int64, device=bits.device)
        for piece in torch.split(bits[:whole], PIECE):
            # Where the weights are mapped they may begin between two words.
            aligned = piece if piece.storage_offset() % WORD == 0 else piece.clone()
            words = aligned.view(torch.int64).view(-1, ROW // WORD)
            columns += words.sum(0)
            found.update(_bytes(words.sum(1)))
        found.update(_bytes(columns))
        found.update(_bytes(bits[whole:]))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    array: bytes = tensor.cpu().numpy().tobytes()
    return array
