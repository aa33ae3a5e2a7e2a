"""The part of ``jaxmm check`` that holds an attention backend against float64, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxmm.checks import proof
from jaxmm.checks.oracle import dense, mask_by_definition
from jaxmm.checks.row import NOT_HERE, RIGHT, Row, compared, tried

# Of the largest value of the output, and of each gradient. Inputs are rounded before the oracle sees them; bfloat16
# rounds the softmax's weights, their gradients and the results too. float32 is computed without TF32.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
ROWS, SMALL, LARGE = 2, 200, 600  # positions; neither a multiple of a block
OUTPUTS = ("out", "dq", "dk", "dv")
PADDING = "padding"
KINDS = {"causal": "causal", "two-way": "runs", "window": "any", "images": "whole"}  # as ``attention`` is told


class Case(NamedTuple):
    """A kind of mask on rows of some layout, for heads of some shape.

    Attributes:
      name: for people.
      layout: one, padded or uneven.
      kind: causal, two-way, window or images.
    """

    name: str
    layout: str
    kind: str
    heads: int = 4
    kv_heads: int = 4
    head: int = 64
    softcap: float = 0.0


CASES = (
    Case("causal, one document", "one", "causal"),
    Case("two-way", "uneven", "two-way"),
    Case("window", "uneven", "window"),
    Case("image blocks, two-way within causal", "uneven", "images"),
    Case("padded rows, one of nothing else", "padded", "causal"),
    Case("uneven documents", "uneven", "causal"),
    Case("soft-cap", "uneven", "causal", softcap=2.0),
    Case("grouped: 8 heads of 128 on 2", "uneven", "causal", heads=8, kv_heads=2, head=128),
    Case("heads of 72", "uneven", "two-way", head=72),
)


def rows(backend: str, dtype: str) -> Iterator[Row]:
    """A row for each case, and a proof kept where all that the backend takes are right; one that says why, where it
    does not run."""
    import jax

    from jaxmm.models.attention import check_mask, choose_backend

    platform = jax.default_backend()
    length = SMALL if platform == "cpu" else LARGE
    try:
        choose_backend(backend, platform, length, dtype)
    except ValueError as error:
        yield Row("all", NOT_HERE, str(error))
        return
    verdicts = set()
    for case in CASES:
        try:
            check_mask(backend, KINDS[case.kind], case.softcap)
        except ValueError as error:
            yield Row(case.name, NOT_HERE, str(error))
            continue
        row = tried(case.name, functools.partial(held_against_float64, case, backend, dtype, length))
        verdicts.add(row.verdict)
        yield row
    if verdicts == {RIGHT} and platform != "cpu":
        proof.keep(backend, dtype)


def layouts(length: int) -> dict[str, np.ndarray]:
    """Segments of two rows each, by name."""
    uneven = np.zeros((ROWS, length), np.int32)
    for row, parts in zip(uneven, (np.array([0.3, 0.005, 0.42, 0.2]), np.array([0.02, 0.6, 0.3])), strict=True):
        sizes = np.maximum((parts * length).astype(int), 1)
        row[: sizes.sum()] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    padded = np.zeros((ROWS, length), np.int32)  # at the end, between documents, and a row
    padded[0, : length // 3], padded[0, length // 2 : -length // 4] = 1, 2
    return {"one": np.ones((ROWS, length), np.int32), "padded": padded, "uneven": uneven}


def held_against_float64(case: Case, backend: str, dtype: str, length: int) -> Row:
    import jax
    import jax.numpy as jnp

    from jaxmm.models import attention as attn

    segments = layouts(length)[case.layout]
    at = np.arange(length)
    blocks = np.where((at >= length // 5) & (at < length // 4), segments, 0).astype(np.int32)
    window = length // 7
    intervals, mask = {
        "causal": (attn.causal(segments), mask_by_definition(segments, causal=True)),
        "two-way": (attn.bidirectional(segments), mask_by_definition(segments, causal=False)),
        "window": (
            attn.causal(segments, window=window), mask_by_definition(segments, causal=True, window=window)
        ),
        "images": (
            attn.causal(segments, jnp.asarray(blocks)), mask_by_definition(segments, causal=True, blocks=blocks)
        ),
    }[case.kind]  # fmt: skip
    rng = np.random.default_rng(len(case.name))
    shapes = [(ROWS, length, n, case.head) for n in (case.heads, case.kv_heads, case.kv_heads, case.heads)]
    q, k, v, grad = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    run = forward_and_backward(backend, case.softcap, KINDS[case.kind])
    # Else float32 matmuls of GPUs round to TF32, those of TPUs to bfloat16: the logic is what is asked here.
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        results = [np.asarray(x.astype(jnp.float32)) for x in run(q, k, v, grad, *intervals)]
    q, k, v, grad = (x.astype(jnp.float32) for x in (q, k, v, grad))
    wanted = dense(q, k, v, mask, grad, case.softcap)
    apart = {
        name: float(np.abs(a - b).max() / np.abs(b).max()) for name, a, b in zip(OUTPUTS, results, wanted, strict=True)
    }
    tolerances = dict.fromkeys(OUTPUTS, TOLERANCES[dtype])
    if not mask.any(-1).all():
        apart[PADDING], tolerances[PADDING] = float(np.abs(results[0][~mask.any(-1)]).max()), 0.0
    return compared(case.name, apart, tolerances)


@functools.cache
def forward_and_backward(backend: str, softcap: float, mask: str) -> Callable[..., Any]:
    """Output and gradients by a backend; cases of equal shapes share a program."""
    import jax

    from jaxmm.models.attention import attention

    def run(q, k, v, grad, start, end):
        def attend(q, k, v):
            return attention(q, k, v, (start, end), softcap=softcap, backend=backend, mask=mask)

        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(grad)

    return jax.jit(run)
