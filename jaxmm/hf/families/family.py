"""Everything that sets one family of Hugging Face models apart, as one class, which the rest of jaxmm asks.

A family is a subclass in a file of its own, and a line in ``registry.py``. ``docs/extend.md`` walks through one.
"""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.clip_spec import AudioSpec
from jaxmm.data.text.own_format import OURS
from jaxmm.data.text.template import Markup
from jaxmm.hf.names import Rule, linear, norm
from jaxmm.hf.pictures import Pictures
from jaxmm.hf.videos import Videos
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

# The prefixes of tensor names in the older and the newer spelling of releases. Both are read for any family
# (names.SPELLINGS); a family exports the one that its releases have.
OLD = {"text": "language_model.model.", "vision": "vision_tower.", "lm_head": "language_model.lm_head.",
        "connector": "multi_modal_projector."}  # fmt: skip
NEW = {"text": "model.language_model.", "vision": "model.vision_tower.", "lm_head": "lm_head.",
        "connector": "model.multi_modal_projector."}  # fmt: skip
# What the classes of ``transformers`` call their modules, whatever releases call the tensors: adapters name modules.
MODULES = {**NEW, "audio": "model.audio_tower."}
# The names of a connector of two linear maps.
PROJECTOR = [
    *norm("connector.layer_norm", "connector.norm"),
    *linear("connector.linear_1", "connector.up"),
    *linear("connector.linear_2", "connector.down"),
]
# Settings of an image processor that are not followed if they are on, and what is done instead.
ONE_TILE = dict.fromkeys(("do_image_splitting", "do_pan_and_scan"), "each image is one tile")


class Layout(NamedTuple):
    """One model of a family, or of one that sees and one that hears.

    Attributes:
      spec: its sizes and features.
      rules: the names of its tensors, in the order in which they are written.
      prefixes: what replaces "text", "vision", "audio", "connector" and "lm_head" in the names that are written.
      audio: how its tower takes recordings; rate, hop and window are those of the folder's extractor.
      kept: patterns of the common names of tensors that the model does not use: they are kept, and exported again.
      told: lines for people on what of the folder is left out.
      modules: as ``prefixes``, in the names of the modules of the family's class in ``transformers``.
      taken_for_experts: last names of Linears that PEFT takes for maps of experts, which were Linears of these names
        before ``transformers`` 5, wherever in the model they are.
    """

    spec: ModelSpec
    rules: list[Rule]
    prefixes: Mapping[str, str]
    audio: AudioSpec | None = None
    modules: Mapping[str, str] = MODULES
    kept: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    taken_for_experts: tuple[str, ...] = ()

    def also_hearing(self, other: Layout) -> Layout:
        """With the audio tower of another layout and its connector, before the decoder of this one.

        The names are of this layout and of the other's tower: both call their connectors' tensors alike.
        """
        heard = [rule for rule in other.rules if rule.paths[0].startswith("audio.")]
        spec = dataclasses.replace(self.spec, audio=other.spec.audio, audio_connector=other.spec.audio_connector)
        prefixes = {**self.prefixes, "audio": other.prefixes["audio"]}
        modules = {**self.modules, "audio": other.modules["audio"]}
        return Layout(spec, [*self.rules, *heard], prefixes, other.audio, modules)


class Joined(NamedTuple):
    """A tower and a decoder as one model: its family, layout and ``config.json``, the settings of the processor in the
    tower's folder, and lines for people."""

    family: Family
    layout: Layout
    config: dict[str, Any]
    processor: dict[str, Any]
    told: tuple[str, ...] = ()


class Family(abc.ABC):
    """A family of models.

    Attributes:
      model_type: as in ``config.json``.
      towers: of a family that shares its ``model_type`` with another: the kinds of towers that tell it apart.
      variant: its name then; "" where ``model_type`` is the name.
      architecture: the class of ``transformers`` that an export names.
      releases: models of the family on the Hugging Face Hub, for people.
      image_processor: the default for a folder that does not name its own, a key of ``processors.DEFAULTS``; "" for a
        family that only hears.
      pictures: how the size of a picture is chosen; None for such a family.
      videos: how it takes videos; None if it does not.
      markup: what stands around an image's soft tokens. A newline that the chat template writes after it is part of it.
      video_markup: what stands around a whole video, if that is another one.
      audio_extractor: of its recordings, the class of ``transformers``; "" if it takes none.
      boxes: how it was trained to write boxes, in the words of ``config.data.boxes``; "" if unknown.
      image_token_key: the key in ``config.json`` of the image token, which an export adds if the tokenizer has none; ""
        if all tokenizers of the family have one.
      not_followed: settings of its image processor that are not followed if they are on, and what is done instead.
      keeps_whole_tower: whether an export of a joined model has the tower's tensors that we do not use.
    """

    model_type: str
    towers: tuple[str, ...] = ()
    variant: str = ""
    architecture: str
    releases: tuple[str, ...] = ()
    image_processor: str = ""
    pictures: Pictures | None = None
    videos: Videos | None = None
    markup: Markup = OURS
    video_markup: Markup | None = None
    audio_extractor: str = ""
    boxes: str = ""
    image_token_key: str = ""
    not_followed: Mapping[str, str] = ONE_TILE
    keeps_whole_tower: bool = False

    @property
    def name(self) -> str:
        """By which people know it: as ``jaxmm families`` lists it."""
        return self.variant or self.model_type

    @abc.abstractmethod
    def layout(self, config: Any) -> Layout:
        """Returns the model of a config, as ``transformers`` reads it.

        Raises:
          UserError: for a value that is not followed.
        """

    def is_own_processor(self, processor: Mapping[str, Any]) -> bool:
        """Whether a folder's image processor is one that ``transformers`` runs with the whole model."""
        return True

    def cannot_run(self, config: Mapping[str, Any]) -> str:
        """Why ``transformers`` cannot run an export with this ``config.json``, "" where it can."""
        return ""

    def tokenizer_settings(self, vocabulary: Container[str] = ()) -> dict[str, Any]:
        """What an export adds to ``tokenizer_config.json``, for a tokenizer with these tokens."""
        return {}

    def joined_processor(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The processor files of a joined model, by name; {} if an export makes them from our own settings."""
        return {}


class JoiningFamily(Family):
    """A family that joins a tower of its kind with any decoder.

    Attributes:
      joins: the towers, ``towers.ANY_SHAPE`` or ``ONE_SIZE``.
    """

    joins: str

    @abc.abstractmethod
    def join(self, vision: Any, text: Any, tied: bool, folder: Path, connector: ConnectorSpec) -> Joined:
        """Joins a tower and a decoder to one model.

        Args:
          vision, text: their configs, as ``transformers`` reads them.
          tied: whether the decoder's vocabulary projection is its embedding.
          folder: of the tower.
          connector: the one that is asked for; some layouts leave no choice.
        """


class HearingFamily(Family):
    """A family that only hears, and joins an audio tower of its kind with any decoder.

    Attributes:
      hears: the ``model_type`` of such towers.
      audio_token, audio_token_key: the token of a soft token, and the key in ``config.json`` of its id.
      processor_class: of ``transformers``, of the whole model.
    """

    hears: tuple[str, ...]
    processor_class: str
    audio_token: str
    audio_token_key: str

    def special_tokens(self) -> list[str]:
        """Its special tokens, which a decoder's own tokenizer may lack."""
        return [*re.findall(r"<[^<>\s]+>", self.markup.before + self.markup.after), self.audio_token]

    def tokenizer_settings(self, vocabulary: Container[str] = ()) -> dict[str, Any]:
        before, after, token = self.special_tokens()
        return {
            "processor_class": self.processor_class,
            "audio_token": token,
            "audio_bos_token": before,
            "audio_eos_token": after,
        }

    def joined_processor(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The tower's own extractor, in the processor of this family."""
        own = {"feature_extractor_type": self.audio_extractor, **processor, "processor_class": self.processor_class}
        return {"preprocessor_config.json": own}

    @abc.abstractmethod
    def join(self, audio: Any, text: Any, tied: bool) -> Joined:
        """Joins a tower and a decoder to one model; arguments as of ``JoiningFamily.join``."""
