"""``/v1/explain/page``: the page of ``llmcli explain`` about one token of a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmcli import explain
from llmcli.errors import LlmcliError
from llmcli.generation.loaded import LoadedModel
from llmcli.serve.body import Body
from llmcli.serve.errors import api_error, bad_request
from llmcli.serve.sampler_options import read_order, read_sampler
from llmcli.serve.wanted import Reader


@dataclass(frozen=True)
class PageWriter:
    """Writes what the views found as a page; ``style`` and ``script`` are the hashes of what it runs in a browser."""

    write: Callable[[LoadedModel, explain.Walkthrough], str]
    style: str
    script: str


def token_page(reader: Reader, body: Body, writer: PageWriter, check: Callable[[], None]) -> str:
    """The page about the option "token" after "prompt". Runs the model. Raises ApiError for options that are wrong.

    ``check`` is called between its views, and may raise. "step" counts the tokens that were drawn with the same seed
    before, so that the sampler draws this one again.
    """
    loaded = reader.loaded
    config = loaded.model.config
    ids = reader.prompt(body).ids
    token = body.integer("token", None, high=config.vocab_size - 1)
    if token is None:
        raise bad_request("token is missing: the id of the token to explain", "token")
    sampler, order = read_sampler(loaded, body), read_order(body)
    sampler.skip(body.integer("step", 0, high=config.max_position_embeddings) or 0)
    body.check()
    try:
        return writer.write(loaded, explain.explain_token(loaded, ids, token, sampler, order, check))
    except LlmcliError as error:
        raise api_error(error) from None
