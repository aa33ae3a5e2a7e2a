"""Experts of the families' decoders: from a config to an ``ExpertSpec``, and the names of their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from jaxmm.errors import UserError
from jaxmm.hf import supported
from jaxmm.hf.names import Rule, linear, norm
from jaxmm.models.routing import ExpertSpec

EXPERTS = "decoder.blocks.experts"
MLP = "text.layers.{i}.mlp"


def _kernels(*parts: str) -> tuple[str, ...]:
    return tuple(f"{EXPERTS}.{part}.kernel" for part in parts)


def _each(part: str, theirs: str = "") -> Rule:
    """One tensor of each expert; ``theirs``: its name, if it is not that of Llama's MLP."""
    return Rule(theirs or f"{MLP}.experts.{{j}}.{part}_proj.weight", _kernels(part), "reversed")


def _fused(transform: str) -> list[Rule]:
    """One tensor of all experts of a layer, in which gates and maps up are one; read by expert as well."""
    return [
        Rule(f"{MLP}.experts.gate_up_proj", _kernels("gate", "up"), transform, apart=(_each("gate"), _each("up"))),
        Rule(f"{MLP}.experts.down_proj", _kernels("down"), transform, apart=(_each("down"),)),
    ]


ROUTER = Rule(f"{MLP}.gate.weight", (f"{EXPERTS}.router",), "reversed")
SEPARATE = [ROUTER, *map(_each, ("gate", "up", "down"))]
# As Qwen3-VL's releases have them; transformers holds them the other way round, and may write them so.
QWEN3_VL = [ROUTER, *_fused("side by side")]
# As Qwen3.5's releases have them; transformers writes each expert's, as releases in eight bits do.
QWEN3_5 = [
    ROUTER,
    *_fused("one above the other"),
    *(
        rule
        for n in ("gate", "up", "down")
        for rule in linear(f"{MLP}.shared_expert.{n}_proj", f"{EXPERTS}.shared.{n}")
    ),
    *linear(f"{MLP}.shared_expert_gate", f"{EXPERTS}.shared_gate"),
]
# Beside an MLP, with norms and scales of a router that stands by itself.
GEMMA4 = [
    Rule("text.layers.{i}.router.proj.weight", (f"{EXPERTS}.router",), "reversed"),
    Rule("text.layers.{i}.router.scale", (f"{EXPERTS}.router_scale",)),
    Rule("text.layers.{i}.router.per_expert_scale", (f"{EXPERTS}.own_scale",)),
    Rule("text.layers.{i}.experts.gate_up_proj", _kernels("gate", "up"), "one above the other"),
    Rule("text.layers.{i}.experts.down_proj", _kernels("down"), "one above the other"),
    *norm("text.layers.{i}.post_feedforward_layernorm_1", "decoder.blocks.norm_dense_out"),
    *norm("text.layers.{i}.pre_feedforward_layernorm_2", "decoder.blocks.norm_experts"),
    *norm("text.layers.{i}.post_feedforward_layernorm_2", "decoder.blocks.norm_experts_out"),
]
LFM2 = [
    Rule("text.layers.{i}.feed_forward.gate.weight", (f"{EXPERTS}.router",), "reversed"),
    Rule("text.layers.{i}.feed_forward.expert_bias", (f"{EXPERTS}.choice_bias",), exact=True),
    *(
        _each(part, f"text.layers.{{i}}.feed_forward.experts.{{j}}.{name}.weight")
        for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
    ),
]
GLM4 = [
    *SEPARATE,
    Rule(f"{MLP}.gate.e_score_correction_bias", (f"{EXPERTS}.choice_bias",), exact=True),
    *(
        rule
        for n in ("gate", "up", "down")
        for rule in linear(f"{MLP}.shared_experts.{n}_proj", f"{EXPERTS}.shared.{n}")
    ),
]


# Each of the following makes the features of a ``DecoderSpec``.


def _features(config: Any, experts: ExpertSpec, dense_layers: Iterable[int] = ()) -> dict[str, Any]:
    """``dense_layers``: those that have an MLP; of all layers, no layer has experts."""
    dense = tuple(n for n in range(config.num_hidden_layers) if n in set(dense_layers))
    return {"experts": experts, "dense_layers": dense} if len(dense) < config.num_hidden_layers else {}


def _qwen_experts(config: Any, normalised: bool) -> ExpertSpec:
    """A softmax before the choice. ``normalised``: the weights of those chosen have the sum 1."""
    return ExpertSpec(
        config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size, normalised=normalised,
        balance_loss=float(getattr(config, "router_aux_loss_coef", 0.0)),
    )  # fmt: skip


def qwen3(config: Any, normalised: bool) -> dict[str, Any]:
    """Of every ``decoder_sparse_step``-th layer, but for ``mlp_only_layers``."""
    dense = {n for n in range(config.num_hidden_layers) if (n + 1) % config.decoder_sparse_step}
    return _features(config, _qwen_experts(config, normalised), dense | set(config.mlp_only_layers or ()))


def qwen3_vl(config: Any) -> dict[str, Any]:
    """Always normalised. Raises UserError where releases and ``transformers`` mean different sides of a tensor."""
    if config.hidden_size in (config.moe_intermediate_size, 2 * config.moe_intermediate_size):
        raise UserError(
            f"config.json: moe_intermediate_size {config.moe_intermediate_size} with hidden_size {config.hidden_size} "
            f"makes square tensors of experts, of which releases and transformers mean different sides: not supported"
        )
    return qwen3(config, normalised=True)


def qwen3_5(config: Any) -> dict[str, Any]:
    """Of all layers, always normalised, with one for all positions behind a sigmoid."""
    supported.require(config, decoder_sparse_step=1, mlp_only_layers=[])  # transformers does not read them
    shared = config.shared_expert_intermediate_size
    experts = dataclasses.replace(_qwen_experts(config, normalised=True), shared_mlp=shared, shared_gate=True)
    return _features(config, experts)


def gemma4(config: Any) -> dict[str, Any]:
    """Of all layers, beside their MLPs: a softmax before the choice, always normalised; {} where there are none."""
    if not config.enable_moe_block:
        return {}
    experts = ExpertSpec(
        config.num_experts, config.top_k_experts, config.moe_intermediate_size, normalised=True,
        router_norm=config.rms_norm_eps, own_scales=True,
    )  # fmt: skip
    return _features(config, experts) | {"experts_beside": True}


def lfm2(config: Any) -> dict[str, Any]:
    """A sigmoid of each, a bias that counts in the choice alone, and MLPs in the first layers."""
    supported.require(config, use_expert_bias=True)
    experts = ExpertSpec(
        config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size, gate="sigmoid",
        normalised=bool(config.norm_topk_prob), sum_offset=1e-6, scale=float(config.routed_scaling_factor),
    )  # fmt: skip
    return _features(config, experts, range(config.num_dense_layers))


def glm4(config: Any) -> dict[str, Any]:
    """As DeepSeek-V3: groups of experts, a sigmoid of each, a bias of the choice, some for all, MLPs in the first
    layers."""
    experts = ExpertSpec(
        config.n_routed_experts, config.num_experts_per_tok, config.moe_intermediate_size, gate="sigmoid",
        normalised=bool(config.norm_topk_prob), sum_offset=1e-20, scale=float(config.routed_scaling_factor),
        groups=config.n_group, chosen_groups=config.topk_group,
        shared_mlp=config.moe_intermediate_size * config.n_shared_experts,
        balance_loss=float(getattr(config, "router_aux_loss_coef", 0.0)),
    )  # fmt: skip
    return _features(config, experts, range(config.first_k_dense_replace))
