"""The decoders of the families: from a ``text_config`` to a spec, and the names of their tensors.

``transformers`` reads the config, old spellings included. What its code does beyond the config is here, as data; what
their configs share is in ``decoder_config``, their names in ``decoder_names``.
``DECODERS`` is the table, by the config's ``model_type``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxmm.errors import UserError
from jaxmm.hf import decoder_names, experts, supported
from jaxmm.hf.decoder_config import make_spec, mixers_of, one_window, rotary_part, sections, windows_of_some
from jaxmm.hf.names import Rule
from jaxmm.models.decoder_spec import COMPONENTS, AttentionSizes, DecoderSpec
from jaxmm.models.recurrent import ConvolutionSpec, GatedDeltaNetSpec


class Decoder(NamedTuple):
    """A decoder's sizes and features, and the names of its tensors."""

    spec: DecoderSpec
    rules: list[Rule]


class DecoderKind(NamedTuple):
    """An entry of the table.

    Attributes:
      spec: makes the spec from a config, and from whether the vocabulary projection is the embedding.
      rules: the names of its tensors.
      joins: whether it can be joined with a tower of another family.
    """

    spec: Callable[[Any, bool], DecoderSpec]
    rules: list[Rule]
    joins: bool = True


def decoder_of(config: Any, tied: bool) -> Decoder:
    """Returns the decoder of a config. Raises UserError for an unknown architecture, or sizes that do not match."""
    kind = supported.entry(DECODERS, supported.kind_of(config), "decoder")
    try:
        spec = kind.spec(config, tied)
    except ValueError as error:  # sizes that do not match
        raise UserError(f"config.json: {error}") from error
    return Decoder(spec, rules_of(kind.rules, spec))


def rules_of(rules: list[Rule], spec: DecoderSpec) -> list[Rule]:
    """The names of the tensors of a decoder, each with the layers that have it, where not all do; none that no layer
    has."""

    def of_layers(rule: Rule) -> Iterator[Rule]:
        path = rule.paths[0].removeprefix(f"{decoder_names.BLOCKS}.").partition(".")[0]
        layers = spec.layers_of(path) if path in COMPONENTS else tuple(range(spec.layers))
        if len(layers) == spec.layers:
            yield rule
        elif layers:
            yield rule._replace(layers=layers, apart=tuple(one for each in rule.apart for one in of_layers(each)))

    return [one for rule in rules for one in of_layers(rule)]


def plain_decoder_of(config: Any, tied: bool) -> Decoder:
    """A decoder in a family with one axis of positions, and in which attention is causal over images as over text.

    Raises UserError for one whose logits are softcapped, too: the classes of ``transformers`` of these families do not.
    """
    decoder = decoder_of(config, tied)
    if getattr(config, "use_bidirectional_attention", None) is True:
        raise UserError(f"config.json: decoder '{config.model_type}' with use_bidirectional_attention is not supported")
    if decoder.spec.logit_softcap:
        raise UserError(
            f"config.json: decoder '{config.model_type}' with final_logit_softcapping={decoder.spec.logit_softcap} is "
            f"not supported in this family: its class of transformers would not apply it"
        )
    return decoder._replace(spec=dataclasses.replace(decoder.spec, rope_sections=(), bidirectional_blocks=False))


# One by one


def _llama(config: Any, tied: bool) -> DecoderSpec:
    """Llama 2 and 3."""
    bias = bool(getattr(config, "attention_bias", False))
    return make_spec(config, tied, qkv_bias=bias, out_bias=bias, mlp_bias=bool(getattr(config, "mlp_bias", False)))


def _mistral(config: Any, tied: bool) -> DecoderSpec:
    return make_spec(config, tied, **one_window(config))


def _qwen2(config: Any, tied: bool) -> DecoderSpec:
    """Qwen 2 and 2.5."""
    return make_spec(config, tied, qkv_bias=True, **windows_of_some(config))


def _qwen3(config: Any, tied: bool) -> DecoderSpec:
    return _normed_heads(config, tied, **windows_of_some(config))


def _normed_heads(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """What the decoders of Qwen 3 have in common."""
    bias = bool(config.attention_bias)
    return make_spec(config, tied, qkv_bias=bias, out_bias=bias, qk_norm=True, **features)


def _gemma(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """Gemma: norms' scales are stored around 0, and embedded tokens are multiplied."""
    bias = bool(config.attention_bias)
    return make_spec(
        config, tied, qkv_bias=bias, out_bias=bias, norm_offset=1.0, embed_scale=config.hidden_size**0.5, **features
    )  # fmt: skip


def _gemma2(config: Any, tied: bool) -> DecoderSpec:
    return _gemma(
        config, tied, activation=supported.activation(config.hidden_activation), post_norms=True,
        attention_scale=config.query_pre_attn_scalar**-0.5,
        attention_softcap=float(config.attn_logit_softcapping or 0.0),
        logit_softcap=float(config.final_logit_softcapping or 0.0), **windows_of_some(config),
    )  # fmt: skip


def _gemma3(config: Any, tied: bool) -> DecoderSpec:
    supported.require(config, use_bidirectional_attention=False)
    # The file may have attn_logit_softcapping and final_logit_softcapping: transformers applies neither here.
    rope = config.rope_parameters
    return make_spec(
        config, tied, rope["full_attention"],
        local_rope_theta=rope["sliding_attention"]["rope_theta"],
        qkv_bias=bool(config.attention_bias), out_bias=bool(config.attention_bias),
        qk_norm=True, post_norms=True, norm_offset=1.0,
        embed_scale=config.hidden_size**0.5, attention_scale=config.query_pre_attn_scalar**-0.5,
        bidirectional_blocks=True, activation=supported.activation(config.hidden_activation), **windows_of_some(config),
    )  # fmt: skip


def _gemma4(config: Any, tied: bool) -> DecoderSpec:
    """Gemma 4: the layers that see everything have attention of other sizes."""
    if config.use_bidirectional_attention not in (None, "vision"):
        supported.require(config, use_bidirectional_attention="vision")
    if config.hidden_size_per_layer_input:  # one row a token, and the padding's for soft tokens
        supported.require(config, vocab_size_per_layer_input=config.vocab_size, pad_token_id=0)
    changed = {key for own in (config.to_dict().get("per_layer_config") or {}).values() for key in own}
    if changed - {"head_dim", "num_key_value_heads"}:
        raise UserError(f"config.json: per_layer_config with {', '.join(sorted(changed))} is not supported")
    mixers = mixers_of(config, {"sliding_attention": "attention", "full_attention": "global_attention"})
    configs = config.per_layer_config
    of_layers = [AttentionSizes(own.num_key_value_heads, own.head_dim) for own in configs]
    wide, narrow = (
        [n for n, mixer in enumerate(mixers) if mixer == kind] for kind in ("global_attention", "attention")
    )
    if any(len({of_layers[n] for n in numbers}) > 1 for numbers in (wide, narrow)):
        raise UserError("config.json: per_layer_config with layers of one type but different sizes is not supported")
    sizes = of_layers[wide[0]]._replace(shared_kv=bool(config.attention_k_eq_v)) if wide else None
    rope = config.rope_parameters
    return make_spec(
        configs[(narrow or wide)[0]], tied, rope["full_attention"], mixers=mixers, global_attention=sizes,
        activation=supported.activation(config.hidden_activation),
        local_rope_theta=rope["sliding_attention"]["rope_theta"], window=config.sliding_window,
        global_layers=tuple(wide), layer_scale=True,
        qkv_bias=bool(config.attention_bias), out_bias=bool(config.attention_bias), qk_norm=True, value_norm=True,
        post_norms=True, embed_scale=config.hidden_size**0.5, attention_scale=1.0,
        logit_softcap=float(config.final_logit_softcapping or 0.0),
        bidirectional_blocks=config.use_bidirectional_attention == "vision", causal_global_layers=True,
        handed_layers=config.num_kv_shared_layers,
        handed_mlp=2 * config.intermediate_size if config.use_double_wide_mlp and config.num_kv_shared_layers else 0,
        layer_inputs=config.hidden_size_per_layer_input or 0, **experts.gemma4(config),
    )  # fmt: skip


def _qwen2_5_vl(config: Any, tied: bool) -> DecoderSpec:
    """Qwen 2 and 2.5 with positions of three axes: time, row and column, each with a run of the frequencies."""
    supported.require(config, head_dim=config.hidden_size // config.num_attention_heads)
    return make_spec(
        config, tied, qkv_bias=True, rope_sections=sections(config, (16, 24, 24)), **windows_of_some(config)
    )


def _qwen3_vl(config: Any, tied: bool) -> DecoderSpec:
    """Qwen 3 with positions of three axes, which take turns at the frequencies."""
    return _normed_heads(config, tied, rope_sections=sections(config, (24, 20, 20)), rope_interleaved=True)


def _ernie4_5(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """ERNIE 4.5: Llama with one switch of all biases, whose rotary positions turn pairs of neighbours."""
    bias = bool(config.use_bias)
    return make_spec(
        config, tied, qkv_bias=bias, out_bias=bias, mlp_bias=bias, **{"rope_adjacent": True, **features},
    )  # fmt: skip


def _paddleocr(config: Any, tied: bool) -> DecoderSpec:
    """ERNIE 4.5 with positions of three axes, each with a run of the frequencies; pairs are half a head apart."""
    return _ernie4_5(config, tied, rope_sections=sections(config, (16, 24, 24)), rope_adjacent=False)


def _glm4v(config: Any, tied: bool) -> DecoderSpec:
    """GLM-4.1V and 4.6V."""
    supported.require(config, head_dim=config.hidden_size // config.num_attention_heads)
    return _glm(config, tied, qkv_bias=True)


def _glm_ocr(config: Any, tied: bool) -> DecoderSpec:
    """GLM-4.1V with heads of a width of their own, without biases."""
    supported.require(config, attention_bias=False)  # transformers does not read it
    return _glm(config, tied, qkv_bias=False)


def _glm(config: Any, tied: bool, qkv_bias: bool) -> DecoderSpec:
    """Norms before and behind each part, and a part of a head turns, by pairs of neighbours."""
    rope, turning = rotary_part(config)
    return make_spec(
        config, tied, rope, rotary_dim=turning, rope_sections=sections(config, (8, 12, 12)), rope_adjacent=True,
        qkv_bias=qkv_bias, post_norms=True,
    )  # fmt: skip


def _qwen3_5(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """Qwen 3.5 and 3.6: three layers of gated DeltaNet to one of gated attention, of which a part of a head turns."""
    supported.require(config, attention_bias=False)
    mixers = mixers_of(config, {"full_attention": "attention", "linear_attention": "delta"})
    rope, turning = rotary_part(config)
    delta = GatedDeltaNetSpec(
        config.hidden_size, config.linear_num_key_heads, config.linear_num_value_heads, config.linear_key_head_dim,
        config.linear_value_head_dim, config.linear_conv_kernel_dim, config.rms_norm_eps,
        supported.activation(config.hidden_act),
    )  # fmt: skip
    return make_spec(
        config, tied, rope, rotary_dim=turning, rope_sections=sections(config, (11, 11, 10)), rope_interleaved=True,
        attention_gate=True, qk_norm=True, norm_offset=1.0, mixers=mixers, delta=delta if "delta" in mixers else None,
        **features,
    )  # fmt: skip


def _lfm2(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """LFM2: most layers are short convolutions."""
    mixers = mixers_of(config, {"full_attention": "attention", "conv": "convolution"})
    convolution = ConvolutionSpec(config.hidden_size, config.conv_L_cache, bool(config.conv_bias))
    return make_spec(
        config, tied, norm_eps=config.norm_eps, activation="silu", qk_norm=True, mixers=mixers,
        convolution=convolution if "convolution" in mixers else None, **{"mlp": _lfm2_mlp(config), **features},
    )  # fmt: skip


def _lfm2_mlp(config: Any) -> int:
    """The width of its MLPs, which ``Lfm2MLP`` calculates from the config's."""
    if not getattr(config, "block_auto_adjust_ff_dim", False):
        return int(config.intermediate_size)
    wide = int(config.block_ffn_dim_multiplier * int(2 * config.intermediate_size / 3))
    return config.block_multiple_of * -(-wide // config.block_multiple_of)


def _qwen3_moe(config: Any, tied: bool) -> DecoderSpec:
    """Qwen 3 with experts: a window, if there is one, is of all layers."""
    spec = _normed_heads(config, tied, **one_window(config))
    return dataclasses.replace(spec, **experts.qwen3(config, bool(config.norm_topk_prob)))


def _qwen3_vl_moe(config: Any, tied: bool) -> DecoderSpec:
    return dataclasses.replace(_qwen3_vl(config, tied), **experts.qwen3_vl(config))


def _qwen3_5_moe(config: Any, tied: bool) -> DecoderSpec:
    return _qwen3_5(config, tied, mlp=config.moe_intermediate_size, **experts.qwen3_5(config))


def _lfm2_moe(config: Any, tied: bool) -> DecoderSpec:
    return _lfm2(config, tied, mlp=config.intermediate_size, **experts.lfm2(config))


def _glm4_moe(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """GLM-4.5: a part of each head turns."""
    rope, turning = rotary_part(config)
    return make_spec(
        config, tied, rope, rotary_dim=turning, qkv_bias=bool(config.attention_bias),
        qk_norm=bool(getattr(config, "use_qk_norm", False)), **experts.glm4(config), **features,
    )  # fmt: skip


def _glm4v_moe(config: Any, tied: bool) -> DecoderSpec:
    """GLM-4.5 with positions of three axes, each with a run of the frequencies."""
    supported.require(config, use_qk_norm=False)  # transformers does not read it
    return _glm4_moe(config, tied, rope_sections=sections(config, (8, 12, 12)))


DECODERS = {
    "llama": DecoderKind(_llama, decoder_names.PLAIN),
    "mistral": DecoderKind(_mistral, decoder_names.PLAIN),
    "qwen2": DecoderKind(_qwen2, decoder_names.PLAIN),
    "qwen3": DecoderKind(_qwen3, decoder_names.PLAIN),
    "gemma": DecoderKind(_gemma, decoder_names.PLAIN),
    "gemma2": DecoderKind(_gemma2, decoder_names.POST_NORMS, joins=False),
    "gemma3_text": DecoderKind(_gemma3, decoder_names.POST_NORMS),
    "qwen2_vl_text": DecoderKind(_qwen2_5_vl, decoder_names.PLAIN),
    "gemma4_text": DecoderKind(_gemma4, decoder_names.GEMMA4 + experts.GEMMA4, joins=False),
    "qwen2_5_vl_text": DecoderKind(_qwen2_5_vl, decoder_names.PLAIN),
    "qwen3_vl_text": DecoderKind(_qwen3_vl, decoder_names.PLAIN),
    "qwen3_5_text": DecoderKind(_qwen3_5, decoder_names.QWEN3_5),
    "ernie4_5": DecoderKind(_ernie4_5, decoder_names.PLAIN),
    "paddleocr_vl_text": DecoderKind(_paddleocr, decoder_names.PLAIN),
    "glm4v_text": DecoderKind(_glm4v, decoder_names.GLM4V),
    "glm_ocr_text": DecoderKind(_glm_ocr, decoder_names.GLM4V),
    "lfm2": DecoderKind(_lfm2, decoder_names.LFM2),
    "lfm2_moe": DecoderKind(_lfm2_moe, decoder_names.LFM2 + experts.LFM2),
    "glm4_moe": DecoderKind(_glm4_moe, decoder_names.PLAIN + experts.GLM4),
    "glm4v_moe_text": DecoderKind(_glm4v_moe, decoder_names.PLAIN + experts.GLM4),
    "qwen3_moe": DecoderKind(_qwen3_moe, decoder_names.PLAIN + experts.SEPARATE),
    "qwen3_vl_moe_text": DecoderKind(_qwen3_vl_moe, decoder_names.PLAIN + experts.QWEN3_VL),
    "qwen3_5_moe_text": DecoderKind(_qwen3_5_moe, decoder_names.QWEN3_5 + experts.QWEN3_5),
}
