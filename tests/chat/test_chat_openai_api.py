"""OpenAI's form of requests and answers, and what of it is refused."""

from __future__ import annotations

import base64
import json

import pytest
from talking import PICTURE, TALK, URI, answer, is_alive, refused, send, user

FILM = {"type": "video_url", "video_url": {"url": URI}}


def test_openai_whole_answers_and_streams_are_the_same(chat_url, chat_speaker):
    body = {"model": "tiny", "messages": TALK, "max_tokens": 9, "temperature": 0, "top_p": 1, "n": 1, "user": "me"}
    with send(f"{chat_url}/v1/chat/completions", body) as got:
        whole = json.loads(got.read())
    assert whole["object"] == "chat.completion"
    (choice,) = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer(chat_speaker, max_tokens=9), "refusal": None}
    assert (choice["index"], choice["finish_reason"]) == (0, "length")
    usage = whole["usage"]
    assert usage["completion_tokens"] == 9
    assert usage["total_tokens"] == usage["prompt_tokens"] + 9

    with send(
        f"{chat_url}/v1/chat/completions", body | {"stream": True, "stream_options": {"include_usage": True}}
    ) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        lines = [text for text in got.read().decode().split("\n\n") if text and not text.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(text.removeprefix("data: ")) for text in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    told = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert told == choice["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], usage)


def test_a_stop_string_ends_an_answer_in_openais_form(chat_url, chat_speaker):
    whole = answer(chat_speaker, max_tokens=24)
    stop = whole[5:7]
    body = {"model": "tiny", "messages": TALK, "max_completion_tokens": 24, "stop": stop}
    with send(f"{chat_url}/v1/chat/completions", body) as got:
        (choice,) = json.loads(got.read())["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")


@pytest.mark.openai
def test_openais_own_client_asks_and_streams(chat_url, chat_speaker):
    import openai

    client = openai.OpenAI(base_url=f"{chat_url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["tiny"]
    told = answer(chat_speaker, max_tokens=10)
    whole = client.chat.completions.create(model="tiny", messages=TALK, max_tokens=10)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (told, "length")
    assert whole.usage.completion_tokens == 10
    pieces = client.chat.completions.create(model="tiny", messages=TALK, max_tokens=10, stream=True, seed=3)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == told
    drawn = client.chat.completions.create(
        model="tiny", messages=TALK, max_tokens=10, temperature=2.0, extra_body={"top_k": 3}
    )
    assert drawn.choices[0].message.content != told
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.chat.completions.create(model="other", messages=TALK)
    heard = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    with pytest.raises(openai.BadRequestError, match="there are recordings, which this model does not take"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [heard]}])


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"model": "other"}, 404, "there is no model 'other': tiny can be asked"),
        ({"model": None}, 400, "model must be a name"),
        ({"messages": None}, 400, "messages must be a list"),
        ({"messages": [user("x", "data:image/png;base64,aGVsbG8=")]}, 400, "messages[0].content[0] cannot be used"),
        ({"messages": [user("x", "data:image/png;base64,%%%")]}, 400, "messages[0].content[0]: this is no base64"),
        ({"messages": [user("x", "file:///etc/passwd")]}, 400, "only data URIs are read"),
        ({"messages": [user("x", "data:video/mp4;base64," + URI.partition(",")[2][:100])]}, 400, "ends early"),
        ({"messages": [{"role": "user", "content": [FILM]}]}, 400, "there are videos"),
        ({"temperature": "hot"}, 400, "temperature is 'hot': it must be a number"),
        ({"temperature": True}, 400, "temperature is True: it must be a number"),
        ({"seed": 1.5}, 400, "seed is 1.5: it must be a whole number"),
        ({"seed": 2**40}, 400, "it must be 0 to 2147483647"),
        ({"max_tokens": 0}, 400, "max_tokens is 0: it must be at least 1"),
        ({"top_k": 4}, 400, "top_k chooses what is drawn from"),
        ({"stream": 1}, 400, "stream is 1: it must be true or false"),
        ({"stop": [1]}, 400, "stop must be a text"),
        ({"n": 2}, 400, "n is not followed here"),
        ({"tools": [{}]}, 400, "tools is not followed here"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty is not followed here"),
        ({"temprature": 1}, 400, "unknown field 'temprature'; did you mean 'temperature'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_in_one_line(chat_url, change, status, told):
    body = {"model": "tiny", "messages": [user("hm?")]} | change
    for path in ("/v1/chat/completions", "/ask"):
        got = refused(f"{chat_url}{path}", body)
        assert got[0] == status
        assert told in got[1]


def test_a_file_that_is_broken_in_any_way_is_refused(chat_url):
    for data in (
        PICTURE[:40],
        PICTURE[:-200],
        b"GIF89a",
        b"%PDF-1.4",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0" * 999,
    ):
        uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        status, told = refused(f"{chat_url}/ask", {"model": "tiny", "messages": [user("x", uri)]})
        assert status == 400
        assert told.startswith("messages[0].content[0]")
    assert is_alive(chat_url)
