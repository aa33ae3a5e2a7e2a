"""Tools of a conversation: those that may be called, the calls, and their results.

A document carries them as the data has them, for a chat template that supports tools. Where the template does not, they
are described in words. LLaMA-Factory has a wording for each family of models; we have one, JSON as it is in the data.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.data.documents import Part, Text, Turn
from jaxmm.errors import UserError
from jaxmm.json_text import parse_json

HEADING = "Tools, one JSON object a line:"
CALLING = 'Call one with {"name": its name, "arguments": an object}.'


def read_tools(origin: str, column: str, value: Any) -> str:
    """Returns ``Document.tools`` for the value of a record's ``column``: JSON or its text, a list of tools or one tool.

    Raises:
      UserError: if that is not JSON, or one of the tools is not an object.
    """
    tools = value
    if isinstance(tools, str) and tools:
        try:
            tools = parse_json(tools)
        except ValueError as error:
            raise UserError(f"{origin}: '{column}' is not JSON: {value!r:.40}") from error
    if not tools:
        return ""
    tools = tools if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"{origin}: '{column}' must be a list of tools, each an object, not {value!r:.40}")
    return _json(tools)


def read_calls(origin: str, wanted: Any) -> str:
    """Returns ``Turn.calls`` for an assistant's ``tool_calls``.

    Raises:
      UserError: if they are not a list of objects with a function's name.
    """
    if not isinstance(wanted, Sequence) or not all(isinstance(call, Mapping) for call in wanted):
        raise UserError(f"{origin}: tool_calls must be a list of objects, not {wanted!r:.40}")
    for call in wanted:
        function = _function(call)
        if not isinstance(function.get("name"), str):
            raise UserError(f"{origin}: a tool call has no function with a name: {call!r:.60}")
    return _json(list(wanted))


def called(said: str) -> tuple[str, str]:
    """Splits a turn of LLaMA-Factory's ``function_call`` into (text, ``Turn.calls``).

    If it is the JSON of a call or of a list of calls, the text is ''. Anything else is text without calls.
    """
    try:
        calls = parse_json(said)
    except ValueError:
        return said, ""
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in calls):
        return said, ""
    return "", _json([{"type": "function", "function": one} for one in calls])


def in_words(turns: Sequence[Turn], tools: str) -> tuple[Turn, ...]:
    """Describes tools in words: they end the system turn, calls become text, and their results become user turns."""
    told = [_in_words(turn) for turn in turns]
    if not tools:
        return tuple(told)
    lines = [
        _json(tool["function"] if isinstance(tool.get("function"), Mapping) else tool) for tool in parse_json(tools)
    ]
    text = "\n".join([HEADING, *lines, CALLING])
    if not told or told[0].role != "system":
        return (Turn("system", (Text(text),), False), *told)
    parts = told[0].parts
    return (told[0]._replace(parts=_joined(parts, f"\n\n{text}" if parts else text)), *told[1:])


def _in_words(turn: Turn) -> Turn:
    if turn.role == "tool":
        turn = turn._replace(role="user")
    if not turn.calls:
        return turn
    calls = []
    for call in json.loads(turn.calls):
        function = _function(call)
        arguments = function.get("arguments")
        if isinstance(arguments, str):  # OpenAI's calls carry JSON as text
            with contextlib.suppress(ValueError):  # a model may have written any text
                arguments = parse_json(arguments)
        calls.append({"name": function["name"], "arguments": arguments})
    written = _json(calls[0] if len(calls) == 1 else calls)
    return turn._replace(parts=_joined(turn.parts, f"\n{written}" if turn.parts else written), calls="")


def _joined(parts: tuple[Part, ...], text: str) -> tuple[Part, ...]:
    if parts and isinstance(last := parts[-1], Text):
        return (*parts[:-1], Text(last.text + text))
    return (*parts, Text(text))


def _function(one: Mapping[str, Any]) -> Any:
    """The function of a tool or a call, with OpenAI's wrapping or without."""
    return one["function"] if isinstance(one.get("function"), Mapping) else one


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
