"""Fitted lenses: an affine map for each layer, applied before the final norm and the head; and the files they are in.

A file is safetensors: ``matrices`` [L, C, C] and ``biases`` [L, C] in fp32. Its metadata has the ``kind``, the
fingerprint of the ``model``, the ``text``'s hash, and how it was fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing
from llmcli.files.safetensors import TensorFile, write_tensors
from llmcli.model.transformer import Transformer
from llmcli.storage.fingerprint import fingerprint
from llmcli.storage.finite import is_finite

LensKind = Literal["tuned", "jacobian"]
FitProgress = Callable[[int, int], None]  # the steps done and their total
FORMAT = "llmcli lens"
VERSION = "1"  # to be changed whenever the meaning of a file's contents changes


@dataclass(frozen=True, eq=False)
class FittedLens:
    """A map for the embedding (number 0) and for every layer except the last, into the basis of the last.

    ``matrices`` [L, C, C], ``biases`` [L, C], fp32; ``notes`` say how they were fitted.
    """

    kind: LensKind
    matrices: Tensor
    biases: Tensor
    notes: Mapping[str, str] = field(default_factory=dict)

    def transport(self, number: int, x: Tensor) -> Tensor:
        """The residual stream x [..., C] after ``number`` layers, in the last layer's basis: A x + b.

        After the last layer it is x itself.
        """
        if number == len(self.matrices):
            return x
        return x.float() @ self.matrices[number].T.to(x.device) + self.biases[number].to(x.device)


def require_finite(lens: FittedLens) -> FittedLens:
    """Return the lens. Raises LlmcliError if it has numbers that are NaN or infinite."""
    if not (lens.matrices.isfinite().all() and lens.biases.isfinite().all()):
        raise LlmcliError("the lens has numbers that are NaN or infinite", kind="logits-not-finite")
    return lens


def write_lens(path: Path, lens: FittedLens, model: Transformer) -> None:
    """Write the lens of ``model`` to a file, completely or not at all. Raises LlmcliError if that fails."""
    metadata = {**lens.notes, "format": FORMAT, "version": VERSION, "kind": lens.kind, "model": fingerprint(model)}
    with replacing(path) as file:
        write_tensors(file, {"matrices": lens.matrices, "biases": lens.biases}, metadata)


def read_lens(path: Path, model: Transformer) -> FittedLens:
    """Read a lens that was fitted to ``model``.

    Raises LlmcliError if the file is damaged or of another version, or the lens belongs to another model.
    """
    file = TensorFile(path)
    metadata = file.metadata
    kind = metadata.get("kind")
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION or kind not in get_args(LensKind):
        raise LlmcliError(f"{path}: not a lens that this version can read", kind="lens-unusable")
    if metadata.get("model") != fingerprint(model):
        reason = "the weights, their dtype or an adapter differ"
        raise LlmcliError(f"{path}: this lens was fitted to another model: {reason}", kind="lens-unusable")
    tensors = {name: file.read(entry) for name, entry in file.entries.items()}
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    expected = {"matrices": (torch.float32, (layers, width, width)), "biases": (torch.float32, (layers, width))}
    if shapes != expected or not all(map(is_finite, tensors.values())):
        raise LlmcliError(f"{path}: the lens is damaged", kind="lens-unusable")
    return FittedLens("tuned" if kind == "tuned" else "jacobian", tensors["matrices"], tensors["biases"], metadata)
