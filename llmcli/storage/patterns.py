"""Regular expressions from files of others, which may take forever: another process matches them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 10.0
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
compiled = [re.compile(pattern) for pattern in patterns]
print(json.dumps([next((i for i, rule in enumerate(compiled) if rule.match(name)), None) for name in names]))
"""


def first_match(patterns: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """For each name, the index of the first pattern that matches its beginning, or None.

    Raises ValueError, with what is wrong, if a pattern is invalid or matching takes more than ``SECONDS``.
    """
    command = [sys.executable, "-I", "-c", _MATCH]
    try:
        done = subprocess.run(
            command, input=json.dumps([patterns, names]), capture_output=True, text=True, timeout=SECONDS
        )
        found: list[int | None] = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"not matched within {SECONDS:.0f} s") from error
    except (ValueError, OSError) as error:
        raise ValueError("invalid") from error
    return found
