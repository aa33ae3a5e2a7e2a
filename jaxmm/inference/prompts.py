"""Prompts as people give them: media by path, and files with a JSON object a line."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps

from jaxmm.data.documents import Audio, Image, Media, Video
from jaxmm.errors import UserError
from jaxmm.inference.answers import Prompt
from jaxmm.json_text import parse_json

Given = str | os.PathLike[str] | bytes | PIL.Image.Image  # a path, an encoded file's bytes, or an open picture
KINDS = {"image": Image, "video": Video, "audio": Audio}


def media_file(kind: str, path: Path, where: str) -> Media:
    """Returns a medium of KINDS given by path; a video may be a folder of its frames, in the order of their names.

    Raises:
      UserError: that begins with ``where``, if there is no such file.
    """
    if kind == "video" and path.is_dir():
        frames = tuple(Image(path=str(frame.resolve())) for frame in sorted(path.iterdir()) if frame.is_file())
        if not frames:
            raise UserError(f"{where} {path}: the folder has no frames")
        return Video(frames=frames)
    if not path.is_file():
        raise UserError(f"{where} {path}: there is no such file")
    return KINDS[kind](path=str(path.resolve()))


def read_prompts(name: str) -> list[tuple[dict[str, Any], Prompt]]:
    """Reads the objects of a file of prompts, each with the prompt it asks; media are paths from the file's folder.

    Raises:
      UserError: naming the line that is no object with a prompt or media.
    """
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--prompts {name}: there is no such file")
    prompts = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts {name} is not UTF-8: {error.reason} at byte {error.start}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}:"
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where} no valid JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("prompt", ""), str):
            raise UserError(f'{where} give an object such as {{"prompt": "What is this?", "image": "cat.png"}}')
        if "answer" in record:
            raise UserError(f"{where} give no 'answer': that is the model's")
        prompt = Prompt(tuple(_media(record, path.parent, where)), record.get("prompt", ""))
        if not prompt.media and not prompt.text:
            raise UserError(f"{where} neither a prompt nor an image, a video or a recording")
        prompts.append((record, prompt))
    if not prompts:
        raise UserError(f"--prompts {name} holds no prompt")
    return prompts


def _media(record: Mapping[str, Any], folder: Path, where: str) -> Iterator[Media]:
    for kind in KINDS:
        if {kind, f"{kind}s"} <= record.keys():
            raise UserError(f"{where} give '{kind}' or '{kind}s', not both")
        named = record.get(f"{kind}s", record.get(kind, []))
        named = [named] if isinstance(named, str) else named
        if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
            raise UserError(f"{where} '{kind}' is a path, '{kind}s' a list of paths")
        yield from (media_file(kind, folder / one, where) for one in named)


def given_medium(kind: str, value: Given) -> Media:
    """Returns a medium of KINDS that a program gives.

    Raises:
      UserError: if it is no such value, or there is no such file.
    """
    if isinstance(value, bytes):
        return KINDS[kind](data=value)
    if isinstance(value, PIL.Image.Image) and kind == "image":
        return Image(data=_png(value))
    name = {"image": "picture"}.get(kind, kind)
    if not isinstance(value, str | os.PathLike):
        also = " or a PIL image" if kind == "image" else ""
        raise UserError(f"{name}: give a path or bytes{also}, not a {type(value).__name__}")
    return media_file(kind, Path(value).expanduser(), name)


def _png(picture: PIL.Image.Image) -> bytes:
    """An open picture as a file, the right way up; what PNG has no mode for becomes RGB."""
    try:
        upright = PIL.ImageOps.exif_transpose(picture)
        for mode in (upright.mode, "RGB"):
            file = io.BytesIO()
            with contextlib.suppress(OSError):
                upright.convert(mode).save(file, "PNG")
                return file.getvalue()
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"a PIL image cannot be read: {error}") from error
    raise UserError(f"a PIL image of mode {picture.mode} cannot be read")
