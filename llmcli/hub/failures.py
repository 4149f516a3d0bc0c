"""What can go wrong between here and the hub, each as one line that says what to do."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from llmcli.errors import LlmcliError
from llmcli.hub.cache import cache_folder
from llmcli.hub.names import HubName, endpoint

AGAIN = "the same command goes on where this one stopped"


def host() -> str:
    """The hub's address, without a user's name and password if it holds them."""
    try:
        return urlsplit(endpoint()).hostname or "HF_ENDPOINT"
    except ValueError:
        return "HF_ENDPOINT"


@contextmanager
def told(name: HubName) -> Iterator[None]:
    """A block whose failures are raised as LlmcliError; what is neither the network's nor the disk's goes through.

    The causes are not chained: some hold the token, and --verbose would print them.
    """
    try:
        yield
    except LlmcliError:
        raise
    except Exception as error:
        found = _of_the_answer(error, name) or _of_the_network(error) or _of_the_disk(error)
        if found is None:
            raise
        raise found from None


def is_of_the_network(error: Exception) -> bool:
    """Whether the connection failed, not the request."""
    return "TransportError" in _kinds(error)


def _kinds(error: Exception) -> set[str]:
    # huggingface_hub speaks through httpx or, in later versions, httpx2: what they raise has only its names in common.
    return {kind.__name__ for kind in type(error).__mro__}


def _of_the_answer(error: Exception, name: HubName) -> LlmcliError | None:
    """An answer of the hub that says no."""
    kinds = _kinds(error)
    if "GatedRepoError" in kinds:
        return LlmcliError(
            f"{name.repo} is open only to those who accepted its licence",
            f"accept it at {host()}/{name.repo}, then set HF_TOKEN to a token from {host()}/settings/tokens",
        )
    if "RepositoryNotFoundError" in kinds:
        return LlmcliError(
            f"there is no model {name.repo}: no such folder here, and none at {host()} that is open to you",
            "check the name; for a private model set HF_TOKEN",
        )
    if "RevisionNotFoundError" in kinds:
        return LlmcliError(f"{name.repo} has no revision {name.revision}", f"see {host()}/{name.repo}/tree/main")
    if "HfHubHTTPError" not in kinds:
        return None
    status = error.response.status_code  # type: ignore[attr-defined]
    if status == 401:
        return LlmcliError(f"{host()} does not accept the token", "set HF_TOKEN to a valid one, or unset it")
    if status == 403:
        return LlmcliError(
            f"{host()} refuses access to {name.repo}", "HF_TOKEN must be a token that may read this model"
        )
    if status == 429:
        return LlmcliError(
            f"{host()} has had too many requests from here", f"wait some minutes, or set HF_TOKEN; {AGAIN}"
        )
    return LlmcliError(f"{host()} answered with status {status}", f"try again later; {AGAIN}")


def _of_the_network(error: Exception) -> LlmcliError | None:
    """No answer, or none to make sense of."""
    kinds = _kinds(error)
    if isinstance(error, UnicodeEncodeError) or "LocalProtocolError" in kinds:
        return LlmcliError("the token holds characters that no token has", "check HF_TOKEN")
    if "TimeoutException" in kinds:
        return LlmcliError(
            f"{host()} did not answer in time", f"{AGAIN}; HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer (seconds)"
        )
    if "TransportError" in kinds or "InvalidURL" in kinds:
        return LlmcliError(f"the connection to {host()} failed: {error}", f"check the network; {AGAIN}")
    return None


def _of_the_disk(error: Exception) -> LlmcliError | None:
    """The cache cannot be written."""
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LlmcliError(
            f"no space left in {cache_folder()}", f"free some ({AGAIN}), or set HF_HOME to a folder on a larger disk"
        )
    return LlmcliError(
        f"{error.filename or cache_folder()}: {error.strerror or error}", "set HF_HOME to a folder you can write to"
    )


@contextmanager
def quietly() -> Iterator[None]:
    """A block in which huggingface_hub says nothing on its own, and nothing about this machine to the hub."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import huggingface_hub.constants  # noqa: F401 - reads the environment
        except ValueError as error:
            raise LlmcliError(f"huggingface_hub does not start: {error}", "check the variables HF_… you set") from None
        from huggingface_hub.utils import logging as library

        verbosity = library.get_verbosity()
        library.set_verbosity(logging.ERROR)
        try:
            yield
        finally:
            library.set_verbosity(verbosity)
