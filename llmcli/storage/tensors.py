"""The tensors in a model folder's weight files, by the names that its family uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.formats import other_weights, other_weights_hint
from llmcli.files.json import read_json
from llmcli.files.names import CONFIG, INDEX, WEIGHTS, weights_among
from llmcli.files.safetensors import DTYPES, Entry, TensorFile
from llmcli.model.config import ModelConfig
from llmcli.model.families.rules import Family, Rule, Source
from llmcli.storage.foreign_formats import (
    BESIDE,
    check_supported,
    format_of,
    quantizes_activations,
    stated_settings,
    unsupported,
)
from llmcli.storage.ggml import row_bytes
from llmcli.storage.lora import Adapter
from llmcli.storage.naming import Naming
from llmcli.storage.packed.parts import PIECE, PackedFile, not_finite
from llmcli.storage.packed.recognize import find_packed
from llmcli.storage.packed.scaled import SCALES

_LAYER = re.compile(r"(.*?\.)(\d+)\.")  # the part of a tensor's name up to its layer's number
NUMBER = re.compile(r"\d{1,9}")
# Next to packed weights: scales and zero points of activations and of the KV cache.
ACTIVATION_SCALES = re.compile(r".*(_scale(_inv|_ub)?|_zero_point)")
STATED_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STACKED = re.compile(r"(.*)\.switch_mlp\.((?:gate|up|down)_proj\.\w+)")  # MLX's name for all experts of a layer
# transformers' names for all experts of a layer, with what follows them in gpt-oss.
STACKED_EXPERTS = re.compile(r"(.*\.experts)\.((?:gate_up|gate|up|down)_proj)(_bias|_blocks|_scales|)")
GRANITE_EXPERTS = re.compile(r"(.*\.block_sparse_moe)\.(input|output)_linear\.weight")  # and Granite's
EXPERT_ENDS = {"": ".weight", "_bias": ".bias"}
EXPERT = re.compile(r"(.*\.experts)\.\d+\.(\w+)(\.weight|\.bias)")
MAX_EXPERTS = 2**12
PART = 2**22  # values converted at a time
RELATIVE, ABSOLUTE = 2**-8, 2**-24  # the rounding of numbers stored in bfloat16 or float16
HEADS = ("lm_head.weight", "embed_out.weight")


class WeightFiles:
    """Every tensor in the folder's weight files; tensors that an ``adapter`` changes are merged with it when read.

    ``raw`` is the parsed config.json, ``config`` what the family made of it. ``unused`` names the stored tensors
    that the model does not use, once ``check_names`` has run, as ``grouped`` does.

    Raises LlmcliError if a file is damaged or a tensor is stored twice.
    """

    config_name = CONFIG  # what describes the model, for errors

    def __init__(
        self, folder: Path, family: Family, config: ModelConfig, raw: Mapping[str, Any], adapter: Path | None = None
    ) -> None:
        self.folder, self.family = folder, family
        self.settings = stated_settings(folder, raw)
        self.stated_dtype = _stated_dtype(raw)
        paths, shard_of = _located(folder)
        files = [TensorFile(path) for path in paths]
        naming = Naming.of(family, config, (name for file in files for name in file.entries))
        self.tensors: dict[str, tuple[TensorFile, Entry]] = {}
        for file in files:
            for stored in file.entries.values():
                for entry in _experts(stored, halved=not family.stacks_experts):
                    self._add(naming.resolve(entry.name), file, entry, shard_of.get(stored.name))
        self._find_packed(family.rules(replace(config, tie_word_embeddings=False)))
        self.unused: tuple[str, ...] = ()
        self.adapter = None if adapter is None else Adapter(adapter, naming.resolve)
        self.adapted = frozenset(() if self.adapter is None else self.adapter.sources)

    def _add(self, name: str, file: TensorFile, entry: Entry, shard: str | None) -> None:
        """Add a tensor. If it is stored in two shards, the one that the index names counts."""
        if name in self.tensors:
            other, duplicate = self.tensors[name]
            same_name = entry.name == duplicate.name
            if same_name and shard == other.path.name:
                return
            if not same_name or shard != file.path.name:
                raise LlmcliError(
                    f"{file.path}: tensor {entry.name} is stored twice, also in {other.path} as {duplicate.name}",
                    "the folder may contain the files of two models",
                )
        self.tensors[name] = file, entry

    def _find_packed(self, rules: Sequence[Rule]) -> None:
        """Put packed matrices into the places of the tensors that hold them.

        Raises LlmcliError if there are any, and the settings state a format that llmcli does not open.
        """
        sources = [source for rule in rules for source in rule.sources]
        packed, used = find_packed(self.tensors, sources, self.settings)
        for name in used:
            del self.tensors[name]
        self.tensors.update({name: (file, file.entry) for name, file in packed.items()})

    def packed(self, name: str) -> PackedFile | None:
        """The packed matrix called ``name``; None if it is stored in another form."""
        file, _ = self.tensors[name]
        return file if isinstance(file, PackedFile) else None

    def formats(self, rules: Iterable[Rule]) -> tuple[str, ...]:
        """The packed formats in which the parameters of ``rules`` are stored."""
        files = [self.packed(source.name) for rule in rules for source in rule.sources]
        return tuple(sorted({file.matrix.format for file in files if file is not None}))

    def block_format(self, source: Source) -> str | None:
        """The blocks of GGUF that hold exactly the weights of ``source``; None if there are none."""
        packed = self.packed(source.name)
        if packed is None or source.name in self.adapted or source.shift or packed.blocks is None:
            return None
        if source.transposed != packed.transposed:
            return None
        return packed.blocks.format

    def blocks(self, source: Source) -> Tensor:
        """The rows of a source that has a ``block_format``, in blocks: uint8 [rows, bytes]."""
        packed = self.packed(source.name)
        assert packed is not None
        assert packed.blocks is not None
        step = max(PIECE // packed.entry.shape[1], 1)
        pieces = [packed.blocks.rows(row, min(row + step, source.rows)) for row in range(0, source.rows, step)]
        rows = torch.cat(pieces)
        return rows if source.as_stored else rows[source.arranged_rows()]

    def blocks_nbytes(self, rule: Rule) -> int:
        """The size of ``blocks`` of the rule's sources, in bytes."""
        formats = [(self.tensors[source.name][1].shape, self.block_format(source)) for source in rule.sources]
        return sum(shape[0] * row_bytes(shape[1], format) for shape, format in formats if format is not None)

    @property
    def quantizes_activations(self) -> bool:
        """Whether the folder's settings ask for quantized activations, too, which llmcli does not compute with."""
        return self.settings is not None and quantizes_activations(self.settings)

    def check_names(self, rules: Sequence[Rule], *, tied: bool) -> None:
        """Find the unused tensors.

        Raises LlmcliError, which names every missing tensor or the format of quantized weights, if any is missing.
        """
        wanted = {source.name for rule in rules for source in rule.sources}
        missing = sorted(wanted - self.tensors.keys())
        packed = {name for name in wanted - set(missing) if self.packed(name) is not None}
        plain = wanted - set(missing) - packed
        if missing or not {self.tensors[name][1].dtype for name in plain} <= DTYPES.keys():
            quantized_by = format_of(self.tensors.keys())
            if quantized_by is not None:
                if self.settings is not None:
                    check_supported(self.settings)
                raise unsupported(quantized_by)
        self._check_scales(plain)
        extra = sorted(
            name
            for name in self.tensors.keys() - wanted
            if not (self.family.drops(name) or (tied and name in HEADS) or (packed and self._ignored(name)))
        )
        self.unused = tuple(grouped([self.tensors[name][1].name for name in extra]))
        if missing:
            raise self._missing(rules, missing, extra)

    def _ignored(self, name: str) -> bool:
        """Whether the tensor ``name`` next to packed matrices is known to have no effect."""
        if ACTIVATION_SCALES.fullmatch(name):
            return True
        weight = name.removesuffix(".bias") + ".weight"
        if weight not in self.tensors or self.packed(weight) is None:
            return False
        file, entry = self.tensors[name]  # GPTQ's programs store biases of zeros where a model has none
        return entry.dtype in DTYPES and not bool(file.read(entry).float().any())

    def _missing(self, rules: Sequence[Rule], missing: Sequence[str], extra: Sequence[str]) -> LlmcliError:
        named = [
            f"{what}: {summarize(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names
        ]
        hint = self._mismatch_hint
        if len(missing) == 1 and missing[0] in HEADS:
            hint = "these are the weights of a base model, which has no head to predict tokens with"
        layers, stored = count_layers(rules, self.tensors)
        counts = "" if layers == stored else f", which has {layers} layers, but the weights have {stored}"
        return LlmcliError(
            f"{self.folder}: the weights do not match {self.config_name}{counts}; tensors {'; '.join(named)}", hint
        )

    @property
    def _mismatch_hint(self) -> str:
        return f"{self.config_name} and the weights must come from the same model"

    def _check_scales(self, plain: Iterable[str]) -> None:
        """Raise LlmcliError if one of the ``plain`` tensors, which are not in 8 bits, has a scale."""
        for name in plain:
            module = name.rpartition(".")[0]
            if name.endswith(".weight") and any(f"{module}.{scale}" in self.tensors for scale in SCALES):
                file, entry = self.tensors[name]
                raise LlmcliError(
                    f"{file.path}: tensor {entry.name} is stored as {entry.dtype} with a scale",
                    "only packed weights may have scales",
                )

    def check_constants(self) -> None:
        """Raise LlmcliError if a number that is the same in all models of the family is stored with another value."""
        for pattern, value in self.family.constants:
            prefix, suffix = pattern.split("{}")
            for name, (file, entry) in self.tensors.items():
                if not (name.startswith(prefix) and name.endswith(suffix)):
                    continue
                stored = file.read(entry).double()
                expected = torch.full_like(stored, value)
                if not torch.allclose(stored, expected, rtol=RELATIVE, atol=ABSOLUTE):
                    raise LlmcliError(
                        f"{file.path}: tensor {entry.name} is {stored.flatten()[:1].tolist()}, not {value:g}",
                        "the file may be damaged, or of a model that llmcli does not compute",
                    )

    def check_adapter(self, rules: Sequence[Rule]) -> None:
        """Raise LlmcliError if the adapter changes tensors that are not parameters."""
        if self.adapter is None:
            return
        foreign = sorted(self.adapted - {source.name for rule in rules for source in rule.sources})
        if foreign:
            raise LlmcliError(
                f"{self.adapter.path}: adapts tensors that the model does not have: {summarize(foreign)}",
                "it may belong to another model",
            )

    def find_embedding(self, embedding: str, head: str) -> None:
        """Use the stored head as the embedding of a tied model if only the head is stored, as some programs do."""
        if embedding not in self.tensors and head in self.tensors:
            self.tensors[embedding] = self.tensors.pop(head)

    def untie(self, embedding: str, head: str) -> bool:
        """Store a separate head if the adapter changes the embedding or the head, which is a copy of it.

        An adapter that changes both in the same way (PEFT's ``ensure_weight_tying``) has both. Returns whether it did.
        """
        if embedding not in self.tensors or not self.adapted & {embedding, head}:
            return False
        self.tensors.setdefault(head, self.tensors[embedding])
        return True

    def has_own_head(self, embedding: str, head: str) -> bool:
        """Whether a head is stored that differs from the embedding. Both are names of stored tensors."""
        if not {embedding, head} <= self.tensors.keys():
            return False
        (file, entry), (other, duplicate) = self.tensors[head], self.tensors[embedding]
        if (entry.dtype, entry.shape) != (duplicate.dtype, duplicate.shape):
            return True
        return not torch.equal(file.viewed(entry), other.viewed(duplicate))

    def check_shape(self, rule: Rule, target: torch.Size) -> None:
        """Raise LlmcliError unless the sources have the shapes that a parameter of shape ``target`` requires."""
        for source in rule.sources:
            file, entry = self.tensors[source.name]
            file.dtype(entry)  # raises the error for integers
            expected = source.stored_shape(tuple(target[1:]))
            if entry.shape != expected:
                raise LlmcliError(
                    f"{file.path}: tensor {entry.name} has shape {list(entry.shape)}, "
                    f"but {self.config_name} implies {list(expected)}",
                    self._mismatch_hint,
                )

    def dtype(self, name: str) -> torch.dtype:
        """The dtype to keep a tensor in: the stored dtype, or float32 for float64.

        If any matrix is packed, it is the dtype that config.json states, or bfloat16.
        """
        if name not in self.tensors:
            raise LlmcliError(f"the weights have no tensor {name}", "config.json may belong to another model")
        if any(isinstance(file, PackedFile) for file, _ in self.tensors.values()):
            return self.stated_dtype
        file, entry = self.tensors[name]
        return torch.float32 if file.dtype(entry) == torch.float64 else file.dtype(entry)

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
        if source.as_stored and source.name not in self.adapted and rows.device.type == "cpu":
            file, entry = self.tensors[source.name]
            if isinstance(file, PackedFile):
                file.read_into(entry, rows)
            else:
                read_in_parts(file, entry, rows)
            return
        rows.copy_(source.arranged(self.whole(source), tuple(rows.shape[1:])))

    def whole(self, source: Source) -> Tensor:
        """The source's tensor in its stored shape, unpacked, with the adapter applied."""
        file, entry = self.tensors[source.name]
        tensor = file.read(entry)
        if self.adapter is not None:
            tensor = self.adapter.applied(source.name, tensor, transposed=source.transposed)
        return tensor

    def not_finite(self, rule: Rule, dtype: torch.dtype) -> LlmcliError:
        """The error for a parameter that contains NaN or infinity as loaded; it names the tensor that they are from."""
        sources = [source.name for source in rule.sources]
        for file, entry in (self.tensors[name] for name in sources):
            if isinstance(file, PackedFile):
                error = file.matrix.parts.not_finite()
                if error is not None:
                    return error
                continue
            bad = int((~file.read(entry).double().isfinite()).sum())
            if bad:
                return not_finite(file, entry, bad)
        for name in sources:
            if self.adapter is not None and not self.adapter.finite(name):
                return LlmcliError(
                    f"{self.adapter.path}: the adapter for {name} contains NaN or infinity",
                    "its training may have diverged, or the file is damaged",
                )
        names = ", ".join(self.tensors[name][1].name for name in sources)
        return LlmcliError(
            f"{self.folder}: values of {names} are too large for {str(dtype).removeprefix('torch.')}",
            kind="weights-overflow",
        )


def _experts(entry: Entry, *, halved: bool) -> Iterator[Entry]:
    """The tensor or, if it is that of all experts, the tensor of each; ``halved``: stacked gates and ups are two."""
    granite = GRANITE_EXPERTS.fullmatch(entry.name)
    name = entry.name
    if granite is not None:
        name = f"{granite[1]}.experts.{'gate_up_proj' if granite[2] == 'input' else 'down_proj'}"
    ours, theirs = STACKED.fullmatch(name), STACKED_EXPERTS.fullmatch(name)
    if (ours is None and theirs is None) or len(entry.shape) < 2 or entry.shape[0] > MAX_EXPERTS:
        yield entry
        return
    experts = entry.shape[0]
    if ours is not None:
        before, after = f"{ours[1]}.experts", f".{ours[2]}"
    else:
        assert theirs is not None
        before, after = theirs[1], f".{theirs[2]}{EXPERT_ENDS.get(theirs[3], theirs[3])}"
    afters = [after]
    if halved and after == ".gate_up_proj.weight" and len(entry.shape) == 3 and entry.shape[1] % 2 == 0:
        afters = [".gate_proj.weight", ".up_proj.weight"]
        entry = replace(entry, shape=(2 * entry.shape[0], entry.shape[1] // 2, entry.shape[2]))
    yield from entry.split(f"{before}.{number}{after}" for number in range(experts) for after in afters)


def stacked_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of how experts are read: the tensors with one for all experts of a layer, by transformers' names."""
    stacks: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        match = EXPERT.fullmatch(name)
        end = {end: stored for stored, end in EXPERT_ENDS.items()}.get(match[3], "") if match else ""
        stacks.setdefault(f"{match[1]}.{match[2]}{end}" if match else name, []).append(tensor)
    stacked = {name: torch.stack(all) if STACKED_EXPERTS.fullmatch(name) else all[0] for name, all in stacks.items()}
    return {_granite_name(name): tensor for name, tensor in stacked.items()}


def _granite_name(name: str) -> str:
    """Granite's name of a tensor of all experts; other names are unchanged."""
    for ours, theirs in (("gate_up_proj", "input"), ("down_proj", "output")):
        name = re.sub(rf"\.block_sparse_moe\.experts\.{ours}$", f".block_sparse_moe.{theirs}_linear.weight", name)
    return name


def read_in_parts(file: TensorFile, entry: Entry, target: Tensor) -> None:
    """Read the tensor into ``target``, contiguous and on the CPU, and convert it to the target's dtype.

    Conversion needs little memory, since it takes PART values at a time.
    """
    if file.dtype(entry) == target.dtype:
        file.read_into(entry, target)
        return
    buffer, flat = torch.empty(min(PART, target.numel()), dtype=file.dtype(entry)), target.view(-1)
    for first in range(0, target.numel(), PART):
        part = flat[first : first + PART]
        part.copy_(file.read_into(entry, buffer[: len(part)], first))


def dtype_for(target: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the parameter ``target`` in a model that is loaded in ``dtype``.

    A bias that chooses experts stays in float32, as in transformers: rounded, it would choose other ones.
    """
    return torch.float32 if target.endswith(".choice_bias") else dtype


def _stated_dtype(raw: Mapping[str, Any]) -> torch.dtype:
    """The dtype that a parsed config.json states; bfloat16 if it states none."""
    text = raw.get("text_config")
    for place in (raw, text if isinstance(text, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            stated = str(place.get(key)).removeprefix("torch.")
            if stated in STATED_DTYPES:
                return STATED_DTYPES[stated]
    return torch.bfloat16


def count_layers(rules: Sequence[Rule], stored: Iterable[str]) -> tuple[int, int]:
    """The number of layers that the rules describe, and that of the layers among the names of ``stored`` tensors."""
    wanted = [source.name for rule in rules if rule.target.startswith("blocks.") for source in rule.sources]
    found = [[match for name in names if (match := _LAYER.match(name))] for names in (wanted, stored)]
    prefixes = {match[1] for match in found[0]}
    counts = [len({match[2] for match in matches if match[1] in prefixes}) for matches in found]
    return counts[0], counts[1]


def weight_files(folder: Path) -> list[Path]:
    """The file that holds all weights, or the shards that its index lists.

    Raises LlmcliError if neither exists, or a shard is missing.
    """
    return _located(folder)[0]


def _located(folder: Path) -> tuple[list[Path], Mapping[str, str]]:
    """``weight_files``, and the index: the name of each tensor's shard, empty for a single file."""
    names = [path.name for path in _files(folder)]
    found = weights_among(names)
    if found is None:
        _check_beside(folder)
        other = other_weights(names)
        raise LlmcliError(
            f"{folder}: no {WEIGHTS} and no {INDEX}" + (f"; its weights are {other}" if other else ""),
            other_weights_hint(names) if other else "download the weights, or give the folder that has them",
        )
    if found != INDEX:
        return [folder / found], {}
    shard_of = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(name, str) for name in shard_of.values()):
        raise LlmcliError(f"{folder / INDEX}: has no weight_map", "the file may be damaged; download it again")
    shards = sorted(set(shard_of.values()))
    missing = [name for name in shards if name not in names]  # so names that lead out of the folder are missing
    if missing:
        raise LlmcliError(
            f"{folder}: missing shards: {summarize(missing)}", "the download may be incomplete; download them again"
        )
    return [folder / name for name in shards], shard_of


def _check_beside(folder: Path) -> None:
    """Raise LlmcliError if a file next to config.json states a format that llmcli does not open."""
    if any((folder / file).is_file() for file in BESIDE):
        check_supported(stated_settings(folder, {}) or {})


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_file())


def summarize(names: Sequence[str]) -> str:
    """All names in one line; names that differ only in their first number, such as the layer's, are grouped."""
    return ", ".join(grouped(names))


def grouped(names: Sequence[str]) -> list[str]:
    """The names, of which those that differ only in their first number become one, with all their numbers."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(NUMBER, "*", name, count=1), []).append(name)
    groups = []
    for pattern, group in alike.items():
        numbers = [int(re.findall(NUMBER, name)[0]) for name in group if "*" in pattern]
        groups.append(group[0] if len(group) == 1 else pattern.replace("*", f"{{{_ranges(numbers)}}}", 1))
    return groups


def _ranges(numbers: Sequence[int]) -> str:
    """The numbers in ascending order, three or more in a row as in "0..31"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
