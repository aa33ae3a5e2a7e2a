"""What is kept for the backward pass: less by each policy, nothing of what is frozen; and the same gradients."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from conftest import IMAGE

from jaxmm.data.assemble import empty_batch
from jaxmm.data.packing.plan import Budgets
from jaxmm.models.compute import Compute
from jaxmm.models.multimodal import make_model
from jaxmm.models.trainable import Trainable
from jaxmm.models.tree import joined

BUDGETS = Budgets(tokens=128, patches=128, items=4, targets=96)


def kept_bytes(spec, *, frozen: tuple[str, ...] = (), remat: str = "none") -> int:
    """Bytes that a backward pass is given, beside parameters."""
    init, apply = make_model(spec)
    params = jax.eval_shape(init, jax.random.key(0))
    trainable, fixed = Trainable(frozen).split(params)
    batch = jax.eval_shape(lambda: empty_batch(2, BUDGETS, IMAGE))

    def pull(trainable, fixed, batch):
        return jax.vjp(lambda t: apply(joined(t, fixed), batch, Compute(remat=remat)), trainable)[1]

    def size(tree) -> int:
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return size(jax.eval_shape(pull, trainable, fixed, batch)) - size(params)


def deeper(spec, part: str):
    sizes = getattr(spec, part)
    return dataclasses.replace(spec, **{part: dataclasses.replace(sizes, layers=2 * sizes.layers)})


def test_a_frozen_tower_keeps_nothing(tiny):
    frozen = kept_bytes(tiny.spec, frozen=("vision",))
    assert kept_bytes(deeper(tiny.spec, "vision"), frozen=("vision",)) <= frozen, "whatever its depth"
    assert kept_bytes(deeper(tiny.spec, "decoder"), frozen=("vision",)) > 1.3 * frozen
    assert kept_bytes(deeper(tiny.spec, "vision")) > 1.3 * frozen


def test_policies_keep_ever_less(tiny):
    spec = deeper(tiny.spec, "decoder")
    everything, dots, nothing = (kept_bytes(spec, remat=remat) for remat in ("none", "dots", "full"))
    assert nothing < 0.5 * dots
    assert dots < 0.8 * everything


@pytest.mark.parametrize(
    "remat", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("dots", "offload")), "full"]
)
def test_policies_change_no_gradient(tiny, remat):
    rng = np.random.default_rng(0)
    batch = empty_batch(2, BUDGETS, IMAGE)
    batch = batch._replace(
        text=batch.text._replace(
            values=rng.integers(0, 300, batch.text.values.shape).astype(np.int32),
            segments=np.repeat([[1, 2]], 64, axis=1).repeat(2, 0).astype(np.int32),
        )
    )

    def gradient(remat: str):
        def loss(params):
            hidden_BTD, _ = tiny.apply(params, batch, Compute(remat=remat))
            return (hidden_BTD * np.linspace(-1, 1, hidden_BTD.shape[-1])).sum()

        return jax.jit(jax.grad(loss))(tiny.params)

    for found, wanted in zip(jax.tree.leaves(gradient(remat)), jax.tree.leaves(gradient("none")), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(wanted).max()))
