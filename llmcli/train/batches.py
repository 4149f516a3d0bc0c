"""Examples -> token ids -> shuffled windows of the context's length, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.text.chat_format import TemplateFormat
from llmcli.text.chat_template import Message
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.corpus import Example

IGNORED = -100  # cross entropy's index for targets that do not count
MAX_OPEN = 64  # windows with free space that are considered for the next example
ENCODED_AT_ONCE = 10_000  # texts: while they are encoded, their ids are in memory several times


@dataclass(frozen=True)
class Encoded:
    """An example as token ids, from BOS to EOS, of which ``ids[first:]`` are the targets to learn."""

    ids: list[int]
    first: int = 1


@dataclass(frozen=True)
class Encoder:
    """Turns examples into token ids. ``form`` renders prompts, for replies; ``end`` is appended to every text."""

    tokenizer: Tokenizer
    end: int | None
    form: TemplateFormat | None = None

    def texts(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode each example's text, all of it to be learned; prompts are ignored."""
        start, end = self.tokenizer.encode("")[:1], [] if self.end is None else [self.end]
        return [Encoded([*start, *ids, *end]) for ids in self._ids([example.text for example in examples])]

    def replies(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode each example's text as the reply to its prompt; only the reply is to be learned."""
        assert self.form is not None
        ends = [*self.form.end_ids][:1] or ([] if self.end is None else [self.end])
        replies = self._ids([example.text for example in examples])
        encoded = []
        for example, reply in zip(examples, replies, strict=True):
            prompt = self.form.encode(self.form.render([Message("user", example.prompt or "")]))
            encoded.append(Encoded([*prompt, *reply, *ends], max(len(prompt), 1)))
        return encoded

    def mixed(self, examples: Sequence[Example], *, plain: float, seed: int) -> list[Encoded]:
        """Encode examples with a prompt as replies, and the others as texts.

        A random fraction ``plain`` of those with a prompt becomes texts too.
        """
        drawn = torch.rand(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
        is_reply = [bool(example.prompt) and u >= plain for example, u in zip(examples, drawn, strict=True)]
        replies = iter(self.replies([e for e, reply in zip(examples, is_reply, strict=True) if reply]))
        texts = iter(self.texts([e for e, reply in zip(examples, is_reply, strict=True) if not reply]))
        return [next(replies if reply else texts) for reply in is_reply]

    def pairs(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode the chosen and the rejected reply of each example, alternating."""
        replies = [reply for e in examples for reply in (e, replace(e, text=e.rejected or ""))]
        return self.replies(replies)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, without BOS and EOS; special tokens in the texts are encoded as text."""
        batches = (texts[n : n + ENCODED_AT_ONCE] for n in range(0, len(texts), ENCODED_AT_ONCE))
        return [ids for batch in batches for ids in self.tokenizer.encode_all(batch)]


class Batches:
    """Windows of context+1 ids (inputs, and shifted by one, targets), in a new random order for each epoch.

    ``rows`` are ids [W, context + 1]; ``learned`` [W, context + 1] marks those to be predicted.
    """

    def __init__(self, rows: Tensor, learned: Tensor, *, batch_size: int, seed: int) -> None:
        self.rows, self.learned, self.batch_size, self.seed = rows, learned, batch_size, seed

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of a step, each [batch_size, context]; a pure function of seed and step."""
        windows = windows_at(step, len(self.rows), self.batch_size, self.seed)
        ids = self.rows[windows].long()
        return ids[:, :-1], ids[:, 1:].masked_fill(~self.learned[windows, 1:], IGNORED)


def cut(examples: Sequence[Encoded], *, context: int, batch_size: int, seed: int) -> Batches:
    """Shuffle and concatenate all examples, and cut the result into windows, which may span several examples.

    Raises LlmcliError if the text is shorter than one window.
    """
    ids = torch.tensor(
        [i for n in shuffled(len(examples), seed, -1).tolist() for i in examples[n].ids], dtype=torch.int32
    )
    windows = (len(ids) - 1) // context
    if not windows:
        raise LlmcliError(
            f"the corpus has {len(ids)} tokens, fewer than one context of {context}", kind="corpus-below-context"
        )
    rows = ids[: windows * context + 1].unfold(0, context + 1, context)
    return Batches(rows, torch.ones_like(rows, dtype=torch.bool), batch_size=batch_size, seed=seed)


def pack(examples: Sequence[Encoded], *, context: int, batch_size: int, seed: int) -> Batches:
    """Put each example into one window, together with others that fit; longer ones are truncated.

    The rest of a window is padding. Raises LlmcliError if no example has a token to learn within a window.
    """
    windows: list[list[Encoded]] = []
    free: list[tuple[int, int]] = []  # (free ids, window) of those that are considered
    for n in shuffled(len(examples), seed, -1).tolist():
        example = Encoded(examples[n].ids[: context + 1], examples[n].first)
        size = len(example.ids)
        if example.first >= size:
            continue  # its prompt alone is longer than a window
        fitting = min((entry for entry in free if entry[0] >= size), default=None)  # the fullest wastes least
        if fitting is None:
            windows.append([])
            fitting = (context + 1, len(windows) - 1)
        else:
            free.remove(fitting)
        windows[fitting[1]].append(example)
        free = [*free, (fitting[0] - size, fitting[1])][-MAX_OPEN:]
    if not windows:
        raise LlmcliError(f"no example fits a context of {context}", kind="prompts-beyond-context")
    rows = torch.zeros(len(windows), context + 1, dtype=torch.int32)
    learned = torch.zeros_like(rows, dtype=torch.bool)
    for row, mask, window in zip(rows, learned, windows, strict=True):
        start = 0
        for example in window:
            end = start + len(example.ids)
            row[start:end] = torch.tensor(example.ids, dtype=torch.int32)
            mask[start + example.first : end] = True
            start = end
    return Batches(rows, learned, batch_size=batch_size, seed=seed)


def windows_at(step: int, count: int, batch_size: int, seed: int) -> Tensor:
    """Return which of ``count`` windows a step uses: each window once per epoch, in a random order per epoch."""
    numbers = range(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: shuffled(count, seed, epoch) for epoch in {number // count for number in numbers}}
    return torch.stack([orders[number // count][number % count] for number in numbers])


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """Return a random permutation of ``range(count)``; epoch -1 is for the order of examples."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1))
