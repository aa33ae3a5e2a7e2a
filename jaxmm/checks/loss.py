"""The part of ``jaxmm check`` that holds the loss in chunks against float64."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxmm.checks.oracle import cross_entropy as plain
from jaxmm.checks.row import Row, compared, tried

# Of the sum, of the largest term and the largest value of each gradient. Inputs are rounded before the oracle sees
# them, and what is not a gradient is computed in float32.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
EXACT = {"sum": 1e-4, "terms": 1e-4}
SHAPE = (2, 150, 256)  # rows, targets, width
VOCAB, CHUNK = 5003, 64
CASES = {"plain": (0.0, 0.0, 0), "in chunks, z-loss": (1e-2, 0.0, CHUNK), "soft-cap": (1e-4, 5.0, CHUNK)}


def rows(dtype: str) -> Iterator[Row]:
    for name, settings in CASES.items():
        yield tried(name, functools.partial(held_against_float64, name, *settings, dtype))


def held_against_float64(name: str, z_loss: float, softcap: float, chunk: int, dtype: str) -> Row:
    import jax
    import jax.numpy as jnp

    from jaxmm.training.loss import cross_entropy

    rng = np.random.default_rng(len(name))
    x = jnp.asarray(rng.normal(size=SHAPE), dtype)
    head = jnp.asarray(rng.normal(size=(VOCAB, SHAPE[-1])) * SHAPE[-1] ** -0.5, dtype)
    tokens = rng.integers(0, VOCAB, SHAPE[:2])
    weights = (rng.random(SHAPE[:2]) * (rng.random(SHAPE[:2]) < 0.7)).astype(np.float32)

    def run(x, head):
        return cross_entropy(x, head, tokens, weights, z_loss, chunk, softcap)

    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        (total, terms), (dx, dhead) = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(x, head)
    wanted: Any = plain(x.astype(jnp.float32), head.astype(jnp.float32), tokens, weights, z_loss, softcap)
    results: tuple[Any, ...] = total, terms.nll_BR, dx.astype(jnp.float32), dhead.astype(jnp.float32)
    apart = {
        what: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())
        for what, a, b in zip(("sum", "terms", "dx", "dhead"), results, wanted, strict=True)
    }
    return compared(name, apart, {**dict.fromkeys(("dx", "dhead"), TOLERANCES[dtype]), **EXACT})
