"""Direct preference optimization (Rafailov et al. 2023): learn to prefer the better of two replies.

A reply's reward is beta times the increase of its log probability (in nats, summed over its tokens) since the
run began. The loss is -ln sigmoid of the difference between the rewards of the chosen and the rejected reply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.model.transformer import Transformer
from llmcli.train.batches import IGNORED, Encoded, windows_at
from llmcli.train.objective import Compile

REFERENCE = "reference"


class Preference:
    """The loss over pairs, as rows [chosen, rejected, chosen, rejected, …], each padded to ``context`` tokens.

    ``pairs`` and ``held_out`` alternate between the two replies of each pair. Raises LlmcliError if a prompt fills the
    context, or if the two replies of a pair are identical within the context.
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
        self._train_count = len(pairs) // 2
        rows = [_row(reply, context) for reply in (*pairs, *held_out)]
        self._inputs = torch.stack([inputs for inputs, _ in rows]).view(-1, 2, context)
        self._targets = torch.stack([targets for _, targets in rows]).view(-1, 2, context)
        identical = (self._targets[:, 0] == self._targets[:, 1]).all(-1)
        if identical.any():
            raise LlmcliError(
                f"the replies of pair {int(identical.nonzero()[0]) + 1} are identical in their first {context} tokens",
                kind="identical-replies",
            )
        self._logprobs: Callable[..., Tensor] = reply_logprobs

    @property
    def kept_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {REFERENCE: (len(self._inputs), 2)}

    def prepare(self, model: Transformer, compile: Compile) -> None:
        self._logprobs = compile(reply_logprobs)
        if REFERENCE not in self.kept:
            self.kept[REFERENCE] = self._all_logprobs(model, range(len(self._inputs)))

    def loss(self, model: Transformer, step: int) -> Tensor:
        pairs = windows_at(step, self._train_count, self._batch_size, self._seed)
        logprobs = self._pair_logprobs(model, pairs)
        return dpo_loss(logprobs, self.kept[REFERENCE][pairs].to(model.device), self._beta).mean()

    def score(self, model: Transformer, precision: torch.dtype) -> dict[str, Any]:
        held_out = range(self._train_count, len(self._inputs))
        with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
            logprobs = self._all_logprobs(model, held_out)
        gain = logprobs - self.kept[REFERENCE][self._train_count :]
        return {"preferred": float((gain[:, 0] > gain[:, 1]).float().mean())}

    def _all_logprobs(self, model: Transformer, pairs: range) -> Tensor:
        """Return the log probabilities [pairs, 2] of the replies, in nats, on the CPU."""
        with torch.no_grad():
            return torch.cat([self._pair_logprobs(model, torch.tensor([pair])).cpu() for pair in pairs])

    def _pair_logprobs(self, model: Transformer, pairs: Tensor) -> Tensor:
        """Return the log probabilities [B, 2] of the replies of the pairs with these indices [B], in nats."""
        inputs, targets = (rows[pairs].flatten(0, 1).to(model.device) for rows in (self._inputs, self._targets))
        return self._logprobs(model, inputs, targets).view(-1, 2)


def dpo_loss(logprobs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return the loss of each pair, [B], equation 7 of the paper.

    ``logprobs`` [B, 2] are the log probabilities of the chosen and the rejected reply in nats, ``reference`` [B, 2]
    those under the initial model.
    """
    rewards = beta * (logprobs - reference)
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1])


def reply_logprobs(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the log probability in nats of each row's targets, [B], without those that are ``IGNORED``."""
    logits = model(inputs).float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return -losses.view_as(targets).sum(-1)


def _row(example: Encoded, context: int) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a reply, each [context]. Raises LlmcliError if its prompt fills the context."""
    ids = torch.tensor(example.ids[: context + 1])
    if example.first >= len(ids):
        raise LlmcliError(f"a prompt is longer than the context of {context}", kind="prompts-beyond-context")
    inputs, targets = torch.zeros(context, dtype=torch.long), torch.full((context,), IGNORED)
    inputs[: len(ids) - 1] = ids[:-1]
    targets[example.first - 1 : len(ids) - 1] = ids[example.first :]
    return inputs, targets
