"""Rotary position embedding (Su et al., 2021): frequencies, the ways to stretch them, and positions of several axes.

What a stretch depends on the length of a sequence for, it takes from each document of a packed row by itself.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.models.materialize import materialize
from jaxmm.models.sizes import check_numbers, check_sizes

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How frequencies differ from the plain ones, by the names of Hugging Face's ``rope_parameters``.

    Attributes:
      kind: one of KINDS.
      factor: by which positions are stretched.
      trained_length: positions the model was first trained on (``original_max_position_embeddings``); for "dynamic",
        ``max_position_embeddings``.
      fraction: of the frequencies that rotate at all, for "proportional".
      attention_factor: multiplies cosines and sines; 0 is what the kind's authors give.
      mscale, mscale_all_dim: as DeepSeek uses them with "yarn".
      short_factors, long_factors: one a frequency, for "longrope".
    """

    kind: str = "default"
    factor: float = 1.0
    trained_length: int = 0
    fraction: float = 1.0
    attention_factor: float = 0.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"rotary scaling '{self.kind}' is not one of {', '.join(KINDS)}")
        check_numbers(self, "rotary scaling's", "factor", "low_frequency_factor", "high_frequency_factor", "fraction",
                      "beta_fast", "beta_slow")  # fmt: skip
        check_numbers(self, "rotary scaling's", "attention_factor", "mscale", "mscale_all_dim", may_be_0=True)
        check_sizes(self, "rotary scaling's", "trained_length", least=0)
        if self.kind in ("dynamic", "yarn", "longrope", "llama3") and not self.trained_length:
            raise ValueError(f"rotary scaling '{self.kind}' needs the positions that the model was first trained on")
        if self.kind == "llama3" and not self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError("rotary scaling's low_frequency_factor must be below its high_frequency_factor")
        if not all(math.isfinite(x) and x > 0 for x in (*self.short_factors, *self.long_factors)):
            raise ValueError("rotary scaling's short and long factors must be finite numbers above 0")


def inverse_wavelengths(theta: float, dim: int) -> np.ndarray:
    """theta ** (-2 i / dim), float32 (dim / 2,)."""
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)).astype(np.float32)


def frequencies(theta: float, dim: int, scaling: RopeScaling, lengths_BT: jax.Array | None = None):
    """Radians a position, float32: (dim / 2,), or (B, T, dim / 2) where they depend on the length of the document.

    Args:
      lengths_BT: positions in the document of each position; needed for "dynamic" and "longrope".
    """
    plain = inverse_wavelengths(theta, dim)
    kind, factor, trained = scaling.kind, scaling.factor, scaling.trained_length
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / factor
    if kind == "proportional":
        turning = int(scaling.fraction * dim // 2)
        return np.where(np.arange(dim // 2) < turning, plain, 0).astype(np.float32) / factor
    if kind == "llama3":
        return _llama3(plain, scaling)
    if kind == "yarn":
        return _yarn(plain, theta, dim, scaling)
    if lengths_BT is None:
        raise ValueError(f"rotary scaling '{kind}' needs the lengths of documents")
    if kind == "dynamic":  # NTK-aware: the base grows with the document
        length_BT1 = jnp.maximum(lengths_BT, trained)[..., None].astype(jnp.float32)
        base = theta * (factor * length_BT1 / trained - (factor - 1)) ** (dim / (dim - 2))
        return 1.0 / base ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    short, long = (plain / np.asarray(f, np.float32) for f in (scaling.short_factors, scaling.long_factors))
    return jnp.where((lengths_BT > trained)[..., None], long, short)


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Long waves are stretched, short ones are not, and between the two it is smooth (Llama 3.1)."""
    low, high, factor = scaling.low_frequency_factor, scaling.high_frequency_factor, scaling.factor
    wave = 2 * math.pi / plain
    smooth = (scaling.trained_length / wave - low) / (high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    frequency = np.where(wave > scaling.trained_length / low, plain / factor, plain)
    is_between = (wave >= scaling.trained_length / high) & (wave <= scaling.trained_length / low)
    return np.where(is_between, between, frequency).astype(np.float32)


def _yarn(plain: np.ndarray, theta: float, dim: int, scaling: RopeScaling) -> np.ndarray:
    """YaRN (Peng et al., 2023): a ramp over dims between stretched and plain."""

    def dim_of(rotations: float) -> float:
        return dim * math.log(scaling.trained_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dim_of(scaling.beta_fast), dim_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = (high - low) or 0.001
    stretched = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / width, 0, 1)
    return (plain / scaling.factor * stretched + plain * (1 - stretched)).astype(np.float32)


def attention_factor(scaling: RopeScaling) -> float:
    """What cosines and sines are multiplied by."""
    if scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor:
        return scaling.attention_factor
    factor = scaling.factor
    if scaling.kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(scaling.trained_length)) if factor > 1 else 1.0

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def axis_of_frequency(sections: tuple[int, ...], interleaved: bool, count: int) -> np.ndarray:
    """int (count,): which axis of a position each frequency turns with.

    Args:
      sections: frequencies of each axis; () is one axis.
      interleaved: axes take turns (Qwen3-VL: the first takes what the others leave, be it more or less than its
        section says); else they follow each other.
    """
    if not sections:
        return np.zeros(count, np.int32)
    if not interleaved and sum(sections) != count:
        raise ValueError(f"rotary sections {sections} do not add up to {count} frequencies")
    if not interleaved:
        return np.repeat(np.arange(len(sections), dtype=np.int32), sections)
    axes = np.zeros(count, np.int32)
    for axis in range(1, len(sections)):
        axes[axis : sections[axis] * len(sections) : len(sections)] = axis
    return axes


def rotations(positions_BTA, frequency, axes: np.ndarray, factor: float):
    """Cosines and sines, float32 (B, T, D / 2), of positions (B, T, axes) or (B, T, 1).

    Written out: else a CPU computes the cosines again for every head of every layer.
    """
    chosen_BTD = positions_BTA[..., axes if positions_BTA.shape[-1] > 1 else np.zeros_like(axes)]
    angles_BTD = chosen_BTD.astype(jnp.float32) * frequency
    return materialize(jnp.cos(angles_BTD) * factor), materialize(jnp.sin(angles_BTD) * factor)


def rotate(x_BTHD, rotation, adjacent: bool = False):
    """Rotates pairs (d, d + D / 2) of each head, in float32; of D dims of the rotation, those behind stay.

    Args:
      adjacent: pairs are (2 d, 2 d + 1) instead.
    """
    turning = 2 * rotation[0].shape[-1]
    if turning < x_BTHD.shape[-1]:
        return jnp.concatenate([rotate(x_BTHD[..., :turning], rotation, adjacent), x_BTHD[..., turning:]], axis=-1)
    if adjacent:
        apart = x_BTHD.reshape(*x_BTHD.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x_BTHD.shape)
        turned = rotate(apart, rotation).reshape(*x_BTHD.shape[:-1], 2, -1)
        return turned.swapaxes(-1, -2).reshape(x_BTHD.shape)
    cos, sin = (a[:, :, None, None] for a in rotation)
    pairs = x_BTHD.astype(jnp.float32).reshape(*x_BTHD.shape[:-1], 2, -1)
    turned = pairs * cos + pairs[..., ::-1, :] * jnp.concatenate([-sin, sin], -2)
    return turned.reshape(x_BTHD.shape).astype(x_BTHD.dtype)
