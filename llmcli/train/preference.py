"""Direct preference optimization (Rafailov et al. 2023): learn from pairs which of two replies is the better.

A reply's reward is beta times how much more probable (in nats, its tokens summed) the model finds it than the model
that the run began with. The loss is the surprisal of the better reply winning, -ln sigmoid of the rewards' difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.model.transformer import Transformer
from llmcli.train.batches import IGNORED, Encoded, places_at
from llmcli.train.objective import Compile

REFERENCE = "reference"


class Preference:
    """Pairs as rows [chosen, rejected, chosen, rejected, …], each reply filled up to ``context`` tokens.

    ``pairs`` and ``held_out`` hold the two replies of each pair in turn. Errors: a prompt fills the context, or the two
    replies of a pair are alike in it.
    """

    def __init__(
        self,
        pairs: Sequence[Encoded],
        held_out: Sequence[Encoded],
        *,
        context: int,
        batch_size: int,
        beta: float,
        seed: int,
    ) -> None:
        self.kept: dict[str, Tensor] = {}
        self._beta, self._batch_size, self._seed = beta, batch_size, seed
        self._train = len(pairs) // 2
        rows = [_row(one, context) for one in (*pairs, *held_out)]
        self._inputs = torch.stack([inputs for inputs, _ in rows]).view(-1, 2, context)
        self._targets = torch.stack([targets for _, targets in rows]).view(-1, 2, context)
        alike = (self._targets[:, 0] == self._targets[:, 1]).all(-1)
        if alike.any():
            raise LlmcliError(
                f"the two replies of pair {int(alike.nonzero()[0]) + 1} are alike in the first {context} tokens",
                "leave it out, or give a larger --context",
            )
        self._logprobs: Callable[..., Tensor] = reply_logprobs

    def prepare(self, model: Transformer, compile: Compile) -> None:
        self._logprobs = compile(reply_logprobs)
        if REFERENCE not in self.kept:
            self.kept[REFERENCE] = self._all_logprobs(model, range(len(self._inputs)))

    def loss(self, model: Transformer, step: int) -> Tensor:
        places = places_at(step, self._train, self._batch_size, self._seed)
        logprobs = self._of(model, places)
        return dpo_loss(logprobs, self.kept[REFERENCE][places].to(model.device), self._beta).mean()

    def score(self, model: Transformer, precision: torch.dtype) -> dict[str, Any]:
        held_out = range(self._train, len(self._inputs))
        with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
            now = self._all_logprobs(model, held_out)
        gain = now - self.kept[REFERENCE][self._train :]
        return {"preferred": float((gain[:, 0] > gain[:, 1]).float().mean())}

    def _all_logprobs(self, model: Transformer, places: range) -> Tensor:
        """[pairs, 2], on the CPU."""
        with torch.no_grad():
            return torch.cat([self._of(model, torch.tensor([place])).cpu() for place in places])

    def _of(self, model: Transformer, places: Tensor) -> Tensor:
        """Log probabilities [B, 2] of the replies of pairs [B], in nats."""
        inputs, targets = (rows[places].flatten(0, 1).to(model.device) for rows in (self._inputs, self._targets))
        return self._logprobs(model, inputs, targets).view(-1, 2)


def dpo_loss(logprobs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The loss of each pair, [B]; ``logprobs`` [B, 2] are those of the chosen and the rejected reply, in nats.

    ``reference`` [B, 2] are those under the model before. Equation 7 of the paper.
    """
    rewards = beta * (logprobs - reference)
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1])


def reply_logprobs(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """The log probability of each row's targets, those ``IGNORED`` left out, in nats: [B]."""
    logits = model(inputs).float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return -losses.view_as(targets).sum(-1)


def _row(example: Encoded, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets [context]."""
    ids = torch.tensor(example.ids[: context + 1])
    if example.first >= len(ids):
        raise LlmcliError(f"a prompt alone is longer than the context of {context}", "give a larger --context")
    inputs, targets = torch.zeros(context, dtype=torch.long), torch.full((context,), IGNORED)
    inputs[: len(ids) - 1] = ids[:-1]
    targets[example.first - 1 : len(ids) - 1] = ids[example.first :]
    return inputs, targets
