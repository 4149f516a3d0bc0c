"""Constrained output: independent checks find every text valid, and no token is cut that could lead to a valid one."""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from llmcli.engine.random_weights import random_model
from llmcli.errors import LlmcliError
from llmcli.explain.sampling_step import step_report
from llmcli.generation.filters import Filter, LogitBias, RepetitionPenalty, Temperature, TopK, TopP
from llmcli.generation.generate import Generation
from llmcli.generation.generation_config import Defaults
from llmcli.generation.grammar import MAX_TOKEN_BYTES, Grammar, GrammarFilter, choice_rules, json_rules, regex_rules
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.speculative import DraftModel, PromptLookup
from llmcli.generation.steps import Continuation, Proposer, Step, steps
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.transformer import Transformer
from llmcli.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.test_tokenizer import KINDS, REAL
from tests.tiny import CPU, VOCAB, TinyFactory

PADDED = 3  # rows of the embedding beyond the tokenizer's size
STOP = {"byte-level": 1, "sentencepiece": 2, "unigram": 1}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[Any] = [
    PERSON,
    True,
    {"type": "object"},
    {"type": "string"},
    {"type": ["null", "boolean", "integer"]},
    {"type": "string", "minLength": 3, "maxLength": 6},
    {"type": "string", "pattern": "^[a-f]+$"},
    {"type": "number", "minimum": -3.5, "maximum": 17.25},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "integer", "multipleOf": 7},
    {"enum": ["a", "naïve 🙂", 'q"\\\n', 1, None, {"x": [1, 2]}]},
    {"const": {"b": [1.5, "é"], "a": None}},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": {"type": "integer"}},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"anyOf": [{"type": "number"}, {"type": "array", "items": {"enum": ["x", "y"]}}]},
    {"oneOf": [{"type": "string", "maxLength": 5}, {"type": "boolean"}]},
    {
        "$defs": {
            "list": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/list",
    },
    {"type": "object", "patternProperties": {"^[a-z]{1,3}$": {"type": "integer"}}, "additionalProperties": False},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"required": ["b"]}]},
]
REGEXES = [
    "(cat|cats|dog)?( sat)*",
    "[^a]{3,9}",
    ".*the.*",
    "(é|🙂){2,5}",
    "a*b*c*",
    r"\d{4}-\d\d-\d\d",
    "a/b\\\\c|\"'",
]
CHOICES = [
    ["yes", "no", "maybe"],
    ["the", "the cat", "the cat sat"],
    ['{"a": 1}', "é🙂", "a|b", ".*", "\\", "x\ny", " z"],
]


def config(rows: int, stops: Sequence[int] = (), context: int = 512) -> ModelConfig:
    return ModelConfig("llama", rows, 16, 24, 1, 2, 1, 8, context, rope=RopeConfig(), eos_token_ids=tuple(stops))


def opened(tokenizer: Tokenizer, model: Transformer) -> LoadedModel:
    return LoadedModel("x", Path(), model, tokenizer, Defaults((), {}, {}))


@cache
def loaded(kind: str, stops: tuple[int, ...] | None = None) -> LoadedModel:
    """A random model with one kind of tokenizer. ``stops`` are its stop tokens; by default it has one."""
    tokenizer = Tokenizer(KINDS[kind](), kind)
    shape = config(tokenizer.size + PADDED, (STOP[kind],) if stops is None else stops)
    return opened(tokenizer, random_model(shape, device=CPU, dtype=torch.float32))


@cache
def grammar(kind: str, rules: str, stops: tuple[int, ...] | None = None) -> Grammar:
    return Grammar(loaded(kind, stops), rules)


def prompt_of(tokenizer: Tokenizer, text: str = "the mat") -> list[int]:
    """The ids of a text, without the tokens that the tokenizer appends."""
    return tokenizer.encode(text)[: None if tokenizer.name != "unigram" else -1]


def closing(model: LoadedModel) -> LogitBias:
    """A bias towards closing characters and stop tokens, so that random strings end."""
    ids = [id for id in model.tokenizer.ids if set(model.tokenizer.token_bytes(id)) & set(b'"]}')]
    return LogitBias(dict.fromkeys({*ids, *model.stop_ids}, 3.0))


def write(rules: Grammar, model: LoadedModel, seed: int, text: str = "the mat", count: int = 150) -> tuple[str, str]:
    """A text sampled from random logits as the loop does; returns it and why it ended, or "cut off"."""
    prompt = prompt_of(model.tokenizer, text)
    rule = rules.filter(len(prompt))
    sampler = Sampler([*model.vocabulary_filter(), rule, closing(model), Temperature(2.0)], seed)
    noise = torch.Generator().manual_seed(seed)
    text_so_far = Continuation(list(prompt), sampler, count, context=10_000, stop_ids=model.stop_ids)
    finish = None
    while finish is None:
        step = text_so_far.choose(3 * torch.randn(model.model.config.vocab_size, generator=noise))
        text_so_far.append(step.token)
        finish = step.finish
    before = model.tokenizer.decode(prompt)
    written = model.tokenizer.decode(text_so_far.ids)[len(before) :]
    return written, "cut off" if rule.ending(text_so_far.ids) == "not yet" else finish


def exact(number: str) -> Decimal | float:
    """A JSON number: exact, unless its exponent is huge."""
    try:
        return Decimal(number)
    except InvalidOperation:
        return float(number)


def fits(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether a JSON value fits a schema by JSON Schema 2020-12, for the keywords of these tests."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[part]
        return fits(value, target, root)
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    kinds = {
        "null": value is None,
        "boolean": isinstance(value, bool),
        "integer": number and Decimal(value) == Decimal(value).to_integral_value(),
        "number": number,
        "string": isinstance(value, str),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }
    types = schema.get("type", list(kinds))
    tests = [any(kinds[kind] for kind in ([types] if isinstance(types, str) else types))]
    tests.append("enum" not in schema or value in schema["enum"])
    tests.append("const" not in schema or value == schema["const"])
    for name, count in (("anyOf", range(1, 99)), ("oneOf", range(1, 2))):
        tests.append(name not in schema or sum(fits(value, part, root) for part in schema[name]) in count)
    tests += [fits(value, part, root) for part in schema.get("allOf", [])]
    if kinds["number"]:
        tests += [value >= schema.get("minimum", value), value <= schema.get("maximum", value)]
        tests.append("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        tests.append("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        tests.append("multipleOf" not in schema or value % schema["multipleOf"] == 0)
    if kinds["string"]:
        tests += [schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))]
        tests.append(re.search(schema.get("pattern", ""), value) is not None)
    if kinds["array"]:
        first = schema.get("prefixItems", [])
        tests += [schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))]
        tests += [fits(part, own, root) for part, own in zip(value, first, strict=False)]
        tests += [fits(part, schema.get("items", True), root) for part in value[len(first) :]]
    if kinds["object"]:
        tests += [name in value for name in schema.get("required", [])]
        for name, part in value.items():
            own = [schema["properties"][name]] if name in schema.get("properties", {}) else []
            own += [s for pattern, s in schema.get("patternProperties", {}).items() if re.search(pattern, name)]
            tests += [fits(part, s, root) for s in own or [schema.get("additionalProperties", True)]]
    return all(tests)


def test_the_schema_check_rejects_invalid_values() -> None:
    assert fits({"name": "Bo", "age": 3}, PERSON)
    wrong = [
        {},
        {"name": "Bo"},
        {"name": "Bobbyy", "age": 3},
        {"name": "Bo", "age": 151},
        {"name": "Bo", "age": Decimal("1.5")},
        [],
    ]
    wrong += [{"name": "Bo", "age": 3, "x": 1}, {"name": "Bo", "age": 3, "tags": [1]}, {"name": "Bo", "age": True}]
    assert not any(fits(value, PERSON) for value in wrong)
    assert not fits(0, {"type": "number", "exclusiveMinimum": 0})
    assert not fits("ag", {"pattern": "^[a-f]+$"})
    assert not fits(True, {"oneOf": [{"type": "boolean"}, {"enum": [True]}]})
    assert fits({"next": {"next": None}}, SCHEMAS[16])
    assert not fits({"next": {"next": 1}}, SCHEMAS[16])


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:40])
def test_json_fits_its_schema(schema: Any) -> None:
    finished = 0
    for kind, seed in itertools.product(("byte-level", "sentencepiece"), range(8)):
        stops = () if seed % 4 == 3 else None  # some models have no stop token
        text, finish = write(grammar(kind, json_rules(schema), stops), loaded(kind, stops), seed)
        if finish != "cut off":
            assert fits(json.loads(text, parse_float=exact), schema), text
            assert "\n" not in text
            finished += 1
    assert finished >= 6


@pytest.mark.parametrize("pattern", REGEXES)
def test_a_text_matches_its_regex(pattern: str) -> None:
    finished = 0
    for kind, seed in itertools.product(("byte-level", "sentencepiece"), range(6)):
        text, finish = write(grammar(kind, regex_rules(pattern)), loaded(kind), seed, count=60)
        if finish != "cut off":
            assert re.fullmatch(pattern, text), text
            finished += 1
    assert finished >= 4


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_a_text_is_one_of_its_choices(choices: list[str]) -> None:
    drawn = set()
    for kind, seed in itertools.product(("byte-level", "sentencepiece"), range(12)):
        stops = () if seed % 4 == 3 else None
        text, finish = write(grammar(kind, choice_rules(choices), stops), loaded(kind, stops), seed)
        assert text in choices
        assert finish in ("grammar", "stop_token") if stops is None else finish == "grammar"
        drawn.add(text)
    assert len(drawn) == len(choices) or (len(drawn) >= 2 and "the" in choices)


# --- the mask against brute force over all texts of a small language ---

LANGUAGES: list[tuple[str, set[str]]] = [
    *((choice_rules(choices), set(choices)) for choices in CHOICES),
    (
        regex_rules("[ac]{1,3}(cat|mat)?"),
        {
            "".join(word) + end
            for n in (1, 2, 3)
            for word in itertools.product("ac", repeat=n)
            for end in ("", "cat", "mat")
        },
    ),
    (
        json_rules(
            {
                "type": "object",
                "properties": {"a": {"type": "integer", "minimum": 8, "maximum": 12}, "b": {"enum": [None, "the é"]}},
                "required": ["a"],
                "additionalProperties": False,
            }
        ),
        {
            json.dumps({"a": a, **b}, ensure_ascii=False)
            for a in range(8, 13)
            for b in ({}, {"b": None}, {"b": "the é"})
        },
    ),
]


def assert_mask(
    rule: GrammarFilter, model: LoadedModel, prompt: list[int], language: set[bytes], tokens: list[int]
) -> set[int]:
    """Compare the tokens that the mask allows after ``tokens`` with those of the language; returns them."""
    pieces = [
        b"" if id in model.tokenizer.special_ids else model.tokenizer.token_bytes(id)
        for id in range(model.tokenizer.size)
    ]
    text = b"".join(pieces[id] for id in tokens)
    expected = {id for id, piece in enumerate(pieces) if piece and any(t.startswith(text + piece) for t in language)}
    expected |= model.stop_ids if text in language else set()
    left = rule(torch.zeros(model.model.config.vocab_size), [*prompt, *tokens])
    assert set(torch.isfinite(left).nonzero().flatten().tolist()) == expected
    longer = any(t.startswith(text) and t != text for t in language)
    assert rule.ending([*prompt, *tokens]) == ("not yet" if text not in language else "may" if longer else "must")
    return expected


def walk(kind: str, rules: str, texts: set[str], seed: int) -> None:
    """Generate a random text of the language, with steps back, and compare the mask at every position."""
    model, rng = loaded(kind), random.Random(seed)
    language = {text.encode() for text in texts}
    prompt = prompt_of(model.tokenizer)
    rule, tokens = grammar(kind, rules).filter(len(prompt)), list[int]()
    for _ in range(25):
        expected = assert_mask(rule, model, prompt, language, tokens)
        resume_run = sorted(expected - model.stop_ids)
        tokens = [*tokens, rng.choice(resume_run)] if resume_run else tokens[: rng.randrange(len(tokens))]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize(("rules", "texts"), LANGUAGES, ids=lambda v: "" if isinstance(v, str) else str(sorted(v))[:20])
def test_a_token_is_allowed_if_and_only_if_it_can_lead_to_a_text(kind: str, rules: str, texts: set[str]) -> None:
    for seed in range(3):
        walk(kind, rules, texts, seed)


def test_the_mask_of_a_tokenizer_with_whole_words() -> None:
    walk("unigram", choice_rules(["the cat", "once", "a time"]), {"the cat", "once", "a time"}, 0)


def off_by_one(real: Callable[..., tuple[Tensor, bool]]) -> Callable[..., tuple[Tensor, bool]]:
    return lambda self: (real(self)[0].roll(1), real(self)[1])


def early(real: Callable[..., tuple[Tensor, bool]]) -> Callable[..., tuple[Tensor, bool]]:
    return lambda self: (real(self)[0], True)


def deaf(real: Callable[..., bool]) -> Callable[..., bool]:
    return lambda self, text: real(self, text[:1])


def forgetful(real: Callable[..., bool]) -> Callable[..., bool]:
    """Keeps the known mask when the text changes."""

    def follow(self: GrammarFilter, text: list[int]) -> bool:
        known = self._known
        stopped = real(self, text)
        self._known = known or self._known
        return stopped

    return follow


@pytest.mark.parametrize(
    ("method", "broken"), [("_allowed", off_by_one), ("_allowed", early), ("_follow", deaf), ("_follow", forgetful)]
)
def test_a_broken_mask_is_noticed(monkeypatch: pytest.MonkeyPatch, method: str, broken: Callable[..., Any]) -> None:
    monkeypatch.setattr(GrammarFilter, method, broken(getattr(GrammarFilter, method)))
    with pytest.raises((AssertionError, LlmcliError)):
        walk("byte-level", *LANGUAGES[0], seed=0)


@pytest.mark.parametrize("schema", [True, PERSON], ids=str)
def test_the_mask_depends_only_on_the_text(schema: Any) -> None:
    """A filter that reads several texts in turn gives the same masks as a new filter for each."""
    rules, rng = grammar("byte-level", json_rules(schema)), random.Random(5)
    zeros, texts = torch.zeros(loaded("byte-level").model.config.vocab_size), [[7]]
    one = rules.filter(1)
    for _ in range(300):
        ids = rng.choice(texts)[: rng.randint(1, 12)]
        left = one(zeros, ids)
        assert torch.equal(left, rules.filter(1)(zeros, ids))
        assert one.ending(ids) == rules.filter(1).ending(ids)
        if one.ending(ids) != "must":
            texts.append(
                [*ids, rng.choice([id for id in torch.isfinite(left).nonzero().flatten().tolist() if id != 1])]
            )


# --- ends ---


def test_stop_tokens_end_a_text_and_are_not_part_of_it() -> None:
    """Here one is an ordinary letter, one a special token, one beyond the tokenizer's size."""
    letter = loaded("byte-level").tokenizer.id_of("x")
    assert letter is not None
    stops = (1, letter, loaded("byte-level").tokenizer.size + 1)
    model = loaded("byte-level", stops)
    rule = grammar("byte-level", regex_rules("[a-z<>|_]{2,}"), stops).filter(1)
    start, zeros = [7], torch.zeros(model.model.config.vocab_size)
    a = model.tokenizer.id_of("a")
    assert a is not None
    before, after = rule(zeros, start), rule(zeros, [*start, a, a])
    assert torch.isinf(before[list(stops)]).all()
    assert torch.isfinite(after[[1, letter]]).all()
    assert torch.isinf(after[[0, stops[2]]]).all()
    assert rule.ending([*start, a, a]) == "may"
    assert rule.ending([*start, a, a, letter]) == "must"
    assert rule.ending([*start, letter]) == "not yet"  # the text may not end there


def test_a_text_without_stop_tokens_ends_when_nothing_may_follow() -> None:
    model = loaded("byte-level", ())
    rules = choice_rules(["the cat", "the mat"])
    generation, _ = generate(model, rules, 40, seed=1)
    assert (generation.finish, generation.valid, generation.text in ("the cat", "the mat")) == ("grammar", True, True)


@pytest.mark.parametrize(("count", "valid"), [(0, False), (3, False), (5, True)])
def test_a_text_that_was_cut_off_is_not_valid(count: int, valid: bool) -> None:
    generation, _ = generate(loaded("byte-level", ()), regex_rules("[bdf]{5,}"), count, seed=1)
    assert (generation.finish, generation.valid) == ("length", valid)


def test_a_token_that_completes_the_text_at_the_limit() -> None:
    generation, _ = generate(loaded("byte-level"), regex_rules("[bdf]{5}"), 5, seed=1)
    assert (generation.finish, generation.valid) == ("grammar", True)


def test_a_replaced_token_ends_or_continues_the_text() -> None:
    model = loaded("byte-level")
    a, b = model.tokenizer.id_of("a"), model.tokenizer.id_of("b")
    rule = grammar("byte-level", regex_rules("a|b[ab]")).filter(1)
    for first, count in ((a, 1), (b, 2)):
        stepping = steps(model.model, [7], sampler=Sampler([rule, Temperature(0.0)], 0), max_new_tokens=9)
        next(stepping)
        assert first is not None
        assert a is not None
        assert len(list(sent(stepping, [first, a, a]))) == count - 1


def sent(stepping: Generator[Step, int | None, None], tokens: list[int]) -> Iterator[Step]:
    """The steps if ``tokens`` replace the chosen tokens."""
    for token in tokens:
        try:
            yield stepping.send(token)
        except StopIteration:
            return


# --- with the sampler, speculative decoding and views ---


def generate(
    model: LoadedModel, rules: str, count: int, seed: int, proposer: Proposer | None = None, text: str = "the mat"
) -> tuple[Generation, list[int]]:
    prompt = prompt_of(model.tokenizer, text)
    filters: list[Filter] = [Grammar(model, rules).filter(len(prompt)), closing(model), Temperature(2.0)]
    generation = Generation(
        model,
        prompt,
        sampler=Sampler([*model.vocabulary_filter(), *filters], seed),
        max_new_tokens=count,
        proposer=proposer,
    )
    return generation, [step.token for step, _ in generation]


@pytest.mark.parametrize("stops", [None, ()], ids=["stops", "no stops"])
@pytest.mark.parametrize(
    "rules", [json_rules(PERSON), regex_rules("(the cat |the mat )*sat"), choice_rules(CHOICES[1])]
)
def test_speculative_decoding_changes_nothing(stops: tuple[int, ...] | None, rules: str) -> None:
    model = loaded("byte-level", stops)
    other = random_model(model.model.config, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    accepted = 0
    for seed in range(3):
        plain, tokens = generate(model, rules, 60, seed)
        for proposer in (PromptLookup(), DraftModel(model.model), DraftModel(other)):
            speculative, same = generate(model, rules, 60, seed, proposer)
            assert (same, speculative.text, speculative.finish) == (tokens, plain.text, plain.finish)
            accepted += proposer.accepted
    assert accepted


@pytest.mark.parametrize(
    "after",
    [[Temperature(0.0)], [TopK(1)], [RepetitionPenalty(9.0), Temperature(5.0)], [TopP(0.01)], [LogitBias({5: 50.0})]],
    ids=lambda after: after[0].name,
)
def test_other_filters_choose_among_valid_tokens(after: list[Filter]) -> None:
    model = loaded("byte-level")
    for seed in range(3):
        rule = Grammar(model, choice_rules(CHOICES[0])).filter(1)
        sampler = Sampler([rule, *after], seed)
        found = [s.token for s in steps(model.model, [7], sampler=sampler, max_new_tokens=9, stop_ids=model.stop_ids)]
        assert model.tokenizer.decode(found) in CHOICES[0]


def test_a_bias_that_bans_every_valid_token() -> None:
    model = loaded("byte-level")
    sampler = Sampler(
        [Grammar(model, choice_rules(["b"])).filter(1), LogitBias({model.tokenizer.id_of("b"): -torch.inf})], 0
    )  # type: ignore[dict-item]
    with pytest.raises(LlmcliError, match="bans every possible token"):
        sampler.choose(torch.zeros(model.model.config.vocab_size), [7])


def test_the_view_of_a_step_shows_what_the_grammar_removed() -> None:
    model, choices = loaded("byte-level"), ["cat", "mat"]
    rule = Grammar(model, choice_rules(choices)).filter(1)
    sampler = Sampler([*model.vocabulary_filter(), rule, TopK(2)], 3)
    (step,) = steps(model.model, [7], sampler=sampler, max_new_tokens=1)
    report = step_report(step, sampler, model.tokenizer, prompt_ids=[7], context_ids=[7], top=4, temperatures=[0.5])
    left = {id for id in model.tokenizer.ids if any(c.startswith(model.tokenizer.token_text(id)) for c in choices)}
    probs = step.logits.softmax(-1)
    _, stage, _ = report.sampler
    assert (stage.name, stage.value, stage.kept) == ("grammar", None, len(left))
    known = float(probs[: model.tokenizer.size].sum())  # the grammar runs after the filter of unused rows
    assert stage.removed_mass == pytest.approx(1 - float(probs[sorted(left)].sum()) / known, abs=1e-5)
    assert [row.cut for row in report.candidates if row.id not in left] == ["grammar"] * 4
    assert len([row for row in report.candidates if row.cut is None]) == 2  # both valid tokens, however improbable
    assert report.check.ok
    assert sum(report.columns[0].probs.values()) == pytest.approx(1, abs=1e-5)


def test_other_temperatures_run_after_bias_and_grammar() -> None:
    model = loaded("byte-level")
    bias = LogitBias({id: 2.0 for id in (model.tokenizer.id_of("c"),) if id is not None})
    front: list[Filter] = [*model.vocabulary_filter(), Grammar(model, choice_rules(["cat", "mat"])).filter(1), bias]
    (step,) = steps(model.model, [7], sampler=Sampler(front, 3), max_new_tokens=1)
    report = step_report(
        step, Sampler(front, 3), model.tokenizer, prompt_ids=[7], context_ids=[7], top=4, temperatures=[0.5]
    )
    (column,) = [column for column in report.columns if column.temperature == 0.5]
    expected = Sampler([*front, Temperature(0.5)], 3).final(step.logits, [7])
    assert column.probs == pytest.approx({id: float(expected[id]) for id in column.probs})


# --- tokenizers ---


def test_tiny_random_models_with_letters_as_tokens(tiny: TinyFactory) -> None:
    """A vocabulary of single characters, and logits between 1 and 10."""
    chars = sorted(set('abcdefghijklmnopqrstuvwxyzABCDEF0123456789 {}[]":,.-+\\/_'))
    fast = FastTokenizer(models.BPE({c: n + 4 for n, c in enumerate(chars)} | {f"<{n}>": n for n in range(4)}, []))
    fast.decoder = decoders.Fuse()
    fast.add_special_tokens([f"<{n}>" for n in range(4)])
    for case in ("llama", "gpt2"):
        model = opened(Tokenizer(fast, "letters"), tiny(case).load())
        assert model.model.config.vocab_size == VOCAB > model.tokenizer.size
        for seed, schema in enumerate([PERSON, SCHEMAS[13], SCHEMAS[9]]):
            generation, _ = generate(model, json_rules(schema), 100, seed, text="a")
            assert generation.valid
            assert fits(json.loads(generation.text), schema)


def test_a_space_that_the_tokenizer_drops_is_not_part_of_the_text() -> None:
    """SentencePiece's decoder drops a space at the beginning of a text: " yes" cannot be generated there."""
    model = loaded("sentencepiece")
    rules = grammar("sentencepiece", choice_rules([" the", "mat"]))
    assert {write(rules, model, seed, "")[0] for seed in range(8)} == {"mat"}
    assert {write(rules, model, seed, "cat")[0] for seed in range(8)} == {" the", "mat"}


@pytest.mark.parametrize("folder", REAL, ids=lambda path: path.name)
def test_a_grammar_does_not_change_the_text_of_real_tokenizers(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    shape = config(tokenizer.size + PADDED, (2,))
    with torch.device("meta"):
        model = opened(tokenizer, Transformer(shape))
    rule = Grammar(model, json_rules(PERSON)).filter(1)
    text = json.dumps({"name": "Zoë🙂", "age": 47, "tags": ["a b", "日本"]}, ensure_ascii=False)
    ids = [tokenizer.encode("x")[-1]]
    own = [id for id in tokenizer.encode("x" + text) if id not in tokenizer.special_ids]
    zeros = torch.zeros(shape.vocab_size)
    written = tokenizer.decode([*ids])
    own = own[len(ids) :] if tokenizer.decode(own[: len(ids)]) == written else []
    assert own
    for token in own:
        assert rule.ending(ids) == "not yet"
        assert torch.isfinite(rule(zeros, ids)[token])
        ids.append(token)
    assert rule.ending(ids) == "must"
    assert tokenizer.decode(ids) == written + text


def test_a_tokenizer_that_separates_words() -> None:
    """WordPiece puts a space before every token that begins a word; such tokens spell " cat", not "cat"."""
    fast = FastTokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.decoder = decoders.WordPiece()
    fast.train_from_iterator(["the cat sat"], trainers.WordPieceTrainer(special_tokens=["[UNK]"], show_progress=False))
    tokenizer = Tokenizer(fast, "pieces")
    model = opened(tokenizer, random_model(config(tokenizer.size), device=CPU, dtype=torch.float32))
    for seed in range(4):
        assert write(Grammar(model, choice_rules([" cat", " sat"])), model, seed, "the")[0] in (" cat", " sat")


def test_a_tokenizer_whose_tokens_do_not_add_up_is_rejected() -> None:
    fast = FastTokenizer(models.BPE({letter: n for n, letter in enumerate("cat")}, []))
    fast.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ca", "x")])
    model = opened(Tokenizer(fast, "pieces"), random_model(config(3), device=CPU, dtype=torch.float32))
    with pytest.raises(LlmcliError, match="do not work with the tokenizer of pieces"):
        Grammar(model, choice_rules(["cat"]))


def test_a_token_beyond_the_librarys_limit_is_never_chosen() -> None:
    pieces = ["a", "a" * MAX_TOKEN_BYTES, "a" * (MAX_TOKEN_BYTES + 1)]
    fast = FastTokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, []))
    fast.decoder = decoders.Fuse()
    model = opened(Tokenizer(fast, "long"), random_model(config(3), device=CPU, dtype=torch.float32))
    left = Grammar(model, regex_rules("a+")).filter(0)(torch.zeros(3))
    assert torch.isfinite(left).tolist() == [True, True, False]


def test_a_text_that_no_token_can_spell() -> None:
    model = loaded("unigram")
    the = model.tokenizer.encode("x the")[-2]
    assert model.tokenizer.token_bytes(the) == b" the"
    rule = grammar("unigram", regex_rules(" the#")).filter(0)
    with pytest.raises(LlmcliError, match="allows no token of this model at this point"):
        rule(torch.zeros(model.model.config.vocab_size), [the])


def test_a_text_that_does_not_fit() -> None:
    model = loaded("byte-level")
    rule = grammar("byte-level", choice_rules(["cat"])).filter(0)
    wrong, right = model.tokenizer.id_of("m"), model.tokenizer.id_of("c")
    assert wrong is not None
    assert right is not None
    with pytest.raises(LlmcliError, match="does not fit the grammar"):
        rule(torch.zeros(model.model.config.vocab_size), [wrong])
    assert rule.ending([right]) == "not yet"  # the filter can still be used


# --- invalid grammars ---


@pytest.mark.parametrize(
    ("build", "given", "reason"),
    [
        (json_rules, False, "allows nothing"),
        (json_rules, [1], "must be an object"),
        (json_rules, {"x-guidance": 3}, "x-guidance"),
        (json_rules, {"type": "foo"}, "cannot be used: Invalid type: foo"),
        (json_rules, {"type": "\x1b[2J\n"}, "Invalid type: ?[2J"),
        (json_rules, {"not": {}}, 'Unimplemented keys: ["not"]'),
        (json_rules, {"x-guidance": {"lenient": True}, "not": {}}, 'Unimplemented keys: ["not"]'),
        (json_rules, {"minimum": 5, "maximum": 3, "type": "integer"}, "Unsatisfiable"),
        (json_rules, {"pattern": "(", "type": "string"}, "unclosed group"),
        (json_rules, {"oneOf": [{"type": "string"}, {"minLength": 2}]}, "oneOf constraints are not supported"),
        (regex_rules, "", "is empty"),
        (regex_rules, "a(", "unclosed group"),
        (regex_rules, "a\\", "single backslash"),
        (regex_rules, r"\bab", "lookarounds not supported"),
        (regex_rules, "(?=x)", "look-around"),
        (regex_rules, "\udcff", "not valid Unicode"),
        (choice_rules, [], "no choices"),
        (choice_rules, ["a", ""], "empty"),
        (choice_rules, ["a", "b", "a"], "'a' is given twice"),
        (choice_rules, ["\udcff"], "not valid Unicode"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_invalid_grammars_are_errors(build: Callable[[Any], str], given: Any, reason: str) -> None:
    with pytest.raises(LlmcliError) as caught:
        build(given)
    assert reason in caught.value.message
    assert "\n" not in str(caught.value)
    assert (caught.value.exit_code, "%llguidance" in str(caught.value)) == (2, False)


def test_a_schema_can_choose_its_whitespace() -> None:
    model, schema = loaded("byte-level"), {"x-guidance": {"whitespace_flexible": False, "item_separator": ","}}
    rule = Grammar(model, json_rules({"type": "array", "items": {"const": 1}, **schema})).filter(0)
    ids = [id for char in "[1,1]" if (id := model.tokenizer.id_of(char)) is not None]
    assert rule.ending(ids) == "must"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(LlmcliError, match="the library llguidance is not installed") as caught:
        choice_rules(["a"])
    assert caught.value.kind == "no-llguidance"
