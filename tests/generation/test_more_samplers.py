"""DRY, XTC, top-n-sigma, Mirostat and dynamic temperature: against llama.cpp, plain loops, and other ways to run."""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import llmcli
from llmcli.engine.random_weights import random_model
from llmcli.generation.batch import Request, generate_batch
from llmcli.generation.distribution import probabilities
from llmcli.generation.filters import (
    BREAKERS,
    Breakers,
    Dry,
    Filter,
    LogitBias,
    Mirostat,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Xtc,
    filter_chain,
)
from llmcli.generation.filters.xtc import second_number
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.speculative import DraftModel, PromptLookup
from llmcli.generation.steps import Step, step_at, steps
from llmcli.text.gguf.export import describe_tokenizer
from tests.generation.helpers import speculative_steps
from tests.generation.test_batch import opened
from tests.text.test_gguf_export import byte_level, in_llama_cpp
from tests.tiny import CPU, TinyFactory

RANDOM = random.Random(7)


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return llmcli.load()


def some_logits(size: int = 300, scale: float = 2.0) -> Tensor:
    return torch.tensor([RANDOM.gauss(0, scale) for _ in range(size)])


def some_ids(length: int = 60) -> list[int]:
    few = RANDOM.choice([2, 3, 6])
    return [RANDOM.randrange(few) for _ in range(RANDOM.randrange(length))]


def kept(logits: Tensor) -> list[int]:
    return logits.isfinite().nonzero().flatten().tolist()


# --- llama.cpp ---


def applied(sampler: Any, logits: Tensor, ids: Sequence[int] = ()) -> tuple[Tensor, int]:
    """The logits after a sampler of llama.cpp that has seen ``ids``, and the token that it selects, if it does."""
    llama = pytest.importorskip("llama_cpp")
    data = (llama.llama_token_data * len(logits))(
        *(llama.llama_token_data(id, value, 0.0) for id, value in enumerate(logits.tolist()))
    )
    array = llama.llama_token_data_array(data, len(logits), -1, False)
    for id in ids:
        llama.llama_sampler_accept(sampler, id)
    llama.llama_sampler_apply(sampler, ctypes.byref(array))
    out = torch.full_like(logits, -math.inf)
    for n in range(array.size):
        out[array.data[n].id] = array.data[n].logit
    return out, array.data[array.selected].id if array.selected >= 0 else -1


def theirs_of_dry(mine: Dry, vocabulary: Any = None) -> Any:
    llama = pytest.importorskip("llama_cpp")
    texts = [] if mine.breakers is None else [text.encode() for text in mine.breakers.texts]
    window = 10_000 if mine.penalty_last_n < 0 else int(mine.penalty_last_n)
    numbers = (mine.value, mine.base, int(mine.allowed_length), window)
    return llama.llama_sampler_init_dry(vocabulary, *numbers, (ctypes.c_char_p * len(texts))(*texts), len(texts))


def test_the_filters_are_those_of_llama_cpp() -> None:
    llama = pytest.importorskip("llama_cpp")
    for trial in range(60):
        logits = some_logits(RANDOM.randrange(2, 300), RANDOM.choice([0.5, 2, 5]))
        n, threshold = RANDOM.uniform(0.1, 3), RANDOM.uniform(0, 0.3)
        theirs, _ = applied(llama.llama_sampler_init_top_n_sigma(n), logits)
        assert kept(TopNSigma(n)(logits)) == kept(theirs)
        theirs, _ = applied(llama.llama_sampler_init_xtc(1.0, threshold, 1, trial), logits)
        assert kept(Xtc(1.0, threshold).at(RANDOM.random())(logits)) == kept(theirs)
        numbers = (RANDOM.uniform(0.1, 2), RANDOM.uniform(0.05, 2), RANDOM.uniform(0.3, 3))
        theirs, _ = applied(llama.llama_sampler_init_temp_ext(*numbers), logits)
        torch.testing.assert_close(
            probabilities(Temperature(*numbers)(logits)), probabilities(theirs), rtol=0, atol=2e-5
        )
        dry = Dry(0.8, RANDOM.choice([1.0, 1.2, 1.75, 3]), RANDOM.randrange(1, 5), RANDOM.choice([-1, 0, 5, 20]))
        logits, ids = some_logits(8), some_ids()
        theirs, _ = applied(theirs_of_dry(dry), logits, ids)
        torch.testing.assert_close(probabilities(dry(logits, ids)), probabilities(theirs), rtol=0, atol=2e-5)


def test_mirostat_is_that_of_llama_cpp() -> None:
    llama = pytest.importorskip("llama_cpp")
    theirs, mine = llama.llama_sampler_init_mirostat_v2(3, 4.0, 0.3), Mirostat(4.0, 0.3)
    for _ in range(100):
        logits = some_logits(400)
        expected, token = applied(theirs, logits)
        ours = mine(logits)
        assert kept(ours) == kept(expected)
        mine = mine.after_token(float(probabilities(ours)[token]))


def test_breakers_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """Also those that are a part of a token, or several tokens."""
    tokenizer = byte_level()
    metadata = describe_tokenizer(tokenizer, tokenizer.size, {}, []).metadata
    model = in_llama_cpp(metadata, tmp_path / "a.gguf")
    text = 'He ran. He ran home.\n"He ran," said Tom.\nHe ran. Then he ran home*: he ran. He said: he ran home.\nHe'
    ids = tokenizer.encode(text, add_special=False)
    logits = torch.zeros(tokenizer.size)
    texts = [BREAKERS, (), ("an home",), ("e",), (". He",), (" ran home.\nHe",)]
    for each in texts:
        dry = Dry(1.0, 1.5, 1, breakers=Breakers(each, tokenizer))
        sampler = theirs_of_dry(dry, model._model.vocab)
        for end in range(2, len(ids), 2):
            pytest.importorskip("llama_cpp").llama_sampler_reset(sampler)
            theirs, _ = applied(sampler, logits, ids[:end])
            torch.testing.assert_close(dry(logits, ids[:end]), theirs, rtol=1e-5, atol=1e-5)


# --- plain loops in float64, without llama.cpp ---


def repeated(ids: Sequence[int], token: int, allowed: int, after_breaker: int) -> int:
    """How many tokens at the end of ``ids`` also came before an earlier ``token``; 0 if fewer than ``allowed``."""
    longest = 0
    for at in range(1, len(ids)):
        if ids[at] == token:
            n = 0
            while n < min(at, after_breaker) and ids[at - 1 - n] == ids[-1 - n]:
                n += 1
            longest = max(longest, n)
    return longest if longest >= allowed else 0


def test_dry_is_the_plain_loop() -> None:
    for _ in range(100):
        logits, ids = some_logits(8), some_ids()
        base, allowed = RANDOM.choice([1.0, 1.3, 2.5]), RANDOM.randrange(1, 4)
        window = RANDOM.choice([-1, 0, 7, 30])
        text = ids if window < 0 else ids[len(ids) - min(window, len(ids)) :]
        expected = logits.double()
        for token in range(8):
            n = repeated(text, token, allowed, len(text))
            expected[token] -= 0.7 * base ** (n - allowed) if n else 0.0
        ours = Dry(0.7, base, allowed, window)(logits, ids)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=1e-5)


def test_the_others_are_plain_loops() -> None:
    for _ in range(60):
        logits = some_logits(RANDOM.randrange(2, 100))
        logits[RANDOM.randrange(len(logits))] = -math.inf
        left = [value for value in logits.tolist() if value > -math.inf]
        mean = sum(left) / len(left)
        sigma = math.sqrt(sum((value - mean) ** 2 for value in left) / len(left))
        assert kept(TopNSigma(0.8)(logits)) == [
            id for id, v in enumerate(logits.tolist()) if v >= max(left) - 0.8 * sigma
        ]
        powers = [math.exp(value) for value in logits.tolist()]
        probs = [power / sum(powers) for power in powers]
        order = sorted(range(len(probs)), key=lambda id: (-probs[id], id))
        above = [id for id in order if probs[id] >= 0.05]
        assert kept(Xtc(1.0, 0.05, 0.5)(logits)) == sorted(set(order[: len(left)]) - set(above[:-1]))
        limit = RANDOM.uniform(-1, 8)
        near = [id for id in order if probs[id] > 0 and -math.log2(probs[id]) <= limit]
        assert kept(Mirostat(3.0, mu=limit)(logits)) == sorted(near or order[:1])
        entropy = -sum(p * math.log(p) for p in probs if p > 0)
        share = entropy / math.log(len(left)) if len(left) > 1 else 0.0
        if len(left) > 1:
            assert Temperature(0.7, 0.9, 1.5).effective(logits) == pytest.approx(1.6 * share**1.5, rel=1e-5)
        assert Temperature(0.7, 0.9)(logits).isfinite().sum() in (1, len(left))


# --- edge values ---


def test_values_at_the_limits() -> None:
    logits = torch.tensor([0.0, 3.0, -200.0, 2.0])
    for filter in (TopNSigma(0.0), Xtc(0.0).at(0.0), Xtc(1.0), Dry(0.0), Xtc(1.0, 0.9).at(0.0), Temperature(1.0, 0.0)):
        assert torch.equal(filter(logits, [0, 1, 0, 1]) - logits, (filter(logits, [0, 1, 0, 1]) - logits)[0].expand(4))
    assert kept(Temperature(0.0, 0.5)(logits)) == [1]  # temperature 0 remains the argmax
    assert kept(Mirostat(3.0, mu=-1e300)(logits)) == kept(Mirostat(1e-300)(logits)) == [1]
    assert kept(Mirostat(1e300)(logits)) == [0, 1, 2, 3]
    assert kept(Xtc(1.0, 0.0).at(0.5)(logits)) == [2]
    alone = torch.tensor([-math.inf, 1.0, -math.inf])
    for filter in (TopNSigma(1.0), Xtc(1.0, 0.0).at(0.5), Mirostat(1.0), Temperature(1.0, 2.0), Dry(1e9, 1e9, 1)):
        assert kept(filter(alone, [1] * 9)) == [1]
    for value, base in ((5e-324, 1 + 1e-15), (1e9, 1e9), (1.0, 1.0)):  # neither an overflow nor a loss of all tokens
        assert Dry(value, base, 1)(logits, [1] * 500).isfinite().all()


def test_a_token_with_a_breaker_has_no_penalty(shipped: LoadedModel) -> None:
    tokenizer, logits = shipped.tokenizer, torch.zeros(shipped.model.config.vocab_size)
    ids = tokenizer.encode("a b\na b", add_special=False)
    line_end = tokenizer.encode("\n", add_special=False)[-1]
    assert Dry(1.0, breakers=None)(logits, ids)[line_end] < 0
    assert torch.equal(Dry(1.0, breakers=Breakers(BREAKERS, tokenizer))(logits, ids), logits)


def test_mirostat_replaces_the_filters_that_cut() -> None:
    values = {"mirostat-tau": 3.0, "top-k": 5.0, "xtc-probability": 0.5, "dynatemp-range": 0.5, "mirostat-eta": 0.2}
    order = ["top-k", "top-p", "xtc-probability", "mirostat-tau", "temperature"]
    assert filter_chain(order, values) == [Mirostat(3.0, 0.2), Temperature(0.8, 0.5)]
    assert filter_chain(order[:3], values) == [TopK(5), TopP(0.95), Xtc(0.5)]


def test_the_number_of_xtc_does_not_depend_on_that_of_the_draw() -> None:
    numbers = [RANDOM.random() for _ in range(4000)]
    counts = [[0] * 5 for _ in range(5)]
    for u in numbers:
        counts[int(5 * u)][int(5 * second_number(u))] += 1
    chi_squared = sum((count - 160) ** 2 / 160 for row in counts for count in row)
    assert chi_squared < 60  # 24 degrees of freedom: p = 0.0001


# --- the same tokens however they are generated ---

NO_END = LogitBias({2: -math.inf, 3: -math.inf})  # the model's stop tokens
CHAINS: dict[str, list[Filter]] = {
    "mirostat": [NO_END, Temperature(1.5), Mirostat(4.0, 0.4)],
    "all": [NO_END, Dry(2.0, 1.5, 1), Temperature(0.9, 0.6), TopNSigma(2.5), TopP(0.98), Xtc(0.5, 0.02)],
}
PROMPT = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7]
COUNT = 30


def tokens_of(found: Iterable[Step]) -> list[tuple[int, float | None, float | None]]:
    return [(step.token, step.choice.u, step.choice.mu) for step in found]


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_the_tokens_are_the_same_however_they_are_generated(tiny: TinyFactory, name: str) -> None:
    """Alone, in a batch, with both kinds of speculation, and as step N; a step explains itself from its u and mu."""
    model, filters = tiny("llama").load(), CHAINS[name]
    for seed in (1, 2):
        used = Sampler(filters, seed)
        plain = list(steps(model, PROMPT, sampler=used, max_new_tokens=COUNT))
        other = random_model(model.config, device=CPU, dtype=torch.float32)
        itself = DraftModel(model)
        for proposer in (PromptLookup(), itself, DraftModel(other)):
            sampler = Sampler(filters, seed)
            found = list(speculative_steps(model, PROMPT, proposer, sampler=sampler, max_new_tokens=COUNT))
            assert tokens_of(found) == tokens_of(plain)
        requests = [Request(n, PROMPT, Sampler(filters, n), COUNT) for n in (1, 2, 3)]
        batched = [one.step for one in generate_batch(opened(model, ()), requests, 3) if one.request.key == seed]
        assert tokens_of(filter(None, batched)) == tokens_of(plain)
        assert itself.accepted == itself.proposed or name == "mirostat"  # which changes with each token
        step, context = step_at(model, PROMPT, 20, sampler=Sampler(filters, seed))
        assert tokens_of([step]) == tokens_of(plain[20:21])
        final = used.as_of(plain[20].choice).final(step.logits, context)
        assert float(final[step.token]) == step.choice.final_prob
        again = next(steps(model, PROMPT, sampler=used, max_new_tokens=1))  # a new text begins as the first one did
        assert again.choice.mu == plain[0].choice.mu


def test_a_replaced_token_moves_mu_by_its_own_surprisal(tiny: TinyFactory) -> None:
    model, sampler = tiny("llama").load(), Sampler(CHAINS["mirostat"], 1)
    text = steps(model, PROMPT, sampler=sampler, max_new_tokens=5)
    first = next(text)
    final = sampler.as_of(first.choice).final(first.logits, PROMPT)
    other = int(final.masked_fill(torch.arange(len(final)) == first.token, 0).argmax())
    second = text.send(other)
    assert first.choice.mu == 8.0
    assert second.choice.mu == pytest.approx(8 - 0.4 * (-math.log2(float(final[other])) - 4))
    final = sampler.as_of(second.choice).final(second.logits, [*PROMPT, other])
    assert final.min() == 0
    third = text.send(int(final.argmin()))  # a token that was cut says nothing about the surprisal
    assert third.choice.mu == second.choice.mu
