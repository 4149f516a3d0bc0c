"""Pre-training: resuming gives the same losses as an uninterrupted run; the files it writes; the metrics."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli.errors import LlmcliError
from llmcli.generation.score import windows
from llmcli.storage.checkpoint import Checkpoint
from llmcli.text.tokenizer import load_tokenizer
from llmcli.train import state
from llmcli.train.batches import Encoded, cut
from llmcli.train.corpus import Corpus, Example, read_corpus, read_examples
from llmcli.train.loop import train
from llmcli.train.metrics import Metrics, MetricsFile
from llmcli.train.objective import validate
from llmcli.train.optimizer import create_optimizers, initialize, learning_rate, update
from llmcli.train.recipe import Recipe, Shape, make_recipe
from llmcli.train.run import begin_run, resume_run

CPU = torch.device("cpu")
TEXTS = [
    f"The {a} {b} met a {c} by the river, and they sang number {n} together."
    for n, (a, b, c) in enumerate(
        (a, b, c)
        for a in ("old", "red", "shy", "wise")
        for b in ("fox", "owl", "bear")
        for c in ("hen", "frog", "crow", "boy")
    )
]
EXAMPLES = [Example(text) for text in TEXTS]
CORPUS = Corpus(EXAMPLES[5:], EXAMPLES[:5])
SHAPE = Shape(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
SMALL = Recipe(
    shape=SHAPE,
    context=16,
    batch_size=4,
    tokens=16 * 4 * 12,
    precision="float32",
)


def run(
    recipe: Recipe, out: Path, *, steps: int | None = None, resume: bool = False, **options: float
) -> list[Metrics]:
    """Train in ``out``, stop after ``steps`` steps, and return the metrics of each step."""
    training_run = (resume_run if resume else begin_run)(out, recipe, CORPUS, device=CPU)
    stepping = train(training_run, out, resume=resume, **options)  # type: ignore[arg-type]
    taken = []
    for metrics in stepping:
        taken.append(metrics)
        if len(taken) == steps:
            break
    stepping.close()
    return taken


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, optimizer: str, stop: int) -> None:
    recipe = replace(SMALL, optimizer=optimizer)
    whole = run(recipe, tmp_path / "whole")
    first = run(recipe, tmp_path / "parts", steps=stop)
    rest = run(recipe, tmp_path / "parts", resume=True)
    assert [m.loss for m in first + rest] == [m.loss for m in whole]
    assert [m.step for m in first + rest] == list(range(1, recipe.steps + 1))
    for name in ("model.safetensors", "config.json", "tokenizer.json", "recipe.toml"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = run(SMALL, tmp_path / "whole")
    run(SMALL, tmp_path / "killed", steps=4)
    saved_state = (tmp_path / "killed" / state.FILE).read_bytes()
    run(SMALL, tmp_path / "killed", steps=3, resume=True)
    (tmp_path / "killed" / state.FILE).write_bytes(saved_state)  # as if killed before the next checkpoint
    rest = run(SMALL, tmp_path / "killed", resume=True)
    assert [m.loss for m in rest] == [m.loss for m in whole[4:]]


def changed_corpora() -> list[Corpus]:
    """Return corpora that differ from ``CORPUS`` but not in their number of characters."""
    examples, held_out = CORPUS.train, CORPUS.valid
    joined = examples[0].text + examples[1].text
    return [
        Corpus([*examples[:-1], Example(examples[-1].text.replace("fox", "cat").replace("bear", "boar"))], held_out),
        Corpus([Example(joined[:30]), Example(joined[30:]), *examples[2:]], held_out),
        Corpus([examples[1], examples[0], *examples[2:]], held_out),
        Corpus([*examples, held_out[0]], held_out[1:]),
        Corpus([Example("", prompt=examples[0].text), *examples[1:]], held_out),
    ]


def test_resuming_with_another_corpus_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(SMALL, tmp_path, steps=2)
    longer = replace(SMALL, tokens=2 * SMALL.tokens)
    for other in changed_corpora():
        before = (tmp_path / "recipe.toml").read_bytes()
        with pytest.raises(LlmcliError, match="was trained on different text"):
            resume_run(tmp_path, longer, other, device=CPU)
        assert (tmp_path / "recipe.toml").read_bytes() == before
    resume_run(tmp_path, SMALL, Corpus(list(CORPUS.train), list(CORPUS.valid)), device=CPU)
    monkeypatch.setattr(state, "saved_corpus", lambda path: None)  # as if the state file had no digest
    resume_run(tmp_path, SMALL, changed_corpora()[0], device=CPU)


def test_checkpoints_are_saved_during_training(tmp_path: Path) -> None:
    stepping = train(begin_run(tmp_path, SMALL, CORPUS, device=CPU), tmp_path, checkpoint_seconds=0.0)
    next(stepping)
    next(stepping)
    assert state.saved_step(tmp_path / state.FILE) == 1
    Checkpoint.read(tmp_path).load(device=CPU)
    stepping.close()


def test_an_interrupt_during_an_update_comes_after_it_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(SMALL, tmp_path / "whole")
    out = tmp_path / "cut"
    stepping = train(begin_run(out, SMALL, CORPUS, device=CPU), out)
    next(stepping)

    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        update(*arguments)

    monkeypatch.setattr("llmcli.train.loop.update", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            next(stepping)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    monkeypatch.undo()
    rest = run(SMALL, out, resume=True)
    assert [m.loss for m in rest] == [m.loss for m in whole[2:]]


def test_an_interrupted_update_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(SMALL, tmp_path / "whole")
    out = tmp_path / "cut"
    stepping = train(begin_run(out, SMALL, CORPUS, device=CPU), out, checkpoint_seconds=0.0)
    next(stepping)
    next(stepping)

    def interrupted(model: torch.nn.Module, *_: object) -> None:
        with torch.no_grad():
            next(iter(model.parameters())).add_(1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr("llmcli.train.loop.update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stepping)
    monkeypatch.undo()
    rest = run(SMALL, tmp_path / "cut", resume=True)
    assert [m.loss for m in rest] == [m.loss for m in whole[2:]]


def test_the_loss_falls_and_the_metrics_agree(tmp_path: Path) -> None:
    taken = run(replace(SMALL, tokens=16 * 4 * 150, learning_rate=1e-2), tmp_path)
    assert taken[-1].loss < taken[0].loss - 1.0
    assert taken[0].loss == pytest.approx(math.log(300), abs=0.3)  # a uniform distribution
    last = taken[-1]
    assert last.nats_per_token is not None
    assert last.bits_per_byte is not None
    held_out = [example.text for example in CORPUS.valid]
    tokens = sum(len(load_tokenizer(tmp_path).encode(text)) for text in held_out)  # including EOS, without BOS
    size = sum(len(text.encode()) for text in held_out)
    assert last.bits_per_byte == pytest.approx(last.nats_per_token * tokens / size / math.log(2))


def test_transformers_loads_the_trained_model_and_agrees(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(SMALL, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    ours = Checkpoint.read(tmp_path).load(device=CPU, dtype=torch.float32)
    ids = torch.tensor([load_tokenizer(tmp_path).encode(TEXTS[0])])[:, :16]
    with torch.inference_mode():
        assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0])["input_ids"] == load_tokenizer(tmp_path).encode(TEXTS[0])


def test_validation_is_the_mean_surprisal_of_all_tokens(tmp_path: Path) -> None:
    """Compare with a single pass over each document, for documents up to the context and one token beyond it."""
    from llmcli.model.transformer import Transformer

    model = Transformer(SHAPE.model_config(300, SMALL.context))
    initialize(model, 0)
    documents = [torch.randint(2, 300, (n,)).tolist() for n in (3, 16, 17)]
    nats, count = 0.0, 0
    for ids in documents:
        with torch.inference_mode():
            probs = model(torch.tensor([ids[:-1]])).double().softmax(-1)[0]
        nats -= sum(math.log(float(probs[t, ids[t + 1]])) for t in range(len(ids) - 1))
        count += len(ids) - 1
    score = validate(model, [Encoded(ids) for ids in documents], 1000, precision=torch.float32)
    assert score.nats_per_token == pytest.approx(nats / count, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / 1000, rel=1e-5)


@pytest.mark.parametrize("length", [2, 9, 16, 17, 18, 24, 25, 33, 100])
def test_windows_score_each_token_once_with_at_least_half_a_context(length: int) -> None:
    context = 16
    scored: list[int] = []
    for start, first in windows(length, context):
        targets = list(range(first + 1, min(start + context, length - 1) + 1))
        assert all(target - start >= min(context // 2, target) for target in targets)
        scored += targets
    assert scored == list(range(1, length))


def test_batches_are_a_function_of_seed_and_step_and_cover_an_epoch() -> None:
    documents = [Encoded(list(range(n * 10, n * 10 + 10))) for n in range(20)]
    batches, again, other = (cut(documents, context=4, batch_size=5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(batches.at(7)[0], again.at(7)[0])
    assert not torch.equal(batches.at(0)[0], other.at(0)[0])
    steps = len(batches.rows) * 3 // 5  # three epochs
    seen = torch.cat([batches.at(step)[0].flatten() for step in range(steps)])
    assert set(seen.tolist()) == set(batches.rows[:, :4].flatten().tolist())
    inputs, targets = batches.at(2)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_learning_rate_rises_stays_constant_and_falls() -> None:
    recipe = replace(SMALL, tokens=64 * 100, warmup=0.1, decay=0.5, learning_rate=1.0)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[30] == rates[50] == 1.0
    assert rates[75] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.03
    assert rates == sorted(rates[:10]) + rates[10:51] + sorted(rates[51:], reverse=True)


def test_every_parameter_has_one_optimizer() -> None:
    from llmcli.model.transformer import Transformer

    model = Transformer(SHAPE.model_config(300, SMALL.context))
    for kind in ("muon", "adamw"):
        groups = [g for o in create_optimizers(model, replace(SMALL, optimizer=kind)) for g in o.param_groups]
        ids = [id(p) for group in groups for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_all_corpus_formats_give_the_same_examples(tmp_path: Path) -> None:
    plain, lines = "one<|endoftext|>\ntwo\n<|endoftext|> ", '{"text": "one"}\n\n{"text": "two", "kind": "x"}\n'
    (tmp_path / "a.txt").write_text(plain)
    (tmp_path / "b.jsonl").write_text(lines)
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(plain.encode()))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("a.txt", "b.jsonl", "c.txt.xz", "d.jsonl.gz"):
        assert read_examples([tmp_path / name]) == [Example("one"), Example("two")], name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', "line 2"),
        ("a.jsonl", b"[1]\n", "line 1"),
        ("a.txt.xz", b"not xz", "a.txt.xz"),
        ("a.txt.gz", gzip.compress(b"long text " * 1000, mtime=0)[:-20], "a.txt.gz"),
        ("a.txt", b"\xff\xfe", "a.txt"),
        ("a.txt", b" \n", "no text"),
    ],
)
def test_corpus_errors_name_the_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LlmcliError, match=message):
        read_examples([tmp_path / name])


def test_validation_text_is_not_part_of_the_training_text(tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": f"t{n}"}) + "\n" for n in range(60)))
    many = read_corpus([tmp_path / "many.jsonl"], [])
    assert len(many.valid) == 3
    assert not set(many.train) & set(many.valid)
    assert len(many.train) + len(many.valid) == 60
    (tmp_path / "one.txt").write_text("0123456789" * 10)
    one = read_corpus([tmp_path / "one.txt"], [])
    assert one.train[0].text + one.valid[0].text == "0123456789" * 10
    assert len(one.valid[0].text) == 5


def test_metrics_file_drops_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    def metrics_of(step: int) -> Metrics:
        return Metrics(step, 9, step * 10, 1.0, 0.1, 5.0)

    def steps() -> list[int]:
        with MetricsFile(tmp_path) as file:
            return [metrics.step for metrics in file.history]

    with MetricsFile(tmp_path) as file:
        for step in (1, 2, 3, 4):
            file.append(metrics_of(step))
        with pytest.raises(LlmcliError, match="another process"):
            steps()
    for after, kept in ((5, [1, 2, 3, 4, 5]), (3, [1, 2, 3])):
        with (tmp_path / "metrics.jsonl").open("a") as broken:
            broken.write('{"step": 9, "lo')  # killed while writing, or the disk was full
        with MetricsFile(tmp_path) as again:
            again.append(metrics_of(after))
        assert steps() == kept


@pytest.mark.parametrize(
    "bad",
    [
        {"tokens": 0},
        {"hidden_size": 33},
        {"vocab_size": 100},
        {"learning_rate": -1.0},
        *({"learning_rate": rate} for rate in (0.0, math.inf, math.nan)),
        *({"weight_decay": decay} for decay in (-0.1, math.inf, math.nan)),
        *({"beta": beta} for beta in (0.0, math.inf, math.nan)),
        {"warmup": 0.7, "decay": 0.7},
        {"num_key_value_heads": 0},
    ],
)
def test_invalid_recipe_values_are_errors(bad: dict[str, float]) -> None:
    with pytest.raises(LlmcliError):
        make_recipe(bad, positions=None)


def test_a_corpus_shorter_than_the_context_is_an_error(tmp_path: Path) -> None:
    recipe = replace(SMALL, context=4096)
    with pytest.raises(LlmcliError, match="fewer than one context"):
        run(recipe, tmp_path)


def test_a_loss_of_nan_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcli.train.objective.next_token_loss", lambda *_: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(LlmcliError, match="nan at step 0"):
        run(SMALL, tmp_path)
    assert not (tmp_path / state.FILE).exists()
