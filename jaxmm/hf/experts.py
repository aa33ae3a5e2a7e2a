"""Experts of the families' decoders: from a config to an ``ExpertSpec``, and the names of their tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxmm.errors import UserError
from jaxmm.hf.names import Rule, linear
from jaxmm.models.routing import ExpertSpec

EXPERTS = "decoder.blocks.mlp"
MLP = "text.layers.{i}.mlp"


def with_experts(rules: list[Rule], experts: list[Rule]) -> list[Rule]:
    """Rules of a decoder with experts in the place of each MLP."""
    return [rule for rule in rules if ".mlp." not in rule.name] + experts


def _kernels(*parts: str) -> tuple[str, ...]:
    return tuple(f"{EXPERTS}.{part}.kernel" for part in parts)


def _each(part: str) -> Rule:
    """One tensor of each expert."""
    return Rule(f"{MLP}.experts.{{j}}.{part}_proj.weight", _kernels(part), "reversed")


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


def qwen_experts(config: Any, normalised: bool) -> ExpertSpec:
    """Of Qwen 3 and later: a softmax before the choice. ``normalised``: the weights of those chosen have the sum 1."""
    if getattr(config, "decoder_sparse_step", 1) != 1 or getattr(config, "mlp_only_layers", ()):
        raise UserError(
            "config.json: decoder_sparse_step and mlp_only_layers that leave some layers without experts are not "
            "supported: all layers have experts, or none"
        )
    return ExpertSpec(
        config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size, normalised=normalised,
        balance_loss=float(getattr(config, "router_aux_loss_coef", 0.0)),
    )  # fmt: skip


def qwen3_vl_experts(config: Any) -> ExpertSpec:
    """Always normalised. Raises UserError where releases and ``transformers`` mean different sides of a tensor."""
    if config.hidden_size in (config.moe_intermediate_size, 2 * config.moe_intermediate_size):
        raise UserError(
            f"config.json: moe_intermediate_size {config.moe_intermediate_size} with hidden_size {config.hidden_size} "
            f"makes square tensors of experts, of which releases and transformers mean different sides: not supported"
        )
    return qwen_experts(config, normalised=True)


def qwen3_5_experts(config: Any) -> ExpertSpec:
    """Always normalised, with one for all positions behind a sigmoid."""
    shared = config.shared_expert_intermediate_size
    return dataclasses.replace(qwen_experts(config, normalised=True), shared_mlp=shared, shared_gate=True)
