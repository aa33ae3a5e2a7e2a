"""Reads the text of ``config.init_from``: which folders it names, and as what."""

from __future__ import annotations

from pathlib import Path

from jaxmm.errors import UserError

FORMS = (("vision", "decoder"), ("audio", "decoder"), ("vision", "audio", "decoder"))  # parts that make a model


def run_and_step(text: str) -> tuple[str, str]:
    """Reads ``RUN@best`` and ``RUN@STEP`` as (folder, checkpoint); '' is the newest. A name may have an ``@``."""
    folder, at, step = text.rpartition("@")
    if at and (step in ("best", "newest") or step.isdecimal()) and not Path(text).expanduser().exists():
        return folder, step
    return text, ""


def parse(text: str) -> dict[str, Path]:
    """Reads ``DIR``, or the folders of a decoder and of one or two towers, as in FORMS; {} for ''.

    Raises:
      UserError: if these are other parts, or a folder is not there.
    """
    if not text:
        return {}
    entries = [entry.strip().split(":", 1) for entry in text.split(",") if ":" in entry]
    named = sorted(part for part, _ in entries)
    if set(named) & {"vision", "decoder", "connector", "audio"} and not Path(text).exists():
        if named not in [sorted(form) for form in FORMS]:
            forms = [",".join(f"{part}:DIR" for part in form) for form in FORMS]
            raise UserError(
                f"config.init_from '{text}': its parts are {', '.join(named)}; a model is made of {forms[0]}, of "
                f"{forms[1]}, or of {forms[2]}"
            )
        folders = {part: Path(folder).expanduser() for part, folder in entries}
    else:
        folders = {"model": Path(text).expanduser()}
    for folder in folders.values():
        if "://" in text:
            raise UserError(f"config.init_from={text}: a URL is not supported here: copy the folder to this machine")
        if not folder.is_dir():
            raise UserError(f"config.init_from: there is no folder {folder}")
    return folders
