"""Folders of others' models: weights, settings, tokenizers and chat templates that are damaged or mean harm."""

from __future__ import annotations

import functools
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from faulting.bench import Bench, once
from faulting.configs import SHORT, wrong_numbers
from faulting.damage import damaged, damaged_json
from faulting.process import ROOT
from faulting.trial import Trial, judged

LONG = 120.0  # seconds: another model is another program to compile
NOT_A_MODEL = ("README.md",)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HOSTILE = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a huge string": "{{ 'x' * 10 ** 10 }}",
    "a doubled string": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    "{{ n.x }}",
    "a huge power": "{{ 10 ** 10 ** 10 }}",
    "a huge width": "{{ '%0999999999d' % 1 }}",
    "an endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a way out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ messages.__init__.__globals__ }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "a refusal": "{{ raise_exception('not this one') }}",
    "nothing": "",
    "no contents": "hello",
    "no answers": "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
    "a random text": "{{ range(10) | random }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "contents in reverse": "{% for m in messages %}{{ m['content'] | reverse }}{% endfor %}",
    "contents in capitals": "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
    "contents twice": "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
    "a syntax error": "{% for m in messages %}{{ m['content'] }}",
    "an undefined name": "{% for m in messages %}{{ m.nothing.at.all }}{% endfor %}",
    "many words": "{{ 'word ' * 10 ** 4 }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "an unknown filter": "{{ messages | nothing }}",
    "escapes": "\x1b[31m{% for m in messages %}{{ m['content'] }}{% endfor %}\x1b[0m",
}


def models(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """A run begins with a folder, as ``transformers`` writes it, one file of which is damaged."""
    source = bench.folder / "exported"
    if not source.exists():
        bench.run("jaxmm.export", [f"--workdir={bench.whole}", f"--output={source}"])
    folder = bench.copied(source)
    what, workdir = _damage(rng, folder), bench.place() / "run"
    argv = once([
        f"--config={ROOT / 'configs/base.py'}", f"--config.init_from={folder}", f"--config.data.path={bench.data}",
        f"--config.data.cache={bench.folder / 'cache'}", "--config.batch_size=2", "--config.seq_len=96",
        "--config.mesh.data=1", "--config.mesh.fsdp=1", "--config.log.every=1", "--config.eval.every=0",
        "--config.optimizer.name=adamw", "--config.log.tensorboard=False", f"--workdir={workdir}", *SHORT,
    ])  # fmt: skip
    ended = bench.run("jaxmm.train", argv, LONG)
    verdict, told = judged(ended, lambda: wrong_numbers(ended, workdir))
    yield Trial("", f"model: {what}", verdict, told)


def tokenizers(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    folder = bench.copied(_tokenizer(bench.folder / "tokenizer"))
    yield _prepared(bench, folder, f"tokenizer: {_damage(rng, folder)}")


def templates(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    folder = bench.copied(_tokenizer(bench.folder / "tokenizer"))
    if rng.random() < 0.6:
        what = rng.choice(list(HOSTILE))
        (folder / "chat_template.jinja").write_text(HOSTILE[what])
    else:
        what, data = damaged(rng, TEMPLATE.encode())
        (folder / "chat_template.jinja").write_bytes(data)
    yield _prepared(bench, folder, f"template: {what}")


def _prepared(bench: Bench, folder: Path, what: str) -> Trial:
    argv = [f"--input={bench.data}", f"--output={bench.place()}", f"--tokenizer={folder}"]
    verdict, told = judged(bench.run("jaxmm.prepare", argv))
    return Trial("", what, verdict, told)


def _damage(rng: random.Random, folder: Path) -> str:
    file = rng.choice(sorted(path for path in folder.iterdir() if path.name not in NOT_A_MODEL))
    kind = rng.choice(("value", "value", "bytes", "lost"))
    if kind == "lost":
        file.unlink()
        what = "deleted"
    elif file.suffix == ".safetensors":
        what, data = _weights(rng, file.read_bytes())
        file.write_bytes(data)
    elif kind == "value" and file.suffix == ".json":
        what, text = damaged_json(rng, file.read_text())
        file.write_text(text)
    else:
        what, data = damaged(rng, file.read_bytes())
        file.write_bytes(data)
    return f"{file.name}, {what}"


def _weights(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """The head damaged, the end lost, or a number that is not finite: other numbers do not show."""
    (length,) = struct.unpack("<Q", data[:8])
    head, body = data[: 8 + length], data[8 + length :]
    kind = rng.choice(("head", "cut", "nan"))
    if kind == "head":
        what, head = damaged(rng, head)
        return f"head: {what}", head + body
    if kind == "cut":
        return "cut", data[: rng.randrange(len(data))]
    place = 4 * rng.randrange(len(body) // 4)
    return f"a NaN at byte {place} of its numbers", head + body[:place] + struct.pack("<f", float("nan")) + body[
        place + 4 :
    ]


@functools.cache
def _tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer of bytes, as ``transformers`` writes it."""
    import tokenizers as fast
    import transformers

    letters = {letter: number for number, letter in enumerate(sorted(fast.pre_tokenizers.ByteLevel.alphabet()))}
    inner = fast.Tokenizer(fast.models.BPE(letters, []))
    inner.pre_tokenizer = fast.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = fast.decoders.ByteLevel()
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
    )  # fmt: skip
    whole.chat_template = TEMPLATE
    shutil.rmtree(folder, ignore_errors=True)
    whole.save_pretrained(folder)
    return folder
