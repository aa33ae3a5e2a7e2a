"""Answers to prompts with pictures, videos and recordings, as a command and for the samples of a run.

python -m jaxmm.generate --workdir=runs/base --image=cat.png --prompt="What is this?"
python -m jaxmm.generate --workdir=runs/base --video=clip.mp4 --audio=speech.wav --prompt="What happens?"
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
from jaxmm.checkpoints.chosen import chosen_step
from jaxmm.checkpoints.params import saved_params
from jaxmm.corpus import cache_folder
from jaxmm.errors import UserError
from jaxmm.inference import generation_config, sampling
from jaxmm.inference.answers import Prompt, make_generator, write
from jaxmm.inference.decode import Generator
from jaxmm.inference.prompts import media_file, read_prompts
from jaxmm.inference.sampling import Sampling
from jaxmm.inference.stop_strings import Reply
from jaxmm.recipe import Recipe, fitted, read_recipe
from jaxmm.runtime import startup

TAGS = "<image>", "<video>", "<audio>"
FLAGS: command.Flags = {
    "workdir": ("", "folder of the run to ask"),
    "image": ((), "pictures, comma between them; may be left out"),
    "video": ((), "videos, comma between them: files, or folders of frames in the order of their names"),
    "audio": ((), "recordings, comma between them; a video's sound track is the video's file here too"),
    "prompt": ("", "what to ask"),
    "prompts": (
        "",
        "in place of them, a file with a JSON object a line: prompt, and image(s), video(s), audio(s) (paths from it)",
    ),
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


def _check(args: Any) -> None:
    """Raises UserError for flags that are out of range or say nothing together."""
    given = [*args.image, *args.video, *args.audio]
    if args.prompts and (args.prompt or given or args.stream):
        raise UserError("--prompts is a file of prompts: it goes without --prompt, --image, --video, --audio, --stream")
    if not (args.prompts or args.prompt or given):
        raise UserError("nothing to answer: give --prompt, or --image, --video or --audio, or --prompts")
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


def _tell_tags(texts: Sequence[str]) -> None:
    """Says that a tag in a prompt stands for no medium, as it would in training data."""
    for tag in TAGS:
        if any(tag in text for text in texts):
            print(f"{tag} in a prompt is text: before it come pictures, then videos, then recordings", file=sys.stderr)


def main(argv: list[str]) -> int:
    """Prints the model's answer to one prompt, or to each of a file."""
    args = command.parse(argv, FLAGS, config="workdir", about=__doc__ or "")
    _check(args)
    stops = read_stops(args.stop)
    asked = read_prompts(args.prompts) if args.prompts else []
    media = tuple(
        media_file(kind, Path(name), f"--{kind}")
        for kind in ("image", "video", "audio")
        for name in getattr(args, kind)
    )
    _tell_tags([args.prompt, *(prompt.text for _, prompt in asked)])
    startup.keep_compiled(cache_folder(args.config))
    workdir = Path(args.workdir)
    recipe = read_recipe(args.config, workdir)
    recipe = fitted(recipe, {name for prompt in [*(p for _, p in asked), Prompt(media, "")] for name in prompt.kinds()})
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
            _print_one(asker, Prompt(media, args.prompt), args.stream or sys.stdout.isatty())
    return 0


if __name__ == "__main__":
    command.run(main)
