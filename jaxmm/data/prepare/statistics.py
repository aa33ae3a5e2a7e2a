"""What a prepared source holds, in numbers: the closing report of a preparation, without times and paths."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmm.data.documents import SKIP_ADVICE
from jaxmm.data.media.table import MEDIA

TOP_IMAGES = 8  # documents with so many images or more count together
MOST_TOLD = 5  # broken files, one line each


def special_lines(special: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Lines for people on the special tokens whose names occur in a source's texts, from meta.json's counts."""
    told = {"letters": "stay letters, unless config.data.special_tokens names them", "tokens": "are tokens"}
    lines = []
    for kind, words in told.items():
        counts = special.get(kind, {})
        if counts:
            named = ", ".join(f"{name!r} {count} times" for name, count in list(counts.items())[:6])
            more = f" and {len(counts) - 6} more" if len(counts) > 6 else ""
            lines.append(f"names of special tokens in its texts {words}: {named}{more}")
    return lines


def report(meta: Mapping[str, Any], columns: Mapping[str, np.ndarray], skipped: Mapping[str, int]) -> dict[str, Any]:
    """Returns what report.json holds.

    Args:
      meta: the content of meta.json.
      columns: of ``index.COLUMNS``, by name.
      skipped: documents left out, by reason.

    Returns:
      ``modalities``: documents, text tokens, images and pixels, by modality. Documents without media are "text"; others
      count for the medium of their first: "image", and where there are any, "features", "image_tokens" and others.
      ``token_lengths`` and ``image_pixels``: [upper bound, count] by powers of two, of text tokens in a document and of
      pixels in an image. ``images_per_document``: [images, count], the last of TOP_IMAGES and more.
    """
    tokens_E = columns["tokens_E"]
    images_E = np.diff(columns["images_E1"])
    kind_I = columns["image_kind_I"]
    area_I = np.multiply(columns["image_height_I"], columns["image_width_I"], dtype=np.int64)
    has_media = images_E > 0
    first_E = columns["images_E1"][:-1][has_media]
    modalities = {"text": _modality(tokens_E[~has_media], 0, 0)}
    for name, medium in MEDIA.items():
        is_own = medium.has(kind_I)
        count = int(np.count_nonzero(is_own))
        if count or name == "image":
            pixels = int(area_I[is_own].sum()) if medium.is_seen else 0
            modalities[name] = _modality(tokens_E[has_media][is_own[first_E]], count, pixels)
    per_document = np.bincount(np.minimum(images_E, TOP_IMAGES), minlength=1)
    return {
        "name": meta["name"],
        "modalities": modalities,
        "token_lengths": _by_powers(tokens_E),
        "image_pixels": _by_powers(area_I[MEDIA["image"].has(kind_I)]),
        "images_per_document": [[count, int(documents)] for count, documents in enumerate(per_document) if documents],
        "skipped": dict(sorted(skipped.items())),
        "shards": len(meta["shards"]),
        "bytes": sum(shard["bytes"] for shard in meta["shards"]),
    }


def _modality(tokens: np.ndarray, media: int, pixels: int) -> dict[str, int]:
    """``tokens``: of each document of the modality."""
    return {"documents": len(tokens), "tokens": int(tokens.sum(dtype=np.int64)), "images": media, "pixels": pixels}


def _by_powers(values: np.ndarray) -> list[list[int]]:
    """[bound, count] by powers of two: how many values are above bound / 2, up to bound."""
    powers = np.ceil(np.log2(np.maximum(values, 1))).astype(np.int64)
    counts = np.bincount(powers).tolist()
    return [[1 << power, count] for power, count in enumerate(counts) if count]


def summary_rows(reports: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows of a table of sources and modalities, with a heading."""
    rows: list[tuple[Any, ...]] = [("source", "modality", "documents", "tokens", "images", "megapixels", "skipped")]
    for one in reports:
        total = sum(one["skipped"].values())
        for name, figures in one["modalities"].items():
            if figures["documents"]:
                pixels = figures["pixels"] / 1e6
                rows.append((one["name"], name, figures["documents"], figures["tokens"], figures["images"], pixels, ""))
        rows[-1] = (*rows[-1][:-1], total)
    return rows


def histogram_rows(one: Mapping[str, Any], key: str, width: int = 40) -> list[tuple[Any, ...]]:
    """Rows of a histogram, with bars, of the entry ``key`` of a report."""
    most = max((count for _, count in one[key]), default=1)
    return [(f"<= {bound:,}", count, "#" * max(1, round(width * count / most))) for bound, count in one[key]]


def column_rows(reports: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows of the columns that each source's records had, with a heading; none if nothing was counted."""
    rows: list[tuple[Any, ...]] = []
    for one in reports:
        columns = one.get("columns", {})
        pictures = columns.get("pictures", {})
        for kind in ("read", "unread"):
            for name, count in columns.get(kind, {}).items():
                told = "read" if kind == "read" else "not read"
                if name in pictures:
                    told += f"; in {pictures[name]:,} a picture or clip that was not read"
                rows.append((one["name"], name, count, told))
    return [("source", "column", "records", ""), *rows] if rows else []


def lost_rests(skipped: str) -> list[str]:
    """Lines on files that were not read to their end, from skipped.jsonl's text: one such skip is many records."""
    told = []
    for line in skipped.splitlines():
        try:
            one = json.loads(line)
            if one["reason"] == "cut short" and one.get("detail"):
                where = f"{one['file']} is broken or ends early at record {one['record']}"
                told.append(f"warning: {where}: {one['detail']}; {SKIP_ADVICE['cut short']}")
        except (ValueError, LookupError, TypeError):  # a damaged line is left out; nothing else is read from this file
            continue
    more = [f"warning: {len(told) - MOST_TOLD} more files are broken or end early"] if len(told) > MOST_TOLD else []
    return told[:MOST_TOLD] + more


def skipped_rows(reports: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows of what was left out and why, the most frequent first."""
    reasons: collections.Counter[tuple[str, str]] = collections.Counter()
    for one in reports:
        reasons.update({(one["name"], reason): count for reason, count in one["skipped"].items()})
        dropped = one.get("dropped_images", {})
        reasons.update({(one["name"], f"{reason} (the page stays)"): count for reason, count in dropped.items()})
    return [(name, reason, count) for (name, reason), count in reasons.most_common()]
