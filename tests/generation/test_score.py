"""Surprisals against a plain computation, for all sizes of windows, chunks and rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llmcli import hub
from llmcli.errors import EXIT_USAGE, LlmcliError
from llmcli.generation import loaded, score
from llmcli.generation.score import surprisals
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import Quantization
from llmcli.train.batches import Encoded
from llmcli.train.objective import Validation, validate
from tests.tiny import CONTEXT, TinyFactory, random_ids

KINDS = ["llama", "llama-tied", "llama-dynamic", "gpt2", "gemma2", "mistral", "phi3-longrope", "mixtral"]


def ids_of(count: int) -> list[int]:
    ids: list[int] = random_ids(count, seed=4)[0].tolist()
    return ids


def brute_force(model: Transformer, ids: list[int]) -> Tensor:
    """-ln softmax of all logits of all windows in fp64; the first window that predicts a token counts."""
    context = model.config.max_position_embeddings
    found: dict[int, float] = {}
    for start in range(0, len(ids) - 1, context // 2):
        inputs = ids[:-1][start : start + context]
        with torch.no_grad():
            logps = model(torch.tensor([inputs]))[0].double().log_softmax(-1)
        for place in range(len(inputs)):
            target = start + place + 1
            if target not in found:
                found[target] = -float(logps[place, ids[target]])
    return torch.tensor([found[target] for target in range(1, len(ids))], dtype=torch.float64)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("length", [2, 3, 100])
def test_surprisals_are_those_of_all_logits(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, length: int
) -> None:
    """With the same angles in all chunks, even if angles depend on the length."""
    monkeypatch.setattr(score, "PREFILL_CHUNK", 30)
    model = tiny(name).load()
    length = min(length, model.config.max_position_embeddings + 1)
    scores = surprisals(model, ids_of(length))
    assert scores.shape == (length - 1,)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores.double(), brute_force(model, ids_of(length)), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, CONTEXT + 2, 2 * CONTEXT, 2 * CONTEXT + 70])
def test_texts_longer_than_the_context_are_read_in_windows(tiny: TinyFactory, name: str, length: int) -> None:
    model = tiny(name).load()
    assert model.config.max_position_embeddings == CONTEXT
    assert torch.allclose(surprisals(model, ids_of(length)).double(), brute_force(model, ids_of(length)), atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 50, 129])
@pytest.mark.parametrize("most", [1, 97 * 3, 97 * 7 + 5, 2**23])
def test_chunks_and_rows_change_nothing_and_bound_the_logits(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, chunk: int, most: int
) -> None:
    model = tiny("llama").load()
    ids = ids_of(190)
    expected = brute_force(model, ids)
    sizes, chunks = [], []
    unembed, hidden = model.unembed, model.hidden

    def counted(x: Tensor) -> Tensor:
        logits = unembed(x)
        sizes.append(logits.numel())
        return logits

    def noted(part: Tensor, *rest: object) -> Tensor:
        chunks.append(part.shape[1])
        return hidden(part, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "unembed", counted)
    monkeypatch.setattr(model, "hidden", noted)
    monkeypatch.setattr(score, "PREFILL_CHUNK", chunk)
    monkeypatch.setattr(score, "MAX_LOGITS", most)
    assert torch.allclose(surprisals(model, ids).double(), expected, atol=1e-4)
    assert max(sizes) <= max(most, 97)  # at least one row
    assert max(chunks) == min(chunk, 128)
    if most >= 97 * chunk:
        assert max(sizes) == 97 * min(chunk, 128), "as many at once as may be"


def test_validation_computes_in_the_given_precision(tiny: TinyFactory) -> None:
    """In bf16 the score is close to that of fp32, but not equal."""
    model = tiny("llama").load()
    exact = validate(model, [Encoded(ids_of(60))], 200, precision=torch.float32)
    near = validate(model, [Encoded(ids_of(60))], 200, precision=torch.bfloat16)
    assert near.nats_per_token != exact.nats_per_token
    assert near.nats_per_token == pytest.approx(exact.nats_per_token, rel=0.05)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("length", [2, 3, 18])
def test_a_chunk_of_one_token_is_scored_in_mixed_precision(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    model = tiny("llama").load()
    monkeypatch.setattr(score, "PREFILL_CHUNK", 16)
    ids = random_ids(length, seed=0)[0].tolist()
    mixed = validate(model, [Encoded(ids)], length, precision=torch.bfloat16)
    exact = validate(model, [Encoded(ids)], length, precision=torch.float32)
    assert 0 < abs(mixed.nats_per_token - exact.nats_per_token) < 0.2


def test_validation_is_the_mean_over_all_tokens_of_all_documents(tiny: TinyFactory) -> None:
    model = tiny("llama").load()
    documents = [ids_of(40), ids_of(2), [5], []]  # one token, or none, predicts nothing
    nats = float(torch.cat([brute_force(model, ids) for ids in documents[:2]]).sum())
    found = validate(model, [Encoded(ids) for ids in documents], 77, precision=torch.float32)
    assert found.nats_per_token == pytest.approx(nats / 40, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 77, rel=1e-5)


@pytest.mark.parametrize("documents", [[], [[]], [[3], [4]]])
def test_nothing_to_predict_is_an_error(tiny: TinyFactory, documents: list[list[int]]) -> None:
    with pytest.raises(LlmcliError, match="no token to predict") as caught:
        validate(tiny("llama").load(), [Encoded(ids) for ids in documents], 10, precision=torch.float32)
    assert caught.value.exit_code == EXIT_USAGE


def test_more_perplexity_is_the_relative_growth() -> None:
    before, after = Validation(2.0, 1.0), Validation(2.1, 1.0)
    assert after.more_perplexity(before) == pytest.approx(math.exp(2.1) / math.exp(2.0) - 1)
    assert before.more_perplexity(after) < 0
    assert before.more_perplexity(before) == 0


STORY = """
Once upon a time there was a small goat who lived at the foot of a tall green hill. Her name was Nola, and she had
one white ear and one brown ear. Every morning she looked up at the top of the hill and said, "One day I will go
there and see the whole world." Her mother laughed. "The grass is just as sweet down here," she said.

One day the rain did not come. It did not come the next day, and it did not come for a long, long time. The river
became thin, and the grass turned yellow. The cows were hungry, and the sheep were sad. The old dog lay in the shade
and did not even bark. "What shall we do?" asked the animals. Nobody knew.

"I will climb the hill," said Nola. "Perhaps there is water on the other side." The cows shook their heads. "You are
too little," they said. But Nola had already gone. She climbed over stones and under thorn bushes. When the sun was
hot she rested beneath a tree. A bird sat on a branch above her. "Where are you going, little goat?" asked the bird.
"I am looking for water," said Nola. "Then come with me," said the bird, "for I have seen it."

They went on together until the evening. At the top of the hill Nola stopped. Far below she saw a lake as blue as
the sky, and around it the grass was tall and green. She was so happy that she danced. Then she thought of her
mother, and of the cows and the sheep and the old dog. "I must go home and tell them," she said.

She ran all night by the light of the moon. In the morning the animals saw her coming. "Water!" she cried. "There is
water for all of us!" So they followed the little goat over the hill, slowly, one behind the other, and by the next
evening they were drinking from the lake. "You were not too little," said the biggest cow. Nola smiled and ate some
grass. "It really is as sweet as it is at home," she said. And from that day on, nobody laughed when she looked up
at a hill.
"""


def test_the_shipped_model_loses_little() -> None:
    """On a story that was written for this test, and so not trained on."""
    folder = hub.find(hub.default_model())
    kinds: tuple[Quantization | None, ...] = (None, "int8", "int4")
    found = {}
    for kind in kinds:
        opened = loaded.load(folder, device="cpu", quantization=kind)
        ids = opened.prompt_ids(STORY.strip())
        assert len(ids) >= 300
        found[kind] = validate(opened.model, [Encoded(ids)], len(STORY.strip().encode()), precision=torch.float32)
    assert found[None].nats_per_token < 4.0, "it should know how stories go"
    assert -0.01 < found["int8"].more_perplexity(found[None]) < 0.01
    assert 0.001 < found["int4"].more_perplexity(found[None]) < 0.08
