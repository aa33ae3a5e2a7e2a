"""A tiny run with letters for answers, and a server over it, for the tests of the chat."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import jax
import numpy as np
import uvicorn
from conftest import picture

from jaxmm import command
from jaxmm.chat.address import listen
from jaxmm.chat.messages import read_messages
from jaxmm.chat.server import make_app
from jaxmm.chat.speaker import DEFAULTS, End, Piece, Speaker
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.models.multimodal import flat_axes
from jaxmm.models.tree import nested
from jaxmm.recipe import read_recipe

ROOT = Path(__file__).parents[2]
TINY = (
    "--config.vision.width=16", "--config.vision.layers=1", "--config.vision.heads=2", "--config.vision.mlp=32",
    "--config.connector.mlp=32", "--config.decoder.width=32", "--config.decoder.heads=2",
    "--config.decoder.head_dim=16", "--config.decoder.mlp=64",
)  # fmt: skip
PICTURE = picture(32, 48).data
URI = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"


def make_run(folder: Path, seed: int = 1, step: int = 2, factor: float = 1.0, layers: int = 2) -> Path:
    """A workdir with a checkpoint of random parameters, which write letters, some of more than one token.

    Args:
      factor: of all parameters; NaN is a run that has diverged.
      layers: of the decoder.
    """
    config = command.parse(
        [f"--config={ROOT / 'configs/base.py'}", *TINY, f"--config.decoder.layers={layers}"], {}
    ).config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(command.to_json(config)))
    recipe, rng = read_recipe(config), np.random.default_rng(seed)
    letters = recipe.template.tokenizer.encode("abcde é€", add_special_tokens=False)
    params = {}
    for path, (shape, _) in flat_axes(recipe.model).items():
        value = 0.3 * rng.standard_normal(shape, np.float32) + float(path[-1] == "scale")
        if path[-1] == "head":
            value *= np.isin(np.arange(len(value)), letters)[:, None]  # other tokens have the logit 0
        params[path] = jax.numpy.asarray(value * np.float32(factor))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(step, {"params": nested(params)}, {"position": step})
        checkpoints.wait()
    return folder


@contextlib.contextmanager
def serving(speakers: Sequence[Speaker], host: str = "127.0.0.1", **options: Any) -> Iterator[str]:
    """The address of a server in a thread."""
    opened = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        make_app(speakers, host, DEFAULTS | options), log_level="warning", lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{opened.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        opened.close()


def send(url: str, body: Any = None, **headers: str) -> HTTPResponse:
    """GETs, or POSTs JSON (bytes as they are); urllib.error.HTTPError for a refusal."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    names = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return urllib.request.urlopen(urllib.request.Request(url, data, names), timeout=120)


def refused(url: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """The status of a refusal, and its one line."""
    try:
        send(url, body, **headers)
    except urllib.error.HTTPError as error:
        said = json.loads(error.read())["error"]
        assert set(said) == {"message", "type", "param", "code"}
        assert "\n" not in said["message"]
        return error.code, said["message"]
    raise AssertionError("it was not refused")


def user(text: str, *uris: str) -> dict[str, Any]:
    """A message of the user's, pictures first."""
    pictures = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def asked(url: str, model: str, messages: Any, **options: Any) -> list[dict[str, Any]]:
    """The events of the page's own endpoint."""
    body = {"model": model, "messages": messages, **options}
    with send(f"{url}/ask", body) as answer:
        return [json.loads(line) for line in answer]


def uploaded(data: bytes, name: str) -> dict[str, Any]:
    """A message of two pictures, of which the first is fine, with the names of their files as the page gives them."""
    files = {"fine.png": PICTURE, name: data}
    media = [
        {"url": f"data:image/png;base64,{base64.b64encode(of).decode()}", "name": one} for one, of in files.items()
    ]
    return {"role": "user", "content": [{"type": "image_url", "image_url": one} for one in media]}


COLOUR, AGAIN = user("Colour?", URI), user("And now?")
TALK = [COLOUR, {"role": "assistant", "content": "red"}, AGAIN]
HEARD = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}


def answered(
    speaker: Speaker, messages: Any, is_stopped: Callable[[], bool] = lambda: False, **options: Any
) -> list[Any]:
    """The events of a model's answer, without a server."""
    return list(speaker.answer(speaker.question(read_messages(messages), options), is_stopped))


def text_of(events: Sequence[Any]) -> str:
    """The text of such an answer, which its pieces are, too."""
    (end,) = [event for event in events if isinstance(event, End)]
    assert "".join(event.text for event in events if isinstance(event, Piece)) == end.text
    return end.text


def answer(speaker: Speaker, messages: Any = TALK, **options: Any) -> str:
    """The text alone."""
    return text_of(answered(speaker, messages, **options))


def longer(speaker: Speaker, tokens: int) -> Callable[..., Iterator[Any]]:
    """``speaker.answer``, whose answers say that they have so many tokens, whatever they are."""
    answer = speaker.answer

    def said(*args: Any) -> Iterator[Any]:
        return (event._replace(tokens=tokens) if isinstance(event, End) else event for event in answer(*args))

    return said


def told(events: Sequence[Any]) -> str:
    """The text of an answer of the page's own endpoint, which its pieces are, too."""
    (end,) = [event["text"] for event in events if event["event"] == "end"]
    assert "".join(event["text"] for event in events if event["event"] == "text") == end
    return end


def is_alive(url: str) -> bool:
    return asked(url, "tiny", [user("hm?")], max_tokens=2)[-1]["event"] == "look"
