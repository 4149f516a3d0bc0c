"""Documents -> one long row of token ids -> shuffled windows of context length, the same for the same seed."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.train.vocabulary import BOS_ID, EOS_ID


def encode(tokenizer: Tokenizer, documents: list[str]) -> list[list[int]]:
    """Each document as ids, from BOS to EOS."""
    encoded = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    return [[BOS_ID, *encoding.ids, EOS_ID] for encoding in encoded]


class Batches:
    """Windows of context+1 ids (input and, one later, target), in an order drawn anew for every epoch.

    Documents are shuffled once and laid end to end, so a window may hold the end of one and the start of another.
    """

    def __init__(self, documents: list[list[int]], *, context: int, batch_size: int, seed: int) -> None:
        self.context, self.batch_size, self.seed = context, batch_size, seed
        order = self._permutation(len(documents), epoch=-1)
        self.ids = torch.tensor([i for d in order.tolist() for i in documents[d]], dtype=torch.int32)
        self.windows = (len(self.ids) - 1) // context
        if not self.windows:
            raise LlmcliError(
                f"the corpus comes to {len(self.ids)} tokens, less than one context of {context}",
                "give more text or a smaller --context",
            )

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step, each [batch_size, context]: a pure function of seed and step."""
        first = step * self.batch_size
        rows = [self._window(number) for number in range(first, first + self.batch_size)]
        ids = torch.stack(rows).long()
        return ids[:, :-1], ids[:, 1:]

    def _window(self, number: int) -> Tensor:
        epoch, place = divmod(number, self.windows)
        start = int(self._permutation(self.windows, epoch)[place]) * self.context
        return self.ids[start : start + self.context + 1]

    def _permutation(self, count: int, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch + 1)
        return torch.randperm(count, generator=generator)
