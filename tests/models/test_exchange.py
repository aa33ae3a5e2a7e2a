"""Rows that devices exchange: what arrives where, and the way back."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from jaxmm import sharding
from jaxmm.models.exchange import Slices, exchange

P, H, S, R, D = 4, 2, 24, 60, 3  # devices, slices to each, rows of one before and after, their width


def sent(seed: int, fills: float) -> Slices:
    """Slices of random sizes, many of them empty, that lie and land in random order, with gaps where they land."""
    rng = np.random.default_rng(seed)
    size = rng.integers(0, S // (P * H) + 1, (P, P, H)) * (rng.random((P, P, H)) < fills)
    begin, land = np.zeros_like(size), np.zeros_like(size)
    for device in range(P):
        mine, at = size[device].reshape(-1), 0
        for one in rng.permutation(P * H):
            begin[device].reshape(-1)[one], at = at, at + mine[one]
        got, at = size[:, device].reshape(-1).copy(), int(rng.integers(0, 5))
        places = np.zeros_like(got)
        for one in rng.permutation(P * H):
            places[one], at = at, at + got[one] + int(rng.integers(0, 2))
        land[:, device] = places.reshape(P, H)
    return Slices(*(jnp.asarray(x, jnp.int32) for x in (begin, size, land)))


@functools.cache
def program():
    """(x of all devices, y of all devices, slices) to what arrives, and to what goes back of y."""
    mesh = sharding.make_mesh({"expert": P}, jax.devices()[:P])
    split, whole = PartitionSpec("expert"), PartitionSpec()

    def own(x, y, slices):
        found, back = jax.vjp(lambda x: exchange(x, slices, R, "expert"), x)
        return found, back(y)[0]

    f = jax.shard_map(own, mesh=mesh, in_specs=(split, split, whole), out_specs=split, check_vma=False)
    return jax.jit(f)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 1.0]))
def test_each_slice_lands_where_it_should_and_its_gradient_comes_back(seed, fills):
    slices, rng = sent(seed, fills), np.random.default_rng(seed)
    x, y = (rng.normal(size=(P, rows, D)).astype(np.float32) for rows in (S, R))
    arrived, returned = np.zeros_like(y), np.zeros_like(x)
    for source, target, one in np.ndindex(P, P, H):
        begin, size, land = (int(part[source, target, one]) for part in slices)
        arrived[target, land : land + size] = x[source, begin : begin + size]
        returned[source, begin : begin + size] = y[target, land : land + size]
    found, back = program()(x.reshape(-1, D), y.reshape(-1, D), slices)
    np.testing.assert_array_equal(found.reshape(P, R, D), arrived)
    np.testing.assert_array_equal(back.reshape(P, S, D), returned)
