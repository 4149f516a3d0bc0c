"""``tour``: how a language model works, in a few sentences and a view at each stop, with the loaded model's numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TextIO

from llmcli import explain
from llmcli.render.attend import print_attend
from llmcli.render.generation import print_probabilities
from llmcli.render.lens import print_lens
from llmcli.render.neighbours import print_neighbours
from llmcli.render.step import print_candidates, print_temperatures
from llmcli.render.table import Cell, Column, number_cell, print_table, probability_cell
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import escape_controls, token_label
from llmcli.render.tokens import print_tokenization

WIDTH = 78
SOURCES = 12  # positions in the table of attention


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
    print_line("\n" + textwrap.fill(" ".join(text.split()), WIDTH) + "\n", stream)


def _tokens(report: explain.TourReport, stream: TextIO) -> None:
    _paragraph(
        f"""A language model does not read letters. First, a tokenizer cuts the text into tokens: pieces from a fixed
        vocabulary of {report.step.vocabulary}, which was learned from text. Each token has a number, its id. Common
        words are one token, rare words several. Below, · is a space. The tokens of “{escape_controls(report.text)}”:
        """,
        stream,
    )
    print_tokenization(report.tokens, stream)


def _vectors(report: explain.TourReport, stream: TextIO) -> None:
    word = report.vectors.terms[0].piece
    _paragraph(
        f"""Each id is looked up in a table and becomes a vector of {report.vectors.size} numbers, learned in training.
        A single number means nothing by itself, but directions do: tokens that are used alike get vectors that point
        in similar directions. Their cosine is 1 for the same direction and 0 for unrelated ones. The tokens closest
        to {token_label(word)}:""",
        stream,
    )
    print_neighbours(report.vectors, stream)


def _position(report: explain.TourReport, stream: TextIO) -> None:
    how = (
        """The model takes the numbers of a token's vectors in pairs and rotates each pair by an angle that grows with
        the token's position: some pairs fast, some slowly. How well two vectors match then depends on how far apart
        their tokens are."""
        if report.position.turns
        else "The model adds another vector to each token's own, learned for its position."
    )
    _paragraph(f"“Dog bites man” is not “man bites dog”: order matters. {how}", stream)
    print_position(report.position, stream)


def _attention(report: explain.TourReport, stream: TextIO) -> None:
    _paragraph(
        f"""So far, each token knows only itself. In attention, a token looks back at the tokens before it and copies
        what it needs from some of them. {report.heads} heads in each of {report.layers} layers do this, each looking
        for something different. A weight is the share of its attention that a head gives to a token. The first token
        gets a lot from heads that find nothing relevant.""",
        stream,
    )
    print_attend(report.attention, stream, top=SOURCES)


def _layers(report: explain.TourReport, stream: TextIO) -> None:
    target = token_label(report.lens.target)
    _paragraph(
        f"""A layer consists of attention, which moves information between tokens, and a feed-forward network (MLP),
        which works on each token by itself and holds much of what the model knows. Each adds its result to the
        token's vector, in {report.layers} layers one after another. If we stop after each layer and ask for the next
        token, we see the answer form: here {target}.""",
        stream,
    )
    print_lens(report.lens, stream)


def _probabilities(report: explain.TourReport, stream: TextIO) -> None:
    _paragraph(
        """The vector after the last layer is compared with the vector of every token, which gives each token a score,
        its logit. Softmax turns logits into probabilities: e to the power of the logit, divided by the sum of
        these powers over all tokens. A logit that is higher by 1 means a probability that is 2.7 times as large. (The
        columns to the right of p belong to the next stop.)""",
        stream,
    )
    print_candidates(report.step, stream)


def _temperature(report: explain.TourReport, stream: TextIO) -> None:
    _paragraph(
        f"""The next token is drawn at random, with these probabilities. Before that, temperature divides the logits:
        below 1, likely tokens become likelier; above 1, unlikely tokens get more of a chance; at 0, the most probable
        token is always chosen. The random number here is u = {report.step.chosen.u or 0:.4f}, from seed
        {report.step.seed}; the same seed draws the same text again. Other filters, such as top-p, exclude the least
        likely tokens.""",
        stream,
    )
    print_temperatures(report.step, stream)


def _loop(report: explain.TourReport, stream: TextIO) -> None:
    written = "".join(token.text for token in report.loop)
    _paragraph(
        f"""The drawn token is appended to the text, and the loop repeats: this is how all text is generated. What
        attention needs from the earlier tokens is kept (the KV cache), so each step computes only the new token. The
        loop ends at the latest when the context is full, for this model at {report.context} tokens. After
        “{escape_controls(report.begun)}” the model wrote “{escape_controls(written)}”:""",
        stream,
    )
    print_probabilities(report.loop, stream)
    _paragraph(
        """How does the model know what comes next? From training. It read a large text token by token, and each time
        all its numbers were changed a little, so that the actual next token became a little more probable
        (pre-training). More of the same, with dialogues or tasks, is fine-tuning. Now explore a text of your own:
        llmcli tokenize, neighbours, attend, lens, why, explain-step, score, branch. To make a model, run llmcli
        train.""",
        stream,
    )


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
)
