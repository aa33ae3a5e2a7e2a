"""Frozen towers over many media: decoded in threads, as for a training batch, and encoded together."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmm.batch import Batch
from jaxmm.data.assemble import empty_batch
from jaxmm.data.documents import Image
from jaxmm.data.media.medium import BadMedia, Filled, Item, Settings, Space
from jaxmm.data.media.table import medium_of, streams
from jaxmm.data.packing.plan import Budgets
from jaxmm.image_spec import ImageSpec
from jaxmm.machine import cores
from jaxmm.models.multimodal import make_model
from jaxmm.recipe import Recipe

UNITS = {"patches": 4096, "audio": 6000}  # of a stream, encoded at once; or twice, four times... for a larger medium
METHODS = {"patches": "features", "audio": "heard"}  # of the model, by the stream that its tower takes


class Decoded(NamedTuple):
    """A medium as a row of its own; ``filled``: where its soft tokens stand."""

    item: Item
    row: Batch
    filled: Filled


class Encoder:
    """Frozen towers, each compiled once for a number of units."""

    def __init__(self, recipe: Recipe, params: Any, fast_decode: bool):
        self.spec, self.params = encoded_spec(recipe), params
        self.settings = Settings(fast_decode=fast_decode)
        _, apply = make_model(recipe.model)

        def run(method: str) -> Callable[[Any, Batch], Any]:
            return jax.jit(lambda params, batch: apply(params, batch, recipe.compute, method=method))

        self._run = {stream: run(method) for stream, method in METHODS.items()}
        self._pool = ThreadPoolExecutor(cores())

    def __call__(self, items: Iterable[Item]) -> Iterator[np.ndarray | BadMedia]:
        """Yields the float32 vectors of each medium, all of one stream, or why it cannot be used.

        They are (rows, columns, D) of a picture, (frames, rows, columns, D) of a video, (n, D) of a recording.
        """
        waiting: list[Decoded | BadMedia] = []
        taken = 0
        for decoded in self._ahead(items):
            units = 0 if isinstance(decoded, BadMedia) else decoded.item.units
            if taken and taken + units > UNITS[_stream(waiting)]:
                yield from self._encoded(waiting)
                waiting, taken = [], 0
            waiting.append(decoded)
            taken += units
        yield from self._encoded(waiting)

    def _ahead(self, items: Iterable[Item]) -> Iterator[Decoded | BadMedia]:
        """Decodes some media ahead, and no more, as a video takes much memory."""
        coming: collections.deque[Future[Decoded | BadMedia]] = collections.deque()
        for item in items:
            coming.append(self._pool.submit(self._decoded, item))
            if len(coming) > 2 * cores():
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def _decoded(self, item: Item) -> Decoded | BadMedia:
        row = empty_batch(1, _budgets(item.needs), self.spec)
        try:
            return Decoded(item, row, medium_of(item.part).fill(Space(row, 0), item, self.spec, self.settings))
        except BadMedia as error:
            return error

    def _encoded(self, waiting: Sequence[Decoded | BadMedia]) -> Iterator[np.ndarray | BadMedia]:
        """Encodes what waits, together."""
        good = [one for one in waiting if not isinstance(one, BadMedia)]
        vectors = iter(self._together(good) if good else ())
        for one in waiting:
            yield one if isinstance(one, BadMedia) else next(vectors)

    def _together(self, decoded: Sequence[Decoded]) -> Iterator[np.ndarray]:
        stream = _stream(decoded)
        batch = joined([one.row for one in decoded], stream, self._room(decoded, stream), self.spec)
        outputs = self._run[stream](self.params, batch)
        vectors_ND = np.asarray(outputs.last_BND[0] if stream == "patches" else outputs[0], np.float32)
        at = 0
        for one in decoded:
            if stream == "patches":
                yield on_grid(vectors_ND[at : at + one.item.units], one)
            else:
                yield vectors_ND[medium_of(one.item.part).table_rows(at, self.spec) + one.filled.rows]
            at += one.item.units

    def _room(self, decoded: Sequence[Decoded], stream: str) -> int:
        """Units of the row that is encoded: few different numbers, as each is compiled."""
        audio, merge = self.spec.audio, self.spec.merge
        group = merge**2 if stream == "patches" else audio.chunk if audio else 1
        taken, room = sum(one.item.units for one in decoded), -(-UNITS[stream] // group) * group
        while room < taken:
            room *= 2
        return room


def encoded_spec(recipe: Recipe) -> ImageSpec:
    """How media are taken that the towers of a run encode."""
    whole, model = recipe.whole, recipe.model
    takes_videos = model.vision is not None and whole.video is not None and whole.video.frames == model.vision.frames
    return whole.only(["video"] * takes_videos + ["audio"] * (model.audio is not None))


def joined(rows: Sequence[Batch], name: str, room: int, spec: ImageSpec) -> Batch:
    """One row of the media that rows hold, each alone, of a stream.

    Args:
      room: units of the stream in that row.
    """
    group = spec.merge**2
    batch = empty_batch(1, _budgets({name: room} | ({"items": room // group} if name == "patches" else {})), spec)
    whole, at, used, tiles = streams(batch)[name], 0, 0, 0
    for row in rows:
        one = streams(row)[name]
        units = one.segments.shape[1]
        here = slice(at, at + units)
        whole.values[0, here], whole.positions[0, here] = one.values[0], one.positions[0]
        whole.segments[0, here] = np.where(one.segments[0] > 0, one.segments[0] + used, 0)
        own = row.grids_BM3.shape[1]
        batch.grids_BM3[0, tiles : tiles + own] = row.grids_BM3[0]
        at, tiles, used = at + units, tiles + own, used + int(one.segments.max())
    return batch


def on_grid(vectors_ND: np.ndarray, decoded: Decoded) -> np.ndarray:
    """The vectors of a picture's or a video's patches in reading order; those of class tokens are left out."""
    patches = decoded.row.patches
    positions = patches.positions[0]
    is_patch = (patches.segments[0] > 0) & (positions[:, 1] >= 0)
    frame, row, column = positions[is_patch].T
    vectors = np.empty((frame.max() + 1, row.max() + 1, column.max() + 1, vectors_ND.shape[1]), np.float32)
    vectors[frame, row, column] = vectors_ND[is_patch]
    return vectors[0] if isinstance(decoded.item.part, Image) else vectors


def _budgets(needs: Any) -> Budgets:
    return Budgets(**({"tokens": 1, "patches": 0, "items": 0, "targets": 1} | dict(needs)))


def _stream(decoded: Sequence[Decoded | BadMedia]) -> str:
    first = next(one for one in decoded if not isinstance(one, BadMedia))
    return medium_of(first.item.part).stream
