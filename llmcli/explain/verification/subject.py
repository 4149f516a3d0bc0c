"""The model that ``verify`` looks at, the text it reads, and how to open it once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from llmcli.engine.size import empty_model
from llmcli.errors import usage_error
from llmcli.explain.forward_pass import tolerance
from llmcli.explain.verification.proof import Skipped
from llmcli.generation.loaded import LoadedModel
from llmcli.model.device import memory_of
from llmcli.model.transformer import Transformer

Reopen = Callable[[str, str], LoadedModel]  # device, dtype -> the same model again

MOST_TOKENS = 1024  # of a text: beyond that a proof takes long and shows little more
MOST_LOGITS = 2**26  # numbers in the logits of the whole text, 256 MiB


@dataclass(frozen=True)
class Subject:
    """``ids`` are of ``text``, as many as fit. ``adapted``: a LoRA is merged, so the folder is not all of it."""

    loaded: LoadedModel
    text: str
    ids: tuple[int, ...]
    reopen: Reopen
    adapted: bool

    @property
    def model(self) -> Transformer:
        return self.loaded.model

    @cached_property
    def whole(self) -> Tensor:
        """The logits of the text by one pass without a cache, what most proofs compare with: fp32 [T, V]."""
        return one_pass(self.model, self.ids)

    @property
    def allowed(self) -> float:
        """How far two ways to this model's logits may lie apart."""
        return tolerance(self.model)

    def opened(self, device: str, dtype: str) -> LoadedModel:
        """The model on a device and in a dtype: itself if that is what it is, else once more.

        Skipped where a second model might not fit into the memory.
        """
        if (self.model.device.type, dtype_name(self.model)) == (device, dtype):
            return self.loaded
        need, have = 4 * parameters(self.model), memory_of(torch.device(device)).usable
        if have is not None and need > have / 2:
            raise Skipped(f"{need / 1e9:.0f} GB in float32, more than half of the memory of {have / 1e9:.0f} GB")
        return self.reopen(device, dtype)


def fitting(loaded: LoadedModel, ids: Sequence[int]) -> tuple[int, ...]:
    """As many of the first ids as the model and the memory hold. Errors: fewer than two, which prove nothing."""
    if len(ids) < 2:
        raise usage_error("a text of two tokens is the least that proves something", "give a longer one, or none")
    config = loaded.model.config
    return tuple(ids[: min(config.max_position_embeddings, MOST_TOKENS, max(MOST_LOGITS // config.vocab_size, 2))])


def one_pass(model: Transformer, ids: Sequence[int]) -> Tensor:
    """Logits behind every token, without a cache: fp32 [T, V] on the CPU."""
    with torch.inference_mode():
        return model(batch(model, ids))[0].float().cpu()  # type: ignore[no-any-return]


def batch(model: Transformer, *rows: Sequence[int]) -> Tensor:
    """Rows of ids as the model takes them: [B, T]."""
    return torch.tensor([list(row) for row in rows], device=model.device)


def dtype_name(model: Transformer) -> str:
    """As --dtype takes it."""
    return str(model.dtype).removeprefix("torch.")


def parameters(model: Transformer) -> int:
    """How many numbers the model has learned, however they are kept."""
    return sum(parameter.numel() for parameter in empty_model(model.config).parameters())
