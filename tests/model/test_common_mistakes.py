"""Mistakes that nearly every family can have show in its logits, and every family has at least twenty that do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from llmcli.model.config import ModelConfig
from llmcli.model.mlp import MLP
from llmcli.model.transformer import Transformer
from tests.model import test_delta_net, test_latent, test_mamba, test_mutations, test_short_conv
from tests.model.test_mutations import Mutation, attentions, changed, rows_of, with_config
from tests.parity import CLOSE, WRONG, parity_error
from tests.tiny import CASES, TinyFactory

Find = Callable[[Transformer], Iterable[Any]]  # some of a model's modules

# A case of each family that has few mistakes of its own.
PLAIN = [
    *("arcee", "bloom", "cohere", "ernie4_5", "falcon", "gemma", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite"),
    *("helium", "hunyuan_v1_dense", "lfm2", "mamba2", "mistral", "nanochat", "olmo", "olmo2", "opt", "phi", "qwen2"),
    *("qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"),
]


def blocks_in(order: Callable[[list[nn.Module]], Iterable[nn.Module]]) -> Mutation:
    """The layers in another order, or fewer of them."""

    def change(model: Transformer) -> None:
        model.blocks = nn.ModuleList(order(list(model.blocks)))

    return change


def between(find: Find, change: Callable[[nn.Module, Any], Any]) -> Mutation:
    """What modules are given is changed; ``change`` takes the module and its first argument."""

    def add(model: Transformer) -> None:
        for module in find(model):
            module.register_forward_pre_hook(lambda module, given: (change(module, given[0]), *given[1:]))

    return add


def skipped(find: Find) -> Mutation:
    """Modules that return what they are given."""

    def add(model: Transformer) -> None:
        for module in find(model):
            module.register_forward_hook(lambda _, given, __: given[0])

    return add


def of_blocks(name: str) -> Callable[[Transformer], list[Any]]:
    return lambda model: [getattr(block, name) for block in model.blocks]


def mlps(model: Transformer) -> list[MLP]:
    return [module for module in model.modules() if isinstance(module, MLP)]


def rolled(
    find: Callable[[Transformer], Iterable[nn.Module]], name: str, by: Callable[[Any], int], dim: int
) -> Mutation:
    """A parameter of modules, rolled by a number of rows or columns."""

    def roll(model: Transformer) -> None:
        for module in find(model):
            parameter = module.get_parameter(name)
            parameter.data = parameter.data.roll(by(module), dims=dim)

    return roll


def norms_of_other_layers(name: str) -> Mutation:
    def exchange(model: Transformer) -> None:
        norms = of_blocks(name)(model)
        for block, norm in zip(model.blocks, norms[1:] + norms[:1], strict=True):
            setattr(block, name, norm)

    return exchange


def query_heads_in_turn(model: Transformer) -> None:
    """Query head i is served by key head i modulo their number."""
    for attn in attentions(model):
        D, queries = attn.head_dim, rows_of(attn)[0]
        shape = attn.kv_heads, attn.heads // attn.kv_heads, D
        order = torch.arange(queries).view(shape).transpose(0, 1).flatten()
        attn.qkv.weight.data[:queries] = attn.qkv.weight.data[order]
        if attn.qkv.bias is not None:
            attn.qkv.bias.data[:queries] = attn.qkv.bias.data[order]
        attn.out.weight.data = attn.out.weight.data[:, order]


def embedding_as_head(model: Transformer) -> None:
    assert model.head is not None
    model.head.weight.data = model.embedding.weight.data


def always(config: ModelConfig) -> bool:
    return True


def attends(config: ModelConfig) -> bool:
    return config.model_type != "mamba2"


def has(**fields: Any) -> Callable[[ModelConfig], bool]:
    """Whether the config has these values."""
    return lambda config: all(getattr(config, name) == value for name, value in fields.items())


def pre_normed(config: ModelConfig) -> bool:
    return config.pre_norm and config.norm_weight


def with_mlp_norm(config: ModelConfig) -> bool:
    return pre_normed(config) and not config.shared_norm and attends(config)


def serial(config: ModelConfig) -> bool:
    return attends(config) and not config.parallel_residual


def grouped(config: ModelConfig) -> bool:
    return 1 < config.num_key_value_heads < config.num_attention_heads


def default_scale(config: ModelConfig) -> bool:
    return attends(config) and config.attention_scale is None


# The mutation, and the configs in which it must show.
MISTAKES: dict[str, tuple[Mutation, Callable[[ModelConfig], bool]]] = {
    "layers in another order": (blocks_in(lambda blocks: blocks[::-1]), always),
    "no last layer": (blocks_in(lambda blocks: blocks[:-1]), always),
    "embedding of the next token": (
        between(lambda model: [model.embedding], lambda table, ids: (ids + 1) % table.num_embeddings),
        always,
    ),
    "embedding scaled": (changed(embedding_scale=48**0.5), has(embedding_scale=1.0, embedding_norm=False)),
    "embedding as the head": (embedding_as_head, has(tie_word_embeddings=False)),
    "no final norm": (skipped(lambda model: [model.norm]), always),
    "one added to norms' weights": (changed(norm_offset=1.0), has(norm_offset=0.0, norm_weight=True)),
    "no biases of norms": (changed(norm_bias=False), has(norm_bias=True)),
    "norms of other layers": (norms_of_other_layers("attn_norm"), pre_normed),
    "MLPs' norms of other layers": (norms_of_other_layers("mlp_norm"), with_mlp_norm),
    "attention not normalized": (skipped(of_blocks("attn_norm")), has(pre_norm=True)),
    "MLP not normalized": (skipped(of_blocks("mlp_norm")), with_mlp_norm),
    "MLP beside attention": (changed(parallel_residual=True), serial),
    "residual multiplied": (changed(residual_scale=0.7), has(residual_scale=1.0)),
    "logits multiplied": (changed(logit_scale=0.7), has(logit_scale=1.0)),
    "scores not divided": (changed(attention_scale=1.0), default_scale),
    "scores divided for the whole width": (changed(attention_scale=48**-0.5), default_scale),
    "outputs of other heads": (rolled(attentions, "out.weight", lambda attn: attn.head_dim, 1), attends),
    "query heads in turn": (query_heads_in_turn, grouped),
    "no biases of q, k and v": (changed(qkv_bias=False), has(qkv_bias=True)),
    "biases of q, k and v in another order": (
        rolled(attentions, "qkv.bias", lambda attn: rows_of(attn)[0], 0),
        has(qkv_bias=True),
    ),
    "no bias of attention's output": (changed(out_bias=False), has(out_bias=True)),
    "neurons' outputs": (rolled(mlps, "down.weight", lambda _: 1, 1), attends),
    "no biases of MLPs": (changed(mlp_bias=False), has(mlp_bias=True)),
    "biases of other neurons": (rolled(mlps, "up.bias", lambda _: 1, 0), has(mlp_bias=True)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_common_mistakes_show(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    right = case.load()
    assert parity_error(with_config(right.config, right), case) <= CLOSE
    unseen = []
    for what, (mutate, possible) in MISTAKES.items():
        if possible(right.config):
            model = with_config(right.config, right)
            other = mutate(model)
            if parity_error(model if other is None else other, case) <= WRONG:
                unseen.append(what)
    assert unseen == []


def mistakes() -> Iterable[tuple[str, str]]:
    """Each case's mistakes; the same one in several places or directions, or in several ways of reading, is one."""
    plain, latent = test_mutations, test_latent
    tables = plain.CONFIGS, plain.WEIGHTS, plain.RULES, plain.CODE, latent.WRONG_MODELS, latent.RULES, latent.CODE
    for table in tables:
        yield from ((name, what) for what, (_, names) in table.items() for name in names)
    for what, names in {
        "rotation off by one": plain.ROPED,
        "mask off by one": plain.ATTENDING,
        "window off by one": [*plain.WINDOWED, *plain.GEMMA4, "llama4_text"],
    }.items():
        yield from ((name, what) for name in names)
    with_mamba = [test_mamba.GROUPED, test_mamba.ALONE, test_mamba.ONE_EACH, test_mamba.BESIDE]
    yield from ((name, what) for what in (*test_mamba.CODE, *test_mamba.WEIGHTS) for name in with_mamba)
    yield from ((test_mamba.BESIDE, what) for what in test_mamba.CONFIGS)
    yield from ((test_delta_net.CASE, what) for what in test_delta_net.MISTAKES)
    yield from ((name, what) for what in test_short_conv.CODE for name in test_short_conv.CASES)


def test_every_family_has_twenty_mistakes(tiny: TinyFactory) -> None:
    """Besides those of single parameters, which ``test_every_parameter_matters`` resets."""
    found = defaultdict(set)
    for name, what in mistakes():
        found[name.split("-")[0]].add(what)
    for name in PLAIN:
        found[name].update(what for what, (_, possible) in MISTAKES.items() if possible(tiny(name).load().config))
    assert {name: len(found[name.split("-")[0]]) for name in CASES if len(found[name.split("-")[0]]) < 20} == {}
