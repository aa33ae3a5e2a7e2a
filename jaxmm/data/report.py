"""What a prepared source holds, in numbers: the closing report of a preparation, without a word of time or place."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

TOP_IMAGES = 8  # documents with more count together


def report(meta: Mapping[str, Any], columns: Mapping[str, np.ndarray], skipped: Mapping[str, int]) -> dict[str, Any]:
    """Returns what report.json holds.

    Args:
      meta: as in meta.json.
      columns: of ``prepared.COLUMNS``, by name.
      skipped: documents left out, by reason.

    Returns:
      ``modalities``: documents, text tokens, images and pixels of the documents without images ("text") and with them
      ("image"). ``token_lengths`` and ``image_pixels``: [upper bound, count] by powers of two, of text tokens in a
      document and of pixels in an image. ``images_per_document``: [images, count], the last of TOP_IMAGES and more.
    """
    tokens_E = columns["tokens_E"]
    images_E = np.diff(columns["images_E1"])
    pixels_I = np.multiply(columns["image_height_I"], columns["image_width_I"], dtype=np.int64)
    seen = images_E > 0
    modalities = {}
    for name, is_in in (("text", ~seen), ("image", seen)):
        has = name == "image"
        modalities[name] = {
            "documents": int(is_in.sum()),
            "tokens": int(tokens_E[is_in].sum(dtype=np.int64)),
            "images": len(pixels_I) if has else 0,
            "pixels": int(pixels_I.sum()) if has else 0,
        }
    per_document = np.bincount(np.minimum(images_E, TOP_IMAGES), minlength=1)
    return {
        "name": meta["name"],
        "modalities": modalities,
        "token_lengths": _by_powers(tokens_E),
        "image_pixels": _by_powers(pixels_I),
        "images_per_document": [[count, int(found)] for count, found in enumerate(per_document) if found],
        "skipped": dict(sorted(skipped.items())),
        "shards": len(meta["shards"]),
        "bytes": sum(shard["bytes"] for shard in meta["shards"]),
    }


def _by_powers(values: np.ndarray) -> list[list[int]]:
    """[bound, count]: how many values are above half of the bound and not above it."""
    powers = np.ceil(np.log2(np.maximum(values, 1))).astype(np.int64)
    counts = np.bincount(powers).tolist()
    return [[1 << power, count] for power, count in enumerate(counts) if count]


def summary_rows(reports: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows of a table of sources and modalities, with a heading."""
    rows: list[tuple[Any, ...]] = [("source", "modality", "documents", "tokens", "images", "megapixels", "skipped")]
    for one in reports:
        total = sum(one["skipped"].values())
        for name, found in one["modalities"].items():
            if found["documents"]:
                pixels = found["pixels"] / 1e6
                rows.append((one["name"], name, found["documents"], found["tokens"], found["images"], pixels, ""))
        rows[-1] = (*rows[-1][:-1], total)
    return rows


def histogram_rows(one: Mapping[str, Any], key: str, width: int = 40) -> list[tuple[Any, ...]]:
    """Rows of a histogram that is ``key`` of a report, with bars."""
    most = max((count for _, count in one[key]), default=1)
    return [(f"<= {bound:,}", count, "#" * max(1, round(width * count / most))) for bound, count in one[key]]


def skipped_rows(reports: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows of what was left out and why, most first."""
    reasons: collections.Counter[tuple[str, str]] = collections.Counter()
    for one in reports:
        reasons.update({(one["name"], reason): count for reason, count in one["skipped"].items()})
    return [(name, reason, count) for (name, reason), count in reasons.most_common()]
