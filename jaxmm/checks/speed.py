"""The part of ``jaxmm check`` that measures attention: useful work a second on packed rows, and on one document.

Useful are the pairs of a query and a key it sees, and nothing else: what a kernel computes of a block beside them, and
what a backward pass computes again, counts nothing. The library's own attention knows no documents: it is measured on
one, and on packed rows would take as long.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxmm.checks.row import MEASURED, NOT_HERE, Row, tried
from jaxmm.measure.timing import Figure, in_turns, lognormal

FORMULA = (
    "useful FLOPs: 4 x heads x head width x pairs of a query and a key it sees, forward; three times that with the "
    "backward pass, as recomputation counts nothing (where it is counted, as some papers do, it is 3.5 times)"
)
LIBRARY = {"library": "xla", "library-cudnn": "cudnn"}  # of jax.nn.dot_product_attention
DIRECTIONS = {"forward": 1, "forward + backward": 3}  # and their work, in forward passes


class Sizes(NamedTuple):
    rows: int
    length: int
    documents: int
    heads: int
    kv_heads: int
    calls: int  # of a sample, dispatched together
    samples: int


SMALL = Sizes(1, 512, 4, 4, 2, 1, 3)
LARGE = Sizes(2, 8192, 16, 16, 8, 5, 5)


def rows(name: str) -> Iterator[Row]:
    """A row for each width of heads and layout.

    Args:
      name: a backend of ours, or a key of LIBRARY.
    """
    import jax

    from jaxmm.models.attention import choose_backend

    platform = jax.default_backend()
    sizes = SMALL if platform == "cpu" else LARGE
    if name == "library-cudnn" and platform != "gpu":
        yield Row("all", NOT_HERE, f"cuDNN runs on GPUs, not on {platform}")
        return
    if name not in LIBRARY:
        try:
            choose_backend(name, platform, sizes.length)
        except ValueError as error:
            yield Row("all", NOT_HERE, str(error))
            return
    for layout in ("one",) if name in LIBRARY else ("lognormal", "one"):
        for head in (64, 128):
            dtype = "float32" if platform == "cpu" else "bfloat16"
            what = f"{layout} document{'s' * (layout != 'one')}, heads of {head}"
            yield tried(what, functools.partial(measured, what, name, layout, head, dtype, sizes))


def segments_of(layout: str, sizes: Sizes) -> np.ndarray:
    """int32 (rows, length), full."""
    if layout == "one":
        return np.ones((sizes.rows, sizes.length), np.int32)
    lengths = [lognormal(sizes.documents, sizes.length, seed) for seed in range(sizes.rows)]
    full = [np.repeat(np.arange(1, sizes.documents + 1), each)[: sizes.length] for each in lengths]
    return np.stack([np.pad(row, (0, sizes.length - len(row)), mode="edge") for row in full]).astype(np.int32)


def useful_flops(intervals: Any, heads: int, head: int) -> float:
    """Of a forward pass: two matmuls, of which each pair costs two FLOPs for each of a head's numbers."""
    start, end = (np.asarray(x, np.int64) for x in intervals)
    return 4.0 * heads * head * float((end - start).sum())


def measured(what: str, name: str, layout: str, head: int, dtype: str, sizes: Sizes) -> Row:
    import jax
    import jax.numpy as jnp

    from jaxmm.models.attention import causal

    segments = jnp.asarray(segments_of(layout, sizes))
    keys = jax.random.split(jax.random.key(0), 4)
    widths = (sizes.heads, sizes.kv_heads, sizes.kv_heads, sizes.heads)
    shapes = [(sizes.rows, sizes.length, n, head) for n in widths]
    q, k, v, grad = (jax.random.normal(key, shape, jnp.dtype(dtype)) for key, shape in zip(keys, shapes, strict=True))
    attend = attend_by(name)

    def both(q, k, v, grad):
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, segments), q, k, v)
        return out, *pull(grad)

    forward, backward = jax.jit(lambda q, k, v: attend(q, k, v, segments)), jax.jit(both)

    def sample(run: Callable[[], Any]) -> Any:
        return jax.block_until_ready([run() for _ in range(sizes.calls)][-1])

    things = {
        "forward": functools.partial(sample, lambda: forward(q, k, v)),
        "forward + backward": functools.partial(sample, lambda: backward(q, k, v, grad)),
    }
    seconds = in_turns(things, sizes.samples)
    flops = useful_flops(causal(segments), sizes.heads, head)
    figures: dict[str, float] = {"rows": sizes.rows, "length": sizes.length, "heads": sizes.heads}
    text = []
    for direction, times in DIRECTIONS.items():
        took = Figure([each / sizes.calls for each in seconds[direction]], "s").median
        rate = flops * times / took / 1e12
        figures |= {f"{direction} ms": 1000 * took, f"{direction} TFLOP/s": rate}
        text.append(f"{direction} {1000 * took:.3g} ms, {rate:.3g} TFLOP/s")
    return Row(what, MEASURED, "; ".join(text), figures)


def attend_by(name: str) -> Callable[..., Any]:
    """``attend(q, k, v, segments)``; the library's own does not look at segments."""
    import jax

    from jaxmm.models.attention import attention, causal

    if name in LIBRARY:
        implementation: Any = LIBRARY[name]
        return lambda q, k, v, segments: jax.nn.dot_product_attention(
            q, k, v, is_causal=True, implementation=implementation
        )
    return lambda q, k, v, segments: attention(q, k, v, causal(segments), backend=name, mask="causal")
