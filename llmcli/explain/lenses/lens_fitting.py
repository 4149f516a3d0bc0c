"""Fitting lenses to a model on texts, and what they gain over the plain lens on text that was held out.

Shapes: N windows, T positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.forward_pass import tolerance
from llmcli.explain.lenses.fitted_lens import FitProgress, FittedLens, LensKind, read_lens
from llmcli.explain.lenses.jacobian_fitting import fit_jacobian
from llmcli.explain.lenses.lens_divergence import divergences, exact_divergences, measured
from llmcli.explain.lenses.tuned_fitting import fit_tuned
from llmcli.explain.report import Check, Claim, Report, check, relative_error
from llmcli.generation.loaded import LoadedModel
from llmcli.storage.quantize import quantization_of

LENGTH = 128  # positions of a window, if the context has as many
HELD_OUT = 8  # windows
TOKENS: dict[LensKind, int] = {"tuned": 16384, "jacobian": 512}
FITS = {"tuned": fit_tuned, "jacobian": fit_jacobian}


@dataclass(frozen=True)
class FittedLayer:
    """Mean divergences D(final‖layer) on held-out text, bits; ``layer`` None is the embedding."""

    layer: int | None
    plain_kl: float
    kl: float


@dataclass(frozen=True)
class FitLensReport(Report):
    """What a fitted lens gains over the plain one: ``tokens`` were used to fit, ``held_out`` tokens to measure.

    ``path`` is the lens's file, or None if it was not saved.
    """

    model: str
    kind: LensKind
    path: str | None
    tokens: int
    held_out: int
    layers: tuple[FittedLayer, ...]
    check: Check


def fit_lens(
    loaded: LoadedModel,
    texts: Sequence[str],
    kind: LensKind,
    *,
    tokens: int | None = None,
    seed: int = 0,
    save: Callable[[FittedLens], Path] | None = None,
    progress: FitProgress = lambda done, total: None,
) -> tuple[FittedLens, FitLensReport]:
    """Fit a lens on at most ``tokens`` tokens of ``texts`` (None: ``TOKENS``), and compare it with the plain one.

    The last windows are held out; ``seed`` decides the order of the others. ``save`` writes the lens; its file is read
    again and measured. ``progress`` receives the steps done and the total.
    Raises LlmcliError if the model is quantized, the texts are too short, or the lens is not finite.
    """
    model, tokens = loaded.model, tokens or TOKENS[kind]
    if quantization_of(model) is not None:
        raise usage_error(
            "a lens cannot be fitted to quantized weights: they have no derivatives", kind="fit-quantized"
        )
    length = min(LENGTH, model.config.max_position_embeddings)
    wanted = max(1, tokens // length)
    windows = cut(loaded, texts, length, wanted + HELD_OUT).to(model.device)
    held = min(HELD_OUT, len(windows) // 2)
    fitted_on, held_out = windows[: len(windows) - held], windows[len(windows) - held :]
    order = torch.randperm(len(fitted_on), generator=torch.Generator().manual_seed(seed))[:wanted]
    found = FITS[kind](model, fitted_on[order], progress)
    text_hash = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    notes = {"text": text_hash, "tokens": str(len(order) * length), "seed": str(seed)}
    lens = FittedLens(kind, found.matrices.cpu(), found.biases.cpu(), notes)
    plain = divergences(model, held_out, None)
    path = None if save is None else save(lens)
    fitted = divergences(model, held_out, lens if path is None else read_lens(path, model))
    means = zip(plain.mean(0).tolist(), fitted.mean(0).tolist(), strict=True)
    report = FitLensReport(
        model=loaded.name,
        kind=kind,
        path=None if path is None else str(path),
        tokens=len(order) * length,
        held_out=measured(held_out),
        layers=tuple(FittedLayer(n - 1 if n else None, *both) for n, both in enumerate(means)),
        check=_check(fitted[0], exact_divergences(model, held_out[0], lens), tolerance(model), path is not None),
    )
    return lens, report


def _check(found: Tensor, expected: Tensor, limit: float, saved: bool) -> Check:
    """Return the check of one window's divergences [L + 1] against those computed in fp64."""
    errors = [relative_error(abs(a - b), b) for a, b in zip(found.tolist(), expected.tolist(), strict=True)]
    which = "the saved lens" if saved else "the lens"
    return check(Claim(f"the divergences of {which} equal those of the fitted maps in fp64", max(errors), limit))


def cut(loaded: LoadedModel, texts: Sequence[str], length: int, count: int) -> Tensor:
    """The first ``count`` windows of ``length`` tokens of the texts, none over a text's end: ids [N, T].

    Each begins with the tokens with which the tokenizer begins a text, if it does.
    Raises LlmcliError if there are fewer than two.
    """
    begin = loaded.tokenizer.encode("")
    own = length - len(begin)
    windows: list[Tensor] = []
    for text in texts:
        ids = loaded.tokenizer.encode(text, add_special=False)
        whole = range(0, len(ids) - own + 1, own)
        windows += [torch.tensor([*begin, *ids[start : start + own]]) for start in whole]
        if len(windows) >= count:
            break
    if len(windows) < 2:
        needed = f"a lens needs texts of at least {length} tokens, two or more"
        raise usage_error(f"the texts are too short: {needed}", "use more text")
    return torch.stack(windows[:count])
