"""The gated delta rule over packed rows (Yang et al., 2024, "Gated Delta Networks"), in chunks or a position at a time.

The state S (D, V) of a head maps keys to values. Each position decays it, then moves what its key maps to towards its
value: S_t = exp(g_t) S_(t-1) + b_t k_t (v_t - exp(g_t) S_(t-1)^T k_t)^T. The output is S_t^T q_t / sqrt(D), with q
and k divided by their lengths. Each document starts from an empty state: masks keep documents apart, not decays.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxmm import sharding

CHUNK = 64  # positions
_GROUPS = {"cpu": 1}  # chunks that are computed at a time; elsewhere 16, which no device has been timed with
_EPS = 1e-6  # added to the squared lengths of queries and keys, as in flash-linear-attention


def document_starts(segments_BT):
    """int32 (B, T): where the document of each position starts; padding counts to the document before it."""
    before_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
    index = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
    return lax.cummax(jnp.where((segments_BT > 0) & (segments_BT != before_BT), index, 0), axis=1)


def delta_rule(
    q_BTKD, k_BTKD, v_BTHV, decay_BTH, rate_BTH, segments_BT, *, chunk: int = CHUNK, group: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Runs rows of packed documents through the rule. Time and memory are linear in T; all is computed in float32.

    What the positions of a chunk write solves a triangular system (the UT transform of Yang et al., 2024,
    "Parallelizing Linear Transformers with the Delta Rule over Sequence Length"). The backward pass computes each
    group of chunks again from the state before it.

    Args:
      q_BTKD, k_BTKD: each head serves H / K consecutive heads of values.
      decay_BTH: logarithm of what is kept of the state, 0 or below.
      rate_BTH: how far a position moves what its key maps to: from 0, not at all, to 1, all the way.
      segments_BT: a run of equal numbers is a document; 0 is padding, which gives 0 and changes no state.
      chunk: positions, a power of two.
      group: chunks that are computed at a time, 0 for the platform's best.
    Returns:
      (B, T, H, V) in the dtype of ``v_BTHV``, and the state (B, H, D, V), float32, after each row's last document.
    """
    (B, T, K, _), H = k_BTKD.shape, v_BTHV.shape[2]
    if H % K:
        raise ValueError(f"{H} heads of values are no multiple of {K} heads of keys")
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"a chunk of {chunk} positions is no power of two")
    group = min(group or _GROUPS.get(sharding.platform(), 16), -(-T // chunk))

    def run(*inputs):
        return _by_chunks(*inputs, chunk=chunk, group=group)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:  # each device computes its own rows and heads
        rows, heads = sharding.partition(("rows", "heads"), (B, K), mesh)
        by_head = PartitionSpec(rows, None, heads)
        specs = (*[by_head] * 5, PartitionSpec(rows)), (by_head, PartitionSpec(rows, heads))
        run = jax.shard_map(run, in_specs=specs[0], out_specs=specs[1], check_vma=False)
    return run(q_BTKD, k_BTKD, v_BTHV, decay_BTH, rate_BTH, segments_BT)


def delta_step(q_B1KD, k_B1KD, v_B1HV, decay_B1H, rate_B1H, state_BHDV) -> tuple[jax.Array, jax.Array]:
    """One more position of each row: returns (B, 1, H, V) in the dtype of ``v_B1HV``, and the state after it."""
    (B, H, D, V), K = state_BHDV.shape, k_B1KD.shape[2]
    q_BKD, k_BKD = _queries(q_B1KD)[:, 0], _unit(k_B1KD)[:, 0]
    v_BKGV = v_B1HV.astype(jnp.float32).reshape(B, K, H // K, V)
    decay_BKG, rate_BKG = (x.astype(jnp.float32).reshape(B, K, H // K, 1) for x in (decay_B1H, rate_B1H))
    state_BKGDV = jnp.exp(decay_BKG)[..., None] * state_BHDV.reshape(B, K, H // K, D, V)
    found_BKGV = jnp.einsum("bkd,bkgdv->bkgv", k_BKD, state_BKGDV)
    state_BKGDV += jnp.einsum("bkd,bkgv->bkgdv", k_BKD, rate_BKG * (v_BKGV - found_BKGV))
    out_BKGV = jnp.einsum("bkd,bkgdv->bkgv", q_BKD, state_BKGDV)
    return out_BKGV.reshape(B, 1, H, V).astype(v_B1HV.dtype), state_BKGDV.reshape(B, H, D, V)


def rule_multiplications(heads: int, key_dim: int, value_dim: int) -> int:
    """Multiply-adds of a position: its key reads the state, its value is written, its query reads.

    That is what a step takes. By chunks it is more, which counts as little as recomputation does.
    """
    return 3 * heads * key_dim * value_dim


def _unit(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return wide * lax.rsqrt(jnp.square(wide).sum(-1, keepdims=True) + _EPS)


def _queries(q: jax.Array) -> jax.Array:
    return _unit(q) * q.shape[-1] ** -0.5


def _by_chunks(q_BTKD, k_BTKD, v_BTHV, decay_BTH, rate_BTH, segments_BT, *, chunk: int, group: int):
    """``delta_rule``: a scan over groups of chunks. Heads are (K, G), chunks of a group Z, their positions U."""
    (B, T, K, D), (H, V) = k_BTKD.shape, v_BTHV.shape[2:]
    real_BT1 = (segments_BT > 0)[..., None]
    decay_BTH, rate_BTH = (jnp.where(real_BT1, x.astype(jnp.float32), 0) for x in (decay_BTH, rate_BTH))

    def chunked(x, *heads: int):
        """(B, T, ...) to (groups, Z, B, *heads, U, ...)."""
        padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % (group * chunk)), *[(0, 0)] * (x.ndim - 2)))
        split = padded.reshape(B, -1, group, chunk, *heads, *x.shape[3:])
        return jnp.moveaxis(split, (1, 2, 3), (0, 1, 3 + len(heads)))

    starts = chunked(document_starts(jnp.pad(segments_BT, ((0, 0), (0, -T % (group * chunk))))))
    firsts = chunk * jnp.arange(starts.shape[0] * group, dtype=jnp.int32).reshape(-1, group, 1, 1)
    inputs = (
        chunked(_queries(q_BTKD), K, 1), chunked(_unit(k_BTKD), K, 1), chunked(v_BTHV.astype(jnp.float32), K, H // K),
        chunked(decay_BTH, K, H // K), chunked(rate_BTH, K, H // K), starts, firsts,
    )  # fmt: skip
    state = jnp.zeros((B, K, H // K, D, V), jnp.float32)
    state, out = lax.scan(jax.checkpoint(_group_of_chunks, prevent_cse=False), state, inputs)
    out_BTHV = jnp.moveaxis(out, (0, 1, 5), (1, 2, 3)).reshape(B, -1, H, V)[:, :T]
    return jnp.where(real_BT1[..., None], out_BTHV, 0).astype(v_BTHV.dtype), state.reshape(B, H, D, V)


def _group_of_chunks(state_BKGDV, inputs):
    """Returns the state after a group of chunks, and what its positions give, (Z, B, K, G, U, V).

    Only the states of chunks wait for each other: all else is computed for the chunks together.
    """
    q_ZBK1UD, k_ZBK1UD, v_ZBKGUV, decay_ZBKGU, rate_ZBKGU, starts_ZBU, firsts_Z11 = inputs
    chunk = starts_ZBU.shape[-1]
    same_ZBUU = (starts_ZBU[..., :, None] == starts_ZBU[..., None, :]) & np.tri(chunk, dtype=bool)
    goes_on_ZB11U = (starts_ZBU < firsts_Z11)[:, :, None, None]  # its document began before the chunk
    remains_ZB11U = (starts_ZBU == starts_ZBU[..., -1:])[:, :, None, None]  # its document is that of the chunk's end
    # Each sum by itself, and masked before exp. A difference of two sums from the chunk's start would round a small
    # number away beside large ones, and may be large and positive where it does not count.
    earlier_UU = np.tri(chunk, dtype=np.float32)  # [i, s]: s is i or before it
    later_UU = np.tri(chunk, k=-1, dtype=np.float32)  # [s, j]: s is behind j
    between_ZBKGUU = _exact(earlier_UU * decay_ZBKGU[..., None, :], later_UU)
    between_ZBKGUU = jnp.exp(jnp.where(same_ZBUU[:, :, None, None], between_ZBKGUU, -jnp.inf))
    from_start_ZBKGU = jnp.exp(jnp.where(goes_on_ZB11U, _exact(decay_ZBKGU, earlier_UU.T), -jnp.inf))
    to_end_ZBKGU = jnp.exp(jnp.where(remains_ZB11U, _exact(decay_ZBKGU, later_UU), -jnp.inf))

    by_position = k_ZBK1UD.mT
    overlap_ZBKGUU = rate_ZBKGU[..., None] * between_ZBKGUU * (k_ZBK1UD @ by_position)
    solution_ZBKGUU = _unit_inverse(overlap_ZBKGUU) * rate_ZBKGU[..., None, :]
    new_ZBKGUV = solution_ZBKGUU @ v_ZBKGUV  # what is written, were the state before the chunk empty
    old_ZBKGUD = (solution_ZBKGUU * from_start_ZBKGU[..., None, :]) @ k_ZBK1UD  # reads what is there already
    write_ZBKGDU = (k_ZBK1UD * to_end_ZBKGU[..., None]).mT
    kept_ZBKG11 = from_start_ZBKGU[..., -1, None, None]

    def through(state, of_chunk):
        new, old, write, kept = of_chunk
        written = new - old @ state
        return kept * state + write @ written, (state, written)

    state_BKGDV, (states_ZBKGDV, written_ZBKGUV) = lax.scan(
        through, state_BKGDV, (new_ZBKGUV, old_ZBKGUD, write_ZBKGDU, kept_ZBKG11)
    )
    read_ZBKGUD, inside_ZBKGUU = q_ZBK1UD * from_start_ZBKGU[..., None], (q_ZBK1UD @ by_position) * between_ZBKGUU
    return state_BKGDV, read_ZBKGUD @ states_ZBKGDV + inside_ZBKGUU @ written_ZBKGUV


@jax.custom_vjp
def _unit_inverse(a: jax.Array) -> jax.Array:
    """The inverse of I + a, where only what is below the diagonal of ``a`` (..., U, U) counts; U is a power of two.

    By blocks of twice the side each time: that of [[A, 0], [C, B]] is [[A^-1, 0], [-B^-1 C A^-1, B^-1]]. On a CPU,
    forward and backward, LAPACK's triangular solve takes ten times as long. The product of (I - a), (I + a^2),
    (I + a^4)... takes more matmuls, and loses all digits where keys are alike: powers of ``a`` grow as binomials do.
    """
    lead, size, side = a.shape[:-2], a.shape[-1], 1
    inverse = jnp.ones((*lead, size, 1, 1), a.dtype)
    while side < size:
        pairs = size // (2 * side)
        blocks = jnp.diagonal(
            a.reshape(*lead, pairs, 2, side, pairs, 2, side)[..., :, 1, :, :, 0, :], axis1=-4, axis2=-2
        )
        below = jnp.moveaxis(blocks, -1, -3)
        halves = inverse.reshape(*lead, pairs, 2, side, side)
        first, second = halves[..., 0, :, :], halves[..., 1, :, :]
        corner = -_exact(_exact(second, below), first)
        top = jnp.concatenate([first, jnp.zeros_like(first)], -1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, second], -1)], -2)
        side *= 2
    return inverse[..., 0, :, :]


def _unit_inverse_forward(a):
    inverse = _unit_inverse(a)
    return inverse, inverse


def _unit_inverse_backward(inverse, d_inverse):
    return (-jnp.tril(_exact(_exact(inverse.mT, d_inverse), inverse.mT), -1),)


def _exact(a, b) -> jax.Array:
    """a @ b in float32 on TPUs too, whose default would round logarithms of decays and what an inverse is made of."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


_unit_inverse.defvjp(_unit_inverse_forward, _unit_inverse_backward)
