"""Where each token of an answer looked: attention onto the patches of a picture, the frames of a film, the time of a
recording, with the pictures that it is drawn over.

The answer is put behind its prompt and read in one pass, as in training. What the position before a token attends to is
what the model looked at when it wrote that token.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmm.batch import Batch
from jaxmm.data.media.mosaic import frame_side
from jaxmm.data.text.template import Template
from jaxmm.image_spec import ImageSpec
from jaxmm.inference.answers import Prompt, PromptRows, prompt_rows, rounded
from jaxmm.models.probe import CLASSES, COUNT, Queries
from jaxmm.monitor.attention import DIGITS, Probe
from jaxmm.monitor.standing import standing
from jaxmm.report import embedding
from jaxmm.report.clips import Film, Sound
from jaxmm.report.drawing import scaled, sheet, spectrogram
from jaxmm.report.tiles import Picture
from jaxmm.report.view import Span, View, Viewer

TOKENS = 64  # of an answer whose maps are made; a longer one's first
SIDE = 320  # pixels: the pictures that maps are drawn over are not made larger
MAP_BYTES = 60_000  # of a sample's maps: where all heads need more, those that look at media most are kept


class Shown(NamedTuple):
    """One medium that maps are drawn over.

    Attributes:
      kind: "image", "video" or "audio".
      pixels: uint8 (height, width, 3): a picture as the model gets it; the first frame of each temporal patch of a
        film, ``across`` in a row; a recording's log-mel frames, time to the right.
      frames: how many frames ``pixels`` has.
      seconds: of a clip; None of a picture.
      grid: (frames, rows, columns) of its soft tokens; (tokens, 1, 1) of a recording.
      places: where these stand in the row, in that order.
    """

    kind: str
    pixels: np.ndarray
    frames: int
    across: int
    seconds: float | None
    grid: tuple[int, int, int]
    places: np.ndarray


class Look(NamedTuple):
    """Where the tokens of one answer looked.

    Attributes:
      tokens: their texts. A character of several tokens is the last one's.
      shown: the media before the answer that can be drawn.
      mass_XA: attention onto each of CLASSES by token, mean over layers and heads.
      maps_LHAS: float32, attention of each token onto each soft token of ``shown``. With L and H of 1 it is the mean
        over layers and heads, where each by itself would take too much memory.
    """

    tokens: list[str]
    shown: list[Shown]
    mass_XA: np.ndarray
    maps_LHAS: np.ndarray


class Rows(NamedTuple):
    """Prompts with their answers, laid out to be looked at: all that is done before a device is asked."""

    batch: Batch
    answers: list[list[int]]
    shown: list[list[Shown]]
    queries: list[Queries]
    texts: list[list[str]]


def lay_out(
    prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], template: Template, image: ImageSpec,
    fits_row: bool = False, most: int = TOKENS,
) -> Rows:  # fmt: skip
    """Lays answers out behind their prompts, a row each.

    Args:
      answers: token ids that the model wrote, without what ends them.
      fits_row: as of ``prompt_rows``.
      most: tokens of an answer that are looked at, the first ones.

    Raises:
      UserError: if a medium cannot be read.
    """
    written = [list(ids)[:most] for ids in answers]
    rows = prompt_rows(prompts, template, image, fits_row, written=written)
    stands = standing(rows.loaded, [rows.lengths], template)
    viewer = Viewer([rows.lengths], template, rows.image)
    views = [viewer.row(rows.loaded, b)[0] for b in range(len(prompts))]
    shown = [list(_shown(view, rows, b)) for b, view in enumerate(views)]
    # One shape for all rows: the program is compiled once.
    columns = [np.concatenate([np.zeros(0, np.int32), *(one.places for one in each)]) for each in shown]
    room = rounded(max(map(len, columns)))
    queries = []
    for b, ids in enumerate(written):
        at = views[b].place[1] - len(ids) - 1 + np.arange(len(ids))
        queries.append(Queries(
            at_BQ=_filled(at, most),
            groups_BQ=_filled(np.arange(len(ids)), most),
            turns_BQ=_filled(stands.turns_BT[b, at + 1], most),
            classes_BT=stands.classes_BT[b : b + 1],
            turns_BT=stands.turns_BT[b : b + 1],
            columns_BC=np.maximum(_filled(columns[b], room), 0),
        ))  # fmt: skip
    return Rows(rows.loaded.batch, written, shown, queries, [_pieces(ids, template) for ids in written])


def looks(probe: Probe, params: Any, rows: Rows) -> Iterator[Look]:
    """Looks at each answer, one row at a time. ``probe`` has a group for each token of the longest."""
    for b, (ids, shown) in enumerate(zip(rows.answers, rows.shown, strict=True)):
        batch: Batch = jax.tree.map(lambda x, b=b: x[b : b + 1], rows.batch)
        attended = probe(params, batch, rows.queries[b])
        sums_AX = np.asarray(attended.sums_LHGX)[:, :, : len(ids)].sum((0, 1))
        mass_XA = (sums_AX.astype(np.float64) / np.maximum(sums_AX[:, COUNT:], 1.0)).T[: len(CLASSES)]
        columns = sum(len(one.places) for one in shown)
        maps_LHAS = np.asarray(attended.maps_LBHQC)[:, 0, :, : len(ids), :columns]
        yield Look(rows.texts[b], shown, mass_XA, maps_LHAS)


def _filled(values: np.ndarray, size: int) -> np.ndarray:
    """int32 (1, size), -1 behind the values."""
    return np.append(values, np.full(size - len(values), -1)).astype(np.int32)[None]


def _pieces(ids: Sequence[int], template: Template) -> list[str]:
    """What each token adds to the text."""
    texts = [template.decode(ids[:n]).rstrip("\ufffd") for n in range(len(ids) + 1)]
    return [text.removeprefix(before) for before, text in itertools.pairwise(texts)]


def _shown(view: View, rows: PromptRows, b: int) -> Iterator[Shown]:
    """The media of row ``b`` that can be drawn."""
    slots_T = rows.loaded.batch.slots_BT[b]
    for span in view.spans:
        places = np.flatnonzero(slots_T[span.first : span.last] >= 0).astype(np.int32) + span.first
        if (shown := _of_span(span, places, rows.image)) is not None:
            if math.prod(shown.grid) != len(shown.places):
                raise ValueError(f"{view.name}: a {shown.kind} of {shown.grid} has {len(shown.places)} soft tokens")
            yield shown


def _of_span(span: Span, places: np.ndarray, spec: ImageSpec) -> Shown | None:
    """A medium with the places of its soft tokens; None for text and vectors."""
    if span.picture is not None:
        return Shown("image", span.picture.pixels, 1, 1, None, _grid(1, span.picture, spec.merge), places)
    if isinstance(span.clip, Film):
        pictures = [shot.picture for shot in span.clip.shots]
        count, across = len(pictures), min(len(pictures), math.ceil(math.sqrt(2 * len(pictures))))
        pixels = sheet(np.stack([picture.pixels for picture in pictures]), across)
        grid = count, *(frame_side(side, spec) for side in _grid(count, pictures[0], spec.merge)[1:])
        places = np.concatenate([np.arange(shot.first, shot.last, dtype=np.int32) for shot in span.clip.shots])
        return Shown("video", pixels, count, across, span.clip.seconds, grid, places)
    if isinstance(span.clip, Sound):
        picture = spectrogram(span.clip.frames_FM)
        return Shown("audio", picture, 1, 1, span.clip.seconds, (len(places), 1, 1), places)
    return None


def _grid(frames: int, picture: Picture, merge: int) -> tuple[int, int, int]:
    return frames, picture.rows // merge, picture.columns // merge


def sample(question: str, answer: str, truth: str, look: Look) -> dict[str, Any]:
    """A sample with its maps, as it is kept: plain values and text.

    "maps" has bytes b, (maps, tokens, soft tokens): a probability is ``scale[map] * (b / 255) ** 2``. Map 0 is the mean
    over all layers and heads; behind it are those of "chosen", [layer, head].
    """
    L, H, A, S = look.maps_LHAS.shape
    each = look.maps_LHAS.reshape(L * H, A, S)
    count = max(MAP_BYTES // max(A * S, 1) - 1, 0) if L * H > 1 else 0
    kept = np.argsort(-each.sum((1, 2)), kind="stable")[:count]
    kept = np.sort(kept)
    maps = np.concatenate([each.mean(0, keepdims=True), each[kept]])
    scale = maps.max((1, 2), initial=0.0)
    # Where a number is not finite, the scale is neither, which a page tells.
    data = np.nan_to_num(np.sqrt(maps / np.maximum(scale, 1e-30)[:, None, None])) * 255
    first = np.cumsum([0, *(len(one.places) for one in look.shown)])
    return {
        "question": question,
        "answer": answer,
        "truth": truth,
        "tokens": look.tokens,
        "media": [
            _drawn(one) | {"first": int(at)} for one, at in zip(look.shown, first, strict=False)
        ],
        "soft": S,
        "mass": {
            name: np.round(mass, DIGITS).tolist()
            for name, mass in zip(CLASSES, look.mass_XA, strict=True)
            if mass.any()
        },
        "maps": {"scale": scale.tolist(), "data": base64.b64encode(data.round().astype(np.uint8).tobytes()).decode()},
        "chosen": [[int(head) // H, int(head) % H] for head in kept],
    }  # fmt: skip


def _drawn(one: Shown) -> dict[str, Any]:
    """A medium with its picture as a data URI, not larger than SIDE where it is one frame."""
    height, width = one.pixels.shape[:2]
    side = SIDE if one.kind == "image" else 4 * SIDE
    part = min(1.0, side / max(height, width))
    size = max(1, round(width * part)), max(1, round(height * part))
    pixels = one.pixels if part == 1 else scaled(one.pixels[None], size)[0]
    src = embedding.png(pixels) if pixels.size < 3 * 128 * 128 else embedding.jpeg(pixels, 85)
    return {
        "kind": one.kind, "src": src, "width": width, "height": height, "frames": one.frames, "across": one.across,
        "seconds": one.seconds, "grid": list(one.grid),
    }  # fmt: skip
