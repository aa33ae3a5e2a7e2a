"""Talk with a model in training, in the browser or on a terminal: ask about a picture, and see where it looked.

python -m jaxmm.chat --workdir=runs/base
python -m jaxmm.chat --workdir=runs/a --workdir=runs/b
python -m jaxmm.chat --workdir=runs/base --terminal

It prints the address of a page on this machine, which answers OpenAI's chat completions too, under /v1. It is for
looking at a model, one question at a time; serving one to others is for programs that are made for that.
"""

from __future__ import annotations

if __name__ == "__main__":
    from jaxmm.runtime import startup

    startup.end_on_interrupt()  # before large imports

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmm import api, command
from jaxmm.chat import terminal
from jaxmm.chat.address import EVERYWHERE, PORT, is_local, listen
from jaxmm.chat.speaker import DEFAULTS, Speaker
from jaxmm.config.file import load_workdir
from jaxmm.corpus import cache_folder
from jaxmm.errors import UserError, extra
from jaxmm.hf.folder import is_folder
from jaxmm.inference import sampling
from jaxmm.runtime import startup

MOST_MODELS = 2
FLAGS: command.Flags = {
    "workdir": ((), "folder of a run, or of a Hugging Face model; given twice, two are asked side by side"),
    "step": ("", "checkpoint to ask: its step, or best; the newest if left out"),
    "terminal": (False, "talk here, in place of a page"),
    "host": ("127.0.0.1", "address to listen at; others than this machine's own let everybody who reaches it ask"),
    "port": (0, f"port to listen at; the default, 0, is {PORT}, or the next one that is free"),
    "max_tokens": (DEFAULTS["max_tokens"], "longest answer, in tokens, where nothing else is asked for"),
    "temperature": (0.0, "0 is the most likely answer; above 0 answers are drawn; where nothing else is asked for"),
    "top_p": (1.0, "draw from the likeliest tokens that have this probability together"),
    "seed": (0, "of the draws"),
}


def main(argv: list[str]) -> int:
    """Loads the models, and talks until it is interrupted."""
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "", repeated=("workdir",))
    options = DEFAULTS | {name: getattr(args, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
    sampling.check(options)
    if not 1 <= len(args.workdir) <= MOST_MODELS:
        raise UserError(f"give --workdir: the folder of a run, or {MOST_MODELS} of them; not {len(args.workdir)}")
    if not args.terminal:
        _check_extra()
    folders = [Path(folder) for folder in args.workdir]
    for folder in folders:
        if not is_folder(folder):
            load_workdir(str(folder))  # says what is wrong with it
    startup.keep_compiled(cache_folder(api.load_config("base" if is_folder(folders[0]) else folders[0])))
    speakers = [Speaker(name, folder, args.step) for name, folder in zip(_names(folders), folders, strict=True)]
    if args.terminal:
        return terminal.talk(speakers, options)
    opened = listen(args.host, args.port)
    port = opened.getsockname()[1]
    if not is_local(args.host):
        print(
            f"warning: {args.host} is reached from the network: everybody there can ask the model, and send it files",
            file=sys.stderr,
        )
    shown = "127.0.0.1" if args.host in EVERYWHERE else args.host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    for speaker in speakers:
        at = "" if speaker.step is None else f", step {speaker.step}"
        print(f"{speaker.name}: {speaker.folder}{at}")
    print(f"{address}/ is the page, {address}/v1 the OpenAI-compatible API; Ctrl-C ends", flush=True)
    _serve(speakers, args.host, opened, options)
    return 0


def _check_extra() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs the extra chat: {extra('chat')}") from error


def _names(folders: Sequence[Path]) -> list[str]:
    """What models are asked by: their folders' names, numbered where they are the same."""
    names = [folder.resolve().name or "model" for folder in folders]
    return [name if names.count(name) == 1 else f"{name}-{n}" for n, name in enumerate(names, start=1)]


def _serve(speakers: Sequence[Speaker], host: str, opened: socket.socket, options: dict[str, Any]) -> None:
    import uvicorn

    from jaxmm.chat.server import make_app

    config = uvicorn.Config(
        make_app(speakers, host, options), log_level="warning", access_log=False, lifespan="off", http="h11", ws="none",
        proxy_headers=False, server_header=False, limit_concurrency=64, timeout_graceful_shutdown=2,
    )  # fmt: skip
    try:
        uvicorn.Server(config).run(sockets=[opened])
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
