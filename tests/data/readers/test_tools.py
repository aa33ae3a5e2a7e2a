"""Tools and their calls, as LLaMA-Factory and OpenAI write them."""

import json

from jaxmm.data.documents import Document
from jaxmm.data.text.tool_calls import in_words
from readers.reading import only, refused, said

TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}


def told_of(document: Document) -> list[tuple[str, str]]:
    """What a format that knows no tools says of the document."""
    return said(document._replace(turns=in_words(document.turns, document.tools)))


def test_tools_are_told_in_the_system_turn(folder):
    turns = [
        {"from": "human", "value": "1 + 1?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "2."},
    ]
    records = [
        {"conversations": turns, "tools": json.dumps([TOOL]), "system": "Be kind."},
        {"conversations": turns, "tools": [{"type": "function", "function": TOOL}]},
        {"conversations": turns, "tools": "[]"},
        {"conversations": turns, "tools": None},
    ]
    columns = {"messages": "conversations", "system": "system", "tools": "tools"}
    both, alone, none, null = (
        told_of(d) for d in folder.dataset("t", records, formatting="sharegpt", columns=columns).documents()
    )
    told = f"Tools, one JSON object a line:\n{json.dumps(TOOL)}\nCall one with"
    assert both[0][0] == alone[0][0] == "system"
    assert both[0][1].startswith(f"Be kind.\n\n{told}")
    assert alone[0][1].startswith(told)
    assert none == null == both[1:] == alone[1:]
    assert [role for role, _ in none] == ["user", "assistant", "user", "assistant"]
    wrong = {"conversations": turns, "tools": "add(a)"}
    source = folder.dataset("t", [wrong], formatting="sharegpt", columns=columns)
    assert "t.json, record 0: 'tools' is not JSON: 'add(a)'" in refused(source)


def test_the_openai_formatting_has_its_own_tags_and_tool_calls(folder):
    def call(name: str) -> dict:
        return {"id": "1", "type": "function", "function": {"name": name, "arguments": '{"a": 1}'}}

    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [call("add")]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "And:", "tool_calls": [call("add"), call("sub")]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "2.", "tool_calls": []},
    ]
    document = only(folder.dataset("t", [{"messages": messages}], formatting="openai"))
    one, two = ({"name": name, "arguments": {"a": 1}} for name in ("add", "sub"))
    assert [turn.role for turn in document.turns][3] == "tool"
    assert json.loads(document.turns[2].calls) == [call("add")], "as it is in the data, for a template that takes calls"
    assert told_of(document) == [
        ("system", "Be kind."),
        ("user", "1 + 1?"),
        ("assistant", json.dumps(one)),
        ("user", "2"),
        ("assistant", "And:\n" + json.dumps([one, two])),
        ("user", "3"),
        ("assistant", "2."),
    ]
    assert [turn.target for turn in document.turns] == [role == "assistant" for role, _ in said(document)]


def test_a_call_of_llama_factory_is_one_to_a_template_too(folder):
    turns = [
        {"from": "human", "value": "?"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
    ]
    (_, call), (_, text) = (
        only(folder.source([{"conversations": [turns[0], turn]}])).turns
        for turn in (turns[1], {"from": "function_call", "value": "f(1)"})
    )
    assert (call.role, call.parts, call.target) == ("assistant", (), True)
    assert json.loads(call.calls) == [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert (text.calls, [part.text for part in text.parts]) == ("", ["f(1)"])


def test_what_was_thought_is_read_beside_what_was_said(folder):
    for key in ("reasoning_content", "reasoning"):
        answer = {"role": "assistant", "content": "Five.", key: "Two and three."}
        _, turn = only(folder.source([{"messages": [{"role": "user", "content": "2+3?"}, answer]}])).turns
        assert turn.thinking == "Two and three."
