"""The tensors in a model folder's weight files, by the names that its family uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.formats import other_weights
from llmcli.files.json import read_json
from llmcli.files.names import INDEX, WEIGHTS
from llmcli.files.safetensors import Entry, TensorFile
from llmcli.model.families.rules import Family, Rule, Source
from llmcli.storage.lora import Adapter

_LAYER = re.compile(r"(.*?\.)(\d+)\.")  # the part of a tensor's name up to its layer's number
SCALE_SUFFIXES = ("_scale_inv", "_scale")  # appended to an 8-bit tensor's name: the scale to multiply it by
SCALE_BLOCK = 128  # rows and columns that share an entry of a scale matrix (DeepSeek-AI 2024)


class WeightFiles:
    """Every tensor in the folder's weight files; tensors that an ``adapter`` changes are merged with it when read.

    ``scaled``: 8-bit floats require scales. Raises LlmcliError if a file is damaged or a tensor is stored twice.
    """

    def __init__(self, folder: Path, family: Family, adapter: Path | None = None, *, scaled: bool = False) -> None:
        self.folder, self.family = folder, family
        self.scaled = scaled
        self.adapter = None if adapter is None else Adapter(adapter, family.rename)
        self.adapted = frozenset(() if self.adapter is None else self.adapter.sources)
        self.tensors: dict[str, tuple[TensorFile, Entry]] = {}
        for path in weight_files(folder):
            file = TensorFile(path)
            for entry in file.entries.values():
                name = family.rename(entry.name)
                if name in self.tensors:
                    other, duplicate = self.tensors[name]
                    raise LlmcliError(
                        f"{path}: tensor {entry.name} is stored twice, also in {other.path} as {duplicate.name}",
                        "the folder may contain the files of two models",
                    )
                self.tensors[name] = file, entry

    def check_names(self, rules: Sequence[Rule], *, tied: bool) -> None:
        """Raise LlmcliError, which names every missing and unexpected tensor, if there are any."""
        wanted = {source.name for rule in rules for source in rule.sources}
        heads = (r"(lm_head|embed_out)\.weight",) if tied else ()  # a copy of the embedding; see ``has_own_head``
        scales = (r".*\.(weight_scale|weight_scale_inv|input_scale|[kv]_scale)",) if self.in_8_bits(wanted) else ()
        dropped = [re.compile(pattern) for pattern in (*self.family.dropped, *heads, *scales)]
        missing = sorted(wanted - self.tensors.keys())
        extra = sorted(
            name for name in self.tensors.keys() - wanted if not any(pattern.fullmatch(name) for pattern in dropped)
        )
        faults = [
            f"{what}: {summarize(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names
        ]
        if faults:
            layers, stored = count_layers(rules, self.tensors)
            counts = "" if layers == stored else f", which has {layers} layers, but the weights have {stored}"
            raise LlmcliError(
                f"{self.folder}: the weights do not match config.json{counts}; tensors {'; '.join(faults)}",
                "config.json and the weights must come from the same model",
            )

    def check_adapter(self, rules: Sequence[Rule], *, tied: bool) -> None:
        """Raise LlmcliError if the adapter changes other tensors than parameters, or an embedding used as the head."""
        if self.adapter is None:
            return
        foreign = sorted(self.adapted - {source.name for rule in rules for source in rule.sources})
        if foreign:
            raise LlmcliError(
                f"{self.adapter.path}: adapts tensors that the model does not have: {summarize(foreign)}",
                "it may belong to another model",
            )
        if tied and rules[0].sources[0].name in self.adapted:
            raise LlmcliError(f"{self.adapter.path}: adapts an embedding that is also the head", "not supported")

    def has_own_head(self, embedding: str) -> bool:
        """Whether a head is stored that differs from the embedding, the tensor so named."""
        heads = [self.tensors[name] for name in ("lm_head.weight", "embed_out.weight") if name in self.tensors]
        if not heads or embedding not in self.tensors:
            return False
        (file, entry), (other, duplicate) = heads[0], self.tensors[embedding]
        if (entry.dtype, entry.shape) != (duplicate.dtype, duplicate.shape):
            return True
        return not torch.equal(file.viewed(entry), other.viewed(duplicate))

    def in_8_bits(self, names: set[str]) -> bool:
        """Whether any of the named tensors is stored in an 8-bit float."""
        return any(self.tensors[name][1].dtype.startswith("F8") for name in names & self.tensors.keys())

    def check_shape(self, rule: Rule, target: torch.Size) -> None:
        """Raise LlmcliError unless the sources have the shapes that a parameter of shape ``target`` requires."""
        for source in rule.sources:
            file, entry = self.tensors[source.name]
            file.dtype(entry)
            expected = source.stored_shape(tuple(target[1:]))
            if entry.shape != expected:
                raise LlmcliError(
                    f"{file.path}: tensor {entry.name} has shape {list(entry.shape)}, "
                    f"but config.json makes it {list(expected)}",
                    "config.json and the weights must come from the same model",
                )

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor's values: the stored dtype, or bfloat16 for scaled 8-bit floats."""
        if name not in self.tensors:
            raise LlmcliError(f"the weights have no tensor {name}", "config.json may belong to another model")
        file, entry = self.tensors[name]
        dtype = file.dtype(entry)
        return torch.bfloat16 if dtype.itemsize == 1 else dtype

    def nbytes(self, rule: Rule) -> int:
        """The size of the rule's sources in the files, in bytes."""
        return sum(entry.end - entry.start for _, entry in (self.tensors[source.name] for source in rule.sources))

    def parameter(self, rule: Rule, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The rule's parameter: memory-mapped if the file holds it in the needed form, otherwise read into memory."""
        if device.type == "cpu":
            mapped = self._mapped(rule, shape, dtype)
            if mapped is not None:
                return mapped
        target = torch.empty(shape, dtype=dtype, device=device)
        for source, rows in zip(
            rule.sources, torch.split(target, [source.rows for source in rule.sources]), strict=True
        ):
            self._fill(source, rows)
        return target

    def _mapped(self, rule: Rule, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """The parameter as a part of a mapped file; None if the file does not hold it in the needed form."""
        stored = [self.tensors[source.name] for source in rule.sources]
        files = {file.path for file, _ in stored}
        fits = all(source.as_stored and not source.shape and source.name not in self.adapted for source in rule.sources)
        if len(files) > 1 or not fits or any(file.dtype(entry) != dtype for file, entry in stored):
            return None
        mapped = stored[0][0].mapped([entry for _, entry in stored])
        return None if mapped is None else mapped.view(shape)

    def _fill(self, source: Source, rows: Tensor) -> None:
        """Read a source into the parameter's rows that it fills."""
        file, entry = self.tensors[source.name]
        if (
            source.as_stored
            and source.name not in self.adapted
            and rows.device.type == "cpu"
            and file.dtype(entry) == rows.dtype
        ):
            file.read_into(entry, rows)
            return
        rows.copy_(source.arranged(self.whole(source), tuple(rows.shape[1:])))

    def whole(self, source: Source) -> Tensor:
        """The source's tensor in its stored shape, with scale and adapter applied."""
        file, entry = self.tensors[source.name]
        tensor = self._scaled(source.name, file.read(entry))
        if self.adapter is not None:
            tensor = self.adapter.applied(source.name, tensor, transposed=source.transposed)
        return tensor

    def _scaled(self, name: str, tensor: Tensor) -> Tensor:
        """An 8-bit tensor times its scale, which is a single one, one per row or one per block; others unchanged."""
        if tensor.dtype.itemsize > 1:
            return tensor
        wide = tensor.float()
        scales = [suffix for suffix in SCALE_SUFFIXES if name + suffix in self.tensors]
        if self.scaled and not scales:
            raise LlmcliError(
                f"{self.folder}: tensor {name} is stored in 8 bits without its scale", "download it again"
            )
        for suffix in scales:
            file, entry = self.tensors[name + suffix]
            wide = wide * _spread(file.read(entry).float(), wide.shape, file, entry)
        return wide


def _spread(scale: Tensor, shape: torch.Size, file: TensorFile, entry: Entry) -> Tensor:
    """``scale`` in a form that broadcasts to ``shape``: the entry of a block is repeated over the block."""
    if scale.numel() == 1:
        return scale.view(())
    blocks = tuple(-(-size // SCALE_BLOCK) for size in shape)
    if scale.shape == blocks and len(shape) == 2:
        return scale.repeat_interleave(SCALE_BLOCK, 0)[: shape[0]].repeat_interleave(SCALE_BLOCK, 1)[:, : shape[1]]
    if scale.shape in ((shape[0], 1), (shape[0],)):
        return scale.view(-1, *(1,) * (len(shape) - 1))
    raise LlmcliError(
        f"{file.path}: tensor {entry.name} has shape {list(entry.shape)}, which cannot scale a tensor of {list(shape)}",
        "this layout of 8-bit weights is not supported",
    )


def count_layers(rules: Sequence[Rule], stored: Iterable[str]) -> tuple[int, int]:
    """The number of layers that the rules describe, and that of the layers among the names of ``stored`` tensors."""
    wanted = [source.name for rule in rules if rule.target.startswith("blocks.") for source in rule.sources]
    found = [[match for name in names if (match := _LAYER.match(name))] for names in (wanted, stored)]
    prefixes = {match[1] for match in found[0]}
    counts = [len({match[2] for match in matches if match[1] in prefixes}) for matches in found]
    return counts[0], counts[1]


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that its index lists.

    Raises LlmcliError if neither exists, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        other = other_weights(path.name for path in _files(folder))
        raise LlmcliError(
            f"{folder}: no {WEIGHTS} and no {INDEX}" + (f"; its weights are {other}" if other else ""),
            "get the model as safetensors" if other else "download the weights, or give the folder that has them",
        )
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise LlmcliError(f"{folder / INDEX}: has no weight_map", "the file may be damaged; download it again")
    names, there = sorted(set(shards.values())), {path.name for path in _files(folder)}
    missing = [name for name in names if name not in there]  # so names that lead out of the folder are missing
    if missing:
        raise LlmcliError(
            f"{folder}: missing shards: {summarize(missing)}", "the download may be incomplete; download them again"
        )
    return [folder / name for name in names]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_file())


def summarize(names: Sequence[str]) -> str:
    """All names in one line; names that differ only in their first number, such as the layer's, are grouped."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"\d+", "*", name, count=1), []).append(name)
    grouped = []
    for pattern, group in alike.items():
        numbers = [re.findall(r"\d+", name)[0] for name in group if "*" in pattern]
        grouped.append(group[0] if len(group) == 1 else pattern.replace("*", f"{{{','.join(numbers)}}}", 1))
    return ", ".join(grouped)
