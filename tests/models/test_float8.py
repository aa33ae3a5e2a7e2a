"""Matmuls in float8: the numbers of a plain reference, errors within the formats', and rows that do not mix."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import IMAGE, Tiny, picture, plain, rows_of
from flax import nnx
from jax.sharding import NamedSharding

from jaxmm import sharding
from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.plan import Budgets
from jaxmm.models import float8
from jaxmm.models.decoder_spec import DecoderSpec
from jaxmm.models.linear import Linear
from jaxmm.models.lora import Lora
from jaxmm.models.matmuls import has_float8_units, is_float8
from jaxmm.models.multimodal import ModelSpec, kernel_dims, make_model
from jaxmm.models.recurrent import GatedDeltaNetSpec
from jaxmm.models.routing import ExpertSpec
from jaxmm.training.opening import matmul_line

RNG = np.random.default_rng(0)
FORMATS = [(float8.FORWARD, ml_dtypes.float8_e4m3fn), (float8.BACKWARD, ml_dtypes.float8_e5m2)]


def drawn(*shape: int) -> np.ndarray:
    """Numbers whose sizes differ by orders of magnitude, most of all from row to row."""
    spread = np.exp2(RNG.integers(-20, 20, (shape[0], *[1] * (len(shape) - 1))))
    return (RNG.standard_normal(shape) * np.exp(2 * RNG.standard_normal(shape)) * spread).astype(np.float32)


def reference(x: np.ndarray, over: tuple[int, ...], kind: type) -> np.ndarray:
    """x as float8 has it, float64: by the definition, in NumPy."""
    largest = np.abs(x.astype(np.float64)).max(over, keepdims=True) / float(ml_dtypes.finfo(kind).max)
    scale = np.exp2(np.floor(np.log2(np.maximum(largest, 2.0**-100))) + 1)
    return (x / scale).astype(np.float32).astype(kind).astype(np.float64) * scale


def bound(x: np.ndarray, over: tuple[int, ...], kind: type) -> np.ndarray:
    """How far ``reference`` may be from x: half of the distance between neighbours, at the least scale of a row."""
    info = ml_dtypes.finfo(kind)
    scale = 2 * np.maximum(np.abs(x).max(over, keepdims=True) / float(info.max), 2.0**-100)
    return float(info.eps) / 2 * np.abs(x) + scale * float(info.smallest_subnormal) / 2


@pytest.mark.parametrize(("dtype", "kind"), FORMATS)
def test_numbers_are_the_nearest_that_the_format_has_at_the_scale_of_their_row(dtype, kind):
    x = drawn(64, 3, 40)
    x[3], x[4], x[5, 0] = 0, 2.0**-120, 1e30
    numbers, scale = jax.jit(float8.quantize, static_argnums=(1, 2))(x, (1, 2), dtype)
    assert numbers.dtype == dtype
    assert (np.frexp(np.asarray(scale))[0] == 0.5).all(), "powers of two"
    found = np.asarray(numbers).astype(np.float64) * np.asarray(scale, np.float64)
    np.testing.assert_array_equal(found, reference(x, (1, 2), kind))
    assert (np.abs(found - x) <= bound(x, (1, 2), kind)).all()


def test_what_is_not_finite_is_not_hidden():
    x = np.ones((3, 4), np.float32)
    x[1, 2], x[2, 0] = np.inf, np.nan
    y = np.asarray(float8.mapped(jnp.asarray(x), jnp.ones((4, 2)), 1))
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1:]).all()


def products(x, kernel, dy, inputs: int):
    """y, and the gradients of x and of the kernel."""
    y, pull = jax.vjp(lambda x, kernel: linear_of(kernel, inputs)(x), x, kernel)
    return y, *pull(dy)


def linear_of(kernel, inputs: int) -> Linear:
    linear = Linear(kernel.shape[:inputs], kernel.shape[inputs:], [None] * kernel.ndim, bias=False, rngs=nnx.Rngs(0))
    linear.kernel[...] = kernel
    linear.is_float8 = True
    return linear


# (rows, inputs, outputs): of one dim and of several, as of heads
SHAPES = [((3, 5), (24,), (4, 6)), ((7,), (4, 6), (10,))]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_forward_and_backward_are_those_of_the_rounded_numbers(rows, inputs, outputs, dtype):
    """And within the error that the formats' rounding gives a sum of products of the exact ones."""
    x, kernel, dy = drawn(*rows, *inputs), drawn(*inputs, *outputs), drawn(*rows, *outputs)
    x, dy = (np.asarray(jnp.asarray(a, dtype).astype(jnp.float32)) for a in (x, dy))
    count = len(inputs)
    found = products(jnp.asarray(x, dtype), jnp.asarray(kernel), jnp.asarray(dy, dtype), count)
    assert [a.dtype for a in found] == [dtype, dtype, jnp.float32]
    flat = [a.reshape(shape).astype(np.float64) for a, shape in (
        (x, (-1, np.prod(inputs))), (kernel, (np.prod(inputs), -1)), (dy, (-1, np.prod(outputs)))
    )]  # fmt: skip
    (x, kernel, dy), (e4m3, e5m2) = flat, (kind for _, kind in FORMATS)
    wanted = ((x, kernel), (e4m3, e4m3)), ((dy, kernel.T), (e5m2, e4m3)), ((x.T, dy), (e4m3, e5m2))
    for one, ((a, b), (kind_a, kind_b)) in zip(found, wanted, strict=True):
        a8, b8 = reference(a, (1,), kind_a), reference(b, (0,), kind_b)
        rounding = (2.0**-8 if one.dtype == jnp.bfloat16 else 1e-6) * (np.abs(a8) @ np.abs(b8))
        one = np.asarray(one.astype(jnp.float32), np.float64).reshape(len(a), -1)
        assert (np.abs(one - a8 @ b8) <= rounding).all()
        error_a, error_b = bound(a, (1,), kind_a), bound(b, (0,), kind_b)
        most = error_a @ np.abs(b) + np.abs(a) @ error_b + error_a @ error_b
        assert (np.abs(one - a @ b) <= most + rounding).all()
        assert (np.abs(one - a @ b) > 1e-3 * np.abs(a @ b)).any(), "it is float8"


def test_one_row_changes_no_other_by_a_bit_forward_or_backward():
    x, kernel, dy = drawn(6, 24), drawn(24, 8), drawn(6, 8)
    run = jax.jit(products, static_argnums=3)
    larger = np.where(np.arange(6)[:, None] == 2, np.float32(1000), np.float32(1))
    before, after = run(x, kernel, dy, 1), run(larger * x, kernel, larger * dy, 1)
    others = [0, 1, 3, 4, 5]
    for a, b in zip(before[:2], after[:2], strict=True):
        np.testing.assert_array_equal(np.asarray(a)[others], np.asarray(b)[others])
        assert (np.asarray(a)[2] != np.asarray(b)[2]).all()


def test_on_a_mesh_scales_are_of_whole_rows_and_kernels_travel_in_float8():
    """By parts of features, of heads and of positions the numbers are those of one device."""
    arrays = drawn(8, 6, 32), drawn(32, 4, 8), drawn(4, 8, 32), drawn(8, 6, 32)
    axes = ("rows", None, None), ("embed", "heads", None), ("heads", None, "embed"), ("rows", None, None)

    def both(x, into, out, dy):
        y, pull = jax.vjp(lambda x, into, out: linear_of(out, 2)(linear_of(into, 1)(x)), x, into, out)
        return y, *pull(dy)

    one = jax.jit(both)(*arrays)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(x, NamedSharding(mesh, sharding.partition(names, x.shape, mesh)))
            for x, names in zip(arrays, axes, strict=True)
        ]
        compiled = jax.jit(both).lower(*placed).compile()
        many = compiled(*placed)
    gathered = set(re.findall(r" = (\w+)\[\d+,[\d,]+\]\S* all-gather\(", compiled.as_text()))
    assert gathered <= {"f8e4m3fn", "f16"}, "XLA on CPUs sends float8 as float16"
    assert gathered
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=0, atol=1e-5 * np.abs(np.asarray(a)).max())


def test_an_adapter_stays_beside_the_kernel_in_the_dtype_of_activations():
    kernel, x = drawn(16, 12), drawn(5, 16)
    linear = linear_of(jnp.asarray(kernel), 1)
    alone = linear(x)
    linear.lora = Lora(
        (16, 12), (None, None), 1, rank=2, scale=0.5, kind="lora", has_first=False, dropout=0.0, rngs=nnx.Rngs(0)
    )
    into, out = 1e-4 * drawn(16, 2), 1e-4 * drawn(2, 12)  # so small that the kernel's format would lose it
    linear.lora.into[...], linear.lora.out[...] = into, out
    np.testing.assert_allclose(linear(x), alone + 0.5 * (x @ into) @ out, rtol=1e-5)
    np.testing.assert_allclose(linear.of_hidden(jnp.asarray, (x,)), linear(x), rtol=1e-6)


@pytest.fixture(scope="module")
def narrow(tiny: Tiny) -> ModelSpec:
    return dataclasses.replace(tiny.spec, matmul="fp8")


def test_layers_multiply_in_float8_and_what_is_around_them_does_not(tiny, narrow):
    decoder = DecoderSpec(
        vocab_size=96, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48,
        mixers=("delta", "attention"), delta=GatedDeltaNetSpec(32, 2, 2, 8, 8),
        experts=ExpertSpec(count=2, chosen=1, mlp=16, shared_mlp=16, shared_gate=True),
    )  # fmt: skip
    maps = {
        path[:-1] for spec in (tiny.spec, dataclasses.replace(tiny.spec, decoder=decoder)) for path in kernel_dims(spec)
    }
    wide = {".".join(path) for path in maps if not is_float8(path)}
    assert wide == {
        "vision.patch_embedding", "connector.up", "connector.down", "decoder.blocks.delta.decay",
        "decoder.blocks.delta.rate", "decoder.blocks.experts.gate", "decoder.blocks.experts.up",
        "decoder.blocks.experts.down", "decoder.blocks.experts.shared_gate",
    }  # fmt: skip
    with pytest.raises(ValueError, match="matmul 'fp4' is not one of '', 'fp8'"):
        dataclasses.replace(tiny.spec, matmul="fp4")


def test_documents_of_a_packed_row_do_not_mix(tiny, narrow, lengths_of):
    """Another document between them changes no other by a bit. Alone, one is the same but for the order of sums,
    which now and then turns a number to its neighbour in float8, and with it what follows."""
    texts = "a first document of some length", "the middle", "a last one, " * 4
    documents = [plain(text, picture(16, 20, n), "and more") for n, text in enumerate(texts)]
    others = [documents[0], plain(texts[1].upper(), picture(16, 20, 9), "and MORE"), documents[2]]
    apply = jax.jit(lambda batch: make_model(narrow)[1](tiny.params, batch, tiny.compute)[0][0])

    def hidden(documents, *numbers: int) -> list[np.ndarray]:
        lengths = lengths_of(documents)
        batch = Assembler([lengths], Budgets(160, 160, 8, 160), IMAGE)(rows_of(lengths, numbers)).batch
        found = np.asarray(apply(batch))
        return [found[batch.text.segments[0] == n + 1] for n in range(len(numbers))]

    packed, changed = hidden(documents, 0, 1, 2), hidden(others, 0, 1, 2)
    for n in (0, 2):
        np.testing.assert_array_equal(packed[n], changed[n])
    assert (packed[1] != changed[1]).any()
    for n in range(3):
        (alone,) = hidden(documents, n)
        error = np.abs(packed[n] - alone).max(1) / np.abs(alone).max()
        assert np.median(error) < 1e-5
        assert error.max() < 0.05


@pytest.mark.parametrize(
    ("platform", "kind", "capability", "has_units"),
    [
        ("gpu", "NVIDIA H200", "9.0", True), ("gpu", "NVIDIA L4", "8.9", True), ("gpu", "NVIDIA B200", "10.0", True),
        ("gpu", "NVIDIA A100", "8.0", False), ("gpu", "AMD MI300X", "gfx942", False), ("tpu", "TPU7x", "", True),
        ("tpu", "TPU v6 lite", "", False), ("cpu", "cpu", "", False),
    ],
)  # fmt: skip
def test_devices_with_units_for_it_are_known(platform, kind, capability, has_units, narrow, tiny):
    device = SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)
    assert has_float8_units(device) == has_units
    line = matmul_line(narrow, device, "bfloat16")
    assert ("has no units for it" in line) != has_units
    assert "MFU stays a part of the bfloat16 peak" in line
    assert matmul_line(tiny.spec, device, "bfloat16") == ""
