"""Fitting the tuned lens to a model on texts.

The tuned lens (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens") has an affine
map A x + b for each layer that minimizes the divergence D(final‖lens). It is fitted here in two steps:

1. Least squares: the map that best predicts the final residual stream y from the layer's stream x, in closed form. Each
   position counts relative to the length of its y, which the final norm removes. This needs no logits.
2. Adam reduces the divergence itself, on some of the positions, because logits of a large vocabulary are expensive. The
   paper uses SGD with momentum from the identity. Adam moves a map M of features that are uncorrelated and of one
   size: those of x are not, and then no learning rate suits them all.

Each layer keeps the map that diverges least on windows that were not fitted: that of Adam, of least squares, or the
identity, which can be the best near the end of the model.

Shapes: N windows, T positions, C hidden size, L layers; z is x with a 1 appended, which b multiplies, [..., C + 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.explain.lenses.fitted_lens import FitProgress, FittedLens, require_finite
from llmcli.explain.lenses.lens_divergence import divergences
from llmcli.explain.lenses.residual_streams import streams_of
from llmcli.model.transformer import Transformer

BATCH = 4  # windows per forward pass
WORK = 3 * 10**12  # multiplications for the logits that Adam sees, at most: they take most of the time
LEAST = 512  # positions on which Adam reduces the divergence, even if that is more work
STEP = 16  # positions per step
RATE = 0.006  # how far a step moves the output of a map, about, relative to its size
CHOSEN_ON = 4  # windows that decide which map a layer keeps
RIDGE = 0.1  # times C / positions: how strongly least squares prefers the identity


class _LeastSquares:
    """The sums over positions from which the map of one layer follows, in fp64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.gram = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=device)
        self.cross = torch.zeros(width + 1, width, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, x: Tensor, final: Tensor) -> None:
        """Add positions: x [n, C] after the layer, and the final stream [n, C]."""
        x, final = x.double(), final.double()
        size = final.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        z = _with_one(x) / size
        self.gram += z.T @ z
        self.cross += z.T @ ((final - x) / size)
        self.count += len(x)

    def solve(self) -> _Map:
        """Return the map of least squares, with a ridge towards the identity."""
        sizes = self.gram.diagonal()
        ridge = RIDGE * len(sizes) / self.count * sizes.clamp_min(1e-6 * float(sizes.mean()))
        lower, failed = torch.linalg.cholesky_ex(self.gram + ridge.diag())
        if failed:  # the sums are not finite
            lower = torch.full_like(lower, math.nan)
        whitening = torch.linalg.inv(lower).T * self.count**0.5
        return _Map(torch.cholesky_solve(self.cross, lower).float(), whitening.float())


class _Map:
    """The map of one layer: y = x + z (S + W M). ``squares`` is S [C + 1, C], and W ``whitening`` [C + 1, C + 1].

    The features z W are uncorrelated, and as long as y. Adam trains M, ``learned`` [C + 1, C].
    """

    def __init__(self, squares: Tensor, whitening: Tensor) -> None:
        self.squares, self.whitening = squares, whitening
        self.learned = torch.zeros_like(squares, requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        z = _with_one(x)
        return x + z @ self.squares + z @ self.whitening @ self.learned

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the map's matrix A [C, C] and b [C]."""
        both = self.squares + self.whitening @ self.learned.detach()
        return both[:-1].T + torch.eye(both.shape[1], device=both.device), both[-1]


def fit_tuned(model: Transformer, windows: Tensor, progress: FitProgress) -> FittedLens:
    """Return the tuned lens of ids ``windows`` [N, T]. Raises LlmcliError if the fit is not finite."""
    chosen_on = min(CHOSEN_ON, len(windows) // 4)
    windows, decisive = windows[: len(windows) - chosen_on], windows[len(windows) - chosen_on :]
    stride = _stride(model, windows.numel())
    steps = math.ceil(len(range(0, windows.numel(), stride)) / STEP)
    passes = math.ceil(len(windows) / BATCH)
    maps, kept = _least_squares(model, windows, stride, lambda done: progress(done, passes + steps))
    optimizer = torch.optim.Adam([each.learned for each in maps], lr=RATE / kept.shape[-1], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        *sources, final = kept[:, step::steps]
        for each, gradient in zip(maps, _gradients(model, maps, sources, final), strict=True):
            each.learned.grad = gradient
        optimizer.step()
        schedule.step()
        progress(passes + step + 1, passes + steps)
    trained = _lens_of([each.weights() for each in maps])
    for each in maps:
        torch.nn.init.zeros_(each.learned)
    squares = _lens_of([each.weights() for each in maps])
    identity = torch.eye(kept.shape[-1], device=model.device).expand_as(trained.matrices)
    plain = FittedLens("tuned", identity, torch.zeros_like(trained.biases))
    return require_finite(_best(model, decisive, [trained, squares, plain]))


def _lens_of(maps: Sequence[tuple[Tensor, Tensor]]) -> FittedLens:
    matrices, biases = zip(*maps, strict=True)
    return FittedLens("tuned", torch.stack(matrices), torch.stack(biases))


def _best(model: Transformer, windows: Tensor, lenses: Sequence[FittedLens]) -> FittedLens:
    """Return the map of each layer that diverges least in ids ``windows`` [N, T]; those of the first without any."""
    if not len(windows):
        return lenses[0]
    found = torch.stack([divergences(model, windows, lens).mean(0) for lens in lenses])
    choice = found[:, :-1].argmin(0).tolist()
    return _lens_of([(lenses[best].matrices[n], lenses[best].biases[n]) for n, best in enumerate(choice)])


def _stride(model: Transformer, positions: int) -> int:
    """Return n such that the divergence at every n-th position is affordable."""
    config = model.config
    affordable = max(LEAST, WORK // (config.num_hidden_layers * config.hidden_size * config.vocab_size))
    return math.ceil(positions / affordable) | 1  # odd, so that all positions of a window occur


@torch.no_grad()
def _least_squares(
    model: Transformer, windows: Tensor, stride: int, progress: Callable[[int], None]
) -> tuple[list[_Map], Tensor]:
    """Return the map of each layer that fits all positions, and the streams [L + 1, n, C] of each ``stride``-th."""
    squares = [_LeastSquares(model.config.hidden_size, model.device) for _ in range(model.config.num_hidden_layers)]
    kept: list[Tensor] = []
    read = 0
    for number, ids in enumerate(torch.split(windows, BATCH)):
        *sources, final = (x.flatten(0, 1) for x in streams_of(model, ids))
        for each, x in zip(squares, sources, strict=True):
            each.add(x, final)
        kept.append(torch.stack([x[-read % stride :: stride] for x in (*sources, final)]))
        read += ids.numel()
        progress(number + 1)
    return [each.solve() for each in squares], torch.cat(kept, 1)


def _gradients(model: Transformer, maps: list[_Map], sources: Sequence[Tensor], final: Tensor) -> Iterator[Tensor]:
    """Yield for each layer the gradient of the mean divergence D(final‖lens) with respect to its map."""
    with torch.no_grad():
        target = model.unembed(final).softmax(-1)
    for each, x in zip(maps, sources, strict=True):
        with torch.enable_grad():
            logits = model.unembed(each(x))
        error = (logits.detach().softmax(-1) - target) / len(final)  # the divergence's derivative
        yield from torch.autograd.grad(logits, each.learned, error)


def _with_one(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1), value=1.0)
