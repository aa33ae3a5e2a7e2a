"""What stands for a video or a recording in a record: a file, a list of frames, or samples; and which part counts."""

from __future__ import annotations

import io
import math
import struct
import wave
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from jaxmm.data.documents import Audio, AudioFeatures, Image, Video, VideoFeatures
from jaxmm.data.readers.columns import looks
from jaxmm.data.readers.kinds import AUDIO, CLIPS, IMAGE, VIDEO, Kind, is_vectors, of_name
from jaxmm.data.readers.parts import decoded

# The keys of an object that may give its clip, in the order of trust: the Hugging Face struct first.
VIDEO_KEYS = ("bytes", "path", "url", "video", "video_url", "frames", "data", "base64", "source", "value")
AUDIO_KEYS = (
    "bytes", "array", "path", "url", "audio", "audio_url", "input_audio", "data", "base64", "source", "value",
)  # fmt: skip
KEYS = {VIDEO: VIDEO_KEYS, AUDIO: AUDIO_KEYS}
TEXT_OF_BYTES = ("data", "base64")  # keys whose text is base64
IMAGE_SETTINGS = ("max_pixels", "min_pixels", "resized_height", "resized_width")  # Qwen's, of one image
SETTINGS = {
    IMAGE: IMAGE_SETTINGS,
    VIDEO: (*IMAGE_SETTINGS, "total_pixels", "nframes", "min_frames", "max_frames"),
    AUDIO: (),
}
RATES = ("fps", "sample_fps")  # of a list of frames, or of vectors; of a film's file it would ask for a sampling
STARTS = {VIDEO: ("video_start", "start"), AUDIO: ("audio_start", "start")}
STOPS = {VIDEO: ("video_end", "end"), AUDIO: ("audio_end", "end")}
MOST_CHANNELS, MOST_SAMPLES_A_SECOND = 32, 1_000_000
LOUDEST = 16.0  # a decoded file may go a little beyond 1; whole numbers of 16 bits go far beyond it

Film: TypeAlias = Video | VideoFeatures
Sound: TypeAlias = Audio | AudioFeatures
Clip = TypeVar("Clip", Film, Sound)


class Files(Protocol):
    """What finds the file of a path, a URL, bytes or base64, by the rules for what records may name."""

    def file(self, value: Any, kind: Kind) -> Image: ...

    def image(self, value: Any) -> Image: ...


def check_settings(value: Mapping[str, Any], kind: Kind) -> None:
    """Raises ValueError for a medium that sets its own size or sampling: it would be trained at another one."""
    own = next((key for key in SETTINGS[kind] if value.get(key) is not None), "")
    if own and kind is IMAGE:
        raise ValueError(
            f"an image has its own '{own}', which is not supported: sizes are the model's, or for all images "
            f"config.image.min_pixels and max_pixels; take the key out"
        )
    if own:
        raise ValueError(
            f"{kind.article} has its own '{own}', which is not supported: how videos are resized and sampled is one "
            f"setting for all of them; take the key out"
        )


def check_no_own(part: Mapping[str, Any], kind: Kind) -> None:
    """Raises ValueError for a part that stands for the record's next clip, but says which part of it counts."""
    own = next((key for key in (*RATES, *STARTS.get(kind, ()), *STOPS.get(kind, ())) if part.get(key) is not None), "")
    if own and kind is not IMAGE:
        raise ValueError(f"a part has '{own}', but no {kind.noun} of its own: give both in one place")


def video(value: Any, files: Files) -> Film:
    """Returns the video of a value: its file, a list of its frames, or a file of its feature vectors (``.npy``).

    Raises:
      SkipRecord: as ``Files.file``.
      ValueError: if the value is no video, or sets what is not supported.
    """
    if isinstance(value, Mapping):
        check_settings(value, VIDEO)
        key, inner = _first(value, VIDEO_KEYS)
        if inner is not None:
            clip = _film(Image(decoded(inner))) if _is_base64(key, inner) else video(inner, files)
            return _with_rate(_with_part(clip, value), value)
    if isinstance(value, list | tuple) and value:
        if film := next((one for one in value if looks(one, VIDEO)), None):
            raise ValueError(f"a list in the place of a video has its frames, but {film!r:.40} is a video")
        return Video(frames=tuple(map(files.image, value)))
    if isinstance(value, str) and of_name(value) is IMAGE and not value.rstrip().lower().endswith(".gif"):
        raise ValueError(f"a video cannot be the picture {value!r:.40}: give its frames as a list of its own")
    return _film(files.file(value, VIDEO))


def _film(file: Image) -> Film:
    return VideoFeatures(file.data, file.path) if is_vectors(file.path, file.data) else Video(file.data, file.path)


def _sound(file: Image) -> Sound:
    return AudioFeatures(file.data, file.path) if is_vectors(file.path, file.data) else Audio(file.data, file.path)


def audio(value: Any, files: Files) -> Sound:
    """Returns the recording of a value: its file, a WAV of its samples, or a file of its feature vectors (``.npy``).

    Raises as ``video``.
    """
    if isinstance(value, Mapping):
        key, inner = _first(value, AUDIO_KEYS)
        if key == "array":
            return _with_part(Audio(data=wav(inner, value.get("sampling_rate"))), value)
        form = value.get("format")
        if isinstance(form, str) and form and of_name(f"a.{form}") not in CLIPS:
            raise ValueError(f"a recording of the format {form!r:.20} is no file: give {', '.join(AUDIO.suffixes[:4])}")
        if inner is not None:
            clip = _sound(Image(decoded(inner))) if _is_base64(key, inner) else audio(inner, files)
            return _with_part(clip, value)
    return _sound(files.file(value, AUDIO))


def wav(samples: Any, rate: Any) -> bytes:
    """Returns samples as a WAV file: of 16 bits where that loses nothing, else of 32-bit floats.

    Args:
      samples: from -1 to 1; (n,), or (channels, n) as ``datasets`` and ``torchaudio`` have them.
      rate: samples a second.

    Raises:
      ValueError: for what are no samples.
    """
    try:
        array = np.atleast_2d(np.asarray(samples, np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the samples of a recording are no numbers: {error}") from error
    if array.ndim > 2 or len(array) > MOST_CHANNELS or not array.size:
        raise ValueError(f"the samples of a recording must be (n,) or (channels, n), not {np.shape(samples)}")
    if not isinstance(rate, int | float) or not 1 <= rate <= MOST_SAMPLES_A_SECOND or rate != int(rate):
        raise ValueError(f"the sampling_rate of a recording must be a whole number, not {rate!r:.20}")
    if not np.isfinite(array).all() or np.abs(array).max() > LOUDEST:
        raise ValueError("the samples of a recording must be numbers from -1 to 1")
    frames, channels, rate = array.T, len(array), int(rate)
    scaled = frames * 2**15
    if (scaled == np.rint(scaled)).all() and scaled.min() >= -(2**15) and scaled.max() < 2**15:
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(scaled.astype("<i2").tobytes())
        return out.getvalue()
    # ``wave`` writes no floats. The format is 3, IEEE float, which has a chunk with the count of samples.
    data = frames.astype("<f4").tobytes()
    head = struct.pack("<HHIIHHH", 3, channels, rate, rate * channels * 4, channels * 4, 32, 0)
    body = b"WAVE" + _chunk(b"fmt ", head) + _chunk(b"fact", struct.pack("<I", len(frames))) + _chunk(b"data", data)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content


def _first(value: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, Any]:
    """Returns the first of the keys whose value is something, and that value; ('', None) if there is none."""
    for key in keys:
        inner = value.get(key)
        if inner is not None and not (hasattr(inner, "__len__") and not len(inner)):
            return key, inner
    return "", None


def _is_base64(key: str, inner: Any) -> bool:
    return key in TEXT_OF_BYTES and isinstance(inner, str) and not inner.startswith("data:")


def _with_part(clip: Clip, value: Mapping[str, Any]) -> Clip:
    """Returns a clip with the part that counts, in seconds, where the object says one."""
    kind = VIDEO if isinstance(clip, Film) else AUDIO
    start, stop = _seconds(value, STARTS[kind]), _seconds(value, STOPS[kind])
    if start is None and stop is None:
        return clip
    if not isinstance(clip, Video | Audio):
        raise ValueError(f"feature vectors of {kind.article} have a start or an end: give those of what counts")
    if isinstance(clip, Video) and clip.frames:
        raise ValueError("a list of frames has a start or an end: leave out the frames that do not count")
    if stop is not None and stop <= (start or 0):
        raise ValueError(f"{kind.article} ends at {stop:g} s, but starts at {start or 0:g} s")
    return clip._replace(start=start or 0.0, stop=stop or 0.0)


def _with_rate(clip: Film, value: Mapping[str, Any]) -> Film:
    """Returns a video with how many frames a second its list of them, or its array of vectors, has."""
    key = next((key for key in RATES if value.get(key) is not None), "")
    if not key:
        return clip
    if isinstance(clip, Video) and not clip.frames:
        raise ValueError(
            f"a video has its own '{key}', which is not supported: how videos are resized and sampled is one setting "
            f"for all of them; take the key out"
        )
    rate = value[key]
    if type(rate) not in (int, float) or not math.isfinite(rate) or rate <= 0:
        raise ValueError(f"the '{key}' of a video must be a number above 0, not {rate!r:.20}")
    return clip._replace(fps=float(rate))


def _seconds(value: Mapping[str, Any], keys: tuple[str, ...]) -> float | None:
    key = next((key for key in keys if value.get(key) is not None), "")
    if not key:
        return None
    seconds = value[key]
    if type(seconds) not in (int, float) or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"'{key}' must be a number of seconds from 0 on, not {seconds!r:.20}")
    return float(seconds)
