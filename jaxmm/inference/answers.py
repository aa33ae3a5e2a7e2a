"""Answers to prompts with media: a batch of prompts, and the texts that a model writes to them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmm import sharding
from jaxmm.batch import Batch
from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.documents import Media, Part, Text, Turn, split_origin
from jaxmm.data.media.table import advice, medium_of, named
from jaxmm.data.packing.limits import FIRST, multiples
from jaxmm.data.packing.plan import Budgets, Lengths, Piece
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.text import intros
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec
from jaxmm.inference.decode import Generator
from jaxmm.inference.sampling import GREEDY, Sampling
from jaxmm.inference.stop_strings import Reply
from jaxmm.models.multimodal import Compute, ModelSpec

ROUND = 64  # rows of prompts, and the room for answers, are rounded up to a multiple: few shapes to compile for
STOP_EVERY = 8  # tokens written between two looks for stop strings


def rounded(count: int, multiple: int = ROUND) -> int:
    return -(-count // multiple) * multiple


class Prompt(NamedTuple):
    """What the user says: pictures, videos and recordings first, then text; or a whole conversation, see ``of``.

    Attributes:
      media: all media, in order.
      conversation: its turns, the user's last; () is one turn of the user's, of ``media`` and ``text``.
      names: what an error calls each of ``media``; () is by their paths.
    """

    media: tuple[Media, ...]
    text: str
    conversation: tuple[Turn, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, turns: Sequence[Turn], names: Sequence[str] = ()) -> Prompt:
        """Several turns, media where they stand in them; the model answers the last one."""
        media = [part for turn in turns for part in turn.parts if not isinstance(part, Text)]
        said = [part.text for part in turns[-1].parts if isinstance(part, Text)] if turns else []
        return cls(tuple(media), "".join(said), tuple(turns), tuple(names))

    def kinds(self) -> set[str]:
        """The names of its media."""
        return {medium_of(part).name for part in self.media}

    def turns(self) -> tuple[Turn, ...]:
        """What stands before the answer."""
        if self.conversation:
            return self.conversation
        parts: tuple[Part, ...] = (*self.media, Text(self.text)) if self.text else self.media
        return (Turn("user", parts, False),)


class PromptRows(NamedTuple):
    """Prompts as a batch, one a row: their sizes, how media are taken, and what was loaded."""

    lengths: Lengths
    image: ImageSpec
    loaded: Loaded


def prompt_rows(
    prompts: Sequence[Prompt], template: Template, image: ImageSpec, fits_row: bool = False,
    written: Sequence[Sequence[int]] = (), most: int = 0,
) -> PromptRows:  # fmt: skip
    """Lays prompts out.

    Args:
      fits_row: videos that a row of the run does not hold get fewer frames, as in training.
      written: token ids of an answer to each prompt, which stand behind it as targets; () is prompts alone.
      most: text positions that a prompt may take; 0 is any number. Headers tell: no medium is decoded for it.

    Raises:
      UserError: if a medium cannot be read, or a prompt is longer than ``most``.
    """
    encoded = [template.encode_prompt(intros.prompted(prompt.turns(), image)) for prompt in prompts]
    if written:
        encoded = [one.answered(ids) for one, ids in zip(encoded, written, strict=True)]
    media, names = [prompt.media for prompt in prompts], [prompt.names for prompt in prompts]
    source = InMemory("prompts", encoded, media, template.fingerprint, names=names)
    image = image.only(source.meta.get("media", ()))
    image = image if fits_row else image.without_rows()
    lengths = Lengths(source, image, encode=template.stamp)
    if most and (longest := int(lengths.tokens_E.max())) > most:
        raise UserError(f"the prompt is {longest:,} tokens long: at most {most:,}")
    group = image.merge**2
    budgets = Budgets(
        tokens=rounded(int(lengths.tokens_E.max())),
        patches=rounded(max(int(lengths.patches_E.max()), 64), 16 * group) if image.is_sighted else 0,
        items=max(1, int(lengths.items_E.max())) if image.is_sighted else 0,
        targets=1,
        **{name: _room(lengths, name) for name in lengths.columns[len(FIRST) :]},
    )
    rows = [[Piece(0, i, 0, int(length))] for i, length in enumerate(lengths.tokens_E)]
    loaded = Assembler([lengths], budgets, image)(rows)
    if loaded.skipped:
        skipped = loaded.skipped[0]
        prompt = prompts[int(split_origin(skipped.origin)[1])]
        part = prompt.media[skipped.number]
        name = prompt.names[skipped.number] if prompt.names else medium_of(part).path(part) or named(skipped.medium)
        raise UserError(f"{name}: {advice(skipped.reason, [skipped.medium]) or skipped.reason}")
    return PromptRows(lengths, image, loaded)


def _room(lengths: Lengths, budget: str) -> int:
    """A further budget that all prompts fit, in whole soft tokens where it counts units of a stream."""
    return rounded(int(lengths.of(budget).max()), math.lcm(ROUND, *multiples(budget, lengths.spec)))


def prompt_batch(prompts: Sequence[Prompt], template: Template, image: ImageSpec, fits_row: bool = False) -> Batch:
    """The arrays of ``prompt_rows``."""
    return prompt_rows(prompts, template, image, fits_row).loaded.batch


def make_generator(spec: ModelSpec, compute: Compute, stop_ids: Sequence[int]) -> Generator:
    """Builds what ``write`` and ``answers`` take."""
    return Generator(spec, compute, stop_ids)


def write(
    generate: Generator, params: Any, prompts: Sequence[Prompt], template: Template, image: ImageSpec, max_tokens: int,
    *, sampling: Sampling = GREEDY, stops: Sequence[str] = (), first: int = 0, every: int = 0, fits_row: bool = False,
) -> Iterator[list[Reply]]:  # fmt: skip
    """Writes the answers to prompts, in one batch; yields them as they are, the last time whole.

    Args:
      stops: strings that end an answer.
      first: the number of the first prompt, which draws depend on.
      every: tokens from one time to the next; 0 is as many as can be.
      fits_row: as of ``prompt_rows``.
    """
    rows = prompt_rows(prompts, template, image, fits_row)
    for line in () if fits_row else rows.lengths.cut_lines():
        print(f"prompts: {line}", file=sys.stderr, flush=True)
    batch = rows.loaded.batch
    yield from write_rows(
        generate, params, batch, template, max_tokens, sampling=sampling, stops=stops, first=first, every=every
    )


def write_rows(
    generate: Generator, params: Any, batch: Batch, template: Template, max_tokens: int,
    *, sampling: Sampling = GREEDY, stops: Sequence[str] = (), first: int = 0, every: int = 0,
) -> Iterator[list[Reply]]:  # fmt: skip
    """``write``, of prompts that are laid out as ``prompt_rows`` does."""
    replies = [Reply(template.decode, template.stop_ids, stops, template.lead) for _ in batch.text.values]
    every = every or (STOP_EVERY if stops else max_tokens)
    writing, seen = generate.begin(params, batch, rounded(max_tokens), sampling, first), 0
    while True:
        written = int(sharding.fetched(writing.written))
        for reply, tokens in zip(replies, sharding.fetched(writing.tokens_BW)[:, seen:written], strict=True):
            reply.add(tokens.tolist())
        yield replies
        done = np.array([reply.done for reply in replies])
        if written >= max_tokens or done.all():
            return
        seen = written
        writing = generate.go_on(params, writing, done, min(written + every, max_tokens))


def answers(
    generate: Generator,
    params: Any,
    prompts: Sequence[Prompt],
    template: Template,
    image: ImageSpec,
    max_tokens: int,
    **options: Any,
) -> list[str]:
    """The model's answers as text, without what ends them; ``options`` are those of ``write``."""
    *_, replies = write(generate, params, prompts, template, image, max_tokens, **options)
    return [reply.text for reply in replies]
