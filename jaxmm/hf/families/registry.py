"""The table of families. A new one is a file beside this one and a line here."""

from __future__ import annotations

from typing import Any

from jaxmm.errors import UserError
from jaxmm.hf.decoders import DECODERS
from jaxmm.hf.families.family import Family, HearingFamily, JoiningFamily, Layout
from jaxmm.hf.families.gemma3 import Gemma3
from jaxmm.hf.families.gemma4 import Gemma4
from jaxmm.hf.families.glm4v import Glm4V
from jaxmm.hf.families.glm4v_moe import Glm4VMoe
from jaxmm.hf.families.glm46v import Glm46V
from jaxmm.hf.families.glm_ocr import GlmOcr
from jaxmm.hf.families.idefics3 import Idefics3
from jaxmm.hf.families.internvl import InternVL
from jaxmm.hf.families.lfm2_vl import Lfm2VL
from jaxmm.hf.families.llava import Llava
from jaxmm.hf.families.llava_next import LlavaNext
from jaxmm.hf.families.llava_onevision import LlavaOnevision
from jaxmm.hf.families.llava_pixtral import LlavaPixtral
from jaxmm.hf.families.mistral3 import Mistral3
from jaxmm.hf.families.paddleocr_vl import PaddleOCRVL
from jaxmm.hf.families.paligemma import PaliGemma
from jaxmm.hf.families.qwen2_5_vl import Qwen25VL
from jaxmm.hf.families.qwen2_audio import Qwen2Audio
from jaxmm.hf.families.qwen2_vl import Qwen2VL
from jaxmm.hf.families.qwen3_5 import Qwen35
from jaxmm.hf.families.qwen3_5_moe import Qwen35Moe
from jaxmm.hf.families.qwen3_asr import Qwen3ASR
from jaxmm.hf.families.qwen3_vl import Qwen3VL
from jaxmm.hf.families.qwen3_vl_moe import Qwen3VLMoe
from jaxmm.hf.families.smolvlm import SmolVLM
from jaxmm.hf.towers import TOWERS, TWO_TOWERS

OF_SIGHT, OF_HEARING = "vision:DIR,decoder:DIR", "audio:DIR,decoder:DIR"  # of config.init_from
# Why some models that people ask for are not here.
NOT_HERE = {
    "minicpmv4_6": "its tower merges patches between two of its layers, and its pictures are slices of any shape",
    "kimi_k25": "its decoder, DeepSeek-V3's, attends to compressed keys and values, and its releases are quantised",
    "kimi_vl": "transformers has no code for it",
    "llavaonevision1_5": "transformers has no code for it",
    "deepseek_ocr2": "its tower is SAM's, of convolutions and relative positions, before a Qwen 2 with learnt queries",
    "gemma3n": "its tower is a MobileNet of timm, and its decoder has several streams of activations",
}
OWN = Lfm2VL()  # the family as which our own models are exported
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        OWN,
        Llava(),
        LlavaNext(),
        LlavaOnevision(),
        Qwen2VL(),
        Qwen25VL(),
        Qwen3VL(),
        Qwen3VLMoe(),
        Qwen35(),
        Qwen35Moe(),
        PaliGemma(),
        Gemma3(),
        Gemma4(),
        InternVL(),
        Idefics3(),
        SmolVLM(),
        Mistral3(),
        LlavaPixtral(),
        Glm4V(),
        Glm46V(),
        Glm4VMoe(),
        GlmOcr(),
        PaddleOCRVL(),
        Qwen2Audio(),
        Qwen3ASR(),
    )
}


def family_of(config: Any) -> Family:
    """Returns the family of a config. Raises UserError for an unknown architecture, with the known ones."""
    kind = config.model_type
    for parts, how in (
        (DECODERS, f"{OF_SIGHT} or {OF_HEARING}"), ((*TOWERS, *TWO_TOWERS), OF_SIGHT), (heard_towers(), OF_HEARING),
    ):  # fmt: skip
        if kind not in FAMILIES and kind in parts:
            raise UserError(f"'{kind}' is no whole model but a part of one: name both parts, as {how}")
    if kind not in FAMILIES:
        why = f", as {NOT_HERE[kind]}" if kind in NOT_HERE else ""
        raise UserError(f"model '{kind}' is not supported{why}: those are {', '.join(FAMILIES)}{_parts_known(config)}")
    tower = getattr(getattr(config, "vision_config", None), "model_type", "")
    own = (family for family in FAMILIES.values() if family.model_type == kind and tower in family.towers)
    return next(own, FAMILIES[kind])


def _parts_known(config: Any) -> str:
    """What an unknown model has in common with those here: its tower, its decoder, or both. Names say nothing of it."""
    vision, text = (getattr(getattr(config, f"{of}_config", None), "model_type", "") for of in ("vision", "text"))
    joins = TOWERS[vision].pictures if vision in TOWERS else ""
    if joins and text in DECODERS:
        return f"; its tower '{vision}' and its decoder '{text}' are: name both parts' folders, as {OF_SIGHT}"
    known = [f"its tower '{vision}'"] * (vision in TOWERS) + [f"its decoder '{text}'"] * (text in DECODERS)
    return (
        f"; {' and '.join(known)} {'are' if len(known) > 1 else 'is'} known, but not how it joins them" if known else ""
    )


def layout_of(config: Any) -> Layout:
    """The model of a config, as ``transformers`` reads it."""
    return family_of(config).layout(config)


def family_that_joins(pictures: str) -> JoiningFamily:
    """Returns the family that joins such towers with any decoder; ``pictures``: as in ``towers.TowerKind``."""
    joining = [family for family in FAMILIES.values() if isinstance(family, JoiningFamily)]
    return next(family for family in joining if family.joins == pictures)


def family_that_hears(tower: str) -> HearingFamily | None:
    """Returns the family that joins an audio tower of this ``model_type`` with any decoder; None if none does."""
    return next((family for family in _hearing() if tower in family.hears), None)


def heard_towers() -> list[str]:
    """The audio towers that a family joins with a decoder."""
    return [tower for family in _hearing() for tower in family.hears]


def _hearing() -> list[HearingFamily]:
    return [family for family in FAMILIES.values() if isinstance(family, HearingFamily)]
