"""Names of models on the Hugging Face Hub, org/name or org/name@revision, and the hub's address."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

MAIN = "main"  # the branch of a name without a revision
COMMIT = re.compile(r"[0-9a-f]{40}")

_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?!.*(?:--|\.\.))(?!.*\.git$){_WORD}(?:/{_WORD})?")
_REVISION = re.compile(r"(?!.*(?://|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_./+-]*[A-Za-z0-9_+-])?")


@dataclass(frozen=True)
class HubName:
    """``repo`` is org/name; ``revision`` a branch, a tag or a commit."""

    repo: str
    revision: str = MAIN

    def __str__(self) -> str:
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, for a mirror, or the default."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def parse(text: str) -> HubName | None:
    """The name in ``text``, or None if it is not valid on the hub. A valid name is safe as part of a path."""
    repo, at, revision = text.partition("@")
    if not at:
        revision = MAIN
    if len(repo) > 96 or len(revision) > 200 or not _REPO.fullmatch(repo) or not _REVISION.fullmatch(revision):
        return None
    return HubName(repo, revision)
