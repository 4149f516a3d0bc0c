"""Hints that name options, for errors of the library, which knows none."""

from __future__ import annotations

from llmcli.errors import LlmcliError

# By ``LlmcliError.kind``.
HINTS: dict[str, str] = {
    "adapter-not-model": "name its base model with -m, and the adapter with --adapter",
    "already-quantized": "omit --quantize, or name the original model",
    "beyond-context": "choose fewer with --context",
    "head-and-layers": "give --head or --layer, not both",
    "conversation-too-long": "send a shorter message, remove turns with /undo, or start a new chat",
    "no-llguidance": "--json-schema, --regex and --choices need it: pip install llguidance",
    "prompt-too-long": "shorten it (llmcli tokenize --count counts tokens), or cut its beginning with"
    " --context-overflow truncate-start",
    "logit-bias-bans-all": "ban fewer tokens with --logit-bias",
    "logits-not-finite": "the weights are damaged, or overflow in float16: try --dtype float32",
    "position-beyond-context": "shorten it, or choose an earlier position with --at",
    "quantized-needs-cpu": "use --device cpu",
    "ranks-need-cpu-or-cuda": "use --device cpu",
    "repetition-penalty-zero": "1 turns the penalty off; values above 1 make repetition less likely",
    "same-tokens": "compare it with another token: --vs",
    "token-not-in-text": "llmcli tokenize lists the tokens of a text and their positions",
    "top-p-zero": "to always take the most probable token, use --temperature 0",
    "typical-p-zero": "1 turns it off",
}


def hint_of(error: LlmcliError) -> str:
    """The error's own hint, or the one for its kind."""
    return error.hint or HINTS.get(error.kind, "")


def describe(error: LlmcliError) -> str:
    """The error's message with its hint, on one line."""
    hint = hint_of(error)
    return f"{error.message} ({hint})" if hint else error.message
