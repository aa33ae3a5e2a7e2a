"""Tables of which foreign tensor is which parameter of ours, read forwards to import and backwards to export.

A foreign name is first brought to one common spelling: releases and families write different things before
``layers.0.``, but mean the same. ``{i}`` is the number of a layer, the leading dim of our stacked parameters, and
``{j}`` that of an expert, the dim behind it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Path = tuple[str, ...]


class Rule(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
      name: in the common spelling.
      paths: of our parameters, joined by dots; several are the parts of a fused tensor, in order.
      transform: a key of ``transforms.TRANSFORMS``.
      layers: the numbers of the layers that have it, in the order of our stack; () is all of them.
      apart: rules of the same parameters in smaller tensors, which some folders have in its place.
      exact: written as float32, whatever the others are.
    """

    name: str
    paths: tuple[str, ...]
    transform: str = "copy"
    layers: tuple[int, ...] = ()
    apart: tuple[Rule, ...] = ()
    exact: bool = False


def linear(name: str, path: str) -> list[Rule]:
    """Rules for a linear map of ours."""
    return [Rule(f"{name}.weight", (f"{path}.kernel",), "transpose"), Rule(f"{name}.bias", (f"{path}.bias",), "flat")]


def norm(name: str, path: str) -> list[Rule]:
    """Rules for a norm of ours."""
    return [Rule(f"{name}.weight", (f"{path}.scale",)), Rule(f"{name}.bias", (f"{path}.bias",))]


def qkv(name: str, path: str) -> list[Rule]:
    """Rules for an attention of ours whose queries, keys and values are one fused foreign tensor."""
    parts = [f"{path}.{part}" for part in ("query", "key", "value")]
    return [
        Rule(f"{name}.weight", tuple(f"{part}.kernel" for part in parts), "transpose"),
        Rule(f"{name}.bias", tuple(f"{part}.bias" for part in parts), "flat"),
    ]


# Tensors that our model does not use: they are kept unchanged, and an export writes them again.
SPARE = (
    r"vision\.head\.", r"vision\.post_layernorm\.", r"vision\.layernorm\.", r"vision\.embeddings\.mask_token",
    r"vision\.embeddings\.packing_position_embedding\.",
    r".*\.position_ids$", r".*\.inv_freq$",
    r"mtp\.",  # Qwen3.5's further tokens at a time, which transformers does not read either
)  # fmt: skip
SPARE_LAYERS = r"vision\.encoder\.layers?\.\d+\."  # only the layers after the last one whose output is used
NEXT_TOKENS = r"(text\.layers\.\d+\.)eh_proj\."  # in a layer behind the last that guesses further tokens (GLM-4.5)
# Other parts of a checkpoint from which only the tower or the decoder is taken.
OTHERS = (
    r"text_model\.", r"text\.", r"lm_head\.", r"connector\.", r"image_newline$", r"logit_scale", r"logit_bias",
    r"visual_projection\.", r"text_projection\.",
)  # fmt: skip
# Other parts of a checkpoint from which only the audio tower is taken: a decoder of its own, Whisper's too.
BESIDE_AUDIO = (
    r"text\.(?!encoder\.)", r"lm_head\.", r"connector\.", r"image_newline$", r"vision\.", r"proj_out\.", r"decoder\."
)  # fmt: skip
# Parts of a whole model from which only the decoder is taken.
BESIDE_DECODER = (r"vision\.", r"audio\.", r"connector\.", r"image_newline$")
HEAD, EMBEDDING = "lm_head.weight", "text.embed_tokens.weight"

# (what releases write, the common spelling); the first match counts.
SPELLINGS = (
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision."),
    (r"(?:model\.)?vision_model\.", "vision."),
    (r"(?:model\.)?visual\.(?:vision_model\.)?", "vision."),
    (r"(?:model\.)?audio_tower\.", "audio."),
    (r"(?:model\.)?multi_modal_projector\.", "connector."),
    (r"model\.connector\.", "connector."),
    (r"(?:mlp_AR|model\.projector)\.", "connector."),
    (r"(?:model\.)?image_newline$", "image_newline"),
    (r"model\.text_model\.", "text."),
    (r"(?:model\.)?embed_vision\.", "connector."),
    (r"(?:language_model\.)?lm_head\.", "lm_head."),
    (r"(?:model\.)?language_model\.(?:model\.)?", "text."),
    (r"model\.", "text."),
)


def common_name(name: str) -> str:
    """The common spelling of a foreign tensor's name."""
    for written, common in SPELLINGS:
        match = re.match(written, name)
        if match:
            return common + name[match.end() :]
    return name


def is_other(name: str) -> bool:
    """Whether a tensor belongs to a part of a checkpoint that is neither tower nor decoder."""
    return any(re.match(pattern, name) for pattern in OTHERS)


def is_beside_audio(name: str) -> bool:
    """Whether a tensor belongs to a part of a checkpoint that is no audio tower."""
    return any(re.match(pattern, name) for pattern in BESIDE_AUDIO)


def foreign_name(name: str, prefixes: Mapping[str, str]) -> str:
    """Writes a common name as a family does: ``prefixes`` maps each common prefix to what replaces it, with its dot.

    A name without a dot is a prefix, whole.
    """
    prefix, _, rest = name.partition(".")
    return f"{prefixes[prefix]}{rest}"


class Tensor(NamedTuple):
    """One foreign tensor: its rule, and the places in our stack of its layer and its expert, as far as it has them."""

    name: str  # in the common spelling
    rule: Rule
    at: tuple[int, ...]


def tensors(rules: Sequence[Rule], shapes: Mapping[Path, tuple[int, ...]]) -> Iterator[Tensor]:
    """Yields the tensors of a checkpoint for parameters with these shapes; rules for other parameters give none."""
    for rule in rules:
        paths = [tuple(path.split(".")) for path in rule.paths]
        if not all(path in shapes for path in paths):
            continue
        numbers = [number for number in ("{i}", "{j}") if number in rule.name]
        for at in np.ndindex(shapes[paths[0]][: len(numbers)]):
            name = rule.name
            for number, place in zip(numbers, at, strict=True):
                value = rule.layers[place] if rule.layers and number == "{i}" else place
                name = name.replace(number, str(value))
            yield Tensor(name, rule, at)


def as_held(
    rules: Sequence[Rule], shapes: Mapping[Path, tuple[int, ...]], found: Container[str]
) -> Iterator[Rule]:  # fmt: skip
    """Yields the rules of a folder with tensors of these names, in the common spelling: those of ``apart`` where the
    first of these is there."""
    for rule in rules:
        first = next(tensors(rule.apart, shapes), None)
        yield from rule.apart if first is not None and first.name in found else [rule]
