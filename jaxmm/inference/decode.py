"""Decoding on the device: one prefill over the prompts, then one position a row with the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmm import sharding
from jaxmm.batch import Batch
from jaxmm.inference.sampling import GREEDY, Sampling, choose, penalized
from jaxmm.models.cache import Cache
from jaxmm.models.multimodal import Compute, ModelSpec, make_model


class DecodeState(NamedTuple):
    """Answers being written, one a row.

    Attributes:
      tokens_BW: int32, with room for W tokens an answer; 0 where none is yet.
      written: tokens of each answer so far, those of finished ones included, which are the first stop token.
      done_B: whether an answer has ended.
      cache: of prompts and answers but the last token, which has not been through the decoder.
      numbers_B: of the prompts.
      seen_BV: bool: the tokens of prompts and answers, which a repetition penalty is of; soft tokens are none.
    """

    tokens_BW: jax.Array
    written: jax.Array
    done_B: jax.Array
    cache: Cache
    numbers_B: jax.Array
    sampling: Sampling
    seen_BV: jax.Array


class Generator:
    """Writes answers. It compiles for each shape of a batch and room for answers, not for lengths or sampling."""

    def __init__(self, spec: ModelSpec, compute: Compute, stop_ids: Sequence[int]):
        """``stop_ids``: tokens that end an answer."""
        self._apply = make_model(spec)[1]
        self._compute, self._stop_ids = compute, tuple(stop_ids)
        self._begin = jax.jit(self._first, static_argnames="room")
        self._go_on = jax.jit(self._more, donate_argnums=1)

    def begin(
        self, params: Any, batch: Batch, room: int, sampling: Sampling = GREEDY, first: int = 0
    ) -> DecodeState:  # fmt: skip
        """Reads the prompts, one document a row from its first position on, and chooses each answer's first token.

        Args:
          room: tokens an answer may have.
          first: the number of the first row's prompt, which its draws depend on.
        """
        numbers_B = np.arange(first, first + len(batch.text.values), dtype=np.int32)
        return self._begin(params, batch, numbers_B, sampling, room=room)

    def go_on(self, params: Any, writing: DecodeState, done_B: np.ndarray, until: int) -> DecodeState:
        """Writes on until answers have ``until`` tokens, or all have ended; ``writing`` is used up.

        Args:
          done_B: bool, answers that the caller has ended.
        """
        return self._go_on(params, writing, np.asarray(done_B, bool), np.int32(until))

    def _first(self, params, batch: Batch, numbers_B, sampling: Sampling, room: int) -> DecodeState:
        B, T = batch.text.values.shape
        logits_BV, cache = self._apply(params, batch, T + room, self._compute, method="prefill")
        nothing = jnp.zeros((B, room), jnp.int32), jnp.int32(0), jnp.zeros(B, bool)
        is_token_BT = (batch.text.segments > 0) & (batch.slots_BT < 0)
        seen_BV = jnp.zeros(logits_BV.shape, bool).at[jnp.arange(B)[:, None], batch.text.values].max(is_token_BT)
        return self._with_next(DecodeState(*nothing, cache, numbers_B, sampling, seen_BV), logits_BV)

    def _more(self, params, writing: DecodeState, done_B, until) -> DecodeState:
        def unfinished(writing: DecodeState):
            return (writing.written < until) & ~writing.done_B.all()

        def write(writing: DecodeState) -> DecodeState:
            last_B = lax.dynamic_index_in_dim(writing.tokens_BW, writing.written - 1, axis=1, keepdims=False)
            logits_BV, cache = self._apply(params, last_B, writing.cache, self._compute, method="step")
            return self._with_next(writing._replace(cache=cache), logits_BV)

        return lax.while_loop(unfinished, write, writing._replace(done_B=writing.done_B | done_B))

    def _with_next(self, writing: DecodeState, logits_BV) -> DecodeState:
        stops = jnp.array(self._stop_ids, jnp.int32)
        logits_BV = penalized(logits_BV, writing.seen_BV, writing.sampling.repetition_penalty)
        next_B = choose(logits_BV, writing.sampling, writing.numbers_B, writing.written)
        if self._stop_ids:
            next_B = jnp.where(writing.done_B, stops[0], next_B)
        done_B = writing.done_B | (next_B[:, None] == stops).any(-1)
        tokens_BW = lax.dynamic_update_index_in_dim(writing.tokens_BW, next_B, writing.written, axis=1)
        return writing._replace(
            # Every process reads them.
            tokens_BW=sharding.constrain(tokens_BW, None, None),
            done_B=sharding.constrain(done_B, None),
            written=writing.written + 1,
            seen_BV=writing.seen_BV.at[jnp.arange(len(next_B)), next_B].set(True),
        )
