"""The tensors of recurrent layers in GGUF files, under llama.cpp's names and in its order."""

from __future__ import annotations

from llmcli.model.config import ModelConfig
from llmcli.model.families.rules import Rule, Source, linear
from llmcli.model.mixers.config import DeltaNetConfig, MambaConfig, ShortConvConfig


def short_conv(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    """The rules of a gated short convolution."""
    sizes, stored = config.mixer, theirs + "shortconv."
    assert isinstance(sizes, ShortConvConfig)
    table = [Rule(ours + "kernel", (Source(stored + "conv.weight", sizes.width),))]
    table += linear(ours + "inputs", [Source(stored + "in_proj", 3 * sizes.width)], bias=False)
    return table + linear(ours + "out", [Source(stored + "out_proj", config.hidden_size)], bias=False)


def mamba(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    """The rules of a Mamba-2 mixer."""
    sizes, stored = config.mixer, theirs + "ssm_"
    assert isinstance(sizes, MambaConfig)
    heads, groups = (sizes.heads, 1), (sizes.groups, sizes.width // sizes.groups)
    table = [
        Rule(ours + "kernel", (Source(stored + "conv1d.weight", sizes.convolved),)),
        Rule(ours + "decay", (Source(stored + "a", sizes.heads, shape=heads, minus_exp=True),)),
        Rule(ours + "step_bias", (Source(stored + "dt.bias", sizes.heads),)),
        Rule(ours + "skip", (Source(stored + "d", sizes.heads, shape=heads),)),
    ]
    if sizes.norm is not None:
        table.append(Rule(ours + "norm.weight", (Source(stored + "norm.weight", sizes.width, shape=groups),)))
    if sizes.kernel_bias:
        table.append(Rule(ours + "kernel_bias", (Source(stored + "conv1d.bias", sizes.convolved),)))
    rows = sizes.width + sizes.convolved + sizes.heads
    table += linear(ours + "inputs", [Source(stored + "in", rows)], bias=False)
    return table + linear(ours + "out", [Source(stored + "out", config.hidden_size)], bias=False)


def delta_net(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    """The rules of Qwen 3.5's gated delta net: the first value head of every key head, then the second ones, …"""
    sizes = config.mixer
    assert isinstance(sizes, DeltaNetConfig)
    order = (1, sizes.value_heads // sizes.key_heads, sizes.key_heads)
    inputs = [
        Source(theirs + "attn_qkv", sizes.convolved, grouped=order, leading=2 * sizes.keys),
        Source(theirs + "attn_gate", sizes.values, grouped=order),
        Source(theirs + "ssm_beta", sizes.value_heads, grouped=order),
        Source(theirs + "ssm_alpha", sizes.value_heads, grouped=order),
    ]
    return linear(ours + "inputs", inputs, bias=False) + _delta_net(config, sizes, ours, theirs, order)


def delta_net_by_head(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    """The rules of Qwen3-Next's gated delta net: all value heads of a key head, then those of the next one, …"""
    sizes = config.mixer
    assert isinstance(sizes, DeltaNetConfig)
    shared_by = sizes.value_heads // sizes.key_heads
    inputs = [
        Source(theirs + "attn_qkv", sizes.convolved),
        Source(theirs + "attn_gate", sizes.values),
        Source(theirs + "ssm_ba", 2 * sizes.value_heads, parts=(shared_by, shared_by)),
    ]
    return linear(ours + "inputs", inputs, bias=False) + _delta_net(config, sizes, ours, theirs, None)


def delta_net_of_groups(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    """The rules of Qwen3-Next's gated delta net in old files: inputs are those of a key head, then of the next one."""
    sizes = config.mixer
    assert isinstance(sizes, DeltaNetConfig)
    shared_by = sizes.value_heads // sizes.key_heads
    values = shared_by * sizes.value_dim
    inputs = [
        Source(theirs + "ssm_in", sizes.convolved + sizes.values, parts=(sizes.key_dim, sizes.key_dim, values, values)),
        Source(theirs + "ssm_ba", 2 * sizes.value_heads, parts=(shared_by, shared_by)),
    ]
    return linear(ours + "inputs", inputs, bias=False) + _delta_net(config, sizes, ours, theirs, None)


def _delta_net(
    config: ModelConfig, sizes: DeltaNetConfig, ours: str, theirs: str, order: tuple[int, int, int] | None
) -> list[Rule]:
    """The rules of everything but the inputs of a gated delta net; ``order`` is that of the value heads."""
    stored, heads = theirs + "ssm_", sizes.value_heads
    kernel = Source(stored + "conv1d.weight", sizes.convolved, grouped=order, leading=2 * sizes.keys)
    return [
        Rule(ours + "kernel", (kernel,)),
        Rule(ours + "decay", (Source(stored + "a", heads, grouped=order, minus_exp=True),)),
        Rule(ours + "decay_bias", (Source(stored + "dt.bias", heads, grouped=order),)),
        Rule(ours + "norm.weight", (Source(stored + "norm.weight", sizes.value_dim),)),
        *linear(ours + "out", [Source(stored + "out", config.hidden_size, columns_grouped=order)], bias=False),
    ]
