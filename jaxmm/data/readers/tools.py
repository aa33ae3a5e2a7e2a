"""Tools and calls as text: what a ``tools`` column, a call and ``tool_calls`` become in a conversation.

LLaMA-Factory writes them in the words of the template that the user chose, one for each family of models. We have one
template, and one wording: JSON, as it is in the data.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.data.readers.parts import text
from jaxmm.errors import UserError

HEADING = "Tools, one JSON object a line:"
CALLING = 'Call one with {"name": its name, "arguments": an object}.'


def with_tools(origin: str, system: str, column: str, value: Any) -> str:
    """Returns the system turn's text with the tools told at its end.

    Args:
      value: what the record has in ``column``: JSON text or JSON, a list of tools or one tool; nothing adds nothing.
    """
    tools = value
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(text(origin, f"'{column}'", tools))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{origin}: '{column}' is not JSON: {value!r:.40}") from error
    if not tools:
        return system
    tools = tools if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"{origin}: '{column}' must be a list of tools, each an object, not {value!r:.40}")
    lines = [_json(tool["function"] if isinstance(tool.get("function"), Mapping) else tool) for tool in tools]
    return "\n".join([*([system, ""] if system else []), HEADING, *lines, CALLING])


def calls(origin: str, said: Any, wanted: Any) -> str:
    """Returns the text of an assistant's ``tool_calls``, after what it said: an object, or a list of several."""
    if not isinstance(wanted, Sequence) or not all(isinstance(call, Mapping) for call in wanted):
        raise UserError(f"{origin}: tool_calls must be a list of objects, not {wanted!r:.40}")
    found = []
    for call in wanted:
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(f"{origin}: a tool call has no function with a name: {call!r:.60}")
        arguments = function.get("arguments")
        if isinstance(arguments, str):  # OpenAI's calls carry JSON as text
            with contextlib.suppress(ValueError, RecursionError):  # what a model wrote may be any text
                arguments = json.loads(arguments)
        found.append({"name": function["name"], "arguments": arguments})
    written = _json(found[0] if len(found) == 1 else found)
    before = text(origin, "what goes with tool_calls", said) if said else ""
    return text(origin, "tool_calls", f"{before}\n{written}" if before else written)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
