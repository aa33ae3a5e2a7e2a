"""Rows of the benchmark: the gated delta rule over packed documents, beside attention over the same ones."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.row import Measured, Row, Settings
from jaxmm.measure.timing import Figure, in_turns, lognormal

LENGTHS, DOCUMENT = (2048, 8192, 32768), 512  # positions of a row, and of a document in the mean
HEADS, HEAD = 4, 64
CHUNKS = (32, 64, 128)
SLOW = 16384  # positions from which on attention over one document is measured once


def delta_rows(settings: Settings) -> Measured:
    """Forward and backward of rows of many documents and of one, by the rule in chunks and by attention."""
    import jax
    import jax.numpy as jnp

    from jaxmm.models.attention import attention, causal
    from jaxmm.models.delta_rule import CHUNK, delta_rule

    def inputs(T: int) -> dict[str, Any]:
        keys = jax.random.split(jax.random.key(settings.seed), 5)
        q, k, v = (jax.random.normal(key, (1, T, HEADS, HEAD)) for key in keys[:3])
        decay, rate = (jax.random.uniform(key, (1, T, HEADS)) for key in keys[3:])
        return {"q": q, "k": k, "v": v, "decay": -0.5 * decay, "rate": rate}

    def by_rule(x: Any, segments_BT: Any, chunk: int = CHUNK) -> jax.Array:
        return delta_rule(x["q"], x["k"], x["v"], x["decay"], x["rate"], segments_BT, chunk=chunk)[0]

    def by_attention(x: Any, segments_BT: Any) -> jax.Array:
        return attention(x["q"], x["k"], x["v"], causal(segments_BT))

    def compiled(f: Callable, x: Any, segments_BT: np.ndarray) -> Callable[[], Any]:
        step = jax.grad(lambda x, segments_BT: (f(x, segments_BT) * x["v"]).sum())
        given = x, jnp.asarray(segments_BT)
        program = jax.jit(step).lower(*given).compile()
        return lambda: jax.block_until_ready(program(*given))

    figures: dict[str, Figure] = {}
    notes = [f"{HEADS} heads of {HEAD}, float32, forward and backward"]
    for full in LENGTHS:
        T = length(full, settings)
        x, many_BT = inputs(T), documents(T, settings.seed)
        one = compiled(by_attention, x, np.ones((1, T), np.int32))
        things = {
            "rule, documents": compiled(by_rule, x, many_BT), "attention, documents": compiled(by_attention, x, many_BT)
        }  # fmt: skip
        things |= {"attention, one": one} if full < SLOW else {}
        if full == LENGTHS[1]:
            things |= {f"chunks of {n}": compiled(functools.partial(by_rule, chunk=n), x, many_BT) for n in CHUNKS}
        seconds = in_turns(things, settings.repeats)
        if full >= SLOW:
            began = time.perf_counter()
            one()
            seconds["attention, one"] = [time.perf_counter() - began]
        figures |= {f"{full}: {name}": Figure([1000 * s for s in took], "ms") for name, took in seconds.items()}
        notes.append(f"{full}: {int(many_BT.max())} documents in a row of {T}")
    longest, middle = (figures[f"{n}: rule, documents"].median / length(n, settings) for n in (LENGTHS[2], LENGTHS[1]))
    figures["a position of 32768 / of 8192"] = Figure([longest / middle], "")
    T = length(LENGTHS[0], settings)
    figures["packed, apart from alone"] = Figure([_apart(by_rule, inputs(T), documents(T, settings.seed))], "")
    return Measured(figures, notes)


def length(full: int, settings: Settings) -> int:
    return max(256, settings.count(full) // 256 * 256)


def documents(T: int, seed: int) -> np.ndarray:
    """Segments (1, T) of lognormal documents of about DOCUMENT positions, which fill the row."""
    count = max(2, T // DOCUMENT)
    lengths = lognormal(count, T, seed)
    found = np.repeat(np.arange(1, count + 1), lengths)[None, :T].astype(np.int32)
    return np.pad(found, ((0, 0), (0, T - found.shape[1])))


def _apart(by_rule: Callable, x: Any, segments_BT: np.ndarray) -> float:
    """The largest difference of a row of documents from each alone, of outputs and of gradients, over the largest."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def both(x: Any, segments_BT: Any) -> Any:
        out, pull = jax.vjp(lambda x: by_rule(x, segments_BT), x)
        return out, pull(jnp.sin(out))[0]

    packed = jax.tree.leaves(both(x, jnp.asarray(segments_BT)))
    worst = [0.0] * len(packed)
    for number in range(1, int(segments_BT.max()) + 1):
        (here,) = np.nonzero(segments_BT[0] == number)
        of_one = {name: values[:, here] for name, values in x.items()}
        alone = jax.tree.leaves(both(of_one, jnp.ones((1, len(here)), jnp.int32)))
        for n, (one, whole) in enumerate(zip(alone, packed, strict=True)):
            worst[n] = max(worst[n], float(jnp.abs(one - whole[:, here]).max()))
    return max(w / float(jnp.abs(whole).max()) for w, whole in zip(worst, packed, strict=True))


ROWS = [
    Row(
        "delta",
        "rows of 2,048, 8,192 and 32,768 positions: lognormal documents and one, by the gated delta rule and attention",
        {"a position of 32768 / of 8192": "<= 1.25", "packed, apart from alone": "<= 1e-5"},
        delta_rows,
    )
]
