"""What a family's tower and decoder ask of a Batch, as data: the check that one grammar of inputs holds them all.

Weights and layers of the families come with their own issues. Here is what their inputs need: how patches are cut and
ordered, which of them are class tokens, and which intervals each layer's attention has.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.batch import Batch, Stream
from jaxmm.models import attention as attn


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The inputs of one family.

    Attributes:
      patch_size: side of a patch in pixels.
      merge: side, in patches, of the square that becomes one soft token; its patches are adjacent in the Stream.
      pool: how: "unshuffle" (concatenated, then projected) or "average".
      frames_per_patch: video frames that one patch spans; a still image is repeated.
      tile: side in pixels of the square tiles that images are cut into or resized to; 0 is the image's own grid.
      max_tiles: tiles of an image at most, without the thumbnail.
      thumbnail: an image of several tiles adds itself, small, as the last one.
      class_tokens: learned tokens of each tile, at row -1. They follow its patches and fill whole merge groups with
        padding (segment 0), so that the groups of patches stay aligned; no slot points at their soft tokens.
      window: side, in patches, of the windows of most tower layers, whose patches are adjacent; 0 is none.
      text_axes: coordinates of a text position (3: frame, row, column of multi-axis rotary).
      two_way_images: the decoder sees an image's positions both ways.
      text_window: positions back that most decoder layers see; 0 is all.
    """

    patch_size: int
    merge: int
    pool: str = "unshuffle"
    frames_per_patch: int = 1
    tile: int = 0
    max_tiles: int = 1
    thumbnail: bool = False
    class_tokens: int = 0
    window: int = 0
    text_axes: int = 1
    two_way_images: bool = False
    text_window: int = 0

    def tile_patches(self, rows: int = 0, columns: int = 0) -> int:
        """Patch positions of one frame of a tile, class tokens and their padding included.

        Args:
          rows, columns: its grid, where tiles have no fixed size.
        """
        side = self.tile // self.patch_size
        rows, columns = (side, side) if self.tile else (rows, columns)
        if rows % self.merge or columns % self.merge:
            raise ValueError(f"a grid of {rows} x {columns} patches does not divide into {self.merge} x {self.merge}")
        group = self.merge**2
        return rows * columns + -(-self.class_tokens // group) * group


# Bai et al., 2025: Qwen2.5-VL. Windows of 112 pixels in all but four tower layers.
QWEN2_5_VL = InputSpec(patch_size=14, merge=2, frames_per_patch=2, window=8, text_axes=3)
# Zhu et al., 2025: InternVL 3. Up to 12 tiles of 448 pixels and a thumbnail.
INTERNVL_3 = InputSpec(patch_size=14, merge=2, tile=448, max_tiles=12, thumbnail=True, class_tokens=1)
# Gemma Team, 2025: Gemma 3. One picture of 896 x 896, pooled to 256 soft tokens.
GEMMA_3 = InputSpec(patch_size=14, merge=4, pool="average", tile=896, two_way_images=True, text_window=1024)
# Tschannen et al., 2025: SigLIP 2 NaFlex, with this package's connector.
SIGLIP2_NAFLEX = InputSpec(patch_size=16, merge=2)

FAMILIES = {
    "qwen2.5-vl": QWEN2_5_VL,
    "internvl-3": INTERNVL_3,
    "gemma-3": GEMMA_3,
    "siglip2-naflex": SIGLIP2_NAFLEX,
}


def batch_shapes(spec: InputSpec, rows: int, seq_len: int, patch_budget: int, items: int) -> Batch:
    """The Batch of a family as ``jax.ShapeDtypeStruct``s; ``items`` counts tiles."""
    B, T, N = rows, seq_len, patch_budget

    def of(*shape: int, dtype=np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    patch_bytes = spec.patch_size**2 * 3 * spec.frames_per_patch
    return Batch(
        text=Stream(of(B, T), of(B, T, spec.text_axes), of(B, T)),
        patches=Stream(of(B, N, patch_bytes, dtype=np.uint8), of(B, N, 3), of(B, N)),
        grids_BM3=of(B, items, 3),
        slots_BT=of(B, T),
        blocks_BT=of(B, T),
        targets_BT=of(B, T),
        weights_BT=of(B, T, dtype=np.float32),
        sources_BT=of(B, T),
    )


def tower_intervals(spec: InputSpec, batch: Batch) -> dict[str, attn.Intervals]:
    """Intervals of the layers: "all" sees a frame of a tile, "window" (where there are any) one window of it."""
    frame, row, column = jnp.moveaxis(batch.patches.positions, -1, 0)
    found = {"all": attn.two_way(batch.patches.segments, frame)}
    if spec.window:
        keys = frame, row // spec.window, column // spec.window
        found["window"] = attn.two_way(batch.patches.segments, *keys)
    return found


def text_intervals(spec: InputSpec, batch: Batch) -> dict[str, attn.Intervals]:
    """Intervals of the decoder's layers: "all", and "window" where there are local ones."""
    blocks_BT = batch.blocks_BT if spec.two_way_images else None
    found = {"all": attn.causal(batch.text.segments, blocks_BT)}
    if spec.text_window:
        found["window"] = attn.causal(batch.text.segments, blocks_BT, spec.text_window)
    return found


def soft_tokens(spec: InputSpec, features_BND: jax.Array) -> jax.Array:
    """What the connector gets of each merge group: (B, S, D * merge**2), or (B, S, D) averaged."""
    B, N, D = features_BND.shape
    groups_BSGD = features_BND.reshape(B, N // spec.merge**2, spec.merge**2, D)
    return groups_BSGD.mean(2) if spec.pool == "average" else groups_BSGD.reshape(B, groups_BSGD.shape[1], -1)
