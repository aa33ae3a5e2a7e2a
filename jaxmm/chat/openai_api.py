"""Requests and answers in the form of OpenAI's chat completions, as far as a model in training can follow them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmm.atomic import plain
from jaxmm.chat.line import Failed, Waiting
from jaxmm.chat.messages import read_messages
from jaxmm.chat.speaker import DEFAULTS, End, Looked, Piece, Speaker
from jaxmm.errors import UserError, nearest
from jaxmm.inference.answers import Prompt

MOST_STOPS = 16
# Fields that change nothing of what is written.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
# Fields that would change it, with the values that do not.
NOT_FOLLOWED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "presence_penalty": (0,), "frequency_penalty": (0,),
    "logit_bias": ({},), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none",), "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (),
    "prediction": (), "reasoning_effort": (), "verbosity": (), "web_search_options": (),
}  # fmt: skip
KNOWN = ("model", "messages", "stream", "stream_options", "stop", "max_completion_tokens", *DEFAULTS)


class NoModelError(UserError):
    """A request names a model that is not here."""


class Request(NamedTuple):
    """What is asked of which model; ``has_usage``: the last piece of a stream has the counts of tokens."""

    model: str
    prompt: Prompt
    options: dict[str, Any]
    stops: tuple[str, ...]
    is_stream: bool
    has_usage: bool


def read_request(body: Any) -> Request:
    """Reads a request; null is as if a field were not there.

    Raises:
      UserError: for whatever of it cannot be followed.
    """
    if not isinstance(body, dict):
        raise UserError('the request must be an object such as {"model": ..., "messages": [...]}')
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in NOT_FOLLOWED and value not in NOT_FOLLOWED[name]:
            raise UserError(f"{name} is not followed here: leave it out")
        if name not in (*KNOWN, *IGNORED, *NOT_FOLLOWED):
            raise UserError(f"unknown field '{name:.40}'{nearest(name, KNOWN)}")
    if not isinstance(model := given.get("model"), str):
        raise UserError("model must be a name: GET /v1/models lists them")
    streamed = _like("stream", given.get("stream", False), False)
    more = given.get("stream_options", {})
    if not isinstance(more, Mapping):
        raise UserError("stream_options must be an object")
    return Request(
        model, read_messages(given.get("messages")), _options(given), _stops(given.get("stop", [])),
        streamed, bool(more.get("include_usage")),
    )  # fmt: skip


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of DEFAULTS that are given, of the types that they have there."""
    named = {name: given[name] for name in DEFAULTS if name in given}
    if "max_completion_tokens" in given:
        named["max_tokens"] = given["max_completion_tokens"]
    return {name: _like(name, value, DEFAULTS[name]) for name, value in named.items()}


def _like(name: str, value: Any, default: Any) -> Any:
    """The value as the type of the default."""
    is_bool, wants_bool = isinstance(value, bool), isinstance(default, bool)
    if is_bool == wants_bool and isinstance(value, (int, float) if isinstance(default, float) else type(default)):
        return type(default)(value)
    kind = "true or false" if wants_bool else "a whole number" if isinstance(default, int) else "a number"
    raise UserError(f"{name} is {value!r:.40}: it must be {kind}")


def filled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked for, and the defaults of the rest; where temperature 0 is, those that narrow a draw are left."""
    narrowing = ("top_p", "top_k", "min_p") if given.get("temperature") == 0 else ()
    return {name: value for name, value in defaults.items() if name not in narrowing} | dict(given)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(one, str) for one in stops):
        raise UserError(f"stop must be a text, or a list of at most {MOST_STOPS}")
    return tuple(one for one in stops if one)


def chosen(speakers: Mapping[str, Speaker], name: str) -> Speaker:
    """The speaker of that name.

    Raises:
      NoModelError: if there is none.
    """
    if name not in speakers:
        raise NoModelError(f"there is no model '{name:.80}': {', '.join(speakers)} can be asked")
    return speakers[name]


def models(speakers: Iterable[Speaker], created: int) -> dict[str, Any]:
    """The answer to /v1/models."""
    data = [{"id": one.name, "object": "model", "created": created, "owned_by": "jaxmm"} for one in speakers]
    return {"object": "list", "data": data}


def error(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """A refusal."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class _Form:
    """What the pieces of one answer have in common."""

    def __init__(self, model: str, step: int | None):
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._head |= {} if step is None else {"system_fingerprint": f"step-{step}"}

    def __call__(self, kind: str, choices: Sequence[Any], **more: Any) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": list(choices), **more}


def _finish(end: End) -> str:
    return "length" if end.finish == "length" else "stop"


def _usage(end: End) -> dict[str, int]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.tokens,
        "total_tokens": end.prompt_tokens + end.tokens,
    }


def whole(end: End, request: Request, step: int | None) -> dict[str, Any]:
    """The whole answer."""
    message = {"role": "assistant", "content": end.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(end)}
    return _Form(request.model, step)("chat.completion", [choice], usage=_usage(end))


def stream(events: Iterable[Any], request: Request, step: int | None) -> Iterator[str]:
    """The answer as server-sent events; a comment where nothing is new."""
    form, kind = _Form(request.model, step), "chat.completion.chunk"
    nothing = {"usage": None} if request.has_usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _sent(form(kind, [choice], **nothing))

    yield chunk({"role": "assistant", "content": ""})
    for event in events:
        match event:
            case Waiting():
                yield ": waiting\n\n"
            case Piece(text):
                yield chunk({"content": text})
            case End():
                yield chunk({}, _finish(event))
                if request.has_usage:
                    yield _sent(form(kind, [], usage=_usage(event)))
            case Failed(message):
                yield _sent(error(message, "server_error"))
            case Looked():
                pass
    yield "data: [DONE]\n\n"


def _sent(value: Any) -> str:
    return f"data: {text_of(value)}\n\n"


def text_of(value: Any) -> str:
    """JSON in one line; numbers that are not finite are null, since a model that has diverged has them."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
