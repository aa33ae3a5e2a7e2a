"""Pictures that are damaged, huge, endless or none: left out with a record of it, or refused."""

from __future__ import annotations

import io
import os
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from faulting.bench import DOCUMENTS, Bench, make_data
from faulting.configs import wrong_numbers
from faulting.damage import damaged
from faulting.trial import Trial, judged

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F")
_NUMBER = 3  # of the picture that is replaced


def trials(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    folder = bench.place()
    data = make_data(folder)
    file = folder / f"{_NUMBER}.png"
    what = _damage(file, rng) if rng.random() < 0.5 else _hostile(file, rng)
    workdir = folder / "run"
    ended = bench.train(
        workdir, f"--config.data.path={data}",  "--config.checkpoint.every=0",
        f"--config.data.fast_decode={rng.random() < 0.3}",
    )  # fmt: skip

    def wrong() -> str:
        if why := wrong_numbers(ended, workdir):
            return why
        skipped = workdir / "skipped.jsonl"
        is_told = skipped.exists() and '"record": ' in skipped.read_text()
        return "" if is_told or is_readable(file) else f"trained on {DOCUMENTS} pictures, one of which no one can read"

    verdict, told = judged(ended, wrong)
    yield Trial("", what, verdict, told)


def is_readable(file: Path) -> bool:
    """Whether Pillow gets the whole picture out of a plain file."""
    if not file.is_file():
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            PIL.Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
    except Exception:  # of whatever kind a codec raises
        return False
    return True


def _damage(file: Path, rng: random.Random) -> str:
    kind = rng.choice(KINDS)
    what, data = damaged(rng, _noise(rng, kind, 64, 48))
    file.write_bytes(data)
    return f"{kind}, {what}"


def _noise(rng: random.Random, kind: str, width: int, height: int) -> bytes:
    pixels = np.frombuffer(rng.randbytes(height * width * 3), np.uint8).reshape(height, width, 3)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that says its size; its pixels are what they are."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _sized(width: int, height: int) -> Callable[[Path], None]:
    """A header that promises as much."""
    return lambda file: _write(file, png(width, height))


def _whole(width: int, height: int) -> Callable[[Path], None]:
    """All of it, black."""
    return lambda file: _write(file, png(width, height, bytes((1 + 3 * width) * height)))


def _write(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        file.unlink()
        make(file)

    return write


def _of_mode(mode: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        kind = "TIFF" if mode in ("CMYK", "I", "F") else "PNG"
        _write(file, b"")
        PIL.Image.new(mode, (40, 30)).save(file, kind)

    return write


def _frames(file: Path) -> None:
    frames = [PIL.Image.new("RGB", (32, 24), (n, n, n)) for n in range(200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])


HOSTILE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda file: _write(file, b""),
    "text": lambda file: _write(file, b"<html><body>404 Not Found</body></html>"),
    "an SVG": lambda file: _write(file, b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    "deleted": lambda file: file.unlink(),
    "a folder": _instead(lambda file: file.mkdir()),
    "a FIFO": _instead(lambda file: os.mkfifo(file)),
    "/dev/zero": _instead(lambda file: file.symlink_to("/dev/zero")),
    "a link to itself": _instead(lambda file: file.symlink_to(file.name)),
    "without permission": lambda file: file.chmod(0),
    "0 x 0": _sized(0, 0), "1 x 1": _whole(1, 1), "1 x 3000": _whole(1, 3000), "3000 x 1": _whole(3000, 1),
    "170,000,000 x 1": _sized(170_000_000, 1), "1 x 170,000,000": _sized(1, 170_000_000),
    "2,000,000,000 x 2,000,000,000": _sized(2_000_000_000, 2_000_000_000),
    "100,000 x 100,000": _sized(100_000, 100_000),
    "20,000 x 20,000": _sized(20_000, 20_000), "8,000 x 8,000, all of it": _whole(8000, 8000),
    "200 frames": _frames, **{f"of mode {mode}": _of_mode(mode) for mode in MODES},
}  # fmt: skip


def _hostile(file: Path, rng: random.Random) -> str:
    what = rng.choice(list(HOSTILE))
    HOSTILE[what](file)
    return f"a picture that is {what}"
