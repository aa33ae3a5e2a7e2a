"""How families choose the size of a picture: by a number of soft tokens, by an area in pixels, or one size for all."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmm.errors import UserError
from jaxmm.hf.processors import DEFAULTS, RESAMPLES, Limits
from jaxmm.models.multimodal import ModelSpec

Settings = dict[str, Any]  # of a folder's image processor
FILLED = (70, 140, 280, 560, 1120)  # soft tokens, of which Gemma 4's processor takes one number as the most
EDGES = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))  # what Qwen's processors call the limits


def model_settings(spec: ModelSpec) -> dict[str, Any]:
    """The settings of ``ImageSpec`` that the model decides, whatever its processor."""
    of_text = {"text_axes": spec.decoder.text_axes, "bidirectional": spec.decoder.bidirectional_blocks}
    if spec.vision is None:
        return of_text
    vision, connector = spec.seeing
    return of_text | {
        "patch_size": vision.patch_size, "merge": connector.merge, "window": vision.window,
        "class_tokens": vision.class_tokens,
    }  # fmt: skip


def normalised(spec: ModelSpec, processor: Settings) -> ModelSpec:
    """Returns the spec with the mean and standard deviation of pixels from the folder's processor."""
    if processor.get("do_normalize") is False:
        processor = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if spec.vision is None:
        return spec
    statistics = {
        ours: processor[theirs]
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
        if theirs in processor
    }
    try:
        as_numbers = {ours: tuple(map(float, of_channels)) for ours, of_channels in statistics.items()}
        if any(len(numbers) != 3 for numbers in as_numbers.values()):
            raise ValueError("one number a channel")
        return dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, **as_numbers))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the image processor's image_mean and image_std, {statistics}, are not right: {error}"
        ) from error


def resample_settings(processor: Settings, where: Path) -> dict[str, Any]:
    """How pictures are resampled, as a setting of ``ImageSpec``; ``where`` is for the error."""
    if "resample" not in processor:
        return {}
    if processor["resample"] not in RESAMPLES:
        raise UserError(f"{where}: images resampled by Pillow's {processor['resample']} are not supported")
    return {"resample": RESAMPLES[processor["resample"]]}


def token_area(spec: ModelSpec) -> int:
    """Pixels that one soft token covers."""
    vision, connector = spec.seeing
    return (vision.patch_size * connector.merge) ** 2


class Pictures(abc.ABC):
    """One way to choose sizes."""

    @abc.abstractmethod
    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        """The settings of ``ImageSpec`` that the folder's processor decides, beside ``model_settings``.

        Args:
          processor: the folder's settings, {} if it has none.
          config: of the whole model.
          where: the folder, for errors.
        """


class AnyShape(Pictures):
    """Pictures of any shape, resized between two limits, which a user may set."""

    @abc.abstractmethod
    def own_limits(self, processor: Settings, defaults: Settings, spec: ModelSpec) -> Limits:
        """Limits in pixels for resizing pictures of any shape: by the folder's settings, or else by ``defaults``."""

    def whole(self, asked: Limits, spec: ModelSpec) -> Limits:
        """Returns the limits that are asked for, rounded to what the processor can express."""
        return asked

    @abc.abstractmethod
    def resized(self, processor: Settings, pixels: Limits, spec: ModelSpec) -> Settings:
        """Returns a processor's settings with other limits."""


class BySoftTokens(AnyShape):
    """Pictures of any shape, limited by their number of soft tokens: LFM2-VL's processor."""

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        sizes = {"min_pixels": "min_image_tokens", "max_pixels": "max_image_tokens"}
        return {
            ours: int(processor[theirs]) * token_area(spec) for ours, theirs in sizes.items() if theirs in processor
        }

    def own_limits(self, processor: Settings, defaults: Settings, spec: ModelSpec) -> Limits:
        if processor.get("max_num_patches") and "max_image_tokens" not in processor:
            # A tower's own processor, whose pictures fill the tower: the limits are as far apart as LFM2-VL's.
            most = int(processor["max_num_patches"]) * spec.seeing[0].patch_size ** 2
            return most // 4, most
        settings, area = defaults | processor, token_area(spec)
        return int(settings["min_image_tokens"]) * area, int(settings["max_image_tokens"]) * area

    def whole(self, asked: Limits, spec: ModelSpec) -> Limits:
        area = token_area(spec)
        return (-(-asked[0] // area) * area, asked[1] // area * area) if asked[1] >= area else asked

    def resized(self, processor: Settings, pixels: Limits, spec: ModelSpec) -> Settings:
        area = token_area(spec)
        return processor | {"min_image_tokens": -(-pixels[0] // area), "max_image_tokens": pixels[1] // area}


class Filled(AnyShape):
    """Pictures of any shape, all of about as many soft tokens as one may have: Gemma 4's processor."""

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        vision, connector = spec.seeing
        for key, own in (("patch_size", vision.patch_size), ("pooling_kernel_size", connector.merge)):
            if processor.get(key, own) != own:
                raise UserError(
                    f"{where}: its image processor has {key}={processor[key]}, its config.json {own}: make them equal"
                )
        least, most = self.own_limits(processor, DEFAULTS["Gemma4ImageProcessor"], spec)
        _check_positions(most // least, spec)
        return {"filled": True, "min_pixels": least, "max_pixels": most}

    def own_limits(self, processor: Settings, defaults: Settings, spec: ModelSpec) -> Limits:
        area = token_area(spec)
        return area, int((defaults | processor)["max_soft_tokens"]) * area

    def whole(self, asked: Limits, spec: ModelSpec) -> Limits:
        """The largest number of soft tokens that its processor knows within the limit; there is no least one."""
        if not asked[1]:
            return 0, 0
        area = token_area(spec)
        tokens = max((most for most in FILLED if most * area <= asked[1]), default=0)
        if not tokens:
            raise UserError(
                f"config.image.max_pixels={asked[1]} is below {min(FILLED)} soft tokens of {area} pixels, the fewest "
                f"that this model's image processor takes: set it to {min(FILLED) * area} or more"
            )
        _check_positions(tokens, spec)
        return 0, tokens * area

    def resized(self, processor: Settings, pixels: Limits, spec: ModelSpec) -> Settings:
        return processor | {"max_soft_tokens": pixels[1] // token_area(spec)}


def _check_positions(tokens: int, spec: ModelSpec) -> None:
    """Raises UserError where a picture one soft token high has more columns than the tower has positions."""
    vision, connector = spec.seeing
    if tokens * connector.merge > vision.axis_positions:
        raise UserError(
            f"pictures of {tokens} soft tokens are up to {tokens * connector.merge} patches wide, and this tower has "
            f"{vision.axis_positions} positions along a side: lower config.image.max_pixels"
        )


class ByPixels(AnyShape):
    """Pictures of any shape, between two areas in pixels: Qwen's processors, which count a thin one as small."""

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        size = processor.get("size") or {}
        resizing: dict[str, Any] = {"thin": True}
        for ours, theirs in EDGES:
            if processor.get(ours) or theirs in size:
                resizing[ours] = int(processor.get(ours) or size[theirs])
        return resizing

    def own_limits(self, processor: Settings, defaults: Settings, spec: ModelSpec) -> Limits:
        settings = defaults | processor
        size = settings.get("size") or {}
        least, most = (
            int(settings.get(ours) or size.get(theirs) or defaults["size"][theirs]) for ours, theirs in EDGES
        )  # fmt: skip
        return least, most

    def resized(self, processor: Settings, pixels: Limits, spec: ModelSpec) -> Settings:
        settings = processor | {"size": {"shortest_edge": pixels[0], "longest_edge": pixels[1]}}
        return settings | {
            key: value for key, value in zip(("min_pixels", "max_pixels"), pixels, strict=True) if key in settings
        }


@dataclasses.dataclass(frozen=True)
class OneSize(Pictures):
    """Squares of the tower's own size; with ``tiles`` a picture is cut into several, as InternVL's are."""

    tiles: bool = False

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        size = config["vision_config"]["image_size"]
        side = size if isinstance(size, int) else size[0]
        resizing = {"side": side, "crop": _is_cropped(processor, side, where), "max_pixels": side**2, "min_pixels": 1}
        if self.tiles:
            # The model's processor cuts tiles, whatever crop_to_patches of its image processor says.
            least, most = (int(processor.get(key, 1)) for key in ("min_patches", "max_patches"))
            resizing |= {"min_tiles": least, "max_tiles": most} if most > 1 else {}
        return resizing


def _is_cropped(processor: Settings, side: int, where: Path) -> bool:
    """Whether pictures are cropped to a square of ``side``, or resized to it.

    Raises:
      UserError: if the folder's processor does anything else.
    """
    if not processor:
        return False
    size, crop = processor.get("size"), processor.get("crop_size")
    square = {"height": side, "width": side}
    is_cropped = bool(processor.get("do_center_crop"))
    resized = {"shortest_edge": side} if is_cropped else square
    if size in (resized, square, side) and (not is_cropped or crop in (square, side)):
        return is_cropped and size == resized
    raise UserError(
        f"{where}: its image processor makes pictures of size {size}"
        f"{f', cropped to {crop}' if is_cropped else ''}, its tower takes {side} x {side}: that is not supported"
    )
