"""``Document``, the one form that every data format becomes, and ``Source``, which yields documents unit by unit.

The readers (``data/sources.py``, ``data/readers``) turn a record into turns of typed parts. They also resolve the
placeholders in its strings: after them, text is only text, and media are parts of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxmm.image_spec import ImageSpec

PLACEHOLDER, VIDEO_PLACEHOLDER, AUDIO_PLACEHOLDER = "<image>", "<video>", "<audio>"

# Why a reader leaves a record out: a closed list, with what to do about it.
SKIP_ADVICE = {
    "empty": "it has nothing to learn from",
    "broken text": "bytes that are not UTF-8 (another encoding, as GBK or Latin-1: save the file as UTF-8), a NUL, or "
    "half of a surrogate pair",
    "broken JSON": "a line or an element that is not JSON",
    "duplicate keys": "an object, or a sample of a tar, has one key twice",
    "not an object": "a record must be an object",
    "cut short": "the file ends in the middle of a record: download or write it again",
    "outside": "a picture or clip lies outside the data folder: set config.data.media_dir to its folder, or allow it "
    "with config.data.follow_outside=True",
    "unreadable": "the base64 text of a picture or clip cannot be decoded",
    "no caption": "a picture or clip without a text file of the same name beside it",
    "no pair": "an answer that has none to be compared with: a chosen one without a rejected one, or vice versa",
    "equal answers": "both answers of a pair are the same: nothing tells them apart",
    "no sense": "see its detail in skipped.jsonl; config.data.on_error=stop stops at the first",
}
SKIP_REASONS = tuple(SKIP_ADVICE)

# What is known of an example's answer: nothing; that it is better than the other one; that people want it, or do not.
VERDICTS = ("", "better", "wanted", "unwanted")


class Text(NamedTuple):
    """What a user wrote, special-looking strings included."""

    text: str


class Image(NamedTuple):
    """A picture as an encoded file's bytes, or as the absolute path or URL of one: exactly one of them is set.

    Attributes:
      intro: what the model's own processor writes before it in the prompt, by its size; no record stores it.
    """

    data: bytes = b""
    path: str = ""
    intro: str = ""


class Video(NamedTuple):
    """A film as an encoded file's bytes, as the path or URL of one, or as its frames: exactly one of these is set.

    Attributes:
      frames: pictures in order, all of one size.
      fps: how many of ``frames`` a second has; 0 is unknown. A file says it itself.
      start, stop: the part of the file that counts, in seconds; ``stop`` 0 is its end.
    """

    data: bytes = b""
    path: str = ""
    frames: tuple[Image, ...] = ()
    fps: float = 0.0
    start: float = 0.0
    stop: float = 0.0


class Audio(NamedTuple):
    """A recording, or the sound track of a film, as an encoded file's bytes, or as the path or URL of one.

    Attributes:
      start, stop: the part of it that counts, in seconds; ``stop`` 0 is its end.
    """

    data: bytes = b""
    path: str = ""
    start: float = 0.0
    stop: float = 0.0


class Features(NamedTuple):
    """A vision tower's output for a picture, before the connector: the bytes of an ``.npy`` file, or its path or URL.

    The array is float16, float32 or float64. Its shape is (rows, columns, D), a vector for each patch of a grid, or
    (n, D), vectors in the order in which they leave the tower (those of one soft token adjacent).
    """

    data: bytes = b""
    path: str = ""


class VideoFeatures(NamedTuple):
    """A vision tower's output for the frames of a film, as ``Features``: an array (frames, rows, columns, D).

    A frame is what its soft tokens are made of together: several frames of the film, where a tower takes them so.

    Attributes:
      fps: how many frames of the array a second of the film has; 0 is unknown.
    """

    data: bytes = b""
    path: str = ""
    fps: float = 0.0


class AudioFeatures(NamedTuple):
    """An audio tower's output for a recording, as ``Features``: an array (n, D), a vector for each soft token."""

    data: bytes = b""
    path: str = ""


class Tokens(NamedTuple):
    """A picture as discrete tokens: ids in a codebook, from 0. There is at least one."""

    ids: tuple[int, ...]


class Object(NamedTuple):
    """What replaces one mark in a text: a name, or a box in a picture.

    Attributes:
      name: of the object; '' for a box.
      box: x and y of the corners, or of one point; () for a name.
      image: index of the picture among the document's media.
      is_part: whether the numbers are fractions of the picture's sides; if not, they are pixels of the original.
    """

    name: str = ""
    box: tuple[float, ...] = ()
    image: int = 0
    is_part: bool = False


Media = Image | Video | Audio | Features | VideoFeatures | AudioFeatures | Tokens
Part = Text | Media
HEARD, FILMED = (Audio, AudioFeatures), (Video, VideoFeatures)
READY_MADE: Mapping[type, type] = {Features: Image, VideoFeatures: Video, AudioFeatures: Audio}  # of which kind of part


class Turn(NamedTuple):
    """A speaker's parts, in order.

    Attributes:
      role: "document" (plain or interleaved text), "system", "user", "assistant" or "tool" (the result of a call).
      parts: of the turn; an empty turn has none.
      target: whether the model is trained to write it: true for documents and assistant turns.
      thinking: the assistant's thoughts before this turn, where the data stores them separately.
      calls: JSON list of the assistant's tool calls, as the data has it; '' for none.
      weight: loss weight of its tokens where they are targets; with weight 0 they are not targets.
    """

    role: str
    parts: tuple[Part, ...]
    target: bool
    thinking: str = ""
    calls: str = ""
    weight: float = 1.0


class Document(NamedTuple):
    """One training example: attention never leaves it.

    Attributes:
      turns: a single "document" turn for a web page or a caption.
      origin: file and record number, counted from 0, as "file.json, record 17"; for messages and skipped.jsonl.
      labels: groups for an evaluation, as ("colour", "unseen").
      tools: JSON list of the available tools, as the data has it; '' for none.
      objects: one for each mark in the texts, in order, until ``boxes`` has written them there.
      verdict: of preference data, what is known of the answer, which begins with the first turn that is a target: one
        of VERDICTS.
      other: the turns that it is compared with, (): the same prompt, and another answer. Of a pair ("better") that is
        the rejected one, of a judged one ("wanted", "unwanted") the answer to another prompt of the same unit. Media
        stand in the prompt alone.
    """

    turns: tuple[Turn, ...]
    origin: str
    labels: tuple[str, ...] = ()
    tools: str = ""
    objects: tuple[Object, ...] = ()
    verdict: str = ""
    other: tuple[Turn, ...] = ()


class Skip(NamedTuple):
    """A record that yields no document but does not stop the run.

    Attributes:
      reason: one of SKIP_REASONS.
      detail: more about the reason, or ''.
    """

    origin: str
    reason: str
    detail: str = ""


class Unit(NamedTuple):
    """A part of a source that is read on its own and prepared as one shard.

    Attributes:
      file: path or URL; one of ``Source.files``, or '' for a source that reads none.
      start, stop: the range [start, stop) in the format's own measure: bytes, row groups, or documents.
      first: number of its first record in the file, for origins.
    """

    file: str
    start: int
    stop: int
    first: int


@dataclass(frozen=True)
class Source:
    """One named data source that can be read again and again, as a whole or by units.

    Attributes:
      name: as used in a mixture.
      files: the files it reads, absolute: their versions decide whether prepared data is still valid.
      entry: canonical JSON of the settings it is read with.
      units: lists the units, in order: the same ones on every machine, however many workers read them.
      read: starts a fresh pass over a unit. Like ``units`` it pickles, so that a worker process may call it. If the
        pass counts columns, its generator returns the columns it has read (``columns.Seen``).
      told: lines for people on what is read and what is not.
      max_skipped: the largest fraction of its documents that may be skipped.
      drop_image: whether an unusable image or clip is removed from its page; if not, the page is skipped.
      skip_errors: whether a document that cannot be encoded is skipped.
      boxes: how boxes in its texts are written, one of ``boxes.KINDS``.
      image: how pictures are resized, needed where boxes, or text before pictures, depend on it.
    """

    name: str
    files: tuple[str, ...]
    entry: str
    units: Callable[[], Sequence[Unit]]
    read: Callable[[Unit], Iterator[Document | Skip]]
    told: tuple[str, ...] = ()
    max_skipped: float = 0.05
    drop_image: bool = False
    skip_errors: bool = False
    boxes: str = ""
    image: ImageSpec | None = None

    def documents(self) -> Iterator[Document | Skip]:
        """Starts a fresh pass over all of it."""
        return itertools.chain.from_iterable(map(self.read, self.units()))


def split_origin(origin: str) -> tuple[str, int | str]:
    """Returns the file and the record number of an origin: ("file.json", 17); a number it lacks is ''."""
    file, _, last = origin.rpartition(", ")
    number = last.rpartition(" ")[2]
    return (file, int(number)) if file and number.isdecimal() else (origin, "")
