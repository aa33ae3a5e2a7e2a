"""What the configs of decoders share: from a ``text_config`` to the sizes, windows and rotary positions of a spec."""

from __future__ import annotations

from typing import Any

from jaxmm.errors import UserError
from jaxmm.hf import supported
from jaxmm.models.decoder_spec import DecoderSpec
from jaxmm.models.rope import RopeScaling


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


def one_window(config: Any) -> dict[str, Any]:
    """The window of all layers. Classes of ``transformers`` with such windows do not read ``layer_types``."""
    return {"window": config.sliding_window or 0}


def windows_of_some(config: Any) -> dict[str, Any]:
    """The window of the layers that ``layer_types`` says have one."""
    window, kinds = config.sliding_window or 0, config.layer_types
    known = {"full_attention", "sliding_attention"}
    if set(kinds) - known:
        raise UserError(f"config.json: layers of type '{(set(kinds) - known).pop()}' are not supported")
    if "sliding_attention" not in kinds or not window:
        return {}
    return {"window": window, "global_layers": tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")}


def make_spec(config: Any, tied: bool, rope: dict[str, Any] | None = None, **features: Any) -> DecoderSpec:
    """The spec of a config. Windows are a feature: a config may name them where the class of ``transformers`` has none.

    Args:
      tied: whether the vocabulary projection is the embedding.
      rope: the rotary parameters, if layers of different kinds have their own.
      features: fields of the spec that the config does not say, or says in a way of its own.

    Raises:
      ValueError: for sizes that do not match.
      UserError: for rotary positions or kinds of layers that are not supported.
    """
    supported.require(config, is_causal=True)
    rope = rope or config.rope_parameters
    if not getattr(config, "head_dim", None) and config.hidden_size % config.num_attention_heads:
        raise ValueError(f"hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
    own = {"mlp": "intermediate_size", "norm_eps": "rms_norm_eps"}
    features = {key: getattr(config, name) for key, name in own.items() if key not in features} | features
    if "activation" not in features:
        features["activation"] = supported.activation(config.hidden_act)
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


def sections(config: Any, default: tuple[int, ...]) -> tuple[int, ...]:
    """How many rotary frequencies each axis of positions has."""
    return tuple(config.rope_parameters.get("mrope_section") or default)


def mixers_of(config: Any, known: dict[str, str]) -> tuple[str, ...]:
    """What mixes the positions of each layer; ``known``: by the config's names of them."""
    if unknown := set(config.layer_types) - set(known):
        raise UserError(f"config.json: layers of type '{unknown.pop()}' are not supported: {', '.join(known)} are")
    return tuple(known[kind] for kind in config.layer_types)


def rotary_part(config: Any) -> tuple[dict[str, Any], int]:
    """The rotary parameters without ``partial_rotary_factor``, and how many dims of a head it makes turn."""
    rope = dict(config.rope_parameters)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return rope, int(head_dim * rope.pop("partial_rotary_factor", 1.0))
