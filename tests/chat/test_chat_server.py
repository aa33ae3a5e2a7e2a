"""The server answers as the model does, and each run as generate; it ends, waits and reloads as asked."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import shutil
import threading
import time
from pathlib import Path

from talking import COLOUR, PICTURE, TALK, URI, answer, asked, is_alive, make_run, refused, send, serving, told, user

from jaxmm import generate
from jaxmm.chat import line, openai_api, terminal
from jaxmm.chat.speaker import DEFAULTS, Speaker
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.errors import UserError


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
    assert told(events) == answer(chat_speaker, max_tokens=12)
    assert (end["finish"], end["tokens"]) == ("length", 12)
    assert events[-1]["event"] == "look"
    assert "".join(events[-1]["look"]["tokens"]) == end["text"]


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
        end = time.monotonic() + 60
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


def generated(folder: Path, capsys, **options) -> str:
    """What ``generate`` prints for a picture and a question."""
    (folder / "a.png").write_bytes(PICTURE)
    flags = [f"--{name}={value}" for name, value in options.items()]
    capsys.readouterr()
    generate.main([f"--workdir={folder}", f"--image={folder / 'a.png'}", "--prompt=Colour?", *flags])
    return capsys.readouterr().out.removesuffix("\n")


def test_two_runs_are_asked_by_name_and_each_streams_what_generate_prints(chat_speaker, tmp_path, capsys):
    other, drawn = Speaker("other", make_run(tmp_path / "other", seed=2)), {"temperature": 1.5, "seed": 3, "top_p": 0.9}
    with serving([chat_speaker, other]) as url:
        with send(f"{url}/v1/models") as models:
            assert [one["id"] for one in json.loads(models.read())["data"]] == ["tiny", "other"]
        texts = []
        for one, options in ((chat_speaker, {}), (other, {}), (chat_speaker, drawn)):
            events = asked(url, one.name, [COLOUR], **options)
            assert sum(event["event"] == "text" for event in events) > 12, "it comes in pieces"
            texts.append(told(events))
            assert texts[-1] == generated(one.folder, capsys, **options)
        assert len(set(texts)) == 3


def test_a_run_takes_its_newest_checkpoint(chat_speaker, tmp_path):
    other = Speaker("other", make_run(tmp_path / "other", seed=2))
    newer = make_run(tmp_path / "newer", seed=1, step=4)
    shutil.copytree(newer / "checkpoints/4", other.folder / "checkpoints/4")
    with serving([other]) as url:
        with send(f"{url}/reload", {"model": "other"}) as facts:
            assert json.loads(facts.read())["step"] == 4
        events = asked(url, "other", TALK, max_tokens=9)
        assert (events[0]["step"], told(events)) == (4, answer(chat_speaker, max_tokens=9))
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


def test_the_commands_flags_are_what_a_request_leaves_out(chat_speaker):
    with serving([chat_speaker], max_tokens=5, temperature=1.5, top_p=0.8, seed=4) as url:
        drawn = told(asked(url, "tiny", TALK))
        assert drawn == answer(chat_speaker, max_tokens=5, temperature=1.5, top_p=0.8, seed=4)
        assert told(asked(url, "tiny", TALK, temperature=0, max_tokens=9)) == answer(chat_speaker, max_tokens=9)
