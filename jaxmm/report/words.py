"""Numbers and colours as pages have them; nothing but words is imported, so that a page of a run is there at once."""

from __future__ import annotations

HUES = (255, 55, 155, 325, 205, 95, 290, 20)  # of sources and curves in turn, in degrees of OKLCH
CLASSES = {  # of positions that attention goes to, as the log names them, in this order
    "image": "images", "video": "videos", "audio": "recordings", "separators": "special tokens",
    "first": "the first position", "turn": "text of the turn", "earlier": "earlier text",
}  # fmt: skip


def hue(place: int) -> int:
    return HUES[place % len(HUES)]


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """``3.2 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes as ``1.11 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
