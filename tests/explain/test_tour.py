"""`tour` for every kind of model, and whether its sentences are true; positions and scores against transformers."""

from __future__ import annotations

import io
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import llmcli
from llmcli.errors import LlmcliError
from llmcli.explain.attention import position_encoding as module
from llmcli.explain.attention import query_key_value
from llmcli.explain.attention.position_encoding import position
from llmcli.explain.attention.query_key_value import match_keys
from llmcli.explain.guided_tour import GENERATED, TourReport, tour
from llmcli.explain.tour_example import answer_forms, first_from, telling_head, telling_word
from llmcli.model.positions import rotation
from llmcli.render.text import token_label
from llmcli.render.views.tour import TOUR_STOPS, print_tour, print_tour_stop
from tests.explain.reference import IDS, blocks, forget, loaded, record_pass
from tests.parity import CLOSE
from tests.render.test_terminal import Tty
from tests.tiny import KINDS, TinyFactory

SHORT = IDS[:12]
TEXT = " ".join(f"w{id}" for id in SHORT)


@pytest.mark.parametrize("name", KINDS)
def test_every_stop_passes_its_check(tiny: TinyFactory, name: str) -> None:
    report = tour(loaded(tiny(name)), TEXT)
    at = report.lens.position
    assert report.check.ok
    assert len(SHORT) // 2 <= at < len(SHORT)
    assert report.attention.position == report.head_at.position == report.why.position == at
    assert list(report.step.context_ids) == SHORT[: at + 1]
    assert report.lens.target.id == report.step.candidates[0].id == report.why.token.id
    assert 1 <= len(report.loop) <= GENERATED
    assert report.loop[0].id == report.step.chosen.id
    plain = io.StringIO()
    print_tour(report, plain)
    text = plain.getvalue()
    assert all(f"{n}/{len(TOUR_STOPS)}  {title}" in text for n, (title, _) in enumerate(TOUR_STOPS, start=1))
    assert text.count("check: ok") >= 8
    claims_hold(report, shown(report))


def shown(report: TourReport) -> list[str]:
    """The text of each stop, with its line breaks as spaces."""
    found = []
    for number in range(len(TOUR_STOPS)):
        stream = io.StringIO()
        print_tour_stop(report, stream, number)
        found.append(" ".join(stream.getvalue().split()))
    return found


def claims_hold(report: TourReport, stops: list[str]) -> None:
    """Whatever the tour says about the answer, the word, the order and the head is so in its numbers."""
    _, vectors, order, attention, layers, _, temperature, _, causes = stops
    rows, target = report.lens.rows, token_label(report.lens.target)
    ranks, ps = [row.rank for row in rows], [row.p for row in rows]
    forms = re.search(r"the answer forms\. After the embedding, (\S+) has only rank (\d+); from layer (\d+) on", layers)
    assert (forms is not None) == report.forms
    if forms is not None:
        layer = int(forms[3])
        assert (forms[1], int(forms[2])) == (target, ranks[0])
        assert ranks[0] > 0
        assert ps[-1] >= 10 * ps[0]
        assert ps[-1] >= 0.5 * max(ps)  # it does not fall away
        assert {row.rank for row in rows if row.layer is not None and row.layer >= layer} == {0}
        assert layer == 0 or rows[layer].rank > 0  # rows[layer] is after the layer before it
    elif "nothing has to form" in layers:
        assert ranks[0] == 0
    elif "no answer forms step by step" in layers:
        assert max(ps) > ps[-1]
    else:
        assert "no clear answer forms" in layers
    nearest = report.vectors.neighbours[0]
    assert ("no token is close" in vectors) == (nearest.centred < 0.2)
    assert f"{token_label(nearest.piece)}, " in vectors
    same = report.position.in_order.piece.id == report.position.reversed.piece.id
    assert ("lead to the same most probable next token" in order) == same
    assert ("lead to a different next token" in order) != same
    first = report.attention.sources[0]
    assert ("Over all heads, the first token gets" in attention) == (first.mean > 1.5 / len(report.attention.sources))
    weights = {key.position: key.weight for key in report.head_at.keys}
    most = re.search(r"It gives ([\d.]+) of its attention to \S+ \(position (\d+)\)", attention)
    assert most is not None
    assert float(most[1]) == pytest.approx(max(weights.values()), abs=0.006)
    assert weights[int(most[2])] == max(weights.values())
    own = [column.temperature for column in report.step.columns if column.used]
    assert f"Here, T is {own[0]:g} (marked *)" in temperature
    name = f"L{report.head_at.layer}.H{report.head_at.head}"
    (part,) = [part for part in report.why.parts if part.name == name]
    assert f"{name}, gives {part.difference:+.2f} of {report.why.total.difference:+.2f}." in causes


def test_an_answer_that_falls_away_or_needs_no_layer_does_not_form(tiny: TinyFactory) -> None:
    report = tour(loaded(tiny("llama")), TEXT)
    row = report.lens.rows[0]

    def with_rows(*pairs: tuple[int, float]) -> TourReport:
        rows = tuple(
            replace(row, layer=n - 1 if n else None, rank=rank, p=p, logprob=math.log(p))
            for n, (rank, p) in enumerate(pairs)
        )
        lens = replace(report.lens, rows=rows)
        return replace(report, lens=lens, forms=answer_forms(lens), first_from=first_from(lens))

    for rows, forms, sentence in (
        (((99, 1e-5), (5, 0.01), (0, 0.3), (0, 0.7)), True, "rank 99; from layer 1 on it has rank 0"),
        (((99, 1e-5), (5, 0.01), (3, 0.3), (0, 0.7)), True, "from layer 2 on"),
        (((99, 1e-5), (0, 0.88), (0, 0.4), (0, 0.05)), False, "is highest after layer 0, 0.8800, and 0.0500 at"),
        (((0, 0.9), (0, 0.9), (0, 0.9)), False, "the embedding alone leads to"),
        (((2, 0.2), (1, 0.2), (0, 0.3)), False, "goes from 0.2000 to 0.3000"),
    ):
        changed = with_rows(*rows)
        assert changed.forms == forms
        stops = shown(changed)
        assert sentence in stops[4]
        claims_hold(changed, stops)


@pytest.mark.parametrize("name", ["shipped", "smollm2", "gemma3"])
def test_the_answer_forms_in_published_models(name: str) -> None:
    """With the built-in sentences; a stop and the pause after it fit 80 columns and 24 lines."""
    folder = os.environ.get("LLMCLI_REAL_MODELS")
    if name != "shipped" and not folder:
        pytest.skip("needs LLMCLI_REAL_MODELS")
    report = tour(llmcli.load() if name == "shipped" else llmcli.load(str(Path(folder or "") / name)))
    assert report.check.ok
    assert report.forms
    assert report.vectors.neighbours[0].centred > 0.3
    claims_hold(report, shown(report))
    assert_each_stop_fits(report)


@pytest.mark.parametrize(
    "text", ["w5 " * 100, "w1 w2 w3", " ".join(f"w{n}" for n in range(60, 90))], ids=["repeated", "short", "long"]
)
def test_every_stop_fits_a_small_terminal(tiny: TinyFactory, text: str) -> None:
    for name in ("llama", "gpt2", "smollm3"):
        assert_each_stop_fits(tour(loaded(tiny(name)), text))


def test_every_stop_of_an_unusual_text_fits_a_small_terminal() -> None:
    model = llmcli.load()
    for text in (
        "Tom was a boy. Lily was a girl. Lily lost her",
        "🙂🙂\u200d🙂 a hen e\u0301",
        "狐狸在河边遇到了一只母鸡。",
    ):
        report = tour(model, text)
        claims_hold(report, shown(report))
        assert_each_stop_fits(report)


def assert_each_stop_fits(report: TourReport) -> None:
    """The title stays visible while the tour waits at its prompt, which takes two lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setenv("TERM", "xterm-256color")
        for number, (title, _) in enumerate(TOUR_STOPS):
            screen = Tty()
            print_tour_stop(report, screen, number)
            lines = screen.getvalue().removeprefix("\n").splitlines()
            assert title in lines[0]
            assert len(lines) + 2 <= 24, "\n".join(lines)


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gemma2", "qwen3", "mistral", "smollm3", "gpt_neox", "cohere-normed", "gpt_oss"]
)
def test_the_scores_of_a_head_lead_to_transformers_weights(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    recorded = record_pass(case, IDS)
    for layer in range(len(recorded.attention)):
        report = match_keys(loaded(case), IDS, (layer, 1))
        assert report.check.ok
        expected = recorded.attention[layer][1, -1]
        scores = torch.tensor([-math.inf if key.score is None else key.score for key in report.keys]).double()
        if name == "gpt_oss":
            scores = torch.cat((scores, blocks(case)[layer].self_attn.sinks[1:2].detach().double()))
        assert float((scores.softmax(dim=-1)[: len(expected)] - expected).abs().max()) <= CLOSE
        weights = torch.tensor([key.weight for key in report.keys])
        assert float((weights - expected).abs().max()) <= CLOSE
        for key in report.keys:
            assert key.copied == pytest.approx(key.weight * key.size, rel=1e-6)


def test_other_scores_than_the_layer_used_fail_the_check(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    right = query_key_value._scores
    monkeypatch.setattr(query_key_value, "_scores", lambda *arguments: right(*arguments) * 1.1)
    assert not match_keys(loaded(tiny("llama")), IDS, (0, 0)).check.ok


def test_the_head_of_the_tour_looks_at_another_token_and_adds_most(tiny: TinyFactory) -> None:
    report = tour(loaded(tiny("llama")), TEXT)
    added = {part.name: part.difference for part in report.why.parts}

    def chosen(*weights: float) -> str:
        """The head for a text with these largest weights; head n of layer 0 has the n-th."""
        sources = tuple(
            replace(report.attention.sources[0], position=n, layer=0, head=n, weight=w) for n, w in enumerate(weights)
        )
        causes = replace(
            report.why,
            parts=tuple(
                replace(report.why.parts[0], name=f"L0.H{n}", difference=float(n == 3)) for n in range(len(weights))
            ),
        )
        layer, head = telling_head(replace(report.attention, sources=sources), causes)
        return f"L{layer}.H{head}"

    assert chosen(1.0, 0.9, 0.4, 0.5, 1.0) == "L0.H3"  # it adds most
    assert chosen(1.0, 0.9, 0.4, 0.1, 1.0) == "L0.H1"  # it adds nothing, but looks at a token
    assert chosen(1.0, 0.1, 0.2, 0.1, 1.0) == "L0.H2"  # no head looks at a token
    assert chosen(1.0, 0.2) in ("L0.H0", "L0.H1")  # nothing is in between
    assert f"L{report.head_at.layer}.H{report.head_at.head}" in added


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-linear", "llama-llama3", "llama-yarn", "gpt_neox", "cohere"])
def test_turns_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    (frequencies,) = [buffer for name, buffer in case.reference.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    report = position(loaded(case), SHORT)
    assert [turn.pair for turn in report.turns] == sorted({0, len(frequencies) // 2, len(frequencies) - 1})
    for turn in report.turns:
        assert math.radians(turn.degrees) == pytest.approx(float(frequencies[turn.pair]), rel=1e-5)
        assert turn.degrees * turn.period == pytest.approx(360, rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_both_orders_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    for ids, start in ((SHORT, 0), ([1, *SHORT], 1)):  # 1 is the BOS token, which stays first
        report = position(loaded(case), ids)
        assert report.check.ok
        assert bool(report.turns) == (name != "gpt2")
        for answer, order in (
            (report.in_order, ids),
            (report.reversed, [*ids[:start], *reversed(ids[start:])]),
        ):
            forget(case)
            with torch.no_grad():
                probs = case.reference(torch.tensor([order])).logits[0, -1].double().softmax(-1)
            assert answer.piece.id == int(probs.argmax())
            assert abs(answer.p - float(probs.max())) <= CLOSE


def test_rotations_that_do_not_encode_distance_fail_the_check(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def squared(frequencies: torch.Tensor, start: int, *rest: object) -> object:
        return rotation(frequencies, start * start, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "rotation", squared)
    assert not position(loaded(tiny("llama")), SHORT).check.ok


def test_wrong_learned_positions_fail_the_check(tiny: TinyFactory) -> None:
    case = tiny("gpt2")
    model = case.load()
    right = model.embed
    model.embed = lambda ids, past: right(ids, past + 1)
    assert not position(loaded(case, model), SHORT).check.ok


def test_the_word_has_close_neighbours_that_are_other_words() -> None:
    """By brute force over the shipped model's embedding."""
    model = llmcli.load()
    ids = model.prompt_ids("The old king found a treacherous path yesterday")
    table = model.model.embedding(torch.arange(model.tokenizer.size)).double()
    table = table - table.mean(0)
    texts = {id: model.tokenizer.token_text(id) for id in range(model.tokenizer.size)}

    def is_word(text: str) -> bool:
        return len(text) > 4 and text[0] == " " and text[1:].isalpha()

    scores = {}
    for id in ids:
        if is_word(texts[id]):
            cosines = torch.nn.functional.cosine_similarity(table, table[id][None])
            near = [n for n in cosines.argsort(descending=True).tolist() if n != id][:8]
            others = [n for n in near if is_word(texts[n]) and texts[n].lower() != texts[id].lower()]
            scores[id] = sum(float(cosines[n]) for n in others)
    assert len(scores) > 2
    assert telling_word(model, ids) == max(scores, key=lambda id: scores[id])


def test_a_text_without_words_has_a_word_all_the_same(tiny: TinyFactory) -> None:
    opened = loaded(tiny("llama"))
    assert telling_word(opened, [5, 7, 5]) in (5, 7)


def test_a_text_of_one_word_is_an_error(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="few words"):
        tour(loaded(tiny("llama")), "w5")
