"""Which foreign tensor is which parameter of ours, as tables, read forwards to import and backwards to export.

A foreign name is first brought to one spelling: what releases and families write before ``layers.0.`` differs, what
they mean does not. ``{i}`` is the number of a layer, which is the leading dim of our stacked parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

Path = tuple[str, ...]


class Rule(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
      name: in the common spelling.
      paths: of ours, joined by dots; several are the parts of a fused tensor, in order.
      transform: a key of ``transforms.TRANSFORMS``.
    """

    name: str
    paths: tuple[str, ...]
    transform: str = "copy"


def _linear(name: str, path: str) -> list[Rule]:
    return [Rule(f"{name}.weight", (f"{path}.kernel",), "transpose"), Rule(f"{name}.bias", (f"{path}.bias",), "flat")]


def _norm(name: str, path: str) -> list[Rule]:
    return [Rule(f"{name}.weight", (f"{path}.scale",)), Rule(f"{name}.bias", (f"{path}.bias",))]


def _qkv(name: str, path: str) -> list[Rule]:
    parts = [f"{path}.{part}" for part in ("query", "key", "value")]
    return [
        Rule(f"{name}.weight", tuple(f"{part}.kernel" for part in parts), "transpose"),
        Rule(f"{name}.bias", tuple(f"{part}.bias" for part in parts), "flat"),
    ]


def _decoder(post_norms: bool) -> list[Rule]:
    layer, block = "text.layers.{i}", "decoder.blocks"
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
    return [
        Rule("text.embed_tokens.weight", ("decoder.embedding",)),
        Rule("lm_head.weight", ("decoder.head",)),
        *_norm("text.norm", "decoder.norm"),
        *(rule for name, path in norms.items() for rule in _norm(f"{layer}.{name}", f"{block}.{path}")),
        *(rule for name, path in maps.items() for rule in _linear(f"{layer}.{name}", f"{block}.{path}")),
    ]


def _siglip(patches: str) -> list[Rule]:
    """CLIP's, SigLIP's and SigLIP 2's tower; ``patches``: the transform of its patch embedding."""
    layer, block = "vision.encoder.layers.{i}", "vision.blocks"
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
        *_norm("vision.pre_layrnorm", "vision.pre_norm"),
        *_norm("vision.post_layernorm", "vision.norm"),
        *_norm(f"{layer}.layer_norm1", f"{block}.norm_attention"),
        *_norm(f"{layer}.layer_norm2", f"{block}.norm_mlp"),
        *(rule for name, path in maps.items() for rule in _linear(f"{layer}.{name}", f"{block}.{path}")),
    ]


def _intern() -> list[Rule]:
    layer, block = "vision.encoder.layer.{i}", "vision.blocks"
    maps = {
        "attention.q_proj": "attention.query", "attention.k_proj": "attention.key",
        "attention.v_proj": "attention.value", "attention.projection_layer": "attention.out",
        "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down",
    }  # fmt: skip
    norms = {
        "layernorm_before": "norm_attention", "layernorm_after": "norm_mlp",
        "attention.q_norm": "attention.query_norm", "attention.k_norm": "attention.key_norm",
    }  # fmt: skip
    return [
        Rule("vision.embeddings.cls_token", ("vision.class_embedding",), "after two"),
        Rule("vision.embeddings.position_embeddings", ("vision.position_embedding",), "after one"),
        Rule("vision.embeddings.patch_embeddings.projection.weight", ("vision.patch_embedding.kernel",), "convolution"),
        Rule("vision.embeddings.patch_embeddings.projection.bias", ("vision.patch_embedding.bias",)),
        *_norm("vision.layernorm", "vision.norm"),
        Rule(f"{layer}.lambda_1", (f"{block}.scale_attention",)),
        Rule(f"{layer}.lambda_2", (f"{block}.scale_mlp",)),
        *(rule for name, path in norms.items() for rule in _norm(f"{layer}.{name}", f"{block}.{path}")),
        *(rule for name, path in maps.items() for rule in _linear(f"{layer}.{name}", f"{block}.{path}")),
    ]


def _qwen(mlp: Mapping[str, str], merger: Sequence[Rule]) -> list[Rule]:
    """What Qwen2.5-VL's and Qwen3-VL's towers have in common, and ``merger``: their connectors, which are in them."""
    layer, block = "vision.blocks.{i}", "vision.blocks"
    maps = {"attn.proj": "attention.out", **mlp}
    return [
        Rule("vision.patch_embed.proj.weight", ("vision.patch_embedding.kernel",), "convolution of frames"),
        Rule("vision.patch_embed.proj.bias", ("vision.patch_embedding.bias",)),
        Rule("vision.pos_embed.weight", ("vision.position_embedding",)),
        *_norm(f"{layer}.norm1", f"{block}.norm_attention"),
        *_norm(f"{layer}.norm2", f"{block}.norm_mlp"),
        *_qkv(f"{layer}.attn.qkv", f"{block}.attention"),
        *(rule for name, path in maps.items() for rule in _linear(f"{layer}.{name}", f"{block}.{path}")),
        *merger,
    ]


def _qwen2_5() -> list[Rule]:
    mlp = {"mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down"}
    merger = [
        *_norm("vision.merger.ln_q", "connector.norm"),
        *_linear("vision.merger.mlp.0", "connector.up"),
        *_linear("vision.merger.mlp.2", "connector.down"),
    ]
    return _qwen(mlp, merger)


def _qwen3() -> list[Rule]:
    mergers = {"vision.merger": "connector", "vision.deepstack_merger_list.{i}": "connector.deep"}
    merger = [
        rule
        for name, path in mergers.items()
        for rule in (
            *_norm(f"{name}.norm", f"{path}.norm"),
            *_linear(f"{name}.linear_fc1", f"{path}.up"),
            *_linear(f"{name}.linear_fc2", f"{path}.down"),
        )
    ]
    return _qwen({"mlp.linear_fc1": "mlp.up", "mlp.linear_fc2": "mlp.down"}, merger)


_PROJECTOR = [
    *_norm("connector.layer_norm", "connector.norm"),
    *_linear("connector.linear_1", "connector.up"),
    *_linear("connector.linear_2", "connector.down"),
]
_GEMMA_PROJECTOR = [
    Rule("connector.mm_input_projection_weight", ("connector.down.kernel",)),
    *_norm("connector.mm_soft_emb_norm", "connector.norm"),
]

DECODERS = {"llama": _decoder(post_norms=False), "gemma": _decoder(post_norms=True)}
TOWERS = {
    "clip": _siglip("convolution"), "siglip": _siglip("convolution"), "siglip2": _siglip("transpose"),
    "intern": _intern(), "qwen2.5": _qwen2_5(), "qwen3": _qwen3(),
}  # fmt: skip
CONNECTORS = {"mlp": _PROJECTOR, "gemma": _GEMMA_PROJECTOR, "in tower": []}

# Tensors that our model has no use for: they are kept as they are, and go out again with an export.
SPARE = (
    r"vision\.head\.", r"vision\.post_layernorm\.", r"vision\.layernorm\.", r"vision\.embeddings\.mask_token",
    r".*\.position_ids$", r".*\.inv_freq$",
)  # fmt: skip
SPARE_LAYERS = r"vision\.encoder\.layers?\.\d+\."  # those after the last one whose output is taken
# Parts of a checkpoint that a tower or a decoder is taken from, and that are not it.
OTHERS = (
    r"text_model\.", r"text\.", r"lm_head\.", r"connector\.", r"logit_scale", r"logit_bias", r"visual_projection\.",
    r"text_projection\.",
)  # fmt: skip
SEEING = (r"vision\.", r"connector\.")  # of a whole model that a decoder is taken from
HEAD, EMBEDDING = "lm_head.weight", "text.embed_tokens.weight"

# (what releases write, the common spelling), the first that fits.
SPELLINGS = (
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision."),
    (r"(?:model\.)?vision_model\.", "vision."),
    (r"(?:model\.)?visual\.", "vision."),
    (r"(?:model\.)?multi_modal_projector\.", "connector."),
    (r"(?:language_model\.)?lm_head\.", "lm_head."),
    (r"(?:model\.)?language_model\.(?:model\.)?", "text."),
    (r"model\.", "text."),
)


def common_name(name: str) -> str:
    """The common spelling of a foreign tensor's name."""
    for written, common in SPELLINGS:
        found = re.match(written, name)
        if found:
            return common + name[found.end() :]
    return name


def is_other(name: str) -> bool:
    """Whether a tensor belongs to a part of a checkpoint that is neither tower nor decoder."""
    return any(re.match(pattern, name) for pattern in OTHERS)


def foreign_name(name: str, prefixes: Mapping[str, str]) -> str:
    """A common name as a family writes it: ``prefixes`` has, by common prefix, what stands in its place."""
    prefix, _, rest = name.partition(".")
    return f"{prefixes[prefix]}{rest}"


class Tensor(NamedTuple):
    """One foreign tensor: by its rule, and by the number of the layer, or None where there is none."""

    name: str  # in the common spelling
    rule: Rule
    layer: int | None


def tensors(rules: Sequence[Rule], shapes: Mapping[Path, tuple[int, ...]]) -> Iterator[Tensor]:
    """The tensors that a checkpoint of parameters with these shapes has; rules for other parameters give none."""
    for rule in rules:
        paths = [tuple(path.split(".")) for path in rule.paths]
        if not all(path in shapes for path in paths):
            continue
        if "{i}" not in rule.name:
            yield Tensor(rule.name, rule, None)
            continue
        for layer in range(shapes[paths[0]][0]):
            yield Tensor(rule.name.replace("{i}", str(layer)), rule, layer)
