"""Which token comes next: the most likely one, or one drawn from the likeliest."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Sampling(NamedTuple):
    """How tokens are chosen. The draws of an answer are a function of the seed and of the prompt's number alone.

    Attributes:
      temperature: divides the logits; 0 is the most likely token, always.
      top_p: the likeliest tokens whose probabilities reach this sum are drawn from (Holtzman et al., 2020); 1 is all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


def choose(logits_BV, sampling: Sampling, numbers_B, written) -> jax.Array:
    """Chooses a token of each row, int32 (B,).

    Args:
      logits_BV: float32.
      sampling: numbers, or traced ones: other values compile nothing again.
      numbers_B: of the rows' prompts.
      written: tokens that the answers have already.
    """

    def draw() -> jax.Array:
        order_BV = jnp.argsort(-logits_BV, axis=-1)
        sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1) / jnp.maximum(sampling.temperature, 1e-6)
        p_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV  # of the likelier ones, 0 for the first, which always stays
        kept_BV = jnp.where(before_BV < sampling.top_p, sorted_BV, -jnp.inf)
        seed = jax.random.key(sampling.seed)
        keys_B = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(seed, n), written))(numbers_B)
        at_B = jax.vmap(jax.random.categorical)(keys_B, kept_BV)
        return jnp.take_along_axis(order_BV, at_B[:, None], axis=-1)[:, 0].astype(jnp.int32)

    return lax.cond(sampling.temperature > 0, draw, lambda: logits_BV.argmax(-1).astype(jnp.int32))
