"""Files of prompts for ``generate`` that are damaged: each prompt is answered, or the line that is wrong is named."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from faulting.bench import Bench
from faulting.damage import damaged, damaged_json
from faulting.trial import Trial, judged

FILES = {
    "nothing": "", "blank lines": "\n\n \n", "null": "null\n", "a list": "[]\n", "an empty object": "{}\n",
    "a deep nest": '{"prompt": ' + "[" * 100_000 + "\n", "a number for a picture": '{"prompt": "x", "image": 3}\n',
    "a picture that is not there": '{"prompt": "x", "image": "none.png"}\n',
    "a picture that is a folder": '{"prompt": "x", "image": "."}\n',
    "a picture that is a device": '{"prompt": "x", "image": "/dev/zero"}\n',
    "a picture at a URL": '{"prompt": "x", "image": "http://127.0.0.1:9/x.png"}\n',
    "a NUL in a name": '{"prompt": "x", "image": "a\\u0000b"}\n',
    "half a letter": '{"prompt": "\\ud800"}\n',
    "a long prompt": json.dumps({"prompt": "x" * 1_000_000}) + "\n",
    "placeholders": json.dumps({"prompt": "<image><image>"}) + "\n",
    "an array": json.dumps([{"prompt": "hi"}]) + "\n",
    "an integer of many digits": '{"prompt": "x", "id": ' + "9" * 10_000 + "}\n",
}  # fmt: skip


def trials(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    folder = bench.place()
    file = folder / "prompts.jsonl"
    pictures = [str(bench.data.parent / f"{number}.png") for number in range(4)]
    lines = [json.dumps({"prompt": f"Colour {n}?", "image": picture}) for n, picture in enumerate(pictures)]
    kind = rng.choice(("hostile", "value", "bytes"))
    if kind == "hostile":
        what = rng.choice(list(FILES))
        data = FILES[what].encode()
    elif kind == "value":
        what, lines[1] = damaged_json(rng, lines[1])
        data = "\n".join(lines).encode()
    else:
        what, data = damaged(rng, "\n".join(lines).encode())
    file.write_bytes(data)
    argv = [f"--workdir={bench.whole}", f"--prompts={file}", "--max_tokens=4", "--batch_size=4"]
    ended = bench.run("jaxmm.generate", argv)
    asked = sum(bool(line.strip()) for line in data.decode(errors="replace").split("\n"))

    def wrong() -> str:
        answers = sum(line.startswith("{") for line in ended.output.splitlines())
        return "" if answers == asked else f"{answers} answers to {asked} lines"

    verdict, told = judged(ended, wrong)
    yield Trial("", f"prompts: {what}", verdict, told)
