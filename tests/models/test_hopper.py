"""The backend for Hopper GPUs: its kernels in Mosaic's interpreter against dense attention; and that they lower."""

from __future__ import annotations

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from test_fused import as_if_on_a_gpu

from jaxmm.checks.oracle import dense, mask_by_definition
from jaxmm.models import attention as attn
from jaxmm.models.kernels.device import LARGEST_HEAD
from jaxmm.models.kernels.hopper import hopper_attention

T = 200  # two blocks of 128, the last one padded


@pytest.fixture
def compiled_once(monkeypatch):
    """The interpreter compiles a kernel for each thread of each program: here once, for all of them."""
    lock, programs = threading.Lock(), {}

    def run(jaxpr, consts, *args):
        with lock:
            if id(jaxpr) not in programs:
                body = jax.jit(lambda consts, *args: [jax.core.eval_jaxpr(jaxpr, consts, *args), ()][1])
                programs[id(jaxpr)] = jaxpr, body.lower(consts, *args).compile()
        programs[id(jaxpr)][1](consts, *args)

    monkeypatch.setattr(thread_map, "_run_jaxpr", run)


def rows() -> np.ndarray:
    """Documents across the edges of blocks, one position long, and padding at the end and between."""
    segments = np.zeros((1, T), np.int32)
    segments[0, :50], segments[0, 50:51], segments[0, 60:190] = 1, 2, 3
    return segments


def assert_dense(kind: str, head: int = 64, softcap: float = 0.0) -> None:
    """Output and gradients of two heads on one, rounded to bfloat16 as their inputs are."""
    segments = rows()
    blocks = np.where((np.arange(T) >= 100) & (np.arange(T) < 140), segments, 0)
    intervals, mask = {
        "window": (attn.causal(segments, window=17), mask_by_definition(segments, causal=True, window=17)),
        "images": (
            attn.causal(segments, jnp.array(blocks)), mask_by_definition(segments, causal=True, blocks=blocks)
        ),
        "bidirectional": (attn.bidirectional(segments), mask_by_definition(segments, causal=False)),
    }[kind]  # fmt: skip
    rng = np.random.default_rng(0)
    q, k, v, grad = (jnp.array(rng.normal(size=(1, T, heads, head)), jnp.bfloat16) for heads in (2, 1, 1, 2))
    call = functools.partial(
        hopper_attention, scale=head**-0.5, softcap=softcap, interpret=InterpretGPUParams(detect_races=True)
    )

    @jax.jit
    def run(q, k, v, grad, start, end):
        out, pull = jax.vjp(lambda q, k, v: call(q, k, v, start, end), q, k, v)
        return out, *pull(grad)

    found = [np.asarray(x.astype(jnp.float32)) for x in run(q, k, v, grad, *intervals)]
    q, k, v, grad = (np.asarray(x.astype(jnp.float32)) for x in (q, k, v, grad))
    for each, wanted in zip(found, dense(q, k, v, mask, grad, softcap), strict=True):
        np.testing.assert_allclose(each, wanted, atol=6e-3 * np.abs(wanted).max())
    assert not found[0][segments == 0].any()


def test_it_equals_dense_attention_and_its_threads_race_for_nothing(compiled_once):
    assert_dense("images")


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "head", "softcap"), [("window", 128, 0.0), ("bidirectional", 72, 0.0), ("images", 64, 2.0)]
)
def test_other_masks_heads_and_softcapped_logits_equal_dense_attention(compiled_once, kind, head, softcap):
    assert_dense(kind, head, softcap)


@pytest.mark.parametrize(("head", "softcap"), [(72, 30.0), (64, 0.0)])
def test_it_lowers_for_cuda(head, softcap):
    q, k = (jax.ShapeDtypeStruct((2, 300, heads, head), jnp.bfloat16) for heads in (4, 2))
    edge = jax.ShapeDtypeStruct((2, 300), jnp.int32)

    def loss(q, k, v, start, end):
        return hopper_attention(q, k, v, start, end, scale=0.125, softcap=softcap).astype(jnp.float32).sum()

    with as_if_on_a_gpu():
        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, k, edge, edge)
        lowered = step.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("custom_call @mosaic_gpu_v2") == 3, "forward, queries' and keys' gradient"


def test_what_it_does_not_take_is_refused_when_traced(monkeypatch):
    def traced(head: int, dtype):
        shape, edge = jax.ShapeDtypeStruct((1, 64, 1, head), dtype), jax.ShapeDtypeStruct((1, 64), jnp.int32)
        jax.eval_shape(functools.partial(hopper_attention, scale=1.0), shape, shape, shape, edge, edge)

    with pytest.raises(ValueError, match="heads of at most 128, not 129: use 'fused'"):
        traced(LARGEST_HEAD + 1, jnp.bfloat16)
    with pytest.raises(ValueError, match="bfloat16 or float16, not in float32: use 'fused'"):
        traced(64, jnp.float32)
    with pytest.raises(ValueError, match="'hopper' runs on GPUs, not on cpu"):
        attn.choose_backend("hopper", "cpu", 0)
    assert attn.choose_backend("", "gpu", 0, "bfloat16") == "fused", "it is never chosen by itself"

    class Ampere:
        platform, device_kind, compute_capability = "gpu", "NVIDIA A100", "8.0"

    monkeypatch.setattr(jax, "devices", lambda: [Ampere])
    assert attn.choose_backend("hopper", "", 0) == "hopper", "a platform that is not to be asked is not"
    with pytest.raises(ValueError, match=r"capability 9.0 \(H100, H200\), and this one, NVIDIA A100, has 8.0"):
        attn.choose_backend("hopper", "gpu", 0)
