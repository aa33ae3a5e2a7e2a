"""Pictures like photographs, for what is measured on pictures."""

from __future__ import annotations

import numpy as np
import PIL.Image


def natural(height: int, width: int, rng: np.random.Generator) -> PIL.Image.Image:
    """A picture with the spectrum of photographs, amplitude falling as 1 / frequency**1.2, and faint colours."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = np.maximum(np.hypot(y, x), 1 / max(height, width)) ** -1.2

    def field() -> np.ndarray:
        phases = np.exp(2j * np.pi * rng.random(amplitude.shape))
        values = np.fft.irfft2(amplitude * phases, (height, width))
        return values / values.std()

    light, red, blue = field(), field(), field()
    pixels = 128 + 45 * np.stack([light + 0.3 * red, light, light + 0.3 * blue], -1)
    return PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
