"""The tensors of a model folder, under the names its family uses, whatever files they lie in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.json import read_json
from llmcli.files.names import INDEX, WEIGHTS
from llmcli.files.safetensors import Entry, TensorFile
from llmcli.model.families.rules import Family, Part, Rule
from llmcli.storage.lora import Adapter

SCALES = ("_scale_inv", "_scale")  # behind the name of a tensor stored in 8 bits: what to multiply it with
BLOCK = 128  # rows and columns that share a scale where there is a table of them (DeepSeek-AI 2024)


class Stored:
    """Every tensor of the folder's weight files, with an ``adapter`` in it if there is one.

    ``scaled``: 8-bit floats mean nothing without their scales. Errors: damaged files, a tensor that is there twice.
    """

    def __init__(self, folder: Path, family: Family, adapter: Path | None = None, *, scaled: bool = False) -> None:
        self.folder, self.family = folder, family
        self.scaled = scaled
        self.adapter = None if adapter is None else Adapter(adapter, family.rename)
        self.adapted = frozenset(() if self.adapter is None else self.adapter.sources)
        self.places: dict[str, tuple[TensorFile, Entry]] = {}
        for path in weight_files(folder):
            file = TensorFile(path)
            for entry in file.entries.values():
                name = family.rename(entry.name)
                if name in self.places:
                    other, twin = self.places[name]
                    raise LlmcliError(
                        f"{path}: tensor {entry.name} is stored twice, also in {other.path} as {twin.name}",
                        "the folder may hold the files of two models",
                    )
                self.places[name] = file, entry

    def check_names(self, rules: Sequence[Rule], *, tied: bool) -> None:
        """Every source present, and nothing stored that no rule takes: all faults in one message."""
        wanted = {part.source for rule in rules for part in rule.parts}
        heads = (r"(lm_head|embed_out)\.weight",) if tied else ()  # a copy of the embedding, see ``has_own_head``
        scales = (r".*\.(weight_scale|weight_scale_inv|input_scale|[kv]_scale)",) if self.in_8_bits(wanted) else ()
        dropped = [re.compile(pattern) for pattern in (*self.family.dropped, *heads, *scales)]
        missing = sorted(wanted - self.places.keys())
        extra = sorted(
            name for name in self.places.keys() - wanted if not any(pattern.fullmatch(name) for pattern in dropped)
        )
        faults = [f"{what}: {some(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names]
        if faults:
            raise LlmcliError(
                f"{self.folder}: the weights do not match config.json; tensors {'; '.join(faults)}",
                "config.json and the weights must come from the same model",
            )

    def check_adapter(self, rules: Sequence[Rule], *, tied: bool) -> None:
        """The adapter changes nothing but parameters, and not the embedding alone where the head is the same."""
        if self.adapter is None:
            return
        strange = sorted(self.adapted - {part.source for rule in rules for part in rule.parts})
        if strange:
            raise LlmcliError(
                f"{self.adapter.path}: adapts what the model does not have: {some(strange)}",
                "it may belong to another model",
            )
        if tied and rules[0].parts[0].source in self.adapted:
            raise LlmcliError(f"{self.adapter.path}: adapts an embedding that is also the head", "not supported")

    def has_own_head(self, embedding: str) -> bool:
        """Whether a head is stored that is not the embedding. It counts then, whatever config.json says of tying."""
        heads = [self.places[name] for name in ("lm_head.weight", "embed_out.weight") if name in self.places]
        if not heads or embedding not in self.places:
            return False
        (file, entry), (other, twin) = heads[0], self.places[embedding]
        if (entry.dtype, entry.shape) != (twin.dtype, twin.shape):
            return True
        return not torch.equal(file.viewed(entry), other.viewed(twin))

    def in_8_bits(self, names: set[str]) -> bool:
        """Whether any of the named tensors is stored in an 8-bit float."""
        return any(self.places[name][1].dtype.startswith("F8") for name in names & self.places.keys())

    def check_shape(self, rule: Rule, target: torch.Size) -> None:
        """Every part of the size that its rows of ``target`` have: known from the headers, before memory is taken."""
        for part in rule.parts:
            file, entry = self.places[part.source]
            file.dtype(entry)
            expected = part.stored_shape(tuple(target[1:]))
            if entry.shape != expected:
                raise LlmcliError(
                    f"{file.path}: tensor {entry.name} has shape {list(entry.shape)}, "
                    f"but config.json makes it {list(expected)}",
                    "config.json and the weights must come from the same model",
                )

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that a tensor's values have: the stored one, or bfloat16 for 8-bit floats with their scales."""
        if name not in self.places:
            raise LlmcliError(f"the weights hold no tensor {name}", "config.json may belong to another model")
        file, entry = self.places[name]
        dtype = file.dtype(entry)
        return torch.bfloat16 if dtype.itemsize == 1 else dtype

    def nbytes(self, rule: Rule) -> int:
        """Bytes that the rule's parts take in the files."""
        return sum(entry.end - entry.start for _, entry in (self.places[part.source] for part in rule.parts))

    def parameter(self, rule: Rule, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The rule's parameter: mapped where the files hold it as it is needed, else read into memory."""
        if device.type == "cpu":
            mapped = self._mapped(rule, shape, dtype)
            if mapped is not None:
                return mapped
        target = torch.empty(shape, dtype=dtype, device=device)
        for part, rows in zip(rule.parts, torch.split(target, [part.rows for part in rule.parts]), strict=True):
            self._fill(part, rows)
        return target

    def _mapped(self, rule: Rule, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        places = [self.places[part.source] for part in rule.parts]
        files = {file.path for file, _ in places}
        fits = all(part.as_stored and not part.shape and part.source not in self.adapted for part in rule.parts)
        if len(files) > 1 or not fits or any(file.dtype(entry) != dtype for file, entry in places):
            return None
        mapped = places[0][0].mapped([entry for _, entry in places])
        return None if mapped is None else mapped.view(shape)

    def _fill(self, part: Part, rows: Tensor) -> None:
        file, entry = self.places[part.source]
        if (
            part.as_stored
            and part.source not in self.adapted
            and rows.device.type == "cpu"
            and file.dtype(entry) == rows.dtype
        ):
            file.read_into(entry, rows)
            return
        rows.copy_(part.arranged(self.whole(part), tuple(rows.shape[1:])))

    def whole(self, part: Part) -> Tensor:
        """The part's tensor with its scale and the adapter in it, of the shape in which it is stored."""
        file, entry = self.places[part.source]
        tensor = self._scaled(part.source, file.read(entry))
        if self.adapter is not None:
            tensor = self.adapter.applied(part.source, tensor, transposed=part.transposed)
        return tensor

    def _scaled(self, name: str, tensor: Tensor) -> Tensor:
        """8-bit floats times their scale: one for all, one a row, or one for each block."""
        if tensor.dtype.itemsize > 1:
            return tensor
        wide = tensor.float()
        scales = [suffix for suffix in SCALES if name + suffix in self.places]
        if self.scaled and not scales:
            raise LlmcliError(f"{self.folder}: tensor {name} is stored in 8 bits without its scale", "get it again")
        for suffix in scales:
            file, entry = self.places[name + suffix]
            wide = wide * _spread(file.read(entry).float(), wide.shape, file, entry)
        return wide


def _spread(scale: Tensor, shape: torch.Size, file: TensorFile, entry: Entry) -> Tensor:
    """``scale`` in a form that broadcasts to ``shape``: as it is, or one entry for each block repeated over it."""
    if scale.numel() == 1:
        return scale.view(())
    blocks = tuple(-(-size // BLOCK) for size in shape)
    if scale.shape == blocks and len(shape) == 2:
        return scale.repeat_interleave(BLOCK, 0)[: shape[0]].repeat_interleave(BLOCK, 1)[:, : shape[1]]
    if scale.shape in ((shape[0], 1), (shape[0],)):
        return scale.view(-1, *(1,) * (len(shape) - 1))
    raise LlmcliError(
        f"{file.path}: tensor {entry.name} has shape {list(entry.shape)}, which fits no way of scaling {list(shape)}",
        "this form of 8-bit weights is not supported",
    )


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
    names, there = sorted(set(shards.values())), {path.name for path in _files(folder)}
    lost = [name for name in names if name not in there]  # a name that leads out of the folder is never there
    if lost:
        raise LlmcliError(f"{folder}: missing shards: {some(lost)}", "the download may be incomplete; get them again")
    return [folder / name for name in names]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_file())


def some(names: Sequence[str]) -> str:
    """All of many names; those that differ in one number alone, as layers do, are told together."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"\d+", "*", name, count=1), []).append(name)
    told = []
    for pattern, group in alike.items():
        numbers = [re.findall(r"\d+", name)[0] for name in group if "*" in pattern]
        told.append(group[0] if len(group) == 1 else pattern.replace("*", f"{{{','.join(numbers)}}}", 1))
    return ", ".join(told)
