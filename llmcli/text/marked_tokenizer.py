"""A copy of a tokenizer that recognizes control tokens only where they are marked, so that no text can forge one."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from itertools import accumulate
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from llmcli.errors import LlmcliError
from llmcli.text.tokenizer_errors import tokenizer_errors

PROBLEM = "the tokenizer cannot encode a chat"


class MarkedTokenizer:
    """Encodes texts in which each of ``tokens`` that is meant as a token is written between two ``mark`` characters.

    Without marks it is text. The copy is the same tokenizer with these tokens renamed wherever they occur, including in
    the vocabulary, which may hold one as an ordinary entry ("</s>"). Ids and all rules stay the same, except that the
    post-processor is removed. ``mark`` is one character that neither the tokenizer nor any text contains.
    """

    def __init__(self, fast: FastTokenizer, tokens: Collection[str], mark: str) -> None:
        self.mark = mark
        names = {token: self.marked(token) for token in tokens}
        with tokenizer_errors(PROBLEM):
            self._copy = FastTokenizer.from_str(json.dumps(_renamed(json.loads(fast.to_str()), names)))
        self._copy.encode_special_tokens = False
        if any(self._copy.token_to_id(name) != fast.token_to_id(token) for token, name in names.items()):
            raise LlmcliError(
                f"{PROBLEM}: the ids of its added tokens are inconsistent", "its tokenizer.json may be damaged"
            )

    def marked(self, token: str) -> str:
        """Return ``token`` between two marks."""
        return f"{self.mark}{token}{self.mark}"

    def encode_spans(self, text: str) -> list[tuple[int, int, int]]:
        """Return each id with its (start, end) offsets in the text without marks.

        Raises LlmcliError if the tokenizer fails on it.
        """
        with tokenizer_errors(PROBLEM):
            found = self._copy.encode(text, add_special_tokens=False)
        unmarked = [0, *accumulate(char != self.mark for char in text)]
        return [(id, unmarked[a], unmarked[b]) for id, (a, b) in zip(found.ids, found.offsets, strict=True)]


def _renamed(raw: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The contents of a tokenizer.json with each token in ``names`` renamed, and without the post-processor."""

    def rename(token: str) -> str:
        return names.get(token, token)

    added = [
        # Not normalized: the token is matched in the text before the normalizer could change the marks.
        {
            **token,
            "content": rename(token["content"]),
            "normalized": token["normalized"] and token["content"] not in names,
        }
        for token in raw["added_tokens"]
    ]
    return {**raw, "added_tokens": added, "model": _renamed_model(raw["model"], rename), "post_processor": None}


def _renamed_model(model: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """The model with its vocabulary: (token, score) pairs for Unigram, ids by token for all others."""
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return {**model, "vocab": [[rename(token), score] for token, score in vocab]}
    new = {**model, "vocab": {rename(token): id for token, id in vocab.items()}}
    if model.get("unk_token") is not None:
        new["unk_token"] = rename(model["unk_token"])
    if "merges" in model:  # pairs, or "a b" in older files
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        new["merges"] = [pair for pair in pairs if all(rename(part) == part for part in (*pair, "".join(pair)))]
    return new
