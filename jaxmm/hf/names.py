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


def linear(name: str, path: str) -> list[Rule]:
    """Of a linear map of ours."""
    return [Rule(f"{name}.weight", (f"{path}.kernel",), "transpose"), Rule(f"{name}.bias", (f"{path}.bias",), "flat")]


def norm(name: str, path: str) -> list[Rule]:
    """Of a norm of ours."""
    return [Rule(f"{name}.weight", (f"{path}.scale",)), Rule(f"{name}.bias", (f"{path}.bias",))]


def qkv(name: str, path: str) -> list[Rule]:
    """Of an attention of ours whose queries, keys and values are one tensor of theirs."""
    parts = [f"{path}.{part}" for part in ("query", "key", "value")]
    return [
        Rule(f"{name}.weight", tuple(f"{part}.kernel" for part in parts), "transpose"),
        Rule(f"{name}.bias", tuple(f"{part}.bias" for part in parts), "flat"),
    ]


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
