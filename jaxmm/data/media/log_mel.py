"""Sound to log-mel frames, as Whisper's towers were trained on (Radford et al., 2022, section 2.2).

The numbers are those of ``transformers.WhisperFeatureExtractor``, which takes one frame at a time.
"""

from __future__ import annotations

import functools

import numpy as np

TOP_HERTZ = 8000.0  # where the bands end, whatever the rate
FLOOR = 1e-10  # of a band's energy
DECADES = 8.0  # below the loudest band of a clip, where its values end

_BLOCK = 128  # frames at a time: what is made of them stays in a core's cache
_BANDS = 16  # bands at a time: frames * bins * bands stay below 2**18, from where on OpenBLAS starts threads
# The scale of Slaney (Auditory Toolbox, 1998): linear up to 1 kHz, and 27 bands for each factor of 6.4 above it.
_LINEAR, _BREAK_MEL, _STEP = 200.0 / 3.0, 15.0, np.log(6.4) / 27.0


def log_mel(
    samples: np.ndarray,
    mels: int,
    *,
    rate: int = 16000,
    hop: int = 160,
    window: int = 400,
    silence: bool = False,
    piece: int = 0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the log-mel frames of a clip, float32 (len(samples) // hop, mels); frame f is centred at f * hop.

    The start of a clip is seen mirrored. A clip of less than a hop has no frame.

    Args:
      samples: floating (n,), finite.
      mels: bands of a frame.
      rate: samples a second.
      hop, window: samples from a frame to the next, and those that a frame sees.
      silence: the end is seen as silence follows it, and not mirrored. The loudest band, from which the floor counts,
        is then also looked for in the frames behind the end that still hear it.
      piece: frames; silence only fills the last piece, and what ends with a piece is mirrored. 0: it never ends.
        Whisper pads to 30 seconds: 3000 gives its values also for a clip that ends less than a window before that.
      out: C-contiguous float32 of the shape that is returned, to be written into.

    Raises:
      ValueError: if ``samples`` or ``out`` has another shape or type.
    """
    count = len(samples) // hop
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"samples are floating (n,), not {samples.dtype} {samples.shape}")
    if out is None:
        out = np.empty((count, mels), np.float32)
    elif out.shape != (count, mels) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous float32 {(count, mels)}, not {out.dtype} {out.shape}")
    if not count:
        return out
    before, after, heard = _ends(samples, hop, window, silence, piece)
    peak = np.float32(FLOOR)
    for first in range(0, heard, _BLOCK):
        last = min(first + _BLOCK, heard)
        seen = _stretch(samples, before, after, first * hop, (last - 1) * hop + window)
        energies = _energies(seen, mels, rate, hop, window)
        peak = max(peak, energies.max())
        within = min(last, count) - first
        if within > 0:
            np.maximum(energies[:within], np.float32(FLOOR), out=out[first : first + within])
    np.log10(out, out=out)
    np.maximum(out, np.log10(peak) - np.float32(DECADES), out=out)
    out += np.float32(4.0)
    out /= np.float32(4.0)
    return out


def _ends(samples: np.ndarray, hop: int, window: int, silence: bool, piece: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns what is seen before the first sample (window // 2,) and after the last, and how many frames hear any."""
    n, half = len(samples), window // 2
    frames = n // hop
    fill = 0  # samples of silence
    if silence:
        heard = -(-(n + half) // hop)  # the first frame that begins at n or later hears nothing
        fill = -n % (piece * hop) if piece else 2 * window
        frames = min(heard, (n + fill) // hop)
        fill = min(fill, 2 * window)
    # np.pad mirrors a clip that is shorter than what is asked for again and again.
    start = np.append(samples[: half + 1], np.zeros(min(fill, max(half + 1 - n, 0)), samples.dtype))
    end = np.append(samples[-half - 1 :], np.zeros(fill, samples.dtype))
    after = np.pad(end, (0, half), mode="reflect")[min(n, half + 1) :]
    return np.pad(start, (half, 0), mode="reflect")[:half], after, frames


def _stretch(samples: np.ndarray, before: np.ndarray, after: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Returns [start, stop) of the three arrays in a row; inside of the clip, nothing is copied."""
    start, stop = start - len(before), stop - len(before)
    n = len(samples)
    seen = samples[max(start, 0) : max(stop, 0)]
    if start < 0:
        ahead = before[start : min(stop, 0) or None]
        seen = np.concatenate([ahead, seen])
    if stop > n:
        seen = np.concatenate([seen, after[max(start - n, 0) : stop - n]])
    return seen


def _energies(seen: np.ndarray, mels: int, rate: int, hop: int, window: int) -> np.ndarray:
    """float32 (frames, mels) of what the frames see, one after another.

    The transform is in float64: in float32 its error shows in bands 8 decades below a pure tone, and it takes as long.
    """
    frames = np.lib.stride_tricks.sliding_window_view(seen.astype(np.float64), window)[::hop]
    parts = np.fft.rfft(frames * _window(window), axis=1).view(np.float64)
    np.multiply(parts, parts, out=parts)
    power = (parts[:, ::2] + parts[:, 1::2]).astype(np.float32)
    energies = np.empty((len(power), mels), np.float32)
    for bands, bins, filters in _filters(mels, rate, window):
        np.matmul(power[:, bins], filters, out=energies[:, bands])
    return energies


@functools.lru_cache(maxsize=16)
def _window(size: int) -> np.ndarray:
    """Hann's window, periodic: float64 (size,)."""
    window = np.hanning(size + 1)[:-1]
    window.flags.writeable = False
    return window


@functools.lru_cache(maxsize=16)
def mel_filters(mels: int, rate: int, window: int) -> np.ndarray:
    """float32 (window // 2 + 1, mels): triangles between equal steps of Slaney's scale, each of the same area."""
    top = min(TOP_HERTZ, rate / 2)
    corners = _hertz(np.linspace(0.0, _mel(top), mels + 2))
    bins = np.linspace(0, rate // 2, window // 2 + 1)
    rise = (bins[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    fall = (corners[2:] - bins[:, None]) / np.diff(corners)[1:]
    filters = np.maximum(0.0, np.minimum(rise, fall)) * (2.0 / (corners[2:] - corners[:-2]))
    filters = filters.astype(np.float32)
    filters.flags.writeable = False
    return filters


@functools.lru_cache(maxsize=16)
def _filters(mels: int, rate: int, window: int) -> list[tuple[slice, slice, np.ndarray]]:
    """The filters of a few bands at a time: the bands, the bins that they hear, and float32 (bins, bands)."""
    parts, filters = [], mel_filters(mels, rate, window)
    for first in range(0, mels, _BANDS):
        bands = slice(first, first + _BANDS)
        heard = np.flatnonzero(filters[:, bands].any(1))
        bins = slice(int(heard[0]), int(heard[-1]) + 1) if len(heard) else slice(0, 0)
        parts.append((bands, bins, np.ascontiguousarray(filters[bins, bands])))
    return parts


def _mel(hertz: float) -> float:
    mel = hertz / _LINEAR
    return mel if mel < _BREAK_MEL else _BREAK_MEL + float(np.log(mel / _BREAK_MEL) / _STEP)


def _hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < _BREAK_MEL, mels * _LINEAR, _BREAK_MEL * _LINEAR * np.exp((mels - _BREAK_MEL) * _STEP))
