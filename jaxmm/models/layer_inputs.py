"""What a position brings to each layer beside what comes from the layer before: per-layer embeddings (Gemma 3n and 4).

A row of a table by its token, and a map of what it is embedded as, are made once for all layers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxmm import sharding, zigzag
from jaxmm.models.decoder_spec import DecoderSpec
from jaxmm.models.embedding import look_up
from jaxmm.models.layers import RMSNorm, activation
from jaxmm.models.linear import Linear
from jaxmm.models.parameters import parameter


class LayerInputs(nnx.Module):
    """Of all layers: I numbers each."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        self.layers, self.size, width = spec.layers, spec.layer_inputs, spec.width
        init = jax.nn.initializers.normal(self.size**-0.5)
        self.embedding = parameter(rngs, (spec.vocab_size, self.layers * self.size), ("vocab", "embed"), init)
        self.projection = Linear([width], [self.layers, self.size], ("embed", None, None), bias=False, rngs=rngs)
        self.norm = RMSNorm(self.size, spec.norm_eps, rngs=rngs, offset=spec.norm_offset, axis=None)

    def __call__(self, tokens_BT, x_BTD, is_soft_BT):
        """(L, B, T, I) in the dtype of x, what tokens and soft tokens are embedded as.

        A soft token has the row of token 0, the padding's, which it does not teach.
        """
        B, T, D = x_BTD.shape
        scales = [jnp.asarray(scale, x_BTD.dtype) for scale in (self.size**0.5, D**-0.5, 2**-0.5)]
        own_BTLI = look_up(self.embedding[...], tokens_BT, x_BTD.dtype).reshape(B, T, self.layers, self.size)
        if is_soft_BT is not None:
            own_BTLI = jnp.where(is_soft_BT[..., None, None], lax.stop_gradient(own_BTLI), own_BTLI)
        mapped_BTLI = self.norm(self.projection(x_BTD) * scales[1])
        both_BTLI = (mapped_BTLI + own_BTLI * scales[0]) * scales[2]
        return sharding.constrain(jnp.moveaxis(both_BTLI, 2, 0), None, "rows", zigzag.positions_axis(T), None)


class LayerInput(nnx.Module):
    """Of one layer: what its output, through a gate, lets in of what positions bring."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs, scale: float):
        """``scale``: of the initial variance of the map that leads out."""
        self.act = activation(spec.activation)
        self.gate = Linear([spec.width], [spec.layer_inputs], ("embed", None), bias=False, rngs=rngs)
        self.out = Linear([spec.layer_inputs], [spec.width], (None, "embed"), bias=False, rngs=rngs, scale=scale)
        self.norm = RMSNorm(spec.width, spec.norm_eps, rngs=rngs, offset=spec.norm_offset)

    def __call__(self, x_BTD, own_BTI):
        return self.norm(self.out(self.act(self.gate(x_BTD)) * own_BTI))
