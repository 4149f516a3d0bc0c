"""Examples -> token ids, each with the place from which on it is to be learnt: a reply, not its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from llmcli.text.chat_format import TemplateFormat
from llmcli.text.chat_template import Message
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.batches import Encoded
from llmcli.train.corpus import Example

MANY = 10_000  # texts that are encoded at a time: ids lie in memory several times over for a moment


@dataclass(frozen=True)
class Encoder:
    """``form`` writes prompts, for those who learn replies; ``end`` is the token behind every text, if there is one."""

    tokenizer: Tokenizer
    end: int | None
    form: TemplateFormat | None = None

    def texts(self, examples: Sequence[Example]) -> list[Encoded]:
        """Each text from the beginning; a prompt that it has does not count."""
        start, end = self.tokenizer.encode("")[:1], [] if self.end is None else [self.end]
        return [Encoded([*start, *ids, *end]) for ids in self._ids([example.text for example in examples])]

    def replies(self, examples: Sequence[Example]) -> list[Encoded]:
        """Each text as the reply to its prompt, all of whose tokens come before the first to be learnt."""
        assert self.form is not None
        ends = [*self.form.end_ids][:1] or ([] if self.end is None else [self.end])
        replies = self._ids([example.text for example in examples])
        found = []
        for example, reply in zip(examples, replies, strict=True):
            prompt = self.form.encode(self.form.render([Message("user", example.prompt or "")]))
            found.append(Encoded([*prompt, *reply, *ends], max(len(prompt), 1)))
        return found

    def mixed(self, examples: Sequence[Example], *, plain: float, seed: int) -> list[Encoded]:
        """Those with a prompt as replies, but for a share of ``plain`` drawn at random; that and the rest as texts."""
        drawn = torch.rand(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
        of_reply = [bool(example.prompt) and u >= plain for example, u in zip(examples, drawn, strict=True)]
        replies = iter(self.replies([e for e, replies in zip(examples, of_reply, strict=True) if replies]))
        texts = iter(self.texts([e for e, replies in zip(examples, of_reply, strict=True) if not replies]))
        return [next(replies if one else texts) for one in of_reply]

    def pairs(self, examples: Sequence[Example]) -> list[Encoded]:
        """Of each example its preferred reply and its rejected one, in turn."""
        both = [one for e in examples for one in (e, replace(e, text=e.rejected or ""))]
        return self.replies(both)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts alone, in which special tokens are text."""
        self.tokenizer.fast.encode_special_tokens = True
        batches = (texts[n : n + MANY] for n in range(0, len(texts), MANY))
        return [
            list(encoding.ids)
            for batch in batches
            for encoding in self.tokenizer.fast.encode_batch_fast(batch, add_special_tokens=False)
        ]
