"""Moments in fewer bits: near to what they encode, right in the mean, and AdamW with them learns as AdamW does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmm import sharding
from jaxmm.checkpoints.params import place_params
from jaxmm.training import quantized_moments as moments
from jaxmm.training.optimizer import make_optimizer
from jaxmm.training.step import init_state

SHAPE = 8, 64


def noise(count: int, shape=SHAPE):
    return moments._noise(shape, jnp.int32(count), 3)


def spread(seed: int, shape=SHAPE) -> np.ndarray:
    """Numbers over six orders of magnitude, of both signs."""
    rng = np.random.default_rng(seed)
    return (rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(-6, 0, shape)).astype(np.float32)


def test_float8_is_within_an_eighth_where_numbers_are_not_small_beside_their_row_s():
    x = spread(0)
    found = moments.from_float8(*moments.to_float8(x, noise(0)))
    largest = np.abs(x).max(-1, keepdims=True)
    is_normal = np.abs(x) > largest * 2.0**-6 / 448
    assert is_normal.mean() > 0.5
    np.testing.assert_allclose(np.where(is_normal, found, 0), np.where(is_normal, x, 0), rtol=0.1251)
    assert (np.abs(found - x) <= largest * 2.0**-9 / 448 + 0.1251 * np.abs(x)).all()
    np.testing.assert_array_equal(moments.from_float8(*moments.to_float8(jnp.zeros(SHAPE), noise(0))), 0)


def test_a_second_moment_never_vanishes():
    x = np.abs(spread(1)) ** 4
    found = np.asarray(moments.from_float8(*moments.to_float8(x, noise(0), True)))
    assert (found > 0).all()
    assert (moments.from_float8(*moments.to_float8(x, noise(0))) == 0).any(), "the test must hold such numbers"


def test_rounding_is_right_in_the_mean():
    x = spread(2)
    rounded = np.stack([moments._rounded(x, noise(count), 16) for count in range(400)]).astype(np.float64)
    assert (np.abs(rounded / x - 1) <= 2.0**-7).all()
    assert np.abs((rounded / x - 1).mean(0)).max() < 6 * 2.0**-7 / 400**0.5
    assert np.unique(rounded[:, 0, 0]).size == 2


@pytest.mark.parametrize(("kind", "share"), [("bfloat16", 0.5), ("float8", 0.36)])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_state_is_smaller_and_lies_where_its_parameters_do(kind, share, name, tiny):
    from jaxmm.models.multimodal import kernel_dims

    maps = kernel_dims(tiny.spec) if name == "muon" else None

    def state(kind: str):
        optimizer = make_optimizer(optax.constant_schedule(0.1), kernel_dims=maps, moments=kind)
        return jax.eval_shape(lambda: init_state(tiny.params, optimizer))

    def size(tree) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    small = state(kind)
    assert size(small.opt_state) < share * size(state("float32").opt_state) + 4096
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    where = place_params(tiny.spec, small, mesh)
    wanted = place_params(tiny.spec, small.params, mesh)["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    shape = small.params["decoder"]["blocks"]["mlp"]["up"]["kernel"].shape
    found = [s for x, s in zip(jax.tree.leaves(small.opt_state), jax.tree.leaves(where.opt_state), strict=True)
             if x.shape == shape and x.dtype != jnp.float32]  # fmt: skip
    assert len(found) >= (1 if maps else 2)
    assert wanted in found


@pytest.mark.parametrize("kind", ["bfloat16", "float8"])
@pytest.mark.parametrize("b2", [0.95, 0.999])
def test_adamw_learns_a_linear_map_as_with_float32(kind, b2):
    rng = np.random.default_rng(0)
    x, true = rng.normal(size=(256, 32)).astype(np.float32), rng.normal(size=(32, 16)).astype(np.float32)
    y = x @ true + 0.1 * rng.normal(size=(256, 16)).astype(np.float32)

    def loss(params):
        return jnp.square(x @ params["decoder"]["kernel"] - y).mean()

    def run(kind: str) -> float:
        optimizer = make_optimizer(
            optax.cosine_decay_schedule(0.1, 300), b2=b2, weight_decay=0.0, clip=0.0, moments=kind
        )
        params = {"decoder": {"kernel": jnp.zeros((32, 16))}}

        @jax.jit
        def steps(params):
            def one(carry, _):
                params, state = carry
                updates, state = optimizer.update(jax.grad(loss)(params), state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(one, (params, optimizer.init(params)), None, 300)[0][0]

        return float(loss(steps(params)))

    assert run("float32") < 0.0125
    assert run(kind) == pytest.approx(run("float32"), rel=0.05)


def test_a_kind_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="moments 'int4' are not one of float32, bfloat16, float8"):
        make_optimizer(optax.constant_schedule(1), moments="int4")
