"""Messages become the prompt that training knows; what is none is one line."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import picture
from talking import AGAIN, COLOUR, PICTURE, URI, uploaded, user

from jaxmm.chat.messages import MOST_LETTERS, MOST_MEDIA, read_messages
from jaxmm.data.documents import Document, Image, Text, Turn
from jaxmm.errors import UserError
from jaxmm.inference.answers import Prompt

IMAGE = COLOUR["content"][0]


@pytest.mark.parametrize("objective", ["sft", "pretrain"])
def test_a_prompt_of_several_turns_is_the_beginning_of_the_whole_conversation(template, objective):
    from jaxmm.data.text.template import Template
    from jaxmm.data.text.tokenizer import load_tokenizer

    template = template if objective == "sft" else Template(load_tokenizer(""), objective)
    turns = (
        Turn("system", (Text("Be short."),), False),
        Turn("user", (picture(8, 8), Text("first")), False),
        Turn("assistant", (Text("yes"),), True),
        Turn("user", (Text("between "), picture(8, 8, 1), Text(" second")), False),
    )
    whole = template.encode(Document((*turns, Turn("assistant", (Text("no"),), True)), "made"))
    prompt = Prompt.of(turns)
    assert prompt.media == (turns[1].parts[0], turns[3].parts[1])
    assert prompt.text == "between  second"
    begun = template.encode_prompt(prompt.turns())
    size = len(begun.tokens)
    np.testing.assert_array_equal(begun.tokens, whole.tokens[:size])
    np.testing.assert_array_equal(begun.image_at, whole.image_at)
    assert template.decode(whole.tokens[size:]).strip() == "no"


def test_one_turn_is_the_same_prompt_either_way(template):
    image = picture(8, 8)
    single, several = Prompt((image,), "what?"), Prompt.of([Turn("user", (image, Text("what?")), False)])
    assert single.turns() == several.turns()
    assert (single.media, single.text, single.kinds()) == (several.media, several.text, several.kinds())


def test_messages_become_turns_with_media_where_they_stand():
    prompt = read_messages([
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": ""},
        AGAIN,
    ])  # fmt: skip
    assert prompt.conversation == (
        Turn("system", (Text("Be short."),), False),
        Turn("user", (Text("a"), Image(data=PICTURE)), False),
        Turn("assistant", (), False),
        Turn("user", (Text("And now?"),), False),
    )
    assert prompt.names == ("messages[1].content[1]",)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (None, "messages must be a list"),
        ([], "messages must be a list"),
        (["hi"], "messages[0] must be an object"),
        ([{"role": "robot", "content": "x"}], "messages[0]: the role is 'robot', not one of system, developer, user"),
        ([{"role": ["user"], "content": "x"}], "the role is ['user']"),
        ([{"role": "user", "content": 3}], "messages[0]: the content must be a text or a list of parts"),
        ([{"role": "user", "content": [{"type": "file"}]}], "messages[0].content[0]: the type is 'file', not one"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], "the type is ['text']"),
        ([{"role": "user", "content": [{"type": "text"}]}], "the text is no text"),
        ([user("x", "file:///etc/passwd")], "only data URIs are read (data:image/...;base64,...), not 'file:///etc/passwd'"),
        ([user("x", "/etc/passwd")], "only data URIs are read"),
        ([user("x", "http://10.0.0.1/secret.png")], "only data URIs are read"),
        ([user("x", "data:image/png,notbase64")], "only data URIs are read"),
        ([user("x", "data:image/png;base64,@@@@")], "this is no base64"),
        ([user("x", "data:image/png;base64,abc")], "this is no base64"),
        ([user("x", "data:image/png;base64,")], "the file is empty"),
        ([user("x", None)], "there is no url"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "input_audio has no data"),
        ([{"role": "assistant", "content": COLOUR["content"]}, AGAIN], "are the user's, not the assistant's"),
        ([COLOUR, {"role": "assistant", "content": "red"}], "the last message must be the user's"),
        ([user("")], "nothing to answer"),
        ([user("x", *[URI] * (MOST_MEDIA + 1))], "at most 32"),
        ([user("x" * (MOST_LETTERS + 1))], "at most 200,000"),
        ([user("\ud800")], "half of a surrogate pair"),
        ([uploaded(b"", "empty.png")], "empty.png: the file is empty"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}, AGAIN], "tool_calls are not answered here"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_one_line(messages, told):
    with pytest.raises(UserError) as error:
        read_messages(messages)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
