"""A server as the commands use it: which model, of which kind, and what it is asked."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmcli.endpoint.address import parse_address
from llmcli.endpoint.client import Client
from llmcli.endpoint.failures import ServerError
from llmcli.endpoint.key import find_key
from llmcli.endpoint.options import KINDS, OPENAI, PLAIN_KIND, Kind
from llmcli.endpoint.writing import Writing
from llmcli.errors import usage_error
from llmcli.text.chat_template import Message

SLOWEST = 2.0  # seconds a token, where a whole answer is waited for
MOST_NAME = 300  # characters
MOST_NAMES = 12  # models that an error lists
COMPLETIONS, CHATS = "/completions", "/chat/completions"


@dataclass(frozen=True)
class Ask:
    """A prompt, or the messages of a conversation, and what was said about the answer.

    ``fields`` are those of the sampler; ``rivals`` asks for the log probabilities of so many tokens in each place.
    """

    prompt: str | Sequence[Message]
    max_tokens: int
    fields: Mapping[str, Any]
    stop: tuple[str, ...] = ()
    rivals: int | None = None

    @property
    def path(self) -> str:
        return COMPLETIONS if isinstance(self.prompt, str) else CHATS

    def body(self, model: str, kind: Kind) -> dict[str, Any]:
        """The request, but for whether it is streamed."""
        body: dict[str, Any] = {"model": model, **self.fields}
        if isinstance(self.prompt, str):
            body |= {"prompt": self.prompt, "max_tokens": self.max_tokens}
            body |= {} if self.rivals is None else {"logprobs": self.rivals}
        else:
            messages = [{"role": said.role, "content": said.content} for said in self.prompt]
            body |= {"messages": messages, kind.most_tokens: self.max_tokens}
            body |= {} if self.rivals is None else {"logprobs": True, "top_logprobs": self.rivals}
        return body | ({"stop": list(self.stop)} if self.stop else {})


@dataclass(frozen=True)
class Server:
    """``model`` is the name that the server knows it by."""

    client: Client
    model: str
    kind: Kind

    @property
    def name(self) -> str:
        """The model and where it runs."""
        return f"{self.model} at {self.client.address.host}"

    def write(self, ask: Ask, *, needed: bool = True) -> Writing:
        """The answer as it comes. Unless they are ``needed``, a server that tells no probabilities is asked without."""
        events = self._events(ask, needed)
        return Writing(events, ask.max_tokens, stops=bool(ask.stop), rivals=ask.rivals)

    def _events(self, ask: Ask, needed: bool) -> Generator[dict[str, Any]]:
        try:
            yield from self.client.stream(ask.path, ask.body(self.model, self.kind) | {"stream": True})
        except ServerError as error:  # which one of this kind is before there is any event
            if needed or ask.rivals is None or error.status not in (400, 422):
                raise
            yield from self._events(replace(ask, rivals=None), needed)

    def answer(self, ask: Ask, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The whole answer, as the server's JSON; ``more`` are other fields of the request."""
        return self.client.post(ask.path, ask.body(self.model, self.kind) | dict(more or {}), SLOWEST * ask.max_tokens)


def open_server(url: str, model: str | None, key_file: Path | None) -> Server:
    """Reach a server, and find the model where none is named: the only one that it has.

    Errors: no address, no key where it needs one, no answer; or several models, which the error lists.
    """
    address = parse_address(url)
    client = Client(address, find_key(address, key_file))
    found = _models(client, needed=model is None)
    kind = OPENAI if address.of_openai else next((kind for kind in KINDS if kind.owner in found.values()), PLAIN_KIND)
    if model is None:
        if len(found) != 1:
            names = ", ".join(list(found)[:MOST_NAMES]) + (", …" if len(found) > MOST_NAMES else "")
            raise usage_error(
                f"{address.host} has {len(found)} models", f"name one with -m: {names}" if found else "load one there"
            )
        (model,) = found
    return Server(client, model, kind)


def _models(client: Client, *, needed: bool) -> dict[str, str]:
    """The names of the server's models, and whose each says it is."""
    try:
        said = client.get("/models").get("data")
    except ServerError as error:
        if error.status in (None, 401, 403):
            raise
        if needed:
            raise ServerError(
                error.message, "is the address right? if it is, name the model with -m", status=error.status
            ) from None
        return {}  # some have no list
    entries = [entry for entry in said if isinstance(entry, dict)] if isinstance(said, list) else []
    return {entry["id"]: str(entry.get("owned_by")) for entry in entries if _is_name(entry.get("id"))}


def _is_name(found: Any) -> bool:
    """Whether it can be the name of a model: nothing that would fill the screen, or command it."""
    return isinstance(found, str) and 0 < len(found) <= MOST_NAME and found.isprintable()
