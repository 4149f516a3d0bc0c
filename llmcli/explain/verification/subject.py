"""What ``verify`` examines: a model, the text that it reads, and how to open the model again."""

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
from llmcli.model.cache import KVCache
from llmcli.model.device import fits_into_half
from llmcli.model.transformer import Transformer

Reopen = Callable[[str, str], LoadedModel]  # (device, dtype) -> the same model, opened again

MAX_TOKENS = 1024  # of the text: with more, a proof takes longer and shows little more
MAX_LOGITS = 2**26  # numbers in the logits of the whole text, 256 MiB


@dataclass(frozen=True)
class Subject:
    """The model and as many ``ids`` of ``text`` as fit. ``adapted``: a LoRA is merged, which the folder lacks."""

    loaded: LoadedModel
    text: str
    ids: tuple[int, ...]
    reopen: Reopen
    adapted: bool

    @property
    def model(self) -> Transformer:
        return self.loaded.model

    @cached_property
    def logits(self) -> Tensor:
        """The logits of the text in one pass without a cache, the reference of most proofs: fp32 [T, V]."""
        return one_pass(self.model, self.ids)

    @property
    def tolerance(self) -> float:
        """How far apart two correct computations of this model's logits may be."""
        return tolerance(self.model)

    def new_cache(self) -> KVCache:
        """An empty cache for the text, whose length rotary positions may depend on."""
        cache = self.model.new_cache()
        cache.planned = len(self.ids)
        return cache

    def opened(self, device: str, dtype: str) -> LoadedModel:
        """Return the model on a device and in a dtype: itself if it has both, else opened again.

        Raises ``Skipped`` if a second model might not fit into memory.
        """
        if (self.model.device.type, self.model.dtype_name) == (device, dtype):
            return self.loaded
        need = 4 * parameter_count(self.model)
        if not fits_into_half(need, torch.device(device)):
            raise Skipped(f"{need / 1e9:.0f} GB in float32 are more than half of the memory")
        return self.reopen(device, dtype)


def fitting(loaded: LoadedModel, ids: Sequence[int]) -> tuple[int, ...]:
    """Return as many of the first ids as context and memory allow.

    Raises LlmcliError if there are fewer than two, which prove nothing.
    """
    if len(ids) < 2:
        raise usage_error("the text must have at least two tokens", "give a longer one, or none")
    config = loaded.model.config
    return tuple(ids[: min(config.max_position_embeddings, MAX_TOKENS, max(MAX_LOGITS // config.vocab_size, 2))])


def one_pass(model: Transformer, ids: Sequence[int]) -> Tensor:
    """Return the logits after every token, computed without a cache: fp32 [T, V] on the CPU."""
    with torch.inference_mode():
        return model(batch(model, ids))[0].float().cpu()  # type: ignore[no-any-return]


def batch(model: Transformer, *rows: Sequence[int]) -> Tensor:
    """Return rows of ids as the model takes them: [B, T]."""
    return torch.tensor([list(row) for row in rows], device=model.device)


def parameter_count(model: Transformer) -> int:
    """Return the number of parameters, in whatever format the weights are."""
    return sum(parameter.numel() for parameter in empty_model(model.config).parameters())
