"""Hints for errors of the library that an option fixes. The library itself does not know the options."""

from __future__ import annotations

from llmcli.errors import LlmcliError

# ``LlmcliError.kind`` -> hint
HINTS: dict[str, str] = {
    "adapter-not-model": "name its base model with -m, and the adapter with --adapter",
    "already-quantized": "omit --quantize, or name the original model",
    "always-thinking": "omit --no-think; --think-budget 0 ends thoughts at once",
    "api-key-file": "--api-key-file takes a text file that contains one key",
    "api-key-needed": "set LLMCLI_API_KEY, or give a file with --api-key-file",
    "beyond-context": "choose fewer with --context",
    "cannot-listen": "choose another one with --port",
    "chat-template": "change the messages or the template; --raw chats without it",
    "context-beyond-model": "use a smaller --context",
    "conversation-too-long": "send a shorter message, remove turns with /undo, or start a new chat",
    "corpus-below-context": "use more text or a smaller --context",
    "fit-quantized": "omit --quantize, or name the original model",
    "head-and-layers": "give --head or --layer, not both",
    "identical-replies": "remove the pair, or use a larger --context",
    "init-needed": "name the model with --init",
    "lens-unusable": "fit it again with llmcli fit-lens and the same options of the model",
    "logit-bias-bans-all": "ban fewer tokens with --logit-bias",
    "logits-not-finite": "the weights are damaged, or overflow in float16: try --dtype float32",
    "loss-not-finite": "start again in another --out with a smaller --learning-rate",
    "no-llguidance": "--json-schema, --regex and --choices need it: pip install llguidance",
    "no-thinking-switch": "omit --think; --template-arg passes other variables to the template",
    "no-thoughts": "omit --think-budget",
    "no-shipped-model": "name one: -m FOLDER",
    "not-divisible": "run it in one process, or name the model that it was made from",
    "no-such-run": "llmcli log lists the runs",
    "nothing-to-resume": "start without --resume",
    "other-corpus": "use the same files as before, including --valid; to train on these, start a new run with --init",
    "other-model": "to repeat it anyway, add --any-model",
    "out-of-memory": "use a smaller model, a shorter prompt or --dtype bfloat16",
    "position-beyond-context": "shorten it, or choose an earlier position with --at",
    "prompt-too-long": "shorten it (llmcli tokenize --count counts tokens), or cut its beginning with"
    " --context-overflow truncate-start",
    "prompts-beyond-context": "use shorter prompts or a larger --context",
    "quantized-needs-cpu": "use --device cpu",
    "question-beyond-context": "use a shorter prompt",
    "not-recomputed": "turn it off, or list it in --samplers before temperature, top-k, top-p and min-p",
    "ranks-need-cpu-or-cuda": "use --device cpu",
    "repetition-penalty-zero": "1 turns the penalty off; values above 1 make repetition less likely",
    "reply-without-probabilities": "turn them on with /probs, then /regenerate the reply",
    "same-answer": "choose the two answers with --token and --vs, or change the texts",
    "same-tokens": "compare it with another token: --vs",
    "server-address": "as in --endpoint http://localhost:8000",
    "server-address-with-secret": "set a key with LLMCLI_API_KEY, or give a file with --api-key-file",
    "server-counts-tokens": "with --verbose, the line after each reply shows the server's count",
    "server-needs-key": "set LLMCLI_API_KEY, or give a file with --api-key-file",
    "server-with-several-models": "choose one with -m",
    "server-without-chat": "check -m; a server may support only completions: --raw",
    "server-without-completions": "check -m; a server may support only chat: llmcli chat --endpoint URL",
    "server-without-model-list": "check the address; if it is right, name the model with -m",
    "server-without-prompt-logprobs": "vLLM and llama-cpp-python do (the latter with --logits_all true); or score the"
    " text on this machine, without --endpoint",
    "text-too-long-to-show": "give a part of it; llmcli tokenize --count and --ids take longer texts",
    "token-not-in-text": "llmcli tokenize lists the tokens of a text and their positions",
    "top-p-zero": "to always take the most probable token, use --temperature 0",
    "typical-p-zero": "1 turns it off",
    "weights-overflow": "use --dtype bfloat16 or --dtype float32",
}


def hint_of(error: LlmcliError) -> str:
    """Return an error's own hint, or the hint for its kind, or ""."""
    return error.hint or HINTS.get(error.kind, "")


def describe(error: LlmcliError) -> str:
    """Return an error's message with its hint on one line."""
    hint = hint_of(error)
    return f"{error.message} ({hint})" if hint else error.message
