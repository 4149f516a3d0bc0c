"""A client of OpenAI-compatible servers: text, chats, batches, scores and steps of a model that runs elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.endpoint.batch import Completion as Completion
    from llmcli.endpoint.batch import complete_all as complete_all
    from llmcli.endpoint.conversation import ServerConversation as ServerConversation
    from llmcli.endpoint.errors import ServerError as ServerError
    from llmcli.endpoint.generation import ServerGeneration as ServerGeneration
    from llmcli.endpoint.generation import generated_tokens as generated_tokens
    from llmcli.endpoint.jobs import ServerWriter as ServerWriter
    from llmcli.endpoint.server import Request as Request
    from llmcli.endpoint.server import Server as Server
    from llmcli.endpoint.server import open_server as open_server
    from llmcli.endpoint.server_kinds import request_fields as request_fields
    from llmcli.endpoint.server_kinds import thinking_fields as thinking_fields
    from llmcli.endpoint.tokens import ServerToken as ServerToken
    from llmcli.endpoint.views import ServerCandidate as ServerCandidate
    from llmcli.endpoint.views import ServerStep as ServerStep
    from llmcli.endpoint.views import server_score as server_score
    from llmcli.endpoint.views import server_step as server_step

__all__ = [
    "Completion",
    "Request",
    "Server",
    "ServerCandidate",
    "ServerConversation",
    "ServerError",
    "ServerGeneration",
    "ServerStep",
    "ServerToken",
    "ServerWriter",
    "complete_all",
    "generated_tokens",
    "open_server",
    "request_fields",
    "server_score",
    "server_step",
    "thinking_fields",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "Completion": "batch",
        "complete_all": "batch",
        "ServerConversation": "conversation",
        "ServerError": "errors",
        "ServerGeneration": "generation",
        "generated_tokens": "generation",
        "ServerWriter": "jobs",
        "Request": "server",
        "Server": "server",
        "open_server": "server",
        "request_fields": "server_kinds",
        "thinking_fields": "server_kinds",
        "ServerToken": "tokens",
        "ServerCandidate": "views",
        "ServerStep": "views",
        "server_score": "views",
        "server_step": "views",
    },
)
