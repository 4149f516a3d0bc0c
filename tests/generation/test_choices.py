"""Choices: each as transformers scores the whole text in float64, whatever the tree and the batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmcli.engine.transformer import EngineTransformer
from llmcli.errors import LlmcliError
from llmcli.generation.choice_texts import joined
from llmcli.generation.choices import Question, ask, score_choices, shares_of
from llmcli.generation.loaded import LoadedModel
from llmcli.model.cache import KVCache
from tests.explain.reference import forget, loaded
from tests.tiny import CONTEXT, ROPE_ORIGINAL, VOCAB, Tiny, TinyFactory, random_ids

CLOSE = 2e-4  # nats
# Windows, learned positions, a recurrent state, latent vectors, and angles that change within the choices.
FAMILIES = ("llama", "gemma3_text", "gpt2", "granitemoehybrid", "phi3-longrope")
# One token; several; one that begins others; branches at every depth; one that is much longer.
TREE = ((5,), (7, 8), (7, 8, 9), (7, 8, 10, 11), (7, 12), (13, 5), (14,), (7, 8, 10, 15, 16, 17, 18, 19), (20, 21, 22))


def questions() -> list[Question]:
    """Prompts of several lengths, one across the original context of scaled angles, one at the end of the context."""
    lengths = (3, ROPE_ORIGINAL - 2, 1, CONTEXT - 8, 60)
    prompts = [tuple(random_ids(length, seed=length)[0].tolist()) for length in lengths]
    prompts.append((*prompts[-1][:50], 9, 8))  # begins like the one before
    return [Question(key, prompt, TREE if key != 2 else ((5,), (6,))) for key, prompt in enumerate(prompts)]


def reference(case: Tiny, question: Question, stops: Sequence[int] = ()) -> list[list[float]]:
    """The log probability of each token of each choice, from transformers reading the whole text.

    With stop tokens, also that one of them follows. All texts are padded to the longest, whose angles they share.
    """
    texts = [[*question.context, *ids] for ids in question.choices]
    longest = max(map(len, texts))
    forget(case)
    with torch.no_grad():
        padded = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        logps = case.reference(padded).logits.double().log_softmax(-1)
    first, found = len(question.context), []
    for row, ids in zip(logps, question.choices, strict=True):
        found.append([float(row[first + n - 1, id]) for n, id in enumerate(ids)])
        if stops:
            found[-1].append(float(row[first + len(ids) - 1, list(stops)].logsumexp(-1)))
    return found


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_choice_is_what_transformers_says(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, engine: str
) -> None:
    if engine == "torch":
        monkeypatch.setattr(EngineTransformer, "native", None)
        monkeypatch.setattr(EngineTransformer, "products", None)
    case = tiny(name)
    model, asked = loaded(case), questions()
    for size, end in ((1, False), (3, True), (40, False)):
        stops = sorted(model.stop_ids) if end else []
        some = asked[:3] if end else asked  # the longest ends with the context
        scored = {one.question.key: one for one in score_choices(model, some, size, end=end)}
        assert len(scored) == len(some)
        for question in some:
            for found, expected in zip(scored[question.key].logprobs, reference(case, question, stops), strict=True):
                assert found == pytest.approx(expected, abs=CLOSE)


def test_everything_else_is_what_no_choice_begins(tiny: TinyFactory) -> None:
    """All texts of two tokens, one by one, in float64."""
    case = tiny("llama")
    question = Question(0, (3, 9, 4), ((5,), (7, 8), (7, 8, 9), (7, 12), (20, 21)))
    with torch.no_grad():
        first = case.reference(torch.tensor([question.context])).logits[0, -1].double().softmax(-1)
        pairs = torch.tensor([[*question.context, id] for id in range(VOCAB)])
        second = case.reference(pairs).logits[:, -1].double().softmax(-1)
    (scored,) = score_choices(loaded(case), [question])
    outside = sum(
        float(first[a] * second[a, b])
        for a, b in itertools.product(range(VOCAB), range(VOCAB))
        if a != 5 and (a, b) not in ((7, 8), (7, 12), (20, 21))
    )
    assert scored.outside == pytest.approx(outside, abs=1e-6)
    first[[5, 7, 20]] = 0
    assert scored.other == (int(first.argmax()), pytest.approx(float(first.max()), rel=1e-4))
    single = Question(0, (3, 9, 4), tuple((id,) for id in range(VOCAB)))
    (everything,) = score_choices(loaded(case), [single])
    assert everything.outside == 0
    assert math.fsum(map(math.exp, everything.totals)) == pytest.approx(1)


def test_every_token_of_the_tree_is_read_once(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    right = KVCache.advance

    def advance(cache: KVCache, count: int) -> None:
        read.append(count)
        right(cache, count)

    monkeypatch.setattr(KVCache, "advance", advance)
    context = (3, 9, 4, 11)
    list(score_choices(loaded(tiny("llama")), [Question(0, context, TREE)], 40))
    inner = {ids[:n] for ids in TREE for n in range(1, len(ids))}
    assert sum(read) == len(context) + len(inner)
    read.clear()
    examples = tuple(random_ids(50, seed=1)[0].tolist())
    list(score_choices(loaded(tiny("llama")), [Question(n, (*examples, 3 + n), ((4,), (5,))) for n in range(3)]))
    assert sum(read) == len(examples) + 3


def test_a_damaged_model_is_an_error(tiny: TinyFactory) -> None:
    model = loaded(tiny("llama"))
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan  # type: ignore[union-attr]
    with pytest.raises(LlmcliError, match="NaN"):
        list(score_choices(model, [Question(0, (3, 4), TREE)]))


def test_shares_sum_to_1_even_where_probabilities_are_0_as_floats() -> None:
    assert shares_of([-5000.0, -5000.0 + math.log(3)]) == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("prompt", "choice", "text"),
    [("a", "b", " b"), ("a ", "b", "b"), ("a", " b", " b"), ("a\n", "b", "b"), ("", "b", "b"), ("a", "\nb", "\nb")],
)
def test_one_space_separates(prompt: str, choice: str, text: str) -> None:
    assert joined(prompt, choice) == text
    assert joined("a", "b", ": ") == ": b"


# --- Tokens ---


def asked(model: LoadedModel, prompt: str, choices: Sequence[str]) -> Question:
    return ask(model, prompt, choices)


def test_tokens_are_those_of_the_whole_text(tiny: TinyFactory) -> None:
    question = asked(loaded(tiny("llama")), "w3 w4", [" w5", " w6 w7"])
    assert (question.context, question.choices, question.moved) == ((3, 4), ((5,), (6, 7)), ())
    # "w3 w4" and "w42" merge: what the prompt's last token becomes depends on the choice.
    merged = ask(loaded(tiny("llama")), "w3 w4", ["2", " w6"], delimiter="")
    assert (merged.context, merged.choices, merged.moved) == ((3,), ((42,), (4, 6)), (4,))


@pytest.mark.parametrize(
    ("prompt", "choices", "message"),
    [
        ("w3", [" w5", "  w5"], "' w5' and '  w5' are the same tokens"),
        ("w3", [" ", " w5"], "' ' adds no token"),
        ("w3 " * (CONTEXT - 1), ["w5", "w5 w6"], f"{CONTEXT + 1} tokens, but the model's context holds {CONTEXT}"),
    ],
)
def test_choices_that_cannot_be_told_apart(tiny: TinyFactory, prompt: str, choices: list[str], message: str) -> None:
    with pytest.raises(LlmcliError, match=message):
        asked(loaded(tiny("llama")), prompt, choices)


def test_an_empty_prompt_begins_with_bos(tiny: TinyFactory) -> None:
    assert asked(loaded(tiny("llama")), "", ["w5", "w6"]).context == (1,)


@given(
    st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=5), min_size=2, max_size=12, unique_by=tuple),
    st.sampled_from([1, 2, 30]),
    st.booleans(),
)
def test_probabilities_sum_to_1(tiny: TinyFactory, choices: list[list[int]], size: int, end: bool) -> None:
    """A choice that begins with another one is part of it, unless the end counts. The batch changes no bit."""
    ids, model = tuple(map(tuple, choices)), loaded(tiny("llama"))
    (scored,) = score_choices(model, [Question(0, (3, 9, 4), ids)], size, end=end)
    whole = [n for n, own in enumerate(ids) if end or not any(own[:k] in ids for k in range(1, len(own)))]
    assert math.fsum(math.exp(scored.totals[n]) for n in whole) + scored.outside == pytest.approx(1, abs=1e-9)
    (again,) = score_choices(model, [Question(0, (3, 9, 4), ids)], 7, end=end)
    assert again == scored
