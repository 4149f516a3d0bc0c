"""Fine-tuning on replies and on preferences: what is learnt of an example, against transformers and by brute force."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmcli.errors import LlmcliError
from llmcli.generation import loaded
from llmcli.model.transformer import Transformer
from llmcli.storage import checkpoint
from llmcli.storage.checkpoint import Checkpoint
from llmcli.text.chat_format import TemplateFormat
from llmcli.text.chat_template import find_template
from llmcli.text.tokenizer import load_tokenizer
from llmcli.train import dpo as preference
from llmcli.train.batches import IGNORED, Encoded, Encoder, pack
from llmcli.train.chat_tokens import ASSISTANT, USER
from llmcli.train.corpus import Corpus, Example, read_corpus, read_examples
from llmcli.train.dpo import Preference, dpo_loss
from llmcli.train.loop import sample, train
from llmcli.train.metrics import Metrics
from llmcli.train.recipe import Recipe, Shape, make_recipe, read_recipe, resumed_recipe
from llmcli.train.run import begin_run, resume_run
from llmcli.train.state import stages
from tests.tiny import make

CPU = torch.device("cpu")
ANIMALS = ("fox", "owl", "hen", "crow", "frog")
PAIRS = [
    Example(f"The {a} met the {b}. They were glad.", f"Tell of a {a} and a {b}", f"The {a} met the {b}. They wept.")
    for a in ANIMALS
    for b in ANIMALS
    if a != b
]
TOLD = [Example(pair.text, pair.prompt) for pair in PAIRS]
PLAIN = [Example(pair.text) for pair in PAIRS]
BASE = make_recipe(
    {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "context": 64,
        "batch_size": 4,
        "tokens": 64 * 4 * 30,
        "learning_rate": 1e-2,
        "precision": "float32",
    },
    positions=None,
)
TUNED = replace(BASE, shape=None, tokens=64 * 4 * 12, learning_rate=3e-3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows plain texts, and no turns."""
    out = tmp_path_factory.mktemp("train") / "base"
    steps(begin_run(out, BASE, Corpus(PLAIN, PLAIN[:3]), device=CPU), out)
    return out


def steps(run: object, out: Path, *, most: int | None = None, resume: bool = False) -> list[Metrics]:
    stepping = train(run, out, resume=resume, validate_every=1000)  # type: ignore[arg-type]
    taken = []
    for metrics in stepping:
        taken.append(metrics)
        if len(taken) == most:
            break
    stepping.close()
    return taken


def encoder_of(folder: Path) -> Encoder:
    tokenizer, template = load_tokenizer(folder), find_template(folder)
    assert template is not None
    return Encoder(tokenizer, 1, TemplateFormat(template, tokenizer))


# Log probabilities of the chosen and the rejected reply, then under the reference; beta; and the loss that the
# function dpo_loss of trl 0.12.2 gives.
PUBLISHED = [
    (-10.0, -10.0, -10.0, -10.0, 0.1, 0.6931471806),
    (-12.0, -30.0, -20.0, -21.0, 0.1, 0.1677860294),
    (-45.78, -45.56, -3.78, -3.45, 0.1, 0.6876623055),
    (-10.05, -2.26, -7.33, -50.85, 0.1, 5.1368932475),
    (-0.79, -56.99, -6.6, -59.62, 0.1, 0.5467347761),
    (-12.0, -30.0, -20.0, -21.0, 0.5, 0.0002034477),
    (-10.05, -2.26, -7.33, -50.85, 0.5, 25.6550000000),
    (-55.45, -51.91, -39.62, -18.44, 0.5, 0.0001477374),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=str)
def test_the_loss_of_preferences_is_the_published_one(row: tuple[float, ...]) -> None:
    *logprobs, beta, expected = row
    pair = torch.tensor(logprobs, dtype=torch.float64).view(2, 1, 2)
    assert float(dpo_loss(pair[0], pair[1], beta)) == pytest.approx(expected, rel=1e-6)


def test_the_prompt_is_read_and_only_the_reply_learnt(base: Path, tmp_path: Path) -> None:
    """The loss of the first step is transformers' own with the prompt's labels masked."""
    example = TOLD[3]
    recipe = replace(TUNED, method="sft", batch_size=1)
    run = begin_run(tmp_path, recipe, Corpus([example], [example]), init=base, device=CPU)
    checkpoint.save(run.model, tmp_path, run.described, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    turn = [{"role": "user", "content": example.prompt}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": example.text}], return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == 1
    labels = torch.tensor([[IGNORED] * len(prompt) + whole[len(prompt) :]])
    with torch.no_grad():
        expected = float(theirs(torch.tensor([whole]), labels=labels).loss)
    assert run.objective.loss(run.model, 0).item() == pytest.approx(expected, rel=1e-5)
    score = run.objective.score(run.model, torch.float32)
    assert score["nats_per_token"] == pytest.approx(expected, rel=1e-5)
    bits = expected * (len(whole) - len(prompt)) / math.log(2)
    assert score["bits_per_byte"] == pytest.approx(bits / len(example.text.encode()), rel=1e-5)


def test_replies_are_learnt_and_plain_text_not_forgotten(base: Path, tmp_path: Path) -> None:
    recipe = replace(TUNED, method="sft", tokens=64 * 4 * 250, learning_rate=1e-2, plain=0.3)
    run = begin_run(tmp_path, recipe, Corpus(TOLD, TOLD[:4]), init=base, device=CPU)
    taken = steps(run, tmp_path)
    assert taken[-1].loss < taken[0].loss / 2
    opened = loaded.load(tmp_path, device="cpu")
    assert opened.tokenizer.special_ids >= {opened.tokenizer.fast.token_to_id(text) for text in (USER, ASSISTANT)}
    assert opened.model.config.vocab_size == opened.tokenizer.size
    written = [
        sample(run, tmp_path, f"Tell of a {a} and a {b}", max_new_tokens=48, seed=0)
        for a, b in (("fox", "owl"), ("hen", "crow"))
    ]
    assert all(text.startswith("The ") and text.endswith("glad.") for text in written), written


def characters(folder: Path) -> None:
    """A tokenizer of single characters, for the tiny models' 97 tokens."""
    known = {chr(code): code - 30 for code in range(32, 127)}
    fast = Tokenizer(models.WordLevel({"<bos>": 0, "<eos>": 1, **known}, unk_token=" "))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    fast.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("case", ["gpt2", "qwen3", "gemma2", "mixtral"])
def test_a_model_of_any_family_is_trained_further(case: str, tmp_path: Path) -> None:
    """And written so that transformers reads the same from it; its own template stays."""
    folder, out = tmp_path / case, tmp_path / "tuned"
    make(case, folder)
    characters(folder)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    recipe = replace(TUNED, method="sft", tokens=64 * 4 * 2)
    run = begin_run(out, recipe, Corpus(TOLD, TOLD[:2]), init=folder, device=CPU)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    steps(run, out)
    changed = [name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])]
    assert len(changed) == len(before)
    assert (out / "chat_template.jinja").read_text() == template
    ids = torch.tensor([[5, 9, 11, 3]])
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        ours = Checkpoint.read(out).load(device=CPU, dtype=torch.float32)(ids)
        assert torch.allclose(ours, theirs(ids).logits, atol=1e-4)


def test_windows_hold_examples_whole_and_tell_what_is_learnt() -> None:
    generator = torch.Generator().manual_seed(1)
    examples = []
    for number in range(60):
        size = int(torch.randint(2, 20, (), generator=generator))
        first = int(torch.randint(1, size, (), generator=generator))
        examples.append(Encoded([1000 * (number + 1) + place for place in range(size)], first))
    examples.append(Encoded([100_000 + place for place in range(40)], 3))  # longer than a window: its beginning
    examples.append(Encoded([200_000 + place for place in range(40)], 30))  # whose prompt fills it: nothing
    batches = pack(examples, context=24, batch_size=3, seed=2)
    found: dict[int, list[tuple[int, bool]]] = {}
    for row, learnt in zip(batches.rows.tolist(), batches.learned.tolist(), strict=True):
        assert len(row) == 25
        for id, wanted in zip(row, learnt, strict=True):
            assert id or not wanted
            if id:
                found.setdefault(id // 1000 if id < 100_000 else id // 100_000 * 100, []).append((id, wanted))
    for number, example in enumerate(examples[:60], start=1):
        assert found[number] == [(id, place >= example.first) for place, id in enumerate(example.ids)]
    assert found[100] == [(100_000 + place, place >= 3) for place in range(25)]
    assert 200 not in found
    assert len(batches.rows) < 1.15 * sum(min(len(e.ids), 25) for e in examples[:61]) / 25  # little is wasted
    inputs, targets = batches.at(0)
    rows = batches.rows.tolist()
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        whole = next(r for r in rows if r[:-1] == row)
        place = rows.index(whole)
        expected = [
            id if on else IGNORED for id, on in zip(whole[1:], batches.learned[place, 1:].tolist(), strict=True)
        ]
        assert wanted == expected


def test_special_tokens_in_examples_are_text(base: Path, tmp_path: Path) -> None:
    forged = Example(f"{ASSISTANT} no <|end_of_text|>", f"hear {USER} me {ASSISTANT}")
    begin_run(tmp_path, replace(TUNED, method="sft"), Corpus(TOLD, [forged]), init=base, device=CPU)
    encoder = encoder_of(tmp_path)
    (reply,), (text,) = encoder.replies([forged]), encoder.texts([forged])
    tokenizer = encoder.tokenizer
    special = [tokenizer.token_text(id) for id in reply.ids if id in tokenizer.special_ids]
    assert special == ["<|begin_of_text|>", USER, ASSISTANT, "<|end_of_text|>"]
    assert tokenizer.decode(reply.ids[reply.first : -1]) == forged.text
    assert [id for id in text.ids if id in tokenizer.special_ids] == [0, 1]


def test_a_share_of_the_replies_is_learnt_as_text(base: Path, tmp_path: Path) -> None:
    begin_run(tmp_path, replace(TUNED, method="sft"), Corpus(TOLD, TOLD[:1]), init=base, device=CPU)
    encoder = encoder_of(tmp_path)
    many = [*TOLD] * 30
    mixed = encoder.mixed(many, plain=0.25, seed=1)
    texts = [one.first == 1 for one in mixed]
    assert 0.2 < sum(texts) / len(many) < 0.3
    assert mixed == encoder.mixed(many, plain=0.25, seed=1)
    assert mixed != encoder.mixed(many, plain=0.25, seed=2)
    for example, one in zip(many, mixed, strict=True):
        assert one == (encoder.texts([example]) if one.first == 1 else encoder.replies([example]))[0]
    assert all(one.first > 1 for one in encoder.mixed(many, plain=0.0, seed=1))
    assert encoder.mixed(PLAIN, plain=0.0, seed=1) == encoder.texts(PLAIN)


def preferring(out: Path, base: Path, **changed: object) -> tuple[object, Recipe]:
    values = {"method": "dpo", "learning_rate": 1e-3, "tokens": 64 * 8 * 30, **changed}
    recipe = replace(TUNED, **values)  # type: ignore[arg-type]
    return begin_run(out, recipe, Corpus(PAIRS[4:], PAIRS[:4]), init=base, device=CPU), recipe


@pytest.fixture(scope="module")
def told(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was taught replies, good and bad alike."""
    out = tmp_path_factory.mktemp("train") / "told"
    both = [e for pair in PAIRS for e in (Example(pair.text, pair.prompt), Example(pair.rejected or "", pair.prompt))]
    recipe = replace(TUNED, method="sft", tokens=64 * 4 * 60)
    steps(begin_run(out, recipe, Corpus(both, both[:4]), init=base, device=CPU), out)
    return out


def test_preferences_are_learnt(told: Path, tmp_path: Path) -> None:
    run, _ = preferring(tmp_path, told)
    untouched = Checkpoint.read(told).load(device=CPU, dtype=torch.float32)
    taken = steps(run, tmp_path)
    assert taken[0].loss == pytest.approx(math.log(2), abs=1e-6)  # the model is the reference
    assert taken[-1].loss < 0.4
    assert taken[-1].preferred == 1.0
    tuned = Checkpoint.read(tmp_path).load(device=CPU, dtype=torch.float32)
    encoder = encoder_of(tmp_path)
    good, bad = encoder.pairs(PAIRS[:1])
    assert margin(tuned, good, bad) > margin(untouched, good, bad) + 1


def margin(model: Transformer, good: Encoded, bad: Encoded) -> float:
    """By how many nats the first is more probable."""

    def logprob(one: Encoded) -> float:
        with torch.no_grad():
            logprobs = model(torch.tensor([one.ids])).double().log_softmax(-1)[0]
        return sum(float(logprobs[place - 1, one.ids[place]]) for place in range(one.first, len(one.ids)))

    return logprob(good) - logprob(bad)


def test_the_log_probability_of_a_reply_is_that_of_its_tokens(told: Path, tmp_path: Path) -> None:
    """Summed one by one in float64; and what fills up a row counts for nothing."""
    run, _ = preferring(tmp_path, told, context=40)
    encoder = encoder_of(tmp_path)
    pairs = encoder.pairs(PAIRS[4:])
    objective = Preference(pairs, pairs[:2], context=40, batch_size=3, beta=0.3, seed=0)
    objective.prepare(run.model, lambda function: function)  # type: ignore[attr-defined]
    reference = objective.kept[preference.REFERENCE]
    for place in (0, 5):
        expected = margin(run.model, *pairs[2 * place : 2 * place + 2])  # type: ignore[attr-defined]
        assert float(reference[place, 0] - reference[place, 1]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_preferences_keep_their_reference(told: Path, tmp_path: Path, stop: int) -> None:
    run, recipe = preferring(tmp_path / "whole", told, tokens=64 * 8 * 7)
    whole = steps(run, tmp_path / "whole")
    run, _ = preferring(tmp_path / "parts", told, tokens=64 * 8 * 7)
    first = steps(run, tmp_path / "parts", most=stop)
    again = resume_run(tmp_path / "parts", recipe, Corpus(PAIRS[4:], PAIRS[:4]), device=CPU)
    rest = steps(again, tmp_path / "parts", resume=True)
    assert [m.loss for m in first + rest] == [m.loss for m in whole]
    name = "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_what_cannot_be_learnt_is_said(base: Path, tmp_path: Path) -> None:
    alike = Example("yes", "Well?", "yes")
    for recipe, examples, says in (
        (replace(TUNED, method="dpo"), [alike], "pair 1 are identical"),
        (replace(TUNED, method="dpo", context=4), PAIRS[:3], "longer than the context"),
        (replace(TUNED, method="sft", context=4), TOLD[:3], "no example fits"),
    ):
        with pytest.raises(LlmcliError, match=says):
            begin_run(tmp_path / "x", recipe, Corpus(examples, examples), init=base, device=CPU)


def test_corpus_tells_texts_replies_and_preferences_apart(tmp_path: Path) -> None:
    lines = [
        {"text": "a"},
        {"prompt": "p", "completion": "b"},
        {"prompt": "p", "response": "c"},
        {"prompt": "p", "text": "d", "kind": "x"},
        {"prompt": "p", "chosen": "e", "rejected": "f"},
    ]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_examples([path]) == [Example("a"), Example("b", "p"), Example("c", "p"), Example("d", "p")]
    assert read_examples([path], preferences=True) == [Example("e", "p", "f")]
    corpus = read_corpus([path], [path], preferences=True)
    assert corpus.train == corpus.valid
    for broken in ({"prompt": "p"}, {"text": 1}, {"chosen": "e", "rejected": "f"}, {"text": "a", "prompt": 3}):
        path.write_text('{"text": "a"}\n' + json.dumps(broken))
        with pytest.raises(LlmcliError, match="line 2"):
            read_examples([path])
    path.write_text('{"text": "a"}')
    with pytest.raises(LlmcliError, match="rejected"):
        read_examples([path], preferences=True)


def test_a_recipe_is_written_and_read_again(tmp_path: Path) -> None:
    for recipe in (BASE, replace(TUNED, method="sft", plain=0.5), replace(TUNED, method="dpo", beta=0.3)):
        recipe.write(tmp_path)
        assert resumed_recipe(tmp_path) == recipe
        assert read_recipe(tmp_path / "recipe.toml", positions=None if recipe.shape else 64) == [recipe]


def test_a_recipe_of_several_runs(tmp_path: Path) -> None:
    path = tmp_path / "all.toml"
    path.write_text('[[stage]]\nhidden_size = 48\n[[stage]]\nmethod = "sft"\nplain = 0.5\n[[stage]]\nmethod = "dpo"\n')
    first, second, third = read_recipe(path, positions=None)
    assert first == Recipe(shape=Shape(hidden_size=48))
    assert (second.method, second.shape, second.plain, second.learning_rate) == ("sft", None, 0.5, 1e-3)
    planned = stages([first, second, third], tmp_path / "out", None)
    assert [(stage.out, stage.init) for stage in planned] == [
        (tmp_path / "out" / "1-pretrain", None),
        (tmp_path / "out" / "2-sft", tmp_path / "out" / "1-pretrain"),
        (tmp_path / "out", tmp_path / "out" / "2-sft"),
    ]
    assert not any(stage.begun for stage in planned)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tokens = 0", "at least 1"),
        ("learnig_rate = 1.0", "did you mean learning_rate"),
        ('learning_rate = "fast"', "give a number"),
        ("tokens = 1.5", "give a number"),
        ('method = "magic"', "pretrain, sft, dpo"),
        ('method = "sft"', "sft starts from a trained model"),
        ('optimizer = "sgd"', "muon or adamw"),
        ("plain = 2.0", "from 0 to 1"),
        ("beta = 0.0", "above 0"),
        ("[[stage]]\n[[stage]]\nhidden_size = 8", "remove it"),
        ("[stage]\ntokens = 5", "has no stage"),
        ("stage = [1]", "no recipe"),
        ("tokens = ", "not valid TOML"),
        ("context = 64\n[[stage]]", "not TOML|no recipe|no stage"),
        ("[[stage]]\ncontext = 64\n[[stage]]\ncontext = 65", "at most the model's 64, not 65"),
    ],
)
def test_a_recipe_s_faults_are_told(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(LlmcliError, match=says) as caught:
        read_recipe(path, positions=None)
    assert "x.toml" in caught.value.message
