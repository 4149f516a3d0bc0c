"""Names of models on the Hugging Face Hub, such as org/name@revision or org/name:Q4_K_M, and the hub's address."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from llmcli.hub.gguf_names import is_file_name

MAIN = "main"  # the branch of a name without a revision
COMMIT = re.compile(r"[0-9a-f]{40}")

_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?!.*(?:--|\.\.))(?!.*\.git$){_WORD}(?:/{_WORD})?")
_REVISION = re.compile(r"(?!.*(?://|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_./+-]*[A-Za-z0-9_+-])?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class HubName:
    """``repo`` is org/name; ``revision`` a branch, a tag or a commit.

    ``gguf`` chooses one of the repo's GGUF files, by its name or by its quantization, such as "Q4_K_M".
    """

    repo: str
    revision: str = MAIN
    gguf: str | None = None

    def __str__(self) -> str:
        name = self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"
        if self.gguf is None:
            return name
        return f"{name}/{self.gguf}" if name == self.repo and is_file_name(self.gguf) else f"{name}:{self.gguf}"


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, for a mirror, or the default."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def parse(text: str) -> HubName | None:
    """The name in ``text``, or None if it is not valid on the hub. A valid name is safe as part of a path.

    A name is org/name, then @revision, if any, then :TAG, :FILE.gguf or /FILE.gguf, if any.
    """
    name, colon, gguf = text.partition(":")
    if not colon and text.lower().endswith(".gguf") and text.count("/") > 1:
        organization, short, gguf = text.split("/", 2)
        name = f"{organization}/{short}"
    elif colon and not gguf:
        return None
    repo, at, revision = name.partition("@")
    if not at:
        revision = MAIN
    if len(repo) > 96 or len(revision) > 200 or not _REPO.fullmatch(repo) or not _REVISION.fullmatch(revision):
        return None
    if repo.lower().endswith(".gguf"):  # a path
        return None
    if gguf and not is_file_name(gguf) and not _TAG.fullmatch(gguf):
        return None
    return HubName(repo, revision, gguf or None)
