"""The web application: the page, what it asks, and OpenAI's endpoints. It serves nothing from disk by name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from jaxmm.chat import openai_api, page
from jaxmm.chat.guard import Guard, TooLargeError, too_large
from jaxmm.chat.line import Failed, FailedError, Found, FullError, Job, Line, Waiting
from jaxmm.chat.openai_api import NoModelError
from jaxmm.chat.speaker import End, Looked, Piece, Question, Speaker
from jaxmm.errors import UserError
from jaxmm.json_text import parse_json

AT_ONCE = 2  # conversations that are decoded at a time
Handler = Callable[[Request], Awaitable[Response]]


class App:
    """The endpoints over some models, one of which computes at a time."""

    def __init__(self, speakers: Sequence[Speaker], defaults: dict[str, Any]):
        """``defaults``: options where a request, or who uses the page, gives no others."""
        self._speakers = {one.name: one for one in speakers}
        self._defaults, self._line, self._since = defaults, Line(), int(time.time())
        self._decoding = asyncio.Semaphore(AT_ONCE)

    def routes(self) -> list[Route]:
        paths: list[tuple[str, Handler, str]] = [
            ("/", self.page, "GET"),
            ("/v1/models", self.models, "GET"),
            ("/v1/chat/completions", self.complete, "POST"),
            ("/ask", self.ask, "POST"),
            ("/stop", self.stop, "POST"),
            ("/reload", self.reload, "POST"),
        ]
        return [Route(path, handler, methods=[method]) for path, handler, method in paths]

    async def page(self, _: Request) -> Response:
        return HTMLResponse(page.render(list(self._speakers.values()), self._defaults))

    async def models(self, _: Request) -> Response:
        return JSONResponse(openai_api.models(self._speakers.values(), self._since))

    async def complete(self, request: Request) -> Response:
        """OpenAI's chat completions, whole or as server-sent events."""
        asked, question, job = await self._ask(request, with_look=False)
        step = question.model.step
        if asked.is_stream:
            return streamed(openai_api.stream(job.events(), asked, step), job, "text/event-stream")
        return await waited(request, job, End, lambda end: openai_api.whole(end, asked, step))

    async def ask(self, request: Request) -> Response:
        """The same for the page: a JSON object a line, and where the answer looked."""
        _, question, job = await self._ask(request, with_look=True)
        return streamed(_lines(job, question), job, "application/x-ndjson")

    async def stop(self, request: Request) -> Response:
        """Ends a job at its next token; one that is over stays so."""
        body = await _json(request)
        name = body.get("job") if isinstance(body, dict) else None
        job = self._line.find(name) if isinstance(name, str) else None
        if job:
            job.stop()
        return JSONResponse({"stopped": job is not None})

    async def reload(self, request: Request) -> Response:
        """Takes the newest checkpoint of a run, when it is its turn in the line."""
        body = await _json(request)
        name = body.get("model") if isinstance(body, dict) else None
        if not isinstance(name, str):
            raise UserError("model must be a name")
        speaker = openai_api.chosen(self._speakers, name)
        if speaker.step is None:
            raise UserError(f"{name} is a model's folder: it has no newer checkpoint")

        def load(_: Job) -> Iterator[Speaker]:
            speaker.reload()
            yield speaker

        return await waited(request, self._line.join(load), Speaker, page.facts)

    async def _ask(self, request: Request, with_look: bool) -> tuple[openai_api.Request, Question, Job]:
        """Reads a request, and stands in line with it."""
        await request.body()
        self._line.check_room()  # before any of it is decoded
        asked = await run_in_threadpool(openai_api.read_request, await _json(request))
        speaker = openai_api.chosen(self._speakers, asked.model)
        async with self._decoding:
            self._line.check_room()
            options = openai_api.filled(asked.options, self._defaults)
            question = await run_in_threadpool(speaker.question, asked.prompt, options, asked.stops)

        def answer(job: Job) -> Iterator[Any]:
            return speaker.answer(question, job.is_stopped, job.is_left, with_look)

        return asked, question, self._line.join(answer)


def make_app(speakers: Sequence[Speaker], host: str, defaults: dict[str, Any]) -> Guard:
    """The application that a server runs.

    Args:
      host: that the server is bound to, which requests must name.
      defaults: options where a request, or who uses the page, gives no others.
    """
    handlers: dict[Any, Any] = {
        UserError: _refused,
        TooLargeError: lambda request, error: JSONResponse(openai_api.error(too_large()), 413),
        HTTPException: _no_route,
        ClientDisconnect: lambda request, error: Response(status_code=400),
    }
    app = Starlette(routes=App(speakers, defaults).routes(), exception_handlers=handlers)
    return Guard(app, host)


async def _refused(_: Request, error: Exception) -> Response:
    code, status = (None, 400)
    if isinstance(error, NoModelError):
        code, status = "model_not_found", 404
    if isinstance(error, FullError):
        code, status = "line_full", 429
    return JSONResponse(openai_api.error(" ".join(str(error).split()), code=code), status)


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse(openai_api.error(f"there is no {request.method} {request.url.path[:80]} here"), status)


async def _json(request: Request) -> Any:
    try:
        return await run_in_threadpool(parse_json, await request.body())
    except ValueError as error:
        raise UserError(f"the request is no valid JSON: {error}") from error


async def _gone(request: Request) -> None:
    """Returns when the client has gone; its request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def waited(request: Request, job: Job, kind: type[Found], told: Callable[[Found], dict[str, Any]]) -> Response:
    """Answers with what is told of a job's first event of a kind; the job ends when the client goes."""
    watch = asyncio.ensure_future(_gone(request))
    try:
        return JSONResponse(told(await run_in_threadpool(job.first, kind, watch.done)))
    except FailedError as error:
        return JSONResponse(openai_api.error(str(error), "server_error"), 500)
    finally:
        watch.cancel()
        job.leave()


def streamed(pieces: Iterable[str], job: Job, kind: str) -> Response:
    """Sends pieces as they come; the job ends when the client goes."""

    async def parts() -> AsyncIterator[str]:
        try:
            async for piece in iterate_in_threadpool(pieces):
                yield piece
        finally:
            job.leave()

    return StreamingResponse(parts(), media_type=kind, headers={"x-accel-buffering": "no"})


def _lines(job: Job, question: Question) -> Iterator[str]:
    step = question.model.step
    yield _line("start", job=job.name, step=step)
    for event in job.events():
        match event:
            case Waiting(ahead):
                yield _line("waiting", ahead=ahead)
            case Piece(text):
                yield _line("text", text=text)
            case End():
                yield _line("end", **event._asdict())
            case Looked():
                yield _line("look", **event._asdict())
            case Failed(message):
                yield _line("failed", message=message)


def _line(kind: str, **values: Any) -> str:
    return openai_api.text_of({"event": kind, **values}) + "\n"
