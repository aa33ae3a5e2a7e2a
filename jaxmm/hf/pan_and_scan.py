"""How Gemma 3 chooses the size of a picture: a square, and of a long one also its slices (pan-and-scan)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmm.errors import UserError
from jaxmm.hf.pictures import OneSize, Settings
from jaxmm.image_spec import SplitSpec
from jaxmm.models.multimodal import ModelSpec

LEAST, MOST, ABOVE = (f"pan_and_scan_{key}" for key in ("min_crop_size", "max_num_crops", "min_ratio_to_activate"))
OWN = {LEAST: 256, MOST: 4, ABOVE: 1.2}  # Gemma3Processor's, for what a folder leaves out or has as null


@dataclasses.dataclass(frozen=True)
class PanAndScan(OneSize):
    """Squares of the tower's own size; with ``do_pan_and_scan`` a long picture is the whole, then slices of it.

    Attributes:
      intro, whole_text, between, square_text: ``intro``, ``whole``, ``between`` and ``square`` of ``SplitSpec``.
    """

    intro: str = ""
    whole_text: str = ""
    between: str = ""
    square_text: str = ""
    split_key = "do_pan_and_scan"
    call_keys = (split_key, *OWN)

    def settings(self, processor: Settings, config: Mapping[str, Any], spec: ModelSpec, where: Path) -> dict[str, Any]:
        inherited = super().settings(processor, config, spec, where)
        if not processor.get(self.split_key):
            return inherited
        own = {key: default if processor.get(key) is None else processor[key] for key, default in OWN.items()}
        try:
            split = SplitSpec(
                side=inherited["side"], grid="slices", least_slice=int(own[LEAST]), most=int(own[MOST]),
                above=float(own[ABOVE]), intro=self.intro, whole=self.whole_text, between=self.between,
                square=self.square_text,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(f"{where}: its image processor has {own}, which is not supported: {error}") from error
        return inherited | {"split": split}
