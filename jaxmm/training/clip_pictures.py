"""Draws a video, or a recording, into a box: its film strip, or its log-mel picture over its wave."""

from __future__ import annotations

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from jaxmm.data.media.medium import BadMedia
from jaxmm.report.clips import Film, Sound, samples_of
from jaxmm.report.drawing import scaled, spectrogram, wave_heights

MOST_FRAMES = 16
EDGE, TIME, SPACE = 7, 12, 3  # of a strip: its perforated edges, the line of a time, and between frames, in pixels
BACK, HOLES, FAINT, WAVE = (23, 22, 28), (74, 73, 84), (163, 167, 179), (59, 91, 219)


def film_strip(film: Film, width: int, height: int) -> PILImage.Image:
    """The frames of a video as the model gets them, each with its time in seconds.

    Of more than MOST_FRAMES, so many are drawn, evenly chosen, and a line says of how many.
    """
    by_time = {
        time: frame for shot in film.shots for time, frame in zip(shot.times, shot.picture.frames, strict=True)
    }  # what only fills the last temporal patch is there once
    times, told = list(by_time), ""
    if len(times) > MOST_FRAMES:
        told = f"{MOST_FRAMES} of {len(times)} frames"
        times = [times[i] for i in np.linspace(0, len(times) - 1, MOST_FRAMES).round().astype(int)]
    digits = 1 if all(abs(10 * time - round(10 * time)) < 1e-6 for time in times) else 2
    tall, wide = by_time[times[0]].shape[:2]
    columns, scale = _columns(len(times), wide, tall, width, height - TIME * bool(told))
    size = max(1, int(wide * scale)), max(1, int(tall * scale))
    rows = -(-len(times) // columns)
    step = size[0] + SPACE, size[1] + TIME + SPACE
    margin = max(0, width - columns * step[0] + SPACE) // 2
    drawn = PILImage.new("RGB", (width, min(height, rows * step[1] + TIME * bool(told) + 2 * EDGE)), BACK)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=9)
    for x in range(4, width - 4, 10):
        for y in (2, drawn.height - 5):
            pen.rectangle((x, y, x + 4, y + 2), fill=HOLES)
    frames = scaled(np.stack([by_time[time] for time in times]), size)
    for n, (time, frame) in enumerate(zip(times, frames, strict=True)):
        left, top = margin + n % columns * step[0], n // columns * step[1] + EDGE
        drawn.paste(PILImage.fromarray(frame), (left, top))
        pen.text((left, top + size[1] + 1), f"{time:.{digits}f} s", fill=FAINT, font=font)
    pen.text((margin, rows * step[1] + EDGE), told, fill=FAINT, font=font)
    return drawn


def sound_picture(sound: Sound, width: int, height: int) -> PILImage.Image:
    """The log-mel frames of a recording, low bands at the bottom, and under them the wave that they are made of."""
    upper = height * 2 // 3
    drawn = PILImage.new("RGB", (width, height), "white")
    heat = PILImage.fromarray(spectrogram(sound.frames_FM))
    drawn.paste(heat.resize((width, upper), PILImage.Resampling.BILINEAR), (0, 0))
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=9)
    heard = int(width * sound.own / len(sound.frames_FM))  # silence follows
    lower = height - upper - TIME
    middle = upper + lower // 2
    pen.line((0, middle, width, middle), fill=(226, 226, 221))
    try:
        tall = wave_heights(samples_of(sound, sound.seconds), heard)
    except BadMedia:  # its file has gone since the batch was made
        tall = np.zeros(heard, np.float32)
    for x, part in enumerate((tall * (lower / 2 - 2)).tolist()):
        pen.line((x, middle - part, x, middle + part), fill=WAVE)
    pen.text((0, height - TIME), "0 s", fill=(91, 96, 107), font=font)
    end = f"{sound.seconds:.1f} s"
    pen.text((heard - font.getlength(end), height - TIME), end, fill=(91, 96, 107), font=font)
    return drawn


def _columns(count: int, wide: int, tall: int, width: int, height: int) -> tuple[int, float]:
    """In how many columns so many frames are largest in a box, and at which scale."""
    sizes = []
    for columns in range(1, count + 1):
        rows = -(-count // columns)
        across = width / columns - SPACE
        down = (height - 2 * EDGE) / rows - TIME - SPACE
        sizes.append((min(across / wide, down / tall), -columns))
    scale, columns = max(sizes)
    return -columns, max(scale, 1 / max(wide, tall))
