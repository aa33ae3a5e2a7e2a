"""The decoders of the families: from a ``text_config`` to a spec, and the names of their tensors.

``transformers`` reads the config, old spellings included. What its code does beyond the config is here, as data.
``DECODERS`` is the table, by the config's ``model_type``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxmm.errors import UserError
from jaxmm.hf import experts, supported
from jaxmm.hf.names import Rule, linear, norm
from jaxmm.models.decoder_spec import COMPONENTS, AttentionSizes, DecoderSpec
from jaxmm.models.recurrent import ConvolutionSpec, GatedDeltaNetSpec
from jaxmm.models.rope import RopeScaling


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
    kind = supported.entry(DECODERS, config.model_type, "decoder")
    try:
        spec = kind.spec(config, tied)
    except ValueError as error:  # sizes that do not match
        raise UserError(f"config.json: {error}") from error
    return Decoder(spec, rules_of(kind.rules, spec))


def rules_of(rules: list[Rule], spec: DecoderSpec) -> list[Rule]:
    """The names of the tensors of a decoder, each with the layers that have it, where not all do; none that no layer
    has."""

    def of_layers(rule: Rule) -> Iterator[Rule]:
        path = rule.paths[0].removeprefix(f"{BLOCKS}.").partition(".")[0]
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


# What their configs share


def _scaling(rope: dict[str, Any], max_positions: int) -> RopeScaling:
    kind = rope.get("rope_type", "default")
    if kind == "mrope":
        kind = "default"
    trained = rope.get("original_max_position_embeddings") or max_positions
    factor = rope.get("factor")
    if factor is None:
        factor = max_positions / trained if kind in ("yarn", "longrope") else 1.0
    if kind not in ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"):
        raise UserError(f"config.json: rotary embedding of rope_type '{kind}' is not supported")
    if kind != "proportional" and rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"config.json: partial_rotary_factor with rope_type '{kind}' is not supported")
    return RopeScaling(
        kind=kind,
        factor=float(factor),
        trained_length=int(max_positions if kind == "dynamic" else trained),
        fraction=float(rope.get("partial_rotary_factor", 1.0)),
        attention_factor=float(rope.get("attention_factor") or 0.0),
        low_frequency_factor=float(rope.get("low_freq_factor", 1.0)),
        high_frequency_factor=float(rope.get("high_freq_factor", 4.0)),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        truncate=bool(rope.get("truncate", True)),
        mscale=float(rope.get("mscale") or 0.0),
        mscale_all_dim=float(rope.get("mscale_all_dim") or 0.0),
        short_factors=tuple(rope.get("short_factor", ())),
        long_factors=tuple(rope.get("long_factor", ())),
    )


def _windows(config: Any) -> dict[str, Any]:
    """Which layers use a window: by ``layer_types`` if the config has it, else ``sliding_window`` for all."""
    window = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {"window": window}
    known = {"full_attention", "sliding_attention"}
    if set(kinds) - known:
        raise UserError(f"config.json: layers of type '{(set(kinds) - known).pop()}' are not supported")
    if "sliding_attention" not in kinds or not window:
        return {}
    return {"window": window, "global_layers": tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")}


def _spec(config: Any, tied: bool, rope: dict[str, Any] | None = None, **features: Any) -> DecoderSpec:
    """``rope``: the rotary parameters, if layers of different kinds have their own."""
    rope = rope or config.rope_parameters
    if not getattr(config, "head_dim", None) and config.hidden_size % config.num_attention_heads:
        raise ValueError(f"hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
    own = {
        "mlp": lambda: config.intermediate_size,
        "norm_eps": lambda: config.rms_norm_eps,
        "activation": lambda: supported.activation(getattr(config, "hidden_act", None) or config.hidden_activation),
    }
    features = {key: read() for key, read in own.items() if key not in features} | features
    if "mixers" not in features:
        features |= _windows(config)
    return DecoderSpec(
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        tie_embeddings=tied,
        rope_theta=rope["rope_theta"],
        rope_scaling=_scaling(rope, config.max_position_embeddings),
        **features,
    )


def _sections(config: Any, default: tuple[int, ...]) -> tuple[int, ...]:
    """How many rotary frequencies each axis of positions has."""
    return tuple(config.rope_parameters.get("mrope_section") or default)


LAYER, BLOCKS = "text.layers.{i}", "decoder.blocks"


def _rules(post_norms: bool) -> list[Rule]:
    norms = {"input_layernorm": "norm_attention", "post_attention_layernorm": "norm_mlp"}
    if post_norms:
        norms = {
            "input_layernorm": "norm_attention",
            "post_attention_layernorm": "norm_attention_out",
            "pre_feedforward_layernorm": "norm_mlp",
            "post_feedforward_layernorm": "norm_mlp_out",
        }
    maps = {
        "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value", "self_attn.o_proj": "attention.out",
        "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down",
    }  # fmt: skip
    norms |= {"self_attn.q_norm": "attention.query_norm", "self_attn.k_norm": "attention.key_norm"}
    return _named("text.norm", norms, maps)


def _named(last_norm: str, norms: dict[str, str], maps: dict[str, str]) -> list[Rule]:
    """Rules from the names of a layer's norms and linear maps to paths inside our blocks."""
    return [
        Rule("text.embed_tokens.weight", ("decoder.embedding",)),
        Rule("lm_head.weight", ("decoder.head",)),
        *norm(last_norm, "decoder.norm"),
        *(rule for name, path in norms.items() for rule in norm(f"{LAYER}.{name}", f"{BLOCKS}.{path}")),
        *(rule for name, path in maps.items() for rule in linear(f"{LAYER}.{name}", f"{BLOCKS}.{path}")),
    ]


def _qwen3_5_rules() -> list[Rule]:
    """Qwen 3's names, but for queries, which lie with their gates, and those of DeltaNet."""
    delta, theirs = f"{BLOCKS}.delta", f"{LAYER}.linear_attn"
    maps = {"in_proj_z": "gate", "in_proj_a": "decay", "in_proj_b": "rate", "out_proj": "out"}
    queries = tuple(f"{BLOCKS}.attention.{part}.kernel" for part in ("query", "gate"))
    parts = ("query", "key", "value")
    return [
        *(rule for rule in PLAIN if rule.paths[0] != queries[0]),
        Rule(f"{LAYER}.self_attn.q_proj.weight", queries, "transpose by heads"),
        *(rule for name, path in maps.items() for rule in linear(f"{theirs}.{name}", f"{delta}.{path}")),
        *norm(f"{theirs}.norm", f"{delta}.norm"),
        Rule(f"{theirs}.in_proj_qkv.weight", tuple(f"{delta}.{part}.kernel" for part in parts), "transpose"),
        Rule(f"{theirs}.conv1d.weight", tuple(f"{delta}.{part}_kernel" for part in parts), "depthwise"),
        Rule(f"{theirs}.A_log", (f"{delta}.a_log",)),
        Rule(f"{theirs}.dt_bias", (f"{delta}.dt_bias",)),
    ]


def _glm4v_rules() -> list[Rule]:
    """Llama's names, but for the norms, and for an MLP's gate, which lies with the map beside it."""
    norms = {
        "input_layernorm": "norm_attention", "post_self_attn_layernorm": "norm_attention_out",
        "post_attention_layernorm": "norm_mlp", "post_mlp_layernorm": "norm_mlp_out",
    }  # fmt: skip
    maps = {
        "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value", "self_attn.o_proj": "attention.out", "mlp.down_proj": "mlp.down",
    }  # fmt: skip
    both = tuple(f"{BLOCKS}.mlp.{part}.kernel" for part in ("gate", "up"))
    return [*_named("text.norm", norms, maps), Rule(f"{LAYER}.mlp.gate_up_proj.weight", both, "transpose")]


def _lfm2_rules() -> list[Rule]:
    norms = {
        "operator_norm": "norm_attention", "ffn_norm": "norm_mlp",
        "self_attn.q_layernorm": "attention.query_norm", "self_attn.k_layernorm": "attention.key_norm",
    }  # fmt: skip
    maps = {
        "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value", "self_attn.out_proj": "attention.out",
        "conv.out_proj": "convolution.out",
        "feed_forward.w1": "mlp.gate", "feed_forward.w3": "mlp.up", "feed_forward.w2": "mlp.down",
    }  # fmt: skip
    parts = [f"{BLOCKS}.convolution.{part}" for part in ("gate_in", "gate_out", "into")]
    return [
        *_named("text.embedding_norm", norms, maps),
        Rule(f"{LAYER}.conv.in_proj.weight", tuple(f"{part}.kernel" for part in parts), "transpose"),
        Rule(f"{LAYER}.conv.in_proj.bias", tuple(f"{part}.bias" for part in parts), "flat"),
        Rule(f"{LAYER}.conv.conv.weight", (f"{BLOCKS}.convolution.kernel",), "depthwise"),
        Rule(f"{LAYER}.conv.conv.bias", (f"{BLOCKS}.convolution.bias",)),
    ]


def _gemma4_rules() -> list[Rule]:
    """Gemma 3's names, which those of all kinds of attention and MLP are, and those of what Gemma 4 has besides."""
    kinds = {
        "attention": ("global_attention", "handed_attention", "handed_global_attention"), "mlp": ("handed_mlp",)
    }  # fmt: skip
    again = [
        rule._replace(paths=(rule.paths[0].replace(f"{BLOCKS}.{kind}.", f"{BLOCKS}.{other}."),))
        for kind, others in kinds.items()
        for other in others
        for rule in POST_NORMS
        if rule.paths[0].startswith(f"{BLOCKS}.{kind}.")
    ]
    return [
        *POST_NORMS,
        *again,
        Rule("text.embed_tokens_per_layer.weight", ("decoder.layer_inputs.embedding",)),
        *linear("text.per_layer_model_projection", "decoder.layer_inputs.projection"),
        *norm("text.per_layer_projection_norm", "decoder.layer_inputs.norm"),
        *linear(f"{LAYER}.per_layer_input_gate", f"{BLOCKS}.layer_input.gate"),
        *linear(f"{LAYER}.per_layer_projection", f"{BLOCKS}.layer_input.out"),
        *norm(f"{LAYER}.post_per_layer_input_norm", f"{BLOCKS}.layer_input.norm"),
        Rule(f"{LAYER}.layer_scalar", (f"{BLOCKS}.scale.factor",)),
    ]


PLAIN, POST_NORMS = _rules(post_norms=False), _rules(post_norms=True)


# One by one


def _llama(config: Any, tied: bool) -> DecoderSpec:
    """Llama 2 and 3."""
    bias = bool(getattr(config, "attention_bias", False))
    return _spec(config, tied, qkv_bias=bias, out_bias=bias, mlp_bias=bool(getattr(config, "mlp_bias", False)))


def _mistral(config: Any, tied: bool) -> DecoderSpec:
    return _spec(config, tied)


def _qwen2(config: Any, tied: bool) -> DecoderSpec:
    """Qwen 2 and 2.5."""
    return _spec(config, tied, qkv_bias=True)


def _qwen3(config: Any, tied: bool) -> DecoderSpec:
    bias = bool(config.attention_bias)
    return _spec(config, tied, qkv_bias=bias, out_bias=bias, qk_norm=True)


def _gemma(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """Gemma: norms' scales are stored around 0, and embedded tokens are multiplied."""
    bias = bool(config.attention_bias)
    return _spec(
        config, tied, qkv_bias=bias, out_bias=bias, norm_offset=1.0, embed_scale=config.hidden_size**0.5, **features
    )  # fmt: skip


def _gemma2(config: Any, tied: bool) -> DecoderSpec:
    return _gemma(
        config, tied, activation=supported.activation(config.hidden_activation), post_norms=True,
        attention_scale=config.query_pre_attn_scalar**-0.5,
        attention_softcap=float(config.attn_logit_softcapping or 0.0),
        logit_softcap=float(config.final_logit_softcapping or 0.0),
    )  # fmt: skip


def _gemma3(config: Any, tied: bool) -> DecoderSpec:
    supported.require(config, use_bidirectional_attention=False)
    # The file may have attn_logit_softcapping and final_logit_softcapping: transformers applies neither here.
    rope = config.rope_parameters
    return _spec(
        config, tied, rope["full_attention"],
        local_rope_theta=rope["sliding_attention"]["rope_theta"],
        qkv_bias=bool(config.attention_bias), out_bias=bool(config.attention_bias),
        qk_norm=True, post_norms=True, norm_offset=1.0,
        embed_scale=config.hidden_size**0.5, attention_scale=config.query_pre_attn_scalar**-0.5,
        bidirectional_blocks=True,
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
    mixers = _mixers(config, {"sliding_attention": "attention", "full_attention": "global_attention"})
    configs = config.per_layer_config
    of_layers = [AttentionSizes(own.num_key_value_heads, own.head_dim) for own in configs]
    wide, narrow = (
        [n for n, mixer in enumerate(mixers) if mixer == kind] for kind in ("global_attention", "attention")
    )
    if any(len({of_layers[n] for n in numbers}) > 1 for numbers in (wide, narrow)):
        raise UserError("config.json: per_layer_config with layers of one type but different sizes is not supported")
    sizes = of_layers[wide[0]]._replace(shared_kv=bool(config.attention_k_eq_v)) if wide else None
    rope = config.rope_parameters
    return _spec(
        configs[(narrow or wide)[0]], tied, rope["full_attention"], mixers=mixers, global_attention=sizes,
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
    return _spec(config, tied, qkv_bias=True, rope_sections=_sections(config, (16, 24, 24)))


def _qwen3_vl(config: Any, tied: bool) -> DecoderSpec:
    """Qwen 3 with positions of three axes, which take turns at the frequencies."""
    bias = bool(config.attention_bias)
    return _spec(
        config, tied, qkv_bias=bias, out_bias=bias, qk_norm=True,
        rope_sections=_sections(config, (24, 20, 20)), rope_interleaved=True,
    )  # fmt: skip


def _ernie4_5(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """ERNIE 4.5: Llama with one switch of all biases, whose rotary positions turn pairs of neighbours."""
    bias = bool(config.use_bias)
    return _spec(
        config, tied, qkv_bias=bias, out_bias=bias, mlp_bias=bias, **{"rope_adjacent": True, **features},
    )  # fmt: skip


def _paddleocr(config: Any, tied: bool) -> DecoderSpec:
    """ERNIE 4.5 with positions of three axes, each with a run of the frequencies; pairs are half a head apart."""
    return _ernie4_5(config, tied, rope_sections=_sections(config, (16, 24, 24)), rope_adjacent=False)


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
    rope = dict(config.rope_parameters)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turning = int(head_dim * rope.pop("partial_rotary_factor", 1.0))
    return _spec(
        config, tied, rope, rotary_dim=turning, rope_sections=_sections(config, (8, 12, 12)), rope_adjacent=True,
        qkv_bias=qkv_bias, post_norms=True,
    )  # fmt: skip


def _mixers(config: Any, known: dict[str, str]) -> tuple[str, ...]:
    """What mixes the positions of each layer; ``known``: by the config's names of them."""
    if unknown := set(config.layer_types) - set(known):
        raise UserError(f"config.json: layers of type '{unknown.pop()}' are not supported: {', '.join(known)} are")
    return tuple(known[kind] for kind in config.layer_types)


def _qwen3_5(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """Qwen 3.5 and 3.6: three layers of gated DeltaNet to one of gated attention, of which a part of a head turns."""
    supported.require(config, attention_bias=False)
    mixers = _mixers(config, {"full_attention": "attention", "linear_attention": "delta"})
    rope = dict(config.rope_parameters)
    turning = int(config.head_dim * rope.pop("partial_rotary_factor", 1.0))
    delta = GatedDeltaNetSpec(
        config.hidden_size, config.linear_num_key_heads, config.linear_num_value_heads, config.linear_key_head_dim,
        config.linear_value_head_dim, config.linear_conv_kernel_dim, config.rms_norm_eps,
        supported.activation(config.hidden_act),
    )  # fmt: skip
    return _spec(
        config, tied, rope, rotary_dim=turning, rope_sections=_sections(config, (11, 11, 10)), rope_interleaved=True,
        attention_gate=True, qk_norm=True, norm_offset=1.0, mixers=mixers, delta=delta if "delta" in mixers else None,
        **features,
    )  # fmt: skip


def _lfm2(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """LFM2: most layers are short convolutions."""
    mixers = _mixers(config, {"full_attention": "attention", "conv": "convolution"})
    convolution = ConvolutionSpec(config.hidden_size, config.conv_L_cache, bool(config.conv_bias))
    return _spec(
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
    return dataclasses.replace(_qwen3(config, tied), **experts.qwen3(config, bool(config.norm_topk_prob)))


def _qwen3_vl_moe(config: Any, tied: bool) -> DecoderSpec:
    return dataclasses.replace(_qwen3_vl(config, tied), **experts.qwen3_vl(config))


def _qwen3_5_moe(config: Any, tied: bool) -> DecoderSpec:
    return _qwen3_5(config, tied, mlp=config.moe_intermediate_size, **experts.qwen3_5(config))


def _lfm2_moe(config: Any, tied: bool) -> DecoderSpec:
    return _lfm2(config, tied, mlp=config.intermediate_size, **experts.lfm2(config))


def _glm4_moe(config: Any, tied: bool, **features: Any) -> DecoderSpec:
    """GLM-4.5: a part of each head turns."""
    rope = dict(config.rope_parameters)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turning = int(head_dim * rope.pop("partial_rotary_factor", 1.0))
    return _spec(
        config, tied, rope, rotary_dim=turning, qkv_bias=bool(config.attention_bias),
        qk_norm=bool(getattr(config, "use_qk_norm", False)), **experts.glm4(config), **features,
    )  # fmt: skip


def _glm4v_moe(config: Any, tied: bool) -> DecoderSpec:
    """GLM-4.5 with positions of three axes, each with a run of the frequencies."""
    supported.require(config, use_qk_norm=False)  # transformers does not read it
    return _glm4_moe(config, tied, rope_sections=_sections(config, (8, 12, 12)))


DECODERS = {
    "llama": DecoderKind(_llama, PLAIN),
    "mistral": DecoderKind(_mistral, PLAIN),
    "qwen2": DecoderKind(_qwen2, PLAIN),
    "qwen3": DecoderKind(_qwen3, PLAIN),
    "gemma": DecoderKind(_gemma, PLAIN),
    "gemma2": DecoderKind(_gemma2, POST_NORMS, joins=False),
    "gemma3_text": DecoderKind(_gemma3, POST_NORMS),
    "qwen2_vl_text": DecoderKind(_qwen2_5_vl, PLAIN),
    "gemma4_text": DecoderKind(_gemma4, _gemma4_rules() + experts.GEMMA4, joins=False),
    "qwen2_5_vl_text": DecoderKind(_qwen2_5_vl, PLAIN),
    "qwen3_vl_text": DecoderKind(_qwen3_vl, PLAIN),
    "qwen3_5_text": DecoderKind(_qwen3_5, _qwen3_5_rules()),
    "ernie4_5": DecoderKind(_ernie4_5, PLAIN),
    "paddleocr_vl_text": DecoderKind(_paddleocr, PLAIN),
    "glm4v_text": DecoderKind(_glm4v, _glm4v_rules()),
    "glm_ocr_text": DecoderKind(_glm_ocr, _glm4v_rules()),
    "lfm2": DecoderKind(_lfm2, _lfm2_rules()),
    "lfm2_moe": DecoderKind(_lfm2_moe, _lfm2_rules() + experts.LFM2),
    "glm4_moe": DecoderKind(_glm4_moe, PLAIN + experts.GLM4),
    "glm4v_moe_text": DecoderKind(_glm4v_moe, PLAIN + experts.GLM4),
    "qwen3_moe": DecoderKind(_qwen3_moe, PLAIN + experts.SEPARATE),
    "qwen3_vl_moe_text": DecoderKind(_qwen3_vl_moe, PLAIN + experts.QWEN3_VL),
    "qwen3_5_moe_text": DecoderKind(_qwen3_5_moe, _qwen3_5_rules() + experts.QWEN3_5),
}
