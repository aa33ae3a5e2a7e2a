"""encoding.json, which lies beside ready-made vectors: what ``encode_features`` made them with."""

from __future__ import annotations

from typing import Any

from jaxmm.data import files
from jaxmm.data.readers import dataset_info
from jaxmm.image_spec import ImageSpec
from jaxmm.json_text import parse_json

NAME = "encoding.json"

# What decides the vectors of a clip: keys of the config, with the fields of its spec.
SETTINGS = {
    "video": {name: name for name in ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels",
                                      "sampling", "frames")},
    "audio": {"sampling_rate": "rate", "mels": "mels", "pool": "pool", "max_seconds": "max_seconds"},
}  # fmt: skip


def read(folder: str) -> dict[str, Any] | None:
    """What made the vectors in a folder: objects "tower" and "sources"; None if no such file of ours is there."""
    file = files.join(folder, NAME)
    if not files.is_file(file):
        return None
    with files.open_binary(file) as opened:
        try:
            noted = parse_json(opened.read())
        except ValueError:
            return None
    is_ours = isinstance(noted, dict) and all(isinstance(noted.get(key), dict) for key in ("tower", "sources"))
    return noted if is_ours else None


def settled_otherwise(path: str, medium: str, spec: ImageSpec) -> str:
    """Says how the clips were taken whose vectors lie at a path, where a run would take them otherwise.

    Args:
      path: of the data, a folder or its dataset_info.json.
      medium: "video" or "audio".

    Returns:
      ``fps 1.0, max_frames 8``; '' if it would not, or if nobody knows.
    """
    own = getattr(spec, medium)
    if not path or own is None:
        return ""
    noted = read(files.absolute(path).removesuffix(dataset_info.NAME))
    was = noted["tower"].get(medium) if noted else None
    if not isinstance(was, dict):  # somebody else's file, or one from before clips
        return ""
    keys = SETTINGS[medium].items()
    return ", ".join(f"{key} {was[name]}" for key, name in keys if name in was and was[name] != getattr(own, name))
