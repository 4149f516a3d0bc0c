"""What transformers computes inside its own models, recorded by hooks: the reference for the views.

llmcli and transformers share only the token ids and the model folder.
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
from tests.tiny import RECURRENT, VOCAB, Tiny, random_ids

LENGTH = 60  # positions: longer than the windows, and than the original contexts of rope scaling
IDS = random_ids(LENGTH, seed=3)[0].tolist()
ATTENTION_OUT = (
    "o_proj",
    "attn.c_proj",
    "attention.dense",
    "attn.dense",
    "attn.out_proj",
    "attention.out_proj",
)


@cache
def tokenizer() -> Tokenizer:
    """A tokenizer with one word per id: w0, w1, …"""
    fast = FastTokenizer(WordLevel({f"w{n}": n for n in range(VOCAB)}, unk_token="w0"))
    fast.pre_tokenizer = Whitespace()
    return Tokenizer(fast, "words")


def loaded(case: Tiny, model: Transformer | None = None) -> LoadedModel:
    """A tiny model in the form that the views take."""
    return LoadedModel(case.name, case.folder, model or case.load(), tokenizer(), Defaults((), {}, {}))


@dataclass
class Recording:
    """One pass of transformers' model, in fp64, at every position."""

    logits: Tensor  # [T, V]
    residual: list[Tensor] = field(default_factory=list)  # after each block, [T, C]
    mixed: list[Tensor] = field(default_factory=list)  # the input of the attention's output projection, [T, H D]
    attention: list[Tensor] = field(default_factory=list)  # [H, T, T], of the layers with attention
    values: list[Tensor] = field(default_factory=list)  # [K, T, D]

    def gate(self, layer: int) -> Tensor:
        """What multiplied the outputs of an attention layer's heads at the last position: [H D]; 1 without gates."""
        weights, values = self.attention[layer][:, -1], self.values[layer]
        plain = [weights[h] @ values[h // (len(weights) // len(values))] for h in range(len(weights))]
        return self.mixed[layer][-1] / torch.cat(plain)


def forget(case: Tiny) -> None:
    """Reset "dynamic" rope frequencies that a longer text changed, by running a short text."""
    with torch.no_grad():
        case.reference(torch.tensor([[0]]))


def blocks(case: Tiny) -> nn.ModuleList:
    """The layers of transformers' model."""
    count = case.reference.config.num_hidden_layers
    (found,) = [m for m in case.reference.modules() if isinstance(m, nn.ModuleList) and len(m) == count][:1]
    return found


def attention_blocks(case: Tiny) -> list[tuple[int, nn.Module]]:
    """The layers that have attention, with their numbers."""
    return [(number, block) for number, block in enumerate(blocks(case)) if _has_attention(block)]


def _has_attention(block: nn.Module) -> bool:
    if hasattr(block, "block_type"):  # Nemotron-H's blocks have one part
        return bool(block.block_type == "full_attention")
    if getattr(block, "self_attn", None) is not None:  # Falcon-H1's blocks also have a mixer
        return True
    return all(getattr(block, mixer, None) is None for mixer in ("linear_attn", "conv", "mamba"))


def attention_out(block: nn.Module) -> nn.Module:
    """The output projection of a layer's attention."""
    (found,) = [module for name, module in block.named_modules() if name.endswith(ATTENTION_OUT)]
    return found


def record_pass(case: Tiny, ids: list[int]) -> Recording:
    """Run one pass over ``ids`` and record it."""
    forget(case)
    mixed: list[Tensor] = []
    residual: list[Tensor] = []
    hooks = []
    for _, block in attention_blocks(case):
        hooks.append(attention_out(block).register_forward_pre_hook(lambda _, args: mixed.append(args[0][0].double())))
    for block in blocks(case):
        hooks.append(block.register_forward_hook(lambda _, args, out: residual.append(first(out)[0].double())))
    try:
        with torch.no_grad():
            # A cache that keeps all positions, in windowed layers too. Recurrent layers need one made for the config.
            cache = DynamicCache(config=case.reference.config) if case.name in RECURRENT else DynamicCache()
            out = case.reference(torch.tensor([ids]), output_attentions=True, past_key_values=cache)
    finally:
        for hook in hooks:
            hook.remove()
    recorded = Recording(out.logits[0].double(), residual, mixed)
    recorded.attention = [weights[0].double() for weights in out.attentions]
    for number, block in attention_blocks(case):
        held = out.past_key_values.layers[kept_by(case, number)]
        latent = hasattr(case.reference.config, "kv_lora_rank")  # what the cache holds are then no values yet
        with torch.no_grad():
            values = block.self_attn.expand_kv(held.keys, held.values)[1] if latent else held.values
        recorded.values.append(values[0].double())
    return recorded


def kept_by(case: Tiny, layer: int) -> int:
    """The layer of transformers' model whose keys and values a layer reads."""
    config = case.reference.config
    own = config.num_hidden_layers - getattr(config, "num_kv_shared_layers", 0)
    if layer < own:
        return layer
    return max(other for other in range(own) if config.layer_types[other] == config.layer_types[layer])


def first(out: Any) -> Tensor:
    """A block's hidden states, which it returns alone or first in a tuple."""
    return out[0] if isinstance(out, tuple) else out


def stopped_after(case: Tiny, ids: list[int], layer: int) -> Tensor:
    """The logits [T, V] of transformers' own norm, head and softcap after one layer (-1: before the first)."""
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
