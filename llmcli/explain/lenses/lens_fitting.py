"""Fitting lenses to a model on texts: the tuned lens and the Jacobian lens.

The tuned lens (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens") has an
affine map A x + b for each layer, at first the identity, trained to minimize D(final‖lens). The optimizer is Adam; the
paper uses SGD with momentum.

The Jacobian lens (Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models") is not
trained. It maps x to J x, with J the derivative of the final residual stream with respect to the one after the layer,
averaged over texts. The estimator is the one that the authors' code documents (anthropics/jacobian-lens, fitting.py):
derivatives are summed over the current and all later positions of the final stream, then averaged over the positions of
the source. The first 16 positions are not counted, because early positions are attention sinks.

Shapes: N windows, T positions, C hidden size, L layers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error
from llmcli.explain.lenses.fitted_lens import FittedLens, LensKind
from llmcli.explain.report import Report
from llmcli.generation.distribution import kl_divergence
from llmcli.generation.loaded import LoadedModel
from llmcli.model.hooks import Hooks, Site, hooked
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import quantization_of

LENGTH = 128  # positions of a window, if the context has as many
FIRST = 16  # positions that the Jacobian's average omits
BATCH = 4  # windows per step
HELD_OUT = 4  # windows
PIECE = 64  # positions whose logits are in memory at a time
TOKENS: dict[LensKind, int] = {"tuned": 16384, "jacobian": 512}
RATE = 0.5  # Adam's learning rate, times the hidden size

FitProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class FittedLayer:
    """Mean divergences D(final‖layer) on held-out text, bits; ``layer`` None is the embedding."""

    layer: int | None
    plain_kl: float
    kl: float


@dataclass(frozen=True)
class FitLensReport(Report):
    """What a fitted lens gains over the plain one: ``tokens`` were used to fit, ``held_out`` tokens to measure."""

    model: str
    kind: LensKind
    tokens: int
    held_out: int
    layers: tuple[FittedLayer, ...]


@dataclass
class _Recorder(Hooks):
    """Hooks that keep the residual stream before each layer and after the last, with its graph."""

    residual: list[Tensor] = field(default_factory=list)

    def run(self, site: Site, x: Tensor, positions: Tensor) -> Tensor:
        if site.part == "residual":
            x = x.detach().requires_grad_() if site.layer < 0 and torch.is_grad_enabled() else x
            self.residual.append(x)
        return x


def residual_streams(model: Transformer, ids: Tensor) -> list[Tensor]:
    """The residual stream [N, T, C] of ids [N, T] before each layer and after the last, with its graph if enabled."""
    recorder = _Recorder()
    hooked(model, recorder).hidden(ids)
    return recorder.residual


def fit_lens(
    loaded: LoadedModel,
    texts: Sequence[str],
    kind: LensKind,
    *,
    tokens: int | None = None,
    seed: int = 0,
    progress: FitProgress = lambda done, total: None,
) -> tuple[FittedLens, FitLensReport]:
    """Fit a lens on about ``tokens`` tokens of ``texts`` (None: ``TOKENS``), and compare it with the plain one.

    The last windows are held out. ``seed`` decides the order of the others; the tuned lens reads them again if they are
    fewer than ``tokens``. ``progress`` receives the steps done and the total.
    Raises LlmcliError if the model is quantized or the texts are too short.
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
    order = _order(len(fitted_on), wanted, seed, again=kind == "tuned")
    lens = (fit_tuned if kind == "tuned" else fit_jacobian)(model, fitted_on[order], progress)
    used = len(order) * length
    text_hash = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    notes = {"text": text_hash, "tokens": str(used), "seed": str(seed)}
    lens = FittedLens(kind, lens.matrices.cpu(), lens.biases.cpu(), notes)
    plain, fitted = held_out_kl(model, held_out, None), held_out_kl(model, held_out, lens)
    rows = (FittedLayer(n - 1 if n else None, *both) for n, both in enumerate(zip(plain, fitted, strict=True)))
    return lens, FitLensReport(loaded.name, kind, used, held_out.numel(), tuple(rows))


def cut(loaded: LoadedModel, texts: Sequence[str], length: int, count: int) -> Tensor:
    """The first ``count`` windows of ``length`` tokens of the texts, none over a text's end: ids [N, T].

    Raises LlmcliError if there are fewer than two.
    """
    windows: list[Tensor] = []
    for text in texts:
        ids = torch.tensor(loaded.tokenizer.encode(text), dtype=torch.int64)
        whole = len(ids) // length
        windows += ids[: whole * length].view(whole, length)
        if len(windows) >= count:
            break
    if len(windows) < 2:
        needed = f"a lens needs texts of at least {length} tokens, two or more"
        raise usage_error(f"the texts are too short: {needed}", "use more text")
    return torch.stack(windows[:count])


def _order(count: int, wanted: int, seed: int, *, again: bool) -> Tensor:
    """Which of ``count`` windows are read, in which order: ``wanted`` of them, or all if they are fewer."""
    generator = torch.Generator().manual_seed(seed)
    rounds = math.ceil(wanted / count) if again else 1
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])[:wanted]


def fit_jacobian(model: Transformer, windows: Tensor, progress: FitProgress) -> FittedLens:
    """The Jacobian lens, exact for ids ``windows`` [N, T]: a backward pass for each feature of the final stream."""
    config = model.config
    C, T = config.hidden_size, windows.shape[1]
    first = min(FIRST, T // 2)
    sums = torch.zeros(config.num_hidden_layers, C, C, device=model.device)
    batches = torch.split(windows, BATCH)
    for number, ids in enumerate(batches):
        with torch.enable_grad():
            *sources, final = residual_streams(model, ids)
        for feature in range(C):
            wanted = torch.zeros_like(final)
            wanted[:, first:, feature] = 1
            keep = feature < C - 1
            gradients = torch.autograd.grad(final, sources, wanted, retain_graph=keep, materialize_grads=True)
            for layer, gradient in enumerate(gradients):
                sums[layer, feature] += gradient[:, first:].mean(1).sum(0)
            progress(number * C + feature + 1, len(batches) * C)
    return _finite(FittedLens("jacobian", sums / len(windows), torch.zeros_like(sums[:, 0])))


def fit_tuned(model: Transformer, windows: Tensor, progress: FitProgress) -> FittedLens:
    """The tuned lens, trained on ids ``windows`` [N, T] in this order, a step for every ``BATCH`` of them.

    Trained are (A - I) and b relative to the layer's size, so that one learning rate fits all layers.
    """
    L, C = model.config.num_hidden_layers, model.config.hidden_size
    maps = [torch.zeros(C, C, device=model.device, requires_grad=True) for _ in range(L)]
    shifts = [torch.zeros(C, device=model.device, requires_grad=True) for _ in range(L)]
    optimizer = torch.optim.Adam([*maps, *shifts], lr=RATE / C, betas=(0.9, 0.99))
    batches = torch.split(windows, BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    sizes: list[Tensor] = []
    for number, ids in enumerate(batches):
        with torch.no_grad():
            *sources, final = (x.flatten(0, 1) for x in residual_streams(model, ids))
        sizes = sizes or [x.square().mean(-1).sqrt().median() for x in sources]
        optimizer.zero_grad()
        for rows in _pieces(len(final)):
            with torch.no_grad():
                target = model.unembed(final[rows]).log_softmax(-1)
            for layer, x in enumerate(sources):
                with torch.enable_grad():
                    moved = x[rows] + x[rows] @ maps[layer].T + sizes[layer] * shifts[layer]
                    logps = model.unembed(moved).log_softmax(-1)
                    loss = (target.exp() * (target - logps)).sum() / len(final)
                for parameter, gradient in zip(
                    (maps[layer], shifts[layer]),
                    torch.autograd.grad(loss, (maps[layer], shifts[layer])),
                    strict=True,
                ):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        optimizer.step()
        schedule.step()
        progress(number + 1, len(batches))
    matrices = torch.stack([matrix.detach() for matrix in maps]) + torch.eye(C, device=model.device)
    biases = torch.stack([size * shift.detach() for size, shift in zip(sizes, shifts, strict=True)])
    return _finite(FittedLens("tuned", matrices, biases))


def _finite(lens: FittedLens) -> FittedLens:
    if not (lens.matrices.isfinite().all() and lens.biases.isfinite().all()):
        raise LlmcliError("the lens has numbers that are NaN or infinite", kind="logits-not-finite")
    return lens


def _pieces(count: int) -> Iterator[slice]:
    return (slice(start, start + PIECE) for start in range(0, count, PIECE))


@torch.no_grad()
def held_out_kl(model: Transformer, windows: Tensor, lens: FittedLens | None) -> list[float]:
    """Mean D(final‖layer) in bits after the embedding and each layer, over all positions of ids [N, T]."""
    sums = [0.0] * (model.config.num_hidden_layers + 1)
    for ids in windows:
        streams = [x[0] for x in residual_streams(model, ids[None])]
        for rows in _pieces(len(ids)):
            final = model.unembed(streams[-1][rows])
            for number, x in enumerate(streams):
                moved = x[rows] if lens is None else lens.transport(number, x[rows])
                sums[number] += float(kl_divergence(final, model.unembed(moved)).sum())
    return [total / windows.numel() for total in sums]
