"""Pictures of a run: held-out images with the model's answers under them, to be looked at by a person."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from jaxmm.batch import ANSWER
from jaxmm.data.documents import Image
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.picture import decode
from jaxmm.data.prepare.index import Columns
from jaxmm.data.text.template import Template
from jaxmm.inference.answers import Prompt

SIDE, MARGIN, LINES = 240, 12, 5  # pixels; lines of text under a picture


def questions(prepared: Columns, template: Template, count: int) -> list[tuple[Prompt, str]]:
    """Up to ``count`` examples, spread evenly, that ask about images: their first question and its true answer."""
    found = []
    for example in np.linspace(0, len(prepared) - 1, min(len(prepared), 4 * count)).astype(int):
        asked = _first_answer(prepared, template, int(example))
        if asked:
            found.append(asked)
    return found[:: max(1, len(found) // count)][:count]


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
    rows = -(-len(asked) // columns)
    cell_width, cell_height = SIDE + 2 * MARGIN, SIDE + 2 * MARGIN + LINES * 18
    sheet = PILImage.new("RGB", (columns * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, ((prompt, truth), answer) in enumerate(zip(asked, answers, strict=True)):
        left, top = (i % columns) * cell_width + MARGIN, (i // columns) * cell_height + MARGIN
        picture = decode(prompt.images[0])
        scale = SIDE / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        sheet.paste(
            picture.resize(size, PILImage.Resampling.NEAREST if scale > 1 else PILImage.Resampling.BICUBIC), (left, top)
        )
        right = answer.strip() == truth
        lines = textwrap.wrap(prompt.text, 34)[:2] + textwrap.wrap("> " + answer.strip(), 34)[:2]
        y = top + SIDE + 6
        for line in lines:
            colour = "black" if not line.startswith(">") else "darkgreen" if right else "firebrick"
            pen.text((left, y), line, fill=colour, font=font)
            y += 18
        if not right:
            pen.text((left, y), textwrap.shorten(f"(true: {truth})", 34), fill="dimgrey", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
