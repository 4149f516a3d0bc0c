"""Errors in OpenAI's form: a status, and a JSON object that says what is wrong and which option is to blame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
LONGEST = 500  # characters of a message: it may quote the request


class ApiError(Exception):
    """An answer with an error ``status``. ``param`` names the option that causes it, ``code`` the kind of error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})
        self.message = message if len(message) <= LONGEST else f"{message[:LONGEST]} …"

    def body(self) -> dict[str, Any]:
        """The JSON object that the client receives. Lone surrogates of the request become question marks."""
        kind = "server_error" if self.status >= 500 else TYPES.get(self.status, "invalid_request_error")
        found = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": {name: value and value.encode("utf-8", "replace").decode() for name, value in found.items()}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The error for a request that can never be answered."""
    return ApiError(400, message, param=param, code=code)


def api_error(error: LlmcliError, param: str | None = None) -> ApiError:
    """The answer to a request that the library rejects."""
    too_long = error.kind in ("prompt-too-long", "conversation-too-long")
    status = 503 if error.kind == "out-of-memory" else 400
    return ApiError(status, str(error), param=param, code="context_length_exceeded" if too_long else error.kind or None)
