"""How LLaVA-NeXT chooses the size of a picture: that of a list which shows most of it, as squares read as one.

LLaVA-OneVision pools the soft tokens of many squares, and takes several pictures of a document as one square each.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmm.errors import UserError
from jaxmm.hf.pictures import Pictures, Settings, is_cropped
from jaxmm.image_spec import SplitSpec
from jaxmm.models.multimodal import ModelSpec

SIZES = "image_grid_pinpoints"  # the list, in config.json and in the processor's settings
RATIO = "vision_aspect_ratio"  # how many squares' worth of soft tokens there may be, in config.json


@dataclasses.dataclass(frozen=True)
class AnyResolution(Pictures):
    """A grid of squares of the tower's own size, which are read as one picture, and the whole: LLaVA-NeXT's processor.

    The sizes of the grids are the model's, which must be the processor's.

    Attributes:
      several: soft tokens are pooled where ``vision_aspect_ratio`` of the model says so, and a picture that is not the
        only one of its document is a square with a border of the mean colour (LLaVA-OneVision).
    """

    several: bool = False

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        size = config["vision_config"]["image_size"]
        side = size if isinstance(size, int) else size[0]
        is_cropped(processor, side, where)  # squares have that size already
        sizes = config[SIZES]
        if processor and processor[SIZES] != sizes:
            raise UserError(
                f"{where}: its image processor has {SIZES}={processor[SIZES]}, its config.json {sizes}: make them equal"
            )
        if any(not length or length % side for size in sizes for length in size):
            raise UserError(
                f"{where}: {SIZES}={sizes} are not whole squares of the {side} pixels that its tower takes: that is "
                f"not supported"
            )
        split = SplitSpec(side=side, grid="shown", sizes=tuple((height, width) for height, width in sizes))
        if self.several:
            named = re.fullmatch(r"anyres_max_(\d+)", config[RATIO])
            if not named:
                raise UserError(f"config.json: {RATIO}='{config[RATIO]}' is not supported: only anyres_max_N is")
            colour = tuple(int(level * 255) for level in spec.seeing[0].mean)
            beside = SplitSpec(side=side, grid="bordered", border=colour)
            split = dataclasses.replace(split, pooled_above=int(named[1]), beside=beside)
        return {"side": side, "max_pixels": side**2, "min_pixels": 1, "split": split}
