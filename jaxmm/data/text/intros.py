"""What stands before a picture by its size, and is tokenized with the text around it: Gemma 3's "Here is the original
image ".

Text inside a medium is counted when a row is planned (``packing/inner_text.py``), as its first and last tokens are
special tokens, which no text joins. What stands before a picture joins the text before it, to tokens that neither has
alone. So it is written as boxes are: after headers are read, and before the tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxmm.data.documents import Document, Image, Source, Text, Turn
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.table import have_intro, medium_of
from jaxmm.image_spec import ImageSpec


def settings(image: ImageSpec | None) -> dict[str, Any]:
    """What the text before pictures depends on, for keys of prepared data and its meta.json; {} where there is none."""
    split = image.split if image else None
    if split is None or not split.intro:
        return {}
    return {"text": split.intro, "slices": split.most, "above": split.above, "least": split.least_slice}


def in_words(found: dict[str, Any]) -> str:
    """Describes settings for people; ``found`` may come from a meta.json that anybody wrote."""
    if not found:
        return "pictures that are not cut into slices"
    return (
        f"pictures that are cut into up to {found.get('slices')} slices of {found.get('least')} pixels or more, where "
        f"they are {found.get('above')} times as long as wide"
    )


def of_source(source: Source, image: ImageSpec) -> Source:
    """A source of which pictures have their text before them, where the spec has such text."""
    intros = settings(image)
    if not intros:  # so that data without it keeps its key
        return source
    entry = json.dumps(json.loads(source.entry) | {"intros": intros}, sort_keys=True, separators=(",", ":"))
    return dataclasses.replace(source, entry=entry, image=image.only(()))


def written(document: Document, extents: Sequence[Extent], image: ImageSpec | None) -> Document:
    """A document of which pictures have their text before them; ``extents``: of its media, in order."""
    if image is None or not settings(image):
        return document
    turns, other = (tuple(_introduced(of_it, iter(extents), image)) for of_it in (document.turns, document.other))
    return document._replace(turns=turns, other=other)


def prompted(turns: Sequence[Turn], image: ImageSpec) -> Sequence[Turn]:
    """Turns of a prompt, the same; headers of pictures are read. One that cannot be read stays as it is."""
    if not settings(image):
        return turns
    media = (part for turn in turns for part in turn.parts if not isinstance(part, Text))
    return list(_introduced(turns, map(_extent, media), image))


def without(
    tokens: np.ndarray, places: np.ndarray, media: Extents, decode: Callable[[Any], str], image: ImageSpec | None
) -> str:
    """The text of prepared tokens, as it was said: a prompt is given the text before pictures anew.

    Args:
      tokens: int32 (n,), the beginning of an example.
      places: int32 (media,), the token before which the soft tokens of each of its media stand.
      media: what the index has of these.
      decode: ids to text.
    """
    text = decode(tokens)
    if image is None or image.split is None or not image.split.intro:
        return text
    for at in places[have_intro(media, image)][::-1].tolist():  # from the last, so that places before it stay
        before, intro, _ = decode(tokens[:at]).rpartition(image.split.intro)  # behind it is only markup
        text = before + text[len(before) + len(intro) :]
    return text


def _extent(part: Any) -> Extent | None:
    """What a header tells; None where it cannot be read, which whoever lays the prompt out reports."""
    try:
        return medium_of(part).extent(part)
    except BadMedia:
        return None


def _introduced(turns: Sequence[Turn], extents: Iterator[Extent | None], image: ImageSpec) -> Iterator[Turn]:
    """The turns, with text before their pictures; ``extents``: of their media, in order."""
    assert image.split is not None, "settings says so"
    for turn in turns:
        parts = list(turn.parts)
        for n, part in enumerate(parts):
            if isinstance(part, Text):
                continue
            extent = next(extents)
            if isinstance(part, Image) and extent and medium_of(part).has_intro(extent, image):
                parts[n] = part._replace(intro=image.split.intro)
        yield turn._replace(parts=tuple(parts))
