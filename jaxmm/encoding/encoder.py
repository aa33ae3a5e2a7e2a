"""A frozen tower over many pictures: decoded in threads, encoded together, in one compiled shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxmm.batch import Batch
from jaxmm.data.assemble import empty_batch
from jaxmm.data.documents import Image
from jaxmm.data.media import geometry
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.patches import patches
from jaxmm.data.media.picture import image_size
from jaxmm.data.packing.plan import Budgets
from jaxmm.machine import cores
from jaxmm.models.multimodal import make_model
from jaxmm.recipe import Recipe

PATCHES = 4096  # encoded at once, or those of the largest image


class Encoder:
    """A frozen tower over many pictures, in one shape: compiled once."""

    def __init__(self, recipe: Recipe, params: Any, fast_decode: bool):
        spec = recipe.image
        largest = spec.max_pixels // (spec.patch_size * spec.merge) ** 2 * spec.merge**2
        self.spec, self.fast_decode, self.params = spec, fast_decode, params
        self.patches = max(largest, PATCHES // spec.merge**2 * spec.merge**2)
        _, apply = make_model(recipe.model)
        self._run: Callable[[Any, Batch], jax.Array] = jax.jit(
            lambda params, batch: apply(params, batch, recipe.compute, method="features").last_BND
        )
        self._pool = ThreadPoolExecutor(cores())

    def __call__(self, pictures: Iterable[Image]) -> Iterator[np.ndarray | BadMedia]:
        """Yields float32 (rows, columns, D) of each picture, or why it cannot be used."""
        waiting: list[tuple[np.ndarray, tuple[int, int]] | BadMedia] = []
        room = self.patches
        for decoded in self._pool.map(self._decoded, pictures):
            size = 0 if isinstance(decoded, BadMedia) else len(decoded[0])
            if size > room:
                yield from self._encoded(waiting)
                waiting, room = [], self.patches
            waiting.append(decoded)
            room -= size
        yield from self._encoded(waiting)

    def _decoded(self, picture: Image) -> tuple[np.ndarray, tuple[int, int]] | BadMedia:
        try:
            return patches(picture, self.spec, image_size(picture), fast=self.fast_decode)
        except BadMedia as error:
            return error

    def _encoded(
        self, waiting: Sequence[tuple[np.ndarray, tuple[int, int]] | BadMedia]
    ) -> Iterator[np.ndarray | BadMedia]:
        batch = empty_batch(1, Budgets(1, self.patches, self.patches // self.spec.merge**2, 1), self.spec)
        at, places = 0, []
        for tile, (values, grid) in enumerate(one for one in waiting if not isinstance(one, BadMedia)):
            here = slice(at, at + len(values))
            batch.patches.values[0, here] = values
            batch.patches.positions[0, here, 1:] = geometry.patch_positions(*grid, self.spec)
            batch.patches.segments[0, here] = tile + 1
            batch.grids_BM3[0, tile] = 1, *grid
            places.append(here)
            at = here.stop
        features_ND = np.asarray(self._run(self.params, batch)[0], np.float32) if places else None
        left = iter(places)
        for one in waiting:
            if isinstance(one, BadMedia) or features_ND is None:
                assert isinstance(one, BadMedia)
                yield one
                continue
            here, (rows, columns) = next(left), one[1]
            row, column = geometry.patch_positions(rows, columns, self.spec).T
            vectors = np.empty((rows, columns, features_ND.shape[1]), np.float32)
            vectors[row, column] = features_ND[here]
            yield vectors
