"""Our forward pass against transformers', part by part, and proof that the comparison notices mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmcli.model import checkpoint, rope, transformer
from llmcli.model.cache import KVCache
from llmcli.model.config import RopeConfig
from llmcli.model.stored import WEIGHTS
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer
from tests.tiny import CASES, CONTEXT, CPU, ROPE_ORIGINAL, Tiny, chunks, greedy, random_ids, reopen

Make = Callable[[str], Tiny]

CLOSE = 1e-4
WRONG = 1e-3  # what a real mistake must exceed, ten times what rounding may reach
IDS = random_ids(CONTEXT, seed=0, batch=2)


def observed(model: PreTrainedModel, ids: Tensor) -> dict[str, list[Tensor]]:
    """What transformers computes, by the names of ``Trace``, read off its modules by hooks."""
    seen: dict[str, list[Tensor]] = {"residual": [], "attn_out": [], "mlp_out": [], "attention": [], "logits": []}
    body = getattr(model, model.base_model_prefix)
    blocks = body.layers if hasattr(body, "layers") else body.h
    hooks = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen["residual"].append(args[0])

    def after_attention(_: nn.Module, args: Any, out: tuple[Tensor, Tensor]) -> None:
        seen["attention"].append(out[1])

    def output_into(part: str) -> Callable[..., None]:
        return lambda _, args, out: seen[part].append(out[0] if isinstance(out, tuple) else out)

    for block in blocks:
        attention = next(getattr(block, name) for name in ("self_attn", "attn", "attention") if hasattr(block, name))
        attn_post, mlp_post = post_norms(block)
        hooks += [
            block.register_forward_pre_hook(before),
            attention.register_forward_hook(after_attention),
            (attn_post or attention).register_forward_hook(output_into("attn_out")),
            (mlp_post or block.mlp).register_forward_hook(output_into("mlp_out")),
        ]
    # The last entry of transformers' hidden_states is normed already: take what goes into the norm.
    final_norm = next(getattr(body, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(body, name))
    hooks.append(final_norm.register_forward_pre_hook(before))
    with torch.no_grad():
        seen["logits"].append(model(ids).logits)
    for hook in hooks:
        hook.remove()
    scale = getattr(model.config, "residual_multiplier", 1.0)  # Granite's, applied outside of its modules
    return seen | {part: [scale * out for out in seen[part]] for part in ("attn_out", "mlp_out")}


def post_norms(block: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The norms behind attention and MLP, where a block has them: Llama's post_attention_layernorm is none."""
    if not hasattr(block, "post_feedforward_layernorm"):
        return None, None
    return block.post_attention_layernorm, block.post_feedforward_layernorm


def parity_error(model: Transformer, case: Tiny, cuts: list[int] | None = None) -> float:
    """Largest difference between our logits and transformers', reading the ids in the given chunks."""
    cache = model.new_cache(batch=2)
    with torch.no_grad():
        ours = torch.cat([model(part, cache) for part in chunks(IDS, cuts or [])], dim=1)
        theirs = case.reference(IDS).logits
    error = (ours - theirs).abs().max()
    assert error.isfinite()
    return float(error)


@pytest.mark.parametrize("name", CASES)
def test_every_part_of_a_forward_pass_agrees(tiny: Make, name: str) -> None:
    case = tiny(name)
    trace = Trace()
    model = case.load()
    with torch.no_grad():
        logits = model(IDS, trace=trace)
    theirs = observed(case.reference, IDS)
    layers = model.config.num_hidden_layers
    ours = {"logits": [logits]} | {part: getattr(trace, part) for part in theirs if part != "logits"}
    counts = {"residual": layers + 1, "attn_out": layers, "mlp_out": layers, "attention": layers, "logits": 1}
    for part, count in counts.items():
        assert len(ours[part]) == len(theirs[part]) == count
        for layer, (a, b) in enumerate(zip(ours[part], theirs[part], strict=True)):
            assert a.shape == b.shape, f"{part} {layer}"
            assert (a - b).abs().max() <= CLOSE, f"{part} {layer}"


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_those_of_transformers(tiny: Make, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny(name)
    prompt = random_ids(CONTEXT - 64, seed=2)
    monkeypatch.setattr(case.reference.generation_config, "eos_token_id", None)
    with torch.no_grad():
        theirs = case.reference.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=0,
        )[0, prompt.shape[1] :].tolist()
    assert len(theirs) == 64
    assert len(set(theirs)) > 8, "a model that repeats itself tests little"
    assert greedy(case.load(), prompt, 64) == theirs


@pytest.mark.parametrize("name", CASES)
def test_sharded_weights_load_the_same(tiny: Make, name: str, tmp_path: Path) -> None:
    case = tiny(name)
    case.reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / WEIGHTS).exists()
    assert_same_parameters(checkpoint.load(tmp_path, device=CPU), case.load())


@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_loads_with_and_without_its_prefix(tiny: Make, name: str, prefix: str, tmp_path: Path) -> None:
    case = tiny(name)
    stored = load_file(case.folder / WEIGHTS)
    bare = {key.removeprefix("transformer."): tensor for key, tensor in stored.items()}
    # Old files also hold the causal mask of each layer, which is no parameter.
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT) for i in range(3)}
    bare |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    renamed = {(key if key.startswith("lm_head.") else prefix + key): tensor for key, tensor in bare.items()}
    save_file(renamed, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    assert_same_parameters(checkpoint.load(tmp_path, device=CPU), case.load())


@pytest.mark.parametrize("name", CASES)
def test_saved_models_open_in_transformers(tiny: Make, name: str, tmp_path: Path) -> None:
    case = tiny(name)
    checkpoint.save(case.load(), tmp_path, described(case), dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(reopen(tmp_path)(IDS).logits, case.reference(IDS).logits)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_then_load_gives_the_same_bits(tiny: Make, name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny(name).load().to(dtype)
    checkpoint.save(model, tmp_path, described(tiny(name)), dtype=dtype)
    again = checkpoint.load(tmp_path, device=CPU)
    assert again.dtype == dtype
    assert again.config == model.config
    assert_same_parameters(again, model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def described(case: Tiny) -> dict[str, Any]:
    """The config.json that transformers wrote."""
    written: dict[str, Any] = json.loads((case.folder / "config.json").read_text())
    return written


def assert_same_parameters(a: Transformer, b: Transformer) -> None:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.dtype == theirs[name].dtype, name
        assert torch.equal(parameter, theirs[name]), name


@pytest.mark.parametrize("name", ["llama-linear", "llama-llama3"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_the_older_form_of_rope_settings_means_the_same(tiny: Make, name: str, key: str, tmp_path: Path) -> None:
    folder = tiny(name).folder
    raw = json.loads((folder / "config.json").read_text())
    settings = raw.pop("rope_parameters")
    raw["rope_theta"] = settings.pop("rope_theta")
    raw["rope_scaling"] = {key: settings.pop("rope_type")} | settings
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert checkpoint.read_config(tmp_path) == checkpoint.read_config(folder)


# From here on: mistakes that parity must notice.


@pytest.mark.parametrize("name", CASES)
def test_parity_notices_every_parameter(tiny: Make, name: str) -> None:
    """Setting any parameter to what transformers starts it with (or to zero) must show."""
    case = tiny(name)
    model = case.load()
    assert parity_error(model, case) <= CLOSE
    for parameter_name, parameter in model.named_parameters():
        right = parameter.clone()
        parameter.fill_(1.0 if "norm.weight" in parameter_name else 0.0)
        assert parity_error(model, case) > WRONG, parameter_name
        parameter.copy_(right)


def swap(weight: Tensor, start: int, middle: int, end: int) -> None:
    """Exchange rows start..middle and middle..end of a stacked matrix."""
    weight[start:end] = torch.cat((weight[middle:end], weight[start:middle]))


def swap_head_halves(model: Transformer) -> None:
    """Turn every query and key the wrong way round."""
    D = model.config.head_dim
    for block in model.blocks:
        for start in range(0, model.config.q_size + model.config.kv_size, D):
            swap(block.attn.qkv.weight, start, start + D // 2, start + D)


def interleave_heads(model: Transformer) -> None:
    """The other layout of rotary pairs, as the original Llama files have it."""
    D = model.config.head_dim
    order = torch.arange(D).view(2, D // 2).T.flatten()
    for block in model.blocks:
        for start in range(0, model.config.q_size + model.config.kv_size, D):
            rows = block.attn.qkv.weight[start : start + D]
            rows.copy_(rows[order])


def swap_queries_and_keys(model: Transformer) -> None:
    for block in model.blocks:
        swap(block.attn.qkv.weight, 0, model.config.q_size, 2 * model.config.q_size)


def swap_keys_and_values(model: Transformer) -> None:
    q, kv = model.config.q_size, model.config.kv_size
    for block in model.blocks:
        swap(block.attn.qkv.weight, q, q + kv, q + 2 * kv)


def swap_key_value_heads(model: Transformer) -> None:
    q, D = model.config.q_size, model.config.head_dim
    for block in model.blocks:
        for start in (q, q + 2 * D):
            swap(block.attn.qkv.weight, start, start + D, start + 2 * D)


def swap_gate_and_up(model: Transformer) -> None:
    wide = model.config.intermediate_size
    for block in model.blocks:
        swap(block.mlp.up.weight, 0, wide, 2 * wide)


def swap_norms(model: Transformer) -> None:
    for block in model.blocks:
        block.attn_norm, block.mlp_norm = block.mlp_norm, block.attn_norm


def forget_eps(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, transformer.Norm):
            module.eps = 1e-6


def other_activation(model: Transformer) -> None:
    others = {"silu": "gelu", "gelu": "gelu_tanh", "gelu_tanh": "gelu"}
    for block in model.blocks:
        block.mlp.activation = others[block.mlp.activation]


def other_theta(model: Transformer) -> None:
    model._frequencies = rope.inverse_frequencies(RopeConfig(theta=10000.0), model.config.head_dim)


def one_position_late(model: Transformer) -> None:
    model.positions.weight.copy_(model.positions.weight.roll(-1, dims=0))


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        ("llama", swap_head_halves),
        ("llama", interleave_heads),
        ("llama-tied", swap_queries_and_keys),
        ("gpt2", swap_queries_and_keys),
        ("llama", swap_keys_and_values),
        ("gpt2", swap_keys_and_values),
        ("llama", swap_key_value_heads),
        ("llama", swap_gate_and_up),
        ("llama-biases", swap_gate_and_up),
        ("llama", swap_norms),
        ("gpt2", swap_norms),
        ("llama", forget_eps),
        ("gpt2", forget_eps),
        *((name, other_activation) for name in CASES),
        ("llama", other_theta),
        ("llama-linear", other_theta),
        ("gpt2", one_position_late),
    ],
)
def test_parity_notices_a_wrong_model(tiny: Make, name: str, mutate: Callable[[Transformer], None]) -> None:
    case = tiny(name)
    model = case.load()
    mutate(model)
    assert parity_error(model, case) > WRONG


def inverted(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """llama3's scaling with the ramp between its bands run backwards."""
    right = LLAMA3(frequencies, config)
    between = (right != frequencies) & (right != frequencies / config.factor)
    assert between.any()
    return torch.where(between, frequencies * (1 + 1 / config.factor) - right, right)


def unramped(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """llama3's scaling with every band slowed, which is linear scaling."""
    return frequencies / config.factor


LLAMA3 = rope._llama3


@pytest.mark.parametrize("mutant", [inverted, unramped, lambda frequencies, config: frequencies])
def test_parity_notices_wrong_llama3_scaling(tiny: Make, monkeypatch: pytest.MonkeyPatch, mutant: Any) -> None:
    assert IDS.shape[1] > ROPE_ORIGINAL
    case = tiny("llama-llama3")
    monkeypatch.setattr(rope, "_llama3", mutant)
    assert parity_error(case.load(), case) > WRONG


def test_parity_notices_forgotten_linear_scaling(tiny: Make) -> None:
    case = tiny("llama-linear")
    model = case.load()
    model._frequencies = model._frequencies * 4.0
    assert parity_error(model, case) > WRONG


@pytest.mark.parametrize("offset", [-1, 1])
@pytest.mark.parametrize("name", ["llama", "llama-linear", "llama-llama3"])
def test_parity_notices_a_rotation_off_by_one(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, name: str, offset: int
) -> None:
    """Shifting all positions alike changes nothing (only distances count), so shift those of a later chunk."""
    case = tiny(name)
    assert parity_error(case.load(), case, cuts=[40]) <= CLOSE

    def shifted(frequencies: Tensor, start: int, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return rope.rotation(frequencies, start + offset if start else 0, count, dtype)

    monkeypatch.setattr(transformer, "rotation", shifted)
    assert parity_error(case.load(), case) <= CLOSE
    assert parity_error(case.load(), case, cuts=[40]) > WRONG


@pytest.mark.parametrize("offset", [-1, 1])
@pytest.mark.parametrize("name", CASES)
def test_parity_notices_a_mask_off_by_one(tiny: Make, monkeypatch: pytest.MonkeyPatch, name: str, offset: int) -> None:
    case = tiny(name)
    assert parity_error(case.load(), case, cuts=[40]) <= CLOSE

    def shifted(past: int, count: int, device: torch.device) -> Tensor:
        return torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past + offset)

    monkeypatch.setattr(transformer, "causal_mask", shifted)
    assert parity_error(case.load(), case, cuts=[40]) > WRONG


def test_parity_notices_values_out_of_order(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny("gpt2")
    append = KVCache.append

    def reversed_values(cache: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return append(cache, layer, k, v.flip(2))

    monkeypatch.setattr(KVCache, "append", reversed_values)
    assert parity_error(case.load(), case) > WRONG
