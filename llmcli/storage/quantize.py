"""Weights in 8 or 4 bits: half or a third of the bytes to read per token, for a small loss of quality.

Activations are not quantized: weights are restored for each product. Embedding tables and the head always have 8 bits;
norms, biases, routers and learned positions are not quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import LlmcliError, usage_error
from llmcli.model.layers import Embedding, Linear
from llmcli.model.transformer import Transformer
from llmcli.storage.blocks import to_blocks
from llmcli.storage.finite import is_finite
from llmcli.storage.ggml import from_blocks, row_bytes

Quantization = Literal["int8", "int4"]
CHUNK = 2**20  # weights quantized or restored at a time: they fit into the processor's cache


class QuantizedMatrix(nn.Module):
    """A matrix [out, in] stored as ``blocks`` of a format of GGUF, uint8 [out, ``row_bytes``].

    ``quantization`` is set if llmcli quantized it.
    """

    quantization: Quantization | None = None

    def __init__(self, blocks: Tensor, columns: int, format: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(blocks, requires_grad=False)  # a parameter, so that it is counted and moved
        self.columns, self.format = columns, format
        self.restore: Callable[[Tensor, str, int, torch.dtype], Tensor] = from_blocks  # or an engine's own

    def dense(self, rows: slice) -> Tensor:
        """See ``Linear.dense``."""
        return self.restore(self.weight[rows], self.format, self.columns, torch.float32)

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x [..., in] times the matrix, both rounded to ``dtype``: [..., out]."""
        x = x.to(dtype)
        step = max(CHUNK // self.columns, 1)
        pieces = torch.split(self.weight, step)
        return torch.cat(
            [F.linear(x, self.restore(piece, self.format, self.columns, dtype)) for piece in pieces], dim=-1
        )

    def unembed(self, x: Tensor) -> Tensor:
        """See ``Linear.unembed``."""
        return self.product(x, torch.float32)


class QuantizedLinear(QuantizedMatrix):
    """A quantized ``Linear``, which multiplies in ``dtype``."""

    def __init__(self, blocks: Tensor, columns: int, format: str, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(blocks, columns, format)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x, self.dtype)
        return y if self.bias is None else y + self.bias


class QuantizedEmbedding(QuantizedMatrix):
    """A quantized ``Embedding``."""

    def forward(self, ids: Tensor) -> Tensor:
        return from_blocks(self.weight[ids.flatten()], self.format, self.columns).view(*ids.shape, -1)


class QuantizedStack(nn.Module):
    """Quantized matrices of the same width, one below the other as one ``QuantizedLinear``, in formats of their own."""

    def __init__(self, parts: Sequence[QuantizedLinear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.bias: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([part(x) for part in self.parts], dim=-1)
        return y if self.bias is None else y + self.bias

    def dense(self, rows: slice) -> Tensor:
        """See ``Linear.dense``."""
        parts = [part for part in self.parts if isinstance(part, QuantizedLinear)]
        return torch.cat([part.dense(slice(None)) for part in parts])[rows]


def quantize(
    model: Transformer, quantization: Quantization, progress: Callable[[int, int], None] | None = None
) -> None:
    """Quantize a model's matrices and embedding tables in place.

    ``progress`` receives the number of weights done and in total. Raises LlmcliError if the model is not on the CPU or
    is already quantized, or if weights are NaN or infinite.
    """
    if model.device.type != "cpu":
        raise usage_error(f"quantized weights run on the CPU, not on {model.device.type}", kind="quantized-needs-cpu")
    modules = list(matrices(model))
    if not modules:
        raise usage_error("the weights are already quantized", kind="already-quantized")
    done, total = 0, sum(module.weight.numel() for _, module in modules)
    for name, module in modules:
        blocks, bias = quantized_weight(name, module, quantization), getattr(module, "bias", None)
        replace_module(model, name, quantized_module(name, module, blocks, bias, quantization, model.dtype))
        done += module.weight.numel()
        if progress is not None:
            progress(done, total)
    model.to(model.device)  # so that the engine drops what it keeps of the old weights


def matrices(model: Transformer) -> Iterator[tuple[str, Linear | Embedding]]:
    """The modules of a model that can be quantized, with their names; none if it is already quantized."""
    for name, module in list(model.named_modules()):
        if (
            isinstance(module, (Linear, Embedding))
            and name != "positions"
            and not name.endswith((".router", ".shared_gate"))
        ):
            yield name, module


def quantization_of(model: Transformer) -> str | None:
    """How a model's weights are stored: "int8", "int4" or the formats of their blocks; None if in floating point."""
    quantized = [module for module in model.modules() if isinstance(module, QuantizedMatrix)]
    return name_of({module.quantization or module.format for module in quantized})


def name_of(formats: Collection[str]) -> str | None:
    """What to call a model's quantization, given those of its matrices; None if there are none."""
    return "+".join(sorted(formats)) or None


def format_of(name: str, quantization: Quantization) -> str:
    """The blocks of the module called ``name`` in a quantized model: what all logits depend on has 8 bits."""
    return "Q8_0" if quantization == "int8" or name in ("embedding", "head") else "Q4_0"


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the model's submodule ``name``."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def quantized_weight(name: str, module: Linear | Embedding, quantization: Quantization) -> Tensor:
    """The module's weight in blocks. Raises LlmcliError if weights are NaN or infinite."""
    weight = module.weight.detach()
    if not is_finite(weight):
        raise LlmcliError(f"{name}.weight contains NaN or infinity", "the model cannot be quantized")
    pieces = torch.split(weight, max(CHUNK // weight.shape[1], 1))
    return torch.cat([to_blocks(piece, format_of(name, quantization)) for piece in pieces])


def quantized_shape(name: str, module: Linear | Embedding, quantization: Quantization) -> tuple[int, int]:
    """The shape of ``quantized_weight``."""
    rows, columns = module.weight.shape
    return rows, row_bytes(columns, format_of(name, quantization))


def quantized_module(
    name: str,
    module: Linear | Embedding,
    blocks: Tensor,
    bias: Tensor | None,
    quantization: Quantization,
    dtype: torch.dtype,
) -> QuantizedMatrix:
    """What replaces ``module``, which may be on the meta device, given its ``quantized_weight`` and its bias."""
    columns, format = module.weight.shape[1], format_of(name, quantization)
    matrix: QuantizedMatrix
    if isinstance(module, Embedding):
        matrix = QuantizedEmbedding(blocks, columns, format)
    else:
        matrix = QuantizedLinear(blocks, columns, format, None if bias is None else bias.detach(), dtype)
    matrix.quantization = quantization
    return matrix
