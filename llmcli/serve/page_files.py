"""The files of the page: nothing else is served from the folder, and a browser loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse

from llmcli.serve.errors import ApiError
from llmcli.serve.token_page import PageWriter

FOLDER = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def page_file(name: str, writer: PageWriter) -> FileResponse:
    """Return the file ``name`` of the page. Raises ApiError (404) if there is none.

    Its Content-Security-Policy allows the page's own files, and the style and script of the page that ``writer``
    writes, because why.html displays that page.
    """
    path = FOLDER / name
    if path.suffix not in TYPES or path not in FOLDER.iterdir():
        raise ApiError(404, f"the page has no file {name[:80]!r}")
    policy = (
        f"default-src 'self'; style-src 'self' '{writer.style}'; script-src 'self' '{writer.script}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",  # an update of llmcli changes all files together
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return FileResponse(path, media_type=TYPES[path.suffix], headers=headers)
