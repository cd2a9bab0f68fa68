"""The HTTP side: routes, limits, who may ask, and errors as OpenAI's clients know them."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.generate.grammar import GrammarError
from minigpt_edge_runtime.serve.choice import Choice
from minigpt_edge_runtime.serve.errors import ApiError
from minigpt_edge_runtime.serve.plan import make_plans
from minigpt_edge_runtime.serve.reply import DONE, Reply, encode, event
from minigpt_edge_runtime.serve.request import read_request
from minigpt_edge_runtime.serve.worker import Worker

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send


_PATHS = "/v1/chat/completions, /v1/completions, /v1/models and /health"


@dataclass(frozen=True)
class Settings:
    """What is served, to whom and how much of it.

    `hosts` are the Host headers accepted, None for any: a web page can point its own name at 127.0.0.1 (DNS
    rebinding), but not call itself localhost.
    """

    model: str
    document_start: str | None
    max_tokens: int
    max_request_bytes: int
    hosts: frozenset[str] | None
    api_key: str | None


def make_app(worker: Worker, settings: Settings) -> ASGIApp:
    """The ASGI application; it sends no CORS headers, so pages of other origins can't use it."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    model = {"id": settings.model, "object": "model", "created": 0, "owned_by": "minigpt-edge"}

    async def health(request: HttpRequest) -> Response:
        return _json({"status": "ok"})

    async def models(request: HttpRequest) -> Response:
        return _json({"object": "list", "data": [model]})

    async def one_model(request: HttpRequest) -> Response:
        if request.path_params["name"] == settings.model:
            return _json(model)
        message = f"there is no model {request.path_params['name']!r}, this server has {settings.model!r}"
        raise ApiError(404, message, param="model", code="model_not_found")

    async def refused(request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return _failure(error)

    async def no_route(request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}; there are {_PATHS}"
        return _failure(ApiError(error.status_code, message, headers=error.headers))

    async def broken(request: HttpRequest, error: Exception) -> Response:
        return _failure(_server_error("the server failed, its log says why"))

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/completions", Answers("completion", worker, settings), methods=["POST"]),
            Route("/v1/chat/completions", Answers("chat", worker, settings), methods=["POST"]),
        ],
        exception_handlers={ApiError: refused, HTTPException: no_route, Exception: broken},
    )
    return Gate(app, settings)


class Gate:
    """Lets in who may ask: by Host header, and by key if there is one."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts, self._key = settings.hosts, settings.api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._error(scope)
        await (_failure(error) if error else self._app)(scope, receive, send)

    def _error(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        if self._hosts is not None and _host_name(headers.get(b"host", b"")) not in self._hosts:
            return ApiError(403, "this server answers requests to localhost alone", code="host_not_allowed")
        if self._key is None or scope["path"] == "/health":
            return None
        given = headers.get(b"authorization", b"")
        if hmac.compare_digest(given, b"Bearer " + self._key.encode()):
            return None
        return ApiError(
            401, "the API key is missing or wrong", code="invalid_api_key", kind="authentication_error"
        )


class Answers:
    """The endpoint of completions or chats."""

    def __init__(self, kind: str, worker: Worker, settings: Settings) -> None:
        self._kind, self._worker, self._settings = kind, worker, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = EventStream(send)
        try:
            async with self._worker.request() as limit:
                reply = await self._answer(scope, receive, stream, limit)
        except (ApiError, EdgeError) as error:
            known = _known(error)
            if stream.started:
                await stream.send([event(known.body)], more=False)
                return
            reply = _failure(known)
        if reply:
            await reply(scope, receive, send)

    async def _answer(
        self, scope: Scope, receive: Receive, stream: EventStream, limit: asyncio.Timeout
    ) -> Response | None:
        """The answer, or None if it has been streamed."""
        settings = self._settings
        body = await _read_body(scope, receive, settings.max_request_bytes)
        request = read_request(body, self._kind, settings.model, settings.max_tokens)
        with self._worker.place():
            async with _left_when_gone(receive, limit):
                worker = self._worker
                plans = await asyncio.to_thread(
                    make_plans, worker.session, worker.grammars, request, settings.document_start
                )
                reply = Reply(settings.model, worker.session.engine, request)
                choices = [Choice(index, plan) for index, plan in enumerate(plans)]
                async with aclosing(worker.pieces([plan.generation for plan in plans])) as pieces:
                    if request.stream:
                        await _stream(stream, choices, pieces, reply)
                        return None
                    texts = [""] * len(choices)
                    async for index, piece in pieces:
                        choice = choices[index]
                        texts[index] += choice.end() if piece is None else choice.push(piece)
                    return _json(reply.whole([*zip(choices, texts, strict=True)]))


class EventStream:
    """A response of server-sent events that begins with its first one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def send(self, events: list[bytes], *, more: bool = True) -> None:
        """Send events at once; the last ones say `more=False`."""
        if not self.started:
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            self.started = True
        await self._send({"type": "http.response.body", "body": b"".join(events), "more_body": more})


async def _stream(
    stream: EventStream,
    choices: Sequence[Choice],
    pieces: AsyncIterator[tuple[int, str | None]],
    reply: Reply,
) -> None:
    """Send an answer as it comes; the headers wait for its beginning, which may be an error instead."""
    chunks = reply.first(choices)
    async for index, piece in pieces:
        choice = choices[index]
        if piece is None:
            chunks += reply.last(choice, choice.end())
        elif text := choice.push(piece):
            chunks.append(reply.piece(choice, text))
        else:
            continue
        await stream.send([*map(event, chunks)])
        chunks = []
    await stream.send([*map(event, reply.counts(choices)), DONE], more=False)


async def _read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    headers = dict(scope["headers"])
    # A page of another origin may send a form or plain text unasked, but not this.
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
        raise ApiError(415, "the request's content type is not application/json")
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client left")  # which nobody reads
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            raise ApiError(413, f"the request is larger than {most:,} bytes", code="request_too_large")
    return bytes(body)


@asynccontextmanager
async def _left_when_gone(receive: Receive, limit: asyncio.Timeout) -> AsyncIterator[None]:
    """Let `limit` expire as soon as the client disconnects."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not limit.expired():
            limit.reschedule(0)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


def _host_name(header: bytes) -> str | None:
    try:
        return urlsplit("//" + header.decode("latin-1")).hostname
    except ValueError:
        return None


def _known(error: ApiError | EdgeError) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, GrammarError):
        return ApiError(400, f"{error.message}: {error.hint}", code="grammar")
    return _server_error(error.message)


def _server_error(message: str) -> ApiError:
    return ApiError(500, message, kind="server_error")


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import Response

    return Response(encode(content), status, headers, media_type="application/json")


def _failure(error: ApiError) -> Response:
    return _json(error.body, error.status, error.headers)
