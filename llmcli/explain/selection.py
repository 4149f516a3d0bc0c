"""What a view looks at: positions, layers, heads and tokens, given as numbers or as a user types them.

All views take the same forms: a position is an index or a token's text, layers are "0-5" or "0,2,-1", a head is "L.H",
a token is its text or its id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmcli.errors import usage_error
from llmcli.generation.context import check_text
from llmcli.generation.loaded import LoadedModel
from llmcli.model.config import ModelConfig
from llmcli.text.tokenizer import Tokenizer

Text = str | Sequence[int]  # a text, or its token ids
Layers = str | int | Sequence[int]
Head = str | tuple[int, int]  # "L.H", or layer and head


def token_ids(loaded: LoadedModel, text: Text, *, parse_special: bool = False, any_length: bool = False) -> list[int]:
    """Return the ids of ``text``, or the ids given; an empty text is the model's BOS token.

    ``parse_special`` reads special tokens in the text as tokens, not as plain text.
    Raises LlmcliError if the text is empty and the model has no BOS token, or the model has no embedding for an id, or,
    unless ``any_length``, if the text is far too long for the context.
    """
    check_loaded(loaded)
    if isinstance(text, str) and not any_length:
        limit = loaded.model.config.max_position_embeddings
        check_text(text, loaded.tokenizer.encode, limit, "the text", "position-beyond-context")
    ids = loaded.tokenizer.encode(text, parse_special=parse_special) if isinstance(text, str) else text
    ids = loaded.readable(ids)
    if not ids:
        raise usage_error("the text is empty, and the model has no BOS token to start from", "give a text")
    return ids


def check_loaded(loaded: LoadedModel) -> None:
    """Raise TypeError for anything but a loaded model."""
    if not isinstance(loaded, LoadedModel):
        raise TypeError(f"expected a model that llmcli.load() returned, not {loaded!r:.80}")


def check_whole(name: str, value: object, least: int) -> None:
    """Raise TypeError unless ``value`` is a whole number, and LlmcliError if it is below ``least``."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r:.80}")
    if value < least:
        raise usage_error(f"{name} must be at least {least}, not {value}")


def find_position(tokenizer: Tokenizer, ids: Sequence[int], position: int | str) -> int:
    """Return the index in ``ids`` of ``position``: an index, negative from the end, or a token's text.

    A text with a space at either end must match exactly; otherwise spaces around the token are ignored.
    Raises LlmcliError if there is no such position, or more than one, and TypeError if it is neither number nor text.
    """
    if not isinstance(position, int | str):
        raise TypeError(f"expected a position's number or its token's text, not {position!r:.80}")
    if isinstance(position, int) or re.fullmatch(r"[+-]?[0-9]{1,9}", position):
        index = int(position)
        if not -len(ids) <= index < len(ids):
            raise usage_error(f"there is no position {index}", f"the text has positions 0 to {len(ids) - 1}")
        return index % len(ids)
    texts = [tokenizer.token_text(id) for id in ids]
    exact = position != position.strip()
    found = [n for n, text in enumerate(texts) if (text if exact else text.strip()) == position]
    if len(found) == 1:
        return found[0]
    if found:
        positions = ", ".join(map(str, found))
        raise usage_error(f"{position!r} occurs at several positions: {positions}", "choose one by its number")
    raise usage_error(f"no token of the text is {position!r}", kind="token-not-in-text")


def find_layers(config: ModelConfig, layers: Layers | None) -> list[int]:
    """Return the layers that ``layers`` names, in ascending order; None means all.

    Raises LlmcliError if the model does not have a layer, the selection is empty, or a part of it is neither a number
    nor a range, and TypeError if it is neither text nor numbers.
    """
    if not isinstance(layers, str | int | Sequence | None):
        raise TypeError(f"expected layers, such as '0-5' or [0, 2], not {layers!r:.80}")
    count = config.num_hidden_layers
    if layers is None:
        return list(range(count))
    words = layers.split(",") if isinstance(layers, str) else [str(n) for n in _as_sequence(layers)]
    found: set[int] = set()
    for word in words:
        match = re.fullmatch(r"(-?[0-9]{1,9})(?:-(-?[0-9]{1,9}))?", word.strip())
        if not match:
            example = f"the model has layers 0 to {count - 1}; give one or a range, such as 0-{count - 1}"
            raise usage_error(f"{word!r} names no layers", example)
        first, last = (_find_layer(int(number), count) for number in (match[1], match[2] or match[1]))
        found |= set(range(first, last + 1))
    if not found:
        raise usage_error(f"{layers!r} names no layers", "put the lower layer first, as in 0-2")
    return sorted(found)


def attending(config: ModelConfig, layers: Sequence[int]) -> list[int]:
    """Return those of ``layers`` that have attention. Raises LlmcliError if none has."""
    found = [layer for layer in layers if config.has_attention(layer)]
    if not found:
        named = f"layer {layers[0]} has" if len(layers) == 1 else "these layers have"
        others = ", ".join(map(str, config.attending))
        hint = f"layers with attention: {others}" if others else "no layer of this model has it"
        raise usage_error(f"{named} no attention", hint)
    return found


def find_heads(config: ModelConfig, layers: Layers | None, head: Head | None) -> list[tuple[int, int]]:
    """Return the (layer, head) of one ``head``, or of every head in ``layers``.

    Raises LlmcliError if both are given, and the errors of ``find_head`` and ``find_layers``.
    """
    if head is not None and layers is not None:
        raise usage_error("a head and layers cannot be combined", kind="head-and-layers")
    if head is not None:
        return [find_head(config, head)]
    found = attending(config, find_layers(config, layers))
    return [(layer, n) for layer in found for n in range(config.num_attention_heads)]


def find_head(config: ModelConfig, head: Head) -> tuple[int, int]:
    """Return the (layer, head) that "L.H" names.

    Raises LlmcliError if the form is wrong or the head does not exist, and TypeError if it is neither text nor a pair.
    """
    if not isinstance(head, str) and not (isinstance(head, Sequence) and len(head) == 2):
        raise TypeError(f"expected a head, such as '0.3' or (0, 3), not {head!r:.80}")
    text = head if isinstance(head, str) else f"{head[0]}.{head[1]}"
    match = re.fullmatch(r"L?(-?[0-9]{1,9})\.H?(-?[0-9]{1,9})", text.strip())
    if not match:
        raise usage_error(f"{text!r} names no head", "give layer and head with a dot between them, as in 0.3")
    layer, number = _find_layer(int(match[1]), config.num_hidden_layers), int(match[2])
    attending(config, [layer])
    count = config.num_attention_heads
    if not -count <= number < count:
        raise usage_error(f"there is no head {number}", f"each layer has heads 0 to {count - 1}")
    return layer, number % count


def name_heads(config: ModelConfig, layers: Layers | None, head: Head | None = None) -> str:
    """Return a name for a selection of heads: "all heads", "head 2.5", "the heads of layers 3, 4"."""
    if head is not None:
        layer, number = find_head(config, head)
        return f"head {layer}.{number}"
    found = find_layers(config, layers)
    if len(found) == config.num_hidden_layers:
        return "all heads"
    found = attending(config, found)
    return f"the heads of layer{'s' * (len(found) > 1)} {', '.join(map(str, found))}"


def find_token(tokenizer: Tokenizer, token: int | str, vocab_size: int) -> int:
    """Return the id of ``token``, which is an id or the text of one token, and must be below ``vocab_size``.

    A text of digits is an id. Raises LlmcliError if there is no such id, or the text is not exactly one token.
    """
    if not isinstance(token, int | str):
        raise TypeError(f"expected a token's text or its id, not {token!r:.80}")
    if token == "":
        raise usage_error("no token has an empty text", "give a token's text, such as ' Paris', or its id")
    if isinstance(token, int) or re.fullmatch(r"[0-9]{1,9}", token):
        if not 0 <= int(token) < vocab_size:
            raise usage_error(f"there is no token id {token}", f"ids are from 0 to {vocab_size - 1}")
        return int(token)
    id = tokenizer.id_of(token)
    if id is None:
        pieces = [repr(piece.text) for piece in tokenizer.tokens(token) if piece.end > piece.start]
        raise usage_error(
            f"{token!r} is not one token but {len(pieces)}: {', '.join(pieces)}",
            "most words begin with a space, as in ' Paris'; or give an id",
        )
    if id >= vocab_size:
        raise usage_error(
            f"{token!r} is token {id}, but the model has only {vocab_size} tokens",
            "check that the tokenizer belongs to this model",
        )
    return id


def _as_sequence(layers: int | Sequence[int]) -> Sequence[int]:
    return [layers] if isinstance(layers, int) else layers


def _find_layer(number: int, count: int) -> int:
    if not -count <= number < count:
        raise usage_error(f"there is no layer {number}", f"the model has layers 0 to {count - 1}")
    return number % count
