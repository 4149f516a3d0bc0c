"""Generated text as it comes, and the line that sums a generation up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.color import ColorSystem
from rich.style import Style

from llmcli.render.marks import probability_band
from llmcli.render.table import UNKNOWN, Cell, Column, print_table, probability_cell
from llmcli.render.terminal import note, printable, styled
from llmcli.render.text import counted, one_line, token_label

if TYPE_CHECKING:
    from llmcli.endpoint.writing import Writing
    from llmcli.explain.report import GeneratedToken
    from llmcli.generation.prompt_cache import Reuse
    from llmcli.generation.text import Generation

ENDINGS = {
    "length": "the limit of --max-tokens was reached",
    "stop_token": "the model ended its text",
    "stop": "the model ended its text, or a --stop string came",
    "grammar": "the grammar allows nothing more",
    "stop_string": "a --stop string came",
    "context": "the model's context is full",
    "interrupted": "interrupted",
}
# Why nothing of a prompt cache's file could be used.
PROMPT_CACHE_UNUSED = {
    "damaged": "is damaged",
    "version": "is of another version of llmcli",
    "dtype": "is of another dtype",
    "model": "is of another model, or of other weights",
    "text": "is of a text that begins otherwise",
    "window": "goes on where this prompt parts from it, and the model's window has moved past that place",
    "angles": "is of a text of another length, for which the model turns positions otherwise",
}


class TextWriter:
    """Writes chunks at once; with ``by_probability``, on a terminal, each in the colour of its probability."""

    def __init__(self, stream: TextIO, *, by_probability: bool) -> None:
        self.stream = stream
        self._coloured = by_probability and styled(stream)
        self._ended = True  # whether the last thing written was a line end

    def write(self, text: str, prob: float = 1.0) -> None:
        if not text:
            return
        self._ended = text.endswith("\n")
        text = printable(text, self.stream)
        style = probability_band(prob)[0] if self._coloured else ""
        if style:
            text = Style.parse(style).render(text, color_system=ColorSystem.EIGHT_BIT)
        self.stream.write(text)
        self.stream.flush()

    def end_line(self) -> None:
        """Finish the last line, so that a prompt or a table does not stick to the text."""
        if not self._ended:
            self.stream.write("\n")
            self.stream.flush()


def print_summary(
    generation: Generation,
    stream: TextIO,
    *,
    seed: int,
    context: int,
    guesses: tuple[int, int] | None = None,
    cached: int = 0,
) -> None:
    """Counts, speeds, why it stopped, and the seed that repeats it. ``context`` is the most tokens there may be.

    ``cached`` tokens of the prompt were not read but taken from a prompt cache.
    """
    done = generation
    # The first token comes from prefill; the loop's own speed is that of the others.
    decode = f"{(done.tokens - 1) / done.decode_seconds:.0f} tokens/s" if done.tokens > 1 else "-"
    if cached:
        prefill = f" ({cached} cached)"
    else:
        prefill = f", prefill {done.prompt_tokens / done.prefill_seconds:.0f} tokens/s" if done.tokens else ""
    ahead = "" if guesses is None else f" | guessed {guesses[0]}, kept {guesses[1]}, rejected {guesses[0] - guesses[1]}"
    note(
        f"{counted(done.tokens, 'token')}, decode {decode} | prompt {counted(done.prompt_tokens, 'token')}{prefill} | "
        f"first token after {done.prefill_seconds:.2f} s | context {done.length} of {context} | "
        f"stopped: {ENDINGS[done.finish]} | seed {seed}{ahead}",
        stream,
    )


def prompt_cache_line(reuse: Reuse, file: str) -> str:
    """What became of the file of ``--prompt-cache``."""
    if reuse.reason == "missing":
        return f"prompt cache: {file} does not exist yet"
    if reuse.reason is not None:
        return f"prompt cache: {file} {PROMPT_CACHE_UNUSED[reuse.reason]}; the prompt is read anew"
    return f"prompt cache: {reuse.tokens} of {counted(reuse.prompt, 'token')} reused from {file}"


def defaults_line(adopted: Mapping[str, float], unmet: Mapping[str, float | None]) -> str:
    """What generation_config.json decided, and what it asks for in vain; empty if neither."""
    parts = []
    if adopted:
        parts.append("the model's own settings: " + ", ".join(f"{name} {value:g}" for name, value in adopted.items()))
    if unmet:
        parts.append("not applied: " + ", ".join(filter_label(*setting) for setting in unmet.items()))
    return f"{'; '.join(parts)} (generation_config.json)" if parts else ""


def filter_label(name: str, value: float | None) -> str:
    """A filter with its value, where that is a number."""
    return name if value is None else f"{name} {value:g}"


def print_probabilities(reports: Sequence[GeneratedToken], stream: TextIO) -> None:
    """One row a generated token: its probability and rank, and the tokens that were likelier or next."""
    columns = [
        Column("#"),
        Column("id", optional=2),
        Column("token", right=False),
        Column("p"),
        Column("", right=False, optional=-3),
        Column("rank", optional=-2),
        Column("final p", optional=1),
        Column("most probable", right=False, optional=-1),
    ]
    rows = []
    for report in reports:
        style, sign = ("", "") if report.prob is None else probability_band(report.prob)
        rivals = "  ".join(
            f"{token_label(rival.text, rival.bytes) or UNKNOWN.shown} {_brief(rival.prob)}" for rival in report.top
        )
        rows.append(
            [
                Cell(str(report.index)),
                UNKNOWN if report.id is None else Cell(str(report.id)),
                Cell(token_label(report.text, report.bytes), style=style),
                UNKNOWN if report.prob is None else probability_cell(report.prob),
                Cell(sign, style=style),
                UNKNOWN if report.rank is None else Cell(str(report.rank)),
                UNKNOWN if report.final_prob is None else probability_cell(report.final_prob),
                Cell(rivals),
            ]
        )
    print_table(columns, rows, stream)


def _brief(prob: float) -> str:
    """A rival's probability in four characters; never 0.00 for one above zero."""
    return f"{prob:.2f}" if prob >= 0.005 or prob == 0 else "<.01"


def print_server_limits(stream: TextIO, what: str) -> None:
    """What numbers from a server are, and what they cannot tell."""
    note(
        f"p is as the server tells it, before or after its temperature. From outside nobody can know {what}, "
        "or anything of tokens that the server does not list.",
        stream,
    )


def ending(finish: str | None) -> str:
    """Why a server's text ended; an unknown reason is told in its own word."""
    return ENDINGS.get(finish or "", one_line(f"the server says “{(finish or '')[:40]}”"))


def print_server_summary(writing: Writing, stream: TextIO, *, seed: int | None) -> None:
    """Counts, speed, why it stopped, and the seed if one was asked for."""
    about = "" if writing.counted else "about "
    decoded, seconds = writing.tokens - 1, writing.seconds - writing.first_seconds
    speed = f"{decoded / seconds:.0f} tokens/s" if decoded > 0 and seconds > 0 else "-"
    prompt = "" if writing.usage.prompt is None else f"prompt {writing.usage.prompt} tokens | "
    note(
        f"{about}{writing.tokens} tokens, {speed} | {prompt}first token after {writing.first_seconds:.2f} s | "
        f"stopped: {ending(writing.finish)} | seed {'not set' if seed is None else seed}",
        stream,
    )


def print_server_probabilities(told: Sequence[GeneratedToken], stream: TextIO) -> None:
    """The table of a server's tokens, and what it cannot hold."""
    if all(report.logprob is None for report in told):
        note("no table: this server tells no probabilities", stream)
        return
    print_probabilities(told, stream)
    print_server_limits(stream, "the final p, the draw, the entropy")
