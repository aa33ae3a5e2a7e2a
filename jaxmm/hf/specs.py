"""A folder's ``config.json`` as our specs: sizes and features are read, nothing is typed in.

``transformers`` reads the file, old spellings included; what a family's code does beyond its config is here, as data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxmm.errors import UserError, nearest
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import ModelSpec
from jaxmm.models.rope import RopeScaling
from jaxmm.models.towers.vit import VisionSpec

# The first of several names is the one that is written.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu",
    "relu": "relu", "silu": "silu", "swish": "silu", "gelu_fast": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
    "gelu_python": "gelu", "gelu_accurate": "gelu_tanh",
}  # fmt: skip


class Decoder(NamedTuple):
    """A decoder: its spec, and the key of its table in ``names.DECODERS``."""

    spec: DecoderSpec
    names: str


class Tower(NamedTuple):
    """A vision tower: its spec, and the key of its table in ``names.TOWERS``."""

    spec: VisionSpec
    names: str


class Family(NamedTuple):
    """A whole model.

    Attributes:
      tower, decoder, connector: the keys of their tables in ``names``.
      prefixes: what stands for "text", "vision", "connector" and "lm_head" in the names of its checkpoints.
    """

    spec: ModelSpec
    tower: str
    decoder: str
    connector: str
    prefixes: dict[str, str]


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise UserError(f"activation '{name}' of the checkpoint is not supported: those are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _refuse(config: Any, **wanted: Any) -> None:
    """Raises UserError for a value of the config that this code does not follow."""
    for key, value in wanted.items():
        found = getattr(config, key, value)
        if found != value:
            raise UserError(f"config.json: {config.model_type} with {key}={found} is not supported: only {value}")


# Decoders


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
    """Which layers see a window, from ``layer_types`` where it is, else from ``sliding_window`` for all."""
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


def _decoder(config: Any, tied: bool, rope: dict[str, Any] | None = None, **features: Any) -> DecoderSpec:
    """``rope``: its parameters, where layers of different kinds have their own."""
    rope = rope or config.rope_parameters
    if not getattr(config, "head_dim", None) and config.hidden_size % config.num_attention_heads:
        raise ValueError(f"hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
    return DecoderSpec(
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        mlp=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        tie_embeddings=tied,
        activation=_activation(getattr(config, "hidden_act", None) or config.hidden_activation),
        rope_theta=rope["rope_theta"],
        rope_scaling=_scaling(rope, config.max_position_embeddings),
        **_windows(config),
        **features,
    )


def _llama(config: Any, tied: bool) -> Decoder:
    bias = bool(getattr(config, "attention_bias", False))
    mlp = bool(getattr(config, "mlp_bias", False))
    return Decoder(_decoder(config, tied, qkv_bias=bias, out_bias=bias, mlp_bias=mlp), "llama")


def _mistral(config: Any, tied: bool) -> Decoder:
    return Decoder(_decoder(config, tied), "llama")


def _qwen2(config: Any, tied: bool) -> Decoder:
    # Qwen 2's attention ignores head_dim where it is not hidden_size / heads only in the config's absence.
    return Decoder(_decoder(config, tied, qkv_bias=True), "llama")


def _qwen3(config: Any, tied: bool) -> Decoder:
    bias = bool(config.attention_bias)
    return Decoder(_decoder(config, tied, qkv_bias=bias, out_bias=bias, qk_norm=True), "llama")


def _sections(config: Any, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(config.rope_parameters.get("mrope_section") or default)


def _qwen2_5_vl_text(config: Any, tied: bool) -> Decoder:
    _refuse(config, head_dim=config.hidden_size // config.num_attention_heads)
    return Decoder(_decoder(config, tied, qkv_bias=True, rope_sections=_sections(config, (16, 24, 24))), "llama")


def _qwen3_vl_text(config: Any, tied: bool) -> Decoder:
    bias = bool(config.attention_bias)
    found = _decoder(
        config, tied, qkv_bias=bias, out_bias=bias, qk_norm=True,
        rope_sections=_sections(config, (24, 20, 20)), rope_interleaved=True,
    )  # fmt: skip
    return Decoder(found, "llama")


def _gemma3_text(config: Any, tied: bool) -> Decoder:
    _refuse(config, use_bidirectional_attention=False)
    # The file may have attn_logit_softcapping and final_logit_softcapping: transformers applies neither here.
    rope = config.rope_parameters
    spec = _decoder(
        config, tied, rope["full_attention"],
        local_rope_theta=rope["sliding_attention"]["rope_theta"],
        qkv_bias=bool(config.attention_bias), out_bias=bool(config.attention_bias),
        qk_norm=True, post_norms=True, norm_offset=1.0,
        embed_scale=config.hidden_size**0.5, attention_scale=config.query_pre_attn_scalar**-0.5,
        bidirectional_blocks=True,
    )  # fmt: skip
    return Decoder(spec, "gemma")


DECODERS: dict[str, Callable[[Any, bool], Decoder]] = {
    "llama": _llama, "mistral": _mistral, "qwen2": _qwen2, "qwen3": _qwen3, "gemma3_text": _gemma3_text,
    "qwen2_5_vl_text": _qwen2_5_vl_text, "qwen3_vl_text": _qwen3_vl_text,
}  # fmt: skip


# Towers


def _square(value: Any, what: str) -> int:
    """A side given as a number, or as two equal ones."""
    sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if sides[0] != sides[1]:
        raise UserError(f"config.json: {what} of {sides[0]} x {sides[1]} is not supported: only squares are")
    return int(sides[0])


def _root(value: int, what: str) -> int:
    """The side of a square of so many."""
    side = round(value**0.5)
    if side**2 != value:
        raise UserError(f"config.json: {what}={value} is not supported: it is no square")
    return side


def _vit(config: Any, **features: Any) -> VisionSpec:
    _refuse(config, num_channels=3, in_channels=3)
    return VisionSpec(
        width=config.hidden_size,
        layers=getattr(config, "num_hidden_layers", None) or config.depth,
        heads=getattr(config, "num_attention_heads", None) or config.num_heads,
        mlp=config.intermediate_size,
        patch_size=_square(config.patch_size, "patch_size"),
        norm_eps=getattr(config, "layer_norm_eps", 1e-6),
        activation=_activation(config.hidden_act),
        **features,
    )


def _siglip2(config: Any) -> Tower:
    return Tower(_vit(config, positions=_root(config.num_patches, "num_patches")), "siglip2")


def _siglip(config: Any) -> Tower:
    side = _square(config.image_size, "image_size") // _square(config.patch_size, "patch_size")
    return Tower(_vit(config, positions=side), "siglip")


def _clip(config: Any) -> Tower:
    side = _square(config.image_size, "image_size") // _square(config.patch_size, "patch_size")
    spec = _vit(config, positions=side, class_tokens=1, patch_bias=False, pre_norm=True, final_norm=False)
    return Tower(spec, "clip")


def _intern(config: Any) -> Tower:
    if not config.use_mean_pooling:  # the norm after the layers is LayerNorm, whatever the layers have
        _refuse(config, norm_type="layer_norm")
    side = _square(config.image_size, "image_size") // _square(config.patch_size, "patch_size")
    spec = _vit(
        config, positions=side if config.use_absolute_position_embeddings else 0, class_tokens=1,
        norm="rms" if config.norm_type == "rms_norm" else "layer", qkv_bias=bool(config.attention_bias),
        # Its initial value, which no checkpoint keeps; 0 would be a tower without it.
        qk_norm=bool(config.use_qk_norm), layer_scale=float(config.layer_scale_init_value) or 1e-6,
        final_norm=not config.use_mean_pooling,
    )  # fmt: skip
    return Tower(spec, "intern")


def _qwen2_5_vision(config: Any) -> Tower:
    spec = _vit(
        config, positions=0, norm="rms", gated=True, patch_bias=False, final_norm=False,
        frames=config.temporal_patch_size, rope_theta=10000.0,
        window=config.window_size // config.spatial_merge_size // config.patch_size * config.spatial_merge_size,
        global_layers=tuple(config.fullatt_block_indexes),
    )  # fmt: skip
    return Tower(spec, "qwen2.5")


def _qwen3_vision(config: Any) -> Tower:
    taps = list(config.deepstack_visual_indexes)
    if taps != sorted(set(taps) & set(range(config.depth))):
        raise UserError(f"config.json: deepstack_visual_indexes {taps} are not some layers of {config.depth}, in order")
    spec = _vit(
        config, positions=_root(config.num_position_embeddings, "num_position_embeddings"), resize="corners",
        frames=config.temporal_patch_size, rope_theta=10000.0, taps=tuple(taps), final_norm=False,
    )  # fmt: skip
    return Tower(spec, "qwen3")


TOWERS: dict[str, Callable[[Any], Tower]] = {
    "siglip2_vision_model": _siglip2, "siglip_vision_model": _siglip, "clip_vision_model": _clip,
    "internvl_vision": _intern, "qwen2_5_vl_vision": _qwen2_5_vision, "qwen2_5_vl": _qwen2_5_vision,
    "qwen3_vl_vision": _qwen3_vision, "qwen3_vl": _qwen3_vision,
}  # fmt: skip


TWO_TOWERS = ("siglip2", "siglip", "clip")  # one of images, one of text

# Whole models

NEW = {"text": "model.language_model.", "vision": "model.vision_tower.", "lm_head": "lm_head.",
        "connector": "model.multi_modal_projector."}  # fmt: skip
OLD = {"text": "language_model.model.", "vision": "vision_tower.", "lm_head": "language_model.lm_head.",
        "connector": "multi_modal_projector."}  # fmt: skip


def decoder_of(config: Any, tied: bool) -> Decoder:
    """Raises UserError for an architecture that is not there, or of heads that do not go together."""
    make = _known(DECODERS, config.model_type, "decoder")
    try:
        return make(config, tied)
    except ValueError as error:  # sizes that do not go together
        raise UserError(f"config.json: {error}") from error


def tower_of(config: Any) -> Tower:
    """Raises UserError for an architecture that is not there, or of sizes that do not go together."""
    make = _known(TOWERS, config.model_type, "vision tower")
    try:
        return make(config)
    except ValueError as error:  # sizes that do not go together
        raise UserError(f"config.json: {error}") from error


def plain_decoder_of(config: Any, tied: bool) -> Decoder:
    """A decoder in a family that gives it one position an axis, and images that are seen as text is."""
    found = decoder_of(config, tied)
    return found._replace(spec=dataclasses.replace(found.spec, rope_sections=(), bidirectional_blocks=False))


def _states(chosen: Any, layers: int) -> list[int]:
    """``vision_feature_layer`` as numbers of hidden states, of which 0 is what goes into the layers."""
    numbers = [i + layers + 1 if i < 0 else i for i in (chosen if isinstance(chosen, (list, tuple)) else [chosen])]
    if not numbers or not all(1 <= i <= layers for i in numbers):
        raise UserError(f"config.json: vision_feature_layer {chosen} is no layer of a tower of {layers}")
    return numbers


def _known(table: dict[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise UserError(f"{what} '{name}' is not supported: those are {', '.join(table)}{nearest(name, table)}")
    return table[name]


def _lfm2_vl(config: Any) -> Family:
    tower, decoder = tower_of(config.vision_config), plain_decoder_of(config.text_config, config.tie_word_embeddings)
    connector = ConnectorSpec(
        merge=config.downsample_factor, mlp=config.projector_hidden_size, bias=config.projector_bias,
        norm="layer" if config.projector_use_layernorm else "", activation=_activation(config.projector_hidden_act),
    )  # fmt: skip
    return Family(ModelSpec(tower.spec, connector, decoder.spec), tower.names, decoder.names, "mlp", NEW)


def _llava(config: Any) -> Family:
    tower, decoder = tower_of(config.vision_config), plain_decoder_of(config.text_config, config.tie_word_embeddings)
    has_class = bool(tower.spec.class_tokens)
    if (config.vision_feature_select_strategy == "default") != has_class:
        raise UserError(
            f"config.json: vision_feature_select_strategy '{config.vision_feature_select_strategy}' with a tower "
            f"{'with' if has_class else 'without'} a class token is not supported"
        )
    states = _states(config.vision_feature_layer, tower.spec.layers)
    features = tuple(i - 1 for i in states) if len(states) > 1 else ()
    vision = dataclasses.replace(tower.spec, layers=max(states), final_norm=False, features=features)
    connector = ConnectorSpec(
        merge=1, mlp=decoder.spec.width, bias=config.multimodal_projector_bias, norm="",
        activation=_activation(config.projector_hidden_act),
    )  # fmt: skip
    return Family(ModelSpec(vision, connector, decoder.spec), tower.names, decoder.names, "mlp", OLD)


def _qwen2_5_vl(config: Any) -> Family:
    tower = tower_of(config.vision_config)
    decoder = decoder_of(config.text_config, config.tie_word_embeddings)
    merge = config.vision_config.spatial_merge_size
    connector = ConnectorSpec(merge=merge, mlp=tower.spec.width * merge**2, norm="rms", norm_first=True, norm_eps=1e-6)
    prefixes = {"text": "model.", "vision": "visual.", "lm_head": "lm_head."}
    return Family(ModelSpec(tower.spec, connector, decoder.spec), tower.names, decoder.names, "in tower", prefixes)


def _qwen3_vl(config: Any) -> Family:
    tower = tower_of(config.vision_config)
    decoder = decoder_of(config.text_config, config.tie_word_embeddings)
    merge = config.vision_config.spatial_merge_size
    connector = ConnectorSpec(
        merge=merge, mlp=tower.spec.width * merge**2, norm_first=True, norm_eps=1e-6, deep=len(tower.spec.taps)
    )
    prefixes = {"text": "model.language_model.", "vision": "model.visual.", "lm_head": "lm_head."}
    return Family(ModelSpec(tower.spec, connector, decoder.spec), tower.names, decoder.names, "in tower", prefixes)


def _gemma3(config: Any) -> Family:
    tower = tower_of(config.vision_config)
    decoder = decoder_of(config.text_config, config.tie_word_embeddings)
    side = _root(config.mm_tokens_per_image, "mm_tokens_per_image")
    if tower.spec.positions % side:
        raise UserError(f"config.json: {side} soft tokens along {tower.spec.positions} patches are not supported")
    connector = ConnectorSpec(
        merge=tower.spec.positions // side, mlp=0, pool="mean", norm="rms_offset", norm_eps=tower.spec.norm_eps,
        bias=False,
    )  # fmt: skip
    return Family(ModelSpec(tower.spec, connector, decoder.spec), tower.names, decoder.names, "gemma", OLD)


def _internvl(config: Any) -> Family:
    _refuse(config, vision_feature_select_strategy="default")
    tower = tower_of(config.vision_config)
    decoder = plain_decoder_of(config.text_config, config.tie_word_embeddings)
    chosen = config.vision_feature_layer
    if chosen != -1:
        states = _states(chosen, tower.spec.layers)
        if len(states) > 1:
            raise UserError(f"config.json: internvl with vision_feature_layer={chosen} is not supported: only one is")
        vision = dataclasses.replace(tower.spec, layers=states[0], final_norm=False)
        tower = tower._replace(spec=vision)
    merge = round(1 / config.downsample_ratio)
    if merge * config.downsample_ratio != 1:
        raise UserError(f"config.json: downsample_ratio={config.downsample_ratio} is not supported: only 1 / n is")
    connector = ConnectorSpec(
        merge=merge, mlp=decoder.spec.width,
        activation=_activation(config.projector_hidden_act),
    )  # fmt: skip
    return Family(ModelSpec(tower.spec, connector, decoder.spec), tower.names, decoder.names, "mlp", OLD)


def lfm2_vl_config(
    vision: dict[str, Any], text: dict[str, Any], connector: ConnectorSpec, tied: bool
) -> dict[str, Any]:
    """The ``config.json`` of a tower and a decoder in LFM2-VL's layout, from their own configs."""
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "model_type": "lfm2_vl",
        "vision_config": {**vision, "vision_use_head": False},
        "text_config": text,
        "downsample_factor": connector.merge,
        "projector_hidden_size": connector.mlp,
        "projector_hidden_act": activations[connector.activation],
        "projector_bias": connector.bias,
        "projector_use_layernorm": bool(connector.norm),
        "tie_word_embeddings": tied,
    }


def configs_of(spec: ModelSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """(vision_config, text_config) of a model of our own: a SigLIP 2 tower and a Llama, or normed Qwen 3, decoder.

    Raises:
      UserError: if it has features that these do not have.
    """
    vision, decoder = spec.vision, spec.decoder
    plain_vision = VisionSpec(
        **{name: getattr(vision, name) for name in ("width", "layers", "heads", "mlp", "patch_size", "positions")},
        norm_eps=vision.norm_eps, mean=vision.mean, std=vision.std,
    )  # fmt: skip
    sizes: tuple[str, ...] = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp")
    sizes += ("rope_theta", "norm_eps", "qk_norm")
    plain_decoder = DecoderSpec(
        **{name: getattr(decoder, name) for name in sizes}, tie_embeddings=decoder.tie_embeddings
    )  # fmt: skip
    if plain_vision != vision or plain_decoder != decoder:
        raise UserError("this model has features that SigLIP 2 with Llama does not have: start it from a folder")
    return (
        {
            "model_type": "siglip2_vision_model",
            "hidden_size": vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.mlp,
            "patch_size": vision.patch_size,
            "num_patches": vision.positions**2,
            "layer_norm_eps": vision.norm_eps,
            "hidden_act": "gelu_pytorch_tanh",
        },
        {
            "model_type": "qwen3" if decoder.qk_norm else "llama",
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.width,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "head_dim": decoder.head_dim,
            "intermediate_size": decoder.mlp,
            "rope_theta": decoder.rope_theta,
            "rms_norm_eps": decoder.norm_eps,
            "hidden_act": "silu",
            "tie_word_embeddings": decoder.tie_embeddings,
        },
    )


FAMILIES: dict[str, Callable[[Any], Family]] = {
    "lfm2_vl": _lfm2_vl, "llava": _llava, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl, "gemma3": _gemma3,
    "internvl": _internvl,
}  # fmt: skip


def family_of(config: Any) -> Family:
    """Raises UserError for an architecture that is not there, with those that are."""
    kind = config.model_type
    if kind not in FAMILIES and kind in (*DECODERS, *TOWERS, *TWO_TOWERS):
        raise UserError(f"'{kind}' is no whole model but a part of one: name both parts, as vision:DIR,decoder:DIR")
    return _known(FAMILIES, config.model_type, "model")(config)
