"""From tower features to soft tokens: each merge group of patches becomes one, by an MLP or a projection."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxmm.models.layers import MLP, LayerNorm, RMSNorm, activation, stack, unit_rms
from jaxmm.models.linear import Linear
from jaxmm.models.parameters import ones, parameter, zeros
from jaxmm.models.sizes import check_numbers, check_sizes

NORMS = ("", "layer", "rms", "rms_offset", "rms_unit")
POOLS = ("concat", "mean")


@dataclasses.dataclass(frozen=True)
class ConnectorSpec:
    """Sizes and named features of the connector. The defaults are those of LFM2-VL and SmolVLM.

    Attributes:
      merge: side of the square of patches that becomes one soft token.
      mlp: hidden width; 0 is one projection and no MLP.
      pool: how a square becomes one vector: "concat" (pixel unshuffle) or "mean".
      pool_scale: what comes of that is multiplied by this, in float32 (Gemma 4).
      standardised: then a vector is taken off and another multiplies, which are read and never learnt (Gemma 4).
      norm: of what goes in: "layer", "rms", "rms_offset" (scales stored around 0), "rms_unit" (without scales) or ""
        for none.
      norm_first: it norms each patch before they are pooled, not the pooled vector.
      merged: width to which a linear map brings a square of patches before the MLP; 0 is no such map (Mistral 3).
      merged_bias: that map has a bias.
      hidden_norm: a LayerNorm before the activation (GLM-4.1V).
      gated: hidden width of an MLP with a gate in the place of the MLP's last map; 0 is that map (GLM-4.1V).
      deep: soft tokens of so many tapped layers, each by an MLP of its own that norms the pooled vector (Qwen3-VL).
      newline: a learnt vector that ends rows of soft tokens: the first row of the soft-token table (LLaVA-NeXT).
    """

    merge: int = 2
    mlp: int = 256
    norm_eps: float = 1e-5
    pool: str = "concat"
    pool_scale: float = 1.0
    standardised: bool = False
    norm: str = "layer"
    norm_first: bool = False
    merged: int = 0
    merged_bias: bool = False
    hidden_norm: bool = False
    gated: int = 0
    gated_activation: str = "silu"
    activation: str = "gelu"
    bias: bool = True
    deep: int = 0
    newline: bool = False

    def __post_init__(self):
        check_sizes(self, "connector", "merge")
        check_sizes(self, "connector", "mlp", "merged", "gated", "deep", least=0)
        check_numbers(self, "connector", "norm_eps", "pool_scale")
        if self.norm not in NORMS:
            raise ValueError(f"connector norm '{self.norm}' is not one of {', '.join(map(repr, NORMS))}")
        if self.pool not in POOLS:
            raise ValueError(f"connector pool '{self.pool}' is not one of {', '.join(POOLS)}")
        if self.merged and self.norm and not self.norm_first:
            raise ValueError("a connector that merges patches by a linear map norms them before")
        if self.newline and self.deep:
            raise ValueError("rows that a vector ends have no soft tokens of tapped layers")

    def pooled_width(self, inputs: int) -> int:
        """Width of the vector of a merge group, as the MLP gets it."""
        if self.merged:
            return self.merged
        return inputs * self.merge**2 if self.pool == "concat" else inputs


def _make_norm(spec: ConnectorSpec, width: int, rngs: nnx.Rngs) -> LayerNorm | RMSNorm:
    if spec.norm == "layer":
        return LayerNorm(width, spec.norm_eps, rngs=rngs)
    return RMSNorm(width, spec.norm_eps, rngs=rngs, offset=float(spec.norm == "rms_offset"))


class Projector(nnx.Module):
    """Features (B, N, D) to soft tokens (B, N / merge**2, outputs).

    Patches travel in merge groups, so that the unshuffle is a reshape.
    """

    def __init__(self, spec: ConnectorSpec, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.spec = spec
        wide = spec.pooled_width(inputs)
        width, merge = inputs if spec.norm_first else wide, [spec.merge**2, inputs]
        self.norm = _make_norm(spec, width, rngs) if spec.norm not in ("", "rms_unit") else None
        named = (None, "embed", "mlp")
        self.merger = Linear(merge, [spec.merged], named, bias=spec.merged_bias, rngs=rngs) if spec.merged else None
        self.mean = parameter(rngs, (wide,), (None,), zeros) if spec.standardised else None
        self.stretch = parameter(rngs, (wide,), (None,), ones) if spec.standardised else None
        self.up = Linear([wide], [spec.mlp], ("embed", "mlp"), bias=spec.bias, rngs=rngs) if spec.mlp else None
        axes = ("mlp", "embed") if spec.mlp else (None, "embed")
        self.hidden_norm = LayerNorm(spec.mlp, 1e-5, rngs=rngs) if spec.hidden_norm else None
        self.down = (
            MLP(outputs, spec.gated, spec.gated_activation, gated=True, bias=spec.bias, rngs=rngs)
            if spec.gated
            else Linear([spec.mlp or wide], [outputs], axes, bias=spec.bias, rngs=rngs)
        )

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        spec = self.spec
        if self.norm is not None and spec.norm_first:
            x_BND = self.norm(x_BND)
        B, N, D = x_BND.shape
        groups_BSGD = x_BND.reshape(B, N // spec.merge**2, spec.merge**2, D)
        if self.merger is not None:
            x_BSD = self.merger(groups_BSGD)
        else:
            x_BSD = groups_BSGD.mean(2) if spec.pool == "mean" else groups_BSGD.reshape(B, groups_BSGD.shape[1], -1)
        if spec.pool_scale != 1 or spec.standardised:
            x_BSD = self._standardised(x_BSD)
        if spec.norm == "rms_unit":
            x_BSD = unit_rms(x_BSD, spec.norm_eps)
        if self.norm is not None and not spec.norm_first:
            x_BSD = self.norm(x_BSD)
        if self.up is not None:
            x_BSD = self.up(x_BSD)
            x_BSD = activation(spec.activation)(x_BSD if self.hidden_norm is None else self.hidden_norm(x_BSD))
        return self.down(x_BSD)

    def _standardised(self, x_BSD):
        """In float32: what is taken off is large, as what it is taken off from."""
        wide_BSD = x_BSD.astype(jnp.float32) * self.spec.pool_scale
        if self.mean is not None and self.stretch is not None:
            mean, stretch = (lax.stop_gradient(x[...]) for x in (self.mean, self.stretch))
            wide_BSD = (wide_BSD - mean) * stretch
        return wide_BSD.astype(x_BSD.dtype)


class Connector(Projector):
    """The projector of features, those of tapped layers, and the vector that ends rows of soft tokens."""

    def __init__(self, spec: ConnectorSpec, inputs: int, outputs: int, *, taps: int = 0, rngs: nnx.Rngs):
        """``taps``: width of a tapped layer's output."""
        super().__init__(spec, inputs, outputs, rngs=rngs)
        pooled = dataclasses.replace(spec, norm_first=False, merged=0, deep=0)
        self.deep = stack(spec.deep, lambda r: Projector(pooled, taps, outputs, rngs=r), rngs) if spec.deep else None
        scale = nnx.initializers.normal(outputs**-0.5)
        self.newline = parameter(rngs, (outputs,), (None,), scale) if spec.newline else None

    def newline_table(self, rows: int, dtype: jnp.dtype) -> jax.Array:
        """The vector that ends rows of soft tokens, as a table (B, 1, outputs) of ``rows`` rows of a batch."""
        assert self.newline is not None, "spec.newline"
        vector_D = self.newline[...].astype(dtype)
        return jnp.broadcast_to(vector_D, (rows, 1, *vector_D.shape))

    def deep_tables(self, taps_KBND: jax.Array) -> jax.Array:
        """Soft tokens of tapped layers: (K, B, S, outputs)."""
        return nnx.vmap(lambda projector, x_BND: projector(x_BND))(self.deep, taps_KBND)
