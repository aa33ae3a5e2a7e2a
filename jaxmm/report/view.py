"""Reads a Batch back: the documents in its rows, with their text, targets, pictures, clips and places.

Nothing here looks at where the arrays came from: text is decoded from the tokens the model gets, pictures are put
together from its patches. What does not fit together raises, so that a page is never nicer than the batch.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import Batch
from jaxmm.data.assemble import Loaded, Skipped
from jaxmm.data.documents import VERDICTS
from jaxmm.data.media.table import WIDTHS_KEYS, places_in
from jaxmm.data.packing.pieces import segments_of
from jaxmm.data.packing.plan import Lengths, Piece
from jaxmm.data.text.boxes import told
from jaxmm.data.text.template import Template
from jaxmm.image_spec import ImageSpec
from jaxmm.report.clips import Clip, Film, Shot, Sound, clips_in, film_of, sound_of
from jaxmm.report.tiles import Picture, agree, picture_of

SHOWN_IDS = 8  # of a run of image tokens


class Span(NamedTuple):
    """Positions [first, last) of a row that are shown as one thing.

    ``kind`` is "text", "special", "picture", "video", "audio", "tokens" (of images), "features", or the stream of
    another medium, as "audio_features". ``text`` is what they say, a special token's name, or which image tokens these
    are. Where ``is_target``, each of them is predicted by the position before it. A clip has the text inside it, its
    time stamps.
    """

    kind: str
    first: int
    last: int
    text: str = ""
    is_target: bool = False
    picture: Picture | None = None
    clip: Film | Sound | None = None


class View(NamedTuple):
    """One document of a row: a piece of the plan and what the Batch holds of it.

    Attributes:
      name: its example's id; origin: the file and record it was read from.
      place: positions [first, last) of the row; length: tokens of the whole example, of which the piece is a part.
      positions: the first and last position the model is told.
      spans: what stands there, in order; none where the piece became padding.
      weights: the loss weights of its targets, each once, from small to large.
      skipped: why the piece became padding, or ''; medium: of what made it that, by its name.
      compared: of a preference, its two answers in words, with the position where the second begins; '' of all else.
    """

    piece: Piece
    name: str
    origin: str
    place: tuple[int, int]
    length: int
    positions: tuple[int, int]
    spans: list[Span]
    targets: int
    weights: list[float]
    skipped: str = ""
    medium: str = ""
    compared: str = ""

    @property
    def pictures(self) -> list[Picture]:
        return [span.picture for span in self.spans if span.picture]

    @property
    def films(self) -> list[Film]:
        return [span.clip for span in self.spans if isinstance(span.clip, Film)]

    @property
    def sounds(self) -> list[Sound]:
        return [span.clip for span in self.spans if isinstance(span.clip, Sound)]

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans if span.kind == "text")

    @property
    def boxes(self) -> list[str]:
        """The boxes in what it says, as the model reads or writes them."""
        return told("".join(span.text for span in self.spans if span.kind in ("text", "special")))


def example_id(lengths: Lengths, example: int) -> str:
    """``NAME/NUMBER``: the source, and the example's number in it, from 0."""
    return f"{lengths.name}/{example}"


def places(row: Sequence[Piece]) -> list[tuple[int, int]]:
    """Positions [first, last) of each piece in its row: they follow each other from 0."""
    ends = np.cumsum([piece.last - piece.first for piece in row]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True)) if row else []


# By ``documents.VERDICTS``, with the position where the other answer begins.
COMPARED = {
    "better": "the better answer; from {:,} on the rejected one",
    "wanted": "an answer that is wanted; from {:,} on that to another prompt",
    "unwanted": "an answer that is not wanted; from {:,} on that to another prompt",
}


class Viewer:
    """Views of the documents in loaded batches."""

    def __init__(self, lengths: Sequence[Lengths], template: Template, spec: ImageSpec):
        self.lengths, self.template, self.spec = list(lengths), template, spec

    def row(self, loaded: Loaded, b: int) -> list[View]:
        """The documents of row ``b``, in order.

        Raises:
          ValueError: if the arrays contradict the plan or each other; that is a bug, and the row is named.
        """
        skipped = {document.origin: document for document in loaded.skipped}
        pieces = loaded.rows[b]
        return [
            self._view(loaded, b, segments, piece, place, skipped)
            for segments, piece, place in zip(segments_of(pieces, self.lengths), pieces, places(pieces), strict=True)
        ]

    def _view(
        self, loaded: Loaded, b: int, own: range, piece: Piece, place: tuple[int, int], skipped: Mapping[str, Skipped]
    ) -> View:
        lengths = self.lengths[piece.source]
        name, text = example_id(lengths, piece.example), loaded.batch.text
        record = lengths.prepared.read(piece.example)
        origin = record.origin
        shown = View(piece, name, origin, place, int(lengths.tokens_E[piece.example]), (0, 0), [], 0, [])
        here = slice(*place)
        segments = np.unique(text.segments[b, here]).tolist()
        if segments == [0] and origin in skipped:
            return shown._replace(skipped=skipped[origin].reason, medium=skipped[origin].medium)
        agree(segments == list(own), name, f"its place has the segments {segments}, not {list(own)} alone")
        weights = loaded.batch.weights_BT[b, here]
        positions = text.positions[b, here, 0]
        if len(own) == 2:
            verdict = VERDICTS[int(lengths.prepared.verdict_E[piece.example])]
            second = place[0] + int((text.segments[b, here] == own[0]).sum())
            shown = shown._replace(compared=COMPARED[verdict].format(second))
        return shown._replace(
            positions=(int(positions[0]), int(positions.max() if shown.compared else positions[-1])),
            spans=list(
                self._with_clips(loaded.batch, b, here, name, clips_in(lengths, piece, place[0]), record.images)
            ),
            targets=int((weights > 0).sum()),
            weights=np.unique(weights[weights > 0]).tolist(),
        )

    def _with_clips(
        self, batch: Batch, b: int, here: slice, name: str, clips: Sequence[Clip], media: Sequence[Any]
    ) -> Iterator[Span]:
        """The spans of a document, those of each clip as one."""
        edges = [edge for clip in clips for edge in (clip.first, clip.last)]
        spans = collections.deque(self._spans(batch, b, here, name, edges))
        for clip in clips:
            while spans and spans[0].first < clip.first:
                yield _single(spans.popleft(), name)
            inside = []
            while spans and spans[0].last <= clip.last:
                inside.append(spans.popleft())
            agree(not any(span.is_target for span in inside), name, f"text inside a {clip.medium.name} is learnt")
            shown: Film | Sound
            if clip.medium.name == "audio":
                shown = sound_of(batch, b, clip, media[clip.place], self.spec, name)
            else:
                shown = film_of(batch, b, clip, *_shots(inside), self.spec, name)
            yield Span(clip.medium.name, clip.first, clip.last, clip=shown)
        for span in spans:
            yield _single(span, name)

    def _spans(self, batch: Batch, b: int, here: slice, name: str, edges: Sequence[int]) -> Iterator[Span]:
        """All spans, with a tile each as a picture; none goes over one of the ``edges``."""
        values, slots = batch.text.values[b, here], batch.slots_BT[b, here]
        learnt = _learnt(batch, b, here, name)
        is_special = np.isin(values, self.template.special_ids) | (values >= self.template.vocab_size)
        is_drawn = (values >= self.template.codebook.offset) & (values < self.template.vocab_size)
        # What is shown as one thing: runs of text, each special token by itself, image tokens, the slots of one tile,
        # or of one stream without tiles.
        thing = np.where(is_special, np.arange(1, len(values) + 1), 0)
        thing = np.where(is_drawn, len(values) + 1, thing)
        stream, tile = self._tiles(batch, b, slots)
        thing = np.where(slots >= 0, -1 - tile, thing)
        inner = {edge - here.start for edge in edges} | set(
            (np.flatnonzero(np.diff(thing) | np.diff(stream)) + 1).tolist()
        )
        cuts = [0, *sorted(inner - {0, len(values)}), len(values)]
        names = list(places_in(batch, self.spec))
        for start, stop in itertools.pairwise(cuts):
            first, last = here.start + start, here.start + stop
            if thing[start] < -1:
                rows = _made_of(batch, b, first, last) - self.spec.newline
                picture = picture_of(batch, b, rows, int(tile[start]), self.spec, name)
                yield Span("picture", first, last, picture=picture)
            elif thing[start] == -1:
                name_of = names[stream[start]]
                of = "the squares of this picture, row by row" if name_of == "patches" else name_of
                text = "" if name_of in WIDTHS_KEYS else f"{stop - start} soft tokens of {of}"
                if not slots[start:stop].any():
                    text = "the vector that ends the picture"
                yield Span(name_of, first, last, text)
            elif thing[start] > len(values):
                yield Span("tokens", first, last, self._drawn_name(values[start:stop]), bool(learnt[start]))
            elif thing[start] > 0:
                yield Span("special", first, last, self._special_name(int(values[start])), bool(learnt[start]))
            else:
                yield from self._text(values[start:stop], learnt[start:stop], first)

    def _tiles(self, batch: Batch, b: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each slot the number of its stream among those of the batch, or -1, and its tile from 1, or 0 for none.

        Squares that are read as one picture are no tiles, nor are the vectors at their rows' ends: they come after the
        whole picture, which is the last of its tiles.
        """
        stream, tile = np.full(len(slots), -1), np.zeros(len(slots), np.int64)
        places = places_in(batch, self.spec)
        for number, place in enumerate(places.values()):
            stream[slots >= place.start] = number
        tiles, first = batch.patches.segments[b, :: self.spec.merge**2], places["patches"].start
        is_picture = (slots >= first) & (slots < first + len(tiles))
        tile[is_picture] = tiles[slots[is_picture] - first]
        if self.spec.newline:
            stream[slots == 0] = list(places).index("patches")
            tile[tile < np.maximum.accumulate(tile)] = 0
        return stream, tile

    def _text(self, tokens: np.ndarray, learnt: np.ndarray, first: int) -> Iterator[Span]:
        """Decodes a run of text as a whole, then parts what is learnt from what is only read."""
        text = self.template.decode(tokens)
        cuts = [0, *(np.flatnonzero(np.diff(learnt)) + 1).tolist(), len(tokens)]
        ends = [_common(text, self.template.decode(tokens[:cut])) for cut in cuts[1:-1]]
        at = 0
        for (start, stop), end in zip(itertools.pairwise(cuts), [*ends, len(text)], strict=True):
            end = max(at, end)  # a character whose bytes are cut through goes with what follows
            yield Span("text", first + start, first + stop, text[at:end], bool(learnt[start]))
            at = end

    def _drawn_name(self, tokens: np.ndarray) -> str:
        """``256 image tokens: 5 7 0 ...``, their ids in the codebook."""
        ids = (tokens[:SHOWN_IDS] - self.template.codebook.offset).tolist()
        more = " ..." if len(tokens) > len(ids) else ""
        return f"{len(tokens)} image token{'' if len(tokens) == 1 else 's'}: {' '.join(map(str, ids))}{more}"

    def _special_name(self, token: int) -> str:
        if token >= self.template.vocab_size:
            return f"token {token}"
        return str(self.template.tokenizer.convert_ids_to_tokens(token))


def _learnt(batch: Batch, b: int, here: slice, name: str) -> np.ndarray:
    """(n,) whether the loss predicts each token; a target is always the token after it."""
    weighed = batch.weights_BT[b, here] > 0
    after = np.append(batch.text.values[b, here][1:], -1)
    agree(np.array_equal(batch.targets_BT[b, here][weighed], after[weighed]), name, "a target is not the next token")
    return np.concatenate([[False], weighed[:-1]])


def _made_of(batch: Batch, b: int, first: int, last: int) -> np.ndarray:
    """The rows of the soft-token table that soft tokens are made of: of those that are pooled, each once."""
    slots = batch.slots_BT[b, first:last]
    if batch.mixed is None or not (is_used := batch.mixed.weights_BT4[b, first:last, 1:] > 0).any():
        return slots
    return np.unique(np.append(slots, batch.mixed.others_BT3[b, first:last][is_used]))


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common from the start."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _single(span: Span, name: str) -> Span:
    """A picture beside videos is as many equal frames: one of them is shown."""
    if span.picture is not None:
        frames = span.picture.frames
        agree(bool((frames == frames[0]).all()), name, "the frames of a picture differ")
    return span


def _shots(spans: Sequence[Span]) -> tuple[list[Shot], str]:
    """Tiles with the text before each, and the text behind the last one."""
    shots, stamp, inside = [], "", ""
    for span in spans:
        if span.picture is not None:
            shots.append(Shot(span.picture, [], span.first, span.last, stamp, inside))
            stamp = inside = ""
        else:
            inside += span.text if span.kind in ("text", "special") else ""  # no vector that ends a video
            stamp += span.text if span.kind == "text" else ""
    return shots, inside
