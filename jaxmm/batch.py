"""The arrays of one batch, the same on host and device, and the legend of their dimensions.

Dimensions, which arrays carry as a suffix (``q_BTHD``):

    B  rows of a batch              T  text positions of a row       N  patch positions of a row
    F  audio frames of a row        M  media tiles of a row          S  soft tokens of a row
    P  bytes of a patch             A  coordinate axes               D  width, of a model or of a head
    H  attention heads              K  key-value heads               V  vocabulary
    E  experts                      L  layers                       Q  queries that are looked at
    X  what of them is summed up    C  preferences of a row         O  outputs of a linear map
    G  heads that share a key       Z  chunks of a row              U  positions of a chunk
    W  positions a kernel sees      I  numbers a position brings to a layer

In recurrent layers C is channels, K heads of keys, and V the width of a head's values.

Everything is a tuple of arrays, so that NumPy fills it in the loader's workers and JAX takes it as a pytree; this
module imports neither.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

Array = Any  # a numpy.ndarray on the host, a jax.Array on the device, a jax.ShapeDtypeStruct in tests of shapes

ROLES = ("document", "system", "user", "assistant", "tool")  # of the turns of a document
IGNORED = -1  # in `slots` : no soft token stands here

# Flags of a run of text tokens, stored in the prepared index.
TARGET = 1  # the loss predicts these tokens
ANSWER = 2  # an assistant's turn, up to and including its end marker: what exact match is measured on


class Stream(NamedTuple):
    """A row-wise sequence of units of one modality.

    ``segments`` is 0 on padding and 1.. for each attention unit (a document of text, a tile of patches); the units of
    one segment are adjacent. ``positions`` restart in each segment: (B, T, 1) for text (3 axes for multi-axis rotary),
    (B, N, 3) for patches as (temporal patch, row, column). A row of -1 marks a class or register token, numbered by its
    column. Ready-made features have (B, N, 1). So have audio frames, (B, F, 1): the frame's number in its piece, or -1
    for what fills up its last chunk.
    """

    values: Array  # tokens (B, T) int32; patches (B, N, P) uint8, all frames of a temporal patch one after the other;
    # ready-made features (B, N, D) float32, of audio too; log-mel frames (B, F, mels) float32
    positions: Array  # int32
    segments: Array  # int32


class Mixed(NamedTuple):
    """What soft tokens are made of that are weighted sums of four rows of the table; ``slots_BT`` is the first."""

    others_BT3: Array  # int32: the rows behind that one
    weights_BT4: Array  # float32: of all four; 1, 0, 0, 0 where a position takes one row


class Pairs(NamedTuple):
    """The preferences of each row: two segments of its text each, an answer and the one that it is compared with."""

    segments_BC: Array  # int32: the segment of the answer, that of the other one is next; 0 where there is no pair
    verdicts_BC: Array  # int32: place in ``documents.VERDICTS``
    weights_BC: Array  # float32: weight in the loss, 0 where there is no pair
    sources_BC: Array  # int32: which data source it belongs to
    reference_BC2: Array  # float32: log-probabilities of both answers by the reference model, where it was asked before


class Batch(NamedTuple):
    """One global batch, or the rows of it that this process feeds."""

    text: Stream
    patches: Stream
    grids_BM3: Array  # int32 (frames, rows, columns) of the tile with segment m + 1, in patches; 0 where there is none
    slots_BT: Array  # int32: row of the row's soft-token table that stands at a text position, or IGNORED
    blocks_BT: Array  # int32: 0 is causal, 1.. a run of positions that see each other both ways (image block or prefix)
    targets_BT: Array  # int32: the token that position t predicts
    weights_BT: Array  # float32: its weight in the loss, 0 where nothing is predicted
    sources_BT: Array  # int32: which data source the position belongs to
    features: Stream | None = None  # ready-made tower outputs: their soft tokens come after the patches' in the table
    media: Mapping[str, Stream] = {}  # streams of further media, by name: their soft tokens come last, in this order
    pairs: Pairs | None = None  # of preference data
    mixed: Mixed | None = None  # where pictures are pooled


SAMPLINGS = ("stride", "ends", "even", "steps", "dynamic")
AFTER = ("space", "all")


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """How a video becomes frames, temporal patches and soft tokens. Patches and merging are those of ``ImageSpec``.

    Attributes:
      frames: of the video that one patch spans (a temporal patch); the last frame is repeated to fill it.
      fps: frames a second that are sampled.
      min_frames, max_frames: of a video; a shorter video has what it has.
      sampling: which of n frames k are: "stride" is ``int(i * n / k)`` with k whole temporal patches (Qwen2-VL), "ends"
        is ``linspace(0, n - 1, k)``, rounded, any k (Qwen3-VL), "even" is ``i * n // k``, any k (LLaVA-OneVision).
        "steps" are the first frames at or behind every ``1 / fps`` seconds (GLM-4.1V), "dynamic" are more a second of
        a shorter video, whatever ``fps`` (GLM-4.6V); where these would be fewer than min_frames or more than
        max_frames, it is "ends" with so many.
      max_seconds: for "steps", of a longer video so many frames as of one of this length; 0 is no limit.
      min_pixels, max_pixels: bounds on the area of a frame.
      total_pixels: the most pixels of all frames together: of them a frame has its share, but always 1.05 min_pixels.
        0 is no limit.
      of_clip: frames are resized so that all together are within bounds: ``min_pixels`` is then of all frames,
        ``total_pixels`` must be set, and ``max_pixels`` may be 0, for no limit (Qwen3-VL).
      stamp, stamp_end: text before and after each temporal patch, special tokens included; format strings of
        ``seconds`` (the mean time of its frames, from the start of the clip), ``first`` (that of the first one),
        ``whole`` (that without its fraction) and ``number`` (from 1). It is no target.
      positions_per_second: with several text axes, how far a second moves along the first one; 0 numbers temporal
        patches instead, each as a picture of its own where there is a stamp.
      pool: the soft tokens of a frame are resized bilinearly to 1 / pool of their rows and columns, rounded up
        (LLaVA-OneVision).
      newline: the model's vector that ends rows of pictures ends a video, once.
      after: text goes on after the largest row or column ("space"), or after the largest of all axes ("all").
      row_tokens, row_patches: a document longer than these gets fewer frames; 0 is no limit.
    """

    frames: int = 2
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 128
    sampling: str = "stride"
    max_seconds: float = 0.0
    min_pixels: int = 64 * 64
    max_pixels: int = 256 * 256
    total_pixels: int = 0
    of_clip: bool = False
    stamp: str = ""
    stamp_end: str = ""
    positions_per_second: float = 0.0
    pool: int = 1
    newline: bool = False
    after: str = "space"
    row_tokens: int = 0
    row_patches: int = 0

    def key(self) -> dict[str, Any]:
        """Its values for what is kept on disk: those that came later are there only where they are set."""
        values, later = dataclasses.asdict(self), {"max_seconds": 0.0, "pool": 1, "newline": False}
        return {name: value for name, value in values.items() if name not in later or value != later[name]}

    def __post_init__(self) -> None:
        if self.frames < 1 or not 1 <= self.min_frames <= self.max_frames:
            raise ValueError(
                f"min_frames {self.min_frames} and max_frames {self.max_frames} must be positive, in order"
            )
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps}: it must be a number above 0")
        most = self.total_pixels if self.of_clip else self.max_pixels
        if not 0 < self.min_pixels <= most:
            raise ValueError(f"min_pixels {self.min_pixels} and max_pixels {most} must be positive, in order")
        if self.stamp and (self.pool > 1 or self.newline):
            raise ValueError("a video with time stamps is not pooled, nor does a vector end it")
        for name, value, known in (("sampling", self.sampling, SAMPLINGS), ("after", self.after, AFTER)):
            if value not in known:
                raise ValueError(f"{name} '{value}' is not one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class AudioSpec:
    """How sound becomes log-mel frames and soft tokens: what the data side must know of an audio tower.

    A clip is cut into pieces, and a piece into chunks of frames, the last one filled up. A chunk becomes a fixed number
    of tower positions; those that stand on no frame of the clip are no soft tokens. ``data/media/audio_geometry.py``
    has the numbers that follow.

    Attributes:
      rate: samples a second.
      mels: bands of a frame.
      hop, window: samples from a frame to the next, and those that a frame sees.
      chunk: frames of a chunk.
      chunk_positions: tower positions of a chunk, whole soft tokens.
      pool: tower positions that become one soft token.
      attend: chunks that attend to each other; 0 is all of a piece.
      halo: frames that the stem sees behind the last one of a piece that is not full; they take places of the stream.
      piece: frames of a piece, whole chunks; 0 is one piece, however long.
      filled: a piece is filled up with silence, which is attended to and becomes soft tokens (Whisper, Voxtral).
      silence: the end of a piece is seen as silence follows it, and not mirrored, and a part of a hop is one more frame
        (Whisper).
      least: samples; a shorter clip is filled up with silence to so many.
      max_seconds: above 0, only so much of a clip is taken, from its start.
    """

    rate: int = 16000
    mels: int = 80
    hop: int = 160
    window: int = 400
    chunk: int = 100
    chunk_positions: int = 13
    pool: int = 1
    attend: int = 8
    halo: int = 0
    piece: int = 0
    filled: bool = False
    silence: bool = False
    least: int = 0
    max_seconds: float = 0.0

    @property
    def stride(self) -> int:
        """Frames from a tower position to the next, in a chunk."""
        return -(-self.chunk // self.chunk_positions)

    @property
    def chunk_tokens(self) -> int:
        """Rows of the soft-token table that a chunk takes."""
        return self.chunk_positions // self.pool

    def __post_init__(self) -> None:
        least = {"rate": 1, "mels": 1, "hop": 1, "window": 1, "chunk": 1, "chunk_positions": 1, "pool": 1}
        for name, bound in (least | {"attend": 0, "halo": 0, "piece": 0}).items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} of audio is {getattr(self, name)}: it must be {bound} or above")
        if self.chunk_positions % self.pool:
            raise ValueError(f"chunk_positions {self.chunk_positions} must be whole soft tokens of {self.pool}")
        if -(-self.chunk // self.stride) != self.chunk_positions:
            raise ValueError(f"a chunk of {self.chunk} frames cannot have {self.chunk_positions} positions, evenly")
        if self.piece % self.chunk:
            raise ValueError(f"a piece of {self.piece} frames must be whole chunks of {self.chunk}")
        if self.filled and not self.piece:
            raise ValueError("a piece without an end cannot be filled")


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
