"""The names of decoders' tensors, by the paths of our parameters; those of experts are in ``experts``."""

from __future__ import annotations

from jaxmm.hf.names import Rule, linear, norm

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
QWEN3_5, GLM4V, LFM2, GEMMA4 = _qwen3_5_rules(), _glm4v_rules(), _lfm2_rules(), _gemma4_rules()
