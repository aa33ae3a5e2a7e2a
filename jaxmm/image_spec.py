"""How pictures are taken: what the data side must know of a model's tower, and the model of its pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

from jaxmm.clip_spec import AudioSpec, VideoSpec

GRIDS = ("aspect", "cover", "shown", "slices", "bordered", "none")
POOLED_FROM = 1.1  # times the side that may be, from which soft tokens are pooled


@dataclasses.dataclass(frozen=True)
class SplitSpec:
    """How a large picture becomes squares of a grid, each a tile, and the whole picture, one more.

    Attributes:
      side: of a square in pixels.
      grid: "aspect": where a picture, its sides rounded to soft tokens, has more than ``above`` times max_pixels of the
        ``ImageSpec``, the grid of ``least`` to ``most`` squares whose aspect is nearest (LFM2-VL). "cover": the longer
        side is resized to ``longest``, and as many squares as cover the picture are taken where they are more than one;
        the whole is resized from these (Idefics 3). "shown": of ``sizes``, the one in which most of a picture's pixels
        are shown, its aspect kept, and fewest are none of it: black ones around it. The soft tokens of the squares are
        read as one picture, row by row over all of them, without those of black pixels alone, and the model's own
        vector ends each row; the whole picture's, a square too, stand before (LLaVA-NeXT). "slices": where the longer
        side is ``above`` times the shorter one or more, it is cut into as many slices as it is times as long, 2 to
        ``most``, if no side of them is below ``least_slice``; each is resized to a square. The whole picture, a square
        too, stands before (Gemma 3). "bordered": no squares, but a border of the colour ``border`` makes the whole
        picture one, and the model's vector ends it. "none": resized to ``longest`` too, but never split.
      least, most, above, longest, sizes, border, least_slice: as above, for the grids that have them; ``sizes`` are
        (height, width) in pixels.
      pooled_above: above 0, the soft tokens of squares that are read as one picture are resized bilinearly to those of
        so many squares, if they are more by ``POOLED_FROM`` along a side (LLaVA-OneVision).
      beside: how a picture is split that is not the only one of its document; None is as one that is.
      square: text before each square, special tokens included; a format string of ``row`` and ``column``, from 1. Like
        the texts below it is no target.
      between: text before that of each square but the first.
      row_end: text after the last square of a row.
      whole: text between the squares and the whole picture, whichever stands before.
      alone: text before a picture that is not split.
      intro: text before a picture that is split and what stands before every picture. It is tokenized with the text
        around the picture, so prepared data has it (``data/text/intros.py``).
    """

    side: int
    grid: str = "aspect"
    least: int = 2
    most: int = 10
    above: float = 2.0
    longest: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    border: tuple[int, ...] = ()
    pooled_above: int = 0
    beside: SplitSpec | None = None
    square: str = ""
    between: str = ""
    row_end: str = ""
    whole: str = ""
    alone: str = ""
    least_slice: int = 0
    intro: str = ""

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise ValueError(f"grid '{self.grid}' of split pictures is not one of {', '.join(GRIDS)}")
        if self.grid == "aspect" and not 2 <= self.least <= self.most:
            raise ValueError(f"a picture is split into 2 tiles or more, in order, not into {self.least} to {self.most}")
        if self.grid in ("cover", "none") and self.longest < 1:
            raise ValueError("longest must be set for pictures that squares cover")
        if self.grid == "shown" and not self.sizes:
            raise ValueError("there must be sizes for pictures that are shown in one of them")
        if any(length < self.side or length % self.side for size in self.sizes for length in size):
            raise ValueError(f"the sizes {self.sizes} of pictures must be whole squares of {self.side} pixels")
        if self.grid == "slices" and not (2 <= self.most <= self.least_slice and self.above >= 1):
            raise ValueError(
                f"a picture above {self.above} times as long as wide is cut into 2 to {self.most} slices of "
                f"{self.least_slice} pixels or more: 1 or above, 2 or above, and no fewer pixels than slices"
            )
        if (self.least_slice or self.intro) and self.grid != "slices":
            raise ValueError("slices, and no others, have a least side and text before the whole picture")
        if self.row_end and self.grid == "slices":
            raise ValueError("slices are one row or one column: no text ends their rows")
        if self.ends_rows and self.has_text:
            raise ValueError("squares that are read as one picture have no text between them")
        if (self.grid == "bordered") != (len(self.border) == 3):
            raise ValueError("a picture with a border, and no other one, has a colour for it, of three levels")
        if (self.pooled_above or self.beside) and self.grid != "shown":
            raise ValueError("squares that are read as one picture may be pooled, or be those of one alone; no others")
        if self.beside and (self.beside.grid != "bordered" or self.beside.side != self.side):
            raise ValueError(f"beside others a picture is one with a border, of {self.side} pixels")

    @property
    def ends_rows(self) -> bool:
        """Whether the model's own vector ends rows of soft tokens."""
        return self.grid in ("shown", "bordered")

    @property
    def whole_first(self) -> bool:
        """Whether the whole picture is read before its squares; it travels behind them all the same."""
        return self.grid in ("shown", "slices")

    @property
    def has_text(self) -> bool:
        """Whether text stands before, between or behind the tiles."""
        return any((self.square, self.between, self.row_end, self.whole, self.alone))


LEAST_SIDES = {"": [], "floor": ["least side"], "round": ["least side, rounded"]}  # in keys of what is kept on disk


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How an image becomes tiles, patches and soft tokens: what the data side must know of a vision tower.

    Attributes:
      patch_size: side of a square patch in pixels.
      merge: side, in patches, of the square of patches that becomes one soft token.
      min_pixels, max_pixels: bounds on the area an image is resized to, with its aspect kept.
      side: of the square that every image is resized to instead; 0 is none. Where patches do not divide it, the
        pixels behind the last whole one are not seen.
      min_tiles, max_tiles: with a side, an image is resized to a grid of so many squares of it, of about its aspect,
        each a tile by itself; where they are more than one, the whole image is one more tile after them (InternVL).
      crop: with a side, the aspect is kept, and what is longer is cut off at both ends (CLIP).
      resample: "bicubic", "bilinear" or "lanczos".
      least_side: a side below one soft token makes a picture larger first, with its aspect kept, until it is one. The
        other side is then rounded down ("floor", GLM) or to the nearest pixel ("round", PaddleOCR-VL); "" does not.
      by_longest: a side above the root of max_pixels makes a picture smaller, with its aspect kept, and nothing makes
        it larger; sides are then rounded up to whole soft tokens (Pixtral).
      row_break: text after each row of an image's soft tokens but the last, the names of special tokens (Pixtral). It
        is no target.
      newline: the model has a learnt vector that ends rows of soft tokens: the first row of the soft-token table.
      thin: a side below half a soft token makes a picture small, however long the other one is (Qwen-VL).
      filled: every image is resized to the largest area up to max_pixels, with both sides floored (Gemma 4).
      window: side, in patches, of the windows whose patches travel together; 0 is none.
      class_tokens: learned tokens of each image, which travel after its patches; with padding they fill merge groups.
      text_axes: coordinates of a text position: 3 where soft tokens have a row and a column of their own (Qwen-VL).
      bidirectional: the soft tokens of an image, or of each of its tiles, see each other both ways (Gemma 3).
      prefix: all that stands before a document's answer does (PaliGemma).
      is_sighted: whether the model has a vision tower at all.
      split: how large pictures become several tiles with text between them; None where they do not.
      video, audio: how these are taken, where a run has them.
    """

    patch_size: int = 16
    merge: int = 2
    min_pixels: int = 64 * 64
    max_pixels: int = 512 * 512
    side: int = 0
    min_tiles: int = 1
    max_tiles: int = 1
    crop: bool = False
    resample: str = "bicubic"
    thin: bool = False
    filled: bool = False
    window: int = 0
    class_tokens: int = 0
    text_axes: int = 1
    bidirectional: bool = False
    is_sighted: bool = True
    split: SplitSpec | None = None
    least_side: str = ""
    by_longest: bool = False
    row_break: str = ""
    prefix: bool = False
    newline: bool = False
    video: VideoSpec | None = None
    audio: AudioSpec | None = None

    def key(self, media: Container[str] = ()) -> list[Any]:
        """Its values for keys of what is kept on disk of data with ``media``: where these are no clips, those of before
        there were any."""
        values = dataclasses.asdict(self)
        clips = {name: values.pop(name) for name in ("video", "audio")}
        clips["video"] = self.video and self.video.key()
        split = [of_split] if (of_split := values.pop("split")) else []
        for later in ("sizes", "border", "pooled_above", "beside", "least_slice", "intro"):
            if of_split and not of_split[later]:
                del of_split[later]
        more = [] if values.pop("is_sighted") else ["blind"]
        more += LEAST_SIDES[values.pop("least_side")]
        more += ["filled"] * values.pop("filled")
        more += ["by longest edge"] * values.pop("by_longest")
        more += ["prefix"] * values.pop("prefix")
        more += ["newline"] * values.pop("newline")
        more += [f"rows end with {row_break}"] if (row_break := values.pop("row_break")) else []
        return [*values.values(), *split, *more, *(clip for name, clip in clips.items() if name in media)]

    def only(self, media: Container[str]) -> ImageSpec:
        """The spec of a run that has only these media beside pictures."""
        video, audio = self.video if "video" in media else None, self.audio if "audio" in media else None
        return dataclasses.replace(self, video=video, audio=audio)

    def without_rows(self) -> ImageSpec:
        """The spec where no row limits a video."""
        video = self.video and dataclasses.replace(self.video, row_tokens=0, row_patches=0)
        return dataclasses.replace(self, video=video)

    @property
    def patch_bytes(self) -> int:
        """Bytes of a patch as it travels: where a run has videos, a picture's patch is repeated for each frame."""
        return self.patch_size**2 * 3 * (self.video.frames if self.video else 1)

    @property
    def extra(self) -> int:
        """Patch positions of an image that are no patches: class tokens, and what fills their merge groups."""
        return -(-self.class_tokens // self.merge**2) * self.merge**2

    @property
    def tile_patches(self) -> int:
        """Patch positions of a tile that is a square."""
        return (self.tile_side // self.patch_size) ** 2 + self.extra

    @property
    def tile_side(self) -> int:
        """Side in pixels of the squares that a picture is resized to or split into; 0 for none."""
        return self.split.side if self.split else self.side

    @property
    def side_tokens(self) -> int:
        """Soft tokens along a side of such a square."""
        return self.tile_side // self.patch_size // self.merge

    @property
    def has_tiles(self) -> bool:
        """Whether a picture may become more than one tile."""
        return self.max_tiles > 1 or (self.split is not None and self.split.grid not in ("bordered", "none"))

    @property
    def mixes(self) -> bool:
        """Whether soft tokens may be made of several rows of the table."""
        is_film_pooled = self.video is not None and self.video.pool > 1
        return is_film_pooled or (self.split is not None and self.split.pooled_above > 0)

    def __post_init__(self) -> None:
        factor = self.patch_size * self.merge
        if self.patch_size < 1 or self.merge < 1:
            raise ValueError(f"patch_size {self.patch_size} and merge {self.merge} must be positive")
        if self.side and (self.side < factor or self.side // self.patch_size % self.merge):
            raise ValueError(f"a side of {self.side} must be whole soft tokens of {factor} pixels")
        if self.max_tiles > 1 and self.side % self.patch_size:
            raise ValueError(f"the side {self.side} of a tile must be whole patches of {self.patch_size} pixels")
        if self.window % self.merge:
            raise ValueError(f"window {self.window} must be whole soft tokens of {self.merge} patches")
        if not 1 <= self.min_tiles <= self.max_tiles or (self.max_tiles > 1 and not self.side):
            raise ValueError(f"tiles {self.min_tiles} to {self.max_tiles} of side {self.side}: squares, in order")
        if self.max_tiles > 1 and (self.crop or self.window or self.text_axes > 1):
            raise ValueError("an image of several tiles has no crop, windows or axes of text")
        if self.split:
            if self.max_tiles > 1 or self.crop or self.window or self.text_axes > 1:
                raise ValueError("a picture that is split has no other tiles, crop, windows or axes of text")
            if self.bidirectional and (not self.side or self.newline):
                raise ValueError("tiles that see both ways in themselves alone are squares, split, of one size")
            if self.split.side // self.patch_size % self.merge or self.side not in (0, self.split.side):
                raise ValueError(f"the side {self.split.side} of a square must be whole soft tokens of {factor} pixels")
        if self.newline != (self.split is not None and self.split.ends_rows):
            raise ValueError(
                "squares are read as one picture where the model has a vector that ends rows, and only there"
            )
        if self.video and ((self.video.newline and not self.newline) or (self.video.pool > 1 and self.text_axes > 1)):
            raise ValueError("a vector ends videos where the model has one; pooled ones have one axis of text")
        if self.newline and not self.side:
            raise ValueError("a whole picture before squares that are read as one is a square of their side")
        if self.row_break and (self.side or self.text_axes > 1):
            raise ValueError("an image with text between its rows has any shape, and one axis of text")
        if not factor * factor <= self.max_pixels or self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels} must be in order and hold "
                f"one soft token of {factor}x{factor} pixels"
            )
