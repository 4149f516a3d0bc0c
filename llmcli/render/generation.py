"""Generated text as it arrives, the line that summarizes it, and the table of its probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.color import ColorSystem
from rich.style import Style

from llmcli import endpoint, explain, generation
from llmcli.generation.filters import OPTIONS
from llmcli.render.marks import print_legend, probability_band
from llmcli.render.numbers import full
from llmcli.render.table import UNKNOWN, Cell, Column, print_table, probability_cell
from llmcli.render.terminal import note, printable, styled
from llmcli.render.text import counted, one_line, rate, token_label

MAX_SETTINGS, MAX_NAME = 20, 60  # settings in a line, and characters of a setting's name
# Why a text ended, by its ``finish``.
ENDINGS = {
    "length": "--max-tokens reached",
    "stop_token": "end of text",
    "stop": "end of text or a --stop string",
    "grammar": "the grammar is complete",
    "stop_string": "--stop string found",
    "context": "the context is full",
    "interrupted": "interrupted",
}
# Why a prompt cache file cannot be used: "prompt cache: FILE ...".
PROMPT_CACHE_UNUSED = {
    "damaged": "is damaged",
    "version": "is from another version of llmcli",
    "dtype": "is in another dtype",
    "model": "is from another model or other weights",
    "text": "starts with a different text",
    "window": "differs from this prompt too far back for the model's sliding window",
    "state": "goes on beyond the beginning that it shares with this prompt, and recurrent layers cannot go back",
    "angles": "is from a text of another length, for which this model rotates positions differently",
}


class TextWriter:
    """Writes text as it arrives; on a color terminal, ``by_probability`` colors each chunk by its probability.

    Other text has the ``style``.
    """

    def __init__(self, stream: TextIO, *, by_probability: bool, style: str = "") -> None:
        self.stream = stream
        self._colored = by_probability and styled(stream)
        self._style = style if styled(stream) else ""
        self._ended = True  # whether the last line is finished

    def write(self, text: str, prob: float = 1.0) -> None:
        """Write a chunk and flush it."""
        if not text:
            return
        self._ended = text.endswith("\n")
        text = printable(text, self.stream)
        style = probability_band(prob)[0] if self._colored else self._style
        if style:
            text = Style.parse(style).render(text, color_system=ColorSystem.EIGHT_BIT)
        self.stream.write(text)
        self.stream.flush()

    def end_line(self) -> None:
        """End the last line, so that a table or the shell's prompt starts on a new one."""
        if not self._ended:
            self.stream.write("\n")
            self.stream.flush()
            self._ended = True


def print_summary(
    generation: generation.Generation,
    stream: TextIO,
    *,
    seed: int,
    context: int,
    proposals: tuple[int, int] | None = None,
    cached: int = 0,
    thoughts: int = 0,
) -> None:
    """Print the counts and speeds of a finished generation, why it stopped, and the seed that repeats it.

    ``context`` is the model's context in tokens; ``cached`` prompt tokens came from a prompt cache. ``proposals``
    counts the tokens proposed and accepted, with speculative decoding; ``thoughts`` those before the answer.
    """
    done = generation
    # The first token comes from prefill, so the decode speed is that of the others.
    decode = f"{rate((done.tokens - 1) / done.decode_seconds)} tokens/s" if done.tokens > 1 else "-"
    if cached:
        prefill = f" ({cached} cached)"
    else:
        prefill = f", prefill {rate(done.prompt_tokens / done.prefill_seconds)} tokens/s" if done.tokens else ""
    of_thoughts = f" ({thoughts} of thoughts)" if thoughts else ""
    proposed = "" if proposals is None else f" | {proposals[0]} tokens proposed, {proposals[1]} accepted"
    note(
        f"{counted(done.tokens, 'token')}{of_thoughts}, decode {decode} | "
        f"prompt {counted(done.prompt_tokens, 'token')}{prefill} | "
        f"first token after {done.prefill_seconds:.2f} s | context {done.length} of {context} | "
        f"stopped: {ENDINGS[done.finish]} | seed {seed}{proposed}",
        stream,
    )


def prompt_cache_line(reuse: generation.Reuse, file: str) -> str:
    """Return the line that says how much of the prompt a prompt cache file held, or why it was not used."""
    if reuse.reason == "missing":
        return f"prompt cache: {file} does not exist yet"
    if reuse.reason is not None:
        return f"prompt cache: {file} {PROMPT_CACHE_UNUSED[reuse.reason]}; the whole prompt is read"
    return f"prompt cache: {reuse.tokens} of {counted(reuse.prompt, 'token')} reused from {file}"


def defaults_line(adopted: Mapping[str, str], unmet: Mapping[str, str], unusable: Mapping[str, str]) -> str:
    """Return the line that lists the settings from generation_config.json, used and not; empty if there are none.

    All values are text, empty for those that are not shown. Of many settings only the first are listed.
    """
    groups = {"": adopted, "not applied: ": unmet, "invalid and ignored: ": unusable}
    parts = []
    for title, settings in groups.items():
        listed = [f"{name[:MAX_NAME]} {value}".rstrip() for name, value in settings.items()][:MAX_SETTINGS]
        more = [f"and {len(settings) - MAX_SETTINGS} more"] if len(settings) > MAX_SETTINGS else []
        parts += [title + ", ".join(listed + more)] if listed else []
    return one_line(f"from generation_config.json: {'; '.join(parts)}") if parts else ""


def filter_label(name: str, value: float | None, settings: Mapping[str, float] | None = None) -> str:
    """Return a filter's name with its value, if it has one: "top-p 0.95". Other ``settings`` follow unless default."""
    more = [f"{key} {number:g}" for key, number in (settings or {}).items() if number != OPTIONS[key].default]
    return name if value is None else f"{name} {value:g}" + (f" ({', '.join(more)})" if more else "")


def print_probabilities(tokens: Sequence[explain.GeneratedToken], stream: TextIO) -> None:
    """Print a row for each generated token: its probability and rank, and the most probable tokens in its place."""
    columns = [
        Column("#"),
        Column("id", optional=2),
        Column("token", right=False),
        Column("p"),
        Column("", right=False, optional=-3, plain="sign"),
        Column("rank", optional=-2),
        Column("final p", optional=1),
        Column("most probable", right=False, optional=-1, plain=_top_headings(tokens)),
    ]
    print_table(columns, [_probability_row(token) for token in tokens], stream)
    print_legend(stream)


def _probability_row(token: explain.GeneratedToken) -> list[Cell]:
    style, sign = ("", "") if token.prob is None else probability_band(token.prob)
    top = "  ".join(f"{token_label(other) or UNKNOWN.shown} {_brief(other.prob)}" for other in token.top)
    plain = tuple(value for other in token.top for value in (token_label(other), full(other.prob)))
    return [
        Cell(str(token.index)),
        UNKNOWN if token.id is None else Cell(str(token.id)),
        Cell(token_label(token), style=style),
        UNKNOWN if token.prob is None else probability_cell(token.prob),
        Cell(sign, style=style),
        UNKNOWN if token.rank is None else Cell(str(token.rank)),
        UNKNOWN if token.final_prob is None else probability_cell(token.final_prob),
        Cell(top, plain),
    ]


def _top_headings(tokens: Sequence[explain.GeneratedToken]) -> tuple[str, ...]:
    """Return the headings of the most probable tokens in tab-separated output: "top 1", "p 1", "top 2", …"""
    most = max((len(token.top) for token in tokens), default=0)
    return tuple(heading for n in range(1, most + 1) for heading in (f"top {n}", f"p {n}"))


def _brief(prob: float) -> str:
    """Return a probability in four characters, but never 0.00 for one above 0."""
    return f"{prob:.2f}" if prob >= 0.005 or prob == 0 else "<.01"


def ending(finish: str | None) -> str:
    """Return why a server's text ended; a reason that llmcli does not know is quoted."""
    return ENDINGS.get(finish or "", one_line(f"the server's reason is “{(finish or '')[:40]}”"))


def print_server_summary(generation: endpoint.ServerGeneration, stream: TextIO, *, seed: int | None) -> None:
    """Print the counts and speed of a server's text, why it stopped, and the seed, if one was requested."""
    about = "" if generation.exact_count else "about "
    decoded, seconds = generation.tokens - 1, generation.seconds - generation.first_seconds
    speed = f"{rate(decoded / seconds)} tokens/s" if decoded > 0 and seconds > 0 else "-"
    prompt_tokens = generation.usage.prompt_tokens
    prompt = "" if prompt_tokens is None else f"prompt {counted(prompt_tokens, 'token')} | "
    note(
        f"{about}{counted(generation.tokens, 'token')}, {speed} | {prompt}"
        f"first token after {generation.first_seconds:.2f} s | "
        f"stopped: {ending(generation.finish)} | seed {'not set' if seed is None else seed}",
        stream,
    )


def print_server_probabilities(tokens: Sequence[explain.GeneratedToken], stream: TextIO) -> None:
    """Print the table of a server's tokens, and what it cannot show."""
    if all(token.logprob is None for token in tokens):
        note("no table: this server does not send probabilities", stream)
        return
    print_probabilities(tokens, stream)
    print_server_limits(stream, "the final p, the draw, the entropy")


def print_server_limits(stream: TextIO, unknown: str) -> None:
    """Print what a server's probabilities are, and what stays unknown."""
    note(
        "p comes from the server, before or after its temperature. "
        f"Unknown: {unknown}, and the tokens that the server does not list.",
        stream,
    )
