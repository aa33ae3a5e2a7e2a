"""Draws samples: held-out images, videos and recordings with the model's answers under them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from jaxmm.atomic import published
from jaxmm.batch import ANSWER
from jaxmm.data.documents import Audio, Image, Video
from jaxmm.data.media.extents import Extents
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.picture import decode
from jaxmm.data.prepare.index import Columns
from jaxmm.data.text import intros
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec
from jaxmm.inference.answers import Prompt, prompt_rows
from jaxmm.report.view import Viewer
from jaxmm.training.clip_pictures import film_strip, sound_picture

SIDE, MARGIN, GAP, LINE = 240, 12, 6, 18  # of a picture, around it, under it, and of a line of text, in pixels
MOST_LINES = 12  # of a question, and of an answer


def questions(
    prepared: Columns, template: Template, count: int, image: ImageSpec | None = None
) -> list[tuple[Prompt, str]]:
    """Up to ``count`` examples, spread evenly, that ask about media: their first question and its true answer.

    Args:
      image: how media are taken; None leaves out examples with clips.
    """
    asked = []
    for example in np.linspace(0, len(prepared) - 1, min(len(prepared), 4 * count)).astype(int):
        first = _first_answer(prepared, template, int(example), image)
        if first and (image or all(isinstance(part, Image) for part in first[0].media)):
            asked.append(first)
    step = max(1, len(asked) // count)
    in_turn = sorted(range(len(asked)), key=lambda n: (n % step, n))  # the others stand in for those that are broken
    whole = (n for n in in_turn if _is_whole(asked[n][0], template, image))
    return [asked[n] for n in sorted(itertools.islice(whole, count))]


def _first_answer(
    prepared: Columns, template: Template, example: int, image: ImageSpec | None
) -> tuple[Prompt, str] | None:
    record = prepared.read(example)
    runs = slice(*(int(i) for i in prepared.runs_E1[example : example + 2]))
    starts = [*prepared.run_start_R[runs].tolist(), len(record.tokens)]
    for flags, start, stop in zip(prepared.run_flags_R[runs], starts, starts[1:], strict=False):
        if flags & ANSWER:
            images = slice(*(int(i) for i in prepared.images_E1[example : example + 2]))
            shown = int((prepared.image_at_I[images] <= start).sum())
            media = [part for part in record.images[:shown] if isinstance(part, Image | Video | Audio)]
            if not media or len(media) < shown:
                return None  # ready-made media cannot be drawn
            seen = slice(images.start, images.start + shown)
            places, extents = prepared.image_at_I[seen], Extents(prepared, seen)
            text = intros.without(record.tokens[:start], places, extents, template.decode, image).strip()
            truth = template.decode(record.tokens[start:stop].tolist())
            # An answer that is generated is shown without what the chat template begins every one with.
            return Prompt(tuple(media), text), truth.strip().removeprefix(template.lead.strip()).strip()
    return None


def _is_whole(prompt: Prompt, template: Template, image: ImageSpec | None) -> bool:
    """Whether all of its media decode; evaluation has told of those that do not."""
    try:
        for part in prompt.media:
            if isinstance(part, Image):
                decode(part)
        if image and not all(isinstance(part, Image) for part in prompt.media):
            prompt_rows([prompt], template, image, fits_row=True)
    except (BadMedia, UserError):
        return False
    return True


def draw(
    asked: Sequence[tuple[Prompt, str]], answers: Sequence[str], path: Path, template: Template, image: ImageSpec,
    columns: int = 4,
) -> None:  # fmt: skip
    """Writes one PNG: what each question is about, the question, the model's answer, and the true one if it differs."""
    font = ImageFont.load_default(size=14)
    texts = [_lines(prompt, truth, answer, font) for (prompt, truth), answer in zip(asked, answers, strict=True)]
    rows = [texts[i : i + columns] for i in range(0, len(texts), columns)]
    heights = [SIDE + 2 * MARGIN + GAP + LINE * max(map(len, row)) for row in rows]
    width = SIDE + 2 * MARGIN
    sheet = PILImage.new("RGB", (columns * width, sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, ((prompt, _), lines) in enumerate(zip(asked, texts, strict=True)):
        left, top = i % columns * width + MARGIN, sum(heights[: i // columns]) + MARGIN
        for offset, picture in _pictures(prompt, template, image):
            sheet.paste(picture, (left, top + offset))
        for number, (line, colour) in enumerate(lines):
            pen.text((left, top + SIDE + GAP + number * LINE), line, fill=colour, font=font)
    with published(path) as whole:
        sheet.save(whole, "PNG")


def _pictures(prompt: Prompt, template: Template, image: ImageSpec) -> Iterator[tuple[int, PILImage.Image]]:
    """The first image or video, and the first recording, each with its place from the top."""
    seen = next((part for part in prompt.media if isinstance(part, Image | Video)), None)
    has_sound = any(isinstance(part, Audio) for part in prompt.media)
    height = (SIDE - GAP) // 2 if seen and has_sound else SIDE
    if isinstance(seen, Image):
        yield 0, _fitted(decode(seen), height)
    if not has_sound and not isinstance(seen, Video):
        return
    lengths, spec, loaded = prompt_rows([prompt], template, image, fits_row=True)
    (view,) = Viewer([lengths], template, spec).row(loaded, 0)
    if isinstance(seen, Video) and view.films:
        yield 0, film_strip(view.films[0], SIDE, height)
    if view.sounds:
        yield SIDE - height, sound_picture(view.sounds[0], SIDE, height)


def _lines(prompt: Prompt, truth: str, answer: str, font: Any) -> list[tuple[str, str]]:
    """What stands under a picture, line by line, each with its colour."""
    is_right = answer.strip() == truth
    texts = [(prompt.text, "black"), (f"> {answer.strip()}", "darkgreen" if is_right else "firebrick")]
    if not is_right:
        texts.append((f"(true: {truth})", "dimgrey"))
    return [(line, colour) for text, colour in texts for line in _wrapped(text, font)]


def _wrapped(text: str, font: Any) -> list[str]:
    """The text in lines that are no wider than a picture; a long one ends in dots."""
    lines = [""]
    for word in text.split():
        for piece in _pieces(word, font):
            longer = f"{lines[-1]} {piece}".strip()
            if font.getlength(longer) <= SIDE:
                lines[-1] = longer
            else:
                lines.append(piece)
    lines = [line for line in lines if line]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], "..."]
    return lines


def _pieces(word: str, font: Any) -> Iterator[str]:
    """A word, cut where it is wider than a picture."""
    piece = ""
    for letter in word:
        if piece and font.getlength(piece + letter) > SIDE:
            yield piece
            piece = ""
        piece += letter
    yield piece


def _fitted(picture: PILImage.Image, height: int) -> PILImage.Image:
    """The picture as large as there is room for."""
    scale = min(SIDE / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, PILImage.Resampling.NEAREST if scale > 1 else PILImage.Resampling.BICUBIC)
