"""The sampler that the options of a request ask for: those of ``llmcli generate``, with underscores."""

from __future__ import annotations

import secrets

from llmcli import explain
from llmcli.errors import LlmcliError
from llmcli.generation.filters import BREAKERS, OPTIONS, Breakers, default_order, filter_chain
from llmcli.generation.grammar import Grammar
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.serve.body import Body
from llmcli.serve.errors import api_error, bad_request

MOST_BREAKERS, LONGEST_BREAKER = 64, 100  # every token is compared with all of them
OFF = -1  # a value of repeat_last_n: all tokens


def read_sampler(loaded: LoadedModel, body: Body, grammar: Grammar | None = None) -> Sampler:
    """The sampler that the options of a request ask for. Raises ApiError for a value that is out of range."""
    values = dict(loaded.defaults.sampling)
    for name, option in OPTIONS.items():
        for key in (name, *option.aliases):
            field = key.replace("-", "_")
            value = body.number(field)
            if value is None:
                continue
            try:
                option.check(field, value)
            except LlmcliError as error:
                raise api_error(error, field) from None
            values[name] = value
    window = body.integer("repeat_last_n", OFF, low=OFF)
    texts = body.texts("dry_sequence_breaker")
    if len(texts) > MOST_BREAKERS or any(len(each) > LONGEST_BREAKER for each in texts):
        limits = f"at most {MOST_BREAKERS} strings of at most {LONGEST_BREAKER} characters"
        raise bad_request(f"dry_sequence_breaker takes {limits}", "dry_sequence_breaker")
    breakers = Breakers(() if texts == ("none",) else texts or BREAKERS, loaded.tokenizer)
    seed = body.integer("seed", None)
    try:
        chain = filter_chain(
            read_order(body),
            values,
            window=None if window == OFF else window,
            bias=_biases(loaded, body),
            breakers=breakers,
        )
    except LlmcliError as error:
        raise api_error(error, "samplers") from None
    rules = [] if grammar is None else [grammar.filter(0)]
    filters = [*loaded.vocabulary_filter(), *rules, *loaded.length_filter(), *chain]
    return Sampler(filters, secrets.randbelow(2**32) if seed is None else seed)


def read_order(body: Body) -> list[str]:
    """The names of the sampler's filters in the order that a request asks for. Raises ApiError for another form."""
    order = body.take("samplers", list(default_order()))
    order = [name.strip() for name in order.split(",")] if isinstance(order, str) else order
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise bad_request("samplers must be a list of names", "samplers")
    return order


def default_options(loaded: LoadedModel) -> dict[str, float]:
    """The values of the options with a number that a request does not give."""
    values = {name: loaded.defaults.sampling.get(name, option.default) for name, option in OPTIONS.items()}
    return {"max_tokens": loaded.defaults.token_limit(None)} | {
        name.replace("-", "_"): value for name, value in values.items()
    }


def _biases(loaded: LoadedModel, body: Body) -> dict[int, float]:
    given = body.take("logit_bias", {})
    if not isinstance(given, dict):
        raise bad_request("logit_bias must be an object that maps tokens to numbers", "logit_bias")
    found = {}
    for token, amount in given.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise bad_request("logit_bias must be an object that maps tokens to numbers", "logit_bias")
        try:
            found[explain.find_token(loaded.tokenizer, token, loaded.model.config.vocab_size)] = float(amount)
        except (LlmcliError, OverflowError) as error:
            raise bad_request(str(error), "logit_bias") from None
    return found
