"""A text cut where its tokens complete it: what a view of the whole text shows in its colours."""

from __future__ import annotations

from collections.abc import Sequence

from llmcli.text.stream import TextStream
from llmcli.text.tokenizer import Tokenizer


def running(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], int]:
    """The text that each token but the first completes, and how many bytes of the text are theirs.

    A character that the first token only begins is shown whole where it is completed; the bytes of the
    first are not counted. Special tokens have neither text nor bytes.
    """
    stream = TextStream(tokenizer)
    first = stream.feed(ids[0])
    chunks = [stream.feed(id) for id in ids[1:]]
    chunks[-1] += stream.finish()
    begun = b"" if first or ids[0] in tokenizer.special_ids else tokenizer.token_bytes(ids[0])
    return chunks, len("".join(chunks).encode()) - len(begun)
