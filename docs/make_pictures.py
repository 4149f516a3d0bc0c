"""Draw the pictures in docs/ with the shipped model: ``python docs/make_pictures.py`` (needs the test extra)."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pexpect
from rich.text import Text

from llmcli.render.picture import WIDTH, Caption, Picture

HERE = Path(__file__).parent
SENTENCE = '"The cat that I saw yesterday was sleeping"'
LILY = '"Tom was a boy. Lily was a girl. Lily lost"'
VIEWS = {
    "tokenize": 'tokenize --merges "The unhappiest fox"',
    "neighbours": 'neighbours "king - man + woman" --top 6',
    "attend": f"attend {SENTENCE} --at was",
    "attend-head": f"attend {SENTENCE} --head 3.2",
    "lens": 'lens "The sun was shining and the birds were"',
    "why": f'why {LILY} --token " her" --vs " his" --top 5',
    "explain-step": 'explain-step "Once upon a time there was a" --seed 3 --top-k 6 --top 9',
    "temperatures": 'explain-step "She opened the" --temperatures 0,0.5,1,2 --seed 1 --top 6',
    "branch": 'branch "Once upon a time there was" --width 2 --depth 4',
    "score": 'score "Once upon a time there was a little spaceship. It flew to the moon!" --top 8',
    "inspect": "inspect",
    "verify": "verify",
}
GENERATE = 'generate "Once upon a time, a little fox" --probs=3 -n 18 --seed 5'


def draw_generate() -> None:
    """Draw what ``generate`` writes to a terminal; unlike a view, it has no --save."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "llmcli", *shlex.split(GENERATE)],
        dimensions=(60, WIDTH),
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    child.expect(pexpect.EOF)
    picture = Picture(caption=Caption(f"llmcli {GENERATE}", None, ["llama-tales-12m, bfloat16"]))
    picture.console.print(Text.from_ansi(child.before.replace("\r\n", "\n").rstrip("\n")))
    picture.save(HERE / "generate.svg", "llmcli generate")


def main() -> None:
    draw_generate()
    for name, command in VIEWS.items():
        target = HERE / f"{name}.svg"
        words = [*shlex.split(command), "--save", str(target)]
        subprocess.run([sys.executable, "-m", "llmcli", *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
