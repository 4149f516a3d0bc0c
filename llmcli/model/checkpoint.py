"""safetensors files <-> ``Transformer``: strict both ways, one tensor in memory beside the model at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig
from llmcli.model.families import FAMILIES, family_of
from llmcli.model.families.rules import Family, Rule
from llmcli.model.transformer import Transformer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_config(folder: Path) -> ModelConfig:
    """The validated config of a model folder. Errors: no config.json, not JSON, unknown family, bad values."""
    raw = read_json(folder / "config.json")
    return family_of(raw).parse(raw)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an error that names the file and, for broken JSON, the line."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LlmcliError(f"{path}: no such file", "a model folder has config.json beside its weights") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LlmcliError(f"{path}: cannot be read: {error}", "check the file") from error
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        raise LlmcliError(f"{path}: not valid JSON{where}", "the file may be damaged; get it again") from error
    if not isinstance(raw, dict):
        raise LlmcliError(f"{path}: holds no JSON object", "the file may be damaged; get it again")
    return raw


def load(folder: Path, *, device: torch.device, dtype: torch.dtype | None = None) -> Transformer:
    """The model in ``folder``, ready to run. ``dtype`` None keeps the stored one.

    Errors name the file and the tensor: missing, unexpected or misshapen tensors, damaged files.
    """
    config = read_config(folder)
    family = FAMILIES[config.model_type]
    stored = Stored(folder, family)
    with torch.device("meta"):
        model = Transformer(config)
    parameters = dict(model.named_parameters())
    rules = family.rules(config)
    assert {rule.target for rule in rules} == parameters.keys()
    stored.check(rules, tied=config.tie_word_embeddings)
    for rule in rules:
        stored.check_shapes(rule, parameters[rule.target].shape)
    dtype = dtype or stored.dtype(rules[0].sources[0])
    for rule in rules:
        module, _, name = rule.target.rpartition(".")
        filled = stored.fill(rule, torch.empty(parameters[rule.target].shape, dtype=dtype, device=device))
        setattr(model.get_submodule(module), name, torch.nn.Parameter(filled, requires_grad=False))
    return model.eval()


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype in which the folder's token embedding is stored, which stands for all its weights."""
    config = read_config(folder)
    family = FAMILIES[config.model_type]
    return Stored(folder, family).dtype(family.rules(config)[0].sources[0])


def save(model: Transformer, folder: Path, *, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors in the family's own layout; each file appears whole or not at all."""
    family = FAMILIES[model.config.model_type]
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for rule in family.rules(model.config):
        stacked = parameters[rule.target].detach().to("cpu", dtype)
        for source, part in zip(rule.sources, torch.split(stacked, list(rule.rows)), strict=True):
            name = source if source.startswith("lm_head.") else family.prefix + source
            tensors[name] = (part.T if rule.transposed else part).contiguous().clone()
    described = family.describe(model.config) | {"dtype": str(dtype).removeprefix("torch.")}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place if the block succeeds: never half a file."""
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        temporary.chmod(permissions)  # the user's own: safetensors would let nobody else read its file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Stored:
    """The tensors of a model folder: which file holds each, read one at a time."""

    def __init__(self, folder: Path, family: Family) -> None:
        self.family = family
        self.files: dict[str, Path] = {}  # our name, without the family's prefix -> file
        self.names: dict[str, str] = {}  # our name -> name in the file
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in weight_files(folder):
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors handle, not a dict
                    ours = name.removeprefix(family.prefix)
                    if ours in self.files:
                        raise LlmcliError(
                            f"{path}: tensor {name} is stored twice, also in {self.files[ours]} as {self.names[ours]}",
                            "the folder may hold the files of two models",
                        )
                    self.files[ours], self.names[ours] = path, name
                    self.shapes[ours] = tuple(file.get_slice(name).get_shape())

    def check(self, rules: list[Rule], *, tied: bool) -> None:
        """Every source present, and nothing stored that no rule takes: all faults in one message."""
        wanted = {source for rule in rules for source in rule.sources}
        dropped = self.family.dropped + ((r"lm_head\.weight",) if tied else ())
        missing = sorted(wanted - self.files.keys())
        extra = sorted(
            name for name in self.files.keys() - wanted if not any(re.fullmatch(pattern, name) for pattern in dropped)
        )
        faults = [f"{what}: {_some(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names]
        if faults:
            raise LlmcliError(
                f"the weights do not match config.json; tensors {'; '.join(faults)}",
                "config.json and the weights must come from the same model",
            )

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of one tensor."""
        if name not in self.files:
            raise LlmcliError(f"the weights hold no tensor {name}", "config.json may belong to another model")
        with opened(self.files[name]) as file:
            return _tensor(file, self.names[name], self.files[name]).dtype

    def check_shapes(self, rule: Rule, target: torch.Size) -> None:
        """Every source of the size that its rows of ``target`` have: known from the headers, before memory is taken."""
        for source, rows in zip(rule.sources, rule.rows, strict=True):
            expected = [rows, *target[1:]]
            expected = expected[::-1] if rule.transposed else expected
            if list(self.shapes[source]) != expected:
                raise LlmcliError(
                    f"{self.files[source]}: tensor {self.names[source]} has shape {list(self.shapes[source])}, "
                    f"but config.json makes it {expected}",
                    "config.json and the weights must come from the same model",
                )

    def fill(self, rule: Rule, target: Tensor) -> Tensor:
        """Copy the rule's sources into ``target``, each into its rows, converting dtype and device."""
        for source, part in zip(rule.sources, torch.split(target, list(rule.rows)), strict=True):
            path = self.files[source]
            with opened(path) as file:
                tensor = _tensor(file, self.names[source], path)
            part.copy_(tensor.T if rule.transposed else tensor)
        return target


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that its index lists. Errors: neither is there, or a shard is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        pickled = any(folder.glob("pytorch_model*.bin"))
        raise LlmcliError(
            f"{folder}: no {WEIGHTS} and no {INDEX}",
            "only pickled weights are here; get the model as safetensors" if pickled else "is this a model folder?",
        )
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise LlmcliError(f"{folder / INDEX}: has no weight_map", "the file may be damaged; get it again")
    names, there = sorted(set(shards.values())), {path.name for path in folder.iterdir() if path.is_file()}
    lost = [name for name in names if name not in there]  # a name that leads out of the folder is never there
    if lost:
        raise LlmcliError(f"{folder}: missing shards: {_some(lost)}", "the download may be incomplete; get them again")
    return [folder / name for name in names]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, with damage reported as the user's to mend."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise LlmcliError(
            f"{path}: not a whole safetensors file: {error}", "it may be cut off or damaged; get it again"
        ) from error


def _tensor(file: Any, name: str, path: Path) -> Tensor:
    tensor: Tensor = file.get_tensor(name)
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise LlmcliError(
            f"{path}: tensor {name} is stored as {tensor.dtype}", "only float32, bfloat16 and float16 are supported"
        )
    return tensor


def _some(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
