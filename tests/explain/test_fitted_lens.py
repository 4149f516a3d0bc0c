"""The tuned lens and the Jacobian lens against transformers' models and torch's own Jacobians; their mistakes show."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmcli.errors import LlmcliError
from llmcli.explain.lenses.fitted_lens import FittedLens, read_lens, write_lens
from llmcli.explain.lenses.jacobian_fitting import fit_jacobian
from llmcli.explain.lenses.lens_divergence import divergences, exact_logits
from llmcli.explain.lenses.lens_fitting import fit_lens
from llmcli.explain.lenses.logit_lens import lens
from llmcli.explain.lenses.residual_streams import streams_of
from llmcli.explain.lenses.tuned_fitting import fit_tuned
from tests.explain.reference import IDS, blocks, first, forget, loaded
from tests.tiny import KINDS, RECURRENT, Tiny, TinyFactory, random_ids

FAMILIES = ("llama", "gemma2", "gpt2")
T = 8  # positions: the Jacobian counts the last 4


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def random_lens(case: Tiny, scale: float = 0.1) -> FittedLens:
    config = case.load().config
    L, C = config.num_hidden_layers, config.hidden_size
    generator = torch.Generator().manual_seed(5)
    matrices = torch.eye(C) + scale * torch.randn(L, C, C, generator=generator)
    return FittedLens("tuned", matrices, scale * torch.randn(L, C, generator=generator))


def final_stream(case: Tiny, ids: Tensor, layer: int, x: Tensor) -> Tensor:
    """What transformers' last layer returns, [T, C], if the residual stream after ``layer`` is x [T, C]."""
    forget(case)
    places, found = blocks(case), []

    def replace(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        value = x[None].to(first(out).dtype)
        return (value, *out[1:]) if isinstance(out, tuple) else value

    hooks = [
        places[layer].register_forward_hook(replace),
        places[-1].register_forward_hook(lambda _, args, out: found.append(first(out)[0])),
    ]
    try:
        case.reference(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    return found[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_jacobian_lens_is_the_mean_of_torchs_jacobian(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    model, windows = case.load(), random_ids(T, seed=8).view(1, T)
    found = fit_jacobian(model, windows, quiet).matrices
    x = streams_of(model, windows)[1][0].detach()  # after layer 0
    whole = torch.autograd.functional.jacobian(lambda x: final_stream(case, windows[0], 0, x), x)  # [T, C, T, C]
    expected = whole[T // 2 :, :, T // 2 :].sum(0).mean(1).to(found)
    size = float(expected.abs().max())
    assert float((found[1] - expected).abs().max()) < 1e-4 * size
    for wrong in (found[1].T, found[0], whole[:, :, T // 2 :].diagonal(dim1=0, dim2=2).mean(-1).to(found)):
        assert float((wrong - expected).abs().max()) > 1e-2 * size


def test_a_finite_difference_agrees_with_the_jacobian(tiny: TinyFactory) -> None:
    """A small step at all counted positions of one layer changes the sum of the final stream as J says."""
    case = tiny("llama")
    model, windows = case.load(), random_ids(T, seed=8).view(1, T)
    found = fit_jacobian(model, windows, quiet).matrices[1]
    x = streams_of(model, windows)[1][0].detach()
    step = torch.zeros_like(x)
    step[T // 2 :] = 1e-2 * torch.randn(x.shape[1], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ends = [final_stream(case, windows[0], 0, x + sign * step)[T // 2 :].double().sum(0) for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / 2 / (T // 2)
    torch.testing.assert_close((found @ step[-1]).double(), expected, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fitted_lens_maps_each_layer_before_transformers_norm_and_head(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    model, fitted = case.load(), random_lens(case)
    report = lens(loaded(case, model), IDS, token=11, fitted=fitted)
    assert report.check.ok
    assert report.rows[-1].kl == 0
    for layer in range(len(report.rows) - 2):
        kept: list[Tensor] = []
        forget(case)
        hooks = [
            blocks(case)[layer].register_forward_hook(lambda _, args, out, kept=kept: kept.append(first(out)[0, -1])),
            blocks(case)[-1].register_forward_hook(
                lambda _, args, out, kept=kept, layer=layer: _instead(
                    out, fitted.matrices[layer + 1].to(kept[0]) @ kept[0] + fitted.biases[layer + 1].to(kept[0])
                )
            ),
        ]
        with torch.no_grad():
            p = case.reference(torch.tensor([IDS])).logits[0, -1].double().softmax(-1)
        for hook in hooks:
            hook.remove()
        row = report.rows[layer + 1]
        assert row.p == pytest.approx(float(p[11]), abs=1e-5)
        assert row.p_top == pytest.approx(float(p.max()), abs=1e-5)


def _instead(out: Any, x: Tensor) -> Any:
    value = x.expand_as(first(out))
    return (value, *out[1:]) if isinstance(out, tuple) else value


def test_the_identity_is_the_plain_lens(tiny: TinyFactory) -> None:
    case = tiny("gemma2")
    opened = loaded(case)
    plain, mapped = lens(opened, IDS), lens(opened, IDS, fitted=random_lens(case, 0.0))
    assert (plain.lens, mapped.lens) == ("plain", "tuned")
    assert mapped.rows == plain.rows
    changed = lens(opened, IDS, fitted=random_lens(case))
    assert [row.plain_kl for row in changed.rows] == [row.kl for row in plain.rows]
    assert changed.rows[0].kl != plain.rows[0].kl


def test_training_reduces_the_divergence_on_held_out_text(tiny: TinyFactory) -> None:
    model = tiny("llama").load()
    ids = random_ids(40 * 32, seed=4).view(40, 32)
    fitted = fit_tuned(model, ids[:36], quiet)
    plain, tuned = (divergences(model, ids[36:], each).mean(0) for each in (None, fitted))
    assert (tuned[:-1] < 0.95 * plain[:-1]).all()
    assert tuned[-1] == plain[-1] == 0
    shifted = dataclasses.replace(fitted, matrices=fitted.matrices.roll(1, 0), biases=fitted.biases.roll(1, 0))
    assert divergences(model, ids[36:], shifted).sum() > tuned.sum() * len(ids[36:])


def test_no_layer_keeps_a_map_that_training_spoiled(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").load()
    ids = random_ids(16 * 32, seed=4).view(16, 32)
    monkeypatch.setattr("llmcli.explain.lenses.tuned_fitting.RATE", 50.0)
    plain, kept = (divergences(model, ids[12:], each).mean(0) for each in (None, fit_tuned(model, ids, quiet)))
    assert (kept <= plain).all()
    monkeypatch.setattr("llmcli.explain.lenses.tuned_fitting.CHOSEN_ON", 0)
    assert (divergences(model, ids[12:], fit_tuned(model, ids, quiet)).mean(0) > plain)[:-1].all()


@pytest.mark.parametrize("name", FAMILIES)
def test_least_squares_has_no_better_map_nearby(tiny: TinyFactory, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Adam, the weighted error of each position's final stream is the least that an affine map has."""
    model = tiny(name).load()
    ids = random_ids(32 * 32, seed=4).view(32, 32)
    monkeypatch.setattr("llmcli.explain.lenses.tuned_fitting.RATE", 0.0)
    monkeypatch.setattr("llmcli.explain.lenses.tuned_fitting.RIDGE", 1e-9)
    monkeypatch.setattr("llmcli.explain.lenses.tuned_fitting.CHOSEN_ON", 0)
    fitted = fit_tuned(model, ids, quiet)
    with torch.no_grad():
        *sources, final = (x.flatten(0, 1).double() for x in streams_of(model, ids))
    size = final.norm(dim=-1, keepdim=True)
    for x, matrix, bias in zip(sources, fitted.matrices.double(), fitted.biases.double(), strict=True):
        inputs = torch.cat([x, torch.ones(len(x), 1)], 1)
        expected = torch.linalg.lstsq(inputs / size, final / size).solution
        found = torch.cat([matrix.T, bias[None]])
        assert float((inputs @ (found - expected)).abs().max()) < 1e-3 * float(final.abs().max())


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "cohere"])
def test_logits_in_fp64_are_those_of_the_head(tiny: TinyFactory, name: str) -> None:
    model = tiny(name).load()
    x = torch.randn(3, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(exact_logits(model, x.double()).float(), model.unembed(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [RECURRENT[0], "gemma4_text-moe"])
def test_recurrent_layers_and_experts_have_lenses_too(tiny: TinyFactory, name: str) -> None:
    assert name in (*KINDS, *RECURRENT)
    model, ids = tiny(name).load(), random_ids(T, seed=8).view(1, T)
    fitted = fit_jacobian(model, ids, quiet)
    assert float(fitted.matrices.abs().amax((1, 2)).min()) > 0.1
    assert fit_tuned(model, ids, quiet).matrices.isfinite().all()


def test_a_file_is_read_only_for_its_own_model(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama")
    model, path, fitted = case.load(), tmp_path / "lens.safetensors", random_lens(case)
    write_lens(path, fitted, model)
    again = read_lens(path, case.load())
    assert (again.kind, again.notes["kind"]) == ("tuned", "tuned")
    assert torch.equal(again.matrices, fitted.matrices)
    assert torch.equal(again.biases, fitted.biases)
    with torch.no_grad():
        model.norm.weight[0] += 1
    with pytest.raises(LlmcliError, match="another model"):
        read_lens(path, model)
    write_lens(path, dataclasses.replace(fitted, biases=fitted.biases[:1]), model)
    with pytest.raises(LlmcliError, match="damaged"):
        read_lens(path, model)


def test_the_check_fails_if_the_file_has_another_lens(tiny: TinyFactory, tmp_path: Path) -> None:
    opened, path = loaded(tiny("llama")), tmp_path / "lens.safetensors"
    texts = [" ".join(f"w{n * n % 31}" for n in range(400))]

    def save(lens: FittedLens, wrong: float) -> Path:
        write_lens(path, dataclasses.replace(lens, matrices=lens.matrices + wrong), opened.model)
        return path

    for wrong in (0.0, 0.01):
        _, report = fit_lens(opened, texts, "tuned", save=lambda lens, wrong=wrong: save(lens, wrong))
        assert report.check.ok is (wrong == 0)


def test_a_text_that_is_too_short_is_an_error(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="too short"):
        fit_lens(loaded(tiny("llama")), ["w1 w2"], "tuned")
