"""Tiny random models of every supported family, built and saved by transformers, that nothing can hide in.

Every parameter is random (transformers starts norms at one and biases at zero, where forgetting them
would not show), and so scaled that attention neither looks everywhere alike nor at one place only.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from llmcli.model.checkpoint import load
from llmcli.model.transformer import Transformer

VOCAB = 97
CONTEXT = 128
ROPE_ORIGINAL = 32  # the context that the llama3 case was "trained" on: tests run well beyond it

CPU = torch.device("cpu")


def _llama(**changed: Any) -> LlamaConfig:
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,  # not hidden_size / num_attention_heads
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 0.02,  # large, so that forgetting it shows
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
    }
    return LlamaConfig(**(values | changed))


def _gpt2(**changed: Any) -> GPT2Config:
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": CONTEXT,
        "layer_norm_epsilon": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return GPT2Config(**(values | changed))


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ROPE_ORIGINAL,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": _llama(),
    "llama-tied": _llama(tie_word_embeddings=True, num_attention_heads=4, num_key_value_heads=4, head_dim=12),
    "llama-biases": _llama(attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "llama-linear": _llama(
        hidden_act="gelu_pytorch_tanh",
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    ),
    "llama-llama3": _llama(tie_word_embeddings=True, num_key_value_heads=1, rope_parameters=_LLAMA3),
    "gpt2": _gpt2(),
    "gpt2-untied": _gpt2(tie_word_embeddings=False, n_inner=40, activation_function="gelu"),
}
CASES = tuple(CONFIGS)


@dataclass(frozen=True)
class Tiny:
    """One case: the folder that transformers wrote, and transformers' own model read back from it."""

    name: str
    folder: Path
    reference: PreTrainedModel

    def load(self) -> Transformer:
        """A fresh model of ours from the folder, safe to mutate."""
        return load(self.folder, device=CPU, dtype=torch.float32)


def make(name: str, folder: Path) -> Tiny:
    """Build the case, check that it is a fair test, and save it into ``folder``."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").eval()
    randomise(model, seed=CASES.index(name))
    model.save_pretrained(folder)
    reference = reopen(folder)
    with torch.no_grad():
        out = reference(random_ids(CONTEXT, seed=1), output_attentions=True)
    assert 1.0 < out.logits.std() < 10.0
    for weights in out.attentions:
        assert 0.2 < relative_entropy(weights) < 0.8, f"{name}: attention entropy {relative_entropy(weights):.2f}"
    return Tiny(name, folder, reference)


def reopen(folder: Path) -> PreTrainedModel:
    """What transformers makes of a folder, in fp32 with plain (eager) attention."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Fill every parameter: norm weights around 1, biases around 0, matrices scaled by what flows into them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(1.0 + 0.3 * noise)
            else:
                parameter.copy_(_deviation(name, parameter.shape) * noise)


def _deviation(name: str, shape: torch.Size) -> float:
    """Standard deviation of a matrix, by the part that it plays."""
    if "wpe" in name:
        return 1.0
    if "embed_tokens" in name or "wte" in name or "lm_head" in name:
        return 3.0 / math.sqrt(shape[1])  # logits of order 1 to 10
    fan_in = shape[0] if ".c_" in name else shape[1]  # GPT-2's Conv1D is stored [in, out]
    gain = {"c_attn": 1.8, "q_proj": 1.6, "k_proj": 1.6}  # queries and keys long enough to choose
    return next((g for part, g in gain.items() if part in name), 1.5) / math.sqrt(fan_in)


def random_ids(count: int, *, seed: int, batch: int = 1) -> Tensor:
    """Token ids [B, T] that depend on nothing but the arguments."""
    return torch.randint(VOCAB, (batch, count), generator=torch.Generator().manual_seed(seed))


def relative_entropy(weights: Tensor) -> float:
    """Mean entropy of causal attention weights [B, H, T, T], as a share of each row's maximum."""
    entropy = torch.special.entr(weights).sum(-1)[..., 1:]  # the first row has no choice
    most = torch.arange(2, weights.shape[-1] + 1).log()
    return float((entropy / most).mean())


def greedy(model: Transformer, ids: Tensor, count: int) -> list[int]:
    """``count`` most likely tokens after ``ids`` [1, T], one step at a time through the KV cache."""
    cache = model.new_cache()
    found: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            logits = model(ids, cache)
            ids = logits[:, -1:].argmax(-1)
            found.append(int(ids))
    return found


def chunks(ids: Tensor, cuts: list[int]) -> list[Tensor]:
    """``ids`` [B, T] cut before each of the positions ``cuts``."""
    edges = sorted({0, ids.shape[1], *cuts})
    return [ids[:, start:end] for start, end in itertools.pairwise(edges)]
