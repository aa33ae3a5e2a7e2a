"""tokamax's attention as a backend: by its XLA form beside float64, and that what runs on GPUs lowers for CUDA."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm import sharding, zigzag
from jaxmm.checks.attention import layouts
from jaxmm.checks.oracle import dense, mask_by_definition
from jaxmm.models import attention as attn
from jaxmm.models.kernels import device
from jaxmm.models.kernels.tokamax import tokamax_attention


class Hopper:
    """What JAX says of an H100."""

    platform, device_kind, compute_capability, core_count = "gpu", "NVIDIA H100 80GB HBM3", "9.0", 132


def test_it_is_refused_in_a_line_where_it_is_missing_or_does_not_take_what_is_asked(monkeypatch):
    with pytest.raises(ValueError, match="'tokamax' runs on GPUs, not on cpu"):
        attn.choose_backend("tokamax", "cpu", 0)
    assert attn.choose_backend("tokamax", "gpu", 0, "bfloat16") == "tokamax", "an estimate needs no package"
    with pytest.raises(ValueError, match="bfloat16 or float16, not in float32: use 'fused'"):
        attn.choose_backend("tokamax", "gpu", 0, "float32")
    with pytest.raises(ValueError, match="heads of at most 128, not 256: use 'fused'"):
        device.require("tokamax", "bfloat16", 256)
    monkeypatch.setattr(jax, "devices", lambda: [Hopper])
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(ValueError, match=r"needs the package tokamax, and Python 3.12 or later: pip install"):
        attn.choose_backend("tokamax", "gpu", 0, "bfloat16")
    monkeypatch.setattr(Hopper, "compute_capability", "8.0")
    with pytest.raises(ValueError, match=r"'tokamax' runs on GPUs of compute capability 9.0 .* has 8.0: use 'fused'"):
        attn.choose_backend("tokamax", "gpu", 0)


@functools.cache
def forward_and_gradients(softcap: float):
    def run(q, k, v, grad, start, end):
        call = functools.partial(tokamax_attention, scale=q.shape[-1] ** -0.5, softcap=softcap, implementation="xla")
        out, pull = jax.vjp(lambda q, k, v: call(q, k, v, start, end), q, k, v)
        return out, *pull(grad)

    return jax.jit(run)


@pytest.mark.tokamax
@pytest.mark.parametrize("layout", ["padded", "uneven"])
def test_every_kind_of_mask_equals_dense_attention(layout):
    T = 150
    segments = layouts(T)[layout]
    blocks = np.where((np.arange(T) >= 60) & (np.arange(T) < 75), segments, 0)
    by_definition = functools.partial(mask_by_definition, segments)
    rng = np.random.default_rng(0)
    q, k, v, grad = (rng.normal(size=(2, T, heads, 16)).astype(np.float32) for heads in (4, 2, 2, 4))
    for softcap, intervals, mask in (
        (0.0, attn.causal(segments), by_definition(causal=True)),
        (2.0, attn.causal(segments, window=17), by_definition(causal=True, window=17)),
        (0.0, attn.causal(segments, jnp.array(blocks)), by_definition(causal=True, blocks=blocks)),
        (0.0, attn.bidirectional(segments), by_definition(causal=False)),
    ):
        found = forward_and_gradients(softcap)(q, k, v, grad, *intervals)
        for each, wanted in zip(found, dense(q, k, v, mask, grad, softcap), strict=True):
            np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=2e-5)
        assert not np.asarray(found[0])[segments == 0].any()


@pytest.mark.tokamax
def test_each_device_runs_it_on_its_own_rows_heads_and_queries_within_layers_that_are_computed_again(monkeypatch):
    by_xla = functools.partial(tokamax_attention, implementation="xla")
    monkeypatch.setattr("jaxmm.models.kernels.tokamax.tokamax_attention", by_xla)
    rng = np.random.default_rng(0)
    q, k, v, grad = (jnp.array(rng.normal(size=(4, 128, heads, 16)), jnp.float32) for heads in (4, 2, 2, 4))
    segments = np.repeat([[1, 2]], 64, 1).repeat(4, 0).astype(np.int32)
    with jax.set_mesh(sharding.make_mesh({"data": 2, "tensor": 2, "context": 2})):

        def run(q, k, v, grad, *intervals):
            q, k, v, grad, *intervals = map(zigzag.shard, (q, k, v, grad, *intervals))

            def two_layers(q, k, v):
                def layer(x, _):
                    return attn.attention(x, k, v, tuple(intervals), backend="tokamax"), None

                return jax.lax.scan(jax.checkpoint(layer), q, length=2)[0]

            out, pull = jax.vjp(two_layers, q, k, v)
            return tuple(map(zigzag.unshard, (out, *pull(grad))))

        found = jax.jit(run)(q, k, v, grad, *attn.causal(segments))
    mask = mask_by_definition(segments, causal=True)
    first = dense(q, k, v, mask, grad)[0]
    out, dx, dk, dv = dense(first, k, v, mask, grad)
    _, dq, *of_first = dense(q, k, v, mask, dx)
    for each, wanted in zip(found, (out, dq, dk + of_first[0], dv + of_first[1]), strict=True):
        np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.tokamax
@pytest.mark.parametrize(("head", "softcap"), [(64, 0.0), (72, 30.0), (128, 0.0)])
def test_it_lowers_for_cuda_forward_and_backward(head, softcap, monkeypatch):
    import tokamax
    from tokamax._src import gpu_utils

    monkeypatch.setattr(gpu_utils.backend, "get_default_device", lambda: Hopper)
    q, k = (jax.ShapeDtypeStruct((2, 300, heads, head), jnp.bfloat16) for heads in (4, 2))
    edge = jax.ShapeDtypeStruct((2, 300), jnp.int32)

    def loss(q, k, v, start, end):
        return tokamax_attention(q, k, v, start, end, scale=0.125, softcap=softcap).astype(jnp.float32).sum()

    with tokamax.config.cross_compile(True):
        step = jax.jit(jax.grad(jax.checkpoint(loss), argnums=(0, 1, 2))).trace(q, k, k, edge, edge)
        lowered = step.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("custom_call @mosaic_gpu_v2") in (3, 4), "forward, queries' and keys' gradient, not XLA's form"
