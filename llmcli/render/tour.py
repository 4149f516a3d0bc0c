"""The tour for the eye: at each stop a few sentences, then the view, with the numbers of the model at hand."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from llmcli.render.attend import print_attend
from llmcli.render.generation import print_probabilities
from llmcli.render.lens import print_lens
from llmcli.render.neighbours import print_neighbours
from llmcli.render.step import print_candidates, print_temperatures
from llmcli.render.table import Cell, Column, number_cell, print_table, probability_cell
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import escape_controls, token_label
from llmcli.render.tokens import print_tokenization

if TYPE_CHECKING:
    from llmcli.explain.guided_tour import TourReport
    from llmcli.explain.position_encoding import Answer, PositionReport

WIDTH = 78
SOURCES = 12  # rows of the attention's table


def print_tour(report: TourReport, stream: TextIO) -> None:
    """All stops, one after the other."""
    for number in range(len(TOUR_STOPS)):
        print_tour_stop(report, stream, number)
    print_check(report.check, stream)


def print_tour_stop(report: TourReport, stream: TextIO, number: int) -> None:
    """One stop: its name, and what there is to see."""
    name, show = TOUR_STOPS[number]
    print_line(f"\n{number + 1}/{len(TOUR_STOPS)}  {name}", stream, "bold")
    show(report, stream)


def _tell(text: str, stream: TextIO) -> None:
    """A paragraph."""
    print_line("\n" + textwrap.fill(" ".join(text.split()), WIDTH) + "\n", stream)


def _tokens(report: TourReport, stream: TextIO) -> None:
    _tell(
        f"""A language model reads no letters. A tokenizer first cuts the text into tokens, pieces from a fixed list:
        here {report.step.vocabulary} of them, learnt from text, each with a number, its id. Common words are one
        token, rare ones several. Below, · is a space. Here is “{escape_controls(report.text)}”:""",
        stream,
    )
    print_tokenization(report.tokens, stream)


def _vectors(report: TourReport, stream: TextIO) -> None:
    word = report.vectors.terms[0].piece
    _tell(
        f"""Each id is looked up in a table and becomes a vector: {report.vectors.size} numbers, learnt in training.
        No single number means anything, but directions do: tokens that are used alike end up with vectors that
        point the same way. A cosine of 1 is the same direction, 0 none in common. Near
        {token_label(word.text, word.bytes)}:""",
        stream,
    )
    print_neighbours(report.vectors, stream)


def _position(report: TourReport, stream: TextIO) -> None:
    how = (
        """The model turns each token's vectors by an angle that grows with its position, some pairs of numbers fast
        and some slowly, so that two tokens can tell how far they are apart."""
        if report.position.turns
        else "The model adds to each token's vector another one, learnt for its position."
    )
    _tell(f"“Dog bites man” is not “man bites dog”: the order must count. {how}", stream)
    print_position(report.position, stream)


def _attention(report: TourReport, stream: TextIO) -> None:
    _tell(
        f"""So far each token knows only itself. In attention it looks back at the tokens before it and takes from
        some of them what it needs. {report.heads} heads in each of {report.layers} layers do so, each with an eye
        for something else. A weight is the share of its attention that a head gives to a token; the first token gets
        much of it from heads that find nothing to look for.""",
        stream,
    )
    print_attend(report.attention, stream, top=SOURCES, sink=True)


def _layers(report: TourReport, stream: TextIO) -> None:
    target = token_label(report.lens.target.text, report.lens.target.bytes)
    _tell(
        f"""A layer is attention, which moves information between tokens, and then a feed-forward layer (MLP), which
        works on each token by itself and holds much of what the model knows. Each adds its part to the token's
        vector; {report.layers} layers do so in turn. If we stop after each one and ask for the next token, we see the
        answer form: here {target}.""",
        stream,
    )
    print_lens(report.lens, stream)


def _probabilities(report: TourReport, stream: TextIO) -> None:
    _tell(
        """The vector after the last layer is compared with that of every token: a score each, the logit. Softmax makes
        probabilities of the logits: e to the logit, divided by the sum of them all. A step of 1 in the logit is a
        factor of 2.7 in the probability. (The columns to the right of p are for the next stop.)""",
        stream,
    )
    print_candidates(report.step, stream)


def _temperature(report: TourReport, stream: TextIO) -> None:
    _tell(
        f"""The next token is drawn at random, by these probabilities. Before that, temperature divides the logits:
        below 1 the likely become likelier, at 0 the best is always taken, above 1 the unlikely get their chance. The
        random number is u = {report.step.chosen.u or 0:.4f}, from seed {report.step.seed}: the same seed draws the
        same text again. Other filters, such as top-p, bar the least likely altogether.""",
        stream,
    )
    print_temperatures(report.step, stream)


def _loop(report: TourReport, stream: TextIO) -> None:
    written = "".join(token.text for token in report.loop)
    _tell(
        f"""The token drawn is put behind the text, and all begins again: that is the whole loop. What was read is
        kept (the KV cache), so each step only computes the new token, as long as there is room: this model's context
        is {report.context} tokens. Behind “{escape_controls(report.begun)}” it wrote “{escape_controls(written)}”:""",
        stream,
    )
    print_probabilities(report.loop, stream)
    _tell(
        """And where does it know that from? From training: it read a large text token by token, and each time all its
        numbers were moved a little, so that the token that did come would have been more probable (pre-training).
        More of the same with dialogues or tasks is fine-tuning. Now look for yourself, with text of your own:
        llmcli tokenize, neighbours, attend, lens, why, explain-step, score, branch; and llmcli train makes a model.""",
        stream,
    )


def print_position(report: PositionReport, stream: TextIO) -> None:
    """The pairs of a head that turn fastest, in the middle and slowest; then the answers in both orders."""
    if report.turns:
        columns = [Column("pair"), Column("degrees a token"), Column("tokens a turn")]
        rows = [
            [Cell(str(turn.pair)), number_cell(turn.degrees, 3), number_cell(turn.period, 1)] for turn in report.turns
        ]
        print_table(columns, rows, stream)
        print_line("", stream)
    columns = [Column("the same tokens", right=False), Column("next would be", right=False), Column("p")]
    print_table(columns, [_answer_row("in order", report.in_order), _answer_row("in reverse", report.reversed)], stream)
    print_check(report.check, stream)


def _answer_row(name: str, answer: Answer) -> list[Cell]:
    return [Cell(name), Cell(token_label(answer.piece.text, answer.piece.bytes)), probability_cell(answer.p)]


TOUR_STOPS: tuple[tuple[str, Callable[[TourReport, TextIO], None]], ...] = (
    ("Tokens: what the model receives", _tokens),
    ("Vectors: what a token becomes", _vectors),
    ("Position: where it stands", _position),
    ("Attention: what it takes from the others", _attention),
    ("Layers: how the answer forms", _layers),
    ("Probabilities: what comes next", _probabilities),
    ("Temperature: how it chooses", _temperature),
    ("The loop: how a text grows", _loop),
)
