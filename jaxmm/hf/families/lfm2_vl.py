"""LFM2-VL's layout: a SigLIP 2 NaFlex tower, a pixel unshuffle with an MLP, and a decoder.

Where the facts come from, in ``transformers``: sizes and connector from ``Lfm2VlConfig`` and
``Lfm2VlMultiModalProjector``; names of tensors from ``Lfm2VlForConditionalGeneration``; sizes of pictures and the
names of files, and the text between the tiles of a split picture, from ``Lfm2VlImageProcessor`` and
``Lfm2VlProcessor``. The decoder is LFM2's own, or another one.

A model of our own, and a SigLIP 2 tower that is joined with a decoder, get this layout.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from jaxmm.data.text.own_format import IMAGE, IMAGE_END, IMAGE_START
from jaxmm.errors import UserError
from jaxmm.hf import supported
from jaxmm.hf.decoders import DECODERS, plain_decoder_of
from jaxmm.hf.families.family import NEW, PROJECTOR, Joined, JoiningFamily, Layout
from jaxmm.hf.pictures import BySoftTokens
from jaxmm.hf.processors import RESAMPLES, processor_kind, read_processor
from jaxmm.hf.towers import ANY_SHAPE, TOWERS, joinable, tower_of
from jaxmm.image_spec import ImageSpec
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import ModelSpec
from jaxmm.models.towers.vit import VisionSpec

WHOLE = "<|img_thumbnail|>"  # before the whole picture behind its tiles


class Lfm2VL(JoiningFamily):
    model_type = "lfm2_vl"
    architecture = "Lfm2VlForConditionalGeneration"
    releases = (
        "LiquidAI/LFM2-VL-450M", "LiquidAI/LFM2-VL-1.6B", "LiquidAI/LFM2-VL-3B", "LiquidAI/LFM2.5-VL-450M",
        "LiquidAI/LFM2.5-VL-1.6B",
    )  # fmt: skip
    image_processor = "Lfm2VlImageProcessor"
    pictures = BySoftTokens("<|img_row_{row}_col_{column}|>", WHOLE)
    image_token_key = "image_token_id"
    joins = ANY_SHAPE

    def layout(self, config: Any) -> Layout:
        tower = tower_of(config.vision_config)
        decoder = plain_decoder_of(config.text_config, config.tie_word_embeddings)
        connector = ConnectorSpec(
            merge=config.downsample_factor, mlp=config.projector_hidden_size, bias=config.projector_bias,
            norm="layer" if config.projector_use_layernorm else "",
            activation=supported.activation(config.projector_hidden_act),
        )  # fmt: skip
        rules = [*tower.rules, *PROJECTOR, *decoder.rules]
        return Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, NEW)

    def is_own_processor(self, processor: Mapping[str, Any]) -> bool:
        """A tower's own folder may have another processor, which does not know soft tokens."""
        return not processor or processor_kind(dict(processor), self.image_processor) == self.image_processor

    def cannot_run(self, config: Mapping[str, Any]) -> str:
        """jaxmm 0.1 joined any tower with any decoder."""
        tower = config["vision_config"].get("model_type", "")
        if tower in joinable([ANY_SHAPE]):
            return ""
        return f"transformers runs no tower '{tower}' in LFM2-VL's layout, into which jaxmm 0.1 has put this run's"

    def tokenizer_settings(self, vocabulary: Container[str] = ()) -> dict[str, Any]:
        """A tokenizer without a name for whole pictures is that of a model that splits none, and needs none."""
        return {
            "processor_class": "Lfm2VlProcessor", "image_token": IMAGE, "image_start_token": IMAGE_START,
            "image_end_token": IMAGE_END, "image_thumbnail_token": WHOLE if WHOLE in vocabulary else IMAGE,
        }  # fmt: skip

    # Joined from a tower and a decoder

    def join(self, vision: Any, text: Any, tied: bool, folder: Path, connector: ConnectorSpec) -> Joined:
        tower, decoder = tower_of(vision), plain_decoder_of(text, tied)
        rules = [*tower.rules, *PROJECTOR, *decoder.rules]
        layout = Layout(ModelSpec(tower.spec, connector, decoder.spec), rules, NEW)
        config = self._config(vision.to_dict(), text.to_dict(), connector, decoder.spec.tie_embeddings)
        return Joined(self, layout, config, read_processor(folder, self.image_processor))

    def _config(
        self, vision: dict[str, Any], text: dict[str, Any], connector: ConnectorSpec, tied: bool
    ) -> dict[str, Any]:
        """``config.json``, from those of the two parts."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vision_config": {**vision, "vision_use_head": False},
            "text_config": text,
            "downsample_factor": connector.merge,
            "projector_hidden_size": connector.mlp,
            "projector_hidden_act": supported.activation_written(connector.activation),
            "projector_bias": connector.bias,
            "projector_use_layernorm": bool(connector.norm),
            "tie_word_embeddings": tied,
        }

    # Of a model of our own

    def own_layout(self, spec: ModelSpec) -> tuple[Layout, dict[str, Any]]:
        """The layout and ``config.json`` of a SigLIP 2 tower with a Llama decoder, or with ``qk_norm`` a Qwen 3 one.

        Raises:
          UserError: if it has features that these do not have.
        """
        _require_plain(spec)
        tower, connector = spec.seeing
        vision, text = _vision_config(tower), _text_config(spec.decoder)
        rules = [*TOWERS[vision["model_type"]].rules, *PROJECTOR, *DECODERS[text["model_type"]].rules]
        return Layout(spec, rules, NEW), self._config(vision, text, connector, spec.decoder.tie_embeddings)

    def own_processor(self, image: ImageSpec, vision: VisionSpec) -> dict[str, dict[str, Any]]:
        """The processor files, by name, with which ``transformers`` makes the patches that the model was trained on."""
        area = (image.patch_size * image.merge) ** 2
        settings = {
            "image_processor_type": self.image_processor,
            "do_image_splitting": False,
            "min_tiles": 1,
            "max_tiles": 1,
            "use_thumbnail": False,
            "downsample_factor": image.merge,
            "encoder_patch_size": image.patch_size,
            "min_image_tokens": -(-image.min_pixels // area),
            "max_image_tokens": image.max_pixels // area,
            "tile_size": image.patch_size * image.merge,
            "image_mean": list(vision.mean),
            "image_std": list(vision.std),
            "resample": next(number for number, name in RESAMPLES.items() if name == image.resample),
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_pad": True,
            "do_convert_rgb": True,
            "return_row_col_info": True,
        }
        whole = {"processor_class": "Lfm2VlProcessor", "image_processor": settings}
        return {"preprocessor_config.json": settings, "processor_config.json": whole}


def _require_plain(spec: ModelSpec) -> None:
    """Raises UserError for features that SigLIP 2, Llama and Qwen 3 do not have."""
    (vision, _), decoder = spec.seeing, spec.decoder
    plain_vision = VisionSpec(
        **{name: getattr(vision, name) for name in ("width", "layers", "heads", "mlp", "patch_size", "positions")},
        norm_eps=vision.norm_eps, mean=vision.mean, std=vision.std,
    )  # fmt: skip
    sizes: tuple[str, ...] = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp")
    sizes += ("rope_theta", "norm_eps", "qk_norm")
    plain_decoder = DecoderSpec(
        **{name: getattr(decoder, name) for name in sizes}, tie_embeddings=decoder.tie_embeddings
    )  # fmt: skip
    if plain_vision != vision or plain_decoder != decoder:
        raise UserError("this model has features that SigLIP 2 with Llama does not have: start it from a folder")


def _vision_config(vision: VisionSpec) -> dict[str, Any]:
    return {
        "model_type": "siglip2_vision_model",
        "hidden_size": vision.width,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.mlp,
        "patch_size": vision.patch_size,
        "num_patches": vision.positions**2,
        "layer_norm_eps": vision.norm_eps,
        "hidden_act": "gelu_pytorch_tanh",
    }


def _text_config(decoder: DecoderSpec) -> dict[str, Any]:
    return {
        "model_type": "qwen3" if decoder.qk_norm else "llama",
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "intermediate_size": decoder.mlp,
        "rope_theta": decoder.rope_theta,
        "rms_norm_eps": decoder.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": decoder.tie_embeddings,
    }
