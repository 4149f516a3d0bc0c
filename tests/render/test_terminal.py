"""What a terminal and a file receive: whole tables at every width, literal text, no control characters."""

from __future__ import annotations

import io
import math
import os
import re
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.color import ColorSystem
from rich.style import Style
from rich.text import Text

from llmcli.explain.report import Alternative, GeneratedToken, check
from llmcli.explain.sampling_step import StepReport, step_report
from llmcli.explain.tokens.tokenization import Tokenization
from llmcli.generation.filters import filter_chain
from llmcli.generation.samples import Sample
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Step
from llmcli.render.generation import TextWriter, print_probabilities
from llmcli.render.marks import PROBABILITY_BANDS, filled, print_legend, probability_band, sparkline, surprisal_band
from llmcli.render.picture import Picture
from llmcli.render.samples import print_samples
from llmcli.render.table import Cell, Column, number_cell, print_table, probability_cell
from llmcli.render.terminal import animated, console, drawn, note, print_line, printable, styled
from llmcli.render.text import escape_controls, token_label
from llmcli.render.views.step import print_step
from llmcli.render.views.tokens import print_side_by_side, print_tokenization
from llmcli.text.tokenizer import Token, Tokenizer
from llmcli.train.vocabulary import train_tokenizer

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
WIDTHS = (40, 80, 120)


class Tty(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def color_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


at_every_width = pytest.mark.parametrize("width", WIDTHS, indirect=True)


def cells(text: str) -> int:
    """Return the width of a text on a terminal, from Unicode's own data."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def lines_of(stream: io.StringIO, width: int) -> list[str]:
    """Return the lines without colors, after checking that none is wider than the terminal."""
    lines = ESCAPE.sub("", stream.getvalue()).splitlines()
    assert "\x1b" not in "".join(lines)
    assert all(cells(line) <= width for line in lines)
    return lines


def words_of(stream: io.StringIO, width: int) -> list[str]:
    return " ".join(lines_of(stream, width)).split()


# --- single texts ---


def as_token(text: str, data: bytes) -> Token:
    return Token(0, text, data, 0, len(data), False)


@given(st.text())
def test_escaped_text_has_no_control_characters(text: str) -> None:
    shown = escape_controls(text)
    assert not [char for char in shown if unicodedata.category(char) == "Cc" and char not in "\t\n"]
    if not any(unicodedata.category(char) == "Cc" for char in text):
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("a\rb\x07\x00\x08\x7f", "a␍b␇␀␈␡"),
        ("\x9b31m\x85\x80", "<9B>31m<85><80>"),
        ("line\n\ttabbed · é 日本 🙂 \ufffd", "line\n\ttabbed · é 日本 🙂 \ufffd"),
        ("[bold]:smile:", "[bold]:smile:"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert escape_controls(text) == shown
    assert printable(text, Tty()) == shown
    assert printable(text, io.StringIO()) == text


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b" the", "·the"),
        (b"\n\n", "⏎⏎"),
        (b"\t \r\n", "⇥·␍⏎"),
        (b"\x1b[0m", "␛[0m"),
        (b"\xe2\x80", "<E2 80>"),
        (b"a\xe2\x80b\x9f", "a<E2 80>b<9F>"),
        (b" \xf0\x9f", "·<F0 9F>"),
        (b"\xed\xa0\x80", "<ED A0 80>"),
        ("é日🙂".encode(), "é日🙂"),
        (b"[bold]:smile:", "[bold]:smile:"),
        ("\ufffd".encode(), "\ufffd"),  # in the text itself, not from an incomplete character
    ],
)
def test_token_labels(data: bytes, shown: str) -> None:
    assert token_label(as_token(data.decode("utf-8", "replace"), data)) == shown


def test_a_token_without_bytes_is_labeled_by_its_text() -> None:
    assert token_label(as_token("", b"")) == ""
    assert token_label(as_token("<unused>", b"")) == "<unused>"


@settings(max_examples=100)
@given(st.binary(max_size=12))
def test_a_label_is_one_word_without_controls(data: bytes) -> None:
    shown = token_label(as_token(data.decode("utf-8", "replace"), data))
    assert not [char for char in shown if unicodedata.category(char) == "Cc" or char in "\t\n"]
    outside = re.sub(r"<[0-9A-F ]+>", "", shown)
    assert " " not in outside
    assert bool(shown) == bool(data)


@pytest.mark.parametrize(
    ("prob", "sign"),
    [(1.0, "+++"), (0.5, "+++"), (0.4999, "++"), (0.1, "++"), (0.0999, "+"), (0.01, "+"), (0.0099, "-"), (0.0, "-")],
)
def test_probability_bands(prob: float, sign: str) -> None:
    assert probability_band(prob)[1] == sign


def test_a_larger_surprisal_never_has_a_more_likely_band() -> None:
    order = [sign for *_, sign in PROBABILITY_BANDS]
    found = [order.index(surprisal_band(bits / 100)[1]) for bits in range(3000)]
    assert found == sorted(found)
    assert set(found) == {0, 1, 2, 3}


@settings(max_examples=100)
@given(st.floats(0.0, 1.0))
def test_the_bands_in_the_legends_are_those_of_the_marks(prob: float) -> None:
    """The bounds are read from the legends, as a user would."""
    for in_bits, value in ((False, prob), (True, -math.log2(prob) if prob else math.inf)):
        stream = io.StringIO()
        print_legend(stream, in_bits=in_bits)
        bands = re.findall(r"(?:up to )?([\d.]+|above|less)(?: or more)? ([+-]+)", stream.getvalue())
        assert [sign for _, sign in bands] == [sign for *_, sign in PROBABILITY_BANDS]
        bounds = [(math.inf if in_bits else 0.0) if word in ("above", "less") else float(word) for word, _ in bands]
        if min(abs(value - bound) for bound in bounds if math.isfinite(bound)) < 0.01:
            continue  # the legend rounds
        found = next(sign for bound, (_, sign) in zip(bounds, bands, strict=True) if (value <= bound) == in_bits)
        assert found == (surprisal_band(value) if in_bits else probability_band(value))[1]


def test_a_legend_has_the_colors_of_the_marks() -> None:
    stream = Tty()
    print_legend(stream)
    for lowest, style, sign in PROBABILITY_BANDS[1:]:
        part = f"{lowest:g} or more {sign}" if lowest else f"less {sign}"
        assert Style.parse(style).render(part, color_system=ColorSystem.EIGHT_BIT) in stream.getvalue()


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([-9.0, -4.5, 0.0]) == "▁▅█"
    assert sparkline([-8000.0, -7999.0]) == "▁█"
    assert sparkline([3.0, 3.0]) == "██"


@settings(max_examples=100)
@given(st.floats(0.0, 1.0), st.integers(1, 9))
def test_a_bar_is_as_long_as_its_share(share: float, width: int) -> None:
    bar = filled(share, width)
    assert len(bar) == width
    eighths = sum({"█": 8, " ": 0}.get(char) or " ▏▎▍▌▋▊▉█".index(char) for char in bar)
    assert eighths == pytest.approx(share * width * 8, abs=0.51)


def test_bands_differ_in_style_and_sign() -> None:
    assert len({style for _, style, _ in PROBABILITY_BANDS}) == len({sign for *_, sign in PROBABILITY_BANDS}) == 4


@pytest.mark.parametrize(
    ("env", "colors", "moves"),
    [
        ({}, True, True),
        ({"NO_COLOR": "1"}, False, True),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_styles_are_for_terminals(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], colors: bool, moves: bool
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert (styled(Tty()), animated(Tty()), drawn(Tty())) == (colors, moves, True)
    assert {answer(io.StringIO()) for answer in (styled, animated, drawn)} == {False}


# --- numbers ---


@settings(max_examples=200)
@given(st.floats(0.0, 1.0))
def test_a_probability_is_never_rounded_to_0_or_1(prob: float) -> None:
    cell = probability_cell(prob)
    assert (cell.shown == "0.0000") == (prob == 0)
    assert (cell.shown == "1.0000") == (prob == 1)
    assert len(cell.shown) <= 6
    assert cell.plain is not None
    assert float(cell.plain) == prob
    if cell.shown == ">.9999":
        assert 0.99995 <= prob < 1
    else:
        # Four decimals, or one digit of a small number.
        assert abs(float(cell.shown) - prob) <= max(0.5001 * 10**-4 if prob > 4e-5 else 0.0, 0.51 * prob)


def test_numbers_are_rounded_only_on_a_terminal() -> None:
    assert number_cell(1 / 3) == Cell("0.3333", "0.3333333333333333")
    assert number_cell(-12.3456, 1, "bold") == Cell("-12.3", "-12.3456", "bold")
    assert number_cell(None) == Cell("", "")


@settings(max_examples=100)
@given(st.floats(-1e3, 1e3), st.integers(0, 4))
def test_only_zero_is_shown_as_zero(value: float, digits: int) -> None:
    shown = number_cell(value, digits).shown
    assert (float(shown) == 0) == (value == 0)
    assert abs(float(shown) - value) <= 0.51 * 10.0**-digits


def test_a_probability_too_small_for_a_float_is_not_zero() -> None:
    assert probability_cell(0.0, logprob=-1000.0) == Cell("1e-434", "0.0")
    assert probability_cell(0.0, logprob=-math.inf).shown == "0.0000"
    assert probability_cell(0.25, logprob=math.log(0.25)).shown == "0.2500"


# --- tables as text ---

COLUMNS = [Column("id"), Column("token", right=False), Column("p", optional=1)]
ROWS = [
    [Cell("151643"), Cell("[bold]x[/bold] :smile:", style="bold red"), probability_cell(1 / 3, "bold")],
    [Cell("7"), Cell("日本" * 60), probability_cell(1e-30)],
]
PLAIN = f"id\ttoken\tp\n151643\t[bold]x[/bold] :smile:\t0.3333333333333333\n7\t{'日本' * 60}\t1e-30\n"


def test_a_table_in_a_file_is_tab_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")  # ignored: a file has no width
    stream = io.StringIO()
    print_table(COLUMNS, ROWS, stream)
    assert stream.getvalue() == PLAIN


@pytest.mark.parametrize("env", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colors_shows_the_same_without_the_codes(
    monkeypatch: pytest.MonkeyPatch, env: tuple[str, str]
) -> None:
    def shown() -> str:
        stream = Tty()
        print_table(COLUMNS, ROWS, stream)
        print_line("a line that is longer than the terminal is wide " * 3, stream, "bold")
        return stream.getvalue()

    with_colors = shown()
    monkeypatch.setenv(*env)
    assert "\x1b" not in shown()
    assert shown() == ESCAPE.sub("", with_colors) != with_colors


def test_lines_fit_a_terminal_without_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Tty()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((40, 24)))
    print_line("a line that is longer than the terminal is wide " * 3, stream)
    assert max(map(len, stream.getvalue().splitlines())) <= 40


def test_a_cell_of_several_values_is_several_columns_in_a_file() -> None:
    stream = io.StringIO()
    columns = [Column("#"), Column("range", plain=("low", "high")), Column("end")]
    rows = [[Cell("0"), Cell("1-2", ("1.0", "2.0")), Cell("x")], [Cell("1"), Cell("-", ("3.0",)), Cell("y")]]
    print_table(columns, rows, stream)
    assert stream.getvalue() == "#\tlow\thigh\tend\n0\t1.0\t2.0\tx\n1\t3.0\t\ty\n"


# --- tables on a terminal ---


@at_every_width
def test_a_table_on_a_terminal_loses_nothing(width: int) -> None:
    stream = Tty()
    print_table([Column("id"), Column("token", right=False), Column("p")], ROWS, stream)
    assert "\x1b[" in stream.getvalue()
    words = words_of(stream, width)
    assert {"id", "token", "p", "151643", "7", "0.3333", "1e-30"} <= set(words)
    assert "".join(words).count("日本") == 60 or "".join(words).count("日") == "".join(words).count("本") == 60


def test_markup_is_literal_in_cells_and_headings() -> None:
    stream = Tty()
    columns = [Column("[red]head[/red]"), Column(":smile:", right=False)]
    print_table(columns, [[Cell("[bold]x[/bold]"), Cell(":heart: [/] [link=x]", style="dim")]], stream)
    text = "\n".join(lines_of(stream, 80))
    for literal in ("[red]head[/red]", ":smile:", "[bold]x[/bold]", ":heart: [/] [link=x]"):
        assert literal in text


@pytest.mark.parametrize("token", ["cat", "日本語", "🙂", "e\u0301tude", "한국어 x", "ｆｕｌｌ"])
def test_columns_are_aligned_after_wide_characters(token: str) -> None:
    stream = Tty()
    rows = [[Cell(text), Cell("0.1234")] for text in (token, "abc", "日本語の文")]
    print_table([Column("token", right=False), Column("p")], rows, stream)
    body = [line.rstrip() for line in lines_of(stream, 80) if line.rstrip().endswith("0.1234")]
    assert len(body) == 3
    assert len({cells(line) for line in body}) == 1
    assert body[0].startswith(token)


OPTIONAL = [
    Column("id"),
    Column("first", optional=3),
    Column("token", right=False),
    Column("third", optional=1),
    Column("p"),
    Column("second", optional=2),
]
OPTIONAL_ROWS = [
    [Cell(str(100_000 + n)), Cell("11.111"), Cell("日本語"), Cell("33.333"), Cell("0.1234"), Cell("22.222")]
    for n in range(3)
]


def test_optional_columns_are_dropped_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for width in range(80, 22, -1):
        monkeypatch.setenv("COLUMNS", str(width))
        stream = Tty()
        print_table(OPTIONAL, OPTIONAL_ROWS, stream)
        words = words_of(stream, width)
        found.append([name for name in ("first", "second", "third") if name in words])
        for row in OPTIONAL_ROWS:
            assert row[0].shown in words
        kept = [column.name in words for column in OPTIONAL]
        for n, row in enumerate(OPTIONAL_ROWS[0]):
            assert words.count(row.shown) == (kept[n] if n == 0 else 3 * kept[n])
    assert [have for n, have in enumerate(found) if n == 0 or have != found[n - 1]] == [
        ["first", "second", "third"],
        ["second", "third"],
        ["third"],
        [],
    ]


def test_no_column_is_dropped_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    # Six columns of 6 cells, and two cells between them.
    for width, whole in ((48, True), (44, False)):
        monkeypatch.setenv("COLUMNS", str(width))
        stream = Tty()
        print_table(OPTIONAL, OPTIONAL_ROWS, stream)
        assert ("first" in words_of(stream, width)) == whole


def test_a_file_gets_all_optional_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    print_table(OPTIONAL, OPTIONAL_ROWS, stream)
    assert stream.getvalue().splitlines()[0].split("\t") == [column.name for column in OPTIONAL]


@at_every_width
def test_a_long_token_wraps_and_numbers_do_not(width: int) -> None:
    stream = Tty()
    token = "".join(chr(ord("a") + n % 26) for n in range(150))
    columns = [Column("ID"), Column("LOGIT"), Column("TOKEN", right=False), Column("P"), Column("P")]
    texts = ["151643", "-123.456", token, "1e-300", ">.9999"]
    print_table(columns, [[Cell(text) for text in texts]], stream)
    words = words_of(stream, width)
    assert {"151643", "-123.456", "1e-300", ">.9999"} <= set(words)
    assert "".join(word for word in words if word.isalpha() and word.islower()) == token


def generated() -> list[GeneratedToken]:
    rivals = tuple(Alternative(n, f" word{n}", f" word{n}".encode(), 0.5 / (n + 1)) for n in range(5))
    return [
        GeneratedToken(
            index=n,
            id=1000 + n,
            text=text,
            bytes=text.encode(),
            logprob=-0.7,
            prob=prob,
            final_prob=prob,
            rank=n,
            entropy=1.0,
            u=0.5,
            top=rivals,
        )
        for n, (text, prob) in enumerate(((" fox", 0.5), (" 日本", 0.25), (" hen", 1e-9)))
    ]


def shown_columns(words: list[str], names: dict[str, str]) -> str:
    return " ".join(name for name, sign in names.items() if sign in words)


def test_columns_dropped_from_the_table_of_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are dropped in a fixed order; the token and its probability are kept at every width."""
    names = {"id": "1000", "token": "·fox", "p": "0.2500", "sign": "+++", "rank": "rank", "rivals": "0.50"}
    found = []
    for width in range(120, 17, -1):
        monkeypatch.setenv("COLUMNS", str(width))
        stream = Tty()
        print_probabilities(generated(), stream)
        words = words_of(stream, width)
        found.append(shown_columns(words[: words.index("p:")], names))  # without the legend
    assert list(dict.fromkeys(found)) == [
        "id token p sign rank rivals",
        "token p sign rank rivals",
        "token p sign rank",
        "token p sign",
        "token p",
    ]


@pytest.mark.parametrize("best", [False, True])
def test_columns_dropped_from_the_table_of_samples(monkeypatch: pytest.MonkeyPatch, best: bool) -> None:
    fields = {"finish": "length", "text": "", "valid": None}
    rows = [Sample(n, 4_000_000_000 + n, 512, -1.25, best=n == 1, **fields) for n in range(12)]
    names = {"seed": "4000000001", "tokens": "512", "logprob": "-1.250", "stopped": "--max-tokens"}
    found = []
    for width in range(120, 19, -1):
        monkeypatch.setenv("COLUMNS", str(width))
        stream = Tty()
        print_samples(rows, 1.0, 3, stream, best=best)
        words = words_of(stream, width)
        assert {"sample", "11", "mean", "nats"} <= set(words)
        assert words.count("→") == best
        found.append(shown_columns(words, names))
    assert list(dict.fromkeys(found)) == [
        "seed tokens logprob stopped",
        "tokens logprob stopped",
        "tokens logprob",
        "logprob",
    ]


# --- whole views ---


def step() -> StepReport:
    tokenizer = Tokenizer(
        train_tokenizer(["[bold]red[/bold] :smile: [bold]red[/bold] :smile: 日本 日本"], 300), "small"
    )
    logits = torch.randn(tokenizer.size, generator=torch.Generator().manual_seed(1)) * 3
    for place, text in enumerate(("[", " :", "日", "\n")):  # make tokens that look like markup the most probable
        logits[tokenizer.encode(text)[1]] = 12.0 - place / 4
    values = {"temperature": 0.8, "top-k": 6.0, "top-p": 0.95, "min-p": 0.001}
    sampler = Sampler(filter_chain(list(values), values), 9)
    choice = sampler.choose(logits)
    return step_report(
        Step(0, 2, choice.id, logits, choice, None, None),
        sampler,
        tokenizer,
        prompt_ids=tokenizer.encode("[bold] :smile: \x1b[31m"),
        context_ids=tokenizer.encode("[bold] :smile: \x1b[31m"),
        top=8,
        temperatures=[0.0, 0.5, 1.0, 1.5],
    )


@at_every_width
def test_the_step_view_cuts_no_number(width: int) -> None:
    stream, report = Tty(), step()
    print_step(report, stream)
    words = words_of(stream, width)
    for row in report.candidates:
        assert probability_cell(row.p).shown in words
        assert probability_cell(row.p_final).shown in words
        for column in report.columns:
            assert probability_cell(column.probs[row.id]).shown in words
    if width == 120:
        assert {str(row.id) for row in report.candidates} <= set(words)
    if width >= 80:
        assert {f"{row.u_low:.4f}–{row.u_high:.4f}" for row in report.candidates if row.u_low is not None} <= set(words)
    assert str(report.chosen.id) in " ".join(words)
    assert "check: ok" in " ".join(words)
    assert "[bold] :smile: ␛[31m" in " ".join(words)


def test_the_step_view_in_a_file_has_full_precision() -> None:
    stream, report = io.StringIO(), step()
    assert report.chosen.id != report.candidates[0].id
    print_step(report, stream)
    assert "\x1b" not in stream.getvalue()
    table = [line.split("\t") for line in stream.getvalue().splitlines() if line.count("\t") == 10]
    assert ",".join(table[0]) == "chosen,rank,id,token,logit,p,p(T=0.8),cut by,final p,u from,u to"
    for cells_of_row, row in zip(table[1:], report.candidates, strict=True):
        mark, rank, id, token, logit, p, warm, cut, final, *interval = cells_of_row
        assert (mark != "") == (row.id == report.chosen.id)
        assert (int(rank), int(id), token) == (row.rank, row.id, token_label(row))
        assert (float(logit), float(p), float(warm), float(final)) == (row.logit, row.p, row.p_temperature, row.p_final)
        assert cut == (row.cut or "")
        assert interval == (["", ""] if row.u_low is None else [repr(row.u_low), repr(row.u_high)])


def tokenization(model: str) -> Tokenization:
    texts = ["[bold]", " :smile:", "日本語", "🙂", "\x1b[0m", " ", "x" * 30]
    tokens, place = [], 0
    for n, text in enumerate(texts):
        data = text.encode()
        tokens.append(Token(150_000 + n, text, data, place, place + len(data), False))
        place += len(data)
    tokens.append(Token(7, "\ufffd", b"\xe2\x80", place, place + 2, True))
    return Tokenization(model, tuple(tokens), place + 2, True, 0, check())


@at_every_width
def test_the_token_view_cuts_no_id_and_no_span(width: int) -> None:
    stream, report = Tty(), tokenization("m")
    print_tokenization(report, stream)
    words = words_of(stream, width)
    for n, token in enumerate(report.tokens):
        assert {str(n), str(token.id), f"{token.start}:{token.end}"} <= set(words)
    for shown in ("[bold]", "·:smile:", "日本語", "🙂", "␛[0m", "·"):
        assert shown in words
    table = words[: words.index("m:")]
    assert "".join(table).count("x") == 30


@at_every_width
def test_tokenizers_side_by_side_cut_no_id(width: int) -> None:
    stream = Tty()
    shorter = Tokenization("other", tokenization("").tokens[:3], 9, True, 0, check())
    print_side_by_side([tokenization("[red]m:cat:"), shorter], stream)
    words = words_of(stream, width)
    assert width < 80 or "[red]m:cat:" in words
    for n in range(7):
        assert words.count(str(150_000 + n)) == (2 if n < 3 else 1)


@at_every_width
def test_the_probability_view_cuts_no_number(width: int) -> None:
    reports = [
        GeneratedToken(
            index=n,
            id=150_000 + n,
            text=text,
            bytes=text.encode(),
            logprob=-1.0,
            prob=prob,
            final_prob=prob,
            rank=n * 1000,
            entropy=1.0,
            u=0.5,
            top=(Alternative(1, "[bold]", b"[bold]", 0.25), Alternative(2, " 日本", " 日本".encode(), 0.125)),
        )
        for n, (text, prob) in enumerate([(" :smile:", 0.75), ("日本語", 0.3), ("\n", 0.0123), ("a", 1e-9)])
    ]
    stream = Tty()
    print_probabilities(reports, stream)
    words = words_of(stream, width)
    for report in reports:
        assert {probability_cell(report.prob).shown, str(report.rank), probability_band(report.prob)[1]} <= set(words)
        assert width < 80 or str(report.id) in words
    assert {"·:smile:", "日本語", "⏎", "[bold]", "0.25", "·日本"} <= set(words)


# --- running text ---


def test_text_is_unchanged_in_a_file_and_escaped_on_a_terminal() -> None:
    text = "[bold]a[/] :smile: \x1b[31m日本\n"
    for stream, shown in ((io.StringIO(), text), (Tty(), escape_controls(text))):
        writer = TextWriter(stream, by_probability=True)
        writer.write(text, 0.9)
        writer.end_line()
        assert stream.getvalue() == shown


def test_text_is_colored_by_probability_only_on_a_terminal() -> None:
    plain, colored = io.StringIO(), Tty()
    for stream in (plain, colored):
        writer = TextWriter(stream, by_probability=True)
        for text, prob in (("sure ", 0.9), ("[bold]likely ", 0.2), ("\x1b[0munlikely", 0.001)):
            writer.write(text, prob)
    assert plain.getvalue() == "sure [bold]likely \x1b[0munlikely"
    assert ESCAPE.sub("", colored.getvalue()) == "sure [bold]likely ␛[0munlikely"
    assert colored.getvalue().startswith("sure ")
    assert len(ESCAPE.findall(colored.getvalue())) == 4


@pytest.mark.parametrize("stream", [Tty(), io.StringIO()], ids=["terminal", "file"])
def test_a_note_is_literal(stream: io.StringIO) -> None:
    note("[bold]x[/bold] :smile: 12 'a'", stream)
    assert ESCAPE.sub("", stream.getvalue()) == "[bold]x[/bold] :smile: 12 'a'\n"
    assert ("\x1b[" in stream.getvalue()) == stream.isatty()


@at_every_width
def test_a_console_has_the_terminals_width(width: int) -> None:
    stream = Tty()
    target = console(stream)
    assert target.width == width
    target.print("[bold]x[/bold] :smile: 12 'a'")
    assert stream.getvalue() == "[bold]x[/bold] :smile: 12 'a'\n"


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_a_picture_of_any_text_is_valid(suffix: str, tmp_path: Path) -> None:
    text = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0xD800, 0xDFFF, 0xFFFD, 0xFFFE, 0xFFFF, 0x1FFFE]))
    picture = Picture()
    note(f"a<{text}&z", picture)
    picture.console.print(Text(f"b{text}z"))  # as a view might, which forgets that text needs escapes
    picture.save(tmp_path / f"x{suffix}", f"title {text}")
    saved = (tmp_path / f"x{suffix}").read_bytes().decode()
    assert not re.search("[\0-\x08\x0e-\x1f\ufffe\uffff]", saved)
    if suffix == ".svg":
        assert "\ufffd" in "".join(ElementTree.fromstring(saved).itertext())
