"""NDJSON: one object per line, readable text, no control characters, no NaN."""

from __future__ import annotations

import io
import json

import pytest

from llmcli.files.ndjson import to_line, write_line


def test_a_record_is_one_line_of_readable_json() -> None:
    record = {"text": "naïve 🙂\nsecond line", "p": 0.25, "none": None}
    line = to_line(record)
    assert line.count("\n") == 1
    assert json.loads(line) == record
    assert "naïve 🙂" in line


def test_control_characters_that_a_terminal_obeys_are_escaped() -> None:
    record = {"text": "\x1b[31m \x7f \x85 \x9b"}
    line = to_line(record)
    assert line.rstrip("\n").isprintable()
    assert json.loads(line) == record


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_and_infinity_are_rejected(number: float) -> None:
    with pytest.raises(ValueError):
        to_line({"p": number})


def test_a_written_line_is_flushed() -> None:
    class Stream(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    stream = Stream()
    write_line({"a": 1}, stream)
    assert stream.flushed == '{"a": 1}\n'
