"""A prompt cache saves time and changes nothing else: same text, same numbers."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmcli.generation import prompt_cache as module
from llmcli.generation import reading
from llmcli.generation.filters import Temperature, TopK
from llmcli.generation.prompt_cache import PromptCache, Reason
from llmcli.generation.reading import common_prefix
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Proposer, Step
from llmcli.model import cache as cache_module
from llmcli.model.cache import KVCache, State
from llmcli.model.transformer import Transformer
from llmcli.storage import cache_file as cachefile
from llmcli.storage.quantize import Quantization, quantize
from tests.generation.helpers import speculative_steps
from tests.tiny import KINDS, ROPE_ORIGINAL, WINDOW, TinyFactory, random_ids

LONG, DYNAMIC = "phi3-longrope", "llama-dynamic"
CLOSE = 1e-5  # of the largest logit: in fp32, chunks of other lengths round differently
TOTAL = 60  # tokens of prompt and text, on which "dynamic" angles depend


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small windows and small chunks, so that windows move and prompts need several passes."""
    monkeypatch.setattr(cache_module, "SPARE", 2)
    monkeypatch.setattr(reading, "chunk_of", lambda model: 8)


def ids_of(count: int, seed: int = 0) -> list[int]:
    ids: list[int] = random_ids(count, seed=seed)[0].tolist()
    return ids


def stepping(
    model: Transformer, ids: Sequence[int], count: int, cache: KVCache | None = None, proposer: Proposer | None = None
) -> Generator[Step, int | None, None]:
    """Sampled steps: greedy texts of random models soon repeat themselves."""
    sampler = Sampler([Temperature(1.5), TopK(40)], seed=7)
    return speculative_steps(model, ids, proposer, sampler=sampler, max_new_tokens=count, cache=cache)


def cached_run(
    file: Path, model: Transformer, ids: Sequence[int], count: int, proposer: Proposer | None = None
) -> tuple[PromptCache, list[Step]]:
    """A run that starts from the file and saves the prompt after the first token."""
    kept, found = PromptCache(file, model, ids, count), []
    for step in stepping(model, ids, count, kept.cache, proposer):
        found.append(step)
        if step.index == 0:
            kept.save()
    assert not kept.failure
    return kept, found


def assert_same(found: Sequence[Step], expected: Sequence[Step]) -> None:
    assert [step.token for step in found] == [step.token for step in expected]
    for step, other in zip(found, expected, strict=True):
        assert float((step.logits - other.logits).abs().max()) <= CLOSE * float(other.logits.abs().max()), step.index


# --- the text stays the same ---


@pytest.mark.parametrize("name", KINDS)
def test_the_next_prompt_reads_only_new_tokens(
    tiny: TinyFactory, tmp_path: Path, forwards: list[int], name: str
) -> None:
    """In every kind of model: a prompt, then a longer one with the same beginning, then that one again."""
    model, file = tiny(name).load(), tmp_path / "kept"
    first, second = ids_of(40), ids_of(40) + ids_of(9, seed=1)
    expected = [list(stepping(model, ids, TOTAL - len(ids))) for ids in (first, second)]
    recurrent = model.config.mixer is not None
    runs: list[tuple[list[int], list[Step], int, Reason | None]] = [
        (first, expected[0], 0, "missing"),
        (second, expected[1], 39 if recurrent else 40, None),
        (second, expected[1], 48, None),
        (first, expected[0], 0, "state") if recurrent else (first, expected[0], 39, None),
    ]
    for ids, steps_alone, reused, reason in runs:
        forwards.clear()
        kept, found = cached_run(file, model, ids, TOTAL - len(ids))
        if reason is None and kept.reuse.reason == "window":
            assert ids == first  # the window has moved past its end: it is read as without a file
            assert model.config.sliding_window
            reused, reason = 0, "window"
        assert (kept.reuse.tokens, kept.reuse.prompt, kept.reuse.reason) == (reused, len(ids), reason)
        assert sum(forwards) == len(ids) - reused + len(found) - 1
        assert_same(found, steps_alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_small_dtypes(tiny: TinyFactory, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """With the same passes, every bit is the same."""
    model, file, ids = tiny(name).load().to(dtype), tmp_path / "kept", ids_of(33)
    cached_run(file, model, ids[:32], 1)
    cache = model.new_cache()
    list(stepping(model, ids[:32], 1, cache))
    kept, found = cached_run(file, model, ids, 9)
    assert kept.reuse.tokens == 32
    for step, other in zip(found, stepping(model, ids, 9, cache), strict=True):
        assert torch.equal(step.logits, other.logits)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_weights(tiny: TinyFactory, tmp_path: Path, forwards: list[int], kind: Quantization) -> None:
    plain, model, file = tiny("llama").load(), tiny("llama").load(), tmp_path / "kept"
    quantize(model, kind)
    cached_run(file, plain, ids_of(40), 3)
    assert cached_run(file, model, ids_of(40), 3)[0].reuse.reason == "model"
    forwards.clear()
    kept, found = cached_run(file, model, ids_of(40), 5)
    assert (kept.reuse.tokens, sum(forwards)) == (39, 5)
    assert [step.token for step in found] == [step.token for step in stepping(model, ids_of(40), 5)]


class Oracle:
    """Proposes the tokens that will be chosen, and then another one."""

    proposed = accepted = 0

    def __init__(self, text: Sequence[int]) -> None:
        self.text = list(text)

    def propose(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        return [*self.text[len(ids) : len(ids) + 2], 5][:count]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_rejected_proposals_are_not_saved(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    """After the first token the cache may hold proposed tokens that are not checked yet."""
    model, file = tiny(name).load(), tmp_path / "kept"
    for length, reused in ((40, 0), (41, 40), (41, 40), (44, 41)):
        ids = ids_of(length)
        expected = list(stepping(model, ids, 12))
        oracle = Oracle([*ids, *(step.token for step in expected)])
        kept, found = cached_run(file, model, ids, 12, oracle)
        assert kept.reuse.tokens == reused
        assert_same(found, expected)
        assert cachefile.read_cache(file, model, kept.fingerprint)[0] == ids


texts = st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(0, 20))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", LONG, DYNAMIC])
@given(script=st.lists(texts, min_size=2, max_size=4))
def test_after_any_sequence_of_prompts_the_text_is_that_of_a_fresh_run(
    tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory, name: str, script: list[tuple[int, int, int]]
) -> None:
    """Each prompt shares a prefix with the one before."""
    model, file = tiny(name).load(), tmp_path_factory.getbasetemp() / f"kept {name}"
    file.unlink(missing_ok=True)
    ids: list[int] = []
    for turn, (least, share, more) in enumerate(script):
        before, ids = ids, ids[:share] + ids_of(more, seed=turn)
        ids = ids or ids_of(least, seed=turn)
        kept, found = cached_run(file, model, ids, 4)
        assert_same(found, list(stepping(model, ids, 4)))
        known = min(common_prefix(before, ids), len(ids) - 1)
        assert kept.reuse.tokens == (0 if kept.reuse.reason else known)
        if kept.reuse.reason == "window":
            assert model.config.sliding_window
        elif kept.reuse.reason == "angles":
            assert name in (LONG, DYNAMIC)
        elif kept.reuse.reason == "text":
            assert known == 0


def test_common_prefix_is_the_longest_one() -> None:
    assert common_prefix([], [1]) == common_prefix([1], []) == common_prefix([2, 1], [1, 2]) == 0
    assert (
        common_prefix([1, 2, 3], [1, 2]) == common_prefix([1, 2], [1, 2, 3]) == common_prefix([1, 2, 4], [1, 2, 3]) == 2
    )


# --- reasons why nothing can be reused ---


def reason(file: Path, model: Transformer, ids: Sequence[int], count: int = 3) -> Reason | None:
    """The reason why a run read the whole prompt; its text is right, and the next run reuses it."""
    kept, found = cached_run(file, model, ids, count)
    assert kept.reuse.tokens == 0
    assert_same(found, list(stepping(model, ids, count)))
    assert cached_run(file, model, ids, count)[0].reuse.tokens == len(ids) - 1
    return kept.reuse.reason


def test_another_model_text_or_damage(tiny: TinyFactory, tmp_path: Path) -> None:
    model, file, ids = tiny("llama").load(), tmp_path / "kept", ids_of(20)
    assert reason(file, model, ids) == "missing"
    assert reason(file, model, [ids[0] + 1, *ids[1:]]) == "text"
    model.norm.weight.data.view(torch.uint8)[0] ^= 1  # the last bit of one number
    assert reason(file, model, ids) == "model"
    assert reason(file, tiny("llama-biases").load(), ids) == "model"
    file.write_bytes(file.read_bytes()[:-1])
    assert reason(file, model, ids) == "damaged"
    assert cached_run(file, model.to(torch.bfloat16), ids, 3)[0].reuse.reason == "dtype"


def test_a_window_that_has_moved_past_the_common_prefix(tiny: TinyFactory, tmp_path: Path) -> None:
    model, file, ids = tiny("mistral").load(), tmp_path / "kept", ids_of(100)
    assert reason(file, model, ids) == "missing"
    assert reason(file, model, ids[: 100 - 2 * WINDOW]) == "window"
    assert cached_run(file, model, ids, 3)[0].reuse.tokens == 100 - 2 * WINDOW


@pytest.mark.parametrize(("name", "first", "second"), [(LONG, 20, 45), (LONG, 45, 20), (DYNAMIC, 40, 50)])
def test_angles_of_another_length(tiny: TinyFactory, tmp_path: Path, name: str, first: int, second: int) -> None:
    model, file, ids = tiny(name).load(), tmp_path / "kept", ids_of(60)
    assert min(first, second) < ROPE_ORIGINAL or name == DYNAMIC
    assert reason(file, model, ids[:first]) == "missing"
    assert reason(file, model, ids[:second]) == "angles"


def test_a_prompt_of_one_token_is_read(tiny: TinyFactory, tmp_path: Path) -> None:
    model, file = tiny("llama").load(), tmp_path / "kept"
    assert cached_run(file, model, [7], 3)[0].reuse.reason == "missing"
    assert cached_run(file, model, [7], 3)[0].reuse == module.Reuse(0, 1, None)


# --- the file ---


def test_the_file_is_written_only_if_the_prompt_has_more(tiny: TinyFactory, tmp_path: Path) -> None:
    model, file, ids = tiny("llama").load(), tmp_path / "kept", ids_of(40)
    cached_run(file, model, ids, 2)
    os.utime(file, ns=(10**18, 10**18))
    for length in (40, 40, 12, 1):
        cached_run(file, model, ids[:length], 2)
        assert file.stat().st_mtime_ns == 10**18
    for text in ([*ids, 1], [*ids[:12], ids[12] ^ 1]):
        cached_run(file, model, text, 2)
        assert file.stat().st_mtime_ns != 10**18
        os.utime(file, ns=(10**18, 10**18))
        assert cachefile.read_cache(file, model, module.fingerprint(model))[0] == text


def test_nothing_after_the_first_token_loses_the_file(tiny: TinyFactory, tmp_path: Path, forwards: list[int]) -> None:
    model, file, ids = tiny("gemma3_text").load(), tmp_path / "kept", ids_of(40)
    kept = PromptCache(file, model, ids, 9)
    running = stepping(model, ids, 9, kept.cache)
    next(running)
    kept.save()
    next(running)
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt)
    forwards.clear()
    assert cached_run(file, model, ids, 1)[0].reuse.tokens == 39
    assert forwards == [1]


def test_a_file_that_cannot_be_written_is_reported_and_stops_nothing(tiny: TinyFactory, tmp_path: Path) -> None:
    model, folder, ids = tiny("llama").load(), tmp_path / "folder", ids_of(9)
    folder.mkdir()
    kept = PromptCache(folder / "kept", model, ids, 4)
    folder.rmdir()
    found = []
    for step in stepping(model, ids, 4, kept.cache):
        kept.save()
        found.append(step)
    assert kept.failure is not None
    assert "No such file" in kept.failure.message
    assert_same(found, list(stepping(model, ids, 4)))


def test_the_fingerprint_is_computed_only_if_needed(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a file, not before the first token; and only once."""
    model, calls, real = tiny("llama").load(), [0], module.fingerprint

    def counted(model: Transformer) -> str:
        calls[0] += 1
        return real(model)

    monkeypatch.setattr(module, "fingerprint", counted)
    kept = PromptCache(tmp_path / "kept", model, ids_of(9), 3)
    assert calls == [0]
    list(stepping(model, ids_of(9), 1, kept.cache))
    kept.save()
    assert calls == [1]
    kept = PromptCache(tmp_path / "kept", model, [*ids_of(9), 4], 3)
    list(stepping(model, [*ids_of(9), 4], 1, kept.cache))
    kept.save()
    assert calls == [2]


# --- sabotage ---


def everything(tiny: TinyFactory, folder: Path) -> None:
    """The claims of the tests above, in short, for two models."""
    for name in ("llama", "mistral"):
        model, file, ids = tiny(name).load(), folder / name, ids_of(40)
        assert_same(cached_run(file, model, ids, 6)[1], list(stepping(model, ids, 6)))
        expected = list(stepping(model, [*ids, 1], 6))
        oracle = Oracle([*ids, 1, *(step.token for step in expected)])
        assert_same(cached_run(file, model, [*ids, 1], 6, oracle)[1], expected)
        long = ids + ids_of(30, seed=3)
        for other in (ids, [*ids, 1, 0, 0, 3], ids + ids_of(9, seed=1), ids[:36] + ids_of(3, seed=2), long, [*long, 4]):
            kept, found = cached_run(file, model, other, 6)
            assert_same(found, list(stepping(model, other, 6)))
            assert kept.reuse.tokens
        model.norm.weight.data[0] *= 1.5
        model.blocks[0].attn_norm.weight.data[0] *= 1.5
        assert_same(cached_run(file, model, ids, 6)[1], list(stepping(model, ids, 6)))


def test_everything_holds(tiny: TinyFactory, tmp_path: Path) -> None:
    everything(tiny, tmp_path)


def _one_more(before: Sequence[int], ids: Sequence[int]) -> int:
    return min(common_prefix(before, ids) + 1, len(before), len(ids))


def _all_that_is_held(path: Path, ids: Sequence[int], cache: KVCache, model: str) -> None:
    spoilt = [*ids, *[0] * (cache.length - len(ids))]
    cachefile.write_cache(path, spoilt, cache, model)


def _from_the_beginning(self: KVCache, *contents: Any) -> None:
    _restore(self, *contents)
    self._first = dict.fromkeys(self._first, 0)


def _values_for_keys(
    self: KVCache, length: int, span: int, held: Mapping[int, tuple[Tensor, Tensor]], states: Mapping[int, State]
) -> None:
    _restore(self, length, span, {layer: (values, keys) for layer, (keys, values) in held.items()}, states)


_restore = KVCache.restore
SABOTAGE: dict[str, tuple[object, str, object]] = {
    "one token too many": (module, "common_prefix", _one_more),
    "proposals saved": (module, "write_cache", _all_that_is_held),
    "windows forgotten": (KVCache, "restore", _from_the_beginning),
    "keys for values": (KVCache, "restore", _values_for_keys),
    "any model": (module, "fingerprint", lambda model: "the same"),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_mistake_is_found(tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(*SABOTAGE[name])
    with pytest.raises((AssertionError, RuntimeError)):
        everything(tiny, tmp_path)
