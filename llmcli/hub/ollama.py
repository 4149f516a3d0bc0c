"""ollama's models on this disk. A store is a folder of

    manifests/<registry>/<user>/<model>/<tag>   JSON: the blobs that make up a model, each with its media type
    blobs/sha256-<hash>                         the contents; the one of the type "…image.model" is a GGUF file

A model's other blobs are for ollama. Its prompt template is in Go's language, and the GGUF file has the original one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError, did_you_mean
from llmcli.files.formats import stand_in
from llmcli.files.gguf import is_gguf, read_gguf
from llmcli.files.json import read_json
from llmcli.hub.cache import LocalModel
from llmcli.hub.notes import Note, ignore

PREFIX = "ollama:"
WHERE = "ollama"
# As names of folders: the registry and the user of a model whose name has neither, and the tag of one without a tag.
REGISTRY, USER, TAG = "registry.ollama.ai", "library", "latest"
KIND = "application/vnd.ollama.image."  # begins the media types of a model's blobs
CONFIG_KIND = "application/vnd.docker.container.image.v1+json"
SYSTEM_FOLDER = Path("/usr/share/ollama/.ollama/models")  # where ollama keeps them if it is a service of Linux

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def folders() -> list[Path]:
    """The store's folder, which may not exist."""
    return [_store()]


def _store() -> Path:
    chosen = os.environ.get("OLLAMA_MODELS")
    own = Path(chosen or "~/.ollama/models").expanduser()
    with suppress(OSError):  # another user's folder
        if not chosen and not own.is_dir() and (SYSTEM_FOLDER / "manifests").is_dir():
            return SYSTEM_FOLDER
    return own.resolve()


def manifests() -> dict[str, Path]:
    """The models' manifests by name, such as "ollama:llama3.2:1b"."""
    found: dict[str, Path] = {}
    with suppress(OSError):
        for path in sorted((_store() / "manifests").glob("*/*/*/*")):
            if path.is_file() and not path.name.startswith("."):
                registry, user, model, tag = path.parts[-4:]
                parts = [registry, user, model] if registry != REGISTRY else [user, model] if user != USER else [model]
                found[f"{PREFIX}{'/'.join(parts)}:{tag}"] = path
    return found


def find(name: str, note: Note = ignore) -> Path:
    """The GGUF file of an ollama model; ``note`` reports what of the model is not used.

    Raises LlmcliError if there is no such model, or none that llmcli can read.
    """
    found = manifests()
    known = next((other for other in found if other.lower() == _complete(name)), None)
    if known is None:
        raise LlmcliError(
            f"there is no model {name} in {_store()}",
            did_you_mean(name, found)
            or "`llmcli models` lists those that are there, `ollama pull` gets others; OLLAMA_MODELS sets the folder",
        )
    manifest = Manifest(known, found[known])
    path = manifest.model()
    unused = ", ".join(manifest.unused(path))
    if unused:
        note(f"{known}: llmcli uses only the model's GGUF file, without {unused}")
    return path


def models() -> Iterator[LocalModel]:
    """The models in the store that llmcli can read."""
    for name, path in manifests().items():
        with suppress(LlmcliError):
            manifest = Manifest(name, path)
            yield LocalModel(name, manifest.model(), WHERE, label=manifest.label())


def _complete(name: str) -> str:
    """A name with its tag, in lower case, which ollama does not distinguish from upper case."""
    last = name.rpartition("/")[2].removeprefix(PREFIX)
    return (name if ":" in last else f"{name}:{TAG}").lower()


class Manifest:
    """The blobs of a model: ``layers`` has their paths by kind. Raises LlmcliError if the file is damaged."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.blobs = path.parents[4] / "blobs"
        raw = read_json(path, damaged=self._pull)
        self.layers: dict[str, list[Path]] = {}
        for layer in [*_list(raw.get("layers")), raw.get("config")]:
            if not isinstance(layer, Mapping) or not isinstance(layer.get("mediaType"), str):
                raise self._damaged()
            match = _DIGEST.fullmatch(str(layer.get("digest")))
            if match is None:
                raise self._damaged()
            kind = layer["mediaType"].removeprefix(KIND)
            self.layers.setdefault(kind, []).append(self.blobs / f"sha256-{match[1]}")

    def model(self) -> Path:
        """The GGUF file. Raises LlmcliError if there is none, or if the model is more than that file."""
        files = self.layers.get("model", [])
        if "adapter" in self.layers:
            raise LlmcliError(
                f"{self.name}: it is a model with a LoRA adapter for ollama, which llmcli cannot merge",
                "open the model that it is made from, which its Modelfile names",
            )
        if len(files) != 1:
            what = (
                "its weights are not in a GGUF file" if "tensor" in self.layers else f"it has {len(files)} GGUF files"
            )
            raise LlmcliError(f"{self.name}: {what}", "open another model, or get it from the Hugging Face Hub")
        if not is_gguf(files[0]):
            missing = LlmcliError(f"{self.name}: {files[0]} is {'not a GGUF file' if files[0].exists() else 'missing'}")
            raise stand_in(files[0]) or LlmcliError(missing.message, self._pull)
        return files[0]

    def unused(self, path: Path) -> Iterator[str]:
        """What the model has besides its GGUF file that changes what it writes."""
        if "template" in self.layers and "tokenizer.chat_template" not in read_gguf(path).metadata:
            yield "the prompt template (the file has no chat template)"
        if "system" in self.layers:
            yield "the system prompt"
        if "messages" in self.layers:
            yield "the messages"
        names = self._settings("params").keys() - {"stop"}  # the model's own stop tokens are in the file
        shown = sorted(name for name in names if name.isidentifier())
        if shown:
            yield f"the parameter{'' if len(shown) == 1 else 's'} {', '.join(shown)}"

    def label(self) -> str:
        """The quantization as ollama states it; "" if it does not."""
        label = str(self._settings(CONFIG_KIND).get("file_type", ""))
        return label if re.fullmatch(r"[A-Z0-9_]{1,20}", label) else ""

    @property
    def bare(self) -> str:
        """The name as ollama writes it."""
        return self.name.removeprefix(PREFIX)

    @property
    def _pull(self) -> str:
        return f"run `ollama pull {self.bare}`"

    def _settings(self, kind: str) -> Mapping[str, Any]:
        """The JSON object in the first blob of a kind; empty if there is none."""
        with suppress(LlmcliError):
            return read_json(self.layers[kind][0]) if kind in self.layers else {}
        return {}

    def _damaged(self) -> LlmcliError:
        return LlmcliError(f"{self.path}: not the manifest of a model", self._pull)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
