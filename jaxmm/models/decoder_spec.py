"""What a decoder is: its sizes, and named features for what families do otherwise than Llama."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxmm.models.recurrent import ConvolutionSpec, GatedDeltaNetSpec
from jaxmm.models.rope import RopeScaling
from jaxmm.models.routing import ExpertSpec
from jaxmm.models.sizes import check_numbers, check_sizes

# What mixes the positions of a layer. All but the two kinds of attention carry a state from position to position.
ATTENTIONS = ("attention", "global_attention")
MIXERS = (*ATTENTIONS, "convolution", "delta")
# Attention of layers that make no keys and values, by the mixer whose layers hand theirs on.
HANDED = {kind: f"handed_{kind}" for kind in ATTENTIONS}
# The modules of a layer, in the order in which they are made.
BESIDE = ("norm_dense_out", "norm_experts", "norm_experts_out")  # where experts stand beside an MLP
COMPONENTS = (
    "norm_attention", "norm_mlp", *MIXERS, "mlp", "experts", "norm_attention_out", "norm_mlp_out", "scale", *BESIDE,
    *HANDED.values(), "handed_mlp", "layer_input",
)  # fmt: skip


class AttentionSizes(NamedTuple):
    """Sizes of one kind of attention.

    Attributes:
      shared_kv: values are what the map of keys gives, too; they have none of their own.
    """

    kv_heads: int
    head_dim: int
    shared_kv: bool = False


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Sizes and named features of the decoder.

    Attributes:
      vocab_size: rows of the embedding, separators included, padded as the caller likes.
      tie_embeddings: the vocabulary projection is the embedding, transposed.
      window: how many positions back attention reaches, itself included; 0 is all.
      global_layers: with a window, the layers that see everything all the same.
      local_rope_theta: of the layers with a window, which then have no scaling; 0 is as the others.
      bidirectional_blocks: positions of one block of the batch (an image, a prefix) see each other both ways.
      causal_global_layers: but not in the layers that see everything (Gemma 4).
      prefix_blocks: a block is all that stands before a document's answer, and sees all of itself in layers with a
        window, too (PaliGemma).
      rope_sections: frequencies of each axis of positions (frame, row, column); () is one axis.
      rope_interleaved: the axes take turns; else they follow each other.
      rope_adjacent: rotary positions turn pairs of neighbours, not of one dim and that half a head behind it (GLM).
      qkv_bias, out_bias, mlp_bias: which linear maps have biases.
      rotary_dim: dims of a head that turn, the first ones; 0 is all.
      attention_gate: what attention gives is multiplied by a sigmoid of a linear map of its input (Qwen3-Next).
      qk_norm: queries and keys are normed, each head by itself (Qwen 3, Gemma 3).
      value_norm: values are too, without scales (Gemma 4).
      post_norms: what attention and MLP give is normed too, before it is added (Gemma 2).
      norm_offset: added to the scales of norms: 1 where they are stored around 0 (Gemma).
      embed_scale: multiplies embedded tokens, not soft tokens.
      attention_scale: of the logits of attention; 0 is 1 / sqrt(head_dim).
      attention_softcap, logit_softcap: bend logits of attention, and those of the vocabulary, by a tanh (Gemma 2); 0
        does not.
      mixers: what mixes the positions of each layer, of MIXERS; () is attention everywhere.
      global_attention: sizes of the layers with this mixer, which see everything; those of the others are ``kv_heads``
        and ``head_dim`` (Gemma 4).
      convolution, delta: of the layers that have a short convolution, or a gated DeltaNet.
      handed_layers: the last layers, so many of them, make no keys and values: they see those of the last layer before
        them that has their mixer (Gemma 4's E2B).
      handed_mlp: width of the MLPs of these layers; 0 is ``mlp``.
      layer_inputs: numbers that a position brings to each layer, by its token and by what it is embedded as; 0 is none
        (Gemma 4's E2B).
      layer_scale: what a layer gives is multiplied by a number of its own, which is read and never learnt (Gemma 4).
      experts: in the place of the MLPs; None is an MLP everywhere.
      dense_layers: with experts, the layers that have an MLP all the same.
      experts_beside: experts stand beside the MLP of their layers, not in its place. What they take has a norm of its
        own, their router takes what no norm has changed, and what each of the two gives is normed before they are added
        (Gemma 4).
    """

    vocab_size: int = 512
    width: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 48
    mlp: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    window: int = 0
    global_layers: tuple[int, ...] = ()
    local_rope_theta: float = 0.0
    bidirectional_blocks: bool = False
    causal_global_layers: bool = False
    prefix_blocks: bool = False
    rope_scaling: RopeScaling = dataclasses.field(default_factory=RopeScaling)
    rope_sections: tuple[int, ...] = ()
    rope_interleaved: bool = False
    rope_adjacent: bool = False
    rotary_dim: int = 0
    attention_gate: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    value_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"
    embed_scale: float = 1.0
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    mixers: tuple[str, ...] = ()
    global_attention: AttentionSizes | None = None
    handed_layers: int = 0
    handed_mlp: int = 0
    layer_inputs: int = 0
    layer_scale: bool = False
    convolution: ConvolutionSpec | None = None
    delta: GatedDeltaNetSpec | None = None
    experts: ExpertSpec | None = None
    dense_layers: tuple[int, ...] = ()
    experts_beside: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "decoder", "vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp")
        check_sizes(self, "decoder", "window", "handed_layers", "handed_mlp", "layer_inputs", least=0)
        check_numbers(self, "decoder", "rope_theta", "norm_eps")
        check_numbers(self, "decoder", "local_rope_theta", "embed_scale", "attention_scale", "attention_softcap",
                      "logit_softcap", may_be_0=True)  # fmt: skip
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} attention heads are no multiple of {self.kv_heads} key-value heads")
        if self.turning_dim % 2 or self.turning_dim > self.head_dim:
            raise ValueError(
                f"decoder head_dim {self.head_dim}, of which {self.turning_dim} turn: rotary positions turn pairs of "
                f"numbers of a head"
            )
        # Axes that take turns need no full sum: the first takes what the others leave.
        in_a_row = self.rope_sections and not self.rope_interleaved
        if in_a_row and sum(self.rope_sections) != self.turning_dim // 2:
            raise ValueError(
                f"rotary sections {self.rope_sections}: their sum does not add up to half of {self.turning_dim} dims"
            )

        if self.prefix_blocks and not self.bidirectional_blocks:
            raise ValueError("prefix_blocks says what the blocks are of bidirectional_blocks, which is off")
        if self.mixers and len(self.mixers) != self.layers:
            raise ValueError(f"{len(self.mixers)} mixers are given for {self.layers} layers")
        if unknown := set(self.mixers) - set(MIXERS):
            raise ValueError(f"mixer '{unknown.pop()}' is not one of {', '.join(MIXERS)}")
        for mixer in MIXERS[1:]:
            if (mixer in self.mixers) != (getattr(self, mixer) is not None):
                raise ValueError(f"layers with the mixer {mixer}, and its sizes, are given without each other")
        if self.dense_layers and (self.experts is None or not self.layers_of("experts")):
            raise ValueError(f"layers without experts {self.dense_layers} are given, and no layer has experts")
        if self.experts_beside and self.experts is None:
            raise ValueError("experts_beside says where experts stand, and no layer has experts")
        if outside := set(self.dense_layers) - set(range(self.layers)):
            raise ValueError(f"layer {min(outside)} without experts is no layer of {self.layers}")
        if self.global_attention:
            self._check_global_attention(*self.global_attention)
        self._check_handed()

    def _check_handed(self) -> None:
        if self.handed_mlp and not self.handed_layers:
            raise ValueError("handed_mlp is the width of handed_layers, and there are none")
        before, handed = (
            set(self.mixer_of_layers()[part]) for part in (slice(self.first_handed), slice(self.first_handed, None))
        )
        if self.handed_layers and (not handed <= before or not handed <= set(ATTENTIONS)):
            raise ValueError(
                f"the last {self.handed_layers} layers see keys of layers before them, of which none has the mixer "
                f"{', '.join(sorted(handed - (before & set(ATTENTIONS))))}"
            )
        if self.handed_mlp and self.experts:
            raise ValueError("handed_mlp with experts is not supported")

    def _check_global_attention(self, kv_heads: int, head_dim: int, shared_kv: bool) -> None:
        if self.heads % kv_heads:
            raise ValueError(f"{self.heads} attention heads are no multiple of {kv_heads} global key-value heads")
        if head_dim % 2 or self.rotary_dim or self.rope_sections:
            raise ValueError(f"global attention with heads of {head_dim}: even ones, which turn whole, by one axis")
        is_wide = np.array([mixer == "global_attention" for mixer in self.mixer_of_layers()])
        if (~is_wide & np.isin(self.mixer_of_layers(), ATTENTIONS) & ~self.is_local()).any():
            raise ValueError("layers see everything without the sizes of global attention, which others have")
        if (is_wide & self.is_local()).any():
            raise ValueError("layers of global attention see a window")

    @property
    def first_handed(self) -> int:
        """The first of ``handed_layers``."""
        return self.layers - self.handed_layers

    def places_of_keys(self) -> np.ndarray:
        """int32 (layers,): of each layer, how many before it make what its mixer keeps, or, of one that makes none,
        the last of those that do."""
        mixers, first = self.mixer_of_layers(), self.first_handed
        return np.array([mixers[: min(n, first)].count(m) - (n >= first) for n, m in enumerate(mixers)], np.int32)

    @property
    def turning_dim(self) -> int:
        """Dims of a head that rotary positions turn."""
        return self.rotary_dim or self.head_dim

    def mixer_of_layers(self) -> tuple[str, ...]:
        """What mixes the positions of each layer."""
        return self.mixers or ("attention",) * self.layers

    def layers_of(self, component: str) -> tuple[int, ...]:
        """The layers that have one of COMPONENTS."""
        first = self.first_handed
        if component in MIXERS:
            return tuple(n for n, mixer in enumerate(self.mixer_of_layers()[:first]) if mixer == component)
        if component in HANDED.values():
            return tuple(n for n, m in enumerate(self.mixer_of_layers()) if n >= first and HANDED[m] == component)
        if self.handed_mlp and component in ("mlp", "handed_mlp"):
            return tuple(range(first)) if component == "mlp" else tuple(range(first, self.layers))
        if component in ("mlp", "experts"):
            is_dense = [self.experts is None or n in self.dense_layers for n in range(self.layers)]
            both = self.experts_beside and component == "mlp"
            return tuple(n for n, dense in enumerate(is_dense) if both or dense == (component == "mlp"))
        if component in BESIDE:
            return self.layers_of("experts") if self.experts_beside else ()
        needs = {
            "norm_attention_out": self.post_norms, "norm_mlp_out": self.post_norms, "scale": self.layer_scale,
            "handed_mlp": False, "layer_input": bool(self.layer_inputs),
        }  # fmt: skip
        return tuple(range(self.layers)) if needs.get(component, True) else ()

    def attention_layers(self) -> tuple[int, ...]:
        """The layers that have attention, of either kind."""
        return tuple(n for n, mixer in enumerate(self.mixer_of_layers()) if mixer in ATTENTIONS)

    def attention_sizes(self) -> dict[str, AttentionSizes]:
        """The sizes of each kind of attention that some layers have, by its mixer."""
        sizes = {"attention": AttentionSizes(self.kv_heads, self.head_dim), "global_attention": self.global_attention}
        return {kind: of_kind for kind, of_kind in sizes.items() if of_kind and self.layers_of(kind)}

    def kinds(self) -> tuple[tuple[str, ...], ...]:
        """What each layer is made of."""
        of = {name: set(self.layers_of(name)) for name in COMPONENTS}
        return tuple(tuple(name for name in COMPONENTS if n in of[name]) for n in range(self.layers))

    @property
    def has_state(self) -> bool:
        """Whether some layers carry a state from position to position."""
        return bool(set(self.mixer_of_layers()) - set(ATTENTIONS))

    @property
    def text_axes(self) -> int:
        """Coordinates of a text position."""
        return max(1, len(self.rope_sections))

    @property
    def mask(self) -> str:
        """What is known of the intervals of all layers: a key of ``attention.MASKS``."""
        return "any" if self.window else "whole" if self.bidirectional_blocks else "causal"

    def is_local(self) -> np.ndarray:
        """bool (layers,): which layers see a window."""
        return np.array([bool(self.window) and i not in self.global_layers for i in range(self.layers)])
