"""Where to look: positions, layers, heads and tokens as a user writes them, the same in every view."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmcli.errors import usage_error
from llmcli.model.config import ModelConfig
from llmcli.text.tokenizer import Tokenizer


def find_position(tokenizer: Tokenizer, ids: Sequence[int], at: str) -> int:
    """The position ``at`` names in a text: a number, from the end if negative, or a token's own text.

    Errors: there is no such position, or more than one.
    """
    if re.fullmatch(r"[+-]?[0-9]{1,9}", at):
        place = int(at)
        if not -len(ids) <= place < len(ids):
            raise usage_error(f"there is no position {place}", f"the text has positions 0 to {len(ids) - 1}")
        return place % len(ids)
    texts = [tokenizer.token_text(id) for id in ids]
    # As it stands where the space before it is given too; otherwise with or without one.
    found = [n for n, text in enumerate(texts) if (text if at != at.strip() else text.strip()) == at]
    if len(found) == 1:
        return found[0]
    if found:
        raise usage_error(f"{at!r} stands at several positions", "say which: " + ", ".join(map(str, found)))
    raise usage_error(f"no token of the text is {at!r}", "`llmcli tokenize` shows them and their positions")


def find_layers(config: ModelConfig, layers: str | None) -> list[int]:
    """The layers that "0-5", "3" or "0,2,-1" name, in order; all for None. Errors: anything else."""
    count = config.num_hidden_layers
    if layers is None:
        return list(range(count))
    found: set[int] = set()
    for word in layers.split(","):
        match = re.fullmatch(r"(-?[0-9]{1,9})(?:-(-?[0-9]{1,9}))?", word.strip())
        if not match:
            raise usage_error(f"{word!r} names no layers", f"the model has 0 to {count - 1}, as in 0-{count - 1} or 2")
        first, last = (_layer(int(number), count) for number in (match[1], match[2] or match[1]))
        found |= set(range(first, last + 1))
    if not found:
        raise usage_error(f"{layers!r} names no layers", "the first comes first, as in 0-2")
    return sorted(found)


def find_heads(config: ModelConfig, layers: str | None, head: str | None) -> list[tuple[int, int]]:
    """(layer, head) of the one that "L.H" names, or of all in the ``layers`` named. Errors: as of each."""
    if head is not None and layers is not None:
        raise usage_error("--head names one head, and --layer all of its layers'", "give one of them")
    if head is not None:
        return [find_head(config, head)]
    return [(layer, n) for layer in find_layers(config, layers) for n in range(config.num_attention_heads)]


def find_head(config: ModelConfig, head: str) -> tuple[int, int]:
    """The layer and the head in it that "L.H" names. Errors: anything else."""
    match = re.fullmatch(r"L?(-?[0-9]{1,9})\.H?(-?[0-9]{1,9})", head.strip())
    if not match:
        raise usage_error(f"{head!r} names no head", "layer, dot, head, as in 0.3")
    layer, number, count = _layer(int(match[1]), config.num_hidden_layers), int(match[2]), config.num_attention_heads
    if not -count <= number < count:
        raise usage_error(f"there is no head {number}", f"each layer has heads 0 to {count - 1}")
    return layer, number % count


def name_layers(layers: Sequence[int], config: ModelConfig) -> str:
    """What to call all heads of some layers."""
    if len(layers) == config.num_hidden_layers:
        return "all heads"
    return f"the heads of layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def find_token(tokenizer: Tokenizer, token: str, rows: int) -> int:
    """The id that ``token`` names, below ``rows``: a number, or the token's own text. Errors: there is none."""
    if not token:
        raise usage_error("no token has an empty text", "give a token's text, such as ' Paris', or its id")
    if re.fullmatch(r"[0-9]{1,9}", token):
        if int(token) >= rows:
            raise usage_error(f"there is no token id {token}", f"ids are from 0 to {rows - 1}")
        return int(token)
    id = tokenizer.id_of(token)
    if id is None:
        pieces = [repr(piece.text) for piece in tokenizer.tokens(token) if piece.end > piece.start]
        raise usage_error(
            f"{token!r} is not one token but {len(pieces)}: {', '.join(pieces)}",
            "most words begin with a space, as in ' Paris'; or give an id",
        )
    if id >= rows:
        raise usage_error(
            f"{token!r} is token {id}, but the model knows only {rows}", "is the tokenizer another model's?"
        )
    return id


def _layer(number: int, count: int) -> int:
    if not -count <= number < count:
        raise usage_error(f"there is no layer {number}", f"the model has 0 to {count - 1}")
    return number % count
