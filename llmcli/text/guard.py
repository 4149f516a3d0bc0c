"""A tokenizer's twin that reads chosen tokens only where they are marked, so that no text can pass for one."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from tokenizers import Tokenizer as FastTokenizer


class Guard:
    """Ids of texts in which each of ``tokens`` that is meant as a token stands between two ``mark``s.

    Where it stands unmarked, it is text. The twin is the same tokenizer with those tokens under other
    names, wherever it knows them: also in the vocabulary, which may spell one out ("</s>" as a piece).
    Ids stay, as do all rules of the tokenizer. It puts no tokens around a text. ``mark`` is one
    character that the tokenizer does not know, and that no text may hold.
    """

    def __init__(self, fast: FastTokenizer, tokens: Collection[str], mark: str) -> None:
        self.mark = mark
        names = {token: self.marked(token) for token in tokens}
        self._twin = FastTokenizer.from_str(json.dumps(_renamed(json.loads(fast.to_str()), names)))
        self._twin.encode_special_tokens = False
        assert all(self._twin.token_to_id(name) == fast.token_to_id(token) for token, name in names.items())

    def marked(self, token: str) -> str:
        """A token as one."""
        return f"{self.mark}{token}{self.mark}"

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``."""
        return list(self._twin.encode(text, add_special_tokens=False).ids)


def _renamed(raw: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A tokenizer.json in which the keys of ``names`` are called by its values."""

    def renamed(token: str) -> str:
        return names.get(token, token)

    added = [
        # Found in the text as it is: what a normaliser makes of the marks does not matter.
        {
            **token,
            "content": renamed(token["content"]),
            "normalized": token["normalized"] and token["content"] not in names,
        }
        for token in raw["added_tokens"]
    ]
    return {**raw, "added_tokens": added, "model": _renamed_model(raw["model"], renamed), "post_processor": None}


def _renamed_model(model: dict[str, Any], renamed: Callable[[str], str]) -> dict[str, Any]:
    """The tokenizer's algorithm with its vocabulary: a list with scores (Unigram), or ids by piece (all others)."""
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return {**model, "vocab": [[renamed(piece), score] for piece, score in vocab]}
    new = {**model, "vocab": {renamed(piece): id for piece, id in vocab.items()}}
    if model.get("unk_token") is not None:
        new["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:  # as pairs, or in older files "a b"
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        new["merges"] = [pair for pair in pairs if all(renamed(part) == part for part in (*pair, "".join(pair)))]
    return new
