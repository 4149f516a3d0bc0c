"""A server with one of its models, and the requests it receives."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmcli.endpoint.address import find_key, parse_address
from llmcli.endpoint.client import Client
from llmcli.endpoint.errors import ServerError
from llmcli.endpoint.generation import ServerGeneration
from llmcli.endpoint.server_kinds import KINDS, OPENAI, UNKNOWN_KIND, ServerKind
from llmcli.errors import usage_error
from llmcli.text.chat_template import Message

SLOWEST = 2.0  # seconds per token to wait for a response that is not streamed
MAX_NAME = 300  # characters of a model's name
MAX_LISTED = 12  # models that an error lists
COMPLETIONS, CHAT_COMPLETIONS = "/completions", "/chat/completions"


@dataclass(frozen=True)
class Request:
    """A prompt, or the messages of a conversation, and how to continue it.

    ``fields`` are the sampler's request fields; ``top_logprobs`` is the number of tokens at each position whose log
    probabilities are requested.
    """

    prompt: str | Sequence[Message]
    max_tokens: int
    fields: Mapping[str, Any]
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None

    @property
    def path(self) -> str:
        return COMPLETIONS if isinstance(self.prompt, str) else CHAT_COMPLETIONS

    def body(self, model: str, kind: ServerKind) -> dict[str, Any]:
        """Return the request's JSON object, without the field "stream"."""
        body: dict[str, Any] = {"model": model, **self.fields}
        if isinstance(self.prompt, str):
            body |= {"prompt": self.prompt, "max_tokens": self.max_tokens}
            body |= {} if self.top_logprobs is None else {"logprobs": self.top_logprobs}
        else:
            messages = [{"role": message.role, "content": message.content} for message in self.prompt]
            body |= {"messages": messages, kind.max_tokens_field: self.max_tokens}
            body |= {} if self.top_logprobs is None else {"logprobs": True, "top_logprobs": self.top_logprobs}
        return body | ({"stop": list(self.stop)} if self.stop else {})


@dataclass(frozen=True)
class Server:
    """An open connection; ``model`` is the name by which the server knows its model."""

    client: Client
    model: str
    kind: ServerKind

    @property
    def name(self) -> str:
        """The model and the host that runs it."""
        return f"{self.model} at {self.client.address.host}"

    def stream(self, request: Request, *, require_logprobs: bool = True) -> ServerGeneration:
        """Return the generated text as it arrives.

        Unless ``require_logprobs``, a server that rejects a request for log probabilities gets it without them.
        """
        events = self._events(request, require_logprobs)
        return ServerGeneration(
            events,
            request.max_tokens,
            has_stop_strings=bool(request.stop),
            top_logprobs=request.top_logprobs,
            key=self.client.key,
        )

    def _events(self, request: Request, require_logprobs: bool) -> Generator[dict[str, Any]]:
        try:
            yield from self.client.stream(request.path, request.body(self.model, self.kind) | {"stream": True})
        except ServerError as error:  # with these statuses it comes before any event
            if require_logprobs or request.top_logprobs is None or error.status not in (400, 422):
                raise
            yield from self._events(replace(request, top_logprobs=None), require_logprobs)

    def complete(self, request: Request, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the whole response as the server's JSON; ``extra`` are more fields of the request."""
        body = request.body(self.model, self.kind) | dict(extra or {})
        return self.client.post(request.path, body, SLOWEST * request.max_tokens)


def open_server(url: str, model: str | None, key_file: Path | None) -> Server:
    """Connect to a server. Without ``model``, its only model is used.

    Raises LlmcliError if the address is invalid, a key is missing, the server does not respond, or it has several
    models, which the error lists.
    """
    address = parse_address(url)
    client = Client(address, find_key(address, key_file))
    owners = _list_models(client, required=model is None)
    kind = (
        OPENAI if address.is_openai else next((kind for kind in KINDS if kind.owner in owners.values()), UNKNOWN_KIND)
    )
    if model is None:
        if not owners:
            raise usage_error(f"{address.host} has no models", "load one on the server")
        if len(owners) > 1:
            names = ", ".join(list(owners)[:MAX_LISTED]) + (", …" if len(owners) > MAX_LISTED else "")
            raise usage_error(f"{address.host} has {len(owners)} models: {names}", kind="server-with-several-models")
        (model,) = owners
    return Server(client, model, kind)


def _list_models(client: Client, *, required: bool) -> dict[str, str]:
    """The names of the server's models, each with its "owned_by"; empty for a server that does not list its models."""
    try:
        data = client.get("/models").get("data")
    except ServerError as error:
        if error.status in (None, 401, 403):
            raise
        if required:
            raise ServerError(error.message, kind="server-without-model-list", status=error.status) from None
        return {}
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    return {entry["id"]: str(entry.get("owned_by")) for entry in entries if _is_name(entry.get("id"))}


def _is_name(value: Any) -> bool:
    """Whether ``value`` can be a model's name: short enough to show, without control characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()
