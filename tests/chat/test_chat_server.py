"""The server answers as the model does, in OpenAI's form too, and refuses what could do harm."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import shutil
import socket
import threading
import time

import pytest
from talking import PICTURE, URI, asked, make_run, refused, send, serving, user

from jaxmm.chat import guard, line, openai_api, terminal
from jaxmm.chat.address import PORT, TRIED, is_local, listen
from jaxmm.chat.guard import Guard
from jaxmm.chat.messages import read_messages
from jaxmm.chat.speaker import DEFAULTS, Speaker
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.errors import UserError

TALK = [user("Colour?", URI), {"role": "assistant", "content": "red"}, user("And now?")]

FILM = {"type": "video_url", "video_url": {"url": URI}}


def answer(speaker: Speaker, messages=TALK, **options) -> str:
    """By the model itself."""
    question = speaker.question(read_messages(messages), options)
    return next(event.text for event in speaker.answer(question, lambda: False) if hasattr(event, "finish"))


def told(events) -> str:
    return next(event["text"] for event in events if event["event"] == "end")


def is_alive(url: str) -> bool:
    return asked(url, "tiny", [user("hm?")], max_tokens=2)[-1]["event"] == "look"


def test_the_page_is_whole_and_its_policy_allows_its_own_script_alone(chat_url):
    with send(chat_url) as page:
        html = page.read().decode()
        assert page.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert page.headers["x-frame-options"] == "DENY"
    policy = html.partition('http-equiv="Content-Security-Policy" content="')[2].partition('"')[0]
    allowed = dict(directive.split(" ", 1) for directive in policy.split("; "))
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert allowed == {
        "default-src": "'none'", "img-src": "data:", "media-src": "data:", "style-src": "'unsafe-inline'",
        "connect-src": "'self'", "script-src": f"'sha256-{digest}'", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    assert "For looking at a model in training" in html
    assert 'src="' not in html.split("<script")[0]
    assert "on" + "click=" not in html


def test_the_events_of_an_answer_are_its_text_and_where_it_looked(chat_url, chat_speaker):
    start, *events = asked(chat_url, "tiny", TALK, max_tokens=12)
    assert start["step"] == 2
    assert len(start["job"]) == 16
    (end,) = [event for event in events if event["event"] == "end"]
    assert end["text"] == answer(chat_speaker, max_tokens=12)
    assert "".join(event["text"] for event in events if event["event"] == "text") == end["text"]
    assert (end["finish"], end["tokens"]) == ("length", 12)
    assert events[-1]["event"] == "look"
    assert "".join(events[-1]["look"]["tokens"]) == end["text"]


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


def strict(text: str):
    def refuse(word: str):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_diverged_model_answers_in_json_with_null_where_it_has_no_number(tmp_path, monkeypatch, capsys):
    diverged = Speaker("diverged", make_run(tmp_path / "diverged", factor=float("nan")))
    body = {"model": "diverged", "messages": TALK, "max_tokens": 3}
    with serving([diverged]) as url:
        with send(f"{url}/ask", body) as got:
            events = [strict(text) for text in got.read().decode().splitlines()]
        with send(f"{url}/v1/chat/completions", body | {"stream": True}) as got:
            assert "NaN" not in got.read().decode()
    assert set(events[-1]["look"]["maps"]["scale"]) == {None}
    lines = iter(["hm?"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, "/quit"))
    assert terminal.talk([diverged], DEFAULTS | {"max_tokens": 3}) == 0
    assert "looked nowhere: the model's numbers are not finite" in capsys.readouterr().out


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


def test_a_bad_request_stops_no_later_one(chat_url, monkeypatch):
    monkeypatch.setattr(guard, "MOST_BYTES", 100_000)
    for body in (b"", b"{", b"[" * 90_000, b"\xff\xfe", b"[]", b"3"):
        assert refused(f"{chat_url}/ask", body)[0] == 400
    assert refused(f"{chat_url}/ask", b" " * 100_001)[0] == 413

    def chunks():
        yield from (b" " * 1000 for _ in range(200))

    connection = http.client.HTTPConnection(chat_url.removeprefix("http://"), timeout=30)
    headers = {"content-type": "application/json", "transfer-encoding": "chunked"}
    try:
        connection.request("POST", "/ask", chunks(), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server hung up before all was sent
    finally:
        connection.close()
    assert is_alive(chat_url)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"}, {"host": "evil.example:80"}, {"host": "127.0.0.1.evil.example"}, {"host": ""},
        {"host": "[::1"}, {"host": "192.168.0.5"}, {"origin": "http://evil.example"}, {"origin": "null"},
        {"origin": "http://127.0.0.1:1"}, {"origin": "http://[x"}, {"origin": "http://[::1]:x"},
        {"host": "localhost:x"}, {"origin": "ftp://{}"}, {"sec_fetch_site": "cross-site"},
    ],
)  # fmt: skip
def test_other_names_and_other_sites_are_refused(chat_url, headers):
    headers = {name: value.format(chat_url.removeprefix("http://")) for name, value in headers.items()}
    assert refused(f"{chat_url}/ask", {"model": "tiny", "messages": [user("hm?")]}, **headers)[0] == 403
    if "host" in headers:
        assert refused(chat_url, **headers)[0] == 403


def test_only_json_is_taken_and_nothing_is_allowed_to_other_sites(chat_url):
    body = {"model": "tiny", "messages": [user("hm?")]}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert refused(f"{chat_url}/ask", body, content_type=kind)[0] == 415
    connection = http.client.HTTPConnection(chat_url.removeprefix("http://"), timeout=30)
    connection.request("OPTIONS", "/ask", headers={"origin": "http://evil.example"})
    got = connection.getresponse()
    assert got.status == 403
    assert not any(name.startswith("access-control") for name, _ in got.getheaders())
    connection.close()
    with send(f"{chat_url}/ask", body, origin=chat_url, sec_fetch_site="same-origin") as own:
        assert own.status == 200


def test_nothing_lies_behind_a_path(chat_url):
    for path in (
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.js",
        "/static/",
        "//etc/passwd",
        "/docs",
        "/ask",
    ):
        connection = http.client.HTTPConnection(chat_url.removeprefix("http://"), timeout=30)
        connection.request("GET", path)
        got = connection.getresponse()
        assert got.status in (404, 405), path
        assert b"root:" not in got.read()
        connection.close()


@pytest.mark.parametrize(
    ("bound", "named", "is_ours"),
    [
        ("127.0.0.1", "localhost:8642", True), ("127.0.0.1", "[::1]:8642", True), ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "10.0.0.2", False), ("box.local", "box.local:8642", True), ("box.local", "other.local", False),
        ("0.0.0.0", "10.0.0.2:8642", True), ("0.0.0.0", socket.gethostname(), True), ("0.0.0.0", "evil.example", False),
        ("::", "[fe80::1]:8642", True), ("0.0.0.0", "", False), ("0.0.0.0", "0.0.0.0.evil.example", False),
    ],
)  # fmt: skip
def test_a_server_knows_its_names(bound, named, is_ours):
    assert Guard(None, bound)._is_ours(named) is is_ours


def test_only_this_machine_is_local():
    assert [is_local(host) for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9")] == [True] * 4
    assert [is_local(host) for host in ("0.0.0.0", "::", "10.0.0.2", "box")] == [False] * 4


def test_a_free_port_is_found_and_a_taken_one_is_told():
    first = listen("127.0.0.1", 0)
    second = listen("127.0.0.1", 0)
    try:
        ports = [one.getsockname()[1] for one in (first, second)]
        assert PORT <= ports[0] < ports[1] < PORT + TRIED
        with pytest.raises(UserError, match=f"--port {ports[0]}: Address already in use"):
            listen("127.0.0.1", ports[0])
    finally:
        first.close()
        second.close()


def test_a_client_that_goes_ends_its_answer(chat_url, monkeypatch, chat_speaker):
    monkeypatch.setattr(line, "TELL_EVERY", 0.05)
    written = []
    whole = chat_speaker.answer

    def endless(question, is_stopped, is_gone, with_look):
        while not is_gone():
            written.append(0)
            time.sleep(0.01)
            yield from ()
        written.append("ended")

    monkeypatch.setattr(chat_speaker, "answer", endless)
    for path, more in (("/ask", {}), ("/v1/chat/completions", {}), ("/v1/chat/completions", {"stream": True})):
        connection = http.client.HTTPConnection(chat_url.removeprefix("http://"), timeout=30)
        body = json.dumps({"model": "tiny", "messages": [user("hm?")], **more})
        del written[:]
        connection.request("POST", path, body, {"content-type": "application/json"})
        end = time.monotonic() + 20
        while not written and time.monotonic() < end:
            time.sleep(0.01)
        connection.close()
        while "ended" not in written and time.monotonic() < end:
            time.sleep(0.01)
        assert written[-1] == "ended", (path, more)
    monkeypatch.setattr(chat_speaker, "answer", whole)
    assert is_alive(chat_url)


def test_stop_ends_an_answer_that_is_then_shown_as_it_is(chat_url, chat_speaker):
    body = {"model": "tiny", "messages": [user("hm?")], "max_tokens": 2000}
    with send(f"{chat_url}/ask", body) as answer:
        job = json.loads(answer.readline())["job"]
        while json.loads(answer.readline())["event"] != "text":
            pass
        with send(f"{chat_url}/stop", {"job": job}) as told:
            assert json.loads(told.read()) == {"stopped": True}
        events = [json.loads(text) for text in answer]
    (end,) = [event for event in events if event["event"] == "end"]
    assert end["finish"] == "stopped"
    assert end["tokens"] < 2000
    assert events[-1]["event"] == "look"
    with send(f"{chat_url}/stop", {"job": job}) as told:
        assert json.loads(told.read()) == {"stopped": False}


def test_two_runs_are_asked_by_name_and_each_takes_its_newest_checkpoint(chat_speaker, tmp_path):
    other = Speaker("other", make_run(tmp_path / "other", seed=2))
    with serving([chat_speaker, other]) as url:
        with send(f"{url}/v1/models") as models:
            assert [one["id"] for one in json.loads(models.read())["data"]] == ["tiny", "other"]
        first, second = (told(asked(url, name, TALK, max_tokens=9)) for name in ("tiny", "other"))
        assert (first, second) == (answer(chat_speaker, max_tokens=9), answer(other, max_tokens=9))
        assert first != second
        newer = make_run(tmp_path / "newer", seed=1, step=4)
        shutil.copytree(newer / "checkpoints/4", other.folder / "checkpoints/4")
        with send(f"{url}/reload", {"model": "other"}) as facts:
            assert json.loads(facts.read())["step"] == 4
        events = asked(url, "other", TALK, max_tokens=9)
        assert (events[0]["step"], told(events)) == (4, first)
        with Checkpoints(other.folder / "checkpoints") as checkpoints:
            assert checkpoints.steps() == [2, 4]
        assert refused(f"{url}/reload", {"model": "none"})[0] == 404


def test_a_newer_checkpoint_is_loaded_by_the_thread_that_computes_and_a_fault_is_one_line(
    chat_speaker, chat_url, monkeypatch
):
    def load(folder, step=""):
        raise (UserError if step else OSError)(f"broken\nin {threading.current_thread().name}")

    seen = []
    monkeypatch.setattr(chat_speaker, "reload", lambda: seen.append(threading.current_thread().name))
    with send(f"{chat_url}/reload", {"model": "tiny"}) as facts:
        assert json.loads(facts.read())["name"] == "tiny"
    assert seen == ["answers"]
    monkeypatch.setattr(chat_speaker, "reload", lambda: load("", "4"))
    assert refused(f"{chat_url}/reload", {"model": "tiny"}) == (500, "broken in answers")
    monkeypatch.setattr(chat_speaker, "reload", lambda: load(""))
    assert refused(f"{chat_url}/reload", {"model": "tiny"}) == (500, line.FAILED)
    assert is_alive(chat_url)


def test_a_full_line_refuses_before_anything_is_decoded(chat_url, monkeypatch):
    monkeypatch.setattr(line, "MOST_WAITING", -1)
    monkeypatch.setattr(openai_api, "read_request", lambda body: 1 / 0)
    for path in ("/ask", "/v1/chat/completions"):
        status, said = refused(f"{chat_url}{path}", {"model": "tiny", "messages": [user("x", URI)]})
        assert (status, said) == (429, "0 questions wait already: try again later")


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


def test_the_commands_flags_are_what_a_request_leaves_out(chat_speaker):
    with serving([chat_speaker], max_tokens=5, temperature=1.5, top_p=0.8, seed=4) as url:
        drawn = told(asked(url, "tiny", TALK))
        assert drawn == answer(chat_speaker, max_tokens=5, temperature=1.5, top_p=0.8, seed=4)
        assert told(asked(url, "tiny", TALK, temperature=0, max_tokens=9)) == answer(chat_speaker, max_tokens=9)
