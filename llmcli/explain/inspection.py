"""The view of a whole model: what is it, and does it fit? Told by config.json and headers, then measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llmcli.engine.size import CacheBytes, cache_bytes, empty_model, weight_bytes
from llmcli.errors import usage_error
from llmcli.explain.architecture import Shape, shape_of
from llmcli.explain.report import Check, Claim, Report, check
from llmcli.generation.loaded import LoadedModel, device_for
from llmcli.generation.steps import PREFILL_CHUNK
from llmcli.model.cache import KVCache
from llmcli.model.config import ModelConfig
from llmcli.model.device import Memory, memory_of, pick_dtype
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.headers import Headers, read_headers
from llmcli.storage.quantize import Kind
from llmcli.text.tokenizer import load_tokenizer

GROUPS = ("embedding", "positions", "attention", "MLP", "experts", "routers", "norms", "head")
SMALLER: tuple[Kind, ...] = ("int8", "int4")


@dataclass(frozen=True)
class Group:
    """Parameters of one kind, the share of all that they are, and their bytes as loaded."""

    name: str
    parameters: int
    share: float
    bytes: int


@dataclass(frozen=True)
class Stored:
    """What the files hold of one dtype, as safetensors writes it."""

    dtype: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class Need:
    """Bytes of weights held as ``weights`` says, with the KV cache's at its largest; ``fits``: None if not known."""

    weights: str
    weight_bytes: int
    total: int
    fits: bool | None


@dataclass(frozen=True)
class Measured:
    """Bytes allocated: of the opened model's parameters, and of the KV cache's buffers behind the text."""

    weight_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class InspectReport(Report):
    """``needs`` are for a text of ``tokens``, first as asked for, then rounded further.

    ``active`` parameters take part in one token. ``others`` names tensors that are no parameters of their own.
    ``measured`` is None where the model was not opened.
    """

    model: str
    shape: Shape
    parameters: int
    active: int
    groups: tuple[Group, ...]
    stored: tuple[Stored, ...]
    others: str
    disk_bytes: int
    device: str
    tokens: int
    cache: CacheBytes
    needs: tuple[Need, ...]
    memory: Memory
    measured: Measured | None
    check: Check


def inspect_report(
    name: str,
    folder: Path,
    *,
    device: str,
    dtype: str,
    quantization: Kind | None,
    tokens: int | None,
    opened: Callable[[], LoadedModel],
) -> InspectReport:
    """The model in ``folder``, as ``load`` would open it with these options, behind a text of ``tokens``.

    None means the whole context. ``opened`` loads it, which is asked for only if it fits.
    Errors: as of ``load``, and more tokens than the context.
    """
    checkpoint = Checkpoint.read(folder)
    headers = read_headers(checkpoint)
    config = headers.config
    where = device_for(checkpoint, device, quantization)
    computing = pick_dtype(dtype, where, headers.dtype)
    kind = quantization or headers.kind
    model = empty_model(config)
    context = config.max_position_embeddings
    if tokens is not None and tokens > context:
        raise usage_error(f"--context {tokens} is more than the model's {context} tokens", "ask for fewer")
    tokens = tokens or context
    cache = cache_bytes(config, computing, tokens, chunk=PREFILL_CHUNK, device=where)
    memory = memory_of(where)
    needs = _needs(model, computing, kind, where, cache, memory.usable)
    measured = None if needs[0].fits is False else _measured(opened().model, tokens)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return InspectReport(
        model=name,
        shape=shape_of(config, load_tokenizer(folder, name).size),
        parameters=sum(counts.values()),
        active=_active(config, counts),
        groups=_groups(counts, weight_bytes(model, computing, kind)),
        stored=_stored(headers),
        others=headers.others_named,
        disk_bytes=sum(entry.end - entry.start for entry in (*headers.entries, *headers.others)),
        device=where.type,
        tokens=tokens,
        cache=cache,
        needs=needs,
        memory=memory,
        measured=measured,
        check=_check(sum(counts.values()), headers, needs[0], cache, measured),
    )


def _needs(
    model: Transformer,
    dtype: torch.dtype,
    kind: Kind | None,
    device: torch.device,
    cache: CacheBytes,
    usable: int | None,
) -> tuple[Need, ...]:
    """As asked for; and rounded, where that is still possible."""
    smaller = SMALLER if kind is None and device.type == "cpu" else ()
    needs = []
    for rounding in (kind, *smaller):
        size = sum(weight_bytes(model, dtype, rounding).values())
        total = size + cache.most
        held = rounding or str(dtype).removeprefix("torch.")
        needs.append(Need(held, size, total, None if usable is None else total <= usable))
    return tuple(needs)


def _measured(model: Transformer, tokens: int) -> Measured:
    """The real parameters, and the real cache's bookkeeping behind a text, on a device that takes no memory for it."""
    block = model.new_cache().block
    cache = KVCache(model.config, device=torch.device("meta"), dtype=model.dtype, block=block)
    while cache.length < tokens:
        count = min(PREFILL_CHUNK, tokens - cache.length)
        cache.reserve(count)
        cache.advance(count)
    return Measured(sum(parameter.nbytes for parameter in model.parameters()), cache.nbytes)


def _check(counted: int, headers: Headers, need: Need, cache: CacheBytes, measured: Measured | None) -> Check:
    claims = [Claim("parameters counted from config.json are those in the files", abs(counted - headers.parameters), 0)]
    if measured is not None:
        off = abs(need.weight_bytes - measured.weight_bytes)
        outside = max(cache.needed - measured.cache_bytes, measured.cache_bytes - cache.most, 0)
        claims.append(Claim("the opened weights take the bytes predicted", off, 0))
        claims.append(Claim("the KV cache's are in the range predicted", outside, 0))
    return check(*claims)


def _active(config: ModelConfig, counts: Mapping[str, int]) -> int:
    """How many parameters one token passes: of the experts, those that are chosen."""
    experts = sum(count for name, count in counts.items() if group_of(name) == "experts")
    unused = 0 if config.moe is None else experts - experts * config.moe.num_experts_per_tok // config.moe.num_experts
    return sum(counts.values()) - unused


def _groups(counts: Mapping[str, int], sizes: Mapping[str, int]) -> tuple[Group, ...]:
    parameters: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for name, count in counts.items():
        parameters[group_of(name)] += count
        held[group_of(name)] += sizes[name]
    total = sum(counts.values())
    return tuple(
        Group(group, parameters[group], parameters[group] / total, held[group])
        for group in GROUPS
        if group in parameters
    )


def group_of(name: str) -> str:
    """The one of ``GROUPS`` that a parameter of ``Transformer`` belongs to."""
    module = name.rpartition(".")[0]
    if module in ("embedding", "positions", "head"):
        return module
    if module.endswith("norm"):
        return "norms"
    if module.endswith(".router"):
        return "routers"
    if ".experts." in module:
        return "experts"
    return "attention" if ".attn." in module else "MLP"


def _stored(headers: Headers) -> tuple[Stored, ...]:
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for entry in (*headers.entries, *headers.others):
        tensors[entry.dtype] += 1
        sizes[entry.dtype] += entry.end - entry.start
    return tuple(Stored(dtype, tensors[dtype], size) for dtype, size in sizes.most_common())
