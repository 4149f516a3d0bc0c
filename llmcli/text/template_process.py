"""Rendering chat templates in a process of their own, which is killed if a template takes too long."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from llmcli.errors import LlmcliError

SECONDS = 5.0  # to wait for an answer, which usually takes a thousandth of one
UNUSABLE = "cannot be used"  # the ``error`` of a template that took too long
# The process finds the packages where this one does. Its own default would begin with the working folder, where a
# downloaded model may have a jinja2.py.
PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:];"
    "from llmcli.text.template_worker import serve; serve(sys.stdin.buffer, sys.stdout.buffer)"
)


class TemplateProcess:
    """One process for all templates, which starts with the first request and again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that started it; a fork of that one must start its own
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to ``request`` (see ``template_worker``).

        If there is none, because the template takes too long or too much memory, the answer is an ``error``. Raises
        LlmcliError if the process does not start.
        """
        line = json.dumps(request).encode() + b"\n"  # escaped to ASCII, so that any text passes
        with self._lock:
            process = self._started()
            timer = threading.Timer(SECONDS, process.kill)
            timer.start()
            try:
                answer = _exchange(process, line)
            except BaseException:  # Ctrl-C: the next request must not read the answer to this one
                self.end()
                raise
            finally:
                timer.cancel()
            if answer is not None:
                return answer
            self.end()
            return {"error": UNUSABLE, "detail": f"it takes more than {SECONDS:g} seconds, or too much memory"}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self.end()
        command = [sys.executable, "-c", PROGRAM, *sys.path]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise _no_process(error.strerror or str(error)) from error
        self._process, self._owner = process, os.getpid()
        if _exchange(process, b"") is None:
            self.end()
            raise _no_process("Python cannot be started")
        return process

    def end(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            process.wait()


def _exchange(process: subprocess.Popen[bytes], line: bytes) -> dict[str, Any] | None:
    """Send a line and return the answer; None if the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
    except (OSError, ValueError):
        return None
    return answer


def _no_process(reason: str) -> LlmcliError:
    return LlmcliError(f"the process for chat templates does not start: {reason}", "close other programs and try again")


PROCESS = TemplateProcess()
atexit.register(PROCESS.end)
