"""NDJSON: files and streams of one JSON object per line, in UTF-8."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TextIO


def to_line(record: Mapping[str, Any]) -> str:
    """``record`` as one line of JSON, with a line feed at the end.

    Text is not escaped to ASCII, except for the control characters that JSON allows but a terminal interprets (U+007F
    to U+009F). Raises ValueError for NaN and infinities, which JSON cannot represent.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"


def write_line(record: Mapping[str, Any], stream: TextIO) -> None:
    """Write ``record`` to ``stream`` as one line and flush it, so that a reader gets each record immediately."""
    stream.write(to_line(record))
    stream.flush()
