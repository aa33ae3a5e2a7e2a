"""From tower features to soft tokens: pixel unshuffle and an MLP, as in LFM2-VL and SmolVLM."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from jaxmm.models.layers import LayerNorm, Linear


@dataclasses.dataclass(frozen=True)
class ConnectorSpec:
    """``merge``: side of the square of patches that becomes one soft token; ``mlp``: hidden width."""

    merge: int = 2
    mlp: int = 256
    norm_eps: float = 1e-5


class Connector(nnx.Module):
    """Concatenates each merge group and maps it to the decoder's width.

    Patches travel in merge groups, so that the unshuffle is a reshape: (B, N, D) to (B, N / merge**2, D * merge**2).
    """

    def __init__(self, spec: ConnectorSpec, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.group = spec.merge**2
        wide = inputs * self.group
        self.norm = LayerNorm(wide, spec.norm_eps, rngs=rngs)
        self.up = Linear([wide], [spec.mlp], ("embed", "mlp"), bias=True, rngs=rngs)
        self.down = Linear([spec.mlp], [outputs], ("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, features_BND: jax.Array) -> jax.Array:
        """Returns soft tokens (B, S, width of the decoder)."""
        B, N, D = features_BND.shape
        x_BSD = features_BND.reshape(B, N // self.group, D * self.group)
        return self.down(jax.nn.gelu(self.up(self.norm(x_BSD)), approximate=False))
