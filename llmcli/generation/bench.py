"""Speed of a model: the real loop, timed for given lengths of prompt, output and context."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llmcli.engine.random_weights import random_model
from llmcli.engine.size import empty_model, weight_bytes
from llmcli.errors import usage_error
from llmcli.files.json import read_json
from llmcli.generation.filters import Temperature
from llmcli.generation.reading import next_logits
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import steps
from llmcli.model.cache import KVCache
from llmcli.model.device import pick_device, pick_dtype
from llmcli.model.families import family_of
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import Quantization, quantize

WARM_UP = 16  # tokens generated before the measurements


@dataclass(frozen=True)
class Rate:
    """Tokens per second in several runs."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def low(self) -> float:
        return min(self.runs)

    @property
    def high(self) -> float:
        return max(self.runs)


@dataclass(frozen=True)
class Speed:
    """The speed at one depth: reading ``prompt`` tokens after ``depth`` others, then generating ``output`` greedily.

    ``cache_bytes`` is the size of the KV cache at the end, ``read_bytes`` the size of the weights that one token reads.
    """

    depth: int
    prompt: int
    output: int
    prefill: Rate
    decode: Rate
    cache_bytes: int
    read_bytes: int

    def share(self, bandwidth: float) -> float:
        """The fraction of the memory ``bandwidth`` (bytes per second) that decoding used; above 1 with CPU caches."""
        return self.decode.median * self.read_bytes / bandwidth


def measure(model: Transformer, *, prompt: int, output: int, depths: Sequence[int], repeat: int) -> Iterator[Speed]:
    """Yield a ``Speed`` for each depth. Raises LlmcliError if the lengths exceed the model's context."""
    limit = model.config.max_position_embeddings
    longest = max(depths) + prompt + output
    if longest > limit:
        raise usage_error(
            f"depth + prompt + output is {longest} tokens, but the model's context holds {limit}", "use fewer tokens"
        )
    rng = random.Random(0)
    ids = [rng.randrange(model.config.vocab_size) for _ in range(max(depths) + prompt)]
    sampler = Sampler([Temperature(0.0)], seed=0)
    for _ in steps(model, ids[:1], sampler=sampler, max_new_tokens=min(WARM_UP, limit - 1)):
        pass
    for depth in depths:
        yield _at_depth(model, ids[: depth + prompt], depth, output, repeat, sampler)


def _at_depth(model: Transformer, ids: Sequence[int], depth: int, output: int, repeat: int, sampler: Sampler) -> Speed:
    cache = model.new_cache()
    prefills, decodes, size = [], [], 0
    for _ in range(repeat):
        if cache.length < depth:  # in the first run, and if windowed layers could not be truncated
            next_logits(model, ids[:depth], cache)
        prefill, decode = _run(model, ids, cache, output, sampler)
        prefills.append((len(ids) - depth) / prefill)
        decodes.append((output - 1) / decode)
        size = cache.nbytes
        cache.truncate(depth)
    return Speed(
        depth=depth,
        prompt=len(ids) - depth,
        output=output,
        prefill=Rate(tuple(prefills)),
        decode=Rate(tuple(decodes)),
        cache_bytes=size,
        read_bytes=read_bytes(model),
    )


def _run(model: Transformer, ids: Sequence[int], cache: KVCache, output: int, sampler: Sampler) -> tuple[float, float]:
    """Seconds until the first token, and from there until the last of ``output`` tokens."""
    began = time.perf_counter()
    first = began
    for step in steps(model, ids, sampler=sampler, max_new_tokens=output, cache=cache):
        if step.index == 0:
            first = time.perf_counter()
    return first - began, time.perf_counter() - first


def random_model_of(config: Path, device: str, dtype: str, quantization: Quantization | None) -> Transformer:
    """A model with random weights in the shape of a config.json. "auto" means bfloat16 and the fastest device."""
    raw = read_json(config)
    where = pick_device(device)
    shape = family_of(raw).parse(raw)
    in_float32 = sum(weight_bytes(empty_model(shape), torch.float32, None).values())
    model = random_model(shape, device=where, dtype=pick_dtype(dtype, where, torch.bfloat16, in_float32))
    if quantization is not None:
        quantize(model, quantization)
    return model


def read_bytes(model: Transformer) -> int:
    """Bytes of weights that decoding one token reads: all but lookup tables, and only the chosen experts."""
    moe = model.config.moe
    share = 1.0 if moe is None else moe.num_experts_per_tok / moe.num_experts
    total = 0.0
    for name, parameter in model.named_parameters():
        table = name.startswith(("positions.", "inputs.embedding.")) or (
            name.startswith("embedding.") and model.head is not None
        )
        unread = table or name.endswith(".factors")  # of 4-bit weights, used for many tokens at once
        total += 0.0 if unread else parameter.nbytes * (share if ".experts." in name else 1.0)
    return int(total)


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second at which torch reads memory: the fastest of several passes over 512 MiB."""
    matrix = torch.zeros(2**14, 2**14, dtype=torch.bfloat16, device=device)
    ones = torch.ones(1, 2**14, dtype=torch.bfloat16, device=device)
    best = 0.0
    for _ in range(8):
        with torch.inference_mode():
            began = time.perf_counter()
            float(torch.mv(matrix, ones.view(-1)).sum())  # the conversion to a number waits for the device
            best = max(best, matrix.nbytes / (time.perf_counter() - began))
    return best


def peak_memory() -> int | None:
    """Peak memory of this process in bytes; None if the system does not report it."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
