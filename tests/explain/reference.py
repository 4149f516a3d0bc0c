"""What transformers computes inside its own models, watched through hooks: the reference of the views that look inside.

Nothing here is ours but the token ids and the folder that both read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import DynamicCache

from llmcli.generation.generation_config import Defaults
from llmcli.generation.loaded import LoadedModel
from llmcli.model.transformer import Transformer
from llmcli.text.tokenizer import Tokenizer
from tests.tiny import VOCAB, Tiny, random_ids

LENGTH = 60  # positions: beyond a window, and beyond where stretched angles begin
IDS = random_ids(LENGTH, seed=3)[0].tolist()
ATTENTION_OUT = ("o_proj", "attn.c_proj", "attention.dense")


@cache
def tokenizer() -> Tokenizer:
    """A word for each id: w0, w1, …"""
    fast = FastTokenizer(WordLevel({f"w{n}": n for n in range(VOCAB)}, unk_token="w0"))
    fast.pre_tokenizer = Whitespace()
    return Tokenizer(fast, "words")


def loaded(case: Tiny, model: Transformer | None = None) -> LoadedModel:
    """A tiny model as the views take it."""
    return LoadedModel(case.name, case.folder, model or case.load(), tokenizer(), Defaults((), {}, {}))


@dataclass
class Inside:
    """Of one pass of transformers' model: fp64, at every position."""

    logits: Tensor  # [T, V]
    residual: list[Tensor] = field(default_factory=list)  # after each block, [T, C]
    mixed: list[Tensor] = field(default_factory=list)  # what goes into the attention's output matrix, [T, H D]
    attention: list[Tensor] = field(default_factory=list)  # [H, T, T]
    values: list[Tensor] = field(default_factory=list)  # [K, T, D]


def forget(case: Tiny) -> None:
    """Let angles that grew with a longer text before ("dynamic") start again: a short text does it."""
    with torch.no_grad():
        case.reference(torch.tensor([[0]]))


def blocks(case: Tiny) -> nn.ModuleList:
    """The layers."""
    count = case.reference.config.num_hidden_layers
    (found,) = [m for m in case.reference.modules() if isinstance(m, nn.ModuleList) and len(m) == count][:1]
    return found


def attention_out(block: nn.Module) -> nn.Module:
    """The matrix that makes of the heads what attention adds."""
    (found,) = [module for name, module in block.named_modules() if name.endswith(ATTENTION_OUT)]
    return found


def inside(case: Tiny, ids: list[int]) -> Inside:
    """One pass over ``ids``, watched."""
    forget(case)
    mixed: list[Tensor] = []
    residual: list[Tensor] = []
    hooks = []
    for block in blocks(case):
        hooks.append(attention_out(block).register_forward_pre_hook(lambda _, args: mixed.append(args[0][0].double())))
        hooks.append(block.register_forward_hook(lambda _, args, out: residual.append(first(out)[0].double())))
    try:
        with torch.no_grad():
            # A cache that forgets nothing, also in windowed layers.
            out = case.reference(torch.tensor([ids]), output_attentions=True, past_key_values=DynamicCache())
    finally:
        for hook in hooks:
            hook.remove()
    seen = Inside(out.logits[0].double(), residual, mixed)
    seen.attention = [weights[0].double() for weights in out.attentions]
    seen.values = [layer.values[0].double() for layer in out.past_key_values.layers]
    return seen


def first(out: Any) -> Tensor:
    """A block's hidden states, whether it gives them alone or not."""
    return out[0] if isinstance(out, tuple) else out


def stopped_after(case: Tiny, ids: list[int], layer: int) -> Tensor:
    """transformers' own norm, head and softcap on what stands behind a layer (-1: before the first): [T, V]."""
    forget(case)
    places = blocks(case)
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    def put_back(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        return (kept[0], *out[1:]) if isinstance(out, tuple) else kept[0]

    hooks = [places[-1].register_forward_hook(put_back)]
    if layer + 1 < len(places):
        hooks.append(places[layer + 1].register_forward_pre_hook(keep, with_kwargs=True))
    else:
        hooks[0].remove()
        hooks = []
    try:
        with torch.no_grad():
            logits: Tensor = case.reference(torch.tensor([ids])).logits[0].double()
    finally:
        for hook in hooks:
            hook.remove()
    return logits
