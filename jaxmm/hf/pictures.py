"""How families choose the size of a picture: by soft tokens, by an area or a side in pixels, or squares of one size."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from jaxmm.errors import UserError
from jaxmm.hf.processors import DEFAULTS, RESAMPLES, Limits
from jaxmm.image_spec import SplitSpec
from jaxmm.models.multimodal import ModelSpec

Settings = dict[str, Any]  # of a folder's image processor
LARGEST = 4096  # pixels of a side, above which Idefics 3's processor makes pictures smaller
FILLED = (70, 140, 280, 560, 1120)  # soft tokens, of which Gemma 4's processor takes one number as the most
EDGES = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))  # what Qwen's processors call the limits


def model_settings(spec: ModelSpec) -> dict[str, Any]:
    """The settings of ``ImageSpec`` that the model decides, whatever its processor."""
    decoder = spec.decoder
    has_images = decoder.bidirectional_blocks and not decoder.prefix_blocks
    of_text = {"text_axes": decoder.text_axes, "bidirectional": has_images, "prefix": decoder.prefix_blocks}
    if spec.vision is None:
        return of_text
    vision, connector = spec.seeing
    return of_text | {
        "patch_size": vision.patch_size, "merge": connector.merge, "window": vision.window,
        "class_tokens": vision.class_tokens, "newline": connector.newline,
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
    """One way to choose sizes.

    Attributes:
      split_key: the setting of the processor by which large pictures are split into several tiles; "" if none is
        followed.
      call_keys: its settings that the family's whole processor takes at its call alone, whatever its folder says.
    """

    split_key: ClassVar[str] = ""
    call_keys: ClassVar[tuple[str, ...]] = ()

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

    def told(self, whole: Limits, spec: ModelSpec) -> str:
        """A line for people on limits that were rounded, by ``whole``, to these."""
        area = token_area(spec)
        return f"config.image.min_pixels and max_pixels are made whole soft tokens of {area} pixels: {whole}"

    @abc.abstractmethod
    def resized(self, processor: Settings, pixels: Limits, spec: ModelSpec) -> Settings:
        """Returns a processor's settings with other limits."""


@dataclasses.dataclass(frozen=True)
class BySoftTokens(AnyShape):
    """Pictures of any shape, limited by their number of soft tokens, large ones split: LFM2-VL's processor.

    Attributes:
      square_text, whole_text: ``square`` and ``whole`` of ``SplitSpec``.
    """

    square_text: str = ""
    whole_text: str = ""
    split_key = "do_image_splitting"

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        sizes = {"min_pixels": "min_image_tokens", "max_pixels": "max_image_tokens"}
        settings: dict[str, Any] = {
            ours: int(processor[theirs]) * token_area(spec) for ours, theirs in sizes.items() if theirs in processor
        }
        if processor.get(self.split_key) and not processor["min_tiles"] == processor["max_tiles"] == 1:
            if not processor["use_thumbnail"]:
                raise UserError(
                    f"{where}: split pictures without the whole one (use_thumbnail=False) are not supported"
                )
            settings["split"] = SplitSpec(
                side=int(processor["tile_size"]), least=int(processor["min_tiles"]), most=int(processor["max_tiles"]),
                above=float(processor["max_pixels_tolerance"]), square=self.square_text, whole=self.whole_text,
            )  # fmt: skip
        return settings

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


class ByFramePixels(ByPixels):
    """As ``ByPixels``, with limits on all frames of a temporal patch together, and a least side: GLM's processors."""

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        frames = spec.seeing[0].frames
        inherited = super().settings(processor, config, spec, where)
        limits = {ours: inherited[ours] // frames for ours, _ in EDGES if ours in inherited}
        return limits | {"least_side": "floor"}

    def own_limits(self, processor: Settings, defaults: Settings, spec: ModelSpec) -> Limits:
        least, most = super().own_limits(processor, defaults, spec)
        return least // spec.seeing[0].frames, most // spec.seeing[0].frames

    def resized(self, processor: Settings, pixels: Limits, spec: ModelSpec) -> Settings:
        frames = spec.seeing[0].frames
        return super().resized(processor, (pixels[0] * frames, pixels[1] * frames), spec)


class ByRaisedPixels(ByPixels):
    """As ``ByPixels``, with a least side: PaddleOCR-VL's processor."""

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        return super().settings(processor, config, spec, where) | {"least_side": "round"}


@dataclasses.dataclass(frozen=True)
class ByLongestEdge(AnyShape):
    """Pictures of any shape that is no longer than a side, which is the root of the largest area: Pixtral's processor.

    Attributes:
      row_break: as in ``ImageSpec``.
    """

    row_break: str = ""

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        resizing: dict[str, Any] = {"by_longest": True, "row_break": self.row_break, "min_pixels": token_area(spec)}
        size = processor.get("size") or {}
        if processor and set(size) != {"longest_edge"}:
            raise UserError(f"{where}: its image processor makes pictures of {size}: only longest_edge is supported")
        return resizing | ({"max_pixels": int(size["longest_edge"]) ** 2} if processor else {})

    def own_limits(self, processor: Settings, defaults: Settings, spec: ModelSpec) -> Limits:
        size = (defaults | processor)["size"]
        return token_area(spec), int(size.get("longest_edge") or defaults["size"]["longest_edge"]) ** 2

    def whole(self, asked: Limits, spec: ModelSpec) -> Limits:
        return 0, math.isqrt(asked[1]) ** 2

    def told(self, whole: Limits, spec: ModelSpec) -> str:
        side = math.isqrt(whole[1])
        most = f"; max_pixels is that of a longest edge of {side} pixels, {whole[1]}" if side else ""
        return f"config.image.min_pixels is not followed: pictures are only made smaller{most}"

    def resized(self, processor: Settings, pixels: Limits, spec: ModelSpec) -> Settings:
        return processor | {"size": {"longest_edge": math.isqrt(pixels[1])}}


@dataclasses.dataclass(frozen=True)
class OneSize(Pictures):
    """Squares of the tower's own size; with ``tiles`` a picture is cut into several, as InternVL's are."""

    tiles: bool = False

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        size = config["vision_config"]["image_size"]
        side = size if isinstance(size, int) else size[0]
        resizing = {"side": side, "crop": is_cropped(processor, side, where), "max_pixels": side**2, "min_pixels": 1}
        if self.tiles:
            # The model's processor cuts tiles, whatever crop_to_patches of its image processor says.
            least, most = (int(processor.get(key, 1)) for key in ("min_patches", "max_patches"))
            resizing |= {"min_tiles": least, "max_tiles": most} if most > 1 else {}
        return resizing


@dataclasses.dataclass(frozen=True)
class InSquares(Pictures):
    """Squares of the tower's own size that cover a picture, and the whole picture: Idefics 3's processor.

    Attributes:
      square_text, between, row_end, whole_text, alone: ``square``, ``between``, ``row_end``, ``whole`` and ``alone`` of
        ``SplitSpec``.
    """

    square_text: str
    between: str
    row_end: str
    whole_text: str
    alone: str
    split_key = "do_image_splitting"

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        size = config["vision_config"]["image_size"]
        side = size if isinstance(size, int) else size[0]
        square, longest = ((processor.get(key) or {}) for key in ("max_image_size", "size"))
        if processor and (square.get("longest_edge") != side or not 1 <= longest.get("longest_edge", 0) <= LARGEST):
            raise UserError(
                f"{where}: its image processor makes squares of {square} of pictures of {longest}, its tower takes "
                f"{side} x {side}: that is not supported"
            )
        split = SplitSpec(
            side=side, grid="cover" if processor.get(self.split_key) else "none",
            longest=longest["longest_edge"] if processor else 4 * side, square=self.square_text, between=self.between,
            row_end=self.row_end, whole=self.whole_text, alone=self.alone,
        )  # fmt: skip
        return {"side": side, "max_pixels": side**2, "min_pixels": 1, "split": split}


def is_cropped(processor: Settings, side: int, where: Path) -> bool:
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
