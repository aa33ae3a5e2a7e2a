"""Which token comes next: the most likely one, or one drawn from the likeliest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmm.errors import UserError

LARGEST_SEED = 2**31 - 1


class Sampling(NamedTuple):
    """How tokens are chosen. The draws of an answer are a function of the seed and of the prompt's number alone.

    Attributes:
      temperature: divides the logits; 0 is the most likely token, always.
      top_p: the likeliest tokens whose probabilities reach this sum are drawn from (Holtzman et al., 2020); 1 is all.
      top_k: of so many likeliest tokens; 0 is all.
      min_p: of tokens at least this likely, beside the likeliest one (Nguyen et al., 2024); 0 is all.
      repetition_penalty: what was there before is less likely by it (Keskar et al., 2019); 1 changes nothing.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


GREEDY = Sampling()


def check(asked: Mapping[str, Any], mark: str = "--") -> None:
    """Checks how an answer is to be written: ``max_tokens`` and the fields of ``Sampling`` by name.

    Args:
      mark: before a name in messages.

    Raises:
      UserError: for a value that is out of range, or says nothing beside the others.
    """
    seed, above = asked["seed"], ("temperature", "top_k", "repetition_penalty")
    wanted = {
        "max_tokens": (asked["max_tokens"] >= 1, "at least 1"),
        **{name: (0 <= asked[name] < math.inf, "0 or above") for name in above},
        "top_p": (0 < asked["top_p"] <= 1, "above 0 and at most 1"),
        "min_p": (0 <= asked["min_p"] <= 1, "0 to 1"),
        "seed": (0 <= seed <= LARGEST_SEED, f"0 to {LARGEST_SEED}"),
    }
    for name, (is_right, words) in wanted.items():
        if not is_right:
            besides = ": 0 is as the model's folder says" if name == "repetition_penalty" else ""
            raise UserError(f"{mark}{name} is {asked[name]}: it must be {words}{besides}")
    narrowing = {"top_p": asked["top_p"] < 1, "top_k": asked["top_k"], "min_p": asked["min_p"]}
    for name in (name for name, is_set in narrowing.items() if is_set and not asked["temperature"]):
        raise UserError(f"{mark}{name} chooses what is drawn from: it needs a {mark}temperature above 0")


def penalized(logits_BV, seen_BV, penalty) -> jax.Array:
    """Logits of which those of tokens that were there before are divided by the penalty, or multiplied where below 0.

    Args:
      seen_BV: bool: the tokens of prompt and answer so far.
    """
    return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def choose(logits_BV, sampling: Sampling, numbers_B, written) -> jax.Array:
    """Chooses a token of each row, int32 (B,). Drawing narrows down in the order of transformers: top_k, top_p, min_p.

    Args:
      logits_BV: float32, the repetition penalty in them.
      sampling: numbers, or traced ones: other values compile nothing again.
      numbers_B: of the rows' prompts.
      written: tokens that the answers have already.
    """

    def draw() -> jax.Array:
        order_BV = jnp.argsort(-logits_BV, axis=-1)
        sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1) / jnp.maximum(sampling.temperature, 1e-6)
        is_in_V = jnp.arange(sorted_BV.shape[-1]) < jnp.where(sampling.top_k > 0, sampling.top_k, sorted_BV.shape[-1])
        sorted_BV = jnp.where(is_in_V, sorted_BV, -jnp.inf)
        p_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV  # of the likelier ones, 0 for the first, which always stays
        is_kept_BV = (before_BV < sampling.top_p) & (p_BV >= sampling.min_p * p_BV[:, :1])
        kept_BV = jnp.where(is_kept_BV, sorted_BV, -jnp.inf)
        seed = jax.random.key(sampling.seed)
        keys_B = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(seed, n), written))(numbers_B)
        at_B = jax.vmap(jax.random.categorical)(keys_B, kept_BV)
        return jnp.take_along_axis(order_BV, at_B[:, None], axis=-1)[:, 0].astype(jnp.int32)

    return lax.cond(sampling.temperature > 0, draw, lambda: logits_BV.argmax(-1).astype(jnp.int32))
