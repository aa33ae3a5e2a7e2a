"""Frozen weights in few bits: formats are those of bitsandbytes, and a model computes with what they stand for."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, Tiny, random_documents, rows_of
from jax.sharding import NamedSharding, PartitionSpec

from jaxmm import sharding
from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.plan import Budgets
from jaxmm.models import quantized
from jaxmm.models.adapters import AdapterSpec, is_factor
from jaxmm.models.compute import Compute
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.frozen import FrozenSpec
from jaxmm.models.multimodal import (
    ModelSpec,
    abstract_params,
    begin_adapters,
    flat_axes,
    hold_params,
    make_model,
    plain_params,
)  # fmt: skip
from jaxmm.models.trainable import Trainable
from jaxmm.models.tree import flat, joined, nested

# As the paper prints them (appendix E) and bitsandbytes has them.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def test_the_levels_are_the_published_ones_to_the_bit():
    np.testing.assert_array_equal(quantized.LEVELS, np.float32(NF4))
    dynamic = quantized.DYNAMIC
    assert (len(np.unique(dynamic)), dynamic[0], dynamic[-1]) == (256, np.float32(-0.99296875), 1.0)
    np.testing.assert_array_equal(dynamic[:127], -dynamic[254:127:-1], "all but 0 and 1 have their negatives")
    by_power = [((dynamic > 10.0**-n) & (dynamic < 10.0 ** (1 - n))).sum() for n in range(1, 8)]
    assert by_power == [64, 32, 16, 8, 4, 2, 1]
    np.testing.assert_allclose(dynamic[128:130], [5.5e-7, 3.25e-6], rtol=1e-6)


def test_codes_of_a_known_matrix_and_their_order():
    """A row (of one output) whose weights are the levels themselves, in bitsandbytes' order: the first in the upper."""
    row = np.concatenate([0.5 * quantized.LEVELS[[3, 15, 7, 0]], np.zeros(60), 2 * quantized.LEVELS[[1, 15]], [0] * 62])
    kernel = np.stack([row, -row], -1).astype(np.float32)  # (128 inputs, 2 outputs)
    made = quantized.quantize(jnp.asarray(kernel), 1, "nf4")
    codes = np.asarray(made["codes"])
    assert codes.shape == (64, 2)
    assert codes[:3, 0].tolist() == [0x3F, 0x70, 0x77]
    assert codes[32, 0] == 0x1F
    assert np.asarray(made["absmax"]).tolist() == [[0, 0], [255, 255]], "less their mean, one is -1 times the scale"
    assert (float(made["mean"]), made["scales"].tolist()) == (1.25, [0.75])
    found = quantized.dequantize(made, "nf4", kernel.shape, 1, jnp.float32)
    np.testing.assert_allclose(found[64:66, 0], row[64:66], rtol=1e-6)
    made = quantized.quantize(jnp.asarray([[1.0, 0], [-2.54, 0], [0.035, 0]]), 1, "int8")
    assert made["codes"].tolist() == [[50, 0], [-127, 0], [2, 0]]
    assert made["absmax"].tolist() == [np.float32(2.54), 0]


def test_bits_do_not_depend_on_how_a_kernel_is_dealt_over_devices():
    kernel = np.random.default_rng(3).standard_normal((512, 4, 66)).astype(np.float32)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    for kind in quantized.KINDS:
        quantize = jax.jit(functools.partial(quantized.quantize, inputs=1, kind=kind))
        alone = quantize(kernel)
        for axes in (("fsdp", None, None), (None, "fsdp", "tensor"), (("fsdp", "tensor"), None, None)):
            dealt = quantize(jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(*axes))))
            for name, x in alone.items():
                np.testing.assert_array_equal(dealt[name], x, err_msg=f"{kind} {name} {axes}")
    assert float(quantized.quantize(jnp.zeros((64, 2)), 1, "nf4")["mean"]) == 0


@pytest.mark.parametrize(("shape", "inputs"), [((256, 24), 1), ((3, 25, 5, 7), 2), ((65, 8), 1)])
def test_what_comes_back_is_the_nearest_that_the_format_has(shape, inputs):
    kernel = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for kind in quantized.KINDS:
        made = quantized.quantize(jnp.asarray(kernel), inputs, kind)
        described = quantized.parts(kind, shape, [None] * len(shape), inputs)
        assert {n: (x.shape, x.dtype) for n, x in made.items()} == {n: (p.shape, p.dtype) for n, p in described.items()}
        found = np.asarray(quantized.dequantize(made, kind, shape, inputs, jnp.float32))
        rows = kernel.reshape(np.prod(shape[:inputs]), -1).T
        error = np.abs(found.reshape(rows.T.shape).T - rows)
        if kind == "int8":
            assert (error <= np.abs(rows).max(1, keepdims=True) / 254 * 1.0001).all()
            continue
        for start in range(0, rows.shape[1], quantized.BLOCK):
            block, wrong = rows[:, start : start + quantized.BLOCK], error[:, start : start + quantized.BLOCK]
            exact = np.abs(block).max(1, keepdims=True)
            # Of a constant: half of the widest gap of the dynamic numbers, times the scale.
            of_constant = 0.5 * np.diff(quantized.DYNAMIC).max() * float(made["scales"].max())
            place = np.clip(np.searchsorted(quantized.LEVELS, block / exact), 1, 15)
            gap = quantized.LEVELS[place] - quantized.LEVELS[place - 1]
            assert (wrong <= gap / 2 * exact + of_constant + 1e-6).all()


@pytest.fixture(scope="module")
def batch(lengths_of):
    lengths = lengths_of(random_documents(8, 3))
    budgets = Budgets(tokens=128, patches=128, items=8, targets=128)
    return Assembler([lengths], budgets, IMAGE)(rows_of(lengths, *([e] for e in range(8)))).batch


def model_of(tiny: Tiny, kind: str, adapter: str) -> ModelSpec:
    spec = AdapterSpec(("vision", "connector", "decoder"), rank=3, alpha=6.0, kind=adapter)
    return dataclasses.replace(tiny.spec, adapter=spec, frozen=FrozenSpec(kind, ("connector.down",)))


def started(tiny: Tiny, model: ModelSpec) -> dict:
    """The tiny model's parameters, held as the model holds them, with adapters away from where they start."""
    base = jax.tree.map(jnp.asarray, tiny.params)
    found = flat(jax.jit(lambda p, key: begin_adapters(hold_params(p, model), model, key))(base, jax.random.key(0)))
    rng = np.random.default_rng(1)
    for path, x in found.items():
        found[path] = x + 0.1 * rng.standard_normal(x.shape, np.float32) if is_factor(path) else x
    return nested(found)


def loss_of(model: ModelSpec, tiny: Tiny, batch: Any) -> Any:
    trainable = Trainable(adapters=True, whole=("connector.down",))

    def loss(learnt: Any, fixed: Any) -> jax.Array:
        hidden_BTD, head_VD = make_model(model)[1](joined(learnt, fixed), batch, tiny.compute)
        return ((hidden_BTD @ head_VD.T.astype(jnp.float32)) ** 2).mean()

    def both(params: Any) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(loss)(*trainable.split(params))

    return both


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "adapter", "fsdp"), [("nf4", "dora", 8), slow("int8", "lora", 1)])
def test_a_quantised_model_is_the_plain_one_of_the_dequantised_kernels(kind, adapter, fsdp, tiny, batch):
    model = model_of(tiny, kind, adapter)
    params = started(tiny, model)
    assert {path: x.shape for path, x in flat(params).items()} == {p: s for p, (s, _) in flat_axes(model).items()}
    plain = plain_params(params, model)
    assert {path: x.shape for path, x in flat(plain).items()} == {p: s for p, (s, _) in flat_axes(model.plain).items()}
    assert not np.array_equal(flat(plain)["decoder", "blocks", "mlp", "up", "kernel"],
                              flat(tiny.params)["decoder", "blocks", "mlp", "up", "kernel"])  # fmt: skip
    wanted, wanted_grads = jax.jit(loss_of(model.plain, tiny, batch))(plain)
    mesh = sharding.make_mesh({"fsdp": fsdp}, jax.devices()[:fsdp])
    where = {path: sharding.partition(axes, shape, mesh) for path, (shape, axes) in flat_axes(model).items()}
    assert where["decoder", "blocks", "mlp", "up", "kernel", "codes"][1] == "fsdp", "codes lie as their kernel does"
    placed = jax.device_put(params, nested({p: jax.sharding.NamedSharding(mesh, s) for p, s in where.items()}))
    with jax.set_mesh(mesh):
        found, grads = jax.jit(loss_of(model, tiny, sharding.place_batch(batch, mesh)))(placed)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert flat(grads).keys() == flat(wanted_grads).keys()
    for path, value in flat(wanted_grads).items():
        np.testing.assert_allclose(flat(grads)[path], value, atol=2e-5 * np.abs(value).max(), err_msg=".".join(path))


def test_no_dequantised_kernel_of_a_layer_is_kept(batch):
    """What a layer adds to a step's memory is what it adds where its kernels lie there as they are: no copy of them."""

    def temporary(layers: int, frozen: FrozenSpec | None) -> int:
        decoder = DecoderSpec(vocab_size=392, width=128, layers=layers, heads=2, kv_heads=2, head_dim=64, mlp=512)
        adapter = AdapterSpec(("decoder",), rank=2, kind="dora")
        model = ModelSpec(None, None, decoder, adapter=adapter, frozen=frozen)

        def loss(learnt: Any, fixed: Any, batch: Any) -> jax.Array:
            return make_model(model)[1](joined(learnt, fixed), batch, Compute(remat="none", unroll=1))[0].sum()

        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), batch)
        trees = Trainable(adapters=True).split(abstract_params(model))
        return jax.jit(jax.grad(loss)).lower(*trees, row).compile().memory_analysis().temp_size_in_bytes

    weights = 4 * 128 * 128 + 3 * 128 * 512  # of a layer; a copy of them in float32 is four times as many bytes
    per_layer = {
        kind: (temporary(8, frozen) - temporary(2, frozen)) / 6
        for kind, frozen in (("float32", None), ("nf4", FrozenSpec("nf4")))
    }
    assert per_layer["nf4"] - per_layer["float32"] < 0.5 * weights
    assert temporary(2, FrozenSpec("nf4")) - temporary(2, None) < 10 * weights, "nor is any made before the layers run"
