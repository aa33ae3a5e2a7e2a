"""What ``config.init_from`` names, as a family with sizes: a whole model's folder, or one folder for each part.

A run keeps the small files in its workdir, so that it can be evaluated, asked and exported where the folders are not.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf import names, specs
from jaxmm.hf.specs import Family
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec

MODEL = "model"  # folder of a workdir: the small files of the model that the run started from
SPARE = "spare.safetensors"
# What a tokenizer and an image processor are saved as.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
    "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "generation_config.json")


class Start(NamedTuple):
    """Where a model comes from.

    Attributes:
      family: with the sizes of the folder's config.
      config: the family's ``config.json``.
      folders: of tensors: "model", or "vision" and "decoder".
      tokenizer: its folder.
      processor: the folder's image processing, {} where it says nothing.
      run: the workdir of a run that started from such a model, and whose parameters count.
    """

    family: Family
    config: dict[str, Any]
    folders: dict[str, Path]
    tokenizer: Path
    processor: dict[str, Any]
    run: Path | None = None

    @property
    def is_joined(self) -> bool:
        """Whether it is a tower and a decoder that no folder had together."""
        return self.config["model_type"] == "lfm2_vl" and "min_image_tokens" not in self.processor

    def differences(self) -> list[str]:
        """What the folder does with images and we do not, for people to know."""
        return [
            f"the folder's {key} is not followed: each image is one tile"
            for key in ("do_image_splitting", "do_pan_and_scan", "crop_to_patches")
            if self.processor.get(key)
        ]

    def grown(self, vocabulary: int) -> Start:
        """With an embedding of so many rows."""
        model = self.family.spec
        decoder = dataclasses.replace(model.decoder, vocab_size=vocabulary)
        config = json.loads(json.dumps(self.config))
        config["text_config"]["vocab_size"] = vocabulary
        family = self.family._replace(spec=dataclasses.replace(model, decoder=decoder))
        return self._replace(family=family, config=config)


def parse(text: str) -> dict[str, Path]:
    """Reads ``DIR``, or ``vision:DIR,decoder:DIR``; {} for ''.

    Raises:
      UserError: if only one part is named, or a folder is not there.
    """
    if not text:
        return {}
    parts = dict(entry.strip().split(":", 1) for entry in text.split(",") if ":" in entry)
    if set(parts) & {"vision", "decoder", "connector"} and not Path(text).exists():
        if set(parts) != {"vision", "decoder"}:
            raise UserError(f"config.init_from '{text}': name both parts, as vision:DIR,decoder:DIR")
        folders = {part: Path(folder).expanduser() for part, folder in parts.items()}
    else:
        folders = {"model": Path(text).expanduser()}
    for folder in folders.values():
        if not folder.is_dir():
            raise UserError(f"config.init_from: there is no folder {folder}")
    return folders


def read_start(text: str, saved: Path | None, merge: int, mlp: int) -> Start | None:
    """What a run starts from, or None where that is no Hugging Face model.

    Args:
      text: ``config.init_from``.
      saved: where a run of before has kept the small files.
      merge, mlp: of the fresh connector between a tower and a decoder.
    """
    if saved is not None and hf.is_folder(saved):
        return _whole(saved)
    folders = parse(text)
    if "model" in folders:
        folder = folders["model"]
        if hf.is_folder(folder):
            return _whole(folder)
        return _whole(folder / MODEL)._replace(run=folder) if hf.is_folder(folder / MODEL) else None
    return _joined(folders, merge, mlp) if folders else None


def _whole(folder: Path) -> Start:
    (family, config), processor = hf.read_family(folder), _processor(folder)
    family = family._replace(spec=_normalised(family.spec, processor))
    return Start(family, config, {"model": folder}, folder, processor)


def _normalised(spec: ModelSpec, processor: dict[str, Any]) -> ModelSpec:
    """With the mean and standard deviation of pixels that the folder's processor has."""
    found = {
        ours: tuple(float(x) for x in processor[theirs])
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
        if theirs in processor
    }
    return dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, **found))  # type: ignore[arg-type]


def _joined(folders: dict[str, Path], merge: int, mlp: int) -> Start:
    """A tower and a decoder in LFM2-VL's layout."""
    vision, text = (hf.read_config(folders[part]) for part in ("vision", "decoder"))
    tied = hf.is_tied(folders["decoder"], bool(getattr(text, "tie_word_embeddings", False)))
    vision = getattr(vision, "vision_config", vision)
    text = getattr(text, "text_config", text)
    tower = specs.tower_of(vision)
    decoder = specs.plain_decoder_of(text, tied)
    connector = ConnectorSpec(merge=merge, mlp=mlp)
    processor = _processor(folders["vision"])
    spec = _normalised(ModelSpec(tower.spec, connector, decoder.spec), processor)
    family = Family(spec, tower.names, decoder.names, "mlp", specs.NEW)
    config = specs.lfm2_vl_config(vision.to_dict(), text.to_dict(), connector, decoder.spec.tie_embeddings)
    return Start(family, config, folders, folders["decoder"], processor)


def _processor(folder: Path) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is no JSON: download it again") from error
        found = found.get("image_processor", found)
        if found:
            return found
    return {}


def read_params(start: Start, where: hf.Where) -> hf.Read:
    """The parameters that the folders have: of parts, all but the connector's."""
    family = start.family
    if "model" in start.folders:
        return hf.read_model(start.folders["model"], family, where)
    tower = hf.read_tower(start.folders["vision"], names.TOWERS[family.tower], family.spec, where)
    decoder = hf.read_decoder(start.folders["decoder"], names.DECODERS[family.decoder], family.spec, where)
    return hf.Read({**tower.params, **decoder.params}, [])  # what a tower alone has besides belongs to no whole model


def save(start: Start, spare: list[str], folder: Path) -> None:
    """Keeps the small files, and the tensors that our model does not use."""
    folder.mkdir(parents=True, exist_ok=True)
    if start.run and (start.run / MODEL / SPARE).exists():
        shutil.copyfile(start.run / MODEL / SPARE, folder / SPARE)
    for name in TOKENIZER_FILES:
        if (start.tokenizer / name).exists():
            shutil.copyfile(start.tokenizer / name, folder / name)
    source = start.folders.get("model") or start.folders["vision"]
    for name in PROCESSOR_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    if "model" in start.folders and not start.run:
        hf.save_spare(start.folders["model"], spare, folder / SPARE)
    # The config is last: with it the folder is whole.
    (folder / hf.CONFIG).write_text(json.dumps(start.config, indent=2, sort_keys=True))


# What stands around an image's soft tokens, by family; the others have our own.
MARKUP = {
    "qwen2_5_vl": ("<|vision_start|>", "<|vision_end|>"),
    "qwen3_vl": ("<|vision_start|>", "<|vision_end|>"),
    "gemma3": ("\n\n<start_of_image>", "<end_of_image>\n\n"),
    "llava": ("", ""),
}
RESAMPLES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def image_settings(start: Start) -> dict[str, Any]:
    """What of ``ImageSpec`` the folder decides: patches, merge and order by the model, sizes by its processor.

    Raises:
      UserError: for a family whose images are not processed here.
    """
    kind, processor, spec = start.config["model_type"], start.processor, start.family.spec
    vision, merge = spec.vision, spec.connector.merge
    found: dict[str, Any] = {
        "patch_size": vision.patch_size, "merge": merge, "window": vision.window,
        "class_tokens": vision.class_tokens, "text_axes": spec.decoder.text_axes,
        "two_way": spec.decoder.two_way_blocks,
    }  # fmt: skip
    if "resample" in processor:
        if processor["resample"] not in RESAMPLES:
            raise UserError(
                f"{start.tokenizer}: images resampled by Pillow's {processor['resample']} are not supported"
            )
        found["resample"] = RESAMPLES[processor["resample"]]
    if kind == "lfm2_vl":
        area = (vision.patch_size * merge) ** 2
        sizes = {"min_pixels": "min_image_tokens", "max_pixels": "max_image_tokens"}
        found |= {ours: int(processor[theirs]) * area for ours, theirs in sizes.items() if theirs in processor}
    elif kind in ("qwen2_5_vl", "qwen3_vl"):
        size = processor.get("size") or {}
        for ours, theirs in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if processor.get(ours) or theirs in size:
                found[ours] = int(processor.get(ours) or size[theirs])
    elif kind in ("llava", "gemma3"):
        side = vision.positions * vision.patch_size
        found |= {"side": side, "crop": bool(processor.get("do_center_crop")), "max_pixels": side**2, "min_pixels": 1}
    else:
        raise UserError(
            f"a model of '{kind}' can be read and written, but its images are not processed here yet: train one of "
            f"lfm2_vl, llava, qwen2_5_vl, qwen3_vl, gemma3, or a tower and a decoder as vision:DIR,decoder:DIR"
        )
    return found
