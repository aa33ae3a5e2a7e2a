"""Answers to prompts with images, as a command and for the samples of a run.

python -m jaxmm.generate --workdir=runs/base --image=cat.png --prompt="What is this?"
python -m jaxmm.generate --workdir=runs/base --prompts=prompts.jsonl > answers.jsonl

The most likely answer, unless --temperature is above 0. On a terminal it is printed as it is written.
"""

from __future__ import annotations

if __name__ == "__main__":
    from jaxmm.runtime import startup

    startup.end_on_interrupt()  # before large imports

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxmm import capacity, command, sharding
from jaxmm.checkpoints.params import chosen_step, saved_params
from jaxmm.corpus import cache_folder
from jaxmm.data.documents import Image
from jaxmm.errors import UserError
from jaxmm.inference import generation_config, sampling
from jaxmm.inference.answers import Prompt, make_generator, write
from jaxmm.inference.decode import Generator
from jaxmm.inference.sampling import Sampling
from jaxmm.inference.stop_strings import Reply
from jaxmm.json_text import parse_json
from jaxmm.recipe import Recipe, read_recipe
from jaxmm.runtime import startup

FLAGS: command.Flags = {
    "workdir": ("", "folder of the run to ask"),
    "image": ((), "pictures, comma between them; may be left out"),
    "prompt": ("", "what to ask"),
    "prompts": ("", "in place of them, a file with a JSON object a line: prompt, and image or images (paths from it)"),
    "batch_size": (8, "prompts of such a file that are answered at a time"),
    "max_tokens": (64, "longest answer, in tokens"),
    "temperature": (0.0, "0 is the most likely answer; above 0 answers are drawn, and a higher one is more random"),
    "top_p": (1.0, "draw from the likeliest tokens that have this probability together"),
    "top_k": (0, "draw from so many likeliest tokens; 0 is all"),
    "min_p": (0.0, "draw from tokens that are at least this likely beside the likeliest one"),
    "repetition_penalty": (0.0, "above 1, tokens that were there are less likely; 0 is as the model's folder says"),
    "seed": (0, "of the draws"),
    "stop": ("", "texts that end an answer, comma between them; \\n, \\t, \\, and \\\\ are what they look like"),
    "stream": (False, "print the answer as it is written; on a terminal it always is"),
    "step": ("", "checkpoint to ask: its step, or best; the newest if left out"),
}


def read_stops(text: str) -> list[str]:
    """Reads ``one,other`` with escapes: a comma, a newline, a tab and a backslash are written behind a backslash."""
    plain = {"n": "\n", "t": "\t", ",": ",", "\\": "\\"}
    words = [""]
    for piece in re.findall(r"\\.|,|[^\\,]+|\\", text, re.DOTALL):
        if piece == ",":
            words.append("")
        elif piece[0] == "\\" and piece[1:] not in plain:
            raise UserError(f"--stop '{text}': '{piece}' means nothing; a backslash itself is '\\\\'")
        else:
            words[-1] += plain[piece[1]] if piece[0] == "\\" else piece
    return [word for word in words if word]


def _image(path: Path, where: str) -> Image:
    if not path.is_file():
        raise UserError(f"{where} {path}: there is no such file")
    return Image(path=str(path.resolve()))


def read_prompts(name: str) -> list[tuple[dict[str, Any], Prompt]]:
    """Reads the objects of a file of prompts, each with the prompt it asks; images are paths from the file's folder.

    Raises:
      UserError: naming the line that is no object with a prompt or images.
    """
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--prompts {name}: there is no such file")
    prompts = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts {name} is not UTF-8: {error.reason} at byte {error.start}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}:"
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where} no valid JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("prompt", ""), str):
            raise UserError(f'{where} give an object such as {{"prompt": "What is this?", "image": "cat.png"}}')
        if "answer" in record or {"image", "images"} <= record.keys():
            raise UserError(f"{where} give 'image' or 'images', and no 'answer': that is the model's")
        images = record.get("images", record.get("image", []))
        images = [images] if isinstance(images, str) else images
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise UserError(f"{where} 'image' is a path, 'images' a list of paths")
        prompt = Prompt(tuple(_image(path.parent / image, where) for image in images), record.get("prompt", ""))
        if not prompt.images and not prompt.text:
            raise UserError(f"{where} neither a prompt nor an image")
        prompts.append((record, prompt))
    if not prompts:
        raise UserError(f"--prompts {name} holds no prompt")
    return prompts


def _check(args: Any) -> None:
    """Raises UserError for flags that are out of range or say nothing together."""
    if args.prompts and (args.prompt or args.image or args.stream):
        raise UserError("--prompts is a file of prompts: it goes without --prompt, --image and --stream")
    if not (args.prompts or args.prompt or args.image):
        raise UserError("nothing to answer: give --prompt, --image or both, or --prompts")
    if args.batch_size < 1:
        raise UserError(f"--batch_size is {args.batch_size}: it must be at least 1")
    sampling.check(vars(args))


class _Asker(NamedTuple):
    """A model, and how it is to answer."""

    generate: Generator
    params: Any
    recipe: Recipe
    max_tokens: int
    options: dict[str, Any]

    def write(self, prompts: Sequence[Prompt], **options: Any) -> Iterator[list[Reply]]:
        recipe = self.recipe
        return write(
            self.generate, self.params, prompts, recipe.template, recipe.image, self.max_tokens,
            **self.options, **options,
        )  # fmt: skip


def _print_one(asker: _Asker, prompt: Prompt, stream: bool) -> None:
    """Prints an answer, with ``stream`` as far as it is sure."""
    printed, reply = 0, None
    for (reply,) in asker.write([prompt], every=int(stream)):
        if stream:
            print(reply.sure()[printed:], end="", flush=True)
            printed = max(printed, len(reply.sure()))
    print(reply.text[printed:] if reply else "")


def _print_all(asker: _Asker, asked: Sequence[tuple[dict[str, Any], Prompt]], batch_size: int) -> None:
    """Prints each object with its "answer" in it, in order."""
    for first in range(0, len(asked), batch_size):
        group = asked[first : first + batch_size]
        prompts = [prompt for _, prompt in group]
        prompts += prompts[-1:] * (min(batch_size, len(asked)) - len(group))  # as many rows as the others: no compiling
        *_, replies = asker.write(prompts, first=first)
        for (record, _), reply in zip(group, replies, strict=False):
            print(json.dumps({**record, "answer": reply.text}, ensure_ascii=False), flush=True)


def main(argv: list[str]) -> int:
    """Prints the model's answer to one prompt, or to each of a file."""
    args = command.parse(argv, FLAGS, config="workdir", about=__doc__ or "")
    _check(args)
    stops = read_stops(args.stop)
    asked = read_prompts(args.prompts) if args.prompts else []
    pictures = tuple(_image(Path(name), "--image") for name in args.image)
    startup.keep_compiled(cache_folder(args.config))
    workdir = Path(args.workdir)
    recipe = read_recipe(args.config, workdir)
    said = generation_config.said_by(recipe.start, workdir)
    for line in generation_config.differences(said, vars(args)):
        print(line, file=sys.stderr)
    penalty = generation_config.repetition_penalty(said, args.repetition_penalty)
    chosen = Sampling(args.temperature, args.top_p, args.seed, args.top_k, args.min_p, penalty)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    rows = min(args.batch_size, max(len(asked), 1))
    capacity.check_cache(recipe.model.decoder, recipe.compute, rows, args.max_tokens, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = saved_params(workdir, recipe, mesh, chosen_step(workdir, args.step))
        generate = make_generator(recipe.model, recipe.compute, recipe.template.stop_ids)
        asker = _Asker(generate, params, recipe, args.max_tokens, {"sampling": chosen, "stops": stops})
        if asked:
            _print_all(asker, asked, args.batch_size)
        else:
            _print_one(asker, Prompt(pictures, args.prompt), args.stream or sys.stdout.isatty())
    return 0


if __name__ == "__main__":
    command.run(main)
