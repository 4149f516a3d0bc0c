"""The routes of the server: each checks its request, asks the scheduler and answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmcli.errors import LlmcliError
from llmcli.generation.loaded import LoadedModel
from llmcli.serve.answers import Answer
from llmcli.serve.body import Body
from llmcli.serve.errors import ApiError, api_error, bad_request
from llmcli.serve.job import ClientGone, Job
from llmcli.serve.limits import Limits
from llmcli.serve.logprobs import Entry, prompt_entries
from llmcli.serve.metrics import CONTENT_TYPE, Metrics
from llmcli.serve.models import Models, Served
from llmcli.serve.page_files import page_file
from llmcli.serve.sampler_options import default_options
from llmcli.serve.token_page import PageWriter, token_page
from llmcli.serve.views import ToJson, explain_view
from llmcli.serve.wanted import Reader, Wanted

GONE = 499  # what logs show for a client that closed the connection


@dataclass
class Service:
    """The state that the routes share.

    ``to_json`` converts a view's report to JSON, ``page_writer`` writes a walkthrough as HTML, and ``log`` prints a
    line about each request. A service that is ``draining`` finishes running requests and refuses new POST requests.
    """

    models: Models
    to_json: ToJson
    page_writer: PageWriter
    log: Callable[[str], None]
    limits: Limits = field(default_factory=Limits)
    draining: bool = False

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.models.loaded)
        self.began = int(time.time())
        # Templates and tokenizers run beside the model, one request at a time.
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    async def prepare(self, function: Callable[[], Any]) -> Any:
        """The result of a function that takes a while and does not need the model."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, function)

    async def read(self, request: Request) -> tuple[Body, Served]:
        """The options of a request, and the model that it names."""
        body = Body(await read_body(request, self.limits))
        return body, await self.models.find(body.text("model"))

    def job(self, served: Served, request: Request, user: str = "") -> Job:
        """The work for a request to a model. Its address and the option "user" identify a client."""
        host = request.client.host if request.client else ""
        return Job(served.scheduler, request, f"{host} {user}", self.limits.seconds)


async def read_body(request: Request, limits: Limits) -> Any:
    """The JSON of a request. Raises ApiError if it is too long, too slow or not JSON."""

    async def receive() -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > limits.body:
                raise ApiError(413, f"the body is longer than {limits.body} bytes", code="body_too_large")
        return bytes(data)

    if int(request.headers.get("content-length", "0") or 0) > limits.body:
        raise ApiError(413, f"the body is longer than {limits.body} bytes", code="body_too_large")
    try:
        data = await asyncio.wait_for(receive(), limits.body_seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body took longer than {limits.body_seconds:g} s") from None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise bad_request("the body is not JSON") from None


class Routes:
    """The functions that answer requests to ``service``."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def completions(self, request: Request) -> Response:
        return await self._texts(request, chat=False)

    async def chat_completions(self, request: Request) -> Response:
        return await self._texts(request, chat=True)

    async def _texts(self, request: Request, *, chat: bool) -> Response:
        service, began = self.service, time.perf_counter()
        body, served = await service.read(request)
        wanted: Wanted = await service.prepare(lambda: served.reader.read(body, chat=chat))
        user = body.take("user")
        job = service.job(served, request, user if isinstance(user, str) else "")
        chunks = self._chunks(job, served.loaded, wanted, began)
        if not wanted.stream:
            async with aclosing(chunks):
                answer = [each async for each in chunks][-1]
            return JSONResponse(answer)
        first = await anext(chunks)  # so that an error before it has its own status
        return StreamingResponse(_events(first, chunks), media_type="text/event-stream", headers=_NOT_KEPT)

    async def _chunks(
        self, job: Job, loaded: LoadedModel, wanted: Wanted, began: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the chunks of a stream, or the whole answer at the end."""
        async with job:
            echoed = [await self._echoed(job, loaded, wanted, prompt.ids) for prompt in wanted.prompts]
            answer, opened = Answer(wanted, loaded.name, echoed), False
            async with aclosing(job.progress(wanted)) as steps:
                async for step in steps:
                    if not answer.generated:
                        self.service.metrics.first_token(time.perf_counter() - began)
                    if not wanted.stream:
                        answer.add(step)
                        continue
                    for chunk in [*([] if opened else answer.opening()), *answer.chunks(step)]:
                        yield chunk
                    opened = True
            if not wanted.stream:
                yield answer.whole()
                return
            for chunk in [*([] if opened else answer.opening()), *answer.closing()]:
                yield chunk

    async def _echoed(self, job: Job, loaded: LoadedModel, wanted: Wanted, ids: list[int]) -> list[Entry]:
        """The tokens of a prompt with their probabilities, if wanted: a few between two steps of the others."""
        found: list[Entry] = []
        if wanted.echo and wanted.alternatives is not None:
            parts = prompt_entries(loaded, ids, wanted.alternatives)
            while part := await job.compute(lambda: next(parts, None)):
                found += part
        return found

    async def models(self, request: Request) -> Response:
        data = await self.service.prepare(lambda: list(map(self._model, self.service.models.names)))
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.service.models.check(name)
        return JSONResponse(await self.service.prepare(lambda: self._model(name)))

    def _model(self, name: str) -> dict[str, Any]:
        """What is known about a model: more, once it is loaded. Renders its template when first called."""
        entry = {"id": name, "object": "model", "created": self.service.began, "owned_by": "llmcli"}
        served = self.service.models.loaded.get(name)
        if served is None:
            return entry
        return {
            **entry,
            "max_model_len": served.loaded.model.config.max_position_embeddings,
            "chat": served.reader.template is not None,
            "thinking": served.reader.thinking.on is not None,
            "defaults": default_options(served.loaded),
        }

    async def embeddings(self, request: Request) -> Response:
        raise bad_request("embeddings are not supported: this server's models generate text", code="unsupported")

    async def tokenize(self, request: Request) -> Response:
        body, served = await self.service.read(request)
        tokens_of = _tokens_of_text if body.take("messages") is None else _tokens_of_chat
        found = await self.service.prepare(lambda: tokens_of(served.reader, body))
        context = served.loaded.model.config.max_position_embeddings
        return JSONResponse({**found, "count": len(found["tokens"]), "max_model_len": context})

    async def detokenize(self, request: Request) -> Response:
        body, served = await self.service.read(request)
        tokenizer = served.loaded.tokenizer
        ids = body.ids("tokens", tokenizer.size)
        body.check()
        if ids is None:
            raise bad_request("tokens is missing: a list of token ids", "tokens")
        written = await self.service.prepare(lambda: tokenizer.decode(ids))
        return JSONResponse({"prompt": written, "content": written})

    async def explain(self, request: Request) -> Response:
        service = self.service
        body, served = await service.read(request)
        async with service.job(served, request) as job:
            return JSONResponse(
                await job.compute(lambda: explain_view(served.loaded, body, service.to_json, job.check))
            )

    async def explain_page(self, request: Request) -> Response:
        service = self.service
        body, served = await service.read(request)
        async with service.job(served, request) as job:
            page = await job.compute(lambda: token_page(served.reader, body, service.page_writer, job.check))
        return HTMLResponse(page)

    async def health(self, request: Request) -> Response:
        draining = self.service.draining
        return JSONResponse({"status": "draining" if draining else "ok"}, 503 if draining else 200)

    async def show_metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.service.metrics.text(), media_type=CONTENT_TYPE)

    async def index(self, request: Request) -> Response:
        return page_file("index.html", self.service.page_writer)

    async def page(self, request: Request) -> Response:
        return page_file(request.path_params["name"], self.service.page_writer)


def _tokens_of_chat(reader: Reader, body: Body) -> dict[str, Any]:
    """The tokens of a conversation up to where the reply begins, and those that end the reply.

    Also the spans of earlier replies, and for a model that thinks, how thoughts begin and end.
    """
    prompt, stops = reader.conversation(body)
    body.check()
    tags = reader.thinking.tags
    thinking = {} if tags is None else {"thinking": {**asdict(tags), "state": reader.thinking.state_after(prompt.text)}}
    return {"tokens": prompt.ids, "generated_spans": prompt.generated, **thinking, "stop_token_ids": sorted(stops)}


def _tokens_of_text(reader: Reader, body: Body) -> dict[str, Any]:
    """The tokens of a text, and those that end it."""
    content, prompt = body.text("content"), body.text("prompt")
    parse_special = body.flag("parse_special")
    body.check()
    given = prompt if content is None else content
    if given is None:
        raise bad_request("content, prompt or messages is missing: the text to tokenize", "prompt")
    ids = reader.loaded.tokenizer.encode(given, parse_special=parse_special)
    return {"tokens": ids, "stop_token_ids": sorted(reader.loaded.stop_ids)}


_NOT_KEPT = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def _events(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events of the chunks. An error after the first one is an event, too."""
    try:
        yield _event(first)
        async for chunk in rest:
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    except ClientGone:
        return
    except (ApiError, LlmcliError) as error:
        yield _event((error if isinstance(error, ApiError) else api_error(error)).body())
    finally:
        await rest.aclose()


def _event(chunk: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def build_app(service: Service) -> ASGIApp:
    """The application: routes, errors in OpenAI's form, counters and a line about each request."""
    routes, found = Routes(service), list[Route]()
    get: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/": routes.index,
        "/page/{name}": routes.page,
        "/health": routes.health,
        "/metrics": routes.show_metrics,
        "/v1/models": routes.models,
        "/v1/models/{name:path}": routes.model,
    }
    post: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/v1/completions": routes.completions,
        "/v1/chat/completions": routes.chat_completions,
        "/v1/embeddings": routes.embeddings,
        "/v1/explain": routes.explain,
        "/v1/explain/page": routes.explain_page,
        "/tokenize": routes.tokenize,
        "/detokenize": routes.detokenize,
    }
    found += [Route(path, answer, methods=["GET"]) for path, answer in get.items()]
    found += [Route(path, answer, methods=["POST"]) for path, answer in post.items()]
    handlers: dict[Any, Any] = {
        ApiError: _answer_error,
        LlmcliError: _answer_error,
        HTTPException: _answer_error,
        Exception: _answer_error,
        ClientGone: _answer_nobody,
        ClientDisconnect: _answer_nobody,
    }
    return Counted(Starlette(routes=found, exception_handlers=handlers), service, {*get, *post})


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, LlmcliError):
        error = api_error(error)
    elif isinstance(error, HTTPException):
        error = ApiError(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}")
    elif not isinstance(error, ApiError):
        error = ApiError(500, "internal error")
    return JSONResponse(error.body(), error.status, error.headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


class Counted:
    """``app`` with counters and a log of its requests: never what they say, only how many bytes and seconds."""

    def __init__(self, app: ASGIApp, service: Service, paths: set[str]) -> None:
        self.app, self.service, self.paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        page = "/page" if scope["path"].startswith("/page/") else "other"
        path = scope["path"] if scope["path"] in self.paths else page
        began, status, size = time.perf_counter(), 0, 0

        async def count(message: Message) -> None:
            nonlocal status, size
            status = message.get("status", status)
            size += len(message.get("body", b""))
            await send(message)

        try:
            if self.service.draining and scope["method"] == "POST":
                refused = ApiError(503, "the server is shutting down", headers={"Connection": "close"})
                await (JSONResponse(refused.body(), 503, refused.headers))(scope, receive, count)
            else:
                await self.app(scope, receive, count)
        except Exception as error:  # the server has answered 500; the traceback could quote the request
            status = 500
            self.service.log(f"internal error at {path}: {_where(error)}")
        finally:
            seconds = time.perf_counter() - began
            self.service.metrics.requests[path, status] += 1
            self.service.metrics.seconds += seconds
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
            client = scope["client"][0] if scope.get("client") else "-"
            self.service.log(f"{client} {method} {path} {status} {size} bytes {seconds:.2f} s")


def _where(error: BaseException) -> str:
    """The kind of an error and the line that raised it."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return type(error).__name__ + (f" in {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "")
