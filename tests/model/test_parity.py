"""The forward pass matches transformers', part by part and token by token. test_mutations.py proves it can fail."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    FalconConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Mistral3Config,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

from llmcli.files.names import WEIGHTS
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer
from llmcli.storage import checkpoint
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.finite import LoadNotes
from tests.parity import CLOSE, DECODED, IDS, WRONG, parity_error
from tests.tiny import (
    CASES,
    CONTEXT,
    CPU,
    KINDS,
    ROPE_ORIGINAL,
    VOCAB,
    WINDOW,
    Tiny,
    TinyFactory,
    greedy,
    load,
    load_with_transformers,
    random_ids,
    randomize,
)

MLPS = ("mlp", "feed_forward", "shared_mlp", "fc2")
MIXERS = (
    "self_attn",
    "self_attention",
    "attn",
    "attention",
    "linear_attn",
    "conv",
    "mamba",
)  # transformers' names for what mixes positions
FINAL_NORMS = ("norm", "norm_f", "ln_f", "final_layer_norm", "final_layernorm", "embedding_norm")


def observed(model: PreTrainedModel, ids: Tensor) -> dict[str, list[Tensor]]:
    """What transformers computes, under the names of ``Trace``, recorded by hooks on its modules."""
    seen: dict[str, list[Tensor]] = {
        "residual": [],
        "attn_out": [],
        "mlp_out": [],
        "routed": [],
        "attention": [],
        "logits": [],
    }
    body = getattr(model, model.base_model_prefix, None) or model.model
    body = getattr(body, "decoder", body)
    blocks = body.layers if hasattr(body, "layers") else body.h
    hooks = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen["residual"].append(args[0])

    def after_attention(_: nn.Module, args: Any, out: tuple[Tensor, Tensor] | Tensor) -> None:
        if isinstance(out, tuple):  # not of a recurrent mixer
            seen["attention"].append(out[1])

    def output_into(part: str) -> Callable[..., None]:
        return lambda _, args, out: seen[part].append((out[0] if isinstance(out, tuple) else out).clone())

    def nothing_into(part: str) -> Callable[..., None]:
        return lambda _, args: seen[part].append(torch.zeros_like(args[0]))

    def added(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen["attn_out"].append(args[0] - seen["residual"][-1])

    for block in blocks:
        attention, mlp = parts_of(block)
        attn_post, mlp_post = post_norms(block)
        if model.config.model_type == "bloom":  # its attention and MLP add the residual
            attn_post, mlp_post = block.self_attention.dense, block.mlp.dense_4h_to_h
        routed = getattr(block, "block_sparse_moe", None)  # in Granite 4, beside the expert for every token
        hooks += [] if routed is None else [routed.register_forward_hook(output_into("routed"))]
        hooks.append(block.register_forward_pre_hook(before))
        if attention is not None:
            hooks.append(attention.register_forward_hook(after_attention))
        for part, module in (("attn_out", attn_post or attention), ("mlp_out", mlp_post or mlp)):
            if part == "attn_out" and hasattr(block, "pre_ff_layernorm"):  # Falcon-H1 adds the outputs of two modules
                hooks.append(block.pre_ff_layernorm.register_forward_pre_hook(added))
            elif module is None:
                hooks.append(block.register_forward_pre_hook(nothing_into(part)))
            else:
                hooks.append(module.register_forward_hook(output_into(part)))
    # The last entry of transformers' hidden_states is already normalized, so take the final norm's input.
    final_norm = next(getattr(body, name) for name in FINAL_NORMS if hasattr(body, name))
    hooks.append(final_norm.register_forward_pre_hook(before))
    with torch.no_grad():
        seen["logits"].append(model(ids).logits)
    for hook in hooks:
        hook.remove()
    seen["residual"] = seen["residual"][-len(blocks) - 1 :]  # nanochat's final norm also normalizes the embedding
    if seen["routed"]:
        seen["mlp_out"] = [a + b for a, b in zip(seen["mlp_out"], seen["routed"], strict=True)]
    scale = getattr(model.config, "residual_multiplier", 1.0)  # Granite applies it outside its modules
    return seen | {part: [scale * out for out in seen[part]] for part in ("attn_out", "mlp_out")}


def parts_of(block: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """What mixes positions, and the MLP; None if the block lacks it."""
    if hasattr(block, "mixer"):  # the block's only part
        return (None, block.mixer) if getattr(block, "block_type", "") in ("mlp", "moe") else (block.mixer, None)
    mixing = next(getattr(block, name) for name in MIXERS if getattr(block, name, None) is not None)
    return mixing, next(getattr(block, name) for name in MLPS if hasattr(block, name))


def post_norms(block: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The norms after attention and MLP, if the block has them (Llama's post_attention_layernorm is a pre-norm)."""
    if hasattr(block, "post_mlp_layernorm"):
        return block.post_self_attn_layernorm, block.post_mlp_layernorm
    if not hasattr(block, "post_feedforward_layernorm"):
        return None, None
    return block.post_attention_layernorm, block.post_feedforward_layernorm


@pytest.mark.parametrize("name", CASES)
def test_every_part_of_a_forward_pass_matches_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    trace = Trace()
    model = case.load()
    with torch.no_grad():
        logits = model(IDS, trace=trace)
    theirs = observed(case.reference, IDS)
    layers = model.config.num_hidden_layers
    parts = {part: getattr(trace, part) for part in ("residual", "attn_out", "mlp_out")}
    ours = {"logits": [logits], "attention": list(trace.attention.values())} | parts
    attending = sum(map(model.config.has_attention, range(layers)))
    counts = {"residual": layers + 1, "attn_out": layers, "mlp_out": layers, "attention": attending, "logits": 1}
    for part, count in counts.items():
        assert len(ours[part]) == len(theirs[part]) == count
        for layer, (a, b) in enumerate(zip(ours[part], theirs[part], strict=True)):
            assert a.numel() == b.numel(), f"{part} {layer}"
            assert (a - b.view(a.shape)).abs().max() <= CLOSE, f"{part} {layer}"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "cuts",
    [[10, 20, 30, 70, 71], [WINDOW - 1, WINDOW, WINDOW + 1], DECODED],
    ids=["several chunks", "around the window", "token by token"],
)
def test_logits_match_transformers_for_any_chunks(tiny: TinyFactory, name: str, cuts: list[int]) -> None:
    case = tiny(name)
    assert parity_error(case.load(), case, cuts) <= CLOSE


@pytest.mark.parametrize("name", ["qwen3_5_text", "lfm2", "granitemoehybrid", "nemotron_h", "falcon_h1"])
def test_gradients_through_mixers_match_transformers(tiny: TinyFactory, name: str) -> None:
    """The gradient at the embedding, which comes through every layer and every chunk."""
    case = tiny(name)
    model = case.load().requires_grad_(True).train()
    pairs = ((model, model.embedding.weight), (case.reference, case.reference.get_input_embeddings().weight))
    gradients = []
    for each, weight in pairs:
        logits = each(IDS) if each is model else each(IDS).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        gradients += torch.autograd.grad(loss, weight)
    ours, theirs = (gradient[1:] for gradient in gradients)  # some of transformers' classes pad with token 0
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def transformers_greedy(model: PreTrainedModel, prompt: Tensor, count: int) -> list[int]:
    """The ``count`` tokens that transformers generates greedily after ``prompt`` [1, T]."""
    mask = torch.ones_like(prompt)
    with torch.no_grad():
        ids = model.generate(prompt, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
    assert ids.shape[1] == prompt.shape[1] + count
    tokens: list[int] = ids[0, prompt.shape[1] :].tolist()
    return tokens


# transformers' decoding does not bound Mamba's step size as its prefill does.
BOUNDED = ("nemotron_h",)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("llama-dynamic", *BOUNDED)])
@pytest.mark.parametrize("length", [CONTEXT - 64, 16])
def test_greedy_tokens_match_transformers(tiny: TinyFactory, name: str, length: int) -> None:
    """One text crosses the window and the original context while it is generated, the other starts beyond both."""
    case = tiny(name)
    prompt = random_ids(length, seed=2)
    theirs = transformers_greedy(case.reference, prompt, 64)
    assert len(set(theirs)) > 8, "a text that repeats itself tests little"
    assert greedy(case.load(), prompt[0].tolist(), 64) == theirs


def test_greedy_tokens_with_dynamic_angles_match_transformers_within_the_original_context(tiny: TinyFactory) -> None:
    """Beyond it, transformers changes the angles with every token but does not recompute the cached keys."""
    case = tiny("llama-dynamic")
    prompt = random_ids(4, seed=2)
    theirs = transformers_greedy(case.reference, prompt, ROPE_ORIGINAL - 4)
    assert len(set(theirs)) > 8
    assert greedy(case.load(), prompt[0].tolist(), ROPE_ORIGINAL - 4) == theirs


def test_falcon_rounds_alibi_as_in_training(tmp_path: Path) -> None:
    """With eager attention, transformers would add ALiBi twice to the scores."""
    config = FalconConfig(
        vocab_size=VOCAB,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=12,
        alibi=True,
        bias=True,
        multi_query=False,
        parallel_attn=False,
    )
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    randomize(reference, seed=0)
    reference.save_pretrained(tmp_path)
    case, model = Tiny("falcon-rw", tmp_path, reference), load(tmp_path, device=CPU, dtype=torch.float32)
    assert parity_error(model, case) <= CLOSE
    assert parity_error(model, case, DECODED) <= CLOSE
    for block in model.blocks:
        block.attn.alibi = dataclasses.replace(block.attn.alibi, bfloat16=False)
    assert parity_error(model, case) > WRONG


@pytest.mark.parametrize("name", KINDS)
def test_sharded_weights_give_the_same_model(tiny: TinyFactory, name: str, tmp_path: Path) -> None:
    case = tiny(name)
    case.reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / WEIGHTS).exists()
    assert_same_parameters(Checkpoint.read(tmp_path).load(device=CPU), case.load())


@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_loads_with_and_without_its_prefix(tiny: TinyFactory, name: str, prefix: str, tmp_path: Path) -> None:
    case = tiny(name)
    stored = load_file(case.folder / WEIGHTS)
    bare = {key.removeprefix("transformer."): tensor for key, tensor in stored.items()}
    # Old files also contain each layer's causal mask, which is not a parameter.
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT) for i in range(3)}
    bare |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    renamed = {(key if key.startswith("lm_head.") else prefix + key): tensor for key, tensor in bare.items()}
    save_file(renamed, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    assert_same_parameters(Checkpoint.read(tmp_path).load(device=CPU), case.load())


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# Prefixes of the text model, the head and the image encoder in a multimodal file.
MULTIMODAL_PREFIXES = {
    "published": ("language_model.model.", "language_model.lm_head.", ""),
    "newer": ("model.language_model.", "lm_head.", "model."),
}
PUBLISHED = MULTIMODAL_PREFIXES["published"][0]


@pytest.mark.parametrize("names", [None, *MULTIMODAL_PREFIXES])
def test_only_the_text_model_of_a_multimodal_gemma3_is_loaded(
    tiny: TinyFactory, names: str | None, tmp_path: Path
) -> None:
    case = tiny("gemma3_text")
    config = Gemma3Config(text_config=case.reference.config.to_dict(), vision_config=VISION, mm_tokens_per_image=4)
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.model.language_model.load_state_dict(case.reference.model.state_dict())
    whole.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    text = {key.removeprefix(PUBLISHED): tensor for key, tensor in stored.items() if key.startswith(PUBLISHED)}
    assert len(text) == len(case.reference.model.state_dict())
    if names is not None:
        model, head, rest = MULTIMODAL_PREFIXES[names]
        renamed = {model + key: tensor for key, tensor in text.items()}
        renamed |= {rest + key: tensor for key, tensor in stored.items() if not key.startswith(PUBLISHED)}
        renamed[head + "weight"] = text["embed_tokens.weight"].clone()  # stored although it is tied
        save_file(renamed, tmp_path / WEIGHTS)
    ours = Checkpoint.read(tmp_path).load(device=CPU)
    assert ours.config.model_type == "gemma3"
    with torch.no_grad():
        assert (ours(IDS) - whole(IDS).logits).abs().max() <= CLOSE
    assert_same_parameters(ours, case.load())


def test_only_the_text_model_of_a_multimodal_gemma4_is_loaded(tiny: TinyFactory, tmp_path: Path) -> None:
    """Its files also have matrices of keys and values that no layer uses, which are not reported."""
    case = tiny("gemma4_text")
    vision = VISION | {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8}
    config = Gemma4Config(text_config=case.reference.config.to_dict(), vision_config=vision)
    whole = Gemma4ForConditionalGeneration(config).eval()
    whole.model.language_model.load_state_dict(case.reference.model.state_dict())
    whole.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    unused = {f"model.language_model.layers.3.self_attn.{part}_proj.weight": torch.ones(64, 48) for part in "kv"}
    save_file(stored | unused, tmp_path / WEIGHTS)
    notes = LoadNotes()
    ours = Checkpoint.read(tmp_path).load(device=CPU, notes=notes)
    assert (ours.config.model_type, notes.text_only, notes.unused) == ("gemma4", True, ())
    with torch.no_grad():
        assert (ours(IDS) - whole(IDS).logits).abs().max() <= CLOSE
    assert_same_parameters(ours, case.load())


QWEN_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 48}


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(
    ("name", "kind", "text", "vision"),
    [
        ("ministral3", Mistral3Config, "ministral3", VISION | {"head_dim": 8}),
        ("mistral-full", Mistral3Config, "mistral", VISION | {"head_dim": 8}),
        ("qwen2", Qwen2_5_VLConfig, "qwen2_5_vl_text", QWEN_VISION),
        ("qwen3", Qwen3VLConfig, "qwen3_vl_text", QWEN_VISION | {"deepstack_visual_indexes": [0]}),
        ("qwen3_moe", Qwen3VLMoeConfig, "qwen3_vl_moe_text", QWEN_VISION | {"deepstack_visual_indexes": [0]}),
    ],
)
def test_the_text_models_of_other_multimodal_models_are_loaded(
    tiny: TinyFactory, name: str, kind: Any, text: str, vision: dict[str, Any], newer: bool, tmp_path: Path
) -> None:
    case = tiny(name)
    raw = case.reference.config.to_dict() | {"model_type": text}
    if "vl" in text:
        raw["rope_parameters"] = raw["rope_parameters"] | {
            "mrope_section": [2, 2, case.load().config.head_dim // 2 - 4]
        }
    whole = AutoModelForImageTextToText.from_config(
        kind(text_config=raw, vision_config=vision, tie_word_embeddings=False), attn_implementation="eager"
    ).eval()
    whole.model.language_model.load_state_dict(case.reference.model.state_dict())
    whole.lm_head.load_state_dict(case.reference.lm_head.state_dict())
    whole.save_pretrained(tmp_path)
    tensors = whole.state_dict() if newer else load_file(tmp_path / WEIGHTS)  # as modules are called now, or were
    if text == "qwen3_vl_moe_text":  # published files have experts by inputs, and transformers transposes them
        tensors = {key: value.mT if ".experts." in key else value for key, value in tensors.items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / WEIGHTS)
    notes = LoadNotes()
    ours = Checkpoint.read(tmp_path).load(device=CPU, notes=notes)
    assert notes.text_only
    assert not notes.unused
    with torch.no_grad():
        assert (ours(IDS) - whole(IDS).logits).abs().max() <= CLOSE
    assert_same_parameters(ours, case.load())


def test_the_text_model_of_llama4_is_loaded(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama4_text")
    text = {f"language_model.{name}": tensor for name, tensor in load_file(case.folder / WEIGHTS).items()}
    others = {name: torch.ones(2) for name in ("vision_model.class_embedding", "multi_modal_projector.linear_1.weight")}
    save_file(text | others, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama4", "text_config": raw_config(case)}))
    notes = LoadNotes()
    assert_same_parameters(Checkpoint.read(tmp_path).load(device=CPU, notes=notes), case.load())
    assert not notes.unused


def test_unexpected_tensors_of_a_multimodal_gemma3_are_named(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("gemma3_text")
    text = {PUBLISHED + key: tensor.clone() for key, tensor in case.reference.model.state_dict().items()}
    save_file(text | {PUBLISHED + "gain": torch.ones(3), "audio_tower.x": torch.ones(3)}, tmp_path / WEIGHTS)
    config = {"model_type": "gemma3", "text_config": json.loads((case.folder / "config.json").read_text())}
    (tmp_path / "config.json").write_text(json.dumps(config))
    notes = LoadNotes()
    Checkpoint.read(tmp_path).load(device=CPU, notes=notes)
    assert set(notes.unused) == {"audio_tower.x", f"{PUBLISHED}gain"}


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "granite", "llama"])
def test_a_bfloat16_embedding_is_scaled_exactly(tiny: TinyFactory, name: str) -> None:
    """Neither the factor nor the product is rounded to bfloat16: transformers' is, within half a unit of each."""
    case = tiny(name)
    theirs = copy.deepcopy(case.reference).to(torch.bfloat16)
    seen: list[Tensor] = []
    theirs.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = theirs.model.embed_tokens.weight[IDS].double()
    factor = case.reference.config.hidden_size**0.5 if "gemma" in name else {"granite": 1.5}.get(name, 1.0)
    with torch.no_grad():
        theirs(IDS)
        ours = case.load().to(torch.bfloat16).embed(IDS, 0)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), factor * rows, rtol=2**-22, atol=0)
    assert torch.allclose(seen[0].double(), factor * rows, rtol=2**-7, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_saved_models(tiny: TinyFactory, name: str, tmp_path: Path) -> None:
    case = tiny(name)
    checkpoint.save(case.load(), tmp_path, raw_config(case), dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(load_with_transformers(tmp_path)(IDS).logits, case.reference(IDS).logits)
    if name == "granitemoehybrid-experts":  # whose tensors transformers renames while it loads
        assert load_file(tmp_path / WEIGHTS).keys() == load_file(case.folder / WEIGHTS).keys()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_loads_with_the_same_bits(
    tiny: TinyFactory, name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = load(tiny(name).folder, device=CPU, dtype=dtype)
    checkpoint.save(model, tmp_path, raw_config(tiny(name)), dtype=dtype)
    again = Checkpoint.read(tmp_path).load(device=CPU)
    assert again.dtype == dtype
    assert again.config == model.config
    assert_same_parameters(again, model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def raw_config(case: Tiny) -> dict[str, Any]:
    """The case's config.json, as transformers wrote it."""
    written: dict[str, Any] = json.loads((case.folder / "config.json").read_text())
    return written


def assert_same_parameters(a: Transformer, b: Transformer) -> None:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.dtype == theirs[name].dtype, name
        assert torch.equal(parameter, theirs[name]), name


@pytest.mark.parametrize("name", ["llama-linear", "llama-dynamic", "llama-llama3", "llama-yarn", "llama-yarn-mscale"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_the_older_form_of_rope_settings_gives_the_same_config(
    tiny: TinyFactory, name: str, key: str, tmp_path: Path
) -> None:
    folder = tiny(name).folder
    raw = json.loads((folder / "config.json").read_text())
    settings = raw.pop("rope_parameters")
    raw["rope_theta"] = settings.pop("rope_theta")
    raw["rope_scaling"] = {key: settings.pop("rope_type")} | settings
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert Checkpoint.read(tmp_path).config == Checkpoint.read(folder).config
