"""What a page's script shows on demand, as JSON: the documents with their spans, and the pictures."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import PIL.Image

from jaxmm.report.view import Span, View

EXACT_PIXELS = 4_000_000  # pictures are stored exactly up to so many pixels, and as JPEG after them


class Store:
    """Documents and pictures, numbered as they are added.

    Attributes:
      documents: the fields of each View, with its spans as ``[kind, first, last, is_target, text or picture]``.
      pictures: ``{"src": data URI, "rows", "columns", "patch", "exact"}``: size and first patch as of view.Picture.
    """

    def __init__(self) -> None:
        self.documents: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Any]] = []
        self._pixels = 0

    def add(self, batch: int, row: int, segment: int, view: View) -> dict[str, Any]:
        """Stores a document, and returns what is stored."""
        piece = view.piece
        document = {
            "number": len(self.documents),
            "name": view.name,
            "origin": view.origin,
            "source": piece.source,
            "batch": batch,
            "row": row,
            "segment": segment,
            "place": view.place,
            "piece": (piece.first, piece.last, view.length),
            "pass": piece.epoch + 1,
            "positions": view.positions,
            "targets": view.targets,
            "weights": [round(weight, 4) for weight in view.weights],
            "skipped": view.skipped,
            "boxes": view.boxes,
            "spans": [self._span(span) for span in view.spans],
        }
        self.documents.append(document)
        return document

    def json(self, **more: Any) -> str:
        """All of it, as JSON that may stand in a script element: no ``<`` ends it early."""
        content = {"documents": self.documents, "pictures": self.pictures, **more}
        return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")

    def _span(self, span: Span) -> list[Any]:
        content: str | int = span.text
        if span.picture is not None:
            content = len(self.pictures)
            pixels = span.picture.pixels
            self._pixels += pixels.shape[0] * pixels.shape[1]
            is_exact = self._pixels <= EXACT_PIXELS
            self.pictures.append({
                "src": _data_uri(pixels, is_exact), "rows": span.picture.rows, "columns": span.picture.columns,
                "patch": span.picture.patch, "exact": is_exact,
            })  # fmt: skip
        return [span.kind, span.first, span.last, int(span.is_target), content]


def _data_uri(pixels: np.ndarray, is_exact: bool) -> str:
    file = io.BytesIO()
    if is_exact:
        PIL.Image.fromarray(pixels).save(file, "PNG")
    else:
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return f"data:image/{'png' if is_exact else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"
