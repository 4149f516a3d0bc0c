"""``tour``: how a language model works, in a few sentences and a view at each stop, with the loaded model's numbers.

Whatever the sentences say about the text and the model is computed, or they say otherwise. Each stop fits a terminal
of 80 columns and 24 lines, so that its title stays visible.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TextIO

from llmcli import explain
from llmcli.render.generation import print_probabilities
from llmcli.render.marks import bar_cell
from llmcli.render.table import Cell, Column, number_cell, print_table, probability_cell
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import one_line, token_label
from llmcli.render.views.attend import is_sink
from llmcli.render.views.lens import print_lens
from llmcli.render.views.neighbours import print_nearest
from llmcli.render.views.query_key_value import print_matches
from llmcli.render.views.step import print_by_temperature, print_chosen, print_step_check, stage_label
from llmcli.render.views.tokens import print_token_table
from llmcli.render.views.why import print_parts, print_why_end

WIDTH = 78
EXCERPT = 48  # characters shown of a text
ROWS = 6  # of most tables
TOKENS = 10  # rows of the table of tokens
FAR = 0.2  # the centered cosine below which no token is called close


def print_tour(report: explain.TourReport, stream: TextIO) -> None:
    """Print all stops, one after another, and the check of them all."""
    for number in range(len(TOUR_STOPS)):
        print_tour_stop(report, stream, number)
    print_check(report.check, stream)


def print_tour_stop(report: explain.TourReport, stream: TextIO, number: int) -> None:
    """Print one stop, counted from 0: its title, its sentences, and its view."""
    title, show = TOUR_STOPS[number]
    print_line(f"\n{number + 1}/{len(TOUR_STOPS)}  {title}", stream, "bold")
    show(report, stream)


def _paragraph(text: str, stream: TextIO) -> None:
    print_line(textwrap.fill(" ".join(text.split()), WIDTH), stream)


def _introduction(text: str, stream: TextIO) -> None:
    _paragraph(text, stream)
    print_line("", stream)


def ending_of(text: str) -> str:
    """Return the end of a text, on one line."""
    return ("…" if len(text) > EXCERPT else "") + one_line(text[-EXCERPT:])


def _beginning_of(text: str) -> str:
    """Return the beginning of a text, on one line."""
    return one_line(text[:EXCERPT]) + ("…" if len(text) > EXCERPT else "")


def _tokens(report: explain.TourReport, stream: TextIO) -> None:
    _introduction(
        f"""A language model does not read letters. First, a tokenizer cuts the text into tokens: pieces from a fixed
        vocabulary of {report.step.vocabulary}. Each has a number, its id. Common words are usually one token, rare
        words several. Below, · is a space. “{_beginning_of(report.text)}” becomes:""",
        stream,
    )
    print_token_table(report.tokens, stream, top=TOKENS if len(report.tokens.tokens) <= TOKENS else TOKENS - 1)
    print_check(report.tokens.check, stream)


def _vectors(report: explain.TourReport, stream: TextIO) -> None:
    vectors = report.vectors
    word, nearest = token_label(vectors.terms[0].piece), vectors.neighbours[0]
    numbers = ", ".join(f"{value:.2f}" for value in vectors.vector[:5])
    label, cosine = token_label(nearest.piece), f"{nearest.centred:.2f}"
    if nearest.centred >= FAR:
        closest = f"In this model, the token closest to {word} is {label}, with a centered cosine of {cosine}:"
    else:
        closest = f"In this model, no token is close to {word}: the first, {label}, has a centered cosine of {cosine}."
    _introduction(
        f"""Each id is looked up in a table, the embedding, and becomes a vector of {vectors.size} numbers, learned in
        training: {word} is [{numbers}, …]. A single number means nothing by itself, but directions do: tokens that
        are used similarly get vectors that point in similar directions. Their cosine is 1 for the same direction and 0
        for unrelated ones. {closest}""",
        stream,
    )
    print_nearest(vectors, stream, top=ROWS)
    print_line("centered: the mean of all tokens, which they share, is subtracted first.", stream, "dim")
    print_check(vectors.check, stream)


def _position(report: explain.TourReport, stream: TextIO) -> None:
    how = "Here the model adds another vector to that of stop 2, learned for the token's position."
    if report.position.turns:
        without = f" ({report.unrotated} of {report.layers} layers do without.)" if report.unrotated else ""
        how = f"""The vector of stop 2 has no position. Order enters in attention, the next stop, where tokens find each
        other through two more vectors, a query and a key. Both are rotated, one pair of numbers at a time, by an angle
        that grows with the position: some pairs fast, some slowly. How well a query and a key match then depends on
        how far apart their tokens are.{without}"""
    forwards, backwards = report.position.in_order, report.position.reversed
    same = forwards.piece.id == backwards.piece.id
    effect = (
        f"In reverse, the same tokens lead to the same most probable next token, with p {backwards.p:.2f}"
        f" instead of {forwards.p:.2f}."
        if same
        else "In reverse, the same tokens lead to a different next token."
    )
    _introduction(f"“Dog bites man” is not “man bites dog”: order matters. {how} {effect}", stream)
    print_position(report.position, stream)


def _attention(report: explain.TourReport, stream: TextIO) -> None:
    _introduction(
        f"""So far, each token knows only itself. In attention, it asks the tokens before it. Three learned matrices
        turn each vector into a query (what it looks for), a key (what it can be found by) and a value (what it passes
        on). The products of a query with the keys are scores; softmax turns them into weights that sum to 1; the
        values, times the weights, are added to the token's vector. One of {report.heads} heads in each of
        {report.layers} layers:""",
        stream,
    )
    print_matches(report.head_at, stream, top=ROWS - 2)
    if is_sink(report.attention):
        share = f"{report.attention.sources[0].mean:.0%}"
        print_line(f"Over all heads, the first token gets {share}: heads that find nothing look there.", stream)
    print_check(report.head_at.check, stream)


def _layers(report: explain.TourReport, stream: TextIO) -> None:
    _introduction(
        f"""A layer consists of attention and a feed-forward network (MLP), which works on each token by itself and
        holds much of what the model knows. Each adds its result to the token's vector, in {report.layers} layers one
        after another. Stop after each layer, and ask for the token after “{ending_of(report.begun)}”:
        {_how_it_forms(report)}""",
        stream,
    )
    print_lens(report.lens, stream, top=ROWS - 1)


def _how_it_forms(report: explain.TourReport) -> str:
    """Return the sentence that says how the answer forms from layer to layer, or that it does not."""
    rows, target = report.lens.rows, token_label(report.lens.target)
    first, last, best = rows[0], rows[-1], max(rows, key=lambda row: row.p)
    end = probability_cell(last.p).shown
    if report.forms:
        return (
            f"the answer forms. After the embedding, {target} has only rank {first.rank}; from layer "
            f"{report.first_from} on it has rank 0, the highest, and at the end its p is {end}."
        )
    if first.rank == 0:
        return f"here nothing has to form, because the embedding alone leads to {target}. At the end its p is {end}."
    if best.p > last.p and report.first_from is not None and best.layer != last.layer:
        where = "the embedding" if best.layer is None else f"layer {best.layer}"
        highest = probability_cell(best.p).shown
        return (
            f"here no answer forms step by step. p of {target}, the answer at the end, is highest after {where}, "
            f"{highest}, and {end} at the end."
        )
    start = probability_cell(first.p, logprob=first.logprob).shown
    return f"here no clear answer forms. p of {target}, the answer at the end, goes from {start} to {end}."


def _probabilities(report: explain.TourReport, stream: TextIO) -> None:
    table = "the table of stop 2 again" if report.tied else "a different table from that of stop 2"
    shown = report.step.candidates[:ROWS]
    _introduction(
        f"""The vector after the last layer is compared with a vector for every token ({table}), which gives each token
        a score, its logit. Softmax turns logits into probabilities p: e to the power of the logit, divided by the sum
        of these powers over all {report.step.vocabulary} tokens. A logit that is higher by 1 means a probability that
        is 2.7 times as large. The most probable tokens after “{ending_of(report.begun)}”:""",
        stream,
    )
    longest = max(row.p for row in shown)
    rows = [
        [Cell(token_label(row)), number_cell(row.logit, 3), probability_cell(row.p), bar_cell(row.p, longest)]
        for row in shown
    ]
    columns = [Column("token", right=False), Column("logit"), Column("p"), Column("", right=False, plain="bar")]
    print_table(columns, rows, stream)
    rest = probability_cell(max(1 - sum(row.p for row in shown), 0.0)).shown
    print_line(f"all other tokens: {rest} in total. Uncertainty (entropy): {report.step.entropy:.2f} bits.", stream)


def _temperature(report: explain.TourReport, stream: TextIO) -> None:
    step = report.step
    others = [stage_label(stage) for stage in step.sampler if stage.name != "temperature"]
    also = (
        f" Other filters, here {', '.join(others)}, act too, so at T=1 p can differ from that of stop 6."
        if others
        else ""
    )
    used = next((column.temperature for column in step.columns if column.used), 1.0)
    drawn = (
        "At temperature 0, as here, there is no draw."
        if step.chosen.u is None
        else f"The random number here is u = {step.chosen.u:.4f}, from seed {step.seed}; the same seed repeats it."
    )
    _introduction(
        f"""The next token is drawn at random, with these probabilities. Before that, temperature T divides the logits:
        below 1, likely tokens become likelier; above 1, unlikely tokens get more of a chance; at 0, the most probable
        token is always chosen. Here, T is {used:g} (marked *). {drawn}{also}""",
        stream,
    )
    print_by_temperature(step, stream, final=True, top=ROWS - 2)
    print_chosen(step, stream)
    print_step_check(step, stream)


def _loop(report: explain.TourReport, stream: TextIO) -> None:
    written = "".join(token.text for token in report.loop)
    _introduction(
        f"""The drawn token is appended to the text, and the loop repeats: this is how all text is generated. What
        attention needs from the earlier tokens, their keys and values, is kept (the KV cache), so each step computes
        only the new token. The loop ends at the latest when the context is full, here at {report.context} tokens. After
        “{ending_of(report.begun)}” the model wrote “{_beginning_of(written)}”:""",
        stream,
    )
    print_probabilities(report.loop[:ROWS], stream)
    print_line("", stream)
    _paragraph(
        """How does the model know what comes next? From training: it read a large text token by token, and each time
        all its numbers were changed a little, so that the actual next token became a little more probable.""",
        stream,
    )


def _why(report: explain.TourReport, stream: TextIO) -> None:
    token, other = (token_label(piece) for piece in (report.why.token, report.why.other))
    head = f"L{report.head_at.layer}.H{report.head_at.head}"
    (part,) = [part for part in report.why.parts if part.name == head]
    _introduction(
        f"""Stop 4 showed where a head looks. What effect does that have? A logit is a sum of what the embedding, each
        head (L0.H1 is head 1 of layer 0) and each MLP wrote. So we can say what pushed {token} above {other}, the
        runner-up: the head of stop 4, {head}, gives {part.difference:+.2f} of
        {report.why.total.difference:+.2f}.""",
        stream,
    )
    print_parts(report.why, stream, top=2)
    print_why_end(report.why, stream)
    print_line("", stream)
    print_line("Explore your own text: llmcli attend, lens, why, explain-step, score, branch.", stream)


def print_position(report: explain.PositionReport, stream: TextIO) -> None:
    """Print the fastest, the middle and the slowest pair of a head, then the predictions in both orders."""
    if report.turns:
        columns = [Column("pair"), Column("degrees per token"), Column("tokens per full turn")]
        rows = [
            [Cell(str(turn.pair)), number_cell(turn.degrees, 3), number_cell(turn.period, 1)] for turn in report.turns
        ]
        print_table(columns, rows, stream)
        print_line("", stream)
    columns = [Column("the same tokens", right=False), Column("predicted next", right=False), Column("p")]
    print_table(columns, [_answer_row("in order", report.in_order), _answer_row("reversed", report.reversed)], stream)
    print_check(report.check, stream)


def _answer_row(name: str, answer: explain.Answer) -> list[Cell]:
    return [Cell(name), Cell(token_label(answer.piece)), probability_cell(answer.p)]


TOUR_STOPS: tuple[tuple[str, Callable[[explain.TourReport, TextIO], None]], ...] = (
    ("Tokens: what the model receives", _tokens),
    ("Vectors: what a token becomes", _vectors),
    ("Position: where a token is", _position),
    ("Attention: what a token takes from others", _attention),
    ("Layers: how the answer forms", _layers),
    ("Probabilities: what comes next", _probabilities),
    ("Temperature: how a token is chosen", _temperature),
    ("The loop: how a text grows", _loop),
    ("Why: the effect of attention", _why),
)
