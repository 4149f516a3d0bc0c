"""Generated text as it comes, and the line that sums a generation up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from rich.color import ColorSystem
from rich.style import Style

from llmcli.render.counted import counted
from llmcli.render.terminal import band, printable, say, styled

if TYPE_CHECKING:  # types alone: torch must not come with them
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
UNUSED = {
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
        style = band(prob)[0] if self._coloured else ""
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
        return f"prompt cache: {file} {UNUSED[reuse.reason]}; the prompt is read anew"
    return f"prompt cache: {reuse.tokens} of {counted(reuse.prompt, 'token')} reused from {file}"


def defaults_line(adopted: Mapping[str, float], unmet: Mapping[str, float | None]) -> str:
    """What generation_config.json decided, and what it asks for in vain; empty if neither."""
    parts = []
    if adopted:
        parts.append("the model's own settings: " + ", ".join(f"{name} {value:g}" for name, value in adopted.items()))
    if unmet:
        parts.append("not applied: " + ", ".join(stage_name(*setting) for setting in unmet.items()))
    return f"{'; '.join(parts)} (generation_config.json)" if parts else ""


def stage_name(name: str, value: float | None) -> str:
    """A filter with its value, where that is a number."""
    return name if value is None else f"{name} {value:g}"


def note(text: str, stream: TextIO) -> None:
    """A line beside the text: dim on a terminal."""
    say(text, stream, "dim")
