"""Errors of the hub, of the network and of the cache's disk as LlmcliErrors."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from llmcli.errors import LlmcliError
from llmcli.files.atomic import is_disk_full
from llmcli.hub.cache import cache_folder
from llmcli.hub.names import HubName, endpoint

LIBRARY_ERRORS = {"HTTPError", "InvalidURL"}  # from which those of the HTTP client derive
RESUMES = "the same command resumes where this one stopped"


def host() -> str:
    """The host name of the hub, without any user name and password."""
    try:
        return urlsplit(endpoint()).hostname or "HF_ENDPOINT"
    except ValueError:
        return "HF_ENDPOINT"


@contextmanager
def translate_errors(name: HubName) -> Iterator[None]:
    """Raise errors of the hub, the network and the disk within the block as LlmcliError; others pass unchanged.

    The causes are not chained, because some contain the token, and a traceback would print it.
    """
    try:
        yield
    except LlmcliError:
        raise
    except Exception as error:
        translated = _hub_error(error, name) or _network_error(error) or _disk_error(error)
        if translated is None:
            raise
        raise translated from None


def is_connection_error(error: Exception) -> bool:
    """Whether the connection failed, rather than the request."""
    return "TransportError" in _class_names(error)


def _class_names(error: Exception) -> set[str]:
    # huggingface_hub uses httpx or, in later versions, httpx2, whose exceptions have only their names in common.
    return {kind.__name__ for kind in type(error).__mro__}


def _hub_error(error: Exception, name: HubName) -> LlmcliError | None:
    """The error for a request that the hub rejected."""
    names = _class_names(error)
    if "GatedRepoError" in names:
        return LlmcliError(
            f"{name.repo} is available only to users who have accepted its license",
            f"accept it at {host()}/{name.repo}, then set HF_TOKEN to a token from {host()}/settings/tokens",
        )
    if "RepositoryNotFoundError" in names:
        what = "folder" if name.gguf is None else "file"
        return LlmcliError(
            f"there is no model {name.repo}: no such {what}, and no public model of that name at {host()}",
            "check the name; for a private model set HF_TOKEN",
        )
    if "RevisionNotFoundError" in names:
        return LlmcliError(f"{name.repo} has no revision {name.revision}", f"see {host()}/{name.repo}/tree/main")
    if "HfHubHTTPError" not in names:
        return None
    status = error.response.status_code  # type: ignore[attr-defined]
    if status == 401:
        return LlmcliError(f"{host()} does not accept the token", "set HF_TOKEN to a valid one, or unset it")
    if status == 403:
        return LlmcliError(f"{host()} denies access to {name.repo}", "set HF_TOKEN to a token that may read this model")
    if status == 429:
        return LlmcliError(
            f"{host()} has received too many requests from here", f"wait a few minutes, or set HF_TOKEN; {RESUMES}"
        )
    return LlmcliError(f"{host()} responded with status {status}", f"try again later; {RESUMES}")


def _network_error(error: Exception) -> LlmcliError | None:
    """The error for a connection that failed, or a response that makes no sense."""
    names = _class_names(error)
    if isinstance(error, UnicodeEncodeError) or "LocalProtocolError" in names:
        return LlmcliError("the token contains invalid characters", "check HF_TOKEN")
    if "TimeoutException" in names:
        return timed_out()
    if names & LIBRARY_ERRORS:
        return LlmcliError(f"the connection to {host()} failed: {error}", f"check the network; {RESUMES}")
    return None


def timed_out() -> LlmcliError:
    """The error for a hub that takes too long."""
    return LlmcliError(
        f"{host()} did not respond in time", f"{RESUMES}; HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer (seconds)"
    )


def _disk_error(error: Exception) -> LlmcliError | None:
    """The error for a cache that cannot be written."""
    if not isinstance(error, OSError):
        return None
    if is_disk_full(error):
        return LlmcliError(
            f"no space left in {cache_folder()}",
            f"free some space ({RESUMES}), or set HF_HOME to a folder on a larger disk",
        )
    return LlmcliError(
        f"{error.filename or cache_folder()}: {error.strerror or error}", "set HF_HOME to a folder you can write to"
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Silence huggingface_hub within the block, and send the hub no information about this machine."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import huggingface_hub.constants  # noqa: F401 - reads the environment
        except ValueError as error:
            raise LlmcliError(
                f"huggingface_hub cannot be imported: {error}", "check the environment variables HF_…"
            ) from None
        from huggingface_hub.utils import logging as library

        verbosity = library.get_verbosity()
        library.set_verbosity(logging.ERROR)
        try:
            yield
        finally:
            library.set_verbosity(verbosity)
