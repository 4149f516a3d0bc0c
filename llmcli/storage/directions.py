"""Files of steering directions: a vector for some layers' residual streams, as safetensors or as GGUF.

llmcli and llama.cpp name the tensors ``direction.L``: the vector is added to the residual stream after layer L, which
counts from 0. llama.cpp's control vectors cannot have one for layer 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error
from llmcli.files.atomic import replacing
from llmcli.files.gguf import is_gguf, read_gguf
from llmcli.files.gguf_writer import NewTensor, write_header
from llmcli.files.safetensors import TensorFile, write_tensors
from llmcli.storage.gguf.weights import FLOATS, GgufTensors

ARCHITECTURE = "controlvector"
NAME = re.compile(r"direction\.(\d{1,6})")
DIRECTION_SUFFIXES = (".safetensors", ".gguf")


@dataclass(frozen=True, eq=False)
class Directions:
    """Vectors fp32 [C] by layer. ``model_type`` is that of the model that they were found in, if it is known."""

    vectors: Mapping[int, Tensor]
    model_type: str = ""


def write_directions(path: Path, directions: Directions) -> None:
    """Write a file, as GGUF if it is called so. Raises LlmcliError if it cannot be written, or GGUF lacks layer 0."""
    vectors = {layer: vector.detach().float().cpu() for layer, vector in sorted(directions.vectors.items())}
    if path.suffix != ".gguf":
        with replacing(path) as file:
            named = {f"direction.{layer}": vector for layer, vector in vectors.items()}
            write_tensors(file, named, {"model_type": directions.model_type})
        return
    if 0 in vectors:
        raise usage_error("llama.cpp's control vectors have no direction for layer 0", "choose later layers")
    metadata: dict[str, Any] = {
        "general.architecture": ARCHITECTURE,
        f"{ARCHITECTURE}.model_hint": directions.model_type,
        f"{ARCHITECTURE}.layer_count": len(vectors),
    }
    tensors = [NewTensor(f"direction.{layer}", "F32", tuple(vector.shape)) for layer, vector in vectors.items()]
    with replacing(path) as file:
        starts = write_header(file, metadata, tensors)
        for layer, vector in vectors.items():
            file.seek(starts[f"direction.{layer}"])
            file.write(vector.numpy().tobytes())


def read_directions(path: Path) -> Directions:
    """Read a file of ``write_directions``, or a control vector of llama.cpp.

    Raises LlmcliError if it is neither, is damaged, or has numbers that are not finite.
    """
    if not path.is_file():
        raise usage_error(f"{path}: {'not a file' if path.exists() else 'no such file'}", "llmcli steer makes one")
    if is_gguf(path):
        header = read_gguf(path)
        if header.metadata.get("general.architecture") != ARCHITECTURE:
            raise _not_directions(path)
        file: TensorFile = GgufTensors(path)
        hint = header.metadata.get(f"{ARCHITECTURE}.model_hint", "")
        model_type = hint if isinstance(hint, str) else ""
    else:
        try:
            file = TensorFile(path)
        except LlmcliError as error:
            raise _not_directions(path) from error
        model_type = file.metadata.get("model_type", "")
    vectors: dict[int, Tensor] = {}
    for name, entry in file.entries.items():
        match = NAME.fullmatch(name)
        if match is None or len(entry.shape) != 1 or entry.dtype not in FLOATS:
            raise _not_directions(path)
        vectors[int(match[1])] = file.read(entry).float()
    if not vectors or len({len(vector) for vector in vectors.values()}) != 1:
        raise _not_directions(path)
    if not all(torch.isfinite(vector).all() for vector in vectors.values()):
        raise LlmcliError(f"{path}: a direction has numbers that are not finite", "make the file again")
    return Directions(dict(sorted(vectors.items())), model_type)


def _not_directions(path: Path) -> LlmcliError:
    return LlmcliError(f"{path} has no steering directions", "llmcli steer makes such a file")
