"""Ablation against the same changes made by hooks on transformers' modules; properties; mistakes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmcli.engine.batch import batch_cache
from llmcli.errors import LlmcliError
from llmcli.explain.interventions.ablation import ablate, parse_part
from llmcli.generation.reading import next_logits
from llmcli.model.hooks import Change, Hooks, Site, hooked
from llmcli.model.transformer import Transformer
from tests.explain.reference import IDS, attention_out, blocks, first, forget, loaded
from tests.parity import CLOSE, WRONG
from tests.tiny import KINDS, Tiny, TinyFactory, random_ids

FAMILIES = ("llama", "gpt2", "gemma3_text", "gpt_neox", "mixtral", "deepseek_v3", "qwen3_5_text")
OTHER_IDS = random_ids(len(IDS), seed=9)[0].tolist()
Edit = Callable[[Tensor], Tensor]
POST_NORMS = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}


def place(case: Tiny, part: str, layer: int) -> tuple[nn.Module, bool]:
    """The module of transformers where a part's result passes, and whether it is the module's input."""
    block = blocks(case)[layer]
    if part == "heads":
        return attention_out(block), True
    if part == "neurons":
        names = ("down_proj", "c_proj", "dense_4h_to_h")
        mlp: nn.Module = block.mlp
        return next(getattr(mlp, name) for name in names if hasattr(mlp, name)), True
    if case.name.startswith("gemma") and part in POST_NORMS:
        return getattr(block, POST_NORMS[part]), False
    names = {"attn": ("self_attn", "attn", "attention", "linear_attn"), "mlp": ("mlp", "block_sparse_moe")}[part]
    return next(getattr(block, name) for name in names if getattr(block, name, None) is not None), False


def edited(case: Tiny, edits: list[tuple[str, int, Edit]], ids: list[int] = IDS) -> Tensor:
    """transformers' logits [T, V] for ``ids`` when some parts' results are changed."""
    forget(case)
    with ExitStack() as stack, torch.no_grad():
        for part, layer, edit in edits:
            if part == "layer":
                hook = blocks(case)[layer].register_forward_hook(_skip, with_kwargs=True)
            elif part == "after":
                hook = blocks(case)[layer].register_forward_hook(_after(edit))
            elif part == "embedding":
                hook = blocks(case)[0].register_forward_pre_hook(_before(edit), with_kwargs=True)
            else:
                module, is_input = place(case, part, layer)
                hook = (
                    module.register_forward_pre_hook(_before(edit), with_kwargs=True)
                    if is_input
                    else module.register_forward_hook(_after(edit))
                )
            stack.callback(hook.remove)
        logits: Tensor = case.reference(torch.tensor([ids])).logits[0]
        return logits


def _skip(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    before = args[0] if args else kwargs["hidden_states"]
    return (before, *out[1:]) if isinstance(out, tuple) else before


def _before(edit: Edit) -> Any:
    def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0].clone()), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"].clone())}

    return change


def _after(edit: Edit) -> Any:
    return lambda module, args, out: (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)


def recorded(case: Tiny, part: str, layer: int, ids: list[int]) -> Tensor:
    """What a part computes in transformers for ``ids``, [T, ...]."""
    forget(case)
    kept: list[Tensor] = []
    module, is_input = place(case, part, layer)
    hook = (
        module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        if is_input
        else module.register_forward_hook(lambda _, args, out: kept.append(first(out)))
    )
    with torch.no_grad():
        case.reference(torch.tensor([ids]))
    hook.remove()
    return kept[0].view(len(ids), -1)


def read(model: Transformer, sizes: list[int]) -> Tensor:
    """The model's logits [T, V] for IDS, read in chunks of the given sizes."""
    with torch.no_grad():
        return Transformer.unembed(model, residual(model, sizes))


def residual(model: Transformer, sizes: list[int]) -> Tensor:
    """The residual stream after the last layer, [T, C]."""
    cache, parts, start = model.new_cache(), [], 0
    cache.planned = len(IDS)
    for size in [*sizes, len(IDS) - sum(sizes)]:
        with torch.no_grad():
            parts.append(model.hidden(torch.tensor([IDS[start : start + size]]), cache)[0])
        start += size
    return torch.cat(parts)


def head_slice(case: Tiny, layer: int, head: int) -> slice:
    matrix = attention_out(blocks(case)[layer]).weight
    width = matrix.shape[0] if "Conv1D" in type(attention_out(blocks(case)[layer])).__name__ else matrix.shape[1]
    size = width // case.reference.config.num_attention_heads
    return slice(head * size, (head + 1) * size)


def zero(x: Tensor) -> Tensor:
    return x * 0


def within(where: slice, features: slice = slice(None), value: Tensor | float = 0.0) -> Edit:
    """Put ``value`` [T, features] at the positions and features."""

    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        flat = x.view(x.shape[1], -1)
        flat[where, features] = value[where] if isinstance(value, Tensor) and value.dim() == 2 else value
        return x

    return edit


ALL = slice(None)


@pytest.mark.parametrize("name", FAMILIES)
def test_zeros_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    ours = loaded(case)
    recurrent = name == "qwen3_5_text"
    layer = 1 if not recurrent else ours.model.config.attending[0]
    head = head_slice(case, layer, 1)
    attn = 0  # in the recurrent case, a mixer
    several: dict[str, list[tuple[str, int, Edit]]] = {
        f"{layer}.1": [("heads", layer, within(ALL, head))],
        f"{layer}.1@3-5,9": [("heads", layer, lambda x: within(slice(9, 10), head)(within(slice(3, 6), head)(x)))],
        f"attn.{attn}": [("attn", attn, zero)],
        "mlp.1": [("mlp", 1, zero)],
        "mlp.0-1@2": [("mlp", n, within(slice(2, 3))) for n in (0, 1)],
        "layer.1": [("layer", 1, zero)],
        "embedding@0-1": [("embedding", 0, within(slice(0, 2)))],
    }
    if name not in ("mixtral", "deepseek_v3"):
        several["mlp.1.7"] = [("neurons", 1, within(ALL, slice(7, 8)))]
    whole = read(ours.model, [])
    for part, edits in several.items():
        model = ablate(ours, [part]).model
        expected = edited(case, edits)
        for sizes in ([], [1, 20, 2]):
            assert float((read(model, sizes) - expected).abs().max()) <= CLOSE, part
        assert float((whole - expected).abs().max()) > WRONG, part
    assert torch.equal(read(ours.model, []), whole)  # the model itself stays as it was


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3_text"])
def test_means_and_resampling_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    ours, head = loaded(case), head_slice(tiny(name), 1, 1)
    for part, kind, features in (("1.1", "heads", head), ("mlp.0", "mlp", ALL), ("mlp.0.3", "neurons", slice(3, 4))):
        layer = 1 if part == "1.1" else 0
        values = recorded(case, kind, layer, OTHER_IDS)[:, features]
        for replacement, given in (("mean", values[1:].mean(dim=0)), ("resample", values)):
            model = ablate(ours, [part], replacement, OTHER_IDS).model  # type: ignore[arg-type]
            expected = edited(case, [(kind, layer, within(ALL, features, given))])
            for sizes in ([], [7, 1]):
                assert float((read(model, sizes) - expected).abs().max()) <= CLOSE, (part, replacement)
    twice = ablate(ablate(ours, ["1.1"]), ["mlp.0"])
    both = edited(case, [("heads", 1, within(ALL, head)), ("mlp", 0, zero)])
    assert float((read(twice.model, []) - both).abs().max()) <= CLOSE
    assert twice.name == f"{case.name} without 1.1 without mlp.0"


@pytest.mark.parametrize("name", KINDS)
def test_hooks_that_change_nothing_change_no_bit(tiny: TinyFactory, name: str) -> None:
    """Not even hooks that keep everything; and each result put in its own place gives the same logits."""
    model = tiny(name).load()
    layers = range(model.config.num_hidden_layers)
    sites = {Site(part, layer) for part in ("attn", "mlp", "layer", "heads", "neurons") for layer in layers}  # type: ignore[arg-type]
    sites.add(Site("residual", -1))
    hooks = Hooks(keep=sites)
    plain = residual(model, [5])
    assert torch.equal(residual(hooked(model, hooks), [5]), plain)
    kept = {site: torch.cat([part[0] for part in parts]) for site, parts in hooks.kept.items()}
    assert Site("residual", -1) in kept
    for site, values in kept.items():
        same = residual(hooked(model, Hooks([Change(site, value=values, per_position=True)])), [5])
        assert float((same - plain).abs().max()) <= CLOSE, site


def test_what_is_added_and_its_opposite_cancel(tiny: TinyFactory) -> None:
    model, vector = tiny("llama").load(), torch.linspace(-1, 1, 48)
    vector = vector[: model.config.hidden_size]
    site = Site("residual", 1)
    there = Change(site, value=vector, adds=True)
    back = Change(site, value=-vector, adds=True)
    plain = read(model, [])
    assert float((read(hooked(model, Hooks([there])), []) - plain).abs().max()) > WRONG
    assert float((read(hooked(model, Hooks([there, back])), []) - plain).abs().max()) <= CLOSE


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "qwen3_5_text"])
def test_texts_are_the_same_alone_and_in_a_batch(tiny: TinyFactory, name: str) -> None:
    """Positions count in each text, not in the batch."""
    model = ablate(loaded(tiny(name)), ["mlp.1@4-40", "attn.0@12"]).model
    prompts = [IDS[:3], IDS[:11], IDS[5:12]]
    together, caches = batch_cache(model), [model.new_cache() for _ in prompts]
    for prompt, cache in zip(prompts, caches, strict=True):
        next_logits(model, prompt, cache)
        together.add(cache)
    for tokens in ([1, 2, 3], [4, 5, 6]):
        rows = together.step(tokens)
        alone = [next_logits(model, [token], cache) for token, cache in zip(tokens, caches, strict=True)]
        assert float((rows - torch.stack(alone)).abs().max()) <= CLOSE


def test_a_model_whose_parts_are_removed_is_decoded_by_torch(tiny: TinyFactory) -> None:
    ours = loaded(tiny("llama"))
    removed = ablate(ours, ["mlp.1"]).model
    logits = next_logits(removed, IDS, removed.new_cache())
    cache = removed.new_cache()
    for id in IDS:
        last = next_logits(removed, [id], cache)
    assert float((last - logits).abs().max()) <= CLOSE
    assert float((next_logits(ours.model, IDS, ours.model.new_cache()) - logits).abs().max()) > WRONG


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("", "names no part"),
        ("mlp", "names no part"),
        ("mlp.", "names no part"),
        ("head.1", "names no part"),
        ("mlp.9", "there is no layer 9"),
        ("9.1", "there is no layer 9"),
        ("1.99", "there is no head 99"),
        ("mlp.1.99999", "there is no neuron 99999"),
        ("mlp.1@", "is not a list of positions"),
        ("mlp.1@-1", "is not a list of positions"),
        ("mlp.1@5-2", "is not a list of positions"),
        ("mlp.1@0-999999999", "there is no position 999999999"),
        ("attn.1-0", "names no layers"),
    ],
)
def test_a_part_that_does_not_exist_is_refused(tiny: TinyFactory, part: str, message: str) -> None:
    with pytest.raises(LlmcliError, match=message):
        parse_part(tiny("llama").load(), part)


def test_parts_that_only_some_models_have(tiny: TinyFactory) -> None:
    for name, part in (("mixtral", "mlp.1.0"), ("nemotron_h", "mlp.0"), ("qwen3_5_text", "0.1")):
        with pytest.raises(LlmcliError):
            parse_part(tiny(name).load(), part)
    with pytest.raises(LlmcliError, match="reference"):
        ablate(loaded(tiny("llama")), ["mlp.1"], "mean")
    with pytest.raises(LlmcliError, match="fewer than two tokens"):
        ablate(loaded(tiny("llama")), ["mlp.1"], "mean", [3])
