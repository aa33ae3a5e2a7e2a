"""Reads clips back from a Batch: the frames of a video, and the log-mel frames of a recording.

Where a clip stands, and how long it is, the plan tells; what it looks and sounds like to the model is in the arrays.
Only what people hear of a recording is decoded anew from its record: there is no sound in log-mel frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.batch import Batch
from jaxmm.data.documents import Audio
from jaxmm.data.media import audio_file
from jaxmm.data.media.audio import AudioMedium
from jaxmm.data.media.extents import Extent
from jaxmm.data.media.medium import Medium
from jaxmm.data.media.table import medium_of_kind, places_in
from jaxmm.data.media.video import VideoMedium
from jaxmm.data.packing.plan import Lengths, Piece, expanded
from jaxmm.image_spec import ImageSpec
from jaxmm.report.tiles import Picture, agree


class Clip(NamedTuple):
    """Where a video or a recording stands in a row, by the plan.

    Attributes:
      number: of the medium in its source; place: which of its example's it is.
      first, last: its positions [first, last), without the separators around it.
      units: of its stream.
    """

    medium: Medium
    number: int
    place: int
    first: int
    last: int
    extent: Extent
    units: int


class Shot(NamedTuple):
    """A temporal patch of a video.

    Attributes:
      picture: its frames, as the tower gets them.
      times: of its frames, in seconds from the clip's start.
      first, last: positions of its soft tokens.
      stamp: the text before it, after the shot before; inside: the same with special tokens.
    """

    picture: Picture
    times: list[float]
    first: int
    last: int
    stamp: str = ""
    inside: str = ""


class Film(NamedTuple):
    """A video as the tower gets it; ``seconds`` is how long the whole clip is."""

    shots: list[Shot]
    seconds: float
    end: str = ""  # text behind the last shot

    @property
    def soft(self) -> int:
        return sum(shot.last - shot.first for shot in self.shots)


class Sound(NamedTuple):
    """A recording as the tower gets it.

    Attributes:
      frames_FM: float32 (frames, mels), those that are attended to: without what only fills a chunk, or is its halo.
      own: how many of these are the recording's; silence follows.
      windows: the first frame of each attention window.
      unit: the row's first frame of it; soft: how many soft tokens it gives.
      seconds: of it that the model hears; whole: of all of it.
      rate: samples a second that the frames are made of.
    """

    frames_FM: np.ndarray
    own: int
    windows: list[int]
    unit: int
    soft: int
    seconds: float
    whole: float
    rate: int
    part: Audio


def clips_in(lengths: Lengths, piece: Piece, start: int) -> list[Clip]:
    """The videos and recordings of a piece that begins at position ``start`` of its row, in order."""
    prepared = lengths.prepared
    media = range(*(int(i) for i in prepared.images_E1[piece.example : piece.example + 2]))
    kinds = np.asarray(prepared.image_kind_I[media.start : media.stop])
    if not any(_is_clip(medium_of_kind(int(kind))) for kind in np.unique(kinds)):
        return []
    spans = lengths.spans(slice(media.start, media.stop))
    clips = []
    for number, at in enumerate(expanded(prepared, piece.example, spans).slot_at.tolist()):
        place = number % len(media)  # both halves of a preference have all of them
        medium = medium_of_kind(int(kinds[place]))
        if _is_clip(medium) and spans[place] and piece.first <= at < piece.last:
            first, i = start + at - piece.first, media[place]
            extent, units = lengths.extents(i).one(), int(lengths.units_I[i])
            clips.append(Clip(medium, i, place, first, first + int(spans[place]), extent, units))
    return clips


def _is_clip(medium: Medium) -> bool:
    return isinstance(medium, VideoMedium | AudioMedium)


def extent_of(clip: Clip, spec: ImageSpec) -> tuple[int, float]:
    """How many frames of a clip the model gets, sampled or log-mel ones, and how many seconds they span."""
    if isinstance(clip.medium, AudioMedium):
        return clip.medium.heard(clip.extent, spec)
    assert isinstance(clip.medium, VideoMedium)
    frames = len(np.unique(clip.medium.numbers(clip.units, clip.extent, spec)))
    return frames, float(clip.extent.length / clip.extent.rate)


def times_of(clip: Clip, spec: ImageSpec) -> np.ndarray:
    """float64 (temporal patches, frames of one): when the frames of a video are shown, in seconds."""
    assert isinstance(clip.medium, VideoMedium)
    return clip.medium.numbers(clip.units, clip.extent, spec) / float(clip.extent.rate)


def film_of(batch: Batch, b: int, clip: Clip, shots: Sequence[Shot], end: str, spec: ImageSpec, name: str) -> Film:
    """A video of shots that were read from the batch, without their times; these are the plan's."""
    times = times_of(clip, spec)
    agree(len(shots) == len(times), name, f"a video of {len(times)} temporal patches has {len(shots)} tiles")
    numbers = [int(batch.patches.positions[b, shot.picture.patch, 0]) for shot in shots]
    agree(numbers == list(range(len(shots))), name, f"the temporal patches of a video are numbered {numbers}")
    timed = [shot._replace(times=each) for shot, each in zip(shots, times.tolist(), strict=True)]
    return Film(timed, float(clip.extent.length / clip.extent.rate), end)


def sound_of(batch: Batch, b: int, clip: Clip, part: Audio, spec: ImageSpec, name: str) -> Sound:
    """Reads a recording back, from the frames that its soft tokens are made of."""
    audio, medium = spec.audio, clip.medium
    assert audio is not None
    assert isinstance(medium, AudioMedium)
    place, stream = places_in(batch, spec)[medium.stream], batch.media[medium.stream]
    rows = batch.slots_BT[b, clip.first : clip.last] - place.start
    count = clip.last - clip.first
    agree(bool((np.diff(rows) == 1).all()) and rows[0] >= 0, name, f"a recording's soft tokens are of the rows {rows}")
    unit = int(rows[0]) // audio.chunk_tokens * audio.chunk
    here = slice(unit, unit + clip.units)
    positions, segments = stream.positions[b, here, 0], stream.segments[b, here]
    seen = np.flatnonzero(segments > 0)
    is_whole = len(seen) > 0 and np.array_equal(seen, np.arange(len(seen))) and bool((positions[seen] >= 0).all())
    agree(is_whole, name, f"a recording's frames from {unit} on are no run of frames")
    own, seconds = medium.heard(clip.extent, spec)
    agree(own <= len(seen), name, f"a recording of {own} frames has {len(seen)}")
    windows = [0, *(np.flatnonzero(np.diff(segments[seen])) + 1).tolist()]
    return Sound(
        np.asarray(stream.values[b, here][seen]), own, windows, unit, count, seconds,
        float(clip.extent.length / clip.extent.rate), audio.rate, part,
    )  # fmt: skip


def samples_of(sound: Sound, most_seconds: float) -> np.ndarray:
    """float32 (n,): what the model's frames are made of, of so many seconds at most, from the clip's start.

    Raises:
      BadMedia: if it cannot be decoded any more.
    """
    part = sound.part
    seconds = min(sound.seconds, most_seconds)
    if seconds < sound.whole:
        part = part._replace(stop=part.start + seconds)
    return audio_file.read_samples(part, audio_file.header(part), sound.rate)
