"""Latent attention and experts in groups: what is cached, the fast form, the definitions, and mistakes that show."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcli.engine import transformer as engine
from llmcli.errors import LlmcliError
from llmcli.files.names import WEIGHTS
from llmcli.model import latent_attention
from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.families import FAMILIES, deepseek
from llmcli.model.families.rules import Rule
from llmcli.model.latent_attention import LatentAttention
from llmcli.model.mlp import MoE
from llmcli.model.positions import Placement
from llmcli.model.transformer import Transformer
from llmcli.storage.finite import LoadNotes
from llmcli.storage.partition import Partition
from llmcli.storage.quantize import quantize
from tests.model.test_mutations import Mutation, Patch, changed, exchange, other_experts, replaced, rows
from tests.parity import CLOSE, DECODED, WRONG, logits_of, parity_error
from tests.tiny import CONTEXT, CPU, LATENT, TinyFactory, load, random_ids

LOW_RANK = ["deepseek_v3", "glm4_moe_lite"]  # queries come from a latent vector, and biases choose experts
GROUPED = ["deepseek_v2", "deepseek_v3", "nemotron_h"]  # experts in groups


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("cuts", [DECODED, [40, 42, 50, 90]], ids=["decoded", "chunks"])
def test_the_fast_form_equals_the_plain_one(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, cuts: list[int]
) -> None:
    ids = random_ids(CONTEXT, seed=3, batch=2)
    fast = logits_of(tiny(name).load(), ids, cuts)
    monkeypatch.setattr(engine, "FEW_QUERIES", 0)
    plain = logits_of(tiny(name).load(), ids, cuts)
    assert not torch.equal(fast, plain)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("quantized", [False, True])
def test_one_layer_equals_the_definition_in_float64(tiny: TinyFactory, quantized: bool) -> None:
    """Attention of the last position, head by head, from the cached vectors and the matrices."""
    model = tiny("deepseek_v3").load()
    if quantized:
        quantize(model, "int8")
    attn, sizes = model.blocks[1].attn, model.config.latent
    assert isinstance(attn, LatentAttention)
    assert sizes is not None
    x = torch.randn(1, 30, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    cache = model.new_cache()
    with torch.no_grad():
        for start, stop in ((0, 29), (29, 30)):
            placement = model.placements(start, stop - start, 0).full
            out = attn(x[:, start:stop], placement, cache, None)
            q = attn.queries(x[:, start:stop], placement)[0, :, -1].double()  # [H, D]
            cache.length = stop
        held = cache.held(1)[1][0, 0].double()
        matrix = attn.kv.dense(slice(None)).double().view(attn.heads, -1, sizes.rank)
    parts = []
    for head in range(attn.heads):
        keys = torch.cat((held[:, : sizes.rank] @ matrix[head, : sizes.plain_dim].T, held[:, sizes.rank :]), dim=1)
        values = held[:, : sizes.rank] @ matrix[head, sizes.plain_dim :].T
        parts.append((keys @ q[head] * attn.scale).softmax(dim=0) @ values)
    with torch.no_grad():
        expected = attn.out(torch.cat(parts).float())
    torch.testing.assert_close(out[0, -1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LATENT)
def test_the_cache_holds_only_latents_and_can_be_cut(tiny: TinyFactory, name: str) -> None:
    model, ids = tiny(name).load(), random_ids(60, seed=5)
    cache = model.new_cache()
    with torch.no_grad():
        expected = model(ids, cache)
    first, keys, values = cache.held(0)
    latent = model.config.latent
    assert latent is not None
    assert (first, keys.shape, values.shape) == (0, (1, 1, 60, latent.rank + 16), (1, 1, 60, 0))
    assert not cache.recurrent
    with torch.no_grad():
        model(random_ids(20, seed=6), cache)
        cache.truncate(45)
        again = model(ids[:, 45:], cache)
    assert cache.length == 60
    torch.testing.assert_close(again, expected[:, 45:], rtol=1e-5, atol=5e-5)


def grouped_choice(moe: MoeConfig, scores: list[float]) -> set[int]:
    """The experts that are chosen, by a loop over groups."""
    size = moe.num_experts // moe.groups
    groups = [scores[start : start + size] for start in range(0, moe.num_experts, size)]
    merits = [sum(sorted(group)[-moe.group_best :]) for group in groups]
    best = sorted(range(moe.groups), key=lambda n: -merits[n])[: moe.groups_per_tok]
    allowed = [n for n in range(moe.num_experts) if n // size in best]
    return set(sorted(allowed, key=lambda n: -scores[n])[: moe.num_experts_per_tok])


@pytest.mark.parametrize("best", [1, 2, 3])
def test_experts_come_from_the_best_groups(tiny: TinyFactory, best: int) -> None:
    config = tiny("deepseek_v3").load().config
    assert config.moe is not None
    moe = dataclasses.replace(config.moe, num_experts=12, groups=3, groups_per_tok=2, group_best=best)
    module = MoE(config, dataclasses.replace(moe, num_experts_per_tok=5))
    ranked = torch.randn(50, 12, generator=torch.Generator().manual_seed(best)) - 1  # also below 0
    chosen = module.in_best_groups(ranked).topk(5, dim=-1).indices
    assert [set(row) for row in chosen.tolist()] == [grouped_choice(module.moe, row) for row in ranked.tolist()]


@pytest.mark.parametrize(
    "wrong",
    [{"groups": 3}, {"groups_per_tok": 5}, {"groups_per_tok": 0}, {"group_best": 3}, {"num_experts_per_tok": 5}],
)
def test_impossible_groups_are_rejected(tiny: TinyFactory, wrong: dict[str, int]) -> None:
    moe = tiny("deepseek_v3").load().config.moe
    assert moe is not None
    with pytest.raises(LlmcliError, match=r"config\.json: .*(expert|group)"):
        dataclasses.replace(moe, **wrong)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("deepseek_v2", {"topk_method": "noaux_tc"}),
        ("deepseek_v2", {"norm_topk_prob": True}),
        ("deepseek_v2", {"moe_layer_freq": 2}),
        ("deepseek_v3", {"scoring_func": "softmax"}),
        ("deepseek_v3", {"rope_interleave": False}),
        ("deepseek_v3", {"qk_rope_head_dim": 5}),
        ("deepseek_v3", {"kv_lora_rank": 0}),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense"]}),
    ],
)
def test_what_is_not_supported_is_rejected(name: str, change: dict[str, object]) -> None:
    family = FAMILIES[name]
    family.parse({"model_type": name})
    with pytest.raises(LlmcliError, match=r"config\.json: ") as caught:
        family.parse({"model_type": name} | change)
    assert next(iter(change)) in caught.value.message or "rotated" in caught.value.message


def test_latent_attention_is_not_split_among_processes(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="latent attention cannot be split among ranks"):
        Partition(tiny("deepseek_v2").load().config, 0, 2)


def test_the_layer_that_predicts_further_tokens_is_not_read(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("glm4_moe_lite")
    folder = Path(shutil.copytree(case.folder, tmp_path / "model"))
    stored = load_file(folder / WEIGHTS)
    further = {name.replace(".1.", ".47."): tensor.clone() for name, tensor in stored.items() if ".layers.1." in name}
    further["model.layers.47.eh_proj.weight"] = torch.zeros(48, 96)
    save_file(stored | further, folder / WEIGHTS)
    notes = LoadNotes()
    model = load(folder, device=CPU, notes=notes)
    assert notes.unused == ()
    assert parity_error(model, case) <= CLOSE


# Every mistake shows.


def latent_of(model: Transformer) -> list[LatentAttention]:
    return [module for module in model.modules() if isinstance(module, LatentAttention)]


def weights(model: Transformer, name: str) -> list[Tensor]:
    return [getattr(attn, name).weight for attn in latent_of(model)]


def rolled(name: str, rows: int = 1) -> Mutation:
    """The rows of a matrix in other places."""

    def roll(model: Transformer) -> None:
        for weight in weights(model, name):
            weight.copy_(weight.roll(rows, dims=0))

    return roll


def swapped_in_heads(name: str, start: int, middle: int, end: int) -> Mutation:
    """Two parts of every head's rows exchanged."""

    def swap(model: Transformer) -> None:
        for attn in latent_of(model):
            weight = getattr(attn, name).weight
            size = len(weight) // attn.heads
            for first in range(0, len(weight), size):
                exchange(weight, first + start, first + middle, first + end)

    return swap


def swapped(name: str, start: int, middle: int, end: int) -> Mutation:
    def swap(model: Transformer) -> None:
        for weight in weights(model, name):
            exchange(weight, start, middle, end)

    return swap


def latent_eps(model: Transformer) -> Transformer:
    assert model.config.latent is not None
    return changed(latent=dataclasses.replace(model.config.latent, norm_eps=0.02))(model)


def all_dense(model: Transformer) -> None:
    """The experts' layer computes only what serves every token."""
    for block in model.blocks:
        if isinstance(block.mlp, MoE):
            block.mlp = block.mlp.shared


HEADS = 4
WRONG_MODELS: dict[str, tuple[Mutation, list[str]]] = {
    "eps of the latents' norms": (latent_eps, [*LATENT]),
    "scale of the rotated features alone": (changed(attention_scale=16**-0.5), [*LATENT]),
    "scale without what a longer context needs": (changed(attention_scale=26**-0.5), GROUPED[:2]),
    "all groups": (other_experts(groups_per_tok=1, groups=1), GROUPED),
    "one group": (other_experts(groups_per_tok=1), GROUPED[1:]),
    "groups compared by another number of experts": (other_experts(group_best=2), ["deepseek_v2"]),
    "groups compared by their best expert": (other_experts(group_best=1), GROUPED[1:]),
    "weights of experts not scaled": (other_experts(scale=1.0), [*LATENT]),
    "sigmoid for softmax": (other_experts(scores="sigmoid"), ["deepseek_v2"]),
    "softmax for sigmoid": (other_experts(scores="softmax"), LOW_RANK),
    "no bias for choosing": (other_experts(choice_bias=False), LOW_RANK),
    "experts in all layers swapped for the shared one": (all_dense, [*LATENT]),
    "rotated halves of queries": (swapped_in_heads("q", 10, 18, 26), [*LATENT]),
    "rotated features of queries first": (swapped_in_heads("q", 0, 10, 26), [*LATENT]),
    "heads of queries": (rolled("q", 26), [*LATENT]),
    "keys and values of a head": (swapped_in_heads("kv", 0, 10, 24), [*LATENT]),
    "heads of keys and values": (rolled("kv", 24), [*LATENT]),
    "features of keys and values": (rolled("kv"), [*LATENT]),
    "rotated key before the latent": (swapped("latent", 0, 20, 36), [*LATENT]),
    "rotated halves of the key": (swapped("latent", 20, 28, 36), [*LATENT]),
    "features of the queries' latent": (rolled("query_latent"), LOW_RANK),
    "norm of the latent": (rolled("latent_norm"), [*LATENT]),
    "norm of the queries' latent": (rolled("query_norm"), LOW_RANK),
}


@pytest.mark.parametrize(("name", "mutate"), rows(WRONG_MODELS))
def test_a_wrong_model_shows(tiny: TinyFactory, name: str, mutate: Mutation) -> None:
    case = tiny(name)
    model = case.load()
    other = mutate(model)
    assert parity_error(model if other is None else other, case) > WRONG


def with_source(end: str, **changes: object) -> Callable[[ModelConfig], list[Rule]]:
    """The family's rules, with the sources whose names end in ``end`` changed."""

    def rules(config: ModelConfig) -> list[Rule]:
        found = deepseek.NAMES.rules(config)
        assert any(source.name.endswith(end) for rule in found for source in rule.sources)
        return [
            dataclasses.replace(
                rule,
                sources=tuple(
                    dataclasses.replace(source, **changes) if source.name.endswith(end) else source
                    for source in rule.sources
                ),
            )
            for rule in found
        ]

    return rules


RULES: dict[str, tuple[Callable[[ModelConfig], list[Rule]], list[str]]] = {
    "queries not interleaved": (with_source("q_b_proj.weight", grouped=None), LOW_RANK),
    "queries from the stream not interleaved": (with_source("q_proj.weight", grouped=None), ["deepseek_v2"]),
    "keys not interleaved": (with_source("kv_a_proj_with_mqa.weight", grouped=None), [*LATENT]),
    "rotated features of queries first": (with_source("q_b_proj.weight", ahead=0, kept=10), LOW_RANK),
    "all keys before all values": (with_source("kv_b_proj.weight", grouped=(2, HEADS, 12)), [*LATENT]),
}


@pytest.mark.parametrize(("name", "rules"), rows(RULES))
def test_wrong_tensor_rules_show(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, rules: Callable[[ModelConfig], list[Rule]]
) -> None:
    case = tiny(name)
    monkeypatch.setitem(FAMILIES, name, dataclasses.replace(FAMILIES[name], rules=rules))
    assert parity_error(case.load(), case) > WRONG


def key_not_rotated(self: LatentAttention, x: Tensor, placement: Placement) -> Tensor:
    return LATENTS(self, x, placement.unrotated())


def norm_over_the_key_too(self: LatentAttention, x: Tensor, placement: Placement) -> Tensor:
    """The latent divided by the size of the latent and the key together."""
    both = self.latent(x).float()
    size = both.square().mean(dim=-1, keepdim=True).sqrt()
    latent = both[..., : self.sizes.rank] / size * self.latent_norm.scale()
    right = LATENTS(self, x, placement)
    return torch.cat((latent.unsqueeze(1), right[..., self.sizes.rank :]), dim=-1)


def norm_forgotten(self: LatentAttention, x: Tensor, placement: Placement) -> Tensor:
    right = LATENTS(self, x, placement)
    return torch.cat((self.latent(x)[..., : self.sizes.rank].unsqueeze(1), right[..., self.sizes.rank :]), dim=-1)


def all_rotated_as_pairs(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Adjacent features rotated together, though the rules put a pair half a head apart."""
    order = torch.arange(x.shape[-1]).view(2, -1).T.flatten()
    return ROTATE(x[..., order], cos, signed_sin)[..., order.argsort()]


def bias_in_the_weights(self: MoE, tokens: Tensor) -> tuple[Tensor, Tensor]:
    weights, chosen = ROUTE(self, tokens)
    assert self.choice_bias is not None
    scores = self.router(tokens).sigmoid() + self.choice_bias
    weights = scores.gather(-1, chosen)
    return weights / weights.sum(dim=-1, keepdim=True) * self.moe.scale, chosen


def values_from_the_key_part(self: LatentAttention, held: Tensor) -> tuple[Tensor, Tensor]:
    k, v = EXPANDED(self, held)
    return k, v.flip(1)


LATENTS, EXPANDED, ROUTE = LatentAttention.latents, LatentAttention.expanded, MoE.route
ROTATE = latent_attention.rotate
CODE: dict[str, tuple[Patch, list[str]]] = {
    "key not rotated": (replaced(LatentAttention, "latents", key_not_rotated), [*LATENT]),
    "latent and key normalized together": (replaced(LatentAttention, "latents", norm_over_the_key_too), [*LATENT]),
    "latent not normalized": (replaced(LatentAttention, "latents", norm_forgotten), [*LATENT]),
    "other pairs rotated": (replaced(latent_attention, "rotate", all_rotated_as_pairs), [*LATENT]),
    "bias in the weights of experts": (replaced(MoE, "route", bias_in_the_weights), LOW_RANK),
    "values of other heads": (replaced(LatentAttention, "expanded", values_from_the_key_part), [*LATENT]),
}


@pytest.mark.parametrize(("name", "patch"), rows(CODE))
def test_wrong_code_shows(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, patch: Patch) -> None:
    case = tiny(name)
    patch(monkeypatch)
    assert parity_error(case.load(), case) > WRONG
