"""What a decoder keeps of the positions before: keys and values, and the states of layers that carry one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmm import sharding


class Pages(NamedTuple):
    """Keys and values of the layers of one kind of attention, normed and turned, with room for C positions.

    Those of a head lie together, as one query reads them: on a CPU that takes a third of the time.
    """

    keys_LBKCD: jax.Array
    values_LBKCD: jax.Array


class Cache(NamedTuple):
    """One document a row, from the row's first position on; rows may be of different lengths.

    A key keeps the rotation it was written with, also where the frequencies grow with the document ("dynamic",
    "longrope"): what is written later turns by the frequencies of its own time, as in ``transformers``.

    Attributes:
      pages: by the mixer whose layers they are of.
      length_B: positions that are written; the next one goes there.
      position_B: the rotary position of the next one, on every axis: after an image it is not ``length_B`` where soft
        tokens have rows and columns of their own.
      states: of layers that carry a state, by their mixer: a pytree with a leading dim of the layers that have it.
    """

    pages: Mapping[str, Pages]
    length_B: jax.Array
    position_B: jax.Array
    states: Mapping[str, Any] = {}

    @classmethod
    def empty(
        cls, shapes: Mapping[str, tuple[int, int, int, int, int]], dtype, positions_BTA, segments_BT,
        states: Mapping[str, Any] = {},
    ) -> Cache:  # fmt: skip
        """For documents at these positions, none of whose keys is written yet.

        Args:
          shapes: (L, B, K, C, D) of each kind of attention, by its mixer.
          states: shapes and dtypes of the states, by mixer, with a leading dim of layers.
        """
        empty = {
            kind: sharding.constrain(jnp.zeros(shape, dtype), None, "rows", "kv_heads", None, None)
            for kind, shape in shapes.items()
        }
        pages = {kind: Pages(zeros, zeros) for kind, zeros in empty.items()}
        length_B = (segments_BT > 0).sum(-1, dtype=jnp.int32)
        # After the last position, as in training; soft tokens of a video before it may have larger ones.
        last_B = jnp.take_along_axis(positions_BTA.max(-1), jnp.maximum(length_B[:, None] - 1, 0), axis=1)[:, 0]
        position_B = jnp.where(length_B > 0, last_B + 1, 0).astype(jnp.int32)
        return cls(pages, length_B, position_B, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), states))

    def filled(self, kind: str, layer, k_BTKD, v_BTKD) -> Cache:
        """With the first T keys and values of a layer, ``layer`` counted among those of its kind of attention; what is
        written behind a row's length is never seen."""

        def write(pages, new_BTKD):
            new_1BKTD = jnp.swapaxes(new_BTKD, 1, 2)[None].astype(pages.dtype)
            return lax.dynamic_update_slice(pages, new_1BKTD, (layer, 0, 0, 0, 0))

        return self._with(kind, write, k_BTKD, v_BTKD)

    def _with(self, kind: str, write: Callable[..., jax.Array], *new: jax.Array) -> Cache:
        pages = Pages(*map(write, self.pages[kind], new))
        return self._replace(pages={**self.pages, kind: pages})

    def added(self, kind: str, layer, k_B1KD, v_B1KD) -> Cache:
        """With one more key and value of a layer in each row; the length grows when all layers have theirs."""

        def write(pages, new_B1KD):
            rows, heads = (jnp.arange(size) for size in pages.shape[1:3])
            new_BKD = new_B1KD[:, 0].astype(pages.dtype)
            return pages.at[layer, rows[:, None], heads, self.length_B[:, None]].set(new_BKD)

        return self._with(kind, write, k_B1KD, v_B1KD)

    def of(self, kind: str, layer) -> tuple[jax.Array, jax.Array]:
        """Keys and values (B, K, C, D) of a layer."""
        k_BKCD, v_BKCD = (lax.dynamic_index_in_dim(pages, layer, keepdims=False) for pages in self.pages[kind])
        return k_BKCD, v_BKCD

    def state(self, kind: str, layer) -> Any:
        """The state of a layer, ``layer`` counted among those with its mixer."""
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, layer, keepdims=False), self.states[kind])

    def with_state(self, kind: str, layer, state: Any) -> Cache:
        """With another state of a layer."""
        written = lambda x, new: lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), layer, 0)  # noqa: E731
        return self._replace(states={**self.states, kind: jax.tree.map(written, self.states[kind], state)})

    def grown(self) -> Cache:
        """One position further in each row."""
        return self._replace(length_B=self.length_B + 1, position_B=self.position_B + 1)
