"""Recordings as a medium: log-mel frames by the run's ``AudioSpec``, in whole chunks of a stream of their own.

The index has what a header tells: how many samples a channel has, and their rate. So all of an ``AudioSpec`` may change
without preparing again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from jaxmm.batch import Batch, Stream
from jaxmm.clip_spec import AudioSpec
from jaxmm.data.documents import Audio
from jaxmm.data.media import audio_file, audio_geometry
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.data.media.log_mel import log_mel
from jaxmm.data.media.medium import Array, Filled, Item, Medium, Settings, Space
from jaxmm.image_spec import ImageSpec

AUDIO = -3


class AudioMedium(Medium):
    """Recordings, and sound tracks of films. A unit is a log-mel frame."""

    name, plural, part, kind = "audio", "recordings", Audio, AUDIO
    budgets, stream = ("audio",), "audio"
    advice: ClassVar[Mapping[str, str]] = audio_file.ADVICE

    # Preparing

    def extent(self, part: Audio) -> Extent:
        header = audio_file.header(part)
        return Extent(1, 1, AUDIO, header.samples, Fraction(header.rate))

    def content(self, part: Audio, named: Callable[[str], str]) -> bytes:
        return super().content(part, named) + repr((part.start, part.stop)).encode()

    def packed(self, part: Audio) -> dict[str, Any]:
        return super().packed(part) | {"cut": [part.start, part.stop]}

    def unpacked(self, packed: Mapping[str, Any]) -> Audio:
        return Audio(packed.get("data", b""), packed.get("path", ""), *packed["cut"])

    # Planning

    def units(self, extents: Extents, spec: ImageSpec) -> Array:
        return audio_geometry.units(_frames(extents, _spec(spec)), _spec(spec))

    def group(self, spec: ImageSpec) -> int:
        return _spec(spec).chunk

    def table_rows(self, units: Array, spec: ImageSpec) -> Array:
        return audio_geometry.table_rows(units, _spec(spec))

    def of_rows(self, values: np.ndarray, spec: ImageSpec) -> np.ndarray:
        audio = _spec(spec)
        chunks = values.reshape(-1, audio.chunk, *values.shape[1:])
        return chunks[:, :: audio.stride * audio.pool][:, : audio.chunk_tokens].reshape(-1, *values.shape[1:])

    def soft_tokens(self, units: Array, extents: Extents, spec: ImageSpec) -> Array:
        return audio_geometry.soft_tokens(_frames(extents, _spec(spec)), _spec(spec))

    def cut_short(self, extents: Extents, spec: ImageSpec) -> Array:
        audio = _spec(spec)
        seconds = np.asarray(extents.length) * np.asarray(extents.rate_den) / np.maximum(extents.rate_num, 1)
        most = audio.max_seconds or np.inf
        return np.minimum(1.0, most / np.maximum(seconds, 1e-9))

    def why_cut_short(self, spec: ImageSpec) -> str:
        return f"recordings are cut to their first {_spec(spec).max_seconds:g} s (config.audio.max_seconds)"

    def too_large(self, item: Item, tokens: int, budgets: Any, spec: ImageSpec) -> str:
        seconds = float(item.extent.length / item.extent.rate)
        return (
            f"a recording of {seconds:,.1f} s ({tokens} tokens), more than a row holds (config.seq_len "
            f"{budgets.tokens}, {budgets.get('audio')} frames): raise config.seq_len, cut recordings to so many "
            f"seconds by config.audio.max_seconds, or leave such documents out by config.data.long_documents=drop"
        )

    # Assembling

    def empty(self, rows: int, budgets: Any, spec: ImageSpec, widths: Mapping[str, int]) -> dict[str, Any]:
        count = budgets.get("audio")
        if not count:
            return {}
        values = np.zeros((rows, count, _spec(spec).mels), np.float32)
        return {"audio": Stream(values, np.zeros((rows, count, 1), np.int32), np.zeros((rows, count), np.int32))}

    def heard(self, extent: Extent, spec: ImageSpec) -> tuple[int, float]:
        """How many frames of a recording, and how many seconds of it, the model hears."""
        frames, seconds = _frames_of(extent, _spec(spec)), float(extent.length / extent.rate)
        return frames, min(seconds, _spec(spec).max_seconds or seconds)

    def fill(self, space: Space, item: Item, spec: ImageSpec, settings: Settings) -> Filled:
        audio, b, first = _spec(spec), space.b, space.taken.get("audio", 0)
        stream = space.batch.media["audio"]
        there = slice(first, first + item.units)
        known = audio_file.AudioHeader(item.extent.length, int(item.extent.rate))
        frames = _frames_of(item.extent, audio)
        # As far as ``_write`` looks; played backwards, a clip begins with its end.
        most = (frames + 1) * audio.hop if audio.max_seconds and not settings.backwards else 0
        samples = audio_file.read_samples(item.part, known, audio.rate, most)
        if settings.backwards:
            samples = samples[::-1]
        _write(stream.values[b, there], samples, frames, audio)
        used = int(stream.segments[b, :first].max(initial=0))
        stream.positions[b, there], stream.segments[b, there] = audio_geometry.places(frames, audio, used + 1)
        return Filled(audio_geometry.token_rows(frames, audio), (1, 1, item.soft_tokens))

    def used(self, batch: Batch) -> dict[str, np.ndarray]:
        """Frames of all whole chunks that are taken: -1 marks those that only fill one."""
        stream = self.array(batch)
        if not isinstance(stream, Stream):
            return {}
        return {self.stream: ((stream.segments > 0) | (stream.positions[..., 0] < 0)).sum(1)}

    def array(self, batch: Batch) -> Stream | tuple[()]:
        return batch.media.get("audio", ())


def _spec(spec: ImageSpec) -> AudioSpec:
    assert spec.audio is not None, "a run that has recordings has a spec of them"
    return spec.audio


def _frames(extents: Extents, audio: AudioSpec) -> Array:
    """Log-mel frames of recordings, at least one."""
    samples = audio_file.resampled_count(np.asarray(extents.length, np.int64), extents.rate_num, audio.rate)
    return _frames_in(samples, audio)


def _frames_of(extent: Extent, audio: AudioSpec) -> int:
    return int(_frames_in(audio_file.resampled_count(extent.length, int(extent.rate), audio.rate), audio))


def _frames_in(samples: Any, audio: AudioSpec) -> Any:
    samples = np.maximum(samples, max(audio.least, audio.hop))
    if audio.max_seconds:
        samples = np.minimum(samples, round(audio.max_seconds * audio.rate))
    return -(-samples // audio.hop) if audio.silence else samples // audio.hop


def _write(out: np.ndarray, samples: np.ndarray, frames: int, audio: AudioSpec) -> None:
    """Writes the frames of a recording, each piece by itself, and the silence that its stem sees behind the last one.

    Args:
      out: float32 (units, mels), 0.
      samples: (n,) at the spec's rate; where they are fewer than ``frames`` take, silence follows.
    """
    piece = audio.piece or frames
    for start in range(0, frames, piece):
        count = min(piece, frames - start)
        is_last = start + count == frames
        heard = samples[start * audio.hop : (start + count + is_last) * audio.hop - is_last]  # to the last frame's end
        seen = min(len(out) - start, piece) if audio.silence else count
        if (missing := seen * audio.hop - len(heard)) > 0:
            heard = np.pad(heard, (0, missing))
        log_mel(
            heard[: seen * audio.hop] if audio.silence else heard, audio.mels, rate=audio.rate, hop=audio.hop,
            window=audio.window, silence=audio.silence, piece=audio.piece, out=out[start : start + seen],
        )  # fmt: skip
