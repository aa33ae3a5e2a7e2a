"""Draws samples: held-out images with the model's answers under them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from jaxmm.atomic import published
from jaxmm.batch import ANSWER
from jaxmm.data.documents import Image
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.picture import decode
from jaxmm.data.prepare.index import Columns
from jaxmm.data.text.template import Template
from jaxmm.inference.answers import Prompt

SIDE, MARGIN, GAP, LINE = 240, 12, 6, 18  # of a picture, around it, under it, and of a line of text, in pixels
MOST_LINES = 12  # of a question, and of an answer


def questions(prepared: Columns, template: Template, count: int) -> list[tuple[Prompt, str]]:
    """Up to ``count`` examples, spread evenly, that ask about images: their first question and its true answer."""
    asked_questions = []
    for example in np.linspace(0, len(prepared) - 1, min(len(prepared), 4 * count)).astype(int):
        asked = _first_answer(prepared, template, int(example))
        if asked:
            asked_questions.append(asked)
    return asked_questions[:: max(1, len(asked_questions) // count)][:count]


def _first_answer(prepared: Columns, template: Template, example: int) -> tuple[Prompt, str] | None:
    record = prepared.read(example)
    runs = slice(*(int(i) for i in prepared.runs_E1[example : example + 2]))
    starts = [*prepared.run_start_R[runs].tolist(), len(record.tokens)]
    for flags, start, stop in zip(prepared.run_flags_R[runs], starts, starts[1:], strict=False):
        if flags & ANSWER:
            images = slice(*(int(i) for i in prepared.images_E1[example : example + 2]))
            shown = int((prepared.image_at_I[images] <= start).sum())
            pictures = [image for image in record.images[:shown] if isinstance(image, Image)]
            if not pictures or len(pictures) < shown or not all(map(_decodes, pictures)):
                return None  # ready-made media cannot be drawn
            text = template.decode(record.tokens[:start].tolist()).strip()
            truth = template.decode(record.tokens[start:stop].tolist())
            # An answer that is generated is shown without what the chat template begins every one with.
            return Prompt(tuple(pictures), text), truth.strip().removeprefix(template.lead.strip()).strip()
    return None


def _decodes(image: Image) -> bool:
    try:
        decode(image)
    except BadMedia:  # evaluation has said so
        return False
    return True


def draw(asked: Sequence[tuple[Prompt, str]], answers: Sequence[str], path: Path, columns: int = 4) -> None:
    """Writes one PNG: each question's first image, the question, the model's answer, and the true one if it differs."""
    font = ImageFont.load_default(size=14)
    texts = [_lines(prompt, truth, answer, font) for (prompt, truth), answer in zip(asked, answers, strict=True)]
    rows = [texts[i : i + columns] for i in range(0, len(texts), columns)]
    heights = [SIDE + 2 * MARGIN + GAP + LINE * max(map(len, row)) for row in rows]
    width = SIDE + 2 * MARGIN
    sheet = PILImage.new("RGB", (columns * width, sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, ((prompt, _), lines) in enumerate(zip(asked, texts, strict=True)):
        left, top = i % columns * width + MARGIN, sum(heights[: i // columns]) + MARGIN
        first = next(part for part in prompt.media if isinstance(part, Image))
        sheet.paste(_fitted(decode(first)), (left, top))
        for number, (line, colour) in enumerate(lines):
            pen.text((left, top + SIDE + GAP + number * LINE), line, fill=colour, font=font)
    with published(path) as whole:
        sheet.save(whole, "PNG")


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


def _fitted(picture: PILImage.Image) -> PILImage.Image:
    """The picture with its longer side as long as there is room for."""
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, PILImage.Resampling.NEAREST if scale > 1 else PILImage.Resampling.BICUBIC)
