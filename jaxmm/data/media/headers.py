"""Reads the headers of a document's media before anything is decoded.

A medium that cannot be used skips its document; a page that may lose a picture loses only that.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jaxmm.data import files
from jaxmm.data.documents import Document, Media, Skip, Text
from jaxmm.data.media.extents import Extent
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.table import medium_of

REMOTE_READS = 16  # headers of media at URLs, at once
DROPPED = "the page goes on without this image"  # detail of a Skip that leaves no document out

Looked = tuple[Document, list[Media], list[Extent]]


def looked_at(chunk: Sequence[Document | Skip], drop_image: bool = False) -> list[Looked | Skip]:
    """Reads the headers of all media. A document with a bad one becomes a Skip.

    With ``drop_image`` a page stays without its bad media, and a Skip before it lists each of them.
    """
    images_of: list[list[Media]] = [
        [] if isinstance(d, Skip) else [part for turn in d.turns for part in turn.parts if not isinstance(part, Text)]
        for d in chunk
    ]
    images = [image for images in images_of for image in images]
    if any(files.is_remote(path) for image in images for path in medium_of(image).paths(image)):
        with ThreadPoolExecutor(REMOTE_READS) as pool:
            sizes = iter(list(pool.map(_size, images)))
    else:
        sizes = map(_size, images)
    looked: list[Looked | Skip] = []
    for document, pictures in zip(chunk, images_of, strict=True):
        measured = [next(sizes) for _ in pictures]
        bad = next((n for n, size in enumerate(measured) if isinstance(size, str)), -1)
        if isinstance(document, Skip):
            looked.append(document)
        elif bad >= 0 and drop_image and _is_page(document):
            looked += [Skip(document.origin, size, DROPPED) for size in measured if isinstance(size, str)]
            left = [(p, size) for p, size in zip(pictures, measured, strict=True) if not isinstance(size, str)]
            looked.append((_without(document, measured), [p for p, _ in left], [size for _, size in left]))
        elif bad >= 0:
            looked.append(Skip(document.origin, str(measured[bad]), _named(pictures[bad])))
        else:
            looked.append((document, pictures, [size for size in measured if not isinstance(size, str)]))
    return looked


def _named(part: Media) -> str:
    """``video clip.mp4``: a medium by its name in the table and its file's, where it has one."""
    medium = medium_of(part)
    paths = medium.paths(part)
    return f"{medium.name} {paths[0].rpartition('/')[2]}" if len(paths) == 1 else medium.name


def _is_page(document: Document) -> bool:
    """Whether a document is more than one picture and its caption: only such a text may lose a picture."""
    parts = [part for turn in document.turns for part in turn.parts]
    texts = [part for part in parts if isinstance(part, Text)]
    return all(turn.role == "document" for turn in document.turns) and (len(texts) > 1 or len(parts) - len(texts) > 1)


def _without(document: Document, measured: Sequence[Extent | str]) -> Document:
    """Returns a document without the media for which ``measured`` has a reason (a string)."""
    sizes = iter(measured)
    turns = []
    for turn in document.turns:
        kept = tuple(p for p in turn.parts if isinstance(p, Text) or not isinstance(next(sizes), str))
        turns.append(turn._replace(parts=kept))
    return document._replace(turns=tuple(turns))


def _size(part: Media) -> Extent | str:
    """Returns the extent in a header, or the reason why the medium cannot be used."""
    try:
        return medium_of(part).extent(part)
    except BadMedia as error:
        return error.reason
