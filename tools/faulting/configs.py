"""Hostile values of config keys, and config files that are damaged or were written to annoy."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

from faulting.bench import Bench, metrics
from faulting.damage import damaged, damaged_json
from faulting.process import ROOT
from faulting.trial import HANDLED, HANG, Ended, Trial, judged
from jaxmm.atomic import read_json
from jaxmm.config.keys import KEYS

SHORT = ("--config.checkpoint.every=0",)  # the steps are those of the whole run: the same program, compiled once
NUMBERS = (
    "-1", "0", "1", "2", "3", "7", "1000", "1e9", "1e15", "2147483647", "2147483648", "9223372036854775808", "nan",
    "inf", "-inf", "0.5", "-0.5", "1e-300", "1e300", "", "abc", "True", "0x10", "1_000", "\uff11", " 1", "--",
)  # fmt: skip
STRINGS = (
    "", " ", "x", "../../x", "/etc/passwd", "/dev/null", "/dev/zero", "~nobody/x", "x" * 5000, "\u00e9\u4e2d", "%s{}",
    "-1", "x:1", "x:1,x:2", "x:-1", "x:nan", "x:1e999", ":", ",", "@", "x:1 @5 x:2", "http://127.0.0.1:9/x", "gs://b/x",
    "[", "*", "**/*", "(", "\x1b[31m", "\\", "colours:1", "colours", "sft", "none", "None", "adamw", "auto",
)  # fmt: skip
BOOLS = ("", "maybe", "2", "-1", "None", "true", "False")

FILES = {
    "no end": "while True:\n    pass\n",
    "an exit": "import sys\nsys.exit(0)\n",
    "an error": "def get_config():\n    return 1 / 0\n",
    "a syntax error": "def get_config(:\n",
    "no function": "x = 1\n",
    "a number for the function": "get_config = 3\n",
    "nothing returned": "def get_config():\n    pass\n",
    "a dict returned": "def get_config():\n    return {'steps': 3}\n",
    "an endless recursion": "def get_config():\n    return get_config()\n",
    "arguments": "def get_config(a, b):\n    return a\n",
    "nothing": "",
    "zeros": "\0" * 100,
    "binary": "\x89PNG\r\n\x1a\n\xff\xfe",
    "an import that is not there": "import not_there\n",
    "a circle": "import ml_collections\ndef get_config():\n    c = ml_collections.ConfigDict()\n"
    "    c.a = c\n    return c\n",
    "a key group as a value": "import ml_collections\ndef get_config():\n"
    "    return ml_collections.ConfigDict({'decoder': 5})\n",
    "an unknown key": "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'stepz': 5})\n",
    "a value that is no value": "import ml_collections\ndef get_config():\n"
    "    return ml_collections.ConfigDict({'steps': object()})\n",
    "an empty config": "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n",
    "nan": "import ml_collections\ndef get_config():\n"
    "    return ml_collections.ConfigDict({'optimizer': {'rate': float('nan')}})\n",
    "keys that are no strings": "import ml_collections\ndef get_config():\n"
    "    return ml_collections.ConfigDict({1: 5})\n",
}


def values(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """One key has a value of its kind's worst."""
    name = rng.choice(list(KEYS))
    default = KEYS[name].default
    pool = {bool: BOOLS, int: NUMBERS, float: NUMBERS}.get(type(default), STRINGS)
    value, workdir = rng.choice(pool), bench.place() / "run"
    ended = bench.train(workdir, *SHORT, f"--config.{name}={value}", limit=60)
    verdict, told = judged(ended, lambda: wrong_numbers(ended, workdir))
    if verdict == HANG and metrics(workdir)[0]:  # so many steps were asked for
        verdict, told = HANDLED, f"it trains; {told}"
    yield Trial("", f"config.{name}={value!a:.40}", verdict, told)


def wrong_numbers(ended: Ended, workdir: Path) -> str:
    """What is wrong with the numbers of a run that ended well, or ''."""
    losses, broken = metrics(workdir)
    found = read_json(workdir / "summary.json")
    loss = found.get("loss")
    if not found:
        return "" if "finished" in ended.output else "there is no summary.json"
    if broken or any(each is not None and not math.isfinite(each) for each in (loss, *losses.values())):
        return f"the loss is {loss}, over steps {losses}"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    bad = max((line.get("bad_steps", 0) for line in lines), default=0)
    return f"{bad} steps were not finite" if bad else ""


def files(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """A config file, or the config.json that a run left."""
    kind = rng.choice(("hostile", "damaged", "run"))
    if kind == "run":
        yield _of_run(bench, rng)
        return
    folder = bench.place()
    file = folder / "config.py"
    if kind == "hostile":
        what = rng.choice(list(FILES))
        file.write_text(FILES[what], encoding="latin-1")
    else:
        what, data = damaged(rng, (ROOT / "configs/base.py").read_bytes())
        file.write_bytes(data)
    ended = bench.train(folder / "run", f"--config={file}", *SHORT)
    verdict, told = judged(ended, lambda: wrong_numbers(ended, folder / "run"))
    yield Trial("", f"config file with {what}", verdict, told)


def _of_run(bench: Bench, rng: random.Random) -> Trial:
    workdir = bench.copied(bench.whole)
    file = workdir / "config.json"
    if rng.random() < 0.5:
        what, text = damaged_json(rng, file.read_text())
        file.write_text(text)
    else:
        what, data = damaged(rng, file.read_bytes())
        file.write_bytes(data)
    verdict, told = judged(bench.run("jaxmm.generate", [f"--workdir={workdir}", "--prompt=hi", "--max_tokens=4"]))
    return Trial("", f"config.json of a run: {what}", verdict, told)
