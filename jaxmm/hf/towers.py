"""The vision towers of the families: from a ``vision_config`` to a spec, and the names of their tensors.

``TOWERS`` is the table, by the config's ``model_type``. It also says what else differs between towers: which pictures
they take, and how the image processor of a tower's own folder works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmm.errors import UserError
from jaxmm.hf import supported
from jaxmm.hf.names import Rule, linear, norm, qkv
from jaxmm.hf.supported import square_root, square_side
from jaxmm.models.towers.vit import VisionSpec

QWEN_EPS = 1e-6  # of the norms of Qwen's towers: their code's, whatever a config says
ANY_SHAPE, ONE_SIZE = "any shape", "one size"  # the pictures that a joinable tower takes


class Tower(NamedTuple):
    """A vision tower's sizes and features, and the names of its tensors."""

    spec: VisionSpec
    rules: list[Rule]


class TowerKind(NamedTuple):
    """An entry of the table.

    Attributes:
      spec: makes the spec from a config.
      rules: the names of its tensors.
      pictures: ANY_SHAPE or ONE_SIZE for a tower that can be joined with any decoder; "" for one that only runs in its
        own family.
      image_processor: the default for a folder with only such a tower, a key of ``processors.DEFAULTS``.
      headless: the values of its config that say that the pooling head is left out.
    """

    spec: Callable[[Any], VisionSpec]
    rules: list[Rule]
    pictures: str = ""
    image_processor: str = ""
    headless: Mapping[str, Any] = {}


def tower_of(config: Any) -> Tower:
    """Returns the tower of a config. Raises UserError for an unknown architecture, or sizes that do not match."""
    kind = supported.entry(TOWERS, supported.kind_of(config), "vision tower")
    try:
        return Tower(kind.spec(config), kind.rules)
    except ValueError as error:  # sizes that do not match
        raise UserError(f"config.json: {error}") from error


def hidden_states(chosen: Any, layers: int) -> list[int]:
    """``vision_feature_layer`` as indices of hidden states, from 1; 0 is the input of the first layer."""
    numbers = [i + layers + 1 if i < 0 else i for i in (chosen if isinstance(chosen, (list, tuple)) else [chosen])]
    if not numbers or not all(1 <= i <= layers for i in numbers):
        raise UserError(f"config.json: vision_feature_layer {chosen} is no layer of a tower of {layers}")
    return numbers


# Configs


def _vit(config: Any, width: int = 0, mlp: int = 0, **features: Any) -> VisionSpec:
    """``width``, ``mlp``: where they are not ``hidden_size`` and ``intermediate_size`` of the config."""
    supported.require(config, num_channels=3, in_channels=3)
    if "norm_eps" not in features:
        features["norm_eps"] = config.layer_norm_eps
    if "activation" not in features:
        features["activation"] = supported.activation(config.hidden_act)
    return VisionSpec(
        width=width or config.hidden_size,
        layers=getattr(config, "num_hidden_layers", None) or config.depth,
        heads=getattr(config, "num_attention_heads", None) or config.num_heads,
        mlp=mlp or config.intermediate_size,
        patch_size=square_side(config.patch_size, "patch_size"),
        **features,
    )


def _grid(config: Any) -> int:
    """Patches along a side, for a tower of one size."""
    return square_side(config.image_size, "image_size") // square_side(config.patch_size, "patch_size")


def _siglip2(config: Any) -> VisionSpec:
    return _vit(config, positions=square_root(config.num_patches, "num_patches"))


def _siglip(config: Any) -> VisionSpec:
    return _vit(config, positions=_grid(config))


def _clip(config: Any) -> VisionSpec:
    return _vit(
        config, positions=_grid(config), class_tokens=1, patch_bias=False, pre_norm=True, final_norm=False
    )  # fmt: skip


def _paddleocr(config: Any) -> VisionSpec:
    return _vit(config, positions=_grid(config), resize="linear", rope_theta=_axial_theta(config))


def _axial_theta(config: Any) -> float:
    """Of rotary positions by row and column. Older ``transformers`` have none in Qwen's configs: theirs is 10000."""
    rope = getattr(config, "rope_parameters", None) or {}
    if (kind := rope.get("rope_type", "axial")) != "axial":
        raise UserError(f"config.json: {config.model_type} with rope_type '{kind}' is not supported: only 'axial'")
    return float(rope.get("rope_theta", 10000.0))


def _pixtral(config: Any) -> VisionSpec:
    """Its norms' epsilons are its code's."""
    dim = config.hidden_size // config.num_attention_heads
    supported.require(config, head_dim=dim)
    return _vit(
        config, positions=0, norm="rms", gated=True, patch_bias=False, qkv_bias=False, out_bias=False, mlp_bias=False,
        pre_norm=True, final_norm=False, norm_eps=1e-5, rope_theta=_axial_theta(config), rope_turns=True,
    )  # fmt: skip


def _intern(config: Any) -> VisionSpec:
    if not config.use_mean_pooling:  # then a norm follows the layers: LayerNorm, whatever norm the layers have
        supported.require(config, norm_type="layer_norm")
    side = _grid(config)
    return _vit(
        config, positions=side if config.use_absolute_position_embeddings else 0, class_tokens=1,
        norm="rms" if config.norm_type == "rms_norm" else "layer", qkv_bias=bool(config.attention_bias),
        # The initial value, which no checkpoint stores; 0 would mean a tower without layer scale.
        qk_norm=bool(config.use_qk_norm), layer_scale=float(config.layer_scale_init_value) or 1e-6,
        final_norm=not config.use_mean_pooling,
    )  # fmt: skip


def _qwen2(config: Any) -> VisionSpec:
    """Its ``hidden_size`` is that of the decoder."""
    return _vit(
        config, width=config.embed_dim, mlp=config.embed_dim * config.mlp_ratio, positions=0, patch_bias=False,
        final_norm=False, frames=config.temporal_patch_size, rope_theta=_axial_theta(config), norm_eps=QWEN_EPS,
    )  # fmt: skip


def _qwen2_5(config: Any) -> VisionSpec:
    return _vit(
        config, positions=0, norm="rms", gated=True, patch_bias=False, final_norm=False,
        frames=config.temporal_patch_size, norm_eps=QWEN_EPS, rope_theta=_axial_theta(config),
        window=config.window_size // config.spatial_merge_size // config.patch_size * config.spatial_merge_size,
        global_layers=tuple(config.fullatt_block_indexes),
    )  # fmt: skip


def _glm4v(config: Any) -> VisionSpec:
    """Its MLPs are as wide as the decoder."""
    return _vit(
        config, mlp=config.out_hidden_size, positions=_grid(config), resize="cubic", norm="rms", gated=True,
        qkv_bias=bool(config.attention_bias), out_bias=False, mlp_bias=False, patch_norm=True,
        norm_eps=config.rms_norm_eps, frames=config.temporal_patch_size,
        rope_theta=_axial_theta(config),
    )  # fmt: skip


def _glm_ocr(config: Any) -> VisionSpec:
    """GLM-4.1V's without learnt positions, with biases and normed heads."""
    bias = bool(config.attention_bias)
    return _vit(
        config, positions=0, norm="rms", gated=True, qkv_bias=bias, out_bias=bias, mlp_bias=bias, head_norms=True,
        norm_eps=config.rms_norm_eps, frames=config.temporal_patch_size, rope_theta=_axial_theta(config),
    )  # fmt: skip


def _qwen3_vl(config: Any) -> VisionSpec:
    taps = list(config.deepstack_visual_indexes)
    if taps != sorted(set(taps) & set(range(config.depth))):
        raise UserError(f"config.json: deepstack_visual_indexes {taps} are not some layers of {config.depth}, in order")
    return _qwen3(config, taps=tuple(taps))


def _qwen3(config: Any, **features: Any) -> VisionSpec:
    """Qwen3.5's, and what Qwen3-VL's is without its taps."""
    return _vit(
        config, positions=square_root(config.num_position_embeddings, "num_position_embeddings"), resize="corners",
        frames=config.temporal_patch_size, norm_eps=QWEN_EPS, rope_theta=_axial_theta(config), final_norm=False,
        **features,
    )  # fmt: skip


def _gemma4(config: Any) -> VisionSpec:
    supported.require(
        config, attention_bias=False, num_key_value_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads
    )  # fmt: skip
    return _vit(
        config, positions=0, axis_positions=config.position_embedding_size, centred=True, norm="rms", gated=True,
        norm_eps=config.rms_norm_eps, activation=supported.activation(config.hidden_activation), mean=(0.0,) * 3,
        std=(1.0,) * 3, patch_bias=False, qkv_bias=False, out_bias=False, mlp_bias=False, final_norm=False,
        post_norms=True, head_norms=True, value_norm=True, attention_scale=1.0,
        rope_theta=_axial_theta(config), rope_by_halves=True,
        clipped=bool(config.use_clipped_linears),
    )  # fmt: skip


# Names


def _layers(prefix: str, norms: Mapping[str, str], maps: Mapping[str, str]) -> list[Rule]:
    """Rules for every layer: its norms, then its linear maps, from their names to paths inside our blocks."""
    block = "vision.blocks"
    return [
        *(rule for name, path in norms.items() for rule in norm(f"{prefix}.{name}", f"{block}.{path}")),
        *(rule for name, path in maps.items() for rule in linear(f"{prefix}.{name}", f"{block}.{path}")),
    ]


def _siglip_rules(patches: str) -> list[Rule]:
    """Rules for CLIP, SigLIP and SigLIP 2; ``patches``: the transform of the patch embedding."""
    norms = {"layer_norm1": "norm_attention", "layer_norm2": "norm_mlp"}
    maps = {
        "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value", "self_attn.out_proj": "attention.out",
        "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down",
    }  # fmt: skip
    return [
        Rule("vision.embeddings.class_embedding", ("vision.class_embedding",), "flat"),
        Rule("vision.embeddings.patch_embedding.weight", ("vision.patch_embedding.kernel",), patches),
        Rule("vision.embeddings.patch_embedding.bias", ("vision.patch_embedding.bias",)),
        Rule("vision.embeddings.position_embedding.weight", ("vision.position_embedding",)),
        *norm("vision.pre_layrnorm", "vision.pre_norm"),
        *norm("vision.post_layernorm", "vision.norm"),
        *_layers("vision.encoder.layers.{i}", norms, maps),
    ]


def _intern_rules() -> list[Rule]:
    layer, block = "vision.encoder.layer.{i}", "vision.blocks"
    norms = {
        "layernorm_before": "norm_attention", "layernorm_after": "norm_mlp",
        "attention.q_norm": "attention.query_norm", "attention.k_norm": "attention.key_norm",
    }  # fmt: skip
    maps = {
        "attention.q_proj": "attention.query", "attention.k_proj": "attention.key",
        "attention.v_proj": "attention.value", "attention.projection_layer": "attention.out",
        "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down",
    }  # fmt: skip
    return [
        Rule("vision.embeddings.cls_token", ("vision.class_embedding",), "after two"),
        Rule("vision.embeddings.position_embeddings", ("vision.position_embedding",), "after one"),
        Rule("vision.embeddings.patch_embeddings.projection.weight", ("vision.patch_embedding.kernel",), "convolution"),
        Rule("vision.embeddings.patch_embeddings.projection.bias", ("vision.patch_embedding.bias",)),
        *norm("vision.layernorm", "vision.norm"),
        Rule(f"{layer}.lambda_1", (f"{block}.scale_attention",)),
        Rule(f"{layer}.lambda_2", (f"{block}.scale_mlp",)),
        *_layers(layer, norms, maps),
    ]


def _pixtral_rules() -> list[Rule]:
    maps = {
        "attention.q_proj": "attention.query", "attention.k_proj": "attention.key",
        "attention.v_proj": "attention.value", "attention.o_proj": "attention.out",
        "feed_forward.gate_proj": "mlp.gate", "feed_forward.up_proj": "mlp.up", "feed_forward.down_proj": "mlp.down",
    }  # fmt: skip
    return [
        Rule("vision.patch_conv.weight", ("vision.patch_embedding.kernel",), "convolution"),
        *norm("vision.ln_pre", "vision.pre_norm"),
        *_layers("vision.transformer.layers.{i}", {"attention_norm": "norm_attention", "ffn_norm": "norm_mlp"}, maps),
    ]


def _qwen_rules(mlp: Mapping[str, str], positions: str = "pos_embed") -> list[Rule]:
    """Rules for Qwen-VL, whose names under ``vision.`` also include the family's connector."""
    layer, block = "vision.blocks.{i}", "vision.blocks"
    return [
        Rule("vision.patch_embed.proj.weight", ("vision.patch_embedding.kernel",), "convolution of frames"),
        Rule("vision.patch_embed.proj.bias", ("vision.patch_embedding.bias",)),
        Rule(f"vision.{positions}.weight", ("vision.position_embedding",)),
        *_layers(layer, {"norm1": "norm_attention", "norm2": "norm_mlp"}, {}),
        *qkv(f"{layer}.attn.qkv", f"{block}.attention"),
        *_layers(layer, {}, {"attn.proj": "attention.out", **mlp}),
    ]


def _gemma4_rules() -> list[Rule]:
    """Two of its tensors belong to our connector: what standardises pooled vectors."""
    norms = {
        "input_layernorm": "norm_attention", "post_attention_layernorm": "norm_attention_out",
        "pre_feedforward_layernorm": "norm_mlp", "post_feedforward_layernorm": "norm_mlp_out",
        "self_attn.q_norm": "attention.query_norm", "self_attn.k_norm": "attention.key_norm",
    }  # fmt: skip
    maps = {
        "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value", "self_attn.o_proj": "attention.out",
        "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down",
    }  # fmt: skip
    layer = "vision.encoder.layers.{i}"
    return [
        *linear("vision.patch_embedder.input_proj", "vision.patch_embedding"),
        Rule("vision.patch_embedder.position_embedding_table", ("vision.axis_embedding",)),
        *_layers(layer, norms, {f"{name}.linear": path for name, path in maps.items()}),
        *(
            Rule(f"{layer}.{name}.{bound}", (f"vision.blocks.{path}.{bound}",))
            for name, path in maps.items()
            for bound in ("input_min", "input_max", "output_min", "output_max")
        ),
        Rule("vision.std_bias", ("connector.mean",)),
        Rule("vision.std_scale", ("connector.stretch",)),
    ]


GATED = {"mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down"}
GLM4V_RULES = [
    *_qwen_rules(GATED, positions="embeddings.position_embedding"),
    *norm("vision.post_conv_layernorm", "vision.patch_norm"),
    *norm("vision.post_layernorm", "vision.norm"),
]
HEAD_NORMS = {"attn.q_norm": "attention.query_norm", "attn.k_norm": "attention.key_norm"}
GLM_OCR_RULES = [
    *_qwen_rules(GATED), *_layers("vision.blocks.{i}", HEAD_NORMS, {}), *norm("vision.post_layernorm", "vision.norm")
]  # fmt: skip
GLM4V = TowerKind(_glm4v, GLM4V_RULES)
QWEN2 = TowerKind(_qwen2, _qwen_rules({"mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}))
QWEN2_5 = TowerKind(_qwen2_5, _qwen_rules(GATED))
QWEN3 = TowerKind(_qwen3, _qwen_rules({"mlp.linear_fc1": "mlp.up", "mlp.linear_fc2": "mlp.down"}))
QWEN3_VL = QWEN3._replace(spec=_qwen3_vl)
# SigLIP's, whose positions go by where a patch stands in its square, from 0 to 1: in a full square, the patch's own
# number. (torch's float32 puts some patches into the bucket before, at sizes that no release has.)
SQUARES = TowerKind(_siglip, _siglip_rules("convolution"))
NO_HEAD = {"vision_use_head": False}
TOWERS = {
    "siglip2_vision_model": TowerKind(
        _siglip2, _siglip_rules("transpose"), ANY_SHAPE, "Siglip2ImageProcessor", NO_HEAD
    ),
    "siglip_vision_model": TowerKind(
        _siglip, _siglip_rules("convolution"), ONE_SIZE, "SiglipImageProcessor", NO_HEAD
    ),
    "clip_vision_model": TowerKind(_clip, _siglip_rules("convolution"), ONE_SIZE, "CLIPImageProcessor"),
    "idefics3_vision": SQUARES, "idefics3": SQUARES, "smolvlm_vision": SQUARES, "smolvlm": SQUARES,  # named either way
    "glm4v_vision": GLM4V, "glm4v_moe_vision": GLM4V,
    "glm_ocr_vision": TowerKind(_glm_ocr, GLM_OCR_RULES),
    "paddleocr_vl_vision": TowerKind(_paddleocr, _siglip_rules("convolution")),
    "pixtral": TowerKind(_pixtral, _pixtral_rules()),
    "internvl_vision": TowerKind(_intern, _intern_rules()),
    "qwen2_vl_vision": QWEN2, "qwen2_5_vl_vision": QWEN2_5, "qwen2_5_vl": QWEN2_5,  # configs name it either way
    "qwen3_vl_vision": QWEN3_VL, "qwen3_vl": QWEN3_VL, "qwen3_vl_moe_vision": QWEN3_VL, "qwen3_vl_moe": QWEN3_VL,
    "qwen3_5_vision": QWEN3, "qwen3_5_moe_vision": QWEN3,
    "gemma4_vision": TowerKind(_gemma4, _gemma4_rules()),
}  # fmt: skip
TWO_TOWERS = ("siglip2", "siglip", "clip")  # model types of two towers: one of images, one of text


def joinable(pictures: Sequence[str] = (ANY_SHAPE, ONE_SIZE)) -> list[str]:
    """Returns the names of the towers that can be joined with any decoder, for the given kinds of pictures."""
    return [name for name, kind in TOWERS.items() if kind.pictures in pictures]
