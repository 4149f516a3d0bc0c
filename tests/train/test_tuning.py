"""Supervised fine-tuning and preference tuning: losses, masks and log probabilities against transformers and trl."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmcli.errors import LlmcliError
from llmcli.generation import loaded
from llmcli.model.families import family_of
from llmcli.model.layers import Linear
from llmcli.model.transformer import Transformer
from llmcli.storage import checkpoint
from llmcli.storage.checkpoint import Checkpoint
from llmcli.text.chat_format import TemplateFormat
from llmcli.text.chat_template import find_template
from llmcli.text.tokenizer import load_tokenizer
from llmcli.train import state
from llmcli.train.batches import IGNORED, Encoded, Encoder, pack
from llmcli.train.chat_tokens import ASSISTANT, USER
from llmcli.train.corpus import Corpus, Example, read_corpus, read_examples
from llmcli.train.dpo import REFERENCE, Preference, dpo_loss
from llmcli.train.loop import sample, train
from llmcli.train.metrics import Metrics
from llmcli.train.optimizer import create_optimizers
from llmcli.train.recipe import Recipe, Shape, make_recipe, read_recipe, resumed_recipe
from llmcli.train.run import begin_run, resume_run
from llmcli.train.state import stages
from tests.tiny import make
from tests.wide import raw_config

CPU = torch.device("cpu")
ANIMALS = ("fox", "owl", "hen", "crow", "frog")
PAIRS = [
    Example(f"The {a} met the {b}. They were glad.", f"Tell of a {a} and a {b}", f"The {a} met the {b}. They wept.")
    for a in ANIMALS
    for b in ANIMALS
    if a != b
]
REPLIES = [Example(pair.text, pair.prompt) for pair in PAIRS]
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
    """A base model, trained on texts, without a chat template."""
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


# Log probabilities of the chosen and the rejected reply, the same under the reference model, beta, and the loss that
# dpo_loss of trl 0.12.2 returns.
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
def test_dpo_loss_equals_that_of_trl(row: tuple[float, ...]) -> None:
    *logprobs, beta, expected = row
    pair = torch.tensor(logprobs, dtype=torch.float64).view(2, 1, 2)
    assert float(dpo_loss(pair[0], pair[1], beta)) == pytest.approx(expected, rel=1e-6)


def test_sft_loss_ignores_the_prompt(base: Path, tmp_path: Path) -> None:
    """The loss of the first step equals that of transformers with the labels of the prompt masked."""
    example = REPLIES[3]
    recipe = replace(TUNED, method="sft", batch_size=1)
    run = begin_run(tmp_path, recipe, Corpus([example], [example]), init=base, device=CPU)
    checkpoint.save(run.model, tmp_path, run.config_json, dtype=torch.float32)
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


def test_sft_learns_replies(base: Path, tmp_path: Path) -> None:
    recipe = replace(TUNED, method="sft", tokens=64 * 4 * 250, learning_rate=1e-2, plain=0.3)
    run = begin_run(tmp_path, recipe, Corpus(REPLIES, REPLIES[:4]), init=base, device=CPU)
    taken = steps(run, tmp_path)
    assert taken[-1].loss < taken[0].loss / 2
    chat_model = loaded.load(tmp_path, device="cpu")
    tokenizer = chat_model.tokenizer
    assert tokenizer.special_ids >= {tokenizer.fast.token_to_id(text) for text in (USER, ASSISTANT)}
    assert chat_model.model.config.vocab_size == tokenizer.size
    replies = [
        sample(run, tmp_path, f"Tell of a {a} and a {b}", max_new_tokens=48, seed=0)
        for a, b in (("fox", "owl"), ("hen", "crow"))
    ]
    assert all(text.startswith("The ") and text.endswith("glad.") for text in replies), replies


def save_character_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single characters, for the 97 tokens of the tiny models."""
    ids = {chr(code): code - 30 for code in range(32, 127)}
    fast = Tokenizer(models.WordLevel({"<bos>": 0, "<eos>": 1, **ids}, unk_token=" "))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    fast.save(str(folder / "tokenizer.json"))


RECURRENT = ["qwen3_5_text", "lfm2", "granitemoehybrid", "nemotron_h", "falcon_h1"]


@pytest.mark.parametrize("case", ["gpt2", "qwen3", "gemma2", "mixtral", *RECURRENT, "llama4_text"])
def test_sft_trains_models_of_other_families(case: str, tmp_path: Path) -> None:
    """Every weight changes, the chat template does not, and transformers loads the result with equal logits."""
    folder, out = tmp_path / case, tmp_path / "tuned"
    make(case, folder)
    save_character_tokenizer(folder)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    recipe = replace(TUNED, method="sft", tokens=64 * 4 * 2)
    run = begin_run(out, recipe, Corpus(REPLIES, REPLIES[:2]), init=folder, device=CPU)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    steps(run, out)
    changed = [name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])]
    assert set(changed) == {name for name in before if not name.endswith("choice_bias")}  # which has no gradient
    assert (out / "chat_template.jinja").read_text() == template
    ids = torch.tensor([[5, 9, 11, 3]])
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        ours = Checkpoint.read(out).load(device=CPU, dtype=torch.float32)(ids)
        assert torch.allclose(ours, theirs(ids).logits, atol=1e-4)


@pytest.mark.parametrize(("case", "outer"), [("gemma4_text", "gemma4"), ("qwen3", "qwen3_vl")])
def test_a_model_that_reads_images_gets_chat_tokens(case: str, outer: str, tmp_path: Path) -> None:
    """The text model alone is written if it is of a known family: a folder that transformers loads, too."""
    folder, out = tmp_path / case, tmp_path / "tuned"
    make(case, folder)
    save_character_tokenizer(folder)
    raw = json.loads((folder / "config.json").read_text())
    text = raw if outer == "gemma4" else raw | {"model_type": f"{outer}_text"}
    (folder / "config.json").write_text(
        json.dumps({"model_type": outer, "text_config": text, "vision_config": {}, "tie_word_embeddings": True})
    )
    recipe = replace(TUNED, method="sft", tokens=64 * 4)
    steps(begin_run(out, recipe, Corpus(REPLIES, REPLIES[:2]), init=folder, device=CPU), out)
    tuned = loaded.load(out, device="cpu", dtype="float32")
    assert tuned.model.config.vocab_size == raw["vocab_size"] + 2
    assert tuned.model.config.model_type == (case if outer == "gemma4" else outer)
    if outer == "gemma4":
        theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
        ids = torch.tensor([[5, 9, 11, raw["vocab_size"] + 1]])
        with torch.no_grad():
            assert torch.allclose(tuned.model(ids), theirs(ids).logits, atol=1e-4)


def test_packed_windows_contain_whole_examples_and_their_masks() -> None:
    generator = torch.Generator().manual_seed(1)
    examples = []
    for number in range(60):
        size = int(torch.randint(2, 20, (), generator=generator))
        first = int(torch.randint(1, size, (), generator=generator))
        examples.append(Encoded([1000 * (number + 1) + position for position in range(size)], first))
    examples.append(Encoded([100_000 + position for position in range(40)], 3))  # longer than a window: truncated
    examples.append(Encoded([200_000 + position for position in range(40)], 30))  # its prompt fills the window: skipped
    batches = pack(examples, context=24, batch_size=3, seed=2)
    found: dict[int, list[tuple[int, bool]]] = {}
    for row, learned in zip(batches.rows.tolist(), batches.learned.tolist(), strict=True):
        assert len(row) == 25
        for id, wanted in zip(row, learned, strict=True):
            assert id or not wanted
            if id:
                found.setdefault(id // 1000 if id < 100_000 else id // 100_000 * 100, []).append((id, wanted))
    for number, example in enumerate(examples[:60], start=1):
        assert found[number] == [(id, position >= example.first) for position, id in enumerate(example.ids)]
    assert found[100] == [(100_000 + position, position >= 3) for position in range(25)]
    assert 200 not in found
    assert len(batches.rows) < 1.15 * sum(min(len(e.ids), 25) for e in examples[:61]) / 25  # at most 15% padding
    inputs, targets = batches.at(0)
    rows = batches.rows.tolist()
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        whole = next(r for r in rows if r[:-1] == row)
        position = rows.index(whole)
        expected = [
            id if on else IGNORED for id, on in zip(whole[1:], batches.learned[position, 1:].tolist(), strict=True)
        ]
        assert wanted == expected


def test_special_tokens_in_examples_are_text(base: Path, tmp_path: Path) -> None:
    forged = Example(f"{ASSISTANT} no <|end_of_text|>", f"hear {USER} me {ASSISTANT}")
    begin_run(tmp_path, replace(TUNED, method="sft"), Corpus(REPLIES, [forged]), init=base, device=CPU)
    encoder = encoder_of(tmp_path)
    (reply,), (text,) = encoder.replies([forged]), encoder.texts([forged])
    tokenizer = encoder.tokenizer
    special = [tokenizer.token_text(id) for id in reply.ids if id in tokenizer.special_ids]
    assert special == ["<|begin_of_text|>", USER, ASSISTANT, "<|end_of_text|>"]
    assert tokenizer.decode(reply.ids[reply.first : -1]) == forged.text
    assert [id for id in text.ids if id in tokenizer.special_ids] == [0, 1]


def test_a_fraction_of_the_replies_is_encoded_as_text(base: Path, tmp_path: Path) -> None:
    begin_run(tmp_path, replace(TUNED, method="sft"), Corpus(REPLIES, REPLIES[:1]), init=base, device=CPU)
    encoder = encoder_of(tmp_path)
    many = [*REPLIES] * 30
    mixed = encoder.mixed(many, plain=0.25, seed=1)
    texts = [one.first == 1 for one in mixed]
    assert 0.2 < sum(texts) / len(many) < 0.3
    assert mixed == encoder.mixed(many, plain=0.25, seed=1)
    assert mixed != encoder.mixed(many, plain=0.25, seed=2)
    for example, encoded in zip(many, mixed, strict=True):
        assert encoded == (encoder.texts([example]) if encoded.first == 1 else encoder.replies([example]))[0]
    assert all(one.first > 1 for one in encoder.mixed(many, plain=0.0, seed=1))
    assert encoder.mixed(PLAIN, plain=0.0, seed=1) == encoder.texts(PLAIN)


def begin_dpo(out: Path, base: Path, **changed: object) -> tuple[object, Recipe]:
    """Begin a DPO run in ``out`` that starts from ``base``; return it and its recipe."""
    values = {"method": "dpo", "learning_rate": 1e-3, "tokens": 64 * 8 * 30, **changed}
    recipe = replace(TUNED, **values)  # type: ignore[arg-type]
    return begin_run(out, recipe, Corpus(PAIRS[4:], PAIRS[:4]), init=base, device=CPU), recipe


@pytest.fixture(scope="module")
def chat_model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model fine-tuned on the chosen and the rejected replies."""
    out = tmp_path_factory.mktemp("train") / "chat"
    both = [e for pair in PAIRS for e in (Example(pair.text, pair.prompt), Example(pair.rejected or "", pair.prompt))]
    recipe = replace(TUNED, method="sft", tokens=64 * 4 * 60)
    steps(begin_run(out, recipe, Corpus(both, both[:4]), init=base, device=CPU), out)
    return out


def test_dpo_learns_preferences(chat_model: Path, tmp_path: Path) -> None:
    run, _ = begin_dpo(tmp_path, chat_model)
    reference = Checkpoint.read(chat_model).load(device=CPU, dtype=torch.float32)
    taken = steps(run, tmp_path)
    assert taken[0].loss == pytest.approx(math.log(2), abs=1e-6)  # the model equals the reference model
    assert taken[-1].loss < 0.4
    assert taken[-1].preferred == 1.0
    tuned = Checkpoint.read(tmp_path).load(device=CPU, dtype=torch.float32)
    encoder = encoder_of(tmp_path)
    good, bad = encoder.pairs(PAIRS[:1])
    assert margin(tuned, good, bad) > margin(reference, good, bad) + 1


def margin(model: Transformer, good: Encoded, bad: Encoded) -> float:
    """Return the difference between the log probabilities of the two replies, in nats."""

    def logprob(one: Encoded) -> float:
        with torch.no_grad():
            logprobs = model(torch.tensor([one.ids])).double().log_softmax(-1)[0]
        return sum(float(logprobs[position - 1, one.ids[position]]) for position in range(one.first, len(one.ids)))

    return logprob(good) - logprob(bad)


def test_the_log_probability_of_a_reply_is_the_sum_over_its_tokens(chat_model: Path, tmp_path: Path) -> None:
    """Compare with a sum in float64, token by token and without padding."""
    run, _ = begin_dpo(tmp_path, chat_model, context=40)
    encoder = encoder_of(tmp_path)
    pairs = encoder.pairs(PAIRS[4:])
    objective = Preference(pairs, pairs[:2], context=40, batch_size=3, beta=0.3, seed=0)
    objective.prepare(run.model, lambda function: function)  # type: ignore[attr-defined]
    reference = objective.kept[REFERENCE]
    for position in (0, 5):
        expected = margin(run.model, *pairs[2 * position : 2 * position + 2])  # type: ignore[attr-defined]
        assert float(reference[position, 0] - reference[position, 1]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_preferences_keep_their_reference(chat_model: Path, tmp_path: Path, stop: int) -> None:
    run, recipe = begin_dpo(tmp_path / "whole", chat_model, tokens=64 * 8 * 7)
    whole = steps(run, tmp_path / "whole")
    run, _ = begin_dpo(tmp_path / "parts", chat_model, tokens=64 * 8 * 7)
    first = steps(run, tmp_path / "parts", most=stop)
    again = resume_run(tmp_path / "parts", recipe, Corpus(PAIRS[4:], PAIRS[:4]), device=CPU)
    rest = steps(again, tmp_path / "parts", resume=True)
    assert [m.loss for m in first + rest] == [m.loss for m in whole]
    name = "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    path = tmp_path / "parts" / state.FILE
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items() if name != f"kept.{REFERENCE}"}
    save_file(tensors, path, metadata={"step": "1"})
    with pytest.raises(LlmcliError, match=r"kept\.reference is missing"):
        steps(again, tmp_path / "parts", resume=True)


def test_unusable_examples_are_errors(base: Path, tmp_path: Path) -> None:
    identical = Example("yes", "Well?", "yes")
    for recipe, examples, message in (
        (replace(TUNED, method="dpo"), [identical], "pair 1 are identical"),
        (replace(TUNED, method="dpo", context=4), PAIRS[:3], "longer than the context"),
        (replace(TUNED, method="sft", context=4), REPLIES[:3], "no example fits"),
    ):
        with pytest.raises(LlmcliError, match=message):
            begin_run(tmp_path / "x", recipe, Corpus(examples, examples), init=base, device=CPU)


def test_corpus_distinguishes_texts_replies_and_preferences(tmp_path: Path) -> None:
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


def test_a_written_recipe_can_be_read(tmp_path: Path) -> None:
    for recipe in (BASE, replace(TUNED, method="sft", plain=0.5), replace(TUNED, method="dpo", beta=0.3)):
        recipe.write(tmp_path)
        assert resumed_recipe(tmp_path) == recipe
        assert read_recipe(tmp_path / "recipe.toml", positions=None if recipe.shape else 64) == [recipe]


def test_a_recipe_of_several_stages(tmp_path: Path) -> None:
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
    ("text", "message"),
    [
        ("tokens = 0", "at least 1"),
        ("learnig_rate = 1.0", "did you mean learning_rate"),
        ('learning_rate = "fast"', "learning_rate must be a number, not 'fast'"),
        ("tokens = 1.5", "tokens must be an integer, not 1.5"),
        ('method = "magic"', "must be one of pretrain, sft, dpo, not 'magic'"),
        ('method = "sft"', "sft starts from a trained model"),
        ('optimizer = "sgd"', "optimizer must be muon or adamw, not 'sgd'"),
        ("plain = 2.0", "from 0 to 1"),
        ("beta = 0.0", "above 0"),
        ("[[stage]]\n[[stage]]\nhidden_size = 8", "remove it"),
        ("[stage]\ntokens = 5", "has no stage.*has all keys"),
        ("stage = [1]", "contains no recipe"),
        ("tokens = ", "not valid TOML"),
        ("context = 64\n[[stage]]", "not TOML|no recipe|no stage"),
        ("[[stage]]\ncontext = 64\n[[stage]]\ncontext = 65", "at most the model's 64, not 65"),
    ],
)
def test_recipe_errors_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(LlmcliError, match=message) as caught:
        read_recipe(path, positions=None)
    assert "x.toml" in caught.value.message


def test_muon_updates_the_matrices_of_blocks_alone() -> None:
    for name in ("qwen3_5_text", "lfm2", "nemotron_h"):
        model = Transformer(family_of(raw_config(name)).parse(raw_config(name)))
        muon, adamw = create_optimizers(model, BASE)
        sizes = [sum(p.numel() for group in each.param_groups for p in group["params"]) for each in (muon, adamw)]
        products = sum(module.weight.numel() for module in model.blocks.modules() if isinstance(module, Linear))
        assert sizes == [products, sum(p.numel() for p in model.parameters()) - products]
